"""Splits as plain tensors, and one safetensors file that holds them for machines without `datasets`."""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError

_CHUNK = 1024  # cutouts that are looked at together


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
            raise InputError("the dataset holds unlabelled cutouts alone: give one with labels")
        if name not in splits:
            raise InputError(f"the data set has no {name} split: add one")
        if set(splits[name].labels.tolist()) != {0, 1}:
            raise InputError(f"the {name} split must hold lenses and non-lenses, all labelled")
    return [splits[name] for name in names]


def digest(names: Sequence[str]) -> str:
    """A fingerprint of a list of names and of their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


def as_tensors(split: Any) -> CutoutTensors:
    """A `datasets.Dataset` with the columns of [`load_cutouts`] as [`CutoutTensors`]; those are passed through."""
    if isinstance(split, CutoutTensors):
        return split
    missing = {"pixels", "label"} - set(split.column_names)
    if missing:
        raise InputError(
            f"the data set has no column {sorted(missing)[0]!r} (it has {', '.join(split.column_names)}): "
            "make it with load_cutouts"
        )
    size = len(split)
    columns = split.with_format("torch", columns=["pixels", "label"])[:]
    text = {
        name: [str(value) for value in split[name]]
        if name in split.column_names
        else [default(i) for i in range(size)]
        for name, default in (("id", str), ("group", str), ("subclass", lambda _: ""))
    }
    return CutoutTensors(
        columns["pixels"].to(torch.float32), columns["label"].long(), text["id"], text["group"], text["subclass"]
    )


def splits_and_info(cutouts: Any, *names: str) -> tuple[dict[str, CutoutTensors], dict]:
    """
    The splits and what the data set knows of itself, from a `DatasetDict`, a `.safetensors` path or what
    [`load_tensors`] returned.

    Args:
        names (`str`): the splits that are needed, where they are there; all by default. The others may be large.

    Returns:
        `tuple[dict[str, CutoutTensors], dict]`: splits by name, and the fields of `CutoutInfo`.

    Raises:
        [`InputError`]: it is no data set of these kinds, or a pixel is NaN or infinite.
    """
    splits, info = open_splits(cutouts)
    chosen = {name: split for name, split in splits.items() if name in names or not names}
    return {name: check_finite(name, as_tensors(split)) for name, split in chosen.items()}, info


def open_splits(cutouts: Any) -> tuple[Mapping[str, Any], dict]:
    """As [`splits_and_info`], with the splits as they are, for [`as_tensors`]."""
    if isinstance(cutouts, str | os.PathLike):
        return load_tensors(cutouts)
    if isinstance(cutouts, tuple):
        return cutouts
    if not isinstance(cutouts, Mapping):
        raise InputError("cutouts must be a DatasetDict from load_cutouts or the path of a .safetensors file")
    from .processing import cutout_info

    return cutouts, asdict(cutout_info(cutouts))


def save_tensors(cutouts: Any, path: str | os.PathLike) -> Path:
    """
    Write all splits of a `DatasetDict` to one safetensors file, enough to train and predict where only torch,
    transformers, accelerate and safetensors are installed.

    Raises:
        [`InputError`]: the file cannot be written; what was there before stays then.
    """
    splits, info = splits_and_info(cutouts)
    tensors, text = {}, {}
    for name, split in splits.items():
        tensors[f"{name}.pixels"] = split.pixels.cpu().contiguous()
        tensors[f"{name}.labels"] = split.labels.cpu().contiguous()
        text[name] = {"ids": split.ids, "groups": split.groups, "subclasses": split.subclasses}
    metadata = {"cutout_info": json.dumps(info), "columns": json.dumps(text)}
    metadata["checksum"] = str(checksum("".join(metadata.values()), tensors))
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {path} ({reason}): choose a writable place") from error
    return path


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, CutoutTensors], dict]:
    """
    Read a file written by [`save_tensors`].

    Returns:
        `tuple[dict[str, CutoutTensors], dict]`: splits by name, and the fields of `CutoutInfo`.

    Raises:
        [`InputError`]: the file is missing, damaged or was not written by [`save_tensors`].
    """
    from .processing import CutoutInfo

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "cutout_info" not in metadata:
                raise InputError(f"{path} holds no cutouts: write it with save_tensors")
            info, columns = json.loads(metadata["cutout_info"]), json.loads(metadata["columns"])
            CutoutInfo.from_json(metadata["cutout_info"])  # fails where a field is missing
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if "checksum" not in metadata:
            raise InputError(f"{path} has no checksum, an earlier version wrote it: write it again with save_tensors")
        if str(checksum(metadata["cutout_info"] + metadata["columns"], tensors)) != metadata["checksum"]:
            raise ValueError("its checksum is wrong")
        splits = {
            name: CutoutTensors(tensors[f"{name}.pixels"], tensors[f"{name}.labels"], **text)
            for name, text in columns.items()
        }
        problem = _problem(splits, info)
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {path} ({error}): write it again with save_tensors") from error
    if problem:
        raise InputError(f"cannot read {path} ({problem}): write it again with save_tensors")
    return splits, info


def checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 of a text and of tensors (contiguous, in main memory) with their names: tells damage, not forgery."""
    found = zlib.crc32(header.encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), zlib.crc32(name.encode(), found))
    return found


def _problem(splits: dict[str, CutoutTensors], info: dict) -> str | None:
    """What contradicts itself in the content of a file, if anything does."""
    shape = (len(info["bands"]), info["size"], info["size"])
    for name, split in splits.items():
        if split.pixels.dtype != torch.float32 or tuple(split.pixels.shape[1:]) != shape:
            found = f"{str(split.pixels.dtype).removeprefix('torch.')} of shape {tuple(split.pixels.shape)}"
            return f"{name}.pixels are {found}, not float32 of (n, {', '.join(map(str, shape))})"
        if split.labels.dtype != torch.int64 or split.labels.ndim != 1:
            return f"{name}.labels are not int64 of shape (n,)"
        if any(len(split) != len(column) for column in (split.labels, split.ids, split.groups, split.subclasses)):
            return f"pixels, labels and columns of {name} differ in length"
    return None if splits else "it holds no split"


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
                f"cutout {one} of {name} has NaN or infinite pixels: fill them, or make the data set with load_cutouts"
            )
    return split


def center_crop(pixels: Any, size: int) -> Any:
    """
    The central `size x size` pixels of a tensor or an array `(..., H, W)`, with the same rounding as
    `ViTImageProcessor`'s centre crop.
    """
    height, width = pixels.shape[-2:]
    if min(height, width) < size:
        raise InputError(
            f"cutouts of {height}x{width} pixels are smaller than crop_size {size}: lower crop_size or give larger"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[..., top : top + size, left : left + size]


def normalise(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Display units `(n, bands, H, W)` -> `(pixels / 255 - mean) / std`, as `ViTImageProcessor` does it."""
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(values, dtype=torch.float32, device=pixels.device).view(shape) for values in (mean, std))
    return pixels.mul(1 / 255).sub_(mean).div_(std)
