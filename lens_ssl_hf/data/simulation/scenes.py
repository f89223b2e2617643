"""What a cutout shows: a lens, one of the galaxies that are mistaken for it, and what stands beside them."""

import math
from collections.abc import Callable

import numpy as np

from .light import add_knots, layers, polar, sersic, unit, unit_inside
from .populations import Galaxy, System
from .survey import SimulationConfig, flux_of


def render_galaxy(galaxy: Galaxy, x, y, config: SimulationConfig) -> np.ndarray:
    profile = sersic(
        x - galaxy.x,
        y - galaxy.y,
        galaxy.r_eff,
        galaxy.sersic_index,
        galaxy.axis_ratio,
        galaxy.angle,
        0.3 * config.pixel_scale,
    )
    return profile * np.float32(config.pixel_scale**2)


def _paint_elliptical(system: System, rng, x, y, config) -> np.ndarray:
    """An early-type galaxy with a smooth, faint disc of young stars; of varied ones half have none."""
    galaxy = system.galaxy
    if config.varied and rng.uniform() < 0.5:
        return layers((galaxy.flux, render_galaxy(galaxy, x, y, config)))
    r, _ = polar(x - galaxy.x, y - galaxy.y, galaxy.axis_ratio, galaxy.angle)
    disc = np.exp(-r / np.float32(system.einstein_radius * rng.uniform(0.6, 1.1)))
    disc = unit_inside(disc, x, y, config.max_arc_radius)
    return layers((galaxy.flux, render_galaxy(galaxy, x, y, config)), (rng.uniform(0.7, 1.1) * system.blue, disc))


def _paint_spiral(system: System, rng, x, y, config) -> np.ndarray:
    """A bulge with its stellar halo, an old disc and two to four logarithmic arms with H II regions."""
    galaxy, scale = system.galaxy, system.einstein_radius * np.float32(rng.uniform(0.4, 0.68))
    r, phi = polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.55, 1.0), rng.uniform(0, math.pi))
    arms = rng.choice([2, 2, 2, 3, 4])
    pitch = np.float32(math.tan(math.radians(rng.uniform(15, 30))) * rng.choice([-1, 1]))
    phase = phi - np.log(r / scale + 0.05) / pitch + np.float32(rng.uniform(0, 2 * math.pi))
    contrast = np.exp(np.float32(rng.uniform(2.0, 4.0)) * (np.cos(arms * phase) - 1))
    envelope = np.exp(-r / scale) * (1 - np.exp(-((r / (0.7 * scale)) ** 2)))
    blue = unit_inside(envelope * contrast, x, y, config.max_arc_radius)
    blue = add_knots(blue, rng, rng.uniform(0.1, 0.3), rng.integers(10, 30))
    spheroid = render_galaxy(galaxy, x, y, config)
    moved = np.float32(rng.uniform(0.5, 0.9)) * np.exp(-((r / np.float32(1.4)) ** 4)) * spheroid
    disc = unit_inside(np.exp(-r / scale), x, y, config.max_arc_radius)
    old = spheroid - moved + np.float32(rng.uniform(0.4, 0.9)) * moved.sum() * disc
    return layers((rng.uniform(0.9, 1.8) * system.blue, blue), (galaxy.flux, old))


def _paint_ring(system: System, rng, x, y, config) -> np.ndarray:
    """A face-on star-forming ring around an early-type galaxy (Hoag-type, resonance and collisional rings)."""
    galaxy, radius = system.galaxy, min(system.einstein_radius * rng.uniform(0.85, 1.4), 1.6)
    r, phi = polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.8, 1.0), rng.uniform(0, math.pi))
    width = radius * rng.uniform(0.2, 0.35)
    lopsided = 1 + rng.uniform(0.0, 0.6) * np.cos(phi - rng.uniform(0, 2 * math.pi))
    ring = np.exp(-0.5 * ((r - np.float32(radius)) / np.float32(width)) ** 2) * lopsided
    ring = unit_inside(ring, x, y, config.max_arc_radius)
    disc = unit_inside(np.exp(-r / np.float32(radius)), x, y, config.max_arc_radius)
    share = rng.uniform(0.0, 0.4)
    ring = add_knots((1 - share) * ring + share * disc, rng, rng.uniform(0.1, 0.4), rng.integers(5, 20))
    return layers((system.blue, ring), (galaxy.flux, render_galaxy(galaxy, x, y, config)))


def _paint_varied_ring(system: System, rng, x, y, config) -> np.ndarray:
    """A ring of any width and inclination, smooth or in pieces, up to 3 mag fainter than the galaxy in r."""
    galaxy, radius = system.galaxy, rng.uniform(0.6, config.max_arc_radius)
    r, phi = polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.4, 1.0), rng.uniform(0, math.pi))
    pieces, depth = rng.integers(1, 6), rng.uniform(0.0, 0.9)
    uneven = 1 + depth * np.cos(pieces * (phi - rng.uniform(0, 2 * math.pi)))
    ring = unit(np.exp(-0.5 * ((r / np.float32(radius) - 1) / np.float32(rng.uniform(0.08, 0.35))) ** 2) * uneven)
    ring = add_knots(ring, rng, rng.uniform(0.0, 0.4), rng.integers(3, 20))
    blue = system.blue / system.blue[1] * galaxy.flux[1] * 10 ** rng.uniform(-1.2, 0.0)
    return layers((blue, ring), (galaxy.flux, render_galaxy(galaxy, x, y, config)))


def _paint_companions(system: System, rng, x, y, config) -> np.ndarray:
    """One to three blue galaxies beside it, seen edge-on and turned more or less tangentially."""
    galaxy = system.galaxy
    count = rng.choice([1, 2, 2, 3])
    azimuth = rng.uniform(0, 2 * math.pi) + np.concatenate([[0.0], np.cumsum(rng.uniform(0.7, 1.7, size=count - 1))])
    light = 0
    for share, phi in zip(rng.dirichlet(np.full(count, 4.0)), azimuth):
        radius = min(system.einstein_radius * rng.uniform(0.8, 1.7), 1.5)
        tilt = phi + math.pi / 2 + rng.normal(0, 0.5)
        u, v = x - radius * math.cos(phi), y - radius * math.sin(phi)
        r_eff, q = rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.5)
        light = light + share * sersic(u, v, r_eff, 1.0, q, tilt, 0.05)
    blue = add_knots(unit_inside(light, x, y, config.max_arc_radius), rng, rng.uniform(0.0, 0.4), rng.integers(2, 8))
    return layers((system.blue, blue), (galaxy.flux, render_galaxy(galaxy, x, y, config)))


def _paint_varied_companions(system: System, rng, x, y, config) -> np.ndarray:
    """One to five galaxies beside it, mostly blue, 0.5 to 5 mag fainter than it in r, turned anyhow."""
    galaxy = system.galaxy
    scene = layers((galaxy.flux, render_galaxy(galaxy, x, y, config)))
    for _ in range(rng.integers(1, 6)):
        distance, phi = rng.uniform(0.6, 3.5), rng.uniform(0, 2 * math.pi)
        share, g_r, r_i = 10 ** rng.uniform(-2.0, -0.2), rng.normal(0.45, 0.35), rng.normal(0.25, 0.2)
        flux = _flux_in_r(share * galaxy.flux[1], g_r, r_i)
        shape = rng.uniform(0.1, 0.7), rng.uniform(0.5, 2.5), rng.uniform(0.2, 1.0), rng.uniform(0, math.pi)
        u, v = x - distance * math.cos(phi), y - distance * math.sin(phi)
        scene += layers((flux * config.pixel_scale**2, sersic(u, v, *shape, 0.3 * config.pixel_scale)))
    return scene


def _flux_in_r(flux: float, g_r: float, r_i: float) -> np.ndarray:
    """Fluxes (3,) in g, r, i of a galaxy with this flux in r and these colours."""
    return flux * 10 ** (0.4 * np.array([-g_r, 0.0, r_i]))


def _paint_merger(system: System, rng, x, y, config) -> np.ndarray:
    """Two early-type nuclei and one or two blue tidal tails that wind out of them."""
    galaxy, radius = system.galaxy, system.einstein_radius
    share, phi0 = rng.uniform(0.55, 0.9), rng.uniform(0, 2 * math.pi)
    separation = min(radius * rng.uniform(0.4, 0.8), 1.0)
    u, v = x - separation * math.cos(phi0), y - separation * math.sin(phi0)
    second = sersic(
        u, v, galaxy.r_eff * rng.uniform(0.4, 0.9), 3.0, rng.uniform(0.5, 1.0), rng.uniform(0, math.pi), 0.05
    ) * np.float32(config.pixel_scale**2)
    r, phi = polar(x - galaxy.x, y - galaxy.y, rng.uniform(0.7, 1.0), rng.uniform(0, math.pi))
    handedness, winding = rng.choice([-1, 1]), rng.uniform(0.1, 0.35)
    tails = 0
    for start, strength in zip((phi0, phi0 + math.pi), (1.0, rng.uniform(0, 1))):
        along = np.mod(handedness * (phi - np.float32(start)), np.float32(2 * math.pi))
        spine = radius * np.float32(rng.uniform(0.7, 1.0)) * np.exp(np.float32(winding) * along)
        tails = tails + strength * np.exp(
            -0.5 * ((r - spine) / np.float32(0.18 * radius)) ** 2 - along / np.float32(rng.uniform(0.8, 2.0))
        )
    blue = add_knots(unit_inside(tails, x, y, config.max_arc_radius), rng, rng.uniform(0.1, 0.4), rng.integers(4, 12))
    first = render_galaxy(galaxy, x, y, config)
    return layers((system.blue, blue), (share * galaxy.flux, first), ((1 - share) * galaxy.flux, second))


def _paint_varied_merger(system: System, rng, x, y, config) -> np.ndarray:
    """As above, or two or three galaxies of any colour that overlap, without tails."""
    if rng.uniform() < 0.5:
        return _paint_merger(system, rng, x, y, config)
    scene = 0
    for share in rng.dirichlet(np.full(rng.integers(2, 4), 2.0)):
        dx, dy = rng.normal(0, 0.8, size=2)
        shape = rng.uniform(0.3, 1.2), rng.uniform(0.7, 4.0), rng.uniform(0.3, 1.0), rng.uniform(0, math.pi)
        flux = _flux_in_r(share * system.galaxy.flux[1], rng.normal(0.8, 0.4), rng.normal(0.35, 0.2))
        light = sersic(x - dx, y - dy, *shape, 0.3 * config.pixel_scale)
        scene = scene + layers((flux * config.pixel_scale**2, light))
    return scene


def paint_lens(system: System, rng, x, y, config) -> np.ndarray:
    return layers((system.galaxy.flux, render_galaxy(system.galaxy, x, y, config))) + system.arcs


NONLENSES: dict[str, tuple[float, Callable]] = {  # subclass: share of the non-lenses, how it is painted
    "elliptical": (0.12, _paint_elliptical),
    "spiral": (0.24, _paint_spiral),
    "ring": (0.22, _paint_ring),
    "companions": (0.22, _paint_companions),
    "merger": (0.20, _paint_merger),
}
VARIED: dict[str, Callable] = {  # of varied skies instead of these
    "ring": _paint_varied_ring,
    "companions": _paint_varied_companions,
    "merger": _paint_varied_merger,
}


def paint_neighbours(rng: np.random.Generator, x, y, config: SimulationConfig) -> np.ndarray:
    """Field galaxies beside the lens (number counts rising as 10^(0.3 m)) and now and then a star; for every class."""
    half = (x.shape[1] / 2) * config.pixel_scale
    light = np.zeros((3, y.shape[0], x.shape[1]), dtype=np.float32)
    for _ in range(rng.poisson(2.0 * (half / 8.0) ** 2)):
        r_mag = 25.5 + math.log10(1 - rng.uniform() * (1 - 10 ** (-0.3 * 6.0))) / 0.3
        colour = np.array([rng.normal(0.6, 0.4), 0.0, -rng.normal(0.35, 0.2)])
        r_eff = min(max(rng.lognormal(math.log(0.45) - 0.12 * (r_mag - 23.0), 0.4), 0.1), 1.2)
        dx, dy = rng.uniform(-half, half, size=2)
        if math.hypot(dx, dy) < (1.2 if config.varied else config.max_arc_radius):  # samples are cleaned of blends
            continue
        shape = sersic(
            x - dx, y - dy, r_eff, rng.uniform(0.8, 2.5), rng.uniform(0.3, 1.0), rng.uniform(0, math.pi), 0.05
        )
        light += layers((flux_of(r_mag + colour, config) * config.pixel_scale**2, shape))
    for _ in range(rng.poisson(0.15)):
        g_r, r_mag = rng.uniform(0.3, 1.5), rng.uniform(18.5, 24.0)
        row, column = rng.integers(0, y.shape[0]), rng.integers(0, x.shape[1])
        light[:, row, column] += flux_of([r_mag + g_r, r_mag, r_mag - 0.4 * g_r], config)
    return light
