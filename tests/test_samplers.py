"""Batches are a function of (seed, step): whole epochs, the same for any number of processes, resident or streamed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Value
from safetensors.torch import load_file

from lens_ssl_hf import InputError, load_cutouts, pretrain, save_cutouts
from lens_ssl_hf.data import samplers
from lens_ssl_hf.data.info import CutoutInfo
from lens_ssl_hf.data.samplers import ResidentImages, StreamedImages
from lens_ssl_hf.data.storage import ParquetSplits
from lens_ssl_hf.data.tensors import as_tensors, read_split, splits_and_info

MEAN, STD = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
SSL = {
    "backbone": "vitt8",
    "precision": "fp32",
    "batch_size": 32,
    "epochs": 2,
    "checkpoint_every": 1,
    "log_every": 1,
    "num_local_views": 1,
    "num_prototypes": 64,
    "head_hidden_size": 32,
}


def write_data_set(directory, rows, side=32):
    """`rows` training cutouts, twice the first pixel of which is their number, and a few for validation."""
    features = Features(
        {
            "id": Value("string"),
            "pixels": Array3D((3, side, side), "float32"),
            "label": ClassLabel(names=["nonlens", "lens"]),
            "subclass": Value("string"),
            "group": Value("string"),
        }
    )

    def generate(count, seed):
        rng = np.random.default_rng(seed)
        for i in range(count):
            pixels = rng.uniform(0, 255, size=(3, side, side)).astype(np.float32)
            pixels[0, 0, 0] = i / 2
            yield {"id": f"object {i}", "pixels": pixels, "label": i % 2, "subclass": "", "group": str(i)}

    info = CutoutInfo(
        source="folder",
        name="toy",
        simulated=False,
        bands=["g", "r", "i"],
        size=side,
        pixel_scale=None,
        zero_point=None,
        stretch={"kind": "none", "black": [0.0] * 3, "white": [255.0] * 3, "softening": [1.0] * 3},
        fingerprint="f" * 32,
    )
    splits = {
        name: Dataset.from_generator(
            generate, features=features, gen_kwargs={"count": count, "seed": seed}, cache_dir=str(directory) + "-cache"
        )
        for name, count, seed in (("train", rows, 0), ("validation", 20, 1))
    }
    for split in splits.values():
        split.info.description = info.to_json()
    save_cutouts(DatasetDict(splits), directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from lens_ssl_hf.data import storage

    patch = pytest.MonkeyPatch()
    patch.setattr(storage, "ROW_GROUP_BYTES", 20 * 3 * 32 * 32 * 4)  # groups of 20 rows
    directory = write_data_set(tmp_path_factory.mktemp("data") / "set", 330)
    patch.undo()
    return directory


@pytest.fixture(params=[4, 128])
def window(request, monkeypatch):
    """Few rows shuffled among each other, so that a stream of the little dataset has several windows; and one."""
    monkeypatch.setattr(samplers, "WINDOW", request.param)


def streamed(saved, batch_size=32, seed=0):
    return StreamedImages(ParquetSplits(saved), MEAN, STD, batch_size, seed, "cpu")


def test_an_epoch_in_memory_is_a_permutation_shared_by_the_processes():
    images = ResidentImages(torch.arange(100.0).view(-1, 1, 1, 1), [str(i) for i in range(100)], 24, seed=0)
    for step in (0, 1, 7, 23):
        whole, epoch = images.indices(step, 0, 1)
        halves = [images.indices(step, process, 2)[0] for process in (0, 1)]
        assert torch.equal(torch.cat(halves), whole) and epoch == step // 4
        assert torch.equal(images.batch(step, 0, 1)[0].flatten().long(), whole)
    assert len(torch.cat([images.indices(step, 0, 1)[0] for step in range(4)]).unique()) == 96


def test_a_streamed_epoch_holds_every_cutout_once(window, saved):
    images = streamed(saved)
    assert len(images) == 330 and images.steps_per_epoch == 10
    seen = []
    for step in range(10):
        batch, indices, epoch = images.batch(step, 0, 1)
        assert epoch == 0 and batch.shape == (32, 3, 32, 32)
        first = (batch[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255 * 2
        torch.testing.assert_close(first, indices.float(), atol=1e-3, rtol=0)  # the right pixels
        assert images.ids(step) == [f"object {i}" for i in indices.tolist()]
        seen.append(indices)
    order = torch.cat(seen)
    assert len(order.unique()) == 320
    assert (order.diff().abs() == 1).float().mean() < 0.1  # shuffled
    other = torch.cat([images.batch(step, 0, 1)[1] for step in range(10, 20)])
    assert not torch.equal(order, other) and images.batch(10, 0, 1)[2] == 1


def test_streams_are_shared_by_processes_and_begin_anywhere(window, saved):
    whole = streamed(saved)
    halves = [streamed(saved), streamed(saved)]
    for step in (3, 4, 9, 17):  # a fresh one at step 3, as after resuming
        images, indices, _ = whole.batch(step, 0, 1)
        parts = [half.batch(step, process, 2) for process, half in enumerate(halves)]
        assert torch.equal(torch.cat([part[1] for part in parts]), indices)
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
    with pytest.raises(InputError, match="3 processes cannot share streamed batches of 32"):
        whole.batch(0, 0, 3)


@pytest.mark.parametrize("batch_size", [6, 48, 256])
def test_any_batch_size_reads_the_same_cutouts(batch_size, window, saved):
    images = streamed(saved, batch_size)
    seen = torch.cat([images.batch(step, 0, 1)[1] for step in range(images.steps_per_epoch)])
    assert len(seen) == len(seen.unique()) == images.steps_per_epoch * batch_size > 250


def test_a_streamed_pretraining_resumes_at_the_exact_sample(saved, tmp_path):
    whole = pretrain(saved, tmp_path / "whole", "dino", stream="yes", **SSL)
    facts = json.loads((whole / "run.json").read_text())
    assert facts["num_train_images"] == 330 and facts["resolved"]["stream"] == "yes"
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert first["knn_auc"] > 0
    subprocess.run(["cp", "-r", whole, tmp_path / "cut"], check=True)
    subprocess.run(["rm", "-r", tmp_path / "cut" / "model"], check=True)
    max((tmp_path / "cut" / "checkpoints").iterdir()).unlink()
    resumed = pretrain(saved, tmp_path / "cut", "dino", stream="yes", resume="auto", **SSL)
    weights = [load_file(run / "model" / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert pretrain(saved, tmp_path / "cut", "dino", resume="auto", **SSL) == resumed  # auto goes on as it was begun
    with pytest.raises(InputError, match="stream is no, was yes"):
        pretrain(saved, tmp_path / "cut", "dino", resume="auto", stream="no", **SSL)
    with pytest.raises(InputError, match="stream yes needs a dataset"):
        pretrain(str(saved / "cutouts.json"), tmp_path / "x", "dino", stream="yes", **SSL)


def test_nan_pixels_in_parquet_are_refused(saved, tmp_path):
    def spoil(row, index):
        return {"pixels": (np.array(row["pixels"]) * (np.nan if index == 3 else 1)).tolist()}

    cutouts = load_cutouts(saved, cache_dir=str(tmp_path / "cache"))
    cutouts["train"] = cutouts["train"].map(spoil, with_indices=True)
    save_cutouts(cutouts, tmp_path / "set")
    for read in (splits_and_info, lambda found: read_split(ParquetSplits(tmp_path / "set"), "train", 330)):
        with pytest.raises(InputError, match="cutout object 3 of train has NaN or infinite pixels"):
            read(load_cutouts(tmp_path / "set", cache_dir=str(tmp_path / "cache")))


def test_a_directory_without_groups_is_read_as_a_dataset_is(saved, tmp_path):
    cutouts = load_cutouts(saved, cache_dir=str(tmp_path / "cache")).remove_columns(["group", "subclass"])
    save_cutouts(cutouts, tmp_path / "set")
    found, expected = read_split(ParquetSplits(tmp_path / "set"), "train", 330), as_tensors(cutouts["train"])
    assert found.groups == expected.groups == [f"object {i}" for i in range(330)]
    assert found.subclasses == expected.subclasses == [""] * 330


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("rm data/train-00001-*", "holds data/train-00001-of-00003 no longer"),
        ("cp data/train-00001-* data/train-00001-of-00003-copy.parquet", "holds data/train-00001-of-00003 twice"),
        ("rm data/validation-*", r"holds data/validation-00000-of-00001-\w+.parquet no longer"),
    ],
)
def test_a_directory_that_lost_a_file_is_refused(spoil, message, tmp_path, monkeypatch):
    from lens_ssl_hf.data import storage

    monkeypatch.setattr(storage, "SHARD_BYTES", 500_000)
    directory = write_data_set(tmp_path / "set", 100)
    assert len(ParquetSplits(directory).groups["train"]) == 3
    subprocess.run(spoil, shell=True, check=True, cwd=directory)
    with pytest.raises(InputError, match=rf"set {message}: copy the directory again"):
        ParquetSplits(directory)
    with pytest.raises(InputError, match=rf"set {message}: copy the directory again"):
        load_cutouts(directory, cache_dir=str(tmp_path / "cache"))


def test_what_is_larger_than_memory_is_streamed(saved, tmp_path, monkeypatch):
    settings = {**SSL, "epochs": 1, "eval_every": 0}
    run = pretrain(saved, tmp_path / "small", "dino", **settings)
    assert json.loads((run / "run.json").read_text())["resolved"]["stream"] == "no"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    run = pretrain(saved, tmp_path / "large", "dino", **settings)
    facts = json.loads((run / "run.json").read_text())
    assert (facts["arguments"]["stream"], facts["resolved"]["stream"]) == ("auto", "yes")
    monkeypatch.undo()  # with more memory, it goes on as it was begun
    (run / "run.json").write_text(json.dumps({name: facts[name] for name in facts if name != "seconds"}))
    pretrain(saved, run, "dino", resume="auto", **settings)
    assert json.loads((run / "run.json").read_text())["resolved"]["stream"] == "yes"
    with pytest.raises(InputError, match=r"no cutouts\.json"):
        pretrain(tmp_path, tmp_path / "x", "dino", **settings)


MEMORY = """
import re, sys
from pathlib import Path
from lens_ssl_hf.data.samplers import StreamedImages
from lens_ssl_hf.data.storage import ParquetSplits
images = StreamedImages(ParquetSplits(Path(sys.argv[1])), [0.5] * 3, [0.1] * 3, 128, 0, "cpu")
for step in range(images.steps_per_epoch):
    images.batch(step, 0, 1)
# getrusage's peak would be that of the parent where that is larger.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(len(images), int(peak) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    peaks = {}
    for rows in (2_000, 40_000):
        directory = write_data_set(tmp_path / str(rows), rows)
        result = subprocess.run(
            [sys.executable, "-c", MEMORY, directory], capture_output=True, text=True, timeout=600, check=True
        )
        count, peaks[rows] = map(int, result.stdout.split())
        assert count == rows
    print("peak memory in MiB:", peaks)
    # All 40,000 are 469 MiB of pixels; what is kept is 4,096 of them, twice.
    assert peaks[40_000] - peaks[2_000] < 150
