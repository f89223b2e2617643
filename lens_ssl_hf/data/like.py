"""Cutouts in the display units of a model, which it states, in place of those that would be fitted to them."""

import math
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import DataArguments

ADOPTED = ("bands", "pixel_scale", "zero_point")


def stated_by(like: str) -> dict[str, Any]:
    """
    Bands, pixel scale, zero point and stretch of a run, a model's folder or a Hub id; `None` for what it leaves open.

    Raises:
        [`InputError`]: it cannot be read, or does not say how its cutouts were made.
    """
    from ..models.loading import check_cutouts, read_config  # imports transformers

    config = read_config(like)
    cutouts = getattr(config, "cutouts", None)
    if not cutouts:
        raise InputError(f"{like} does not say how its cutouts were made (config.cutouts): leave like out")
    check_cutouts(cutouts, getattr(config, "num_channels", None), like)
    return {name: cutouts.get(name) for name in (*ADOPTED, "stretch")}


def adopt(options: DataArguments, model: dict[str, Any]) -> None:
    """
    Set the options that a model states.

    Args:
        options ([`DataArguments`]): changed in place.
        model (`dict`): see [`stated_by`].

    Raises:
        [`InputError`]: an option asks for something else.
    """
    asked = {name: getattr(options, name) for name in ADOPTED}
    asked["bands"] = asked["bands"] and list(asked["bands"])  # of Python also a tuple
    asked["stretch"] = None if options.stretch == "auto" else options.stretch
    stated = model | {"stretch": model["stretch"]["kind"]}
    for name, value in asked.items():
        if None not in (value, stated[name]) and not _equal(value, stated[name]):
            texts = [" ".join(v) if isinstance(v, list) else f"{v}" for v in (value, stated[name])]
            raise InputError(f"{name} {texts[0]} contradicts {options.like}, which has {texts[1]}: leave {name} out")
    for name in ADOPTED:
        if model[name] is not None:
            setattr(options, name, model[name])


def _equal(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=1e-3) if isinstance(one, float) else one == other


def describe(options: DataArguments, model: dict[str, Any], stretch: str) -> str:
    """
    What cutouts were brought to, for people.

    Args:
        options ([`DataArguments`]): with what [`adopt`] set.
        model (`dict`): see [`stated_by`].
        stretch (`str`): the kind that the cutouts have got.
    """
    is_kept = stretch == "none" != model["stretch"]["kind"]  # 8-bit pictures, which are no flux
    facts = {
        "bands": " ".join(options.bands or ()),
        "arcsec per pixel": options.pixel_scale and f"{options.pixel_scale:.4g}",
        "as zero point": options.zero_point is not None and not is_kept and f"{options.zero_point:.4g}",
    }
    known = [f"{name} {text}" if name == "bands" else f"{text} {name}" for name, text in facts.items() if text]
    unstretched = "no stretch, as 8-bit pictures are display units already" if is_kept else "no stretch"
    known.append(unstretched if stretch == "none" else f"its {stretch} stretch")
    return f"brought to the display units of {options.like}: {', '.join(known)}"


def fingerprint_of_run(like: str) -> str | None:
    """The fingerprint of the dataset that a run was trained on; `None` for other models."""
    from ..training.run_directory import read_run  # imports torch

    return read_run(like)["data"].get("fingerprint") if (Path(like) / "run.json").is_file() else None
