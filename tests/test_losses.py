"""Losses against float64 numpy, gradients included, and values recorded from lightly 1.6.0."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lens_ssl_hf.models.losses import (
    dino_loss,
    effective_rank,
    masked_patch_loss,
    mean_entropy,
    negative_cosine_similarity,
    normalised_std,
    teacher_probabilities,
)

RNG = np.random.default_rng(0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def as_leaf(x):
    return torch.tensor(x, dtype=torch.float32, requires_grad=True)


@pytest.mark.parametrize("bf16", [False, True])
def test_dino_loss_and_its_gradient(bf16):
    student, teacher = RNG.normal(size=(5, 3, 7)), RNG.normal(size=(2, 3, 7))
    centre, student_t, teacher_t = RNG.normal(size=7), 0.1, 0.04
    p = softmax((teacher - centre) / teacher_t)
    q = softmax(student / student_t)
    pairs = [(g, v) for g in range(2) for v in range(5) if g != v]
    expected = np.mean([-(p[g] * np.log(q[v])).sum(axis=1).mean() for g, v in pairs])
    gradient = np.zeros_like(student)
    for g, v in pairs:
        gradient[v] += (q[v] - p[g]) / student_t / 3 / len(pairs)

    logits, teacher_logits = as_leaf(student), as_leaf(teacher)
    probabilities = teacher_probabilities(teacher_logits, torch.tensor(centre, dtype=torch.float32), teacher_t)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):  # logits are bf16 then, the loss of them is not
        loss = dino_loss(logits, probabilities, student_t)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, atol=1e-5)
    assert teacher_logits.grad is None


def test_masked_patch_loss_and_its_gradient():
    student, p = RNG.normal(size=(11, 7)), softmax(RNG.normal(size=(11, 7)))
    q = softmax(student / 0.1)
    logits = as_leaf(student)
    loss = masked_patch_loss(logits, torch.tensor(p, dtype=torch.float32), 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(-(p * np.log(q)).sum(axis=1).mean(), rel=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), (q - p) / 0.1 / 11, atol=1e-5)


def test_negative_cosine_similarity_and_its_gradient():
    prediction, projection = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))

    def formula(p):
        return -np.mean((p * projection).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(projection, axis=1))

    numeric = np.zeros_like(prediction)
    for index in np.ndindex(prediction.shape):
        step = np.zeros_like(prediction)
        step[index] = 1e-6
        numeric[index] = (formula(prediction + step) - formula(prediction - step)) / 2e-6
    p, z = as_leaf(prediction), as_leaf(projection)
    loss = negative_cosine_similarity(p, z)
    loss.backward()
    assert loss.item() == pytest.approx(formula(prediction), rel=1e-5)
    np.testing.assert_allclose(p.grad.numpy(), numeric, atol=1e-6)
    assert z.grad is None, "the stop-gradient belongs on the projection"


def test_values_at_collapse():
    uniform = torch.zeros(4, 8, 4096)
    probabilities = teacher_probabilities(torch.zeros(2, 8, 4096), torch.zeros(4096), 0.04)
    loss = dino_loss(uniform, probabilities, 0.1).item()
    assert loss == pytest.approx(math.log(4096), abs=1e-4)
    assert loss == pytest.approx(8.3175, abs=5e-4)  # lightly 1.6.0
    assert mean_entropy(probabilities).item() == pytest.approx(math.log(4096), abs=1e-4)
    assert mean_entropy(F.one_hot(torch.arange(5), 9).float()).item() == 0
    assert normalised_std(torch.ones(16, 256)).item() == 0
    gaussian = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    assert normalised_std(gaussian).item() == pytest.approx(0.0625, abs=2e-4)  # lightly 1.6.0


def test_effective_rank_is_that_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, generator=generator) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1, 0.0]) + 7
    eigenvalues = np.linalg.eigvalsh(np.cov(features.double().numpy(), rowvar=False))
    shares = eigenvalues[eigenvalues > 1e-9] / eigenvalues.sum()
    assert effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert effective_rank(torch.outer(torch.arange(9.0), torch.ones(4))) == pytest.approx(1.0)
    assert math.isnan(effective_rank(torch.full((3, 2), math.inf)))
