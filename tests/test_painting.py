"""Simulated arcs on galaxies of one's own: which galaxies, how much light, and nothing else that tells the classes."""

import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

from lens_ssl_hf import InputError, Stretch, cutout_info, export, finetune, load_cutouts, paint, push_dataset
from lens_ssl_hf.commands import paint as command
from lens_ssl_hf.data import painting
from lens_ssl_hf.data.info import CutoutInfo
from lens_ssl_hf.data.painting import Brush, draw_arcs, paint_arcs, sky_of
from lens_ssl_hf.data.storage import save_cutouts

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture(scope="module")
def survey():
    return load_cutouts(
        "simulated", train_size=30, validation_size=8, test_size=8, unlabelled_size=40, size=40, num_proc=1
    )


def rows_of(split):
    return {row["id"]: row for row in split.with_format("numpy")}


def test_galaxies_are_written_with_and_without_arcs(survey):
    paint(survey, "painted", seeing=0.6, per_galaxy=2, num_proc=1)
    paint(survey, "again", seeing=0.6, per_galaxy=2, num_proc=2)
    made, again = load_cutouts("painted"), load_cutouts("again")
    assert set(made) == {"train", "validation"}
    train, validation = rows_of(made["train"]), rows_of(made["validation"])
    groups = [{row["group"] for row in rows.values()} for rows in (train, validation)]
    assert all(groups) and not groups[0] & groups[1]
    every = train | validation
    source = rows_of(survey["unlabelled"]) | rows_of(survey["train"].filter(lambda row: row["label"] == 0))
    companions = {
        name: row for name, row in every.items() if row["subclass"] == "companions" and "-companions" in name
    }
    plain = {name: row for name, row in every.items() if row["label"] == 0 and name not in companions}
    assert set(plain) == set(source)  # no lens, and nothing of the validation and test splits
    assert all(np.array_equal(row["pixels"], source[name]["pixels"]) for name, row in plain.items())
    painted = {name: row for name, row in every.items() if row["label"] == 1}
    hosts = {name.rsplit("-arcs", 1)[0] for name in painted}
    assert len(painted) > 10 and hosts < set(plain)
    assert len(companions) > 10 and {row["label"] for row in companions.values()} == {0}
    for name, row in (painted | companions).items():
        before = source[name.rsplit("-", 1)[0]]["pixels"]
        assert (row["pixels"] >= before).all() and (row["pixels"] > before + 5).any() and row["pixels"].max() <= 255
    for row in painted.values():
        assert 0.72 <= row["einstein_radius"] <= 16 * 0.168 / 1.6
    repeated = rows_of(again["train"]) | rows_of(again["validation"])
    assert {name: row["pixels"].tobytes() for name, row in repeated.items()} == {
        name: row["pixels"].tobytes() for name, row in every.items()
    }
    info = cutout_info(made)
    assert info.name == "simulated lenses with simulated arcs" and info.stretch == cutout_info(survey).stretch
    assert info.fingerprint == cutout_info(again).fingerprint != cutout_info(survey).fingerprint


@pytest.fixture
def scene():
    """Flux of a red galaxy in white noise, with the brush for it."""
    rng = np.random.default_rng(3)
    axis = np.arange(48) - 23.5
    galaxy = np.exp(-np.hypot(axis[:, None], axis) / 3)
    bands = np.array([4.0, 2.0, 1.0])[:, None, None]  # i, r, g
    flux = (60 * bands * galaxy + rng.normal(5, 1, (3, 48, 48))).astype(np.float32)
    stretch = Stretch("asinh", (3.0,) * 3, (400.0,) * 3, (5.0,) * 3)
    brush = Brush(stretch.to_dict(), ("i", "r", "g"), 0.2, 0.7, 0, False, 0.0, 1.0, (4.0, 2.0, 1.0))
    return flux, stretch, brush


def test_arcs_have_the_light_that_was_asked_for(scene):
    flux, _, brush = scene
    found = [draw_arcs(flux, brush, np.random.default_rng(i)) for i in range(30)]
    assert all(one is not None for one in found)
    sky, noise = sky_of(flux)
    np.testing.assert_allclose(noise, 1, rtol=0.15)
    axis = (np.arange(48) - 23.5) * 0.2
    distance = np.hypot(axis[:, None], axis)
    light = np.maximum(flux - sky[:, None, None], 0).astype(np.float64)
    radii, seen, opposite, alone = [], [], [], []
    for arcs, radius in found:
        arcs = arcs.astype(np.float64)
        assert (arcs >= 0).all() and arcs[:, distance < 3.2].sum() > 0.97 * arcs.sum()
        snr = math.sqrt((arcs[2] ** 2).sum()) / noise[2]  # of a fit of the arcs, in white noise
        assert 25 * 0.999 < snr < 300 * 1.001
        assert (arcs[2] ** 2).sum() / (arcs[2] * (arcs[2] + light[2])).sum() > 0.4
        assert arcs[0].sum() < 0.7 * light[0][distance < radius].sum()
        assert arcs[0].sum() / arcs[2].sum() < 4  # bluer than the galaxy
        radii.append(radius)
        seen.append((arcs[2] * distance).sum() / arcs[2].sum())
        turned = np.rot90(arcs[2], 2)  # images of a source lie on both sides of its lens
        opposite.append((np.minimum(arcs[2], turned)).sum() / arcs[2].sum())
        other, _ = draw_arcs(flux, brush, np.random.default_rng(len(opposite)), lens=False)
        alone.append(np.minimum(other[2], np.rot90(other[2], 2)).sum() / other[2].sum())
    assert min(radii) >= 1.2 * 0.7 and max(radii) <= 2.0
    assert np.corrcoef(radii, seen)[0, 1] > 0.8  # the light lies where the lens puts it
    assert np.mean(opposite) > 1.5 * np.mean(alone)


def test_pictures_of_8_bits_stay_whole_numbers_and_as_they_are_elsewhere(scene):
    flux, stretch, brush = scene
    display = np.rint(stretch.apply(flux))
    brush = Brush(**{**vars(brush), "is_picture": True})
    painted, _ = paint_arcs(display, brush, np.random.default_rng(0))
    assert painted.dtype == np.float32 and (painted == np.rint(painted)).all() and painted.max() <= 255
    assert (painted >= display).all() and (painted[:, :4] == display[:, :4]).all() and (painted > display + 10).any()
    saturated = np.full_like(display, 255)
    saturated[:, 10:-10, 10:-10] = display[:, 10:-10, 10:-10]
    again = paint_arcs(saturated, brush, np.random.default_rng(0))
    assert again is None or (again[0][:, 0] == 255).all()


def test_faint_and_blue_galaxies_are_no_lenses(scene):
    flux, _, brush = scene
    for change in ({"least_flux": 1e9}, {"least_colour": 50.0}):
        assert draw_arcs(flux, Brush(**{**vars(brush), **change}), np.random.default_rng(0)) is None


def test_both_splits_have_lenses_whatever_the_seed(survey):
    cutouts = datasets.DatasetDict({"unlabelled": survey["unlabelled"]})
    rows = painting.galaxies_of(cutouts)
    drawn = []
    for seed in range(20):
        brush = painting.make_brush(cutouts, rows, 0.6, seed)
        split_of = painting._split(cutouts, rows, brush, 0.1, 1)
        hosts = painting._are_hosts(rows, painting._as_numpy(cutouts), brush)
        drawn.append([split for split, host in zip(split_of, hosts) if host])
        assert 2 <= split_of.count("validation") <= 6
    assert all(set(splits) == {"train", "validation"} and 4 <= len(splits) <= 10 for splits in drawn)


def test_real_galaxies_with_arcs_stay_real_for_whoever_publishes_them(survey, monkeypatch):
    """Their owners decide on the licence, where this package does for what it simulates; cards tell of the arcs."""
    real = datasets.DatasetDict({"unlabelled": survey["unlabelled"].select(range(40))})
    info = {**vars(cutout_info(survey)), "simulated": False, "name": "mine"}
    real["unlabelled"].info.description = CutoutInfo(**info).to_json()
    paint(real, "painted", seeing=0.6, num_proc=1)
    made = load_cutouts("painted")
    assert not cutout_info(made).simulated and cutout_info(made).painted
    assert cutout_info(made).name == "mine with simulated arcs"
    with pytest.raises(InputError, match="a licence for me/painted is missing"):
        push_dataset(made, "me/painted", dry_run="page")
    push_dataset(made, "me/painted", license="other", dry_run="page")
    card = Path("page/README.md").read_text()
    assert "- simulated-data\n" in card and "arcs and companions are simulated" in card
    finetune(made, "run", backbone="cnn", steps=1, eval_every=1)
    card = export("run", "model") / "README.md"
    assert "> **Trained on real galaxies with simulated arcs.**" in card.read_text()
    finetune(survey, "next", init="model", steps=1, eval_every=1)
    card = (export("next", "second") / "README.md").read_text()  # the history of an exported start is not lost
    assert "It began as a classifier that was trained on " in card and "mine with simulated arcs" in card
    finetune(survey, "last", init="second", steps=1, eval_every=1)
    Path("second/recipe.json").write_text('{"task": "pretrain"}')
    finetune(survey, "last", init="second", steps=1, eval_every=1, resume="auto")
    shutil.rmtree("second")  # what it began from is recorded when it begins
    recipe = json.loads((export("last", "third") / "recipe.json").read_text())
    assert recipe["init_run"]["init_run"]["data"]["painted"]
    monkeypatch.setattr(painting, "PAINT_VERSION", "other")
    paint(real, "again", seeing=0.6, num_proc=1)
    assert cutout_info(load_cutouts("again")).fingerprint != cutout_info(made).fingerprint


def test_the_command_paints_a_saved_dataset_in_as_many_processes_as_are_asked_for(survey, monkeypatch):
    save_cutouts(survey, "saved")
    asked, map_chunks = [], painting.map_chunks
    monkeypatch.setattr(painting, "map_chunks", lambda *all_: asked.append(all_[2]) or map_chunks(*all_))
    line = "paint --dataset saved --output painted --seeing 0.6 --num_proc 2".split()
    monkeypatch.setattr("sys.argv", line)
    command.main()
    assert set(asked) == {2} and sum(load_cutouts("painted")["train"]["label"]) > 5


def test_galaxies_of_groups_in_other_splits_are_left_alone(survey):
    beside = survey["unlabelled"].add_column("number", range(40))
    beside = beside.map(lambda row: {"group": survey["test"][0]["group"] if row["number"] < 5 else row["group"]})
    cutouts = datasets.DatasetDict({"unlabelled": beside, "test": survey["test"]})
    assert painting.galaxies_of(cutouts) == [("unlabelled", i) for i in range(5, 40)]


def test_what_cannot_be_painted_is_refused(survey):
    info = cutout_info(survey)

    def told(**changes):
        other = datasets.DatasetDict({"unlabelled": survey["unlabelled"].select(range(40))})
        other["unlabelled"].info.description = type(info)(**{**vars(info), **changes}).to_json()
        return other

    cases = [
        (told(pixel_scale=None), {}, "pixel scale of the cutouts is not known: give pixel_scale"),
        (told(bands=["i", "r", "B"]), {}, "wavelength of band B is not known: name the bands"),
        (survey, {"seeing": 2.0}, "seeing is 2 arcsec, and arcs .* at most: give a FWHM below 1.4"),
        (survey, {"per_galaxy": 0}, "per_galaxy is 0: give at least 1"),
        (survey, {"seed": -1}, "seed is -1: give at least 0"),
        (datasets.DatasetDict({"test": survey["test"]}), {}, "no galaxy to paint on: give unlabelled cutouts"),
        (datasets.DatasetDict({"unlabelled": survey["unlabelled"].select([0])}), {}, "are of one group: give groups"),
        (
            datasets.DatasetDict({"unlabelled": survey["unlabelled"].select([0, 1])}),
            {},
            r"galaxies that could be lenses \(1 of 2\) are all in one split, .* give more galaxies",
        ),
        (survey, {"validation_fraction": 1.0}, "validation_fraction is 1: give a number between 0 and 1"),
    ]
    for cutouts, settings, text in cases:
        with pytest.raises(InputError, match=text):
            paint(cutouts, "painted", **{"seeing": 0.6, **settings})
    assert not list(Path().iterdir())


def test_a_fine_tuning_goes_on_from_a_cnn(tiny_cutouts, tmp_path):
    from safetensors.torch import load_file

    settings = {"precision": "fp32", "eval_every": 1, "batch_size": 16}
    first = finetune(tiny_cutouts, tmp_path / "first", backbone="cnn", steps=3, **settings)
    still = {"learning_rate": 1e-30, "weight_decay": 0.0, "steps": 1}
    second = finetune(tiny_cutouts, tmp_path / "second", init=first, **still, **settings)
    before, after = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    weights = [name for name in before if name.endswith("weight") and "classifier" not in name]
    assert len(weights) > 10 and all((before[name] - after[name]).abs().max() < 1e-6 for name in weights)
    assert (before["classifier.weight"] != after["classifier.weight"]).any()
    with pytest.raises(InputError, match="is a CNN, whose features are not probed: leave linear_probe out"):
        finetune(tiny_cutouts, tmp_path / "third", init=first, linear_probe=True, **settings)
    splits, info = tiny_cutouts
    with pytest.raises(InputError, match="takes the bands g, r, i but the dataset has i, r, g"):
        finetune((splits, {**info, "bands": ["i", "r", "g"]}), tmp_path / "third", init=first, **settings)
