"""Files in the display units of a model that is to score them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image
from tiny_runs import FLUX_STRETCH as STRETCH
from tiny_runs import make_flux, tiny_vit, write_classifier_run

from lens_ssl_hf import InputError, load_cutouts, pipeline, predict, read_cutout, save_cutouts
from lens_ssl_hf.commands.shared import load_dataset_like
from lens_ssl_hf.data.info import cutout_info
from lens_ssl_hf.data.options import DataArguments
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.evaluation.reports import evaluation_folder
from lens_ssl_hf.survey.score import score

pytestmark = pytest.mark.usefixtures("in_tmp_path")

SCALE = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": -0.1 / 3600, "CD2_2": 0.1 / 3600}


@pytest.fixture
def run(tmp_path):
    """It takes g r i of 0.168 arcsec and zero point 27."""
    path = write_classifier_run(tmp_path / "run")
    config = json.loads((path / "model" / "config.json").read_text())
    config["cutouts"]["stretch"] = STRETCH
    (path / "model" / "config.json").write_text(json.dumps(config))
    return str(path)


def write_fits(count, size=40, gain=1.0, **header):
    folder = Path("new")
    folder.mkdir()
    for i in range(count):
        fits.PrimaryHDU((gain * make_flux(i, size)).astype("f4"), fits.Header(header)).writeto(folder / f"{i}.fits")
    return folder


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"BUNIT": "nJy", "BANDS": "irg", "gain": 10**1.76},
        {"MAGZERO": 22.5, "BANDS": "i,g,r", "gain": 10**-1.8},
        {"size": 80, **SCALE},
    ],
    ids=["silent", "nJy", "zero point and order", "scale"],
)
def test_files_are_scored_in_a_dataset_as_one_by_one(facts, run, caplog):
    folder = write_fits(5, **facts)
    data = load_cutouts(folder, like=run, cache_dir="cache")
    assert "27 as zero point, its asinh stretch" in caplog.text
    first = read_cutout(folder / "0.fits", like=run)
    edge = (first.shape[1] - cutout_info(data).size) // 2
    assert (np.array(data["unlabelled"][0]["pixels"]) == first).all() and edge == 0
    info = cutout_info(data)
    assert (info.bands, info.zero_point, info.pixel_scale) == (["g", "r", "i"], 27, 0.168)
    alone = [
        {one["label"]: one["score"] for one in found}["lens"] for found in pipeline(run)(sorted(folder.iterdir()))
    ]
    assert predict(run, data).score == pytest.approx(alone, abs=1e-5)


def test_a_model_without_a_zero_point_takes_flux_as_it_comes(run):
    path = Path(run, "model", "config.json")
    config = json.loads(path.read_text())
    config["cutouts"]["zero_point"] = None
    path.write_text(json.dumps(config))
    folder = write_fits(3, BANDS="gri", MAGZERO="27,27,26")
    data = load_cutouts(folder, like=run, cache_dir="cache")
    assert (np.array(data["unlabelled"][0]["pixels"]) == read_cutout(folder / "0.fits", like=run)).all()
    assert cutout_info(data).zero_point is None


def test_pictures_are_display_units_already(run, caplog):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 40, 3), "uint8")
    Path("new").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(f"new/{i}.png")
    data = load_cutouts("new", like=run, cache_dir="cache")
    assert (np.array(data["unlabelled"][0]["pixels"]) == read_cutout("new/0.png", like=run)).all()
    assert cutout_info(data).stretch["kind"] == "none"
    said = (
        "brought to the display units of .*run: bands g r i, 0.168 arcsec per pixel, no stretch, as 8-bit pictures are"
    )
    assert re.search(said, caplog.text) and "asinh" not in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bands": ("i", "r", "g")}, "bands i r g contradicts .*run, which has g r i: leave bands out"),
        ({"zero_point": 22.5}, "zero_point 22.5 contradicts .*run, which has"),
        ({"pixel_scale": 0.2}, "pixel_scale 0.2 contradicts .*run, which has"),
        ({"stretch": "sqrt"}, "stretch sqrt contradicts .*run, which has"),
        ({"like": "./nowhere"}, "cannot load a model from ./nowhere"),
    ],
)
def test_contradictions_are_refused(options, match, run):
    folder = write_fits(3)
    with pytest.raises(InputError, match=match):
        load_cutouts(folder, cache_dir="cache", **{"like": run, **options})


def test_what_cannot_be_flux_in_the_units_of_the_model_is_refused(run):
    folder = write_fits(3, gain=1e-9)
    with pytest.raises(InputError, match=r"new/0.fits: after the model's asinh stretch it has no contrast"):
        load_cutouts(folder, like=run, cache_dir="cache")


def test_files_without_zero_point_beside_others_are_refused(run):
    folder = write_fits(3, MAGZERO=27.0)
    np.save(folder / "x.npy", make_flux(9))
    with pytest.raises(InputError, match=r"x.npy states no zero point"):
        load_cutouts(folder, like=run, cache_dir="cache")
    asked = {"zero_point": 27.0, "bands": ("g", "r", "i")}  # what the model has
    assert load_cutouts(folder, like=run, cache_dir="cache", **asked)["unlabelled"].num_rows == 4


def test_the_dataset_that_a_run_was_trained_on_stays_what_it_is(run):
    """Also its evaluation goes where it did; a model of other units makes another dataset of the same files."""
    folder = Path("own")
    for label in ("lenses", "nonlenses"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            np.save(folder / label / f"{i}.npy", make_flux(i + 100 * len(label)))
    own = load_cutouts(folder, bands=["g", "r", "i"], cache_dir="cache")
    path = Path(run, "run.json")
    facts = json.loads(path.read_text())
    foreign = load_cutouts(folder, like=run, cache_dir="cache")
    facts["data"]["fingerprint"] = cutout_info(own).fingerprint
    path.write_text(json.dumps(facts))
    again = load_dataset_like(run, DataArguments(str(folder), bands=["g", "r", "i"], cache_dir="cache"))
    assert cutout_info(again) == cutout_info(own) != cutout_info(foreign)
    assert evaluation_folder(run, vars(cutout_info(again)), "test").name == "evaluation"
    assert evaluation_folder(run, vars(cutout_info(foreign)), "test").name.startswith("evaluation-own-")


def test_what_is_built_or_simulated_keeps_its_units(run):
    """A model that states nothing, too, changes nothing."""
    folder = write_fits(3)
    tiny_vit(3).save_pretrained("silent")
    silent = load_dataset_like("silent", DataArguments(str(folder), cache_dir="cache"))
    assert cutout_info(silent) == cutout_info(load_cutouts(folder, cache_dir="cache"))
    arguments = DataArguments("simulated", cache_dir="cache", train_size=4, validation_size=4, test_size=4, size=32)
    assert cutout_info(load_dataset_like(run, arguments)).bands == ["i", "r", "g"]


def test_cutouts_are_simulated_in_the_units_of_a_model(run):
    sizes = {"train_size": 4, "validation_size": 4, "test_size": 4, "size": 32, "cache_dir": "cache", "num_proc": 1}
    own, like = load_cutouts("simulated", **sizes), load_cutouts("simulated", like=run, **sizes)
    assert cutout_info(like).stretch == STRETCH and cutout_info(like).bands == ["g", "r", "i"]
    flux = Stretch.from_dict(cutout_info(own).stretch).invert(np.array(own["test"]["pixels"], dtype=np.float64))
    seen, other = np.array(like["test"]["pixels"]), np.array(own["test"]["pixels"])[:, ::-1]
    inside = (seen > 0) & (seen < 255) & (other > 0) & (other < 255)  # what neither has clipped
    expected = np.stack([Stretch.from_dict(STRETCH).apply(one[::-1]) for one in flux])
    np.testing.assert_allclose(seen[inside], expected[inside], atol=0.05)


def test_simulated_cutouts_are_scored_where_they_are_like_the_model(run):
    sizes = {"train_size": 4, "validation_size": 4, "test_size": 4, "cache_dir": "cache", "num_proc": 1}
    save_cutouts(load_cutouts("simulated", bands=["g", "r", "i"], size=32, **sizes), "own")
    save_cutouts(load_cutouts("simulated", like=run, size=32, **sizes), "like")
    fix = f"make it again with lens-ssl simulate --like {re.escape(run)}$"
    with pytest.raises(InputError, match=f"another stretch than the one these cutouts were made with: {fix}"):
        score(run, "own", "scores")
    save_cutouts(load_cutouts("simulated", bands=["r", "i"], size=32, **sizes), "two")
    with pytest.raises(InputError, match=f"two has 2 bands .*: {fix}"):
        score(run, "two", "scores")
    assert score(run, "like", "scores")["counts"]["scored"] == 12


def test_the_scripts_that_score_set_it_by_themselves(run):
    folder = write_fits(3, BUNIT="nJy", gain=10**1.76)
    data = load_dataset_like(run, DataArguments(str(folder), cache_dir="cache"))
    assert cutout_info(data).stretch == STRETCH
    with pytest.raises(InputError, match=r"like is other but .*run scores the cutouts: leave like out"):
        load_dataset_like(run, DataArguments(str(folder), like="other"))
