"""Masks and weights beside an image of a FITS file: which HDUs they are, and where they say that there is no flux."""

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from ...errors import InputError
from .bands import IMAGE_WORDS
from .raw import check_size

# Words in the name of an HDU, or of an array in a .npz, that tell what it holds instead of flux.
_KINDS = {
    "mask": r"(BAD)?(PIX(EL)?)?MASKS?|MASKBITS|MSK|DQ|FLAGS?|FLG|BPM|BADPIX\w*|QUALITY|BAD",  # not 0: bad
    "weight": r"W(EIGH)?TS?(MAP)?|WHT|WGT|IVAR|INVVAR\w*|INVERSE|GOOD\w*|VALID\w*",  # 0: bad
    "other": r"VAR\w*|STAT|ERR\w*|SIGMA\w*|RMS\w*|NOISE\w*|UNC\w*|STD\w*|\w*PSF\w*|KERNEL|MODEL\w*|RES(ID\w*)?"
    r"|BACKGROUND|BA?C?KGD?|SKY\w*|CTX|CON|EXP\w*|NEXP\w*|NIMG|SEG\w*|AREA|DEPTH\w*|COVER\w*|CHI2?|THUMB\w*"
    r"|PREVIEW|RGB|OBJECTS?|SOURCES?|CAT|DETECT\w*",
}
# Planes of a mask of the LSST pipelines (HSC, Rubin) whose pixels hold no flux; most others, such as DETECTED, do.
_BAD_PLANES = ("BAD", "SAT", "CR", "NO_DATA", "UNMASKEDNAN")
_JWST_BITS = 1  # DO_NOT_USE; others tell what was corrected
_LEGACY_BITS = 0xC0FC  # SATUR_* and ALLMASK_* of MASKBITS; others, such as GALAXY, tell what is there


def words_of(hdu: Any) -> set[str]:
    """The words of an HDU's name and of the keywords that tell its kind, in upper case."""
    kinds = (hdu.name, hdu.header.get("IMAGETYP", ""), hdu.header.get("IMTYPE", ""), hdu.header.get("EXTTYPE", ""))
    return {word for text in kinds for word in re.split(r"[^A-Z0-9]+", str(text).upper()) if word}


def kind_of_words(words: set[str]) -> str:
    """`"flux"`, `"mask"` (not 0: bad), `"weight"` (0: bad) or `"other"`; a mask of objects is other."""
    for kind in ("other", "weight", "mask"):
        if any(re.fullmatch(_KINDS[kind], word) for word in words):
            return kind
    return "flux"


def kind_of(hdu: Any) -> str:
    """See [`kind_of_words`]."""
    return kind_of_words(words_of(hdu))


def has_image(hdu: Any) -> bool:
    """Whether an HDU holds an image of two or more dimensions."""
    return bool(hdu.is_image) and hdu.header.get("NAXIS", 0) >= 2 and 0 not in hdu.shape


def read_data(hdu: Any, name: str | Path) -> np.ndarray:
    """The values of an HDU, `(H, W)` or `(bands, H, W)`, once its header is known to be harmless."""
    check_size(hdu.shape, name)
    refuse_hcompress(hdu, name)
    if hasattr(hdu, "compressed_data"):
        _check_tiles(hdu, name)
    data = hdu.data
    return data.reshape(data.shape[-3:]) if data.ndim > 3 and np.prod(data.shape[:-3]) == 1 else data


def refuse_hcompress(hdu: Any, name: str | Path) -> None:
    """Raise [`InputError`] where an HDU is compressed in the way that astropy 8.0.2 writes beyond its memory for."""
    if getattr(hdu, "compression_type", None) == "HCOMPRESS_1":
        raise InputError(f"{name} is HCOMPRESSed, which crashes readers where it is damaged: unpack it with funpack")


def _check_tiles(hdu: Any, name: str | Path) -> None:
    """Refuse gzipped tiles that unpack to more than there are pixels: memory would be taken for them."""
    place, columns = hdu.fileinfo(), {"GZIP_COMPRESSED_DATA"}  # of tiles that another method does not take
    if hdu.compression_type.startswith("GZIP"):
        columns.add("COMPRESSED_DATA")
    columns &= set(hdu.compressed_data.names)
    if place is None or not columns:  # made in memory
        return
    most, packed = 8 * math.prod(hdu.shape), 0  # bytes
    with fits.open(place["file"].name, memmap=False, disable_image_compression=True) as tables:
        table = next(one for one in tables if one.fileinfo()["hdrLoc"] == place["hdrLoc"])
        for column in columns:
            for tile in map(bytes, table.data[column]):
                packed += len(tile)
                is_gzip = tile.startswith(b"\x1f\x8b")
                is_more = is_gzip and len(zlib.decompressobj(31).decompress(tile, most + 1)) > most
                if is_more or packed > place["datSpan"]:  # the same bytes for many tiles
                    raise InputError(f"{name} has tiles that unpack to more than its pixels: save or copy it again")


@dataclass(frozen=True)
class Mask:
    """
    What says where an image holds no flux.

    Args:
        hdu: its HDU.
        is_weight (`bool`): 0 is bad, not what differs from 0.
        bits (`int`, *optional*): those that tell bad pixels, where they are known.
    """

    hdu: Any
    is_weight: bool
    bits: int | None

    def bad(self, values: np.ndarray, name: str | Path) -> np.ndarray:
        """True where these values of it, all or some of `(bands, H, W)` or `(H, W)`, say that there is no flux."""
        if self.is_weight:
            return ~(values > 0)
        if self.bits is None:
            return where_bad(values, self.hdu.name, name)
        if values.dtype.kind != "f":
            return (values.astype(np.int64) & self.bits) != 0
        # Stored as float, or integers with BLANK, which astropy reads as float: bits all the same.
        has_bits = (np.trunc(values) == values) & (np.abs(values) < 2**63)
        return ~has_bits | ((np.where(has_bits, values, 0).astype(np.int64) & self.bits) != 0)


def masks_of(hdus: Sequence[Any], image: Any, chosen: list[Any], name: str | Path) -> list[Mask]:
    """The masks and weights of an image among the HDUs of its file."""
    masks = []
    for kind in ("mask", "weight"):
        found = [one for one in hdus if one not in chosen and has_image(one) and kind_of(one) == kind]
        if (hdu := _belonging(found, image, chosen, kind, name)) is not None:
            check_fits(hdu.shape, image.shape, name)
            masks.append(Mask(hdu, kind == "weight", _bad_bits(hdu, hdus)))
    return masks


def mask_of(hdus: Sequence[Any], image: Any, chosen: list[Any], name: str | Path) -> np.ndarray | None:
    """True where masks or weights of the image say that there is no flux; `None` where there are none."""
    bad = None
    for mask in masks_of(hdus, image, chosen, name):
        is_bad = mask.bad(read_data(mask.hdu, name), name)
        bad = is_bad if bad is None else bad | is_bad
    return bad


def _belonging(found: list[Any], image: Any, chosen: list[Any], kind: str, name: str | Path) -> Any:
    """The mask of an image among those of a file: of its band, of its EXTVER, in its place, or the only one."""

    def rest(hdu: Any) -> set[str]:
        return {word for word in words_of(hdu) - IMAGE_WORDS if not re.fullmatch(_KINDS[kind], word)}

    own = [one for one in found if rest(one) == rest(image)] if rest(image) else []
    shared = [one for one in found if not rest(one)]
    if len(own) == 1 or not found:
        return own[0] if own else None
    candidates = own or shared
    if not candidates:
        return None  # masks of other bands
    by_version = [one for one in candidates if one.ver == image.ver]
    if len(candidates) == 1:
        return candidates[0]
    if len({one.ver for one in candidates}) == len(candidates) and len(by_version) == 1:
        return by_version[0]
    if len(candidates) == len(chosen):
        return candidates[chosen.index(image)]
    raise InputError(f"{name} has {len(candidates)} masks for {len(chosen)} images: name them alike, or remove them")


def _bad_bits(hdu: Any, hdus: Sequence[Any]) -> int | None:
    """The bits of a mask that say that a pixel holds no flux, where they are known."""
    primary = hdus[0].header
    planes = {key[3:]: header[key] for header in (primary, hdu.header) for key in header if key.startswith("MP_")}
    if planes:
        return sum(1 << min(int(planes[plane]), 62) for plane in _BAD_PLANES if plane in planes)
    if primary.get("TELESCOP") == "JWST":
        return _JWST_BITS
    return _LEGACY_BITS if "MASKBITS" in words_of(hdu) else None


def where_bad(values: np.ndarray, mask_name: str, name: str | Path) -> np.ndarray:
    """
    Where a mask is not 0; NaN (BLANK) counts as that.

    Raises:
        [`InputError`]: that may mean "belongs to an object" (HSC without its MP_ keywords) or "is good".
    """
    bad = values != 0
    height, width = bad.shape[-2:]
    centre = bad[..., height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 2]
    is_most, is_centre = bad.mean() > 0.5, centre.all()
    if (is_most or is_centre) if (values > 1).any() else (is_most and is_centre):
        raise InputError(
            f"{name} is masked in {bad.mean():.0%} of its pixels{', its centre too,' if is_centre else ''} by "
            f"{mask_name}, whose bits are not known: leave only bad pixels in it, or remove it"
        )
    return bad


def check_fits(shape: Sequence[int], image_shape: Sequence[int], name: str | Path) -> None:
    """Raise [`InputError`] where a mask is not that of `(bands, H, W)` or `(H, W)`."""
    if tuple(shape[-2:]) != tuple(image_shape[-2:]) or (len(shape) == 3 and shape[0] not in (1, *image_shape[:-2])):
        raise InputError(
            f"{name} has a mask of shape {tuple(shape)} for an image of {image_shape[-2]} x {image_shape[-1]}: "
            "correct it"
        )
