"""Self-supervised pretraining: a plain Accelerate loop for SimSiam, DINO and iBOT."""

import dataclasses
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch.profiler import record_function
from transformers import ViTConfig, ViTModel

from ..data.batches import ParquetSplits, ResidentImages, StreamedImages
from ..data.tensors import CutoutTensors, center_crop, channel_statistics, normalise, splits_and_info
from ..data.views import Views
from ..errors import InputError
from ..models import METHODS, backbone_config
from ..models.backbones import backbone_name, load_encoder_for, use_fast_attention
from .arguments import PretrainArguments, make_arguments, recipe
from .checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from .faults import BuffersBefore, Faults, check_outputs, optimizer_step
from .loop import Averages, StopRequest, autocast, choose_precision, extract_cls, make_accelerator, parameter_groups
from .monitors import CollapseWatch, accuracy, knn_scores, roc_auc
from .progress import Forecast, progress_bar
from .run_directory import RunDirectory, origin, read_run
from .schedules import cosine, linear

logger = logging.getLogger(__name__)


def pretrain(
    cutouts: Any,
    output_dir: str | os.PathLike,
    method: str = "dino",
    init: str | os.PathLike = "scratch",
    **settings: Any,
) -> Path:
    """
    Pretrain a ViT on the `train` and `unlabelled` splits, without their labels.

    Args:
        cutouts (`DatasetDict`, or path of a `.safetensors` file or a directory):
            From [`load_cutouts`], [`save_tensors`] or [`save_cutouts`]; what does not fit into memory is read as it is
            needed, from such a directory.
        output_dir (`str` or `os.PathLike`): the run directory to write.
        method (`str`, *optional*, defaults to `"dino"`): simsiam, dino or ibot; its recipe sets the defaults.
        init (`str` or `os.PathLike`, *optional*, defaults to `"scratch"`):
            What the backbone goes on from: a run, an exported folder, the Hub id of a stock ViT, or `"scratch"`. The
            heads begin anew.
        settings: fields of [`PretrainArguments`], such as `backbone="vitt8"` or `epochs=60`.

    Returns:
        `Path`: the run directory. Its `model/` holds the SSL model with heads; [`export`] makes a backbone of it.

    Raises:
        [`InputError`]: a setting, the data or the output directory cannot be used.
    """
    settings = {**recipe(method), **settings, "method": method}
    settings |= {"init": os.fspath(init), "output_dir": os.fspath(output_dir)}
    arguments = make_arguments(PretrainArguments, settings)
    accelerator = make_accelerator(arguments.precision, arguments.deterministic)
    images, labelled, info, statistics = _open_images(cutouts, arguments, accelerator)
    set_seed(arguments.seed)
    encoder = None
    if arguments.init != "scratch":
        encoder = load_encoder_for(arguments.init, arguments.crop_size, info["bands"])
    model = _make_model(arguments, info, *statistics, encoder)
    facts = {
        "task": "pretrain",
        "method": method,
        "backbone": backbone_name(model.encoder.config),
        **origin(arguments.init, encoder),
        "arguments": dataclasses.asdict(arguments),
        "data": info,
        "image_mean": statistics[0],
        "image_std": statistics[1],
        "crop_size": arguments.crop_size,
        "num_train_images": len(images),
        "num_train_labels": int((labelled["train"].labels >= 0).sum()) if "train" in labelled else 0,
        "samples": images.digest,
        "num_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "precision": choose_precision(accelerator, arguments.precision),
        "seed": arguments.seed,
    }
    with RunDirectory(arguments.output_dir, arguments.resume, accelerator.is_main_process, arguments.report_to) as run:
        accelerator.wait_for_everyone()
        run.check_same(facts)
        if run.is_finished:
            accelerator.print(f"{run.path} is finished already")
            return run.path
        run.write_facts(facts)
        monitor = _KNNMonitor(labelled, arguments, statistics, accelerator)
        del labelled  # what is needed of it is on the device
        outcome = Pretraining(model, images, monitor, arguments, accelerator, run).run()
        if accelerator.is_main_process:
            run.save_model(model, model.save_pretrained)
        run.add_facts(outcome)
        accelerator.wait_for_everyone()
        return run.path


_MONITORED = 4096  # cutouts of train and of validation that the kNN monitor sees, at most


def _open_images(
    cutouts: Any, arguments: PretrainArguments, accelerator: Accelerator
) -> tuple[ResidentImages | StreamedImages, dict[str, CutoutTensors], dict, tuple[list[float], list[float]]]:
    """
    All images to train on; the splits that the monitor uses; the fields of `CutoutInfo`; and the means and standard
    deviations per band, of streamed images those of a sample. Sets `arguments.stream` to what is done.
    """
    share = accelerator.num_processes * arguments.gradient_accumulation_steps
    if arguments.batch_size % share:
        raise InputError(f"batch_size {arguments.batch_size} is not a multiple of processes x accumulation, {share}")
    is_directory = isinstance(cutouts, str | os.PathLike) and Path(cutouts).is_dir()
    parquet = ParquetSplits(Path(cutouts)) if is_directory else None
    arguments.stream = "yes" if _streams(parquet, arguments, accelerator) else "no"
    if parquet is not None:
        number = _MONITORED if arguments.stream == "yes" else sys.maxsize
        found = {name: parquet.sample(name, number) for name in ("train", "validation", "unlabelled")}
        splits, info = {name: split for name, split in found.items() if split is not None}, parquet.info
    else:
        splits, info = splits_and_info(cutouts)
    parts = [splits[name] for name in ("train", "unlabelled") if name in splits]
    if not parts:
        raise InputError("the data set has neither a train nor an unlabelled split: nothing to pretrain on")
    pixels = torch.cat([part.pixels for part in parts]) if len(parts) > 1 else parts[0].pixels
    statistics = channel_statistics(pixels, arguments.crop_size)
    if arguments.stream == "yes":
        images = StreamedImages(parquet, *statistics, arguments.batch_size, arguments.seed, accelerator.device)
        images.share(0, accelerator.num_processes)  # refuses numbers that cannot share
        return images, splits, info, statistics
    if len(pixels) < arguments.batch_size:
        raise InputError(f"{len(pixels)} images are fewer than batch_size {arguments.batch_size}: lower batch_size")
    ids = [one for part in parts for one in part.ids]
    on_device = normalise(pixels.to(accelerator.device), *statistics)
    return ResidentImages(on_device, ids, arguments.batch_size, arguments.seed), splits, info, statistics


def _streams(parquet: ParquetSplits | None, arguments: PretrainArguments, accelerator: Accelerator) -> bool:
    """Whether the images are read as they are needed: asked for, begun so, or more than half of what is free."""
    wanted = arguments.stream
    run_file = Path(arguments.output_dir) / "run.json"
    if wanted == "auto" and arguments.resume == "auto" and run_file.is_file():
        wanted = read_run(arguments.output_dir)["arguments"].get("stream", "auto")
    if parquet is None:
        if wanted == "yes":
            raise InputError("stream yes needs a data set that save_cutouts or build_dataset.py wrote as a directory")
        return False
    if wanted != "auto":
        return wanted == "yes"
    needed = parquet.nbytes(("train", "unlabelled"))
    # as read, as tensors, joined, normalised, in every process
    copies = 4 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fits = copies * needed < psutil.virtual_memory().available / 2
    if accelerator.device.type == "cuda":
        fits = fits and needed < torch.cuda.mem_get_info(accelerator.device)[0] / 2
    return broadcast_object_list([not fits])[0]  # the main process decides for all


def _make_model(
    arguments: PretrainArguments, info: dict, mean: list[float], std: list[float], encoder: ViTModel | None = None
) -> torch.nn.Module:
    """The SSL model, its backbones with the weights of `encoder` where there is one; heads begin anew."""
    model_class = METHODS[arguments.method]
    if encoder is None:
        backbone = backbone_config(arguments.backbone, arguments.crop_size, arguments.patch_size, len(info["bands"]))
    else:
        config = encoder.config.to_dict()
        backbone = ViTConfig(
            **{name: value for name, value in config.items() if name not in ("cutouts", "init_method")}
        )
        if backbone.patch_size != arguments.patch_size:
            raise InputError(
                f"{arguments.init} has patches of {backbone.patch_size} pixels, not {arguments.patch_size}: "
                f"give --patch_size {backbone.patch_size}"
            )
    names = ("projection_size", "prediction_hidden_size") if arguments.method == "simsiam" else (
        "head_hidden_size", "head_bottleneck_size", "num_prototypes", "student_temperature", "centre_momentum"
    )  # fmt: skip
    if arguments.method == "ibot":
        names += ("cls_loss_weight", "patch_loss_weight")
    heads = {name: getattr(arguments, name) for name in names}
    cutouts = {name: info[name] for name in ("bands", "pixel_scale", "zero_point", "stretch")}
    cutouts |= {"image_mean": mean, "image_std": std}
    model = model_class(model_class.config_class(backbone_config=backbone, cutouts=cutouts, **heads))
    if encoder is not None:
        for backbone in (module for module in model.modules() if isinstance(module, ViTModel)):
            own = backbone.state_dict()  # with a mask token or without, as the method has it
            weights = {name: value for name, value in encoder.state_dict().items() if name in own}
            backbone.load_state_dict({**own, **weights})
    return model


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
                logger.warning(
                    "the %s split has no labelled lenses and non-lenses, so that no nearest neighbours are evaluated "
                    "while training; pretraining itself needs no labels",
                    name,
                )
                self.sets = []
                return
            chosen = labelled.nonzero().flatten()
            chosen = chosen[:: -(-len(chosen) // _MONITORED)]
            pixels = center_crop(split.pixels[chosen], arguments.crop_size).to(accelerator.device)
            self.sets.append((normalise(pixels, *statistics), split.labels[chosen].to(accelerator.device)))

    def __call__(self, encoder: torch.nn.Module) -> dict[str, float]:
        if not self.sets:
            return {}
        was_training = encoder.training
        (train, train_labels), (validation, labels) = self.sets
        scores = knn_scores(extract_cls(encoder, train), train_labels, extract_cls(encoder, validation))
        encoder.train(was_training)
        return {"knn_auc": roc_auc(labels, scores), "knn_accuracy": accuracy(labels, scores)}


class Pretraining:
    """One run of the loop. The parts of a step carry names for the profiler: views, forward, backward, optimizer."""

    def __init__(
        self,
        model: torch.nn.Module,
        images: ResidentImages | StreamedImages,
        monitor: _KNNMonitor,
        arguments: PretrainArguments,
        accelerator: Accelerator,
        run: RunDirectory,
    ):
        self.model, self.images, self.monitor = model, images, monitor
        self.arguments, self.accelerator, self.run_directory = arguments, accelerator, run
        self.steps_per_epoch = images.steps_per_epoch
        self.total_steps = arguments.epochs * self.steps_per_epoch
        self.make_views = _ViewMaker(arguments, accelerator.device)
        self.averages = Averages()
        outputs = arguments.projection_size if arguments.method == "simsiam" else arguments.num_prototypes
        self.collapse = CollapseWatch(arguments.method, outputs)

    def run(self) -> dict[str, Any]:
        """Train to the end. Returns the number of steps that were skipped and the seconds that it took."""
        arguments, accelerator = self.arguments, self.accelerator
        first_step, seconds = self.begin()
        start = time.perf_counter() - seconds
        with (
            StopRequest() as stop,
            progress_bar(accelerator, f"pretrain {arguments.method}", first_step, self.total_steps) as bar,
        ):
            forecast = Forecast(accelerator, bar, self.total_steps)
            for done in range(first_step + 1, self.total_steps + 1):
                self.step(done - 1)
                bar.update()
                epoch, is_mid_epoch = divmod(done, self.steps_per_epoch)
                is_last = done == self.total_steps
                logs = done % arguments.log_every == 0 or not is_mid_epoch
                if logs:
                    self._log(done, bar)
                    forecast.update(done)
                    self.run_directory.log_time(done, {"seconds": time.perf_counter() - start})
                score = None
                if not is_mid_epoch and ((arguments.eval_every and epoch % arguments.eval_every == 0) or is_last):
                    score = self._evaluate(done)
                stops = stop.seen_by_any(accelerator, logs)
                saves = not is_mid_epoch and (epoch % arguments.checkpoint_every == 0 or is_last)
                if (saves or stops) and accelerator.is_main_process:
                    self._save(done, time.perf_counter() - start, score)
                if stops and not is_last:
                    raise stop.interruption(accelerator, done, self.total_steps, self.run_directory.path)
        skipped = self.faults.finish(self.total_steps)
        images, _, _ = self.images.batch(0, accelerator.process_index, accelerator.num_processes)
        check_outputs(extract_cls(self.model.encoder, center_crop(images, arguments.crop_size)))
        return {"skipped_steps": skipped, "seconds": round(time.perf_counter() - start, 1)}

    def begin(self) -> tuple[int, float]:
        """Make the optimizer, and take up the newest checkpoint; returns the steps done and the seconds they took."""
        arguments, accelerator, model = self.arguments, self.accelerator, self.model
        use_fast_attention(model.to(accelerator.device).train())
        newest = newest_checkpoint(self.run_directory.checkpoints, accelerator, self.run_directory.facts["run_id"])
        self.wrapped, self.optimizer = accelerator.prepare(model, _make_optimizer(model, arguments))
        if newest is None:
            self.faults = Faults(accelerator.device)
            self.run_directory.forget_after(-1)
            self._evaluate(0)
            return 0, 0.0
        step, extra = load_checkpoint(newest, model, self.optimizer.optimizer)
        self.collapse.count = extra["collapsed_windows"]
        self.faults = Faults(accelerator.device, **extra["faults"])
        self.averages.restore(extra, accelerator.device)
        self.run_directory.forget_after(step)
        accelerator.print(f"resuming from {newest}")
        return step, extra["seconds"]

    def step(self, step: int) -> None:
        """One optimizer step on one global batch."""
        arguments, accelerator, model = self.arguments, self.accelerator, self.model
        images, indices, epoch = self.images.batch(step, accelerator.process_index, accelerator.num_processes)
        scheduled = _schedule(arguments, step, self.total_steps)
        for group in self.optimizer.param_groups:
            if not group.get("constant_learning_rate"):
                group["lr"] = scheduled["learning_rate"]
            if group["decayed"]:
                group["weight_decay"] = scheduled["weight_decay"]
        temperatures = {name: value for name, value in scheduled.items() if name.endswith("temperature")}
        buffers = BuffersBefore(model)
        number = arguments.gradient_accumulation_steps
        outputs = []
        for i, micro_batch in enumerate(zip(images.chunk(number), indices.chunk(number))):
            with record_function("views"):
                views = self.make_views(*micro_batch, epoch)
            synchronise = i == number - 1
            with accelerator.no_sync(self.wrapped) if not synchronise else torch.enable_grad():
                precision = self.run_directory.facts["precision"]
                with record_function("forward"), autocast(accelerator.device, precision):
                    output = self.wrapped(**views, **temperatures)
                with record_function("backward"):
                    accelerator.backward(output.loss / number)
            outputs.append(output)
        with record_function("optimizer"):
            if model.has_teacher and step < arguments.freeze_last_layer_fraction * self.total_steps:
                model.student.head.last_layer.weight.grad = None
            limit = arguments.clip_grad_norm or math.inf
            gradient_norm = accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], limit)
            means = _mean_outputs(outputs, accelerator)
            if model.has_teacher:
                model.update_centre(means)
            fault = self.faults.note(accelerator, step, means.loss, gradient_norm, buffers)
            optimizer_step(self.optimizer, fault, buffers)
            if model.has_teacher:
                model.update_teacher(scheduled["teacher_momentum"], skip=fault)
        watched = {name: means[name] for name in _WATCHED if name in means}
        self.averages.add({**watched, "gradient_norm": gradient_norm}, fault)

    def _log(self, done: int, bar: Any) -> None:
        means = self.averages.pop(self.accelerator)
        skipped = self.faults.check(self.images.ids)
        scheduled = _schedule(self.arguments, done - 1, self.total_steps)
        self.run_directory.log(done, {"epoch": done / self.steps_per_epoch, **means, **scheduled, "skipped": skipped})
        if not means:
            return
        bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
        if done <= self.total_steps // 10:  # all outputs are alike at the start
            return
        warning = self.collapse.update(means)
        if warning and self.collapse.count == 1:
            self.run_directory.log(done, {"warning": warning})
            bar.write(f"warning: {warning}")
        if self.collapse.has_lasted and self.arguments.stop_on_collapse:
            raise InputError(
                f"{warning}, in another output_dir ({self.collapse.count} log lines in a row; "
                "--stop_on_collapse no --resume auto goes on as it is)"
            )

    def _evaluate(self, done: int) -> float | None:
        """Log the kNN monitor; returns its AUC where there is one."""
        found = self.monitor(self.model.encoder)
        self.run_directory.log(done, {"epoch": done / self.steps_per_epoch, **found})
        return found.get("knn_auc")

    def _save(self, done: int, seconds: float, score: float | None) -> None:
        extra = {
            "seconds": seconds,
            "faults": self.faults.counts(),
            "collapsed_windows": self.collapse.count,
            **self.averages.state(),
        }
        run = self.run_directory
        optimizer = self.optimizer.optimizer
        save_checkpoint(run.checkpoints, done, self.model, optimizer, extra, score, run.facts["run_id"])


_WATCHED = ("loss", "cls_loss", "patch_loss", "teacher_entropy", "output_std")


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
        optimizer = torch.optim.SGD(groups, lr=arguments.learning_rate, momentum=0.9, fused=True)
        for group in groups:  # the same as without; a first step that is skipped would leave them uninitialised
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)


def _schedule(arguments: PretrainArguments, step: int, total_steps: int) -> dict[str, float]:
    """The scheduled values of one step."""
    warmup_steps = round(arguments.warmup_fraction * total_steps)
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


def _mean_outputs(outputs: list[Any], accelerator: Accelerator) -> Any:
    """The outputs' means over micro-batches; those of the centres over the processes too."""
    first = outputs[0]
    for name in first:
        mean = torch.stack([output[name].detach() for output in outputs]).mean(dim=0)
        first[name] = accelerator.reduce(mean, "mean") if "centre" in name else mean
    return first
