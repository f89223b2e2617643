"""
A thousand damaged files: each gives a valid cutout or is refused with its name, fast and in little memory. What has
checksums (Parquet data sets, checkpoints) is never read wrongly.
"""

import io
import os
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from astropy.io import fits
from PIL import Image

from lens_ssl_hf import InputError, load_tensors, save_tensors
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.data.batches import ParquetSplits
from lens_ssl_hf.data.readers import read_raw
from lens_ssl_hf.data.sources import BadFiles, list_catalogue
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


def picture(kind):
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, size=(40, 40, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


WHOLE = {
    "npy": npy(FLUX),
    "npz": npz(FLUX),
    "fits": fits_file(FLUX),
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
    """At most 1 GiB more than there is: an attempt at more is a MemoryError, which no reader may let through."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def read_or_refuse(read, path):
    """Whether it was read; anything but an [`InputError`] that names the file fails the test."""
    start = time.perf_counter()
    try:
        read(path)
    except InputError as error:
        assert path.name in str(error), error
        return False
    finally:
        assert time.perf_counter() - start < 2, path
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


def hostile(folder):
    """Names and contents of files that ask for too much, or are something else than they say."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"

    def declared(shape):
        text = (header % shape).ljust(117) + "\n"
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
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../broken_in", npy(FLUX))
        archive.writestr("/broken_in.npy", npy(FLUX))
    yield "paths.npz", stream.getvalue()
    cards = ["SIMPLE  =                    T", "BITPIX  =                  -64", "NAXIS   =                    2",
             "NAXIS1  =          10000000000", "NAXIS2  =          10000000000", "END"]  # fmt: skip
    yield "huge.fits", "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    yield "axes.fits", "".join(c.ljust(80) for c in [*cards[:2], "NAXIS   =  999", "END"]).ljust(2880).encode()
    yield "empty.fits", b""
    stream = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(stream, "png")
    yield "bomb.png", stream.getvalue()
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

    def check(path):
        assert all(row.label in (-1, 0, 1) for row in list_catalogue(path, DataArguments(), BadFiles("skip")))

    refused = 0
    for suffix in ("parquet", "csv"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for i, content in enumerate(mutations(whole, 60, np.random.default_rng(2))):
            path = tmp_path / f"mutant{i}.{suffix}"
            path.write_bytes(content)
            refused += not read_or_refuse(check, path)
    assert refused > 40


def test_damaged_data_sets(tiny_cutouts, tmp_path):
    whole = save_tensors(tiny_cutouts, tmp_path / "whole.safetensors").read_bytes()
    small = whole[:20_000]  # the header and some pixels: mutants of all of it take long to write
    refused = 0
    for i, content in enumerate([*mutations(small, 60, np.random.default_rng(3)), b"[" * 100_000]):
        path = tmp_path / f"mutant{i}.safetensors"
        path.write_bytes(content + whole[20_000:])
        refused += not read_or_refuse(load_tensors, path)
    assert refused > 20


def test_damaged_parquet_splits(tmp_path):
    from test_batches import write_data_set

    directory = write_data_set(tmp_path / "set", 40)
    path = next((directory / "data").glob("train-*"))
    whole = path.read_bytes()
    right = ParquetSplits(directory).sample("train", 40).pixels
    refused = 0

    def check(path):
        found = ParquetSplits(directory).sample("train", 40).pixels
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
        start = time.perf_counter()
        if content == whole:
            continue
        with pytest.raises(InputError, match="were damaged and set aside"):
            newest_checkpoint(tmp_path, accelerator)
        assert time.perf_counter() - start < 2
        path.with_name(f"{path.name}.damaged").unlink(missing_ok=True)
