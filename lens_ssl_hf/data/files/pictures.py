"""PNG, JPEG, TIFF and PIL images: read with all that they hold, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...errors import InputError
from .bands import PICTURE_BANDS
from .raw import MAX_BANDS, MAX_PIXELS, RawCutout, as_pixels, check_size

_SAVE = "save it as 8-bit RGB or grey, or as .npy or FITS"
_FORMATS = ("PNG", "JPEG", "TIFF")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339  # tags of TIFF


def read_picture(path: Path) -> RawCutout:
    """
    A picture file; see [`from_image`].

    Raises:
        [`InputError`]: it is damaged, or not of the kinds that [`from_image`] takes.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if _bits(image, path) > 8 and len(image.getbands()) > 1:  # which Pillow cuts down to 8
                raise InputError(f"{path} has {_bits(image, path)} bits per colour, of which 8 would be read: {_SAVE}")
            if image.format == "TIFF":
                _check_tiff(image, path)
            return from_image(image, path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} cannot be read as a picture (multi-band float TIFFs cannot): save it again, or as .npy or FITS"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has more than {MAX_PIXELS} pixels: cut the object out of it") from error


def _check_tiff(image: Any, path: Path) -> None:
    """Refuse what Pillow 12 reads wrongly."""
    tags, bits = image.tag_v2, _bits(image, path)
    if tags.get(_ORIENTATION, 1) > 4:  # it mixes up the rows
        raise InputError(f"{path} is turned by its orientation tag: save it upright")
    if tags.get(_PHOTOMETRIC, 1) == 0 and bits > 8:  # it turns only 8-bit values round
        raise InputError(f"{path} is a negative (white is 0) of {bits} bits: save it with black as 0")
    kind = tags.get(_SAMPLE_FORMAT, (1,))[0]
    if (kind, bits) in ((2, 8), (1, 32)):  # it takes signed for unsigned values and the reverse
        raise InputError(f"{path} holds {'signed' if kind == 2 else 'unsigned'} {bits}-bit values: save it as float")


def from_image(image: Any, name: str | Path) -> RawCutout:
    """
    A PIL image: 8-bit grey or colour as display units (colour as the bands red, green, blue), 16-bit and float grey as
    flux, pages of grey as bands; turned as its EXIF orientation says, as the pipelines of transformers do it.

    Raises:
        [`InputError`]: it holds what would be lost: transparency, several pages in colour or of different sizes, or
            inks and colour spaces that are not red, green and blue.
    """
    check_size((len(image.getbands()), *image.size), name)
    pages = _pages(image, name)
    planes = [_array(ImageOps.exif_transpose(page), name) for page in pages]
    if len(planes) > 1 and (planes[0].ndim > 2 or len({(one.shape, one.dtype) for one in planes}) > 1):
        raise InputError(
            f"{name} has {len(planes)} pages that are not grey bands of one size: save one cutout per file"
        )
    array = np.moveaxis(planes[0], 2, 0) if planes[0].ndim == 3 else np.stack(planes)
    bands = PICTURE_BANDS if planes[0].ndim == 3 else None
    return RawCutout(as_pixels(array, name), bands, display=array.dtype == np.uint8)


def _pages(image: Any, name: str | Path) -> list[Any]:
    """The pages of a TIFF; an animation, or a JPEG with several pictures, is refused."""
    number = 1
    while number <= MAX_BANDS:
        try:
            image.seek(number)
        except EOFError:
            break
        number += 1
    image.seek(0)
    if number == 1:
        image.load()
        return [image]
    if image.format != "TIFF" or number > MAX_BANDS:
        count = f"more than {MAX_BANDS}" if number > MAX_BANDS else number
        raise InputError(f"{name} has {count} pages or frames: save one cutout per file")
    pages = []
    for page in range(number):
        image.seek(page)
        check_size((number, len(image.getbands()), *image.size), name)
        pages.append(image.copy())
    return pages


def _array(image: Any, name: str | Path) -> np.ndarray:
    """The values of one page, `(H, W)` or `(H, W, 3)`."""
    if image.has_transparency_data:
        if image.mode.startswith("I"):  # Pillow would cut it down to 8 bits
            raise InputError(f"{name} is a deep picture with transparency: save it without transparency")
        image = _opaque(image, name)
    if image.mode == "P":
        image = image.convert("RGB")
        array = np.asarray(image)
        if (array == array[..., :1]).all():  # a palette of greys is a grey picture
            return array[..., 0]
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB", "I", "F") and not image.mode.startswith("I;16"):
        raise InputError(f"{name} is a picture of mode {image.mode}: {_SAVE}")
    return np.asarray(image)


def _opaque(image: Any, name: str | Path) -> Any:
    """The picture without its alpha band, which must say nothing."""
    with_alpha = image.convert("LA" if image.mode in ("L", "LA", "La", "1") else "RGBA")
    if with_alpha.getchannel("A").getextrema() != (255, 255):
        raise InputError(f"{name} has transparent pixels: save it without transparency")
    return with_alpha.convert(with_alpha.mode[:-1])


def _bits(image: Any, path: Path) -> int:
    """Bits per sample in the file, which Pillow's modes do not tell of colour pictures."""
    if image.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(25)[24]  # IHDR comes first
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return 8
