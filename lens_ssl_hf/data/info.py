"""What a dataset of cutouts knows of itself."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import InputError

SPLITS = ("train", "validation", "test", "unlabelled", "test_large")  # in the order in which they are shown


@dataclass
class CutoutInfo:
    """
    What a data set of cutouts knows of itself. It travels in `dataset.info.description` as JSON, and as `cutouts.json`
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


def cutout_info(dataset: Any) -> CutoutInfo:
    """
    The [`CutoutInfo`] of a `Dataset` or `DatasetDict` that [`load_cutouts`] returned, also after `select`, `filter`,
    `map` and `train_test_split`.

    Raises:
        [`InputError`]: the data set was not made by [`load_cutouts`].
    """
    split = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    try:
        return CutoutInfo.from_json(split.info.description)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError("this data set does not say how its pixels were made: make it with load_cutouts") from error
