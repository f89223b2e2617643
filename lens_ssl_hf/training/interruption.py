"""Ctrl-C and SIGTERM in a training: it saves what it has before it leaves."""

import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import Interrupted


class StopRequest:
    """Notes Ctrl-C and SIGTERM, so that a loop can save before it leaves. A second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def note(self, number: int, frame: Any) -> None:
        """The handler of both signals."""
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number

    def seen_by_any(self, accelerator: Accelerator, may_communicate: bool) -> bool:
        """
        Whether a process was told to stop. Several processes must agree on the step, which takes a message: they look
        only where `may_communicate` says so, in all of them alike.
        """
        if accelerator.num_processes == 1:
            return self.signal_number is not None
        if not may_communicate:
            return False
        flag = torch.tensor(float(self.signal_number or 0), device=accelerator.device)
        number = int(accelerator.gather(flag.reshape(1)).max())
        if number:
            self.signal_number = number
        return number > 0

    def interruption(self, accelerator: Accelerator, done: int, total: int, run: Path) -> Interrupted:
        """What to raise in every process once the main one has saved the step `done` of `total`."""
        accelerator.wait_for_everyone()  # a launcher ends the others as soon as one has left
        return Interrupted(
            f"{run} is saved at step {done} of {total}; do the same again with --resume auto to go on",
            self.signal_number,
        )
