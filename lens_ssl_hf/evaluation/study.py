"""Compare initialisations: fine-tune and evaluate every (initialisation, labels, seed), and put intervals on it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..training.finetune import finetune
from ..training.run_directory import write_json
from .evaluate import Predictions, evaluate, read_run
from .metrics import ROCAUC, Ranked, draw_groups


def run_study(
    cutouts: Any,
    output_dir: str | os.PathLike,
    inits: Sequence[str] = ("scratch",),
    labels: Sequence[str] = ("300",),
    seeds: int = 3,
    **settings: Any,
) -> list[dict[str, Any]]:
    """
    Fine-tune and evaluate every cell. A cell is a run directory; what is done is not done again.

    Args:
        cutouts (`DatasetDict`): from [`load_cutouts`], with train, validation and test.
        output_dir (`str` or `os.PathLike`): gets one run directory per cell.
        inits (`Sequence[str]`): pretraining runs, exported folders, Hub ids, or `"scratch"`.
        labels (`Sequence[str]`): label budgets, numbers or `"all"`.
        seeds (`int`, *optional*, defaults to `3`): a seed is another label subset, order, views and classifier.
        settings: fields of [`FinetuneArguments`], the same for every cell.

    Returns:
        `list[dict]`: per cell `init_method`, `num_labels`, `seed`, `validation_auc`, `metrics` and `directory`.
    """
    cells = []
    todo = [(init, budget, seed) for budget in labels for init in inits for seed in range(seeds)]
    for number, (init, budget, seed) in enumerate(todo):
        name = "scratch" if init == "scratch" else Path(init).name
        directory = Path(output_dir) / f"{name}-{budget}-seed{seed}"
        print(f"cell {number + 1} of {len(todo)}: {directory}", flush=True)
        if not (directory / "model").is_dir():
            finetune(cutouts, directory, init=init, labels=budget, seed=seed, resume="auto", **settings)
        if not (directory / "evaluation" / "metrics.json").is_file():
            evaluate(directory, cutouts)
        facts = read_run(directory)
        cell = {name: facts[name] for name in ("init_method", "num_labels", "seed", "validation_auc")}
        metrics = json.loads((directory / "evaluation" / "metrics.json").read_text())["metrics"]
        values = {name: entry["value"] for name, entry in metrics.items()}
        cells.append({**cell, "metrics": values, "directory": str(directory)})
    return cells


def compare(cells: list[dict[str, Any]], num_bootstrap: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """
    Mean AUC per (initialisation, labels) with 95 % intervals, and its difference to scratch at the same labels, from a
    hierarchical bootstrap: test groups are drawn with replacement, the same for both sides, and seeds for each side.

    Args:
        cells (`list[dict]`): from [`run_study`].

    Returns:
        `list[dict]`: `init_method`, `num_labels`, `seeds`, and per AUC (`roc_auc`, `auc_vs_<subclass>`) a dictionary
        with `value`, `low`, `high` and, where there is a scratch of the same budget, `difference`, `difference_low`,
        `difference_high`.
    """
    predictions: dict[tuple[int, str], list[Predictions]] = {}
    for cell in cells:
        table = Predictions.load(Path(cell["directory"]) / "evaluation" / "predictions.parquet").labelled()
        predictions.setdefault((cell["num_labels"], cell["init_method"]), []).append(table)
    first = next(iter(predictions.values()))[0]
    if any(table.id != first.id for tables in predictions.values() for table in tables):
        raise InputError("the runs were evaluated on different test sets: evaluate them on one")
    is_lens, subclass = first.label == 1, np.array(first.subclass)
    sets = {"roc_auc": np.ones(len(first), dtype=bool)}
    for kind in sorted(set(subclass[~is_lens]) - {""}):
        sets[f"auc_vs_{kind}"] = is_lens | (subclass == kind)
    rows = []
    for num_labels, method in sorted(predictions, key=lambda cell: (cell[0], cell[1] != "scratch")):
        row: dict[str, Any] = {"init_method": method, "num_labels": num_labels}
        row["seeds"] = len(predictions[num_labels, method])
        scratch = predictions.get((num_labels, "scratch"))
        for name, keep in sets.items():
            ours = _Draws(predictions[num_labels, method], keep, num_bootstrap, seed, side=0)
            row[name] = dict(zip(("value", "low", "high"), _interval(ours.value, ours.draws)))
            if method != "scratch" and scratch:
                base = _Draws(scratch, keep, num_bootstrap, seed, side=1)
                names = ("difference", "difference_low", "difference_high")
                row[name] |= zip(names, _interval(ours.value - base.value, ours.draws - base.draws))
        rows.append(row)
    return rows


class _Draws:
    """Mean AUC over seeds: on the set, and on draws of test groups (the same for both sides) and of seeds."""

    def __init__(self, tables: list[Predictions], keep: np.ndarray, num_bootstrap: int, seed: int, side: int):
        labels, groups = tables[0].label[keep], np.array(tables[0].group)[keep]
        weights = draw_groups(np.random.default_rng(seed), labels, groups, num_bootstrap)
        metric = ROCAUC()
        scores = [table.score[keep] for table in tables]
        self.value = float(np.mean([metric.value(labels, score) for score in scores]))
        aucs = np.stack([metric.weighted(Ranked(labels, score, weights)) for score in scores], axis=1)
        chosen = np.random.default_rng([seed, side]).integers(len(tables), size=aucs.shape)
        self.draws = np.take_along_axis(aucs, chosen, axis=1).mean(axis=1)


def _interval(value: float, draws: np.ndarray) -> tuple[float, float, float]:
    return (value, *np.percentile(draws, [2.5, 97.5]).tolist())


def write_results(path: str | os.PathLike, cells: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write the comparison, and what it was made with, to the JSON file that tables are made from."""
    runs = [read_run(cell["directory"]) for cell in cells]
    facts = runs[0]
    own = ("output_dir", "init", "labels", "seed", "resume")
    result = {
        "data": facts["data"],
        "backbone": facts["backbone"],
        "finetuning": {name: value for name, value in facts["arguments"].items() if name not in own},
        "pretraining": {run["init_method"]: run["init_run"] for run in runs if run.get("init_run")},
        "versions": facts["versions"],
        "git_revision": facts["git_revision"],
        "device": facts["device"],
        "cells": cells,
        "rows": rows,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
