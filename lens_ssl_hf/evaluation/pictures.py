"""Cutouts as pictures, and what stands beside them; needs NumPy alone, since a Space has no matplotlib."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from ..data.files.bands import WAVELENGTH_ORDER, band_name


def colour_image(pixels: np.ndarray, bands: Sequence[str] | None = None) -> np.ndarray:
    """
    Display units as a picture, in the colours of [`colour_bands`]; one band grey, and of two the mean green.

    Args:
        pixels (`np.ndarray` of shape `(bands, H, W)`): display units.
        bands (`Sequence[str]`, *optional*): their names.

    Returns:
        `np.ndarray` of shape `(H, W, 3)`: uint8.
    """
    image = np.clip(np.nan_to_num(pixels[colour_bands(bands, len(pixels))]), 0, 255)
    if len(pixels) == 2:
        image[1] = (image[0] + image[2]) / 2
    return np.moveaxis(image, 0, -1).round().astype(np.uint8)


def colour_bands(bands: Sequence[str] | None, count: int) -> list[int]:
    """
    Which of `count` bands are red, green and blue: i, r and g where they are there, else the reddest, the middle and
    the bluest; where a wavelength is not known, the first, the middle and the last.
    """
    names, order = [band_name(name) for name in bands or ()], list(range(count))
    if len(names) == count and set(names) <= set(WAVELENGTH_ORDER):
        order.sort(key=lambda i: -WAVELENGTH_ORDER.index(names[i]))
        if {"g", "r", "i"} <= set(names):
            order = [names.index(name) for name in "irg"]
    return [order[0], order[len(order) // 2], order[-1]]


def format_score(value: float) -> str:
    """Three digits, but 0.9996 does not become 1.000."""
    return "> 0.999" if 0.9995 <= value < 1 else "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_id(text: str, length: int) -> str:
    """What is too long loses its folders, then its suffix, then its middle: survey and number stand at the ends."""
    name = PurePath(text).name
    for shorter in (text, name, re.sub(r"\.(fits?|fits\.[a-z0-9]+|np[yz]|png|jpe?g|tiff?)$", "", name)):
        if len(shorter) <= length:
            return shorter
    half = (length - 1) // 2
    return f"{shorter[:half]}…{shorter[half + 1 - length :]}"
