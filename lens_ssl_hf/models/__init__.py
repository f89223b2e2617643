"""The self-supervised models, `PreTrainedModel`s around a stock ViT, registered with the Auto classes."""

import contextlib

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .backbones import BACKBONES, backbone_config
from .cnn import CNN, CNNConfig
from .dino import DINO, DINOConfig, DINOOutput
from .ibot import IBOT, IBOTConfig, IBOTOutput
from .simsiam import SimSiam, SimSiamConfig, SimSiamOutput

METHODS = {"simsiam": SimSiam, "dino": DINO, "ibot": IBOT}

for _model in METHODS.values():
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
AutoConfig.register(CNNConfig.model_type, CNNConfig, exist_ok=True)
AutoModelForImageClassification.register(CNNConfig, CNN, exist_ok=True)

# A machine that only trains may lack Pillow, or the torchvision that AutoImageProcessor needs in transformers 5.17.
with contextlib.suppress(ImportError):
    from ..data.image_processor import LensImageProcessor

    # Makes AutoImageProcessor find the class by its name, beside any configuration.
    AutoImageProcessor.register(DINOConfig, image_processor_classes={"pil": LensImageProcessor}, exist_ok=True)

__all__ = [
    "BACKBONES",
    "CNN",
    "DINO",
    "IBOT",
    "METHODS",
    "CNNConfig",
    "DINOConfig",
    "DINOOutput",
    "IBOTConfig",
    "IBOTOutput",
    "SimSiam",
    "SimSiamConfig",
    "SimSiamOutput",
    "backbone_config",
]
