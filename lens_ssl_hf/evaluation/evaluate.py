"""Score a labelled split, measure it, draw the pictures. `predict` needs nothing but torch and transformers."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.tensors import CutoutTensors, as_tensors, center_crop, digest, normalise, open_splits
from ..errors import InputError
from ..files import alone_in, write_json
from ..inference.compatibility import differences, info_of
from ..models.loading import check_classifier, check_weights, load_classifier
from ..training.run_directory import read_run
from .predictions import Predictions, other_columns

logger = logging.getLogger(__name__)


@dataclass
class Classifier:
    """
    A stock ViT classifier and what its image processor does, so that batches are prepared in torch alone.

    Args:
        model (`ViTForImageClassification`): float32, label 1 is the lens.
        crop_size (`int`): side of the centre crop.
        mean, std (`list[float]`): per band, after division by 255.
        name (`str`): how to call it in messages.
    """

    model: torch.nn.Module
    crop_size: int
    mean: list[float]
    std: list[float]
    name: str

    @classmethod
    def load(cls, source: Any) -> "Classifier":
        """From a fine-tuning run, an exported folder, a Hub id, or `(model, image_processor)`."""
        if isinstance(source, Classifier):
            return source
        if isinstance(source, tuple):
            model, processor = source
            check_weights(model, "the model")
            return cls._make(model, processor.to_dict(), "the model")
        if not isinstance(source, str | os.PathLike):
            raise InputError("model must be a run, a folder, a Hub id, or a tuple (model, image processor)")
        return cls._make(*load_classifier(source), str(source))

    @classmethod
    def _make(cls, model: torch.nn.Module, processor: Mapping[str, Any], name: str) -> "Classifier":
        return cls(model.float().eval(), *check_classifier(model.config, processor, name), name)

    @property
    def num_bands(self) -> int:
        return self.model.config.num_channels

    @property
    def cutouts(self) -> dict[str, Any]:
        """Bands, stretch, pixel scale and zero point of the cutouts that it was trained on; empty where unknown."""
        return getattr(self.model.config, "cutouts", None) or {}


@torch.no_grad()
def predict(
    model: Any,
    cutouts: Any,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    split: str | None = None,
) -> Predictions:
    """
    P(lens) of every cutout, in float32; equal to the scores of `transformers.pipeline("image-classification")`.

    Args:
        model (`str`, `os.PathLike` or `tuple`):
            A fine-tuning run, an exported classifier's folder, a Hub id, or `(model, image_processor)`.
        cutouts (`Dataset`, [`CutoutTensors`], `DatasetDict` or path of a saved dataset):
            What is scored, in display units, labelled or not; of a whole data set, its `split`.
        batch_size (`int`, *optional*, defaults to `256`): cutouts per forward pass.
        device (`str` or `torch.device`, *optional*): by default the GPU where there is one.
        split (`str`, *optional*): which split of a whole data set; test by default, or the only one.

    Returns:
        [`Predictions`], with the further columns of a `Dataset`.

    Raises:
        [`InputError`]: the model cannot be loaded, or the cutouts' bands are not the model's.
    """
    classifier = Classifier.load(model)
    chosen, info, _ = choose_split(cutouts, split)
    tensors, columns = as_tensors(chosen), other_columns(chosen)
    for warning in compatibility(classifier.cutouts, classifier.num_bands, tensors, info, classifier.name):
        logger.warning(warning)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = classifier.model.to(device)
    scores = []
    for pixels in tensors.pixels.split(batch_size):
        images = normalise(center_crop(pixels.to(device), classifier.crop_size), classifier.mean, classifier.std)
        # In float64, so that confident scores do not all become 1.
        scores.append(network(images).logits.double().softmax(dim=-1)[:, 1].cpu())
    score = torch.cat(scores).numpy()
    if not np.isfinite(score).all():
        first = int(np.flatnonzero(~np.isfinite(score))[0])
        one = tensors.ids[first]
        if tensors.pixels[first].isfinite().all():
            raise InputError(f"{classifier.name} gives no finite score of cutout {one}: train or export it again")
        raise InputError(f"cutout {one} has NaN or infinite pixels: build the data set with load_cutouts")
    text = tensors.groups, tensors.subclasses
    return Predictions(tensors.ids, tensors.labels.cpu().numpy(), *text, score, columns)


def choose_split(cutouts: Any, split: str | None = None) -> tuple[Any, dict[str, Any], str | None]:
    """
    One split as it is, for [`as_tensors`]; the fields of its `CutoutInfo` (empty where it does not carry them); and
    its name: of a whole data set `split`, by default test or the only one; of a split what it calls itself; of a part
    of a split one such as `test_10_of_40_0f3c9a21`; `None` for bare tensors.

    Raises:
        [`InputError`]: the data set has no such split.
    """
    is_whole = isinstance(cutouts, Mapping | tuple | str | os.PathLike)
    if not is_whole:
        name = getattr(cutouts, "split", None)
        return cutouts, info_of(cutouts), None if name is None else _name_of(cutouts, str(name))
    splits, info = open_splits(cutouts)
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "test"
    if split not in splits:
        raise InputError(f"the data set has no {split} split (it has {', '.join(splits)}): choose one of them")
    return splits[split], info, _name_of(splits[split], split)


def _name_of(chosen: Any, split: str) -> str:
    """`split`, or a name of its own where `select` or `filter` left a part, which still calls itself that split."""
    whole = (getattr(getattr(chosen, "info", None), "splits", None) or {}).get(split)
    if whole is None or whole.num_examples == len(chosen):
        return split
    ids = [str(one) for one in chosen["id"]] if "id" in chosen.column_names else []
    return f"{split}_{len(chosen)}_of_{whole.num_examples}_{digest(ids)[:8]}"


def evaluation_folder(run: str | os.PathLike, info: Mapping[str, Any], split: str | None) -> Path:
    """
    Where the evaluation of a run goes: `evaluation/` for the test split of the dataset that it was trained on. Other
    datasets, splits and parts of a split have a folder of their own, such as `evaluation-other_survey-0f3c9a21`, so
    that the card of the run goes on to speak of its own.
    """
    parts, fingerprint = ["evaluation"], str(info.get("fingerprint") or "")
    if not fingerprint or fingerprint != read_run(run)["data"].get("fingerprint"):
        parts += [re.sub(r"[^\w.-]+", "_", str(info.get("name") or "unnamed")), fingerprint[:8]]
    parts += [split or ""] if split != "test" else []
    return Path(run) / "-".join(part for part in parts if part)


def compatibility(
    model: Mapping[str, Any], num_bands: int, tensors: CutoutTensors, info: Mapping[str, Any], name: str
) -> list[str]:
    """
    Sentences on what differs between the cutouts that a model was trained on and those it is given.

    Args:
        model (`Mapping`): `config.cutouts`.
        num_bands (`int`): of the model.
        tensors ([`CutoutTensors`]), info (`Mapping`): the cutouts, and the fields of their `CutoutInfo`.
        name (`str`): how to call the model.

    Raises:
        [`InputError`]: another number of bands, or the same bands in another order.
    """
    if not len(tensors):
        raise InputError("the split holds no cutout: choose another one")
    if tensors.pixels.shape[1] != num_bands:
        found = tensors.pixels.shape[1]
        raise InputError(f"the cutouts have {found} bands but {name} takes {num_bands}: choose --bands")
    return differences(model, info, name)


def evaluate(
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
            What [`predict`] takes; or a file of predictions (.parquet, .csv), which needs no model; or a pretraining
            run, which is probed instead (see [`probe`]) and needs the whole data set as `cutouts`.
        cutouts (`Dataset`, [`CutoutTensors`], `DatasetDict` or path of a saved dataset, *optional*):
            The labelled cutouts. With predictions given they are only needed for the contact sheet.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where to write; by default the [`evaluation_folder`] of the run, nowhere for another model.
        split (`str`, *optional*): which split of a whole data set; test by default, or the only one.
        prevalence (`float`, *optional*, defaults to `1e-3`): share of lenses on the sky, for the expected purity.
        num_bootstrap (`int`, *optional*, defaults to `1000`): draws of the bootstrap over groups.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        batch_size (`int`, *optional*, defaults to `256`): cutouts per forward pass.
        device (`str` or `torch.device`, *optional*): by default the GPU where there is one.

    Returns:
        `dict`: `metrics` maps each measure to `title`, `value`, `low` and `high` (95 %), or to `value` `None` with a
        `reason`; beside it the data set, the counts and the settings.

    Raises:
        [`InputError`]: no labels, one class only, another number of bands, or an unwritable `output_dir`.
    """
    run = Path(model) if isinstance(model, str | os.PathLike) and (Path(model) / "run.json").is_file() else None
    settings = {"prevalence": prevalence, "num_bootstrap": num_bootstrap, "seed": seed}
    if run and read_run(run)["task"] == "pretrain":
        from .probes import probe

        return probe(run, cutouts, output_dir, split=split or "test", device=device, **settings)
    predictions, classifier = _predictions_of(model), None
    if predictions is None:
        if cutouts is None:
            raise InputError("cutouts are missing: give a data set, or a file of predictions in place of the model")
        classifier = Classifier.load(model)
    chosen, info, name = (None, {}, None) if cutouts is None else choose_split(cutouts, split)
    tensors = None if chosen is None else as_tensors(chosen)
    if predictions is None:
        predictions = predict(classifier, ({"chosen": tensors}, info), batch_size, device)
        predictions.columns = other_columns(chosen)
    if tensors is not None and tensors.ids != predictions.id:
        raise InputError("the predictions are not of these cutouts (the ids differ): predict again")
    report = {
        **describe(info, name),
        "model": str(model) if isinstance(model, str | os.PathLike) else None,
        "warnings": compatibility(classifier.cutouts, classifier.num_bands, tensors, info, classifier.name)
        if classifier
        else [],
        **report_on(predictions, **settings),
    }
    if output_dir is None and run:
        output_dir = evaluation_folder(run, info, name)
    if output_dir is not None:
        crop_size = classifier.crop_size if classifier else None
        _write(Path(output_dir), report, predictions, tensors, info, crop_size)
    return report


def _predictions_of(model: Any) -> Predictions | None:
    if isinstance(model, Predictions):
        return model
    if isinstance(model, str | os.PathLike) and Path(model).suffix in (".parquet", ".csv"):
        return Predictions.load(model)
    return None


def describe(info: Mapping[str, Any], split: str | None) -> dict[str, Any]:
    """What a report says of its data set."""
    return {
        "dataset": info.get("name"),
        "simulated": info.get("simulated"),
        "fingerprint": info.get("fingerprint"),
        "split": split,
    }


def title_of(report: Mapping[str, Any]) -> str:
    """The line above pictures: data set and split where they are known, and that it is simulated where it is."""
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
    try:
        from .metrics import measure, threshold_at_fpr
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: save the predictions as .csv here and evaluate that file elsewhere"
        ) from error
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


def _write(
    output_dir: Path,
    report: dict[str, Any],
    predictions: Predictions,
    tensors: CutoutTensors | None,
    info: Mapping[str, Any],
    crop_size: int | None,
) -> None:
    from .plots import contact_sheet, plot_roc

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
