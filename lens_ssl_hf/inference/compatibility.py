"""Whether cutouts in display units were made as those that a model was trained on."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..data.flux import is_same_scale
from ..data.info import cutout_info, has_info
from ..errors import InputError

if TYPE_CHECKING:
    from ..data.tensors import CutoutTensors

logger = logging.getLogger(__name__)


def info_of(dataset: Any) -> dict[str, Any]:
    """The fields of the `CutoutInfo` that a `datasets.Dataset` carries; empty where it carries none."""
    return asdict(cutout_info(dataset)) if has_info(dataset) else {}


def differences(model: Mapping[str, Any], info: Mapping[str, Any], name: str) -> list[str]:
    """
    Sentences on what differs between the cutouts that a model was trained on and those it is given.

    Args:
        model (`Mapping`): `config.cutouts`.
        info (`Mapping`): the fields of the cutouts' `CutoutInfo`, as far as they are known.
        name (`str`): how to call the model.

    Raises:
        [`InputError`]: the same bands in another order.
    """
    bands, given = list(model.get("bands") or ()), list(info.get("bands") or ())
    if bands and given and bands != given and sorted(bands) == sorted(given):
        raise InputError(f"{name} takes bands in the order {' '.join(bands)}, not {' '.join(given)}: choose --bands")
    warnings = []
    if bands and given and bands != given:
        warnings.append(f"{name} was trained on bands {' '.join(bands)}, these cutouts have {' '.join(given)}")
    if model.get("stretch") and info.get("stretch") and model["stretch"] != info["stretch"]:
        fix = "" if info.get("simulated") else ": build them from their files with like"
        fix = ", which 8-bit pictures keep" if info["stretch"].get("kind") == "none" else fix
        warnings.append(f"{name} was trained on another stretch than the one these cutouts were made with{fix}")
    scales = model.get("pixel_scale"), info.get("pixel_scale")
    if all(scales) and not is_same_scale(*scales):
        warnings.append(f"{name} was trained on {scales[0]:.4g} arcsec pixels, these cutouts have {scales[1]:.4g}")
    return warnings


def check_tensors(
    model: Mapping[str, Any], num_bands: int, tensors: "CutoutTensors", info: Mapping[str, Any], name: str
) -> list[str]:
    """
    Sentences on what differs between the cutouts that a model was trained on and those it is given; they are logged.

    Args:
        model (`Mapping`): `config.cutouts`.
        num_bands (`int`): of the model.
        tensors ([`CutoutTensors`]), info (`Mapping`): the cutouts, and the fields of their `CutoutInfo`.
        name (`str`): how to call the model.

    Raises:
        [`InputError`]: another number of bands, the same bands in another order, or pixels that are no display units.
    """
    from ..data.tensors import check_units  # torch, which not everybody needs who compares datasets

    if not len(tensors):
        raise InputError("the split holds no cutout: choose another one")
    if tensors.pixels.shape[1] != num_bands:
        found = tensors.pixels.shape[1]
        raise InputError(f"the cutouts have {found} bands but {name} takes {num_bands}: choose --bands")
    check_units("the split", tensors, info)
    warnings = differences(model, info, name)
    for warning in warnings:
        logger.warning(warning)
    return warnings
