"""Linear layers in float32 by oneDNN, where torch's own way is slow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# torch leaves them to MKL on x86. The operator is the one that torch.compile uses.
_HAS_BOTH = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDNNLinear(TorchFunctionMode):
    """
    In the block, linear layers in float32 on x86 CPUs are computed by oneDNN, which on AMD is twice as fast as MKL.
    Results differ in their last bits; on other devices and in other precisions nothing changes. For inference alone.
    """

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.linear and _is_slow(args[0]):
            features, weight, bias = args
            return torch.ops.mkldnn._linear_pointwise(features, weight, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def _is_slow(features: torch.Tensor) -> bool:
    is_float32 = features.device.type == "cpu" and features.dtype == torch.float32
    return is_float32 and _HAS_BOTH and not torch.is_autocast_enabled("cpu")
