"""What a dataset of cutouts knows of itself."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..errors import InputError

SPLITS = ("train", "validation", "test", "unlabelled", "test_large")  # in the order in which they are shown


@dataclass
class CutoutInfo:
    """
    What a dataset of cutouts knows of itself. It travels in `dataset.info.description` as JSON, and as `cutouts.json`
    beside Parquet files.

    Args:
        source (`str`): `"simulated"`, `"folder"` or `"catalogue"`.
        name (`str`): short name for people.
        simulated (`bool`): whether the pixels are simulated.
        bands (`list[str]`): names of the bands, in order.
        size (`int`): side of the stored cutouts in pixels.
        pixel_scale (`float`, *optional*): arcsec per pixel.
        zero_point (`float`, *optional*): AB magnitude of flux 1, before the stretch.
        stretch (`dict`): [`Stretch.to_dict`].
        fingerprint (`str`): hex digest of the source's files or the simulator's version, and of all settings.
        left_out (`int`): number of bad files that were left out.
        simulator_version (`str`, *optional*): of simulated cutouts; of real ones and of older sets `None`.
        painted (`bool`, *optional*): whether [`paint`] added arcs; `None` where it did not, as in older sets.
    """

    source: str
    name: str
    simulated: bool
    bands: list[str]
    size: int
    pixel_scale: float | None = None
    zero_point: float | None = None
    stretch: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    fingerprint: str = ""
    left_out: int = 0
    simulator_version: str | None = None
    painted: bool | None = None

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CutoutInfo":
        """The inverse of [`~CutoutInfo.to_json`]; keys of later versions are ignored."""
        values = json.loads(text)
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


# Of a Dataset.map that crops: the column keeps the shape that it was declared with.
OTHER_SHAPE = (
    "the cutouts have another shape than the column pixels states: put cropped ones into a new column, and rename that"
)
_UNITS = ("bands", "size", "pixel_scale", "zero_point", "stretch")  # what splits that are used together share
# What the parts of a concatenated dataset must have in common. With other names or sources, nobody could tell later
# what a model that was trained on it has seen.
_SHARED = ("source", "name", "simulated", "painted", "simulator_version", *_UNITS)


def has_info(dataset: Any) -> bool:
    """Whether a `Dataset` or `DatasetDict` says how its pixels were made."""
    found = [_infos(split) for split in _splits(dataset)]
    return bool(found) and all(found)


def cutout_info(dataset: Any) -> CutoutInfo:
    """
    The [`CutoutInfo`] of a `Dataset` or `DatasetDict` that [`load_cutouts`] returned, also after `select`, `filter`,
    `map`, `train_test_split` and, where the parts are of one source, `concatenate_datasets`. Splits may be of several
    sources, if their display units are the same: then it names all, and has a fingerprint of its own.

    Raises:
        [`InputError`]: the dataset was not made by [`load_cutouts`], the parts of a split differ in more than their
            cutouts, or the splits in their display units.
    """
    found = [_infos(split) for split in _splits(dataset)]
    if not found or not all(found):
        raise InputError("this dataset does not say how its pixels were made: make it with load_cutouts")
    for infos in found:
        _check_equal("the datasets that were concatenated", infos, _SHARED)
    infos = [_joined(infos) for infos in found]
    _check_equal("the splits of this dataset", infos, _UNITS)
    return _joined([info for i, info in enumerate(infos) if info not in infos[:i]])


def info_of_splits(cutouts: Any) -> CutoutInfo:
    """
    As [`cutout_info`], of all splits together, with the size that their cutouts have now.

    Raises:
        [`InputError`]: it is a single split, or as there and for [`check_shapes`].
    """
    if not isinstance(cutouts, Mapping):
        raise InputError(
            "cutouts must be all splits, as load_cutouts returns them: give DatasetDict(train=...) of one"
        )
    info = cutout_info(cutouts)
    filled = {name: split for name, split in cutouts.items() if len(split) and "pixels" in split.column_names}
    size = check_shapes(info.bands, {name: _shape_of(name, split) for name, split in filled.items()})
    return replace(info, size=size or info.size)


def check_shapes(bands: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """
    The side in pixels of cutouts that somebody may have cropped; `None` where there are none.

    Args:
        bands (`Sequence[str]`): what the dataset says of itself.
        shapes (`Mapping[str, tuple[int, ...]]`): of the cutouts of each split.

    Raises:
        [`InputError`]: they are not `(bands, size, size)`, the same in all splits.
    """
    for name, shape in shapes.items():
        if len(shape) != 3 or shape[0] != len(bands) or shape[1] != shape[2]:
            raise InputError(
                f"the {name} split has cutouts of shape {shape}, not {len(bands)} bands of size x size pixels: choose "
                "bands and size with load_cutouts"
            )
    sizes = {shape[-1] for shape in shapes.values()}
    if len(sizes) > 1:
        raise InputError(f"the splits of this dataset differ in size ({sorted(sizes)} pixels): crop all alike")
    return sizes.pop() if sizes else None


def _shape_of(name: str, split: Any) -> tuple[int, ...]:
    """The shape of the first cutout of a `datasets.Dataset`."""
    try:
        return np.shape(split.with_format("numpy", columns=["pixels"])[0]["pixels"])
    except ValueError as error:
        raise InputError(f"the {name} split: {OTHER_SHAPE}") from error


def _splits(dataset: Any) -> list[Any]:
    return list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]


def _check_equal(what: str, infos: list[CutoutInfo], names: tuple[str, ...]) -> None:
    for name in names:
        if any(getattr(info, name) != getattr(infos[0], name) for info in infos):
            raise InputError(f"{what} differ in {name}: build one dataset from the files of all")


def _joined(infos: list[CutoutInfo]) -> CutoutInfo:
    if len(infos) == 1:
        return infos[0]
    return replace(
        infos[0],
        name=" and ".join(dict.fromkeys(info.name for info in infos)),
        simulated=any(info.simulated for info in infos),
        painted=any(info.painted for info in infos) or None,
        fingerprint=hashlib.blake2b(" ".join(i.fingerprint for i in infos).encode(), digest_size=16).hexdigest(),
        left_out=max(info.left_out for info in infos),
    )


def _infos(split: Any) -> list[CutoutInfo]:
    """The infos of all datasets that were concatenated; none where a description is not one of ours."""
    try:
        # `concatenate_datasets` joins different descriptions in this way; in ours there is no line break.
        found = [CutoutInfo.from_json(text) for text in re.split(r"\n+", split.info.description)]
    except (AttributeError, TypeError, ValueError):
        return []
    return [info for i, info in enumerate(found) if info not in found[:i]]
