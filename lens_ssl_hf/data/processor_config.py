"""The image processor that is written beside a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_json
from .image_processor import LensImageProcessor


def save_processor(
    folder: Path, cutouts: Mapping[str, Any], crop_size: int, image_mean: list[float], image_std: list[float]
) -> None:
    """
    Write the image processor of a model that reads display units: centre crop, x / 255, (x - mean) / std. For three
    bands that is the stock `ViTImageProcessor`, from JSON, as the class itself may need torchvision; for other
    numbers, which the stock one cannot read, [`LensImageProcessor`], with its code beside it.

    Args:
        folder (`Path`): the model's folder.
        cutouts (`Mapping`): `bands`, `pixel_scale` and `stretch` of the training data.
        crop_size (`int`): side of the crop in pixels.
        image_mean, image_std (`list[float]`): one per band, of display units / 255.
    """
    statistics = {"image_mean": image_mean, "image_std": image_std}
    if len(cutouts["bands"]) != 3:
        own = {name: cutouts[name] for name in ("bands", "pixel_scale", "stretch")}
        LensImageProcessor(**own, do_stretch=False, crop_size=crop_size, **statistics).save_pretrained(folder)
        return
    steps = {"do_resize": False, "do_center_crop": True, "do_rescale": True, "do_normalize": True}
    size = {"crop_size": {"height": crop_size, "width": crop_size}, "rescale_factor": 1 / 255}
    config = {"image_processor_type": "ViTImageProcessor", **steps, **size, **statistics}
    write_json(folder / "preprocessor_config.json", config)
