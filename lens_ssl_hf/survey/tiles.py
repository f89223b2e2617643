"""Positions on tiles: the files of each tile, the tile of each position, and the cutouts around them."""

import glob
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from astropy.coordinates import SkyCoord
from scipy.spatial import cKDTree

from ..data.files.fits_tiles import AT_THE_EDGE, open_tile
from ..data.files.raw import RawCutout
from ..data.listing.rows import Row
from ..errors import InputError
from ..inference.read_cutout import seen_side
from .crops import Asked

OFF_EVERY_TILE = "off every tile"
NO_POSITION = "the table gives no position"
CHUNK = 512  # rows for each of which a tile is not opened again
_AT_ONCE = 1_000_000  # positions that are turned into vectors at a time
_WILDCARD = r"(\*\*/?|\*|\?|\[.[^]]*\])"
_MATCHED = {"**/": "((?:.*/)?)", "**": "(.*)", "*": "([^/]*)"}


def find_tiles(pattern: str, bands: Sequence[str]) -> list[tuple[Path, ...]]:
    """
    The files of each tile, one for each of `bands` where the pattern holds `{band}`, else one; sorted by what stands
    for the wildcards. A `~` at the beginning is the home directory.

    Raises:
        [`InputError`]: no file fits the pattern, or a folder does; or a tile lacks one of the bands.
    """
    names = list(bands) if "{band}" in pattern else [""]
    if not names:
        raise InputError(f"the model does not name the bands that tiles {pattern!r} needs: give bands")
    found = [_matches(os.path.expanduser(pattern), name) for name in names]
    if folder := next((path for files in found for path in files.values() if path.is_dir()), None):
        fix = "give a pattern of files, such as 'sky/{band}/*.fits'"
        raise InputError(f"tiles {pattern!r} fits the folder {folder}: {fix}")
    for name, files in zip(names, found):
        if not files:
            of_band = f" of band {name}" if name else ""
            fix = "correct it, or give --bands as they stand in the names of the files"
            raise InputError(f"tiles {pattern!r} fits no file{of_band}: {fix}")
    keys = sorted(set().union(*found))
    for key in keys:
        lacking = [name for name, files in zip(names, found) if key not in files]
        if lacking:
            beside = next(files[key] for files in found if key in files)
            raise InputError(f"the tile of {beside} has no file of band {lacking[0]}: add it, or leave the tile out")
    return [tuple(files[key] for files in found) for key in keys]


def _matches(pattern: str, band: str) -> dict[tuple[str, ...], Path]:
    """The files that fit, by what stands for the wildcards."""
    parts = re.split(_WILDCARD, pattern.replace("{band}", glob.escape(band)))
    regex = "".join(_MATCHED.get(part, "([^/])") if i % 2 else re.escape(part) for i, part in enumerate(parts))
    paths = glob.glob("".join(parts), recursive=True)
    return {match.groups(): Path(path) for path in paths if (match := re.fullmatch(regex, path))}


def put_on_tiles(
    ra: np.ndarray, dec: np.ndarray, tiles: list[tuple[Path, ...]], bands: Sequence[str] | None, hdu: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The tile in which each position lies furthest from the edge. Only the headers of the tiles are read.

    Args:
        ra, dec (`np.ndarray` of shape `(n,)`): degrees (ICRS); NaN where they are unknown.
        tiles (`list[tuple[Path, ...]]`): see [`find_tiles`].
        bands (`Sequence[str]`, *optional*), hdu (`str`, *optional*): see [`open_tile`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the number of each position's tile, `len(tiles)` where it is off all of them;
        and the numbers of the positions in the order of the tiles, in each along its rows of pixels. Those that are
        off every tile come last.

    Raises:
        [`InputError`]: two tiles are of the same pixels, such as an image and a map of its noise, of which only one
            can be meant; and what [`open_tile`] raises.
    """
    known = np.flatnonzero(np.isfinite(ra))
    tree = _tree_of(ra, dec, known)
    tile, line = np.full(len(ra), len(tiles), np.int32), np.zeros(len(ra), np.int32)
    best, seen = np.full(len(ra), -1.0), {}
    for i, paths in enumerate(datasets.utils.tqdm(tiles, "Placing", unit=" tiles", delay=5)):
        with open_tile(paths, bands, hdu) as one:
            if (earlier := seen.setdefault(one.grid, paths[0])) is not paths[0]:
                raise InputError(f"{paths[0]} covers the same pixels as {earlier}: narrow tiles to the images of flux")
            centre, radius = one.circle()
            chord = 2 * math.sin(math.radians(min(radius, 180)) / 2)
            near = known[np.array(tree.query_ball_point(centre.cartesian.xyz.value, chord), dtype=int)]
            if len(near):
                sky = SkyCoord(ra[near], dec[near], unit="deg")
                depth = np.round(one.depth(sky), 9)  # the last bits differ among machines
                is_best = (depth >= 0) & (depth > best[near])
                chosen = near[is_best]
                tile[chosen], best[chosen], line[chosen] = i, depth[is_best], one.rows(sky[is_best])
    del tree, best
    return tile, np.lexsort((line, tile))


def _tree_of(ra: np.ndarray, dec: np.ndarray, known: np.ndarray) -> cKDTree:
    """Of the unit vectors of the positions whose numbers are known; built in the way that needs the least memory."""
    vectors = np.empty((len(known), 3))
    for first in range(0, len(known), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        sky = SkyCoord(ra[known[part]], dec[known[part]], unit="deg")
        vectors[part] = sky.cartesian.xyz.value.T
    return cKDTree(vectors, leafsize=128, balanced_tree=False, compact_nodes=False)


def read_cutouts(rows: list[Row], settings: Any) -> Iterator[RawCutout | str]:
    """
    The cutout around each position, or why there is none; rows that follow each other on one tile are read together.
    Of the `settings` it takes `asked`, `bands` and `hdu`.
    """
    for paths, members in groupby(rows, key=lambda row: row.paths):
        yield from _on_one_tile(paths, list(members), settings)


def _on_one_tile(paths: tuple[Path, ...], rows: list[Row], settings: Any) -> Iterator[RawCutout | str]:
    if not paths:
        yield from (NO_POSITION if row.ra is None else OFF_EVERY_TILE for row in rows)
        return
    try:
        with open_tile(paths, settings.bands, settings.hdu) as tile:
            side, least = (_side(one, tile.facts) for one in (settings.asked, replace(settings.asked, side=0)))
            cutouts = tile.cutouts([row.ra for row in rows], [row.dec for row in rows], side)
            for row, found in zip(rows, cutouts):
                if found == AT_THE_EDGE and side > least:  # what the models see may still be inside
                    found = next(tile.cutouts([row.ra], [row.dec], least))
                yield found
    except InputError as error:  # it cannot be opened any more
        yield from [str(error)] * len(rows)


def _side(asked: Asked, facts: RawCutout) -> int:
    """Half more than what is asked for, for what masked pixels are filled from and resampling needs; even."""
    sides = (seen_side(facts, one.cutouts, max(one.size, asked.side)) for one in asked.preparations)
    return 2 * math.ceil(0.75 * max(sides))
