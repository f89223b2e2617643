"""Means of the scalars of many steps, which no step waits for."""

from typing import Any

import torch
from accelerate import Accelerator


class Averages:
    """Running means of scalars that stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, values: dict[str, torch.Tensor], skipped: torch.Tensor) -> None:
        """Count the values of one step, unless it was `skipped`."""
        values = {**values, "count": torch.ones_like(skipped, dtype=torch.float32)}
        for name, value in values.items():
            value = torch.where(skipped, 0.0, value.detach().float())
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Means over the steps since the last call and over the processes; empty where all were skipped. Every process
        must call it.
        """
        sums = {name: value.item() for name, value in accelerator.reduce(self._sums, "mean").items()}
        self._sums = {}
        count = sums.pop("count", 0.0)
        return {name: total / count for name, total in sums.items()} if count else {}

    def state(self) -> dict[str, torch.Tensor]:
        """The sums, for a checkpoint between two calls of `pop`."""
        return {f"average.{name}": value for name, value in self._sums.items()}

    def restore(self, extra: dict[str, Any], device: torch.device) -> None:
        """Take the sums out of what a checkpoint holds."""
        prefix = "average."
        self._sums = {
            name[len(prefix) :]: extra.pop(name).to(device) for name in list(extra) if name.startswith(prefix)
        }
