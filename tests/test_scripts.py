"""The scripts as a user runs them, in processes of their own."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lens_ssl_hf.data.tensors import save_tensors

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("run_*.py"))
# What a bare GPU machine lacks; names of distributions and of modules.
ABSENT = ("datasets", "evaluate", "sklearn", "scikit_learn", "scipy", "matplotlib", "astropy", "pandas", "pyarrow", "PIL",
          "pillow", "lens_ssl_hf", "__editable__")  # fmt: skip
QUICK = ["--backbone", "vitt8", "--precision", "fp32", "--eval_every", "1"]


def run(*arguments, path=ROOT, flags=()):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *flags, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory):
    """A sys.path with every installed package but those that a bare GPU machine lacks."""
    folder = tmp_path_factory.mktemp("bare")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(ABSENT):
            (folder / entry.name).symlink_to(entry)
    return f"{folder}{os.pathsep}{ROOT}"


def test_training_and_prediction_need_only_torch_and_transformers(tiny_cutouts, bare_path, tmp_path):
    data = save_tensors(tiny_cutouts, tmp_path / "cutouts.safetensors")
    common = {"path": bare_path, "flags": ["-S"]}
    check = run("-c", "import sklearn", **common)
    assert "ModuleNotFoundError" in check.stderr
    pretrained = run("scripts/run_ssl.py", "--method", "ibot", *QUICK, "--dataset", data, "--epochs", 1,
                     "--batch_size", 48, "--num_local_views", 1, "--output_dir", tmp_path / "ibot", **common)  # fmt: skip
    assert pretrained.returncode == 0, pretrained.stderr
    finetuned = run("scripts/run_finetune.py", *QUICK, "--dataset", data, "--init", tmp_path / "ibot", "--steps", 2,
                    "--labels", 32, "--output_dir", tmp_path / "classifier", **common)  # fmt: skip
    assert finetuned.returncode == 0, finetuned.stderr
    predicted = run("scripts/run_eval.py", tmp_path / "classifier", "--dataset", data, "--predict_only", **common)
    assert predicted.returncode == 0, predicted.stderr
    table = (tmp_path / "classifier" / "evaluation" / "predictions.csv").read_text().splitlines()
    assert len(table) == 1 + 48
    # The measures are taken where scikit-learn is.
    measured = run("scripts/run_eval.py", tmp_path / "classifier" / "evaluation" / "predictions.csv", "--eval_dir",
                   tmp_path / "evaluation", "--num_bootstrap", 20)  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert "ROC AUC" in measured.stdout and (tmp_path / "evaluation" / "metrics.json").is_file()
    elsewhere = run("scripts/run_ssl.py", "--dataset", "simulated", "--output_dir", tmp_path / "x", **common)
    assert elsewhere.returncode == 2 and "datasets is not installed" in elsewhere.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, "build_dataset.py", "export.py", "demo.py", "prepare_cfhtls.py"])
def test_help_comes_without_torch(script):
    result = run("-X", "importtime", f"scripts/{script}", "--help")
    assert result.returncode == 0 and "usage:" in result.stdout
    assert " torch\n" not in result.stderr, "--help must not wait for torch"


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["scripts/run_ssl.py", "--dataset", "no_such_folder"], "no_such_folder"),
        (["scripts/run_ssl.py", "--method", "byol"], "simsiam, dino, ibot"),
        (["scripts/run_finetune.py", "--dataset", "{data}", "--init", "no/such/run", "--output_dir", "{out}"], "no/such/run"),
        (["scripts/run_finetune.py", "--dataset", "{data}", "--labels", "0"], "labels"),
        (["scripts/run_eval.py", "no_such_run", "--eval_dir", "{out}", "--dataset", "{data}"], "no_such_run"),
        (["scripts/export.py", "no_such_run", "{out}"], "no_such_run"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(arguments, named, tiny_cutouts, tmp_path):
    data = save_tensors(tiny_cutouts, tmp_path / "cutouts.safetensors")
    result = run(*(argument.format(data=data, out=tmp_path / "out") for argument in arguments))
    assert result.returncode == 2, result.stderr
    message = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and named in message[0]
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()
