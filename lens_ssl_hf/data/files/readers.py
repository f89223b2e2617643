"""Any cutout, in a file or in memory -> [`RawCutout`]: .npy, .npz, FITS, PNG, JPEG, TIFF; arrays, tensors, images."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .bands import band_name, bands_in_paths, is_known_band
from .fits_files import from_hdus, join_bands, read_fits
from .headers import Headers, linear_flux, raw_of
from .numpy_files import read_numpy
from .pictures import from_image, read_picture
from .raw import RawCutout, as_pixels, check_file, check_size, check_valid, readable

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (".npy", ".npz", *FITS_SUFFIXES, *PICTURE_SUFFIXES)


def is_cutout_file(path: str | Path) -> bool:
    """Whether the name ends like a file that [`read_raw`] reads."""
    return str(path).lower().endswith(SUFFIXES)


def read_raw(path: str | Path, hdu: int | str | None = None) -> RawCutout:
    """
    Read one cutout.

    Args:
        path (`str` or `Path`): a file whose name ends in one of `SUFFIXES`.
        hdu (`int` or `str`, *optional*):
            FITS only: number or name of the HDU, by default the one image of flux, or one image for each band.
            Several, separated by commas (`"G,R,I"` or `"1,2,3"`), are stacked.

    Raises:
        [`InputError`]: the file is missing, damaged, not numeric, larger than `MAX_PIXELS` in all bands together, or
            holds no image of 1 to 10 bands, or one band without a valid pixel.
    """
    path = Path(path)
    check_file(path)
    name = path.name.lower()
    if not is_cutout_file(name):
        raise InputError(f"{path} is not a cutout file: convert it to one of {', '.join(SUFFIXES)}")
    kind = (
        "FITS" if name.endswith(FITS_SUFFIXES) else "a picture" if name.endswith(PICTURE_SUFFIXES) else "a numpy array"
    )
    with readable(path, kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the libraries warn, only what ends in an error matters
        if kind == "FITS":
            raw = read_fits(path, hdu)
        else:
            raw = read_picture(path) if kind == "a picture" else read_numpy(path)
    check_valid(raw.pixels, path, raw.bands)
    return raw


def read_raw_bands(
    paths: Sequence[str | Path], bands: Sequence[str] | None = None, hdu: int | str | None = None
) -> RawCutout:
    """
    Stack single-band files of one object; see [`read_raw`]. Where the headers name no band, the names of the files do
    if they tell them apart (`g.fits`, `r.fits`); `bands` names them otherwise.

    Raises:
        [`InputError`]: a file has several bands, states another band than `bands`, or they do not fit together.
    """
    return join_files([read_raw(path, hdu) for path in paths], paths, bands)


def join_files(raws: list[RawCutout], paths: Sequence[str | Path], bands: Sequence[str] | None = None) -> RawCutout:
    """What was read of single-band files as one cutout; the arguments and errors are those of [`read_raw_bands`]."""
    if not raws:
        raise InputError("no file is given: give one for each band")
    for path, one in zip(paths, raws):
        if len(one.pixels) != 1:
            raise InputError(f"{path} has {len(one.pixels)} bands where one was expected: give one file per band")
    stated = [one.bands[0] if one.bands else None for one in raws]
    if bands is None:
        return join_bands(raws, paths, tuple(_with_names_of_files(stated, paths)))
    for path, band, wanted in zip(paths, stated, bands):
        if band and is_known_band(band) and is_known_band(wanted) and band_name(band) != band_name(wanted):
            raise InputError(f"{path} states the band {band} where {wanted} is expected: correct bands or the header")
    return join_bands(raws, paths, tuple(bands))


def _with_names_of_files(stated: list[str | None], paths: Sequence[str | Path]) -> list[str | None]:
    """The stated bands, and those in the names of the files for the others, where the two do not contradict."""
    names = bands_in_paths(paths)
    if names is None or any(band and band_name(band) != band_name(name) for band, name in zip(stated, names)):
        return stated
    return [band or name for band, name in zip(stated, names)]


def raw_from_array(item: Any, name: str | Path, wanted_bands: int | None = None) -> RawCutout:
    """
    A cutout in memory: numpy array, masked array, tensor, PIL image, astropy `Quantity`, `Masked`, `NDData`,
    `CCDData`, `Cutout2D`, HDU or `HDUList`. Units, masks, headers and WCS that it carries are applied as those of a
    file.

    Args:
        item: `(bands, H, W)`, `(H, W)`, or `(H, W, bands)` where that is unambiguous.
        name (`str` or `Path`): how errors call it.
        wanted_bands (`int`, *optional*): number of bands that decides where `(H, W, bands)` is ambiguous.

    Raises:
        [`InputError`]: it is not numeric, has another shape, too many pixels, or a band without a valid pixel.
    """
    if hasattr(item, "convert") and hasattr(item, "getbands"):  # PIL
        raw = from_image(item, name)
    elif isinstance(item, list) and hasattr(item, "fileinfo"):  # HDUList
        raw = from_hdus(item, name)
    elif isinstance(item, list | tuple) and item and all(map(_is_plane, item)):  # with units and masks of their own
        names = [f"{name}[{i}]" for i in range(len(item))]
        raws = [raw_from_array(one, label) for one, label in zip(item, names)]
        raw = join_bands(raws, names, tuple(one.bands[0] if one.bands else None for one in raws))
    else:
        raw = _from_values(item, name, wanted_bands)
    check_valid(raw.pixels, name, raw.bands)
    return raw


def _is_plane(item: Any) -> bool:
    shape = getattr(item, "shape", None)
    return shape is not None and len(shape) == 2


def _from_values(item: Any, name: str | Path, wanted_bands: int | None) -> RawCutout:
    header, wcs = getattr(item, "header", getattr(item, "meta", None)), getattr(item, "wcs", None)
    is_holder = any(hasattr(item, one) for one in ("header", "meta", "wcs")) and not isinstance(item, np.ndarray)
    values = item.data if is_holder else item  # of an HDU, CCDData, NDData, Cutout2D
    mask, unit = (getattr(item, one, getattr(values, one, None)) for one in ("mask", "unit"))
    values = getattr(values, "unmasked", values)  # astropy's Masked
    array = _as_array(getattr(values, "value", values), name)
    if mask is not None and mask is not np.ma.nomask:
        array = np.ma.masked_array(array, np.broadcast_to(np.asarray(mask, bool), array.shape))
    check_size(array.shape, name)
    if header is None and wcs is None and unit is None:
        return RawCutout(as_pixels(array, name, wanted_bands), display=array.dtype == np.uint8)
    if header is not None and not hasattr(header, "cards"):  # a dictionary
        header = {str(key).upper(): value for key, value in header.items()}
    headers = Headers(header if header is not None else {}, {}, str(name))
    pixels = as_pixels(linear_flux(array, headers), name, wanted_bands)
    return raw_of(pixels, array.dtype, headers, unit, wcs)


def _as_array(values: Any, name: str | Path) -> np.ndarray:
    """A numpy array, masked where the values are."""
    if hasattr(values, "columns") or hasattr(values, "dims"):  # pandas, xarray
        raise InputError(f"{name} is a {type(values).__name__}: give its values as an array (bands, height, width)")
    if isinstance(values, np.ma.MaskedArray):
        return values
    try:
        if hasattr(values, "detach"):  # a tensor; numpy does not know all of its types
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() else values.numpy()
        array = np.asarray(values)
    except Exception as error:  # ragged lists, arrays on a GPU, ...
        raise InputError(f"{name} cannot be made a numpy array ({type(values).__name__}): give one") from error
    if array.dtype == object:
        raise InputError(f"{name} is a {type(values).__name__}, not an image: give an array (bands, height, width)")
    return array
