"""The self-supervised models, `PreTrainedModel`s around a stock ViT, registered with the Auto classes."""

import contextlib

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .backbones import BACKBONES, backbone_config
from .cnn import LensCnnConfig, LensCnnForImageClassification
from .dino import DinoConfig, DinoForPreTraining, DinoForPreTrainingOutput
from .ibot import IBotConfig, IBotForPreTraining, IBotForPreTrainingOutput
from .simsiam import SimSiamConfig, SimSiamForPreTraining, SimSiamForPreTrainingOutput

METHODS = {"simsiam": SimSiamForPreTraining, "dino": DinoForPreTraining, "ibot": IBotForPreTraining}

for _model in METHODS.values():
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
AutoConfig.register(LensCnnConfig.model_type, LensCnnConfig, exist_ok=True)
AutoModelForImageClassification.register(LensCnnConfig, LensCnnForImageClassification, exist_ok=True)

# A machine that only trains may lack Pillow, or the torchvision that AutoImageProcessor needs in transformers 5.17.
with contextlib.suppress(ImportError):
    from ..data.image_processor import LensImageProcessor

    # Makes AutoImageProcessor find the class by its name, beside any configuration.
    AutoImageProcessor.register(DinoConfig, image_processor_classes={"pil": LensImageProcessor}, exist_ok=True)

__all__ = [
    "BACKBONES",
    "METHODS",
    "DinoConfig",
    "DinoForPreTraining",
    "DinoForPreTrainingOutput",
    "IBotConfig",
    "IBotForPreTraining",
    "IBotForPreTrainingOutput",
    "LensCnnConfig",
    "LensCnnForImageClassification",
    "SimSiamConfig",
    "SimSiamForPreTraining",
    "SimSiamForPreTrainingOutput",
    "backbone_config",
]
