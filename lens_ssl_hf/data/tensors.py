"""Splits as plain tensors: what trainings and evaluations compute with."""

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from .display import center_crop
from .info import OTHER_SHAPE, check_shapes, cutout_info
from .stretch import check_display

if TYPE_CHECKING:
    from .storage import ParquetSplits

_CHUNK = 1024  # cutouts that are looked at together
_TEXT = ("id", "group", "subclass")


@dataclass
class CutoutTensors:
    """
    One split.

    Args:
        pixels (`torch.Tensor` of shape `(n, bands, H, W)`): float32 display units, 0 to 255.
        labels (`torch.LongTensor` of shape `(n,)`): 1 lens, 0 non-lens, -1 unlabelled.
        ids, groups, subclasses (`list[str]`): per cutout; a group is what splits and bootstraps never divide.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    groups: list[str]
    subclasses: list[str]

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: torch.Tensor) -> "CutoutTensors":
        """The cutouts at `indices`, in that order."""
        positions = indices.tolist()
        return CutoutTensors(
            self.pixels[indices],
            self.labels[indices],
            [self.ids[i] for i in positions],
            [self.groups[i] for i in positions],
            [self.subclasses[i] for i in positions],
        )


def labelled_splits(splits: Mapping[str, CutoutTensors], *names: str) -> list[CutoutTensors]:
    """
    These splits.

    Raises:
        [`InputError`]: one of them is missing, or does not hold both classes, all labelled.
    """
    for name in names:
        if name not in splits and set(splits) == {"unlabelled"}:
            raise InputError("the dataset holds no labels: build it with labels (of a table: --label_column)")
        if name not in splits:
            raise InputError(f"the dataset has no {name} split: add one")
        if set(splits[name].labels.tolist()) != {0, 1}:
            raise InputError(f"the {name} split must hold lenses and non-lenses, all labelled")
    return [splits[name] for name in names]


def digest(names: Sequence[str]) -> str:
    """A fingerprint of a list of names and of their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


def as_tensors(split: Any) -> CutoutTensors:
    """
    A `datasets.Dataset` with the columns of [`load_cutouts`] as [`CutoutTensors`]; those are passed through.

    Raises:
        [`InputError`]: it is streamed, has no pixels or labels, or cutouts of several shapes.
    """
    if isinstance(split, CutoutTensors):
        return split
    _check_length(split)
    missing = {"pixels", "label"} - set(split.column_names)
    if missing:
        raise InputError(
            f"the dataset has no column {sorted(missing)[0]!r} (it has {', '.join(split.column_names)}): "
            "make it with load_cutouts"
        )
    try:
        columns = split.with_format("torch", columns=["pixels", "label"])[:]
    except ValueError as error:
        raise InputError(OTHER_SHAPE) from error
    if not isinstance(columns["pixels"], torch.Tensor):
        raise InputError("the cutouts of a split differ in size: crop all alike")
    text = {name: split[name] for name in _TEXT if name in split.column_names}
    return CutoutTensors(columns["pixels"].to(torch.float32), columns["label"].long(), *_names(text, len(split)))


def _names(columns: Mapping[str, Sequence], number: int) -> tuple[list[str], list[str], list[str]]:
    """Ids, groups and subclasses of so many cutouts: one without a group is a group of its own."""
    ids = [str(i) if _is_null(one) else str(one) for i, one in enumerate(columns.get("id", [None] * number))]
    groups = [name if _is_null(one) else str(one) for one, name in zip(columns.get("group", ids), ids)]
    subclasses = ["" if _is_null(one) else str(one) for one in columns.get("subclass", [""] * number)]
    return ids, groups, subclasses


def _is_null(value: Any) -> bool:
    return value is None or value != value  # NaN differs from itself


def _check_length(split: Any) -> None:
    if not hasattr(split, "__len__"):
        raise InputError(
            "a streamed dataset cannot be measured or trained on: load it without streaming, or score it with the "
            "pipeline"
        )


def ids_of(split: Any) -> list[str]:
    """The ids of a split, without its pixels."""
    if isinstance(split, CutoutTensors):
        return split.ids
    return [str(one) for one in split["id"]] if "id" in split.column_names else []


def pixel_digests(split: Any) -> list[bytes]:
    """Of the pixels of each cutout of a split, of which not all are read at once."""
    found = []
    for first in range(0, len(split), _CHUNK):
        rows = range(first, min(first + _CHUNK, len(split)))
        if isinstance(split, CutoutTensors):
            pixels = split.pixels[rows.start : rows.stop].numpy()
        else:
            pixels = split.with_format("numpy", columns=["pixels"])[rows]["pixels"]
        found += [hashlib.blake2b(np.float32(one).tobytes(), digest_size=16).digest() for one in pixels]
    return found


def split_checksum(split: Any, number: int = 64) -> int | None:
    """
    CRC-32 of the labels of a split and of the pixels of up to `number` cutouts at equal distances, the same for a
    `Dataset` and its tensors: tells whether `map` changed them, which leaves the dataset's own fingerprint as it was.
    `None` of what cannot be evaluated: streamed, or without pixels or labels.
    """
    is_tensors = isinstance(split, CutoutTensors)
    if not is_tensors and not (hasattr(split, "__len__") and {"pixels", "label"} <= set(split.column_names)):
        return None
    rows = range(0, len(split), max(1, len(split) // number))
    some = split.select(torch.tensor(rows) if is_tensors else rows)
    labels = [-1 if one is None else int(one) for one in (split.labels if is_tensors else split["label"])]
    return zlib.crc32(b"".join(pixel_digests(some)), zlib.crc32(repr(labels).encode()))


def splits_and_info(cutouts: Any, *names: str) -> tuple[dict[str, CutoutTensors], dict]:
    """
    The splits and what the dataset knows of itself, from a `DatasetDict`, the path of a directory that
    [`save_cutouts`] wrote, or a tuple of both.

    Args:
        names (`str`): the splits that are needed, where they are there; all by default. The others may be large.

    Returns:
        `tuple[dict[str, CutoutTensors], dict]`: splits by name, and the fields of the `CutoutInfo` of the first of
        `names`, with the size that the cutouts have now: splits may be of several sources with the same units.

    Raises:
        [`InputError`]: it is no dataset of these kinds, its splits differ in their display units or shape, or pixels
            are NaN, infinite or no display units.
    """
    splits, info = open_splits(cutouts, *names)
    chosen = {name: split for name, split in splits.items() if name in names or not names}
    found = {name: _checked(name, as_tensors(split), info) for name, split in chosen.items()}
    size = check_shapes(info["bands"], {name: tuple(split.pixels.shape[1:]) for name, split in found.items()})
    return found, {**info, "size": size or info.get("size")}


def read_split(parquet: "ParquetSplits", split: str, number: int) -> CutoutTensors | None:
    """
    Up to `number` cutouts of a split, from row groups at equal distances; `None` for a split that is absent.

    Raises:
        [`InputError`]: one of them has a NaN or infinite pixel, or they are no display units.
    """
    groups = parquet.groups.get(split, [])
    if not groups:
        return None
    rows = sum(rows for _, _, rows in groups)
    chosen = groups[:: -(-rows // number)]
    columns: dict[str, list] = {name: [] for name in ("pixels", "label", *_TEXT) if name in parquet.columns}
    for path, group, _ in chosen:
        for name, values in columns.items():
            values.extend(parquet.read(path, group, name))
    pixels = torch.from_numpy(np.stack(columns["pixels"][:number]))
    labels = torch.tensor(columns["label"][:number])
    text = {name: columns[name][:number] for name in _TEXT if name in columns}
    return _checked(split, CutoutTensors(pixels, labels, *_names(text, len(labels))), parquet.info)


def open_splits(cutouts: Any, *names: str) -> tuple[Mapping[str, Any], dict]:
    """As [`splits_and_info`], with all splits as they are, for [`as_tensors`]."""
    if isinstance(cutouts, str | os.PathLike):
        from .dataset import load_cutouts  # datasets, which a Space lacks

        cutouts = load_cutouts(cutouts)
    if isinstance(cutouts, tuple):
        return cutouts
    if not isinstance(cutouts, Mapping):
        raise InputError("cutouts must be a DatasetDict from load_cutouts, or the path of what save_cutouts wrote")
    used = {name: cutouts[name] for name in names if name in cutouts} or dict(cutouts)
    for split in used.values():
        _check_length(split)
    cutout_info(used)  # raises where their units differ
    return cutouts, asdict(cutout_info(next(iter(used.values()))))


def checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 of a text and of tensors (contiguous, in main memory) with their names: tells damage, not forgery."""
    found = zlib.crc32(header.encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), zlib.crc32(name.encode(), found))
    return found


def channel_statistics(pixels: torch.Tensor, crop_size: int) -> tuple[list[float], list[float]]:
    """
    Mean and standard deviation per band of `pixels / 255` in the central crop, as `image_mean` and `image_std`; in
    float64, but of `_CHUNK` cutouts at a time.
    """
    chunks = center_crop(pixels, crop_size).split(_CHUNK)
    count = len(pixels) * crop_size**2
    mean = sum(chunk.double().sum(dim=(0, 2, 3)) for chunk in chunks) / count
    squares = sum((chunk.double() - mean.view(1, -1, 1, 1)).square().sum(dim=(0, 2, 3)) for chunk in chunks)
    std = (squares / (count - 1)).sqrt()
    if (std == 0).any():
        raise InputError(f"band {int((std == 0).nonzero()[0])} of the training split is constant: leave it out")
    return (mean / 255).tolist(), (std / 255).tolist()


def check_finite(name: str, split: CutoutTensors) -> CutoutTensors:
    """
    The split itself.

    Raises:
        [`InputError`]: one of its cutouts has a NaN or infinite pixel; names it.
    """
    for number, chunk in enumerate(split.pixels.split(_CHUNK)):
        finite = chunk.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            one = split.ids[number * _CHUNK + int((~finite).nonzero()[0])]
            raise InputError(
                f"cutout {one} of {name} has NaN or infinite pixels: fill them, or make the dataset with load_cutouts"
            )
    return split


def check_units(name: str, split: CutoutTensors, info: Mapping[str, Any]) -> CutoutTensors:
    """
    The split itself. All cutouts are judged together, so that a dark one passes.

    Args:
        name (`str`): what it is called in errors.
        info (`Mapping`): the fields of its `CutoutInfo`, as far as they are known.

    Raises:
        [`InputError`]: its pixels are no longer the display units that its stretch makes.
    """
    if not len(split) or (info.get("stretch") or {}).get("kind") in (None, "linear"):  # which does not clip
        return split
    limits = torch.stack([torch.stack(chunk.aminmax()) for chunk in split.pixels.split(_CHUNK)]).cpu().numpy()
    if np.isfinite(limits).all():  # other errors name the cutout
        try:
            check_display(limits)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return split


def _checked(name: str, split: CutoutTensors, info: Mapping[str, Any]) -> CutoutTensors:
    return check_units(name, check_finite(name, split), info)


def normalise(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Display units `(n, bands, H, W)` -> `(pixels / 255 - mean) / std`, as `ViTImageProcessor` does it."""
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(values, dtype=torch.float32, device=pixels.device).view(shape) for values in (mean, std))
    return pixels.mul(1 / 255).sub_(mean).div_(std)
