"""
Raw cutouts of 1 to 10 bands -> what a ViT reads. With flux.py, which it needs, this file is published beside models of
other than three bands, whose `auto_map` names it for those who trust remote code; both need nothing of the package.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .flux import fill_masked, is_same_scale, resample, stretch_flux


class LensImageProcessor(BaseImageProcessor):
    r"""
    Raw flux -> `pixel_values`: band selection and order, masked pixels, pixel scale, stretch, centre crop, rescaling
    and normalisation. On display units it equals the stock `ViTImageProcessor`, for any number of bands.

    Args:
        bands (`list[str]`, *optional*):
            Names of the model's bands, in order; their number is what cutouts are checked against.
        pixel_scale (`float`, *optional*):
            Arcsec per pixel of the model; cutouts of another scale are resampled where it is told (see `__call__`).
        stretch (`dict`, *optional*):
            `{"kind":, "black":, "white":, "softening":}` of [`~lens_ssl_hf.data.stretch.Stretch`].
        do_stretch (`bool`, *optional*, defaults to `True`):
            Set to `False` where cutouts come in display units. 8-bit pictures always do.
        crop_size (`int` or `dict`, *optional*, defaults to `32`):
            Side of the centre crop.
        rescale_factor (`float`, *optional*, defaults to `1/255`):
            Multiplies display units.
        image_mean, image_std (`list[float]`, *optional*):
            One per band, after rescaling; defaults to 0.5 each.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012
    _auto_class = "AutoImageProcessor"  # save_pretrained writes auto_map and copies both files

    def __init__(
        self,
        bands: Sequence[str] | None = None,
        pixel_scale: float | None = None,
        stretch: dict[str, Any] | None = None,
        do_stretch: bool = True,
        crop_size: int | dict[str, int] = 32,
        rescale_factor: float = 1 / 255,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.bands = list(bands) if bands else None
        self.pixel_scale = pixel_scale
        self.stretch = {key: v if isinstance(v, str) else list(v) for key, v in (stretch or {"kind": "none"}).items()}
        self.do_stretch = do_stretch
        self.crop_size = {"height": crop_size, "width": crop_size} if isinstance(crop_size, int) else dict(crop_size)
        self.rescale_factor = rescale_factor
        count = len(self.bands or self.stretch.get("black") or image_mean or [0.5] * 3)
        self.image_mean = list(image_mean) if image_mean is not None else [0.5] * count
        self.image_std = list(image_std) if image_std is not None else [0.5] * count
        if not 1 <= count <= 10 or len(self.image_mean) != count or len(self.image_std) != count:
            raise ValueError(f"image_mean and image_std must have one number for each of the {count} bands (1 to 10)")

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See [`~LensImageProcessor.preprocess`]."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Any,
        input_bands: Sequence[str] | None = None,
        input_pixel_scale: float | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images:
                Array or tensor `(bands, H, W)`, PIL image, batch `(n, bands, H, W)`, or list of these. Floats are
                linear flux, NaN where masked; 8-bit values and PIL images are display units.
            input_bands (`Sequence[str]`, *optional*):
                Names of the bands of `images`, where they are not the model's in the model's order.
            input_pixel_scale (`float`, *optional*):
                Arcsec per pixel of `images`, where it is not the model's.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(n, bands, crop_size, crop_size)`, float32.

        Raises:
            `ValueError`: wrong number of bands, missing band, cutout smaller than the crop, or all NaN.
        """
        if isinstance(images, list | tuple):
            images = list(images)
        else:
            images = list(images) if getattr(images, "ndim", 0) == 4 else [images]
        pixels = [self._process(image, i, input_bands, input_pixel_scale) for i, image in enumerate(images)]
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _process(self, image: Any, index: int, bands: Sequence[str] | None, pixel_scale: float | None) -> np.ndarray:
        name = f"cutout {index}"
        is_picture = hasattr(image, "convert")  # PIL
        is_8_bit = getattr(image, "dtype", None) == np.uint8  # also where it is masked
        if isinstance(image, torch.Tensor):  # numpy knows no bfloat16
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        elif isinstance(image, np.ma.MaskedArray):
            image = image.astype(np.float32).filled(np.nan)
        array = np.asarray(image)
        is_display = is_8_bit or array.dtype == np.uint8
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0) if is_picture else array
        count = len(self.image_mean)
        if bands is not None and self.bands is not None:
            missing = [band for band in self.bands if band not in bands]
            if missing or len(bands) != len(array):
                raise ValueError(f"{name} has the bands {', '.join(bands)}: the model needs {', '.join(self.bands)}")
            array = array[[list(bands).index(band) for band in self.bands]]
        if array.ndim != 3 or len(array) != count:
            raise ValueError(f"{name} has shape {array.shape}: the model needs ({count}, height, width)")
        flux = np.where(np.isfinite(array), array, np.nan).astype(np.float32)
        if np.isnan(flux).all(axis=(1, 2)).any():
            raise ValueError(f"{name} has no valid pixel (all NaN) in at least one band: leave it out")
        flux = fill_masked(flux)
        if pixel_scale and self.pixel_scale and not is_same_scale(pixel_scale, self.pixel_scale):
            flux = resample(flux, pixel_scale / self.pixel_scale, is_flux=not is_display)
        height, width = self.crop_size["height"], self.crop_size["width"]
        top, left = (flux.shape[1] - height) // 2, (flux.shape[2] - width) // 2
        if top < 0 or left < 0:
            size = f"{flux.shape[1]} x {flux.shape[2]}"
            raise ValueError(
                f"{name} is {size} pixels, smaller than the crop of {height} x {width}: cut it out larger"
            )
        flux = flux[:, top : top + height, left : left + width]
        display = stretch_flux(flux, **self.stretch) if self.do_stretch and not is_display else flux
        mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.image_mean, self.image_std))
        return (display * np.float32(self.rescale_factor) - mean) / std
