"""
A thousand damaged files: each gives a valid cutout or is refused with its name, fast and in little memory. What has
checksums (Parquet datasets, checkpoints) is never read wrongly.
"""

import contextlib
import faulthandler
import gzip
import io
import os
import pickle
import resource
import signal
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from lens_ssl_hf import InputError
from lens_ssl_hf.data.files.readers import read_raw
from lens_ssl_hf.data.listing.rows import BadFiles
from lens_ssl_hf.data.listing.tables import list_catalogue
from lens_ssl_hf.data.options import DataArguments
from lens_ssl_hf.data.storage import ParquetSplits
from lens_ssl_hf.data.tensors import read_split
from lens_ssl_hf.training.checkpoints import newest_checkpoint, save_checkpoint

RNG = np.random.default_rng(0)
FLUX = RNG.normal(size=(3, 40, 40)).astype(np.float32)


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz(array):
    stream = io.BytesIO()
    np.savez_compressed(stream, flux=array)
    return stream.getvalue()


def fits_file(array):
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(array, name="SCI")]).writeto(stream)
    return stream.getvalue()


def fits_fz(array, **options):
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(array, **options)]).writeto(stream)
    return stream.getvalue()


def picture(kind):
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, size=(40, 40, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


WHOLE = {
    "npy": npy(FLUX),
    "npz": npz(FLUX),
    "fits": fits_file(FLUX),
    "fits.gz": gzip.compress(fits_file(FLUX), mtime=0),
    "fits.fz": fits_fz((1000 * FLUX[0]).astype(np.int16)),
    "gzip.fits.fz": fits_fz(FLUX, compression_type="GZIP_2", quantize_level=0),
    "png": picture("png"),
    "jpg": picture("jpeg"),
    "tif": picture("tiff"),
}


def mutations(content, count, rng):
    """`count` variants: cut short, bytes changed at the front or anywhere, a piece doubled, removed or zeroed."""
    for i in range(count):
        mutant = bytearray(content)
        kind, position = i % 6, int(rng.integers(len(content)))
        if kind == 0:
            del mutant[position:]
        elif kind in (1, 2):
            reach = min(256, len(mutant)) if kind == 1 else len(mutant)
            for place in rng.integers(reach, size=rng.integers(1, 9)):
                mutant[place] = rng.integers(256)
        elif kind == 3:
            mutant[position:position] = mutant[position : position + 200]
        elif kind == 4:
            del mutant[position : position + int(rng.integers(1, 200))]
        else:
            piece = mutant[position : position + 64]
            mutant[position : position + 64] = bytes(len(piece))
        yield bytes(mutant)


@pytest.fixture(autouse=True)
def little_memory():
    """At most 512 MiB more than there is: an attempt at more is a MemoryError, on which a refusal must not rest."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


class Hang(BaseException):
    """Not an `Exception`, of which the readers catch all."""


@contextlib.contextmanager
def no_hang(path):
    """Ends what takes longer than 2 s; and the whole test run, where compiled code hangs."""

    def ring(*_):
        raise Hang(path)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 2)
    faulthandler.dump_traceback_later(30, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def no_memory_error(error):
    """The refusal came from a look at the file, not from memory that ran out while what it asks for was taken."""
    while error is not None:
        assert not isinstance(error, MemoryError), error
        error = error.__cause__ or error.__context__


def read_or_refuse(read, path):
    """Whether it was read; anything but an [`InputError`] that names the file fails the test."""
    try:
        with no_hang(path):
            read(path)
    except InputError as error:
        assert path.name in str(error), error
        no_memory_error(error)
        return False
    return True


def check_raw(path):
    raw = read_raw(path)
    assert raw.pixels.dtype == np.float32 and raw.pixels.ndim == 3 and 1 <= len(raw.pixels) <= 10
    assert np.isfinite(raw.pixels).any(axis=(1, 2)).all() and not np.isinf(raw.pixels).any()


@pytest.mark.parametrize("suffix", WHOLE)
def test_damaged_cutouts(suffix, tmp_path):
    (tmp_path / f"whole.{suffix}").write_bytes(WHOLE[suffix])
    assert read_or_refuse(check_raw, tmp_path / f"whole.{suffix}")
    refused = 0
    for i, content in enumerate(mutations(WHOLE[suffix], 120, np.random.default_rng(1))):
        path = tmp_path / f"mutant{i}.{suffix}"
        path.write_bytes(content)
        refused += not read_or_refuse(check_raw, path)
    assert refused > 20


def fits_header(**cards):
    """A header of one block."""
    text = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END"
    return text.ljust(2880).encode()


def with_card(content, card, value):
    """The FITS file with another value on the last card of that name."""
    place = content.rindex(f"{card:8}= ".encode()) + 10
    return content[:place] + f"{value:>20}".encode() + content[place + 20 :]


def deflated(start, size, piece=bytes(1000), zipped=False):
    """A small .gz (or .npz) that unpacks to `start` and `size` bytes of the same piece."""
    stream = io.BytesIO()
    with contextlib.ExitStack() as stack:
        if zipped:
            archive = stack.enter_context(zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1))
            file = stack.enter_context(archive.open("flux.npy", "w"))
        else:
            file = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1))
        file.write(start)
        block = piece * (1_000_000 // len(piece))
        for _ in range(size // len(block)):
            file.write(block)
    return stream.getvalue()


def hostile(folder):
    """Names and contents of files that ask for too much, or are something else than they say."""

    def declared(shape, descr="<f4"):
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': ({shape}), }}".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()

    yield "huge.npy", declared("3, 1000000, 1000000")
    yield "overflow.npy", declared("3, 4611686018427387904, 4")
    yield "negative.npy", declared("3, -4, 4")
    yield "nested.npy", declared("(" * 500 + "3" + ")" * 500)
    yield "expression.npy", declared("__import__('os').getpid(), 4")
    yield "zero.npy", npy(np.zeros((3, 0, 40), np.float32))
    yield "all_nan.npy", npy(np.full((3, 40, 40), np.nan, np.float32))
    yield "text.npy", npy(np.array([["a", "b"]]))
    yield "complex.npy", npy(np.zeros((3, 40, 40), np.complex64))
    yield "dates.npy", npy(np.zeros((3, 40, 40), "datetime64[s]"))
    yield "five_axes.npy", npy(np.zeros((1, 1, 3, 40, 40), np.float32))
    yield "pickle.npy", pickle.dumps(Evil(folder / "broken_in"))
    stream = io.BytesIO()
    np.save(stream, np.array([Evil(folder / "broken_in")], dtype=object), allow_pickle=True)
    yield "object.npy", stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flux.npy", declared("3, 20000, 20000") + bytes(200_000_000))
    yield "bomb.npz", stream.getvalue()
    yield "void.npy", declared("3, 4, 4", "|V600000000")
    for name, descr in {"void": "|V600000000", "text": "|S600000000"}.items():
        yield f"{name}.npz", deflated(declared("1, 1, 1", descr), 600_000_000, zipped=True)
    yield "subarray.npz", deflated(declared("1, 1, 1", [("x", "<f8", (75_000, 1000))]), 600_000_000, zipped=True)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../broken_in", npy(FLUX))
        archive.writestr("/broken_in.npy", npy(FLUX))
    yield "paths.npz", stream.getvalue()
    huge = fits_header(SIMPLE="T", BITPIX="-64", NAXIS="2", NAXIS1="6000000000", NAXIS2="6000000000")
    yield "huge.fits", huge
    yield "huge.fits.gz", gzip.compress(huge)
    yield "axes.fits", fits_header(SIMPLE="T", BITPIX="-64", NAXIS="999")
    yield (
        "bomb.fits.gz",
        deflated(fits_header(SIMPLE="T", BITPIX="-64", NAXIS="2", NAXIS1="10000", NAXIS2="7500"), 600_000_000),
    )
    yield "tail.fits", deflated(fits_file(FLUX), 600_000_000)
    yield "tail.fits.gz", deflated(fits_file(FLUX), 600_000_000)
    yield "endless.fits.gz", deflated(fits_header(SIMPLE="T")[:80], 60_000_000, b"COMMENT ".ljust(80))
    whole = fits_fz((1000 * FLUX[0]).astype(np.int16))
    for card, value in {"ZNAXIS1": 2**31, "ZTILE1": 2**31, "ZTILE2": 2**31, "NAXIS1": 2**40, "NAXIS2": 2**27}.items():
        yield f"{card}.fits.fz", with_card(whole, card, value)
    yield "hcompress.fits.fz", fits_fz(FLUX[0], compression_type="HCOMPRESS_1", tile_shape=(20, 20))
    yield "empty.fits", b""
    black = zlib.compress(bytes(30_000 * (1 + 30_000 // 8)), 1)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0), b"IDAT" + black, b"IEND")
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    yield "bomb.png", b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    for suffix in WHOLE:
        yield f"other.{suffix}", WHOLE["npy" if suffix != "npy" else "png"]
        yield f"nothing.{suffix}", b""


def test_hostile_files_are_refused_and_nothing_is_run(tmp_path):
    for name, content in hostile(tmp_path):
        path = tmp_path / name
        path.write_bytes(content)
        if name == "other.npz":
            continue  # a .npy in a .npz's name is read, as numpy does
        assert not read_or_refuse(check_raw, path), name
    assert not (tmp_path / "broken_in").exists()


def test_damaged_tables(tmp_path):
    import pandas

    frame = pandas.DataFrame({"file": ["a.npy", "b.npy"] * 50, "label": ["lens", "nonlens"] * 50, "ra": 1.5})
    frame["file"] = [f"{i}-{name}" for i, name in enumerate(frame["file"])]
    frame.to_parquet(tmp_path / "whole.parquet")
    frame.to_csv(tmp_path / "whole.csv")
    Table.from_pandas(frame).write(tmp_path / "whole.fits")
    table = (tmp_path / "whole.fits").read_bytes()
    (tmp_path / "whole.fits.gz").write_bytes(gzip.compress(table))

    def check(path):
        options = DataArguments(str(path))
        assert all(row.label in (-1, 0, 1) for row in list_catalogue(path, options, BadFiles("skip")).rows)

    refused = 0
    for suffix in ("parquet", "csv", "fits", "fits.gz"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for i, content in enumerate(mutations(whole, 60, np.random.default_rng(2))):
            path = tmp_path / f"mutant{i}.{suffix}"
            path.write_bytes(content)
            refused += not read_or_refuse(check, path)
    assert refused > 100
    for card, value in {"NAXIS1": 2**40, "NAXIS2": 2**40, "PCOUNT": 2**40, "TFIELDS": 999}.items():
        content = with_card(table, card, value)
        (tmp_path / f"{card}.fits").write_bytes(content)
        (tmp_path / f"{card}.fits.gz").write_bytes(gzip.compress(content))
        for path in (tmp_path / f"{card}.fits", tmp_path / f"{card}.fits.gz"):
            assert not read_or_refuse(check, path) or card == "NAXIS1"  # which astropy leaves aside in a .gz
    (tmp_path / "bomb.fits.gz").write_bytes(deflated(table, 600_000_000))
    assert not read_or_refuse(check, tmp_path / "bomb.fits.gz")


def test_damaged_parquet_splits(tmp_path):
    from test_samplers import write_data_set

    directory = write_data_set(tmp_path / "set", 40)
    path = next((directory / "data").glob("train-*"))
    whole = path.read_bytes()
    right = read_split(ParquetSplits(directory), "train", 40).pixels
    refused = 0

    def check(path):
        found = read_split(ParquetSplits(directory), "train", 40).pixels
        assert torch.equal(found, right), "wrong pixels were read without a word"

    for content in mutations(whole, 150, np.random.default_rng(4)):
        path.write_bytes(content)
        refused += not read_or_refuse(check, path)
    assert refused > 100


def test_damaged_checkpoints(tmp_path):
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    accelerator = Accelerator(cpu=True)
    whole = save_checkpoint(tmp_path, 7, model, optimizer, {"seconds": 1.5}).read_bytes()
    path = tmp_path / "step-00000007.safetensors"
    assert newest_checkpoint(tmp_path, accelerator) == path
    for content in [*mutations(whole, 150, np.random.default_rng(5)), b"", b"\xff" * 64, b"{" * 10_000]:
        path.write_bytes(content)
        if content == whole:
            continue
        with no_hang(path), pytest.raises(InputError, match="were damaged and set aside") as refusal:
            newest_checkpoint(tmp_path, accelerator)
        no_memory_error(refusal.value)
        path.with_name(f"{path.name}.damaged").unlink(missing_ok=True)
