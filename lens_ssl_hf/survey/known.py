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

from ..data.listing.table_files import read_table
from ..data.listing.tables import find_column, read_position
from ..errors import InputError
from ..evaluation.intervals import score_interval
from ..evaluation.plots import COLOURS, new_figure, save_figure
from ..quoting import in_spreadsheet
from .places import near, places_of

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
        [`InputError`]: the table cannot be read or holds no position; or lenscat is not installed.
    """
    is_lenscat = str(source) == LENSCAT
    path = _lenscat_file() if is_lenscat else Path(source)
    columns = read_table(path)
    values, found = columns.values, {}
    wanted = {"ra": "RA [deg]", "dec": "DEC [deg]"} if is_lenscat else {"ra": "ra", "dec": "dec"}
    for key, name in {"name": "name", **wanted}.items():
        found[key] = find_column(name, list(values), path, key)
    if found["ra"] is None or found["dec"] is None:
        raise InputError(f"{path} has no columns ra and dec (it has {', '.join(values)}): call them so")
    rows = []
    for i in range(len(values[found["ra"]])):
        cells = (("" if (cell := values[found[key]][i]) is None else str(cell)) for key in ("ra", "dec"))
        position = [
            read_position(key, cell, f"{path}, row {i + 1}", found[key], columns.units)
            for key, cell in zip(("ra", "dec"), cells)
        ]
        if None not in position and (not is_lenscat or values["grading"][i] == "confident"):
            name = values[found["name"]][i] if found["name"] else None
            rows.append({"name": str(i + 1 if name is None else name), "ra": position[0], "dec": position[1]})
    if not rows:
        raise InputError(f"{path} holds no position: give a table of known lenses with ra and dec")
    return pyarrow.Table.from_pylist(rows)


def _lenscat_file() -> Path:
    """The package's table; importing the package itself would import what it draws maps with."""
    spec = find_spec(LENSCAT)
    if spec is None or not spec.origin:
        raise InputError("lenscat is not installed: pip install 'lens-ssl-hf[survey]', or give a table as known")
    return Path(spec.origin).parent / "data" / "catalog.csv"


def find_known(shards: Iterable[pyarrow.Table], known: pyarrow.Table, separation: float) -> pyarrow.Table:
    """
    The known lenses that were scored, by their `rank` among all scored rows. Of the rows within `separation` (arcsec)
    of a lens, each belonging to the nearest one, the best counts. The shards are read twice, one at a time.
    """
    places = places_of(known)
    best: dict[int, tuple[float, int, object, float]] = {}
    for table in shards:
        at, which = near(table, places, separation)
        rows = zip(*(table[name].take(at).to_pylist() for name in ("logit", "row", "id", "score")))
        for lens, (logit, *rest) in zip(which.tolist(), rows):
            best[lens] = max(best.get(lens, (-np.inf, 0)), (logit, *rest), key=lambda one: (one[0], -one[1]))
    lenses = list(best)
    ranks = _ranks(shards, np.array([best[one][0] for one in lenses]), np.array([best[one][1] for one in lenses], int))
    order = np.argsort(ranks)
    found = known.take(pyarrow.array([lenses[i] for i in order], pyarrow.int64()))
    for position, name in ((2, "id"), (3, "score")):
        found = found.append_column(name, pyarrow.array([best[lenses[i]][position] for i in order]))
    return found.append_column("rank", pyarrow.array(ranks[order], pyarrow.int64()))


def _ranks(shards: Iterable[pyarrow.Table], logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """From 1 on, among all rows by falling logit; of equal ones the earlier row is the better."""
    before = np.zeros(len(logits), int)
    for table in shards if len(logits) else ():
        shard_logits, shard_rows = table["logit"].to_numpy(), table["row"].to_numpy()
        order = np.lexsort((shard_rows, -shard_logits))
        falling, place = -shard_logits[order], np.argsort(order)
        ends = np.searchsorted(falling, -logits, side="right")  # behind the equal ones of this shard
        starts = np.searchsorted(falling, -logits, side="left")
        first, last = (shard_rows[0], shard_rows[-1]) if len(shard_rows) else (0, -1)
        inside = np.flatnonzero((first <= rows) & (rows <= last))
        count = np.where(rows > last, ends, starts)
        count[inside] = place[np.searchsorted(shard_rows, rows[inside])]
        before += count
    return before + 1


def write_known(found: pyarrow.Table, total: int, folder: Path) -> None:
    """Write known.csv and, where there is a lens, known.png; `total` is the number of scored rows."""
    with open(folder / "known.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(map(in_spreadsheet, row.values()) for row in found.to_pylist())
    if len(found):
        plot_completeness(found["rank"].to_numpy(), total, folder / "known.png")


def plot_completeness(ranks: np.ndarray, total: int, path: Path) -> Path:
    """
    The share of known lenses among the first rows, against the number of these rows, with the 95 % score interval of
    a binomial share (Wilson 1927).

    Args:
        ranks (`np.ndarray` of shape `(n,)`): of the known lenses, rising, from 1 on.
        total (`int`): scored rows.
    """
    count = len(ranks)
    steps = np.concatenate([[1], ranks, [max(total, 2)]])
    shares = np.concatenate([[ranks[0] == 1], np.arange(1, count + 1), [count]]) / count
    low, high = np.array([score_interval(share, share * (1 - share) / count, np.inf, count) for share in shares]).T
    figure = new_figure((6.4, 4.4))
    axes = figure.subplots()
    axes.fill_between(steps, low, high, step="post", color=COLOURS[0], alpha=0.2, linewidth=0, label="95 % interval")
    axes.step(steps, shares, where="post", color=COLOURS[0], linewidth=1.8, label=f"{count} known lenses")
    axes.plot(steps, steps / total, color="0.6", linestyle=":", linewidth=1.2, label="random order")
    axes.set(xscale="log", xlim=(1, max(total, 2)), ylim=(-0.02, 1.02))
    axes.set(xlabel=f"Rank among {total} scored rows", ylabel="Completeness of the known lenses that were scored")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="0.92")
    axes.legend(loc="upper left", fontsize=8)
    return save_figure(figure, path)
