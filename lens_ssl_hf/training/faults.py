"""Steps that give NaN or infinite values are skipped as if they had never been, and counted; too many end the run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import InputError

MAX_CONSECUTIVE_FAULTS = 10
# Schedules count every step: what trained for less than half of them is another training than the one asked for.
MAX_SHARE_OF_FAULTS = 0.5
_ADVICE = "begin again in another output_dir with a lower learning_rate or with precision fp32"


class BuffersBefore:
    """
    The buffers of a model (centres, the statistics of batch norm: a few kB) as they were before a step.

    Args:
        model (`torch.nn.Module`): whose forward passes may change its buffers.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self._before = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self, skip: torch.Tensor) -> None:
        """Take the buffers back to what they were if `skip`, a bool on the device."""
        for buffer, before in zip(self.model.buffers(), self._before):
            buffer.copy_(torch.where(skip, before, buffer))


class Faults:
    """
    Steps whose loss, gradient or buffers are NaN or infinite. They are found, skipped and counted on the device, and
    the counts read now and then, so that no step waits for the host.

    Args:
        device (`torch.device`): where losses are.
        total, consecutive (`int`, *optional*): steps skipped so far, and in a row up to the last one.
    """

    def __init__(self, device: torch.device, total: int = 0, consecutive: int = 0):
        # of these, the most in a row since the last check, and the last step that was skipped; changed in place
        self._total, self._consecutive, self._longest, self._last = torch.tensor(
            [total, consecutive, consecutive, 0], device=device
        )

    def note(
        self,
        accelerator: Accelerator,
        step: int | torch.Tensor,
        loss: torch.Tensor,
        norm: torch.Tensor,
        buffers: BuffersBefore,
    ) -> torch.Tensor:
        """Whether `step` is to be skipped, as a bool on the device, the same in every process."""
        values = [loss.detach(), norm, *buffers.model.buffers()]  # an overflow in batch norm may leave the loss finite
        fault = ~torch.stack([value.isfinite().all() for value in values]).all()
        if accelerator.num_processes > 1:
            fault = accelerator.reduce(fault.float(), "sum") > 0
        self._total += fault
        self._consecutive.copy_((self._consecutive + 1) * fault)
        self._longest.copy_(torch.maximum(self._longest, self._consecutive))
        self._last.copy_(torch.where(fault, step, self._last))
        return fault

    def counts(self) -> dict[str, int]:
        """`total` and `consecutive`, for a checkpoint."""
        return {"total": int(self._total), "consecutive": int(self._consecutive)}

    def check(self, ids: Callable[[int], Sequence[str]]) -> int:
        """
        The number of steps skipped so far.

        Args:
            ids (`Callable`): gives the ids of the samples of a step.

        Raises:
            [`InputError`]: too many in a row.
        """
        total, longest, last = torch.stack([self._total, self._longest, self._last]).tolist()
        self._longest.copy_(self._consecutive)
        if longest < MAX_CONSECUTIVE_FAULTS:
            return total
        raise InputError(
            f"{longest} steps in a row gave a loss or gradient that is NaN or infinite and were skipped (the batch of "
            f"step {last + 1} holds {', '.join(ids(last)[:3])} and others): look at these cutouts, or {_ADVICE}"
        )

    def finish(self, steps: int) -> int:
        """
        The number of steps skipped in a run of so many.

        Raises:
            [`InputError`]: more than half of them.
        """
        total = int(self._total)
        if total > MAX_SHARE_OF_FAULTS * steps:
            raise InputError(
                f"{total} of {steps} steps gave a loss or gradient that is NaN or infinite and were skipped, so that "
                f"no model is written: {_ADVICE}"
            )
        return total


def optimizer_step(optimizer: Any, skip: torch.Tensor, buffers: BuffersBefore) -> None:
    """
    Step a fused optimizer unless `skip`, decided on the device, which also takes the model's buffers back to what they
    were before the step; gradients are dropped either way.
    """
    # The interface of GradScaler: fused optimizers leave weights and state alone where found_inf is 1.
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.grad_scale, inner.found_inf = None, skip.float()
    try:
        optimizer.step()
    finally:
        del inner.grad_scale, inner.found_inf
    optimizer.zero_grad(set_to_none=True)
    buffers.restore(skip)


def check_model(model: torch.nn.Module) -> None:
    """
    Raises:
        [`InputError`]: a weight or a buffer is NaN or infinite.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} of the trained model is NaN or infinite, so that no model is written: {_ADVICE}")


def check_outputs(outputs: torch.Tensor) -> None:
    """
    Raises:
        [`InputError`]: all `outputs` `(n, features)` of a trained model are NaN or infinite, as those of weights that
            are finite but too large. Of one image they may be so, where the image is to blame.
    """
    if not outputs.isfinite().all(dim=1).any():
        raise InputError(f"the trained model gives NaN or infinite features, so that no model is written: {_ADVICE}")
