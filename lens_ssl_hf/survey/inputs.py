"""What is scored: a folder or a table of files, positions on tiles, a stack, a saved dataset, or Parquet files."""

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow

from ..data.files.bands import check_distinct
from ..data.files.raw import RawCutout
from ..data.files.readers import is_cutout_file
from ..data.files.stacks import STACK_SUFFIXES, Stack
from ..data.from_files import read_raws
from ..data.listing.file_patterns import check_pattern, match_pattern, refuse_bands_as_objects
from ..data.listing.folders import files_below
from ..data.listing.rows import BadFiles, Row
from ..data.listing.table_files import TABLE_SUFFIXES, Columns, read_table, typed
from ..data.listing.tables import find_column, list_rows, open_catalogue, open_stack
from ..data.options import DataArguments
from ..data.pool import CHUNK, map_chunks
from ..data.storage import CARD_FILE
from ..errors import InputError
from . import tiles
from .crops import Asked, Batch, Crops, Told, spread, text_array
from .hub_files import find_on_hub, may_be_on_hub
from .parquet_input import ParquetInput, is_parquet_input
from .positions import Positions, StoredPositions, of_parquet, store

logger = logging.getLogger(__name__)

_KEYS = ("file", "id", "ra", "dec")
READ_AHEAD = 1024  # cutouts that are read while others are scored
# Options as the command has them, and a manifest that is read back: a shard's key tells 27 from 27.0.
_KINDS = {"bands": list, "hdu": str, "zero_point": float, "pixel_scale": float}
_KINDS |= {"file_pattern": os.fspath, "tiles": os.fspath}


@dataclass(frozen=True)
class Options:
    """
    How an input is read: options of [`DataArguments`] by their names there, and the column of pixels in Parquet.
    `bands`, `zero_point` and `pixel_scale` are those of cutouts that do not state theirs.

    Raises:
        [`InputError`]: one of them is of a type that it cannot be.
    """

    hdu: str | None = None
    file_pattern: str | None = None
    bands: list[str] | None = None  # also those in the names of files; by default the models'
    zero_point: float | None = None
    pixel_scale: float | None = None
    id_column: str = "id"
    file_column: str = "file"
    ra_column: str = "ra"
    dec_column: str = "dec"
    pixel_column: str | None = None
    tiles: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bands, str):  # one band, not a band for each letter
            object.__setattr__(self, "bands", [self.bands])
        for name, make in _KINDS.items():
            if (value := getattr(self, name)) is not None:
                try:
                    object.__setattr__(self, name, make(value))
                except (TypeError, ValueError) as error:
                    raise InputError(f"{name} is {value!r}: give {'a number' if make is float else 'text'}") from error

    @classmethod
    def of_manifest(cls, options: Mapping[str, Any]) -> "Options":
        """Of an earlier run, among whose options they are."""
        return cls(**{item.name: options[item.name] for item in fields(cls) if item.name in options})

    @property
    def has_bands(self) -> bool:
        """Whether the names of the files hold the bands."""
        return bool(self.file_pattern) or "{band}" in (self.tiles or "")

    @property
    def told(self) -> Told:
        """What they say of the cutouts themselves."""
        return Told(None if self.has_bands else self.bands, self.zero_point, self.pixel_scale)


@dataclass(frozen=True)
class _Reading:
    """What `read` ([`read_raws`] or [`read_cutouts`]) and the processes that call it need."""

    read: Callable[[list[Row], Any], Iterable[RawCutout | str]]
    asked: Asked
    hdu: str | None
    bands: list[str] | None
    stack: Stack | None
    told: Told


@dataclass
class FileInput:
    """
    Cutouts in files of their own, or in one array.

    Args:
        name (`str`): the folder, table or stack.
        rows (`Sequence[Row]`): one a cutout.
        ids (`pyarrow.Array`): as the input has them.
        hdu, bands, stack: for the readers.
        num_proc (`int`, *optional*): processes that read.
        told ([`Told`]): of cutouts that do not state it.
    """

    name: str
    rows: Sequence[Row]
    ids: pyarrow.Array
    hdu: str | None = None
    bands: list[str] | None = None
    stack: Stack | None = None
    num_proc: int | None = None
    told: Told = field(default_factory=Told)

    kind: ClassVar[str] = "files"
    read: ClassVar[Callable[[list[Row], Any], Iterable[RawCutout | str]]] = staticmethod(read_raws)
    chunk: ClassVar[int] = CHUNK  # rows that one process reads at a time

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """Of the names, sizes and times of all files, and of what a table says."""
        digest = hashlib.blake2b(digest_size=16)
        known: dict[Path, tuple] = {}
        for row, name in zip(self.rows, self.ids.to_pylist()):
            stats = [known.get(path) or known.setdefault(path, _stat(path)) for path in row.paths]
            digest.update(repr((name, row.ra, row.dec, stats)).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def check(self) -> None:
        """
        Raises:
            [`InputError`]: a row has one half of a position. That ids are unique was checked when they were listed.
        """
        for number, row in enumerate(self.rows, start=1):
            if (row.ra is None) != (row.dec is None):
                lacking = "ra" if row.ra is None else "dec"
                raise InputError(f"{self.name}, row {number} has no {lacking}: add it, or leave ra and dec empty")

    def sample(self, number: int, asked: Asked) -> Iterator[tuple[RawCutout | str, str]]:
        """What is read of up to `number` cutouts that have files, and how errors call them."""
        reading = self._reading(asked)
        for i in spread(self._with_files, number):
            row = self.rows[i]
            raw = next(iter(reading.read([row], reading)))
            yield self.told.add_to(raw, row.name), row.name

    def batches(self, start: int, stop: int, asked: Asked, size: int) -> Iterator[Batch]:
        """The rows from `start` to `stop`, `size` at a time; other processes read ahead."""
        rows = self.rows[start:stop]
        found = self._read(rows, asked)
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            crops, ra, dec = zip(*islice(found, len(part)))
            columns = {
                "id": _of_usual_type(self.ids.slice(start + first, len(part))),
                "ra": pyarrow.array(ra, pyarrow.float64()),
                "dec": pyarrow.array(dec, pyarrow.float64()),
                "source": text_array([", ".join(map(str, row.paths)) or None for row in part]),
            }
            yield Batch(columns, list(crops))

    def pick(self, numbers: Sequence[int], asked: Asked) -> Iterator[Crops | str]:
        """The crops of some rows, by their numbers."""
        yield from (crops for crops, _, _ in self._read([self.rows[i] for i in numbers], asked))

    def _read(self, rows: list[Row], asked: Asked) -> Iterator[tuple[Crops | str, float | None, float | None]]:
        return map_chunks(_read_chunk, rows, self.num_proc, (self._reading(asked),), READ_AHEAD, self.chunk)

    def _reading(self, asked: Asked) -> _Reading:
        return _Reading(self.read, asked, self.hdu, self.bands, self.stack, self.told)

    @property
    def _with_files(self) -> int:
        """How many rows have files; these come first."""
        return len(self)


@dataclass
class TileInput(FileInput):
    """
    Positions on tiles, in their order.

    Args:
        rows ([`Positions`] or [`StoredPositions`]): of which rows are made when they are read.
        ids (`pyarrow.Array`, *optional*): of rows that are read.
        order (`str`): a digest of what decides on their order: the table, the tiles, and how they are read.
    """

    rows: Positions | StoredPositions
    ids: pyarrow.Array | None = None
    order: str = ""

    kind: ClassVar[str] = "tiles"
    read: ClassVar[Callable[[list[Row], Any], Iterable[RawCutout | str]]] = staticmethod(tiles.read_cutouts)
    chunk: ClassVar[int] = tiles.CHUNK

    @classmethod
    def of(cls, path: Path, options: Options, bands: list[str], stored: Path | None) -> "TileInput":
        """
        Raises:
            [`InputError`]: half a position; no tiles, or tiles that cannot be opened; no position is on one.
        """
        own = bands if options.has_bands else None
        files = tiles.find_tiles(options.tiles, own or [])
        columns = options.id_column, options.ra_column, options.dec_column
        stats = [_stat(one) for one in (path, *chain(*files))]
        order = repr((str(path), columns, files, own, options.hdu, stats)).encode("utf-8", "backslashreplace")
        order = hashlib.blake2b(order, digest_size=16).hexdigest()
        if stored and (known := StoredPositions.find(stored, order)):
            return cls(str(path), known, order=order)
        if (positions := of_parquet(path, *columns)) is None:
            read = _of_table(path, options, bands)
            positions = Positions.of_rows(list(read.rows), read.ids)
        positions.check(str(path))
        tile, numbers = tiles.put_on_tiles(positions.ra, positions.dec, files, own, options.hdu)
        if tile[numbers[0]] == len(files):
            raise InputError(
                f"no position of {path} lies on one of the tiles {options.tiles}: give ra and dec on them"
            )
        return cls(str(path), positions.in_order(numbers, tile, files), order=order)

    def keep(self, path: Path) -> None:
        """
        Write the positions in their order, where this was not done yet, and read them from there from now on, as
        those do that open the same with `stored`.

        Raises:
            [`InputError`]: the file cannot be written.
        """
        if isinstance(self.rows, Positions):
            if StoredPositions.find(path, self.order) is None:  # another task may have been faster
                store(self.rows, path, {"order": self.order, "fingerprint": self.fingerprint})
            self.rows = StoredPositions(path)

    def batches(self, start: int, stop: int, asked: Asked, size: int) -> Iterator[Batch]:
        part = self.rows.part(start, stop)
        yield from FileInput.batches(replace(self, rows=part, ids=part.ids), 0, len(part), asked, size)

    @cached_property
    def fingerprint(self) -> str:
        """Of all positions and ids in their order, and of the names, sizes and times of the files that they lie on."""
        if isinstance(self.rows, StoredPositions):
            return self.rows.facts["fingerprint"]
        used = np.unique(self.rows.tile)  # further tiles change nothing
        off = len(self.rows.tiles)
        stats = [[_stat(path) for path in self.rows.tiles[i]] for i in used[: np.searchsorted(used, off)]]
        digest = hashlib.blake2b(repr(stats).encode("utf-8", "backslashreplace"), digest_size=16)
        for values in (self.rows.ra, self.rows.dec, np.searchsorted(used, self.rows.tile), self.rows.hashes()):
            digest.update(np.ascontiguousarray(values))
        return digest.hexdigest()

    def check(self) -> None:
        """Nothing: the positions and ids were checked when they were read."""

    @property
    def _with_files(self) -> int:
        return self.rows.on_tiles


def _of_usual_type(ids: pyarrow.Array) -> pyarrow.Array:
    """As all inputs write them: text of a batch is never as much as needs the large type."""
    return ids.cast(pyarrow.string()) if pyarrow.types.is_large_string(ids.type) else ids


def _read_chunk(rows: list[Row], reading: _Reading) -> list[tuple[Crops | str, float | None, float | None]]:
    """Crops and position of each row; where the table gives none, the position of the file's WCS."""
    found = []
    for row, raw in zip(rows, reading.read(rows, reading)):
        raw = reading.told.add_to(raw, row.name)
        crops = raw if isinstance(raw, str) else reading.asked.crops(raw, row.name)
        position = row.ra, row.dec
        if position == (None, None) and isinstance(raw, RawCutout):
            position = raw.ra, raw.dec
        found.append((crops, *position))
    return found


def _stat(path: Path) -> tuple[str, int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None  # its row gets a flag
    return str(path.name), found.st_size, found.st_mtime_ns


def open_input(
    source: str | os.PathLike,
    options: Options,
    bands: list[str],
    num_proc: int | None = None,
    stored: Path | None = None,
) -> Any:
    """
    A [`FileInput`] or [`ParquetInput`].

    Args:
        source (`str` or `os.PathLike`):
            Folder, table, stack, saved dataset, or Parquet files; or a dataset on the Hub.
        options ([`Options`]): how it is read.
        bands (`list[str]`): those of the models, which `options.file_pattern` needs.
        num_proc (`int`, *optional*): processes that read files.
        stored (`Path`, *optional*): where [`TileInput.keep`] may have written the positions on tiles.

    Raises:
        [`InputError`]: there is nothing, or nothing that can be read; a table or its ids contradict themselves.
    """
    path, name = Path(source), str(source).lower()
    is_here = os.path.exists(source)  # also of a name that is too long
    is_on_hub = not is_here and not options.tiles and may_be_on_hub(source)
    if not is_on_hub and not is_here:
        raise InputError(f"{source} does not exist: give a folder, a table, a stack or Parquet files")
    is_parquet = not options.tiles and (
        is_on_hub or (path / CARD_FILE).is_file() or is_parquet_input(path, options.file_column)
    )
    foreign = ("hdu", "file_pattern") if is_parquet else ("pixel_column",)
    foreign = ("file_pattern", "pixel_column") if options.tiles else foreign
    _check_told(options.told)
    check_distinct(options.bands or (), "bands")
    for option in foreign:
        if getattr(options, option) is not None:
            raise InputError(f"{option} has no meaning for {source}: leave it out")
    bands = options.bands or bands
    if is_parquet:
        found = ParquetInput.of(*find_on_hub(source), options) if is_on_hub else ParquetInput.open(path, options)
        if found.info and options.told != Told():
            raise InputError(f"{source} states its bands, zero point and pixel scale: leave these options out")
        found.told = options.told
        return found
    if options.tiles and (path.is_dir() or not name.endswith(TABLE_SUFFIXES)):
        raise InputError(f"{source} is no table of positions on tiles: give a file in {', '.join(TABLE_SUFFIXES)}")
    if path.is_dir():
        rows = _files_of(path, options.file_pattern, bands)
        found = FileInput(str(source), rows, text_array([row.id for row in rows]))
    elif options.tiles:
        found = TileInput.of(path, options, bands, stored)
    elif name.endswith((*TABLE_SUFFIXES, *STACK_SUFFIXES)):
        found = _of_table(path, options, bands)
    else:
        suffixes = ", ".join((*TABLE_SUFFIXES, *STACK_SUFFIXES))
        raise InputError(f"{source} is no table or stack: give a folder or a file that ends in {suffixes}")
    if not len(found):
        raise InputError(f"{source} holds no cutout: put FITS, .npy or picture files into it")
    found.hdu, found.num_proc, found.told = options.hdu, num_proc, options.told
    found.bands = bands if options.has_bands else None
    return found


def _check_told(told: Told) -> None:
    if told.zero_point is not None and not math.isfinite(told.zero_point):
        raise InputError(f"zero_point is {told.zero_point}: give a magnitude")
    if told.pixel_scale is not None and not 0 < told.pixel_scale < math.inf:
        raise InputError(f"pixel_scale is {told.pixel_scale}: give arcsec per pixel")


def _files_of(folder: Path, file_pattern: str | None, bands: list[str]) -> list[Row]:
    """All cutouts below a folder, whatever the folders in it are called."""
    files = files_below(folder, [])
    if file_pattern:
        check_pattern(file_pattern, bands)
        objects = match_pattern(folder, files, file_pattern, bands, bad=None)
        if (
            others := sum(map(is_cutout_file, files)) - sum(path.exists() for _, paths in objects for path in paths)
        ) > 0:
            logger.warning(f"{others} files of {folder} do not fit file_pattern {file_pattern!r}: they are left out")
        return [Row(name, paths, -1) for name, paths in objects]
    files = [path for path in files if is_cutout_file(path)]
    names = [path.relative_to(folder).as_posix() for path in files]
    refuse_bands_as_objects(names, str(folder))
    return [Row(name, (path,), -1) for name, path in zip(names, files)]


def _of_table(path: Path, options: Options, bands: list[str]) -> FileInput:
    """The rows of a table of files or positions, or of a stack, with ids of the type that they have there."""
    own = ("pixel_column", "bands", "zero_point", "pixel_scale", "tiles")
    given = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in own}
    arguments = DataArguments(dataset=str(path), bands=bands if options.file_pattern else None, **given)
    if path.name.lower().endswith(STACK_SUFFIXES):
        table, columns, stack, left_out = open_stack(path, arguments)
        names = "|".join(re.escape(getattr(options, f"{key}_column")) for key in ("id", "ra", "dec"))
        if wrong := [one for one in left_out if re.match(rf"dataset (.*/)?({names}) of ", one)]:
            raise InputError(f"{path} holds {len(stack)} cutouts, but {wrong[0]}: give one value per cutout")
    elif options.tiles:
        table, columns = path, read_table(path)
        stack = Stack(path, (len(next(iter(columns.values.values()), ())),))  # rows without files of their own
    else:
        table, (columns, stack) = path, open_catalogue(path, arguments)
    names = {key: find_column(getattr(options, f"{key}_column"), list(columns.values), table, key) for key in _KEYS}
    if names["file"] is None and stack is None and names["ra"] and names["dec"]:
        raise InputError(
            f"{table} has positions but no column {options.file_column!r} (it has {', '.join(columns.values)}): give "
            "tiles, such as '{band}/*.fits', or name the column of files with file_column"
        )
    for key in ("ra", "dec") if options.tiles else ():
        if names[key] is None:
            have, wanted = ", ".join(columns.values), getattr(options, f"{key}_column")
            raise InputError(f"{table} has no column {wanted!r} (it has {have}): name yours with {key}_column")
    kept = Columns({name: columns.values[name] for name in names.values() if name}, columns.units)  # without labels
    rows = list_rows(table, kept, arguments, BadFiles(), stack).rows
    ids = text_array([row.id for row in rows])
    if names["id"]:
        ids = _typed_ids(*(typed(columns.values[names["id"]], columns.is_text) or ("", [])), ids)
    return FileInput(str(path), rows, ids, stack=stack)


def _typed_ids(kind: str, values: list, texts: pyarrow.Array) -> pyarrow.Array:
    """Ids as integers where they are some of 64 bits, else `texts`, in which no path tells of this machine."""
    is_number = kind == "string" and all(re.fullmatch(r"-?[1-9]\d{18}|-?[1-9]\d{0,17}|0", value) for value in values)
    if kind == "int64" or (is_number and all(abs(int(value)) < 2**63 for value in values)):
        return pyarrow.array(map(int, values), pyarrow.int64())
    return texts
