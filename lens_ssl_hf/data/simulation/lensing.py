"""The source and the lens: deflections, and the image that they make."""

import math

import numpy as np

from .light import sersic


def sie_deflection(
    x: np.ndarray, y: np.ndarray, einstein_radius: float, axis_ratio: float = 1.0, angle: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Deflection of a singular isothermal ellipsoid at the origin, in closed form (Kormann, Schneider & Bartelmann 1994).

    The convergence is `einstein_radius * sqrt(q) / (2 * sqrt(q^2 x^2 + y^2))` along the major axis x, so that the
    critical curve encloses the area of a circle of `einstein_radius` whatever the axis ratio q.

    Args:
        x, y (`np.ndarray`): positions in arcsec, any shape; the result has their dtype.
        einstein_radius (`float`): in arcsec.
        axis_ratio (`float`, *optional*, defaults to `1.0`): minor over major axis, in (0, 1]; 1 is the SIS.
        angle (`float`, *optional*, defaults to `0.0`): of the major axis, in radians from x towards y.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: deflection along x and y in arcsec; the source is at `(x, y)` minus it.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    eccentricity = math.sqrt(max(1 - axis_ratio**2, 0.0))
    psi = np.sqrt(axis_ratio**2 * u**2 + v**2) + 1e-12
    if eccentricity < 1e-3:  # the limit of both terms below; off by less than 1e-6
        a_u, a_v = einstein_radius * u / psi, einstein_radius * v / psi
    else:
        scale = einstein_radius * math.sqrt(axis_ratio) / eccentricity
        a_u = scale * np.arctan(eccentricity * u / psi)
        a_v = scale * np.arctanh(eccentricity * v / psi)
    return cos * a_u - sin * a_v, sin * a_u + cos * a_v


def shear_deflection(x: np.ndarray, y: np.ndarray, shear: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Deflection, in arcsec at `x`, `y` (arcsec), of an external `shear` that stretches along `angle` (radians)."""
    g1, g2 = shear * math.cos(2 * angle), shear * math.sin(2 * angle)
    return g1 * x + g2 * y, g2 * x - g1 * y


def draw_source(rng: np.random.Generator, einstein_radius: float, varied: bool = False) -> list[tuple[float, ...]]:
    """
    A clumpy star-forming galaxy as Sersic components `(fraction, x, y, r_eff, n, axis ratio, angle)`, arcsec: a disc
    of 0.07-0.35" and two to five clumps of 20-60 % of the light; approximate, after Collett (2015) and Livermore
    et al. (2012). It lies near the caustic, where the magnification of flux-limited samples puts it. A `varied` source
    may lie further out, and be a smooth or compact galaxy.
    """
    offset = (0.6 if varied else 0.35) * einstein_radius * math.sqrt(rng.uniform())
    direction = rng.uniform(0, 2 * math.pi)
    x, y = offset * math.cos(direction), offset * math.sin(direction)
    smooth = varied and rng.uniform() < 0.3
    r_eff = min(max(rng.lognormal(math.log(0.15), 0.6 if varied else 0.35), 0.07), 0.6 if varied else 0.35)
    count = rng.integers(2, 6)
    weights = (0.0 if smooth else rng.uniform(0.2, 0.6)) * rng.dirichlet(np.ones(count))
    index = rng.uniform(0.6, 3.0) if varied else 1.0
    parts = [(1 - weights.sum(), x, y, r_eff, index, rng.uniform(0.35, 1.0), rng.uniform(0, math.pi))]
    for weight in weights:
        dx, dy = rng.normal(0, 0.8 * r_eff, size=2)
        parts.append((weight, x + dx, y + dy, rng.uniform(0.03, 0.08), 1.0, 1.0, 0.0))
    return parts


def lens_image(
    x: np.ndarray, y: np.ndarray, lens: tuple[float, float, float, float, float], parts: list[tuple[float, ...]]
) -> np.ndarray:
    """Light per arcsec^2 of a source of unit flux, seen at `x`, `y` through `(radius, q, angle, shear, angle)`."""
    radius, q, angle, shear, shear_angle = lens
    sie = sie_deflection(x, y, radius, q, angle)
    external = shear_deflection(x, y, shear, shear_angle)
    u, v = x - sie[0] - external[0], y - sie[1] - external[1]
    return sum(part[0] * sersic(u - part[1], v - part[2], *part[3:]) for part in parts)
