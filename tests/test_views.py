"""Views: a function of (seed, epoch, sample, view) alone, geometry, blur and masks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lens_ssl_hf.data import views as views_module
from lens_ssl_hf.data.views import Views, ViewSettings, affine_crop, gaussian_blur, random_bits, uniforms

GENERATOR = torch.Generator().manual_seed(0)
SETTINGS = ViewSettings(size=32, field=32, blur_probability=0.5, band_jitter=0.2)


def test_views_depend_on_seed_epoch_sample_and_number_alone():
    images, indices = torch.randn(12, 3, 48, 48, generator=GENERATOR), torch.arange(100, 112)
    whole = Views(0, "cpu").make(images, indices, SETTINGS, epoch=3, view=1)
    order = torch.randperm(12, generator=GENERATOR)
    again = Views(0, "cpu")
    parts = [again.make(images[part], indices[part], SETTINGS, epoch=3, view=1) for part in order.split(5)]
    torch.testing.assert_close(torch.cat(parts), whole[order], atol=1e-6, rtol=0)
    for other in ({"epoch": 4, "view": 1}, {"epoch": 3, "view": 0}):
        assert not torch.allclose(Views(0, "cpu").make(images, indices, SETTINGS, **other), whole, atol=0.1)
    assert not torch.allclose(Views(1, "cpu").make(images, indices, SETTINGS, epoch=3, view=1), whole, atol=0.1)


def test_uniforms_are_uniform_and_independent():
    u = uniforms(0, 0, torch.arange(20000), 0, 8).double().numpy()
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.003)
    neighbours = np.concatenate(
        [u[:-1], u[1:], uniforms(0, 1, torch.arange(19999), 0, 8), u[:-1][:, ::-1] ** 2], axis=1
    )
    correlation = np.corrcoef(neighbours[:, :24].T) - np.eye(24)
    assert np.abs(correlation).max() < 0.03


@pytest.mark.parametrize("side", [1023, 1024, 1100])  # just below, at and above 2^20 values
def test_huge_views_have_noise_of_their_own(side):
    settings = ViewSettings(side, side, (1.0, 1.0), rotate=False, flip=False, gain=0, offset=0, noise_sigma=1.0)
    views = Views(0, "cpu").make(torch.zeros(3, 1, side, side), torch.arange(3), settings, 0, 0).flatten(1)
    scale = uniforms(0, 0, torch.arange(3), 0, 10)[:, 9]
    torch.testing.assert_close(views.std(dim=1), scale, rtol=0.01, atol=0)
    assert torch.corrcoef(views).fill_diagonal_(0).abs().max() < 0.01


def test_plain_view_is_the_centre_crop():
    images = torch.randn(4, 2, 48, 48, generator=GENERATOR)
    settings = ViewSettings(32, 32, scale=(1.0, 1.0), rotate=False, flip=False, gain=0, offset=0, noise_sigma=0)
    views = Views(0, "cpu").make(images, torch.arange(4), settings, 0, 0)
    torch.testing.assert_close(views, images[:, :, 8:40, 8:40], atol=1e-4, rtol=0)


def test_rotations_and_mirrors():
    images = torch.randn(4, 1, 32, 32, generator=GENERATOR)
    settings = ViewSettings(32, 32, scale=(1.0, 1.0))
    quarter = torch.tensor([[0.0, 0.25, 0.9, 0.5, 0.5]]).expand(1, 4, -1)
    mirror = torch.tensor([[0.0, 0.0, 0.1, 0.5, 0.5]]).expand(1, 4, -1)
    turned = affine_crop(images, settings, quarter)[0]
    expected = torch.rot90(images, 1, dims=(2, 3))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)
    flipped = affine_crop(images, settings, mirror)[0]
    torch.testing.assert_close(flipped, images.flip(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(affine_crop(flipped, settings, mirror)[0], images, atol=1e-4, rtol=0)


def test_scale_is_the_area_of_the_crop():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    settings = ViewSettings(16, 32, scale=(0.25, 0.25), rotate=False, flip=False)
    view = affine_crop(ramp, settings, torch.tensor([[[0.0, 0.0, 0.0, 0.5, 0.5]]]))
    torch.testing.assert_close(view[0, 0, 0, 0], torch.arange(8.0, 24.0), atol=1e-4, rtol=0)


def test_views_are_not_clamped():
    images = torch.full((8, 3, 40, 40), -5.0)
    images[:, :, 20:] = 700.0
    views = Views(0, "cpu").make(images, torch.arange(8), ViewSettings(32, 32, noise_sigma=0), 0, 0)
    assert views.max() > 550 and views.min() < -3.5
    bands = views - views[:, :1]
    assert bands.abs().max() < 1e-3  # gain and offset are common to the bands


def test_band_jitter_is_a_gain_and_an_offset_of_each_band():
    images = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = ViewSettings(32, 32, noise_sigma=0)
    views, jittered = (
        Views(0, "cpu").make(images, torch.arange(200), settings, 2, 1).double().flatten(2)
        for settings in (plain, replace(plain, band_jitter=0.3))
    )
    means = views.mean(2), jittered.mean(2)
    gain = (
        ((views - means[0][..., None]) * (jittered - means[1][..., None])).sum(2) / views.var(2, correction=0) / 1024
    )
    offset = means[1] - gain * means[0]
    torch.testing.assert_close(jittered, gain[..., None] * views + offset[..., None], atol=1e-5, rtol=0)
    for values in (gain - 1, offset):  # uniform in [-0.3, 0.3], each band by itself
        assert 0.29 < values.abs().max() <= 0.3 + 1e-5 and abs(values.std() - 0.3 / 3**0.5) < 0.01
    numbers = torch.cat([gain, offset], dim=1)
    assert (numbers.T.corrcoef() - torch.eye(6)).abs().max() < 0.25


def test_blur_has_the_sigma_that_it_says():
    images = torch.zeros(3, 1, 41, 41)
    images[:, :, 20, 20] = 1.0
    sigma = torch.tensor([0.0, 0.8, 1.5])
    blurred = gaussian_blur(images, sigma, radius=6)[:, 0].double().numpy()
    assert np.array_equal(blurred[0], images[0, 0].numpy())
    offsets = np.arange(41) - 20
    for image, expected in zip(blurred[1:], (0.8, 1.5)):
        assert image.sum() == pytest.approx(1, abs=1e-5)
        assert math.sqrt((image.sum(axis=0) * offsets**2).sum()) == pytest.approx(expected, rel=0.01)
        assert math.sqrt((image.sum(axis=1) * offsets**2).sum()) == pytest.approx(expected, rel=0.01)


def test_a_blur_wider_than_the_view_is_finite():
    images = torch.randn(8, 3, 32, 32, generator=GENERATOR)
    settings = ViewSettings(16, 32, blur_probability=1.0, blur_sigma=(0.3, 10.0), noise_sigma=0)
    views = Views(0, "cpu").make(images, torch.arange(8), settings, 0, 0)
    assert views.shape == (8, 3, 16, 16) and views.isfinite().all()
    flat = gaussian_blur(torch.ones(1, 1, 16, 16), torch.tensor([1e6]), radius=3_000_000)
    torch.testing.assert_close(flat, torch.ones(1, 1, 16, 16))


def test_noise_has_the_sigma_that_it_says():
    settings = ViewSettings(32, 32, gain=0, offset=0, noise_sigma=0.1)
    views = Views(0, "cpu").make(torch.zeros(500, 3, 32, 32), torch.arange(500), settings, 0, 0)
    sigma = views.flatten(1).std(dim=1)
    assert 0.0999 < sigma.max() < 0.103 and sigma.min() < 0.001
    assert sigma.mean().item() == pytest.approx(0.05, abs=0.004)


def test_mask_and_pixels_of_a_view_share_no_random_number(monkeypatch):
    used = {}

    def record(*arguments):
        numbers = random_bits(*arguments)
        used[arguments[-1]] = numbers.flatten(0, 1)
        return numbers

    monkeypatch.setattr(views_module, "random_bits", record)
    monkeypatch.setattr(views_module, "block_mask", lambda u, grid, count: u)
    views = Views(0, "cpu")
    mask = (views.masks(torch.arange(1), 4, 5, epoch=0, first=0, num_views=1)[0, 0] * 2**24).long().tolist()
    used.clear()
    views.make(torch.zeros(1, 3, 32, 32), torch.arange(1), SETTINGS, 0, 0)
    assert len(mask) == 4 + 4 * 4 and len(used) == 3  # crop and jitter, bands, noise
    assert not set(mask) & {int(bits) >> 8 for numbers in used.values() for bits in numbers[0]}


@pytest.mark.parametrize("grid,count", [(4, 5), (4, 1), (14, 59)])
def test_masks_have_an_exact_count_and_are_blocks(grid, count):
    masks = Views(0, "cpu").masks(torch.arange(400), grid, count, epoch=0, first=0, num_views=2)
    assert masks.shape == (2, 400, count)
    assert all(len(set(row.tolist())) == count for row in masks.flatten(0, 1))
    assert 0 <= masks.min() and masks.max() < grid**2
    assert not torch.equal(masks[0], masks[1])
    if count > 1:
        bool_mask = torch.zeros(400, grid**2).scatter_(1, masks[0], 1.0).view(400, grid, grid)
        neighbours = (bool_mask[:, :, 1:] * bool_mask[:, :, :-1]).sum(dim=(1, 2)).mean().item()
        at_random = (count / grid**2) ** 2 * grid * (grid - 1)
        assert neighbours > 1.3 * at_random
