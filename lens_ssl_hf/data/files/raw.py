"""What is known of one cutout as it was read: pixels, and what its file says of them."""

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

MAX_BANDS = 10  # an axis up to this long may be the band axis
MAX_PIXELS = 4096 * 4096  # of all bands: a damaged or malicious header can claim any size, and memory is taken for it
MAX_FILE_BYTES = 2**30  # a file of one cutout is smaller, with its masks and variances


@dataclass(frozen=True)
class RawCutout:
    """
    One cutout before it is brought to a model's bands, scale and units.

    Args:
        pixels (`np.ndarray` of shape `(bands, H, W)`): float32, NaN where masked; linear flux, or display units.
        bands (`tuple[str | None, ...]`, *optional*): names of the bands where they are stated; `None` for those that
            are not, while others are.
        zero_points (`tuple[float | None, ...]`, *optional*): AB magnitude of flux 1 per band, likewise.
        pixel_scale (`float`, *optional*): arcsec per pixel.
        display (`bool`): 8-bit values, which are display units (0 to 255) already.
        unit (`str`, *optional*): unit of the flux where it is stated but says nothing absolute, such as `"adu"`.
        ra, dec (`float`, *optional*): position of the centre in degrees, from the WCS.
    """

    pixels: np.ndarray
    bands: tuple[str | None, ...] | None = None
    zero_points: tuple[float | None, ...] | None = None
    pixel_scale: float | None = None
    display: bool = False
    unit: str | None = None
    ra: float | None = None
    dec: float | None = None


def check_file(path: str | Path) -> None:
    """
    Raises:
        [`InputError`]: nothing can be read there as one cutout: it is missing, a folder, a pipe or a device, or larger
            than `MAX_FILE_BYTES`.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path} does not exist: restore the file or correct the path") from error
        raise InputError(f"{path} cannot be read ({error.strerror}): give yourself access to it") from error
    except ValueError as error:  # a NUL character
        raise InputError(f"{str(path)!r} cannot be a path ({error}): correct it") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder: give the files in it")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a pipe or a device, not a file: give a file")
    if found.st_size > MAX_FILE_BYTES:
        raise InputError(f"{path} has {found.st_size / 2**30:.1f} GiB, more than a cutout: cut the object out of it")


@contextlib.contextmanager
def readable(path: str | Path, kind: str = "", fix: str = "save or copy it again") -> Iterator[None]:
    """
    Whatever a block that reads `path` raises as an [`InputError`]: damaged bytes make the libraries raise nearly
    anything (`zlib.error`, `KeyError`, `struct.error`, `MemoryError`, ...).
    """
    what = f"{path} cannot be read{f' as {kind}' if kind else ''}"
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{path} needs {error.name} to be read: install it") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{what} ({error.strerror}): restore the file") from error
        reason = "truncated?" if kind else str(error).split("\n")[0] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "there is no such file"  # pyarrow says the name alone
        raise InputError(f"{what} ({reason}): {fix}") from error


def as_pixels(array: Any, name: str | Path, wanted_bands: int | None = None) -> np.ndarray:
    """
    A numeric array as float32 `(bands, H, W)`, infinities and masked values (`numpy.ma`) as NaN.

    `(bands, H, W)` is the default; `(H, W, bands)` is understood where only the last axis can be the bands.

    Raises:
        [`InputError`]: it is not numeric, or has another shape.
    """
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    array = np.asarray(array)
    check_numeric(array.dtype, name)
    if array.ndim == 2:
        array, mask = array[None], None if mask is None else mask[None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}: save it as (bands, height, width)")
    first, last = array.shape[0], array.shape[2]
    is_last = wanted_bands is not None and first != wanted_bands and last == wanted_bands
    if is_last or first > MAX_BANDS >= last:
        array, mask = np.moveaxis(array, 2, 0), None if mask is None else np.moveaxis(mask, 2, 0)
    elif first > MAX_BANDS:
        raise InputError(f"{name} has shape {array.shape}, more than {MAX_BANDS} bands: save (bands, height, width)")
    with np.errstate(over="ignore"):
        pixels = np.array(array, dtype=np.float32, order="C")  # native byte order, our own memory
    pixels[~np.isfinite(pixels)] = np.nan
    if mask is not None:
        pixels[mask] = np.nan
    return pixels


def check_valid(pixels: np.ndarray, name: str | Path, bands: Sequence[str | None] | None = None) -> None:
    """Raise [`InputError`] where a band of `(bands, H, W)` has no finite pixel."""
    empty = ~np.isfinite(pixels).any(axis=(1, 2))
    if empty.all():
        raise InputError(f"{name} has no valid pixel (all NaN or masked): leave it out")
    if empty.any():
        band = int(np.flatnonzero(empty)[0])
        which = bands[band] if bands and bands[band] else band + 1
        raise InputError(f"{name} has no valid pixel in band {which}: leave it out")


def flat_band(pixels: np.ndarray, name: str | Path, bands: Sequence[str | None] | None = None) -> str:
    """What is wrong with the first band of `(bands, H, W)` that has one value alone; empty where none has."""
    least = np.nanmin(pixels, axis=(1, 2))
    is_flat = least == np.nanmax(pixels, axis=(1, 2))
    if not is_flat.any():
        return ""
    band = int(np.flatnonzero(is_flat)[0])
    which = bands[band] if bands and bands[band] else band + 1
    what = "all zeros" if least[band] == 0 else f"constant, {least[band]:g} in all pixels"
    return f"band {which} of {name} is {what}: leave the cutout out"


def check_numeric(dtype: np.dtype, name: str | Path) -> None:
    """Raise [`InputError`] where an array does not hold real numbers."""
    if dtype.kind not in "fiu":  # bool is a mask
        raise InputError(f"{name} holds {dtype} values, not numbers: save it as a float32 array")


def check_size(shape: Sequence[int], path: str | Path) -> None:
    """Refuse what is too large for a cutout by its header, before memory is taken for it."""
    if math.prod(shape) > MAX_PIXELS:
        raise InputError(f"{path} has shape {tuple(shape)}, more than {MAX_PIXELS} pixels: cut the object out of it")


def size_text(pixels: np.ndarray) -> str:
    """Height and width as errors write them."""
    return f"{pixels.shape[-2]} x {pixels.shape[-1]}"
