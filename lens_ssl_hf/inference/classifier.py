"""Load a classifier, and score a split with it."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.tensors import CutoutTensors, as_tensors, center_crop, normalise
from ..errors import InputError, check_at_least
from ..evaluation.predictions import Predictions, other_columns
from ..models.loading import check_classifier, check_weights, load_classifier
from .compatibility import check_tensors
from .inputs import choose_split


@dataclass
class Classifier:
    """
    A classifier and what its image processor does, so that batches are prepared in torch alone.

    Args:
        model (`PreTrainedModel`): a stock classifier of `VITS`, or our CNN; float32, label 1 is the lens.
        crop_size (`int`): side of the centre crop.
        mean, std (`list[float]`): per band, after division by 255.
        name (`str`): how to call it in messages.
    """

    model: torch.nn.Module
    crop_size: int
    mean: list[float]
    std: list[float]
    name: str

    @classmethod
    def load(cls, source: Any) -> "Classifier":
        """From a fine-tuning run, an exported folder, a Hub id, or `(model, image_processor)`."""
        if isinstance(source, Classifier):
            return source
        if isinstance(source, tuple):
            model, processor = source
            check_weights(model, "the model")
            # Of the user's own model nothing is changed: neither its mode nor its dtype or device.
            return cls._make(copy.deepcopy(model), processor.to_dict(), "the model")
        if not isinstance(source, str | os.PathLike):
            raise InputError("model must be a run, a folder, a Hub id, or a tuple (model, image processor)")
        return cls._make(*load_classifier(source), str(source))

    @classmethod
    def _make(cls, model: torch.nn.Module, processor: Mapping[str, Any], name: str) -> "Classifier":
        return cls(model.float().eval(), *check_classifier(model.config, processor, name), name)

    @property
    def cutouts(self) -> dict[str, Any]:
        """Bands, stretch, pixel scale and zero point of the cutouts that it was trained on; empty where unknown."""
        return getattr(self.model.config, "cutouts", None) or {}

    def check(self, tensors: CutoutTensors, info: Mapping[str, Any]) -> list[str]:
        """
        Sentences on what differs between the cutouts that it was trained on and those it is given, which are logged.

        Raises:
            [`InputError`]: another number of bands, or the same bands in another order.
        """
        return check_tensors(self.cutouts, self.model.config.num_channels, tensors, info, self.name)

    @torch.no_grad()
    def logits(self, pixels: torch.Tensor, device: str | torch.device | None = None) -> torch.Tensor:
        """Logits `(n, 2)` in float32 on the CPU, of display units `(n, bands, H, W)`; one forward pass."""
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        images = normalise(center_crop(pixels.to(device), self.crop_size), self.mean, self.std)
        return self.model.to(device)(images).logits.cpu()

    def score(self, tensors: CutoutTensors, batch_size: int, device: str | torch.device | None = None) -> np.ndarray:
        """
        P(lens) of every cutout, `(n,)` in float64.

        Raises:
            [`InputError`]: a score is not finite.
        """
        # In float64, so that confident scores do not all become 1.
        batches = tensors.pixels.split(batch_size)
        score = torch.cat([self.logits(pixels, device).double().softmax(dim=-1)[:, 1] for pixels in batches]).numpy()
        for first in np.flatnonzero(~np.isfinite(score))[:1]:
            one = tensors.ids[first]
            if tensors.pixels[first].isfinite().all():
                raise InputError(f"{self.name} gives no finite score of cutout {one}: train or export it again")
            raise InputError(f"cutout {one} has NaN or infinite pixels: build the dataset with load_cutouts")
        return score


def predict(
    model: Any,
    cutouts: Any,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    split: str | None = None,
) -> Predictions:
    """
    P(lens) of every cutout, in float32; equal to the scores of `transformers.pipeline("image-classification")`.

    Args:
        model (`str`, `os.PathLike` or `tuple`):
            A fine-tuning run, an exported classifier's folder, a Hub id, or `(model, image_processor)`.
        cutouts (`Dataset`, [`CutoutTensors`], `DatasetDict` or path of a `.safetensors` file):
            What is scored, in display units, labelled or not; of a whole dataset, its `split`.
        batch_size (`int`, *optional*, defaults to `256`): cutouts per forward pass.
        device (`str` or `torch.device`, *optional*): by default the GPU where there is one.
        split (`str`, *optional*): which split of a whole dataset; test by default, or the only one.

    Returns:
        [`Predictions`], with the further columns of a `Dataset`.

    Raises:
        [`InputError`]: the model cannot be loaded, or the cutouts' bands are not the model's.
    """
    check_at_least(1, batch_size=batch_size)
    classifier = Classifier.load(model)
    chosen, info, _ = choose_split(cutouts, split)
    tensors = as_tensors(chosen)
    classifier.check(tensors, info)
    score = classifier.score(tensors, batch_size, device)
    return Predictions.of(tensors, score, other_columns(chosen))
