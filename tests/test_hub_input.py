"""Scoring a dataset on the Hub where it is, over the server of hub_server.py."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from conftest import make_cutouts, save_toy
from hub_server import READER, WRITER, Trouble
from huggingface_hub import HfApi, constants
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, load_cutouts, push_dataset, rank, score
from lens_ssl_hf.survey.hub_files import CONVERTED

pytestmark = pytest.mark.usefixtures("in_tmp_path")
COUNT = 50


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_classifier_run(tmp_path_factory.mktemp("models") / "run")


def write_shards(folder="shards", seed=0):
    """Two files with row groups of 7 and ids of 64 bits."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, 255, (COUNT, 3, 40, 40)).astype("float32").tolist()
    numbers = range(2**60, 2**60 + COUNT)
    table = pyarrow.table({"id": numbers, "pixels": pixels, "ra": rng.uniform(0, 9, COUNT), "dec": [1.0] * COUNT})
    (Path(folder) / "data").mkdir(parents=True)
    for i in range(2):
        parquet.write_table(table.slice(i * 25, 25), f"{folder}/data/{i}.parquet", row_group_size=7)
    return folder


def publish(folder, branch="main", repo_id="me/survey", private=True):
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", exist_ok=True, private=private)
    if branch != "main":
        api.create_branch(repo_id, branch=branch, repo_type="dataset")
    return api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, revision=branch).oid


def read(folder):
    return pyarrow.concat_tables([parquet.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))])


def test_rows_are_those_of_the_files_on_the_disk_and_a_new_commit_is_refused(hub, run, monkeypatch, caplog, capfd):
    commit = publish(write_shards())
    options = {"shard_size": 20, "embeddings": True, "batch_size": 8}
    score(run, "shards", "here", **options)
    monkeypatch.setenv("HF_TOKEN", READER)
    score(run, "me/survey", "there", tasks=2, **options)
    manifest = score(run, "me/survey", "there", **options)
    assert manifest["input"]["path"] == f"me/survey@{commit}" and manifest["counts"]["scored"] == COUNT
    here, there = read("here"), read("there")
    assert there.drop(["source"]).equals(here.drop(["source"])) and there["id"].to_pylist()[0] == 2**60
    assert there["source"][0].as_py() == f"hf://datasets/me/survey@{commit}/data/0.parquet"
    assert not Path(constants.HF_HUB_CACHE).exists()  # nothing was downloaded
    monkeypatch.setenv("HF_TOKEN", WRITER)
    publish(write_shards("other", seed=1))
    with pytest.raises(InputError, match=r"otherwise \(the input is another: fingerprint\): choose another output"):
        score(run, "me/survey", "there", **options)
    assert score(run, f"me/survey@{commit}", "there", **options)["counts"]["scored"] == COUNT
    rank("there", "ranking", top=5)
    assert Path("ranking/contact_sheet.png").exists()
    said = caplog.text + "".join(capfd.readouterr()) + json.dumps(manifest)
    assert READER not in said and WRITER not in said


def test_a_dataset_that_was_pushed_is_in_display_units(hub, run):
    cutouts, info = make_cutouts()
    saved = save_toy((cutouts, info | {"bands": ["i", "g", "r"]}), Path("toy"))
    push_dataset(load_cutouts(saved, cache_dir="cache"), "me/toy", license="other", origin="noise")
    score(run, saved, "here")
    score(run, "me/toy", "there")
    by_id = [dict(zip(table["id"].to_pylist(), table["logit"].to_pylist())) for table in map(read, ("here", "there"))]
    assert by_id[0] == by_id[1] and len(by_id[0]) == 192


def test_what_the_hub_converted_is_scored_and_a_part_of_it_is_not(hub, run):
    Path("csv").mkdir()
    Path("csv/survey.csv").write_text("a,b\n1,2\n")
    publish("csv")
    with pytest.raises(InputError, match=r"me/survey is not in Parquet: convert it with datasets.load_dataset\("):
        score(run, "me/survey", "there")
    publish(write_shards(), CONVERTED)
    score(run, "shards", "here")
    score(run, "me/survey", "there")
    assert read("there")["logit"].equals(read("here")["logit"])
    os.rename("shards/data", "shards/partial-train")
    publish("csv", repo_id="me/large")
    publish("shards", CONVERTED, repo_id="me/large")
    with pytest.raises(InputError, match="me/large is not in Parquet"):
        score(run, "me/large", "large")


def test_a_hub_that_fails_ends_in_one_sentence_and_the_run_goes_on(hub, run, monkeypatch):
    publish(write_shards())
    with pytest.raises(
        InputError, match="me/nothing does not exist here, and as a dataset on the Hub it cannot be"
    ) as e:
        score(run, "me/nothing", "there")
    assert "\n" not in str(e.value) and not Path("there").exists()
    with pytest.raises(InputError, match="hdu has no meaning for me/survey: leave it out"):
        score(run, "me/survey", "there", hdu="1")
    score(run, "shards", "here", shard_size=25)
    score(run, "me/survey", "there", shard_size=25, tasks=2)
    for served in (0, 2, 4, 6):  # footers, positions and ids, the cutouts that are looked at, those that are scored
        hub.troubles[:] = [Trouble("GET /cdn/", served, call=lambda: None), Trouble("GET /cdn/", 99, status=503)]
        with pytest.raises(InputError, match=r"data/\d.parquet cannot be read \(.*503.*\): correct it, log in .* or"):
            score(run, "me/survey", "there", shard_size=25)
    assert len(list(Path("there").glob("scores-*"))) == 1
    hub.troubles.clear()
    score(run, "me/survey", "there", shard_size=25)
    assert read("there").drop(["source"]).equals(read("here").drop(["source"]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be read \(.*offline mode"):
        score(run, "me/survey", "offline")
