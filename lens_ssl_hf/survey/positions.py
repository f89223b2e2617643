"""
Positions by the hundred million: columns of a Parquet file that are never rows of Python, their checks, and the file
in which they lie in the order of the tiles, so that a task reads its part alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute as pc
from pyarrow import ipc, parquet, types

from ..data.files.raw import readable
from ..data.listing.names import harmless_names
from ..data.listing.rows import Row
from ..data.listing.table_files import PARQUET_SUFFIXES
from ..data.listing.tables import find_column, read_position
from ..errors import InputError
from ..files import writing
from .crops import plain_texts
from .manifest import AGAIN

AT_ONCE = 1_000_000  # rows of which Python values are made
STORED_AT_ONCE = 8192  # rows of a file of positions that are read together
_FACTS = b"lens_ssl_hf"  # in the schema of such a file


@dataclass(frozen=True, eq=False)
class Positions(Sequence):
    """
    Positions as columns; as a sequence, [`Row`]s that are made when they are asked for.

    Args:
        ids (`pyarrow.Array`): integers or text.
        ra, dec (`np.ndarray` of shape `(n,)`): degrees (ICRS), float64; NaN where they are unknown.
        tile (`np.ndarray` of shape `(n,)`, *optional*): numbers of `tiles`, `len(tiles)` where one is off all of them.
        tiles (`Sequence[tuple[Path, ...]]`): the files of each.
    """

    ids: pyarrow.Array
    ra: np.ndarray
    dec: np.ndarray
    tile: np.ndarray | None = None
    tiles: Sequence[tuple[Path, ...]] = ()

    @classmethod
    def of_rows(cls, rows: list[Row], ids: pyarrow.Array) -> "Positions":
        """Of rows that have been read."""
        return cls(ids, *(np.array([getattr(row, key) for row in rows], dtype=float) for key in ("ra", "dec")))

    def __len__(self) -> int:
        return len(self.ra)

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, slice):
            return self[at : at + 1][0]
        ids, ra, dec = self.ids[at].to_pylist(), self.ra[at].tolist(), self.dec[at].tolist()
        paths = [self.tiles[i] if i < len(self.tiles) else () for i in self.tile[at].tolist()]
        places = [(None if one != one else one for one in both) for both in zip(ra, dec)]
        return [Row(str(name), files, -1, ra=x, dec=y) for name, files, (x, y) in zip(ids, paths, places)]

    def part(self, start: int, stop: int) -> "Positions":
        """Those from `start` to `stop`."""
        at = slice(start, stop)
        return Positions(self.ids[at], self.ra[at], self.dec[at], self.tile[at], self.tiles)

    @property
    def on_tiles(self) -> int:
        """How many lie on a tile; these come first."""
        return int(np.searchsorted(self.tile, len(self.tiles)))

    def in_order(self, order: np.ndarray, tile: np.ndarray, tiles: Sequence[tuple[Path, ...]]) -> "Positions":
        """These positions by their numbers in `order`, with the tile of each."""
        return Positions(self.ids.take(pyarrow.array(order)), self.ra[order], self.dec[order], tile[order], tiles)

    def check(self, table: str) -> None:
        """
        Raises:
            [`InputError`]: a row has one half of a position.
        """
        half = np.flatnonzero(np.isnan(self.ra) != np.isnan(self.dec))
        if len(half):
            lacking = "ra" if np.isnan(self.ra[half[0]]) else "dec"
            raise InputError(f"{table}, row {half[0] + 1} has no {lacking}: add it, or leave ra and dec empty")

    def hashes(self) -> np.ndarray:
        """Of the ids `(n,)`, uint64."""
        found = np.empty(len(self), np.uint64)
        for first in range(0, len(self), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            found[part] = pd.util.hash_array(self.ids[part].to_pandas().to_numpy(), categorize=False)
        return found


class StoredPositions(Sequence):
    """
    Positions in a file that [`store`] wrote. What is asked for is read.

    Args:
        path (`Path`): the file.

    Raises:
        `OSError` or `pyarrow.ArrowInvalid`: it is not there, or no such file.
    """

    def __init__(self, path: Path):
        self._path, self._reader = path, ipc.open_file(pyarrow.OSFile(str(path)))
        self.facts = json.loads(self._reader.schema.metadata[_FACTS])
        self.on_tiles: int = self.facts["on_tiles"]

    @classmethod
    def find(cls, path: Path, order: str) -> "StoredPositions | None":
        """Those of this `order`, where a file holds them."""
        try:
            found = cls(path)
            return found if found.facts["order"] == order else None
        except (OSError, pyarrow.ArrowInvalid, KeyError, TypeError, ValueError):
            return None  # it is written anew

    @cached_property
    def tiles(self) -> list[tuple[Path, ...]]:
        return [tuple(map(Path, paths)) for paths in self.facts["tiles"]]

    def __len__(self) -> int:
        return self.facts["rows"]

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, slice):
            return self.part(at, at + 1)[0]
        return self.part(*at.indices(len(self))[:2])[:]

    def part(self, start: int, stop: int) -> Positions:
        """
        Those from `start` to `stop`, in memory.

        Raises:
            [`InputError`]: the file is damaged.
        """
        numbers = range(start // STORED_AT_ONCE, -(-stop // STORED_AT_ONCE))
        with readable(self._path, fix=AGAIN):
            found = pyarrow.Table.from_batches([self._reader.get_batch(i) for i in numbers], self._reader.schema)
        found = found.slice(start - numbers.start * STORED_AT_ONCE, stop - start)
        ra, dec, tile = (found[name].to_numpy() for name in ("ra", "dec", "tile"))
        return Positions(found["id"].combine_chunks(), ra, dec, tile, self.tiles)


def store(positions: Positions, path: Path, facts: dict[str, Any]) -> None:
    """
    Write positions on tiles in their order, as an Arrow file.

    Args:
        positions ([`Positions`]): with their tiles.
        path (`Path`): the file.
        facts (`dict`): `order`, and what else is to be known of them; `rows`, `on_tiles` and `tiles` are added.

    Raises:
        [`InputError`]: it cannot be written.
    """
    tiles = [[str(file) for file in files] for files in positions.tiles]
    facts = facts | {"rows": len(positions), "on_tiles": positions.on_tiles, "tiles": tiles}
    kinds = [
        ("id", positions.ids.type),
        ("ra", pyarrow.float64()),
        ("dec", pyarrow.float64()),
        ("tile", pyarrow.int32()),
    ]
    schema = pyarrow.schema(kinds, {_FACTS: json.dumps(facts)})
    with writing(path) as new, ipc.new_file(str(new), schema) as file:
        for first in range(0, len(positions), STORED_AT_ONCE):
            part = positions.part(first, first + STORED_AT_ONCE)
            columns = [part.ids, *map(pyarrow.array, (part.ra, part.dec, part.tile))]
            file.write_batch(pyarrow.record_batch(columns, schema=schema))


def of_parquet(path: Path, id_column: str, ra_column: str, dec_column: str) -> Positions | None:
    """
    The positions in a Parquet file; `None` where they are no numbers, ids are neither integers nor text, or paths, or
    there are no rows: [`list_rows`] has to make sense of these.

    Args:
        path (`Path`): the table.
        id_column, ra_column, dec_column (`str`): without an id each row is called after the file and its number.

    Raises:
        [`InputError`]: a column is missing or cannot be told from another, a position is not on the sky, an id is
            empty or there twice.
    """
    if not path.name.lower().endswith(PARQUET_SUFFIXES):
        return None
    with readable(path, "a table"), parquet.ParquetFile(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        if not count or len(set(schema.names)) < len(schema):
            return None
        wanted = {"id": id_column, "ra": ra_column, "dec": dec_column}
        names = {key: find_column(name, schema.names, path, key) for key, name in wanted.items()}
        if names["ra"] is None or names["dec"] is None or (names["id"] is None and id_column != "id"):
            return None  # who reads rows says so
        kinds = {key: schema.field(name).type for key, name in names.items() if name}
        if not all(types.is_integer(kinds[key]) or types.is_floating(kinds[key]) for key in ("ra", "dec")):
            return None
        if "id" in kinds and not _is_id(kinds["id"]):
            return None
        columns = file.read(columns=list(filter(None, names.values())))
    ra, dec = (_degrees(columns[names[key]], key, names[key], path) for key in ("ra", "dec"))
    if names["id"]:
        ids = _ids(columns[names["id"]], names["id"], path)
        if _has_paths(ids, path.parent):
            return None
    else:
        numbers = (range(i, min(i + AT_ONCE, count)) for i in range(0, count, AT_ONCE))
        parts = [pyarrow.array([f"{path.stem}-{i}" for i in part], pyarrow.large_string()) for part in numbers]
        ids = pyarrow.chunked_array(parts).combine_chunks()
    found = Positions(ids, ra, dec)
    if names["id"]:
        _refuse_equal(found, path)
    return found


def _is_id(kind: pyarrow.DataType) -> bool:
    is_integer = types.is_integer(kind) and not types.is_uint64(kind)
    return is_integer or types.is_string(kind) or types.is_large_string(kind)


def _degrees(column: pyarrow.ChunkedArray, key: str, name: str, path: Path) -> np.ndarray:
    values = column.cast(pyarrow.float64()).to_numpy()
    low, high = {"ra": (-360, 360), "dec": (-90, 90)}[key]
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        read_position(key, str(values[wrong[0]]), f"{path}, row {wrong[0] + 1}", name, {})  # raises
    return values


def _ids(column: pyarrow.ChunkedArray, name: str, path: Path) -> pyarrow.Array:
    """Integers, or text that is none, as tables of other kinds have them."""
    if types.is_integer(column.type):
        ids = column.cast(pyarrow.int64())
    else:
        ids = plain_texts(column.cast(pyarrow.large_string()))
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py() + 1
        raise InputError(f"{path}, row {row}: column {name!r} is empty: fill it, or give another id_column")
    if not types.is_integer(ids.type) and pc.all(pc.match_substring_regex(ids, r"^(-?[1-9][0-9]{0,18}|0)$")).as_py():
        try:
            ids = ids.cast(pyarrow.int64())
        except pyarrow.ArrowInvalid:
            pass  # more than 64 bits hold
    return ids.combine_chunks()


def _has_paths(ids: pyarrow.Array, folder: Path) -> bool:
    """Whether an id is a path of this machine, of which [`list_rows`] leaves what tells nothing of it."""
    if types.is_integer(ids.type):
        return False
    ids = ids.filter(pc.match_substring_regex(ids, r"[/\\~]|\.\."))  # all that may be one
    parts = (ids[i : i + AT_ONCE].to_pylist() for i in range(0, len(ids), AT_ONCE))
    return any(harmless_names(part, folder) != part for part in parts)


def _refuse_equal(positions: Positions, path: Path) -> None:
    """Refuse ids that are equal, not their hashes alone."""
    hashes = positions.hashes()
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return
    rows: dict[Any, int] = {}
    for i in np.flatnonzero(np.isin(hashes, twice)).tolist():
        name = positions.ids[i].as_py()
        if name in rows:
            raise InputError(
                f"{path} has the id {str(name)!r} in rows {rows[name] + 1} and {i + 1}: make ids unique, or give "
                "another id_column"
            )
        rows[name] = i
