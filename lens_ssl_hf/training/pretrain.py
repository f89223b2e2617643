"""Self-supervised pretraining with SimSiam, DINO or iBOT: views of unlabelled cutouts to the method's loss."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from transformers import PreTrainedModel, ViTConfig, ViTModel

from ..data.samplers import ResidentImages, StreamedImages
from ..data.storage import ParquetSplits
from ..data.tensors import center_crop, channel_statistics, normalise, read_split, splits_and_info
from ..data.views import Counter, Views
from ..errors import InputError
from ..models import METHODS, backbone_config
from ..models.backbones import backbone_name, check_patches, extract_cls, load_encoder_for
from .accelerator import make_accelerator
from .arguments import PretrainArguments, as_begun, make_arguments, recipe
from .faults import check_outputs
from .monitors import MONITORED, CollapseWatch, FeatureMonitor
from .run_directory import origin, read_run
from .schedules import cosine, linear
from .trainer import Batch, Number, Task, train

logger = logging.getLogger(__name__)

FEW_STEPS = 1000  # of DINO and iBOT: docs/study.md, "Short pretrainings"


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
        cutouts (`DatasetDict`, or path of a directory):
            From [`load_cutouts`] or [`save_cutouts`]; what does not fit into memory is read as it is needed, from such
            a directory.
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
    given = {"method": method, "init": init, "output_dir": output_dir}
    arguments = make_arguments(PretrainArguments, {**recipe(method), **settings, **given})
    accelerator = make_accelerator(arguments.precision, arguments.deterministic)
    data = _open_data(cutouts, arguments, accelerator)
    set_seed(arguments.seed)
    encoder = None
    if arguments.init != "scratch":
        encoder = load_encoder_for(arguments.init, arguments.crop_size, data.info["bands"], arguments.patch_size)
        if not isinstance(encoder, ViTModel):
            raise InputError(
                f"{arguments.init} is a {encoder.config.model_type} model: pretrain a ViT, or fine-tune it"
            )
    model = _make_model(arguments, data, encoder)
    facts = {"task": "pretrain", "method": method, "backbone": backbone_name(model.encoder.config), "data": data.info}
    facts |= {"num_train_images": len(data.images), "num_train_labels": data.num_labels}
    facts |= {"num_parameters": sum(p.numel() for p in model.encoder.parameters()), **origin(arguments.init, encoder)}
    task = Pretraining(model, data, arguments, accelerator)
    stream = "yes" if isinstance(data.images, StreamedImages) else "no"
    facts["resolved"] = {"final_teacher_momentum": task.final_teacher_momentum, "stream": stream}
    _go_on_as_recorded(arguments, facts["resolved"])
    if accelerator.is_main_process and method != "simsiam" and task.steps < FEW_STEPS:
        logger.warning(
            f"{task.steps} steps are few: after {FEW_STEPS:,} to 3,000, features were worth much more on simulated "
            "cutouts (docs/training.md). Give more epochs, or smaller batches"
        )
    return train(task, facts, accelerator)


@dataclass
class PretrainingData:
    """What a pretraining is made of."""

    images: ResidentImages | StreamedImages
    monitor: FeatureMonitor | None
    num_labels: int  # of train, which the monitor alone uses
    info: dict  # the fields of `CutoutInfo`
    mean: list[float]  # per band; of streamed images, like std, of a sample
    std: list[float]


def _open_data(cutouts: Any, arguments: PretrainArguments, accelerator: Accelerator) -> PretrainingData:
    """What to train on."""
    batch_size, processes = arguments.batch_size, accelerator.num_processes
    if batch_size % processes:
        raise InputError(f"batch_size {batch_size} is not a multiple of {processes} processes: change one of them")
    if batch_size < 2 * processes:  # of one image, features have no spread to watch
        raise InputError(f"batch_size {batch_size} leaves one image per process: give at least {2 * processes}")
    is_directory = isinstance(cutouts, str | os.PathLike) and Path(cutouts).is_dir()
    parquet = ParquetSplits(Path(cutouts)) if is_directory else None
    is_streamed = _streams(parquet, arguments, accelerator)
    if parquet is not None:
        number = MONITORED if is_streamed else sys.maxsize
        found = {name: read_split(parquet, name, number) for name in ("train", "validation", "unlabelled")}
        splits, info = {name: split for name, split in found.items() if split is not None}, parquet.info
    else:
        splits, info = splits_and_info(cutouts, "train", "validation", "unlabelled")
    parts = [splits[name] for name in ("train", "unlabelled") if name in splits]
    if not parts:
        raise InputError("the dataset has neither a train nor an unlabelled split: nothing to pretrain on")
    pixels = torch.cat([part.pixels for part in parts]) if len(parts) > 1 else parts[0].pixels
    mean, std = channel_statistics(pixels, arguments.crop_size)
    if is_streamed:
        images = StreamedImages(parquet, mean, std, batch_size, arguments.seed, accelerator.device)
        images.share(0, processes)  # refuses numbers that cannot share
    elif len(pixels) < batch_size:
        raise InputError(f"{len(pixels)} images are fewer than batch_size {batch_size}: lower batch_size")
    else:
        ids = [one for part in parts for one in part.ids]
        images = ResidentImages(normalise(pixels.to(accelerator.device), mean, std), ids, batch_size, arguments.seed)
    monitor = FeatureMonitor(splits, arguments.crop_size, mean, std, accelerator) if arguments.eval_every else None
    num_labels = int((splits["train"].labels >= 0).sum()) if "train" in splits else 0
    return PretrainingData(images, monitor, num_labels, info, mean, std)


def _streams(parquet: ParquetSplits | None, arguments: PretrainArguments, accelerator: Accelerator) -> bool:
    """Whether the images are read as they are needed: asked for, begun so, or more than half of what is free."""
    wanted = arguments.stream
    if wanted == "auto":
        _, begun = _recorded(arguments)
        wanted = begun.get("stream", "auto")
    if parquet is None:
        if wanted == "yes":
            raise InputError("stream yes needs a dataset that save_cutouts or build_dataset.py wrote as a directory")
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


def _recorded(arguments: PretrainArguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The settings that the run recorded which goes on, as they were given, and with what defaults came to, which earlier
    versions recorded in their place; empty where none goes on.
    """
    if arguments.resume != "auto" or not (Path(arguments.output_dir) / "run.json").is_file():
        return {}, {}
    run = read_run(arguments.output_dir)
    given = as_begun(PretrainArguments, run["arguments"])
    return given, given | run.get("resolved", {})


def _go_on_as_recorded(arguments: PretrainArguments, resolved: dict[str, Any]) -> None:
    """What comes to the same as in the run that goes on is recorded as it was there."""
    given, begun = _recorded(arguments)
    for name, value in resolved.items():
        if name in given and getattr(arguments, name) != given[name]:
            setattr(arguments, name, given[name] if begun[name] == value else value)


def _make_model(
    arguments: PretrainArguments, data: PretrainingData, encoder: ViTModel | None = None
) -> PreTrainedModel:
    """The SSL model, its backbones with the weights of `encoder` where there is one; heads begin anew."""
    model_class = METHODS[arguments.method]
    if encoder is None:
        backbone = backbone_config(
            arguments.backbone, arguments.crop_size, arguments.patch_size, len(data.info["bands"])
        )
    else:
        config, ours = encoder.config.to_dict(), ("cutouts", "init_method")
        backbone = ViTConfig(**{name: value for name, value in config.items() if name not in ours})
        check_patches(backbone, arguments.patch_size, arguments.init)
    names = ("projection_size", "prediction_hidden_size") if arguments.method == "simsiam" else (
        "head_hidden_size", "head_bottleneck_size", "num_prototypes", "student_temperature", "centre_momentum"
    )  # fmt: skip
    if arguments.method == "ibot":
        names += ("cls_loss_weight", "patch_loss_weight")
    heads = {name: getattr(arguments, name) for name in names}
    cutouts = {name: data.info[name] for name in ("bands", "pixel_scale", "zero_point", "stretch")}
    cutouts |= {"image_mean": data.mean, "image_std": data.std}
    model = model_class(model_class.config_class(backbone_config=backbone, cutouts=cutouts, **heads))
    if encoder is not None:
        for backbone in (module for module in model.modules() if isinstance(module, ViTModel)):
            own = backbone.state_dict()  # with a mask token or without, as the method has it
            weights = {name: value for name, value in encoder.state_dict().items() if name in own}
            backbone.load_state_dict({**own, **weights})
    return model


class Pretraining(Task):
    """Views of a batch -> the method's loss; teacher and centres follow; probes of [CLS] tell how far it is."""

    watched = ("loss", "cls_loss", "patch_loss", "teacher_entropy", "output_std")
    best_by = "probe_auc"
    evaluates_first = True

    def __init__(
        self, model: PreTrainedModel, data: PretrainingData, arguments: PretrainArguments, accelerator: Accelerator
    ):
        self.name = f"pretrain {arguments.method}"
        self.model, self.samples, self.monitor = model, data.images, data.monitor
        self.arguments, self.accelerator = arguments, accelerator
        self.section = self.samples.steps_per_epoch
        self.steps = arguments.epochs * self.section
        self.final_teacher_momentum = arguments.momentum_after(self.steps)
        self.evaluate_every = arguments.eval_every * self.section
        self.save_every = arguments.checkpoint_every * self.section
        outputs = arguments.projection_size if arguments.method == "simsiam" else arguments.num_prototypes
        self.collapse = CollapseWatch(arguments.method, outputs)
        self.views = Views(arguments.seed, accelerator.device)
        self.global_settings = arguments.view_settings(arguments.crop_size, (arguments.global_scale_min, 1.0))
        local_scale = (arguments.local_scale_min, arguments.local_scale_max)
        self.local_settings = arguments.view_settings(arguments.local_size, local_scale)

    def make_optimizer(self) -> torch.optim.Optimizer:
        arguments, model = self.arguments, self.model
        if arguments.method == "simsiam":
            # The predictor's learning rate is not decayed (Chen & He 2021, section 4.3).
            body = torch.nn.ModuleList([model.backbone, model.projection])
            predictor = _parameter_groups(model.prediction, arguments.weight_decay)
            groups = _parameter_groups(body, arguments.weight_decay)
            groups += [{**group, "constant_learning_rate": True} for group in predictor]
        else:
            groups = _parameter_groups(model, arguments.weight_decay)
        if arguments.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)
        optimizer = torch.optim.SGD(groups, lr=arguments.learning_rate, momentum=0.9, fused=True)
        for group in groups:  # the same as without; a first step that is skipped would leave them uninitialised
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def schedule(self, step: int, groups: list[dict[str, Any]]) -> dict[str, float]:
        scheduled = self._scheduled(step)
        for group in groups:
            if not group.get("constant_learning_rate"):
                group["lr"] = scheduled["learning_rate"]
            if group["decayed"]:
                group["weight_decay"] = scheduled["weight_decay"]
        return scheduled

    def _scheduled(self, step: int) -> dict[str, float]:
        """Learning rate and weight decay; of a teacher its momentum and temperatures too."""
        arguments, steps = self.arguments, self.steps
        warmup = round(arguments.warmup_fraction * steps)
        values = {
            "learning_rate": cosine(arguments.learning_rate, arguments.final_learning_rate, step, steps, warmup),
            "weight_decay": cosine(arguments.weight_decay, arguments.final_weight_decay, step, steps),
        }
        if arguments.method == "simsiam":
            return values
        values["teacher_momentum"] = cosine(arguments.teacher_momentum, self.final_teacher_momentum, step, steps)
        warmup = round(arguments.temperature_warmup_fraction * steps)
        names = ("teacher_temperature", "patch_teacher_temperature")
        for name in names if arguments.method == "ibot" else names[:1]:
            values[name] = linear(getattr(arguments, f"warmup_{name}"), getattr(arguments, name), step, warmup)
        return values

    def make_batch(self, images: torch.Tensor, indices: torch.Tensor, epoch: Counter) -> Batch:
        """The views, as keywords of the model's forward."""
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

    def forward(self, model: torch.nn.Module, batch: Batch, scheduled: Mapping[str, Number]) -> Batch:
        temperatures = {name: value for name, value in scheduled.items() if name.endswith("temperature")}
        return model(**batch, **temperatures)

    def phase(self, step: int) -> bool:
        """Whether the head's last layer stands still."""
        return self.model.has_teacher and step < self.arguments.freeze_last_layer_fraction * self.steps

    def after_backward(self, phase: bool, output: Any) -> None:
        if not self.model.has_teacher:
            return
        if phase:
            self.model.student.head.last_layer.weight.grad = None
        for name in output:
            if "centre" in name:  # of all processes
                output[name] = self.accelerator.reduce(output[name].detach(), "mean")
        self.model.update_centre(output)

    def after_step(self, scheduled: Mapping[str, Number], skip: torch.Tensor) -> None:
        if self.model.has_teacher:
            self.model.update_teacher(scheduled["teacher_momentum"], skip=skip)

    def epoch(self, done: int) -> float:
        return done / self.section

    def evaluate(self, done: int) -> dict[str, float]:
        return self.monitor(self.model.encoder) if self.monitor else {}

    def warning(self, done: int, means: dict[str, float]) -> str | None:
        """Of a collapse, where the window before showed none; ends a run that stays collapsed."""
        if done <= self.steps // 10:  # all outputs are alike at the start
            return None
        warning = self.collapse.update(means)
        if self.collapse.has_lasted and self.arguments.stop_on_collapse:
            raise InputError(
                f"{warning}, in another output_dir ({self.collapse.count} log lines in a row; "
                "--stop_on_collapse no --resume auto goes on as it is)"
            )
        return warning if self.collapse.count == 1 else None

    def state(self) -> dict[str, Any]:
        return {"collapsed_windows": self.collapse.count}

    def restore(self, extra: dict[str, Any]) -> None:
        self.collapse.count = extra["collapsed_windows"]

    def finish(self) -> dict[str, Any]:
        images, _, _ = self.samples.batch(0, self.accelerator.process_index, self.accelerator.num_processes)
        check_outputs(extract_cls(self.model.encoder, center_crop(images, self.arguments.crop_size)))
        return {"collapsed": self.collapse.has_lasted}  # a run that was told to go on

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices with weight decay, norms and biases without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay, "decayed": True},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0, "decayed": False},
    ]
