"""The best candidates of a scored survey, each object once, and a random sample of the rest."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
from pyarrow import compute, parquet
from scipy.spatial import cKDTree

from ..data.files.raw import readable
from ..data.storage import check_target
from ..errors import InputError, check_at_least
from ..files import write_json, writing
from . import manifest as manifests
from .grades import grades_of, read_grades, spellings
from .known import find_known, read_known, with_lenses, write_known
from .listed import draw
from .places import chord, near, places_of
from .proposals import doubt, unlike
from .ranking_tables import VIEWER, write_tables

SPARE = 1000  # rows that are kept beyond twice the candidates, for those that are merged
WIDEST = 16  # times as many are looked at at once where more are merged
DIVERSE_FROM = 20  # times as many of the best rows, from which diverse ones are drawn
_COLUMNS = ["id", "ra", "dec", "source", "score", "p_lens", "logit"]


@dataclass(frozen=True)
class Shards:
    """The scored rows in the shards of a folder; `row` is the number of each in the input."""

    paths: list[Path]
    size: int
    columns: list[str]

    def __iter__(self) -> Iterator[pyarrow.Table]:
        return map(self.read, range(len(self.paths)))

    def read(self, number: int) -> pyarrow.Table:
        path = self.paths[number]
        with readable(path, fix=manifests.AGAIN):
            table = parquet.read_table(path, columns=self.columns, partitioning=None)
        table = table.append_column("row", pyarrow.array(np.arange(len(table)) + number * self.size))
        return table.filter(table["score"].is_valid()).replace_schema_metadata(None)


@dataclass(frozen=True)
class _Left:
    """The rows of shards that are neither listed, nor at the place of one that is, nor graded; with their `doubt`."""

    shards: Shards
    listed: pyarrow.Table
    separation: float
    graded: list[str]
    calibration: Mapping[str, Any] | None

    def __iter__(self) -> Iterator[pyarrow.Table]:
        places, graded = places_of(self.listed), pyarrow.array(self.graded, pyarrow.string())
        for table in self.shards:
            is_left = ~np.isin(table["row"].to_numpy(), self.listed["row"].to_numpy())
            is_left[near(table, places, self.separation)[0]] = False
            is_left &= ~compute.is_in(table["id"].cast(pyarrow.string()), graded).to_numpy()
            left = table.filter(pyarrow.array(is_left))
            yield left.append_column("doubt", pyarrow.array(doubt(left, self.calibration)))


def rank(
    scores: str | os.PathLike,
    output: str | os.PathLike,
    top: int = 500,
    audit: int = 0,
    uncertain: int = 0,
    diverse: int = 0,
    graded: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    separation: float = 1.0,
    seed: int = 0,
    known: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """
    Write the `top` candidates and a random sample of the rest as tables, with a contact sheet and a grading page.
    Memory is bounded by `top`, `audit`, `uncertain`, `diverse`, `known` and the size of a shard.

    Args:
        scores (`str` or `os.PathLike`): the folder that [`score`] wrote.
        output (`str` or `os.PathLike`): the folder to write; it must not exist, or be empty.
        top (`int`, *optional*, defaults to `500`): candidates, by their logit.
        audit (`int`, *optional*, defaults to `0`): rows that are drawn from all others at random.
        uncertain (`int`, *optional*, defaults to `0`): further rows, of which the model is least sure: see [`doubt`].
        diverse (`int`, *optional*, defaults to `0`):
            Further rows that are unlike each other, from the best `DIVERSE_FROM` times as many: see [`unlike`].
        graded (`str`, `os.PathLike`, or list of them, *optional*):
            Tables of grades: the ranking says what has one, and these objects are not among `uncertain` and `diverse`.
        separation (`float`, *optional*, defaults to `1.0`):
            In arcsec: of the rows closer than this to a better one, only that is kept; 0 keeps all.
        seed (`int`, *optional*, defaults to `0`): of the draw, and of the order in which the page shows the rows.
        known (`str` or `os.PathLike`, *optional*):
            Known lenses, whose ranks are listed and drawn: what [`read_known`] takes.

    Returns:
        `dict`: what is in ranking.json: the settings, and how many rows were ranked, merged and sampled.

    Raises:
        [`InputError`]: scores that are missing, damaged or not complete, or without the embeddings that `diverse`
            needs; known lenses that cannot be read; or an `output` that cannot be written, or lies in the input.
    """
    check_at_least(1, top=top)
    check_at_least(0, audit=audit, uncertain=uncertain, diverse=diverse, separation=separation, seed=seed)
    grades = read_grades(graded) if graded else None
    done = [] if grades is None else spellings(grades["id"].to_list())
    scores, output = Path(scores), Path(output)
    check_target(output)
    if known and not separation:
        raise InputError("separation is 0: give one within which a row is a known lens, in arcsec")
    lenses = with_lenses(read_known(known), separation) if known else None
    manifest = manifests.read(scores)
    manifests.check_output(output, manifest["input"]["path"])
    shards = open_shards(scores, manifest)
    if diverse and not manifest["options"]["embeddings"]:
        raise InputError(f"{scores} holds no embeddings: score again with --embeddings, or leave diverse out")
    best = best_of(shards, top, separation)

    def propose(listed: pyarrow.Table) -> dict[str, pyarrow.Table]:
        left = _Left(shards, listed, separation, list(done), manifest["calibration"])
        return _propose(left, uncertain, diverse, seed)

    settings = {}
    if lenses is not None:
        count = len(lenses["lens"].unique())
        settings["known"] = {"table": str(known), "lenses": count, "merged": len(lenses) - count}
    return write_ranking(
        best,
        shards,
        manifest,
        output,
        separation,
        audit,
        seed,
        lenses=lenses,
        propose=propose,
        grades=grades,
        **settings,
    )


def write_ranking(
    best: pyarrow.Table,
    shards: Shards,
    manifest: dict[str, Any],
    output: Path,
    separation: float,
    audit: int = 0,
    seed: int = 0,
    by: str = "logit",
    lenses: pyarrow.Table | None = None,
    propose: Callable[[pyarrow.Table], dict[str, pyarrow.Table]] = lambda listed: {},
    grades: pandas.DataFrame | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """
    Write what [`best_of`] found, with a sample of the rest.

    Args:
        best (`pyarrow.Table`), shards ([`Shards`]), manifest (`dict`): what was found, where, and made of what.
        output, separation, audit, seed: as [`rank`] has them.
        by (`str`, *optional*): the column that the contact sheet shows and is sorted by.
        lenses (`pyarrow.Table`, *optional*): known ones, as [`with_lenses`] returns them.
        propose (`Callable`, *optional*): from the listed rows to further ones, by the name of their sample.
        grades (`pandas.DataFrame`, *optional*): earlier ones, as [`read_grades`] returns them.
        settings: further ones for ranking.json.

    Raises:
        [`InputError`]: nothing was found, or `output` cannot be written.
    """
    folder = shards.paths[0].parent
    if not len(best):
        raise InputError(f"{folder} holds no scored cutout to list, only flagged ones: see the column flag")
    plain = best.select([name for name in best.column_names if name in (*shards.columns, "row")])
    sample, merged, rest = _audit(shards, plain, audit, separation, seed)
    proposed = propose(pyarrow.concat_tables([plain, sample]))
    facts = {"scores": str(folder), "top": len(best), "audit": len(sample), "merged": int(merged.sum()), "rest": rest}
    facts |= {name: len(rows) for name, rows in proposed.items()}
    facts |= {"separation": separation, "seed": seed, **settings}
    facts |= {"models": manifest["models"], "input": manifest["input"], "options": manifest["options"]}
    table = _together(best, merged, sample, rest, proposed)
    found = None if lenses is None else find_known(shards, lenses, separation)
    if found is not None:
        table = _with_known(table, lenses, separation)
        facts["known"]["scored"] = len(found)
    if grades is not None:
        grades = grades_of(grades, set(map(str, table["id"].to_pylist())))
        table = _with_grades(table, grades)
        facts["graded"] = int(grades["id"].nunique())
    with writing(output) as new:
        new.mkdir()
        write_tables(table, new)
        if found is not None:
            write_known(found, len(best) + facts["merged"] + rest, new)
        numbers = [number for part in (best, sample, *proposed.values()) for number in part["row"].to_pylist()]
        draw(table, numbers, folder, manifest, seed, new, by, grades)
        write_json(new / "ranking.json", facts)
    return facts


def open_shards(folder: Path, manifest: dict[str, Any], *columns: str) -> Shards:
    """
    The shards of a folder, with further columns.

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
    return Shards(paths, manifest["options"]["shard_size"], [*_COLUMNS, *extra, *columns])


def best_of(tables: Iterable[pyarrow.Table], top: int, separation: float, by: str = "logit") -> pyarrow.Table:
    """
    The rows that are best `by` a column, no two closer than `separation`. Where too many are merged, those that follow
    are looked at as well, and so on: at most `WIDEST` times as many at once.
    """
    first, best, last = 2 * top + SPARE, None, None
    limit = first
    while True:
        pool = None
        for table in tables:
            table = table if best is None else _following(table, last, best, separation, by)
            pool = table if pool is None else pyarrow.concat_tables([pool, table])
            order = np.lexsort((pool["row"].to_numpy(), -pool[by].to_numpy()))
            pool = pool.take(order[:limit]).combine_chunks()
        found = pool.take(_unique(pool, separation))
        best = found if best is None else pyarrow.concat_tables([best, found])
        if len(best) >= top or len(pool) < limit:
            return best.slice(0, top).combine_chunks()
        last, limit = pool.slice(limit - 1), min(4 * limit, WIDEST * first)


def _following(
    table: pyarrow.Table, last: pyarrow.Table, best: pyarrow.Table, separation: float, by: str
) -> pyarrow.Table:
    """The rows of a table that come after the `last` one looked at, and are not at the place of one of the best."""
    values, rows, value, row = (one[name].to_numpy() for one in (table, last) for name in (by, "row"))
    is_left = (values < value) | ((values == value) & (rows > row))
    is_left[near(table, places_of(best), separation)[0]] = False
    return table.filter(pyarrow.array(is_left))


def _unique(table: pyarrow.Table, separation: float) -> np.ndarray:
    """The rows, from the first on, that are not closer than `separation` (arcsec) to one that is kept."""
    is_kept = np.ones(len(table), bool)
    known, places = places_of(table)
    if separation > 0 and len(known) > 1:
        vectors, reach = places.cartesian.xyz.value.T, chord(separation)
        tree = cKDTree(vectors)
        for i, row in enumerate(known):
            if is_kept[row]:  # of the others nobody asks, so that a crowd at one place is listed once
                beside = known[tree.query_ball_point(vectors[i], reach)]
                is_kept[beside[beside > row]] = False
    return np.flatnonzero(is_kept)


def _audit(
    shards: Shards, best: pyarrow.Table, number: int, separation: float, seed: int
) -> tuple[pyarrow.Table, np.ndarray, int]:
    """
    A random sample of the rows that are neither among the best nor at the place of one; how many are at the place of
    each; and how many rows are left. The first k rows of a sample are a sample of k.
    """
    taken, merged, rest = best["row"].to_numpy(), np.zeros(len(best), int), 0
    places = places_of(best)
    sample, lots = best.slice(0, 0), np.empty(0)
    for i, table in enumerate(shards):
        is_left = ~np.isin(table["row"].to_numpy(), taken)
        known, nearest = near(table, places, separation)
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


def _propose(left: _Left, uncertain: int, diverse: int, seed: int) -> dict[str, pyarrow.Table]:
    """Further rows to grade, by the name of their sample; those of the second kind are none of the first."""
    columns, found = left.listed.column_names, {}
    if uncertain:
        found["uncertain"] = best_of(left, uncertain, left.separation, by="doubt").select(columns)
    if diverse:
        listed = pyarrow.concat_tables([left.listed, *found.values()])
        shards = replace(left.shards, columns=[*left.shards.columns, "embedding"])
        pool = best_of(replace(left, shards=shards, listed=listed), DIVERSE_FROM * diverse, left.separation)
        embeddings = np.stack([*pool["embedding"].to_numpy()]).astype(np.float32) if len(pool) else np.empty((0, 1))
        found["diverse"] = pool.take(unlike(embeddings, diverse, seed)).select(columns)
    return found


def _together(
    best: pyarrow.Table,
    merged: np.ndarray,
    sample: pyarrow.Table,
    rest: int,
    proposed: Mapping[str, pyarrow.Table],
) -> pyarrow.Table:
    """All with their ranks, inclusion probabilities (null where the scores decided) and links."""
    count, drawn, others = len(best), len(sample), sum(map(len, proposed.values()))
    table = pyarrow.concat_tables([best, sample, *proposed.values()], promote_options="default")
    chances = [*[1.0] * count, *[drawn / max(rest, 1)] * drawn, *[None] * others]
    columns = {
        "rank": pyarrow.array([*range(1, count + 1), *[None] * (drawn + others)], pyarrow.int64()),
        **{name: table[name] for name in table.column_names if name not in ("source", "row")},
        "sample": ["top"] * count
        + ["audit"] * drawn
        + [name for name, rows in proposed.items() for _ in range(len(rows))],
        "inclusion_probability": pyarrow.array(chances, pyarrow.float64()),
        "duplicates": np.append(merged, np.zeros(drawn + others, int)),
        "viewer": pyarrow.array(
            [None if None in at else VIEWER.format(*at) for at in zip(*(table[n].to_pylist() for n in ("ra", "dec")))],
            pyarrow.string(),
        ),
        "source": table["source"],
    }
    return pyarrow.table(columns)


def _with_known(table: pyarrow.Table, lenses: pyarrow.Table, separation: float) -> pyarrow.Table:
    """With the names of the known lenses in column `known`."""
    names: list[str | None] = [None] * len(table)
    for row, lens in zip(*near(table, places_of(lenses), separation)):
        names[row] = lenses["name"][lenses["lens"][int(lens)].as_py()].as_py()
    place = table.column_names.index("viewer")
    return table.add_column(place, "known", pyarrow.array(names, pyarrow.string()))


def _with_grades(table: pyarrow.Table, grades: pandas.DataFrame) -> pyarrow.Table:
    """With the grades that all graders gave before in column `grade`."""
    given = grades.groupby("id", sort=False)["grade"].agg(" ".join).to_dict()
    found = pyarrow.array([given.get(str(one)) for one in table["id"].to_pylist()], pyarrow.string())
    return table.add_column(table.column_names.index("viewer"), "grade", found)
