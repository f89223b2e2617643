"""
Simulated arcs on galaxies of one's own: labelled cutouts of a sky that has few labels, or none.

Galaxies, noise, PSF and neighbours of such cutouts are real, the arcs alone are simulated, as in the searches of
Petrillo et al. (2017), Jacobs et al. (2019) and Canameras et al. (2020).
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..errors import InputError, check_at_least
from .dataset import features_of
from .from_files import MODEL_CROP
from .info import cutout_info, info_of_splits
from .listing.rows import Row
from .listing.splits import draw_splits
from .pool import map_chunks
from .simulation.lensing import draw_source, lens_image
from .simulation.light import grid, sersic
from .simulation.observation import convolve, moffat, transfer_of
from .simulation.survey import MARGIN
from .storage import check_dataset_target, save_cutouts
from .stretch import Stretch, border_sky

PAINT_VERSION = "2"  # raise it whenever what is painted changes: it is part of a dataset's fingerprint
# Mean wavelengths in nm of filters as surveys name them: what the colour of arcs is drawn for.
WAVELENGTHS = {"u": 365, "g": 480, "r": 622, "i": 763, "z": 905, "y": 1000}
WAVELENGTHS |= {"VIS": 715, "Y": 1080, "J": 1367, "H": 1770}
# Mean and scatter of the colour of arcs relative to that of a red galaxy, in magnitudes per e-fold of the wavelength:
# g - i of 0.3 instead of 2.2.
BLUER = (4.2, 1.0)
SNR = (25.0, 300.0)  # of the arcs in the bluest band
LEAST_CONTRAST = 0.4  # share of the arcs in the light at their place, in the bluest band
MOST_LIGHT = 0.7  # of the arcs in the reddest band, relative to the galaxy
LEAST_RADIUS = 1.2  # Einstein radius, in units of the seeing
CORE = 5  # pixels around the centre in which the colour of a galaxy is measured
DRAWS = 50  # of arcs for a galaxy, before it is given up
BRIGHTEST = 0.35  # share of the galaxies, and of these the redder half: the ones that arcs are painted on
SAMPLE = 1000  # galaxies from which the limits of brightness and colour are found
WHITE_OVER_SOFTENING = 20.0  # of pictures, whose stretch is not known


@dataclass(frozen=True)
class Brush:
    """All that arcs are painted with: see [`paint`]."""

    stretch: dict[str, Any]
    bands: tuple[str, ...]
    pixel_scale: float
    seeing: float
    seed: int
    is_picture: bool  # 8-bit values stay 8-bit values
    least_flux: float  # of galaxies that are painted on, in the reddest band
    least_colour: float  # of these: flux in the reddest band over that in the bluest one
    colour: tuple[float, ...]  # median flux of these in each band, relative to the bluest one


def paint(
    cutouts: datasets.DatasetDict,
    output: str | os.PathLike,
    seeing: float,
    seed: int = 0,
    per_galaxy: int = 1,
    validation_fraction: float = 0.1,
    num_proc: int | None = None,
) -> Path:
    """
    Write a labelled dataset of galaxies with simulated arcs (lens), and of galaxies as they are or with simulated
    companions (nonlens).

    The galaxies are the unlabelled cutouts and the non-lenses of the training split. Arcs are painted on those that
    could be lenses: the redder half of the brightest 35 %. Einstein radii lie between 1.2 times the seeing and what
    the central 32 pixels hold. The S/N of the arcs in the bluest band is drawn log-uniform in 25 to 300. They hold at
    least 40 % of the light at their place there, and less light than the galaxy in the reddest band. Their colour is
    drawn relative to that of the galaxies, so that the zero points of single bands need not be known. Their Poisson
    noise is left out. Each galaxy with arcs is written with blue companions of such light, too: what is simulated does
    not tell the classes apart, but how it lies.

    Groups are divided into a training and a validation split, and both get their share of what could be a lens.

    Display units are taken back to flux and made again; those of 8-bit pictures, whose stretch is not known, as of an
    asinh whose white is 20 times its softening.

    Args:
        cutouts (`DatasetDict`): from [`load_cutouts`]; its pixel scale must be known.
        output (`str` or `os.PathLike`): the directory to write; [`load_cutouts`] reads it.
        seeing (`float`): FWHM of the PSF in arcsec.
        seed (`int`, *optional*, defaults to `0`): each cutout depends on it, its number and its galaxy alone.
        per_galaxy (`int`, *optional*, defaults to `1`): arcs that are painted on each, one after the other.
        validation_fraction (`float`, *optional*, defaults to `0.1`): share of the galaxies in the validation split.
        num_proc (`int`, *optional*): processes; by default one per CPU core on Linux.

    Returns:
        `Path`: the directory.

    Raises:
        [`InputError`]: no galaxy, too few that could be lenses for two splits, no pixel scale, bands of unknown
            wavelength, a seeing that leaves no room for arcs.
    """
    info, output = info_of_splits(cutouts), Path(output)
    check_dataset_target(output)
    if info.painted:
        raise InputError(f"{info.name} has simulated arcs already: give the galaxies that these were painted on")
    check_at_least(1, per_galaxy=per_galaxy, num_proc=num_proc)
    check_at_least(0, seed=seed)
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction:g}: give a number between 0 and 1")
    rows = galaxies_of(cutouts)
    brush = make_brush(cutouts, rows, seeing, seed)
    split_of = _split(cutouts, rows, brush, validation_fraction, num_proc)
    facts = [info.fingerprint, "painted", PAINT_VERSION, asdict(brush), per_galaxy, validation_fraction]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    described = replace(info, name=f"{info.name} with simulated arcs", painted=True, fingerprint=digest)
    with tempfile.TemporaryDirectory(prefix="lens-ssl-paint-") as cache:
        made = datasets.DatasetDict()
        for split in ("train", "validation"):
            chosen = [(*row, i) for i, row in enumerate(rows) if split_of[i] == split]
            made[split] = datasets.Dataset.from_generator(
                _generate,
                features=features_of(len(info.bands), info.size, False, {"einstein_radius": "float64"}),
                gen_kwargs={
                    "cutouts": cutouts,
                    "chosen": chosen,
                    "brush": brush,
                    "per_galaxy": per_galaxy,
                    "num_proc": num_proc,
                },
                cache_dir=cache,
                split=datasets.NamedSplit(split),
            )
            made[split].info.description = described.to_json()
        save_cutouts(made, output)
    return output


def galaxies_of(cutouts: datasets.DatasetDict) -> list[tuple[str, int]]:
    """
    Split and row of the unlabelled cutouts and of the non-lenses of the training split, but those whose group is in
    another split, too.
    """
    held_out = {group for name in cutouts if name not in ("train", "unlabelled") for group in cutouts[name]["group"]}
    found = []
    for name, label in (("unlabelled", -1), ("train", 0)):
        if name in cutouts:
            rows = enumerate(zip(cutouts[name]["label"], cutouts[name]["group"]))
            found += [(name, i) for i, (one, group) in rows if one == label and group not in held_out]
    if not found:
        raise InputError("there is no galaxy to paint on: give unlabelled cutouts, or non-lenses to train on")
    return found


def make_brush(cutouts: datasets.DatasetDict, rows: list[tuple[str, int]], seeing: float, seed: int) -> Brush:
    """The [`Brush`] for these galaxies of `cutouts`; for errors see [`paint`]."""
    info = cutout_info(cutouts)
    if info.pixel_scale is None:
        raise InputError("the pixel scale of the cutouts is not known: give pixel_scale where they are built")
    for band in info.bands if len(info.bands) > 1 else ():
        if band not in WAVELENGTHS:
            raise InputError(f"the wavelength of band {band} is not known: name the bands as {' '.join(WAVELENGTHS)}")
    most = _most_radius(info.pixel_scale)
    if not 0 < seeing * LEAST_RADIUS < most:
        raise InputError(
            f"seeing is {seeing:g} arcsec, and arcs in the central {MODEL_CROP} pixels have radii of {most:.2g} at "
            f"most: give a FWHM below {most / LEAST_RADIUS:.2g} arcsec, or cutouts of larger pixels"
        )
    stretch = info.stretch
    if stretch["kind"] == "none":
        count = len(info.bands)
        unknown = Stretch("asinh", (0.0,) * count, (1.0,) * count, (1 / WHITE_OVER_SOFTENING,) * count)
        stretch = unknown.to_dict()
    places = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE]
    sample = [np.asarray(cutouts[rows[i][0]][rows[i][1]]["pixels"], np.float32) for i in places.tolist()]
    whole = all((one == np.rint(one)).all() for one in sample)
    limits = _limits([Stretch.from_dict(stretch).invert(one) for one in sample], tuple(info.bands))
    return Brush(stretch, tuple(info.bands), info.pixel_scale, seeing, seed, whole, *limits)


def _by_wavelength(bands: tuple[str, ...]) -> list[int]:
    return sorted(range(len(bands)), key=lambda band: WAVELENGTHS.get(bands[band], 0))


def _core_flux(flux: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """Of the galaxy in the middle, `(bands,)`."""
    core = np.hypot(*grid(flux.shape[-1], 1.0)) < CORE
    return (flux - sky[:, None, None])[:, core].sum(axis=1)


def _limits(sample: list[np.ndarray], bands: tuple[str, ...]) -> tuple[float, float, tuple[float, ...]]:
    """`least_flux`, `least_colour` and `colour` of the [`Brush`], from flux cutouts."""
    order = _by_wavelength(bands)
    bluest, reddest = order[0], order[-1]
    fluxes = np.array([_core_flux(one, sky_of(one)[0]) for one in sample])
    least_flux = float(np.quantile(fluxes[:, reddest], 1 - BRIGHTEST))
    bright = fluxes[fluxes[:, reddest] >= least_flux]
    ratios = bright / np.maximum(bright[:, bluest], 1e-3 * bright.max(axis=1))[:, None]
    least_colour = float(np.median(ratios[:, reddest]))
    colour = np.median(ratios[ratios[:, reddest] >= least_colour], axis=0)
    return least_flux, least_colour, tuple(colour.tolist())


def _most_radius(pixel_scale: float) -> float:
    """Arcsec; the images of a source at some distance from the axis reach 1.6 times as far out."""
    return MODEL_CROP / 2 * pixel_scale / 1.6


def _split(
    cutouts: datasets.DatasetDict, rows: list[tuple[str, int]], brush: Brush, fraction: float, num_proc: int | None
) -> list[str]:
    """`train` or `validation` for each galaxy; hosts and others are divided alike, groups are not divided."""
    groups = {name: list(cutouts[name]["group"]) for name in {name for name, _ in rows}}
    hosts = map_chunks(_are_hosts, rows, num_proc, (_as_numpy(cutouts), brush))
    drawn = [Row(f"{name} {i}", (), int(host), group=str(groups[name][i])) for (name, i), host in zip(rows, hosts)]
    if len({row.group for row in drawn}) < 2:
        raise InputError("all galaxies are of one group: give groups, so that some can be held out for validation")
    split_of = draw_splits(drawn, {"validation": fraction}, brush.seed)
    found = [split_of[row.group] for row in drawn if row.label]
    if len(set(found)) < 2:
        raise InputError(
            f"the galaxies that could be lenses ({len(found)} of {len(rows)}) are all in one split, and training and "
            "validation need some: give more galaxies, or more groups"
        )
    return [split_of[row.group] for row in drawn]


def _are_hosts(rows: list[tuple[str, int]], sources: dict[str, datasets.Dataset], brush: Brush) -> list[bool]:
    """Which of these galaxies could be lenses, by brightness and colour."""
    stretch = Stretch.from_dict(brush.stretch)
    fluxes = [stretch.invert(np.asarray(sources[name][i]["pixels"], np.float32)) for name, i in rows]
    return [_is_host(_core_flux(flux, sky_of(flux)[0]), brush) for flux in fluxes]


def _is_host(fluxes: np.ndarray, brush: Brush) -> bool:
    order = _by_wavelength(brush.bands)
    bluest, reddest = fluxes[order[0]], fluxes[order[-1]]
    return bool(reddest >= brush.least_flux and reddest >= brush.least_colour * bluest)


def _as_numpy(cutouts: datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    return {name: split.with_format("numpy") for name, split in cutouts.items()}


def _generate(
    cutouts: datasets.DatasetDict,
    chosen: list[tuple[str, int, int]],
    brush: Brush,
    per_galaxy: int,
    num_proc: int | None,
) -> Iterator[dict[str, Any]]:
    yield from map_chunks(_paint_chunk, chosen, num_proc, (_as_numpy(cutouts), brush, per_galaxy))


def _paint_chunk(
    chosen: list[tuple[str, int, int]], sources: dict[str, datasets.Dataset], brush: Brush, per_galaxy: int
) -> list[dict[str, Any]]:
    """The rows of each galaxy: without arcs, and with some where it could be a lens."""
    rows = []
    for split, index, number in chosen:
        one = sources[split][index]
        plain = np.asarray(one["pixels"], np.float32)
        known = {"group": str(one["group"]), "ra": _number(one["ra"]), "dec": _number(one["dec"])}
        rows.append({"id": str(one["id"]), "pixels": plain, "label": 0, "subclass": str(one["subclass"]),
                     "einstein_radius": math.nan, **known})  # fmt: skip
        for time, lens in product(range(per_galaxy), (True, False)):
            rng = np.random.default_rng((brush.seed, number, time))
            found = paint_arcs(plain, brush, rng, lens)
            if found is not None and not lens:
                rows.append({"id": f"{one['id']}-companions{time}", "pixels": found[0], "label": 0,
                             "subclass": "companions", "einstein_radius": math.nan, **known})  # fmt: skip
            elif found is not None:
                rows.append({"id": f"{one['id']}-arcs{time}", "pixels": found[0], "label": 1, "subclass": "lens",
                             "einstein_radius": found[1], **known})  # fmt: skip
    return rows


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# ---- one cutout ------------------------------------------------------------------------------------


def paint_arcs(
    display: np.ndarray, brush: Brush, rng: np.random.Generator, lens: bool = True
) -> tuple[np.ndarray, float] | None:
    """
    A galaxy with arcs, or with blue companions that have their light, in display units.

    Args:
        display (`np.ndarray` of shape `(bands, H, W)`): the galaxy in the middle, float32, 0 to 255.
        brush (`Brush`): see [`paint`].
        rng (`np.random.Generator`): what is drawn.
        lens (`bool`, *optional*, defaults to `True`): arcs or companions.

    Returns:
        `tuple[np.ndarray, float]`: the same shape, 0 to 255, equal to `display` where no arc adds light; and the
            Einstein radius in arcsec. `None` where the galaxy is too faint or too blue for a lens.
    """
    stretch = Stretch.from_dict(brush.stretch)
    flux = stretch.invert(display)
    drawn = draw_arcs(flux, brush, rng, lens)
    if drawn is None:
        return None
    arcs, radius = drawn
    # What 8 bits or clipping took of the galaxy stays as it was: the difference of the two is added.
    added = display + (stretch.apply(flux + arcs) - stretch.apply(flux))
    if brush.is_picture:
        added = np.rint(added)
    return (np.clip(added, 0, 255) if stretch.kind != "linear" else added).astype(np.float32), radius


def draw_arcs(
    flux: np.ndarray, brush: Brush, rng: np.random.Generator, lens: bool = True
) -> tuple[np.ndarray, float] | None:
    """
    Flux `(bands, H, W)` of arcs around the galaxy in the middle of `flux`, and the Einstein radius in arcsec; or of
    companions at such a distance.
    """
    order = _by_wavelength(brush.bands)
    bluest, reddest = order[0], order[-1]
    sky, noise = sky_of(flux)
    fluxes = _core_flux(flux, sky)
    if not _is_host(fluxes, brush):
        return None
    light = np.maximum(flux - sky[:, None, None], 0)
    shape, side = shape_of(light[reddest]), flux.shape[-1]
    distance = np.hypot(*grid(side, brush.pixel_scale))
    low, high = LEAST_RADIUS * brush.seeing, _most_radius(brush.pixel_scale)
    for _ in range(DRAWS):
        radius = low * (high / low) ** rng.uniform()
        image = _seen(radius, *shape, side, brush, rng, lens)
        snr, bluer = math.exp(rng.uniform(*np.log(SNR))), rng.normal(*BLUER)
        squared = float((image**2).sum())
        in_bluest = snr * noise[bluest] / math.sqrt(squared)
        contrast = squared / (image * (image + light[bluest] / in_bluest)).sum()
        fluxes = in_bluest * _colour(brush, bluer, bluest)
        galaxy = light[reddest][distance < radius].sum()
        is_inside = image[distance < MODEL_CROP / 2 * brush.pixel_scale].sum() > 0.97
        if is_inside and contrast > LEAST_CONTRAST and fluxes[reddest] < MOST_LIGHT * galaxy:
            return (fluxes[:, None, None] * image).astype(np.float32), radius
    return None


def sky_of(flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[`border_sky`], with some noise where a border was cut to black."""
    sky, noise = border_sky(flux)
    return sky, np.maximum(noise, 1e-3 * (flux.max(axis=(1, 2)) - sky))


def shape_of(light: np.ndarray) -> tuple[float, float]:
    """Axis ratio and angle (radians) of the galaxy in the middle of `light` (n, n), from its second moments."""
    x, y = grid(light.shape[-1], 1.0)
    weight = light * np.exp(-(x * x + y * y) / (2 * 5.0**2))
    total = weight.sum() + 1e-12
    xx, yy, xy = ((weight * product).sum() / total for product in (x * x, y * y, x * y))
    e1, e2 = (xx - yy) / (xx + yy + 1e-12), 2 * xy / (xx + yy + 1e-12)
    ellipticity = min(math.hypot(e1, e2), 0.5)
    return math.sqrt((1 - ellipticity) / (1 + ellipticity)), math.atan2(e2, e1) / 2


def _seen(
    radius: float, axis_ratio: float, angle: float, side: int, brush: Brush, rng: np.random.Generator, lens: bool
) -> np.ndarray:
    """Arcs, or companions, of unit flux `(side, side)` behind a PSF of the seeing."""
    oversampling, whole = 3, side + 2 * MARGIN
    step = brush.pixel_scale / oversampling
    x, y = np.broadcast_arrays(*grid(whole * oversampling, step))
    if lens:
        fine = _lensed(x, y, radius, axis_ratio, angle, brush, rng)
    else:
        fine = _companions(x, y, radius, rng)
    scene = fine.reshape(whole, oversampling, whole, oversampling).sum(axis=(1, 3))
    kernel = moffat(brush.seeing * math.exp(rng.normal(0, 0.05)), rng.uniform(2.6, 3.8), 0.0, 0.0, brush.pixel_scale)
    seen = np.maximum(convolve(scene, transfer_of(kernel, whole)), 0)
    return seen / seen.sum()


def _lensed(
    x: np.ndarray,
    y: np.ndarray,
    radius: float,
    axis_ratio: float,
    angle: float,
    brush: Brush,
    rng: np.random.Generator,
) -> np.ndarray:
    q = min(max(axis_ratio + rng.normal(0, 0.05), 0.45), 0.99)  # mass follows light (Koopmans et al. 2006)
    shear = min(rng.rayleigh(0.04), 0.15)
    lens = (radius, q, angle + rng.normal(0, 0.15), shear, rng.uniform(0, math.pi))
    dx, dy = rng.normal(0, 0.15 * brush.pixel_scale, size=2)
    return lens_image(x - dx, y - dy, lens, draw_source(rng, radius))


def _companions(x: np.ndarray, y: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """One to four galaxies around the middle, turned anyhow: no arc, and no counter image but by chance."""
    light = 0.0
    for _ in range(rng.choice([1, 1, 2, 2, 3, 4])):
        distance, azimuth = radius * rng.uniform(0.8, 1.6), rng.uniform(0, 2 * math.pi)
        shape = rng.uniform(0.15, 0.6), rng.uniform(0.6, 2.0), rng.uniform(0.25, 1.0), rng.uniform(0, math.pi)
        u, v = x - distance * math.cos(azimuth), y - distance * math.sin(azimuth)
        light = light + rng.uniform(0.2, 1.0) * sersic(u, v, *shape)
    return light


def _colour(brush: Brush, bluer: float, bluest: int) -> np.ndarray:
    """
    Fluxes `(bands,)` of arcs relative to those in the `bluest` band: `bluer` than the median galaxy by so many
    magnitudes per e-fold of the wavelength.
    """
    if len(brush.bands) == 1:
        return np.ones(1)
    wavelengths = np.array([WAVELENGTHS[band] for band in brush.bands])
    return np.array(brush.colour) * 10 ** (-0.4 * bluer * np.log(wavelengths / wavelengths[bluest]))
