"""The report of a study, made from its cells' files alone: results.json, tables and pictures."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation.predictions import Predictions
from ..evaluation.probes import PROBE_NAMES
from ..files import write_json
from .cells import IDENTITY, pack_cells
from .ensembles import ensembles
from .methods import METHODS
from .plots import plot_calibration, plot_label_efficiency, plot_study_roc
from .statistics import compare, rectangles
from .tables import write_tables


def write_report(study: Any, records: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> dict[str, Any]:
    """
    Write results.json, table.md, table.tex and the pictures of [`draw_pictures`]; where `folder` is not the study's
    own, also cells.parquet and predictions.parquet of [`~lens_ssl_hf.study.cells.pack_cells`].

    Args:
        study ([`~lens_ssl_hf.study.run.Study`]): what was planned.
        records (`Sequence[Mapping]`): from its `run` or `records`.
        folder (`str` or `os.PathLike`): where to write.

    Returns:
        `dict`: the content of results.json.

    Raises:
        [`InputError`]: no method is done on all folds yet, or `folder` cannot be written.
    """
    folder = Path(folder)
    cells = [record for record in records if record["labels"] != "none"]
    rows = compare(cells)
    if not rows:
        raise InputError(f"{study.output_dir} has no method that is done (on all folds) yet: run the study to its end")
    results = collect(study, records, rows)
    write_tables(results, folder)
    draw_pictures(results, cells, folder)
    if folder.resolve() != study.output_dir.resolve():
        pack_cells(records, folder)
    write_json(folder / "results.json", results)
    return results


def draw_pictures(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """
    Draw label_efficiency.png and, of each backbone of the cells that are compared, roc-<backbone>.png and
    calibration-<backbone>.png.
    """
    title = results["data"]["name"] + (", simulated" if _needs_label(results["data"]) else "")
    plot_label_efficiency(results["rows"], folder / "label_efficiency.png", title)
    compared = [cell for column in rectangles(cells).values() for folds in column.values() for cell in folds.values()]
    for backbone in sorted({cell["backbone"] for cell in compared} - {""}):
        panels = _panels(compared, backbone)
        plot_study_roc(panels, folder / f"roc-{backbone}.png", f"{title}, {backbone}")
        plot_calibration(panels, folder / f"calibration-{backbone}.png", f"{title}, {backbone}")


def collect(study: Any, records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json holds: the data, the rows of the table, every cell's numbers, and what they were made with."""
    _, info = next(iter(study.data.values()))
    data = json.loads((study.output_dir / "study.json").read_text())["data"]  # of earlier commands too
    tested = {str(one["fold"]) for one in records if one["labels"] != "none" and one["fold"] is not None} or {""}
    data = {fold: one for fold, one in data.items() if fold in tested}  # not of those that have only begun
    kinds: Counter[str] = Counter()
    for one in data.values():
        kinds.update(one["nonlenses"])
    trained = [record for record in records if "seconds" in record]
    return {
        "data": info,
        "folds": sorted(int(fold) for fold in data if fold),
        "num_train_labels": round(np.mean([one["num_train_labels"] for one in data.values()])),
        "num_validation_labels": round(np.mean([one["num_validation_labels"] for one in data.values()])),
        "test": {
            "num_lenses": sum(one["num_lenses"] for one in data.values()),
            "num_nonlenses": sum(one["num_nonlenses"] for one in data.values()),
            "nonlenses": dict(sorted(kinds.items())),
        },
        "rows": list(rows),
        "ensembles": ensembles([record for record in records if record["labels"] != "none"]),
        "probes": _probes(records),
        "pretraining": _recipes([record for record in trained if record["labels"] == "none"]),
        "finetuning": _recipes([record for record in trained if record["labels"] != "none"]),
        "cells": [_numbers(record) for record in records],
    }


def _probes(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    ROC AUC of the probes per pretraining method and backbone: the mean over folds and seeds, and its extremes over
    seeds; of seeds that are there for all folds.
    """
    done = [record for record in records if record["labels"] == "none"]
    number = len({record["fold"] for record in done})
    found: dict[tuple[str, str], dict[int, list]] = {}
    for record in done:
        seeds = found.setdefault((record["method"], record["backbone"]), {})
        seeds.setdefault(record["seed"], []).append(record["probes"])
    rows = []
    for (method, backbone), begun in found.items():
        seeds = {seed: probes for seed, probes in begun.items() if len(probes) == number}
        if not seeds:
            continue
        row: dict[str, Any] = {"method": method, "backbone": backbone, "seeds": len(seeds)}
        for name in PROBE_NAMES:
            values = [float(np.mean([one[name]["roc_auc"] for one in probes])) for probes in seeds.values()]
            row[name] = {"value": float(np.mean(values)), "lowest": min(values), "highest": max(values)}
        rows.append(row)
    return rows


def _recipes(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per method and backbone the settings and the machines, with a list of values where cells differ."""
    own = ("output_dir", "resume", "report_to", "seed", "subset_seed", "labels", "init", "stream", "stop_on_collapse")
    groups: dict[tuple[str, str], list] = {}
    for record in records:
        groups.setdefault((record["method"], record["backbone"]), []).append(record)
    recipes = []
    for (method, backbone), group in groups.items():
        names = dict.fromkeys(name for record in group for name in record["settings"] if name not in own)
        one: dict[str, Any] = {"method": method, "backbone": backbone}
        one["settings"] = {name: _common([record["settings"].get(name) for record in group]) for name in names}
        kept = ("precision", "device", "num_processes", "num_parameters", "versions", "git_revision")
        one |= {name: _common([record.get(name) for record in group]) for name in kept}
        one["num_train_images"] = round(np.mean([record["num_train_images"] for record in group]))
        one["seconds"] = float(np.mean([record["seconds"] for record in group]))
        if "continued_from" in group[0]:
            one["continued_from"] = group[0]["continued_from"]
        if collapsed := [record["seed"] for record in group if record.get("collapsed")]:
            one["collapsed_seeds"] = sorted(set(collapsed))
        recipes.append(one)
    return recipes


def _common(values: Sequence[Any]) -> Any:
    """The value that all have, else the list of them."""
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    return different[0] if len(different) == 1 else different


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: record[name] for name in IDENTITY}
    numbers |= {name: record[name] for name in ("seconds", "best_step", "validation_auc") if name in record}
    kept = ("roc_auc", "accuracy", "auc_vs_hard_nonlens", "expected_calibration_error", "completeness_at_fpr_1e-3")
    for name in ("metrics", "metrics_large"):
        if name in record:
            numbers[name] = {key: round(record[name][key], 5) for key in kept if record[name].get(key) is not None}
    if "probes" in record:
        numbers["probes"] = {name: round(one["roc_auc"], 5) for name, one in record["probes"].items()}
    return numbers


def _panels(cells: Sequence[Mapping[str, Any]], backbone: str) -> dict[str, dict[str, list[Predictions]]]:
    """Predictions per label budget and method, over all folds, of one backbone and of the methods without one."""
    panels: dict[str, dict[str, list[Predictions]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["num_labels"], METHODS.index(cell["method"]))):
        if cell["backbone"] in (backbone, ""):
            name = "all labels" if cell["labels"] == "all" else f"{cell['num_labels']:,} labels"
            table = Predictions.load(Path(cell["directory"]) / "predictions.parquet").labelled()
            panels.setdefault(name, {}).setdefault(cell["method"], []).append(table)
    return panels


def _needs_label(data: Mapping[str, Any]) -> bool:
    return bool(data["simulated"]) and "simulated" not in data["name"]
