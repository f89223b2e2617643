"""Score a labelled split, measure it, draw the pictures."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data.tensors import CutoutTensors, as_tensors
from ..errors import InputError, check_at_least
from ..files import alone_in, write_json
from ..inference.classifier import Classifier
from ..inference.inputs import choose_split
from ..training.run_directory import read_run
from .plots import contact_sheet, plot_roc
from .predictions import Predictions, other_columns
from .probes import probe
from .reports import describe, evaluation_folder, may_have_seen, name_if_changed, report_on, title_of


def evaluate_model(
    model: Any,
    cutouts: Any = None,
    output_dir: str | os.PathLike | None = None,
    split: str | None = None,
    prevalence: float = 1e-3,
    num_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """
    Measure a classifier on a labelled split. Writes metrics.json, predictions.parquet, roc.png and contact_sheet.png.

    Args:
        model (`str`, `os.PathLike`, `tuple` or [`Predictions`]):
            What [`predict`] takes; or a .parquet file of predictions, which needs no model; or a pretraining
            run, which is probed instead (see [`probe`]) and needs the whole dataset as `cutouts`.
        cutouts (`Dataset`, [`CutoutTensors`], `DatasetDict` or path of a saved dataset, *optional*):
            The labelled cutouts. With predictions given they are only needed for the contact sheet.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where to write; by default the [`evaluation_folder`] of the run, nowhere for another model.
        split (`str`, *optional*): which split of a whole dataset; test by default, or the only one.
        prevalence (`float`, *optional*, defaults to `1e-3`): share of lenses on the sky, for the expected purity.
        num_bootstrap (`int`, *optional*, defaults to `1000`): draws of the bootstrap over groups.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        batch_size (`int`, *optional*, defaults to `256`): cutouts per forward pass.
        device (`str` or `torch.device`, *optional*): by default the GPU where there is one.

    Returns:
        `dict`: `metrics` maps each measure to `title`, `value`, `low` and `high` (95 %), or to `value` `None` with a
        `reason`; beside it the dataset, the counts and the settings.

    Raises:
        [`InputError`]: no labels, one class only, another number of bands, or an unwritable `output_dir`.
    """
    check_at_least(0, seed=seed, num_bootstrap=num_bootstrap)
    check_at_least(1, batch_size=batch_size)
    run = Path(model) if isinstance(model, str | os.PathLike) and (Path(model) / "run.json").is_file() else None
    settings = {"prevalence": prevalence, "num_bootstrap": num_bootstrap, "seed": seed}
    if run and read_run(run)["task"] == "pretrain":
        return probe(run, cutouts, output_dir, split=split or "test", device=device, **settings)
    predictions = _predictions_of(model)
    if predictions is None and cutouts is None:
        raise InputError("cutouts are missing: give a dataset, or a file of predictions in place of the model")
    classifier = Classifier.load(model) if predictions is None else None
    chosen, info, name = (None, {}, None) if cutouts is None else choose_split(cutouts, split)
    tensors = None if chosen is None else as_tensors(chosen)
    if run and tensors is not None:
        name = name_if_changed(run, info, name, tensors)
    warnings = classifier.check(tensors, info) if classifier else []
    warnings += may_have_seen(run, info, tensors) if run else []
    if classifier:
        predictions = Predictions.of(tensors, classifier.score(tensors, batch_size, device), other_columns(chosen))
    if tensors is not None and tensors.ids != predictions.id:
        raise InputError("the predictions are not of these cutouts (the ids differ): predict again")
    if tensors is not None and tensors.labels.tolist() != predictions.label.tolist():
        raise InputError("the predictions are not of these cutouts (the labels differ): predict again")
    report = {**describe(info, name), "model": None, "warnings": warnings, **report_on(predictions, **settings)}
    if isinstance(model, str | os.PathLike):
        report["model"] = str(model)
    if output_dir is None and run:
        output_dir = evaluation_folder(run, info, name)
    if output_dir is not None:
        crop_size = classifier.crop_size if classifier else None
        _write(Path(output_dir), report, predictions, tensors, info, crop_size)
    return report


def _predictions_of(model: Any) -> Predictions | None:
    if isinstance(model, Predictions):
        return model
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".parquet":
        return Predictions.load(model)
    return None


def _write(
    output_dir: Path,
    report: dict[str, Any],
    predictions: Predictions,
    tensors: CutoutTensors | None,
    info: Mapping[str, Any],
    crop_size: int | None,
) -> None:
    title = title_of(report)
    known = predictions.labelled()
    with alone_in(output_dir):
        predictions.save(output_dir / "predictions.parquet")
        plot_roc({"classifier": known}, output_dir / "roc.png", {"classifier": report["metrics"]}, title)
        if tensors is not None:
            pixels = tensors.pixels[torch.from_numpy(predictions.label >= 0)].cpu().numpy()
            facts = info.get("bands"), crop_size, title, info.get("pixel_scale")
            contact_sheet(pixels, known, output_dir / "contact_sheet.png", *facts)
        write_json(output_dir / "metrics.json", report)  # last: it says that the evaluation is whole
