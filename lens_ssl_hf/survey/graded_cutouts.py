"""Graded objects of a scored survey, prepared as the cutouts of a dataset are, to be trained on."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import compute

from ..data.flux import is_same_scale
from ..data.tensors import CutoutTensors
from ..errors import InputError
from . import manifest as manifests
from .crops import Asked, Preparation
from .grades import read_grades, spellings, votes_by_object
from .listed import open_again
from .parquet_input import ParquetInput
from .rank import open_shards

logger = logging.getLogger(__name__)

_FACTS = ("bands", "pixel_scale", "zero_point")  # that a cutout may state


def graded_cutouts(
    labels: str | os.PathLike | Sequence[str | os.PathLike],
    scores: str | os.PathLike,
    info: Mapping[str, Any],
    held_out: Collection[str] = (),
) -> tuple[CutoutTensors, torch.Tensor]:
    """
    Read the cutouts of graded objects again, from the input of the scores.

    Args:
        labels (`str`, `os.PathLike`, or list of them): tables of grades, as [`read_grades`] takes them.
        scores (`str` or `os.PathLike`): the folder that [`score`] wrote, with all graded ids.
        info (`Mapping`): fields of `CutoutInfo`: the cutouts get its bands, pixel scale, zero point, stretch and size.
        held_out (`Collection[str]`): ids that are left out.

    Returns:
        `tuple[CutoutTensors, torch.Tensor]`: the cutouts in the order of the input, and of each the share of graders
        that see a lens, `(n,)` float32.

    Raises:
        [`InputError`]: unknown ids or grades, an input that is gone or changed, or no cutout that can be prepared.
            Single ones that cannot, such as one at the edge of a tile, are left out with a warning.
    """
    grades, scores = read_grades(labels), Path(scores)
    manifest = manifests.read(scores)
    rows = _find_rows(scores, manifest, spellings(grades["id"].unique().tolist()))
    share = votes_by_object(grades, rows.keys(), str(scores)).mean(axis=1)
    is_held_out = share.index.isin(list(held_out))
    if is_held_out.any():
        logger.warning(f"{is_held_out.sum()} of {len(share)} graded objects are in validation or test: left out")
    share = share[~is_held_out]
    if share.empty:
        raise InputError(f"all graded objects of {scores} are in the validation or test split: leave extra_labels out")
    names = sorted(share.index, key=rows.__getitem__)
    found = _sound(dict(zip(names, _read([rows[name] for name in names], scores, manifest, info))))
    names, pixels = list(found), torch.from_numpy(np.stack([*found.values()]))
    votes = torch.tensor(share[names].to_numpy(), dtype=torch.float32)
    return CutoutTensors(pixels, (votes > 0.5).long(), names, names, [""] * len(names)), votes


def _find_rows(scores: Path, manifest: dict[str, Any], wanted: set[str]) -> dict[str, int]:
    """The numbers of the rows with these ids, as text."""
    found: dict[str, int] = {}
    for table in open_shards(scores, manifest):
        ids = table["id"].cast(pyarrow.string())
        is_wanted = compute.is_in(ids, pyarrow.array(sorted(wanted), pyarrow.string()))
        found |= zip(ids.filter(is_wanted).to_pylist(), table["row"].filter(is_wanted).to_pylist())
    return found


def _sound(found: Mapping[str, np.ndarray | str]) -> dict[str, np.ndarray]:
    """Those that could be prepared."""
    problems = {name: one for name, one in found.items() if isinstance(one, str)}
    first = next(iter(problems.items()), None)
    if first and len(problems) == len(found):
        raise InputError(
            f"the graded cutout {first[0]} is not as the dataset needs it ({first[1]}), nor is another one: build the "
            "dataset with a smaller size, or as the model was trained"
        )
    if first:
        logger.warning(
            f"{len(problems)} of {len(found)} graded cutouts are not as the dataset needs them, and left out; the "
            f"first is {first[0]}: {first[1]}"
        )
    return {name: one for name, one in found.items() if not isinstance(one, str)}


def _read(rows: list[int], scores: Path, manifest: dict[str, Any], info: Mapping[str, Any]) -> list[np.ndarray | str]:
    """Cutouts `(bands, size, size)` in the dataset's display units, or why there is none."""
    try:
        source, _ = open_again(scores, manifest)
    except (InputError, OSError) as error:
        raise InputError(f"the graded cutouts cannot be read ({error}): put them back, or score again") from error
    preparation = Preparation({name: info[name] for name in (*_FACTS, "stretch")}, len(info["bands"]), info["size"])
    if isinstance(source, ParquetInput) and source.info:
        _check_units(source, preparation, info)
    else:
        _check_unstated(manifest, info)
    asked = Asked([preparation], frozenset(manifest["stated"]))
    return [one if isinstance(one, str) else one[0] for one in source.pick(rows, asked)]


def _check_units(source: ParquetInput, preparation: Preparation, info: Mapping[str, Any]) -> None:
    """
    Raises:
        [`InputError`]: a saved dataset was scored, whose display units or size the training dataset does not have.
    """
    try:
        source.check_against(preparation, "the dataset")
    except InputError as error:
        raise InputError(
            f"{source.name}, which was scored, holds cutouts of {source.info['size']} pixels with a stretch of its "
            f"own, and the dataset has {info['size']} pixels or another stretch: build the dataset with "
            f"--size {source.info['size']} and --like the model that scored them"
        ) from error


def _check_unstated(manifest: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """
    Raises:
        [`InputError`]: what the cutouts do not state was taken from the model, and the dataset has it otherwise.
    """
    known = manifest["models"][0]["cutouts"]
    for name in _FACTS:
        as_model, as_dataset = known.get(name), info[name]
        is_stated = name.replace("_", " ") in manifest["stated"]
        if not (is_stated or as_model is None or _are_equal(name, as_model, as_dataset)):
            raise InputError(
                f"the cutouts of {manifest['input']['path']} state no {name}: they were scored with {as_model}, but "
                f"the dataset has {as_dataset}: state it in the cutouts, or build the dataset like the model"
            )


def _are_equal(name: str, one: Any, other: Any) -> bool:
    """Whether a fact is the same, for pixels and flux that are not scaled: a header's numbers differ by a last bit."""
    if name == "bands" or one is None or other is None:
        return one == other
    return is_same_scale(one, other) if name == "pixel_scale" else abs(one - other) <= 0.001
