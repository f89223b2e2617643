"""The simulator: determinism, lensing formulas, PSF, visibility cuts, and no shortcuts between the classes."""

import math

import numpy as np
import pytest

from lens_ssl_hf.data.simulation import (
    BANDS,
    SimulationConfig,
    lensing,
    light,
    observation,
    populations,
    scenes,
    simulate_cutout,
    simulate_cutouts,
    simulator,
    survey,
)
from lens_ssl_hf.data.simulation.lensing import shear_deflection, sie_deflection
from lens_ssl_hf.errors import InputError


def same(a, b):
    return np.array_equal(a, b, equal_nan=True)


def test_cutout_depends_on_seed_and_index_alone():
    first, metadata = simulate_cutout(0, 5, True)
    simulate_cutout(0, 6, False)
    again, metadata_again = simulate_cutout(0, 5, True)
    assert first.shape == (3, 64, 64) and first.dtype == np.float32
    assert same(first, again) and metadata == metadata_again
    assert not same(first, simulate_cutout(0, 6, True)[0])
    assert not same(first, simulate_cutout(1, 5, True)[0])


def test_two_processes_give_the_bits_of_one():
    indices, lenses = range(3, 43), [i % 3 == 0 for i in range(40)]
    one = list(simulate_cutouts(7, indices, lenses, num_proc=1))
    two = list(simulate_cutouts(7, indices, lenses, num_proc=2))
    assert len(one) == len(two) == 40
    for (a, meta_a), (b, meta_b) in zip(one, two):
        assert a.tobytes() == b.tobytes()
        assert repr(meta_a) == repr(meta_b)  # repr: NaN is not equal to itself


def test_metadata_is_complete():
    for lens in (True, False):
        _, metadata = simulate_cutout(0, 1, lens)
        assert set(metadata) == {
            "ra", "dec", "bands", "zero_point", "pixel_scale", "seeing", "einstein_radius", "subclass",
        }  # fmt: skip
        assert metadata["bands"] == list(BANDS) and len(metadata["seeing"]) == 3
        assert metadata["zero_point"] == 27.0 and metadata["pixel_scale"] == 0.168
        assert 0 <= metadata["ra"] < 360 and -90 <= metadata["dec"] <= 90
        assert (metadata["subclass"] == "lens") == lens
        assert math.isnan(metadata["einstein_radius"]) != lens


def test_observing_conditions_do_not_depend_on_the_class():
    for index in range(5):
        lens, nonlens = (simulate_cutout(2, index, label)[1] for label in (True, False))
        assert all(lens[key] == nonlens[key] for key in ("seeing", "ra", "dec"))


def test_varied_cutouts_are_each_of_a_sky_of_their_own():
    config = SimulationConfig(size=48, varied=True)
    lenses, nonlenses = ([simulate_cutout(2, i, label, config) for i in range(40)] for label in (True, False))
    for (_, one), (_, other) in zip(lenses, nonlenses):  # whose conditions do not depend on the class
        assert all(one[key] == other[key] for key in ("seeing", "ra", "dec"))
        assert one["pixel_scale"] == 0.168 and one["zero_point"] == 27.0
    seeing = np.array([metadata["seeing"] for _, metadata in lenses])
    noise = np.array([np.nanstd(flux[:, :3, :3]) for flux, _ in nonlenses])
    assert seeing.min() < 0.65 and seeing.max() > 1.1
    assert np.quantile(noise, 0.9) > 5 * np.quantile(noise, 0.1)
    assert same(lenses[7][0], simulate_cutout(2, 7, True, config)[0])
    assert not same(lenses[7][0], simulate_cutout(2, 7, True, SimulationConfig(size=48))[0])


def test_look_alikes_of_varied_skies_are_not_as_bright_and_near_as_arcs():
    """Companions of 0.5 to 5 mag below the galaxy in r, out to 3.5 arcsec; rings of up to its brightness; blends."""
    config = SimulationConfig(size=48, varied=True)
    x, y = light.grid(80, config.pixel_scale)
    far = np.hypot(x, y) > 2.2
    flux = np.array([1000.0, 4000.0, 7000.0])
    galaxy = populations.Galaxy(flux, r_eff=0.4, sersic_index=4.0, axis_ratio=0.8, angle=0.3, x=0.0, y=0.0)
    system = populations.System(galaxy, 1.2, np.zeros((3, 80, 80), np.float32), 50.0, np.array([30.0, 35.0, 40.0]))
    alone = flux[:, None, None] * scenes.render_galaxy(galaxy, x, y, config)
    found = {}
    for kind, paint in scenes.VARIED.items():
        added = [paint(system, np.random.default_rng(i), x, y, config) for i in range(80)]
        assert np.isfinite(added).all() and np.min(added) >= 0
        if kind != "merger":  # whose galaxies are others
            added = np.array(added) - alone
        share = np.sum(added, axis=(2, 3)) / flux
        outside = np.where(far, added, 0).sum(axis=(2, 3))[:, 1] / np.sum(added, axis=(2, 3))[:, 1]
        found[kind] = share[:, 1], -2.5 * np.log10(share[:, 0] / share[:, 1]), outside
    shares, colours, outside = found["companions"]
    assert 0.005 < shares.min() < 0.1 and 0.8 < shares.max() < 5 * 10**-0.2 and (outside > 0.5).mean() > 0.2
    shares, colours, outside = found["ring"]
    assert 10**-1.2 < 1.05 * shares.min() and 0.7 < shares.max() < 1.05 and outside.min() < 0.1 < 0.5 < outside.max()
    shares, colours, outside = found["merger"]
    assert colours.std() > 0.15 and 0.5 < np.median(shares) < 1.2


def test_arcs_of_varied_skies_reach_further_and_are_fainter():
    """Einstein radii up to 2.3 arcsec, most of the light within 2.6, in the central 32 pixels; others stay near."""
    found = {}
    for varied in (False, True):
        systems = [simulator._simulate(4, i, True, SimulationConfig(size=48, varied=varied))[2] for i in range(60)]
        arcs = np.array([system.arcs[0] for system in systems])
        x, y = light.grid(arcs.shape[-1], 0.168)
        inside = [arcs[:, np.hypot(x, y) < radius].sum(axis=1) / arcs.sum(axis=(1, 2)) for radius in (1.9, 2.6)]
        found[varied] = *inside, *np.array([(system.einstein_radius, system.arc_snr) for system in systems]).T
    near, _, radii, snr = found[False]
    assert near.min() > 0.99 and radii.max() < 1.6 and snr.min() > 80
    near, inside, radii, snr = found[True]
    assert near.min() < 0.4 and inside.min() > 0.85 and 1.9 < radii.max() < 2.3
    assert snr.min() < 20 and np.median(snr) < 80


def test_a_survey_is_drawn_between_des_and_rubin():
    rng, config = np.random.default_rng(0), SimulationConfig(size=48, varied=True)
    drawn = [survey.draw_survey(rng, config) for _ in range(500)]
    depth, seeing = (np.array([getattr(one, name) for one in drawn]) for name in ("depth", "seeing"))
    assert depth[:, 1].min() < 24.0 and depth[:, 1].max() > 26.9 and (np.abs(np.diff(depth)) < 3.0).all()
    assert seeing.min() >= 0.5 and seeing.max() <= 1.3
    cuts = np.array([[one.min_arc_snr, one.min_arc_contrast, one.min_radius_over_seeing] for one in drawn])
    assert (cuts >= [12.0, 0.1, 0.85]).all() and (cuts <= [80.0, 0.65, 1.2]).all()
    assert {(one.size, one.pixel_scale, one.zero_point, one.varied) for one in drawn} == {(48, 0.168, 27.0, True)}


def test_sis_deflection_is_the_einstein_radius_everywhere():
    x, y = np.random.default_rng(0).normal(size=(2, 100))
    r = np.hypot(x, y)
    for axis_ratio in (1.0, 1 - 1e-8):
        a_x, a_y = sie_deflection(x, y, 1.3, axis_ratio, 0.4)
        np.testing.assert_allclose([a_x, a_y], [1.3 * x / r, 1.3 * y / r], atol=1e-6)


@pytest.mark.parametrize("axis_ratio, angle", [(0.4, 0.0), (0.7, 0.9), (0.95, 2.0)])
def test_sie_deflection_matches_its_mass(axis_ratio, angle):
    """Against Kormann et al. (1994) in polar form, and the divergence and curl against the convergence."""
    radius, f = 1.2, math.sqrt(1 - axis_ratio**2)
    r, phi = np.random.default_rng(1).uniform([[0.3], [0]], [[2.5], [2 * math.pi]], size=(2, 200))
    x, y = r * np.cos(phi + angle), r * np.sin(phi + angle)
    a_x, a_y = sie_deflection(x, y, radius, axis_ratio, angle)
    # Their major axis is x_2: our phi is counted from it, and their phi = pi/2 - ours.
    along = radius * math.sqrt(axis_ratio) / f * np.arcsin(f * np.cos(phi))
    across = radius * math.sqrt(axis_ratio) / f * np.arcsinh(f / axis_ratio * np.sin(phi))
    cos, sin = math.cos(angle), math.sin(angle)
    np.testing.assert_allclose(a_x, cos * along - sin * across, atol=1e-9)
    np.testing.assert_allclose(a_y, sin * along + cos * across, atol=1e-9)

    h = 1e-5
    east, west = (sie_deflection(x + d, y, radius, axis_ratio, angle) for d in (h, -h))
    north, south = (sie_deflection(x, y + d, radius, axis_ratio, angle) for d in (h, -h))
    divergence = (east[0] - west[0] + north[1] - south[1]) / (2 * h)
    convergence = (
        radius * math.sqrt(axis_ratio) / (2 * r * np.sqrt((axis_ratio * np.cos(phi)) ** 2 + np.sin(phi) ** 2))
    )
    np.testing.assert_allclose(divergence, 2 * convergence, rtol=1e-5)
    np.testing.assert_allclose((east[1] - west[1]) / (2 * h), (north[0] - south[0]) / (2 * h), atol=1e-5)


def test_shear_stretches_along_its_angle():
    angle, shear = 0.7, 0.1
    for direction, sign in ((angle, 1), (angle + math.pi / 2, -1)):
        x, y = math.cos(direction), math.sin(direction)
        np.testing.assert_allclose(
            shear_deflection(x, y, shear, angle), (sign * shear * x, sign * shear * y), atol=1e-12
        )


@pytest.mark.parametrize("offset", [0.2, 0.5])
def test_point_source_behind_an_sis_has_two_images_two_radii_apart(offset):
    radius, side, step = 1.1, 1000, 0.005
    x, y = np.broadcast_arrays(*light.grid(side, step))
    point = (1.0, offset, 0.0, 0.004, 1.0, 1.0, 0.0)
    image = lensing.lens_image(x, y, (radius, 1.0, 0.0, 0.0, 0.0), [point])
    rows, columns = np.nonzero(image > 0.2 * image.max())
    positions = x[rows, columns].astype(float)
    right, left = positions[positions > 0].mean(), positions[positions < 0].mean()
    assert right - left == pytest.approx(2 * radius, abs=2 * step)
    assert right + left == pytest.approx(2 * offset, abs=2 * step)
    assert np.abs(y[rows, columns]).max() < 0.1


def transfer(fwhm=0.8):
    kernel = observation.moffat(fwhm, 3.0, 0.02, -0.03, 0.168)
    return kernel, observation.transfer_of(kernel, 96)


def test_psf_keeps_the_flux_and_has_its_width():
    kernel, fourier = transfer()
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    scene = np.zeros((96, 96), dtype=np.float32)
    scene[48, 48] = 100.0
    image = observation.convolve(scene, fourier)
    assert image.shape == (64, 64) and image.sum() == pytest.approx(100, rel=1e-4)
    area = (image > image.max() / 2).sum() * 0.168**2  # pixels above half of the peak fill a disc of diameter FWHM
    assert 2 * math.sqrt(area / math.pi) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("column", [16, 8, 0])
def test_bright_source_at_the_edge_does_not_wrap_around(column):
    _, fourier = transfer()
    scene = np.zeros((96, 96), dtype=np.float32)
    scene[48, column] = 1e6
    image = observation.convolve(scene, fourier)
    assert np.abs(image[:, 32:]).max() < 1.0  # float32 rounding of 1e6
    if column > 0:
        assert image[:, :4].max() > 100


def test_sersic_profiles_hold_their_flux():
    x, y = light.grid(2000, 0.01)
    for n, q in ((1.0, 0.4), (2.5, 0.9)):
        profile = light.sersic(x, y, 0.6, n, q, 0.5).astype(float)
        assert profile.sum() * 0.01**2 == pytest.approx(1, abs=0.02)
    inside = (x / 0.6) ** 2 + (y / 0.6) ** 2 < 1
    assert light.sersic(x, y, 0.6, 1.0, 1.0, 0.0)[inside].sum(dtype=float) * 0.01**2 == pytest.approx(0.5, abs=0.01)


def arcs_alone(system, rng, x, y, config):
    return system.arcs


@pytest.fixture
def arcs_without_noise(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(simulator, "paint_lens", arcs_alone)
        patch.setattr(simulator, "paint_neighbours", lambda *scene: np.float32(0))
        patch.setattr(simulator, "add_noise", lambda image, *conditions: image)
        return [simulator._simulate(11, i, True, SimulationConfig(masked_fraction=0.0)) for i in range(300)]


@pytest.fixture
def blank_sky(monkeypatch):
    """Cutouts without any light, by index: (3, 64, 64) float64, of mean 0."""
    nothing = populations.System(None, 1.0, np.zeros((3, 96, 96), np.float32), 0.0, np.zeros(3))
    monkeypatch.setattr(simulator, "_draw_visible_system", lambda *conditions: nothing)
    monkeypatch.setattr(simulator, "paint_lens", arcs_alone)
    monkeypatch.setattr(simulator, "paint_neighbours", lambda *scene: np.float32(0))

    def simulate(index, **options):
        sky = simulate_cutout(11, index, True, SimulationConfig(masked_fraction=0.0, **options))[0].astype(float)
        return sky - sky.mean(axis=(1, 2), keepdims=True)

    return simulate


@pytest.mark.parametrize("pixel_scale", [0.168, 0.262])
def test_the_sky_is_as_deep_as_stated(blank_sky, pixel_scale):
    """
    5 sigma magnitudes of PSF fluxes, 16 in each of 600 cutouts: the stated ones, whether the noise is correlated
    little or much. Where the noise is taken for white, g is 26.03 instead of 26.5.
    """
    seeing, depth = np.array([0.77, 0.72, 0.60]), np.array([26.5, 26.2, 26.0])
    psf = np.exp(-0.5 * ((np.arange(16) - 7.5) * pixel_scale * 2.3548 / seeing[:, None]) ** 2)
    psf = psf[:, :, None] * psf[:, None, :]
    psf /= psf.sum(axis=(1, 2), keepdims=True)
    weights = psf / (psf**2).sum(axis=(1, 2), keepdims=True)
    variances, correlations = [], []
    for index in range(600):
        sky = blank_sky(index, pixel_scale=pixel_scale)
        correlations.append((sky[..., 1:] * sky[..., :-1]).mean() / (sky**2).mean())
        fluxes = np.einsum("brycx,byx->brc", sky.reshape(3, 4, 16, 4, 16), weights)
        variances.append((fluxes**2).mean(axis=(1, 2)))
    order = np.argsort(correlations)
    for chosen in (order[:300], order[300:]):
        noise = np.sqrt(np.mean([variances[i] for i in chosen], axis=0))
        np.testing.assert_allclose(27 - 2.5 * np.log10(5 * noise), depth, atol=0.04)


def test_the_snr_of_the_arcs_is_that_of_their_flux(arcs_without_noise, blank_sky):
    """Least-squares fits of arcs in blank sky of the same conditions scatter by 1 / S/N."""
    pulls = []
    for index, (arcs, _, system) in enumerate(arcs_without_noise):
        template = arcs[0].astype(float)
        pulls.append(system.arc_snr * (template * blank_sky(index)[0]).sum() / (template**2).sum())
    assert np.std(pulls) == pytest.approx(1, abs=0.12)


def test_noise_of_the_sky_and_of_the_sources():
    """Sigma, correlation of neighbours, 2c / (1 + 4c^2), and the Poisson term, which sums over pixels keep."""
    config, rng = SimulationConfig(), np.random.default_rng(5)
    sky, blank, c = np.array([0.5, 1.0, 2.0]), np.zeros((3, 64, 64), np.float32), 0.2
    frames = np.stack([observation.add_noise(blank, sky, c, rng, config) for _ in range(300)])
    np.testing.assert_allclose(frames.mean(axis=(2, 3)).std(axis=0), 0.1 * sky, rtol=0.2)  # residual sky
    frames -= frames.mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(frames.std(axis=(0, 2, 3)), sky, rtol=0.01)
    for shifted in (frames[..., 1:] * frames[..., :-1], frames[:, :, 1:] * frames[:, :, :-1]):
        correlation = shifted.mean(axis=(0, 2, 3)) / frames.var(axis=(0, 2, 3))
        np.testing.assert_allclose(correlation, 2 * c / (1 + 4 * c**2), atol=0.01)
    electrons = 10 ** (0.4 * (35.9 - config.zero_point))  # per unit of flux
    for flux in (100.0, 10_000.0):
        bright = np.stack(
            [observation.add_noise(blank + np.float32(flux), 0 * sky, c, rng, config) for _ in range(400)]
        )
        sums = bright.reshape(400, 3, 2, 32, 2, 32).sum(axis=(3, 5), dtype=float)
        np.testing.assert_allclose(sums.var(axis=(0, 2, 3)), 1024 * flux / electrons, rtol=0.12)


def test_lenses_are_visible():
    config = SimulationConfig()
    for index in range(40):
        _, metadata, system = simulator._simulate(3, index, True, config)
        assert metadata["einstein_radius"] > 1.2 * max(metadata["seeing"])
        arcs = system.arcs.astype(float)
        radius = np.hypot(*light.grid(96, config.pixel_scale))
        assert arcs[:, radius > 2.2].sum() < 0.02 * arcs.sum()
        # S/N again, with a round Gaussian PSF in real space and the nominal depth, as if the noise were white on the
        # scales of a PSF and of arcs: the same to some 25 %.
        seen = gaussian_blur(arcs[0], metadata["seeing"][0] / 2.3548 / config.pixel_scale)
        pixels = 4 * math.pi * (config.seeing[0] / 2.3548 / config.pixel_scale) ** 2
        noise = 10 ** (0.4 * (27.0 - config.depth[0])) / 5 / math.sqrt(pixels)
        assert math.sqrt((seen**2).sum()) / noise > 0.7 * 80
        assert system.arc_snr > 80  # the least that is asked for is 25


def gaussian_blur(image, sigma):
    offsets = np.arange(len(image))
    matrix = np.exp(-0.5 * ((offsets[:, None] - offsets) / sigma) ** 2)
    matrix /= matrix[len(image) // 2].sum()
    return matrix @ image @ matrix


def test_thresholds_are_adjustable():
    strict = SimulationConfig(min_arc_snr=150.0, min_radius_over_seeing=1.4)
    loose = SimulationConfig(min_arc_snr=5.0, min_arc_contrast=0.0, min_radius_over_seeing=0.5)
    faint, small = [], []
    for index in range(40):
        _, metadata, system = simulator._simulate(4, index, True, strict)
        assert system.arc_snr > 150 and metadata["einstein_radius"] > 1.4 * max(metadata["seeing"])
        _, metadata, system = simulator._simulate(4, index, True, loose)
        faint.append(system.arc_snr)
        small.append(metadata["einstein_radius"] / max(metadata["seeing"]))
    assert min(faint) < 80 and min(small) < 1.2


def test_size_and_zero_point_are_adjustable():
    image, metadata = simulate_cutout(0, 3, True, SimulationConfig(size=48, zero_point=24.5, masked_fraction=0))
    reference, _ = simulate_cutout(0, 3, True, SimulationConfig(size=48, masked_fraction=0))
    assert image.shape == (3, 48, 48) and metadata["zero_point"] == 24.5
    np.testing.assert_allclose(image * 10, reference, rtol=1e-3, atol=1e-3)


def test_some_pixels_are_masked_in_some_cutouts():
    cutouts = [simulate_cutout(0, index, index % 2 == 0)[0] for index in range(150)]
    masked = np.array([np.isnan(cutout).any() for cutout in cutouts])
    assert 0.05 < masked.mean() < 0.3
    assert max(np.isnan(cutout).mean() for cutout in cutouts) < 0.1
    assert not np.isnan(simulate_cutout(0, int(np.argmax(masked)), masked.argmax() % 2 == 0,
                                        SimulationConfig(masked_fraction=0.0))[0]).any()  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 63},
        {"size": 16},
        {"pixel_scale": 0.0},
        {"pixel_scale": math.nan},
        {"size": 64, "pixel_scale": 0.05},  # arcs would lie outside
        {"min_radius_over_seeing": 5.0},
        {"min_radius_over_seeing": 0.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        SimulationConfig(**settings)


def test_as_many_labels_as_indices():
    with pytest.raises(InputError, match="3 indices but 2 lenses"):
        simulate_cutouts(0, range(3), [True, False])


# ---- no shortcuts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cutouts():
    labels = np.arange(4000) % 2 == 0
    pixels, metadata = zip(*simulate_cutouts(11, range(4000), labels))
    return np.stack(pixels), labels, metadata


def held_out_auc(features, labels, subclasses):
    """AUC of gradient boosting trained on the first half: of the second half, and by subclass."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    half = len(labels) // 2
    with threadpool_limits(1):  # many times faster where other jobs run
        model = HistGradientBoostingClassifier(random_state=0).fit(features[:half], labels[:half])
    scores, labels, subclasses = model.predict_proba(features[half:])[:, 1], labels[half:], subclasses[half:]
    each = {}
    for subclass in sorted(set(subclasses[~labels].tolist())):
        chosen = labels | (subclasses == subclass)
        each[subclass] = roc_auc_score(labels[chosen], scores[chosen])
    return roc_auc_score(labels, scores), each


def central(pixels, size):
    edge = (pixels.shape[-1] - size) // 2
    return pixels[..., edge : edge + size, edge : edge + size]


def flux_features(pixels):
    magnitudes = np.arcsinh(np.nansum(pixels, axis=(2, 3)))
    return np.column_stack([magnitudes, magnitudes[:, 0] - magnitudes[:, 1], magnitudes[:, 1] - magnitudes[:, 2]])


def border_features(pixels, metadata):
    frame = np.ones(pixels.shape[2:], dtype=bool)
    frame[2:-2, 2:-2] = False
    border = pixels[:, :, frame]
    quantiles = np.concatenate(np.nanpercentile(border, [5, 25, 50, 75, 95], axis=2), axis=1)
    noise = np.nanmedian(np.abs(border - np.nanmedian(border, axis=2, keepdims=True)), axis=2)
    known = [[m["ra"], m["dec"], m["zero_point"], m["pixel_scale"], *m["seeing"]] for m in metadata]
    moments = [np.nanmean(border, axis=2), np.nanstd(border, axis=2)]
    return np.column_stack([quantiles, *moments, noise, np.isnan(pixels).mean(axis=(2, 3)), np.array(known)])


def profile_features(pixels):
    size = pixels.shape[-1]
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis).astype(int)
    profiles = np.stack([np.nanmean(pixels[:, :, radius == r], axis=2) for r in range(size // 2)], axis=2)
    profiles = np.arcsinh(profiles / 0.05)
    bands = [profiles[:, 0], profiles[:, 1], profiles[:, 2]]
    return np.column_stack([*bands, bands[0] - bands[1], bands[1] - bands[2]])


@pytest.mark.parametrize("size", [64, 32])
def test_brightness_and_colour_do_not_tell_the_class(cutouts, size):
    pixels, labels, metadata = cutouts
    subclasses = np.array([m["subclass"] for m in metadata])
    auc, each = held_out_auc(flux_features(central(pixels, size)), labels, subclasses)
    print(f"fluxes and colours, {size} px: {auc:.3f}", {k: round(v, 3) for k, v in each.items()})
    assert auc <= 0.65


@pytest.mark.parametrize("size", [64, 32])
def test_border_noise_masks_and_metadata_do_not_tell_the_class(cutouts, size):
    pixels, labels, metadata = cutouts
    subclasses = np.array([m["subclass"] for m in metadata])
    auc, each = held_out_auc(border_features(central(pixels, size), metadata), labels, subclasses)
    print(f"border and metadata, {size} px: {auc:.3f}", {k: round(v, 3) for k, v in each.items()})
    assert auc <= 0.55


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # a masked centre
@pytest.mark.parametrize("size", [64, 32])
def test_radial_colour_profiles_tell_the_class_but_not_all(cutouts, size):
    pixels, labels, metadata = cutouts
    subclasses = np.array([m["subclass"] for m in metadata])
    auc, each = held_out_auc(profile_features(central(pixels, size)), labels, subclasses)
    print(f"radial colour profiles, {size} px: {auc:.3f}", {k: round(v, 3) for k, v in each.items()})
    assert 0.80 <= auc <= 0.95
    assert set(each) == {"elliptical", "spiral", "ring", "companions", "merger"}
    assert min(each.values()) >= 0.7  # every kind can be told from a lens,
    assert min(each.values()) <= 0.8  # and some fool whoever looks at profiles alone
