from functools import partial

import numpy as np
import pytest
import torch
import transformers
from astropy.io import fits
from datasets import Array3D, Dataset, DatasetDict, Features, Value
from PIL import Image
from torch.utils.data import DataLoader, Subset
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.pipelines.pt_utils import KeyDataset

import lens_ssl_hf
from lens_ssl_hf.data.image_processor import LensImageProcessor
from lens_ssl_hf.data.info import CutoutInfo
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.errors import InputError
from lens_ssl_hf.inference.read_cutout import read_cutout
from lens_ssl_hf.models import DinoConfig

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
    headers = ({"MAGZERO": 24.5}, {"BUNIT": "adu"}, {"BUNIT": "adu", "MAGZERO": 24.5})  # left over from the flux
    for i, header in enumerate(headers):
        fits.PrimaryHDU(display, fits.Header({"BANDS": "i,r,g", **header})).writeto(tmp_path / f"display{i}.fits")
    for source in (display, tmp_path / "display.npy", *sorted(tmp_path.glob("display?.fits"))):
        assert lens_score(classify(source, units="display")) == pytest.approx(expected[0], abs=1e-5)

    batch = [lens_score(result) for result in classify(np.stack(flux))]
    assert len(batch) == 3 and len(set(batch)) == 3
    assert batch[0] == pytest.approx(expected[0], abs=1e-5)
    assert [lens_score(result) for result in classify([tmp_path / "a.npy", flux[2]])] == pytest.approx(
        [batch[0], batch[2]], abs=1e-5
    )


def test_it_is_a_task_of_transformers(tmp_path, model, classify):
    stock = transformers.pipeline("lens-classification", model=str(model), batch_size=2)
    assert isinstance(stock, transformers.ImageClassificationPipeline) and type(stock) is type(classify)
    assert stock.dtype == torch.float32 and stock._batch_size == 2
    files = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, file in enumerate(files):
        np.save(file, make_flux(i))
    expected = pytest.approx(list(map(lens_score, classify(files))), abs=1e-6)  # of other batches
    assert list(map(lens_score, stock(files, num_workers=2))) == expected
    assert [len(found) for found in stock(files, top_k=1)] == [1, 1, 1]
    results = stock(KeyDataset([{"file": file} for file in files], "file"))
    assert not isinstance(results, list) and list(map(lens_score, results)) == expected
    backbone = tmp_path / "backbone"
    transformers.ViTModel(ViTConfig(num_hidden_layers=1)).save_pretrained(backbone)
    AutoImageProcessor.from_pretrained(model).save_pretrained(backbone)
    with pytest.raises(InputError, match="is no ViT classifier"):  # not given a random head
        transformers.pipeline("lens-classification", model=str(backbone))


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
    AutoImageProcessor.register(DinoConfig, image_processor_classes={"pil": LensImageProcessor}, exist_ok=True)
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


@pytest.mark.parametrize("read", [lens_ssl_hf.pipeline, lambda model: partial(read_cutout, like=model)])
def test_what_files_do_not_state_is_said_once(read, tmp_path, model, caplog, monkeypatch):
    monkeypatch.setattr("lens_ssl_hf.inference.read_cutout._told", set())
    read = read(model)
    rounded = np.clip(np.nan_to_num(make_flux()), 0, 255).astype("uint8").transpose(1, 2, 0)
    Image.fromarray(rounded).save(tmp_path / "a.png")
    header = fits.Header({"BANDS": "i,r,g", "MAGZERO": 27.0, "PIXSCALE": 0.2})
    fits.PrimaryHDU(make_flux(), header).writeto(tmp_path / "a.fits")
    for name in ("a.png", "a.fits"):
        read(tmp_path / name)
    assert not caplog.records
    fits.PrimaryHDU(make_flux(), header[:2]).writeto(tmp_path / "b.fits")
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, make_flux())
    for name in ("b.fits", "a.npy", "b.npy"):
        read(str(tmp_path / name))
    end = "as in all files that do not; if that is wrong, state it in a FITS header, or give"
    assert [one.message.removeprefix(f"{tmp_path}/") for one in caplog.records] == [
        f"b.fits does not state its pixel scale: taken as 0.2, {end} pixel_scale to lens-ssl score",
        f"a.npy does not state its bands: taken as i r g, {end} bands to lens-ssl score",
        f"a.npy does not state its zero point: taken as 27, {end} zero_point to lens-ssl score",
    ]


def test_what_the_caller_says_is_not_asked(tmp_path, classify, caplog, monkeypatch):
    monkeypatch.setattr("lens_ssl_hf.inference.read_cutout._told", set())
    np.save(tmp_path / "a.npy", make_flux())
    np.save(tmp_path / "b.npy", np.full((3, 40, 40), 100.0) + np.arange(40))
    classify(tmp_path / "b.npy", units="display")
    classify(make_flux())  # of arrays the documentation says what they hold
    classify(make_flux().tolist(), units="flux")
    assert not caplog.records
    classify(tmp_path / "a.npy", units="flux")  # in the units of the training data
    assert [one.message.split(":")[0].rpartition(" its ")[2] for one in caplog.records] == ["bands", "pixel scale"]


def test_a_model_without_stretch_is_named(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    np.save(tmp_path / "a.npy", make_flux())
    with pytest.raises(InputError, match=r"config\.cutouts"):
        read_cutout(tmp_path / "a.npy", like=tmp_path)
    with pytest.raises(InputError, match=r"cannot load a model from .*missing"):
        read_cutout(tmp_path / "a.npy", like=str(tmp_path / "missing"))


def split_of(displays, bands=BANDS, stretch=STRETCH):
    """A split as load_cutouts returns it."""
    count, size = len(displays), displays[0].shape[-1]
    features = {"pixels": Array3D((len(bands), size, size), "float32"), "label": Value("int64")}
    columns = {"pixels": np.stack(displays), "label": [0] * count}
    for name in ("id", "group", "subclass"):
        columns[name], features[name] = [str(i) for i in range(count)], Value("string")
    split = Dataset.from_dict(columns, features=Features(features))
    split.info.description = CutoutInfo("folder", "toy", False, list(bands), size, 0.2, 27.0, stretch).to_json()
    return split


@pytest.fixture(scope="module")
def split(classify):
    return split_of([classify.display(make_flux(i)) for i in range(5)])


@pytest.fixture(scope="module")
def expected(classify):
    return [lens_score(result) for result in classify([make_flux(i) for i in range(5)])]


@pytest.mark.parametrize(
    "of_split",
    [
        lambda split: split,
        lambda split: split["pixels"],
        lambda split: split[:5],
        lambda split: split.to_iterable_dataset(),
        lambda split: (row for row in split),
        lambda split: [split[i] for i in range(5)],
        lambda split: DataLoader(split.with_format("torch"), batch_size=2),
        lambda split: Subset(split, range(5)),
        lambda split: KeyDataset(split, "pixels"),
    ],
)
def test_what_load_cutouts_gives_is_known_to_be_display_units(of_split, split, classify, expected):
    assert [lens_score(result) for result in classify(of_split(split))] == pytest.approx(expected, abs=1e-6)
    assert lens_score(classify(split[3])) == pytest.approx(expected[3], abs=1e-6)


def test_bare_lists_of_numbers_do_not_tell_their_units(split, classify, expected):
    pixels = split[2]["pixels"]
    with pytest.raises(InputError, match=r"cutout 0 is a list of numbers, .*: give units='display'"):
        classify(pixels)
    assert lens_score(classify(pixels, units="display")) == pytest.approx(expected[2], abs=1e-6)
    assert lens_score(classify(make_flux(2).tolist(), units="flux")) == pytest.approx(expected[2], abs=1e-5)
    several = classify(split[:2]["pixels"], units="display")
    assert [lens_score(result) for result in several] == pytest.approx(expected[:2], abs=1e-6)


def test_rows_that_lack_a_column_do_not_tell_their_units(split, classify, expected):
    rows = split.remove_columns("subclass")
    unknown = Dataset.from_dict(rows.to_dict(), features=rows.features)  # without what load_cutouts says of it
    batches = DataLoader(unknown.with_format("torch"), batch_size=2)
    for cutouts in (
        rows.with_format("torch")[2:4],
        unknown.with_format("numpy"),
        batches,
        [rows.with_format("numpy")[2]],
    ):
        with pytest.raises(InputError, match=r"cutout 0 is a row that does not say .*: give units='display' where"):
            list(classify(cutouts))
    assert lens_score(classify(rows.with_format("numpy")[2], units="display")) == pytest.approx(expected[2], abs=1e-6)
    found = classify(unknown, units="display")
    assert [lens_score(result) for result in found] == pytest.approx(expected, abs=1e-6)


def test_a_split_of_other_cutouts_than_the_models(split, classify, caplog):
    with pytest.raises(InputError, match="takes bands in the order i r g, not g r i"):
        classify(split_of(list(split.with_format("numpy")["pixels"]), BANDS[::-1]))
    with pytest.raises(InputError, match="are display units: leave units out"):
        classify(split, units="flux")
    classify(split_of(list(split.with_format("numpy")["pixels"]), stretch={"kind": "none"}))
    assert "another stretch" in caplog.text


def test_a_generator_is_streamed(classify, expected):
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield make_flux(len(read) - 1)

    results = classify(endless(), batch_size=2)
    assert [lens_score(next(results)) for _ in range(2)] == pytest.approx(expected[:2], abs=1e-6) and len(read) == 2


def test_a_batch_is_bounded_in_bytes(tmp_path, monkeypatch, model):
    assert lens_ssl_hf.pipeline(model)._batch_size == 64
    monkeypatch.setattr("lens_ssl_hf.inference.pipeline.BATCH_BYTES", 5 * 4 * 3 * 32**2)
    assert lens_ssl_hf.pipeline(model)._batch_size == 5


@pytest.mark.parametrize(
    ("cutouts", "message"),
    [
        (lambda split, folder: folder, r"is a folder: give its files, such as sorted\(Path\("),
        (lambda split, folder: DatasetDict(train=split, test=split), "the cutouts are in train, test: give one"),
        (lambda split, folder: split.remove_columns("pixels"), "has no column 'pixels'"),
        (lambda split, folder: DataLoader(split, batch_size=2), r"make it of data.with_format\('torch'\)"),
    ],
)
def test_what_cannot_be_scored_says_what_can(cutouts, message, split, classify, tmp_path):
    with pytest.raises(InputError, match=message):
        classify(cutouts(split, tmp_path))


def test_files_of_single_bands_are_one_cutout(tmp_path, classify):
    flux = np.nan_to_num(make_flux())
    for band, plane in zip(BANDS, flux):
        np.save(tmp_path / f"{band}.npy", plane)
    files = [tmp_path / f"{band}.npy" for band in BANDS]
    assert [lens_score(result) for result in classify([files])] == pytest.approx([lens_score(classify(flux))])
