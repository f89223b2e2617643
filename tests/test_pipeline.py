import numpy as np
import pytest
import torch
import transformers
from astropy.io import fits
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor

import lens_ssl_hf
from lens_ssl_hf.data.lens_image_processor import LensImageProcessor
from lens_ssl_hf.data.processing import Stretch
from lens_ssl_hf.errors import InputError
from lens_ssl_hf.inference.read_cutout import read_cutout

BANDS = ["i", "r", "g"]
STRETCH = Stretch("asinh", (-2.0, -2.0, -2.0), (100.0, 90.0, 80.0), (5.0, 5.0, 5.0)).to_dict()


def make_flux(seed=0, size=40, bands=3):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    flux = rng.normal(size=(bands, size, size)) + 80 * rng.uniform(size=(bands, 1, 1)) * np.exp(-(x**2 + y**2) / 30)
    flux[0, 3:5, 4] = np.nan
    return flux.astype("float32")


def save_model(folder, bands, processor, image_size=32):
    torch.manual_seed(0)
    stretch = {key: v if key == "kind" else [v[0]] * len(bands) for key, v in STRETCH.items()}
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=image_size,
        patch_size=8,
        num_channels=len(bands),
        initializer_range=0.5,
        id2label={0: "nonlens", 1: "lens"},
        label2id={"nonlens": 0, "lens": 1},
        cutouts={"bands": bands, "pixel_scale": 0.2, "zero_point": 27.0, "stretch": stretch},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, stretch


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    processor = ViTImageProcessor(
        do_resize=False, do_center_crop=True, crop_size=32, image_mean=[0.2] * 3, image_std=[0.3] * 3
    )
    return save_model(tmp_path_factory.mktemp("model"), BANDS, processor)[0]


@pytest.fixture(scope="module")
def classify(model):
    return lens_ssl_hf.pipeline(model)


def lens_score(result):
    return {entry["label"]: entry["score"] for entry in result}["lens"]


def test_files_arrays_and_lists_agree_with_plain_transformers(tmp_path, model, classify):
    flux = [make_flux(i) for i in range(3)]
    plain = transformers.pipeline("image-classification", model=str(model))
    np.save(tmp_path / "a.npy", flux[0])
    header = fits.Header({"BANDS": "g,r,i", "MAGZERO": 24.5})
    fits.PrimaryHDU(flux[0][::-1] / 10, header).writeto(tmp_path / "a.fits")  # other order, other zero point
    expected = [lens_score(plain(read_cutout(tmp_path / "a.npy", like=model)))]
    display = read_cutout(tmp_path / "a.npy", like=model)
    for same in (tmp_path / "a.npy", str(tmp_path / "a.fits"), flux[0], torch.from_numpy(flux[0])):
        assert lens_score(classify(same)) == pytest.approx(expected[0], abs=1e-5)
    np.save(tmp_path / "display.npy", display)
    for source in (display, tmp_path / "display.npy"):
        assert lens_score(classify(source, units="display")) == pytest.approx(expected[0], abs=1e-5)

    batch = [lens_score(result) for result in classify(np.stack(flux))]
    assert len(batch) == 3 and len(set(batch)) == 3
    assert batch[0] == pytest.approx(expected[0], abs=1e-5)
    assert [lens_score(result) for result in classify([tmp_path / "a.npy", flux[2]])] == pytest.approx(
        [batch[0], batch[2]], abs=1e-5
    )


def test_pictures_score_as_in_plain_transformers(tmp_path, model, classify):
    np.save(tmp_path / "a.npy", make_flux())
    display = read_cutout(tmp_path / "a.npy", like=model)
    Image.fromarray(np.rint(display).astype("uint8").transpose(1, 2, 0)).save(tmp_path / "a.png")
    plain = lens_score(transformers.pipeline("image-classification", model=str(model))(str(tmp_path / "a.png")))
    assert lens_score(classify(tmp_path / "a.png")) == pytest.approx(plain, abs=1e-5)
    assert lens_score(classify(Image.open(tmp_path / "a.png"))) == pytest.approx(plain, abs=1e-5)
    assert plain == pytest.approx(lens_score(classify(make_flux())), abs=0.02)


@pytest.mark.parametrize(
    ("cutout", "message"),
    [
        (np.full((3, 40, 40), np.nan), r"cutout 0 has no valid pixel \(all NaN or masked\)"),
        (make_flux(bands=5), "cutout 0 has 5 bands, but 3 are needed"),
        (make_flux(bands=1), "cutout 0 has 1 bands, but 3 are needed"),
        (make_flux(size=24), "cutout 0 is 24 x 24 pixels, smaller than the model's 32"),
        (make_flux() * 1e6 + 1e6, "cutout 0: after the model's asinh stretch"),
        ([make_flux(), make_flux()[0]], "cutout 1 has 1 bands"),
        ("nowhere.fits", "nowhere.fits does not exist"),
    ],
)
def test_what_the_stock_pipeline_passes_silently_is_refused(classify, cutout, message):
    with pytest.raises(InputError, match=message):
        classify(cutout)


def test_display_units_outside_their_range_are_refused(classify):
    with pytest.raises(InputError, match="no display units"):
        classify(make_flux(), units="display")


def test_five_bands_go_through_the_registered_processor(tmp_path):
    AutoImageProcessor.register(
        lens_ssl_hf.DINO.config_class, image_processor_classes={"pil": LensImageProcessor}, exist_ok=True
    )
    bands = ["g", "r", "i", "z", "y"]
    folder, stretch = save_model(tmp_path, bands, LensImageProcessor(bands, 0.2, stretch={"kind": "none"}))
    LensImageProcessor(bands, 0.2, stretch, image_mean=[0.2] * 5, image_std=[0.3] * 5).save_pretrained(folder)
    flux = make_flux(bands=5)
    model = ViTForImageClassification.from_pretrained(folder).eval()
    pixels = LensImageProcessor.from_pretrained(folder)(flux)["pixel_values"]
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)[0, 1].item()
    assert isinstance(AutoImageProcessor.from_pretrained(folder), LensImageProcessor)
    assert lens_score(lens_ssl_hf.pipeline(folder)(flux)) == pytest.approx(expected, abs=1e-5)


def test_a_model_without_stretch_is_named(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    np.save(tmp_path / "a.npy", make_flux())
    with pytest.raises(InputError, match=r"config\.cutouts"):
        read_cutout(tmp_path / "a.npy", like=tmp_path)
    with pytest.raises(InputError, match=r"cannot load a model from .*missing"):
        read_cutout(tmp_path / "a.npy", like=str(tmp_path / "missing"))
