"""`.npy` and `.npz` files: the one image in them, what masks it, and what is stated beside it."""

import io
import math
import re
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from ...errors import InputError
from .headers import Headers, linear_flux, raw_of
from .masks import check_fits, kind_of_words, where_bad
from .raw import MAX_BANDS, RawCutout, as_pixels, check_numeric, check_size

_MAX_NPY_HEADER = 10_000  # bytes, as numpy's own max_header_size
_MAX_MEMBERS = 100  # of a .npz
_MAX_FACT_BYTES = 10_000


def read_numpy(path: Path) -> RawCutout:
    """
    The image of a `.npy` file, or the one image in a `.npz`. There, arrays called `mask`, `weight` and the like mask
    it, and small ones state its facts under the names of FITS keywords: `bands`, `zero_point`, `pixel_scale`, `bunit`.

    Raises:
        [`InputError`]: it is no image, holds several, or is not what its header says; and whatever numpy and zipfile
            raise where it is damaged.
    """
    magic = np.lib.format.MAGIC_PREFIX
    with open(path, "rb") as stream:
        start = stream.read(len(magic))
        stream.seek(0)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(stream) as archive:
                return _read_npz(archive, path)
        if not magic.startswith(start):  # an empty file is a truncated one
            raise InputError(f"{path} is not a .npy or .npz file whatever its name: save it with numpy.save")
        _, dtype = _declared(stream, path.stat().st_size, path)
        check_numeric(dtype, path)
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return RawCutout(as_pixels(array, path), display=array.dtype == np.uint8)


def _read_npz(archive: zipfile.ZipFile, path: Path) -> RawCutout:
    declared = _members(archive, path)
    arrays = [name for name, (shape, _) in declared.items() if len(shape) in (2, 3)]
    images = [name for name in arrays if _kind(name) == "flux"] or arrays
    if len(images) != 1:
        names = ", ".join(name.removesuffix(".npy") for name in declared)
        raise InputError(f"{path} holds {len(images)} images (arrays: {names or 'none'}): save one per file")
    check_numeric(declared[images[0]][1], path)
    image = _read(archive, images[0])
    headers = Headers(_facts(archive, declared), {}, str(path))
    pixels = as_pixels(linear_flux(image, headers), path)
    for name in arrays:
        if name != images[0] and _kind(name) in ("mask", "weight"):
            check_fits(declared[name][0], pixels.shape, path)
            values = _read(archive, name)
            bad = ~(values > 0) if _kind(name) == "weight" else where_bad(values, name.removesuffix(".npy"), path)
            pixels[np.broadcast_to(bad, pixels.shape)] = np.nan
    return raw_of(pixels, image.dtype, headers)


def _kind(name: str) -> str:
    return kind_of_words({word for word in re.split(r"[^A-Z0-9]+", name.removesuffix(".npy").upper()) if word})


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _facts(archive: zipfile.ZipFile, declared: dict[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, str]:
    """Numbers, texts and short lists of them as a header."""
    small = [
        name
        for name, (shape, dtype) in declared.items()
        if len(shape) < 2 and math.prod(shape) <= MAX_BANDS and dtype.itemsize <= _MAX_FACT_BYTES
    ]
    header = {name.removesuffix(".npy").upper(): ",".join(_read(archive, name).ravel().astype(str)) for name in small}
    return {"BUNIT": header.get("UNIT", ""), **header}


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """What the arrays of a .npz declare of themselves, by their names."""
    entries = archive.infolist()
    if len(entries) > _MAX_MEMBERS:
        raise InputError(f"{path} holds {len(entries)} arrays: save one image per file")
    declared = {}
    for entry in entries:
        with archive.open(entry) as member:
            declared[entry.filename] = _declared(member, entry.file_size, path)
    return declared


def _declared(stream: IO[bytes], size: int, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type that the header of `size` bytes of .npy declares."""
    shape, dtype = read_header(stream, path)
    if dtype.hasobject:  # an object array is a program, not a picture
        raise InputError(f"{path} holds pickled objects, not numbers: save it as a float32 array")
    check_size(shape, path)
    if math.prod(shape) * dtype.itemsize > size:
        raise InputError(f"{path} is shorter than its header says (truncated?): save or copy it again")
    return shape, dtype


def read_header(stream: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type in a header of .npy, which must not be long: numpy would read it whole before it refuses."""
    version = np.lib.format.read_magic(stream)
    length = stream.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > _MAX_NPY_HEADER:
        raise InputError(f"{path} declares a header longer than {_MAX_NPY_HEADER} bytes: save it with numpy.save")
    text = stream.read(int.from_bytes(length, "little"))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(length + text))
    return shape, dtype
