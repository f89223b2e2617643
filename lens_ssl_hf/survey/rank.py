"""The best candidates of a scored survey, each object once, and a random sample of the rest."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from astropy import units
from astropy.coordinates import SkyCoord, search_around_sky
from pyarrow import parquet

from ..data.files.raw import readable
from ..data.storage import check_target
from ..errors import InputError
from ..evaluation.plots import contact_sheet
from ..evaluation.predictions import Predictions
from ..files import replacing, write_json
from . import manifest as manifests
from .crops import Asked, Preparation
from .inputs import Options, open_input
from .ranking_tables import VIEWER, write_tables

logger = logging.getLogger(__name__)

SHEET = 100  # candidates on the contact sheet
SPARE = 1000  # rows that are kept beyond twice the candidates, for those that are merged
_COLUMNS = ["id", "ra", "dec", "source", "score", "logit"]


@dataclass(frozen=True)
class _Shards:
    """The scored rows in the shards of a folder; `row` is the number of each in the input."""

    paths: list[Path]
    size: int
    columns: list[str]

    def __iter__(self) -> Iterator[pyarrow.Table]:
        for number, path in enumerate(self.paths):
            with readable(path, fix=manifests.AGAIN):
                table = parquet.read_table(path, columns=self.columns, partitioning=None)
            table = table.append_column("row", pyarrow.array(np.arange(len(table)) + number * self.size))
            yield table.filter(table["score"].is_valid()).replace_schema_metadata(None)


def rank(
    scores: str | os.PathLike,
    output: str | os.PathLike,
    top: int = 500,
    audit: int = 0,
    separation: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Write the `top` candidates and a random sample of the rest as tables, with a contact sheet of the first `SHEET`.
    Memory is bounded by `top`, `audit` and the size of a shard.

    Args:
        scores (`str` or `os.PathLike`): the folder that [`score`] wrote.
        output (`str` or `os.PathLike`): the folder to write; it must not exist, or be empty.
        top (`int`, *optional*, defaults to `500`): candidates, by their logit.
        audit (`int`, *optional*, defaults to `0`): rows that are drawn from all others at random.
        separation (`float`, *optional*, defaults to `1.0`):
            In arcsec: of the rows closer than this to a better one, only that is kept; 0 keeps all.
        seed (`int`, *optional*, defaults to `0`): of the draw.

    Returns:
        `dict`: what is in ranking.json: the settings, and how many rows were ranked, merged and sampled.

    Raises:
        [`InputError`]: scores that are missing, damaged or not complete, or an `output` that cannot be written.
    """
    for name, value, least in (("top", top, 1), ("audit", audit, 0), ("separation", separation, 0), ("seed", seed, 0)):
        if not value >= least:
            raise InputError(f"{name} is {value}: give at least {least}")
    scores, output = Path(scores), Path(output)
    check_target(output)
    manifest = manifests.read(scores)
    shards = _open(scores, manifest)
    best = _best(shards, top, separation)
    if not len(best):
        raise InputError(f"{scores} holds no scored cutout, only flagged ones: see the column flag")
    sample, merged, rest = _audit(shards, best, audit, separation, seed)
    facts = {"scores": str(scores), "top": len(best), "audit": len(sample), "merged": int(merged.sum()), "rest": rest}
    facts |= {"separation": separation, "seed": seed, "models": manifest["models"], "input": manifest["input"]}
    table = _together(best, merged, sample, rest)
    try:
        with replacing(output) as new:
            new.mkdir()
            write_tables(table, new)
            _draw(best, manifest, new / "contact_sheet.png")
            write_json(new / "ranking.json", facts)
    except OSError as error:
        raise InputError(f"cannot write {output} ({error.strerror or error}): choose another output") from error
    return facts


def _open(folder: Path, manifest: dict[str, Any]) -> _Shards:
    """
    Raises:
        [`InputError`]: a shard is missing, damaged or of something else.
    """
    paths = manifests.shard_paths(folder, manifest)
    if missing := [path.name for path in paths if not path.is_file()]:
        raise InputError(
            f"{folder} lacks {len(missing)} of {len(paths)} shards ({missing[0]}, ...): go on with lens-ssl score"
        )
    key = manifests.key_of(manifest)
    for path in paths:
        if manifests.shard_facts(path)["key"] != key:
            raise InputError(f"{path} is of another model, input or option: score again into another folder")
    extra = ["spread"] if len(manifest["models"]) > 1 else []
    return _Shards(paths, manifest["options"]["shard_size"], _COLUMNS + extra)


def _best(shards: _Shards, top: int, separation: float) -> pyarrow.Table:
    """The best rows, no two closer than `separation`; more rows are looked at until enough are left."""
    limit = 2 * top + SPARE
    while True:
        pool = None
        for table in shards:
            pool = table if pool is None else pyarrow.concat_tables([pool, table])
            order = np.lexsort((pool["row"].to_numpy(), -pool["logit"].to_numpy()))
            pool = pool.take(order[:limit]).combine_chunks()
        kept = _unique(pool, separation)
        if len(kept) >= top or len(pool) < limit:
            return pool.take(kept[:top])
        limit *= 4


def _unique(table: pyarrow.Table, separation: float) -> np.ndarray:
    """The rows, from the first on, that are not closer than `separation` (arcsec) to one that is kept."""
    is_kept = np.ones(len(table), bool)
    known, places = _places(table)
    if separation > 0 and len(known) > 1:
        first, second, _, _ = search_around_sky(places, places, separation * units.arcsec)
        pairs = np.stack([known[first], known[second]])[:, first < second]
        for one, other in pairs[:, np.lexsort(pairs[::-1])].T:  # the better one in the order of its rank
            if is_kept[one]:
                is_kept[other] = False
    return np.flatnonzero(is_kept)


def _places(table: pyarrow.Table) -> tuple[np.ndarray, Any]:
    """The rows with a position, and these positions."""
    ra, dec = (table[name].to_pandas().to_numpy(dtype=float) for name in ("ra", "dec"))
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    return known, SkyCoord(ra[known], dec[known], unit="deg")


def _audit(
    shards: _Shards, best: pyarrow.Table, number: int, separation: float, seed: int
) -> tuple[pyarrow.Table, np.ndarray, int]:
    """
    A random sample of the rows that are neither among the best nor at the place of one; how many are at the place of
    each; and how many rows are left. The first k rows of a sample are a sample of k.
    """
    taken, merged, rest = best["row"].to_numpy(), np.zeros(len(best), int), 0
    places = _places(best)
    sample, lots = best.slice(0, 0), np.empty(0)
    for i, table in enumerate(shards):
        is_left = ~np.isin(table["row"].to_numpy(), taken)
        known, nearest = _near(table, places, separation)
        is_again = is_left[known]
        np.add.at(merged, nearest[is_again], 1)
        is_left[known] = False
        left = table.filter(pyarrow.array(is_left))
        rest += len(left)
        lots = np.append(lots, np.random.default_rng([seed, i]).random(len(left)))
        sample = pyarrow.concat_tables([sample, left])
        order = np.argsort(lots, kind="stable")[:number]
        sample, lots = sample.take(order).combine_chunks(), lots[order]
    return sample, merged, rest


def _near(table: pyarrow.Table, best: tuple[np.ndarray, Any], separation: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are at the place of one of the best, and of which."""
    known, places = _places(table)
    if not (separation > 0 and len(known) and len(best[0])):
        return np.empty(0, int), np.empty(0, int)
    nearest, distance, _ = places.match_to_catalog_sky(best[1])
    is_near = distance.arcsec <= separation
    return known[is_near], best[0][nearest[is_near]]


def _together(best: pyarrow.Table, merged: np.ndarray, sample: pyarrow.Table, rest: int) -> pyarrow.Table:
    """Both with their ranks, inclusion probabilities and links."""
    count, drawn = len(best), len(sample)
    table = pyarrow.concat_tables([best, sample])
    columns = {
        "rank": pyarrow.array([*range(1, count + 1), *[None] * drawn], pyarrow.int64()),
        **{name: table[name] for name in table.column_names if name not in ("source", "row")},
        "sample": ["top"] * count + ["audit"] * drawn,
        "inclusion_probability": np.append(np.ones(count), np.full(drawn, drawn / rest if rest else 1.0)),
        "duplicates": np.append(merged, np.zeros(drawn, int)),
        "viewer": pyarrow.array(
            [None if None in at else VIEWER.format(*at) for at in zip(*(table[n].to_pylist() for n in ("ra", "dec")))],
            pyarrow.string(),
        ),
        "source": table["source"],
    }
    return pyarrow.table(columns)


def _draw(best: pyarrow.Table, manifest: dict[str, Any], path: Path) -> None:
    """The contact sheet of the first candidates as the first model sees them, where the input can still be read."""
    first = manifest["models"][0]
    preparation = Preparation(first["cutouts"], first["num_bands"], first["size"])
    options = Options(**{name: v for name, v in manifest["options"].items() if name in Options.__dataclass_fields__})
    try:
        bands = [band for one in manifest["models"] for band in one["cutouts"].get("bands") or ()]
        source = open_input(manifest["input"]["path"], options, list(dict.fromkeys(bands)))
        if source.fingerprint != manifest["input"]["fingerprint"]:
            raise InputError(f"{source.name} is not what it was")
    except (InputError, OSError) as error:
        logger.warning(f"no contact sheet is drawn: {error}")
        return
    rows = best["row"].to_pylist()[:SHEET]
    crops = [next(source.batches(row, row + 1, Asked([preparation]), 1)).crops[0] for row in rows]
    found = [i for i, one in enumerate(crops) if not isinstance(one, str)]
    names = [str(best["id"][i].as_py()) for i in found]
    ranks = [f"rank {i + 1}" for i in found]
    score = best["score"].to_numpy()[found]
    predictions = Predictions(names, np.full(len(found), -1), names, ranks, score)
    pixels = np.stack([crops[i][0] for i in found])
    facts = preparation.cutouts.get("bands"), None, "", preparation.cutouts.get("pixel_scale")
    contact_sheet(pixels, predictions, path, *facts)
