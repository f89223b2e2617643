"""Compare initialisations: fine-tune and evaluate every (initialisation, labels, seed), and put intervals on it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.tensors import splits_and_info
from ..errors import InputError
from ..models.backbones import load_encoder
from ..training.arguments import FinetuneArguments, make_arguments
from ..training.finetune import finetune, label_subset
from ..training.run_directory import read_run, write_json
from .evaluate import Predictions, evaluate
from .metrics import ROCAUC, Ranked, auc_key, draw_groups
from .probes import linear_probe, radial_profiles

PROFILES = "radial profiles"


def run_study(
    cutouts: Any,
    output_dir: str | os.PathLike,
    inits: Sequence[str] = ("scratch",),
    labels: Sequence[str] = ("300",),
    seeds: int = 3,
    **settings: Any,
) -> list[dict[str, Any]]:
    """
    Fine-tune and evaluate every cell, and beside them logistic regression on the radial profiles of the same labelled
    cutouts, which shows what needs no network. A cell is a run directory; what is done is not done again.

    Args:
        cutouts (`DatasetDict`): from [`load_cutouts`], with train, validation and test.
        output_dir (`str` or `os.PathLike`): gets one run directory per cell.
        inits (`Sequence[str]`): pretraining runs, exported folders, Hub ids, or `"scratch"`.
        labels (`Sequence[str]`): label budgets, numbers or `"all"`.
        seeds (`int`, *optional*, defaults to `3`): a seed is another label subset, order, views and classifier.
        settings: fields of [`FinetuneArguments`], the same for every cell.

    Returns:
        `list[dict]`: per cell `init`, `init_method`, `num_labels`, `seed`, `validation_auc`, `metrics`, `directory`.

    Raises:
        [`InputError`]: two inits have one name, a cell was made otherwise, or what [`finetune`] raises.
    """
    names = {init: "scratch" if init == "scratch" else Path(init).name for init in inits}
    if len({*names.values(), "profiles"}) < len(inits) + 1:
        raise InputError(f"inits {', '.join(inits)}: two end in the same name, or one in profiles: rename it")
    splits, info = cutouts = splits_and_info(cutouts)
    # After hours of training is too late for these.
    if seeds < 1:
        raise InputError(f"seeds must be positive, not {seeds}")
    for name in ("train", "validation", "test"):
        if name not in splits:
            raise InputError(f"the data set has no {name} split: a study needs train, validation and test")
    for budget in labels:
        make_arguments(FinetuneArguments, {**settings, "labels": budget})
        label_subset(splits["train"].labels, budget, seed=0)
    for init in set(inits) - {"scratch"}:
        load_encoder(init)
    cells = []
    todo = [(init, budget, seed) for budget in labels for init in (*inits, PROFILES) for seed in range(seeds)]
    for number, (init, budget, seed) in enumerate(todo):
        name = names.get(init, "profiles")
        directory = Path(output_dir) / f"{name}-{budget}-seed{seed}"
        print(f"cell {number + 1} of {len(todo)}: {directory}", flush=True)
        evaluation = directory / "evaluation" / "metrics.json"
        if init == PROFILES:
            crop_size = settings.get("crop_size", FinetuneArguments.crop_size)
            predictions, facts = _predict_from_profiles(splits, budget, seed, crop_size)
            evaluate(predictions, (splits, info), evaluation.parent)
        else:
            finetune(cutouts, directory, init=init, labels=budget, seed=seed, resume="auto", **settings)
            if not evaluation.is_file() or json.loads(evaluation.read_text())["fingerprint"] != info["fingerprint"]:
                evaluate(directory, cutouts)
            run = read_run(directory)
            settings["precision"] = run["precision"]  # what the first cell chose is right for all
            facts = {key: run[key] for key in ("init_method", "num_labels", "validation_auc")}
        metrics = json.loads(evaluation.read_text())["metrics"]
        values = {key: entry["value"] for key, entry in metrics.items()}
        cells.append({"init": name, **facts, "seed": seed, "metrics": values, "directory": str(directory)})
    return cells


def _predict_from_profiles(
    splits: dict[str, Any], budget: str, seed: int, crop_size: int
) -> tuple[Predictions, dict[str, Any]]:
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    subset = train.select(label_subset(train.labels, budget, seed))
    sets = [(radial_profiles(split, crop_size), split.labels.numpy()) for split in (subset, validation)]
    scores, _ = linear_probe(*sets[0], *sets[1], radial_profiles(test, crop_size))
    facts = {"init_method": PROFILES, "num_labels": len(subset), "validation_auc": None}
    return Predictions(test.ids, test.labels.numpy(), test.groups, test.subclasses, scores), facts


def compare(cells: list[dict[str, Any]], num_bootstrap: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """
    Mean AUC per (initialisation, labels) with 95 % intervals, and its difference to scratch at the same labels, from a
    hierarchical bootstrap: test groups are drawn with replacement, the same for both sides, and seeds for each side.

    Args:
        cells (`list[dict]`): from [`run_study`].

    Returns:
        `list[dict]`: `init`, `init_method`, `num_labels`, `seeds`, and per AUC (`roc_auc`, `auc_vs_<subclass>`) a
        dictionary with `value`, `low`, `high` and, where there is a scratch of the same budget, `difference`,
        `difference_low`, `difference_high`.

    Raises:
        [`InputError`]: the cells were evaluated on different test sets.
    """
    predictions: dict[tuple[int, str], list[Predictions]] = {}
    methods = {}
    for cell in cells:
        table = Predictions.load(Path(cell["directory"]) / "evaluation" / "predictions.parquet").labelled()
        predictions.setdefault((cell["num_labels"], cell["init"]), []).append(table)
        methods[cell["init"]] = cell["init_method"]
    first = next(iter(predictions.values()))[0]
    if any(table.id != first.id for tables in predictions.values() for table in tables):
        raise InputError("the runs were evaluated on different test sets: evaluate them on one")
    is_lens, subclass = first.label == 1, np.array(first.subclass)
    sets = {"roc_auc": np.ones(len(first), dtype=bool)}
    for kind in sorted(set(subclass[~is_lens]) - {""}):
        sets[auc_key(kind)] = is_lens | (subclass == kind)
    rows = []
    for num_labels, init in sorted(predictions, key=lambda cell: (cell[0], cell[1] != "scratch")):
        row: dict[str, Any] = {"init": init, "init_method": methods[init], "num_labels": num_labels}
        row["seeds"] = len(predictions[num_labels, init])
        scratch = predictions.get((num_labels, "scratch"))
        for name, keep in sets.items():
            ours = _Draws(predictions[num_labels, init], keep, num_bootstrap, seed, side=0)
            row[name] = dict(zip(("value", "low", "high"), _interval(ours.value, ours.draws)))
            if init != "scratch" and scratch:
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
    runs = {cell["init"]: read_run(cell["directory"]) for cell in cells if cell["init_method"] != PROFILES}
    facts = next(iter(runs.values()))
    evaluation = json.loads((Path(cells[0]["directory"]) / "evaluation" / "metrics.json").read_text())
    own = ("output_dir", "init", "labels", "seed", "resume")
    result = {
        "data": facts["data"],
        "test": {name: evaluation[name] for name in ("num_lenses", "num_nonlenses", "num_groups", "subclasses")},
        "backbone": facts["backbone"],
        "finetuning": {
            init: {name: value for name, value in run["arguments"].items() if name not in own}
            for init, run in runs.items()
        },
        "pretraining": {init: run["init_run"] for init, run in runs.items() if run.get("init_run")},
        "versions": facts["versions"],
        "git_revision": facts["git_revision"],
        "device": facts["device"],
        "cells": cells,
        "rows": rows,
    }
    write_json(Path(path), result)
