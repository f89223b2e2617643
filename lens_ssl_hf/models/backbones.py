"""The Vision Transformers that are pretrained: stock transformers ViTs under the names that the study uses."""

import functools
import importlib.util
import logging
import math
import os
import shutil
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import ViTLayer

from ..errors import InputError
from .loading import VITS, load_any_vit, read_normalisation
from .resampling import resample

logger = logging.getLogger(__name__)

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


def backbone_name(config: PreTrainedConfig) -> str:
    """
    `"vits8"` for what [`backbone_config`] makes of that name, `"vits4"` for 4-pixel patches, else the sizes; of other
    models than stock ViTs behind their type: `"dinov2-vits8"`.
    """
    kind = "" if config.model_type == "vit" else f"{config.model_type}-"
    for name, (hidden_size, heads) in BACKBONES.items():
        if (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (hidden_size, heads, 12):
            return f"{kind}{name[:-1]}{config.patch_size}"
    return f"{kind}vit-{config.num_hidden_layers}x{config.hidden_size}-patch{config.patch_size}"


def vit_config(config: ViTConfig | dict | None) -> ViTConfig:
    """A nested backbone configuration, which comes back from JSON as a dictionary."""
    return config if isinstance(config, ViTConfig) else ViTConfig(**(config or {}))


def hidden_states(
    backbone: ViTModel, images: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> torch.Tensor:
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
    return backbone(images, bool_masked_pos=bool_masked_pos, interpolate_pos_encoding=interpolate).last_hidden_state


def interpolate_by_product(backbone: ViTModel) -> ViTModel:
    """
    Make a stock ViT interpolate its position embeddings by a matrix product: the values of its bicubic interpolation,
    whose gradient is not deterministic on a GPU.
    """
    embeddings = backbone.embeddings
    embeddings.interpolate_pos_encoding = functools.partial(_interpolate_positions, embeddings)
    return backbone


def _interpolate_positions(embeddings: torch.nn.Module, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    positions = embeddings.position_embeddings
    grid = math.isqrt(positions.shape[1] - 1)
    matrix = _bicubic(grid, height // embeddings.patch_size, width // embeddings.patch_size, positions.device)
    with torch.autocast(positions.device.type, enabled=False):
        return torch.cat([positions[:, :1], matrix.to(positions.dtype) @ positions[:, 1:]], dim=1)


@functools.lru_cache
def _bicubic(grid: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """`(height * width, grid^2)`: what bicubic interpolation makes of each patch's embedding."""
    each = torch.eye(grid**2).view(grid**2, 1, grid, grid)
    return F.interpolate(each, (height, width), mode="bicubic", align_corners=False).flatten(1).T.to(device)


def use_fast_attention(model: torch.nn.Module) -> None:
    """
    Make the ViTs in a model, which is on its device, compute attention the fast way there. On a CPU these are plain
    products: the fused kernel is up to eight times slower on the few tokens of a cutout, in bf16 above all. On a GPU
    it is a kernel of ours for few tokens, or where Triton is missing the fused kernel, without the mask that
    transformers makes in vain for a CUDA graph.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config.model_type in VITS:
            kind = "eager" if module.device.type == "cpu" else "unmasked"
            if can_compile(module.device):
                from .short_attention import attend  # needs Triton

                kind = "few_tokens"
                ALL_ATTENTION_FUNCTIONS.register(kind, attend)
            module.set_attn_implementation(kind)


def can_compile(device: torch.device) -> bool:
    """Whether Triton makes kernels there: it takes an NVIDIA GPU of the year 2020 or later, and a C compiler."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    return compiler is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def attend_unmasked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of all tokens `(batch, heads, tokens, size)` to all, in the form that transformers asks for."""
    output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("unmasked", attend_unmasked)


def compile_layers(model: torch.nn.Module) -> None:
    """
    Compile the layers of the ViTs in a model, which fuses what stands between their matrix products. The layers share
    their code, so that one is compiled for each shape instead of twelve. Weights keep their names.
    """
    for module in model.modules():
        if isinstance(module, ViTLayer):
            module.compile(dynamic=False)


def load_encoder(source: str | os.PathLike) -> PreTrainedModel:
    """
    The encoder, without pooler, of a run, an exported folder, an SSL checkpoint or a Hub id: a stock ViT, or another
    type of `VITS`.

    Args:
        source (`str` or `os.PathLike`): a run directory, a folder written by `save_pretrained`, or a Hub id.

    Raises:
        [`InputError`]: nothing is there, it is damaged or not whole, or it is no ViT.
    """
    model = load_any_vit(source)
    cutouts, encoder = getattr(model.config, "cutouts", None), model.base_model
    if cutouts is not None:
        encoder.config.cutouts = cutouts
    return encoder


def load_encoder_for(source: str | os.PathLike, image_size: int, bands: list[str], patch_size: int) -> PreTrainedModel:
    """
    [`load_encoder`] for images of another size. Where this package did not make the model, patches are resampled to
    `patch_size` pixels, and `config.cutouts` becomes its own normalisation.

    Raises:
        [`InputError`]: as [`load_encoder`]; or it was made for other bands than these.
    """
    encoder = load_encoder(source)
    check_bands(encoder.config, bands, source)
    _forget_dropout(encoder.config, source)
    if getattr(encoder.config, "cutouts", None) is None:
        encoder.config.cutouts = read_normalisation(source, len(bands))
        return resample(encoder, image_size, patch_size)
    return resample(encoder, image_size, encoder.config.patch_size)


def check_patches(config: PreTrainedConfig, patch_size: int, source: str | os.PathLike) -> None:
    """
    Raises:
        [`InputError`]: the model of this configuration, which is that of `source`, has other patches.
    """
    if config.patch_size != patch_size:
        raise InputError(
            f"{source} has patches of {config.patch_size} pixels, not {patch_size}: "
            f"give --patch_size {config.patch_size}"
        )


def _forget_dropout(config: PreTrainedConfig, source: str | os.PathLike) -> None:
    """Set dropout and stochastic depth to 0: a training that goes on would draw other masks than without a stop."""
    chances = {
        name: value for name, value in config.to_dict().items() if "dropout" in name or name == "drop_path_rate"
    }
    found = [name for name, value in chances.items() if value]
    for name in found:
        setattr(config, name, 0.0)
    if found:
        logger.warning("%s has dropout (%s), which is not used here", source, ", ".join(sorted(found)))


def check_bands(config: PreTrainedConfig, bands: list[str], source: str | os.PathLike) -> None:
    """
    Raises:
        [`InputError`]: the model of this configuration, which is that of `source`, was made for other bands.
    """
    known = (getattr(config, "cutouts", None) or {}).get("bands")
    if config.num_channels != len(bands):
        raise InputError(
            f"{source} takes {config.num_channels} bands but the dataset has {len(bands)}: choose --bands"
        )
    if known and known != bands:
        raise InputError(
            f"{source} takes the bands {', '.join(known)} but the dataset has {', '.join(bands)}: "
            f"choose --bands {' '.join(known)}"
        )


@torch.no_grad()
def extract_cls(
    encoder: torch.nn.Module, images: torch.Tensor, batch_size: int = 512, mean_patch: bool = False
) -> torch.Tensor:
    """
    [CLS] features `(n, hidden_size)` in float32 of normalised `(n, bands, size, size)` images; with `mean_patch` the
    mean of the patch tokens behind them, `(n, 2 * hidden_size)`.
    """
    encoder.eval()
    features = []
    for batch in images.split(batch_size):
        tokens = encoder(batch).last_hidden_state.float()
        features.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1) if mean_patch else tokens[:, 0])
    return torch.cat(features)
