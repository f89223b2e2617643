"""What is watched while training: means of losses, what the features tell of labels, and the signs of collapse."""

import logging
import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from ..data.tensors import CutoutTensors, center_crop, normalise
from ..models.backbones import extract_cls
from ..models.losses import effective_rank

logger = logging.getLogger(__name__)


class Averages:
    """Running means of scalars that stay on the device until they are read. The sums are changed in place."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, values: dict[str, torch.Tensor], skipped: torch.Tensor) -> None:
        """Count the values of one step, unless it was `skipped`."""
        values = {**values, "count": torch.ones_like(skipped, dtype=torch.float32)}
        values = {name: torch.where(skipped, 0.0, value.detach().float()) for name, value in values.items()}
        before, self._sums = self._sums, {}  # in the order of the step, which a checkpoint does not keep
        for name, value in values.items():
            self._sums[name] = before[name] if name in before else torch.zeros_like(value)
            self._sums[name] += value

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Means over the steps since the last call and over the processes; empty where all were skipped. Every process
        must call it.
        """
        sums = {name: value.item() for name, value in accelerator.reduce(self._sums, "mean").items()}
        for value in self._sums.values():
            value.zero_()
        count = sums.pop("count", 0.0)
        return {name: total / count for name, total in sums.items()} if count else {}

    def state(self) -> dict[str, torch.Tensor]:
        """The sums, for a checkpoint between two calls of `pop`."""
        return {f"average.{name}": value for name, value in self._sums.items()}

    def restore(self, extra: dict[str, Any], device: torch.device) -> None:
        """Take the sums out of what a checkpoint holds."""
        names = [name for name in extra if name.startswith("average.")]
        self._sums = {name.removeprefix("average."): extra.pop(name).to(device) for name in names}


def roc_auc(labels: torch.Tensor, scores: torch.Tensor) -> float:
    """
    Area under the ROC curve, ties counted half.

    Args:
        labels (`torch.Tensor` of shape `(n,)`): 1 lens, 0 non-lens.
        scores (`torch.Tensor` of shape `(n,)`): higher is more lens-like.

    Returns:
        `float` in [0, 1]; nan where a class is missing or a score is NaN, which has no rank.
    """
    is_lens = labels.cpu() == 1
    if scores.isnan().any() or is_lens.all() or not is_lens.any():
        return math.nan
    return float(roc_auc_score(is_lens, scores.double().cpu()))


def accuracy(labels: torch.Tensor, scores: torch.Tensor) -> float:
    """
    Share of the `scores` `(n,)`, 0 to 1, that are on the same side of 0.5 as their `labels` `(n,)`, 1 lens or 0
    non-lens: a `float`, nan where a score is NaN, which is on neither side.
    """
    if scores.isnan().any():
        return math.nan
    return ((scores >= 0.5).long().cpu() == labels.cpu()).float().mean().item()


_MAX_SIMILARITIES = 2**26  # computed at a time, 256 MiB


def knn_scores(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    k: int = 20,
    temperature: float = 0.1,
) -> torch.Tensor:
    """
    Weighted k-nearest-neighbour vote with cosine similarity, weights exp(similarity / temperature)
    (Wu et al. 2018; as in DINO).

    Args:
        train_features (`torch.Tensor` of shape `(m, d)`), train_labels (`torch.Tensor` of shape `(m,)`): labelled set.
        features (`torch.Tensor` of shape `(n, d)`): what is scored.

    Returns:
        `torch.Tensor` of shape `(n,)`: share of the vote for lens, 0 to 1; NaN where the features or any of
            `train_features` are NaN.
    """
    bank = F.normalize(train_features.float(), dim=-1)
    votes = []
    for part in F.normalize(features.float(), dim=-1).split(max(1, _MAX_SIMILARITIES // len(bank))):
        nearest, indices = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = torch.softmax(nearest / temperature, dim=1)
        votes.append((weights * (train_labels[indices] == 1)).sum(dim=1))
    return torch.cat(votes)


def probe_scores(train: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """
    Ridge regression of the `labels` `(m,)`, 1 or 0, on standardised `train` features `(m, d)`, its strength chosen by
    leave-one-out, applied to `features` `(n, d)`: scores `(n,)` on the CPU, the higher the more lens-like.
    """
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 6)))
    train, labels, features = (tensor.double().cpu().numpy() for tensor in (train, labels, features))
    return torch.from_numpy(probe.fit(train, labels).predict(features))


MONITORED = 4096  # cutouts of a split that the monitor sees, at most


class FeatureMonitor:
    """
    What the encoder's [CLS] tells of the labels of the validation split, by those of the training split: to the
    nearest neighbours and to a linear probe. Brightness and colour dominate the distances of which neighbours are
    made, so that the probe is the better guide. And over how many directions [CLS] spreads, which needs no labels.
    The main process alone looks.
    """

    def __init__(
        self, splits: dict[str, CutoutTensors], crop_size: int, mean: list, std: list, accelerator: Accelerator
    ):
        def prepared(split: CutoutTensors) -> torch.Tensor:
            return normalise(center_crop(split.pixels, crop_size).to(accelerator.device), mean, std)

        self.labelled: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.images: torch.Tensor | None = None
        if not accelerator.is_main_process:
            return
        for name in ("train", "validation"):
            split = splits.get(name)
            labelled = split.labels >= 0 if split is not None else torch.zeros(0, dtype=torch.bool)
            if len(split.labels[labelled].unique() if labelled.any() else ()) < 2:
                logger.warning(
                    "the %s split has no labelled lenses and non-lenses, so that features are not compared with "
                    "labels while training; pretraining itself needs no labels",
                    name,
                )
                self.labelled = []
                break
            chosen = split.select(_evenly(split.labels))
            self.labelled.append((prepared(chosen), chosen.labels.to(accelerator.device)))
        if not self.labelled:
            split = splits["train"] if "train" in splits else splits["unlabelled"]
            self.images = prepared(split.select(_evenly(torch.zeros(len(split)))))

    def __call__(self, encoder: torch.nn.Module) -> dict[str, float]:
        """`knn_auc`, `knn_accuracy`, `probe_auc` and `effective_rank` of an encoder; of no labels the last alone."""
        was_training = encoder.training
        try:
            if self.images is not None:
                return {"effective_rank": effective_rank(extract_cls(encoder, self.images))}
            if not self.labelled:
                return {}
            (train, train_labels), (validation, labels) = self.labelled
            train, validation = extract_cls(encoder, train), extract_cls(encoder, validation)
        finally:
            encoder.train(was_training)
        scores = knn_scores(train, train_labels, validation)
        found = {"knn_auc": roc_auc(labels, scores), "knn_accuracy": accuracy(labels, scores)}
        is_finite = bool(train.isfinite().all() and validation.isfinite().all())
        found["probe_auc"] = roc_auc(labels, probe_scores(train, train_labels, validation)) if is_finite else math.nan
        return {**found, "effective_rank": effective_rank(train)}


def _evenly(labels: torch.Tensor) -> torch.Tensor:
    """
    Indices of at most MONITORED of the labelled cutouts, at equal distances within each class: where classes take
    turns, equal distances over all would meet one class alone.
    """
    indices = (labels >= 0).nonzero().flatten()
    if len(indices) <= MONITORED:
        return indices
    classes = labels[indices].unique()
    stride = -(-len(indices) // (MONITORED + 1 - len(classes)))  # a class may give one more than its share
    return torch.cat([indices[labels[indices] == one][::stride] for one in classes]).sort().values


def collapse_warning(method: str, metrics: dict[str, float], num_outputs: int) -> str | None:
    """
    A sentence where the outputs look collapsed, else `None`.

    Args:
        method (`str`): simsiam, dino or ibot.
        metrics (`dict[str, float]`):
            Means over a window: `loss`, `output_std` and, for dino and ibot, `teacher_entropy`; of ibot, `cls_loss`.
        num_outputs (`int`): K for dino and ibot, the projection size for simsiam.
    """
    if method == "simsiam":
        healthy = 1 / math.sqrt(num_outputs)
        if metrics["output_std"] < 0.1 * healthy:
            return f"output_std {metrics['output_std']:.2g} is far below {healthy:.2g}: SimSiam seems to collapse"
        return None
    entropy = metrics["teacher_entropy"] / math.log(num_outputs)
    if entropy > 0.99:
        return f"the teacher's output is uniform (entropy {entropy:.1%} of ln K): lower teacher_temperature"
    if entropy < 0.01:
        return "the teacher's output is one-hot (entropy near 0): raise teacher_temperature or lower centre_momentum"
    if metrics.get("cls_loss", metrics["loss"]) > 0.99 * math.log(num_outputs):
        return "the student's output is uniform (loss within 1 % of ln K): lower learning_rate or teacher_momentum"
    if metrics["output_std"] < 1e-3:
        return f"the features are all alike (output_std {metrics['output_std']:.2g}): lower learning_rate"
    return None


class CollapseWatch:
    """Counts the windows in a row that look collapsed; one alone may be a phase of the training."""

    PATIENCE = 10

    def __init__(self, method: str, num_outputs: int):
        self.method, self.num_outputs = method, num_outputs
        self.count = 0

    def update(self, metrics: dict[str, float]) -> str | None:
        """The [`collapse_warning`] of one window, which is counted."""
        warning = collapse_warning(self.method, metrics, self.num_outputs)
        self.count = self.count + 1 if warning else 0
        return warning

    @property
    def has_lasted(self) -> bool:
        return self.count >= self.PATIENCE
