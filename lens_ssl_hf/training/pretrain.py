"""Self-supervised pretraining: a plain Accelerate loop for SimSiam, DINO and iBOT."""

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..data.tensors import CutoutTensors, splits_and_info
from ..data.views import Views
from ..errors import InputError
from ..models import METHODS, backbone_config
from ..models.backbones import backbone_name
from .arguments import PretrainArguments, make_arguments, recipe
from .checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from .loop import (
    Averages,
    autocast,
    batch_indices,
    center_crop,
    channel_statistics,
    choose_precision,
    extract_cls,
    make_accelerator,
    normalise,
    parameter_groups,
    progress_bar,
)
from .monitors import collapse_warning, knn_scores, roc_auc
from .run_directory import RunDirectory
from .schedules import cosine, linear


def pretrain(cutouts: Any, output_dir: str | os.PathLike, method: str = "dino", **settings: Any) -> Path:
    """
    Pretrain a ViT on the `train` and `unlabelled` splits, without their labels.

    Args:
        cutouts (`DatasetDict`, or path of a `.safetensors` file): from [`load_cutouts`] or [`save_tensors`].
        output_dir (`str` or `os.PathLike`): the run directory to write.
        method (`str`, *optional*, defaults to `"dino"`): simsiam, dino or ibot; its recipe sets the defaults.
        settings: fields of [`PretrainArguments`], such as `backbone="vitt8"` or `epochs=60`.

    Returns:
        `Path`: the run directory. Its `model/` holds the SSL model with heads; [`export`] makes a backbone of it.

    Raises:
        [`InputError`]: a setting, the data or the output directory cannot be used.
    """
    settings = {**recipe(method), **settings, "method": method, "output_dir": os.fspath(output_dir)}
    arguments = make_arguments(PretrainArguments, settings)
    accelerator = make_accelerator()
    splits, info = splits_and_info(cutouts)
    images, statistics = _training_images(splits, arguments, accelerator)
    run = RunDirectory(arguments.output_dir, arguments.resume, accelerator.is_main_process)
    accelerator.wait_for_everyone()

    set_seed(arguments.seed)
    model = _make_model(arguments, info, *statistics)
    facts = {
        "task": "pretrain",
        "method": method,
        "backbone": backbone_name(model.encoder.config),
        "arguments": dataclasses.asdict(arguments),
        "data": info,
        "image_mean": statistics[0],
        "image_std": statistics[1],
        "crop_size": arguments.crop_size,
        "num_train_images": len(images),
        "num_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "seed": arguments.seed,
    }
    run.check_same(facts)
    if run.is_finished:
        accelerator.print(f"{run.path} is finished already")
        return run.path
    run.write_facts(facts)
    monitor = _KNNMonitor(splits, arguments, statistics, accelerator)
    precision, seconds = _train(model, images, monitor, arguments, accelerator, run)
    if accelerator.is_main_process:
        run.save_model(model.save_pretrained)
    run.write_facts({**facts, "precision": precision, "seconds": round(seconds, 1)})
    accelerator.wait_for_everyone()
    return run.path


def _training_images(
    splits: dict[str, CutoutTensors], arguments: PretrainArguments, accelerator: Accelerator
) -> tuple[torch.Tensor, tuple[list[float], list[float]]]:
    """All images to train on, normalised, on the device; and the means and standard deviations of their bands."""
    parts = [splits[name].pixels for name in ("train", "unlabelled") if name in splits]
    if not parts:
        raise InputError("the data set has neither a train nor an unlabelled split: nothing to pretrain on")
    pixels = torch.cat(parts)
    share = accelerator.num_processes * arguments.gradient_accumulation_steps
    if arguments.batch_size % share:
        raise InputError(f"batch_size {arguments.batch_size} is not a multiple of processes x accumulation, {share}")
    if len(pixels) < arguments.batch_size:
        raise InputError(f"{len(pixels)} images are fewer than batch_size {arguments.batch_size}: lower batch_size")
    statistics = channel_statistics(pixels, arguments.crop_size)
    return normalise(pixels.to(accelerator.device), *statistics), statistics


def _make_model(arguments: PretrainArguments, info: dict, mean: list[float], std: list[float]) -> torch.nn.Module:
    model_class = METHODS[arguments.method]
    backbone = backbone_config(arguments.backbone, arguments.crop_size, arguments.patch_size, len(info["bands"]))
    names = ("projection_size", "prediction_hidden_size") if arguments.method == "simsiam" else (
        "head_hidden_size", "head_bottleneck_size", "num_prototypes", "student_temperature", "centre_momentum"
    )  # fmt: skip
    if arguments.method == "ibot":
        names += ("cls_loss_weight", "patch_loss_weight")
    heads = {name: getattr(arguments, name) for name in names}
    cutouts = {name: info[name] for name in ("bands", "pixel_scale", "zero_point", "stretch")}
    cutouts |= {"image_mean": mean, "image_std": std}
    return model_class(model_class.config_class(backbone_config=backbone, cutouts=cutouts, **heads))


class _ViewMaker:
    """The views of one micro-batch, as keywords of the model's forward."""

    def __init__(self, arguments: PretrainArguments, device: torch.device):
        self.arguments = arguments
        self.views = Views(arguments.seed, device)
        self.global_settings = arguments.view_settings(arguments.crop_size, (arguments.global_scale_min, 1.0))
        local_scale = (arguments.local_scale_min, arguments.local_scale_max)
        self.local_settings = arguments.view_settings(arguments.local_size, local_scale)

    def __call__(self, images: torch.Tensor, indices: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        arguments = self.arguments
        views = {"global_views": self.views.crops(images, indices, self.global_settings, epoch, 0, 2)}
        if arguments.method != "simsiam" and arguments.num_local_views:
            number = arguments.num_local_views
            views["local_views"] = self.views.crops(images, indices, self.local_settings, epoch, 2, number)
        if arguments.method == "ibot":
            grid = arguments.crop_size // arguments.patch_size
            count = max(1, round(arguments.mask_ratio * grid**2))
            views["masked_patches"] = self.views.masks(indices, grid, count, epoch, 0, 2)
        return views


class _KNNMonitor:
    """kNN on the encoder's [CLS]: the labelled training cutouts vote on the validation split (main process only)."""

    def __init__(self, splits: dict, arguments: PretrainArguments, statistics: tuple, accelerator: Accelerator):
        self.sets = []
        if not arguments.eval_every or not accelerator.is_main_process:
            return
        for name in ("train", "validation"):
            split = splits.get(name)
            labelled = split.labels >= 0 if split is not None else torch.zeros(0, dtype=torch.bool)
            if len(split.labels[labelled].unique() if labelled.any() else ()) < 2:
                self.sets = []
                return
            pixels = center_crop(split.pixels[labelled], arguments.crop_size).to(accelerator.device)
            self.sets.append((normalise(pixels, *statistics), split.labels[labelled].to(accelerator.device)))

    def __call__(self, encoder: torch.nn.Module) -> dict[str, float]:
        if not self.sets:
            return {}
        was_training = encoder.training
        (train, train_labels), (validation, labels) = self.sets
        scores = knn_scores(extract_cls(encoder, train), train_labels, extract_cls(encoder, validation))
        encoder.train(was_training)
        accuracy = ((scores > 0.5).long() == labels).float().mean().item()
        return {"knn_auc": roc_auc(labels, scores), "knn_accuracy": accuracy}


def _train(
    model: torch.nn.Module,
    images: torch.Tensor,
    monitor: _KNNMonitor,
    arguments: PretrainArguments,
    accelerator: Accelerator,
    run: RunDirectory,
) -> tuple[str, float]:
    """The loop. Returns the precision that was used and the seconds that it took."""
    steps_per_epoch = len(images) // arguments.batch_size
    total_steps = arguments.epochs * steps_per_epoch
    make_views = _ViewMaker(arguments, accelerator.device)
    model.to(accelerator.device).train()
    share = arguments.batch_size // accelerator.num_processes // arguments.gradient_accumulation_steps
    newest = newest_checkpoint(run.checkpoints)
    if newest is None:
        precision = choose_precision(
            accelerator, arguments.precision, lambda: _trial_loss(model, images, make_views, share)
        )
        model.zero_grad(set_to_none=True)
        if arguments.method == "simsiam":
            _reset_batch_norm(model)
    optimizer = _make_optimizer(model, arguments)
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    if newest is None:
        first_step, seconds = 0, 0.0
        run.forget_after(-1)
        run.log(0, {"epoch": 0, **monitor(model.encoder)})
    else:
        first_step, extra = load_checkpoint(newest, model, optimizer.optimizer)
        precision, seconds = extra["precision"], extra["seconds"]
        run.forget_after(first_step)
        accelerator.print(f"resuming from {newest}")

    averages, start, warned = Averages(), time.perf_counter() - seconds, False
    bar = progress_bar(accelerator, f"pretrain {arguments.method}", first_step, total_steps)
    for step in range(first_step, total_steps):
        scheduled = _schedule(arguments, step, total_steps, steps_per_epoch)
        output, gradient_norm = _step(
            wrapped, model, optimizer, images, make_views, arguments, accelerator, step, scheduled, precision
        )
        watched = {name: output[name] for name in _WATCHED if name in output}
        averages.add({**watched, "gradient_norm": gradient_norm})
        done = step + 1
        bar.update()
        last_of_epoch = done % steps_per_epoch == 0
        if done % arguments.log_every == 0 or last_of_epoch:
            means = averages.pop(accelerator)
            if not math.isfinite(means["loss"]):
                raise InputError(
                    f"the loss is {means['loss']} at step {done}: lower learning_rate or use precision fp32"
                )
            run.log(done, {"epoch": done / steps_per_epoch, **means, **scheduled})
            bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
            outputs = arguments.projection_size if arguments.method == "simsiam" else arguments.num_prototypes
            warning = collapse_warning(arguments.method, means, outputs)
            if warning and not warned and done > total_steps // 10:
                warned = True
                run.log(done, {"warning": warning})
                bar.write(f"warning: {warning}")
        if last_of_epoch:
            epoch = done // steps_per_epoch
            if (arguments.eval_every and epoch % arguments.eval_every == 0) or done == total_steps:
                run.log(done, {"epoch": float(epoch), **monitor(model.encoder)})
            if (epoch % arguments.checkpoint_every == 0 or done == total_steps) and accelerator.is_main_process:
                seconds = time.perf_counter() - start
                extra = {"precision": precision, "seconds": seconds}
                save_checkpoint(run.checkpoints, done, model, optimizer.optimizer, extra)
    bar.close()
    return precision, seconds


_WATCHED = ("loss", "cls_loss", "patch_loss", "teacher_entropy", "output_std")


def _trial_loss(model: torch.nn.Module, images: torch.Tensor, make_views: _ViewMaker, share: int) -> torch.Tensor:
    # A CPU is busy with 32 images; a GPU shows its speed on a whole batch only.
    indices = torch.arange(share if images.is_cuda else min(share, 32), device=images.device)
    return model(**make_views(images[indices], indices, 0)).loss


def _reset_batch_norm(model: torch.nn.Module) -> None:
    # The measurement of the precision has moved the running statistics.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()


def _make_optimizer(model: torch.nn.Module, arguments: PretrainArguments) -> torch.optim.Optimizer:
    if arguments.method == "simsiam":
        # The predictor's learning rate is not decayed (Chen & He 2021, section 4.3).
        body = torch.nn.ModuleList([model.backbone, model.projection])
        groups = parameter_groups(body, arguments.weight_decay)
        groups += [
            {**group, "constant_learning_rate": True}
            for group in parameter_groups(model.prediction, arguments.weight_decay)
        ]
    else:
        groups = parameter_groups(model, arguments.weight_decay)
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=arguments.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)


def _schedule(arguments: PretrainArguments, step: int, total_steps: int, steps_per_epoch: int) -> dict[str, float]:
    """The scheduled values of one step."""
    warmup_steps = min(round(arguments.warmup_epochs * steps_per_epoch), total_steps // 2)
    values = {
        "learning_rate": cosine(
            arguments.learning_rate, arguments.final_learning_rate, step, total_steps, warmup_steps
        ),
        "weight_decay": cosine(arguments.weight_decay, arguments.final_weight_decay, step, total_steps),
    }
    if arguments.method == "simsiam":
        return values
    temperature_steps = round(arguments.temperature_warmup_fraction * total_steps)
    values["teacher_momentum"] = cosine(arguments.teacher_momentum, 1.0, step, total_steps)
    values["teacher_temperature"] = linear(
        arguments.warmup_teacher_temperature, arguments.teacher_temperature, step, temperature_steps
    )
    if arguments.method == "ibot":
        values["patch_teacher_temperature"] = linear(
            arguments.warmup_patch_teacher_temperature, arguments.patch_teacher_temperature, step, temperature_steps
        )
    return values


def _step(
    wrapped: torch.nn.Module,
    model: torch.nn.Module,
    optimizer: Any,
    images: torch.Tensor,
    make_views: _ViewMaker,
    arguments: PretrainArguments,
    accelerator: Accelerator,
    step: int,
    scheduled: dict[str, float],
    precision: str,
) -> tuple[Any, torch.Tensor]:
    """One optimizer step on one global batch; returns the output of its last micro-batch and the gradient norm."""
    indices, epoch = batch_indices(
        len(images),
        arguments.batch_size,
        arguments.seed,
        step,
        accelerator.process_index,
        accelerator.num_processes,
    )
    for group in optimizer.param_groups:
        if not group.get("constant_learning_rate"):
            group["lr"] = scheduled["learning_rate"]
        if group["decayed"]:
            group["weight_decay"] = scheduled["weight_decay"]
    temperatures = {name: value for name, value in scheduled.items() if name.endswith("temperature")}
    micro_batches = indices.to(images.device).chunk(arguments.gradient_accumulation_steps)
    outputs = []
    for number, chosen in enumerate(micro_batches):
        views = make_views(images[chosen], chosen, epoch)
        synchronise = number == len(micro_batches) - 1
        with accelerator.no_sync(wrapped) if not synchronise else torch.enable_grad():
            with autocast(images.device, precision):
                output = wrapped(**views, **temperatures)
            accelerator.backward(output.loss / len(micro_batches))
        outputs.append(output)
    if model.has_teacher and step < arguments.freeze_last_layer_epochs * (len(images) // arguments.batch_size):
        model.student.head.last_layer.weight.grad = None
    limit = arguments.clip_grad_norm or math.inf
    gradient_norm = accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], limit)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = _mean_outputs(outputs, accelerator)
    if model.has_teacher:
        model.update_teacher(scheduled["teacher_momentum"])
        model.update_centre(means)
    return means, gradient_norm


def _mean_outputs(outputs: list[Any], accelerator: Accelerator) -> Any:
    """The outputs' means over micro-batches; those of the centres over the processes too."""
    first = outputs[0]
    for name in first:
        mean = torch.stack([output[name].detach() for output in outputs]).mean(dim=0)
        first[name] = accelerator.reduce(mean, "mean") if "centre" in name else mean
    return first
