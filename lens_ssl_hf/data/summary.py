"""What a build understood of its source, as text for people."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .from_files import FACTS_FILE, MODEL_CROP
from .info import CutoutInfo, cutout_info
from .listing.labels import NAME_OF_LABEL
from .listing.rows import bad_files
from .listing.tables import OWN_COLUMNS
from .stretch import Stretch

_LENSES = 300  # training lenses whose light is looked at, at most


def describe_build(dataset_dict: Mapping[str, Any], source: str = "the source") -> str:
    """
    A short table: bands, size, what a model of the default crop sees, flux, pixel scale, classes, what was left out.

    Args:
        dataset_dict (`DatasetDict`): as [`load_cutouts`] returns it.
        source (`str`, *optional*): how to call where it came from.
    """
    info, facts = cutout_info(dataset_dict), _facts(dataset_dict)
    lines = {
        "bands": " ".join(info.bands) + _stated(facts, "bands", "named"),
        "size": _size(info, facts),
        "a model sees": _crop(dataset_dict, info),
        "pixel scale": f"{info.pixel_scale:.4g} arcsec" if info.pixel_scale else "not known",
        "zero point": "not known" if info.zero_point is None else f"{info.zero_point:.4g} (AB magnitude of flux 1)",
        "units": _units(facts, info),
        "stretch": info.stretch["kind"],
    }
    for name, field in {"pixel scale": "pixel_scale", "zero point": "zero_point"}.items():
        lines[name] += _stated(facts, field, "stated")
    for name, split in dataset_dict.items():
        counts = Counter(split["label"][:])
        lines[name] = ", ".join(f"{counts[label]} {kind}" for label, kind in NAME_OF_LABEL.items() if counts[label])
    further = [name for name in next(iter(dataset_dict.values())).column_names if name not in OWN_COLUMNS]
    lines["further columns"] = ", ".join(further) if further and not info.simulated else ""
    if facts:
        lines["left out"] = ", ".join([*_also_left_out(dataset_dict), *bad_files(info.left_out)]) or "nothing"
    lines = {name: text for name, text in lines.items() if text}
    width = max(map(len, lines))
    return "\n".join([f"What was understood of {source}:", *(f"  {k:{width}}  {v}" for k, v in lines.items())])


def outside_share(dataset_dict: Mapping[str, Any], info: CutoutInfo, crop: int = MODEL_CROP) -> float | None:
    """
    The share of the training lenses' flux, above the sky of the cutouts' border, that lies outside of the central
    `crop` pixels; `None` where there are no lenses.
    """
    if "train" not in dataset_dict or info.size <= crop:
        return None if "train" not in dataset_dict else 0.0
    train = dataset_dict["train"]
    lenses = [i for i, label in enumerate(train["label"][:]) if label == 1][:_LENSES]
    if not lenses:
        return None
    pixels = np.array(train.select(lenses).with_format("numpy")["pixels"], dtype=np.float32)
    mean = Stretch.from_dict(info.stretch).invert(pixels).mean(axis=0)
    border = np.ones((info.size, info.size), bool)
    border[2:-2, 2:-2] = False
    light = mean - np.median(mean[:, border], axis=1)[:, None, None]
    edge = (info.size - crop) // 2
    inside = light[:, edge : edge + crop, edge : edge + crop].sum()
    return float(np.clip(1 - inside / light.sum(), 0, 1)) if light.sum() > 0 else None


def _facts(dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What was noted beside the cached files of a folder or a table; nothing for other sources."""
    files = next(iter(dataset_dict.values())).cache_files
    path = Path(files[0]["filename"]).with_name(FACTS_FILE) if files else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}


def _also_left_out(dataset_dict: Mapping[str, Any]) -> list[str]:
    """What [`load_cutouts`] noted beside the `CutoutInfo`; of several datasets in one, each has a line."""
    note = next(iter(dataset_dict.values())).info.description.split("\n")[0]
    return json.loads(note).get("also_left_out", [])


def _stated(facts: dict[str, Any], name: str, word: str) -> str:
    return f", {word} by {facts[name]} of {facts['files']} files" if facts else ""


def _size(info: CutoutInfo, facts: dict[str, Any]) -> str:
    arcsec = f", {info.size * info.pixel_scale:.3g} arcsec" if info.pixel_scale else ""
    differ = facts and (facts["smallest"], facts["largest"]) != (info.size, info.size)
    origin = f" (the files have {facts['smallest']} to {facts['largest']})" if differ else ""
    return f"{info.size} x {info.size} pixels{arcsec}{origin}"


def _crop(dataset_dict: Mapping[str, Any], info: CutoutInfo) -> str:
    crop = min(MODEL_CROP, info.size)
    text = f"the central {crop} pixels by default (crop_size)"
    if info.pixel_scale:
        text += f", {crop * info.pixel_scale:.3g} of {info.size * info.pixel_scale:.3g} arcsec"
    share = outside_share(dataset_dict, info)
    return text if share is None else f"{text}; {share:.1%} of the training lenses' light lies outside"


def _units(facts: dict[str, Any], info: CutoutInfo) -> str:
    if facts.get("unit"):
        return ", ".join(
            f"{unit}, stated by {count} of {facts['files']} files" for unit, count in facts["unit"].items()
        )
    if facts.get("display"):
        return f"display units (8 bit) in {facts['display']} of {facts['files']} files"
    return "flux of the zero point" if info.zero_point is not None else "flux without a stated unit" if facts else ""
