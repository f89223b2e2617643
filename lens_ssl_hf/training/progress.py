"""How far a training is: a progress bar, and one sentence on how long it will take."""

import sys
import time

from accelerate import Accelerator
from tqdm.auto import tqdm

LONG = 60  # seconds from which on a training announces how long it takes


def progress_bar(accelerator: Accelerator, description: str, start: int, total: int) -> tqdm:
    """A bar with an estimate of the time left, on the main process; a line every 30 s outside of terminals."""
    return tqdm(
        desc=description,
        initial=start,
        total=total,
        disable=not accelerator.is_main_process,
        mininterval=0.2 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
        unit="step",
    )


class Forecast:
    """
    Says from the main process how many steps there are, and of a long training, once, about how long they take.

    Args:
        accelerator (`Accelerator`): of the training.
        bar (`tqdm`): its progress bar, below which the sentence must not get.
        total (`int`): steps of the whole run.
    """

    def __init__(self, accelerator: Accelerator, bar: tqdm, total: int):
        self._bar, self._total = bar, total
        if accelerator.is_main_process and bar.n < total:
            bar.write(f"{total - bar.n:,} steps")
        self._is_due = accelerator.is_main_process
        self._first: tuple[int, float] | None = None

    def update(self, done: int) -> None:
        """
        Take the time at step `done`, once the device has come as far. The steps up to the first call are left out:
        they wait for memory, kernels and files.
        """
        if not self._is_due:
            return
        now = time.perf_counter()
        if self._first is None:
            self._first = done, now
            return
        self._is_due = False
        seconds = (now - self._first[1]) / (done - self._first[0]) * (self._total - done)
        if seconds > LONG:
            self._bar.write(f"about {format_time(seconds)} for {self._total - done:,} steps")


def format_time(seconds: float) -> str:
    """`"2 h 10 min"`, `"12 min"`, `"40 s"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
