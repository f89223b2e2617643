"""Experiment trackers beside metrics.jsonl, through Accelerate's: trackio, tensorboard, wandb."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError

TRACKERS = ("trackio", "tensorboard", "wandb")
PROJECT = "lens_ssl_hf"


def check_trackers(names: Sequence[str]) -> None:
    """
    Raises:
        [`InputError`]: an unknown tracker, or one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"report_to must be of {', '.join(TRACKERS)}, not {name!r}")
        if find_spec(name) is None:
            raise InputError(f"report_to {name} needs the package {name}, which is not installed: pip install {name}")


class Trackers:
    """
    The trackers of one run. They get the numbers of metrics.jsonl and the settings of run.json, nothing else.

    Args:
        names (`Sequence[str]`): of [`TRACKERS`].
    """

    def __init__(self, names: Sequence[str] = ()):
        self.names = names
        self._started: list[Any] = []

    def start(self, run: Path, run_id: str, settings: dict[str, Any], step: int) -> None:
        """
        Begin, or go on with what the same run reported before.

        Args:
            run (`Path`): the run directory; TensorBoard's files go to its `tensorboard/`.
            run_id (`str`): the same for a run and its continuations.
            settings (`dict`): the run's arguments.
            step (`int`): the last step that counts of what was reported before; -1 where the run begins.

        Raises:
            [`InputError`]: a tracker cannot start.
        """
        if not self.names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        options = {
            "trackio": {"run_name": PROJECT, "name": f"{run.name}-{run_id}", "resume": "allow"},
            "tensorboard": {"run_name": "tensorboard", "logging_dir": run, "purge_step": step + 1},
            "wandb": {"run_name": PROJECT, "name": run.name, "id": run_id, "resume": "allow"},
        }
        for name in self.names:
            tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
            try:
                tracker.start()
            except Exception as error:  # each tracker has its own
                reason = str(error).strip().split("\n")[0]
                raise InputError(
                    f"report_to {name} cannot start ({reason}): set {name} up, or leave it out"
                ) from error
            self._started.append(tracker)
            if step < 0:
                plain = (bool, int, float, str)
                tracker.store_init_configuration(
                    {k: v if isinstance(v, plain) else str(v) for k, v in settings.items()}
                )

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Report the numbers among `values`."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._started:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Wait until all is reported, and close."""
        while self._started:
            self._started.pop().finish()
