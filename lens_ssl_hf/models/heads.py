"""Projection and prediction heads of the three methods."""

import torch
import torch.distributed.nn.functional as dist_functional
from torch import distributed, nn
from torch.nn import functional as F


def _normalised_over_processes(norm: nn.BatchNorm1d | nn.BatchNorm2d, features: torch.Tensor) -> torch.Tensor:
    """What a batch norm gives in training where its batch is that of all processes."""
    features, world_size = features.float(), distributed.get_world_size()
    dims = [dim for dim in range(features.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(features.ndim)]
    mean = dist_functional.all_reduce(features.mean(dim=dims)) / world_size
    centred = features - mean.view(shape)
    variance = dist_functional.all_reduce(centred.square().mean(dim=dims)) / world_size
    with torch.no_grad():
        count = features.numel() // features.shape[1] * world_size
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
        norm.num_batches_tracked += 1
    normalised = centred * torch.rsqrt(variance + norm.eps).view(shape)
    return normalised if norm.weight is None else normalised * norm.weight.view(shape) + norm.bias.view(shape)


def _has_processes() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


class BatchNorm1d(nn.BatchNorm1d):
    """
    `nn.BatchNorm1d` whose batch statistics run over all processes, on any backend (`nn.SyncBatchNorm` needs CUDA).
    Every process must bring a batch of the same size.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not (self.training and _has_processes()):
            return super().forward(features)
        return _normalised_over_processes(self, features)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` in the same way."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not (self.training and _has_processes()):
            return super().forward(features)
        return _normalised_over_processes(self, features)


def over_processes(model: nn.Module) -> nn.Module:
    """Make every `nn.BatchNorm2d` of a model a [`BatchNorm2d`]: a model that is published has torch's own."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d
    return model


class SimSiamProjection(nn.Sequential):
    """Three-layer MLP with batch norm, the last one without affine parameters (Chen & He 2021, section 3)."""

    def __init__(self, input_size: int, output_size: int):
        super().__init__(
            nn.Linear(input_size, output_size, bias=False),
            BatchNorm1d(output_size),
            nn.ReLU(),
            nn.Linear(output_size, output_size, bias=False),
            BatchNorm1d(output_size),
            nn.ReLU(),
            nn.Linear(output_size, output_size, bias=False),
            BatchNorm1d(output_size, affine=False),
        )


class SimSiamPrediction(nn.Sequential):
    """Two-layer bottleneck MLP with batch norm in the hidden layer only (Chen & He 2021, section 3)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(
            nn.Linear(input_size, hidden_size, bias=False),
            BatchNorm1d(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, input_size),
        )


class DinoHead(nn.Module):
    """
    Three-layer GELU MLP, l2-normalised bottleneck and a last layer whose weight rows have unit norm
    (Caron et al. 2021, section 3.1 and appendix C).
    """

    def __init__(self, input_size: int, hidden_size: int, bottleneck_size: int, num_prototypes: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(input_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, bottleneck_size),
        )
        self.last_layer = nn.Linear(bottleneck_size, num_prototypes, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(..., input_size)` features -> `(..., num_prototypes)` logits in [-1, 1] (cosines to the prototypes)."""
        bottleneck = F.normalize(self.mlp(features), dim=-1)
        return F.linear(bottleneck, F.normalize(self.last_layer.weight, dim=-1))
