"""
A training step as one CUDA graph. A step of a small ViT is some thousand kernels of a few microseconds each, more than
the host can launch in the time that the GPU takes for them; a graph is launched at once.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

# Steps that run as they are before one is captured: kernels are compiled and chosen in them, and memory is found.
WARMUP_STEPS = 3


class StepGraph:
    """
    Captures a step once it has become always the same, and replays it from then on.

    A replay computes with whatever the tensors hold that the capture has seen. Images, indices and numbers are
    therefore copied into tensors that stay; weights, optimizer state, buffers and counters stay anyway, since a step
    changes them in place.

    Args:
        step (`Callable`): takes images, indices, numbers and phase, as [`~StepGraph.__call__`] does.
        groups (`list[dict]`): the optimizer's, whose learning rates are given to the graph as numbers.
        device (`torch.device`): a CUDA device.
    """

    def __init__(self, step: Callable[..., None], groups: list[dict[str, Any]], device: torch.device):
        self.step, self.groups = step, groups
        self.stream = torch.cuda.Stream(device)
        self.constants: Hashable = None
        self.count = 0  # steps with these constants
        self.graph: torch.cuda.CUDAGraph | None = None
        self.numbers: torch.Tensor | None = None

    def __call__(
        self, images: torch.Tensor, indices: torch.Tensor, numbers: Mapping[str, float], phase: Hashable
    ) -> None:
        """
        Do one step.

        Args:
            images (`torch.Tensor` of shape `(batch, bands, H, W)`), indices (`torch.LongTensor` of shape `(batch,)`):
                on the device.
            numbers (`Mapping[str, float]`): what is another value in every step; the step sees 0-dim tensors.
            phase (`Hashable`): what the step looks at on the host; a graph serves the steps of one phase.
        """
        numbers = {**numbers, **{f"learning_rate.{i}": group["lr"] for i, group in enumerate(self.groups)}}
        if self.numbers is None:
            self.numbers = torch.empty(len(numbers), dtype=torch.float64, device=images.device)
        for slot, value in zip(self.numbers.unbind(), numbers.values()):
            slot.fill_(value)  # travels with the launch: no copy to wait for
        constants = (phase, images.shape, tuple(group["weight_decay"] for group in self.groups))
        if constants != self.constants:
            self.constants, self.count, self.graph = constants, 0, None
        self.count += 1
        if self.count <= WARMUP_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                run_step(self.step, self.groups, images, indices, self.numbers, list(numbers), phase)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self._capture(images, indices, list(numbers), phase)
        self.images.copy_(images)
        self.indices.copy_(indices)
        self.graph.replay()

    def _capture(self, images: torch.Tensor, indices: torch.Tensor, names: list[str], phase: Hashable) -> None:
        self.images, self.indices = images.clone(), indices.clone()
        for group in self.groups:  # what AdamW asks for; without a graph it warns of it
            group["capturable"] = True
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            run_step(self.step, self.groups, self.images, self.indices, self.numbers, names, phase)
        for group in self.groups:
            group["capturable"] = False


def run_step(
    step: Callable[..., None],
    groups: list[dict[str, Any]],
    images: torch.Tensor,
    indices: torch.Tensor,
    packed: torch.Tensor,
    names: list[str],
    phase: Hashable,
) -> None:
    """
    A step whose numbers are 0-dim tensors, the learning rates of the optimizer's groups included.

    Args:
        packed (`torch.DoubleTensor` of shape `(len(names),)`): the numbers, on the device.
    """
    values = dict(zip(names, packed.float()))
    values |= {name: packed[names.index(name)].long() for name in ("step", "epoch")}  # float32 is too coarse for these
    for i, group in enumerate(groups):
        group["lr"] = values.pop(f"learning_rate.{i}")
    step(images, indices, values, phase)
