"""A run directory -> a folder that plain transformers loads: stock weights, image processor, card and pictures."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel
from transformers.utils import SAFE_WEIGHTS_NAME

from ..data.processor_config import save_processor
from ..errors import InputError
from ..evaluation.plots import plot_curves
from ..files import replacing, write_json
from ..models.backbones import load_encoder
from ..models.loading import load_classifier
from ..training.run_directory import RECIPE, read_run
from .card import HUB_ID, CardFacts, read_evaluation, with_history, write_card
from .clean import without_local_paths

PICTURES = ("evaluation/roc.png", "evaluation/contact_sheet.png", "curves.png")
_FILES = r"(preprocessor_)?config\.json|((lens_)?image_processor|flux|cnn)\.py|README\.md|"
CALIBRATION = "calibration.json"
_FILES += rf"{re.escape(CALIBRATION)}|model.*\.safetensors(\.index\.json)?|"
_FILES += "|".join(re.escape(Path(picture).name) for picture in PICTURES)
METRICS, HEADS = "metrics.json", "pretraining"


def export(
    run: str | os.PathLike,
    folder: str | os.PathLike,
    base_model: str | None = None,
    name: str | None = None,
    license: str | None = None,
    with_heads: bool = False,
    half: bool = False,
) -> Path:
    """
    Export a run as a stock transformers model that loads as float32: a pretraining run as a `ViTModel` whose
    `pooler_output` is the [CLS] feature, a fine-tuning run as a `ViTForImageClassification` (of another `init` as what
    transformers has for its type), or as a [`LensCnnForImageClassification`] with its code beside it.

    Args:
        run (`str` or `os.PathLike`): a finished run directory.
        folder (`str` or `os.PathLike`):
            The folder to write; an earlier export there is replaced.
        base_model (`str`, *optional*):
            Hub id of the backbone that a classifier was fine-tuned from, for the card's metadata; by default `--init`
            of the run where that was a Hub id.
        name (`str`, *optional*): what the card loads the model by, such as its Hub id; by default the folder's name.
        license (`str`, *optional*):
            The Hub's name of the licence of the weights; by default `"apache-2.0"`, and none where they began as those
            of a model that this package did not make, or may not have made, whose licence holds.
        with_heads (`bool`, *optional*, defaults to `False`):
            Also write the SSL checkpoint of a pretraining run, with its heads, to `pretraining/`.
        half (`bool`, *optional*, defaults to `False`):
            Store the weights as float16, in half the space. Scores change by less than 1e-3; with bfloat16 by several.

    Returns:
        `Path`: the folder, with weights, config.json, preprocessor_config.json (for other than three bands also
        image_processor.py and flux.py, for a CNN cnn.py), README.md, pictures, recipe.json (the run's run.json) and,
        where there are any, metrics.json of its evaluation on its own dataset and the calibration.json of its scores;
        the last three without local paths.

    Raises:
        [`InputError`]: the run has not finished, or `folder` holds something else or cannot be written.
    """
    run, folder = Path(run), Path(folder)
    facts = _check(run, folder, base_model, with_heads)
    if facts["task"] == "pretrain":
        model = backbone_of(run)
        model.config.init_method = facts["method"]  # for the records of what is fine-tuned from it
    else:
        model, _ = load_classifier(run)
    with replace_folder(folder) as partial:
        model.save_pretrained(partial)
        if half:
            _halve(partial / SAFE_WEIGHTS_NAME)
        save_processor(partial, facts["data"], facts["crop_size"], facts["image_mean"], facts["image_std"])
        write_json(partial / RECIPE, without_local_paths(with_history(facts)))
        _add_calibration(run, partial)
        _add_evaluation(run, partial)
        if with_heads:
            shutil.copytree(run / "model", partial / HEADS)
        card = CardFacts.from_run(run, name or folder.name, base_model, license=license, has_heads=with_heads)
        card.pictures = [file.name for file in partial.glob("*.png")]
        write_card(card, partial)
    return folder


def _halve(file: Path) -> None:
    """Store weights as float16; the `dtype` of config.json stays float32, as which transformers loads them."""
    weights = {name: value.half() for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def _check(run: Path, folder: Path, base_model: str | None, with_heads: bool) -> dict[str, Any]:
    """The run.json of what can be exported so."""
    facts = read_run(run)
    if not (run / "model" / "config.json").is_file():
        raise InputError(f"the {facts['task']} run {run} has no final model: go on with it with --resume auto")
    if base_model is not None and not re.fullmatch(HUB_ID, base_model):
        raise InputError(f"base_model {base_model!r} is no id of the Hub: give one such as me/lens-dino-vits8")
    if with_heads and facts["task"] != "pretrain":
        raise InputError(f"{run} is a fine-tuning run, without SSL heads: leave them out, or give a pretraining run")
    if folder.exists() and not _may_be_replaced(folder):
        raise InputError(f"{folder} holds something else than an earlier export: choose another folder")
    return facts


def _add_calibration(run: Path, folder: Path) -> None:
    """The calibration of the run's scores, for the weights in the folder."""
    if (run / "model" / CALIBRATION).is_file():
        from ..survey import calibration  # with it all of the survey, which others need not wait for

        if (found := calibration.carry(run, folder)) is not None:
            write_json(folder / CALIBRATION, without_local_paths(found))


def _add_evaluation(run: Path, folder: Path) -> None:
    """The numbers and pictures of a run's evaluation on its own dataset, and its training curves."""
    evaluation = read_evaluation(run)
    is_foreign = evaluation is None and (run / "evaluation" / METRICS).is_file()  # of another dataset
    for picture in PICTURES:
        if (run / picture).is_file() and not (is_foreign and picture.startswith("evaluation/")):
            shutil.copy(run / picture, folder)
    if (run / "metrics.jsonl").is_file():
        plot_curves(run, folder / "curves.png")  # the run may be read-only
    if evaluation is not None:
        write_json(folder / METRICS, evaluation)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """
    A new folder, to be filled in the block, which takes the place of `folder` where the block ends well and vanishes
    where it does not. Where `folder` is a link, it takes the place of what the link points to.

    Raises:
        [`InputError`]: `folder` cannot be written, or the disk is full.
    """
    try:
        with replacing(Path(os.path.realpath(folder))) as new:
            new.mkdir()
            yield new
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not of the file system
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {folder} ({reason}): make room, or choose another folder") from error


def backbone_of(run: str | os.PathLike) -> ViTModel:
    """
    The encoder of a pretraining run (the teacher's for DINO and iBOT) as a stock `ViTModel` without mask token.

    Its pooler is the identity: `AutoModel` builds a pooler whether or not the weights hold one, and a random one would
    be mistaken for features.
    """
    encoder = load_encoder(run)
    config = ViTConfig(**{**encoder.config.to_dict(), "pooler_act": "linear"})
    config.pooler_output_size = config.hidden_size
    model = ViTModel(config).float().eval()
    state = {name: value for name, value in encoder.state_dict().items() if name != "embeddings.mask_token"}
    state["pooler.dense.weight"] = torch.eye(config.hidden_size)
    state["pooler.dense.bias"] = torch.zeros(config.hidden_size)
    model.load_state_dict(state)
    return model


def is_of_export(path: str) -> bool:
    """Whether a path, relative to the folder of an export, is that of one of its files."""
    return bool(re.fullmatch(rf"({HEADS}/)?({_FILES})|{RECIPE}|{METRICS}", path))


def _may_be_replaced(folder: Path) -> bool:
    """Whether `folder` is empty, or an export of ours with nothing else in it."""
    if not folder.is_dir():
        return False
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != HEADS]
    if not names:
        return True
    if not {"config.json", "README.md"} <= set(names) or not all(map(is_of_export, names)):
        return False
    return '"cutouts"' in (folder / "config.json").read_text()
