"""Simulated cutouts as splits of flux, with the stretch fitted to them."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .display import standardise
from .files.raw import RawCutout
from .info import SPLITS, CutoutInfo
from .simulation import BANDS, SIMULATOR_VERSION, SimulationConfig, simulate_cutouts
from .stretch import FIT_CUTOUTS, Stretch

if TYPE_CHECKING:
    from .dataset import CutoutsConfig

# Each split of the simulation has its own range of indices, so that the size of one does not change the others.
FIRST_INDEX = {split: i * 10**7 for i, split in enumerate(SPLITS)}


def open_simulation(config: "CutoutsConfig") -> tuple[dict[str, Iterable], CutoutInfo]:
    """The splits as iterators over (flux, columns), simulated as they are read."""
    bands = config.bands or list(reversed(BANDS))  # red first, as in a colour picture
    if not set(bands) <= set(BANDS) or len(set(bands)) < len(bands):
        raise InputError(f"bands {' '.join(bands)} cannot be simulated: choose among {' '.join(BANDS)}")
    simulation = _simulation(config)
    counts = {split: getattr(config, f"{split}_size") for split in FIRST_INDEX}
    indices, lenses = [], []
    for split, first in FIRST_INDEX.items():
        indices += range(first, first + counts[split])
        lenses += _lenses(split, counts[split], config)
    stream = _simulate(config, indices, lenses, simulation, bands)  # one pool of processes for all splits
    splits = {split: islice(stream, count) for split, count in counts.items() if count}
    sample = list(islice(splits["train"], FIT_CUTOUTS))
    splits["train"] = chain(sample, splits["train"])
    stretch = _stretch(config, [flux for flux, _ in sample])
    info = CutoutInfo(
        source="simulated",
        name="simulated lenses" + (" of varied skies" if config.varied else ""),
        simulated=True,
        bands=list(bands),
        size=simulation.size,
        pixel_scale=simulation.pixel_scale,
        zero_point=simulation.zero_point,
        stretch=stretch.to_dict(),
        fingerprint=config.fingerprint,
        simulator_version=SIMULATOR_VERSION,
    )
    return splits, info


def _stretch(config: "CutoutsConfig", sample: list[np.ndarray]) -> Stretch:
    """That of the model of `like`, or one that is fitted to training cutouts."""
    if config.model is None:
        return Stretch.fit(sample, "asinh" if config.stretch == "auto" else config.stretch)
    stretch = Stretch.from_dict(config.model["stretch"])
    if stretch.kind == "none":
        raise InputError(f"{config.like} takes pictures without a stretch, which cannot be simulated: leave like out")
    return stretch


def _simulation(config: "CutoutsConfig") -> SimulationConfig:
    """The survey that the options describe."""
    cuts = ("min_arc_snr", "min_arc_contrast", "min_radius_over_seeing")
    for name in cuts:
        if config.varied and getattr(config, name) != getattr(SimulationConfig, name):
            raise InputError(f"{name} is drawn for each cutout where varied is given: leave one of them out")
    names = (*cuts, "size", "pixel_scale", "zero_point", "varied")
    chosen = {name: value for name in names if (value := getattr(config, name)) is not None}
    if config.size_arcsec is not None:  # the simulator's sizes are even
        chosen["size"] = 2 * round(config.size_arcsec / (config.pixel_scale or SimulationConfig.pixel_scale) / 2)
    return SimulationConfig(**chosen)


def _lenses(split: str, count: int, config: "CutoutsConfig") -> list[bool]:
    """Which of the cutouts of a split are lenses."""
    if not 0 < config.lens_fraction < 1:
        raise InputError(f"lens_fraction is {config.lens_fraction}: give a number between 0 and 1")
    num_lenses = round(count * (0.5 if split == "test_large" else config.lens_fraction))
    is_left_out = split == "test_large" and not count
    if split != "unlabelled" and not is_left_out and not 0 < num_lenses < count:
        raise InputError(f"{split}_size {count} leaves a class empty: simulate more")
    is_lens = np.arange(count) < num_lenses
    np.random.default_rng((config.data_seed, FIRST_INDEX[split])).shuffle(is_lens)
    return is_lens.tolist()


def _simulate(
    config: "CutoutsConfig", indices: list[int], lenses: list[bool], simulation: SimulationConfig, bands: list[str]
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    order = [BANDS.index(band) for band in bands]
    cutouts = simulate_cutouts(config.data_seed, indices, lenses, simulation, num_proc=config.num_proc)
    for index, lens, (flux, meta) in zip(indices, lenses, cutouts):
        labelled = not FIRST_INDEX["unlabelled"] <= index < FIRST_INDEX["test_large"]
        name = f"sim-{config.data_seed}-{index}"
        columns = {"id": name, "group": name, "label": int(lens) if labelled else -1}
        columns["subclass"] = meta["subclass"] if labelled else ""
        columns["einstein_radius"] = meta["einstein_radius"] if labelled else float("nan")
        columns["seeing"] = [float(meta["seeing"][i]) for i in order]
        columns |= {key: meta[key] for key in ("ra", "dec", "zero_point", "pixel_scale")}
        yield standardise(RawCutout(flux[order]), name), columns
