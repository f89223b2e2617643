"""The model cards of a study: those of its self-supervised models, with what every label budget gave."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.predictions import Predictions
from ..evaluation.reports import describe, report_on
from ..files import write_text
from ..hub.card import CardFacts, render_card
from .methods import BASELINES, METHOD_NAMES, PRETRAINED
from .tables import as_markdown, caption, format_interval


def write_cards(
    study: Any,
    records: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    folder: str | os.PathLike,
    report: str | os.PathLike,
) -> list[Path]:
    """
    Write the model cards of the self-supervised methods: `lens-<method>-<backbone>.md` of the first pretraining and
    `lens-<method>-<backbone>-classifier.md` of its classifier with the most labels, both with the accuracy and AUC of
    every label budget. With folds they are those of the first fold. What has no run.json any more, only its results,
    gets no card.

    Args:
        study, records, results: as for [`~lens_ssl_hf.study.report.write_report`], and what it
            returned.
        folder (`str` or `os.PathLike`): where the cards go.
        report (`str` or `os.PathLike`): the folder of the pictures that they show.
    """
    cards = []
    fold, (_, info) = next(iter(study.data.items()))
    there = [r for r in records if r["fold"] == fold and (Path(r["directory"]) / "run.json").is_file()]
    for method, backbone in dict.fromkeys((r["method"], r["backbone"]) for r in there if r["method"] in PRETRAINED):
        own = [r for r in there if (r["method"], r["backbone"], r["seed"]) == (method, backbone, 0)]
        classifiers = [r for r in own if r["labels"] != "none" and r["subset"] == 0]
        pretrainings = [r for r in own if r["labels"] == "none"]
        if not classifiers or not pretrainings:
            continue
        pictures = os.path.relpath(report, folder)
        text = _of_one(results, method, backbone) + f"\n\n![ROC curves]({pictures}/roc-{backbone}.png)"
        if fold is not None:
            text = f"This is the model of test fold {fold}; the numbers below are means over the folds.\n\n{text}"
        name = f"lens-{method}-{backbone}"
        best = max(classifiers, key=lambda record: record["num_labels"])
        for record, title in ((pretrainings[0], name), (best, f"{name}-classifier")):
            facts = CardFacts.from_run(record["directory"], title, study=text)
            facts.pictures = []
            if record is best:
                table = Predictions.load(Path(record["directory"]) / "predictions.parquet")
                facts.reports = {"classifier": {**describe(info, "test"), "warnings": [], **report_on(table)}}
            write_text(Path(folder) / f"{title}.md", str(render_card(facts)))
            cards.append(Path(folder) / f"{title}.md")
    return cards


def _of_one(results: Mapping[str, Any], method: str, backbone: str) -> str:
    """Accuracy and AUCs of one method and backbone per label budget, with those of the baselines."""
    names = {method: "fine-tuned", f"{method}-linear": "linear probe"} | {one: METHOD_NAMES[one] for one in BASELINES}
    rows = [row for row in results["rows"] if row["method"] in names and row["backbone"] in (backbone, "")]
    columns = {"accuracy": "accuracy", "roc_auc": "ROC AUC", "auc_vs_hard_nonlens": "ROC AUC, hard non-lenses"}
    columns = {name: text for name, text in columns.items() if any(name in row for row in rows)}
    head = ["labels", "classifier", "runs", *(f"{text} (95 %)" for text in columns.values())]
    lines = [head, ["---"] * len(head)]
    budgets = dict.fromkeys(row["labels"] for row in rows if row["method"] not in BASELINES)
    for budget, name in itertools.product(budgets, names):
        for row in rows:
            if (row["labels"], row["method"]) == (budget, name):
                runs = f"{row['seeds']} x {row['subsets']}"
                numbers = [format_interval(row[column]) for column in columns]
                lines.append([f"{row['num_labels']:,}", names[name], runs, *numbers])
    own = {
        "rows": [{name: row[name] for name in row if "completeness" not in name} for row in results["rows"]],
        "pretraining": [one for one in results["pretraining"] if one["method"] == method],
        "finetuning": [one for one in results["finetuning"] if one["method"] in names],
    }
    return f"{as_markdown(lines)}\n\n{caption({**results, **own})}"
