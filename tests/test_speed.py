"""What is fast equals what is plain, waits for nothing and stays within its memory; benchmark.py measures speed."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_models import make_model, make_views

from lens_ssl_hf.models import METHODS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_fp32_rounded(method):
    losses, gradients = [], []
    for enabled in (False, True):
        model = make_model(method).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(**make_views(method, batch=16)).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01, abs=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method, tmp_path):
    from benchmark import BenchmarkArguments, our_step, split_of

    arguments = BenchmarkArguments(batch_size=8, num_local_views=1)
    split = split_of(our_step(arguments, method, "vitt8", tmp_path, precision="fp32"))
    assert split.pop("host_synchronisations") == 0
    assert sorted(split) == ["backward", "forward", "optimizer", "views"] and min(split.values()) > 0


KEPT = """
import resource, torch
from lens_ssl_hf.training.accelerator import make_accelerator
def page_faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(5 * 2**20) for _ in range(10)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
make_accelerator("fp32", deterministic=False)
print([page_faults() for _ in range(8)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    result = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(result.stdout) < 100  # by default nearly always all 51,200 pages of the ten tensors


@pytest.mark.slow
def test_memory_of_a_large_run_is_bounded(tmp_path):
    """DINO with vitb8, batch 256 and 2 + 4 views."""
    command = ["scripts/benchmark.py", "--parts", "memory", "--output", str(tmp_path / "memory.json")]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=1200)
    assert json.loads((tmp_path / "memory.json").read_text())["memory"]["peak_bytes"] < 10 * 2**30
