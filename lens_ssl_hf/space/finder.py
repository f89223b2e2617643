"""What the page tells of a cutout: score, calibration, attention, nearest cutouts. Needs the files of a Space only."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..data.display import center_crop
from ..data.files.readers import read_raw
from ..errors import InputError
from ..evaluation.pictures import colour_image
from ..inference.pipeline import pipeline
from .limits import MAX_PIXELS, PICTURE_SIZE

FACTS_FILE = "space.json"
INDEX_FILE = "neighbours.safetensors"
MODEL_FOLDER = "model"


@dataclass
class Neighbour:
    """
    One cutout of the index.

    Args:
        similarity (`float`): cosine of the angle between its [CLS] feature and the query's.
        label (`int`): 1 lens, 0 non-lens.
        name (`str`): its subclass where that is known, else the label in words.
        picture (`np.ndarray` of shape `(size, size, 3)`): uint8, what the model sees of it.
    """

    similarity: float
    label: int
    name: str
    picture: np.ndarray


@dataclass
class Finding:
    """
    What is told of one cutout.

    Args:
        score (`float`): P(lens).
        picture (`np.ndarray` of shape `(H, W, 3)`): uint8 colour rendering, of a large cutout only the centre.
        is_whole (`bool`): whether `picture` shows the whole cutout.
        crop (`np.ndarray` of shape `(size, size, 3)`): uint8, the centre that the model sees.
        attention (`np.ndarray` of shape `(rows, columns)`):
            What the [CLS] token of the last layer takes from each patch, the mean over the heads (Caron et al. 2021,
            arXiv:2104.14294, figure 1), as a multiple of an even share.
        neighbours (`list[Neighbour]`): the most similar cutouts of the index, the nearest first.
    """

    score: float
    picture: np.ndarray
    is_whole: bool
    crop: np.ndarray
    attention: np.ndarray
    neighbours: list[Neighbour]


class Finder:
    """
    A published classifier with its index and its calibration, as [`build_space`] puts them into a folder.

    Args:
        folder (`Path`): the Space.

    Raises:
        [`InputError`]: the folder holds no Space or a damaged one, or its model cannot be loaded.
    """

    def __init__(self, folder: Path):
        if not (folder / FACTS_FILE).is_file():
            raise InputError(
                f"{folder} holds no Space: make one with make demo, or with lens-ssl push-space --dry_run"
            )
        try:
            self.facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            with safe_open(folder / INDEX_FILE, framework="pt") as file:
                self._features = file.get_tensor("features")
                self._pictures, self._labels = file.get_tensor("pictures").numpy(), file.get_tensor("labels").tolist()
                self._subclasses = json.loads(file.metadata()["subclasses"])
            model, revision = self.facts["model"], self.facts["revision"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"the Space in {folder} is damaged ({error}): make it again") from error
        source = str(folder / MODEL_FOLDER) if model is None else model
        # SDPA, the default, gives no attention weights.
        options = {"model_kwargs": {"attn_implementation": "eager"}, "revision": revision}
        try:
            self.pipeline = pipeline(source, **options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise InputError(
                f"the model {source} cannot be loaded ({reason}): make the Space again, or, if the model is private, "
                "give the Space a secret HF_TOKEN in its settings"
            ) from error

    @torch.no_grad()
    def look(self, path: str | Path, units: str = "flux", num_neighbours: int = 6) -> Finding:
        """
        Args:
            path (`str` or `Path`): a FITS, `.npy`, `.npz`, PNG, JPEG or TIFF file.
            units (`str`, *optional*, defaults to `"flux"`): what its float values are.

        Raises:
            [`InputError`]: the file cannot be read, or not by this model, or has more than `MAX_PIXELS`.
        """
        height, width = read_raw(path).pixels.shape[1:]  # looked at before anything is done with the pixels
        if height * width > MAX_PIXELS:
            side = math.isqrt(MAX_PIXELS)
            raise InputError(f"{path} is {height} x {width} pixels, more than {side} x {side}: cut the object out")
        display = self.pipeline.display(path, units=units)
        model, processor = self.pipeline.model, self.pipeline.image_processor
        output = model.vit(**processor(display, return_tensors="pt").to(model.device), output_attentions=True)
        feature = output.last_hidden_state[0, 0]
        attention = output.attentions[-1][0, :, 0, 1:].mean(dim=0)
        rows = model.config.image_size // model.config.patch_size
        crop = center_crop(display, model.config.image_size)
        shown = _centre(display, model.config.image_size)
        return Finding(
            score=model.classifier(feature).double().softmax(dim=-1)[1].item(),
            picture=colour_image(shown, self.bands),
            is_whole=shown.shape == display.shape,
            crop=colour_image(crop, self.bands),
            attention=(attention / attention.mean()).reshape(rows, -1).cpu().numpy(),
            neighbours=self._nearest(feature.cpu(), num_neighbours),
        )

    @property
    def bands(self) -> list[str] | None:
        """Names of the model's bands."""
        return self.pipeline.cutouts.get("bands")

    def _nearest(self, feature: torch.Tensor, number: int) -> list[Neighbour]:
        similarities = self._features @ torch.nn.functional.normalize(feature, dim=0)
        values, indices = similarities.topk(min(number, len(similarities)))
        return [
            Neighbour(value, self._labels[i], self._subclasses[i] or ("non-lens", "lens")[self._labels[i]], picture)
            for value, i, picture in zip(values.tolist(), indices.tolist(), self._pictures[indices.numpy()])
        ]


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """What is shown of `(bands, H, W)`: `PICTURE_SIZE` a side, with the model's `size` pixels in the middle."""
    side = max(size, PICTURE_SIZE + size % 2)
    rows, columns = (
        slice((length - side) // 2, (length + side) // 2) if length > side else slice(None)
        for length in pixels.shape[1:]
    )
    return pixels[:, rows, columns]


def calibration(score: float, bins: list[dict[str, Any]]) -> dict[str, Any]:
    """
    What an evaluated split says of cutouts with such a score.

    Args:
        score (`float`): P(lens).
        bins (`list[dict]`): from [`~lens_ssl_hf.evaluation.metrics.reliability`].

    Returns:
        `dict`: the bin, with `share` of lenses in it and `share_low`, `share_high`, the 95 % Wilson interval with each
        cutout counted as independent; `None` each where no cutout of the split scored so.
    """
    found = bins[min(int(score * len(bins)), len(bins) - 1)]
    if not found["count"]:
        return {**found, "share": None, "share_low": None, "share_high": None}
    low, high = wilson_interval(found["lenses"], found["count"])
    return {**found, "share": found["lenses"] / found["count"], "share_low": low, "share_high": high}


def wilson_interval(successes: int, number: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    z = 1.959964
    centre = successes + z**2 / 2
    half = z * math.sqrt(successes * (number - successes) / number + z**2 / 4)
    return max(0.0, (centre - half) / (number + z**2)), min(1.0, (centre + half) / (number + z**2))


def at_prevalence(share: float, prevalence_here: float, prevalence_there: float) -> float:
    """
    The share of lenses among cutouts of one score where lenses are rarer or more frequent than in the split in which
    `share` was counted, by Bayes' rule; lenses and non-lenses score as they did there.
    """
    lenses = share * prevalence_there / prevalence_here
    others = (1 - share) * (1 - prevalence_there) / (1 - prevalence_here)
    return lenses / (lenses + others)
