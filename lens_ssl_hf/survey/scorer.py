"""One classifier, or several, on the crops of a survey's cutouts: logits, their spread, embeddings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..inference.classifier import Classifier
from .crops import Asked, Crops, Preparation


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

    Raises:
        [`InputError`]: a model cannot be loaded; or it is a CNN, where embeddings are asked for.
    """

    def __init__(
        self,
        models: Sequence[Any],
        views: int = 1,
        with_embeddings: bool = False,
        batch_size: int = 256,
        device: str | torch.device | None = None,
    ):
        self.classifiers = [Classifier.load(model) for model in models]
        self.calibration: Mapping[str, Any] | None = None  # of the mean logit
        self.views, self.batch_size, self.device = views, batch_size, device
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
        """Scores of crops as [`Asked`] makes them, `batch_size` at a time and in order."""
        crops = iter(crops)
        while chunk := list(islice(crops, self.batch_size)):
            yield self._score(chunk)

    @torch.inference_mode()
    def _score(self, chunk: list[Crops | str]) -> Scores:
        good = [i for i, one in enumerate(chunk) if not isinstance(one, str)]
        logits = np.full((len(chunk), len(self.classifiers)), np.nan)
        embeddings = None if self.width is None else np.zeros((len(chunk), self.width), np.float16)
        for number, (classifier, preparation) in enumerate(zip(self.classifiers, self.preparations) if good else ()):
            place = self.asked.preparations.index(preparation)
            pixels = torch.from_numpy(np.stack([chunk[i][place] for i in good]))
            tokens: list[torch.Tensor] = []
            hook = classifier.model.classifier.register_forward_pre_hook(lambda _, seen, to=tokens: to.append(seen[0]))
            try:
                found = [classifier.logits(view, self.device).double() for view in _views(pixels, self.views)]
            finally:
                hook.remove()
            logits[good, number] = torch.stack([one[:, 1] - one[:, 0] for one in found]).mean(dim=0).numpy()
            if embeddings is not None and number == 0:
                embeddings[good] = tokens[0].float().cpu().numpy()
            if not np.isfinite(logits[good, number]).all():
                raise InputError(f"{classifier.name} gives no finite score of a cutout: train or export it again")
        return Scores(logits, embeddings, [one if isinstance(one, str) else None for one in chunk])


def _preparation(classifier: Classifier) -> Preparation:
    cutouts = classifier.cutouts or {"stretch": {"kind": "none"}}  # as the pipeline
    return Preparation(cutouts, classifier.model.config.num_channels, classifier.crop_size)


def _views(pixels: torch.Tensor, number: int) -> Iterator[torch.Tensor]:
    """`(n, bands, H, W)` itself, then its quarter rotations, then those of its mirror image."""
    yield pixels
    if number > 1:
        for one, turns in ((pixels, (1, 2, 3)), (pixels.flip(-1), (0, 1, 2, 3))):
            yield from (torch.rot90(one, turn, (-2, -1)) for turn in turns)
