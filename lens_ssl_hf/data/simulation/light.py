"""Light on a grid of pixels: profiles of galaxies, and what is made of them."""

import math

import numpy as np


def grid(side: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of `side` pixels of `step` arcsec around the middle: x (1, side) and y (side, 1), float32."""
    axis = ((np.arange(side) - (side - 1) / 2) * step).astype(np.float32)
    return axis[None, :], axis[:, None]


def sersic(x, y, r_eff: float, n: float, q: float, angle: float, core: float = 0.0) -> np.ndarray:
    """Sersic profile of unit flux per arcsec^2; b_n after Ciotti & Bertin (1999). `core` (arcsec) softens the cusp."""
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    b = 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25515 * n**2)
    total = 2 * math.pi * n * r_eff**2 * b ** (-2 * n) * math.gamma(2 * n)
    log_r2 = np.log((q * u * u + v * v / q + (core**2 + 1e-12)) / r_eff**2)
    return np.exp(-b * np.exp(log_r2 * (0.5 / n))) / total


def unit(image: np.ndarray) -> np.ndarray:
    return image / image.sum(dtype=np.float64).astype(np.float32)


def unit_inside(image: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Unit flux, faded out beyond `radius` in arcsec, where arcs would not reach either."""
    return unit(image / (1 + ((x * x + y * y) / np.float32(0.9 * radius) ** 2) ** 4))


def polar(x, y, q: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Radius (arcsec) and azimuth in the plane of a disc of apparent axis ratio `q`."""
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, (cos * y - sin * x) / q
    return np.sqrt(u * u + v * v), np.arctan2(v, u)


def add_knots(image: np.ndarray, rng: np.random.Generator, fraction: float, count: int) -> np.ndarray:
    """Move `fraction` of the light of `image` (unit flux) into unresolved knots (H II regions) that follow it."""
    cumulative = np.cumsum(image.ravel(), dtype=np.float64)
    where = np.searchsorted(cumulative / cumulative[-1], rng.uniform(size=count))
    knots = np.bincount(where, weights=rng.dirichlet(np.ones(count)), minlength=image.size)
    return (1 - fraction) * image + fraction * knots.reshape(image.shape).astype(np.float32)


def layers(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Sum of fluxes (3,) times templates (n, n): (3, n, n)."""
    return sum(np.asarray(flux, dtype=np.float32)[:, None, None] * template for flux, template in pairs)
