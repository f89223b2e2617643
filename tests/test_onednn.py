"""Linear layers by oneDNN give what torch gives."""

import pytest
import torch
from torch import nn
from torch.profiler import profile

from lens_ssl_hf.survey.onednn import OneDNNLinear


def by_both(layer, features):
    """What torch and oneDNN give, and the names of the operators of the second."""
    with torch.inference_mode():
        expected = layer(features)
        with profile() as watched, OneDNNLinear():
            found = layer(features)
    return expected, found, {event.key for event in watched.key_averages()}


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL, as on ARM, keeps its own way")
@pytest.mark.parametrize("shape", [(1, 384), (256, 384), (1, 17, 384), (33, 17, 384)])
@pytest.mark.parametrize("bias", [True, False])
def test_float32_is_computed_by_onednn_to_the_last_bits(shape, bias):
    torch.manual_seed(0)
    features = torch.randn(*reversed(shape)).permute(*reversed(range(len(shape))))  # not contiguous
    expected, found, operators = by_both(nn.Linear(384, 50, bias=bias), features)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert "mkldnn::_linear_pointwise" in operators and "aten::addmm" not in operators


def test_other_precisions_keep_their_bits():
    layer, features = nn.Linear(384, 50), torch.randn(8, 17, 384)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found, operators = by_both(layer, features)
    assert torch.equal(found, expected) and "mkldnn::_linear_pointwise" not in operators
    expected, found, operators = by_both(layer.double(), features.double())
    assert torch.equal(found, expected) and "mkldnn::_linear_pointwise" not in operators
