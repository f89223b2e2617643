"""One simulated cutout, or many: a system that is visible, its scene, and how it is observed."""

import math
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from ...errors import InputError
from ..pool import map_chunks
from .lensing import draw_source, lens_image
from .light import grid, layers
from .observation import (
    add_noise,
    convolve,
    draw_seeing,
    draw_sky_noise,
    mask_pixels,
    moffat,
    noise_of_fit,
    transfer_of,
)
from .populations import System, draw_blue_colour, draw_galaxy
from .scenes import NONLENSES, VARIED, paint_lens, paint_neighbours, render_galaxy
from .survey import BANDS, MARGIN, MAX_DRAWS, SimulationConfig, draw_survey, flux_of

_MAX_CORRELATION = 0.35  # noise that a pixel takes of each neighbour, relative to its own
_REDDENING = np.array([3.303, 2.285, 1.698])  # A_band / E(B-V), R_V = 3.1 (Schlafly & Finkbeiner 2011, table 6)
_FIELDS = ((30, 38, -6, -2), (129, 141, -2, 5), (175, 225, -1, 4), (331, 345, -1, 6), (217, 247, 42, 44))  # HSC Wide


def _draw_visible_system(
    rng: np.random.Generator,
    config: SimulationConfig,
    seeing: np.ndarray,
    transfer_g: np.ndarray,
    sky_g: float,
    correlation: float,
) -> System:
    """Draw systems until the arcs are in the central pixels, magnified (mu > 4; Collett 2015: 3) and visible in g."""
    side, oversampling = config.size + 2 * MARGIN, 3
    beyond, least_inside = (0.9, 0.85) if config.varied else (0.3, 0.99)  # arcsec, share of the arcs' light
    window = min(2 * math.ceil((config.max_arc_radius + beyond) / config.pixel_scale), side)
    step = config.pixel_scale / oversampling
    x, y = grid(window * oversampling, step)
    x, y = np.broadcast_arrays(x, y)
    inside = np.hypot(*grid(window, config.pixel_scale)) < config.max_arc_radius
    edge = (side - window) // 2
    for _ in range(MAX_DRAWS):
        galaxy, radius = draw_galaxy(rng, config, float(seeing.max()))
        q = min(max(galaxy.axis_ratio + rng.normal(0, 0.05), 0.4), 0.99)  # mass follows light (Koopmans et al. 2006)
        lens = (radius, q, galaxy.angle + rng.normal(0, 0.15), min(rng.rayleigh(0.04), 0.15), rng.uniform(0, math.pi))
        faintest, width = (26.5, 4.0) if config.varied else (25.0, 2.5)  # in g, of the source; all are above 22.5 mag
        flux = flux_of(faintest + math.log10(1 - rng.uniform() * (1 - 10 ** (-0.3 * width))) / 0.3, config)
        fine = lens_image(x - galaxy.x, y - galaxy.y, lens, draw_source(rng, radius, config.varied))
        arcs = fine.reshape(window, oversampling, window, oversampling).sum(axis=(1, 3)) * np.float32(step**2)
        magnification = arcs.sum()
        if magnification < 4 or arcs[inside].sum() < least_inside * magnification:
            continue
        scene = np.zeros((side, side), dtype=np.float32)
        scene[edge : edge + window, edge : edge + window] = arcs * np.float32(flux)
        seen = convolve(scene, transfer_g)
        snr = 1 / (sky_g * noise_of_fit(seen, correlation))
        if snr <= config.min_arc_snr:
            continue
        glare = galaxy.flux[0] * render_galaxy(galaxy, *grid(config.size, config.pixel_scale), config)
        contrast = (seen**2).sum() / (seen * (seen + glare)).sum()
        if contrast > config.min_arc_contrast:
            colour = draw_blue_colour(rng, config.varied)
            redder = 10 ** (0.4 * (rng.uniform(0.1, 0.33) * np.array([-0.5, 0.5, 0.7])))
            return System(galaxy, radius, layers((colour, scene)), snr, magnification * flux * colour * redder)
    cuts = f"min_arc_snr {config.min_arc_snr} and min_arc_contrast {config.min_arc_contrast}"
    raise InputError(f"no lens reaches {cuts}; lower them in the SimulationConfig")


def simulate_cutout(
    seed: int, index: int, lens: bool, config: SimulationConfig | None = None
) -> tuple[np.ndarray, dict]:
    """
    Simulate one cutout. It depends on `seed`, `index`, `lens` and `config` alone.

    Args:
        seed (`int`): of the dataset, not negative.
        index (`int`): of the cutout in the dataset, not negative.
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


def _simulate(seed: int, index: int, lens: bool, config: SimulationConfig) -> tuple[np.ndarray, dict, System]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=(seed, index))))
    side = config.size + 2 * MARGIN
    if config.varied:
        config = draw_survey(rng, config)
    # Observing conditions come first: the visibility cuts, which redraw the rest, cannot select among them.
    seeing, correlation = draw_seeing(rng, config), rng.uniform(0.0, _MAX_CORRELATION)
    sky = draw_sky_noise(rng, config, correlation)
    beta, (e1, e2) = rng.uniform(2.6, 3.8), rng.normal(0, 0.02, size=2)
    transfer = transfer_of(np.stack([moffat(fwhm, beta, e1, e2, config.pixel_scale) for fwhm in seeing]), side)
    left, right, bottom, top = _FIELDS[rng.integers(len(_FIELDS))]
    ra, dec = rng.uniform(left, right), rng.uniform(bottom, top)
    extinction = 10 ** (-0.4 * _REDDENING * min(rng.lognormal(math.log(0.03), 0.5), 0.15))

    system = _draw_visible_system(rng, config, seeing, transfer[0], float(sky[0] / extinction[0]), correlation)
    x, y = grid(side, config.pixel_scale)
    if lens:
        subclass, paint = "lens", paint_lens
    else:
        subclass = str(rng.choice(list(NONLENSES), p=[share for share, _ in NONLENSES.values()]))
        paint = NONLENSES[subclass][1]
        if config.varied:  # brightness may tell the classes apart on one sky, and the other way round on another
            paint = VARIED.get(subclass, paint)
            system.blue = system.blue * 10 ** rng.uniform(-0.6, 0.4)
    scene = paint(system, rng, x, y, config) + paint_neighbours(rng, x, y, config)
    image = convolve(scene * extinction.astype(np.float32)[:, None, None], transfer)
    image = add_noise(image, sky, correlation, rng, config).astype(np.float32)
    mask_pixels(image, rng, config)
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
        seed (`int`): of the dataset.
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
    if num_proc is None:
        num_proc = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    settings = (seed, config or SimulationConfig())
    return map_chunks(_simulate_chunk, list(zip(indices, lenses)), num_proc, settings)


def _simulate_chunk(
    cutouts: list[tuple[int, bool]], seed: int, config: SimulationConfig
) -> list[tuple[np.ndarray, dict]]:
    return [simulate_cutout(seed, int(index), bool(lens), config) for index, lens in cutouts]
