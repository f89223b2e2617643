"""What the telescope and the pipeline make of a scene: PSF, noise and masked pixels."""

import math

import numpy as np

from .light import grid, unit
from .survey import MARGIN, SimulationConfig, flux_of

_GAIN_ZERO_POINT = 35.9  # magnitude of one electron in a coadd of 10 minutes with HSC (29.0 per second)


def draw_seeing(rng: np.random.Generator, config: SimulationConfig) -> np.ndarray:
    """FWHM (3,) in arcsec: log-normal around the survey's medians, half of the scatter common to the bands."""
    worst = 0.95 * config.max_einstein_radius / config.min_radius_over_seeing
    while True:
        seeing = np.array(config.seeing) * np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.08, size=3))
        if seeing.max() < worst:
            return seeing


def moffat(fwhm: float, beta: float, e1: float, e2: float, step: float) -> np.ndarray:
    """Moffat (1969) kernel of unit sum, (33, 33), slightly elliptical (`e1`, `e2`); `fwhm` and `step` in arcsec."""
    x, y = grid(2 * MARGIN + 1, step)
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    r2 = (1 - e1) * x * x + (1 + e1) * y * y - 2 * e2 * x * y
    return unit((1 + r2 / np.float32(alpha**2)) ** np.float32(-beta))


def transfer_of(kernels: np.ndarray, side: int) -> np.ndarray:
    """Fourier transform of centred kernels (..., 33, 33) on a grid of `side` pixels."""
    padded = np.zeros((*kernels.shape[:-2], side, side), dtype=np.float32)
    padded[..., : kernels.shape[-2], : kernels.shape[-1]] = kernels
    return np.fft.rfft2(np.roll(padded, (-MARGIN, -MARGIN), axis=(-2, -1)))


def convolve(scene: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    """Convolve scenes (..., n, n) and cut off the margin, in which all that wraps around stays."""
    side = scene.shape[-1]
    image = np.fft.irfft2(np.fft.rfft2(scene) * transfer, s=(side, side))
    return image[..., MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.float32, copy=False)


def _correlated(noise: np.ndarray, correlation: float) -> np.ndarray:
    """White noise (..., n + 2, n + 2) as warping leaves it, (..., n, n): each pixel has a share of its neighbours'."""
    near = noise[..., 1:-1, :-2] + noise[..., 1:-1, 2:] + noise[..., :-2, 1:-1] + noise[..., 2:, 1:-1]
    return (noise[..., 1:-1, 1:-1] + np.float32(correlation) * near) / np.float32(math.sqrt(1 + 4 * correlation**2))


def noise_of_fit(template: np.ndarray, correlation: float) -> float:
    """
    Standard deviation of the multiple of `template` (n, n) that a least-squares fit finds in sky noise of unit
    variance. The fit weights the pixels with the template, so each white pixel enters with all that it spreads to.
    """
    spread = _correlated(np.pad(template, 2), correlation)
    return math.sqrt((spread**2).sum(dtype=np.float64)) / float((template**2).sum(dtype=np.float64))


def draw_sky_noise(rng: np.random.Generator, config: SimulationConfig, correlation: float) -> np.ndarray:
    """Standard deviation (3,) of the sky per pixel, from the 5 sigma depth of a Gaussian PSF of the median seeing."""
    noise_of_psf = np.array([noise_of_fit(_gaussian(fwhm, config.pixel_scale), correlation) for fwhm in config.seeing])
    return flux_of(np.array(config.depth) + rng.normal(0, 0.1, size=3), config) / 5 / noise_of_psf


def _gaussian(fwhm: float, step: float) -> np.ndarray:
    """Round Gaussian of unit sum out to 5 sigma or more; `fwhm` and `step` in arcsec."""
    sigma = fwhm / 2.3548
    x, y = grid(2 * math.ceil(5 * sigma / step) + 1, step)
    return unit(np.exp(-0.5 * (x * x + y * y) / np.float32(sigma**2)))


def add_noise(
    image: np.ndarray, sky: np.ndarray, correlation: float, rng: np.random.Generator, config: SimulationConfig
) -> np.ndarray:
    """Add sky and Poisson noise, correlated between neighbouring pixels as warping leaves it, and a residual sky."""
    side = image.shape[-1]
    noise = _correlated(rng.standard_normal((3, side + 2, side + 2), dtype=np.float32), correlation)
    gain = 10 ** (0.4 * (_GAIN_ZERO_POINT - config.zero_point))  # electrons per unit of flux
    # Warping averages neighbours: the pixels scatter less than their electrons, sums over many pixels as these.
    gain *= (1 + 4 * correlation) ** 2 / (1 + 4 * correlation**2)
    variance = (sky**2).astype(np.float32)[:, None, None] + np.maximum(image, 0) / np.float32(gain)
    residual = (rng.normal(0, 0.1, size=3) * sky).astype(np.float32)[:, None, None]
    return image + residual + noise * np.sqrt(variance)


def mask_pixels(image: np.ndarray, rng: np.random.Generator, config: SimulationConfig) -> None:
    """Set bad columns, cosmic-ray tracks or saturated spots to NaN, in place, in `masked_fraction` of the images."""
    if rng.uniform() >= config.masked_fraction:
        return
    bands = slice(None) if rng.uniform() < 0.5 else slice(*(rng.integers(0, 3) + np.array([0, 1])))
    side = image.shape[-1]
    row, column = rng.integers(0, side, size=2)
    kind = rng.integers(0, 3)
    if kind == 0:  # bad columns
        image[bands, :, column : column + rng.integers(1, 3)] = np.nan
    elif kind == 1:  # cosmic ray
        step, angle = np.arange(rng.integers(4, 15)), rng.uniform(0, math.pi)
        rows = np.clip(row + np.rint(step * math.sin(angle)).astype(int), 0, side - 1)
        columns = np.clip(column + np.rint(step * math.cos(angle)).astype(int), 0, side - 1)
        image[bands, rows, columns] = np.nan
    else:  # saturated spot
        pixels = np.arange(side)
        image[bands, (pixels[:, None] - row) ** 2 + (pixels - column) ** 2 <= rng.uniform(1, 3.5) ** 2] = np.nan
