"""What an evaluation reports: the dataset, the counts, the measures, and where it is written."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.tensors import CutoutTensors, split_checksum
from ..errors import InputError
from ..training.run_directory import pixel_hashes, read_run, read_trained_on
from .metrics import measure, threshold_at_fpr
from .predictions import Predictions

logger = logging.getLogger(__name__)


def evaluation_folder(run: str | os.PathLike, info: Mapping[str, Any], split: str | None) -> Path:
    """
    Where the evaluation of a run goes: `evaluation/` for the test split of the dataset that it was trained on. Other
    datasets, splits and parts of a split have a folder of their own, such as `evaluation-other_survey-0f3c9a21`, so
    that the card of the run tells them apart.
    """
    parts, fingerprint = ["evaluation"], str(info.get("fingerprint") or "")
    is_own = fingerprint != "" and fingerprint == read_run(run)["data"].get("fingerprint")
    if not is_own:
        parts += [re.sub(r"[^\w.-]+", "_", str(info.get("name") or "unnamed")), fingerprint[:8]]
    if split != "test":  # of splits that were concatenated nothing says what they are
        parts += [split or ("parts" if is_own else "")]
    return Path(run) / "-".join(part for part in parts if part)


def name_if_changed(run: str | os.PathLike, info: Mapping[str, Any], split: str | None, chosen: Any) -> str | None:
    """
    `split`; but a name of its own, which is logged, for the test split of the run's dataset where its pixels or labels
    are not those that it had: a test on noisier cutouts must not become the number in the card.
    """
    facts = read_run(run)
    known, is_own = facts.get("test_content"), info.get("fingerprint") == facts["data"].get("fingerprint")
    if split != "test" or known is None or not is_own or (found := split_checksum(chosen)) == known:
        return split
    logger.warning("the pixels or labels of this test split are not those of the dataset that %s was given", run)
    return f"test_changed_{found:08x}"


def describe(info: Mapping[str, Any], split: str | None) -> dict[str, Any]:
    """What a report says of its dataset."""
    return {
        "dataset": info.get("name"),
        "simulated": info.get("simulated"),
        **({"painted": True} if info.get("painted") else {}),
        "fingerprint": info.get("fingerprint"),
        "split": split,
    }


def may_have_seen(run: str | os.PathLike, info: Mapping[str, Any], tensors: CutoutTensors | None) -> list[str]:
    """
    A sentence, which is logged, where a run was trained on some of these cutouts, by their pixels; or where it, or one
    that it began from, was trained on cutouts of the same name and kind that were read or split in another way. Splits
    of simulated cutouts are the same whatever their sizes.
    """
    trained_on = read_trained_on(run)
    if tensors is not None and len(trained_on):
        count = int(np.isin(pixel_hashes(tensors), trained_on).sum())
        if count:
            sentence = (
                f"{run} was trained on {count:,} of these {len(tensors):,} cutouts, and scores them too well: leave "
                "them out"
            )
            logger.warning(sentence)
            return [sentence]
    facts = read_run(run)
    while facts and not info.get("simulated"):
        known = facts.get("data") or {}
        if known.get("fingerprint") != info.get("fingerprint") and all(
            known.get(name) == info.get(name) is not None for name in ("name", "source")
        ):
            sentence = (
                f"{run} was trained on cutouts called {info['name']}, too, which were read or split otherwise: it may "
                "have seen some of these; repeat the data options of its command, such as data_seed"
            )
            logger.warning(sentence)
            return [sentence]
        facts = facts.get("init_run")
    return []


def title_of(report: Mapping[str, Any]) -> str:
    """The line above pictures: dataset and split where they are known, and that it is simulated where it is."""
    simulated = " (simulated)" if report["simulated"] and "simulated" not in str(report["dataset"]) else ""
    split = f", {report['split']} split" if report["split"] else ""
    return f"{report['dataset'] or 'cutouts'}{split}{simulated}"


def report_on(
    predictions: Predictions, prevalence: float = 1e-3, num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The measures of labelled predictions with the counts and settings that they rest on."""
    known = predictions.labelled()
    if not len(known):
        raise InputError("none of the cutouts has a label: evaluation needs labelled ones, predict_only does not")
    found = measure(known.label, known.score, known.group, known.subclass, prevalence, num_bootstrap, seed)
    return {
        "num_lenses": int((known.label == 1).sum()),
        "num_nonlenses": int((known.label == 0).sum()),
        "num_groups": len(set(known.group)),
        "subclasses": {kind: known.subclass.count(kind) for kind in sorted(set(known.subclass) - {""})},
        "prevalence": prevalence,
        "num_bootstrap": num_bootstrap,
        "seed": seed,
        "threshold_at_fpr_1e-2": threshold_at_fpr(known.label, known.score, 1e-2),
        "metrics": found,
    }
