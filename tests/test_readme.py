"""What the README shows works, and its tables are the result files'."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import write_classifier_run

from lens_ssl_hf import export

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_python(code, folder):
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with demo/lens-dino-vitt8-classifier and a cutout in two formats, as after `make demo`."""
    from astropy.io import fits

    folder = tmp_path_factory.mktemp("readme")
    run = write_classifier_run(folder / "run")
    (folder / "demo").mkdir()
    export(run, folder / "demo" / "lens-dino-vitt8-classifier")
    flux = np.random.default_rng(0).uniform(0, 200, size=(3, 40, 40)).astype(np.float32)
    np.save(folder / "cutout.npy", flux)
    fits.writeto(folder / "cutout.fits", flux)
    return folder


def test_three_lines_use_a_published_model_with_plain_transformers(exported):
    code = "import sys, numpy as np\nsys.modules['lens_ssl_hf'] = None\npixels = np.full((3, 40, 40), 9, np.float32)\n"
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) == 3
    output = run_python(code + PYTHON[0] + "print(sorted(s['label'] for s in scores))", exported)
    assert "['lens', 'nonlens']" in output


def test_the_package_reads_fits_and_npy(exported):
    output = run_python(PYTHON[1].replace('pipeline("demo', 'print(pipeline("demo').rstrip() + ")", exported)
    assert output.count("nonlens") == 2


def test_a_folder_becomes_a_ranked_list(exported):
    (exported / "survey" / "field").mkdir(parents=True)
    for name in ("a.fits", "field/b.fits"):
        shutil.copy(exported / "cutout.fits", exported / "survey" / name)
    run_python(PYTHON[2], exported)
    rows = [line.split(",") for line in (exported / "ranked.csv").read_text().splitlines()]
    assert rows[0] == ["p_lens", "file"] and {row[1] for row in rows[1:]} == {"survey/a.fits", "survey/field/b.fits"}
    assert 1 >= float(rows[1][0]) >= float(rows[2][0]) >= 0


@pytest.mark.slow
def test_ten_lines_train_a_model_from_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for kind, brightness in (("lenses", 60), ("nonlenses", 20)):
        (tmp_path / "my_cutouts" / kind).mkdir(parents=True)
        for number in range(110):
            flux = rng.normal(0, 1, size=(3, 64, 64)).astype(np.float32)
            flux[:, 28:36, 28:36] += brightness
            np.save(tmp_path / "my_cutouts" / kind / f"{number}.npy", flux)
    code = PYTHON[3].replace("epochs=60", "epochs=2").replace("labels=300", "labels=60, steps=20")
    assert code != PYTHON[3]
    output = run_python(code, tmp_path)
    assert "runs/dino-300" in output and "'value'" in output
    for name in ("lens-dino-vitt8", "lens-dino-vitt8-classifier"):
        assert (tmp_path / name / "model.safetensors").is_file() and (tmp_path / name / "README.md").is_file()


def test_tables_are_made_from_the_result_files():
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_tables import fill

    assert "<!-- table: " in README
    assert fill(README) == README, "run scripts/make_tables.py"
