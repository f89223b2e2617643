"""What of a scored survey looks like some objects, or like nothing else."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import compute
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from ..data.files.raw import RawCutout
from ..data.listing.rows import Row
from ..data.storage import check_target
from ..errors import InputError, check_at_least
from ..inference.read_cutout import unstated
from . import manifest as manifests
from .crops import text_array
from .embeddings import SAMPLE, Whitening, embeddings_of, open_embeddings, sample
from .index import open_index
from .inputs import FileInput, Options
from .places import near, places_of
from .rank import Shards, best_of, write_ranking

logger = logging.getLogger(__name__)

DISLIKE = 0.2  # weight of what is disliked, as Rocchio's 0.15 / 0.75
NEIGHBOUR = 20  # the one whose distance makes an anomaly
DETECTORS = ("neighbours", "isolation_forest")


@dataclass(frozen=True)
class _Measured:
    """
    The rows of shards with a number each in place of their embeddings; without the rows in `left_out`, and of some
    alone where `among` names them.
    """

    shards: Shards
    column: str
    measure: Callable[[pyarrow.Table], np.ndarray]
    left_out: list[int] = field(default_factory=list)
    among: np.ndarray | None = None

    def __iter__(self) -> Iterator[pyarrow.Table]:
        shards = self.shards
        numbers = range(len(shards.paths)) if self.among is None else np.unique(self.among // shards.size)
        for table in map(shards.read, numbers):
            rows = table["row"].to_numpy()
            table = table.filter(~np.isin(rows, self.left_out) & (self.among is None or np.isin(rows, self.among)))
            values = self.measure(table) if len(table) else np.empty(0)
            yield table.drop_columns("embedding").append_column(self.column, pyarrow.array(values, pyarrow.float64()))


def search(
    scores: str | os.PathLike,
    output: str | os.PathLike,
    like: str | Sequence[str],
    unlike: str | Sequence[str] = (),
    top: int = 100,
    separation: float = 1.0,
    device: str | None = None,
    index: bool = False,
) -> dict[str, Any]:
    """
    Write the objects whose embeddings are most similar to those of some, as [`rank`] writes the best ones. The search
    is exact, and memory is bounded by `top` and the size of a shard.

    Similarity is the cosine between an object and the mean of those that are liked, minus `DISLIKE` times the mean of
    those that are disliked (Rocchio 1971), all whitened by a sample of the survey. A mean suppresses what the liked
    ones do not have in common.

    Args:
        scores (`str` or `os.PathLike`): the folder that [`score`] wrote, with embeddings.
        output (`str` or `os.PathLike`): the folder to write; it must not exist, or be empty.
        like, unlike (`str` or a list of them): ids of the survey, or files of cutouts, which the model then embeds.
        top (`int`, *optional*, defaults to `100`):
            Objects to list; those that are given, and others within `separation` of them, are left out.
        separation (`float`, *optional*, defaults to `1.0`): as [`rank`] has it.
        device (`str`, *optional*): for files; by default the GPU where there is one.
        index (`bool`, *optional*):
            Compare only objects that faiss proposes. Its indexes are made beside the shards at the first search.

    Returns:
        `dict`: what is in ranking.json.

    Raises:
        [`InputError`]: no embeddings, an id or file that is not there, faiss is missing, or what [`rank`] refuses.
    """
    like, unlike = ([one] if isinstance(one, str | os.PathLike) else list(one) for one in (like, unlike))
    if not like:
        raise InputError("nothing is liked: give at least one id or file")
    manifest, shards = _open(scores, output, top, separation)
    indexed = open_index(shards) if index else None
    whiten = indexed.whiten if indexed else Whitening.fit(embeddings_of(sample(shards, SAMPLE)))
    rows, places, embeddings = _look_up([str(one) for one in (*like, *unlike)], shards, manifest, device)
    left_out = rows + _at_places_of(places, shards, separation)
    found = whiten(embeddings)
    query = found[: len(like)].mean(axis=0)
    if unlike:
        query = query - DISLIKE * found[len(like) :].mean(axis=0)
    query /= np.linalg.norm(query).clip(1e-12)
    among = indexed.candidates(query, top, separation, left_out) if indexed else None
    if among is not None and len(among) < top:  # few rows, or most of them merged
        among = None
    tables = _Measured(shards, "similarity", lambda table: whiten(embeddings_of(table)) @ query, left_out, among)
    settings = {"like": list(map(str, like)), "unlike": list(map(str, unlike))}
    return _write(tables, manifest, output, top, separation, settings)


def find_anomalies(
    scores: str | os.PathLike,
    output: str | os.PathLike,
    top: int = 100,
    detector: str = "neighbours",
    separation: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Write the objects whose embeddings are least like those of others, as [`search`] does.

    Args:
        detector (`str`, *optional*):
            `neighbours` is the distance to the `NEIGHBOUR`-th nearest of a random sample of the survey;
            `isolation_forest` is scikit-learn's, fitted to that sample.
        scores, output, top, separation: as [`search`] has them.
        seed (`int`, *optional*, defaults to `0`): of the sample and of the forest.
    """
    if detector not in DETECTORS:
        raise InputError(f"detector is {detector}: choose from {', '.join(DETECTORS)}")
    check_at_least(0, seed=seed)
    manifest, shards = _open(scores, output, top, separation)
    reference = sample(shards, SAMPLE, seed)
    measure = _distance if detector == "neighbours" else _isolation
    tables = _Measured(shards, "distance" if detector == "neighbours" else "isolation", measure(reference, seed))
    return _write(tables, manifest, output, top, separation, {"detector": detector, "reference": len(reference)}, seed)


def _distance(reference: pyarrow.Table, seed: int) -> Callable[[pyarrow.Table], np.ndarray]:
    """Euclidean distance to the `NEIGHBOUR`-th other row of the reference, or the last one of few."""
    known, last = reference["row"].to_numpy(), min(NEIGHBOUR, len(reference) - 1)
    neighbours = NearestNeighbors(n_neighbors=last + 1).fit(embeddings_of(reference))

    def measure(table: pyarrow.Table) -> np.ndarray:
        distances, _ = neighbours.kneighbors(embeddings_of(table))
        is_known = np.isin(table["row"].to_numpy(), known)  # the nearest is the row itself
        return np.where(is_known, distances[:, last], distances[:, max(0, last - 1)])

    return measure


def _isolation(reference: pyarrow.Table, seed: int) -> Callable[[pyarrow.Table], np.ndarray]:
    forest = IsolationForest(random_state=seed % 2**32).fit(embeddings_of(reference))
    return lambda table: -forest.score_samples(embeddings_of(table))


def _open(
    scores: str | os.PathLike, output: str | os.PathLike, top: int, separation: float
) -> tuple[dict[str, Any], Shards]:
    check_at_least(1, top=top)
    check_at_least(0, separation=separation)
    check_target(Path(output))
    manifest = manifests.read(Path(scores))
    manifests.check_output(output, manifest["input"]["path"])
    return manifest, open_embeddings(Path(scores), manifest)


def _write(
    tables: _Measured,
    manifest: dict[str, Any],
    output: str | os.PathLike,
    top: int,
    separation: float,
    settings: dict[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    best = best_of(tables, top, separation, by=tables.column)
    if tables.left_out and not len(best):
        raise InputError(
            f"every scored object of {tables.shards.paths[0].parent} is given, or within {separation:g} arcsec of one "
            "that is: give fewer, or a smaller separation"
        )
    columns = [name for name in tables.shards.columns if name != "embedding"]
    shards = replace(tables.shards, columns=columns)
    return write_ranking(best, shards, manifest, Path(output), separation, seed=seed, by=tables.column, **settings)


def _look_up(
    words: list[str], shards: Shards, manifest: dict[str, Any], device: str | None
) -> tuple[list[int], pyarrow.Table, np.ndarray]:
    """
    The numbers of the survey's rows among `words`; `ra` and `dec` of all words that have them; and the embedding of
    each word: of an id first, else of a file.
    """
    given = _rows_of(words, shards)
    found = {}
    for word, row in zip(given["id"].to_pylist(), given["row"].to_pylist()):
        table = shards.read(row // shards.size)
        found[word] = embeddings_of(table.filter(compute.equal(table["row"], row)))[0]
    files = [word for word in dict.fromkeys(words) if word not in found]
    if missing := [word for word in files if not Path(word).is_file()]:
        raise InputError(
            f"{shards.paths[0].parent} holds no scored object {missing[0]}, and there is no such file: "
            "give ids as the scores have them, or files of cutouts"
        )
    places = given.select(["ra", "dec"])
    if files:
        embeddings, columns = _embed(files, manifest, device)
        found |= zip(files, embeddings)
        places = pyarrow.concat_tables([places, columns], promote_options="permissive")
    return given["row"].to_pylist(), places, np.stack([found[word] for word in words])


def _rows_of(words: list[str], shards: Shards) -> pyarrow.Table:
    found = []
    for table in replace(shards, columns=["id", "ra", "dec", "score"]):
        ids = table["id"].cast(pyarrow.string())
        found.append(table.set_column(0, "id", ids).filter(compute.is_in(ids, pyarrow.array(words, pyarrow.string()))))
    return pyarrow.concat_tables(found)


def _at_places_of(given: pyarrow.Table, shards: Shards, separation: float) -> list[int]:
    """The numbers of the rows within `separation` of given places: the survey may hold an object twice."""
    found, places = [], places_of(given)
    if separation and len(places[0]):
        for table in replace(shards, columns=["ra", "dec", "score"]):
            found += table["row"].to_numpy()[near(table, places, separation)[0]].tolist()
    return found


def _embed(files: list[str], manifest: dict[str, Any], device: str | None) -> tuple[np.ndarray, pyarrow.Table]:
    """
    Embeddings of files by the model of the survey, in float16 as there; and `ra` and `dec` by their headers.

    Raises:
        [`InputError`]: the model is not what it was; or a file cannot be scored.
    """
    from .scorer import Scorer  # torch, which only new files need

    scored = manifest["models"][0]
    precision = manifest["options"].get("precision", "fp32")
    scorer = Scorer([scored["model"]], with_embeddings=True, device=device, precision=precision)
    scorer.asked = replace(scorer.asked, stated=frozenset(manifest["stated"]))
    rows = [Row(name, (Path(name),), -1) for name in files]
    options = Options.of_manifest(manifest["options"])
    source = FileInput("the files", rows, text_array(files), hdu=options.hdu, told=options.told)
    now = manifests.describe(scorer, [scored["model"]], source, {})["models"][0]
    if changed := [key for key in now if key not in ("model", "revision") and now[key] != scored.get(key)]:
        raise InputError(
            f"{scored['model']} is not the model of the scores ({', '.join(changed)}): score again into another folder"
        )
    read = list(source.sample(len(files), scorer.asked))  # all of them
    crops = [scorer.asked.crops(raw, name) if isinstance(raw, RawCutout) else raw for raw, name in read]
    if faults := [one for one in crops if isinstance(one, str)]:
        raise InputError(faults[0])
    (preparation,) = scorer.asked.preparations
    left_open = [(name, unstated(raw, preparation.cutouts)) for raw, name in read]
    for fact, keyword in (("bands", "BANDS"), ("pixel scale", "PIXSCALE")):
        silent = [(name, facts[fact]) for name, facts in left_open if fact in facts]
        if silent:
            (name, taken), *others = silent
            beside = f" and {len(others)} more files" if others else ""
            logger.warning(
                f"{name}{beside} without {fact}: taken as {taken}; if that is wrong, write {keyword} into the FITS "
                "header"
            )
    positions = {name: pyarrow.array([getattr(raw, name) for raw, _ in read], "float64") for name in ("ra", "dec")}
    return np.concatenate([one.embeddings for one in scorer.score(crops)]), pyarrow.table(positions)
