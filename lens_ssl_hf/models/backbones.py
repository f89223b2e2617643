"""The Vision Transformers that are pretrained: stock transformers ViTs under the names that the study uses."""

from transformers import ViTConfig, ViTModel

from ..errors import InputError

# name -> (hidden size, attention heads); all have 12 layers (Dosovitskiy et al. 2021; Touvron et al. 2021 for T and S)
BACKBONES = {"vitt8": (192, 3), "vits8": (384, 6), "vitb8": (768, 12)}


def backbone_config(
    name: str = "vits8", image_size: int = 32, patch_size: int = 8, num_channels: int = 3, num_hidden_layers: int = 12
) -> ViTConfig:
    """
    Configuration of a stock ViT.

    Args:
        name (`str`, *optional*, defaults to `"vits8"`):
            `"vitt8"` (5.5 M parameters), `"vits8"` (21 M) or `"vitb8"` (85 M).
        image_size (`int`, *optional*, defaults to `32`):
            Side of the images in pixels, a multiple of `patch_size`.
        patch_size (`int`, *optional*, defaults to `8`):
            Side of a patch in pixels.
        num_channels (`int`, *optional*, defaults to `3`):
            Number of bands.
        num_hidden_layers (`int`, *optional*, defaults to `12`):
            Depth.

    Raises:
        [`InputError`]: unknown name, or an image size that the patch size does not divide.
    """
    if name not in BACKBONES:
        raise InputError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    if image_size % patch_size or image_size <= 0:
        raise InputError(f"crop_size {image_size} is not a multiple of patch_size {patch_size}: change one of them")
    hidden_size, heads = BACKBONES[name]
    return ViTConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        layer_norm_eps=1e-6,
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
    )


def hidden_states(backbone: ViTModel, images, bool_masked_pos=None):
    """
    Token features of a batch of square images of any size that the patch size divides.

    Args:
        backbone (`ViTModel`): a stock ViT.
        images (`torch.Tensor` of shape `(batch, bands, size, size)`): normalised pixels.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`, *optional*): patches shown as the mask token.

    Returns:
        `torch.Tensor` of shape `(batch, 1 + patches, hidden_size)`: [CLS] first, after the last layer norm.
    """
    interpolate = images.shape[-1] != backbone.config.image_size
    return backbone(
        images, bool_masked_pos=bool_masked_pos, interpolate_pos_encoding=interpolate
    ).last_hidden_state
