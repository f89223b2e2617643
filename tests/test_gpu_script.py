"""scripts/gpu.sh, rehearsed with tiny sizes on the CPU: the files that it leaves are few, small, whole and of use."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def start(part, folder, **variables):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OUT": f"{folder}/out", "WORK": f"{folder}/work", **variables}
    command = ["scripts/gpu.sh", part, "--rehearse"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def rehearse(part, folder, **variables):
    """Rehearse a part to its end; returns what came back, by name."""
    process = start(part, folder, **variables)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    files = {path.name: path for path in (folder / "out").iterdir()}
    assert len(files) <= 8 and all(path.stat().st_size < 16 * 2**20 for path in files.values())
    assert files[f"{part}.log"].read_text().endswith("s in all, status 0\n")
    return files


def unpack(files, name, folder):
    """Put the pieces of an archive together, as the script says, and unpack them."""
    pieces = sorted(path for key, path in files.items() if key.startswith(f"{name}."))
    folder.mkdir(exist_ok=True)
    kind = "-xz" if "gz" in pieces[0].name else "-x"
    subprocess.run(f"cat {' '.join(map(str, pieces))} | tar {kind} -C {folder}", shell=True, check=True)
    return folder


def test_check(tmp_path):
    log = rehearse("check", tmp_path)["check.log"].read_text()
    assert "passed" in log and "failed" not in log


def test_speed(tmp_path):
    files = rehearse("speed", tmp_path)
    assert {"machine", "pretrain"} <= json.loads(files["benchmark_gpu.json"].read_text()).keys()


def test_study(tmp_path):
    files = rehearse("study", tmp_path)
    home = unpack(files, "study.tar.gz", tmp_path / "home")
    cells = sorted(path.parent for path in home.glob("*/*/cell.json"))
    assert len(cells) == 3 + 4 * 2
    before = {path: path.stat().st_mtime_ns for path in home.glob("*/*/*")}
    options = "--methods supervised simsiam dino ibot --backbones vitt8 --labels 16 all --seeds 1 --subsets 1"
    options += f" --epochs 1 --steps 2 --precision bf16 --dataset {tmp_path}/work/study_data"
    options += f" --recipes {tmp_path}/work/recipes.yaml"
    command = [sys.executable, "-m", "lens_ssl_hf", "study", *options.split(), "--output_dir", home]
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert report.returncode == 0, report.stderr
    assert report.stdout.count("vitt8") >= 8
    assert {path: path.stat().st_mtime_ns for path in home.glob("*/*/*") if path in before} == before
    # With a budget more, no pretraining is fine-tuned on all of them, and no time is left.
    files = rehearse("study", tmp_path, LABELS="16 24 all", STUDY_SECONDS="0")
    names = {}
    for kind in ("study", "unfinished"):
        folder = unpack(files, f"{kind}.tar.gz", tmp_path / kind)
        names[kind] = sorted({path.parent.name.split("-")[0] for path in folder.glob("*/*/cell.json")})
    assert names == {"study": ["supervised"], "unfinished": ["dino", "ibot", "simsiam"]}


@pytest.mark.parametrize(("same", "power", "epochs"), [("images", 2, 2), ("steps", 1, 1)])
def test_batches_are_scaled_by_one_rule(same, power, epochs, tmp_path):
    files = rehearse("batches", tmp_path, BATCH_SAME=same, BATCH_EPOCHS="2")
    home = unpack(files, "batches.tar.gz", tmp_path / "home")
    settings = {}
    for size in (16, 32):
        (pretraining,) = (home / f"batches{size}" / "pretrainings").glob("*/cell.json")
        settings[size] = json.loads(pretraining.read_text())["settings"]
        assert settings[size]["batch_size"] == size and (home / f"batches{size}" / "study.json").is_file()
        assert len(list((home / f"batches{size}" / "cells").glob("*/predictions.parquet"))) == 1
    assert settings[32]["teacher_momentum"] == 0.99 and settings[32]["learning_rate"] == 5e-4  # the recipe's own
    assert settings[16]["teacher_momentum"] ** power == pytest.approx(0.99)
    assert (settings[16]["epochs"], settings[32]["epochs"]) == (epochs, 2)
    assert settings[16]["learning_rate"] * 2**0.5 == pytest.approx(5e-4)


def write_table(folder):
    """Pictures of lenses and other galaxies in two folds, and of some without a label."""
    rng, rows = np.random.default_rng(0), ["file,label,kind,fold,group"]
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        label, kind = (("lens", ""), ("nonlens", "hard_nonlens"), ("", ""))[i % 3]
        rows.append(f"{i}.png,{label},{kind},{i % 2},group{i}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


def test_real_cutouts_go_on_from_the_study(tmp_path):
    files = rehearse("study", tmp_path, METHODS="supervised dino", LABELS="16", EXPORT="dino-vitt8-seed0")
    backbone = unpack(files, "lens-dino-vitt8.tar", tmp_path / "exported") / "lens-dino-vitt8"
    assert AutoModel.from_pretrained(backbone).dtype == torch.float32
    methods = "supervised dino-continued dino-continued-linear"
    options = {"TABLE": str(write_table(tmp_path)), "FOLDS": "0 1", "REAL_METHODS": methods}
    files = rehearse("real", tmp_path, **options, REAL_EXPORT="dino-vitt8-seed0")
    home = unpack(files, "real.tar.gz", tmp_path / "home")
    assert len(list(home.glob("*/*/cell.json"))) == 2 * 4
    assert any(name.startswith("lens-dino-vitt8-seed0-cfhtls.tar.") for name in files)


def test_train_goes_on_after_a_kill(tmp_path):
    process = start("train", tmp_path)
    while process.poll() is None and not list(tmp_path.glob("work/*/ssl/run.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    files = rehearse("train", tmp_path)
    with tarfile.open(files["results.tar.gz"]) as results:
        names = results.getnames()
    for name in ("ssl/evaluation", "ssl-0/evaluation", "scratch-0/evaluation"):
        assert f"{name}/metrics.json" in names
    exported = unpack(files, "weights.tar", tmp_path / "exported")
    with safe_open(exported / "lens-dino-vitt8" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
    assert AutoModel.from_pretrained(exported / "lens-dino-vitt8").dtype == torch.float32
    pieces = [key for key in files if key.startswith("weights.tar.")]
    for key in pieces:
        files[key].unlink()
    later = rehearse("train", tmp_path, FIRST_PIECE="1")  # done already
    assert sorted(key for key in later if key.startswith("weights.tar.")) == sorted(pieces)[1:]
