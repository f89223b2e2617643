"""
Draw tiles of simulated sky in g, r and i with a catalogue of what is on them, to try a search from end to end.

```bash
python scripts/make_tiles.py --output sky/
lens-ssl score --model runs/dino-300 --input sky/catalogue.csv --tiles 'sky/{band}/*.fits' --output scores/
```

Each object is a cutout of the simulator, pasted at random into its cell of a grid; between them is noise.
"""

import csv
import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.simulation import BANDS, SimulationConfig, simulate_cutouts
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import through_memory, writing

CELL = 72  # pixels a side, for a cutout of 64
DEC = 2.0  # degrees; the tiles stand side by side from ra 150 on


@dataclass
class TilesArguments:
    output: str = field(metadata={"help": "The folder to write; it must not exist, or be empty."})
    tiles: int = field(default=20, metadata={"help": "Number of tiles."})
    objects: int = field(default=20_000, metadata={"help": "Galaxies on all tiles."})
    prevalence: float = field(default=1e-3, metadata={"help": "Share of lenses."})
    seed: int = field(default=0, metadata={"help": "Seed of the simulation."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes; by default one per CPU core."})


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(TilesArguments, description=__doc__)
    if not (1 <= arguments.tiles <= arguments.objects and 0 <= arguments.prevalence <= 1 and arguments.seed >= 0):
        raise InputError("tiles, objects, prevalence or seed cannot be: give at least one object a tile")
    from lens_ssl_hf.data.storage import check_target

    check_target(arguments.output)
    rng, config = np.random.default_rng(arguments.seed), SimulationConfig()
    is_lens = rng.permutation(arguments.objects) < round(arguments.prevalence * arguments.objects)
    cutouts = simulate_cutouts(arguments.seed, range(arguments.objects), is_lens, config, arguments.num_proc)
    rows: list[tuple[int, float, float, int]] = []
    with writing(Path(arguments.output)) as folder:
        for band in BANDS:
            (folder / band).mkdir(parents=True)
        for number, members in enumerate(np.array_split(np.arange(arguments.objects), arguments.tiles)):
            sky, places = draw_tile([pixels for pixels, _ in islice(cutouts, len(members))], rng)
            wcs = wcs_of(number, sky.shape[-1], config.pixel_scale)
            write_tile(folder, number, sky, wcs, config)
            positions = wcs.pixel_to_world_values(*places)
            rows += zip(members.tolist(), *(one.tolist() for one in positions), is_lens[members].astype(int).tolist())
        with open(folder / "catalogue.csv", "w", newline="") as file:
            csv.writer(file).writerows([("id", "ra", "dec", "label"), *rows])
    print(f"{arguments.tiles} tiles with {len(rows)} galaxies, {is_lens.sum()} of them lenses: {arguments.output}")


def draw_tile(cutouts: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The sky `(3, side, side)` with all cutouts, and x and y of their centres."""
    cells = math.ceil(math.sqrt(len(cutouts)))
    spread = np.nanmedian(np.abs(cutouts[:50]), axis=(0, 2, 3))
    sky = rng.normal(0, 1.4826 * spread, (CELL * cells, CELL * cells, 3)).T.astype(np.float32)
    size, places = cutouts[0].shape[-1], []
    for cell, pixels in zip(rng.permutation(cells**2), cutouts):
        x, y = CELL * np.array([cell % cells, cell // cells]) + rng.integers(0, CELL - size + 1, 2)
        sky[:, y : y + size, x : x + size] = pixels
        places.append((x + (size - 1) / 2, y + (size - 1) / 2))
    return sky, np.array(places).T


def wcs_of(number: int, side: int, pixel_scale: float) -> WCS:
    """Tangential, north up and east to the left."""
    step = 1.02 * side * pixel_scale / 3600 / math.cos(math.radians(DEC))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cunit = ("RA---TAN", "DEC--TAN"), ("deg", "deg")
    wcs.wcs.crval, wcs.wcs.crpix = (150 + number * step, DEC), ((side + 1) / 2,) * 2
    wcs.wcs.cd = np.diag([-pixel_scale, pixel_scale]) / 3600
    return wcs


def write_tile(folder: Path, number: int, sky: np.ndarray, wcs: WCS, config: Any) -> None:
    header = wcs.to_header()
    header["MAGZERO"] = config.zero_point
    for band, plane in zip(BANDS, sky):
        header["FILTER"] = band
        with through_memory(folder / band / f"{number:03d}.fits") as file:
            fits.writeto(file, plane, header)


if __name__ == "__main__":
    main()
