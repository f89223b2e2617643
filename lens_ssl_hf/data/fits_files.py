"""FITS: which images of a file are the cutout, what masks them, and what their headers say."""

import contextlib
import gzip
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .bands import check_distinct
from .headers import Headers, band_names, facts_of, linear_flux
from .raw import MAX_BANDS, MAX_PIXELS, RawCutout, as_pixels, check_size, size_text

MAX_BYTES = 4 * MAX_PIXELS  # of a .fits.gz when unpacked
MAX_HDUS = 200
_SCALES_DIFFER = 0.01  # relative

# Words in the name of an HDU that tell what it holds instead of flux.
_MASKS = {"MASK", "MSK", "DQ", "FLAG", "FLAGS", "MASKBITS", "BPM", "BADPIX"}  # not 0: bad
_WEIGHTS = {"WEIGHT", "WHT", "WGT", "WT", "IVAR", "INVVAR"}  # 0: bad
_OTHERS = {"VAR", "VARIANCE", "ERR", "ERROR", "ERRORS", "SIGMA", "RMS", "NOISE", "UNCERT", "UNCERTAINTY", "STD", "PSF"}
_OTHERS |= {"MODEL", "RESIDUAL", "RESID", "BACKGROUND", "BKG", "BKGD", "SKY", "CTX", "CON", "EXP", "EXPTIME", "NEXP"}
_OTHERS |= {"SEG", "SEGM", "SEGMENTATION", "SEGMAP", "AREA", "DEPTH", "COVERAGE", "CHI2", "KERNEL"}
_IMAGES = {"SCI", "SCIENCE", "IMAGE", "IMG", "DATA", "PRIMARY", "COMPRESSED", "COADD", "FLUX", "CUTOUT"}
# Planes of a mask of the LSST pipelines (HSC, Rubin) whose pixels hold no flux; most others, such as DETECTED, do.
_BAD_PLANES = ("BAD", "SAT", "CR", "NO_DATA", "UNMASKEDNAN")


def read_fits(path: Path, hdu: int | str | None = None) -> RawCutout:
    """
    The cutout in a FITS file; see [`~lens_ssl_hf.data.readers.read_raw`].

    Without `hdu` it is the one image that holds flux, or one image for each of several bands. Masks and weights beside
    it (`MASK`, `DQ`, `WEIGHT`, ...) make pixels NaN.
    """
    with open_fits(path) as hdus:
        return from_hdus(hdus, path, hdu)


@contextlib.contextmanager
def open_fits(path: Path) -> Iterator[Any]:
    """
    The `HDUList` of a file, none of whose HDUs declares more data than there are: memory would be taken for them.

    Raises:
        [`InputError`]: the file is shorter than its headers say, has more than `MAX_HDUS` HDUs, or unpacks to more
            than `MAX_BYTES`; and whatever the libraries raise where it is damaged.
    """
    from astropy.io import fits

    with open(path, "rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"  # which astropy unpacks whatever the name
    size = _unpacked_size(path) if is_gzip else path.stat().st_size
    with fits.open(path, memmap=False) as hdus:
        for number, hdu in enumerate(islice(hdus, MAX_HDUS + 1)):
            place = hdu.fileinfo()
            if place["datLoc"] + place["datSpan"] - 2880 > size:  # the padding to whole blocks may be missing
                raise InputError(f"{path} is shorter than its header says (truncated?): save or copy it again")
            if number == MAX_HDUS:
                raise InputError(f"{path} has more than {MAX_HDUS} HDUs: cut the object out of it")
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


def from_hdus(hdus: Sequence[Any], name: str | Path, hdu: int | str | None = None) -> RawCutout:
    """
    The cutout in an astropy `HDUList`, whose primary HDU is the first.

    Raises:
        [`InputError`]: no image, several that are not the bands of one cutout, or facts that contradict each other.
    """
    chosen = _flux_images(hdus, name) if hdu is None else _chosen_images(hdus, hdu, name)
    raws = [_as_raw(hdus, one, chosen, name) for one in chosen]
    return raws[0] if len(raws) == 1 else _stack(raws, chosen, hdus, name)


def _flux_images(hdus: Sequence[Any], name: str | Path) -> list[Any]:
    """The image with flux, or the images of several bands."""
    images = [one for one in hdus if _has_image(one)]
    flux = [one for one in images if not _words(one) & (_MASKS | _WEIGHTS | _OTHERS)]
    if not flux:
        found = f"only {_listed(hdus)}" if images else "no image at all (truncated?)"
        raise InputError(f"{name} has no image HDU of flux ({found}): choose one with hdu, or leave it out")
    if len(flux) > 1 and not _are_bands(flux, hdus, name):
        raise InputError(
            f"{name} holds {len(flux)} images that are not named as bands: choose hdu among {_listed(hdus)}"
        )
    return flux


def _are_bands(images: list[Any], hdus: Sequence[Any], name: str | Path) -> bool:
    """Whether each image is the plane of another band."""
    if len(images) > MAX_BANDS or any(_planes(one) > 1 for one in images):
        return False
    names = [band_names(_headers(hdus, one, name), 1) for one in images]
    if None in names and names.count(None) == len(names):
        return band_names(Headers(hdus[0].header, {}, str(name)), len(images)) is not None
    return None not in names and len(set(names)) == len(names)


def _chosen_images(hdus: Sequence[Any], hdu: int | str, name: str | Path) -> list[Any]:
    """The images that `hdu` names: numbers, or names, each of which stands for all HDUs that bear it."""
    keys = [key.strip() for key in hdu.split(",") if key.strip()] if isinstance(hdu, str) else [hdu]
    chosen = []
    for key in keys or [hdu]:
        number = int(key) if str(key).isdecimal() else key
        wanted = str(number).upper()
        found = [one for i, one in enumerate(hdus) if number == i or one.name == wanted]
        if not found or not all(map(_has_image, found)):
            available = _listed(hdus)
            hint = f"choose hdu among {available}" if available else "it holds no image at all, leave it out"
            raise InputError(f"{name} has no image in HDU {key}: {hint}")
        chosen += found
    return chosen


def _listed(hdus: Sequence[Any]) -> str:
    return ", ".join(f"{i}{f' ({one.name})' if one.name else ''}" for i, one in enumerate(hdus) if _has_image(one))


def _has_image(hdu: Any) -> bool:
    return bool(hdu.is_image) and hdu.header.get("NAXIS", 0) >= 2 and 0 not in hdu.shape


def _planes(hdu: Any) -> int:
    return int(np.prod(hdu.shape[:-2]))


def _words(hdu: Any) -> set[str]:
    """The words of an HDU's name and of the keywords that tell its kind, in upper case."""
    kinds = (hdu.name, hdu.header.get("IMAGETYP", ""), hdu.header.get("IMTYPE", ""), hdu.header.get("EXTTYPE", ""))
    return {word for text in kinds for word in re.split(r"[^A-Z0-9]+", str(text).upper()) if word}


def _headers(hdus: Sequence[Any], hdu: Any, name: str | Path) -> Headers:
    label = f"{name}[{hdu.name or list(hdus).index(hdu)}]" if len(hdus) > 1 else str(name)
    return Headers(hdu.header, hdus[0].header, label)


def _as_raw(hdus: Sequence[Any], hdu: Any, chosen: list[Any], name: str | Path) -> RawCutout:
    headers, data = _headers(hdus, hdu, name), _data(hdu, name)
    is_display = data.dtype == np.uint8
    pixels = as_pixels(linear_flux(data, headers), name)
    facts = facts_of(headers, pixels.shape)
    mask = _mask(hdus, hdu, chosen, name)
    if mask is not None:
        pixels = _masked(pixels, mask, name)
    if is_display and (facts.unit or facts.zero_points):  # counts that happen to fit into 8 bits
        is_display = False
    return RawCutout(
        pixels, facts.bands, facts.zero_points, facts.pixel_scale, is_display, facts.unit, facts.ra, facts.dec
    )


def _data(hdu: Any, name: str | Path) -> np.ndarray:
    """The values of an HDU, `(H, W)` or `(bands, H, W)`, once its header is known to be harmless."""
    check_size(hdu.shape, name)
    if getattr(hdu, "compression_type", None) == "HCOMPRESS_1":  # astropy 8.0.2 writes beyond its memory
        raise InputError(f"{name} is HCOMPRESSed, which crashes readers where it is damaged: unpack it with funpack")
    data = hdu.data
    return data.reshape(data.shape[-3:]) if data.ndim > 3 and np.prod(data.shape[:-3]) == 1 else data


def _mask(hdus: Sequence[Any], image: Any, chosen: list[Any], name: str | Path) -> np.ndarray | None:
    """True where masks or weights of the image say that there is no flux; `None` where there are none."""
    bad = None
    for kind in (_MASKS, _WEIGHTS):
        found = [one for one in hdus if one not in chosen and _has_image(one) and _words(one) & kind]
        hdu = _belonging(found, image, chosen, kind, name)
        if hdu is None:
            continue
        values = _data(hdu, name)
        is_bad = ~np.isfinite(values) | (values == 0) if kind is _WEIGHTS else _bad_bits(hdu, values, hdus, name)
        bad = is_bad if bad is None else bad | is_bad
    return bad


def _belonging(found: list[Any], image: Any, chosen: list[Any], kind: set[str], name: str | Path) -> Any:
    """The mask of an image among those of a file: of its band, of its EXTVER, in its place, or the only one."""
    rest = _words(image) - _IMAGES
    own = [one for one in found if _words(one) - kind - _IMAGES == rest] if rest else []
    shared = [one for one in found if not _words(one) - kind - _IMAGES]
    if len(own) == 1 or not found:
        return own[0] if own else None
    if rest and not shared:
        return None  # masks of other bands
    candidates = own or shared
    by_version = [one for one in candidates if one.ver == image.ver]
    if len(candidates) == 1:
        return candidates[0]
    if len({one.ver for one in candidates}) == len(candidates) and len(by_version) == 1:
        return by_version[0]
    if len(candidates) == len(chosen):
        return candidates[chosen.index(image)]
    raise InputError(f"{name} has {len(candidates)} masks for {len(chosen)} images: name them alike, or remove them")


def _bad_bits(hdu: Any, values: np.ndarray, hdus: Sequence[Any], name: str | Path) -> np.ndarray:
    """Where a mask says that a pixel holds no flux."""
    if values.dtype.kind == "f":
        return ~np.isfinite(values) | (values != 0)
    primary = hdus[0].header
    planes = {key[3:]: header[key] for header in (primary, hdu.header) for key in header if key.startswith("MP_")}
    if planes:
        bits = sum(1 << int(planes[plane]) for plane in _BAD_PLANES if plane in planes)
        return (values.astype(np.int64) & bits) != 0
    if primary.get("TELESCOP") == "JWST":
        return (values.astype(np.int64) & 1) != 0  # DO_NOT_USE; other bits tell what was corrected
    bad = values != 0
    if bad.mean() > 0.5 and values.max() > 1:  # bits such as "belongs to an object"
        raise InputError(
            f"{name} is masked in {bad.mean():.0%} of its pixels by {hdu.name}, whose bits are not known: leave only "
            "bad pixels in that HDU, or remove it"
        )
    return bad


def _masked(pixels: np.ndarray, mask: np.ndarray, name: str | Path) -> np.ndarray:
    if mask.shape[-2:] != pixels.shape[-2:] or (mask.ndim == 3 and len(mask) not in (1, len(pixels))):
        raise InputError(f"{name} has a mask of shape {mask.shape} for an image of {size_text(pixels)}: correct it")
    return np.where(np.broadcast_to(mask, pixels.shape), np.float32(np.nan), pixels)


def _stack(raws: list[RawCutout], chosen: list[Any], hdus: Sequence[Any], name: str | Path) -> RawCutout:
    """Single planes as the bands of one cutout."""
    labels = [one.name or str(list(hdus).index(one)) for one in chosen]
    for label, raw in zip(labels, raws):
        if len(raw.pixels) > 1:
            raise InputError(f"{name} has {len(raw.pixels)} bands in HDU {label}: choose HDUs of one band each")
    bands = tuple(raw.bands[0] if raw.bands else None for raw in raws)
    if not any(bands):
        bands = band_names(Headers(hdus[0].header, {}, str(name)), len(raws)) or bands
    return join_bands(raws, [f"{name}[{label}]" for label in labels], bands)


def join_bands(raws: list[RawCutout], names: Sequence[str | Path], bands: tuple[str | None, ...]) -> RawCutout:
    """
    Single-band cutouts of one object as one cutout.

    Args:
        raws (`list[RawCutout]`), names (`Sequence[str | Path]`): the bands, and what errors call them.
        bands (`tuple[str | None, ...]`): their names.

    Raises:
        [`InputError`]: they differ in size, pixel scale, kind or position, or two are of one band.
    """
    first, first_scale = raws[0], next((raw.pixel_scale for raw in raws if raw.pixel_scale), None)
    for raw, name in zip(raws, names):
        if raw.pixels.shape != first.pixels.shape:
            raise InputError(
                f"{name} is {size_text(raw.pixels)} pixels where {names[0]} is {size_text(first.pixels)}: "
                "give all bands of an object the same size"
            )
        if raw.pixel_scale and abs(raw.pixel_scale / first_scale - 1) > _SCALES_DIFFER:
            raise InputError(
                f"{name} has {raw.pixel_scale:.4g} arcsec pixels where another band has {first_scale:.4g}: "
                "resample the bands of an object to one grid"
            )
        if raw.display != first.display:
            raise InputError(f"{name} holds 8-bit values where {names[0]} does not: give all bands in one form")
        _check_position(raw, first, name, names[0])
    check_distinct(bands, names[0])
    units = {raw.unit for raw in raws if raw.unit}
    if len(units) > 1:
        raise InputError(f"{names[0]} and the other bands are in {', '.join(sorted(units))}: give them in one unit")
    zero_points = tuple(raw.zero_points[0] if raw.zero_points else None for raw in raws)
    return RawCutout(
        np.concatenate([raw.pixels for raw in raws]),
        bands if any(bands) else None,
        zero_points if any(one is not None for one in zero_points) else None,
        first_scale,
        first.display,
        next(iter(units), None),
        first.ra,
        first.dec,
    )


def _check_position(raw: RawCutout, first: RawCutout, name: str | Path, first_name: str | Path) -> None:
    """Refuse bands of different objects, where both state their position."""
    if None in (raw.ra, raw.dec, first.ra, first.dec) or not first.pixel_scale:
        return
    east = ((raw.ra - first.ra + 180) % 360 - 180) * np.cos(np.radians(first.dec))
    offset = 3600 * float(np.hypot(east, raw.dec - first.dec))
    if offset > 3 * first.pixel_scale:
        raise InputError(
            f"{name} is centred {offset:.3g} arcsec from {first_name}: give the bands of one object on one grid"
        )
