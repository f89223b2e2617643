"""What grades say of a search: purity and completeness by rank, agreement of the graders, and a calibration."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from pyarrow import parquet

from ..data.files.raw import readable
from ..data.storage import check_target
from ..errors import InputError
from ..files import write_json, write_text, writing
from . import calibration as calibrations
from . import manifest as manifests
from .estimates import completeness, lenses_beyond, lenses_of_survey, purity, ranks_to_report
from .grade_report import describe, draw
from .grades import POSITIVE, agreement, read_grades, votes_by_object

_COLUMNS = ["id", "rank", "logit", "sample"]
_FACTS = ("models", "rest", "top", "input", "options")


def grade(
    ranking: str | os.PathLike,
    labels: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike = "grading",
    positive: Sequence[str] = POSITIVE,
    prevalence: float | None = None,
    store_in: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """
    Measure a search by the grades of its ranking, and calibrate its scores: writes grading.json, grading.md,
    purity_completeness.png and calibration.json.

    An object is a lens where more than half of its graders say so.

    Args:
        ranking (`str` or `os.PathLike`): the folder that [`rank`] wrote.
        labels (`str`, `os.PathLike`, or list of them): tables with `id`, `grade` and perhaps `grader`.
        output (`str` or `os.PathLike`, *optional*, defaults to `"grading"`): it must not exist, or be empty.
        positive (`Sequence[str]`, *optional*, defaults to `("A", "B")`): the grades of lenses.
        prevalence (`float`, *optional*):
            Share of lenses in another survey, for which the calibration is meant; by default it holds for this one.
        store_in (`str` or `os.PathLike`, *optional*):
            The run or folder of the ranked model; the calibration is stored there, too, and [`score`] finds it.

    Returns:
        `dict`: what is in grading.json.

    Raises:
        [`InputError`]: unknown ids or grades, a ranking that cannot be read, a `prevalence` without graded audit rows,
            another model in `store_in`, or an `output` that cannot be written, or lies in the input of the scores.
    """
    ranking, output = Path(ranking), Path(output)
    tables = [labels] if isinstance(labels, str | os.PathLike) else list(labels)
    if prevalence is not None and not 0 < prevalence < 1:
        raise InputError(f"prevalence is {prevalence}: give a share between 0 and 1")
    check_target(output)
    rows, facts = _read_ranking(ranking)
    manifests.check_output(output, facts["input"]["path"])
    hashes = [one["weights_sha256"] for one in facts["models"]]
    if store_in is not None:
        calibrations.check_store(hashes, store_in)
    votes = votes_by_object(read_grades(tables, positive), set(rows["id"]), str(ranking))
    rows["share"] = rows["id"].map(votes.mean(axis=1))
    rows["is_lens"] = (rows["share"] > 0.5).where(rows["share"].notna()).astype(float)
    source = {"ranking": str(ranking), "labels": [str(one) for one in tables], "positive": [*map(str, positive)]}
    found = source | _measure(rows, facts["rest"]) | {"agreement": agreement(votes)}
    calibration = _calibrate(rows, found, prevalence)
    if "reason" not in calibration:
        calibration |= {"models": hashes, "views": facts["options"]["views"], "input": facts["input"], **source}
    found["calibration"] = calibration
    _write(found, output)
    if store_in is not None and "reason" not in calibration:
        calibrations.store(calibration, store_in)
    return found


def _read_ranking(folder: Path) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """The rows of a ranking, with ids as text, and its ranking.json."""
    with readable(folder / "ranking.parquet", fix="give a folder that lens-ssl rank wrote"):
        table = parquet.read_table(folder / "ranking.parquet", columns=_COLUMNS, partitioning=None)
    with readable(folder / "ranking.json", fix="give a folder that lens-ssl rank wrote"):
        facts = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
        if missing := [name for name in _FACTS if name not in facts]:
            raise InputError(f"{folder / 'ranking.json'} lacks {missing[0]}: rank again into another folder")
    rows = table.to_pandas()
    return rows.assign(id=[str(one) for one in table["id"].to_pylist()]), facts


def _measure(rows: pandas.DataFrame, rest: int) -> dict[str, Any]:
    """Purity, and completeness where the audit sample allows it, at some ranks."""
    top, audit = rows[rows["sample"] == "top"], rows[rows["sample"] == "audit"]
    ranks = ranks_to_report(top)
    beyond = lenses_beyond(top, audit, rest)
    found = {"top": len(top), "graded": int(top["share"].notna().sum()), "lenses": int(top["is_lens"].sum())}
    proposed = ~rows["sample"].isin(["top", "audit"]) & rows["share"].notna()
    found |= {"proposed": int(proposed.sum()), "ties": int((rows["share"] == 0.5).sum())}
    found |= {"purity": [purity(top, rank) for rank in ranks]}
    known = "reason" not in beyond
    found |= {"beyond": beyond, "survey": lenses_of_survey(top, beyond) if known else None}
    return found | {"completeness": [completeness(top, beyond, rank) for rank in ranks if known]}


def _calibrate(rows: pandas.DataFrame, found: dict[str, Any], prevalence: float | None) -> dict[str, Any]:
    """
    A calibration, or the reason why there is none. Rows that were chosen by their scores alone, as the first ones are,
    change P(lens | logit) by nothing, but they say nothing of lower logits either.
    """
    beyond = found["beyond"]
    is_sample = (rows["sample"] == "audit") & ("reason" not in beyond)
    used = rows[((rows["sample"] == "top") | is_sample) & rows["share"].notna()]
    is_audit = (used["sample"] == "audit").to_numpy()
    if prevalence is not None and not is_audit.any():
        raise InputError(
            f"prevalence is {prevalence}, but the share of lenses in this survey is unknown "
            f"({beyond.get('reason', 'no audit')}): grade an audit sample, or leave prevalence out"
        )
    if not is_audit.any() and not used["logit"].is_monotonic_decreasing:
        return {"reason": "the first rows were not chosen by their logit, and no audit sample stands for the others"}
    lenses = int(used["is_lens"].sum())
    facts = {"graded": len(used), "lenses": lenses, "audit": int(is_audit.sum())}
    if lenses < calibrations.LEAST_LENSES or lenses == len(used):
        least, have = calibrations.LEAST_LENSES, "no non-lens" if lenses == len(used) else f"{lenses} lenses"
        return facts | {"reason": f"a calibration needs {least} lenses and a non-lens, and the grades have {have}"}
    sizes = np.where(is_audit, beyond["rest"], (rows["sample"] == "top").sum())
    weights = sizes / np.where(is_audit, is_audit.sum(), (~is_audit).sum())
    logits = used["logit"].to_numpy()
    fitted = calibrations.fit(logits, used["is_lens"].to_numpy(), weights)
    if not fitted["a"] > 0:
        return facts | {"reason": "the graded objects are no likelier lenses where the model scores them higher"}
    if fitted["a_error"] > 0.5 * fitted["a"]:
        slope = f"{fitted['a']:.3f} +- {fitted['a_error']:.3f}"
        return facts | {"reason": f"its slope, {slope}, is uncertain by more than half of itself: grade more objects"}
    fitted |= {"prevalence": found["survey"]["prevalence"]["value"] if is_audit.any() else None}
    fitted |= {"lowest_logit": None if is_audit.any() else float(logits.min())}
    return facts | (fitted if prevalence is None else calibrations.shift(fitted, prevalence))


def _write(found: dict[str, Any], output: Path) -> None:
    with writing(output) as new:
        new.mkdir()
        write_json(new / "grading.json", found)
        write_text(new / "grading.md", describe(found))
        draw(found, new / "purity_completeness.png")
        if "reason" not in found["calibration"]:
            write_json(new / calibrations.NAME, found["calibration"])
