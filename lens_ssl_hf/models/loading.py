"""The one place that loads models: no code of theirs is run, no pickle is read, and what is not whole is refused."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file, logging

from ..data.files.raw import MAX_BANDS
from ..data.stretch import Stretch
from ..errors import InputError
from ..files import looks_local

# The types of models that are fine-tuned: ViTs with patch and position embeddings, and classifiers in transformers.
VITS = ("vit", "dinov2", "dinov2_with_registers", "ijepa")
WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
MAX_JSON = 10_000_000  # bytes
# Nothing is built of what a config.json says before these bounds: a number in a file can be any.
MAX_SIZES = {"num_channels": MAX_BANDS, "image_size": 4096, "patch_size": 4096, "num_hidden_layers": 200}
MAX_SIZES |= {"hidden_size": 16_384, "intermediate_size": 131_072, "num_attention_heads": 1024}
# What a ViT's file may hold beyond the model: the pooler, the mask token and the decoder serve pretraining alone.
HARMLESS = r"(.*\.)?(pooler\.dense\.(weight|bias)|mask_token|position_ids)|decoder\.\d+\.(weight|bias)"
# These, with or without an underscore before, would make transformers fetch code, or other weights than `WEIGHTS`.
_IGNORED = ("auto_map", "attn_implementation", "experts_implementation", "transformers_weights")
_HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
_AGAIN = "copy or download it again"


def load_classifier(
    source: str | os.PathLike, revision: str | None = None, token: str | bool | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    A lens classifier and what its preprocessor_config.json says.

    Args:
        source (`str` or `os.PathLike`): a finished fine-tuning run, a folder written by `save_pretrained`, a Hub id.
        revision (`str`, *optional*), token (`str`, *optional*): of a Hub id.
        options: for `from_pretrained`, such as `attn_implementation`; weights are float32 unless `dtype` is given.

    Raises:
        [`InputError`]: it is missing, damaged, not whole, or no classifier of lenses by a ViT or our CNN.
    """
    name, hub = locate(source, "finetune"), {"revision": revision, "token": token}
    config = _config(name, source, hub)
    cls = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    if cls is None or (config.model_type != "lens_cnn" and config.architectures != [cls.__name__]):
        raise InputError(f"{source} is no ViT classifier but {config.architectures}: give one")
    processor = _read_json(_file(name, PROCESSOR, source, hub), PROCESSOR, source)
    check_classifier(config, processor, source)
    return _load(cls, config, name, source, hub, **options), processor


def load_any_vit(source: str | os.PathLike) -> PreTrainedModel:
    """
    The model of `VITS` (the encoder without pooler, or the classifier) or the SSL model that `source` holds, in
    float32.

    Raises:
        [`InputError`]: it is missing, damaged, not whole, or no ViT.
    """
    name, hub = locate(source), {}
    config = _config(name, source, hub)
    if config.model_type == "lens_cnn":
        raise InputError(f"{source} is a CNN, which has no tokens and no pretraining: give a ViT")
    cutouts = getattr(config, "cutouts", None) or {}
    if "image_mean" in cutouts:
        _check_statistics(cutouts, _vit_config(config).num_channels, f"{CONFIG} of {source}")
    classifier = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    if classifier is not None and classifier.__name__ in (config.architectures or []):
        return _load(classifier, config, name, source, hub)
    options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    return _load(MODEL_MAPPING[type(config)], config, name, source, hub, **options)


def read_normalisation(source: str | os.PathLike, num_bands: int) -> dict[str, list[float]]:
    """
    `image_mean` and `image_std` of a model's image processor, of display units / 255; nothing where it has none.

    Raises:
        [`InputError`]: it does not divide by 255 and normalise, or not with numbers for so many bands.
    """
    path = _file(locate(source), PROCESSOR, source, {})
    if path is None:
        return {}
    values = _read_json(path, PROCESSOR, source)
    if not _does(values, "do_rescale", "do_normalize"):
        raise InputError(f"{PROCESSOR} of {source} does not divide by 255 and normalise: give another model")
    mean, std = _check_statistics(values, num_bands, f"{PROCESSOR} of {source}")
    return {"image_mean": mean, "image_std": std}


def read_config(source: str | os.PathLike) -> PreTrainedConfig:
    """
    The configuration of a run's model, a folder or a Hub id.

    Raises:
        [`InputError`]: it is missing or damaged, or of no ViT or CNN of ours.
    """
    return _config(locate(source), source, {})


def find_file(source: str | os.PathLike, filename: str) -> Path | None:
    """One more file beside a model of [`locate`]; `None` where there is none, or the Hub cannot be reached."""
    try:
        return _file(locate(source), filename, source, {})
    except InputError:
        return None


def locate(source: str | os.PathLike, task: str | None = None) -> str:
    """The folder of a run's model, or the folder or Hub id itself; `task` is the one that a run must have had."""
    folder = Path(source)
    if (folder / "run.json").is_file():
        found = _read_json(folder / "run.json", "run.json", source).get("task")
        if task == "finetune" and found == "pretrain":
            raise InputError(f"{source} is a pretraining run, without classifier: fine-tune it, or probe it")
        if not (folder / "model").is_dir():
            raise InputError(f"the {found} run {source} has not finished: go on with it with --resume auto")
        return str(folder / "model")
    if folder.is_dir():
        return str(folder)
    if os.path.lexists(folder):
        raise _fault(source, "it is a file", "give the folder that holds its config.json")
    if not re.fullmatch(_HUB_ID, str(source)) or looks_local(source):
        raise _fault(source, "there is no such folder", "correct it")
    return str(source)


def _fault(source: Any, fault: str, fix: str = _AGAIN) -> InputError:
    return InputError(f"cannot load a model from {source} ({fault}): {fix}")


def _file(name: str, filename: str, source: Any, hub: Mapping[str, Any]) -> Path | None:
    """One file of a model, or `None` where the model has none of this name."""
    if Path(name).is_dir():
        return path if (path := Path(name) / filename).is_file() else None
    try:
        found = cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise _fault(source, first_line(error), "give a folder, or a Hub id that you can reach") from error
    return None if found is None else Path(found)


def _read_json(path: Path | None, filename: str, source: Any) -> dict[str, Any]:
    if path is None:
        raise _fault(source, f"it has no {filename}", "give a run, or the folder or Hub id of a whole model")
    try:
        if path.stat().st_size > MAX_JSON:
            raise _fault(source, f"{filename} has more than {MAX_JSON} bytes")
        _refuse_pointer(path, source)
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _fault(source, f"{filename} cannot be read: {error.strerror}", "give yourself access to it") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _fault(source, f"{filename} is not JSON") from error
    if not isinstance(values, dict):
        raise _fault(source, f"{filename} holds no JSON object")
    return values


def _refuse_pointer(path: Path, source: Any) -> None:
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise _fault(source, f"{path.name} is a Git LFS pointer, not the file", "run git lfs pull there")


def _config(name: str, source: Any, hub: Mapping[str, Any]) -> PreTrainedConfig:
    values = _read_json(_file(name, CONFIG, source, hub), CONFIG, source)
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise _fault(source, f"{CONFIG} has no model_type")
    if kind not in VITS and not (kind.startswith("lens_") and kind in CONFIG_MAPPING):
        raise InputError(f"{source} is a {kind} model: give a ViT, DINOv2 (with or without registers) or I-JEPA")
    if values.get("quantization_config"):
        raise _fault(source, "its weights are quantised", "give one with float weights")
    for part in (values, values.get("backbone_config")):
        for key in _IGNORED if isinstance(part, dict) else ():
            part.pop(key, None)
            part.pop(f"_{key}", None)
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # values of wrong types make transformers raise nearly anything
        raise _fault(source, f"{CONFIG} describes no {kind} model: {first_line(error)}") from error
    sizes = _vit_config(config)
    for key, most in MAX_SIZES.items():
        value = getattr(sizes, key, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise _fault(source, f"{CONFIG} says {key} {value!r}, not a whole number from 1 to {most}")
    if not isinstance(getattr(config, "cutouts", None) or {}, dict):
        raise _fault(source, f"cutouts in {CONFIG} is no JSON object")
    return config


def _vit_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of an SSL model the configuration of its backbone, else `config` itself."""
    return getattr(config, "backbone_config", config)


def check_classifier(
    config: PreTrainedConfig, processor: Mapping[str, Any], source: Any
) -> tuple[int, list[float], list[float]]:
    """
    Refuse a classifier whose output is no P(lens), or whose images are not prepared as this package does it.

    Args:
        config (`PreTrainedConfig`): of the model.
        processor (`Mapping`): the fields of its image processor.
        source: how to call it in errors.

    Returns:
        `tuple[int, list[float], list[float]]`: side of the centre crop in pixels; mean and standard deviation per
        band, of display units / 255.

    Raises:
        [`InputError`]: other labels, another preparation, or numbers that cannot be.
    """
    labels = {number: str(label).lower() for number, label in config.id2label.items()}
    if labels.get(1) != "lens" or len(labels) != 2 or labels.get(0) == "lens":
        raise InputError(f"{source} has the labels {', '.join(labels.values())}: give one with nonlens, lens")
    if config.problem_type not in (None, "single_label_classification"):
        raise InputError(f"{source} is made for {config.problem_type}: give one with nonlens, lens")
    if processor.get("do_resize") or not _does(processor, "do_center_crop", "do_rescale", "do_normalize"):
        raise InputError(
            f"the image processor of {source} does not crop, divide by 255 and normalise as ours does: "
            "export the model again"
        )
    crop = processor.get("crop_size", config.image_size)
    sides = [crop] * 2 if type(crop) is int else [_entry(crop, "height"), _entry(crop, "width")]
    if sides != [config.image_size] * 2:
        raise InputError(
            f"the image processor of {source} crops to {sides[0]} x {sides[1]} pixels where the model takes "
            f"{config.image_size} x {config.image_size}: export the model again"
        )
    if cutouts := getattr(config, "cutouts", None):
        check_cutouts(cutouts, config.num_channels, source)
    return config.image_size, *_check_statistics(processor, config.num_channels, f"the image processor of {source}")


def check_cutouts(cutouts: Mapping[str, Any], num_bands: int | None, source: Any) -> None:
    """
    Raises:
        [`InputError`]: `config.cutouts` cannot be what a model says of its cutouts: bands and stretch, and the pixel
            scale and zero point where they are known.
    """
    try:
        stretch = Stretch.from_dict(cutouts["stretch"])
        curve = [stretch.black, stretch.white, stretch.softening] if stretch.kind != "none" else []
        bands = cutouts.get("bands")
        count = num_bands or len(bands or stretch.black)
        is_sound = (
            (bands is None or (len(bands) == count == len(set(bands)) and all(isinstance(b, str) for b in bands)))
            and all(len(values) == count and all(map(math.isfinite, values)) for values in curve)
            and all(white > black and s > 0 for black, white, s in zip(*curve))
            and all(_is_number(v) and (v > 0 or key != "pixel_scale")
                    for key in ("pixel_scale", "zero_point") if (v := cutouts.get(key)) is not None)
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        is_sound = False
    if not is_sound:
        raise _fault(source, f"cutouts in {CONFIG} does not say the model's bands and stretch", "export it again")


def _does(processor: Mapping[str, Any], *steps: str) -> bool:
    """Whether an image processor takes these steps, and rescales by 1 / 255."""
    factor = processor.get("rescale_factor", 1 / 255)
    return all(processor.get(step, True) for step in steps) and _is_number(factor) and math.isclose(factor, 1 / 255)


def _check_statistics(values: Mapping[str, Any], num_bands: int, where: str) -> tuple[list[float], list[float]]:
    """`image_mean` and `image_std`, one number per band."""
    found = []
    for key in ("image_mean", "image_std"):
        numbers = values.get(key)
        numbers = [numbers] * num_bands if _is_number(numbers) else numbers
        if not isinstance(numbers, Sequence) or len(numbers) != num_bands or not all(map(_is_number, numbers)):
            raise InputError(f"{key} in {where} is {numbers}, not {num_bands} finite numbers: export the model again")
        found.append([float(number) for number in numbers])
    if min(found[1]) <= 0:
        raise InputError(f"image_std in {where} is {found[1]}, not positive: export the model again")
    return found[0], found[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _entry(value: Any, key: str) -> Any:
    try:
        return value[key]
    except (TypeError, KeyError, IndexError):
        return None


def _load(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    name: str,
    source: Any,
    hub: Mapping[str, Any],
    **options: Any,
) -> PreTrainedModel:
    """`cls.from_pretrained`, of weights that are all there, all used, of the right shapes, and finite."""
    held = _count_values(name, source, hub)
    try:
        with torch.device("meta"):  # takes no memory
            kwargs = {key: value for key, value in options.items() if key == "add_pooling_layer"}
            empty = cls(config, **kwargs)
        wanted = sum(tensor.numel() for tensor in empty.state_dict().values())
        if wanted > 2 * held + 1_000_000:
            raise _fault(source, f"{CONFIG} describes {wanted:.2g} weights where {WEIGHTS} holds {held:.2g}")
        safe = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True, **hub}
        with _without_report():
            model, loading = cls.from_pretrained(name, config=config, **{"dtype": torch.float32, **options}, **safe)
    except InputError:
        raise
    except Exception as error:  # damaged files and wrong values make transformers and torch raise nearly anything
        raise _fault(source, f"{CONFIG} and {WEIGHTS} make no model: {first_line(error)}") from error
    unexpected = [key for key in loading["unexpected_keys"] if not re.fullmatch(HARMLESS, key)]
    mismatched = [key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]]
    problems = ((mismatched, "has another shape than config.json says"), (loading["missing_keys"], "is missing"))
    for keys, problem in (*problems, (unexpected, "has no place in the model of its config.json")):
        if keys:
            raise _fault(source, f"the weight {min(keys)} {problem}")
    check_weights(model, source)
    return model


def check_weights(model: torch.nn.Module, source: Any) -> None:
    """
    Raises:
        [`InputError`]: a weight is NaN or infinite, or a variance negative.
    """
    for key, value in model.state_dict().items():
        if not value.isfinite().all() or (key.endswith("running_var") and (value < 0).any()):
            raise _fault(source, f"the weight {key} is not finite", "train or export it again")


def _count_values(name: str, source: Any, hub: Mapping[str, Any]) -> int:
    """How many numbers the safetensors files of a model hold; all of them are there, and hold floats."""
    count = 0
    for path in weight_files(name, source, hub):
        _refuse_pointer(path, source)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    piece = file.get_slice(key)
                    count += math.prod(piece.get_shape())
                    if piece.get_dtype() not in ("F64", "F32", "F16", "BF16") and "num_batches" not in key:
                        raise _fault(source, f"the weight {key} is stored as {piece.get_dtype()}", "export it again")
        except InputError:
            raise
        except Exception as error:  # of the Rust library
            raise _fault(source, f"{path.name} is damaged: {first_line(error)}") from error
    return count


def weight_files(name: str, source: Any, hub: Mapping[str, Any]) -> Iterator[Path]:
    """The safetensors files of a model whose folder or Hub id is `name`."""
    if path := _file(name, WEIGHTS, source, hub):
        yield path
        return
    index = _file(name, f"{WEIGHTS}.index.json", source, hub)
    if index is None:
        raise _fault(source, f"it has no {WEIGHTS}; other files of weights are not read", "save it as safetensors")
    shards = _read_json(index, index.name, source).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise _fault(source, f"{index.name} has no weight_map")
    for shard in sorted(set(shards.values())):
        path = _file(name, shard, source, hub) if re.fullmatch(r"[\w.-]+\.safetensors", shard) else None
        if path is None:
            raise _fault(source, f"{shard} is missing, which {index.name} names")
        yield path


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' report of the keys, which become sentences here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def first_line(error: Exception) -> str:
    """What an error of a library says, on one line without a full stop."""
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".:")
