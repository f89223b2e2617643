"""Projection and prediction heads of the three methods."""

import torch
import torch.distributed.nn.functional as dist_functional
from torch import distributed, nn
from torch.nn import functional as F


class BatchNorm1d(nn.BatchNorm1d):
    """
    `nn.BatchNorm1d` whose batch statistics run over all processes, on any backend (`nn.SyncBatchNorm` needs CUDA).
    Every process must bring a batch of the same size.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(features)
        features = features.float()
        world_size = distributed.get_world_size()
        mean = dist_functional.all_reduce(features.mean(dim=0)) / world_size
        variance = dist_functional.all_reduce((features - mean).square().mean(dim=0)) / world_size
        with torch.no_grad():
            count = len(features) * world_size
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        normalised = (features - mean) * torch.rsqrt(variance + self.eps)
        return normalised if self.weight is None else normalised * self.weight + self.bias


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
