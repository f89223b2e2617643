"""Compare initialisations: fine-tune every (initialisation, labels, seed), evaluate on test, and put intervals on it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..training.finetune import finetune
from ..training.run_directory import write_json
from .evaluate import evaluate


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
        `list[dict]`: one entry per cell with `init_method`, `num_labels`, `seed`, `directory`.
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
            evaluate(directory, cutouts["test"])
        facts = json.loads((directory / "run.json").read_text())
        cell = {name: facts[name] for name in ("init_method", "num_labels", "seed", "validation_auc")}
        cells.append({**cell, "directory": str(directory)})
    return cells


def compare(cells: list[dict[str, Any]], num_bootstrap: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """
    Mean AUC per (initialisation, labels) with 95 % intervals, and its difference to scratch at the same labels, from a
    hierarchical bootstrap: seeds are drawn with replacement, then test groups, the same groups for both.

    Args:
        cells (`list[dict]`): from [`run_study`].

    Returns:
        `list[dict]`: `init_method`, `num_labels`, `seeds`, and per AUC (`roc_auc`, `auc_vs_<subclass>`) a dictionary with
        `value`, `low`, `high` and, where there is a scratch of the same budget, `difference`, `difference_low`,
        `difference_high`.
    """
    predictions = {}
    for cell in cells:
        table = pd.read_parquet(Path(cell["directory"]) / "evaluation" / "predictions.parquet")
        predictions.setdefault((cell["num_labels"], cell["init_method"]), []).append(table)
    first = next(iter(predictions.values()))[0]
    if any(not table["id"].equals(first["id"]) for tables in predictions.values() for table in tables):
        raise InputError("the runs were evaluated on different test sets: evaluate them on one")
    sets = {"roc_auc": np.ones(len(first), dtype=bool)}
    for subclass in sorted(set(first.loc[first["label"] == 0, "subclass"]) - {""}):
        sets[f"auc_vs_{subclass}"] = ((first["label"] == 1) | (first["subclass"] == subclass)).to_numpy()
    rows = []
    for (num_labels, method), tables in sorted(
        predictions.items(), key=lambda item: (item[0][0], item[0][1] != "scratch")
    ):
        row = {"init_method": method, "num_labels": num_labels, "seeds": len(tables)}
        scratch = predictions.get((num_labels, "scratch"))
        for name, chosen in sets.items():
            labels, groups = first["label"].to_numpy()[chosen], first["group"].to_numpy()[chosen]
            scores = np.stack([table["score"].to_numpy()[chosen] for table in tables])
            row[name] = _interval(labels, groups, scores, None, num_bootstrap, seed)
            if method != "scratch" and scratch:
                base = np.stack([table["score"].to_numpy()[chosen] for table in scratch])
                row[name] |= _interval(labels, groups, scores, base, num_bootstrap, seed)
        rows.append(row)
    return rows


def _interval(
    labels: np.ndarray, groups: np.ndarray, scores: np.ndarray, base: np.ndarray | None, number: int, seed: int
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    _, group_of = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(group_of == group) for group in range(group_of.max() + 1)]

    def statistic(rows: np.ndarray, base_rows: np.ndarray, sample: np.ndarray) -> float:
        value = np.mean([_auc(labels[sample], scores[row][sample]) for row in rows])
        if base is None:
            return value
        return value - np.mean([_auc(labels[sample], base[row][sample]) for row in base_rows])

    draws = []
    num_base = 1 if base is None else len(base)
    while len(draws) < number:
        sample = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if 0 < labels[sample].sum() < len(sample):
            rows, base_rows = rng.integers(len(scores), size=len(scores)), rng.integers(num_base, size=num_base)
            draws.append(statistic(rows, base_rows, sample))
    value = statistic(np.arange(len(scores)), np.arange(num_base), np.arange(len(labels)))
    low, high = np.percentile(draws, [2.5, 97.5])
    names = ("value", "low", "high") if base is None else ("difference", "difference_low", "difference_high")
    return dict(zip(names, (float(value), float(low), float(high))))


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    order = np.argsort(scores, kind="stable")
    sorted_scores = scores[order]
    first = np.searchsorted(sorted_scores, sorted_scores, side="left")
    last = np.searchsorted(sorted_scores, sorted_scores, side="right")
    ranks = (first + last + 1) / 2  # mean rank of ties, from 1
    positive = labels[order] == 1
    num_positive = positive.sum()
    return (ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * (~positive).sum())


def write_results(path: str | os.PathLike, cells: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write the comparison and what it was made with to one JSON file that tables are made from."""
    facts = json.loads((Path(cells[0]["directory"]) / "run.json").read_text())
    pretraining = [json.loads((Path(cell["directory"]) / "run.json").read_text()).get("init_run") for cell in cells]
    result = {
        "data": facts["data"],
        "backbone": facts["backbone"],
        "finetuning": {
            k: v for k, v in facts["arguments"].items() if k not in ("output_dir", "init", "labels", "seed")
        },
        "pretraining": {run["method"]: run for run in pretraining if run},
        "versions": facts["versions"],
        "git_revision": facts["git_revision"],
        "device": facts["device"],
        "cells": cells,
        "rows": rows,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(path), result)
