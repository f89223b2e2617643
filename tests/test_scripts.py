"""The scripts as a user runs them, in processes of their own."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lens_ssl_hf.data.tensors import save_tensors

ROOT = Path(__file__).parents[1]
WITHOUT_OPTIONS = ("make_tables.py", "use_export.py")
SCRIPTS = sorted({path.name for path in (ROOT / "scripts").glob("*.py")} - set(WITHOUT_OPTIONS))
# What a bare GPU machine lacks; names of distributions and of modules.
ABSENT = (
    "datasets evaluate sklearn scikit_learn scipy matplotlib astropy pandas pyarrow PIL pillow lens_ssl __editable__"
)
QUICK = "--backbone vitt8 --precision fp32 --eval_every 1"


def run(command, path=str(ROOT)):
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *command.split()]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.fixture(scope="module")
def data(tiny_cutouts, tmp_path_factory):
    return save_tensors(tiny_cutouts, tmp_path_factory.mktemp("data") / "cutouts.safetensors")


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory):
    """A sys.path with every installed package but those that a bare GPU machine lacks."""
    folder = tmp_path_factory.mktemp("bare")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(tuple(ABSENT.split())):
            (folder / entry.name).symlink_to(entry)
    return f"{folder}{os.pathsep}{ROOT}"


def test_training_and_prediction_need_only_torch_and_transformers(data, bare_path, tmp_path):
    def bare(script, arguments):
        return run(f"-S scripts/{script} {arguments} --dataset {data}", bare_path)

    assert "No module named sklearn" in run("-S -m sklearn", bare_path).stderr
    pretraining = f"--method ibot {QUICK} --epochs 1 --batch_size 48 --num_local_views 1 --output_dir {tmp_path}/ibot"
    finetuning = f"{QUICK} --init {tmp_path}/ibot --steps 2 --labels 32 --output_dir {tmp_path}/classifier"
    for result in (
        bare("run_ssl.py", pretraining),
        bare("run_finetune.py", finetuning),
        bare("run_eval.py", f"{tmp_path}/classifier --predict_only"),
    ):
        assert result.returncode == 0, result.stderr
    predictions = tmp_path / "classifier" / "evaluation" / "predictions.csv"
    assert len(predictions.read_text().splitlines()) == 1 + 48
    # The measures are taken where scikit-learn is.
    measured = run(f"scripts/run_eval.py {predictions} --eval_dir {tmp_path}/evaluation --num_bootstrap 20")
    assert measured.returncode == 0, measured.stderr
    assert "ROC AUC" in measured.stdout and (tmp_path / "evaluation" / "metrics.json").is_file()
    elsewhere = run(f"-S scripts/run_ssl.py --dataset simulated --output_dir {tmp_path}/x", bare_path)
    assert elsewhere.returncode == 2 and "datasets is not installed" in elsewhere.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_without_torch(script):
    result = run(f"-X importtime scripts/{script} --help")
    assert result.returncode == 0 and "usage:" in result.stdout
    assert " torch\n" not in result.stderr, "--help must not wait for torch"


@pytest.mark.parametrize(
    "command,named",
    [
        ("run_ssl.py --dataset no_such_folder --output_dir {out}", "no_such_folder"),
        ("run_ssl.py --method byol", "simsiam, dino, ibot"),
        ("run_finetune.py --dataset {data} --init no/such/run --output_dir {out}", "no/such/run"),
        ("run_finetune.py --dataset {data} --labels 0", "labels"),
        ("run_eval.py no_such_run --dataset {data} --eval_dir {out}", "no_such_run"),
        ("export.py no_such_run {out}", "no_such_run"),
    ],
)
def test_mistakes_end_in_one_sentence(command, named, data, tmp_path):
    result = run("scripts/" + command.format(data=data, out=tmp_path / "out"))
    assert result.returncode == 2, result.stderr
    message = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and named in message[0]
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()
