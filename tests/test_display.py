import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from lens_ssl_hf import load_cutouts
from lens_ssl_hf.data.display import standardise, to_display
from lens_ssl_hf.data.files.raw import RawCutout
from lens_ssl_hf.data.flux import fill_masked, resample
from lens_ssl_hf.data.image_processor import LensImageProcessor
from lens_ssl_hf.data.info import CutoutInfo
from lens_ssl_hf.data.processor_config import save_processor
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.data.tensors import center_crop
from lens_ssl_hf.errors import InputError
from lens_ssl_hf.inference.read_cutout import read_cutout

SIGMA = np.array([0.05, 0.1, 0.2])


def make_flux(count=40, size=48, seed=0):
    """Sky noise of SIGMA per band around 0.01 and a bright blob at the centre, a masked patch in every third."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    blob = np.exp(-(x**2 + y**2) / 2 / 4**2)
    bright = rng.uniform(20, 100, count)[:, None, None, None] * SIGMA[:, None, None]
    flux = 0.01 + rng.normal(size=(count, 3, size, size)) * SIGMA[:, None, None] + bright * blob
    flux[::3, 1, 5:12, 20:26] = np.nan
    return flux.astype("float32")


def cutouts_entry(kind="asinh"):
    flux = make_flux()
    return {
        "bands": ["i", "r", "g"],
        "pixel_scale": 0.2,
        "zero_point": 27.0,
        "stretch": Stretch.fit(flux, kind).to_dict(),
    }


def test_stretch_finds_sky_and_noise():
    stretch = Stretch.fit(make_flux())
    np.testing.assert_allclose(stretch.softening, 5 * SIGMA, rtol=0.05)
    np.testing.assert_allclose(stretch.black, 0.01 - 2 * SIGMA, rtol=0.1, atol=0.003)


@pytest.mark.parametrize("kind", ["asinh", "sqrt", "linear"])
def test_stretch_follows_its_formula(kind):
    stretch = Stretch(kind, (-1.0, -2.0), (50.0, 80.0), (3.0, 5.0))
    curve = {"asinh": np.arcsinh, "sqrt": lambda x: np.sign(x) * (np.sqrt(1 + abs(x)) - 1), "linear": lambda x: x}[
        kind
    ]
    flux = np.random.default_rng(0).uniform(-10, 90, (4, 2, 5, 5))
    expected = np.empty_like(flux)
    for band in range(2):
        low, high, soft = stretch.black[band], stretch.white[band], stretch.softening[band]
        expected[:, band] = (
            255 * (curve(flux[:, band] / soft) - curve(low / soft)) / (curve(high / soft) - curve(low / soft))
        )
    if kind != "linear":
        expected = np.clip(expected, 0, 255)
    display = stretch.apply(flux)
    assert display.dtype == np.float32
    np.testing.assert_allclose(display, expected, atol=2e-3)
    assert Stretch.from_dict(json.loads(json.dumps(stretch.to_dict()))) == stretch


def test_stretch_none_refuses_flux():
    pixels = np.array([0, 255.0]).reshape(1, 1, 2)
    np.testing.assert_array_equal(Stretch("none").apply(pixels), pixels)
    with pytest.raises(InputError, match="values from -1 to 255 are no display units"):
        Stretch("none").apply(np.array([-1, 255.0]).reshape(1, 1, 2))


def test_stretch_refuses_a_band_without_contrast():
    flux = make_flux(4)
    flux[:, 1] = 3
    with pytest.raises(InputError, match="band 2 of the training cutouts has no contrast"):
        Stretch.fit(flux)


def test_masked_pixels_take_the_value_of_their_neighbours():
    plane = np.add.outer(np.arange(9.0), np.zeros(9)).astype("float32")
    flux = np.stack([plane, 100 + plane])
    flux[0, 4, 4] = np.nan
    flux[1, :, 6:] = np.nan  # to the border
    filled = fill_masked(flux)
    assert filled[0, 4, 4] == pytest.approx(4)
    assert np.isfinite(filled).all() and np.all(np.diff(filled[1, :, 8]) > 0)
    np.testing.assert_array_equal(filled[~np.isnan(flux)], flux[~np.isnan(flux)])


def test_resampling_keeps_the_flux_and_its_place():
    flux = np.zeros((1, 40, 40), "float32")
    flux[0, 20:22, 19:21] = 1
    for factor in (0.5, 1.5):
        image = resample(flux, factor)[0]
        assert image.shape == (40 * factor, 40 * factor)
        assert image.sum() == pytest.approx(4, rel=1e-4)
        row = (image.sum(1) * (np.arange(len(image)) + 0.5)).sum() / image.sum()
        assert row / factor == pytest.approx(21, abs=0.01)


@pytest.mark.parametrize("factor", [0.2 / 0.168, 1.5, 0.7])
def test_resampling_keeps_the_middle_whatever_the_side(factor):
    """A model sees the same where more sky was cut out around an object."""
    for side in (120, 121):
        sky = np.random.default_rng(0).normal(size=(2, side, side)).astype("float32")
        cut = [sky[:, i : side - i, i : side - i] for i in (0, 1, 2, 20, 27)]
        seen = [center_crop(resample(one, factor), 32) for one in cut]
        for one in seen[1:]:
            np.testing.assert_allclose(one, seen[0], atol=1e-6)
    y, x = np.mgrid[-60:61, -60:61]
    image = center_crop(resample(np.exp(-(x**2 + y**2) / 18.0)[None], factor), 32)[0]
    np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-7)
    np.testing.assert_allclose(image, image.T, atol=1e-7)


def test_resampling_equals_the_antialiased_interpolation_of_torch():
    pixels = np.random.default_rng(0).normal(size=(3, 40, 60)).astype("float32")
    for factor in (0.5, 1.3, 2.0):
        size, image = (round(40 * factor), round(60 * factor)), torch.tensor(pixels)[None]
        expected = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)[0]
        np.testing.assert_allclose(resample(pixels, factor, is_flux=False), expected, atol=1e-4)


def test_bands_are_chosen_by_name_and_flux_follows_the_zero_point():
    flux = make_flux(2)[1]
    raw = RawCutout(flux, ("g", "r", "i"), (27.0, 27.0, 24.5), 0.2)
    wanted = standardise(raw, "a.fits", ["i", "g"], zero_point=27.0)
    np.testing.assert_allclose(wanted, np.stack([10 * flux[2], flux[0]]), rtol=1e-5)
    for points in (raw.zero_points, (None, None, 24.5), None):  # of the flux before it became display units
        display = replace(raw, display=True, zero_points=points)
        np.testing.assert_array_equal(standardise(display, "a.fits", ["i", "g"], zero_point=27.0), flux[[2, 0]])
    with pytest.raises(InputError, match=r"a\.fits has the bands g, r, i, but z are needed"):
        standardise(raw, "a.fits", ["z"])


def test_pixels_too_large_to_be_resampled_are_refused():
    with pytest.raises(InputError, match=r"a\.fits has pixels of 0\.2 arcsec, too large to be resampled to 1e-05"):
        standardise(RawCutout(make_flux(1)[0], pixel_scale=0.2), "a.fits", pixel_scale=1e-5)


def test_flux_in_other_units_is_refused():
    entry = cutouts_entry()
    flux = make_flux(2)[1]
    assert 5 < to_display(RawCutout(flux), entry, "a.npy").mean() < 80
    for wrong in (flux * 1e4 + 1e4, flux * 1e-5, to_display(RawCutout(flux), entry, "a.npy") + 20):
        with pytest.raises(InputError, match=r"a\.npy: after the model's asinh stretch .* the model's units"):
            to_display(RawCutout(wrong), entry, "a.npy")


@pytest.mark.parametrize("kind", ["asinh", "sqrt", "linear"])
def test_the_raw_processor_equals_read_cutout_and_the_stock_processor(tmp_path, kind):
    entry, flux = cutouts_entry(kind), make_flux(1, seed=1)[0]
    mean, std = [0.1, 0.2, 0.3], [0.2, 0.3, 0.4]
    np.save(tmp_path / "a.npy", flux)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 32, "cutouts": entry}))
    stock = ViTImageProcessor(
        do_resize=False, do_center_crop=True, crop_size=32, do_rescale=True, image_mean=mean, image_std=std
    )
    ours = LensImageProcessor(entry["bands"], 0.2, entry["stretch"], crop_size=32, image_mean=mean, image_std=std)
    raw = ours(flux)["pixel_values"]
    display = read_cutout(tmp_path / "a.npy", like=tmp_path)
    assert raw.dtype == torch.float32 and raw.shape == (1, 3, 32, 32)
    torch.testing.assert_close(raw, stock(display, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-5)
    if kind == "linear":
        return  # not clipped: no picture holds it
    picture = Image.fromarray(np.rint(display).astype("uint8").transpose(1, 2, 0))
    picture.save(tmp_path / "a.png")
    rounding = 0.51 / 255 / min(std)
    np.testing.assert_array_equal(read_cutout(tmp_path / "a.png", like=tmp_path), np.rint(display))
    for processor in (stock, ours):
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, raw, rtol=0, atol=rounding)


def test_of_a_large_cutout_only_the_middle_is_worked_on(tmp_path):
    """A large hole takes no time where the model does not see it; where it sees nothing else, it is refused."""
    entry, middle = cutouts_entry(), make_flux(1, 48)[0]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 32, "cutouts": entry}))
    flux = np.full((3, 2301, 2300), np.nan, "f4")
    flux[:, :5] = 1
    np.save(tmp_path / "hole.npy", flux)
    with pytest.raises(InputError, match=r"the middle of .*hole\.npy, which the model sees, has no valid pixel"):
        read_cutout(tmp_path / "hole.npy", like=tmp_path)
    flux[:, 1126:1174, 1126:1174] = middle
    np.save(tmp_path / "a.npy", flux)
    np.save(tmp_path / "b.npy", middle)
    seen = read_cutout(tmp_path / "a.npy", like=tmp_path)
    assert seen.shape == (3, 513, 512)
    np.testing.assert_array_equal(
        seen[:, 240:272, 240:272], read_cutout(tmp_path / "b.npy", like=tmp_path)[:, 8:40, 8:40]
    )


@pytest.mark.parametrize("count", [1, 5, 10])
def test_processor_saves_and_takes_any_number_of_bands(tmp_path, count):
    bands = [f"b{i}" for i in range(count)]
    stretch = Stretch("asinh", (-1.0,) * count, tuple(range(9, 9 + count)), (1.0,) * count).to_dict()
    processor = LensImageProcessor(
        bands, 0.2, stretch, crop_size=16, image_mean=[0.4] * count, image_std=[0.3] * count
    )
    processor.save_pretrained(tmp_path)
    loaded = LensImageProcessor.from_pretrained(tmp_path)
    flux = np.random.default_rng(0).normal(size=(2, count, 20, 22)).astype("float32")
    flux[0, 0, 3, 3] = np.nan
    pixels = processor(flux)["pixel_values"]
    assert pixels.shape == (2, count, 16, 16) and pixels.isfinite().all()
    torch.testing.assert_close(loaded(list(flux))["pixel_values"], pixels, rtol=0, atol=0)
    reverse = loaded(flux[:, ::-1], input_bands=bands[::-1])["pixel_values"]
    torch.testing.assert_close(reverse, pixels, rtol=0, atol=0)
    assert loaded(flux, input_pixel_scale=0.4)["pixel_values"].shape == pixels.shape


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_8_bit_values_have_no_stretch_that_a_model_would_not_know_of(kind, tmp_path, in_tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "data" / ("lenses" if i % 2 else "nonlenses") / f"{i}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(1, 250, (32, 32), "uint8")
        Image.fromarray(pixels).save(path) if kind == "png" else np.savez(path, data=pixels, pixel_scale=0.2)
    for stretch in ("asinh", "sqrt", "linear"):
        with pytest.raises(InputError, match=r"\d\.... is an 8-bit picture, in display units already: leave stretch"):
            load_cutouts("data", stretch=stretch, cache_dir="cache")
    pixels = np.array(load_cutouts("data", stretch="none", cache_dir="cache")["train"]["pixels"])
    assert (pixels == np.rint(pixels)).all()
    np.save("data/lenses/x.npy", rng.uniform(0, 255, (1, 32, 32)))
    for stretch in ("auto", "asinh"):
        with pytest.raises(InputError, match=r"x\.npy is flux: keep one kind, or give stretch none if both are"):
            load_cutouts("data", stretch=stretch, cache_dir="cache")
    assert sum(map(len, load_cutouts("data", stretch="none", cache_dir="cache").values())) == 21


def test_masked_8_bit_values_are_display_units():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    stretch = Stretch("asinh", (-1,), (9,), (1,)).to_dict()
    processor = LensImageProcessor(["g"], 0.2, stretch, crop_size=32, image_mean=[0.4], image_std=[0.3])
    plain, masked = (processor(one)["pixel_values"] for one in (pixels, np.ma.masked_array(pixels, mask=False)))
    assert torch.equal(plain, masked)
    torch.testing.assert_close(plain[0], (torch.from_numpy(pixels) / 255 - 0.4) / 0.3)


def test_a_model_folder_gets_the_processor_and_the_code_that_it_needs(tmp_path):
    cutouts = {"bands": ["g"], "pixel_scale": 0.2, "stretch": Stretch("asinh", (-1,), (9,), (1,)).to_dict()}
    save_processor(tmp_path, cutouts, 16, [0.4], [0.3])
    assert {path.name for path in tmp_path.iterdir()} == {"preprocessor_config.json", "image_processor.py", "flux.py"}
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert config == {
        **cutouts,
        "image_processor_type": "LensImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processor.LensImageProcessor"},
        "do_stretch": False,
        "crop_size": {"height": 16, "width": 16},
        "rescale_factor": 1 / 255,
        "image_mean": [0.4],
        "image_std": [0.3],
    }


@pytest.mark.parametrize(
    ("flux", "message"),
    [
        (np.zeros((5, 40, 40)), r"shape \(5, 40, 40\): the model needs \(3, height, width\)"),
        (np.zeros((3, 30, 40)), "cutout 0 is 30 x 40 pixels, smaller than the crop of 32 x 32"),
        (np.full((3, 40, 40), np.nan), r"no valid pixel \(all NaN\)"),
    ],
)
def test_processor_refuses(flux, message):
    with pytest.raises(ValueError, match=message):
        LensImageProcessor(stretch={"kind": "none"})(flux)


def test_info_survives_json_and_later_keys():
    info = CutoutInfo("folder", "mine", False, ["g"], 64, 0.2, None, Stretch("none").to_dict(), "ab")
    later = json.loads(info.to_json()) | {"new": 1}
    assert CutoutInfo.from_json(json.dumps(later)) == info
