"""Find strong gravitational lenses with few labels: self-supervised Vision Transformers for the Hugging Face world."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers

# ruff: noqa: F401
if TYPE_CHECKING:  # for editors; at run time each name is imported when it is used
    from .data.dataset import load_cutouts
    from .data.image_processor import LensImageProcessor
    from .data.info import CutoutInfo, cutout_info
    from .data.painting import paint
    from .data.storage import save_cutouts
    from .data.stretch import Stretch
    from .errors import InputError
    from .evaluation.evaluate import evaluate_model
    from .hub.export import export
    from .hub.push import push_all, push_dataset, push_to_hub
    from .inference.classifier import predict
    from .inference.pipeline import pipeline
    from .inference.read_cutout import read_cutout
    from .models import DinoForPreTraining, IBotForPreTraining, SimSiamForPreTraining
    from .space.build import push_space
    from .survey.embedding_map import draw_map
    from .survey.grade import grade
    from .survey.rank import rank
    from .survey.score import score
    from .survey.search import find_anomalies, search
    from .training.finetune import finetune
    from .training.pretrain import pretrain

__version__ = "0.1.0"

_EXPORTS = {
    "DinoForPreTraining": "models",
    "IBotForPreTraining": "models",
    "CutoutInfo": "data.info",
    "InputError": "errors",
    "LensImageProcessor": "data.image_processor",
    "SimSiamForPreTraining": "models",
    "Stretch": "data.stretch",
    "cutout_info": "data.info",
    "draw_map": "survey.embedding_map",
    "evaluate_model": "evaluation.evaluate",
    "export": "hub.export",
    "find_anomalies": "survey.search",
    "finetune": "training.finetune",
    "grade": "survey.grade",
    "load_cutouts": "data.dataset",
    "paint": "data.painting",
    "pipeline": "inference.pipeline",
    "predict": "inference.classifier",
    "pretrain": "training.pretrain",
    "push_all": "hub.push",
    "push_dataset": "hub.push",
    "push_space": "space.build",
    "push_to_hub": "hub.push",
    "rank": "survey.rank",
    "read_cutout": "inference.read_cutout",
    "save_cutouts": "data.storage",
    "score": "survey.score",
    "search": "survey.search",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_with_transformers()
