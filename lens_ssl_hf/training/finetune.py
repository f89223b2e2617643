"""Fine-tuning a ViT into a lens / non-lens classifier with few labels, from a pretraining or from scratch."""

import dataclasses
import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from transformers import PreTrainedModel, ViTForImageClassification

from ..data.batches import ResidentImages
from ..data.processing import save_processor
from ..data.tensors import (
    CutoutTensors,
    center_crop,
    channel_statistics,
    digest,
    labelled_splits,
    normalise,
    splits_and_info,
)
from ..data.views import Views
from ..errors import InputError
from ..models import CNN, CNNConfig, backbone_config
from ..models.backbones import backbone_name, load_encoder_for, use_fast_attention
from .arguments import FinetuneArguments, make_arguments
from .checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from .faults import BuffersBefore, Faults, optimizer_step
from .loop import Averages, StopRequest, autocast, choose_precision, lens_probabilities, make_accelerator
from .monitors import accuracy, roc_auc
from .progress import Forecast, progress_bar
from .run_directory import RunDirectory, origin
from .schedules import cosine

logger = logging.getLogger(__name__)

LABELS = ("nonlens", "lens")


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
        cutouts (`DatasetDict`, or path of a `.safetensors` file): from [`load_cutouts`] or [`save_tensors`].
        output_dir (`str` or `os.PathLike`): the run directory to write.
        init (`str` or `os.PathLike`, *optional*, defaults to `"scratch"`):
            A pretraining run, an exported folder, the Hub id of a stock ViT, or `"scratch"`.
        labels (`int` or `str`, *optional*, defaults to `"all"`): how many labelled cutouts to train on.
        settings: fields of [`FinetuneArguments`].

    Returns:
        `Path`: the run directory. Its `model/` is a stock `ViTForImageClassification` with its image processor.

    Raises:
        [`InputError`]: a setting, the data, `init` or the output directory cannot be used.
    """
    given = {"init": os.fspath(init), "labels": str(labels), "output_dir": os.fspath(output_dir)}
    arguments = make_arguments(FinetuneArguments, {**settings, **given})
    accelerator = make_accelerator(arguments.precision, arguments.deterministic)
    splits, info = splits_and_info(cutouts, "train", "validation")
    train, validation = labelled_splits(splits, "train", "validation")
    center_crop(train.pixels[:1], arguments.crop_size)  # refuses cutouts that are too small
    subset_seed = arguments.seed if arguments.subset_seed is None else arguments.subset_seed
    subset = train.select(label_subset(train.labels, arguments.labels, subset_seed))
    batch_size = _batch_size(min(arguments.batch_size, len(subset)), accelerator)
    set_seed(arguments.seed)
    model, mean, std = _make_classifier(arguments, info, train)
    facts = {
        "task": "finetune",
        "method": None,
        "backbone": "cnn" if arguments.backbone == "cnn" else backbone_name(model.config),
        **origin(arguments.init, getattr(model, "vit", None)),
        "arguments": dataclasses.asdict(arguments),
        "data": info,
        "image_mean": mean,
        "image_std": std,
        "crop_size": arguments.crop_size,
        "num_labels": len(subset),
        "num_train_images": len(subset),
        "samples": digest(subset.ids),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_processes": accelerator.num_processes,
        "batch_size": batch_size,
        "device": str(accelerator.device.type),
        "precision": choose_precision(accelerator, arguments.precision),
        "seed": arguments.seed,
    }
    model.config.init_method = facts["init_method"]  # for the records of what is fine-tuned from its export
    with RunDirectory(arguments.output_dir, arguments.resume, accelerator.is_main_process, arguments.report_to) as run:
        accelerator.wait_for_everyone()
        run.check_same(facts)
        if run.is_finished:
            accelerator.print(f"{run.path} is finished already")
            return run.path
        run.write_facts(facts)
        images = normalise(subset.pixels.to(accelerator.device), mean, std)
        validation_images = normalise(
            center_crop(validation.pixels, arguments.crop_size).to(accelerator.device), mean, std
        )
        samples = ResidentImages(images, subset.ids, batch_size, arguments.seed)
        outcome = _train(
            model, samples, subset.labels, validation_images, validation.labels, arguments, accelerator, run
        )
        if accelerator.is_main_process:
            run.save_model(model, lambda folder: _save_classifier(model, folder, arguments.crop_size, mean, std))
        run.add_facts(outcome)
        accelerator.wait_for_everyone()
        return run.path


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
    arguments: FinetuneArguments, info: dict, train: CutoutTensors
) -> tuple[PreTrainedModel, list[float], list[float]]:
    """The classifier, and the means and standard deviations per band that its inputs are normalised with."""
    num_bands = len(info["bands"])
    if arguments.backbone == "cnn":
        encoder, known = None, {}
        config = CNNConfig(image_size=arguments.crop_size, num_channels=num_bands)
    elif arguments.init == "scratch":
        encoder = None
        config = backbone_config(arguments.backbone, arguments.crop_size, arguments.patch_size, num_bands)
        known = {}
    else:
        encoder = load_encoder_for(arguments.init, arguments.crop_size, info["bands"])
        config = encoder.config
        known = getattr(config, "cutouts", None) or {}
        if known.get("stretch") and known["stretch"] != info["stretch"]:
            logger.warning(
                "%s was pretrained on another stretch than this data set's: the classifier will expect the data set's",
                arguments.init,
            )
    if "image_mean" in known:
        mean, std = known["image_mean"], known["image_std"]
    else:
        mean, std = channel_statistics(train.pixels, arguments.crop_size)
    config.num_labels = len(LABELS)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: number for number, name in enumerate(LABELS)}
    config.cutouts = {name: info[name] for name in ("bands", "pixel_scale", "zero_point", "stretch")}
    config.cutouts |= {"image_mean": mean, "image_std": std}
    model = (CNN if arguments.backbone == "cnn" else ViTForImageClassification)(config)
    if encoder is not None:
        state = {name: value for name, value in encoder.state_dict().items() if not name.endswith("mask_token")}
        model.vit.load_state_dict(state)
    return model, mean, std


def layer_decay_groups(
    model: PreTrainedModel, learning_rate: float, head_learning_rate: float, layer_decay: float, decay: float
) -> list[dict]:
    """
    Optimizer groups with a peak learning rate per layer: `learning_rate * layer_decay^(layers above)` (Clark et al.
    2020; Bao et al. 2022), `head_learning_rate` for the classifier. No weight decay on norms and biases.
    """
    depth = getattr(model.config, "num_hidden_layers", 0)
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = re.search(r"\.layers?\.(\d+)\.", name)
        if name.startswith("classifier"):
            peak = head_learning_rate
        elif layer:
            peak = learning_rate * layer_decay ** (depth - 1 - int(layer.group(1)))
        elif ".embeddings." in name:
            peak = learning_rate * layer_decay**depth
        else:  # the last layer norm, or a layer of the CNN
            peak = learning_rate
        decayed = parameter.ndim >= 2
        group = groups.setdefault(
            (peak, decayed), {"params": [], "peak": peak, "weight_decay": decay if decayed else 0.0}
        )
        group["params"].append(parameter)
    return list(groups.values())


def _train(
    model: PreTrainedModel,
    samples: ResidentImages,
    labels: torch.Tensor,
    validation_images: torch.Tensor,
    validation_labels: torch.Tensor,
    arguments: FinetuneArguments,
    accelerator: Accelerator,
    run: RunDirectory,
) -> dict[str, Any]:
    """The loop; leaves the weights of the best validation AUC in `model` and returns what happened."""
    device = accelerator.device
    labels, views = labels.to(device), Views(arguments.seed, device)
    settings = arguments.view_settings(arguments.crop_size, (arguments.scale_min, 1.0))
    use_fast_attention(model.to(device).train())
    if arguments.linear_probe:
        model.vit.requires_grad_(False)

    newest = newest_checkpoint(run.checkpoints, accelerator, run.facts["run_id"])
    groups = layer_decay_groups(
        model,
        arguments.learning_rate,
        arguments.head_learning_rate,
        arguments.layer_decay,
        arguments.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    averages = Averages()
    best = {"validation_auc": -1.0, "best_step": 0}
    best_weights: dict[str, torch.Tensor] = {}
    if newest is None:
        first_step, seconds, counts = 0, 0.0, {}
        run.forget_after(-1)
    else:
        first_step, extra = load_checkpoint(newest, model, optimizer.optimizer)
        averages.restore(extra, device)
        best_weights = {name: value.to(device) for name, value in extra.items() if isinstance(value, torch.Tensor)}
        best = {name: extra[name] for name in best}
        seconds, counts = extra["seconds"], extra["faults"]
        run.forget_after(first_step)
        accelerator.print(f"resuming from {newest}")
    faults = Faults(device, **counts)

    start = time.perf_counter() - seconds
    warmup = round(arguments.warmup_fraction * arguments.steps)
    trainable = [p for p in model.parameters() if p.requires_grad]
    with StopRequest() as stop, progress_bar(accelerator, "finetune", first_step, arguments.steps) as bar:
        forecast = Forecast(accelerator, bar, arguments.steps)
        for step in range(first_step, arguments.steps):
            factor = cosine(1.0, 0.0, step, arguments.steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            buffers = BuffersBefore(model)
            batch, chosen, epoch = samples.batch(step, accelerator.process_index, accelerator.num_processes)
            batch = views.make(batch, chosen, settings, epoch, 0)
            with autocast(device, run.facts["precision"]):
                logits = wrapped(batch).logits
            loss = F.cross_entropy(logits.float(), labels[chosen])
            accelerator.backward(loss)
            gradient_norm = accelerator.clip_grad_norm_(trainable, arguments.clip_grad_norm or math.inf)
            fault = faults.note(accelerator, step, loss, gradient_norm, buffers)
            optimizer_step(optimizer, fault, buffers)
            averages.add({"loss": loss, "gradient_norm": gradient_norm}, fault)
            done = step + 1
            bar.update()
            evaluates = done % arguments.eval_every == 0 or done == arguments.steps
            logs = done % arguments.log_every == 0 or evaluates
            if logs:
                means = averages.pop(accelerator)
                skipped = faults.check(samples.ids)
                rate = arguments.learning_rate * factor
                run.log(done, {"epoch": epoch, **means, "learning_rate": rate, "skipped": skipped})
                run.log_time(done, {"seconds": time.perf_counter() - start})
                forecast.update(done)
            if evaluates:
                scores = lens_probabilities(model, validation_images)
                model.train()
                auc = roc_auc(validation_labels, scores)
                found = {"validation_auc": auc, "validation_accuracy": accuracy(validation_labels, scores)}
                run.log(done, {"epoch": epoch, **found})
                bar.set_postfix(validation_auc=f"{auc:.3f}", refresh=False)
                if auc > best["validation_auc"]:  # never where it is NaN
                    best = {"validation_auc": auc, "best_step": done}
                    best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            stops = stop.seen_by_any(accelerator, logs)
            if (evaluates or stops) and accelerator.is_main_process:
                extra = {
                    **best,
                    "seconds": time.perf_counter() - start,
                    "faults": faults.counts(),
                    **averages.state(),
                    **best_weights,
                }
                save_checkpoint(run.checkpoints, done, model, optimizer.optimizer, extra, run_id=run.facts["run_id"])
            if stops and done < arguments.steps:
                raise stop.interruption(accelerator, done, arguments.steps, run.path)
    skipped = faults.finish(arguments.steps)
    if not best_weights:
        raise InputError(
            "the scores of all evaluations were NaN, so that no model is written: begin again in another output_dir "
            "with a lower learning_rate or with precision fp32"
        )
    model.load_state_dict(best_weights)
    return {**best, "skipped_steps": skipped, "seconds": round(time.perf_counter() - start, 1)}


def _save_classifier(
    model: PreTrainedModel, folder: Path, crop_size: int, mean: list[float], std: list[float]
) -> None:
    """A folder that plain transformers loads: weights, configuration and image processor."""
    model.save_pretrained(folder)
    save_processor(folder, model.config.cutouts, crop_size, mean, std)
