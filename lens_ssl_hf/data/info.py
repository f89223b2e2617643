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


# What cutouts must have in common to be one dataset.
_SHARED = ("bands", "size", "pixel_scale", "zero_point", "stretch")


def has_info(dataset: Any) -> bool:
    """Whether a `Dataset` or `DatasetDict` says how its pixels were made."""
    return bool(_infos(dataset))


def cutout_info(dataset: Any) -> CutoutInfo:
    """
    The [`CutoutInfo`] of a `Dataset` or `DatasetDict` that [`load_cutouts`] returned, also after `select`, `filter`,
    `map` and `train_test_split`. What `concatenate_datasets` made of several has the names and a fingerprint of all.

    Raises:
        [`InputError`]: the dataset was not made by [`load_cutouts`], or is made of several that do not go together.
    """
    infos = _infos(dataset)
    if not infos:
        raise InputError("this dataset does not say how its pixels were made: make it with load_cutouts")
    return infos[0] if len(infos) == 1 else _joined(infos)


def _infos(dataset: Any) -> list[CutoutInfo]:
    """One, or those of all that were concatenated; none where there is no sound one."""
    split = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    try:
        # `concatenate_datasets` joins different descriptions in this way; in ours there is no line break.
        return [CutoutInfo.from_json(text) for text in re.split(r"\n+", split.info.description)]
    except (AttributeError, TypeError, ValueError):
        return []


def _joined(infos: list[CutoutInfo]) -> CutoutInfo:
    first = infos[0]
    for name in _SHARED:
        if any(getattr(info, name) != getattr(first, name) for info in infos):
            raise InputError(
                f"the datasets that were concatenated differ in {name}: make them with the same settings of "
                "load_cutouts, or all of them like the same model"
            )
    versions = {info.simulator_version for info in infos}
    return replace(
        first,
        name=" and ".join(dict.fromkeys(info.name for info in infos)),
        simulated=any(info.simulated for info in infos),
        painted=any(info.painted for info in infos) or None,
        simulator_version=first.simulator_version if len(versions) == 1 else None,
        fingerprint=hashlib.blake2b(" ".join(i.fingerprint for i in infos).encode(), digest_size=16).hexdigest(),
        left_out=sum(info.left_out for info in infos),
    )
