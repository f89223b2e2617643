"""Find strong gravitational lenses with few labels: self-supervised Vision Transformers for the Hugging Face world."""

import importlib
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "DINO": "models",
    "IBOT": "models",
    "CutoutInfo": "data.processing",
    "InputError": "errors",
    "LensImageProcessor": "data.lens_image_processor",
    "SimSiam": "models",
    "Stretch": "data.processing",
    "cutout_info": "data.processing",
    "evaluate": "evaluation.evaluate",
    "export": "hub.export",
    "finetune": "training.finetune",
    "load_cutouts": "data.cutouts",
    "load_tensors": "data.tensors",
    "pipeline": "inference.pipeline",
    "predict": "evaluation.evaluate",
    "pretrain": "training.pretrain",
    "push_dataset": "hub.push",
    "push_space": "space.build",
    "push_to_hub": "hub.push",
    "read_cutout": "inference.read_cutout",
    "save_cutouts": "data.cutouts",
    "save_tensors": "data.tensors",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _is_help_of_a_script() -> bool:
    scripts = Path(__file__).resolve().parents[1] / "scripts"
    return bool({"-h", "--help"} & set(sys.argv[1:])) and Path(sys.argv[0]).resolve().parent == scripts


# Registers the models with the Auto classes. That takes torch and transformers, seconds that --help need not wait for.
if not _is_help_of_a_script():
    importlib.import_module(".models", __name__)
