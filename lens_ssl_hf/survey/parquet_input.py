"""Parquet files with cutouts in a column: a saved dataset, or those of others. They are streamed, never held."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from huggingface_hub import HfFileSystem
from pyarrow import parquet

from ..data.files.raw import RawCutout, readable
from ..data.files.readers import is_cutout_file
from ..data.listing.folders import files_below
from ..data.listing.table_files import PARQUET_SUFFIXES
from ..data.listing.tables import find_column
from ..data.storage import ParquetSplits
from ..errors import InputError
from ..inference.compatibility import differences
from .crops import Asked, Batch, Crops, Preparation, Told, plain_texts, spread, text_array
from .hub_files import reaching
from .pixel_columns import arrays_of, find_pixels, raw_of

Place = Path | str  # a file here, or the address of one on the Hub
IDS_AT_ONCE = 50_000_000  # hashes of ids that are compared in one pass
PICKED_FROM = 64  # rows that are read at a time where only some are wanted
BUFFER = 1 << 22  # bytes of a column that are read at a time
FOOTERS_AT_ONCE = 16


@dataclass
class ParquetInput:
    """
    Rows of Parquet files.

    Args:
        name (`str`): the folder or file, or the id on the Hub with its commit.
        files (`list[tuple[Place, list[int]]]`): each with the rows of its row groups.
        columns (`dict[str, str]`): names of `pixels` and, where they are there, `id`, `ra` and `dec`.
        info (`dict`, *optional*): the fields of `CutoutInfo` of a saved dataset, whose pixels are display units.
        told ([`Told`]): of cutouts that do not state it; those of a saved dataset do.
    """

    name: str
    files: list[tuple[Place, list[int]]]
    columns: dict[str, str]
    info: dict[str, Any] | None = None
    types: dict[str, pyarrow.DataType] = field(default_factory=dict)
    told: Told = field(default_factory=Told)

    @classmethod
    def open(cls, path: Path, options: Any) -> "ParquetInput":
        """What lies on the disk; raises as [`of`] does."""
        info = ParquetSplits(path).info if path.is_dir() and (path / "cutouts.json").is_file() else None
        return cls.of(str(path), parquet_files(path / "data" if info else path), info, options)

    @classmethod
    def of(cls, name: str, paths: Sequence[Place], info: dict[str, Any] | None, options: Any) -> "ParquetInput":
        """
        Raises:
            [`InputError`]: a file is damaged, holds no cutouts, or lacks a column that another one has.
        """
        files, columns, types = [], {}, {}
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
            footers = list(threads.map(_footer, paths))
        for one, (groups, schema) in zip(paths, footers):
            if not sum(groups):
                continue  # its columns may be of no type at all
            columns = columns or _columns(schema, one, options)
            for key, column in columns.items():
                if column not in schema.names:
                    raise InputError(
                        f"{one} has no column {column!r}, which {files[0][0]} has: give files of one kind"
                    )
                types[key] = _common_type(key, types.get(key), schema.field(column), one)
            files.append((one, groups))
        found = cls(name, files, columns, info, types)
        if not len(found):
            raise InputError(f"{name} holds no cutout: give Parquet files with rows")
        return found

    @property
    def kind(self) -> str:
        return "dataset" if self.info else "parquet"

    def __len__(self) -> int:
        return sum(sum(groups) for _, groups in self.files)

    @property
    def fingerprint(self) -> str:
        """
        Of the names and sizes of the files; of a saved dataset its own, else of the times of the files, too. On the
        Hub of their addresses, in which the commit stands.
        """
        stats = [(*_stat(path, self.info is None), groups) for path, groups in self.files]
        text = repr((stats, self.columns, self.info and self.info["fingerprint"]))
        return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    def check(self) -> None:
        """
        Raises:
            [`InputError`]: two rows have one id, or none; or a position is half or not on the sky.
        """
        for _, first, table in self._scan(("ra", "dec")):
            _check_positions(table, first, self.name)
        if "id" not in self.columns:
            return
        passes = 1 + len(self) // IDS_AT_ONCE
        for number in range(passes):
            parts = [hashes[hashes % passes == number] for hashes in map(self._hashes, self._scan(("id",)))]
            hashes = np.sort(np.concatenate(parts))
            self._refuse_equal(set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()))

    def _hashes(self, scanned: tuple[Place, int, pyarrow.Table]) -> np.ndarray:
        path, first, table = scanned
        ids = plain_texts(table["id"]).to_pandas()
        if ids.isna().any():
            row = first + int(np.flatnonzero(ids.isna())[0]) + 1
            raise InputError(f"{path} has no id in column {self.columns['id']!r} of row {row}: fill it")
        return pd.util.hash_array(ids.to_numpy(), categorize=False)

    def _refuse_equal(self, hashes: set[int]) -> None:
        """Refuse ids that are equal, not their hashes alone."""
        seen: dict[Any, str] = {}
        for path, first, table in self._scan(("id",)) if hashes else ():
            ids = plain_texts(table["id"]).to_pylist()
            found = self._hashes((path, first, table))
            for i in np.flatnonzero(np.isin(found, np.array(list(hashes), np.uint64))):
                place = f"row {first + i + 1} of {path}"
                if ids[i] in seen:
                    raise InputError(f"the id {ids[i]!r} is in {seen[ids[i]]} and {place}: make ids unique")
                seen[ids[i]] = place

    def _scan(self, keys: tuple[str, ...]) -> Iterator[tuple[Place, int, pyarrow.Table]]:
        """Some columns, by their usual names, of all rows; with the number of the first row in its file."""
        wanted = {self.columns[key]: key for key in keys if key in self.columns}
        for path, _ in self.files if wanted else ():
            first = 0
            with _opened(path) as file:
                for batch in file.iter_batches(1 << 16, columns=list(wanted)):
                    table = pyarrow.Table.from_batches([batch])
                    yield path, first, table.rename_columns([wanted[name] for name in table.column_names])
                    first += len(batch)

    def sample(self, number: int, asked: Asked) -> Iterator[tuple[RawCutout | str, str]]:
        """What is read of up to `number` cutouts, and how errors call them; of a saved dataset nothing."""
        counts = [count for _, groups in self.files for count in groups]
        chosen = list(spread(len(counts) if self.info is None else 0, 8))
        for i in chosen:  # a row within a group could only be reached through those before it
            start = sum(counts[:i])
            for record, _, names in self._records(start, min(start + -(-number // len(chosen)), len(self)), number):
                yield from zip(self._raws(record, names), names)

    def batches(self, start: int, stop: int, asked: Asked, size: int) -> Iterator[Batch]:
        """The rows from `start` to `stop`, up to `size` at a time; a thread reads one batch ahead."""
        batches = self._batches(start, stop, asked, size)
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(next, batches, None)
            while (batch := future.result()) is not None:
                future = thread.submit(next, batches, None)
                yield batch

    def _batches(self, start: int, stop: int, asked: Asked, size: int) -> Iterator[Batch]:
        for record, path, names in self._records(start, stop, size):
            columns = {key: self._column(record, key, names) for key in ("id", "ra", "dec")}
            yield Batch(columns | {"source": text_array([path] * len(names))}, self._crops(record, names, asked))

    def pick(self, numbers: Sequence[int], asked: Asked) -> Iterator[Crops | str]:
        """The crops of some rows, by their numbers in rising order; each row group is read once."""
        ends = np.cumsum([count for _, groups in self.files for count in groups])
        for _, group in groupby(numbers, key=lambda number: np.searchsorted(ends, number, side="right")):
            wanted = list(group)
            first = wanted[0]
            for record, _, names in self._records(first, wanted[-1] + 1, PICKED_FROM):
                for i in (number - first for number in wanted if first <= number < first + len(record)):
                    yield from self._crops(record.slice(i, 1), names[i : i + 1], asked)
                first += len(record)

    def _crops(self, record: pyarrow.RecordBatch, names: list[str], asked: Asked) -> list[Crops | str]:
        if self.info is not None:
            return self._display_crops(record, asked)
        return [raw if isinstance(raw, str) else asked.crops(raw, name)
                for raw, name in zip(self._raws(record, names), names)]  # fmt: skip

    def _records(self, start: int, stop: int, size: int) -> Iterator[tuple[pyarrow.RecordBatch, Place, list[str]]]:
        """Rows as they are stored, the file, and what they are called where they have no id."""
        before = 0
        for path, groups in self.files:
            count = sum(groups)
            if start < before + count and before < stop:
                bounds = max(start - before, 0), min(stop - before, count)
                for record, first in _rows(path, groups, *bounds, size, list(self.columns.values())):
                    yield record, path, [f"{self._called[path]}-{i}" for i in range(first, first + len(record))]
            before += count

    @cached_property
    def _called(self) -> dict[Place, str]:
        """Files by their names alone where these differ; else with the folders in which they lie."""
        paths = [PurePath(path) for path, _ in self.files]
        whole = [path.with_suffix("") for path in paths]
        whole = whole if len(set(whole)) == len(whole) else paths
        shared = len(PurePath(os.path.commonpath([path.parent for path in whole])).parts)
        have_own = len({path.name for path in whole}) == len(whole)
        names = [path.name if have_own else "/".join(path.parts[shared:]) for path in whole]
        return dict(zip((path for path, _ in self.files), names))

    def _column(self, record: pyarrow.RecordBatch, key: str, names: list[str]) -> pyarrow.Array:
        if key not in self.columns:
            return text_array(names) if key == "id" else pyarrow.nulls(len(record), pyarrow.float64())
        found = record.column(self.columns[key]).cast(self.types[key])
        if key == "id":
            return plain_texts(found)  # as tables of grades are read
        if not pyarrow.types.is_floating(found.type):
            return found
        values = found.to_pandas().to_numpy()
        return pyarrow.array(values, found.type, mask=np.isnan(values.astype(float)))

    def _raws(self, record: pyarrow.RecordBatch, names: list[str]) -> list[RawCutout | str]:
        values = record.column(self.columns["pixels"])
        return [self.told.add_to(raw_of(values, i, name), name) for i, name in enumerate(names)]

    def check_against(self, preparation: Preparation, model: str) -> None:
        """
        Raises:
            [`InputError`]: the pixels of a saved dataset are no display units of a model.
        """
        cutouts, given = preparation.cutouts, self.info
        again = f"build {self.name} again from its files with like {model}"
        if given["simulated"]:
            again = f"make it again with lens-ssl simulate --like {model}"
        if len(self._order(preparation)) != preparation.num_bands or given["size"] < preparation.size:
            have = f"{len(given['bands'])} bands ({' '.join(given['bands'])}) of {given['size']} pixels"
            need = f"{' '.join(cutouts.get('bands') or [str(preparation.num_bands)])} of {preparation.size}"
            raise InputError(f"{self.name} has {have}, but {model} needs {need}: {again}")
        order = self._order(preparation)
        # of pictures the lists of the stretch are empty
        stretch = {
            key: values if not values or isinstance(values, str) else [values[i] for i in order]
            for key, values in given["stretch"].items()
        }
        given = given | {"bands": [given["bands"][i] for i in order], "stretch": stretch}
        for sentence in differences(cutouts, given, model):
            fix = "" if sentence.endswith("with like") else f": {again}"
            raise InputError(f"{sentence}{fix}")

    def _order(self, preparation: Preparation) -> list[int]:
        """Where the bands of a model stand in the dataset; in its order where a model does not name them."""
        have = self.info["bands"]
        wanted = preparation.cutouts.get("bands") or have
        return [have.index(band) for band in wanted if band in have]

    def _display_crops(self, record: pyarrow.RecordBatch, asked: Asked) -> list[Crops | str]:
        pixels = np.asarray(arrays_of(record.column(self.columns["pixels"])))
        parts = [asked.crop(pixels[:, self._order(one)], one.size) for one in asked.preparations]
        crops: list[Crops | str] = list(zip(*parts))
        for i in np.flatnonzero(~np.all([np.isfinite(part).all(axis=(1, 2, 3)) for part in parts], axis=0)):
            crops[i] = "the cutout has NaN or infinite pixels: build the dataset with load_cutouts"
        return crops


def is_parquet_input(path: Path, file_column: str) -> bool:
    """Whether a path holds cutouts in Parquet, not a table that names files or a folder of files."""
    if path.is_dir():
        files = parquet_files(path)
        return bool(files) and (_has_pixels(files[0]) or not any(map(is_cutout_file, files_below(path, []))))
    if not path.name.lower().endswith(PARQUET_SUFFIXES):
        return False
    with _opened(path) as file:
        names = file.schema_arrow.names
    return find_column(file_column, names, path, "file") is None and _has_pixels(path)


def _has_pixels(path: Path) -> bool:
    with _opened(path) as file:
        return bool(find_pixels(file.schema_arrow))


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder and of those in it, in the order of their names; or the file itself."""
    if path.is_file():
        return [path]
    return sorted(
        one
        for one in path.rglob("*")
        if one.suffix.lower() in PARQUET_SUFFIXES and not one.name.startswith((".", "_"))
    )


@contextlib.contextmanager
def _opened(path: Place, **options: Any) -> Iterator[parquet.ParquetFile]:
    """
    Raises:
        [`InputError`]: the file cannot be opened, or not be read in the block; or the Hub cannot be reached.
    """
    is_on_hub = isinstance(path, str)
    with readable(path, "Parquet"), reaching(path) if is_on_hub else contextlib.nullcontext():
        source = HfFileSystem().open(path, cache_type="none") if is_on_hub else path  # pyarrow asks for what it needs
        with parquet.ParquetFile(source, **options) as file:
            yield file


def _footer(path: Place) -> tuple[list[int], pyarrow.Schema]:
    """The rows of each row group, and the columns."""
    with _opened(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)], file.schema_arrow


def _stat(path: Place, with_time: bool) -> tuple[str, int, int]:
    if isinstance(path, str):
        return path, 0, 0
    found = os.stat(path)
    return path.name, found.st_size, found.st_mtime_ns if with_time else 0


def _columns(schema: pyarrow.Schema, path: Place, options: Any) -> dict[str, str]:
    """The names of the columns that matter."""
    found = find_pixels(schema) if options.pixel_column is None else [options.pixel_column]
    have = ", ".join(schema.names)
    if len(found) != 1 or found[0] not in schema.names:
        problem = "several columns of cutouts" if len(found) > 1 else "no such column of cutouts"
        raise InputError(f"{path} has {problem} (it has {have}): name one with pixel_column")
    columns = {"pixels": found[0]}
    for key in ("id", "ra", "dec"):
        wanted = getattr(options, f"{key}_column")
        if name := find_column(wanted, schema.names, path, key):
            columns[key] = name
        elif wanted != key:
            raise InputError(f"{path} has no column {wanted!r} (it has {have}): name yours with {key}_column")
    return columns


def _rows(
    path: Place, groups: list[int], start: int, stop: int, size: int, columns: list[str]
) -> Iterator[tuple[pyarrow.RecordBatch, int]]:
    """The rows from `start` to `stop` of a file, with the number of the first one; read in pieces of a row group."""
    ends = np.cumsum(groups)
    chosen = [i for i, end in enumerate(ends) if start < end and end - groups[i] < stop]
    first = int(ends[chosen[0]] - groups[chosen[0]])
    with _opened(path, buffer_size=BUFFER, page_checksum_verification=True) as file:
        for record in file.iter_batches(size, row_groups=chosen, columns=columns):
            skip = max(start - first, 0)
            if kept := record.slice(skip, stop - first - skip):
                yield kept, first + skip
            first += len(record)
            if first >= stop:
                return


def _common_type(key: str, known: pyarrow.DataType | None, column: pyarrow.Field, path: Place) -> pyarrow.DataType:
    """
    The type that holds a column of this file and of those before.

    Raises:
        [`InputError`]: positions that are no numbers; ids that are not text or integers in all files.
    """
    types, kind = pyarrow.types, column.type
    if key == "pixels":
        return kind
    # Ids that are floats may have lost digits, and are 1.0 to Python and 1 to Arrow.
    is_sound = types.is_integer(kind) or (types.is_floating(kind) and key != "id")
    if key == "id":
        groups = (types.is_signed_integer,), (types.is_string, types.is_large_string)  # whose values one type holds
        of_group = [{any(test(one) for test in group) for one in (kind, known or kind)} for group in groups]
        is_sound = (is_sound and known in (None, kind)) or {True} in of_group
    if not is_sound:
        others = "" if known in (None, kind) else f" and others as {known}"
        wanted = "integers or text in all files" if key == "id" else "degrees"
        raise InputError(
            f"{path} has {column.name!r} as {kind}{others}: save {wanted}, or name others with {key}_column"
        )
    schemas = [pyarrow.schema([column.with_type(one)]) for one in (known or kind, kind)]
    return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type


def _check_positions(table: pyarrow.Table, first: int, name: str) -> None:
    known = {key: table[key].to_pandas().to_numpy(dtype=float) for key in table.column_names}
    unknown = np.full(len(table), np.nan)
    ra, dec = (known.get(key, unknown) for key in ("ra", "dec"))
    wrong = np.isnan(ra) != np.isnan(dec)
    wrong |= (np.abs(ra) > 360) | (np.abs(dec) > 90)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{name}, row {first + i + 1} has ra {ra[i]:g} and dec {dec[i]:g}: give both in degrees, or none"
        )
