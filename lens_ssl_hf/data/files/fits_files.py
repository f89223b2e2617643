"""FITS: which images of a file are the cutout, what masks them, and what their headers say."""

import contextlib
import gzip
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from ...errors import InputError
from .bands import IMAGE_WORDS, band_of_extension, check_distinct
from .headers import Headers, band_names, linear_flux, raw_of
from .masks import has_image, kind_of, mask_of, read_data, words_of
from .raw import MAX_BANDS, MAX_PIXELS, RawCutout, as_pixels, size_text

MAX_BYTES = 4 * MAX_PIXELS  # of a .fits.gz when unpacked
MAX_HDUS = 200
_SCALES_DIFFER = 0.01  # relative


def read_fits(path: Path, hdu: int | str | None = None) -> RawCutout:
    """
    The cutout in a FITS file; see [`~lens_ssl_hf.data.files.readers.read_raw`].

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
    chosen = images_of(hdus, name, hdu)
    return stack([_as_raw(hdus, one, chosen, name) for one in chosen], chosen, hdus, name)


def images_of(hdus: Sequence[Any], name: str | Path, hdu: int | str | None = None) -> list[Any]:
    """The HDUs that are the cutout; `hdu` and the errors are those of [`from_hdus`]."""
    return _flux_images(hdus, name) if hdu is None else _chosen_images(hdus, hdu, name)


def _flux_images(hdus: Sequence[Any], name: str | Path) -> list[Any]:
    """The image with flux, or the images of several bands."""
    images = [one for one in hdus if has_image(one)]
    flux = [one for one in images if kind_of(one) == "flux"]
    if not flux:
        found = f"only {_listed(hdus)}" if images else "no image at all (truncated?)"
        raise InputError(f"{name} has no image HDU of flux ({found}): choose one with hdu, or leave it out")
    if len(flux) > 1 and not _are_bands(flux, hdus, name):
        main = [one for one in flux if words_of(one) <= IMAGE_WORDS]
        if len(main) == 1 and not any(band_of_extension(one.name) for one in flux):
            return main  # with something unknown beside it
        raise InputError(
            f"{name} holds {len(flux)} images that are not named as bands: choose hdu among {_listed(hdus)}"
        )
    return flux


def _are_bands(images: list[Any], hdus: Sequence[Any], name: str | Path) -> bool:
    """Whether each image is the plane of another band."""
    if len(images) > MAX_BANDS or any(_planes(one) > 1 for one in images):
        return False
    names = [band_names(headers_of(hdus, one, name), 1) for one in images]
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
        if not found or not all(map(has_image, found)):
            available = _listed(hdus)
            hint = f"choose hdu among {available}" if available else "it holds no image at all, leave it out"
            raise InputError(f"{name} has no image in HDU {key}: {hint}")
        chosen += found
    return chosen


def _listed(hdus: Sequence[Any]) -> str:
    return ", ".join(f"{i}{f' ({one.name})' if one.name else ''}" for i, one in enumerate(hdus) if has_image(one))


def _planes(hdu: Any) -> int:
    return int(np.prod(hdu.shape[:-2]))


def headers_of(hdus: Sequence[Any], hdu: Any, name: str | Path) -> Headers:
    """Those of an image in a file."""
    label = f"{name}[{hdu.name or list(hdus).index(hdu)}]" if len(hdus) > 1 else str(name)
    return Headers(hdu.header, hdus[0].header, label)


def _as_raw(hdus: Sequence[Any], hdu: Any, chosen: list[Any], name: str | Path) -> RawCutout:
    headers, data = headers_of(hdus, hdu, name), read_data(hdu, name)
    pixels = as_pixels(linear_flux(data, headers), name)
    raw = raw_of(pixels, data.dtype, headers)
    mask = mask_of(hdus, hdu, chosen, name)
    if mask is not None:
        pixels[np.broadcast_to(mask, pixels.shape)] = np.nan
    return raw


def stack(raws: list[RawCutout], chosen: list[Any], hdus: Sequence[Any], name: str | Path) -> RawCutout:
    """What was read of the `chosen` HDUs as one cutout; several are one band each."""
    if len(raws) == 1:
        return raws[0]
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
