"""Any cutout file -> the display units that a published model reads."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.display import to_display
from ..data.files.bands import band_order
from ..data.files.raw import RawCutout, check_valid, flat_band
from ..data.files.readers import read_raw, read_raw_bands
from ..data.flux import is_same_scale
from ..errors import InputError

logger = logging.getLogger(__name__)

MIDDLE = 512  # pixels a side that are kept of a larger cutout
FACTS = {"bands": "bands", "pixel scale": "pixel_scale", "zero point": "zero_point"}  # as config.cutouts has them
_told: set[tuple[str, str]] = set()  # what this process has said of silent files


def read_cutout(path: str | Path | Sequence[str | Path], like: Any, hdu: int | str | None = None) -> np.ndarray:
    """
    Read a cutout as a model expects it: its bands in order, at its pixel scale and zero point where the file states
    its own, masked pixels filled, and with the stretch of its training data. 8-bit pictures are display units already.
    What a file of flux does not state is taken to be the model's, which is said once.

    ```python
    >>> classifier = transformers.pipeline("image-classification", model)
    >>> classifier(read_cutout("cutout.fits", like=model))
    ```

    Args:
        path (`str`, `Path` or list of them):
            A `.npy`, `.npz`, FITS, PNG, JPEG or TIFF file, or one single-band file for each of the model's bands: in
            any order where their headers or names tell the bands, else in the model's order.
        like (model, configuration, `str` or `Path`):
            The model, its configuration, its folder or its Hub id.
        hdu (`int` or `str`, *optional*):
            FITS only: see [`~lens_ssl_hf.data.files.readers.read_raw`].

    Returns:
        `np.ndarray` of shape `(bands, H, W)`: float32 display units, for `transformers.pipeline` or the processor; of
        a cutout larger than `MIDDLE` pixels its middle.

    Raises:
        [`InputError`]: unreadable file, wrong bands, no valid pixel, smaller than the model's crop, values that cannot
            be flux in the model's units, or a model that does not say how its cutouts were made.
    """
    from ..models.loading import check_cutouts  # torch, which those who read cutouts for pictures do not need

    config = model_config(like)
    cutouts = config.get("cutouts")
    if not cutouts:
        raise InputError(
            f"{_name(like)} does not say how its cutouts were made (config.cutouts): give display units to it"
        )
    check_cutouts(cutouts, config.get("num_channels"), _name(like))
    if isinstance(path, str | Path):
        raw, name = read_raw(path, hdu), path
    else:
        raw, name = read_raw_bands(list(path), hdu=hdu), path[0]
    display = as_display(raw, cutouts, name, config.get("num_channels"), config.get("image_size"))
    tell_of_silence(raw, cutouts, name)
    return display


def as_display(
    raw: RawCutout, cutouts: Mapping[str, Any], name: str | Path, num_channels: int | None, min_size: int | None
) -> np.ndarray:
    """
    [`~lens_ssl_hf.data.display.to_display`], with the model's number of bands and its crop checked. Of a large
    cutout only the middle is worked on, so that what lies around it costs no time.
    """
    side = seen_side(raw, cutouts, min_size or 0)
    if side:
        seen, middle = _middle(raw.pixels, side), f"the middle of {name}, which the model sees,"
        check_valid(seen, middle, raw.bands)
        if not raw.display and cutouts["stretch"]["kind"] != "none":  # a picture may be black in a colour
            wanted = cutouts.get("bands") or ()
            order = band_order(raw.bands or [None] * len(seen), list(wanted), name) if wanted else range(len(seen))
            if problem := flat_band(seen[list(order)], middle, wanted or raw.bands):
                raise InputError(problem)
    display = to_display(replace(raw, pixels=_middle(raw.pixels, max(MIDDLE, 2 * side))), cutouts, name)
    if num_channels and len(display) != num_channels:
        raise InputError(f"{name} has {len(display)} bands, the model needs {num_channels}: give it these")
    height, width = display.shape[1:]
    if min_size and min(height, width) < min_size:
        raise InputError(
            f"{name} is {height} x {width} pixels, smaller than the model's {min_size}: cut it out larger"
        )
    return display


def facts_of(raw: RawCutout) -> set[str]:
    """What a cutout states of itself."""
    facts = {
        "bands": bool(raw.bands) and all(raw.bands),
        "pixel scale": bool(raw.pixel_scale),
        "zero point": any(point is not None for point in raw.zero_points or ()),
    }
    return {name for name, is_stated in facts.items() if is_stated}


def unstated(raw: RawCutout, cutouts: Mapping[str, Any]) -> dict[str, str]:
    """
    The facts that a cutout does not state while the model has them, and what they are taken to be, as text. In display
    units, bands and zero point are not asked for.
    """
    asked = ["pixel scale"] if raw.display else list(FACTS)
    values = {fact: cutouts.get(FACTS[fact]) for fact in asked if fact not in facts_of(raw)}
    return {
        fact: " ".join(value) if fact == "bands" else f"{value:.4g}"
        for fact, value in values.items()
        if value is not None
    }


def tell_of_silence(raw: RawCutout, cutouts: Mapping[str, Any], name: str | Path, known: Collection[str] = ()) -> None:
    """
    Log what a file of flux does not state, and what it is taken to be; once per process for each fact and value.

    Args:
        raw ([`RawCutout`]): what was read of it.
        cutouts (`Mapping`): `config.cutouts` of the model.
        name (`str` or `Path`): how to call the file.
        known (`Collection[str]`, *optional*): facts that the caller has given.
    """
    for fact, value in () if raw.display else unstated(raw, cutouts).items():
        if fact not in known and (fact, value) not in _told:
            _told.add((fact, value))
            logger.warning(
                f"{name} does not state its {fact}: taken as {value}, as in all files that do not; if that is wrong, "
                f"state it in a FITS header, or give {FACTS[fact]} to lens-ssl score"
            )


def seen_side(raw: RawCutout, cutouts: Mapping[str, Any], min_size: int) -> int:
    """Side of what the model sees, in pixels of the cutout."""
    own, wanted = raw.pixel_scale, cutouts.get("pixel_scale")
    if not own or not wanted or is_same_scale(own, wanted):
        return min_size
    return math.ceil(min_size * wanted / own)


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle of `(bands, H, W)`, all of it where it is smaller; its own middle is that of the whole."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[1:])
    return pixels[:, top : pixels.shape[1] - top, left : pixels.shape[2] - left]


def model_config(like: Any) -> dict[str, Any]:
    """The configuration of a model, configuration object, folder or Hub id, as a dictionary."""
    if hasattr(like, "config"):
        like = like.config
    if hasattr(like, "to_dict"):
        return like.to_dict()
    from ..models.loading import read_config

    return read_config(like).to_dict()


def _name(like: Any) -> str:
    return str(like) if isinstance(like, str | Path) else type(like).__name__
