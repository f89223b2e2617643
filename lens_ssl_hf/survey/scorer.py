"""One classifier, or several, on the crops of a survey's cutouts: logits, their spread, embeddings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..inference.classifier import Classifier
from ..models.backbones import use_fast_attention
from ..models.loading import first_line
from .crops import Asked, Crops, Preparation
from .onednn import OneDNNLinear


@dataclass(frozen=True)
class Scores:
    """
    Of some cutouts.

    Args:
        logits (`np.ndarray` of shape `(n, models)`):
            Logit of the lens minus that of the non-lens, float64; NaN where a cutout cannot be scored.
        embeddings (`np.ndarray` of shape `(n, width)`, *optional*): features of the first model, float16.
        flags (`list[str | None]`): why a cutout cannot be scored.
    """

    logits: np.ndarray
    embeddings: np.ndarray | None
    flags: list[str | None]


class Scorer:
    """
    Args:
        models (`Sequence`): what [`Classifier.load`] takes; several are an ensemble.
        views (`int`): 1, or 8 for the mean over all flips and quarter rotations.
        with_embeddings (`bool`): whether the features that the first model classifies are kept, of a ViT [CLS].
        batch_size (`int`): cutouts per forward pass.
        device (`str` or `torch.device`, *optional*): by default the GPU where there is one.
        precision (`str`): `"fp32"`, or `"bf16"` for autocast of all layers but the last one.

    Raises:
        [`InputError`]: a model cannot be loaded; it is a CNN, where embeddings are asked for; or `device` is no name.
    """

    def __init__(
        self,
        models: Sequence[Any],
        views: int = 1,
        with_embeddings: bool = False,
        batch_size: int = 256,
        device: str | torch.device | None = None,
        precision: str = "fp32",
    ):
        self.classifiers = [Classifier.load(model) for model in models]
        self.calibration: Mapping[str, Any] | None = None  # of the mean logit
        self.views, self.batch_size, self.precision = views, batch_size, precision
        self.device = _device(device)
        self.preparations = [_preparation(one) for one in self.classifiers]
        distinct = [one for i, one in enumerate(self.preparations) if one not in self.preparations[:i]]
        self.asked = Asked(distinct)
        first = self.classifiers[0].model
        if with_embeddings and first.config.model_type == "lens_cnn":
            raise InputError(f"{self.classifiers[0].name} is no ViT and has no [CLS]: leave embeddings out")
        self.width = first.classifier.in_features if with_embeddings else None

    @property
    def bands(self) -> list[str]:
        """The bands of all models, each once."""
        return list(dict.fromkeys(band for one in self.preparations for band in one.cutouts.get("bands") or ()))

    def score(self, crops: Iterable[Crops | str]) -> Iterator[Scores]:
        """Scores of crops as [`Asked`] makes them, `batch_size` at a time and in order; raises as [`move`] does."""
        self.move()
        crops = iter(crops)
        while chunk := list(islice(crops, self.batch_size)):
            with OneDNNLinear():
                scores = self._score(chunk)
            yield scores

    def move(self) -> None:
        """
        Bring the models to their device, which is left alone until then: it may be another process's.

        Raises:
            [`InputError`]: there is no such device.
        """
        try:
            for one in self.classifiers:
                one.model.to(self.device)
        except (AssertionError, RuntimeError) as error:  # there is none of that number, or no CUDA at all
            raise InputError(
                f"device is {self.device}, which cannot be used ({first_line(error)}): choose another"
            ) from error
        for one in self.classifiers if self.precision == "bf16" else ():
            use_fast_attention(one.model)

    @torch.inference_mode()
    def _score(self, chunk: list[Crops | str]) -> Scores:
        good = [i for i, one in enumerate(chunk) if not isinstance(one, str)]
        logits = np.full((len(chunk), len(self.classifiers)), np.nan)
        embeddings = None if self.width is None else np.zeros((len(chunk), self.width), np.float16)
        for number, (classifier, preparation) in enumerate(zip(self.classifiers, self.preparations) if good else ()):
            place = self.asked.preparations.index(preparation)
            pixels = torch.from_numpy(np.stack([chunk[i][place] for i in good]))
            found = [self._forward(classifier, view) for view in _views(pixels, self.views)]
            logits[good, number] = torch.stack([one[:, 1] - one[:, 0] for one, _ in found]).mean(dim=0).numpy()
            if embeddings is not None and number == 0:
                embeddings[good] = found[0][1].cpu().numpy()
            if not np.isfinite(logits[good, number]).all():
                raise InputError(f"{classifier.name} gives no finite score of a cutout: train or export it again")
        return Scores(logits, embeddings, [one if isinstance(one, str) else None for one in chunk])

    def _forward(self, classifier: Classifier, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(n, 2)` in float64, and the features `(n, width)` in float32 that they are made of."""
        head, features = classifier.model.classifier, []
        hook = head.register_forward_pre_hook(lambda _, seen: features.append(seen[0].float()))
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = classifier.logits(pixels, self.device)
        finally:
            hook.remove()
        if self.precision == "bf16":
            logits = head(features[0]).cpu()  # in bfloat16 the best would share a few values
        return logits.double(), features[0]


def _device(name: str | torch.device | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device is {name}: give cpu, cuda or cuda:1") from error


def _preparation(classifier: Classifier) -> Preparation:
    cutouts = classifier.cutouts or {"stretch": {"kind": "none"}}  # as the pipeline
    return Preparation(cutouts, classifier.model.config.num_channels, classifier.crop_size)


def _views(pixels: torch.Tensor, number: int) -> Iterator[torch.Tensor]:
    """`(n, bands, H, W)` itself, then its quarter rotations, then those of its mirror image."""
    yield pixels
    if number > 1:
        for one, turns in ((pixels, (1, 2, 3)), (pixels.flip(-1), (0, 1, 2, 3))):
            yield from (torch.rot90(one, turn, (-2, -1)) for turn in turns)
