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
    from benchmark_steps import our_step, split_of

    split = split_of(our_step(method, "vitt8", tmp_path, 8, 1, precision="fp32"))
    assert split.pop("host_synchronisations") == 0
    assert sorted(split) == ["backward", "forward", "optimizer", "views"] and min(split.values()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_tensors_is_the_step_of_numbers(method, tmp_path):
    """What a CUDA graph replays: the same weights, with a learning rate, temperatures and an epoch on the device."""
    from benchmark_steps import our_step

    from lens_ssl_hf.training.step_graph import run_step

    trainers = []
    for name in "ab":
        torch.manual_seed(0)
        trainers.append(our_step(method, "vitt8", tmp_path / name, 8, 1, precision="fp32"))
    plain, other = trainers

    def train_on(images, indices, numbers, phase):
        groups = other.optimizer.param_groups
        numbers |= {f"learning_rate.{i}": group["lr"] for i, group in enumerate(groups)}
        packed = torch.tensor(list(numbers.values()), dtype=torch.float64)
        run_step(other._train_on, groups, images, indices, packed, list(numbers), phase)

    other.train_on = train_on
    for step in range(4):
        assert plain.step(step) == other.step(step)
    for expected, found in zip(plain.task.model.parameters(), other.task.model.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_compiled_layers_compute_the_same(tmp_path):
    from lens_ssl_hf.models.backbones import compile_layers

    results = []
    for compiles in (False, True):
        model = make_model("dino").train()
        if compiles:
            compile_layers(model)
        loss = model(**make_views("dino", batch=4)).loss
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert torch.cosine_similarity(results[0][1], results[1][1], dim=0) > 0.99999
    assert not any("_orig_mod" in name for name in model.state_dict())


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
