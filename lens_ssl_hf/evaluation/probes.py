"""How much a frozen backbone knows: a linear classifier and nearest neighbours on its [CLS] features."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..data.tensors import CutoutTensors, center_crop, labelled_splits, normalise, open_splits, splits_and_info
from ..errors import InputError
from ..files import alone_in, write_json
from ..inference.compatibility import check_tensors
from ..inference.inputs import choose_split
from ..models.backbones import extract_cls, load_encoder
from ..training.monitors import knn_scores, roc_auc
from ..training.run_directory import read_run
from .plots import plot_roc
from .predictions import Predictions
from .reports import describe, evaluation_folder, may_have_seen, report_on, title_of

logger = logging.getLogger(__name__)

PROBE_NAMES = {
    "linear": "linear probe",
    "linear_patches": "linear probe, [CLS] and mean patch",
    "knn": "nearest neighbours",
}
REGULARISATIONS = tuple(10.0**power for power in range(-4, 3))


def extract_features(
    encoder: torch.nn.Module,
    tensors: CutoutTensors,
    image_mean: list[float],
    image_std: list[float],
    batch_size: int = 256,
    device: str | torch.device | None = None,
    mean_patch: bool = False,
) -> torch.Tensor:
    """
    [CLS] features of a stock `ViTModel`, in float32 on the CPU.

    Args:
        encoder (`ViTModel`): from [`load_encoder`] or an export.
        tensors ([`CutoutTensors`]): cutouts in display units; the centre is cropped to the encoder's image size.
        image_mean, image_std (`list[float]`): per band, after division by 255.
        mean_patch (`bool`, *optional*, defaults to `False`): the mean of the patch tokens as well.

    Returns:
        `torch.Tensor` of shape `(n, hidden_size)`, or `(n, 2 * hidden_size)` with `mean_patch`.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = encoder.to(device).float()
    features = []
    for pixels in tensors.pixels.split(batch_size):
        crops = center_crop(pixels.to(device), encoder.config.image_size)
        features.append(extract_cls(encoder, normalise(crops, image_mean, image_std), batch_size, mean_patch).cpu())
    return torch.cat(features)


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    features: np.ndarray,
) -> tuple[np.ndarray, float]:
    """
    Logistic regression on standardised features; its regularisation is the one of the best validation AUC.

    Args:
        train, validation, features (`np.ndarray` of shape `(n, hidden_size)`): to fit, to choose C, to score.
        train_labels, validation_labels (`np.ndarray` of shape `(n,)`): 1 lens, 0 non-lens.

    Returns:
        `tuple[np.ndarray, float]`: P(lens) `(n,)` of `features`, and the C that was chosen.
    """
    best = (-1.0, None, 0.0)
    for strength in REGULARISATIONS:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        with warnings.catch_warnings():  # the weakest need not converge: stopping early is a regularisation too
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train, train_labels)
        scores = classifier.predict_proba(validation)[:, 1]
        auc = roc_auc(torch.as_tensor(validation_labels), torch.from_numpy(scores))
        if auc > best[0]:
            best = (auc, classifier, strength)
    return best[1].predict_proba(features)[:, 1], best[2]


def radial_profiles(tensors: CutoutTensors, crop_size: int) -> np.ndarray:
    """
    Mean display units in rings of one pixel around the centre of the central crop, band by band.

    Returns:
        `np.ndarray` of shape `(n, bands * crop_size // 2)`.
    """
    pixels = center_crop(tensors.pixels, crop_size).cpu().double().numpy()
    axis = np.arange(crop_size) - (crop_size - 1) / 2
    radius = np.hypot(axis[:, None], axis).astype(int)
    return np.concatenate([pixels[:, :, radius == ring].mean(axis=2) for ring in range(crop_size // 2)], axis=1)


def probe(
    run: str | os.PathLike,
    cutouts: Any,
    output_dir: str | os.PathLike | None = None,
    split: str = "test",
    device: str | torch.device | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """
    Measure a pretraining run by three probes, fitted on the labelled part of `train` (C on `validation`): a linear
    one on [CLS], one on [CLS] and the mean of the patch tokens, and nearest neighbours of [CLS].

    Args:
        run (`str` or `os.PathLike`): a pretraining run.
        cutouts (`DatasetDict` or path of a saved dataset): with train, validation and `split`, which is a third one.
        output_dir (`str` or `os.PathLike`, *optional*): where to write, by default the [`evaluation_folder`].
        settings: `prevalence`, `num_bootstrap` and `seed`, see [`evaluate_model`].

    Returns:
        `dict`: `probes` maps `linear`, `linear_patches` and `knn` to a report as [`evaluate_model`] returns it.

    Raises:
        [`InputError`]: the run has not finished, a split or its labels are missing, or a feature is NaN or infinite.
    """
    if split in ("train", "validation"):
        raise InputError(
            f"split is {split}, but probes are fitted on train and choose C on validation: give a third one, such as "
            "test"
        )
    encoder = load_encoder(run)
    names = ("train", "validation", split)
    cutouts = open_splits(cutouts, split, "train", "validation")  # the report is on the first
    splits, info = splits_and_info(cutouts, *names)
    labelled = {name: one.select((one.labels >= 0).nonzero().flatten()) for name, one in splits.items()}
    labelled_splits(labelled, *names)
    split_name = choose_split(cutouts, split)[2]
    known, test = getattr(encoder.config, "cutouts", None) or {}, labelled[split]
    warnings = check_tensors(known, encoder.config.num_channels, test, info, str(run))
    warnings += may_have_seen(run, info, test)
    scores, strengths = _score(run, encoder, {name: labelled[name] for name in names}, device)
    predictions = {name: Predictions.of(test, scores[name]) for name in PROBE_NAMES}
    reports = {name: report_on(prediction, **settings) for name, prediction in predictions.items()}
    for name, strength in strengths.items():
        reports[name]["C"] = strength
    report = {**describe(info, split_name), "model": str(run), "warnings": warnings, "probes": reports}
    output_dir = evaluation_folder(run, info, split_name) if output_dir is None else Path(output_dir)
    _write(output_dir, report, predictions)
    return report


def _score(
    run: str | os.PathLike, encoder: torch.nn.Module, splits: dict[str, CutoutTensors], device: Any
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """P(lens) of the last of train, validation and test by each probe, and the C of the linear ones."""
    facts, tokens = read_run(run), []
    for name, one in splits.items():
        statistics = facts["image_mean"], facts["image_std"]
        tokens.append(extract_features(encoder, one, *statistics, device=device, mean_patch=True))
        if not tokens[-1].isfinite().all():
            raise InputError(
                f"the backbone of {run} gives NaN or infinite features on {name}: pretrain again in another "
                "output_dir with a lower learning_rate or with precision fp32"
            )
    cls = [both[:, : encoder.config.hidden_size] for both in tokens]
    labels = [one.labels.cpu() for one in splits.values()]
    scores, strengths = {}, {}
    for name, (train, validation, test) in (("linear", cls), ("linear_patches", tokens)):
        fitted = (train, labels[0], validation, labels[1], test)
        scores[name], strengths[name] = linear_probe(*(tensor.numpy() for tensor in fitted))
    scores["knn"] = knn_scores(cls[0], labels[0], cls[2]).double().clamp(0, 1).numpy()
    return scores, strengths


def _write(output_dir: Path, report: dict[str, Any], predictions: dict[str, Predictions]) -> None:
    metrics = {PROBE_NAMES[name]: found["metrics"] for name, found in report["probes"].items()}
    curves = {PROBE_NAMES[name]: one for name, one in predictions.items()}
    with alone_in(output_dir):
        for name, prediction in predictions.items():
            prediction.save(output_dir / f"predictions_{name}.parquet")
        plot_roc(curves, output_dir / "roc.png", metrics, title_of(report))
        write_json(output_dir / "metrics.json", report)
