"""Projection and prediction heads of the three methods."""

import torch
from torch import nn
from torch.nn import functional as F


class SimSiamProjection(nn.Sequential):
    """Three-layer MLP with batch norm, the last one without affine parameters (Chen & He 2021, section 3)."""

    def __init__(self, input_size: int, output_size: int):
        super().__init__(
            nn.Linear(input_size, output_size, bias=False),
            nn.BatchNorm1d(output_size),
            nn.ReLU(),
            nn.Linear(output_size, output_size, bias=False),
            nn.BatchNorm1d(output_size),
            nn.ReLU(),
            nn.Linear(output_size, output_size, bias=False),
            nn.BatchNorm1d(output_size, affine=False),
        )


class SimSiamPrediction(nn.Sequential):
    """Two-layer bottleneck MLP with batch norm in the hidden layer only (Chen & He 2021, section 3)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(
            nn.Linear(input_size, hidden_size, bias=False),
            nn.BatchNorm1d(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, input_size),
        )


class DINOHead(nn.Module):
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
