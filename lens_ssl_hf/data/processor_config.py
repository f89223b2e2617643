"""The image processor that is written beside a model."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_json


def save_processor(
    folder: Path, cutouts: Mapping[str, Any], crop_size: int, image_mean: list[float], image_std: list[float]
) -> None:
    """
    Write the image processor of a model that reads display units: centre crop, x / 255, (x - mean) / std. For three
    bands that is the stock `ViTImageProcessor`; for other numbers, which the stock one cannot read,
    [`LensImageProcessor`], with its code beside it. From JSON, because the classes themselves need Pillow and training
    does not.

    Args:
        folder (`Path`): the model's folder.
        cutouts (`Mapping`): `bands`, `pixel_scale` and `stretch` of the training data.
        crop_size (`int`): side of the crop in pixels.
        image_mean, image_std (`list[float]`): one per band, of display units / 255.
    """
    common = {
        "crop_size": {"height": crop_size, "width": crop_size},
        "rescale_factor": 1 / 255,
        "image_mean": image_mean,
        "image_std": image_std,
    }
    if len(cutouts["bands"]) == 3:
        steps = {"do_resize": False, "do_center_crop": True, "do_rescale": True, "do_normalize": True}
        config = {"image_processor_type": "ViTImageProcessor", **steps, **common}
    else:
        for name in ("image_processor.py", "flux.py"):
            shutil.copyfile(Path(__file__).with_name(name), folder / name)
        names = {
            "image_processor_type": "LensImageProcessor",
            "auto_map": {"AutoImageProcessor": "image_processor.LensImageProcessor"},
        }
        own = {name: cutouts[name] for name in ("bands", "pixel_scale", "stretch")}
        config = {**names, **own, "do_stretch": False, **common}
    write_json(folder / "preprocessor_config.json", config)
