"""
Simulated three-band (g, r, i) cutouts of strong lenses and of galaxies that are mistaken for them.

Needs numpy alone. The file follows the light: populations, lensing, light profiles, PSF, noise, and the cutout.

How the two classes are kept alike: every cutout, of either class, starts from a lens system that passes the same
visibility cuts. A lens shows it. A non-lens keeps its galaxy and the light of its arcs, but that blue light is painted
as spiral arms, a ring, companions, tidal tails or a smooth galaxy, and is a little redder since it belongs to the
galaxy. So shape tells the classes apart; brightness, overall colour, seeing and depth hardly do.

Scores on these cutouts validate software. They do not predict how a model does on the sky.
"""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from lens_ssl_hf.errors import InputError, interrupted_later
from lens_ssl_hf.processes import obey_the_main_process

__all__ = [
    "BANDS",
    "SIMULATOR_VERSION",
    "SimulationConfig",
    "shear_deflection",
    "sie_deflection",
    "simulate_cutout",
    "simulate_cutouts",
]

SIMULATOR_VERSION = "3"  # raise it whenever the pixels change: it is part of a dataset's fingerprint
BANDS = ("g", "r", "i")

_MARGIN = 16  # pixels simulated beyond each edge, and half-width of the PSF kernel: what wraps around stays in it
_MAX_ARC_RADIUS = 1.9  # arcsec; arcs, and what is painted in place of them, lie inside the central 32 pixels
_MAX_EINSTEIN_RADIUS = 1.6  # arcsec
_CHUNK = 16  # cutouts that travel together between processes
_MAX_CORRELATION = 0.35  # noise that a pixel takes of each neighbour, relative to its own
_MAX_DRAWS = 20_000  # systems tried for one cutout before the visibility cuts are called impossible


@dataclass(frozen=True)
class SimulationConfig:
    """
    What the simulated survey looks like and which lenses are visible in it. The defaults are those of the Wide layer
    of the Hyper Suprime-Cam survey (HSC; Aihara et al. 2019, 2022).

    Args:
        size (`int`, *optional*, defaults to `64`): side of a cutout in pixels, even and at least 32.
        pixel_scale (`float`, *optional*, defaults to `0.168`): arcsec per pixel.
        zero_point (`float`, *optional*, defaults to `27.0`): AB magnitude of one unit of flux.
        depth (`tuple[float, float, float]`, *optional*, defaults to `(26.5, 26.2, 26.0)`): 5 sigma point-source
            magnitudes in g, r, i; they set the sky noise, with 0.1 mag of scatter. The flux is that of a least-squares
            fit of a round Gaussian PSF of the median seeing, after a local sky is subtracted, and its noise takes the
            correlation of the pixels into account. The simulated PSFs are Moffat profiles: their wings cost a fit of
            them some 0.27 mag more.
        seeing (`tuple[float, float, float]`, *optional*, defaults to `(0.77, 0.72, 0.60)`): median FWHM of the PSF in
            g, r, i, in arcsec.
        min_arc_snr (`float`, *optional*, defaults to `80.0`): least signal-to-noise ratio of the arcs in g: of the
            flux that a least-squares fit of the convolved arcs finds, in correlated sky noise.
        min_arc_contrast (`float`, *optional*, defaults to `0.65`): least share of the arcs in the g light at their
            place (mean over the arcs' light), the rest being the galaxy's.
        min_radius_over_seeing (`float`, *optional*, defaults to `1.2`): least Einstein radius in units of the worst of
            the three seeings.
        masked_fraction (`float`, *optional*, defaults to `0.15`): share of the cutouts with masked (NaN) pixels.

    Raises:
        InputError: for values that no cutout could be made with.
    """

    size: int = 64
    pixel_scale: float = 0.168
    zero_point: float = 27.0
    depth: tuple[float, float, float] = (26.5, 26.2, 26.0)
    seeing: tuple[float, float, float] = (0.77, 0.72, 0.60)
    min_arc_snr: float = 80.0
    min_arc_contrast: float = 0.65
    min_radius_over_seeing: float = 1.2
    masked_fraction: float = 0.15

    def __post_init__(self):
        if self.size < 32 or self.size % 2:
            raise InputError(f"size is {self.size}; give an even number of at least 32 pixels")
        if self.pixel_scale <= 0 or min(self.seeing) <= 0:
            raise InputError("pixel_scale and seeing must be positive, in arcsec")
        if self.min_arc_contrast >= 1:
            raise InputError(f"min_arc_contrast is {self.min_arc_contrast}; give a share below 1")
        if self.min_radius_over_seeing * max(self.seeing) > 0.9 * _MAX_EINSTEIN_RADIUS:
            ratio = self.min_radius_over_seeing
            raise InputError(f"min_radius_over_seeing {ratio} puts arcs outside the central 32 pixels; lower it")


# ---- populations ---------------------------------------------------------------------------------

# Flat LCDM, H0 = 70 km/s/Mpc, Omega_m = 0.3: comoving distance in Mpc on a grid of redshifts.
_Z_GRID = np.linspace(0.0, 4.0, 2001)
_INVERSE_E = 1.0 / np.sqrt(0.3 * (1 + _Z_GRID) ** 3 + 0.7)
_STEPS = (_INVERSE_E[1:] + _INVERSE_E[:-1]) / 2 * np.diff(_Z_GRID)
_COMOVING = 299792.458 / 70.0 * np.concatenate([[0.0], np.cumsum(_STEPS)])

# Colours of a passive galaxy against redshift (Fukugita et al. 1995; Eisenstein et al. 2001), and the correction of
# its r magnitude for bandpass and passive evolution; approximate, after those papers.
_RED_Z = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
_RED_GR = np.array([0.90, 1.12, 1.36, 1.56, 1.64, 1.66, 1.66, 1.64, 1.60])
_RED_RI = np.array([0.38, 0.44, 0.50, 0.57, 0.70, 0.88, 1.02, 1.12, 1.18])
_RED_KE = np.array([0.02, 0.05, 0.12, 0.22, 0.38, 0.55, 0.70, 0.85, 1.00])

_REDDENING = np.array([3.303, 2.285, 1.698])  # A_band / E(B-V), R_V = 3.1 (Schlafly & Finkbeiner 2011, table 6)
_GAIN_ZERO_POINT = 35.9  # magnitude of one electron in a coadd of 10 minutes with HSC (29.0 per second)
_FIELDS = ((30, 38, -6, -2), (129, 141, -2, 5), (175, 225, -1, 4), (331, 345, -1, 6), (217, 247, 42, 44))  # HSC Wide


@dataclass
class _Galaxy:
    """An early-type galaxy: fluxes (3,) at the zero point, half-light radius in arcsec, angles in radians."""

    flux: np.ndarray
    r_eff: float
    sersic_index: float
    axis_ratio: float
    angle: float
    x: float
    y: float


@dataclass
class _System:
    """A visible lens: its galaxy, Einstein radius in arcsec and arcs, (3, n, n) flux before the PSF."""

    galaxy: _Galaxy
    einstein_radius: float
    arcs: np.ndarray
    arc_snr: float
    blue: np.ndarray  # fluxes (3,) of the young stars that a non-lens shows in place of the arcs


def _distance(z: float) -> float:
    return float(np.interp(z, _Z_GRID, _COMOVING))


def _flux(magnitudes, config: SimulationConfig) -> np.ndarray:
    return 10 ** (0.4 * (config.zero_point - np.asarray(magnitudes, dtype=float)))


def _draw_galaxy(rng: np.random.Generator, config: SimulationConfig, seeing: float) -> tuple[_Galaxy, float]:
    """
    Draw a massive early-type galaxy and its Einstein radius in arcsec, until that is large enough for the seeing and
    fits the cutout.

    Velocity dispersions follow Choi et al. (2007), weighted with the lensing cross-section (proportional to sigma^4)
    as in LensPop (Collett 2015) and with sigma^6 more, a choice of ours, since wide lenses are the ones found from the
    ground. Approximate, after: redshifts of SL2S and SuGOHI (Sonnenfeld et al. 2013, 2018), Faber-Jackson relation of
    Bernardi et al. (2003), size-luminosity relation of Hyde & Bernardi (2009).
    """
    for _ in range(_MAX_DRAWS):
        sigma = 161.0 * rng.gamma((2.32 + 10) / 2.67) ** (1 / 2.67)  # km/s
        z_lens = min(max(rng.normal(0.55, 0.15), 0.2), 0.9)
        z_source = min(max(rng.normal(1.8, 0.5), z_lens + 0.4), 3.5)
        d_lens, d_source = _distance(z_lens), _distance(z_source)
        radius = 4 * math.pi * (sigma / 299792.458) ** 2 * (1 - d_lens / d_source) * 206264.8
        if config.min_radius_over_seeing * seeing < radius < _MAX_EINSTEIN_RADIUS:
            break
    else:
        raise InputError("no lens passes the cuts; lower min_radius_over_seeing or the seeing of the SimulationConfig")
    m_abs = -21.15 - 9.78 * (math.log10(sigma) - 2.203) + rng.normal(0, 0.35)
    r_kpc = 10 ** (4.72 + 0.63 * m_abs + 0.02 * m_abs**2 + rng.normal(0, 0.12))
    r_mag = m_abs + 5 * math.log10(d_lens * (1 + z_lens) * 1e5) + np.interp(z_lens, _RED_Z, _RED_KE)
    g_r = np.interp(z_lens, _RED_Z, _RED_GR) + rng.normal(0, 0.05)
    r_i = np.interp(z_lens, _RED_Z, _RED_RI) + rng.normal(0, 0.03)
    galaxy = _Galaxy(
        flux=_flux([r_mag + g_r, r_mag, r_mag - r_i], config),
        r_eff=r_kpc / (d_lens / (1 + z_lens) * 1e3 / 206264.8),
        sersic_index=min(max(rng.normal(4.2, 0.9), 2.5), 6.5),
        axis_ratio=min(max(rng.normal(0.78, 0.11), 0.45), 0.98),
        angle=rng.uniform(0, math.pi),
        x=rng.normal(0, 0.05),
        y=rng.normal(0, 0.05),
    )
    return galaxy, radius


def _draw_blue_colour(rng: np.random.Generator) -> np.ndarray:
    """Fluxes in g, r, i relative to g of a blue star-forming galaxy; approximate, after the sources of SL2S."""
    g_r = rng.normal(0.15, 0.15)
    r_i = rng.normal(0.10, 0.10)
    return 10 ** (0.4 * np.array([0.0, g_r, g_r + r_i]))


# ---- lensing -------------------------------------------------------------------------------------


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


def _draw_source(rng: np.random.Generator, einstein_radius: float) -> list[tuple[float, ...]]:
    """
    A clumpy star-forming galaxy as Sersic components `(fraction, x, y, r_eff, n, axis ratio, angle)`, arcsec: a disc
    of 0.07-0.35" and two to five clumps of 20-60 % of the light; approximate, after Collett (2015) and Livermore
    et al. (2012). It lies near the caustic, where the magnification of flux-limited samples puts it.
    """
    offset = 0.35 * einstein_radius * math.sqrt(rng.uniform())
    direction = rng.uniform(0, 2 * math.pi)
    x, y = offset * math.cos(direction), offset * math.sin(direction)
    r_eff = min(max(rng.lognormal(math.log(0.15), 0.35), 0.07), 0.35)
    count = rng.integers(2, 6)
    weights = rng.uniform(0.2, 0.6) * rng.dirichlet(np.ones(count))
    parts = [(1 - weights.sum(), x, y, r_eff, 1.0, rng.uniform(0.35, 1.0), rng.uniform(0, math.pi))]
    for weight in weights:
        dx, dy = rng.normal(0, 0.8 * r_eff, size=2)
        parts.append((weight, x + dx, y + dy, rng.uniform(0.03, 0.08), 1.0, 1.0, 0.0))
    return parts


def _lens_image(
    x: np.ndarray, y: np.ndarray, lens: tuple[float, float, float, float, float], parts: list[tuple[float, ...]]
) -> np.ndarray:
    """Light per arcsec^2 of a source of unit flux, seen at `x`, `y` through `(radius, q, angle, shear, angle)`."""
    radius, q, angle, shear, shear_angle = lens
    sie = sie_deflection(x, y, radius, q, angle)
    external = shear_deflection(x, y, shear, shear_angle)
    u, v = x - sie[0] - external[0], y - sie[1] - external[1]
    return sum(part[0] * _sersic(u - part[1], v - part[2], *part[3:]) for part in parts)


# ---- light profiles ------------------------------------------------------------------------------


def _grid(side: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of `side` pixels of `step` arcsec around the middle: x (1, side) and y (side, 1), float32."""
    axis = ((np.arange(side) - (side - 1) / 2) * step).astype(np.float32)
    return axis[None, :], axis[:, None]


def _sersic(x, y, r_eff: float, n: float, q: float, angle: float, core: float = 0.0) -> np.ndarray:
    """Sersic profile of unit flux per arcsec^2; b_n after Ciotti & Bertin (1999). `core` (arcsec) softens the cusp."""
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    b = 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25515 * n**2)
    total = 2 * math.pi * n * r_eff**2 * b ** (-2 * n) * math.gamma(2 * n)
    log_r2 = np.log((q * u * u + v * v / q + (core**2 + 1e-12)) / r_eff**2)
    return np.exp(-b * np.exp(log_r2 * (0.5 / n))) / total


def _unit(image: np.ndarray) -> np.ndarray:
    return image / image.sum(dtype=np.float64).astype(np.float32)


def _unit_inside(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit flux, faded out where arcs would not reach either."""
    return _unit(image / (1 + ((x * x + y * y) / np.float32(0.9 * _MAX_ARC_RADIUS) ** 2) ** 4))


def _polar(x, y, q: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Radius (arcsec) and azimuth in the plane of a disc of apparent axis ratio `q`."""
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, (cos * y - sin * x) / q
    return np.sqrt(u * u + v * v), np.arctan2(v, u)


def _add_knots(image: np.ndarray, rng: np.random.Generator, fraction: float, count: int) -> np.ndarray:
    """Move `fraction` of the light of `image` (unit flux) into unresolved knots (H II regions) that follow it."""
    cumulative = np.cumsum(image.ravel(), dtype=np.float64)
    where = np.searchsorted(cumulative / cumulative[-1], rng.uniform(size=count))
    knots = np.bincount(where, weights=rng.dirichlet(np.ones(count)), minlength=image.size)
    return (1 - fraction) * image + fraction * knots.reshape(image.shape).astype(np.float32)


def _render_galaxy(galaxy: _Galaxy, x, y, config: SimulationConfig) -> np.ndarray:
    profile = _sersic(
        x - galaxy.x,
        y - galaxy.y,
        galaxy.r_eff,
        galaxy.sersic_index,
        galaxy.axis_ratio,
        galaxy.angle,
        0.3 * config.pixel_scale,
    )
    return profile * np.float32(config.pixel_scale**2)


def _layers(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Sum of fluxes (3,) times templates (n, n): (3, n, n)."""
    return sum(np.asarray(flux, dtype=np.float32)[:, None, None] * template for flux, template in pairs)


def _paint_elliptical(system: _System, rng, x, y, config) -> np.ndarray:
    """An early-type galaxy with a smooth, faint disc of young stars."""
    galaxy = system.galaxy
    r, _ = _polar(x - galaxy.x, y - galaxy.y, galaxy.axis_ratio, galaxy.angle)
    disc = _unit_inside(np.exp(-r / np.float32(system.einstein_radius * rng.uniform(0.6, 1.1))), x, y)
    return _layers((galaxy.flux, _render_galaxy(galaxy, x, y, config)), (rng.uniform(0.7, 1.1) * system.blue, disc))


def _paint_spiral(system: _System, rng, x, y, config) -> np.ndarray:
    """A bulge with its stellar halo, an old disc and two to four logarithmic arms with H II regions."""
    galaxy, scale = system.galaxy, system.einstein_radius * np.float32(rng.uniform(0.4, 0.68))
    r, phi = _polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.55, 1.0), rng.uniform(0, math.pi))
    arms = rng.choice([2, 2, 2, 3, 4])
    pitch = np.float32(math.tan(math.radians(rng.uniform(15, 30))) * rng.choice([-1, 1]))
    phase = phi - np.log(r / scale + 0.05) / pitch + np.float32(rng.uniform(0, 2 * math.pi))
    contrast = np.exp(np.float32(rng.uniform(2.0, 4.0)) * (np.cos(arms * phase) - 1))
    envelope = np.exp(-r / scale) * (1 - np.exp(-((r / (0.7 * scale)) ** 2)))
    blue = _unit_inside(envelope * contrast, x, y)
    blue = _add_knots(blue, rng, rng.uniform(0.1, 0.3), rng.integers(10, 30))
    spheroid = _render_galaxy(galaxy, x, y, config)
    moved = np.float32(rng.uniform(0.5, 0.9)) * np.exp(-((r / np.float32(1.4)) ** 4)) * spheroid
    old = spheroid - moved + np.float32(rng.uniform(0.4, 0.9)) * moved.sum() * _unit_inside(np.exp(-r / scale), x, y)
    return _layers((rng.uniform(0.9, 1.8) * system.blue, blue), (galaxy.flux, old))


def _paint_ring(system: _System, rng, x, y, config) -> np.ndarray:
    """A face-on star-forming ring around an early-type galaxy (Hoag-type, resonance and collisional rings)."""
    galaxy, radius = system.galaxy, min(system.einstein_radius * rng.uniform(0.85, 1.4), 1.6)
    r, phi = _polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.8, 1.0), rng.uniform(0, math.pi))
    width = radius * rng.uniform(0.2, 0.35)
    lopsided = 1 + rng.uniform(0.0, 0.6) * np.cos(phi - rng.uniform(0, 2 * math.pi))
    ring = _unit_inside(np.exp(-0.5 * ((r - np.float32(radius)) / np.float32(width)) ** 2) * lopsided, x, y)
    disc = _unit_inside(np.exp(-r / np.float32(radius)), x, y)
    share = rng.uniform(0.0, 0.4)
    ring = _add_knots((1 - share) * ring + share * disc, rng, rng.uniform(0.1, 0.4), rng.integers(5, 20))
    return _layers((system.blue, ring), (galaxy.flux, _render_galaxy(galaxy, x, y, config)))


def _paint_companions(system: _System, rng, x, y, config) -> np.ndarray:
    """One to three blue galaxies beside it, seen edge-on and turned more or less tangentially."""
    galaxy = system.galaxy
    count = rng.choice([1, 2, 2, 3])
    azimuth = rng.uniform(0, 2 * math.pi) + np.concatenate([[0.0], np.cumsum(rng.uniform(0.7, 1.7, size=count - 1))])
    light = 0
    for share, phi in zip(rng.dirichlet(np.full(count, 4.0)), azimuth):
        radius = min(system.einstein_radius * rng.uniform(0.8, 1.7), 1.5)
        tilt = phi + math.pi / 2 + rng.normal(0, 0.5)
        u, v = x - radius * math.cos(phi), y - radius * math.sin(phi)
        light = light + share * _sersic(u, v, rng.uniform(0.3, 0.6), 1.0, rng.uniform(0.2, 0.5), tilt, 0.05)
    blue = _add_knots(_unit_inside(light, x, y), rng, rng.uniform(0.0, 0.4), rng.integers(2, 8))
    return _layers((system.blue, blue), (galaxy.flux, _render_galaxy(galaxy, x, y, config)))


def _paint_merger(system: _System, rng, x, y, config) -> np.ndarray:
    """Two early-type nuclei and one or two blue tidal tails that wind out of them."""
    galaxy, radius = system.galaxy, system.einstein_radius
    share, phi0 = rng.uniform(0.55, 0.9), rng.uniform(0, 2 * math.pi)
    separation = min(radius * rng.uniform(0.4, 0.8), 1.0)
    u, v = x - separation * math.cos(phi0), y - separation * math.sin(phi0)
    second = _sersic(
        u, v, galaxy.r_eff * rng.uniform(0.4, 0.9), 3.0, rng.uniform(0.5, 1.0), rng.uniform(0, math.pi), 0.05
    ) * np.float32(config.pixel_scale**2)
    r, phi = _polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.7, 1.0), rng.uniform(0, math.pi))
    handedness, winding = rng.choice([-1, 1]), rng.uniform(0.1, 0.35)
    tails = 0
    for start, strength in zip((phi0, phi0 + math.pi), (1.0, rng.uniform(0, 1))):
        along = np.mod(handedness * (phi - np.float32(start)), np.float32(2 * math.pi))
        spine = radius * np.float32(rng.uniform(0.7, 1.0)) * np.exp(np.float32(winding) * along)
        tails = tails + strength * np.exp(
            -0.5 * ((r - spine) / np.float32(0.18 * radius)) ** 2 - along / np.float32(rng.uniform(0.8, 2.0))
        )
    blue = _add_knots(_unit_inside(tails, x, y), rng, rng.uniform(0.1, 0.4), rng.integers(4, 12))
    first = _render_galaxy(galaxy, x, y, config)
    return _layers((system.blue, blue), (share * galaxy.flux, first), ((1 - share) * galaxy.flux, second))


def _paint_lens(system: _System, rng, x, y, config) -> np.ndarray:
    return _layers((system.galaxy.flux, _render_galaxy(system.galaxy, x, y, config))) + system.arcs


_NONLENSES: dict[str, tuple[float, Callable]] = {  # subclass: share of the non-lenses, how it is painted
    "elliptical": (0.12, _paint_elliptical),
    "spiral": (0.24, _paint_spiral),
    "ring": (0.22, _paint_ring),
    "companions": (0.22, _paint_companions),
    "merger": (0.20, _paint_merger),
}


def _paint_neighbours(rng: np.random.Generator, x, y, config: SimulationConfig) -> np.ndarray:
    """Field galaxies beside the lens (number counts rising as 10^(0.3 m)) and now and then a star; for every class."""
    half = (x.shape[1] / 2) * config.pixel_scale
    light = np.zeros((3, y.shape[0], x.shape[1]), dtype=np.float32)
    for _ in range(rng.poisson(2.0 * (half / 8.0) ** 2)):
        r_mag = 25.5 + math.log10(1 - rng.uniform() * (1 - 10 ** (-0.3 * 6.0))) / 0.3
        colour = np.array([rng.normal(0.6, 0.4), 0.0, -rng.normal(0.35, 0.2)])
        r_eff = min(max(rng.lognormal(math.log(0.45) - 0.12 * (r_mag - 23.0), 0.4), 0.1), 1.2)
        dx, dy = rng.uniform(-half, half, size=2)
        if math.hypot(dx, dy) < _MAX_ARC_RADIUS:  # samples are cleaned of blends
            continue
        shape = _sersic(
            x - dx, y - dy, r_eff, rng.uniform(0.8, 2.5), rng.uniform(0.3, 1.0), rng.uniform(0, math.pi), 0.05
        )
        light += _layers((_flux(r_mag + colour, config) * config.pixel_scale**2, shape))
    for _ in range(rng.poisson(0.15)):
        g_r, r_mag = rng.uniform(0.3, 1.5), rng.uniform(18.5, 24.0)
        row, column = rng.integers(0, y.shape[0]), rng.integers(0, x.shape[1])
        light[:, row, column] += _flux([r_mag + g_r, r_mag, r_mag - 0.4 * g_r], config)
    return light


# ---- PSF -----------------------------------------------------------------------------------------


def _draw_seeing(rng: np.random.Generator, config: SimulationConfig) -> np.ndarray:
    """FWHM (3,) in arcsec: log-normal around the survey's medians, half of the scatter common to the bands."""
    worst = 0.95 * _MAX_EINSTEIN_RADIUS / config.min_radius_over_seeing
    while True:
        seeing = np.array(config.seeing) * np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.08, size=3))
        if seeing.max() < worst:
            return seeing


def _moffat(fwhm: float, beta: float, e1: float, e2: float, step: float) -> np.ndarray:
    """Moffat (1969) kernel of unit sum, (33, 33), slightly elliptical (`e1`, `e2`); `fwhm` and `step` in arcsec."""
    x, y = _grid(2 * _MARGIN + 1, step)
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    r2 = (1 - e1) * x * x + (1 + e1) * y * y - 2 * e2 * x * y
    return _unit((1 + r2 / np.float32(alpha**2)) ** np.float32(-beta))


def _transfer(kernels: np.ndarray, side: int) -> np.ndarray:
    """Fourier transform of centred kernels (..., 33, 33) on a grid of `side` pixels."""
    padded = np.zeros((*kernels.shape[:-2], side, side), dtype=np.float32)
    padded[..., : kernels.shape[-2], : kernels.shape[-1]] = kernels
    return np.fft.rfft2(np.roll(padded, (-_MARGIN, -_MARGIN), axis=(-2, -1)))


def _convolve(scene: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    """Convolve scenes (..., n, n) and cut off the margin, in which all that wraps around stays."""
    side = scene.shape[-1]
    image = np.fft.irfft2(np.fft.rfft2(scene) * transfer, s=(side, side))
    return image[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].astype(np.float32, copy=False)


# ---- noise ---------------------------------------------------------------------------------------


def _correlated(noise: np.ndarray, correlation: float) -> np.ndarray:
    """White noise (..., n + 2, n + 2) as warping leaves it, (..., n, n): each pixel has a share of its neighbours'."""
    near = noise[..., 1:-1, :-2] + noise[..., 1:-1, 2:] + noise[..., :-2, 1:-1] + noise[..., 2:, 1:-1]
    return (noise[..., 1:-1, 1:-1] + np.float32(correlation) * near) / np.float32(math.sqrt(1 + 4 * correlation**2))


def _noise_of_fit(template: np.ndarray, correlation: float) -> float:
    """
    Standard deviation of the multiple of `template` (n, n) that a least-squares fit finds in sky noise of unit
    variance. The fit weights the pixels with the template, so each white pixel enters with all that it spreads to.
    """
    spread = _correlated(np.pad(template, 2), correlation)
    return math.sqrt((spread**2).sum(dtype=np.float64)) / float((template**2).sum(dtype=np.float64))


def _draw_sky_noise(rng: np.random.Generator, config: SimulationConfig, correlation: float) -> np.ndarray:
    """Standard deviation (3,) of the sky per pixel, from the 5 sigma depth of a Gaussian PSF of the median seeing."""
    noise_of_psf = np.array(
        [_noise_of_fit(_gaussian(fwhm, config.pixel_scale), correlation) for fwhm in config.seeing]
    )
    return _flux(np.array(config.depth) + rng.normal(0, 0.1, size=3), config) / 5 / noise_of_psf


def _gaussian(fwhm: float, step: float) -> np.ndarray:
    """Round Gaussian of unit sum out to 5 sigma or more; `fwhm` and `step` in arcsec."""
    sigma = fwhm / 2.3548
    x, y = _grid(2 * math.ceil(5 * sigma / step) + 1, step)
    return _unit(np.exp(-0.5 * (x * x + y * y) / np.float32(sigma**2)))


def _add_noise(
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


def _mask(image: np.ndarray, rng: np.random.Generator, config: SimulationConfig) -> None:
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


# ---- the cutout ----------------------------------------------------------------------------------


def _draw_visible_system(
    rng: np.random.Generator,
    config: SimulationConfig,
    seeing: np.ndarray,
    transfer_g: np.ndarray,
    sky_g: float,
    correlation: float,
) -> _System:
    """Draw systems until the arcs are in the central pixels, magnified (mu > 4; Collett 2015: 3) and visible in g."""
    side, oversampling = config.size + 2 * _MARGIN, 3
    window = 2 * math.ceil((_MAX_ARC_RADIUS + 0.3) / config.pixel_scale)
    step = config.pixel_scale / oversampling
    x, y = _grid(window * oversampling, step)
    x, y = np.broadcast_arrays(x, y)
    inside = np.hypot(*_grid(window, config.pixel_scale)) < _MAX_ARC_RADIUS
    edge = (side - window) // 2
    for _ in range(_MAX_DRAWS):
        galaxy, radius = _draw_galaxy(rng, config, float(seeing.max()))
        q = min(max(galaxy.axis_ratio + rng.normal(0, 0.05), 0.4), 0.99)  # mass follows light (Koopmans et al. 2006)
        lens = (radius, q, galaxy.angle + rng.normal(0, 0.15), min(rng.rayleigh(0.04), 0.15), rng.uniform(0, math.pi))
        flux = _flux(25.0 + math.log10(1 - rng.uniform() * (1 - 10 ** (-0.3 * 2.5))) / 0.3, config)
        fine = _lens_image(x - galaxy.x, y - galaxy.y, lens, _draw_source(rng, radius))
        arcs = fine.reshape(window, oversampling, window, oversampling).sum(axis=(1, 3)) * np.float32(step**2)
        magnification = arcs.sum()
        if magnification < 4 or arcs[inside].sum() < 0.99 * magnification:
            continue
        scene = np.zeros((side, side), dtype=np.float32)
        scene[edge : edge + window, edge : edge + window] = arcs * np.float32(flux)
        seen = _convolve(scene, transfer_g)
        snr = 1 / (sky_g * _noise_of_fit(seen, correlation))
        if snr <= config.min_arc_snr:
            continue
        glare = galaxy.flux[0] * _render_galaxy(galaxy, *_grid(config.size, config.pixel_scale), config)
        contrast = (seen**2).sum() / (seen * (seen + glare)).sum()
        if contrast > config.min_arc_contrast:
            colour = _draw_blue_colour(rng)
            redder = 10 ** (0.4 * (rng.uniform(0.1, 0.33) * np.array([-0.5, 0.5, 0.7])))
            return _System(galaxy, radius, _layers((colour, scene)), snr, magnification * flux * colour * redder)
    cuts = f"min_arc_snr {config.min_arc_snr} and min_arc_contrast {config.min_arc_contrast}"
    raise InputError(f"no lens reaches {cuts}; lower them in the SimulationConfig")


def simulate_cutout(
    seed: int, index: int, lens: bool, config: SimulationConfig | None = None
) -> tuple[np.ndarray, dict]:
    """
    Simulate one cutout. It depends on `seed`, `index`, `lens` and `config` alone.

    Args:
        seed (`int`): of the data set, not negative.
        index (`int`): of the cutout in the data set, not negative.
        lens (`bool`): a strong lens, or one of the galaxies that are mistaken for one.
        config (`SimulationConfig`, *optional*): the survey; its defaults are HSC's.

    Returns:
        `tuple[np.ndarray, dict]`: flux (3, size, size), float32, linear, NaN where masked; and the metadata `ra`,
        `dec` (degrees), `bands`, `zero_point` (AB magnitude), `pixel_scale` (arcsec), `seeing` (FWHM in arcsec per
        band), `einstein_radius` (arcsec, NaN for non-lenses) and `subclass`.

    Raises:
        InputError: if no lens passes the visibility cuts of `config`.
    """
    image, metadata, _ = _simulate(seed, index, lens, config or SimulationConfig())
    return image, metadata


def _simulate(seed: int, index: int, lens: bool, config: SimulationConfig) -> tuple[np.ndarray, dict, _System]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=(seed, index))))
    side = config.size + 2 * _MARGIN
    # Observing conditions come first: the visibility cuts, which redraw the rest, cannot select among them.
    seeing, correlation = _draw_seeing(rng, config), rng.uniform(0.0, _MAX_CORRELATION)
    sky = _draw_sky_noise(rng, config, correlation)
    beta, (e1, e2) = rng.uniform(2.6, 3.8), rng.normal(0, 0.02, size=2)
    transfer = _transfer(np.stack([_moffat(fwhm, beta, e1, e2, config.pixel_scale) for fwhm in seeing]), side)
    left, right, bottom, top = _FIELDS[rng.integers(len(_FIELDS))]
    ra, dec = rng.uniform(left, right), rng.uniform(bottom, top)
    extinction = 10 ** (-0.4 * _REDDENING * min(rng.lognormal(math.log(0.03), 0.5), 0.15))

    system = _draw_visible_system(rng, config, seeing, transfer[0], float(sky[0] / extinction[0]), correlation)
    x, y = _grid(side, config.pixel_scale)
    if lens:
        subclass, paint = "lens", _paint_lens
    else:
        subclass = str(rng.choice(list(_NONLENSES), p=[share for share, _ in _NONLENSES.values()]))
        paint = _NONLENSES[subclass][1]
    scene = paint(system, rng, x, y, config) + _paint_neighbours(rng, x, y, config)
    image = _convolve(scene * extinction.astype(np.float32)[:, None, None], transfer)
    image = _add_noise(image, sky, correlation, rng, config).astype(np.float32)
    _mask(image, rng, config)
    metadata = {
        "ra": ra,
        "dec": dec,
        "bands": list(BANDS),
        "zero_point": config.zero_point,
        "pixel_scale": config.pixel_scale,
        "seeing": [float(fwhm) for fwhm in seeing],
        "einstein_radius": float(system.einstein_radius) if lens else math.nan,
        "subclass": subclass,
    }
    return image, metadata, system


def simulate_cutouts(
    seed: int,
    indices: Sequence[int],
    lenses: Sequence[bool],
    config: SimulationConfig | None = None,
    num_proc: int | None = None,
) -> Iterator[tuple[np.ndarray, dict]]:
    """
    Simulate many cutouts, in order and to the bit the same for any number of processes.

    Args:
        seed (`int`): of the data set.
        indices (`Sequence[int]`): of the cutouts, see [`simulate_cutout`].
        lenses (`Sequence[bool]`): which of them are lenses; as long as `indices`.
        config (`SimulationConfig`, *optional*): the survey; its defaults are HSC's.
        num_proc (`int`, *optional*): number of processes; by default one for each CPU core on Linux, else 1.

    Returns:
        `Iterator[tuple[np.ndarray, dict]]`: what [`simulate_cutout`] returns. Only a few are held in memory.

    Raises:
        InputError: if the lengths differ, or if no lens passes the visibility cuts of `config`.
    """
    if len(indices) != len(lenses):
        raise InputError(f"{len(indices)} indices but {len(lenses)} lenses; give one of each per cutout")
    config = config or SimulationConfig()
    starts = range(0, len(indices), _CHUNK)
    chunks = [(seed, list(indices[i : i + _CHUNK]), list(lenses[i : i + _CHUNK]), config) for i in starts]
    num_proc = min(num_proc or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1), len(chunks))
    return _in_processes(chunks, num_proc) if num_proc > 1 else _in_order(chunks)


def _simulate_chunk(chunk: tuple) -> list[tuple[np.ndarray, dict]]:
    seed, indices, lenses, config = chunk
    return [simulate_cutout(seed, int(index), bool(lens), config) for index, lens in zip(indices, lenses)]


def _in_order(chunks: list[tuple]) -> Iterator[tuple[np.ndarray, dict]]:
    for seed, indices, lenses, config in chunks:
        for index, lens in zip(indices, lenses):
            yield simulate_cutout(seed, int(index), bool(lens), config)


def _in_processes(chunks: list[tuple], num_proc: int) -> Iterator[tuple[np.ndarray, dict]]:
    # A forked child starts at once, where a spawned one would import torch with the package. It is safe beside torch's
    # threads since the children call numpy's elementwise functions and FFT only: no torch, no BLAS, no OpenMP.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(num_proc, mp_context=context, initializer=obey_the_main_process) as executor:
        pending: deque[Future] = deque()
        for chunk in chunks:
            with interrupted_later():  # a pool that is cut off while it starts leaves its workers behind
                pending.append(executor.submit(_simulate_chunk, chunk))
            if len(pending) > 2 * num_proc:
                yield from pending.popleft().result()
        while len(pending) > 1:
            yield from pending.popleft().result()
        last = pending.popleft().result()
    yield from last  # once the pool is closed, see map_chunks of pool.py
