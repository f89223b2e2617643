"""
Writing files and folders whole or not at all.

What is written lies in a folder `.<name>.<random>.partial` beside its place until it is whole. Its writer holds a lock
on that folder. The lock ends with the writer, so that the next one knows what a killed writer left, and removes it.
"""

import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    A path beside `path`, to be written in the block as a file or a folder, which takes the place of `path` where the
    block ends well and vanishes where it does not. Its permissions are those of any new file.

    Raises:
        `OSError`: the folder cannot be written, or the disk is full; what was there before is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(path.parent, f".{glob.escape(path.name)}.*.partial")
    with _locked_folder(path) as folder:
        new = folder / path.name
        yield new
        _open_to_others(new)
        if new.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            _sync(new)
        os.replace(new, path)
        _sync(path.parent)  # makes the rename itself survive a power cut


def write_text(path: Path, text: str) -> None:
    """
    Write a file of UTF-8 atomically; its folder is made if it is missing.

    Raises:
        [`InputError`]: it cannot be written.
    """
    try:
        with replacing(path) as new:
            new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): choose a writable place") from error


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, as [`write_text`]."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """
    Write a safetensors file atomically.

    Raises:
        `OSError`: it cannot be written, or the disk is full.
    """
    with replacing(path) as new:
        try:
            save_file(dict(tensors), new, metadata=metadata)
        except SafetensorError as error:  # of the file system, too, and without its number
            raise OSError(str(error)) from error


def make_folder(path: Path, argument: str) -> None:
    """
    Make a folder, with its parents, where it is missing.

    Raises:
        [`InputError`]: it cannot be written to, or what is written there not be read again; names the `argument` that
            gave it.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{argument} {path} is no UTF-8, which safetensors needs: choose another one") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{argument} {path} cannot be written ({error.strerror}): choose another one") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder that only the caller writes to, those of earlier versions too."""
    for path in folder.glob(".*"):
        # safetensors itself writes to .tmpXXXXXX first
        if path.name.endswith(".partial") or re.fullmatch(r"\.tmp\w{6}", path.name):
            _remove(path)


def _remove_dead(folder: Path, pattern: str) -> None:
    """Remove partial folders whose writer is gone; where locks do not work, nobody knows, and they stay."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # its writer is at it, or another one removes it
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    """A new partial folder for `path`, locked; removed at the end."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(descriptor)  # another writer took it for a leftover before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _open_to_others(path: Path) -> None:
    """Give what was written the permissions that the umask leaves: temporary files are their owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~umask)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
