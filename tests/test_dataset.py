import csv
import dataclasses
import json
import os
import resource
import runpy
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from lens_ssl_hf import paint, push_dataset
from lens_ssl_hf.data import dataset as dataset_module
from lens_ssl_hf.data import storage
from lens_ssl_hf.data.dataset import load_cutouts
from lens_ssl_hf.data.flux import fill_masked
from lens_ssl_hf.data.info import cutout_info, has_info
from lens_ssl_hf.data.options import DataArguments
from lens_ssl_hf.data.simulation import SimulationConfig, simulate_cutout
from lens_ssl_hf.data.storage import ParquetSplits, save_cutouts
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.data.summary import describe_build
from lens_ssl_hf.data.tensors import as_tensors, channel_statistics, read_split, splits_and_info
from lens_ssl_hf.errors import InputError
from lens_ssl_hf.inference.compatibility import info_of
from lens_ssl_hf.inference.inputs import choose_split
from lens_ssl_hf.survey.inputs import Options

pytestmark = pytest.mark.usefixtures("in_tmp_path")

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = {"train_size": 8, "validation_size": 4, "test_size": 4, "lens_fraction": 0.5, "num_proc": 1}


def load(source, **options):
    return load_cutouts(source, cache_dir="cache", **options)


def flux(seed, size=32, bands=3):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(bands, size, size)).astype("float32")
    pixels[:, size // 2 - 2 : size // 2 + 2, size // 2 - 2 : size // 2 + 2] += rng.uniform(5, 60)
    return pixels


def make_folder(root, counts, **kwargs):
    """`counts` is {class folder: number of cutouts}."""
    seed = 0
    for name, count in counts.items():
        (Path(root) / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            np.save(Path(root) / name / f"{i:03d}.npy", flux(seed := seed + 1, **kwargs))
    return Path(root)


def make_table(path, rows, columns=("file", "label")):
    path = Path(path)
    path.parent.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        if not (path.parent / row[0]).exists():
            np.save(path.parent / row[0], flux(i))
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def rows_of(count, *extra):
    return [(f"{i}.npy", "lens" if i % 2 else "nonlens", *(f(i) for f in extra)) for i in range(count)]


def labels(split):
    return Counter(split["label"])


# Simulated


def test_simulated_cutouts_are_the_simulator_s_after_the_stretch():
    data = load("simulated", **SMALL, unlabelled_size=3)
    info = cutout_info(data)
    assert {name: len(split) for name, split in data.items()} == {
        "train": 8,
        "validation": 4,
        "test": 4,
        "unlabelled": 3,
    }
    assert labels(data["train"]) == {0: 4, 1: 4} and labels(data["unlabelled"]) == {-1: 3}
    assert info.simulated and info.bands == ["i", "r", "g"] and info.size == 64 and info.zero_point == 27.0
    assert set(data["unlabelled"]["subclass"]) == {""} and np.isnan(data["unlabelled"]["einstein_radius"]).all()

    example = data["test"].with_format("numpy")[1]
    index = int(example["id"].split("-")[-1])
    raw, meta = simulate_cutout(0, index, bool(example["label"]), SimulationConfig())
    expected = Stretch.from_dict(info.stretch).apply(fill_masked(raw[::-1]))
    np.testing.assert_array_equal(example["pixels"], expected)
    assert example["pixels"].dtype == np.float32
    assert example["seeing"].tolist() == pytest.approx(list(meta["seeing"])[::-1])
    assert example["subclass"] == meta["subclass"]


def test_size_of_one_simulated_split_does_not_change_the_others():
    first = load("simulated", **SMALL)
    second = load("simulated", **SMALL | {"train_size": 10})
    assert first["test"]["id"] == second["test"]["id"] and first["test"]["label"] == second["test"]["label"]
    assert cutout_info(first).fingerprint != cutout_info(second).fingerprint


def test_concatenated_datasets_are_one_if_they_are_of_one_source():
    model = str(SCRIPTS.parent / "model_cards" / "lens-dino-vits8")
    first, second = (load("simulated", **SMALL, like=model, data_seed=seed)["train"] for seed in range(2))
    infos = [cutout_info(one) for one in (first, second)]
    both = datasets.concatenate_datasets([first, second])
    joined = cutout_info(both)
    assert joined == replace(infos[0], fingerprint=joined.fingerprint) and vars(joined) == info_of(both)
    assert joined.fingerprint not in {info.fingerprint for info in infos}
    assert cutout_info(datasets.concatenate_datasets([both, first])) == joined
    assert cutout_info(datasets.concatenate_datasets([first, first])) == infos[0]
    others = {"stretch": load("simulated", **SMALL)["train"], "source": first.select(range(4))}
    others["source"].info.description = replace(infos[0], source="folder", fingerprint="1").to_json()
    others["pixel_scale"] = first.select(range(4))  # of the same fingerprint, as where there is none
    others["pixel_scale"].info.description = replace(infos[0], pixel_scale=1.0).to_json()
    for name, other in others.items():
        with pytest.raises(
            InputError, match=f"concatenated differ in {name}: build one dataset from the files of all"
        ):
            cutout_info(datasets.concatenate_datasets([first, other]))


def test_splits_of_several_sources_are_one_dataset_if_their_units_are_the_same():
    model = str(SCRIPTS.parent / "model_cards" / "lens-dino-vits8")
    mine, other = (load("simulated", **SMALL, like=model, data_seed=seed) for seed in range(2))
    other["test"].info.description = replace(cutout_info(other), name="sky", simulated=False).to_json()
    mixed = datasets.DatasetDict({**mine, "test": other["test"]})
    own, info = cutout_info(mine), cutout_info(mixed)
    assert info == replace(own, name=f"{own.name} and sky", fingerprint=info.fingerprint) and info.simulated
    assert info.fingerprint not in {own.fingerprint, cutout_info(other["train"]).fingerprint}
    assert splits_and_info(mixed, "train", "validation")[1] == vars(own)  # what a training on it has seen
    assert choose_split(mixed)[1] == vars(cutout_info(other["test"]))
    save_cutouts(mixed, "saved")
    assert cutout_info(load("saved")) == info

    mixed["test"] = load("simulated", **SMALL, stretch="sqrt")["test"]
    for use in (cutout_info, splits_and_info, lambda found: save_cutouts(found, "x")):
        with pytest.raises(InputError, match="the splits of this dataset differ in stretch: build one dataset from"):
            use(mixed)
    assert splits_and_info(mixed, "train")[1] == vars(own) and not Path("x").exists()
    mixed["test"] = datasets.Dataset.from_dict(mixed["test"][:])
    for found in (mixed, datasets.DatasetDict()):
        assert not has_info(found)
        with pytest.raises(InputError, match="does not say how its pixels were made"):
            cutout_info(found)


def test_every_cut_on_the_arcs_reaches_the_simulator():
    cuts = {"min_arc_snr": 25.0, "min_arc_contrast": 0.0, "min_radius_over_seeing": 1.3}
    lenses = load("simulated", **SMALL, **cuts, stretch="linear")["train"].filter(lambda row: row["label"] == 1)
    for i, name in enumerate(lenses["id"]):
        _, meta = simulate_cutout(0, int(name.split("-")[-1]), True, SimulationConfig(**cuts))
        assert lenses[i]["einstein_radius"] == meta["einstein_radius"]
    assert set(cuts) == {f.name for f in dataclasses.fields(SimulationConfig) if f.name.startswith("min_")}


def test_the_set_of_the_committed_results_is_the_one_that_the_readme_makes(monkeypatch):
    results = json.loads((SCRIPTS.parent / "model_cards" / "results" / "simulated" / "results.json").read_text())
    monkeypatch.setattr(dataset_module, "SIMULATOR_VERSION", results["data"]["simulator_version"])
    config = dataset_module.CutoutsConfig(name="simulated", size=48, unlabelled_size=38630, test_large_size=20000)
    assert config.create_config_id({}) == f"simulated-{results['data']['fingerprint']}"


# Folders


@pytest.mark.parametrize("names", ["{0}", "{1}_{0}", "{1}/{0}"])
def test_folder_layouts(names):
    splits = [""] if "{1}" not in names else ["train", "test"] if "_" in names else ["train", "val", "test"]
    counts = {names.format(kind, split): 20 for split in splits for kind in ("lenses", "nonlenses")}
    data = load(make_folder("data", counts | {"unlabelled": 3}))
    assert set(data) == {"train", "validation", "test", "unlabelled"}
    expected = {
        "{0}": {"train": 14, "validation": 2, "test": 4},
        "{1}_{0}": {"train": 18, "validation": 2, "test": 20},
        "{1}/{0}": {"train": 20, "validation": 20, "test": 20},
    }[names]
    for split, count in expected.items():
        assert labels(data[split]) == {0: count, 1: count}
    assert labels(data["unlabelled"]) == {-1: 3}
    ids = [name for split in data.values() for name in split["id"]]
    assert len(set(ids)) == len(ids)
    assert data["train"].features["label"].names == ["nonlens", "lens"]


def test_stretch_is_fitted_on_the_training_split_alone():
    root = make_folder("data", {f"{s}_{k}": 6 for s in ("train", "test") for k in ("lenses", "nonlenses")})
    before = load(root)
    for path in root.glob("test_*/*.npy"):
        np.save(path, np.load(path) * 7)
    after = load(root)
    assert cutout_info(before).stretch == cutout_info(after).stretch
    assert cutout_info(before).fingerprint != cutout_info(after).fingerprint
    train = [np.load(root / f"{name}.npy") for name in (Path(i).with_suffix("") for i in after["train"]["id"])]
    assert Stretch.fit(train).to_dict() == cutout_info(after).stretch


def test_one_changed_pixel_gives_new_data_and_nothing_else_does():
    root = make_folder("data", {"lenses": 10, "nonlenses": 10})
    first = load(root)
    assert load(root)["train"].cache_files == first["train"].cache_files
    path = root / first["train"]["id"][0]
    pixels = np.load(path)
    pixels[1, 10, 10] += 3
    np.save(path, pixels)
    second = load(root)
    changed = np.array(first["train"]["pixels"]) != np.array(second["train"]["pixels"])
    assert changed[0, 1, 10, 10] and cutout_info(first).fingerprint != cutout_info(second).fingerprint
    assert cutout_info(load(root, stretch="sqrt")).stretch["kind"] == "sqrt"


def test_single_band_files_by_pattern():
    for kind, first in {"lenses": 0, "nonlenses": 10}.items():
        Path("data", kind).mkdir(parents=True)
        for i in range(10):
            for band, plane in zip("gri", flux(first + i)):
                fits.PrimaryHDU(plane, fits.Header({"PIXSCALE": 0.2})).writeto(f"data/{kind}/{i}_x_{band}.fits")
    data = load("data", file_pattern="{id}_{band}.fits", bands=["i", "g"], stretch="linear")
    info = cutout_info(data)
    assert info.bands == ["i", "g"] and info.pixel_scale == 0.2 and len(data["train"]) == 14
    example = data["train"].with_format("numpy")[0]
    kind, name = example["id"].split("/")
    raw = flux(int(name.split("_")[0]) + 10 * (kind == "nonlenses"))
    np.testing.assert_allclose(example["pixels"], Stretch.from_dict(info.stretch).apply(raw[[2, 0]]), rtol=1e-5)
    Path("data/lenses/3_x_g.fits").unlink()
    with pytest.raises(InputError, match=r"3_x_g\.fits is missing beside data/lenses/3_x_i\.fits"):
        load("data", file_pattern="{id}_{band}.fits", bands=["i", "g"])


def test_cutouts_of_different_sizes_are_cropped_at_the_centre(caplog):
    root = make_folder("data", {"lenses": 10, "nonlenses": 9})
    np.save(root / "nonlenses/large.npy", np.pad(flux(99), ((0, 0), (5, 5), (5, 5)), constant_values=1e3))
    data = load(root, stretch="linear")
    assert cutout_info(data).size == 32 and "centre-cropped to 32 pixels" in caplog.text
    everything = datasets.concatenate_datasets(list(data.values())).with_format("numpy")
    large = next(row for row in everything if row["id"] == "nonlenses/large.npy")
    np.testing.assert_allclose(
        large["pixels"], Stretch.from_dict(cutout_info(data).stretch).apply(flux(99)), rtol=1e-5
    )
    assert np.array(load(root, size=16)["test"]["pixels"]).shape[1:] == (3, 16, 16)
    with pytest.raises(InputError, match=r"\.npy is 32 x 32 pixels, smaller than size 40: cut it out larger"):
        load(root, size=40)


# Catalogues


@pytest.mark.parametrize("kind", ["csv", "parquet", "fits"])
def test_catalogue_formats_and_columns(kind):
    rows = rows_of(
        24,
        lambda i: "train" if i < 12 else "val" if i < 18 else "test",
        lambda i: i // 2,
        lambda i: 10.0 + i,
        lambda i: "odd" if i % 2 else "",
    )
    rows[-1] = ("23.npy", "", "", 11, 33.0, "odd")  # unlabelled, and of a group in the test split
    columns = ("name", "label", "split", "group", "ra", "kind")
    table = make_table("data/t.csv", rows, columns)
    if kind != "csv":
        typed = Table(rows=[(r[0], {"lens": 1, "nonlens": 0, "": -1}[r[1]], *r[2:]) for r in rows], names=columns)
        table = table.with_suffix(f".{kind}")
        typed.to_pandas().to_parquet(table) if kind == "parquet" else typed.write(table)
    options = {"file_column": "name", "subclass_column": "kind"}
    data = load(table, **options)
    assert {name: len(part) for name, part in data.items()} == {"train": 12, "validation": 6, "test": 5}
    example = next(row for row in data["train"] if row["id"] == "1.npy")
    assert (example["label"], example["group"], example["ra"], example["dec"]) == (1, "0", 11.0, None)
    assert example["subclass"] == "odd"


def test_made_splits_are_stratified_and_never_divide_a_group():
    rows = [(f"{i}.npy", i % 3 == 0, f"g{i // 4}") for i in range(120)]
    table = make_table("data/t.csv", rows, ("file", "label", "group"))
    data, other = load(table), load(table, data_seed=1)
    groups = {name: set(split["group"]) for name, split in data.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 30
    for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert labels(data[name])[1] == pytest.approx(40 * share, abs=2)
        assert labels(data[name])[0] == pytest.approx(80 * share, abs=4)
    assert set(other["test"]["group"]) != groups["test"] == set(load(table)["test"]["group"])


def test_folds_and_unlabelled_cutouts_of_the_test_fold(caplog):
    rows = [(f"{i}.npy", i // 3 % 2 if i < 54 else "", i % 3, f"g{i % 6}") for i in range(60)]
    table = make_table("data/t.csv", rows, ("file", "label", "fold", "group"))
    data = load(table, test_fold=1, validation_fold=2)
    assert all(int(name.split(".")[0]) % 3 == 1 for name in data["test"]["id"])
    assert all(int(name.split(".")[0]) % 3 == 2 for name in data["validation"]["id"])
    assert len(data["unlabelled"]) == 4 and "2 unlabelled cutouts" in caplog.text
    assert not set(data["unlabelled"]["group"]) & set(data["test"]["group"])


def test_real_catalogue(real_data):
    data = load(real_data / "catalog.csv", subclass_column="kind")
    kinds = {name: Counter(split["subclass"]) for name, split in data.items()}
    assert kinds["train"] == {"lens": 71, "hard_nonlens": 102, "field_nonlens": 242}
    assert kinds["test"] == {"lens": 24, "hard_nonlens": 35, "field_nonlens": 82}
    assert cutout_info(data).size == 32 and cutout_info(data).stretch["kind"] == "none"
    example = data["test"].with_format("numpy")[0]
    picture = np.asarray(Image.open(real_data / example["id"])).transpose(2, 0, 1)
    edge = (picture.shape[-1] - 32) // 2
    np.testing.assert_array_equal(example["pixels"], picture[:, edge : edge + 32, edge : edge + 32])


# Bad input


def nothing_written(folder="cache"):
    return not [path for path in Path(folder).rglob("*") if path.suffix in (".arrow", ".json", ".csv", ".incomplete")]


def test_empty_folder_and_one_class():
    Path("empty").mkdir()
    with pytest.raises(InputError, match=r"no cutouts in empty: put .* lenses/ and nonlenses/"):
        load("empty")
    make_folder("data", {"lenses": 10})
    with pytest.raises(InputError, match="data holds only lens cutouts: add some with the label nonlens"):
        load("data")
    assert not Path("cache").exists() or nothing_written()


def test_errors_tell_of_the_files_left_out():
    root = make_folder("data", {"lenses": 10, "nonlenses": 10})
    (root / "lenses" / "link.npy").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"lenses/link\.npy does not exist: restore the file"):
        load(root)
    with pytest.raises(InputError, match=r"cannot write no/r\.csv: choose another bad_file_report"):
        load(root, on_bad_file="skip", bad_file_report="no/r.csv")
    for path in root.glob("lenses/0*"):
        path.write_bytes(path.name.encode())
    with pytest.raises(InputError, match=r"data \(bad files left out: 11, the first: .*\) holds only nonlens cutouts"):
        load(root, on_bad_file="skip")
    assert nothing_written() and not Path("bad_files.csv").exists()


def spoil(root, name):
    path = root / "lenses" / "005.npy"
    other = np.load(root / "nonlenses" / "003.npy")
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        arrays = {"object": np.array([None]), "bands": flux(1, bands=5), "small": flux(1, size=12), "copy": other}
        np.save(path, arrays.get(name, flux(1) * np.nan), allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("problem", "message"),
    {
        "truncated": r"truncated\?\): save or copy it again",
        "object": "holds pickled objects, not numbers",
        "bands": "has 5 bands where most cutouts have 3 bands",
        "small": "is 12 x 12 pixels, smaller than the 32 that models see: .* or give size 12 or less and train with",
        "nan": r"has no valid pixel \(all NaN or masked\)",
        "copy": "same content as",
    }.items(),
)
def test_bad_file_stops_or_is_skipped_and_listed(problem, message, caplog):
    root = make_folder("data", {"lenses": 20, "nonlenses": 20})
    path = spoil(root, problem)
    with pytest.raises(InputError, match=message) as error:
        load(root)
    assert str(path) in str(error.value) and nothing_written()
    for _ in range(2):  # the second time from the cache
        data = load(root, on_bad_file="skip", bad_file_report="report.csv")
        with open("report.csv") as stream:
            listed = {row["file"]: row["problem"] for row in csv.DictReader(stream)}
        left_out = 2 if problem == "copy" else 1  # copies with different labels are both wrong
        assert len(listed) == cutout_info(data).left_out == left_out and str(path) in listed
        assert sum(len(split) for split in data.values()) == 40 - left_out and cutout_info(data).size == 32
        assert f"bad files of data that are left out: {left_out}; report.csv lists them" in caplog.text
        Path("report.csv").unlink()


def test_what_is_left_out_is_told_of_each_source_although_the_cache_is_the_same(caplog):
    root = make_folder("my", {"lenses": 20, "nonlenses": 20})
    spoil(root, "bands")
    clean = load(root, on_bad_file="skip")
    assert cutout_info(clean).name == "my" and cutout_info(clean).left_out == 1
    shutil.copytree(root, "survey2024_candidates")
    os.symlink("nowhere", "survey2024_candidates/lenses/link.npy")
    make_folder("survey2024_candidates", {"spirals": 3})
    for source, names, said in (
        ("survey2024_candidates", ["lenses/link.npy", "lenses/005.npy"], "spirals/ (3 files"),
        ("my", ["lenses/005.npy"], "  left out      1 bad file\n"),
    ):
        caplog.clear()
        data = load(source, on_bad_file="skip")
        assert data["train"].cache_files == clean["train"].cache_files
        info = cutout_info(data)
        assert info == replace(cutout_info(clean), name=source, left_out=len(names))
        with open("bad_files.csv") as stream:
            listed = list(csv.DictReader(stream))
        assert [row["file"] for row in listed] == [f"{source}/{name}" for name in names]
        assert all(row["problem"].startswith(row["file"]) for row in listed)
        assert f"bad files of {source} that are left out: {len(names)}; bad_files.csv lists them" in caplog.text
        text = describe_build(data, source) + "\n"
        assert said in text and text.count("bad file") == 1
        assert f"{len(names)} bad file{'s' * (len(names) > 1)}\n" in text
        save_cutouts(data, f"saved_{source}")
        assert cutout_info(load(f"saved_{source}")) == info
    assert "spirals" not in describe_build(clean)


@pytest.mark.parametrize(
    ("columns", "change", "options", "message"),
    [
        (("name", "label"), None, {}, r"has no column 'file' \(it has name, label\): name yours with file_column"),
        (("file", "label"), None, {"group_column": "sky"}, "has no column 'sky'"),
        (("file", "label"), None, {"test_fold": 1}, "has no column 'fold'"),
        (
            ("file", "label"),
            ("3.npy", "maybe"),
            {},
            "row 4: unknown label 'maybe' in column 'label': use lens/nonlens",
        ),
        (("file", "label"), ("2.npy", "lens"), {}, "names 2.npy twice, in rows 3 and 4: remove one of them"),
        (("file", "label"), ("gone.npy", "lens"), {}, r"data/gone\.npy does not exist: restore the file"),
        (("file", "split"), None, {"label_column": "split", "split_column": "label"}, "has no column 'label'"),
        (("file", "label", "ra"), ("3.npy", "lens", "north"), {}, "row 4: 'north' in column 'ra' is not a number"),
        (("file", "label", "ra"), ("3.npy", "lens", "inf"), {}, "row 4: 'inf' in column 'ra' is not a number"),
        (("file", "label", "fold"), ("3.npy", "lens", "1"), {"test_fold": 9}, "has no cutouts of test_fold 9"),
        (("file", "label"), ("a\0.npy", "lens"), {}, "cannot be a path"),
        (
            ("file", "label"),
            None,
            {"file_pattern": "{id}_{band}{", "bands": ["g"]},
            "file_pattern '{id}_{band}{' must",
        ),
        (("file", "label", "split"), ("3.npy", "lens", "dev2"), {}, "row 4: unknown split 'dev2' in column 'split'"),
    ],
)
def test_bad_tables(columns, change, options, message):
    rows = [(*row, "0" if "fold" in columns else "")[: len(columns)] for row in rows_of(20)]
    table = make_table("data/t.csv", rows, columns)
    if change:
        rows[3] = change
        with open(table, "w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])
    with pytest.raises(InputError, match=message) as error:
        load(table, **options)
    assert "\n" not in str(error.value) and nothing_written()


def test_a_group_in_two_splits_is_refused():
    rows = rows_of(12, lambda i: ["train", "test"][i // 6], lambda i: "same" if i in (1, 11) else i)
    table = make_table("data/t.csv", rows, ("file", "label", "split", "group"))
    with pytest.raises(InputError, match=r"group 'same' in .* is in the splits train and test: keep a group in one"):
        load(table)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere/at/all", {}, "does not exist: give 'simulated', a folder, a table"),
        ("simulated", {"lens_fraction": 1.5}, "lens_fraction"),
        ("simulated", {"test_size": 0}, "test_size 0 leaves a class empty"),
        ("simulated", {"test_fold": 1}, "test_fold has no meaning for simulated cutouts"),
        ("simulated", {"bands": ["z"]}, "bands z cannot be simulated: choose among g r i"),
        ("simulated", {"stretch": "log"}, "stretch is 'log': choose one of auto, asinh"),
        ("simulated", {"unlabelled_size": -3}, "unlabelled_size is -3: give at least 0"),
        ("simulated", {"num_proc": 0}, "num_proc is 0: give at least 1"),
        ("simulated", {"data_seed": -1}, "data_seed is -1: give at least 0"),
        ("simulated", {"min_arc_snr": float("nan")}, "min_arc_snr is nan: give a finite number"),
        ("simulated", {"min_arc_contrast": 1.0}, "min_arc_contrast is 1.0; give a share below 1"),
        ("simulated", {"pixel_scale": 0.0}, r"pixel_scale is 0\.0: give a positive number"),
        ("simulated", {"bands": ["g", "g"]}, "bands g g names a band twice"),
        ("simulated", {"crop": 3}, "load_cutouts has no option 'crop'"),
        ("simulated", {"varied": "no"}, "varied is 'no': give True or False"),
        ("simulated", {"size": 34.0}, r"size is 34\.0: give a whole number"),
        ("simulated", {"data_seed": 1.5}, r"data_seed is 1\.5: give a whole number"),
        ("simulated", {"stretch": None}, "stretch is None: give text or a path"),
        ("simulated", {"test_fraction": "0.3"}, "test_fraction is '0.3': give a number"),
    ],
)
def test_bad_options(source, options, message):
    with pytest.raises(InputError, match=message):
        load(source, **options)


def test_options_of_numpy_are_those_of_python():
    """Their fingerprint is that of the plain values."""
    given = {"size": np.int64(34), "varied": np.bool_(False), "lens_fraction": np.float64(0.5), "bands": ("r", "g")}
    plain = {"size": 34, "lens_fraction": 0.5, "bands": ["r", "g"]}
    assert cutout_info(load("simulated", **SMALL | given)) == cutout_info(load("simulated", **SMALL | plain))
    for i in range(24):
        path = Path("in", "Ring" if i % 2 else "Spiral", f"{i}.fits")
        path.parent.mkdir(parents=True, exist_ok=True)
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(flux(i))]).writeto(path)
    labels = load(Path("in"), label_map={"Ring": "lens", "Spiral": "nonlens"}, hdu=np.int64(1))["train"]["label"]
    assert {*labels} == {0, 1}


@pytest.mark.parametrize(
    ("option", "splits", "message"),
    [
        ("hdu", {}, "hdu has no meaning for data/t.csv, without FITS or HDF5 files: leave it out"),
        ("validation_fraction", {8: "val"}, "for data/t.csv, which gives the validation split itself: leave it out"),
        ("test_fraction", {8: "val", 16: "test"}, "for data/t.csv, which gives the test split itself: leave it out"),
        ("test_fraction", None, "test_fraction has no meaning for data/t.csv, of which nothing has a label"),
        ("validation_fraction", {16: "test"}, None),
        ("test_fraction", {8: "val"}, None),
    ],
)
def test_options_without_effect_on_the_source_are_refused(option, splits, message):
    columns = ("file", "label") + (("split",) if splits else ())
    rows = [(f"{i}.npy", "" if splits is None else i % 2, (splits or {}).get(i // 8 * 8, "train")) for i in range(24)]
    table = make_table("data/t.csv", [row[: len(columns)] for row in rows], columns)
    value = "1" if option == "hdu" else 0.4
    if message:
        with pytest.raises(InputError, match=message):
            load(table, **{option: value})
    else:
        assert len(load(table, **{option: value})[option.removesuffix("_fraction")]) == 6  # of 16 with train


def test_unwritable_cache_is_named():
    Path("cache").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write the cache .*choose another folder with cache_dir"):
        load("simulated", **SMALL)


# Saving


def test_saved_cutouts_load_with_plain_datasets_and_with_their_info():
    data = load("simulated", **SMALL)
    save_cutouts(data, "saved")
    plain = datasets.load_dataset("saved", cache_dir="cache")
    again = load("saved")
    for split in ("train", "validation", "test"):
        assert plain[split].features == again[split].features == data[split].features
        np.testing.assert_array_equal(np.array(plain[split]["pixels"]), np.array(data[split]["pixels"]))
        assert again[split]["id"] == data[split]["id"]
    assert cutout_info(again) == cutout_info(data)
    with pytest.raises(InputError, match="saved exists already"):
        save_cutouts(data, "saved")
    with pytest.raises(InputError, match="saved is built already, size cannot change it"):
        load("saved", size=32)
    assert sorted(path.name for path in Path().iterdir()) == ["cache", "saved"]  # nothing temporary
    Path("card").mkdir()
    shutil.copy("saved/cutouts.json", "card")
    with pytest.raises(InputError, match=r"card holds cutouts\.json but no cutouts"):
        load("card")

    shutil.rmtree("saved")
    data["train"] = data["train"].select(range(7, -1, -1))
    save_cutouts(data, "saved")
    assert load("saved")["train"]["id"] == data["train"]["id"]  # not the cache of what was there before
    damaged = next(Path("saved/data").glob("train*"))
    damaged.write_bytes(b"PAR1")
    damaged.rename(damaged.with_name("train-00000-of-00001.parquet"))  # as earlier versions named it
    Path("saved/README.md").unlink()
    with pytest.raises(InputError, match="saved cannot be read"):
        load_cutouts("saved", cache_dir="other_cache")


def test_a_band_may_be_given_alone():
    make_folder("in", {"lenses": 12, "nonlenses": 12}, bands=1)
    assert cutout_info(load("in", bands="VIS")).bands == Options(bands="VIS").bands == ["VIS"]


def test_parts_of_a_large_dataset_are_saved_by_their_own_size(monkeypatch):
    data = load("simulated", **SMALL)
    size = -(-data["train"].data.nbytes // 8)  # of a row
    monkeypatch.setattr(storage, "SHARD_BYTES", 2 * size)
    data["validation"] = data["train"].select([6, 1])  # of a table of four shards
    data["test"] = data["train"].filter(lambda label: label == 1, input_columns="label")
    save_cutouts(data, "saved")
    shards = {name: len(list(Path("saved/data").glob(f"{name}-*"))) for name in data}
    assert shards == {"train": 4, "validation": 1, "test": 2}
    assert {name: split["id"][:] for name, split in load("saved").items()} == {n: s["id"][:] for n, s in data.items()}
    splits = yaml.safe_load(Path("saved/README.md").read_text().split("---")[1])["dataset_info"]["splits"]
    assert [round(one["num_bytes"] / size) for one in splits] == [8, 2, 4]
    monkeypatch.setattr(storage, "SHARD_BYTES", size // 9)  # less than a row
    save_cutouts(data, "small")
    assert len(load("small")["validation"]) == 2
    data["test"] = data["test"].filter(lambda label: label == 0, input_columns="label")
    with pytest.raises(InputError, match="the test split is empty: take it out of the dataset, or put cutouts"):
        save_cutouts(data, "empty")
    assert not Path("empty").exists()


def test_files_are_of_the_split_that_their_whole_name_says():
    data = load("simulated", **SMALL)
    for name in ("test-hard", "my test", "All", ""):
        with pytest.raises(InputError, match=f"a split is called {name!r}: give it a name of letters, digits and _"):
            save_cutouts(datasets.DatasetDict({**data, name: data["train"]}), "x")
    save_cutouts(datasets.DatasetDict({**data, "test.hard": data["train"]}), "saved")
    assert {name: len(split) for name, split in load("saved").items()} == {
        **{n: len(data[n]) for n in data},
        "test.hard": 8,
    }
    (hard,) = Path("saved/data").glob("test.hard*")
    renamed = hard.rename(str(hard).replace("test.hard", "test-hard"))  # as an earlier version wrote it
    with pytest.raises(InputError, match=r"saved holds data/test\.hard-\S+ no longer"):
        load("saved")
    Path("saved/README.md").unlink()
    assert {name: len(groups) for name, groups in ParquetSplits(Path("saved")).groups.items()} == {
        **dict.fromkeys(data, 1),
        "test-hard": 1,
    }
    with pytest.raises(InputError, match="saved holds a split that is called 'test-hard': rename its files"):
        load("saved")
    renamed.unlink()
    assert len(load("saved")["test"]) == 4


def test_splits_of_other_columns_are_not_saved():
    data = load("simulated", **SMALL)
    for change, problem in (
        (lambda split: split.add_column("p", np.zeros(4)), "the test split has a column 'p', train has not: add it"),
        (lambda split: split.remove_columns("ra"), "the train split has a column 'ra', test has not"),
        (lambda split: split.remove_columns("id"), "the test split has no column 'id'"),
        (
            lambda split: split.cast_column("ra", datasets.Value("string")),
            r"column 'ra' is Value\('string'\) in the test split and Value\('float64'\) in train: make them equal",
        ),
    ):
        with pytest.raises(InputError, match=problem):
            save_cutouts(datasets.DatasetDict({**data, "test": change(data["test"])}), "x")
    assert not Path("x").exists()


def cropped(split, bands=3, height=32, width=32, column="crop"):
    """As a user crops in a notebook."""
    rows = split.map(lambda row: {column: np.array(row["pixels"], dtype="float32")[:bands, 4 : 4 + height, :width]})
    return rows if column == "pixels" else rows.remove_columns("pixels").rename_column(column, "pixels")


def test_cropped_cutouts_are_those_of_their_new_size():
    data = load("simulated", **SMALL, size=40)
    small = datasets.DatasetDict({name: cropped(split) for name, split in data.items()})
    assert splits_and_info(small)[1]["size"] == 32
    save_cutouts(small, "saved")
    assert cutout_info(load("saved")).size == 32
    splits = ParquetSplits(Path("saved"))
    found = read_split(splits, "train", 8).pixels
    np.testing.assert_array_equal(found, np.array(data["train"]["pixels"])[:, :, 4:36, :32].astype("float32"))
    card = Path("saved/cutouts.json")
    card.write_text(card.read_text().replace('"size": 32', '"size": 16'))  # 8 rows would come out as 32
    splits = ParquetSplits(Path("saved"))
    with pytest.raises(
        InputError, match=r"train-\S+ holds cutouts of another shape than cutouts.json states, \(3, 16"
    ):
        read_split(splits, "train", 8)
    for change, problem in (
        (
            {"bands": 1},
            r"the test split has cutouts of shape \(1, 32, 32\), not 3 bands of size x size pixels: choose",
        ),
        ({"height": 30}, r"the test split has cutouts of shape \(3, 30, 32\), not 3 bands of size x size"),
        ({"column": "pixels"}, "the cutouts have another shape than the column pixels states: put cropped ones into"),
        ({"height": 20, "width": 20}, r"the splits of this dataset differ in size \(\[20, 32\] pixels\): crop all"),
    ):
        mixed = datasets.DatasetDict({**small, "test": cropped(data["test"], **change)})
        for use in (splits_and_info, lambda found: save_cutouts(found, "x")):
            with pytest.raises(InputError, match=problem):
                use(mixed)


@pytest.mark.parametrize(
    "use",
    [
        lambda split: save_cutouts(split, "x"),
        lambda split: paint(split, "x", seeing=0.7),
        lambda split: push_dataset(split, "me/cutouts", dry_run="x"),
    ],
)
def test_a_single_split_where_all_are_needed_is_refused(use):
    with pytest.raises(InputError, match=r"cutouts must be all splits, .*: give DatasetDict\(train=...\) of one"):
        use(load("simulated", **SMALL)["train"])
    assert not Path("x").exists()


@pytest.mark.parametrize("source", ["mine.safetensors", "folder/mine.safetensors"])
def test_a_dataset_in_one_file_is_refused(source):
    Path("mine.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=rf"{source}.*: datasets are directories of Parquet files: build one with"):
        load_cutouts(source)


def test_a_flipped_bit_in_a_saved_dataset_is_found():
    save_cutouts(load("simulated", **SMALL), "saved")
    path = next(Path("saved/data").glob("train*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000-of-00001-\w+\.parquet is damaged: copy the directory again"):
        load("saved")


def test_channel_statistics_are_exact_and_take_little_memory():
    pixels = 100 + 20 * torch.randn(8192, 3, 34, 34, generator=torch.Generator().manual_seed(0))
    centre = pixels[:, :, 1:33, 1:33].double().div_(255)
    std, mean = (values.tolist() for values in torch.std_mean(centre, dim=(0, 2, 3)))
    del centre
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, limits[1]))  # the pixels are 114 MB
    try:
        found = channel_statistics(pixels, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert found[0] == pytest.approx(mean, rel=1e-13) and found[1] == pytest.approx(std, rel=1e-13)


def test_nan_pixels_are_refused_with_the_cutout_s_name(tiny_cutouts):
    splits, info = tiny_cutouts
    pixels = splits["validation"].pixels.clone()
    pixels[7, 1, 3, 4] = torch.nan
    spoilt = {**splits, "validation": dataclasses.replace(splits["validation"], pixels=pixels)}
    with pytest.raises(InputError, match="cutout 1-7 of validation has NaN or infinite pixels: fill them"):
        splits_and_info((spoilt, info))


def test_pixels_that_are_no_longer_display_units_are_refused(tiny_cutouts):
    splits, info = tiny_cutouts
    info = {**info, "stretch": {"kind": "asinh", "black": [0] * 3, "white": [1] * 3, "softening": [1] * 3}}

    def changed(change):
        validation = splits["validation"]
        return {**splits, "validation": dataclasses.replace(validation, pixels=change(validation.pixels))}

    for change in (lambda pixels: pixels / 255, lambda pixels: pixels - 128):
        with pytest.raises(InputError, match=r"validation: values from \S+ to \S+ are no display units"):
            splits_and_info((changed(change), info))
        splits_and_info((changed(change), {**info, "stretch": {**info["stretch"], "kind": "linear"}}))
    dark = torch.arange(48.0).view(-1, 1, 1, 1) / 20  # most of these cutouts are below 1
    splits_and_info((changed(lambda pixels: torch.minimum(pixels, dark)), info))


def test_a_cutout_without_a_group_is_a_group_of_its_own():
    """As in a file of predictions: they are neither one group nor of a kind that is called None."""
    columns = {"id": ["a", "b", "c"], "pixels": np.zeros((3, 1, 4, 4), "float32"), "label": [0, 1, 0]}
    for group, subclass in (
        (["g", None, None], [None, "ring", None]),
        (["g", np.nan, np.nan], [np.nan, "ring", None]),
    ):
        split = datasets.Dataset.from_pandas(pd.DataFrame({"group": group, "subclass": subclass}, dtype=object))
        found = as_tensors(datasets.concatenate_datasets([datasets.Dataset.from_dict(columns), split], axis=1))
        assert (found.ids, found.groups, found.subclasses) == (["a", "b", "c"], ["g", "b", "c"], ["", "ring", ""])
    numbers = datasets.Dataset.from_dict({**columns, "group": [7.0, np.nan, np.nan]})
    assert as_tensors(numbers).groups == ["7.0", "b", "c"]


def test_only_the_splits_that_are_needed_are_read(tiny_cutouts):
    splits, info = tiny_cutouts
    columns = {"pixels": splits["train"].pixels[:4].numpy(), "label": [0, 1, 0, 1]}
    small = datasets.Dataset.from_dict(columns)
    unreadable = small.remove_columns("pixels")
    found, _ = splits_and_info(({"train": small, "unlabelled": unreadable}, info), "train", "validation")
    assert list(found) == ["train"] and len(found["train"]) == 4
    with pytest.raises(InputError, match="no column 'pixels'"):
        splits_and_info(({"train": small, "unlabelled": unreadable}, info))


def test_info_survives_what_users_do_to_a_split():
    data = load("simulated", **SMALL)
    info, train = cutout_info(data), data["train"]
    for changed in (
        train.select([1]),
        train.filter(lambda label: label == 1, input_columns="label"),
        train.shuffle(0),
    ):
        assert cutout_info(changed) == info
    assert cutout_info(train.train_test_split(0.5)) == info
    with pytest.raises(InputError, match="make it with load_cutouts"):
        cutout_info(datasets.Dataset.from_dict({"a": [1]}))


def test_every_option_is_known_and_has_help():
    fields = dataclasses.fields(DataArguments)
    assert all(field.metadata["help"] for field in fields)
    special = dataset_module._SIMULATED | dataset_module._FILES | dataset_module._CATALOGUE
    assert special < {field.name for field in fields}


# Scripts of the data


def make_stamps(root):
    (root / "cutouts").mkdir(parents=True)
    (root / "stamps").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    for i, stamp in enumerate(values):
        Image.fromarray(stamp).save(root / f"stamps/{i}.png")
    Image.fromarray(values[0, 20:60, 20:60]).save(root / "cutouts/0.png")
    Image.fromarray(values[0, 100:132, 128:160]).save(root / "cutouts/1.png")
    columns = "file,label,kind,split,fold,group,ra,dec,stamp"
    lines = (
        "cutouts/0.png,lens,lens,train,0,0,1,1,stamps/0.png\ncutouts/1.png,nonlens,field,train,0,0,1,1,stamps/0.png\n"
    )
    (root / "catalog.csv").write_text(f"{columns}\n{lines}")
    (root / "stamps.csv").write_text("file,group\nstamps/0.png,0\nstamps/1.png,1\n")


def prepare(monkeypatch, options=""):
    monkeypatch.setattr(
        sys, "argv", ["prepare_cfhtls.py", "--data_dir", "in", "--output_dir", "out", *options.split()]
    )
    runpy.run_path(str(SCRIPTS / "prepare_cfhtls.py"))["main"]()


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda: shutil.rmtree("in"), "", "in/catalog.csv cannot be read as a table"),
        (lambda: Path("in/stamps.csv").write_text("file\n"), "", "in/stamps.csv has no column 'group'"),
        (lambda: Path("in/stamps/1.png").unlink(), "", "in/stamps/1.png does not exist"),
        (lambda: Path("in/stamps/1.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "", "in/stamps/1.png cannot be read as"),
        (lambda: shutil.rmtree("in/cutouts"), "", "in/cutouts/0.png does not exist"),
        (lambda: shutil.copy("in/stamps/1.png", "in/stamps/0.png"), "", "in/cutouts/0.png is no part of"),
        (lambda: Image.new("RGB", (70, 70)).save("in/stamps/1.png"), "", "in/stamps/1.png has shape (70, 70, 3)"),
        (lambda: Image.new("L", (160, 160)).save("in/stamps/1.png"), "", "in/stamps/1.png has shape (1, 160, 160)"),
        (lambda: None, "--output_dir in", "output_dir in is data_dir"),
        (
            lambda: Path("in/catalog.csv").write_text(
                Path("in/catalog.csv")
                .read_text()
                .replace("cutouts/1.png", Path("in/cutouts/1.png").absolute().as_posix())
            ),
            "",
            "/in/cutouts/1.png: give paths inside of its folder",
        ),
        (lambda: None, "--window 33", "window is 33: give an even number"),
        (lambda: None, "--size 4", "size is 4: give an even number"),
        (lambda: None, "--windows 32", "--windows"),
        (lambda: None, "--output_dir in/catalog.csv/out", "cannot write in/catalog.csv/out (Not a directory)"),
    ],
)
def test_preparing_bad_stamps_ends_in_one_sentence(monkeypatch, capsys, spoil, options, message):
    make_stamps(Path("in"))
    spoil()
    with pytest.raises(SystemExit) as error:
        prepare(monkeypatch, options)
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and sentence.startswith("error: ") and message in sentence
    assert not Path("out").exists()


def test_graded_cutouts_are_found_in_their_stamps_and_cut_with_more_sky(monkeypatch):
    make_stamps(Path("in"))
    prepare(monkeypatch, "--window 72 --size 72")
    stamp = np.asarray(Image.open("in/stamps/0.png"))
    above, below = (np.asarray(Image.open(f"out/cutouts/{i}.png")) for i in range(2))
    np.testing.assert_array_equal(above[12:], stamp[16:76, 4:76])
    np.testing.assert_array_equal(above[:12], stamp[16:28, 4:76][::-1])  # the line of text is gone
    np.testing.assert_array_equal(below[:, :52], np.concatenate([stamp[80:, 108:], stamp[-1:, 108:]])[:72])
    np.testing.assert_array_equal(below[:, 52:], below[:, 32:52][:, ::-1])  # mirrored beyond the edge
    assert Path("out/windows/1_80_80.png").is_file()


def test_windows_of_real_stamps_keep_clear_of_the_test_split(real_data, monkeypatch):
    os.symlink(real_data.resolve(), "in")
    prepare(monkeypatch)
    with open(real_data / "stamps.csv", newline="") as file:
        group_of = {Path(row["file"]).stem: row["group"] for row in csv.DictReader(file)}
    with open("out/cfhtls.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    windows = [row for row in rows if row["kind"] == "window"]
    assert len(windows) > 1000
    results = json.loads((SCRIPTS.parent / "model_cards" / "results" / "cfhtls" / "results.json").read_text())
    options = {"subclass_column": "kind", "bands": ["i", "r", "g"], "validation_fraction": 0.2, "test_fold": 0}
    config = dataset_module.CutoutsConfig(name="catalogue", dataset="out/cfhtls.csv", **options)
    assert config.create_config_id({}) == f"catalogue-{results['data']['fingerprint']}"
    for options in ({}, {"test_fold": 1}):
        cutouts = load_cutouts("out/cfhtls.csv", subclass_column="kind", **options)
        test_groups = set(cutouts["test"]["group"])
        assert len(test_groups) > 10 and not test_groups & set(cutouts["unlabelled"]["group"])
        assert 1000 < len(cutouts["unlabelled"]) < len(windows)
    for window in windows:
        stem, row, column = Path(window["file"]).stem.rsplit("_", 2)
        assert group_of[stem] == window["group"] and not window["label"] and not window["fold"]
        assert all(36 <= int(centre) <= 124 for centre in (row, column))
    monkeypatch.syspath_prepend(SCRIPTS)
    script = runpy.run_path(str(SCRIPTS / "labelled_simulations.py"))
    kept = [row for row in rows if not script["shows_a_candidate"](row["file"])]
    assert 694 + 500 < len(kept) < len(rows) - len(group_of)
    for row in kept[694:]:  # the windows; a crop that is rotated reaches 24 sqrt(2) pixels of the stamp
        distances = [int(place) - 80 for place in Path(row["file"]).stem.rsplit("_", 2)[1:]]
        assert np.hypot(*distances) >= 24 * 2**0.5
    votes = script["lens_votes"](str(real_data / "stamps.csv"))  # grades of 0.7, 1.0 and 1.3, between 0.3 and 1.7
    assert Counter(votes.values()) == {4: 79, 7: 37, 10: 23} and script["VOTES"] == 14
    assert set(votes) <= {window["file"] for window in windows}


@pytest.mark.parametrize(
    ("spoil", "output", "message"),
    [
        (lambda: shutil.rmtree("in/lenses"), "out", "in holds only nonlens cutouts: add some with the label lens"),
        (lambda: Path("in/lenses/003.npy").write_bytes(b"\x93NUMPY"), "out", "in/lenses/003.npy cannot be read"),
        (lambda: Path("in/lenses/003.npy").write_text("lens"), "out", "in/lenses/003.npy is not a .npy"),
        (
            lambda: None,
            "out.safetensors",
            "out.safetensors: datasets are directories of Parquet files: build one with",
        ),
        (lambda: [path.unlink() for path in Path("in").rglob("*.npy")], "out", "no cutouts in in: put .npy"),
        (
            lambda: np.save("in/lenses/003.npy", np.zeros((5, 40, 40))),
            "out",
            "3.npy has 5 bands where most cutouts have 3",
        ),
        (lambda: None, "in/lenses/003.npy/out", "cannot write in/lenses/003.npy/out"),
    ],
)
def test_building_from_bad_input_ends_in_one_sentence(monkeypatch, capsys, spoil, output, message):
    make_folder("in", {"lenses": 20, "nonlenses": 20})
    spoil()
    build(monkeypatch, output, 2)
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("error: ") and message in sentence
    assert not Path("out").exists() and not list(Path().glob(".*"))


def test_bad_files_are_skipped_and_listed_by_the_script(monkeypatch, capsys):
    make_folder("in", {"lenses": 20, "nonlenses": 20})
    Path("in/lenses/003.npy").write_bytes(b"\x93NUMPY")
    np.save("in/nonlenses/002.npy", np.full((3, 40, 40), np.nan))
    build(monkeypatch, "out", 0, "--on_bad_file", "skip", "--bad_file_report", "bad.csv")
    with open("bad.csv", newline="") as file:
        bad = list(csv.DictReader(file))
    assert {Path(row["file"]).name for row in bad} == {"003.npy", "002.npy"} and all(row["problem"] for row in bad)
    assert Image.open("out/examples.png").size[0] > 8 * 128
    printed = capsys.readouterr().out
    assert "What was understood of in:" in printed and "left out" in printed
    build(monkeypatch, "out", 2)
    assert capsys.readouterr().err == "error: out exists already: choose another directory or remove it\n"
    splits = load("out")
    assert sum(len(split) for split in splits.values()) == 40 - 2 and cutout_info(splits).left_out == 2


def build(monkeypatch, output, status, *options):
    """Run build_dataset.py on `in` and compare its exit status."""
    arguments = ["--dataset", "in", "--output", output, "--cache_dir", "cache", *options]
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", *arguments])
    main = runpy.run_path(str(SCRIPTS / "build_dataset.py"))["main"]
    if status == 0:
        return main()
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status


def test_use_export_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["use_export.py", "model"])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(SCRIPTS / "use_export.py"))["main"]()
    assert error.value.code == 2 and capsys.readouterr().err.startswith("usage: use_export.py BACKBONE")
