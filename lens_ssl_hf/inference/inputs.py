"""Whatever a user may hold cutouts in -> one cutout after the other, and what is known of them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers.pipelines.pt_utils import KeyDataset

from ..data.tensors import digest, open_splits
from ..errors import InputError
from .compatibility import info_of

# Of load_cutouts, whose `pixels` are display units; plain load_dataset loses what the dataset says of itself.
_OWN_COLUMNS = {"pixels", "id", "label", "group", "subclass"}


@dataclass
class Inputs:
    """
    Args:
        items (iterable): the cutouts, each as [`LensClassificationPipeline.display`] takes it.
        is_one (`bool`): whether a single cutout was given.
        is_stream (`bool`): whether their results are iterated over, as those of a generator.
        info (`dict`): the fields of the `CutoutInfo` of the dataset that they come from, where they come from one.
        units (`str`, *optional*): `"display"` where the pixels are known to be display units.
    """

    items: Iterable
    is_one: bool = False
    is_stream: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    units: str | None = None


def open_inputs(cutouts: Any) -> Inputs:
    """
    Tell one cutout from many, and look through the containers of datasets and torch.

    Raises:
        [`InputError`]: a whole dataset instead of one of its splits, or a split without pixels.
    """
    if isinstance(cutouts, Mapping) and "pixels" in cutouts:
        pixels = cutouts["pixels"]
        if _depth(pixels) == 4:
            return Inputs([{**dict.fromkeys(cutouts), "pixels": one} for one in pixels], units=units_of_row(cutouts))
        return Inputs([cutouts], is_one=True)
    if isinstance(cutouts, Mapping):
        raise InputError(f"the cutouts are in {', '.join(map(str, cutouts)) or 'nothing'}: give one of these")
    if isinstance(cutouts, DataLoader):
        source = _without_subsets(cutouts.dataset)
        info = info_of(source)
        return Inputs(
            _unbatched(cutouts), is_stream=not has_length(cutouts), info=info, units="display" if info else None
        )
    if hasattr(cutouts, "column_names") and hasattr(cutouts, "info"):  # Dataset or IterableDataset
        return _open_dataset(cutouts)
    if hasattr(cutouts, "column_name") and hasattr(cutouts, "source"):  # a Column of one
        return _open_column(cutouts)
    is_list_of_paths = getattr(cutouts, "ndim", 0) == 1 and getattr(cutouts.dtype, "kind", "O") in "OUT"
    if _depth(cutouts) == 4 or is_list_of_paths:
        return Inputs(list(cutouts))
    is_image = hasattr(cutouts, "shape") or hasattr(cutouts, "convert")  # of NumPy, torch, astropy; of PIL
    if isinstance(cutouts, str | Path) or is_image or _depth(cutouts) in (2, 3):
        return Inputs([cutouts], is_one=True)
    if isinstance(cutouts, KeyDataset) and hasattr(cutouts.dataset, "column_names") and cutouts.key == "pixels":
        return replace(_open_dataset(cutouts.dataset), is_stream=True)
    if isinstance(cutouts, Dataset):  # of torch; as any pipeline, it gives an iterator for one
        return Inputs(cutouts, is_stream=True)
    if not hasattr(cutouts, "__iter__"):
        return Inputs([cutouts], is_one=True)
    return Inputs(cutouts, is_stream=not has_length(cutouts))


def units_of_row(row: Mapping[str, Any]) -> str | None:
    """`"display"` for a row, or a batch of rows, with the columns of [`load_cutouts`]; else `None`."""
    return "display" if set(row) >= _OWN_COLUMNS else None


def _open_dataset(dataset: Any) -> Inputs:
    info, names = info_of(dataset), dataset.column_names
    if names is not None and "pixels" not in names:
        raise InputError(f"the dataset has no column 'pixels' (it has {', '.join(names)}): make it with load_cutouts")
    units = "display" if info else units_of_row(dict.fromkeys(names or ()))
    if not has_length(dataset):
        return Inputs(dataset, is_stream=True, info=info, units=units)
    if (dataset.format or {}).get("type") != "custom":  # a transform of the user's own stays
        dataset = dataset.select_columns("pixels").with_format("numpy")
    return Inputs(KeyDataset(dataset, "pixels") if units else dataset, info=info, units=units)


def _open_column(column: Any) -> Inputs:
    dataset = column.source
    if column.column_name == "pixels" and hasattr(dataset, "column_names"):
        return _open_dataset(dataset)
    return Inputs(column)


def _unbatched(loader: DataLoader) -> Iterator[Any]:
    """The cutouts of the batches `(n, bands, H, W)`, `(pixels, labels)` or `{"pixels": ..., ...}` of a DataLoader."""
    for batch in loader:
        if isinstance(batch, Mapping) and "pixels" in batch:
            known = dict.fromkeys(batch)
            yield from ({**known, "pixels": pixels} for pixels in _as_batch(batch["pixels"]))
        else:
            yield from _as_batch(batch[0] if isinstance(batch, list | tuple) and len(batch) else batch)


def _as_batch(pixels: Any) -> Any:
    if getattr(pixels, "ndim", 0) != 4:
        raise InputError(
            "the DataLoader gives no batches (n, bands, height, width): make it of data.with_format('torch')"
        )
    return pixels


def _without_subsets(dataset: Any) -> Any:
    """The dataset below the `Subset`s of `random_split`."""
    while hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        dataset = dataset.dataset
    return dataset


def has_length(cutouts: Any) -> bool:
    """Whether `len` knows how many there are."""
    try:
        len(cutouts)
    except TypeError:
        return False
    return True


def _depth(values: Any) -> int:
    """How many axes an array, or lists of numbers in each other, have; 0 for lists of anything else."""
    if hasattr(values, "ndim"):
        return values.ndim
    depth = 0
    while isinstance(values, list | tuple) and len(values):
        values, depth = values[0], depth + 1
    return depth if isinstance(values, Real) else 0


def choose_split(cutouts: Any, split: str | None = None) -> tuple[Any, dict[str, Any], str | None]:
    """
    One split as it is, for [`as_tensors`]; the fields of its `CutoutInfo` (empty where it does not carry them); and
    its name: of a whole dataset `split`, by default test or the only one; of a split what it calls itself; of a part
    of a split one such as `test_10_of_40_0f3c9a21`; `None` for bare tensors.

    Raises:
        [`InputError`]: the dataset has no such split.
    """
    is_whole = isinstance(cutouts, Mapping | tuple | str | os.PathLike)
    if not is_whole:
        name = getattr(cutouts, "split", None)
        return cutouts, info_of(cutouts), None if name is None else _name_of(cutouts, str(name))
    splits, info = open_splits(cutouts, split or "test")
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "test"
    if split not in splits:
        raise InputError(f"the dataset has no {split} split (it has {', '.join(splits)}): choose one of them")
    return splits[split], info, _name_of(splits[split], split)


def _name_of(chosen: Any, split: str) -> str:
    """`split`, or a name of its own where `select` or `filter` left a part, or where it is of another split."""
    whole = (getattr(getattr(chosen, "info", None), "splits", None) or {}).get(split)
    if whole is None or (whole.num_examples == len(chosen) and str(chosen.split or split) == split):
        return split
    ids = [str(one) for one in chosen["id"]] if "id" in chosen.column_names else []
    return f"{split}_{len(chosen)}_of_{whole.num_examples}_{digest(ids)[:8]}"
