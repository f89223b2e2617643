"""One file -> float32 `(bands, H, W)` and what the file says of itself: .npy, .npz, FITS, PNG, JPEG, TIFF."""

import contextlib
import gzip
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (".npy", ".npz", *FITS_SUFFIXES, *PICTURE_SUFFIXES)
MAX_BANDS = 10  # an axis up to this long may be the band axis
MAX_PIXELS = 4096 * 4096  # of all bands: a damaged or malicious header can claim any size, and memory is taken for it
MAX_BYTES = 4 * MAX_PIXELS  # of a .fits.gz when unpacked


@dataclass(frozen=True)
class RawCutout:
    """
    The content of one file.

    Args:
        pixels (`np.ndarray` of shape `(bands, H, W)`): float32, NaN where masked; linear flux, or display units.
        bands (`tuple[str, ...]`, *optional*): names of the bands, where the file gives them.
        zero_points (`tuple[float, ...]`, *optional*): AB magnitude of flux 1 per band, where the file gives it.
        pixel_scale (`float`, *optional*): arcsec per pixel, where the file gives it.
        display (`bool`): 8-bit values, which are display units (0 to 255) already.
    """

    pixels: np.ndarray
    bands: tuple[str, ...] | None = None
    zero_points: tuple[float, ...] | None = None
    pixel_scale: float | None = None
    display: bool = False


def is_cutout_file(path: str | Path) -> bool:
    """Whether the name ends like a file that [`read_raw`] reads."""
    return str(path).lower().endswith(SUFFIXES)


def read_raw(path: str | Path, hdu: int | str | None = None) -> RawCutout:
    """
    Read one cutout.

    Args:
        path (`str` or `Path`): a file whose name ends in one of `SUFFIXES`.
        hdu (`int` or `str`, *optional*):
            FITS only: number or name of the HDU, by default the first that holds an image. Several, separated by
            commas (`"G,R,I"` or `"1,2,3"`), are stacked.

    Raises:
        [`InputError`]: the file is missing, damaged, not numeric, larger than `MAX_PIXELS` in all bands together, or
            holds no image of 1 to 10 bands, or one band without a valid pixel.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: correct the path or restore the file")
    name = path.name.lower()
    if not is_cutout_file(name):
        raise InputError(f"{path} is not a cutout file: convert it to one of {', '.join(SUFFIXES)}")
    kind = (
        "FITS" if name.endswith(FITS_SUFFIXES) else "a picture" if name.endswith(PICTURE_SUFFIXES) else "a numpy array"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the libraries warn, only what ends in an error matters
            if kind == "FITS":
                raw = _read_fits(path, hdu)
            else:
                raw = _read_picture(path) if kind == "a picture" else _read_numpy(path)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{path} needs {error.name} to be read: install it, or convert the file to .npy") from error
    except Exception as error:
        # Damaged bytes make the libraries raise nearly anything: zlib.error, KeyError, struct.error, MemoryError, ...
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path} cannot be read ({error.strerror}): restore the file") from error
        raise InputError(f"{path} cannot be read as {kind} (truncated?): save or copy it again") from error
    if raw.bands is not None and len(raw.bands) != len(raw.pixels):
        raw = RawCutout(raw.pixels, None, raw.zero_points, raw.pixel_scale, raw.display)
    check_valid(raw.pixels, path, raw.bands)
    return raw


def read_raw_bands(paths: list[str | Path], bands: list[str] | None = None, hdu: int | str | None = None) -> RawCutout:
    """Stack single-band files of one object; `bands` names them where the files do not. See [`read_raw`]."""
    raws = [read_raw(path, hdu) for path in paths]
    for path, raw in zip(paths, raws):
        if len(raw.pixels) != 1:
            raise InputError(f"{path} has {len(raw.pixels)} bands where one was expected: give one file per band")
        if raw.pixels.shape != raws[0].pixels.shape:
            raise InputError(
                f"{path} is {_size(raw.pixels)} pixels where {paths[0]} is {_size(raws[0].pixels)}: "
                "give all bands of an object the same size"
            )
        if raw.pixel_scale and raws[0].pixel_scale and abs(raw.pixel_scale / raws[0].pixel_scale - 1) > 0.01:
            raise InputError(
                f"{path} has {raw.pixel_scale:.4g} arcsec pixels where {paths[0]} has {raws[0].pixel_scale:.4g}: "
                "resample the bands of an object to one grid"
            )
    if bands is None and all(raw.bands for raw in raws):
        bands = [raw.bands[0] for raw in raws]
    zero_points = tuple(raw.zero_points[0] for raw in raws) if all(raw.zero_points for raw in raws) else None
    return RawCutout(
        np.concatenate([raw.pixels for raw in raws]),
        tuple(bands) if bands else None,
        zero_points,
        raws[0].pixel_scale,
        all(raw.display for raw in raws),
    )


def raw_from_array(item: Any, name: str | Path, wanted_bands: int | None = None) -> RawCutout:
    """A cutout in memory, such as an array, a tensor or a PIL image, as [`RawCutout`]."""
    if hasattr(item, "convert"):  # PIL
        item = np.asarray(item.convert("L" if wanted_bands == 1 else "RGB"))
        item = np.moveaxis(item, -1, 0) if item.ndim == 3 else item
    array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
    pixels = as_pixels(array, name, wanted_bands)
    check_valid(pixels, name)
    return RawCutout(pixels, display=array.dtype == np.uint8)


def as_pixels(array: Any, name: str | Path, wanted_bands: int | None = None) -> np.ndarray:
    """
    A numeric array as float32 `(bands, H, W)`, infinities as NaN.

    `(bands, H, W)` is the default; `(H, W, bands)` is understood where only the last axis can be the bands.
    """
    array = np.asarray(array)
    _check_numeric(array.dtype, name)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}: save it as (bands, height, width)")
    first, last = array.shape[0], array.shape[2]
    if wanted_bands is not None and first != wanted_bands and last == wanted_bands:
        array = np.moveaxis(array, 2, 0)
    elif first > MAX_BANDS >= last:
        array = np.moveaxis(array, 2, 0)
    elif first > MAX_BANDS:
        raise InputError(f"{name} has shape {array.shape}, more than {MAX_BANDS} bands: save (bands, height, width)")
    with np.errstate(over="ignore"):
        pixels = np.array(array, dtype=np.float32, order="C")  # native byte order, our own memory
    pixels[~np.isfinite(pixels)] = np.nan
    return pixels


def check_valid(pixels: np.ndarray, name: str | Path, bands: tuple[str, ...] | None = None) -> None:
    """Raise [`InputError`] where a band of `(bands, H, W)` has no finite pixel."""
    empty = ~np.isfinite(pixels).any(axis=(1, 2))
    if empty.all():
        raise InputError(f"{name} has no valid pixel (all NaN): leave it out")
    if empty.any():
        band = int(np.flatnonzero(empty)[0])
        raise InputError(f"{name} has no valid pixel in band {bands[band] if bands else band + 1}: leave it out")


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[-2]} x {pixels.shape[-1]}"


def _check_numeric(dtype: np.dtype, name: str | Path) -> None:
    if dtype.kind not in "fiub":
        raise InputError(f"{name} holds {dtype} values, not numbers: save it as a float32 array")


def _check_size(shape: Sequence[int], path: Path) -> None:
    """Refuse what is too large for a cutout by its header, before memory is taken for it."""
    if math.prod(shape) > MAX_PIXELS:
        raise InputError(f"{path} has shape {tuple(shape)}, more than {MAX_PIXELS} pixels: cut the object out of it")


def _read_numpy(path: Path) -> RawCutout:
    magic = np.lib.format.MAGIC_PREFIX
    with open(path, "rb") as stream:
        start = stream.read(len(magic))
        stream.seek(0)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(stream) as archive, archive.open(_only_image(archive, path)) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
        elif magic.startswith(start):  # an empty file is a truncated one
            _npy_shape(stream, path.stat().st_size, path)
            stream.seek(0)
            array = np.lib.format.read_array(stream, allow_pickle=False)
        else:
            raise InputError(f"{path} is not a .npy or .npz file whatever its name: save it with numpy.save")
    return RawCutout(as_pixels(array, path), display=array.dtype == np.uint8)


def _npy_shape(stream: IO[bytes], size: int, path: Path) -> tuple[int, ...]:
    """The shape that the header of `size` bytes of .npy declares."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:  # an object array is a program, not a picture
        raise InputError(f"{path} holds pickled objects, not numbers: save it as a float32 array")
    _check_numeric(dtype, path)  # others can be of any size per pixel
    _check_size(shape, path)
    if math.prod(shape) * dtype.itemsize > size:
        raise InputError(f"{path} is shorter than its header says (truncated?): save or copy it again")
    return shape


def _only_image(archive: zipfile.ZipFile, path: Path) -> str:
    """The one array of 2 or 3 dimensions in a .npz file."""
    shapes = {}
    for entry in archive.infolist():
        with archive.open(entry) as member:
            shapes[entry.filename] = _npy_shape(member, entry.file_size, path)
    images = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if len(images) != 1:
        names = ", ".join(name.removesuffix(".npy") for name in shapes)
        raise InputError(f"{path} holds {len(images)} images (arrays: {names or 'none'}): save one per file")
    return images[0]


def _read_picture(path: Path) -> RawCutout:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            _check_size((len(image.getbands()), *image.size), path)
            image.load()
            if image.mode in ("P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGB")
            elif image.mode in ("1", "LA"):
                image = image.convert("L")
            array = np.asarray(image)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} cannot be read as a picture (multi-band float TIFFs cannot): save it again, or as .npy or FITS"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has more than {MAX_PIXELS} pixels: cut the object out of it") from error
    if array.ndim == 3:
        array = np.moveaxis(array, 2, 0)
    bands = ("red", "green", "blue") if array.ndim == 3 and len(array) == 3 else None
    return RawCutout(as_pixels(array, path), bands, display=array.dtype == np.uint8)


def _read_fits(path: Path, hdu: int | str | None) -> RawCutout:
    with open_fits(path) as hdus:
        images = [_as_raw(hdus, key, path) for key in _hdu_keys(hdu)]
    if len(images) == 1:
        return images[0]
    if len({image.pixels.shape for image in images}) > 1 or len(images[0].pixels) != 1:
        raise InputError(f"{path}: the HDUs {hdu} are not single bands of one size: choose others with hdu")
    return RawCutout(
        np.concatenate([image.pixels for image in images]),
        tuple(image.bands[0] for image in images) if all(image.bands for image in images) else None,
        tuple(image.zero_points[0] for image in images) if all(image.zero_points for image in images) else None,
        images[0].pixel_scale,
    )


@contextlib.contextmanager
def open_fits(path: Path) -> Iterator[Any]:
    """
    The `HDUList` of a file, none of whose HDUs declares more data than there are: memory would be taken for them.

    Raises:
        [`InputError`]: the file is shorter than its headers say, or unpacks to more than `MAX_BYTES`; and whatever
            the libraries raise where it is damaged.
    """
    from astropy.io import fits

    with open(path, "rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"  # which astropy unpacks whatever the name
    size = _unpacked_size(path) if is_gzip else path.stat().st_size
    with fits.open(path, memmap=False) as hdus:
        for place in (hdu.fileinfo() for hdu in hdus):
            if place["datLoc"] + place["datSpan"] - 2880 > size:  # the padding to whole blocks may be missing
                raise InputError(f"{path} is shorter than its header says (truncated?): save or copy it again")
        yield hdus


def _unpacked_size(path: Path) -> int:
    """Read a .gz to its end, where gzip compares the checksum (astropy stops before), and keep nothing of it."""
    size = 0
    with gzip.open(path) as stream:
        while piece := stream.read(1 << 20):
            if size == 0 and b"END".ljust(80) not in piece:
                raise InputError(f"{path} cannot be read as FITS (its header has no end): save or copy it again")
            size += len(piece)
            if size > MAX_BYTES:
                raise InputError(f"{path} has more than {MAX_BYTES} bytes unpacked: unpack it, or cut it down")
    return size


def _hdu_keys(hdu: int | str | None) -> list[int | str | None]:
    if not isinstance(hdu, str):
        return [hdu]
    keys = [key.strip() for key in hdu.split(",") if key.strip()]
    return [int(key) if key.isdigit() else key for key in keys] or [hdu]


def _as_raw(hdus: Any, key: int | str | None, path: Path) -> RawCutout:
    available = ", ".join(f"{i}{f' ({h.name})' if h.name else ''}" for i, h in enumerate(hdus) if _has_image(h))
    if key is None:
        chosen = next((h for h in hdus if _has_image(h)), None)
    else:
        name = key.upper() if isinstance(key, str) else key
        chosen = next((h for i, h in enumerate(hdus) if name in (i, h.name)), None)
    if chosen is None or not _has_image(chosen):
        wanted = "no image HDU" if key is None else f"no image in HDU {key!r}"
        mend = f"choose hdu among {available}" if available else "it holds no image at all (truncated?), leave it out"
        raise InputError(f"{path} has {wanted}: {mend}")
    _check_size(chosen.shape, path)
    if getattr(chosen, "compression_type", None) == "HCOMPRESS_1":  # astropy 8.0.2 writes beyond its memory
        raise InputError(f"{path} is HCOMPRESSed, which crashes readers where it is damaged: unpack it with funpack")
    header, data = chosen.header, chosen.data
    if data.ndim > 3:
        data = data.reshape(data.shape[-3:]) if np.prod(data.shape[:-3]) == 1 else data
    pixels = as_pixels(data, path)
    bands = _band_names(header, len(pixels)) or (_band_names({"FILTER": chosen.name}, 1) if len(pixels) == 1 else None)
    zero_point = _zero_point(header)
    return RawCutout(pixels, bands, zero_point and (zero_point,) * len(pixels), _pixel_scale(header))


def _has_image(hdu: Any) -> bool:
    return bool(hdu.is_image) and hdu.header.get("NAXIS", 0) >= 2


def _band_names(header: Any, count: int) -> tuple[str, ...] | None:
    """Band names from FILTER or BAND (one band), BANDS or FILTERS ("g,r,i"), BAND1... or FILTER1... (several)."""
    for key in ("BANDS", "FILTERS", "FILTER", "BAND"):
        text = str(header.get(key, "")).strip()
        names = [text] if count == 1 else [name for name in re.split(r"[,;\s]+", text) if name]
        if len(names) == 1 and count > 1 and len(text) == count:
            names = list(text)  # "gri"
        if text and len(names) == count:
            return tuple(band_name(name) for name in names)
    for key in ("BAND", "FILTER"):
        names = [str(header.get(f"{key}{i + 1}", "")).strip() for i in range(count)]
        if all(names):
            return tuple(band_name(name) for name in names)
    return None


def band_name(name: str) -> str:
    """`"g"` for `"HSC-G"`, `"g DECam SDSS c0001"`, `"g.MP9401"`, `"G"`; other names as they are."""
    match = re.fullmatch(r"(?:(?:hsc|decam|sdss|ps1|lsst|des|megacam)[-_. ]?)?([ugrizy])\d?(?:[-_. ].*)?", name, re.I)
    return match.group(1).lower() if match else name


def _zero_point(header: Any) -> float | None:
    for key in ("MAGZERO", "MAGZPT", "MAGZP", "ZEROPT", "ZP", "PHOT_ZP", "PHOTZP"):
        if isinstance(header.get(key), int | float):
            return float(header[key])
    flux = header.get("FLUXMAG0")
    return 2.5 * float(np.log10(flux)) if isinstance(flux, int | float) and flux > 0 else None


def _pixel_scale(header: Any) -> float | None:
    """Arcsec per pixel from the celestial WCS (CD, or CDELT with PC), else from PIXSCALE, PIXELSCL or SECPIX."""
    if any(word in str(header.get("CTYPE1", "")) for word in ("RA--", "DEC-", "LON", "LAT")):
        cd = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)], dtype=float)
        if not cd.any():
            pc = [[header.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)]
            cd = np.diag([header.get("CDELT1", 0.0), header.get("CDELT2", 0.0)]) @ np.array(pc, dtype=float)
        scale = 3600.0 * float(np.sqrt(abs(np.linalg.det(cd))))
        if scale > 0:
            return scale
    for key in ("PIXSCALE", "PIXELSCL", "SECPIX"):
        if isinstance(header.get(key), int | float) and header[key] > 0:
            return float(header[key])
    return None
