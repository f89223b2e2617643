"""
Numpy functions on flux: masked pixels, the curve to display units and back, resampling. Published beside models that
[`LensImageProcessor`] serves, so that nothing of the package may be imported here.
"""

from collections.abc import Sequence

import numpy as np

# Each curve and its inverse.
_CURVES = {
    "asinh": (np.arcsinh, np.sinh),
    "sqrt": (lambda x: np.sign(x) * (np.sqrt(1 + abs(x)) - 1), lambda y: np.sign(y) * ((1 + abs(y)) ** 2 - 1)),
    "linear": (lambda x: x, lambda y: y),
}


def fill_masked(flux: np.ndarray) -> np.ndarray:
    """
    Replace the NaN of each band by the mean of their finite neighbours, from the rim of each hole inwards. Every pixel
    is visited once, so that the time is proportional to their number whatever the shape of the hole.

    Args:
        flux (`np.ndarray` of shape `(..., H, W)`): bands without any finite pixel keep their NaN.

    Returns:
        `np.ndarray` of the same shape; the input itself where nothing is masked.
    """
    masked = np.isnan(flux)
    if not masked.any():
        return flux
    filled = flux.copy()
    for band in zip(*np.nonzero(masked.any(axis=(-2, -1)) & ~masked.all(axis=(-2, -1)))):
        filled[band] = _fill_plane(filled[band])
    return filled


def _fill_plane(plane: np.ndarray) -> np.ndarray:
    """One `(H, W)` band with some finite pixel, filled ring by ring."""
    values = np.pad(plane, 1, constant_values=np.nan)
    is_known = ~np.isnan(values)
    is_outside = np.ones_like(is_known)
    is_outside[1:-1, 1:-1] = False
    width = values.shape[1]
    around = np.array([dy * width + dx for dx in (-1, 0, 1) for dy in (-1, 0, 1)])
    flat, known, closed = values.ravel(), is_known.ravel(), (is_known | is_outside).ravel()
    ring = np.flatnonzero(_dilated(is_known).ravel() & ~closed)
    while len(ring):
        near = ring[:, None] + around
        flat[ring] = _mean(np.where(known[near], flat[near], 0), known[near].sum(axis=1), plane.dtype)
        known[ring] = closed[ring] = True
        ring = np.unique(near[~closed[near]])
    return values[1:-1, 1:-1]


def _dilated(plane: np.ndarray) -> np.ndarray:
    """True in the 3 x 3 pixels around each true one of `(H, W)`, whose border is false."""
    rows = plane.copy()
    rows[1:] |= plane[:-1]
    rows[:-1] |= plane[1:]
    both = rows.copy()
    both[:, 1:] |= rows[:, :-1]
    both[:, :-1] |= rows[:, 1:]
    return both


def _mean(near: np.ndarray, count: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Mean of `(n, 9)` neighbours, column by column; in float64 where the sum of large values overflows."""
    with np.errstate(over="ignore"):
        columns = near.reshape(-1, 3, 3).sum(axis=2)
        total = columns[:, 0] + columns[:, 1] + columns[:, 2]
    total = np.where(np.isfinite(total), total, near.sum(axis=1, dtype=np.float64))
    return (total / count).astype(dtype)


def stretch_flux(
    flux: np.ndarray, kind: str, black: Sequence = (), white: Sequence = (), softening: Sequence = ()
) -> np.ndarray:
    """
    Flux of shape `(..., bands, H, W)` -> float32 display units, per band

    `255 * (f(flux / softening) - f(black / softening)) / (f(white / softening) - f(black / softening))`,

    with f = arcsinh for `"asinh"` (Lupton et al. 2004), sign(x) (sqrt(1 + |x|) - 1) for `"sqrt"`, both clipped to
    [0, 255], and x for `"linear"`, not clipped. `"none"` passes display units through.
    """
    flux = np.asarray(flux, dtype=np.float32)
    if kind == "none":
        return flux
    black, white, softening = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (black, white, softening))
    curve, _ = _CURVES[kind]
    low = curve(black / softening)
    display = (curve(flux / softening) - low) * (255 / (curve(white / softening) - low))
    return display if kind == "linear" else np.clip(display, 0, 255)


def unstretch_flux(
    display: np.ndarray, kind: str, black: Sequence = (), white: Sequence = (), softening: Sequence = ()
) -> np.ndarray:
    """
    The inverse of [`stretch_flux`], `(..., bands, H, W)` float32; what was clipped comes back as black or white.
    """
    if kind == "none":
        return display
    black, white, softening = (np.array(v)[:, None, None] for v in (black, white, softening))
    curve, inverse = _CURVES[kind]
    low, high = curve(black / softening), curve(white / softening)
    return (softening * inverse(low + display / 255 * (high - low))).astype(np.float32)


def is_same_scale(one: float, other: float) -> bool:
    """Whether two pixel scales are so alike, within 1 %, that nothing is resampled."""
    return abs(one / other - 1) <= 0.01


def resample(pixels: np.ndarray, factor: float, is_flux: bool = True) -> np.ndarray:
    """
    Enlarge (factor > 1) or shrink `(bands, H, W)` by exactly this factor about its middle; bilinearly, with a low-pass
    filter when shrinking. The flux of an object stays what it was; display units (`is_flux=False`) keep their level.

    Sides become even, as the crops of models are: the middle of the cutout, where the object is, is then that of the
    crop, whatever the side was. At the edges, up to half a pixel is filled from the last one.
    """
    factor = round(factor, 6)  # pixel scales of a tile and of a cutout of it differ in their last digits
    rows, columns = (_triangles(length, factor) for length in pixels.shape[-2:])
    resampled = rows @ pixels.astype(np.float64) @ columns.T
    return (resampled / factor**2 if is_flux else resampled).astype(np.float32)


def _triangles(length: int, factor: float) -> np.ndarray:
    """Weights `(resampled length, length)`: triangles as wide as the larger of both pixels, as Pillow has them."""
    resampled = max(2, 2 * round(length * factor / 2))
    centres = (np.arange(resampled) + 0.5 - resampled / 2) / factor + length / 2
    distances = np.abs(np.arange(length) + 0.5 - np.clip(centres, 0, length)[:, None])
    weights = np.maximum(0, 1 - distances * min(1, factor))
    return weights / weights.sum(axis=1, keepdims=True)
