"""
A small convolutional classifier, trained from scratch: what few labels give without a Vision Transformer. In one file
that needs nothing from the package: it is published beside the weights, whose `auto_map` names it for those who trust
remote code.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class LensCnnConfig(PreTrainedConfig):
    """
    Args:
        image_size (`int`, *optional*, defaults to `32`): side of the images in pixels.
        num_channels (`int`, *optional*, defaults to `3`): number of bands.
        hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(32, 64, 128)`): channels of the stages.
    """

    model_type = "lens_cnn"
    _auto_class = "AutoConfig"  # save_pretrained writes auto_map and copies this file

    def __init__(self, image_size=32, num_channels=3, hidden_sizes=(32, 64, 128), **kwargs):
        self.image_size = image_size
        self.num_channels = num_channels
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**kwargs)

    @property
    def reduction(self) -> int:
        """Pixels of an image per pixel of the last stage, along a side; an image must have as many."""
        return 2 ** (len(self.hidden_sizes) - 1)


class LensCnnForImageClassification(PreTrainedModel):
    """
    Two 3x3 convolutions with batch norm per stage, halved resolution between the stages, the mean over positions and a
    linear classifier: a VGG (Simonyan & Zisserman 2015) in small, 0.3 M parameters. The study's baseline without
    attention.
    """

    config_class = LensCnnConfig
    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"

    def __init__(self, config: LensCnnConfig):
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = config.num_channels
        for stage, width in enumerate(config.hidden_sizes):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, bands, size, size)`): normalised images.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): 0 or 1; with them a `loss`, cross-entropy, is
                returned, too.
        """
        logits = self.classifier(self.features(pixel_values).mean(dim=(2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
