"""A cutout as it was read -> the crops that the models see, or the reason why it cannot be scored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc

from ..data.display import center_crop
from ..data.files.cells import EMPTY
from ..data.files.raw import RawCutout
from ..errors import InputError
from ..inference.read_cutout import as_display, facts_of

Crops = tuple[np.ndarray, ...]  # one `(bands, size, size)` for each preparation, float32 display units


@dataclass(frozen=True)
class Preparation:
    """
    What a model asks of a cutout.

    Args:
        cutouts (`Mapping`): its `config.cutouts`; a model without them takes display units.
        num_bands (`int`): of the model.
        size (`int`): side of its crop in pixels.
    """

    cutouts: Mapping[str, Any]
    num_bands: int
    size: int


@dataclass(frozen=True)
class Told:
    """
    What the user says of cutouts that do not state it themselves.

    Args:
        bands (`Sequence[str]`, *optional*): their bands, in the order of the planes.
        zero_point (`float`, *optional*): AB magnitude of flux 1.
        pixel_scale (`float`, *optional*): arcsec per pixel.
    """

    bands: Sequence[str] | None = None
    zero_point: float | None = None
    pixel_scale: float | None = None

    def add_to(self, raw: RawCutout | str, name: str) -> RawCutout | str:
        """A cutout with what it lacks; or why it cannot be as it is told, or not be read."""
        if isinstance(raw, str):
            return raw
        facts, count = facts_of(raw), len(raw.pixels)
        new: dict[str, Any] = {}
        if self.bands and not any(raw.bands or ()):
            if count != len(self.bands):
                names = " ".join(self.bands)
                return f"{name} has {count} bands, but bands names {len(self.bands)} ({names}): correct it"
            new["bands"] = tuple(self.bands)
        if self.zero_point is not None and "zero point" not in facts and not raw.display:
            new["zero_points"] = (self.zero_point,) * count
        if self.pixel_scale is not None and "pixel scale" not in facts:
            new["pixel_scale"] = self.pixel_scale
        return replace(raw, **new)


@dataclass(frozen=True)
class Asked:
    """
    What all models together ask of a cutout; it travels to the processes that read.

    Args:
        preparations (`list[Preparation]`): each once.
        stated (`frozenset[str]`): facts (`"zero point"`) that the input states: no cutout may be silent on them.
        side (`int`): of what is kept of a cutout that is larger than the crop; by default the crop alone.
    """

    preparations: list[Preparation]
    stated: frozenset[str] = field(default_factory=frozenset)
    side: int = 0

    def crops(self, raw: RawCutout, name: str) -> Crops | str:
        """The crops of one cutout, or why there are none."""
        try:
            self._refuse_silence(raw, name)
            return tuple(
                self.crop(as_display(raw, one.cutouts, name, one.num_bands, one.size), one.size).copy()
                for one in self.preparations
            )
        except InputError as error:
            return str(error)

    def crop(self, display: np.ndarray, size: int) -> np.ndarray:
        """The crop of `(..., H, W)`, or up to `side` pixels with the crop in their middle, to the pixel."""
        around = max(0, min(self.side, *display.shape[-2:]) - size) // 2
        return center_crop(display, size + 2 * around)

    def _refuse_silence(self, raw: RawCutout, name: str) -> None:
        if "zero point" in self.stated and not raw.display and "zero point" not in facts_of(raw):
            raise InputError(
                f"{name} states no zero point where others of the input do: add MAGZERO or BUNIT to its header"
            )


@dataclass(frozen=True)
class Batch:
    """
    Some rows of the input.

    Args:
        columns (`dict[str, pyarrow.Array]`): `id`, `ra`, `dec` and `source`.
        crops (`list`): of each row its [`Crops`], or why it cannot be scored.
    """

    columns: dict[str, pyarrow.Array]
    crops: list[Crops | str]


def text_array(values: Sequence[object]) -> pyarrow.Array:
    """Strings, or nothing, for Arrow, which holds UTF-8 alone; names of files need not be."""
    texts = [None if one is None else str(one).encode("utf-8", "backslashreplace").decode() for one in values]
    return pyarrow.array(texts, pyarrow.string())


def plain_texts(values: Any) -> Any:
    """An Arrow column of ids, whose texts are those of tables: without blanks around them, and null where empty."""
    if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
        return values
    values = pc.utf8_trim_whitespace(values)
    is_missing = pc.is_in(pc.utf8_lower(values), value_set=pyarrow.array(EMPTY, values.type))
    return pc.if_else(is_missing, pyarrow.scalar(None, values.type), values)


def spread(count: int, number: int) -> Iterator[int]:
    """Up to `number` of `range(count)`, at equal distances."""
    return iter(sorted({i * count // number for i in range(number)} if count else ()))
