"""What a dataset of cutouts knows of itself."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

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


# What the parts of a concatenated dataset must have in common. With other names or sources, nobody could tell later
# what a model that was trained on it has seen.
_SHARED = ("source", "name", "simulated", "painted", "simulator_version")
_SHARED += ("bands", "size", "pixel_scale", "zero_point", "stretch")


def has_info(dataset: Any) -> bool:
    """Whether a `Dataset` or `DatasetDict` says how its pixels were made."""
    return bool(_infos(dataset))


def cutout_info(dataset: Any) -> CutoutInfo:
    """
    The [`CutoutInfo`] of a `Dataset` or `DatasetDict` that [`load_cutouts`] returned, also after `select`, `filter`,
    `map`, `train_test_split` and, where the parts are of one source, `concatenate_datasets`.

    Raises:
        [`InputError`]: the dataset was not made by [`load_cutouts`], or its parts differ in more than their cutouts.
    """
    infos = _infos(dataset)
    if not infos:
        raise InputError("this dataset does not say how its pixels were made: make it with load_cutouts")
    for name in _SHARED:
        if any(getattr(info, name) != getattr(infos[0], name) for info in infos):
            raise InputError(
                f"the datasets that were concatenated differ in {name}: build one dataset from the files of all"
            )
    if len(infos) == 1:
        return infos[0]
    digest = hashlib.blake2b(" ".join(info.fingerprint for info in infos).encode(), digest_size=16)
    return replace(infos[0], fingerprint=digest.hexdigest(), left_out=max(info.left_out for info in infos))


def _infos(dataset: Any) -> list[CutoutInfo]:
    """The infos of all datasets that were concatenated; none where a description is not one of ours."""
    split = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    try:
        # `concatenate_datasets` joins different descriptions in this way; in ours there is no line break.
        found = [CutoutInfo.from_json(text) for text in re.split(r"\n+", split.info.description)]
    except (AttributeError, TypeError, ValueError):
        return []
    return [info for i, info in enumerate(found) if info not in found[:i]]
