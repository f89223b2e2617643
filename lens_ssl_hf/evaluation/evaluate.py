"""Score a labelled split, measure it, draw the pictures. `predict` needs nothing but torch and transformers."""

import contextlib
import csv
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.tensors import CutoutTensors, as_tensors, center_crop, normalise, open_splits
from ..errors import InputError
from ..inference.compatibility import differences, info_of
from ..models.loading import check_classifier, check_weights, load_classifier
from ..training.run_directory import read_run, write_json

logger = logging.getLogger(__name__)

COLUMNS = ("id", "label", "group", "subclass", "score")


@dataclass
class Predictions:
    """
    What a classifier says of one split.

    Args:
        id, group, subclass (`list[str]`): per cutout.
        label (`np.ndarray` of shape `(n,)`): 1 lens, 0 non-lens, -1 unlabelled.
        score (`np.ndarray` of shape `(n,)`): P(lens), float64.
    """

    id: list[str]
    label: np.ndarray
    group: list[str]
    subclass: list[str]
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def labelled(self) -> "Predictions":
        """Without the unlabelled cutouts."""
        keep = np.flatnonzero(self.label >= 0)
        text = ([column[i] for i in keep] for column in (self.id, self.group, self.subclass))
        ids, groups, subclasses = text
        return Predictions(ids, self.label[keep], groups, subclasses, self.score[keep])

    def save(self, path: str | os.PathLike) -> Path:
        """Write .parquet, or .csv on machines without pyarrow."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        columns = {name: getattr(self, name) for name in COLUMNS}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".parquet":
                import pyarrow
                from pyarrow import parquet

                parquet.write_table(pyarrow.table(columns), partial)
            else:
                with open(partial, "w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    writer.writerow(COLUMNS)
                    writer.writerows(zip(*(getattr(c, "tolist", lambda c=c: c)() for c in columns.values())))
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise InputError(f"cannot write {path} ({error.strerror or error}): choose a writable place") from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Predictions":
        """
        Read what [`~Predictions.save`] wrote.

        Raises:
            [`InputError`]: the file is missing or damaged, or lacks a column.
        """
        path = Path(path)
        try:
            if path.suffix == ".parquet":
                from pyarrow import parquet

                columns = parquet.read_table(path).to_pydict()
            else:
                with open(path, newline="", encoding="utf-8") as file:
                    reader = csv.DictReader(file)
                    rows = list(reader)
                columns = {name: [row[name] for row in rows] for name in reader.fieldnames or ()}
            missing = [name for name in COLUMNS if name not in columns]
            if missing:
                raise InputError(f"{path} has no column {missing[0]!r}: write it with run_eval.py or Predictions.save")
            label, score = np.array(columns["label"], dtype=np.int64), np.array(columns["score"], dtype=np.float64)
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot read predictions from {path} ({error}): write them again") from error
        return cls(columns["id"], label, columns["group"], columns["subclass"], score)


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
    model: Any, cutouts: Any, batch_size: int = 256, device: str | torch.device | None = None, split: str = "test"
) -> Predictions:
    """
    P(lens) of every cutout, in float32; equal to the scores of `transformers.pipeline("image-classification")`.

    Args:
        model (`str`, `os.PathLike` or `tuple`):
            A fine-tuning run, an exported classifier's folder, a Hub id, or `(model, image_processor)`.
        cutouts (`Dataset`, [`CutoutTensors`], `DatasetDict` or path of a `.safetensors` file):
            What is scored, in display units, labelled or not; of a whole data set, its `split`.
        batch_size (`int`, *optional*, defaults to `256`): cutouts per forward pass.
        device (`str` or `torch.device`, *optional*): by default the GPU where there is one.
        split (`str`, *optional*, defaults to `"test"`): which split of a whole data set.

    Returns:
        [`Predictions`].

    Raises:
        [`InputError`]: the model cannot be loaded, or the cutouts' bands are not the model's.
    """
    classifier = Classifier.load(model)
    tensors, info, _ = choose_split(cutouts, split)
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
        worst = tensors.ids[int(np.flatnonzero(~np.isfinite(score))[0])]
        raise InputError(f"cutout {worst} gives no finite score (NaN pixels?): build the data set with load_cutouts")
    return Predictions(tensors.ids, tensors.labels.cpu().numpy(), tensors.groups, tensors.subclasses, score)


def choose_split(cutouts: Any, split: str = "test") -> tuple[CutoutTensors, dict[str, Any], str | None]:
    """
    One split as tensors, the fields of its `CutoutInfo` (empty where it does not carry them), and its name: of a whole
    data set `split`, of a split what it calls itself, `None` for bare tensors.
    """
    is_whole = isinstance(cutouts, Mapping | tuple | str | os.PathLike)
    if not is_whole:
        name = getattr(cutouts, "split", None)
        return as_tensors(cutouts), info_of(cutouts), None if name is None else str(name)
    splits, info = open_splits(cutouts)
    if split not in splits:
        raise InputError(f"the data set has no {split} split (it has {', '.join(splits)}): choose one of them")
    return as_tensors(splits[split]), info, split


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
    split: str = "test",
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
        cutouts (`Dataset`, [`CutoutTensors`], `DatasetDict` or path of a `.safetensors` file, *optional*):
            The labelled cutouts. With predictions given they are only needed for the contact sheet.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where to write; by default `evaluation/` of the run, nowhere for another model.
        split (`str`, *optional*, defaults to `"test"`): which split of a whole data set.
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
    output_dir = Path(output_dir) if output_dir is not None else run / "evaluation" if run else None
    settings = {"prevalence": prevalence, "num_bootstrap": num_bootstrap, "seed": seed}
    if run and read_run(run)["task"] == "pretrain":
        from .probes import probe

        return probe(run, cutouts, output_dir, split=split, device=device, **settings)
    predictions, classifier = _predictions_of(model), None
    if predictions is None:
        if cutouts is None:
            raise InputError("cutouts are missing: give a data set, or a file of predictions in place of the model")
        classifier = Classifier.load(model)
    tensors, info, name = (None, {}, None) if cutouts is None else choose_split(cutouts, split)
    if predictions is None:
        predictions = predict(classifier, ({split: tensors}, info), batch_size, device, split)
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
    if output_dir is not None:
        crop_size = classifier.crop_size if classifier else None
        _write(output_dir, report, predictions, tensors, info, crop_size)
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
        raise InputError("none of the cutouts has a label: evaluation needs labelled ones, predict does not")
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

    predictions.save(output_dir / "predictions.parquet")
    title = title_of(report)
    known = predictions.labelled()
    plot_roc({"classifier": known}, output_dir / "roc.png", {"classifier": report["metrics"]}, title)
    if tensors is not None:
        pixels = tensors.pixels[torch.from_numpy(predictions.label >= 0)].cpu().numpy()
        contact_sheet(pixels, known, output_dir / "contact_sheet.png", info.get("bands"), crop_size, title)
    write_json(output_dir / "metrics.json", report)  # last: it says that the evaluation is whole
