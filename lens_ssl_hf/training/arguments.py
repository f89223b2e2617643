"""Settings of pretraining and fine-tuning as dataclasses: the scripts' options and the Python API's keywords."""

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from ..data.options import option as _option
from ..data.options import plain
from ..errors import InputError
from .schedules import last_momentum
from .tracking import check_trackers

if TYPE_CHECKING:
    from ..data.views import ViewSettings

METHOD_NAMES = {"simsiam": "SimSiam", "dino": "DINO", "ibot": "iBOT"}
METHODS = tuple(METHOD_NAMES)
_BACKBONES = ("vitt8", "vits8", "vitb8")
_REPORT_TO = "Trackers that get the lines of metrics.jsonl too: trackio, tensorboard, wandb; none by default."
_RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass
class ViewArguments:
    """How views are made; see [`~lens_ssl_hf.data.views.ViewSettings`]."""

    crop_size: int = _option(32, "Side in pixels of the images that the model sees.")
    gain: float = _option(0.5, "Contrast jitter common to the bands: factor from 1 - gain to 1 + gain.")
    offset: float = _option(0.5, "Brightness jitter common to the bands, in standard deviations of a band.")
    band_jitter: float = _option(0.2, "Gain and offset of each band by itself, up to this: hides the exact colour.")
    blur_probability: float = _option(0.0, "Share of the views that are blurred with a Gaussian.")
    blur_sigma_max: float = _option(1.0, "Largest sigma of the blur, in pixels of the view.")
    noise_sigma: float = _option(0.1, "Largest sigma of the added noise, in standard deviations of a band.")
    rotate: bool = _option(True, "Rotate views by any angle.")
    flip: bool = _option(True, "Mirror half of the views.")

    def view_settings(self, size: int, scale: tuple[float, float]) -> "ViewSettings":
        """What views of `size` pixels and of this range of scales look like."""
        from ..data.views import ViewSettings  # torch, which --help need not wait for

        names = ("rotate", "flip", "gain", "offset", "band_jitter", "blur_probability", "noise_sigma")
        shared = {name: getattr(self, name) for name in names}
        blur_sigma = (min(0.3, self.blur_sigma_max), self.blur_sigma_max)
        return ViewSettings(size=size, field=self.crop_size, scale=scale, blur_sigma=blur_sigma, **shared)


@dataclass
class PretrainArguments(ViewArguments):
    """
    Settings of a self-supervised pretraining. A recipe per method sets the numbers; the command line wins. The
    defaults here are those of dino.
    """

    output_dir: str = _option("runs/pretrain", "The run directory to write.")
    method: str = _option("dino", "simsiam, dino or ibot.")
    init: str = _option(
        "scratch", "A pretraining run, an exported folder or the Hub id of a stock ViT to go on from, or scratch."
    )
    backbone: str = _option("vits8", "vitt8, vits8 or vitb8 (only for --init scratch).")
    patch_size: int = _option(8, "Side of a patch in pixels.")
    epochs: int = _option(100, "Passes over the training images.")
    batch_size: int = _option(32, "Images per optimizer step, over all processes.")
    optimizer: str = _option("adamw", "adamw or sgd.")
    learning_rate: float = _option(5e-4, "Peak learning rate, for the batch size that is given.")
    final_learning_rate: float = _option(1e-6, "Learning rate at the end of the cosine.")
    warmup_fraction: float = _option(0.1, "Share of the steps with a linearly rising learning rate.")
    weight_decay: float = _option(0.04, "Weight decay at the start; none on norms and biases.")
    final_weight_decay: float = _option(0.04, "Weight decay at the end of the cosine.")
    clip_grad_norm: float = _option(3.0, "Largest gradient norm; 0 does not clip.")
    global_scale_min: float = _option(0.6, "Smallest area of a global view, as a fraction of the central field.")
    num_local_views: int = _option(2, "Small views per image (dino, ibot).")
    local_size: int = _option(24, "Side in pixels of a local view.")
    local_scale_min: float = _option(0.4, "Smallest area of a local view, as a fraction of the central field.")
    local_scale_max: float = _option(0.8, "Largest area of a local view, as a fraction of the central field.")
    mask_ratio: float = _option(0.3, "Share of the patches that are masked (ibot).")
    head_hidden_size: int = _option(512, "Width of the head's MLP (dino, ibot).")
    head_bottleneck_size: int = _option(128, "Bottleneck of the head (dino, ibot).")
    num_prototypes: int = _option(1024, "K, the outputs of the head (dino, ibot).")
    projection_size: int = _option(2048, "Width of the projector (simsiam).")
    prediction_hidden_size: int = _option(512, "Bottleneck of the predictor (simsiam).")
    student_temperature: float = _option(0.1, "Softmax temperature of the student (dino, ibot).")
    teacher_temperature: float = _option(0.03, "Softmax temperature of the teacher (dino, ibot).")
    warmup_teacher_temperature: float = _option(0.03, "The teacher's temperature at the start.")
    patch_teacher_temperature: float = _option(0.07, "The teacher's temperature on patches (ibot).")
    warmup_patch_teacher_temperature: float = _option(
        0.04, "The teacher's temperature on patches at the start (ibot)."
    )
    temperature_warmup_fraction: float = _option(0.3, "Share of the steps in which temperatures rise linearly.")
    teacher_momentum: float = _option(0.99, "EMA momentum of the teacher at the start (dino, ibot).")
    final_teacher_momentum: float | None = _option(
        None, "What a cosine takes it to; by default 1, but in short runs it stays as it is."
    )
    centre_momentum: float = _option(0.9, "EMA momentum of the centre (dino, ibot).")
    cls_loss_weight: float = _option(1.0, "lambda1, weight of the loss on [CLS] (ibot).")
    patch_loss_weight: float = _option(1.0, "lambda2, weight of the masked patch loss (ibot).")
    freeze_last_layer_fraction: float = _option(
        0.05, "Share of the steps in which the head's last layer stands still (dino, ibot)."
    )
    eval_every: int = _option(5, "Epochs between kNN evaluations on the validation split; 0 for none.")
    checkpoint_every: int = _option(1, "Epochs between checkpoints.")
    log_every: int = _option(10, "Steps between lines of metrics.jsonl.")
    report_to: list[str] | None = _option(None, _REPORT_TO)
    stream: str = _option("auto", "yes reads a saved dataset as it is needed, auto where it is larger than memory.")
    stop_on_collapse: bool = _option(True, "End a run whose outputs stay collapsed; no only warns.")
    seed: int = _option(0, "Seed of initial weights, data order and views.")
    precision: str = _option("auto", "auto (bf16 where the device computes in it), bf16 or fp32.")
    deterministic: bool = _option(False, "The same bits in every repetition on a GPU, too; slower there.")
    resume: str = _option("never", "auto goes on from the newest checkpoint in output_dir; never refuses a used one.")

    def __post_init__(self) -> None:
        _choose("method", self.method, METHODS)
        _choose("backbone", self.backbone, _BACKBONES)
        _choose("optimizer", self.optimizer, ("adamw", "sgd"))
        _choose("stream", self.stream, ("auto", "yes", "no"))
        _check_common(self)
        _positive(self, "epochs", "local_size", "checkpoint_every")
        _positive(self, "head_hidden_size", "prediction_hidden_size")
        _at_least_two(self, "batch_size", "num_prototypes", "head_bottleneck_size", "projection_size")
        _positive(self, "student_temperature", "teacher_temperature", "warmup_teacher_temperature")
        _positive(self, "patch_teacher_temperature", "warmup_patch_teacher_temperature")
        _positive(self, "global_scale_min", "local_scale_min", "mask_ratio")
        _not_negative(self, "final_learning_rate", "warmup_fraction", "final_weight_decay", "num_local_views")
        _at_most(self, 10, "final_learning_rate", "final_weight_decay")
        _not_negative(self, "cls_loss_weight", "patch_loss_weight", "freeze_last_layer_fraction", "eval_every")
        _at_most(self, 1, "global_scale_min", "local_scale_min", "local_scale_max", "mask_ratio")
        _at_most(self, 1, "warmup_fraction", "freeze_last_layer_fraction")
        fractions = ["teacher_momentum", "centre_momentum", "temperature_warmup_fraction"]
        fractions += ["final_teacher_momentum"] if self.final_teacher_momentum is not None else []
        _at_most(self, 1, *fractions)
        _not_negative(self, *fractions)
        if self.local_scale_min > self.local_scale_max:
            raise InputError(
                f"local_scale_min {self.local_scale_min} is larger than local_scale_max {self.local_scale_max}: "
                "change one of them"
            )
        if self.local_size % self.patch_size:
            raise InputError(f"local_size {self.local_size} is not a multiple of patch_size {self.patch_size}")

    def momentum_after(self, steps: int) -> float:
        """`final_teacher_momentum`, or what its default is in so many steps."""
        given = self.final_teacher_momentum
        return last_momentum(self.teacher_momentum, steps) if given is None else given

    def settle_momentum(self, steps: int) -> None:
        """Make the default of `final_teacher_momentum` the number that it is, as a study records it."""
        self.final_teacher_momentum = self.momentum_after(steps)


@dataclass
class FinetuneArguments(ViewArguments):
    """Settings of a fine-tuning, of a pretrained ViT or from scratch."""

    output_dir: str = _option("runs/finetune", "The run directory to write.")
    init: str = _option("scratch", "A run, an exported folder, the Hub id of a ViT, DINOv2 or I-JEPA, or scratch.")
    backbone: str = _option("vits8", "vitt8, vits8, vitb8, or cnn, a small one (only for --init scratch).")
    patch_size: int = _option(
        8, "Side of a patch in pixels (for --init scratch, or an id or a folder of somebody else's model)."
    )
    labels: str = _option("all", "Number of labelled training images, or all: nested, stratified, seeded subsets.")
    subset_seed: int | None = _option(None, "Seed of the label subset; defaults to seed.")
    extra_labels: list[str] | None = _option(None, "Tables of grades: these objects are trained on, too.")
    extra_scores: str | None = _option(None, "The folder of lens-ssl score with the objects of extra_labels.")
    steps: int = _option(1800, "Optimizer steps.")
    batch_size: int = _option(64, "Images per step, over all processes.")
    learning_rate: float = _option(3e-4, "Peak learning rate of the last layer of the backbone.")
    head_learning_rate: float = _option(1e-3, "Peak learning rate of the classifier.")
    weight_decay: float = _option(0.05, "Weight decay; none on norms and biases.")
    warmup_fraction: float = _option(0.1, "Share of the steps with a linearly rising learning rate.")
    clip_grad_norm: float = _option(3.0, "Largest gradient norm; 0 does not clip.")
    linear_probe: bool = _option(False, "Train the classifier alone on the frozen backbone.")
    scale_min: float = _option(0.6, "Smallest area of a view, as a fraction of the central field.")
    eval_every: int = _option(50, "Steps between evaluations on the validation split, which select the weights.")
    log_every: int = _option(10, "Steps between lines of metrics.jsonl.")
    report_to: list[str] | None = _option(None, _REPORT_TO)
    seed: int = _option(0, "Seed of the classifier (and of a scratch backbone), data order and views.")
    precision: str = _option("auto", "auto (bf16 where the device computes in it), bf16 or fp32.")
    deterministic: bool = _option(False, "The same bits in every repetition on a GPU, too; slower there.")
    resume: str = _option("never", "auto goes on from the newest checkpoint in output_dir; never refuses a used one.")

    def __post_init__(self) -> None:
        _choose("backbone", self.backbone, (*_BACKBONES, "cnn"))
        _check_common(self)
        if self.backbone == "cnn" and (self.init != "scratch" or self.linear_probe):
            raise InputError("backbone cnn is trained from scratch as a whole: leave init and linear_probe out")
        _positive(self, "steps", "eval_every", "scale_min")
        _not_negative(self, "head_learning_rate", "warmup_fraction")
        _at_most(self, 10, "head_learning_rate")
        _at_most(self, 1, "scale_min", "warmup_fraction")
        if self.labels != "all" and not (str(self.labels).isdecimal() and int(self.labels) > 0):
            raise InputError(f"labels must be a positive number or all, not {self.labels!r}")
        self.labels = str(self.labels)
        if self.subset_seed is not None and abs(self.subset_seed) >= 2**63:
            raise InputError(f"subset_seed must be below 2^63, not {self.subset_seed}")
        if bool(self.extra_labels) != bool(self.extra_scores):
            raise InputError("extra_labels and extra_scores need each other: give both, or none")
        if self.extra_labels:
            tables = [self.extra_labels] if isinstance(self.extra_labels, str | os.PathLike) else self.extra_labels
            self.extra_labels = [os.fspath(one) for one in tables]
            self.extra_scores = os.fspath(self.extra_scores)


def recipe(method: str) -> dict[str, Any]:
    """The numbers of `lens_ssl_hf/recipes/<method>.yaml`, as keywords of [`PretrainArguments`]."""
    _choose("method", method, METHODS)
    return yaml.safe_load((_RECIPES / f"{method}.yaml").read_text())


# Options of earlier versions, with the value that training still has.
FORMER_OPTIONS = {"gradient_accumulation_steps": 1, "layer_decay": 1.0}
# What runs did that were begun before there were these options.
FORMER_VALUES = {"final_teacher_momentum": 1.0}
_OF_TEACHERS = ("num_local_views", "local_size", "local_scale_min", "local_scale_max")
_OF_TEACHERS += ("teacher_temperature", "warmup_teacher_temperature", "final_teacher_momentum")


def as_begun(kind: type, recorded: dict[str, Any]) -> dict[str, Any]:
    """
    All settings of a run of an earlier version: those that it recorded, and for options that were not there yet, what
    training did then.

    Args:
        kind (`type`): [`PretrainArguments`] or [`FinetuneArguments`].
        recorded (`dict`): the `arguments` of its run.json, or the `settings` of its cell.json.
    """
    return {item.name: FORMER_VALUES.get(item.name, item.default) for item in fields(kind)} | FORMER_OPTIONS | recorded


def makes_no_difference(name: str, method: str | None) -> bool:
    """Whether a method does not use a setting whose default was once another one."""
    return method == "simsiam" and name in _OF_TEACHERS


def make_arguments(cls: type, settings: dict[str, Any]) -> Any:
    """`cls(**settings)` with a sentence instead of a traceback for an unknown setting or a value of another kind."""
    kinds = get_type_hints(cls)  # HfArgumentParser takes None out of the types of the fields
    for name in settings:
        if name not in kinds:
            raise InputError(f"unknown setting {name!r}: choose from {', '.join(kinds)}")
    return cls(**{name: plain(name, value, kinds[name]) for name, value in settings.items()})


def _check_common(arguments: Any) -> None:
    _finite(arguments)
    _choose("precision", arguments.precision, ("auto", "bf16", "fp32"))
    _choose("resume", arguments.resume, ("auto", "never"))
    if isinstance(arguments.report_to, str):
        arguments.report_to = [arguments.report_to]
    check_trackers(arguments.report_to or ())
    _positive(arguments, "batch_size", "crop_size", "patch_size", "log_every", "learning_rate", "blur_sigma_max")
    _not_negative(arguments, "gain", "offset", "band_jitter", "blur_probability", "noise_sigma")
    _not_negative(arguments, "weight_decay", "clip_grad_norm", "seed")
    if arguments.seed >= 2**32:
        raise InputError(f"seed must be below 2^32, not {arguments.seed}")
    _at_most(arguments, 1, "gain", "band_jitter", "blur_probability")
    _at_most(arguments, 10, "learning_rate", "weight_decay", "offset", "noise_sigma")
    _at_most(arguments, arguments.crop_size, "blur_sigma_max")
    has_patches = getattr(arguments, "init", "scratch") == "scratch" and arguments.backbone != "cnn"
    if has_patches and arguments.crop_size % arguments.patch_size:
        raise InputError(f"crop_size {arguments.crop_size} is not a multiple of patch_size {arguments.patch_size}")


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


# "not value > 0" instead of "value <= 0": so that NaN is refused too.
def _positive(arguments: Any, *names: str) -> None:
    for name in names:
        if not getattr(arguments, name) > 0:
            raise InputError(f"{name} must be positive, not {getattr(arguments, name)}")


def _not_negative(arguments: Any, *names: str) -> None:
    for name in names:
        if not getattr(arguments, name) >= 0:
            raise InputError(f"{name} must be 0 or positive, not {getattr(arguments, name)}")


def _at_most(arguments: Any, limit: float, *names: str) -> None:
    for name in names:
        if not getattr(arguments, name) <= limit:
            raise InputError(f"{name} must be at most {limit}, not {getattr(arguments, name)}")


def _at_least_two(arguments: Any, *names: str) -> None:
    for name in names:
        if not getattr(arguments, name) >= 2:  # one image, or one output, can be told from no other
            raise InputError(f"{name} must be at least 2, not {getattr(arguments, name)}")


def _finite(arguments: Any) -> None:
    for name, value in vars(arguments).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, not {value}")
