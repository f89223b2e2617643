"""Many cutouts in one array: `(N, bands, H, W)` in HDF5 with columns beside it, or in .npy."""

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import InputError
from .cells import plain
from .headers import Headers, raw_of
from .numpy_files import read_header
from .raw import RawCutout, as_pixels, readable

with contextlib.suppress(ImportError):
    import hdf5plugin  # noqa: F401  further compressions, where it is installed

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
STACK_SUFFIXES = (*HDF5_SUFFIXES, ".npy")
# What a header says is not believed beyond these: anybody can write any number into it.
_MAX_ROWS = 50_000_000
_MAX_PIXELS = 4096 * 4096  # of one cutout, and of a chunk that HDF5 unpacks at once
_MAX_DATASETS = 100_000
_FEW_IMAGES = 10  # a three-dimensional array of no more may be the bands of one cutout


@dataclass(frozen=True)
class Stack:
    """
    An array of cutouts in a file.

    Args:
        path (`Path`): the file.
        shape (`tuple[int, ...]`): `(N, bands, H, W)`, `(N, H, W, bands)` or `(N, H, W)`.
        key (`str`, *optional*): the dataset's path in an HDF5 file.
        bands, zero_point, pixel_scale: what the attributes of an HDF5 dataset say.
        unit (`str`, *optional*): of the flux, where that is not absolute.
    """

    path: Path
    shape: tuple[int, ...]
    key: str | None = None
    bands: tuple[str, ...] | None = None
    zero_point: float | None = None
    pixel_scale: float | None = None
    unit: str | None = None

    def __len__(self) -> int:
        return self.shape[0]


def read_stack_rows(stack: Stack, positions: Sequence[int]) -> list[RawCutout]:
    """The cutouts at `positions`, which ascend, as a reader returns them."""
    arrays = _arrays(stack, positions)
    points = None if stack.zero_point is None else (stack.zero_point,)
    found = []
    for position, array in zip(positions, arrays):
        pixels = as_pixels(array, f"{stack.path}, cutout {position + 1}", stack.bands and len(stack.bands))
        bands = stack.bands if stack.bands and len(stack.bands) == len(pixels) else None
        facts = {"unit": stack.unit, "display": array.dtype == np.uint8}
        found.append(RawCutout(pixels, bands, points and points * len(pixels), stack.pixel_scale, **facts))
    return found


def digest_stack_rows(stack: Stack, positions: Sequence[int]) -> list[str]:
    """Hash of the content of each cutout."""
    arrays = _arrays(stack, positions)
    return [
        hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode() + array.tobytes(), digest_size=16).hexdigest()
        for array in arrays
    ]


def _arrays(stack: Stack, positions: Sequence[int]) -> list[np.ndarray]:
    positions = list(positions)
    with readable(stack.path):
        if stack.key is None:
            return [np.asarray(row) for row in np.load(stack.path, mmap_mode="r", allow_pickle=False)[positions]]
        with h5py.File(stack.path, "r") as file:
            return list(file[stack.key][positions])


def open_npy(path: Path, has_table: bool) -> Stack:
    """
    The stack in a .npy file; that a table stands beside it tells a stack from the bands of one cutout.

    Raises:
        [`InputError`]: it is none.
    """
    with readable(path), open(path, "rb") as stream:
        read_header(stream, path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    problem = _problem(array.shape, array.dtype, is_certain=has_table)
    if problem:
        raise InputError(f"{path} {problem}")
    return Stack(path, array.shape)


def _problem(shape: tuple[int, ...], dtype: np.dtype, is_certain: bool) -> str | None:
    """Why an array is no stack of cutouts, if it is none."""
    if dtype.kind not in "fiub":
        return f"holds {dtype} values, not numbers: save it as a float32 array"
    if len(shape) not in (3, 4) or 0 in shape:
        return f"has shape {shape}: save it as (N, bands, height, width)"
    if len(shape) == 3 and shape[0] <= _FEW_IMAGES and not is_certain:
        return f"has shape {shape}, which may be the bands of one cutout: save a stack as (N, bands, height, width)"
    if math.prod(shape[1:]) > _MAX_PIXELS or shape[0] > _MAX_ROWS:
        return f"has shape {shape}, which is too large: save smaller cutouts, or several stacks"
    return None


def open_hdf5(path: Path, hdu: str | None, with_words: bool = False) -> tuple[Stack, dict[str, list], list[str]]:
    """
    The stack in an HDF5 file, the columns of its length beside it, `with_words` as [`plain`] takes it, and what of the
    file is left out, for people.

    Raises:
        [`InputError`]: the file holds no stack, or several, or one whose values are not all in it.
    """
    with readable(path), h5py.File(path, "r") as file:
        datasets = _datasets(file, path)
        key = _stack_key(datasets, path, hdu)
        chosen = datasets[key]
        _check_hdf5(chosen, path)
        count = chosen.shape[0]
        columns: dict[str, list] = {}
        left_out, bands = [], None
        for name, dataset in datasets.items():
            if name == key:
                continue
            own = name.rpartition("/")[2]
            is_beside = name.rpartition("/")[0] in (key.rpartition("/")[0], "")
            if own.lower() in ("bands", "filters") and dataset.size in chosen.shape[1:]:
                bands = tuple(str(plain(one)) for one in np.atleast_1d(dataset[()]).tolist())
            elif is_beside and dataset.shape == (count,) and own not in columns:
                _check_storage(dataset, path)
                columns |= _columns_of(own, dataset, with_words)
            else:
                left_out.append(f"dataset {name} of shape {dataset.shape}")
        facts = _facts(chosen, file, path)
        stack = Stack(path, tuple(chosen.shape), key, **{**facts, "bands": facts["bands"] or bands})
    return stack, columns, left_out


def _datasets(file: Any, path: Path) -> dict[str, Any]:
    """All datasets by their paths; links to other files are not followed."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = item
        return True if len(found) > _MAX_DATASETS else None

    if file.visititems(visit):
        raise InputError(f"{path} holds more than {_MAX_DATASETS} datasets: save the cutouts as one (N, bands, H, W)")
    return found


def _stack_key(datasets: dict[str, Any], path: Path, hdu: str | None) -> str:
    """The path of the dataset that holds the pixels."""
    shapes = ", ".join(f"{name} {dataset.shape}" for name, dataset in list(datasets.items())[:20]) or "nothing"
    if hdu is not None:
        key = hdu.strip("/")
        if key not in datasets:
            raise InputError(f"{path} has no dataset {hdu!r} (it has {shapes}): choose another hdu")
        if problem := _problem(datasets[key].shape, datasets[key].dtype, is_certain=True):
            raise InputError(f"{path}: {hdu} {problem}")
        return key
    lengths = [dataset.shape[0] for dataset in datasets.values() if dataset.ndim == 1]
    sizes = {
        name: dataset.ndim
        for name, dataset in datasets.items()
        if dataset.ndim in (3, 4) and not _problem(dataset.shape, dataset.dtype, dataset.shape[0] in lengths)
    }
    found = [name for name, ndim in sizes.items() if ndim == max(sizes.values())]
    if not found:
        raise InputError(f"{path} holds no stack of shape (N, bands, H, W) or (N, H, W), only {shapes}: save one")
    if len(found) > 1:
        raise InputError(f"{path} holds several stacks ({', '.join(found)}): choose one with hdu")
    return found[0]


def _check_hdf5(dataset: Any, path: Path) -> None:
    """Refuse what would be read as something else, or not at all, before the rows are listed."""
    _check_storage(dataset, path)
    if dataset.chunks and math.prod(dataset.chunks) > _MAX_PIXELS:
        raise InputError(
            f"{path} has chunks of shape {dataset.chunks}, too large to unpack: save it with smaller chunks"
        )
    if dataset.id.get_storage_size() == 0:
        raise InputError(f"{path}: nothing was ever written into {dataset.name}: save its pixels")


def _check_storage(dataset: Any, path: Path) -> None:
    if dataset.is_virtual or dataset.external:
        # Where another file is gone, HDF5 returns zeros in place of its values.
        raise InputError(f"{path}: the values of {dataset.name} are in other files: copy them into one (h5repack)")
    if dataset.shape[0] > _MAX_ROWS:
        raise InputError(f"{path}: {dataset.name} has {dataset.shape[0]} rows, too many: save several files")
    plan = dataset.id.get_create_plist()
    for number, _, _, name in (plan.get_filter(i) for i in range(plan.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            title = name.decode("utf-8", "replace") or f"number {number}"
            raise InputError(
                f"{path} is compressed by the HDF5 filter {title}, which h5py lacks: pip install hdf5plugin, or save "
                "it with gzip"
            )


def _columns_of(name: str, dataset: Any, with_words: bool) -> dict[str, list]:
    """One column, or the fields of a structured dataset."""
    values = dataset[()]
    fields = {field: values[field] for field in values.dtype.names} if values.dtype.names else {name: values}
    return {field: [plain(value, with_words) for value in column.tolist()] for field, column in fields.items()}


def _facts(dataset: Any, file: Any, path: Path) -> dict[str, Any]:
    """
    What the attributes of a dataset, or of the whole file, say of the bands, the flux and the pixels. What they say of
    the flux is read as a header is.
    """
    given = {**dict(file.attrs), **dict(dataset.attrs)}
    stated = {name.lower(): value for name, value in given.items()}

    def texts(*names: str) -> list[str]:
        value = next((stated[name] for name in names if name in stated), ())
        return [str(plain(one)) for one in np.atleast_1d(value).tolist()]

    bands = texts("bands", "filters")
    header = {
        "BUNIT": ",".join(texts("bunit", "unit", "units")),
        "ZERO_POINT": ",".join(texts("zero_point", "zeropoint")),
        "PIXEL_SCALE": ",".join(texts("pixel_scale", "pixelscale")),
    }
    raw = raw_of(np.empty((1, 1, 1), np.float32), np.dtype(np.float32), Headers(header, {}, str(path)))
    return {
        "bands": tuple(bands[0].replace(",", " ").split() if len(bands) == 1 else bands) or None,
        "zero_point": raw.zero_points and raw.zero_points[0],
        "pixel_scale": raw.pixel_scale,
        "unit": raw.unit,
    }
