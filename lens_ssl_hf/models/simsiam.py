"""SimSiam (Chen & He 2021, arXiv:2011.10566): two views, one encoder, a predictor and a stop-gradient."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel
from transformers.utils import ModelOutput

from .backbones import hidden_states, vit_config
from .heads import SimSiamPrediction, SimSiamProjection
from .losses import negative_cosine_similarity, normalised_std


class SimSiamConfig(PreTrainedConfig):
    """
    Args:
        backbone_config (`ViTConfig` or `dict`, *optional*): the encoder.
        projection_size (`int`, *optional*, defaults to `2048`): width and output of the projector.
        prediction_hidden_size (`int`, *optional*, defaults to `512`): bottleneck of the predictor.
    """

    model_type = "lens_simsiam"
    sub_configs = {"backbone_config": ViTConfig}  # noqa: RUF012

    def __init__(self, backbone_config=None, projection_size=2048, prediction_hidden_size=512, **kwargs):
        self.backbone_config = vit_config(backbone_config)
        self.projection_size = projection_size
        self.prediction_hidden_size = prediction_hidden_size
        super().__init__(**kwargs)


@dataclass
class SimSiamForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (scalar `torch.Tensor`): -1/2 D(p1, sg(z2)) - 1/2 D(p2, sg(z1)), in [-1, 1].
        output_std (scalar `torch.Tensor`): spread of the l2-normalised projections; 0 is collapse.
    """

    loss: torch.Tensor | None = None
    output_std: torch.Tensor | None = None


class SimSiamForPreTraining(PreTrainedModel):
    """A ViT with SimSiam's projector and predictor. The base model, which is published, is the ViT."""

    config_class = SimSiamConfig
    base_model_prefix = "backbone"
    main_input_name = "global_views"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]  # noqa: RUF012
    _supports_sdpa = True
    has_teacher = False

    def __init__(self, config: SimSiamConfig):
        super().__init__(config)
        self.backbone = ViTModel(config.backbone_config, add_pooling_layer=False)
        self.projection = SimSiamProjection(config.backbone_config.hidden_size, config.projection_size)
        self.prediction = SimSiamPrediction(config.projection_size, config.prediction_hidden_size)
        self.post_init()

    @property
    def encoder(self) -> ViTModel:
        """The stock ViT that is exported and evaluated."""
        return self.backbone

    def forward(self, global_views: torch.Tensor) -> SimSiamForPreTrainingOutput:
        """
        Args:
            global_views (`torch.Tensor` of shape `(2, batch, bands, size, size)`): two normalised views per image.
        """
        first, second = (self._project(view) for view in global_views)
        loss = 0.5 * negative_cosine_similarity(self.prediction(first), second)
        loss = loss + 0.5 * negative_cosine_similarity(self.prediction(second), first)
        return SimSiamForPreTrainingOutput(loss=loss, output_std=normalised_std(first))

    def _project(self, view: torch.Tensor) -> torch.Tensor:
        # Each view is normalised with its own batch statistics, as in the reference implementation.
        return self.projection(hidden_states(self.backbone, view)[:, 0])
