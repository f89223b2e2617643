"""From a model's logit to the probability that people call the object a lens: Platt scaling on grades."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ..errors import InputError
from ..files import write_json
from .manifest import CALIBRATION, weights_sha256

logger = logging.getLogger(__name__)

NAME = "calibration.json"
LEAST_LENSES = 10


def fit(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """
    P(lens) = 1 / (1 + exp(-(a * logit + b))) by weighted maximum likelihood (Platt 1999). Targets are smoothed as he
    has it, by one lens and one non-lens in all, here of the weighted numbers: so a and b stay finite where a threshold
    separates the classes, and a rare class keeps its prevalence.

    Args:
        logits, labels, weights (`np.ndarray` of shape `(n,)`): of graded objects; a label is 1 for a lens and 0 for
            none, a weight the inverse of the inclusion probability.

    Returns:
        `dict`: `a` and `b` with their standard errors (of the sandwich estimator, for weighted samples).
    """
    lenses, others = weights @ labels, weights @ (1 - labels)
    targets = labels * (lenses + 1) / (lenses + 2) + (1 - labels) / (others + 2)
    centre, scale = logits.mean(), max(logits.std(), 1e-9)  # so that the optimizer meets numbers near 1
    x = ((logits - centre) / scale)[:, None]
    shares = np.concatenate([weights * targets, weights * (1 - targets)])
    classes = np.repeat([1, 0], len(x))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(np.tile(x, (2, 1)), classes, shares / shares.mean())
    a = float(model.coef_[0, 0] / scale)
    b = float(model.intercept_[0] - a * centre)
    design, p = np.stack([logits, np.ones(len(x))], axis=1), expit(a * logits + b)
    bread = np.linalg.pinv((design.T * (weights * p * (1 - p))) @ design)
    errors = np.sqrt(np.diag(bread @ ((design.T * (weights * (targets - p)) ** 2) @ design) @ bread))
    return {"a": a, "b": b, "a_error": float(errors[0]), "b_error": float(errors[1])}


def shift(calibration: Mapping[str, Any], prevalence: float) -> dict[str, Any]:
    """
    The same for a survey with another share of lenses that look alike: the logit moves by the ratio of the priors'
    odds (Saerens et al. 2002, eq. 4).

    Args:
        calibration (`Mapping`): its `prevalence` is the share of lenses where it was fitted.
        prevalence (`float`): of the other survey.
    """
    moved = calibration["b"] + float(logit(prevalence) - logit(calibration["prevalence"]))
    return {**calibration, "b": moved, "prevalence": prevalence, "fitted_prevalence": calibration["prevalence"]}


def apply(calibration: Mapping[str, Any] | None, logits: np.ndarray) -> np.ndarray:
    """P(lens) `(n,)`; NaN without a calibration, and below the logits that it knows."""
    if calibration is None:
        return np.full(len(logits), np.nan)
    lowest = calibration["lowest_logit"]
    known = logits >= (-np.inf if lowest is None else lowest)
    return np.where(known, expit(calibration["a"] * logits + calibration["b"]), np.nan)


def store(calibration: Mapping[str, Any], model: str | os.PathLike) -> Path:
    """
    Write calibration.json beside the weights of a run or of an exported folder.

    Raises:
        [`InputError`]: [`check_store`] refuses it, or nothing can be written.
    """
    path = check_store(calibration["models"], model)
    write_json(path, calibration)
    return path


def check_store(models: Sequence[str], model: str | os.PathLike) -> Path:
    """
    The place of calibration.json in a model.

    Raises:
        [`InputError`]: it is no folder, or the scores are of another model (by the hash of its weights) or of several.
    """
    from ..models.loading import locate  # torch, without which grades are measured

    folder = Path(locate(model))
    if not folder.is_dir():
        raise InputError(f"store_in is {model}: give a run or a folder on this machine")
    if len(models) > 1:
        raise InputError(f"the scores are of {len(models)} models: leave store_in out, and give score the calibration")
    if list(models) != [weights_sha256(model)]:
        raise InputError(f"the scores are not of {model} (its weights are others): give the model that was ranked")
    return folder / NAME


def carry(run: str | os.PathLike, folder: str | os.PathLike) -> dict[str, Any] | None:
    """
    The calibration of a run for an export of its weights, which may be rounded to float16: that moves logits by far
    less than a calibration is uncertain. `None` where the run has none, or one of other weights, as a warning says.
    """
    if (path := _beside(run)) is None:
        return None
    found = _read(path)
    if found["models"] != [weights_sha256(run)]:
        logger.warning(f"{path} is a calibration of other models: it is not exported")
        return None
    return found | {"models": [weights_sha256(folder)]}


def find(given: str | os.PathLike | None, models: Sequence[Any], manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    The calibration for a run of `score`: the file that is `given`, or the one beside the weights of its only model.
    Where it was made on another input, a warning says so.

    Args:
        models (`Sequence`): as `score` takes them.
        manifest (`Mapping`): of the run.

    Raises:
        [`InputError`]: the file cannot be read, or, where it is given, is of other models or views.
    """
    if given is None and len(models) > 1:
        return None
    path = _beside(models[0]) if given is None else Path(given)
    if path is None:
        return None
    found = _read(path)
    own = {"models": [one["weights_sha256"] for one in manifest["models"]], "views": manifest["options"]["views"]}
    differing = [name for name, value in own.items() if found[name] != value]
    if not differing:
        _warn_of_another_survey(found, manifest["input"], path)
        return found
    problem = f"{path} is a calibration of other {' and '.join(differing)}"
    if given is not None:
        raise InputError(f"{problem}: give one made from scores of these models and views")
    logger.warning(f"{problem}: p_lens stays empty")
    return None


def _beside(model: Any) -> Path | None:
    """The calibration beside the weights of a run, a folder or a model of the Hub, where there is one."""
    from transformers.utils import cached_file

    from ..models.loading import locate

    mute = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    path = cached_file(locate(model), NAME, **mute)
    return None if path is None else Path(path)


def _warn_of_another_survey(found: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Of a calibration that was neither made on the input that is `given` nor moved to another prevalence."""
    own = found.get("input")  # files of earlier versions lack it
    if own and "fitted_prevalence" not in found and own["fingerprint"] != given["fingerprint"]:
        logger.warning(
            f"{path} was made on {own['path']} ({own['cutouts']} cutouts), and p_lens is wrong here if the share of "
            "lenses is another: give lens-ssl grade that of this input as --prevalence"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = [found[name] for name in CALIBRATION if found[name] is not None]
        if not np.isfinite(numbers).all() or None in (found["a"], found["b"], found["models"], found["views"]):
            raise ValueError
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give what lens-ssl grade wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no calibration: give what lens-ssl grade wrote") from error
    return found
