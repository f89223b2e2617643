"""What an ensemble gives: the mean logit of all seeds of a method, beside its single members."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.predictions import Predictions, ensemble
from .cells import PREDICTIONS
from .statistics import COMPARED, MIN_SEEDS, compare, rectangles


def ensembles(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Of every method, backbone and label budget with three seeds or more: what the mean logit of these seeds measures on
    the test split, averaged over label subsets and folds.

    Args:
        cells (`Sequence[Mapping]`): as for [`compare`].

    Returns:
        `list[dict]`: `method`, `backbone`, `labels`, `num_labels`, `members`, `subsets`, and of `roc_auc` and
        `auc_vs_hard_nonlens` the entries of [`compare`], whose `minus` has under `single` how much better that is than
        a member in the mean.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="lens-ssl-ensembles-") as folder:
        for (labels, backbone, method), column in rectangles(cells).items():
            seeds = sorted({seed for seed, _ in column})
            if len(seeds) < MIN_SEEDS or method == "profiles":  # which depend on no seed
                continue
            single = [{**cell, "method": "supervised"} for folds in column.values() for cell in folds.values()]
            every = list(single)
            for number, cell in enumerate(one for one in single if one["seed"] == seeds[0]):
                members = [column[seed, cell["subset"]][cell["fold"]]["directory"] for seed in seeds]
                directory = Path(folder) / f"{labels}-{backbone}-{method}-{number}"
                directory.mkdir()
                found = ensemble([Predictions.load(Path(one) / PREDICTIONS) for one in members])
                found.save(directory / PREDICTIONS)
                every.append({**cell, "method": "ensemble", "directory": str(directory)})
            row = next(one for one in compare(every) if one["method"] == "ensemble")
            facts = {"method": method, "backbone": backbone, "labels": labels, "num_labels": row["num_labels"]}
            facts |= {"members": len(seeds), "subsets": row["subsets"]}
            measures = {name: row[name] for name in COMPARED if name in row}
            rows.append(facts | {name: {**one, "minus": {"single": one["minus"]["supervised"]}}
                                 for name, one in measures.items()})  # fmt: skip
    return rows
