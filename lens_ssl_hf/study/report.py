"""A study's tables and pictures, made from its cells' files alone."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation.predictions import Predictions
from ..evaluation.probes import PROBE_NAMES
from ..files import write_json, write_text
from .cells import IDENTITY, pack_cells
from .methods import BASELINES, METHOD_NAMES, METHODS
from .plots import plot_calibration, plot_label_efficiency, plot_study_roc
from .statistics import MIN_SEEDS, MIN_SUBSETS, compare, rectangles

GSOC2024 = Path(__file__).with_name("gsoc2024_results.csv")
_MEASURES = {
    "roc_auc": "ROC AUC",
    "auc_vs_hard_nonlens": "ROC AUC, hard",
    "accuracy": "accuracy",
    "completeness_at_fpr_1e-3": "completeness at FPR 1e-3",
}
_COMPARED = ("roc_auc", "auc_vs_hard_nonlens")  # whose differences to the baselines the tables show


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


def write_tables(results: Mapping[str, Any], folder: Path) -> None:
    """Write table.md and table.tex of the content of a results.json."""
    write_text(folder / "table.md", markdown_table(results) + "\n")
    write_text(folder / "table.tex", latex_table(results))


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
        recipes.append(one)
    return recipes


def _common(values: Sequence[Any]) -> Any:
    """The value that all have, else the list of them."""
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    return different[0] if len(different) == 1 else different


def _text(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


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
    order = METHODS
    for cell in sorted(cells, key=lambda cell: (cell["num_labels"], order.index(cell["method"]))):
        if cell["backbone"] in (backbone, ""):
            name = "all labels" if cell["labels"] == "all" else f"{cell['num_labels']:,} labels"
            table = Predictions.load(Path(cell["directory"]) / "predictions.parquet").labelled()
            panels.setdefault(name, {}).setdefault(cell["method"], []).append(table)
    return panels


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table of a study's results.json as Markdown, with what it stands on."""
    head, rows = _cells(results)
    lines = [head, ["---"] * len(head), *rows]
    tables = [lines, _difference_cells(results), _probe_cells(results)]
    text, *more = ("\n".join("| " + " | ".join(cells) + " |" for cells in table) for table in tables if table)
    return "\n\n".join([text, caption(results), *more])


def _difference_cells(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, rule and rows of the table of differences to the baselines besides `supervised`; empty without these."""
    measures = [name for name in _COMPARED if any(name in row for row in results["rows"])]
    found = [row[measures[0]].get("minus", {}) for row in results["rows"]]
    baselines = [name for name in BASELINES if name != "supervised" and any(name in one for one in found)]
    if not baselines:
        return []
    columns = [(name, baseline) for name in measures for baseline in baselines]
    head = ["labels", "method", "backbone"]
    head += [f"{_MEASURES[name]} minus that of {METHOD_NAMES[baseline]} (95 %)" for name, baseline in columns]
    lines = [head, ["---"] * len(head)]
    for row in results["rows"]:
        entries = [row.get(name, {}).get("minus", {}).get(baseline) for name, baseline in columns]
        if any(entries):
            numbers = [format_interval(one, signed=True) if one else "" for one in entries]
            lines.append([_labels(row), METHOD_NAMES[row["method"]], row["backbone"], *numbers])
    return lines


def _labels(row: Mapping[str, Any]) -> str:
    return f"all ({row['num_labels']:,})" if row["labels"] == "all" else f"{row['num_labels']:,}"


def _probe_cells(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, rule and rows of the table of frozen features."""
    if not results["probes"]:
        return []
    head = ["ROC AUC of frozen features", "backbone", "seeds", *PROBE_NAMES.values()]
    lines = [head, ["---"] * len(head)]
    for row in results["probes"]:
        found = [row[name] for name in PROBE_NAMES]
        numbers = [f"{one['value']:.3f}" for one in found]
        if row["seeds"] > 1:
            spans = [f" ({one['lowest']:.3f} to {one['highest']:.3f})" for one in found]
            numbers = [number + span for number, span in zip(numbers, spans)]
        lines.append([METHOD_NAMES[row["method"]], row["backbone"], str(row["seeds"]), *numbers])
    return lines


def _tex(text: str) -> str:
    """Text for LaTeX: specials escaped, signs as mathematics."""
    text = re.sub(r"[&%$#_{}]", lambda special: "\\" + special.group(), text.replace("\\", "/"))
    text = text.replace("^", r"\textasciicircum{}").replace("~", r"\textasciitilde{}")
    return re.sub(r"(?<![\w.])[+-]\d+\.\d+|[<>]", lambda sign: f"${sign.group()}$", text)


def latex_table(results: Mapping[str, Any]) -> str:
    """The same as LaTeX (booktabs): the table, and those of differences and of the frozen features."""
    head, rows = _cells(results)
    tabulars = [_tabular(head, rows)]
    for more in (_difference_cells(results), _probe_cells(results)):
        if more:
            tabulars += ["", r"\medskip", _tabular(more[0], more[2:])]
    text = [rf"\caption{{{_tex(' '.join(caption(results).split()))}}}", r"\end{table}", ""]
    return "\n".join([r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", *tabulars, *text])


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_tex, cells)) + r" \\"

    body: list[str] = []
    for before, cells in zip([None, *rows], rows):
        body += [r"\midrule"] if before is not None and before[0] != cells[0] else []
        body.append(line(cells))
    begin = [rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\toprule", line(head), r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}"])


def _cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = results["rows"]
    measures = {name: text for name, text in _MEASURES.items() if any(name in row for row in rows)}
    compared = [name for name in _COMPARED if name in measures]
    earlier = _earlier_study(results)
    head = ["labels", "method", "backbone", "runs"]
    minuses = {name: [row.get(name, {}).get("minus", {}).get("supervised", {}) for row in rows] for name in compared}
    tested = [name for name, found in minuses.items() if any("p_holm" in one for one in found)]
    for name, text in measures.items():
        head += [f"{text} (95 %)"] + ["minus supervised (95 %)"] * (name in compared) + ["p, Holm"] * (name in tested)
    head += ["GSoC 2024: AUC, accuracy"] if earlier else []
    lines = []
    for row in rows:
        runs = f"{row['seeds']} x {row['subsets']}"
        cells = [_labels(row), METHOD_NAMES[row["method"]], row["backbone"] or "", runs]
        for name in measures:
            entry = row.get(name)
            cells.append(format_interval(entry) if entry else "")
            if name in compared:
                minus = (entry or {}).get("minus", {}).get("supervised")
                cells.append(format_interval(minus, signed=True) if minus else "")
            if name in tested:
                cells.append(_p(minus) if minus else "")
        if earlier:
            cells.append(earlier.get((row["method"], row["backbone"], row["num_labels"]), ""))
        lines.append(cells)
    return head, lines


def format_interval(entry: Mapping[str, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    if entry["low"] is None:
        return f"{entry['value']:{sign}.3f}"
    return f"{entry['value']:{sign}.3f} [{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"


def _p(entry: Mapping[str, float]) -> str:
    p = entry.get("p_holm")
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _earlier_study(results: Mapping[str, Any]) -> dict[tuple[str, str, int], str]:
    """AUC and accuracy of the GSoC 2024 study by method, backbone and labels; empty for sets of another size."""
    with open(GSOC2024, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    size = max(int(row["labels"]) for row in rows)
    if not 0.9 < results["num_train_labels"] / size < 1.1 or not any(
        r["backbone"] in ("vits8", "vitb8") for r in results["rows"]
    ):
        return {}
    sizes = {size: results["num_train_labels"]}  # that all labels of this set are about as many
    return {
        (
            row["method"],
            row["backbone"],
            sizes.get(int(row["labels"]), int(row["labels"])),
        ): f"{float(row['roc_auc']):.3f}, {float(row['accuracy_percent']) / 100:.3f}"
        for row in rows
    }


def _needs_label(data: Mapping[str, Any]) -> bool:
    return bool(data["simulated"]) and "simulated" not in data["name"]


def caption(results: Mapping[str, Any]) -> str:
    """What was tested on, pretrained and fine-tuned how, and what the statistics are, in sentences."""
    test, folds = results["test"], results["folds"]
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in test["nonlenses"].items())
    simulated = "Simulated cutouts. " if results["data"]["simulated"] else ""
    where = f"{len(folds)} test folds, whose results are averaged" if folds else "Test split"
    nonlenses = f"{test['num_nonlenses']:,} non-lenses" + (f" ({kinds})" if kinds else "")
    sentences = [f"{simulated}{where}: {test['num_lenses']:,} lenses, {nonlenses}."]
    differences = [row["roc_auc"].get("minus", {}).get("supervised", {}) for row in results["rows"]]
    comparisons = sum("p_holm" in one for one in differences)
    correction = f", after Holm over the {comparisons} comparisons of a column" if comparisons else ""
    sentences.append(
        "Runs are seeds x label subsets. Intervals are those of a hierarchical bootstrap over seeds, label subsets "
        "and test groups (over a single seed or subset they say nothing of others), widened by Student's t for few; "
        f"p-values, given from {MIN_SEEDS} seeds and {MIN_SUBSETS} subsets on, are of the same draws{correction}. "
        "A difference is over the subsets that both sides have."
    )
    sentences.append(
        f"The {results['num_validation_labels']:,} labels of the validation split choose the step of a fine-tuning "
        "and the regularisation of a regression. The frozen features are probed with all training labels."
    )
    if any(row.get("completeness_at_fpr_1e-3", {"low": 0})["low"] is None for row in results["rows"]):
        sentences.append("Completeness has no interval where the scores of the large test split were not kept.")
    shown = {(row["method"].removesuffix("-linear"), row["backbone"]) for row in results["rows"]}
    for one in results["pretraining"]:
        if (one["method"], one["backbone"]) not in shown:  # begun, but no cell of it is done
            continue
        before = ""
        if earlier := one.get("continued_from"):
            before = f", after {earlier['epochs']} on {earlier['num_train_images']:,} images of {earlier['data']}"
        sentences.append(
            f"{METHOD_NAMES[one['method']]}, {one['backbone']}: {_text(one['settings']['epochs'])} epochs on "
            f"{one['num_train_images']:,} images{before}; {one['seconds'] / 60:.0f} minutes on {_text(one['device'])} "
            f"({_text(one['precision'])})."
        )
    steps: dict[str, list[str]] = {}
    for one in results["finetuning"]:
        name = METHOD_NAMES[one["method"]] + (f" {one['backbone']}" if one["backbone"] else "")
        steps.setdefault(_text(one["settings"]["steps"]), []).append(name)
    if steps:
        words = "; ".join(f"{number} ({', '.join(names)})" for number, names in steps.items())
        sentences.append(f"Fine-tuning steps: {words}.")
    if left := _left_out(results):
        sentences.append(f"Left out, since not there for all seeds, subsets or folds: {left}.")
    if _earlier_study(results):
        sentences.append("GSoC 2024: the numbers of that study, on its own data.")
    return "\n".join(sentences)


def _left_out(results: Mapping[str, Any]) -> str:
    """The cells that no row is made of, by method."""
    counts: Counter[str] = Counter()
    for row in results["rows"]:
        counts[row["method"]] += row["left_out"]
    shown = {(row["method"], row["backbone"], row["labels"]) for row in results["rows"]}
    counts.update(
        cell["method"]
        for cell in results["cells"]
        if cell["labels"] != "none" and (cell["method"], cell["backbone"], cell["labels"]) not in shown
    )
    return ", ".join(f"{number} of {METHOD_NAMES[method]}" for method, number in counts.items() if number)
