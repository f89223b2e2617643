"""What is written is whole or not there, can be read by others, and what killed writers left is removed."""

import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lens_ssl_hf import InputError, finetune
from lens_ssl_hf.errors import interrupted_later
from lens_ssl_hf.files import replacing, write_json, write_text
from lens_ssl_hf.training.checkpoints import write_safetensors

LABELS = {"backbone": "vitt8", "precision": "fp32", "steps": 1, "batch_size": 16, "labels": 16}
KILLED = """
import os, signal, sys
from pathlib import Path
from lens_ssl_hf.files import replacing
with replacing(Path(sys.argv[1])) as new:
    new.write_text("half of i")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["a.json", "a [v2]?.json"])
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(name, tmp_path):
    path = tmp_path / name
    killed = subprocess.run([sys.executable, "-c", KILLED, path])
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    with replacing(path) as new:
        assert len(list(tmp_path.iterdir())) == 1  # what this one writes
        new.write_text("first")
        write_text(path, "second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_signal_that_waits_for_what_fails_is_not_lost():
    with pytest.raises(KeyboardInterrupt) as interrupt, interrupted_later():
        signal.raise_signal(signal.SIGINT)
        raise OSError("no space left")
    assert isinstance(interrupt.value.__context__, OSError)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_of_new_files(umask, tmp_path):
    previous = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_safetensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {})
        with replacing(tmp_path / "folder") as new:
            new.mkdir()
            write_safetensors(new / "a.safetensors", {"a": torch.ones(2)}, {})
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"a.json": 0o666 & ~umask, "a.safetensors": 0o666 & ~umask, "folder": 0o777 & ~umask}
    assert torch.equal(load_file(tmp_path / "folder" / "a.safetensors")["a"], torch.ones(2))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "a", "before")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as new:
        new.write_text("after")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="choose a writable place"):
        write_text(tmp_path / "a" / "b", "text")


def test_a_path_that_safetensors_cannot_read_is_refused_before_anything_is_written(tiny_cutouts, tmp_path):
    with pytest.raises(InputError, match="no UTF-8"):
        finetune(tiny_cutouts, tmp_path / os.fsdecode(b"caf\xe9") / "run", **LABELS)
    assert not list(tmp_path.iterdir())


def test_a_run_clears_its_directory_of_leftovers(tiny_cutouts, tmp_path):
    """
    Those of safetensors and of earlier versions too; only a run at work has the lock of its directory. What lay there
    before the run was begun is somebody else's.
    """
    run = tmp_path / "run"
    for name in (".tmpabc123/thesis.txt", ".download.partial"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    finetune(tiny_cutouts, run, **LABELS)
    assert (run / ".tmpabc123" / "thesis.txt").read_text() == (run / ".download.partial").read_text() == "mine"
    shutil.rmtree(run / "model")
    for name in (
        ".model.partial/a.safetensors",
        "checkpoints/.tmpA1b2C3",
        "checkpoints/.step-1.safetensors.partial",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"half")
    finetune(tiny_cutouts, run, resume="auto", **LABELS)
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001.safetensors"]
    written = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~current_umask()}


def current_umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_where_folders_cannot_be_exchanged_the_next_writer_puts_the_old_one_back(tmp_path, monkeypatch):
    monkeypatch.setattr("lens_ssl_hf.files.ctypes.CDLL", lambda name: object())  # of another system
    path = tmp_path / "folder"
    for text in ("first", "second"):
        with replacing(path) as new:
            new.mkdir()
            (new / "a").write_text(text)
    assert (path / "a").read_text() == "second" and list(tmp_path.iterdir()) == [path]
    dead = tmp_path / ".folder.0.partial"  # of a writer that was killed between its two renames
    dead.mkdir()
    path.rename(dead / "replaced")
    with pytest.raises(ZeroDivisionError), replacing(path):
        raise ZeroDivisionError
    assert (path / "a").read_text() == "second" and list(tmp_path.iterdir()) == [path]
