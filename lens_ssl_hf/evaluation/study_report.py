"""A study's tables and pictures, made from its cells' files alone."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..training.run_directory import write_json, write_text
from .comparison import PRETRAINED, compare
from .evaluate import Predictions
from .plots import METHOD_NAMES, plot_calibration, plot_label_efficiency, plot_study_roc
from .probes import PROBE_NAMES

GSOC2024 = Path(__file__).with_name("gsoc2024_results.csv")
_MEASURES = {
    "roc_auc": "ROC AUC",
    "auc_vs_hard_nonlens": "ROC AUC, hard",
    "accuracy": "accuracy",
    "completeness_at_fpr_1e-3": "completeness at FPR 1e-3",
}


def write_report(study: Any, records: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> dict[str, Any]:
    """
    Write results.json, table.md, table.tex, label_efficiency.png and, of each backbone, roc-<backbone>.png and
    calibration-<backbone>.png; where `folder` is not the study's own, also the cells' records and predictions.

    Args:
        study ([`~lens_ssl_hf.evaluation.study.Study`]): what was planned.
        records (`Sequence[Mapping]`): from its `run` or `records`.
        folder (`str` or `os.PathLike`): where to write.

    Returns:
        `dict`: the content of results.json.

    Raises:
        [`InputError`]: no cell is done yet, or `folder` cannot be written.
    """
    folder = Path(folder)
    cells = [record for record in records if record["labels"] != "none"]
    if not cells:
        raise InputError(f"no cell of {study.output_dir} is done yet: run the study first")
    results = collect(study, records, compare(cells))
    title = results["data"]["name"] + (", simulated" if _needs_label(results["data"]) else "")
    table = markdown_table(results)
    write_text(folder / "table.md", table + "\n")
    write_text(folder / "table.tex", latex_table(results))
    plot_label_efficiency(results["rows"], folder / "label_efficiency.png", title)
    for backbone in sorted({cell["backbone"] for cell in cells} - {""}):
        panels = _panels(cells, backbone)
        plot_study_roc(panels, folder / f"roc-{backbone}.png", f"{title}, {backbone}")
        plot_calibration(panels, folder / f"calibration-{backbone}.png", f"{title}, {backbone}")
    if folder != study.output_dir:
        _copy_cells(records, folder)
    write_json(folder / "results.json", results)
    return results


def _copy_cells(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The records and predictions of all cells, without weights and local paths: enough to go on with the study."""
    for record in records:
        source = Path(record["directory"])
        target = folder / source.parent.name / source.name
        settings = {name: value for name, value in record["settings"].items() if name not in ("output_dir", "init")}
        write_json(target / "cell.json", {**record, "directory": source.name, "settings": settings})
        if (source / "predictions.parquet").is_file():
            Predictions.load(source / "predictions.parquet").save(target / "predictions.parquet")


def collect(study: Any, records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json holds: the data, the rows of the table, every cell's numbers, and what they were made with."""
    splits, info = next(iter(study.data.values()))
    test = [splits["test"] for splits, _ in study.data.values()]
    kinds = [kind for one in test for kind, label in zip(one.subclasses, one.labels.tolist()) if label == 0]
    first = {}
    for record in records:
        first.setdefault((record["method"], record["labels"] == "none"), record)
    return {
        "data": info,
        "folds": [fold for fold in study.data if fold is not None],
        "num_train_labels": len(splits["train"]),
        "test": {
            "num_lenses": sum(int((one.labels == 1).sum()) for one in test),
            "num_nonlenses": len(kinds),
            "nonlenses": {kind: kinds.count(kind) for kind in sorted(set(kinds) - {""})},
        },
        "rows": list(rows),
        "probes": _probes(records),
        "pretraining": {method: _recipe(one) for (method, is_pre), one in first.items() if is_pre},
        "finetuning": {method: _recipe(one) for (method, is_pre), one in first.items() if not is_pre},
        "cells": [_numbers(record) for record in records],
    }


def _probes(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean ROC AUC of kNN and linear probe per pretraining method and backbone, with the extremes over seeds."""
    found: dict[tuple[str, str], list] = {}
    for record in records:
        if record["labels"] == "none":
            found.setdefault((record["method"], record["backbone"]), []).append(record["probes"])
    rows = []
    for (method, backbone), probes in found.items():
        row: dict[str, Any] = {"method": method, "backbone": backbone, "pretrainings": len(probes)}
        for name in PROBE_NAMES:
            values = [one[name]["roc_auc"] for one in probes]
            row[name] = {"value": float(np.mean(values)), "lowest": min(values), "highest": max(values)}
        rows.append(row)
    return rows


def _recipe(record: Mapping[str, Any]) -> dict[str, Any]:
    own = ("output_dir", "resume", "report_to", "seed", "subset_seed", "labels", "init", "stream", "stop_on_collapse")
    settings = {name: value for name, value in record["settings"].items() if name not in own}
    kept = ("precision", "device", "num_processes", "num_train_images", "num_parameters", "versions", "git_revision")
    kept += ("continued_from",)
    return {"settings": settings, **{name: record[name] for name in kept if name in record}}


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: record[name] for name in ("method", "backbone", "labels", "seed", "subset", "fold")}
    numbers |= {name: record[name] for name in ("seconds", "best_step", "validation_auc") if name in record}
    kept = ("roc_auc", "accuracy", "auc_vs_hard_nonlens", "expected_calibration_error", "completeness_at_fpr_1e-3")
    for name in ("metrics", "metrics_large"):
        if name in record:
            numbers[name] = {key: round(record[name][key], 5) for key in kept if record[name].get(key) is not None}
    if "probes" in record:
        numbers["probes"] = {name: round(one["roc_auc"], 5) for name, one in record["probes"].items()}
    return numbers


def _panels(cells: Sequence[Mapping[str, Any]], backbone: str) -> dict[str, dict[str, list[Predictions]]]:
    """Predictions per label budget and method, of one backbone and of the methods without one."""
    panels: dict[str, dict[str, list[Predictions]]] = {}
    order = list(METHOD_NAMES)
    for cell in sorted(cells, key=lambda cell: (cell["num_labels"], order.index(cell["method"]))):
        if cell["backbone"] in (backbone, ""):
            name = f"{cell['num_labels']:,} labels"
            table = Predictions.load(Path(cell["directory"]) / "predictions.parquet").labelled()
            panels.setdefault(name, {}).setdefault(cell["method"], []).append(table)
    return panels


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table of a study's results.json as Markdown, with what it stands on."""
    head, rows = _cells(results)
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    probes = [["AUC of frozen features", "backbone", "seeds", *PROBE_NAMES.values()], ["---"] * (3 + len(PROBE_NAMES))]
    for row in results["probes"]:
        numbers = [
            f"{row[name]['value']:.3f} ({row[name]['lowest']:.3f} to {row[name]['highest']:.3f})"
            for name in PROBE_NAMES
        ]
        probes.append([METHOD_NAMES[row["method"]], row["backbone"], str(row["pretrainings"]), *numbers])
    frozen = "\n".join("| " + " | ".join(cells) + " |" for cells in probes)
    return text + "\n\n" + caption(results) + (f"\n\n{frozen}" if results["probes"] else "")


def latex_table(results: Mapping[str, Any]) -> str:
    """The same as a LaTeX table (booktabs)."""
    head, rows = _cells(results)

    def line(cells: Sequence[str]) -> str:
        return (
            " & ".join(cell.replace("%", r"\%").replace("- ", "$-$ ").replace("<", "$<$") for cell in cells) + r" \\"
        )

    body, previous = [], None
    for cells in rows:
        body += [r"\midrule"] if previous not in (None, cells[0]) else []
        body.append(line(cells))
        previous = cells[0]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{{'l' * len(head)}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{caption(results).replace('%', chr(92) + '%').replace(chr(10), ' ')}}}",
            r"\end{table}",
            "",
        ]
    )


def _cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = results["rows"]
    measures = {name: text for name, text in _MEASURES.items() if any(name in row for row in rows)}
    compared = [name for name in ("roc_auc", "auc_vs_hard_nonlens") if name in measures]
    earlier = _earlier_study(results)
    head = ["labels", "method", "backbone", "runs"]
    for name, text in measures.items():
        head += [f"{text} (95 %)"] + (["minus supervised (95 %)", "p, Holm"] if name in compared else [])
    head += ["GSoC 2024: AUC, accuracy"] if earlier else []
    lines = []
    for row in rows:
        runs = f"{row['seeds']} x {row['subsets']}"
        cells = [str(row["num_labels"]), METHOD_NAMES[row["method"]], row["backbone"] or "", runs]
        for name in measures:
            entry = row.get(name)
            cells.append(format_interval(entry) if entry else "")
            if name in compared:
                minus = (entry or {}).get("minus", {}).get("supervised")
                cells += [format_interval(minus, signed=True), _p(minus)] if minus else ["", ""]
        if earlier:
            cells.append(earlier.get((row["method"], row["backbone"], row["num_labels"]), ""))
        lines.append(cells)
    return head, lines


def format_interval(entry: Mapping[str, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
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
    return {
        (
            row["method"],
            row["backbone"],
            int(row["labels"]),
        ): f"{float(row['roc_auc']):.3f}, {float(row['accuracy_percent']) / 100:.3f}"
        for row in rows
    }


def _needs_label(data: Mapping[str, Any]) -> bool:
    return bool(data["simulated"]) and "simulated" not in data["name"]


def caption(results: Mapping[str, Any]) -> str:
    """What was tested on, pretrained and fine-tuned how, in sentences."""
    test, folds = results["test"], results["folds"]
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in test["nonlenses"].items())
    simulated = "Simulated cutouts. " if results["data"]["simulated"] else ""
    where = f"{len(folds)} test folds" if folds else "Test split"
    sentences = [f"{simulated}{where}: {test['num_lenses']} lenses, {test['num_nonlenses']} non-lenses ({kinds})."]
    sentences.append("Runs are seeds x label subsets; intervals and p-values come from a hierarchical bootstrap over "
                     "seeds, label subsets and test groups.")  # fmt: skip
    for method, run in results["pretraining"].items():
        minutes = np.mean([c["seconds"] for c in results["cells"] if c["method"] == method and c["labels"] == "none"])
        settings, before = run["settings"], ""
        if earlier := run.get("continued_from"):
            before = f", after {earlier['epochs']} on {earlier['num_train_images']:,} images of {earlier['data']}"
        sentences.append(
            f"{METHOD_NAMES[method]}: {settings['epochs']} epochs on {run['num_train_images']:,} images{before}; "
            f"{minutes / 60:.0f} minutes on {run['device']} ({run['precision']})."
        )
    steps = {
        method: f"{METHOD_NAMES[method]} {run['settings']['steps']}"
        for method, run in results["finetuning"].items()
        if method in (*PRETRAINED, "supervised", "supervised-long", "cnn")
    }
    sentences.append(f"Fine-tuning steps: {', '.join(steps.values())}.")
    return "\n".join(sentences)


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """results.json of a study."""
    return json.loads(Path(path).read_text())
