"""Raw cutouts -> display units (float32, 0 to 255): bands, zero point, pixel scale, masked pixels, stretch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .files import raw as limits
from .files.bands import band_order
from .files.raw import RawCutout, check_valid
from .flux import fill_masked, is_same_scale, resample
from .stretch import Stretch


def standardise(
    raw: RawCutout,
    name: str | Path,
    bands: list[str] | None = None,
    pixel_scale: float | None = None,
    zero_point: float | None = None,
) -> np.ndarray:
    """
    Bring a raw cutout to the bands, pixel scale and zero point that are asked for, as far as it states its own, and
    fill its masked pixels.

    Args:
        raw ([`RawCutout`]): what a reader returned.
        name (`str` or `Path`): how to call it in errors.
        bands (`list[str]`, *optional*):
            Wanted bands; chosen by name (see [`~files.bands.band_order`]), or all in order where the file
            names none.
        pixel_scale (`float`, *optional*): wanted arcsec per pixel; resampled if it differs by more than 1 %.
        zero_point (`float`, *optional*): wanted zero point.

    Returns:
        `np.ndarray` of shape `(bands, H, W)`: finite float32.

    Raises:
        [`InputError`]: a band is missing or has no valid pixel, or only some of the bands of flux state a zero point.
    """
    pixels, zero_points = raw.pixels, raw.zero_points
    if bands:
        order = band_order(raw.bands or [None] * len(pixels), list(bands), name)
        pixels = pixels[order]
        zero_points = tuple(zero_points[i] for i in order) if zero_points else None
    check_valid(pixels, name, tuple(bands) if bands else raw.bands)
    is_flux = not raw.display  # a zero point beside display units is that of the flux before their stretch
    if is_flux and zero_point is not None and zero_points and any(one is not None for one in zero_points):
        if None in zero_points:
            raise InputError(f"{name} states the zero point of some bands only: state it for all, or for none")
        gain = 10 ** (0.4 * (zero_point - np.array(zero_points)))
        pixels = pixels * gain[:, None, None].astype(np.float32)
    if np.isnan(pixels).any():
        pixels = fill_masked(pixels)
    if pixel_scale and raw.pixel_scale and not is_same_scale(raw.pixel_scale, pixel_scale):
        factor = raw.pixel_scale / pixel_scale
        if pixels[0].size * factor**2 > limits.MAX_PIXELS:
            raise InputError(
                f"{name} has pixels of {raw.pixel_scale:.4g} arcsec, too large to be resampled to {pixel_scale:.4g}: "
                "give a larger pixel_scale"
            )
        pixels = resample(pixels, factor, is_flux=is_flux)
    return pixels


def to_display(raw: RawCutout, cutouts: Mapping[str, Any], name: str | Path) -> np.ndarray:
    """
    A raw cutout as the display units that a model was trained on.

    Args:
        raw ([`RawCutout`]): what a reader returned; 8-bit pictures are display units already.
        cutouts (`Mapping`): the model's `config.cutouts`, with `bands`, `pixel_scale`, `zero_point` and `stretch`.
        name (`str` or `Path`): how to call the cutout in errors.

    Returns:
        `np.ndarray` of shape `(bands, H, W)`: float32 display units.

    Raises:
        [`InputError`]: wrong bands, no valid pixel, or values that cannot be flux as the model expects it.
    """
    zero_point = cutouts.get("zero_point")
    is_silent = not (raw.display or any(point is not None for point in raw.zero_points or ()))
    if zero_point is not None and raw.unit and is_silent:
        raise InputError(
            f"{name} is in {raw.unit} and states no AB zero point, where the model needs flux of zero point "
            f"{zero_point:.4g}: add MAGZERO to its header, or convert it"
        )
    pixels = standardise(raw, name, cutouts.get("bands"), cutouts.get("pixel_scale"), zero_point)
    if raw.display:
        return pixels
    stretch = Stretch.from_dict(cutouts["stretch"])
    try:
        display = stretch.apply(pixels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if stretch.kind != "none":
        _check_plausible(display, stretch, name)
    return display


def _check_plausible(display: np.ndarray, stretch: Stretch, name: str | Path) -> None:
    """Refuse flux in other units: it comes out of the stretch without contrast, or all black and white."""
    saturated = float(((display <= 0) | (display >= 255)).mean())
    if saturated > 0.9:
        problem = f"{saturated:.0%} of its pixels are black or white"
    elif np.ptp(display, axis=(-2, -1)).max() < 2:
        problem = "it has no contrast"
    else:
        return
    raise InputError(
        f"{name}: after the model's {stretch.kind} stretch {problem}, so it is not flux in the model's units: "
        "convert the flux to the model's zero point, or give display units (0 to 255)"
    )


def center_crop(pixels: Any, size: int) -> Any:
    """
    The central `size x size` pixels of a tensor or an array `(..., H, W)`, with the same rounding as
    `ViTImageProcessor`'s centre crop.
    """
    height, width = pixels.shape[-2:]
    if min(height, width) < size:
        raise InputError(
            f"cutouts of {height}x{width} pixels are smaller than crop_size {size}: lower crop_size or give larger"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[..., top : top + size, left : left + size]
