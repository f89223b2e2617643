"""
What must hold on a GPU: it computes what the CPU does, runs resume to the bit, no step waits for the host or leaks.

`make test-gpu` runs these. With LENS_SSL_REHEARSE=1 they run on the CPU, but for what only CUDA has: so that they are
known to work before a GPU is there.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_toy
from packaging.version import Version
from safetensors.torch import load_file
from test_interruptions import assert_same_run, run_until_killed
from test_invariants import RECORD, SMALLEST, STEPS, TOLERANCES, TRAININGS, first_steps
from test_models import make_model, make_views
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, ViTForImageClassification

from lens_ssl_hf import finetune, pipeline, predict, pretrain
from lens_ssl_hf.data.views import Views, ViewSettings, random_bits
from lens_ssl_hf.models import METHODS
from lens_ssl_hf.models.backbones import use_fast_attention
from lens_ssl_hf.training import step_graph, trainer
from lens_ssl_hf.training.trainer import Trainer

REHEARSES = os.environ.get("LENS_SSL_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSES else "cuda"
ROOT = Path(__file__).parents[1]
NO_GPU = "needs a GPU; LENS_SSL_REHEARSE=1 runs it on the CPU"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSES or torch.cuda.is_available()), reason=NO_GPU),
]
cuda_only = pytest.mark.skipif(REHEARSES, reason="a CPU has nothing to wait for and no memory of its own")

SSL = {"backbone": "vitt8", "batch_size": 32, "epochs": 3, "log_every": 1, "eval_every": 2, "checkpoint_every": 1}
SSL |= {"num_local_views": 1, "num_prototypes": 64, "head_hidden_size": 32, "projection_size": 64}
LABELS = {"backbone": "vitt8", "batch_size": 32, "steps": 9, "eval_every": 3, "log_every": 1}
SCALE = {"scale": (0.6, 1.0)}
SETTINGS = {
    "plain": ViewSettings(32, 40, gain=0.0, offset=0.0, noise_sigma=0.0),
    "noise and jitter": ViewSettings(32, 40, **SCALE),
    "all": ViewSettings(24, 36, **SCALE, band_jitter=0.2, blur_probability=0.5, blur_sigma=(0.3, 2.0)),
    "upright": ViewSettings(16, 40, **SCALE, rotate=False, flip=False, blur_probability=1.0),
}


@pytest.fixture(scope="module", autouse=True)
def reproducible_cublas():
    """deterministic=True asks for this too, but it must be set before the first matrix product of the process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def restored_switches():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def exact_fp32():
    """TF32, which convolutions have by default, rounds to 10 bits."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before):
        switch.allow_tf32 = value


@pytest.fixture(scope="module")
def data(tiny_cutouts, tmp_path_factory):
    return save_toy(tiny_cutouts, tmp_path_factory.mktemp("data") / "cutouts")


@pytest.fixture(scope="module")
def dino_run(data, tmp_path_factory):
    return pretrain(data, tmp_path_factory.mktemp("dino") / "run", "dino", precision="fp32", **SSL)


@pytest.fixture(scope="module")
def classifier(tiny_cutouts, tmp_path_factory):
    return finetune(tiny_cutouts, tmp_path_factory.mktemp("classifier") / "run", precision="fp32", **LABELS)


def train(training, cutouts, folder, **settings):
    """A short run of simsiam, dino, ibot, finetune or cnn."""
    if training in METHODS:
        return pretrain(cutouts, folder, training, **{**SSL, **settings})
    backbone = {"backbone": "cnn"} if training == "cnn" else {}
    return finetune(cutouts, folder, **{**LABELS, **backbone, **settings})


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in lines(run) if "loss" in line]


def cut(run, folder):
    """A copy of a finished run as it was when it had written all but its last checkpoint."""
    shutil.copytree(run, folder)
    checkpoints = sorted((folder / "checkpoints").glob("step-*.safetensors"))
    assert len(checkpoints) > 1
    checkpoints[-1].unlink()
    shutil.rmtree(folder / "model")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({name: facts[name] for name in facts if name != "seconds"}))
    return folder


# ---- the GPU computes what the CPU computes --------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_views_are_those_of_the_cpu(name):
    """
    An angle is off by an ulp or two of 2 pi (5e-7) on a radius of 30 pixels, where noise of sigma 1 changes by up to 5
    from pixel to pixel: 1e-4.
    """
    images = torch.randn(64, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(1000, 1064)
    views = [
        Views(3, device).crops(images.to(device), indices.to(device), SETTINGS[name], 2, 1, 3).cpu()
        for device in (DEVICE, "cpu")
    ]
    torch.testing.assert_close(*views, atol=1e-4, rtol=1e-5)


def test_random_bits_and_masks_are_those_of_the_cpu():
    indices = torch.arange(5000, 5256)
    bits = [random_bits(7, 3, indices.to(device), 2, 40).cpu() for device in (DEVICE, "cpu")]
    assert torch.equal(*bits)
    masks = [Views(7, device).masks(indices.to(device), 4, 5, 3, 0, 2).cpu() for device in (DEVICE, "cpu")]
    assert torch.equal(*masks)


def loss_and_gradient(method, device, dtype=torch.float32, bf16=False):
    model = make_model(method).to(device, dtype).train()
    for name, buffer in model.named_buffers():
        buffer.data = buffer.float() if "centre" in name else buffer  # as the logits in the losses
    use_fast_attention(model)
    views = {name: view.to(device) for name, view in make_views(method, batch=16).items()}
    views = {name: view.to(dtype) if view.is_floating_point() else view for name, view in views.items()}
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = model(**views).loss
    loss.backward()
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_those_of_float64(method, exact_fp32):
    loss, gradient = loss_and_gradient(method, "cpu", torch.float64)
    single, single_gradient = loss_and_gradient(method, DEVICE)
    assert single == pytest.approx(loss, rel=1e-5, abs=1e-6)  # SimSiam's is a cosine near zero
    assert (single_gradient - gradient).norm() < 1e-3 * gradient.norm()
    half, half_gradient = loss_and_gradient(method, DEVICE, bf16=True)
    assert half == pytest.approx(loss, rel=0.02, abs=0.01)
    assert torch.cosine_similarity(half_gradient, gradient, dim=0) > 0.98


FIRST_STEPS = """
import json, sys
from pathlib import Path
from test_invariants import TRAININGS, first_steps
record = {training: first_steps(training, Path(sys.argv[1])) for training in TRAININGS}
print("RECORD", json.dumps(record))
"""


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """invariants.json; made anew on the CPU where torch, before 2.13, draws other truncated normal weights."""
    if Version(torch.__version__) >= Version("2.13"):
        return json.loads(RECORD.read_text())
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    command = [sys.executable, "-c", FIRST_STEPS, tmp_path_factory.mktemp("record")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    return json.loads(output.split("RECORD ")[1])


@pytest.mark.parametrize("training", TRAININGS)
def test_the_first_steps_are_those_on_record(training, record, exact_fp32, tmp_path):
    """
    A GPU's sines and exponentials have other last bits. Views that are off by 1e-5 throughout, more than they are,
    move SimSiam's third step by 8e-5 in loss and by 5e-3 in gradient norm, the others by less than a CPU's tolerances.
    """
    slack = 10 if training == "simsiam" else 1
    for name, values in first_steps(training, tmp_path).items():
        values, recorded = values[: STEPS[training]], record[training][name][: STEPS[training]]
        assert values == pytest.approx(recorded, rel=slack * TOLERANCES[name], abs=slack * SMALLEST), name


def test_scores_are_those_of_the_cpu(classifier, tiny_cutouts):
    scores = [predict(classifier, tiny_cutouts, device=device).score for device in (DEVICE, "cpu")]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert np.ptp(scores[1]) > 0.1
    pixels = list(tiny_cutouts[0]["test"].pixels.numpy())
    answers = pipeline(str(classifier), device=DEVICE)(pixels, units="display")
    lens = [entry["score"] for answer in answers for entry in answer if entry["label"] == "lens"]
    np.testing.assert_allclose(lens, scores[1], atol=1e-3)


# ---- whole trainings -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16"] if REHEARSES else ["bf16", "fp32"])
@pytest.mark.parametrize("training", ["simsiam", "dino", "ibot", "finetune", "cnn"])
def test_trainings_learn(training, precision, tiny_cutouts, tmp_path):
    longer = {"epochs": 8} if training == "simsiam" else {}  # its cosines begin at 0, with as much noise as slope
    run = train(training, tiny_cutouts, tmp_path / "run", precision=precision, **longer)
    found = losses(run)
    assert len(found) == (24 if longer else 9) and all(map(math.isfinite, found))
    assert sum(found[-3:]) < sum(found[:3])
    facts = json.loads((run / "run.json").read_text())
    assert (facts["device"], facts["precision"], facts["skipped_steps"]) == (DEVICE, precision, 0)
    if training in METHODS:
        AutoModel.from_pretrained(run / "model")
    elif training == "finetune":
        ViTForImageClassification.from_pretrained(run / "model")
    else:
        assert len(predict(run, tiny_cutouts).score) == 48


@pytest.mark.parametrize("training", TRAININGS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(training, tiny_cutouts, tmp_path):
    settings = {"precision": "bf16", "deterministic": True}
    whole = train(training, tiny_cutouts, tmp_path / "whole", **settings)
    resumed = train(training, tiny_cutouts, cut(whole, tmp_path / "cut"), resume="auto", **settings)
    assert_same_run(resumed, whole)


def test_a_run_begun_on_the_gpu_goes_on_on_the_cpu(dino_run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    resumed = cut(dino_run, tmp_path / "cut")
    settings = {"method": "dino", "precision": "fp32", **SSL}
    done = run_until_killed("pretrain", data, resumed, settings, "never", 0)
    assert done.returncode == 0, done.stderr
    facts = json.loads((resumed / "run.json").read_text())
    assert facts["device"] == DEVICE  # what it was begun on; where it went on is noted
    assert REHEARSES or facts["resumed"] == [{"device": "cpu"}]
    assert losses(resumed) == pytest.approx(losses(dino_run), rel=1e-2)


def test_one_process_of_a_launch_is_the_plain_run(dino_run, data, tmp_path):
    """torchrun sets up NCCL, or gloo without a GPU, for its one process."""
    options = " ".join(f"--{name} {value}" for name, value in SSL.items())
    launch = "-m torch.distributed.run --standalone --nproc_per_node 1 scripts/run_ssl.py --method dino"
    launch += f" {options} --precision fp32 --dataset {data} --output_dir {tmp_path / 'run'}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, *launch.split()]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(dino_run), rel=1e-3)


# ---- one step --------------------------------------------------------------------------------------


def train_inside(around, training, cutouts, folder, monkeypatch, **settings):
    """Four epochs of twelve steps, each step inside `around(its number)`."""
    step = Trainer.step

    def watched(self, number):
        with around(number):
            return step(self, number)

    monkeypatch.setattr(Trainer, "step", watched)
    settings |= {"batch_size": 8, "log_every": 1000}
    settings |= {"epochs": 4, "eval_every": 0} if training in METHODS else {"steps": 48, "eval_every": 48}
    train(training, cutouts, folder, **settings)


@cuda_only
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("training", TRAININGS)
def test_no_step_waits_for_the_gpu(training, precision, tiny_cutouts, tmp_path, monkeypatch):
    """But for the first ones, which compile and allocate, and the first one of an epoch, which copies its order."""

    @contextlib.contextmanager
    def without_waiting(number):
        torch.cuda.set_sync_debug_mode("error" if number > 6 and number % 12 else "default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    train_inside(without_waiting, training, tiny_cutouts, tmp_path / "run", monkeypatch, precision=precision)


@cuda_only
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("tokens", [5, 10, 17, 64])
def test_attention_over_few_tokens_is_that_of_float64(tokens, compiled):
    from lens_ssl_hf.models.short_attention import short_attention

    generator = torch.Generator().manual_seed(tokens)
    made = [torch.randn(33, tokens, 6, 64, generator=generator) for _ in range(4)]

    def results(attend, dtype, device):
        *inputs, gradient = (tensor.bfloat16().to(device, dtype).transpose(1, 2) for tensor in made)
        inputs = [tensor.requires_grad_() for tensor in inputs]
        output = attend(*inputs)
        return output, *torch.autograd.grad(output, inputs, gradient)

    def few(query, key, value):
        return short_attention(query, key, value, 0.125)

    expected = results(lambda *qkv: scaled_dot_product_attention(*qkv, scale=0.125), torch.float64, "cpu")
    attend = torch.compile(few, dynamic=False) if compiled else few  # as compile_layers does it
    once, again = (results(attend, torch.bfloat16, "cuda") for _ in range(2))
    for wanted, found, repeated in zip(expected, once, again):
        assert (found.double().cpu() - wanted).norm() < 0.01 * wanted.norm()
        assert torch.equal(found, repeated)


@cuda_only
@pytest.mark.parametrize("training", [*TRAININGS, "cnn"])
def test_a_graph_replays_the_step_to_the_bit(training, tiny_cutouts, tmp_path, monkeypatch):
    torch.use_deterministic_algorithms(True)
    graphed = train(training, tiny_cutouts, tmp_path / "graphed", precision="bf16")
    monkeypatch.setattr(step_graph, "WARMUP_STEPS", 10**9)
    plain = train(training, tiny_cutouts, tmp_path / "plain", precision="bf16")
    assert losses(graphed) == losses(plain)
    weights = [load_file(run / "model" / "model.safetensors") for run in (graphed, plain)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@cuda_only
def test_a_compiled_training_is_close_to_the_plain_one(tiny_cutouts, tmp_path, monkeypatch):
    plain = train("ibot", tiny_cutouts, tmp_path / "plain", precision="bf16")
    monkeypatch.setattr(trainer, "COMPILED_FROM", 0)
    compiled = train("ibot", tiny_cutouts, tmp_path / "compiled", precision="bf16")
    assert losses(compiled) == pytest.approx(losses(plain), rel=0.02)


@cuda_only
@pytest.mark.parametrize("training", TRAININGS)
def test_memory_does_not_grow_from_step_to_step(training, tiny_cutouts, tmp_path, monkeypatch):
    peaks = []

    @contextlib.contextmanager
    def measured(number):
        torch.cuda.reset_peak_memory_stats()
        yield
        peaks.append(torch.cuda.max_memory_allocated())

    train_inside(measured, training, tiny_cutouts, tmp_path / "run", monkeypatch)
    assert len(peaks) == 48
    assert max(peaks[36:]) <= max(peaks[6:24]) + 2**20
