"""A survey from its cutouts to shards of scores, and from these to a ranking."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from conftest import at_most, make_cutouts, save_toy
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from tiny_runs import FLUX, FLUX_STRETCH, make_flux, write_classifier_run, write_flux_run, write_pretrain_run
from transformers import ViTForImageClassification

from lens_ssl_hf import (
    InputError,
    draw_map,
    find_anomalies,
    grade,
    load_cutouts,
    pipeline,
    predict,
    rank,
    score,
    search,
)
from lens_ssl_hf.commands import score as command
from lens_ssl_hf.inference.classifier import Classifier
from lens_ssl_hf.survey import inputs
from lens_ssl_hf.survey import manifest as manifests
from lens_ssl_hf.survey import rank as ranking
from lens_ssl_hf.survey.places import places_of
from lens_ssl_hf.survey.ranking_tables import write_tables

pytestmark = pytest.mark.usefixtures("in_tmp_path")

COUNT = len(FLUX)
IDS = [2**60 + i for i in range(COUNT)]
GAIN = 10 ** (0.4 * (31.4 - 27.0))  # from the model's zero point to nJy


def write_files(count=COUNT, **header):
    """FITS files in nJy, with the bands in another order than the model's."""
    Path("cutouts").mkdir()
    header = fits.Header({"BUNIT": "nJy", "BANDS": "i,r,g", **header})
    for i in range(count):
        fits.writeto(f"cutouts/{i:03d}.fits", (make_flux(i)[::-1] * GAIN).astype("f4"), header)
    return "cutouts"


def write_table(name="catalogue.csv"):
    write_files()
    columns = {"id": IDS, "file": [f"cutouts/{i:03d}.fits" for i in range(COUNT)], "label": ["?"] * COUNT}
    Table(columns | {"ra": np.arange(COUNT) / 7, "dec": np.arange(COUNT) / 9}).write(name)
    return name


def write_hdf5():
    with h5py.File("stack.h5", "w") as file:
        file["images"] = FLUX[:, ::-1]
        file["images"].attrs["bands"] = ["i", "r", "g"]
        file["id"] = IDS
    return "stack.h5"


def write_parquet(columns=None, parts=2, **options):
    columns = {"id": IDS, "pixels": FLUX.tolist()} if columns is None else columns
    table = pyarrow.table(columns)
    Path("shards").mkdir()
    for i in range(parts):
        size = -(-len(table) // parts)
        parquet.write_table(table.slice(i * size, size), f"shards/{i}.parquet", **options)
    return "shards"


def write_universe():
    """As the Multimodal Universe has it."""
    kind = pyarrow.struct(
        [
            ("band", pyarrow.list_(pyarrow.string())),
            ("flux", pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.float32())))),
            ("scale", pyarrow.list_(pyarrow.float32())),
        ]
    )
    rows = [{"band": ["i", "r", "g"], "flux": one[::-1].tolist(), "scale": [0.168] * 3} for one in FLUX]
    return write_parquet({"object_id": IDS, "image": pyarrow.array(rows, kind)}, row_group_size=3)


def read(folder="scores"):
    return pyarrow.concat_tables([parquet.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))])


@pytest.mark.parametrize("write", [write_files, write_table, write_hdf5, write_parquet, write_universe])
def test_scores_are_those_of_the_pipeline(write, run):
    options = {"id_column": "object_id"} if write is write_universe else {}
    manifest = score(run, write(), "scores", shard_size=7, **options)
    table = read()
    expected = [{one["label"]: one["score"] for one in found}["lens"] for found in pipeline(run)(FLUX)]
    assert np.ptp(expected) > 0.05 and table["score"].to_numpy() == pytest.approx(np.array(expected), abs=1e-6)
    assert 1 / (1 + np.exp(-table["logit"].to_numpy())) == pytest.approx(table["score"].to_numpy())
    assert [path.name for path in sorted(Path("scores").iterdir())] == [
        "manifest.json",
        *[f"scores-0000{i}-of-00003.parquet" for i in range(3)],
    ]
    assert manifest["counts"] == {"cutouts": COUNT, "scored": COUNT, "flagged": 0, "first_flag": None}
    assert json.loads(Path("scores/manifest.json").read_text())["counts"] == manifest["counts"]
    if write is not write_files:
        assert table["id"].type == pyarrow.int64() and table["id"].to_pylist() == IDS


def write_silent_files(flux):
    Path("silent").mkdir()
    for i, one in enumerate(flux):
        np.save(f"silent/{i:03d}.npy", one)
    return "silent"


def write_silent_hdf5(flux):
    with h5py.File("silent.h5", "w") as file:
        file["images"] = flux
    return "silent.h5"


@pytest.mark.parametrize(
    "write", [write_silent_files, write_silent_hdf5, lambda flux: write_parquet({"pixels": flux.tolist()})]
)
def test_what_cutouts_do_not_state_can_be_told(write, run):
    """Bands in another order, in nJy, on smaller pixels."""
    told = {"bands": ["i", "r", "g"], "zero_point": 31.4, "pixel_scale": 0.15}
    manifest = score(run, write((FLUX[:, ::-1] * GAIN).astype("f4")), "scores", **told)
    assert manifest["stated"] == ["bands", "pixel scale", "zero point"]
    score(run, write_files(PIXSCALE=0.15), "stated")
    assert read()["logit"].to_pylist() == read("stated")["logit"].to_pylist()
    rank("scores", "ranking", top=5)
    assert Path("ranking/page.html").exists()


def test_pictures_whose_pixels_are_of_unknown_size_are_scored_with_a_warning(run, caplog):
    Path("pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{i}.png")
    assert score(run, "pictures", "scores")["stated"] == []
    (warning,) = [one.getMessage() for one in caplog.records if "states its" in one.getMessage()]
    assert "states its pixel scale: taken as 0.168; if that is wrong, give pixel_scale" in warning
    caplog.clear()
    assert score(run, "pictures", "told", pixel_scale=0.2)["stated"] == ["pixel scale"]
    assert not [one for one in caplog.records if "states its" in one.getMessage()]


def test_what_cutouts_state_counts_more_than_what_is_told(run):
    score(run, write_files(), "scores")
    score(run, "cutouts", "told", bands=["g", "r", "i"], zero_point=20.0, pixel_scale=0.168)
    assert read()["logit"].to_pylist() == read("told")["logit"].to_pylist()


def test_scores_are_those_of_predict_and_embeddings_those_of_the_backbone(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    saved = save_toy(make_cutouts(), Path("data"))
    score(run, saved, "scores", embeddings=True, batch_size=100)
    table, found = read(), {}
    for split, cutouts in load_cutouts(saved, cache_dir="cache").items():
        predictions = predict(run, cutouts)
        found |= dict(zip(predictions.id, predictions.score))
        if split == "train":
            pixels = cutouts.with_format("torch")["pixels"][:]
    assert table["id"].to_pylist() != [] and set(table["id"].to_pylist()) == set(found)
    assert table["score"].to_numpy() == pytest.approx([found[one] for one in table["id"].to_pylist()], abs=1e-6)
    classifier = Classifier.load(run)
    crop = (pixels[:, :, 4:36, 4:36] / 255 - torch.tensor(classifier.mean).view(1, -1, 1, 1)) / torch.tensor(
        classifier.std
    ).view(1, -1, 1, 1)
    with torch.no_grad():
        tokens = classifier.model.vit(crop).last_hidden_state[:, 0].numpy()
    assert table["embedding"].type == pyarrow.list_(pyarrow.float16(), 32)
    by_id = dict(zip(table["id"].to_pylist(), np.array(table["embedding"].to_pylist())))
    assert np.stack([by_id[f"0-{i}"] for i in range(len(tokens))]) == pytest.approx(tokens, abs=2e-3)


def test_bands_of_a_saved_dataset_go_by_their_names(tmp_path):
    splits, info = make_cutouts()
    run = write_classifier_run(tmp_path / "run")
    score(run, save_toy((splits, info), Path("data")), "scores")
    for split in splits.values():
        split.pixels = split.pixels[:, [2, 0, 1]]
    info = info | {"bands": ["i", "g", "r"]}
    score(run, save_toy((splits, info), Path("other")), "other_scores")
    assert read()["score"].to_pylist() == read("other_scores")["score"].to_pylist()
    with pytest.raises(
        InputError, match=r"was trained on 0\.168 arcsec pixels, these cutouts have 0\.3: build coarse"
    ):
        score(run, save_toy((splits, info | {"pixel_scale": 0.3}), Path("coarse")), "coarse_scores")


def test_pictures_in_parquet(run):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 255, (4, 40, 40, 3), "uint8")
    streams = [io.BytesIO() for _ in arrays]
    for array, stream in zip(arrays, streams):
        Image.fromarray(array).save(stream, format="PNG")
    pictures = [{"bytes": stream.getvalue(), "path": None} for stream in streams]
    score(run, write_parquet({"image": pictures}), "scores")
    expected = pipeline(run)([Image.fromarray(array) for array in arrays])
    expected = [{one["label"]: one["score"] for one in found}["lens"] for found in expected]
    assert read()["score"].to_numpy() == pytest.approx(np.array(expected), abs=1e-6)
    assert read()["id"].to_pylist() == ["0-0", "0-1", "1-0", "1-1"]


def test_a_bad_cutout_is_a_row_with_its_reason(run):
    folder = Path(write_files())
    (folder / "003.fits").write_bytes((folder / "003.fits").read_bytes()[:4000])
    np.save(folder / "silent.npy", make_flux(5))
    os.symlink("nowhere.fits", folder / "gone.fits")
    manifest = score(run, folder, "scores", num_proc=2, embeddings=True)
    flags = {row["id"]: row["flag"] for row in read().to_pylist() if row["flag"]}
    assert set(flags) == {"003.fits", "silent.npy", "gone.fits"}
    assert "is shorter than its header says" in flags["003.fits"] and "does not exist" in flags["gone.fits"]
    assert "states no zero point where others of the input do" in flags["silent.npy"]
    assert all(
        (row["score"] is None) == (row["flag"] is not None) == (row["logit"] is None) for row in read().to_pylist()
    )
    assert manifest["counts"]["flagged"] == 3 and "003.fits" in manifest["counts"]["first_flag"]


@pytest.mark.parametrize("write", [write_silent_files, lambda flux: write_parquet({"pixels": flux.tolist()})])
def test_a_band_that_was_not_observed_is_flagged_where_the_model_looks(write, run):
    """A survey fills it with zeros. A picture may be black in a colour."""
    flux = FLUX[:4].copy()
    flux[1, 2], flux[2, 0, 2:-2, 2:-2] = 0, 7.5
    flux[2, 0, 20, 20] = np.nan
    score(run, write(flux), "scores")
    seen = "of the middle of .+, which the model sees, is"
    sound, zeros, constant, another = (row["flag"] for row in read().to_pylist())
    assert sound is None and another is None and re.match(f"band i {seen} all zeros: leave the cutout out$", zeros)
    assert re.match(f"band g {seen} constant, 7.5 in all pixels: leave the cutout out$", constant)
    with pytest.raises(InputError, match=f"band i {seen} all zeros"):
        pipeline(run)(flux[1])
    assert pipeline(run)(np.clip(flux[1], 0, 255).astype(np.uint8))


def test_single_band_files_are_joined_and_one_that_is_missing_is_flagged(run):
    Path("bands").mkdir()
    for i in range(3):
        for band, plane in zip(("HSC-G", "HSC-R", "HSC-I"), FLUX[i]):
            fits.writeto(f"bands/{i}_{band}.fits", plane)
    Path("bands/1_HSC-R.fits").unlink()
    with pytest.raises(InputError, match=r"give --file_pattern '\{id\}_HSC-\{band\}.fits' --bands G R I"):
        score(run, "bands", "scores")
    score(run, "bands", "scores", file_pattern="{id}_HSC-{band}.fits", bands=["G", "R", "I"])
    expected = [{one["label"]: one["score"] for one in found}["lens"] for found in pipeline(run)(FLUX[:3])]
    first, second, third = read().to_pylist()
    assert [first["score"], third["score"]] == pytest.approx([expected[0], expected[2]], abs=1e-6)
    assert second["id"] == "1" and "bands/1_HSC-R.fits does not exist" in second["flag"]


def test_names_of_files_need_not_be_utf8(run):
    folder = os.fsencode(write_files(3))
    os.rename(folder + b"/001.fits", folder + b"/\xff.fits")
    Path(os.fsdecode(folder + b"/\xfe.fits")).write_bytes(b"")
    score(run, "cutouts", "scores")
    assert [row["id"] for row in read().to_pylist() if row["flag"]] == ["\\udcfe.fits"]


def test_positions_come_from_the_table_or_from_the_wcs(run):
    wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": -0.168 / 3600, "CD2_2": 0.168 / 3600}
    write_files(2, CRVAL1=150.0, CRVAL2=2.0, CRPIX1=20.5, CRPIX2=20.5, **wcs)
    score(run, "cutouts", "scores")
    assert read()["ra"].to_pylist() == pytest.approx([150.0] * 2) and read()["dec"].to_pylist() == pytest.approx(
        [2.0] * 2
    )
    Path("t.csv").write_text("file,ra,dec\ncutouts/000.fits,10:00:00,-1\ncutouts/001.fits,nan,\n")
    score(run, "t.csv", "table_scores")
    assert read("table_scores")["ra"].to_pylist() == pytest.approx([150.0, 150.0])
    assert read("table_scores")["dec"].to_pylist() == pytest.approx([-1.0, 2.0])


def test_positions_in_parquet_keep_their_type_and_nan_is_unknown(run):
    ra = pyarrow.array([np.nan, *range(COUNT - 1)], pyarrow.float32())
    score(run, write_parquet({"id": IDS, "pixels": FLUX.tolist(), "ra": ra, "dec": ra}), "scores")
    assert (
        read()["ra"].type == pyarrow.float32() and read()["ra"].null_count == 1 and read()["flag"].null_count == COUNT
    )


def test_an_ensemble_and_its_views(run, tmp_path):
    other = write_flux_run(tmp_path / "other", stretch=FLUX_STRETCH | {"softening": [2.0, 2.0, 2.0]})
    folder = write_files(5)
    for name, model, views in (("one", run, 1), ("two", other, 1), ("both", [run, other], 1), ("views", run, 8)):
        score(model, folder, name, views=views)
    one, two, both = (read(name)["logit"].to_numpy() for name in ("one", "two", "both"))
    assert both == pytest.approx((one + two) / 2, abs=1e-5) and np.abs(one - two).max() > 1e-3
    assert read("both")["spread"].to_numpy() == pytest.approx(np.abs(one - two) / 2, abs=1e-5)
    classify = pipeline(run)
    for flux, found in zip(FLUX, read("views")["logit"].to_pylist()):
        turned = [np.rot90(view, k, (1, 2)).copy() for view in (flux, flux[:, :, ::-1]) for k in range(4)]
        scores = [{one["label"]: one["score"] for one in each}["lens"] for each in classify(turned)]
        assert found == pytest.approx(np.mean([np.log(p / (1 - p)) for p in scores]), abs=1e-4)


def test_what_is_done_is_not_done_again_and_tasks_share_the_shards(run):
    folder = write_parquet()
    assert "counts" not in score(run, folder, "scores", shard_size=6, tasks=2, task=1)
    assert {path.name[:12] for path in Path("scores").glob("scores-*")} == {"scores-00001", "scores-00003"}
    before = {path.name: path.stat().st_mtime_ns for path in Path("scores").glob("scores-*")}
    assert score(run, folder, "scores", shard_size=6)["counts"]["scored"] == COUNT
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in Path("scores").glob("scores-*")}.items()
    score(run, folder, "whole")
    assert read("whole")["logit"].to_numpy() == pytest.approx(read()["logit"].to_numpy(), abs=1e-5)


def test_a_run_goes_on_however_its_options_are_spelled(run, monkeypatch):
    folder = write_parquet()
    command = {"bands": ["g", "r", "i"], "zero_point": 27.0, "pixel_scale": 0.168, "views": 1, "embeddings": True}
    others = {"bands": ("g", "r", "i"), "zero_point": np.float32(27), "pixel_scale": np.float64(0.168)}
    others |= {"views": True, "embeddings": 1}
    for name, first, then in (("here", command, others), ("there", others, command)):
        score(run, folder, name, shard_size=10, tasks=2, **first)
        assert score(run, folder, name, shard_size=10, tasks=2, task=1, **then)["counts"]["scored"] == COUNT
    keys = [manifests.shard_facts(path)["key"] for path in Path().glob("*here/scores-*")]
    assert len(keys) == 4 and len(set(keys)) == 1
    assert inputs.Options(hdu=0, tiles=Path("t/*.fits")) == inputs.Options(hdu="0", tiles="t/*.fits")
    half = {"shard_size": 10, "tasks": 2, "bands": ("g", "r", "i"), "zero_point": 27}
    with monkeypatch.context() as patch:  # a folder of a version that kept 27 as it was given
        patch.setattr(inputs, "_KINDS", {})
        for _ in range(2):
            score(run, folder, "earlier", **half)
    assert score(run, folder, "earlier", task=1, **half)["counts"]["scored"] == COUNT
    assert rank("earlier", "ranking", top=3)["top"] == 3


def test_a_model_in_several_files_is_known_by_all_of_them(run):
    shutil.copytree(f"{run}/model", "several")
    Path("several/model.safetensors").unlink()
    ViTForImageClassification.from_pretrained(f"{run}/model").save_pretrained("several", max_shard_size="50KB")
    files = sorted(Path("several").glob("model-*.safetensors"))
    assert len(files) > 1 and not Path("several/model.safetensors").exists()
    score("several", write_parquet(), "scores")
    before = json.loads(Path("scores/manifest.json").read_text())["models"][0]["weights_sha256"]
    assert before == manifests.weights_sha256("several") and len(before) == 64
    tensors = load_file(files[-1])
    save_file({name: one + 1 for name, one in tensors.items()}, files[-1], metadata={"format": "pt"})
    assert manifests.weights_sha256("several") != before


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (lambda: None, {"shard_size": 9}, r"shard_size was 100000, not 9"),
        (lambda: None, {"views": 8, "embeddings": True}, r"views was 1, not 8; embeddings was False, not True"),
        (lambda: os.utime("shards/0.parquet", (1, 1)), {}, r"the input is another: fingerprint"),
        (lambda: None, {"model": "other"}, r"model 1 is another: weights_sha256"),
    ],
)
def test_scores_of_something_else_are_refused_by_name(change, options, match, run, tmp_path):
    folder = write_parquet()
    score(run, folder, "scores")
    before = sorted((path.name, path.read_bytes()) for path in Path("scores").iterdir())
    change()
    if options.pop("model", None):
        torch.manual_seed(5)
        run = write_flux_run(tmp_path / "other")
        model = Classifier.load(run).model
        with torch.no_grad():
            model.classifier.bias += 1
        model.save_pretrained(Path(run) / "model")
    with pytest.raises(InputError, match=rf"scores holds scores that were made otherwise \({match}"):
        score(run, folder, "scores", **options)
    assert sorted((path.name, path.read_bytes()) for path in Path("scores").iterdir()) == before


def test_a_shard_of_something_else_is_refused(run):
    folder = write_parquet()
    score(run, folder, "scores", shard_size=10)
    score(run, folder, "others", shard_size=10, views=8)
    name = "scores-00001-of-00002.parquet"
    os.replace(f"others/{name}", f"scores/{name}")
    with pytest.raises(InputError, match=rf"{name} is of another model, input or option: remove it"):
        score(run, folder, "scores", shard_size=10)
    with pytest.raises(InputError, match=rf"{name} is of another model, input or option: score again"):
        rank("scores", "ranking")


def truncated_input():
    write_parquet()
    path = Path("shards/1.parquet")
    path.write_bytes(path.read_bytes()[:5000])
    return "shards"


def empty():
    Path("empty").mkdir()
    return "empty"


def ids_of_two_types():
    write_parquet()
    parquet.write_table(pyarrow.table({"id": ["a"], "pixels": FLUX[:1].tolist()}), "shards/1.parquet")
    return "shards"


def short_ids():
    with h5py.File(write_hdf5(), "a") as file:
        del file["id"]
        file["id"] = IDS[:2]
    return "stack.h5"


def flat_hdf5():
    with h5py.File("stack.h5", "w") as file:
        file["images"] = np.zeros((30, 50))
    return "stack.h5"


def table_of(text):
    write_files(3)
    Path("t.csv").write_text(text)
    return "t.csv"


def float_ids():
    write_files(2)
    columns = {"name": [2.0**60, 7.0], "id": [1, 2], "file": ["cutouts/000.fits", "cutouts/001.fits"]}
    parquet.write_table(pyarrow.table(columns), "t.parquet")
    return "t.parquet"


def other_bands():
    Path("cutouts").mkdir()
    for i in range(3):
        fits.writeto(f"cutouts/{i}.fits", make_flux(i), fits.Header({"BANDS": "z,J,H"}))
    return "cutouts"


def some_silent():
    folder = write_files(3)
    for i in range(3):
        np.save(f"{folder}/{i}.npy", make_flux(i))
    return folder


NUMBERED = {"id": IDS, "pixels": FLUX.tolist()}


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (empty, "empty holds no cutout: put FITS"),
        (lambda: "nowhere", "nowhere does not exist: give a folder"),
        (
            other_bands,
            r"none of 3 cutouts of cutouts can be scored; the first: cutouts/0.fits has the bands z, J, H, but",
        ),
        (some_silent, "half of the cutouts of cutouts, or more, state no zero point where others do: give zero_point"),
        (truncated_input, r"shards/1.parquet cannot be read as Parquet"),
        (flat_hdf5, r"stack.h5 holds no stack of shape"),
        (
            lambda: table_of("id,file\n1,cutouts/000.fits\n1,cutouts/001.fits\n"),
            "t.csv has the id '1' in rows 1 and 2",
        ),
        (lambda: table_of("file,ra,dec\ncutouts/000.fits,5,nan\n"), "t.csv, row 1 has no dec: add it"),
        (lambda: table_of("file,ra,dec\ncutouts/000.fits,5,91\n"), "is no dec in degrees"),
        (
            lambda: write_parquet(NUMBERED | {"id": [*IDS[:-1], IDS[3]]}),
            f"the id {IDS[3]} is in row 4 of shards/0.parq",
        ),
        (lambda: write_parquet(NUMBERED | {"id": [None, *IDS[1:]]}), "has no id in column 'id' of row 1: fill it"),
        (lambda: write_parquet(NUMBERED | {"ra": [1.0] * COUNT}), "row 1 has ra 1 and dec nan: give both in degrees"),
        (
            lambda: write_parquet(NUMBERED | {"ra": ["1:00"] * COUNT}),
            r"0.parquet has 'ra' as string: save degrees, or",
        ),
        (lambda: write_parquet(NUMBERED | {"id": [[i] for i in IDS]}), r"has 'id' as list<.*: save integers or text"),
        (lambda: write_parquet(NUMBERED | {"id": np.arange(COUNT) * 1.0}), "has 'id' as double: save integers or"),
        (float_ids, "t.parquet, column 'name': ids are stored as floats and have lost digits: save them as integers"),
        (ids_of_two_types, "1.parquet has 'id' as string and others as int64: save integers or text in all files"),
        (short_ids, r"stack.h5 holds 20 cutouts, but dataset id of shape \(2,\): give one value per cutout"),
        (lambda: "x" * 300, "does not exist: give a folder"),
        (lambda: write_parquet({"id": IDS, "x": IDS}), "has no such column of cutouts"),
        (
            lambda: write_parquet({"a": FLUX.tolist(), "b": FLUX.tolist()}),
            r"several columns of cutouts \(it has a, b\): name",
        ),
    ],
)
def test_an_input_that_cannot_be_scored_ends_in_one_sentence(write, match, run):
    folder, options = write(), {"id_column": "name"} if write is float_ids else {}
    with pytest.raises(InputError, match=match) as error:
        score(run, folder, "scores", **options)
    assert "\n" not in str(error.value) and not list(Path().glob("scores/*"))


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        ([], {}, "no model is given"),
        ("nowhere", {}, "cannot load a model from nowhere"),
        ("pretrained", {}, "is a pretraining run, without classifier"),
        (None, {"views": 3}, "views is 3: choose 1 or 8"),
        (None, {"tasks": 2, "task": 2}, "task is 2: give one from 0 to 1"),
        (None, {"nonsense": 1}, "score has no option nonsense"),
        (None, {"num_proc": 0}, "num_proc is 0: give at least 1"),
        (None, {"device": "gpu"}, "device is gpu: give cpu, cuda or cuda:1"),
        (None, {"device": "cuda:99"}, "device is cuda:99, which cannot be used"),
        (None, {"id_column": "name"}, "has no column 'name'"),
        (None, {"bands": ["g"]}, r"0-0 has 3 bands, but bands names 1 \(g\): correct it"),
        (None, {"bands": ["g", "r", "z"]}, "0-0 has the bands g, r, z, but g, r, i are needed"),
        (None, {"bands": ["g", "r", "g"]}, "bands has the band g twice: choose one"),
        (None, {"bands": 3}, "bands is 3: give text"),
        (None, {"tiles": ["tiles/*.fits"]}, r"tiles is \['tiles/\*.fits'\]: give text"),
        (None, {"zero_point": "AB"}, "zero_point is 'AB': give a number"),
        (None, {"zero_point": float("nan")}, "zero_point is nan: give a magnitude"),
        (None, {"pixel_scale": 0.0}, "pixel_scale is 0.0: give arcsec per pixel"),
        (None, {"hdu": "1"}, "hdu has no meaning for shards"),
        (None, {"output": "shards/scores"}, "output shards/scores lies in the input shards"),
    ],
)
def test_models_and_options_that_cannot_be(model, options, match, run):
    write_pretrain_run(Path("pretrained"))
    with pytest.raises(InputError, match=match):
        score(run if model is None else model, write_parquet(), **{"output": "scores", **options})
    assert not Path("scores").exists()


def test_many_ids_are_compared_part_by_part(run, monkeypatch):
    monkeypatch.setattr("lens_ssl_hf.survey.parquet_input.IDS_AT_ONCE", 3)
    ids = [f"object {i % 19}" for i in range(COUNT)]
    with pytest.raises(InputError, match=r"the id 'object 0' is in row 1 of shards/0\.parquet and row 10 of shards/1"):
        score(run, write_parquet(NUMBERED | {"id": ids}), "scores")


def test_parquet_files_of_one_name_in_several_folders_have_ids_of_their_own(run):
    for folder in ("train", "test"):
        Path("hub", folder).mkdir(parents=True)
        parquet.write_table(pyarrow.table({"pixels": FLUX[:3].tolist()}), f"hub/{folder}/0000.parquet")
    score(run, "hub", "scores")
    assert read()["id"].to_pylist() == [f"{folder}/0000-{i}" for folder in ("test", "train") for i in range(3)]
    shutil.copy("hub/test/0000.parquet", "hub/test/0000.pq")
    score(run, "hub", "again")
    names = ("test/0000.parquet", "test/0000.pq", "train/0000.parquet")
    assert read("again")["id"].to_pylist() == [f"{name}-{i}" for name in names for i in range(3)]


def test_parquet_files_without_rows_are_passed_over(run):
    columns = {"id": IDS, "pixels": FLUX.tolist()}
    write_parquet(columns)
    for name in ("", "0-", "2"):
        parquet.write_table(pyarrow.table({"id": [], "pixels": []}), f"shards/{name}.parquet")
    score(run, "shards", "scores", shard_size=15)
    assert read()["id"].to_pylist() == IDS and read()["flag"].null_count == COUNT


def test_ids_in_parquet_are_those_that_a_table_of_grades_holds(run):
    write_parquet({"id": [" lead", "b 2 ", "c"], "pixels": FLUX[:3].tolist()}, parts=1)
    score(run, "shards", "scores")
    assert read()["id"].to_pylist() == ["lead", "b 2", "c"]
    shutil.rmtree("shards")
    for ids, match in (
        (["a", "a ", "c"], "the id 'a' is in row 1"),
        (["a", " ", "c"], "has no id in column 'id' of row 2"),
    ):
        write_parquet({"id": ids, "pixels": FLUX[:3].tolist()}, parts=1)
        with pytest.raises(InputError, match=match):
            score(run, "shards", "others")
        shutil.rmtree("shards")


def test_ids_that_are_paths_of_this_machine_are_those_of_a_built_dataset(run):
    write_files(3)
    Path("t.csv").write_text("file\n" + "".join(f"{Path.cwd()}/cutouts/{i:03d}.fits\n" for i in range(3)))
    score(run, "t.csv", "scores", id_column="file")
    assert read()["id"].to_pylist() == load_cutouts("t.csv", id_column="file")["unlabelled"]["id"][:]
    rank("scores", "ranking")
    assert str(Path.cwd()) not in Path("ranking/page.html").read_text()


def test_one_file_whose_first_rows_are_empty_is_scored(run):
    write_parquet({"id": IDS[:9], "pixels": [None] * 5 + FLUX[:4].tolist()}, parts=1)
    score(run, "shards", "scores")
    assert read()["flag"].null_count == 4


def test_what_only_some_cutouts_state_is_said(run, caplog):
    write_files(3, PIXSCALE=0.15)
    fits.delval("cutouts/001.fits", "PIXSCALE")
    score(run, "cutouts", "scores")
    assert "1 of 3 cutouts of cutouts that were looked at state no pixel scale: taken as 0.168" in caplog.text


def test_a_full_disk_leaves_what_is_done(run, monkeypatch, capsys):
    folder = write_parquet()
    score(run, folder, "scores", shard_size=10, tasks=2)
    before = sorted(path.name for path in Path("scores").iterdir())
    monkeypatch.setattr(
        sys, "argv", f"lens-ssl --model {run} --input {folder} --output scores --shard_size 10".split()
    )
    with at_most(1000), pytest.raises(SystemExit) as stopped:
        command.main()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("error: cannot write scores/scores-00001-of-00002.parquet")
    assert sorted(path.name for path in Path("scores").iterdir()) == before
    command.main()
    assert "20 of 20 cutouts scored, 0 flagged" in capsys.readouterr().out
    with at_most(1000), pytest.raises(InputError, match=r"cannot write .*ranking"):
        rank("scores", "ranking")
    assert not list(Path().glob("*ranking*"))


def write_scored(run, count=200, shard_size=37, output="scores"):
    """A survey of noise in which every tenth object is there three times, up to 0.5 arcsec apart."""
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, count), rng.uniform(-80, 80, count)
    for i in range(0, count - 10, 10):
        for j in (i + 3, i + 7):
            ra[j], dec[j] = ra[i], dec[i] + rng.uniform(-0.5, 0.5) / 3600
    ra[5] = dec[5] = np.nan
    flux = np.stack([make_flux(i, size=32) for i in range(count)])
    flux[11] = np.nan
    ids = [f"=cmd{i}" for i in range(count)]
    if not Path("shards").exists():
        write_parquet({"id": ids, "pixels": flux.tolist(), "ra": ra, "dec": dec})
    score(run, "shards", output, shard_size=shard_size)
    return read(output)


def brute_force(table, separation):
    """Rows in the order of their scores, each object once; row by row."""
    ra, dec = (np.radians(table[name].to_numpy()) for name in ("ra", "dec"))
    kept = []
    for i in np.argsort(-table["logit"].to_numpy(), kind="stable"):  # NaN last
        step = np.sin((dec[i] - dec[kept]) / 2) ** 2
        step += np.cos(dec[i]) * np.cos(dec[kept]) * np.sin((ra[i] - ra[kept]) / 2) ** 2
        distance = 2 * np.degrees(np.arcsin(np.sqrt(step))) * 3600
        if table["score"][int(i)].is_valid and not (distance < separation).any():
            kept.append(int(i))
    return kept


def test_a_ranking_has_the_best_objects_once_and_a_sample_of_the_rest(run, monkeypatch):
    monkeypatch.setattr("lens_ssl_hf.survey.listed.SHEET", 1)
    table = write_scored(run)
    expected = [table["id"][i].as_py() for i in brute_force(table, 1.0)[:40]]
    facts = rank("scores", "ranking", top=40, audit=25, seed=4)
    found = parquet.read_table("ranking/ranking.parquet").to_pylist()
    top, audit = found[:40], found[40:]
    assert [row["id"] for row in top] == expected and [row["rank"] for row in top] == list(range(1, 41))
    assert len(audit) == 25 == len({row["id"] for row in audit} - set(expected))
    assert {row["inclusion_probability"] for row in audit} == {25 / facts["rest"]}
    assert facts["rest"] == 199 - 40 - facts["merged"] and facts["merged"] == sum(row["duplicates"] for row in top) > 5
    assert rank("scores", "again", top=40, audit=10, seed=4)["audit"] == 10
    again = parquet.read_table("again/ranking.parquet").to_pylist()
    assert [row["id"] for row in again[40:]] == [row["id"] for row in audit[:10]]
    rank("scores", "other", top=40, audit=10, seed=5)
    assert parquet.read_table("other/ranking.parquet")["id"][40:].to_pylist() != [row["id"] for row in again[40:]]


def test_the_top_does_not_depend_on_shards_or_on_how_much_is_looked_at(run, monkeypatch):
    monkeypatch.setattr("lens_ssl_hf.survey.listed.SHEET", 1)
    write_scored(run)
    write_scored(run, shard_size=200, output="one")
    rank("scores", "a", top=50)
    rank("one", "b", top=50)
    monkeypatch.setattr("lens_ssl_hf.survey.rank.SPARE", -90)
    rank("scores", "c", top=50)
    ids = [parquet.read_table(f"{name}/ranking.parquet")["id"].to_pylist() for name in "abc"]
    assert ids[0] == ids[1] == ids[2]
    rank("scores", "all", top=500, separation=0)
    assert len(parquet.read_table("all/ranking.parquet")) == 199


def best_by_hand(table, top, separation):
    """Rows in their order, each kept where no kept one is near by the haversine formula."""
    ra, dec = (np.radians(table[name].to_pandas().to_numpy(dtype=float)) for name in ("ra", "dec"))
    kept = []
    for i in np.lexsort((table["row"].to_numpy(), -table["logit"].to_numpy())):
        half = (
            np.sin((dec[kept] - dec[i]) / 2) ** 2
            + np.cos(dec[kept]) * np.cos(dec[i]) * np.sin((ra[kept] - ra[i]) / 2) ** 2
        )
        if not (2 * np.arcsin(np.sqrt(half)) <= np.radians(separation / 3600)).any():
            kept.append(i)
    return table["row"].to_numpy()[kept[:top]].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_of_rows_that_crowd_around_places_the_best_are_kept_wherever_these_are(seed, monkeypatch):
    rng, sizes = np.random.default_rng(seed), []
    centres = np.array([(0, 90), (0, -90), (0, 0), (359.99999, 45), (150, 2), (150.001, 2), (np.nan, np.nan)])
    ra, dec = centres[rng.integers(0, len(centres), 400)].T + rng.normal(0, 1.5 / 3600, (2, 400))
    ra = np.where(np.abs(dec) > 89.9, rng.uniform(0, 360, 400), ra % 360)
    dec = np.where(np.abs(dec) > 90, np.sign(dec) * 180 - dec, dec)
    columns = {"ra": ra, "dec": dec, "logit": rng.normal(size=400).round(1), "row": rng.permutation(400)}
    table = pyarrow.table(columns)
    unique = ranking._unique
    monkeypatch.setattr(ranking, "_unique", lambda *all_: sizes.append(len(all_[0])) or unique(*all_))
    monkeypatch.setattr(ranking, "SPARE", 5 - 2 * 60)
    found = ranking.best_of([table.slice(i, 90) for i in range(0, 400, 90)], 60, 1.0)
    assert found["row"].to_pylist() == best_by_hand(table, 60, 1.0) and len(found) == 60
    assert max(sizes) <= ranking.WIDEST * 5 and len(sizes) > 2


def test_many_rows_at_one_place_take_no_memory_and_no_time(monkeypatch):
    """All pairs of them were looked at, and all rows held to find the second place."""
    count, sizes = 3000, []
    places = np.where(np.arange(count) < count - 2, 10.0, 20.0 + np.arange(count))
    table = pyarrow.table({"ra": places, "dec": places / 1000, "logit": -np.arange(count) / 1, "row": range(count)})
    monkeypatch.setattr(ranking, "SPARE", 4)
    monkeypatch.setattr(ranking, "places_of", lambda one: sizes.append(len(one)) or places_of(one))
    found = ranking.best_of([table.slice(i, 500) for i in range(0, count, 500)], 3, 1.0)
    assert found["row"].to_pylist() == [0, count - 2, count - 1] and max(sizes) <= 10


def test_tables_are_read_by_others_and_safe_in_spreadsheets(run):
    write_scored(run)
    rank("scores", "ranking", top=20, audit=10)
    expected = parquet.read_table("ranking/ranking.parquet").to_pylist()
    for name in ("ranking.fits", "ranking.vot"):
        table = Table.read(f"ranking/{name}")
        assert [str(one) for one in table["id"]] == [row["id"] for row in expected]
        assert list(table["rank"][:20]) == list(range(1, 21)) and table["rank"].mask[20:].all()
        assert table["ra"].unit == "deg" and table["score"].tolist() == [row["score"] for row in expected]
    with open("ranking/ranking.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"'{row['id']}" for row in expected]
    known = [row for row in expected if row["ra"] is not None]
    assert f"ra={known[0]['ra']:.6f}&dec={known[0]['dec']:.6f}" in known[0]["viewer"]
    image = Image.open("ranking/contact_sheet.png")
    assert image.width > 1000 and np.asarray(image.convert("L")).std() > 20


def test_a_votable_has_no_character_that_xml_forbids():
    ids = ["a\x01b", "\x00", "c\ufffe\uffff", "a\t\x7f\ud7ff\ue000\ufffd\U0001f600é<&"]
    write_tables(pyarrow.table({"id": ids}), Path())
    assert list(Table.read("ranking.vot")["id"]) == ["a\ufffdb", "\ufffd", "c\ufffd\ufffd", ids[3]]
    assert parquet.read_table("ranking.parquet")["id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("kind", "first", "written"),
    [
        (np.int8, 1, pyarrow.int64()),
        (np.uint16, 1, pyarrow.int64()),
        (np.uint32, 2**32 - 2, pyarrow.int64()),
        (np.uint64, 2**63 - 2, pyarrow.int64()),
        (np.uint64, 2**63 - 1, pyarrow.string()),
        (np.float16, 0.5, pyarrow.float32()),
    ],
)
def test_numbers_of_every_type_are_written_in_all_formats(kind, first, written):
    values = np.array([first, first + 1], kind)
    write_tables(pyarrow.table({"id": values}), Path())
    for suffix in ("parquet", "fits", "vot"):
        found = Table.read(f"ranking.{suffix}")["id"]
        assert [str(one) for one in found.tolist()] == [str(one) for one in values.tolist()]
    assert parquet.read_schema("ranking.parquet").field("id").type == written
    assert Path("ranking.csv").read_text().split() == ["id", *map(str, values.tolist())]


def test_a_ranking_without_its_cutouts_has_no_contact_sheet(run, caplog):
    write_scored(run)
    Path("shards/0.parquet").unlink()
    rank("scores", "ranking", top=5)
    assert not Path("ranking/contact_sheet.png").exists() and "no contact sheet is drawn" in caplog.text
    assert Path("ranking/ranking.csv").exists()


def cut_shard():
    path = next(Path("scores").glob("scores-00002*"))
    path.write_bytes(path.read_bytes()[:-100])


def test_what_follows_the_scores_needs_no_torch(run):
    score(run, write_files(), "scores", embeddings=True)
    Path("grades.csv").write_text("id,grade\n" + "".join(f"{i:03d}.fits,{'AX'[i % 2]}\n" for i in range(COUNT)))
    program = """
import sys
from lens_ssl_hf import draw_map, find_anomalies, grade, rank, search
rank("scores", "ranking", top=10, audit=10, uncertain=3, graded=["grades.csv"])
grade("ranking", "grades.csv", "grading")
search("scores", "similar", like="000.fits", top=5)
find_anomalies("scores", "anomalies", 5)
draw_map("scores", "map")
print({"torch", "transformers"} & sys.modules.keys())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
    assert Path("ranking/page.html").is_file() and Path("map/map.html").is_file()


def test_nothing_is_written_into_the_input_of_the_scores(run):
    """Where it would be one of the cutouts when the run goes on."""
    score(run, write_files(), "scores", embeddings=True)
    rank("scores", "ranking", top=3)
    Path("grades.csv").write_text("id,grade\n000.fits,A\n")
    of_scores = rank, partial(search, like="000.fits"), find_anomalies, draw_map
    calls = [*zip(of_scores, ["scores"] * 4), (partial(grade, labels="grades.csv"), "ranking")]
    for write, folder in calls:
        with pytest.raises(InputError, match="output cutouts/new lies in the input cutouts: choose another output"):
            write(folder, output="cutouts/new")
    assert len(list(Path("cutouts").iterdir())) == COUNT


def known_by_floats():
    parquet.write_table(pyarrow.table({"name": [2.0**60], "ra": [1.0], "dec": [2.0]}), "known.parquet")


@pytest.mark.parametrize(
    ("spoil", "options", "match"),
    [
        (known_by_floats, {"known": "known.parquet"}, "known.parquet, column 'name': ids are stored as floats"),
        (lambda: next(Path("scores").glob("scores-00002*")).unlink(), {}, r"lacks 1 of 6 shards \(scores-00002-of"),
        (cut_shard, {}, r"scores-00002-of-00006.parquet cannot be read"),
        (lambda: Path("scores/manifest.json").write_text("{}"), {}, "manifest.json is damaged"),
        (lambda: Path("scores/manifest.json").unlink(), {}, "scores holds no readable manifest.json"),
        (lambda: None, {"top": 0}, "top is 0: give at least 1"),
        (lambda: None, {"separation": float("nan")}, "separation is nan: give at least 0"),
        (lambda: None, {"output": "shards"}, "shards exists already"),
    ],
)
def test_what_cannot_be_ranked_ends_in_one_sentence(spoil, options, match, run):
    write_scored(run)
    spoil()
    with pytest.raises(InputError, match=match):
        rank("scores", **{"output": "ranking", **options})
    assert not Path("ranking").exists()
    if spoil is cut_shard:
        with pytest.raises(InputError, match="remove it, and lens-ssl score makes it again"):
            score(run, "shards", "scores", shard_size=37)


@pytest.mark.slow
def test_killed_three_times_it_gives_the_same_rows_to_the_bit(run):
    count = 3000
    folder = Path("cutouts")
    folder.mkdir()
    for i in range(count):
        np.save(folder / f"{i:05d}.npy", make_flux(i % 50) + np.float32(i / count))
    options = f"--input cutouts --model {run} --shard_size 250".split()
    command_line = [sys.executable, "-m", "lens_ssl_hf", "score", *options, "--output"]
    subprocess.run([*command_line, "whole"], check=True, capture_output=True)
    for wanted in (1, 4, 8):
        process = subprocess.Popen([*command_line, "scores"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while len(list(Path("scores").glob("scores-*.parquet"))) < wanted:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in Path("scores").glob("scores-*.parquet")}
    assert 8 <= len(kept) < 12
    subprocess.run([*command_line, "scores"], check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert sorted(path.name for path in Path("scores").iterdir()) == sorted(p.name for p in Path("whole").iterdir())
    assert read("scores").equals(read("whole"))
