"""A ViT for other images than it was trained on: patch and position embeddings are resampled, all else is kept."""

import copy
import math

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..errors import InputError


@torch.no_grad()
def resample(encoder: PreTrainedModel, image_size: int, patch_size: int) -> PreTrainedModel:
    """
    The encoder for images of `image_size` pixels in patches of `patch_size` pixels.

    Raises:
        [`InputError`]: the patch size does not divide the image size.
    """
    if (encoder.config.image_size, encoder.config.patch_size) == (image_size, patch_size):
        return encoder
    if image_size % patch_size:
        raise InputError(f"crop_size {image_size} is not a multiple of the model's patch size {patch_size}")
    config, state = copy.deepcopy(encoder.config), encoder.state_dict()
    config.image_size, config.patch_size = image_size, patch_size
    weight, positions = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
    state[weight] = resize_patches(state[weight], patch_size)
    state[positions] = resize_positions(state[positions], image_size // patch_size)
    options = {}
    if config.model_type in ("vit", "ijepa"):  # the others have no pooler, and their configuration says the rest
        options = {"add_pooling_layer": False, "use_mask_token": encoder.embeddings.mask_token is not None}
    resampled = type(encoder)(config, **options)
    resampled.load_state_dict(state)
    return resampled


def resize_patches(weight: torch.Tensor, size: int) -> torch.Tensor:
    """
    Weights of a patch embedding for patches of another size, by the pseudo-inverse of bilinear interpolation: the
    PI-resize of FlexiViT (Beyer et al. 2023, section 3.4). Their products with interpolated patches are nearest to
    those of `weight` with the patches themselves; for larger patches they are the same.

    Args:
        weight (`torch.Tensor` of shape `(hidden_size, bands, side, side)`): square kernels.
        size (`int`): side of the new patches in pixels.

    Returns:
        `torch.Tensor` of shape `(hidden_size, bands, size, size)`.
    """
    side = weight.shape[-1]
    if side == size:
        return weight
    each = torch.eye(side**2, dtype=torch.float64, device=weight.device).view(side**2, 1, side, side)
    interpolation = F.interpolate(each, (size, size), mode="bilinear", align_corners=False).flatten(1)
    resized = weight.double().flatten(2) @ torch.linalg.pinv(interpolation).T
    return resized.unflatten(2, (size, size)).to(weight.dtype)


def resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """
    Position embeddings of `side` x `side` patches: those of a square of patches are interpolated bicubically, that of
    [CLS] before them, where there is one, is kept.

    Args:
        positions (`torch.Tensor` of shape `(1, [CLS] + patches, hidden_size)`): patches in rows.
        side (`int`): patches per side of the new images.
    """
    old = math.isqrt(positions.shape[1])
    if old == side:
        return positions
    cls, patches = positions.split([positions.shape[1] - old**2, old**2], dim=1)
    grid = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
