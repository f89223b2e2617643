"""Fine-tuning a ViT into a lens / non-lens classifier with few labels, from a pretraining or from scratch."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedModel

from ..data.listing.labels import LABELS
from ..data.processor_config import save_processor
from ..data.samplers import ResidentImages
from ..data.tensors import (
    CutoutTensors,
    center_crop,
    channel_statistics,
    checksum,
    ids_of,
    labelled_splits,
    normalise,
    open_splits,
    pixel_digests,
    split_checksum,
    splits_and_info,
)
from ..data.views import Counter, Views
from ..errors import InputError, check_at_least
from ..models import LensCnnConfig, backbone_config
from ..models.backbones import backbone_name, check_bands, check_patches, load_encoder_for
from ..models.heads import over_processes
from ..models.loading import load_classifier, read_config
from .accelerator import make_accelerator
from .arguments import FinetuneArguments, make_arguments
from .monitors import accuracy, roc_auc
from .run_directory import origin, pixel_hashes, read_run, read_trained_on
from .schedules import cosine
from .trainer import Batch, Number, Task, train

logger = logging.getLogger(__name__)


def finetune(
    cutouts: Any,
    output_dir: str | os.PathLike,
    init: str | os.PathLike = "scratch",
    labels: int | str = "all",
    **settings: Any,
) -> Path:
    """
    Fine-tune a classifier on a stratified subset of `train`; the weights of the best validation AUC are kept.

    Args:
        cutouts (`DatasetDict`, or path of a directory): from [`load_cutouts`] or [`save_cutouts`].
        output_dir (`str` or `os.PathLike`): the run directory to write.
        init (`str` or `os.PathLike`, *optional*, defaults to `"scratch"`):
            A pretraining run, an exported folder, the Hub id of a ViT, DINOv2 or I-JEPA, or `"scratch"`; of a
            fine-tuning all but its last layer is taken.
        labels (`int` or `str`, *optional*, defaults to `"all"`): how many labelled cutouts to train on.
        settings: fields of [`FinetuneArguments`].

    Returns:
        `Path`: the run directory. Its `model/` is a stock `ViTForImageClassification`, or what transformers has for
            the type of `init`, with its image processor.

    Raises:
        [`InputError`]: a setting, the data, `init` or the output directory cannot be used.
    """
    given = {"init": init, "labels": str(labels), "output_dir": output_dir}
    arguments = make_arguments(FinetuneArguments, {**settings, **given})
    accelerator = make_accelerator(arguments.precision, arguments.deterministic)
    cutouts = open_splits(cutouts, "train", "validation")
    train_split, subset, validation, info = _open_splits(cutouts, arguments)
    subset, targets, extra = _add_graded(subset, *cutouts, arguments)
    batch_size = _batch_size(min(arguments.batch_size, len(subset)), accelerator)
    set_seed(arguments.seed)
    model = over_processes(_make_classifier(arguments, info, train_split, batch_size))
    facts = {"task": "finetune", "method": None, "data": info, "batch_size": batch_size}
    facts |= {"backbone": "cnn" if isinstance(model.config, LensCnnConfig) else backbone_name(model.config)}
    facts |= {"num_labels": len(subset), "num_train_images": len(subset)}
    facts |= {"num_lenses": int((subset.labels == 1).sum())}
    facts |= {"num_parameters": sum(p.numel() for p in model.parameters())}
    facts |= {"model_class": type(model).__name__} | extra | origin(arguments.init, model.base_model)
    model.config.init_method = facts["init_method"]  # for the records of what is fine-tuned from its export
    own, chosen_on = pixel_hashes(subset), pixel_hashes(validation)
    labels = {"labels": targets, "validation_labels": validation.labels}
    facts["content"] = checksum(f"{own.tobytes().hex()} {chosen_on.tobytes().hex()}", labels)
    if "test" in cutouts[0]:
        facts["test_content"] = split_checksum(cutouts[0]["test"])
    if count := int(np.isin(chosen_on, own).sum()):
        logger.warning(
            "%d of %d validation cutouts are trained on, too, and choose the step badly: leave them out of train",
            count,
            len(chosen_on),
        )
    trained_on = own if arguments.init == "scratch" else np.union1d(own, read_trained_on(arguments.init))
    task = Finetuning(model, subset, targets, validation, batch_size, arguments, accelerator.device)
    return train(task, facts, accelerator, trained_on)


def _open_splits(
    cutouts: Any, arguments: FinetuneArguments
) -> tuple[CutoutTensors, CutoutTensors, CutoutTensors, dict]:
    """The training split, the subset of it to train on, the validation split, and the fields of `CutoutInfo`."""
    splits, info = splits_and_info(cutouts, "train", "validation")
    train_split, validation = labelled_splits(splits, "train", "validation")
    center_crop(train_split.pixels[:1], arguments.crop_size)  # refuses cutouts that are too small
    subset_seed = arguments.seed if arguments.subset_seed is None else arguments.subset_seed
    subset = train_split.select(label_subset(train_split.labels, arguments.labels, subset_seed))
    return train_split, subset, validation, info


def _add_graded(
    subset: CutoutTensors, splits: Mapping[str, Any], info: dict, arguments: FinetuneArguments
) -> tuple[CutoutTensors, torch.Tensor, dict[str, int]]:
    """
    The cutouts to train on with the graded ones behind them; their labels `(n,)`, or P(nonlens) and P(lens) `(n, 2)`
    where graders may disagree; and facts for run.json.
    """
    if not arguments.extra_labels:
        return subset, subset.labels, {}
    from ..survey.graded_cutouts import graded_cutouts  # with it all of the survey, which others need not wait for

    held_out = [split for name, split in splits.items() if name not in ("train", "unlabelled")]
    names = {one for split in held_out for one in ids_of(split)}
    graded, share = graded_cutouts(arguments.extra_labels, arguments.extra_scores, info, names)
    subset, graded, share = _each_once(subset, graded, share, held_out)
    lens = torch.cat([subset.labels, share])
    texts = (getattr(subset, name) + getattr(graded, name) for name in ("ids", "groups", "subclasses"))
    together = CutoutTensors(
        torch.cat([subset.pixels, graded.pixels]), torch.cat([subset.labels, graded.labels]), *texts
    )
    soft = int(((share > 0) & (share < 1)).sum())
    logger.warning(
        "%d graded cutouts, %d with soft labels, join the %d of the dataset", len(graded), soft, len(subset)
    )
    fingerprint = checksum(repr((graded.ids, share.tolist())), {"pixels": graded.pixels})
    return together, torch.stack([1 - lens, lens], 1), {"num_extra": len(graded), "extra_fingerprint": fingerprint}


def _each_once(
    subset: CutoutTensors, graded: CutoutTensors, share: torch.Tensor, held_out: list[Any]
) -> tuple[CutoutTensors, CutoutTensors, torch.Tensor]:
    """
    The labels without what was graded, too; and the graded cutouts without those that are held out. They are compared
    by their pixels, since the scores may have been made of the same files under other names.
    """
    known = {one for split in held_out for one in pixel_digests(split)}
    digests = pixel_digests(graded)
    kept = [i for i, one in enumerate(digests) if one not in known]
    if len(kept) < len(graded):
        logger.warning(
            "%d of %d graded cutouts are in validation or test: left out", len(graded) - len(kept), len(graded)
        )
    if not kept:
        raise InputError("all graded cutouts are in the validation or test split: leave extra_labels out")
    graded, share = graded.select(torch.tensor(kept)), share[kept]
    grades = {digests[i] for i in kept}
    others = [i for i, one in enumerate(pixel_digests(subset)) if one not in grades]
    if len(others) < len(subset):
        logger.warning(
            "%d of %d labels are of graded cutouts: the grades count", len(subset) - len(others), len(subset)
        )
    return subset.select(torch.tensor(others, dtype=torch.long)), graded, share


def _batch_size(wanted: int, accelerator: Accelerator) -> int:
    """`wanted`, or the next smaller number that the processes can share equally."""
    processes = accelerator.num_processes
    shared = wanted - wanted % processes
    if not shared:
        raise InputError(f"{processes} processes cannot share a batch of {wanted}: start fewer, or give more labels")
    if shared != wanted:
        accelerator.print(f"batches of {shared} cutouts instead of {wanted}, so that {processes} processes share them")
    return shared


def label_subset(labels: torch.Tensor, number: str, seed: int) -> torch.Tensor:
    """
    Indices of a stratified subset: nested (a smaller one is part of a larger one of the same seed) and seeded.

    Args:
        labels (`torch.Tensor` of shape `(n,)`): 0 or 1.
        number (`str`): size of the subset, or `"all"`.

    Returns:
        `torch.LongTensor`: sorted indices.
    """
    if number == "all":
        return torch.arange(len(labels))
    if int(number) > len(labels):
        raise InputError(
            f"labels is {number} but the training split has {len(labels)} labelled cutouts: ask for fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    lenses, nonlenses = ((labels == value).nonzero().flatten() for value in (1, 0))
    lenses = lenses[torch.randperm(len(lenses), generator=generator)]
    nonlenses = nonlenses[torch.randperm(len(nonlenses), generator=generator)]
    num_lenses = round(int(number) * len(lenses) / len(labels))
    if not 0 < num_lenses < int(number):
        raise InputError(f"{number} labels hold no example of one of the classes: ask for more")
    return torch.cat([lenses[:num_lenses], nonlenses[: int(number) - num_lenses]]).sort().values


def _make_classifier(
    arguments: FinetuneArguments, info: dict, train_split: CutoutTensors, batch_size: int
) -> PreTrainedModel:
    """The classifier; `config.cutouts` holds the means and standard deviations that its inputs are normalised with."""
    num_bands = len(info["bands"])
    encoder, known = None, {}
    if arguments.backbone == "cnn":
        config = LensCnnConfig(image_size=arguments.crop_size, num_channels=num_bands)
    elif arguments.init == "scratch":
        config = backbone_config(arguments.backbone, arguments.crop_size, arguments.patch_size, num_bands)
    else:
        encoder = _load_init(arguments, info["bands"])
        config = encoder.config
        known = getattr(config, "cutouts", None) or {}
        if known.get("stretch") and known["stretch"] != info["stretch"]:
            logger.warning(
                "%s was trained on another stretch than this dataset's: the classifier will expect the dataset's",
                arguments.init,
            )
    if isinstance(config, LensCnnConfig):
        check_at_least(config.reduction, crop_size=arguments.crop_size)
        if batch_size == 1 and arguments.crop_size < 2 * config.reduction:  # batch norm needs two values
            raise InputError("batches of one cutout are too small for a CNN of this crop_size: raise batch_size")
    if "image_mean" in known:
        mean, std = known["image_mean"], known["image_std"]
    else:
        mean, std = channel_statistics(train_split.pixels, arguments.crop_size)
    config.num_labels = len(LABELS)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: number for number, name in enumerate(LABELS)}
    config.cutouts = {name: info[name] for name in ("bands", "pixel_scale", "zero_point", "stretch")}
    config.cutouts |= {"image_mean": mean, "image_std": std}
    model = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)](config)
    if encoder is not None:
        own = model.base_model.state_dict()  # with a mask token or without
        given = {name: one for name, one in encoder.state_dict().items() if name in own}
        kept = {name for name in own if name.endswith("mask_token") and name not in given}
        kept |= {name for name in own if name.startswith("classifier")}  # a CNN's base model is all of it
        model.base_model.load_state_dict(given | {name: own[name] for name in kept})
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # which a classifier does not use: its gradient never comes
            parameter.requires_grad_(False)
    return model


def _load_init(arguments: FinetuneArguments, bands: list[str]) -> PreTrainedModel:
    """The encoder, or the CNN, that `init` names."""
    config = read_config(arguments.init)
    if config.model_type != LensCnnConfig.model_type:
        encoder = load_encoder_for(arguments.init, arguments.crop_size, bands, arguments.patch_size)
        if getattr(config, "cutouts", None) is not None:  # a model of this package keeps its patches
            _settle_patch_size(arguments, encoder)
        return encoder
    if arguments.linear_probe:
        raise InputError(f"{arguments.init} is a CNN, whose features are not probed: leave linear_probe out")
    model, _ = load_classifier(arguments.init)
    check_bands(model.config, bands, arguments.init)
    model.config.image_size = arguments.crop_size
    return model


def _settle_patch_size(arguments: FinetuneArguments, encoder: PreTrainedModel) -> None:
    """Record the patch size of a model where another one was not asked for, or what the run recorded that goes on."""
    if arguments.patch_size != FinetuneArguments.patch_size:
        check_patches(encoder.config, arguments.patch_size, arguments.init)
    arguments.patch_size = encoder.config.patch_size
    if arguments.resume == "auto" and (Path(arguments.output_dir) / "run.json").is_file():
        begun = read_run(arguments.output_dir)["arguments"]  # earlier versions recorded what was given
        arguments.patch_size = begun.get("patch_size", arguments.patch_size)


def parameter_groups(
    model: PreTrainedModel, learning_rate: float, head_learning_rate: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups with their peak learning rates: the classifier has its own. Norms and biases do not decay."""
    groups: dict[tuple[bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head, decays = name.startswith("classifier"), parameter.ndim >= 2
        group = {"peak": head_learning_rate if is_head else learning_rate, "weight_decay": weight_decay * decays}
        groups.setdefault((is_head, decays), {"params": [], **group})["params"].append(parameter)
    return list(groups.values())


class Finetuning(Task):
    """Views of a labelled batch -> cross entropy; the weights of the best validation AUC are kept."""

    name = "finetune"

    def __init__(
        self,
        model: PreTrainedModel,
        subset: CutoutTensors,
        targets: torch.Tensor,
        validation: CutoutTensors,
        batch_size: int,
        arguments: FinetuneArguments,
        device: torch.device,
    ):
        self.model, self.arguments = model, arguments
        if arguments.linear_probe:
            model.base_model.requires_grad_(False)
        self.steps = arguments.steps
        self.section = self.evaluate_every = self.save_every = arguments.eval_every
        self.statistics = (model.config.cutouts["image_mean"], model.config.cutouts["image_std"])
        images = normalise(subset.pixels.to(device), *self.statistics)
        self.samples = ResidentImages(images, subset.ids, batch_size, arguments.seed)
        self.labels = targets.to(device)
        pixels = center_crop(validation.pixels, arguments.crop_size).to(device)
        self.validation = normalise(pixels, *self.statistics), validation.labels
        self.views = Views(arguments.seed, device)
        self.view_settings = arguments.view_settings(arguments.crop_size, (arguments.scale_min, 1.0))
        self.best = {"validation_auc": -1.0, "best_step": 0}
        self.best_weights: dict[str, torch.Tensor] = {}

    def make_optimizer(self) -> torch.optim.Optimizer:
        arguments = self.arguments
        rates = arguments.learning_rate, arguments.head_learning_rate
        groups = parameter_groups(self.model, *rates, arguments.weight_decay)
        return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)

    def schedule(self, step: int, groups: list[dict[str, Any]]) -> dict[str, float]:
        factor = cosine(1.0, 0.0, step, self.steps, round(self.arguments.warmup_fraction * self.steps))
        for group in groups:
            group["lr"] = group["peak"] * factor
        return {"learning_rate": self.arguments.learning_rate * factor}

    def make_batch(self, images: torch.Tensor, indices: torch.Tensor, epoch: Counter) -> Batch:
        views = self.views.make(images, indices, self.view_settings, epoch, 0)
        return {"pixel_values": views, "labels": self.labels[indices]}

    def forward(self, model: torch.nn.Module, batch: Batch, scheduled: Mapping[str, Number]) -> Batch:
        logits = model(batch["pixel_values"]).logits
        return {"loss": F.cross_entropy(logits.float(), batch["labels"])}

    def epoch(self, done: int) -> int:
        return (done - 1) // self.samples.steps_per_epoch

    @torch.no_grad()
    def evaluate(self, done: int) -> dict[str, float]:
        images, labels = self.validation
        self.model.eval()
        logits = torch.cat([self.model(batch).logits.float() for batch in images.split(512)])
        scores = F.softmax(logits, dim=-1)[:, 1]
        self.model.train()
        auc = roc_auc(labels, scores)
        if auc > self.best["validation_auc"]:  # never where it is NaN
            self.best = {"validation_auc": auc, "best_step": done}
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {"validation_auc": auc, "validation_accuracy": accuracy(labels, scores)}

    def state(self) -> dict[str, Any]:
        return {**self.best, **self.best_weights}

    def restore(self, extra: dict[str, Any]) -> None:
        self.best = {name: extra[name] for name in self.best}
        device = self.labels.device
        self.best_weights = {name: extra[name].to(device) for name in self.model.state_dict() if name in extra}

    def finish(self) -> dict[str, Any]:
        if not self.best_weights:
            raise InputError(
                "the scores of all evaluations were NaN, so that no model is written: begin again in another "
                "output_dir with a lower learning_rate or with precision fp32"
            )
        self.model.load_state_dict(self.best_weights)
        return self.best

    def save(self, folder: Path) -> None:
        """A folder that plain transformers loads: weights, configuration and image processor."""
        self.model.save_pretrained(folder)
        save_processor(folder, self.model.config.cutouts, self.arguments.crop_size, *self.statistics)
