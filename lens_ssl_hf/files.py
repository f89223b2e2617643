"""
Writing files and folders whole or not at all.

What is written lies in a folder `.<name>.<random>.partial` beside its place until it is whole. Its writer holds a lock
on that folder. The lock ends with the writer, so that the next one knows what a killed writer left, and removes it.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError

_REPLACED = "replaced"  # in a partial folder: what stood in its place, where the two cannot be exchanged


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    A path beside `path`, to be written in the block as a file or a folder, which takes the place of `path` where the
    block ends well and vanishes where it does not. Its permissions are those of any new file.

    Raises:
        `OSError`: the folder cannot be written, or the disk is full; what was there before is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_dead(path)
    with _locked_folder(path) as folder:
        new = folder / path.name
        yield new
        _open_to_others(new)
        if path.is_dir():
            _replace_folder(new, path)
        else:
            if new.is_file():
                _sync(new)
            os.replace(new, path)
        _sync(path.parent)  # makes the rename itself survive a power cut


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """
    As [`replacing`], of a file whose place the user chose.

    Raises:
        [`InputError`]: it cannot be written.
    """
    try:
        with replacing(path) as new:
            yield new
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> InputError:
    """What a user is told; of a file in a partial folder, the place that it is for."""
    place = Path(*[part for part in path.parts if not re.fullmatch(r"\..*\.partial", part)])
    reason = os.strerror(error.errno) if error.errno else error  # pyarrow has words of its own for it
    fix = "choose a writable place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room and try again"
    elif error.errno is None:  # NumPy says only how much it wrote
        fix = "make room, or choose a writable place"
    return InputError(f"cannot write {place} ({reason}): {fix}")


@contextlib.contextmanager
def through_memory(path: Path) -> Iterator[io.BytesIO]:
    """
    A stream whose content becomes the file `path`. NumPy writes into files through a copy of their descriptor, and
    where the disk is full it leaves a short file without a word; so does astropy, whose FITS files it writes.

    Raises:
        `OSError`: the file cannot be written, or the disk is full.
    """
    stream = io.BytesIO()
    yield stream
    path.write_bytes(stream.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 atomically, as [`writing`]; its folder is made if it is missing."""
    with writing(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, as [`write_text`]."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def looks_local(source: str | os.PathLike) -> bool:
    """Whether what may be a path or an id of the Hub, `user/name`, can only be a path: its first folder is here."""
    parts = Path(source).parts
    return len(parts) != 2 or os.path.isdir(parts[0])


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


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """
    Nobody else writes into a folder, which is made if it is missing, while the block does: others wait, where the file
    system knows locks.

    Raises:
        [`InputError`]: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder that only the caller writes to, those of earlier versions too."""
    for path in folder.glob(".*"):
        # safetensors itself writes to .tmpXXXXXX first
        if path.name.endswith(".partial") or re.fullmatch(r"\.tmp\w{6}", path.name):
            _remove(path)


@contextlib.contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder where the system keeps temporary files, removed at the end; those of killed processes go first."""
    place = Path(tempfile.gettempdir()) / name
    remove_dead(place)
    with _locked_folder(place) as folder:
        yield folder


def _replace_folder(new: Path, path: Path) -> None:
    """
    Exchange two folders in one step, so that no reader ever finds neither. Systems that cannot rename twice; if the
    writer is killed in between, the next one puts the old folder back.
    """
    current_directory, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    with contextlib.suppress(AttributeError):  # another libc
        rename = ctypes.CDLL(None).renameat2
        if rename(current_directory, os.fsencode(new), current_directory, os.fsencode(path), exchange) == 0:
            return
    old = new.parent / _REPLACED
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise


def remove_dead(path: Path) -> None:
    """
    Remove the partial folders for `path` whose writer is gone; where locks do not work, nobody knows, and they stay.
    What one of them had taken away to replace it is put back.
    """
    for dead in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # its writer is at it, or another one removes it
            descriptor = os.open(dead, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (dead / _REPLACED).exists() and not path.exists():
                    os.replace(dead / _REPLACED, path)
                _remove(dead)
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
