"""Known lenses among the scored rows: where they rank, and how complete a list of any length is."""

import csv
import logging
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow
from matplotlib.ticker import PercentFormatter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..data.listing.table_files import read_table
from ..data.listing.tables import find_column, read_position, refuse_rounded
from ..errors import InputError
from ..evaluation.intervals import score_interval
from ..evaluation.plots import COLOURS, new_figure, save_figure
from ..quoting import in_spreadsheet
from .places import chord, near, places_of

logger = logging.getLogger(__name__)

LENSCAT = "lenscat"
_COLUMNS = ["name", "ra", "dec", "id", "score", "rank"]


def read_known(source: str | os.PathLike) -> pyarrow.Table:
    """
    Known lenses: `name`, and `ra` and `dec` in degrees.

    Args:
        source (`str` or `os.PathLike`):
            A table with columns `ra` and `dec`, and `name` where there is one; or `"lenscat"`, of whose catalogue
            (https://github.com/lenscat/lenscat) the confident lenses are taken.

    Raises:
        [`InputError`]: the table cannot be read or holds no position, or names that lost digits; or lenscat is not
            installed.
    """
    if str(source) == LENSCAT:
        path, names = _lenscat_file(), {"name": "name", "ra": "RA [deg]", "dec": "DEC [deg]", "grading": "grading"}
    else:
        path, names = Path(source), {"name": "name", "ra": "ra", "dec": "dec"}
    columns = read_table(path)
    found = {key: find_column(name, list(columns.values), path, key) for key, name in names.items()}
    if found["ra"] is None or found["dec"] is None:
        raise InputError(f"{path} has no columns ra and dec (it has {', '.join(columns.values)}): call them so")
    if found["name"]:
        refuse_rounded(columns.values[found["name"]], path, found["name"])
    lenses = []
    for i, cells in enumerate(zip(*columns.values.values())):
        row = dict(zip(columns.values, cells))
        position = {key: _degrees(key, row[found[key]], path, i, found[key], columns.units) for key in ("ra", "dec")}
        if None not in position.values() and row.get(found.get("grading")) in (None, "confident"):
            name = row.get(found["name"])
            lenses.append({"name": str(i + 1 if name is None else name), **position})
    if not lenses:
        raise InputError(f"{path} holds no position: give a table of known lenses with ra and dec")
    return pyarrow.Table.from_pylist(lenses)


def _degrees(key: str, cell: object, path: Path, i: int, column: str, units: dict[str, str]) -> float | None:
    return read_position(key, None if cell is None else str(cell), f"{path}, row {i + 1}", column, units)


def _lenscat_file() -> Path:
    """The package's table; importing the package itself would import what it draws maps with."""
    spec = find_spec(LENSCAT)
    if spec is None or not spec.origin:
        raise InputError("lenscat is not installed: pip install 'lens-ssl-hf[survey]', or give a table as known")
    return Path(spec.origin).parent / "data" / "catalog.csv"


def with_lenses(known: pyarrow.Table, separation: float) -> pyarrow.Table:
    """
    With a column `lens`: the number of the first row of the same lens. Rows within `separation` (arcsec) of each other
    are one lens, as catalogues name many twice; all places stay, since the object may be at any of them.
    """
    vectors = places_of(known)[1].cartesian.xyz.value.T
    pairs = cKDTree(vectors).query_pairs(chord(separation), output_type="ndarray").T
    graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), (len(known), len(known)))
    _, lens = connected_components(graph, directed=False)
    _, first = np.unique(lens, return_index=True)
    return known.append_column("lens", pyarrow.array(first[lens]))


def find_known(shards: Iterable[pyarrow.Table], known: pyarrow.Table, separation: float) -> pyarrow.Table:
    """
    The known lenses that were scored, by their `rank` among all scored rows. Of the rows within `separation` (arcsec)
    of a lens, each belonging to the nearest one, the best counts. The shards are read twice, one at a time.

    Args:
        shards (`Iterable[pyarrow.Table]`): the scored rows.
        known (`pyarrow.Table`): what [`with_lenses`] returned; a lens has name and place of its first row.
    """
    places, lenses = places_of(known), known["lens"].to_numpy()
    best: dict[int, tuple[float, int, object, float]] = {}  # lens -> logit, minus the row, id, score
    for table in shards:
        at, which = near(table, places, separation)
        columns = (table[name].take(at).to_pylist() for name in ("logit", "row", "id", "score"))
        for lens, logit, row, *rest in zip(lenses[which].tolist(), *columns):
            if lens not in best or (logit, -row) > best[lens][:2]:
                best[lens] = (logit, -row, *rest)
    if not best:
        logger.warning(f"no scored row is within {separation:g} arcsec of a known lens: known.png is not drawn")
    logits, rows, ids, scores = zip(*best.values()) if best else ([], [], [], [])
    ranks = _ranks(shards, np.array(logits), -np.array(rows, int))
    found = known.drop_columns("lens").take(pyarrow.array(list(best), pyarrow.int64()))
    for name, values in (("id", ids), ("score", scores), ("rank", ranks)):
        found = found.append_column(name, pyarrow.array(values))
    return found.sort_by("rank")


def _ranks(shards: Iterable[pyarrow.Table], logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """From 1 on, among all rows by falling logit; of equal ones the earlier row is the better."""
    before = np.zeros(len(logits), int)
    for table in shards if len(logits) else ():
        order = np.lexsort((table["row"].to_numpy(), -table["logit"].to_numpy()))
        falling, numbers = -table["logit"].to_numpy()[order], table["row"].to_numpy()[order]
        starts, ends = (np.searchsorted(falling, -logits, side) for side in ("left", "right"))
        before += [start + np.searchsorted(numbers[start:end], row) for start, end, row in zip(starts, ends, rows)]
    return before + 1


def write_known(found: pyarrow.Table, total: int, folder: Path) -> None:
    """Write known.csv and, where there is a lens, known.png; `total` is the number of scored rows."""
    with open(folder / "known.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(map(in_spreadsheet, row.values()) for row in found.to_pylist())
    if len(found):
        plot_completeness(found["rank"].to_numpy(), total, folder / "known.png")


def completeness(ranks: np.ndarray, total: int) -> np.ndarray:
    """
    The share of known lenses among the first rows, where it changes, with the 95 % score interval of a binomial share
    (Wilson 1927).

    Args:
        ranks (`np.ndarray` of shape `(n,)`): of the known lenses, rising, from 1 on.
        total (`int`): scored rows.

    Returns:
        `np.ndarray` of shape `(4, n + 2)`: number of rows, share, lower and upper end; from 1 row to all.
    """
    count = len(ranks)
    steps = np.concatenate([[1], ranks, [total]])
    shares = np.searchsorted(ranks, steps, side="right") / count
    ends = [score_interval(share, share * (1 - share) / count, np.inf, count) for share in shares.tolist()]
    return np.stack([steps, shares, *zip(*ends)])


def plot_completeness(ranks: np.ndarray, total: int, path: Path) -> Path:
    """Draw what [`completeness`] returns, with that of a random order; the parameters are the same."""
    steps, shares, low, high = completeness(ranks, total)
    random = np.geomspace(1, total, 200)
    figure = new_figure((6.4, 4.4))
    axes = figure.subplots()
    axes.fill_between(steps, low, high, step="post", color=COLOURS[0], alpha=0.2, linewidth=0, label="95 % interval")
    axes.step(steps, shares, where="post", color=COLOURS[0], linewidth=1.8, label=f"{len(ranks)} known lenses")
    axes.plot(random, random / total, color="0.6", linestyle=":", linewidth=1.2, label="random order")
    axes.set(xscale="log", xlim=(1, max(total, 2)), ylim=(-0.02, 1.02))
    axes.set(xlabel=f"Rank among {total} scored rows", ylabel="Completeness of the known lenses that were scored")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="0.92")
    axes.legend(loc="upper left", fontsize=8)
    return save_figure(figure, path)
