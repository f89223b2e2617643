"""The losses as plain functions of logits, and the numbers that show a collapse."""

import math

import torch
from torch.nn import functional as F


def negative_cosine_similarity(prediction: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """
    SimSiam's D(p, stop-gradient(z)), the mean over the batch (Chen & He 2021, eq. 1 and 2).

    Args:
        prediction (`torch.Tensor` of shape `(batch, features)`): p, the predictor's output; receives gradient.
        projection (`torch.Tensor` of shape `(batch, features)`): z, the projector's output; receives none.

    Returns:
        scalar `torch.Tensor` in [-1, 1].
    """
    return -F.cosine_similarity(prediction.float(), projection.detach().float(), dim=-1).mean()


def teacher_probabilities(logits: torch.Tensor, centre: torch.Tensor, temperature: float) -> torch.Tensor:
    """Centred, sharpened teacher output `softmax((logits - centre) / temperature)` (Caron et al. 2021, eq. 1, 4)."""
    return F.softmax((logits.float() - centre) / temperature, dim=-1)


def dino_loss(student_logits: torch.Tensor, teacher_probs: torch.Tensor, student_temperature: float) -> torch.Tensor:
    """
    Cross-entropy between the teacher on each global view and the student on every *other* view, the mean over pairs
    and batch (Caron et al. 2021, eq. 3).

    Args:
        student_logits (`torch.Tensor` of shape `(views, batch, K)`): the global views first, in the teacher's order.
        teacher_probs (`torch.Tensor` of shape `(global views, batch, K)`): receives no gradient.
        student_temperature (`float`): softmax temperature of the student.

    Returns:
        scalar `torch.Tensor`; ln K where both outputs are uniform.
    """
    log_probs = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    num_views, batch_size = log_probs.shape[:2]
    num_global = teacher_probs.shape[0]
    with torch.autocast(log_probs.device.type, enabled=False):  # a matrix product, which autocast would round to bf16
        pairs = -torch.einsum("gbk,vbk->bgv", teacher_probs.detach(), log_probs)
    other_view = 1 - torch.eye(num_global, num_views, device=pairs.device)
    return (pairs * other_view).sum() / (batch_size * num_global * (num_views - 1))


def masked_patch_loss(
    student_logits: torch.Tensor, teacher_probs: torch.Tensor, student_temperature: float
) -> torch.Tensor:
    """
    iBOT's masked image modelling: cross-entropy between teacher and student on the masked patches, the mean over them
    (Zhou et al. 2021, eq. 2; the same number of masked patches in every image, so that the two means agree).

    Args:
        student_logits (`torch.Tensor` of shape `(tokens, K)`): the student's masked patch tokens.
        teacher_probs (`torch.Tensor` of shape `(tokens, K)`): the same tokens of the unmasked views; no gradient.
        student_temperature (`float`): softmax temperature of the student.
    """
    log_probs = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    return -(teacher_probs.detach() * log_probs).sum(dim=-1).mean()


def mean_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of `(..., K)` probabilities: ln K at uniform collapse, 0 at one-hot outputs."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1).mean()


def normalised_std(outputs: torch.Tensor) -> torch.Tensor:
    """
    Mean over features of the batch standard deviation of l2-normalised `(batch, features)` outputs: 0 when collapsed,
    1/sqrt(features) when spread over the sphere (Chen & He 2021, section 4.1).
    """
    return F.normalize(outputs.detach().float(), dim=-1).std(dim=0).mean()


def effective_rank(features: torch.Tensor) -> float:
    """
    How many directions `(n, d)` features spread over: exp of the entropy of the normalised eigenvalues of their
    covariance (Roy & Vetterli 2007). 1 to d; 1 where all lie on a line, nan where a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    centred = features.double() - features.double().mean(dim=0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    return mean_entropy(eigenvalues / eigenvalues.sum()).exp().item()
