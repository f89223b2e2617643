"""Small datasets and runs that several tests share."""

import atexit
import contextlib
import json
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# Before the imports, which read them: nothing is looked for on the Hub, datasets are kept in a cache that is removed
# after the tests, and parallel workers share the cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
else:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="lens_ssl_hf-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import datasets
import huggingface_hub
import pytest
import torch
from hub_server import WRITER, serve
from huggingface_hub import constants

from lens_ssl_hf.data.storage import save_cutouts
from lens_ssl_hf.data.tensors import CutoutTensors

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it, and what they start

STRETCH = {"kind": "none", "black": [], "white": [], "softening": []}  # as of pictures


def make_split(size: int, seed: int, bands: int = 3, side: int = 40) -> CutoutTensors:
    """Noise in display units; lenses have a brighter centre, so that a tiny model learns them in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    pixels = 100 + 20 * torch.randn(size, bands, side, side, generator=generator)
    pixels[labels == 1, :, 14:26, 14:26] += 40
    names = [f"{seed}-{number}" for number in range(size)]
    return CutoutTensors(pixels.clamp(0, 255), labels, names, names, ["lens" if y else "field" for y in labels])


def make_cutouts() -> tuple[dict, dict]:
    """Splits and CutoutInfo fields of 96 + 48 + 48 toy cutouts, as `splits_and_info` returns them."""
    info = {
        "source": "folder",
        "name": "toy",
        "simulated": False,
        "bands": ["g", "r", "i"],
        "size": 40,
        "pixel_scale": 0.168,
        "zero_point": 27.0,
        "stretch": STRETCH,
        "fingerprint": "0123456789abcdef",
    }
    return {"train": make_split(96, 0), "validation": make_split(48, 1), "test": make_split(48, 2)}, info


def save_toy(cutouts: tuple[dict, dict], directory: Path) -> Path:
    """What [`make_cutouts`] returned, as the directory that `save_cutouts` writes."""
    splits, info = cutouts
    pixels = datasets.Array3D((len(info["bands"]), info["size"], info["size"]), "float32")
    label = datasets.ClassLabel(names=["nonlens", "lens"])
    features = datasets.Features({"pixels": pixels, "label": label})
    features |= {name: datasets.Value("string") for name in ("id", "group", "subclass")}
    saved = datasets.DatasetDict()
    for name, split in splits.items():
        columns = {"pixels": split.pixels.numpy(), "label": split.labels.tolist(), "id": split.ids}
        columns |= {"group": split.groups, "subclass": split.subclasses}
        saved[name] = datasets.Dataset.from_dict(columns, datasets.Features(features))
        saved[name].info.description = json.dumps(info)
    save_cutouts(saved, directory)
    return directory


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """The working directory is the test's own, and no bar is drawn."""
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> str:
    """A classifier that takes flux in g r i, of 0.168 arcsec and zero point 27, and sees 32 pixels."""
    from tiny_runs import write_flux_run

    return write_flux_run(tmp_path_factory.mktemp("models") / "run")


@pytest.fixture(scope="session")
def tiny_cutouts() -> tuple[dict, dict]:
    """[`make_cutouts`], made once."""
    return make_cutouts()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process talks to; what is slept is noted in `hub.waits`."""
    with serve() as server:
        # What a process of its own takes from its environment.
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no_token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # keeps the endpoint of its birth
        monkeypatch.setenv("HF_TOKEN", WRITER)
        server.waits = []
        monkeypatch.setattr(time, "sleep", server.waits.append)
        huggingface_hub.close_session()
        threads = set(threading.enumerate())
        yield server
        for thread in set(threading.enumerate()) - threads:  # an interrupted push leaves the uploads that it began
            if not thread.daemon:
                thread.join(10)
        huggingface_hub.close_session()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The graded CFHTLS cutouts, where they are at hand."""
    folder = Path(os.environ.get("LENS_SSL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cfhtls_spacewarps"
    if not (folder / "catalog.csv").is_file():
        pytest.skip(f"no real cutouts at {folder}: set LENS_SSL_DATA to the folder that holds cfhtls_spacewarps/")
    return folder
