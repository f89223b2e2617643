"""Pushing to a Hub and pulling from it, with the real clients, over the server of hub_server.py."""

import _thread
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_split, save_toy
from hub_server import READER, WRITER, Trouble
from huggingface_hub import ModelCard, constants
from tiny_runs import write_classifier_run, write_pretrain_run
from transformers import AutoModel

from lens_ssl_hf import (
    DinoForPreTraining,
    InputError,
    evaluate_model,
    export,
    load_cutouts,
    pipeline,
    predict,
    push_all,
    push_dataset,
    push_space,
    push_to_hub,
)
from lens_ssl_hf.commands.push import main as main_of_push
from lens_ssl_hf.data.info import cutout_info
from lens_ssl_hf.evaluation.pictures import colour_image
from lens_ssl_hf.hub.card import CardFacts, render_card
from lens_ssl_hf.hub.export import is_of_export
from lens_ssl_hf.hub.upload import LONGEST_WAIT, upload
from lens_ssl_hf.models import METHODS
from lens_ssl_hf.models.backbones import load_encoder
from lens_ssl_hf.models.loading import find_file
from lens_ssl_hf.survey import calibration as calibrations
from lens_ssl_hf.training.run_directory import origin

ROOT = Path(__file__).parents[1]
BACKBONE, CLASSIFIER = "me/lens-dino-vitt8", "me/lens-dino-vitt8-classifier"
SMALL = {"train_size": 8, "validation_size": 4, "test_size": 4, "unlabelled_size": 2, "size": 40, "num_proc": 1}


@pytest.fixture(scope="module")
def runs(tiny_cutouts, tmp_path_factory):
    """An evaluated pretraining run and an evaluated classifier run."""
    folder = tmp_path_factory.mktemp("runs")
    found = {"ssl": write_pretrain_run(folder / "ssl"), "classifier": write_classifier_run(folder / "classifier")}
    for run in found.values():
        evaluate_model(run, tiny_cutouts, num_bootstrap=20)
    return found


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(repository, revision="main"):
    return {name: data for name, data in repository.files(revision).items() if name != ".gitattributes"}


# Models


def test_a_push_is_one_commit_of_what_a_dry_run_writes(hub, runs, tmp_path):
    options = {"base_model": BACKBONE, "license": "cc-by-4.0"}
    assert push_to_hub(runs["classifier"], CLASSIFIER, dry_run=tmp_path / "dry", **options) == str(tmp_path / "dry")
    assert not hub.requests
    assert push_to_hub(runs["classifier"], CLASSIFIER, **options) == f"{hub.url}/{CLASSIFIER}"
    repository = hub.model(CLASSIFIER)
    assert len(repository.history) == 2  # the Hub's own, and this
    assert published(repository) == contents(tmp_path / "dry")
    assert set(published(repository)) == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "recipe.json", "metrics.json"),
        *("roc.png", "contact_sheet.png", "curves.png"),
    }
    assert sum(request.startswith("POST /api/models") and "/commit/" in request for request in hub.requests) == 1
    assert not repository.private and not hub.waits


def test_the_card_is_read_back_and_uses_the_repository(hub, runs):
    push_to_hub(runs["classifier"], CLASSIFIER, base_model=BACKBONE)
    card = ModelCard.load(CLASSIFIER)
    assert card.data.base_model == BACKBONE and card.data.license == "apache-2.0"
    assert card.data.model_name == "lens-dino-vitt8-classifier"
    report = json.loads((runs["classifier"] / "evaluation" / "metrics.json").read_text())
    results = {result.metric_type: result for result in card.data.eval_results}
    for name in ("accuracy", "roc_auc"):
        assert results[name].metric_value == round(report["metrics"][name]["value"], 4)
        assert (results[name].dataset_split, results[name].dataset_revision) == ("test", report["fingerprint"])
    for code in (
        f'pipeline("image-classification", model="{CLASSIFIER}")',
        f'AutoModelForImageClassification.from_pretrained("{CLASSIFIER}")',
        f'pipeline("{CLASSIFIER}")(["object.png", "object.npy"])',
    ):
        assert code in str(card)


def test_a_calibration_is_published_with_its_classifier_and_found_there(hub, runs, tmp_path):
    run = shutil.copytree(runs["classifier"], tmp_path / "run")
    own = hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest()
    numbers = {"a": 0.5, "b": -3.0, "lowest_logit": None, "models": [own], "views": 1, "ranking": str(tmp_path / "r")}
    push_to_hub(run, CLASSIFIER)
    digest = hashlib.sha256(hub.model(CLASSIFIER).files()["model.safetensors"]).hexdigest()
    manifest = {"models": [{"weights_sha256": digest}], "options": {"views": 1}, "input": {}}
    assert calibrations.find(None, [CLASSIFIER], manifest) is None
    (run / "model" / "calibration.json").write_text(json.dumps(numbers))
    push_to_hub(run, CLASSIFIER)
    assert calibrations.find(None, [CLASSIFIER], manifest) == numbers | {"models": [digest], "ranking": "r"}


def test_every_model_of_a_folder_is_pushed(hub, runs, tmp_path, monkeypatch, capsys):
    for kind, repo_id in (("ssl", BACKBONE), ("classifier", CLASSIFIER)):
        folder = tmp_path / "cards" / repo_id.split("/")[1]
        export(runs[kind], folder, name=f"cards/{folder.name}", half=True)
    (tmp_path / "cards" / "results").mkdir()
    own = tmp_path / "cards" / CLASSIFIER.split("/")[1]
    (own / ".env").write_text("HF_TOKEN=hf_secret")
    (own / "notes").mkdir()
    (own / "notes" / "pytorch_model.bin").write_text("")
    (own / "calibration.json").write_text(json.dumps({"ranking": str(tmp_path / "r"), "a": 1.0}))  # of --store_in
    other = shutil.copytree(tmp_path / "cards" / BACKBONE.split("/")[1], tmp_path / "cards" / f"{BACKBONE[3:]}-long")
    scratch = shutil.copytree(own, tmp_path / "cards" / f"{BACKBONE[3:]}-scratch-classifier")
    recipe = json.loads((own / "recipe.json").read_text())
    assert recipe["init"] == "scratch"
    (own / "recipe.json").write_text(json.dumps(recipe | {"init": "cards/lens-dino-vitt8"}))
    push_all(tmp_path / "cards", "me", dry_run=tmp_path / "dry")
    for folder in (other, scratch):  # which only their names connect with the backbone
        assert "base_model" not in (tmp_path / "dry" / folder.name / "README.md").read_text()
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "dry" / folder.name)
    files = contents(tmp_path / "dry" / own.name)
    assert not {".env", "notes/pytorch_model.bin"} & set(files)
    assert json.loads(files["calibration.json"]) == {"ranking": "r", "a": 1.0}
    dry = push_all(tmp_path / "cards", "me", dry_run=tmp_path / "dry")
    assert dry == [str(tmp_path / "dry" / name) for name in ("lens-dino-vitt8", "lens-dino-vitt8-classifier")]
    assert not hub.requests
    assert push_all(tmp_path / "cards", "me") == [f"{hub.url}/{BACKBONE}", f"{hub.url}/{CLASSIFIER}"]
    for repo_id in (BACKBONE, CLASSIFIER):
        assert published(hub.model(repo_id)) == contents(tmp_path / "dry" / repo_id.split("/")[1])
    card = ModelCard.load(CLASSIFIER)
    assert card.data.base_model == BACKBONE and "cards/" not in str(card)
    assert f'pipeline("image-classification", model="{CLASSIFIER}")' in str(card)
    before = len(hub.model(CLASSIFIER).history)
    push_all(tmp_path / "cards", "me")
    assert len(hub.model(CLASSIFIER).history) == before
    monkeypatch.setattr(sys, "argv", ["push", str(tmp_path / "cards"), "--all", "--dry_run", str(tmp_path / "dry")])
    main_of_push()  # the account is that of the token
    assert capsys.readouterr().out.split() == dry
    (tmp_path / "cards").rename(tmp_path / "model_cards")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", "push --all --dry_run published".split())  # as make publish-dry does
    main_of_push()
    assert capsys.readouterr().out.split() == [f"published/{Path(name).name}" for name in dry]
    with pytest.raises(InputError, match=r"holds no model: give a folder of folders that lens-ssl export wrote"):
        push_all(tmp_path / "dry" / "lens-dino-vitt8", "me")
    (tmp_path / "dry" / "lens-dino-vitt8" / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"lens-dino-vitt8 has no metrics.json, and no model is published without"):
        push_all(tmp_path / "dry", "me")


def write_recipe(folder, **values):
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe | values))


def test_every_model_is_what_its_recipe_says(runs, tmp_path):
    cards = tmp_path / "cards"
    for kind, name in (("ssl", "lens-a"), ("ssl", "lens-a-b"), ("classifier", "lens-a-b-classifier")):
        export(runs[kind], cards / name)
    classifier = cards / "lens-a-b-classifier"
    write_recipe(cards / "lens-a", run_id="a")
    write_recipe(cards / "lens-a-b", run_id="b")
    before = {"run_id": "x", "init_run": {"run_id": "a"}}  # a fine-tuning of what the pretraining a made
    for begun, base in (
        ({}, "lens-a-b"),
        ({"init_run": {"run_id": "b"}}, "lens-a-b"),
        ({"init_run": before}, "lens-a"),
        ({"init_recipe": before}, "lens-a"),
        ({"init_run": {"run_id": "c"}}, None),
    ):
        write_recipe(classifier, **{"init": "runs/ssl", "init_run": {}, "init_recipe": {}} | begun)
        push_all(cards, "me", dry_run=tmp_path / "dry")
        found = ModelCard.load(tmp_path / "dry" / classifier.name / "README.md").data.base_model
        assert found == (base and f"me/{base}"), begun
    classifier.rename(cards / "lens-a-c")
    with pytest.raises(InputError, match=r"cards/lens-a-c holds a classifier: call it lens-a-c-classifier$"):
        push_all(cards, "me", dry_run=tmp_path / "dry")
    shutil.rmtree(cards / "lens-a-c")
    (cards / "lens-a").rename(cards / "lens-classifier")
    with pytest.raises(InputError, match=r"cards/lens-classifier holds a backbone: call it lens$"):
        push_all(cards, "me", dry_run=tmp_path / "dry")


def test_a_renamed_export_has_the_card_of_its_new_name(runs, tmp_path):
    export(runs["ssl"], tmp_path / "cards" / "lens", name="cards/lens")  # which is part of many a word
    (tmp_path / "cards" / "lens").rename(tmp_path / "cards" / "lens-new")
    export(runs["ssl"], tmp_path / "as_new", name="me/lens-new")
    push_all(tmp_path / "cards", "me", dry_run=tmp_path / "dry")
    assert contents(tmp_path / "dry" / "lens-new")["README.md"] == contents(tmp_path / "as_new")["README.md"]


@pytest.mark.parametrize("name", ["recipe.json", "metrics.json", "calibration.json", "README.md"])
def test_damaged_exports_are_found_before_the_first_upload(name, hub, folders, tmp_path):
    for model in ("lens-a", "lens-b"):
        shutil.copytree(folders[0], tmp_path / "cards" / model)
    (tmp_path / "cards" / "lens-b" / name).write_bytes(b"---\n{\xff\n---")
    with pytest.raises(InputError, match=rf"cards/lens-b/{name} is damaged: export the run again, or take \S+-b out$"):
        push_all(tmp_path / "cards", "me")
    assert not hub.requests


def test_heads_are_published_on_request(hub, runs):
    push_to_hub(runs["ssl"], BACKBONE)
    assert not any(name.startswith("pretraining/") for name in published(hub.model(BACKBONE)))
    push_to_hub(runs["ssl"], BACKBONE, with_heads=True)
    files = published(hub.model(BACKBONE))
    assert files["pretraining/model.safetensors"] == (runs["ssl"] / "model" / "model.safetensors").read_bytes()
    assert f'AutoModel.from_pretrained("{BACKBONE}", subfolder="pretraining")' in files["README.md"].decode()
    push_to_hub(runs["ssl"], BACKBONE)
    assert not any(name.startswith("pretraining/") for name in published(hub.model(BACKBONE)))
    with pytest.raises(InputError, match="is a fine-tuning run, without SSL heads"):
        push_to_hub(runs["classifier"], CLASSIFIER, with_heads=True)


def test_no_local_path_is_published(hub, tiny_cutouts, tmp_path):
    run = write_classifier_run(tmp_path / "alice" / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["command"] = (
        f"python scripts/run_finetune.py --dataset '{tmp_path}/my data/x.csv' --output_dir={run} --seed 1"
    )
    facts |= {"init": f"{tmp_path}/alice/ssl", "arguments": {"output_dir": str(run), "init": "~/alice/ssl"}}
    (run / "run.json").write_text(json.dumps(facts))
    evaluate_model(run, tiny_cutouts, num_bootstrap=20)
    push_to_hub(run, CLASSIFIER)
    files = published(hub.model(CLASSIFIER))
    for name, content in files.items():
        assert str(tmp_path).encode() not in content and b"alice" not in content, name
    recipe = json.loads(files["recipe.json"])
    assert recipe["command"] == "python scripts/run_finetune.py --dataset x.csv --output_dir=run --seed 1"
    assert recipe["arguments"] == {"output_dir": "run", "init": "ssl"} and recipe["data"] == facts["data"]
    assert recipe["command"] in files["README.md"].decode()
    assert json.loads(files["metrics.json"])["model"] == "run"


def test_a_push_is_repeated_without_a_commit_and_leaves_foreign_files(hub, runs, tmp_path):
    push_to_hub(runs["ssl"], BACKBONE)
    repository = hub.model(BACKBONE)
    push_to_hub(runs["ssl"], BACKBONE)
    assert len(repository.history) == 2
    repository.add("main", {**repository.files(), "notes.md": b"mine", "model-00001-of-00002.safetensors": b"old"})
    push_to_hub(runs["ssl"], BACKBONE, license="cc-by-4.0")
    assert len(repository.history) == 4
    assert repository.files()["notes.md"] == b"mine"
    assert "model-00001-of-00002.safetensors" not in repository.files()  # transformers could read it


# Trouble

ROUTES = (
    *("GET /api/models/me", "POST /api/repos/create", "POST /api/validate-yaml"),
    *("/preupload/", "/objects/batch", "PUT /lfs/", "/commit/"),
)


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    """A folder to upload, and another version of it, with more files."""
    folder = tmp_path_factory.mktemp("folders")
    export(runs["ssl"], folder / "one", name=BACKBONE)
    export(runs["ssl"], folder / "two", name=BACKBONE, license="cc-by-4.0", with_heads=True)
    return folder / "one", folder / "two"


def send(folder, **options):
    return upload(folder, BACKBONE, "model", is_of_export, **options)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("trouble", "waits"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, (7, 8)),  # huggingface_hub adds a second to its own
        ({"status": 429, "headers": {"RateLimit": '"api";r=0;t=9'}}, (9, 10)),
        ({"status": 500}, (1,)),
        ({"reset": 0}, (1,)),
        ({"lose_answer": True}, (1,)),
    ],
)
def test_trouble_that_passes_is_waited_for(route, trouble, waits, hub, folders):
    hub.troubles.append(Trouble(route, **trouble))
    send(folders[0])
    assert len(hub.waits) == 1 and hub.waits[0] in waits
    assert len(hub.model(BACKBONE).history) == 2
    assert published(hub.model(BACKBONE)) == contents(folders[0])


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (("PUT /lfs/", {"reset": 20_000}), r"the connection to http://127\S+ failed \(.+\): nothing was published"),
        (("PUT /lfs/", {"damage": True}), r"refuses me/lens-dino-vitt8 \(400, BadDigest: .*\): nothing was publi"),
        (("PUT /lfs/", {"status": 503}), "cannot take me/lens-dino-vitt8 just now .*503.*run the same command"),
        (("/commit/", {"status": 500}), "cannot take me/lens-dino-vitt8 just now .*500"),
        (("/preupload/", {"status": 403}), r"may not write to me/lens-dino-vitt8 \(403\): log in with one that"),
        (("/commit/", {"status": 401}), r"does not accept your token for me/lens-dino-vitt8 \(401\): log in ag"),
        (("/commit/", {"status": 429, "headers": {"Retry-After": "4000"}}), "cannot take .* just now .*429"),
    ],
)
def test_a_push_that_fails_leaves_the_hub_as_it_was(trouble, message, existing, hub, folders):
    if existing:
        send(folders[0])
        hub.objects.clear()
    hub.troubles.append(Trouble(trouble[0], times=99, **trouble[1]))
    with pytest.raises(InputError, match=message) as refused:
        send(folders[1])
    assert WRITER not in str(refused.value)
    assert all(wait <= LONGEST_WAIT for wait in hub.waits)
    if existing:
        assert published(hub.model(BACKBONE)) == contents(folders[0]) and len(hub.model(BACKBONE).history) == 2
    else:
        assert not hub.repositories
    hub.troubles.clear()
    send(folders[1])
    assert published(hub.model(BACKBONE)) == contents(folders[1])
    assert len(hub.model(BACKBONE).history) == 2 + existing


@pytest.mark.parametrize("revision", [None, "next"])
@pytest.mark.parametrize("route", ["POST /api/repos/create", "POST /api/models/.*/branch/"])
@pytest.mark.parametrize("trouble", [{"call": _thread.interrupt_main}, {"lose_answer": True}])
def test_what_was_made_while_it_was_interrupted_is_taken_back(trouble, route, revision, hub, folders):
    """The repository or the branch is there though the push never saw the answer."""
    hub.troubles += [Trouble(route, **trouble), Trouble("/commit/", 9, status=403)]
    with pytest.raises((KeyboardInterrupt, InputError)):
        send(folders[0], revision=revision)
    assert not hub.repositories


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_push_leaves_the_hub_as_it_was(existing, hub, folders):
    if existing:
        send(folders[0])
        hub.objects.clear()
    hub.troubles.append(Trouble("PUT /lfs/", call=_thread.interrupt_main))
    with pytest.raises(KeyboardInterrupt):
        send(folders[1], revision="next")
    if existing:
        assert hub.model(BACKBONE).branches.keys() == {"main"} and len(hub.model(BACKBONE).history) == 2
    else:
        assert not hub.repositories


def test_a_commit_of_somebody_else_is_kept(hub, folders):
    send(folders[0])
    repository = hub.model(BACKBONE)
    new = {"theirs.txt": b"new", "config.json": b"{}"}  # the latter is the same in both folders
    theirs = Trouble("/commit/", call=lambda: repository.add("main", repository.files() | new))
    hub.troubles.append(theirs)
    send(folders[1])
    assert theirs.times == 0 and len(repository.history) == 4
    assert published(repository) == {**contents(folders[1]), "theirs.txt": b"new"}


# Where to


def test_a_revision_is_a_branch_that_is_made(hub, folders):
    assert send(folders[0], revision="v2") == f"{hub.url}/{BACKBONE}/tree/v2"
    repository = hub.model(BACKBONE)
    assert published(repository, "v2") == contents(folders[0]) and not published(repository)
    send(folders[0], revision="v2")
    assert len(repository.history) == 2
    hub.troubles.append(Trouble("/commit/", 99, status=403))
    with pytest.raises(InputError, match="403"):
        send(folders[0], revision="v3")
    assert repository.branches.keys() == {"main", "v2"}


def test_a_private_repository(hub, folders):
    send(folders[0], private=True)
    assert hub.model(BACKBONE).private
    send(folders[1], private=True)
    hub.model(BACKBONE).private = False
    with pytest.raises(InputError, match=f"{BACKBONE} is on the Hub already and is public: make it private"):
        send(folders[0], private=True)
    assert published(hub.model(BACKBONE)) == contents(folders[1])


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, BACKBONE, r"no Hugging Face token is at hand: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", BACKBONE, r"does not accept your token for me/lens-dino-vitt8 \(401\)"),
        (READER, BACKBONE, r"your token may not write to me/lens-dino-vitt8 \(403\)"),
        (WRITER, "you/lens", r"your token may not write to you/lens \(403\)"),
        (WRITER, "lens", "repo_id lens names no account: give me/lens"),
        (WRITER, "me/le ns", "'me/le ns' is no id of the Hub"),
        (WRITER, CLASSIFIER, f"{CLASSIFIER} is for a classifier and the run is a backbone: give {BACKBONE}"),
    ],
)
def test_what_cannot_be_pushed_is_refused(token, repo_id, message, hub, runs, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=message):
        push_to_hub(runs["ssl"], repo_id)
    assert not hub.repositories and not hub.waits


def test_a_classifier_goes_to_a_repository_that_says_so(hub, runs):
    with pytest.raises(InputError, match=f"give {CLASSIFIER}"):
        push_to_hub(runs["classifier"], BACKBONE)


def test_no_card_without_numbers(hub, tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "command": "python scripts/run_ssl.py --dataset my_cutouts"}))
    command = f"lens-ssl evaluate {run} --dataset my_cutouts"
    for dry_run in (None, tmp_path / "dry"):
        with pytest.raises(InputError, match=f"has not been evaluated, .*: run {command}$"):
            push_to_hub(run, BACKBONE, dry_run=dry_run)
    assert not hub.repositories and not (tmp_path / "dry").exists()


def test_the_command_that_is_missing_names_the_runs_own_dataset(tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    for command, wanted in (
        (
            "lens-ssl pretrain --epochs 9 --dataset=x --train_size=9 --bands g r",
            "--dataset=x --train_size=9 --bands g r$",
        ),
        ("lens-ssl pretrain --config x.yaml --bands g r", "lens-ssl evaluate .* --bands g r --dataset CUTOUTS$"),
        (None, r"call lens_ssl_hf\.evaluate\(.*, cutouts\) with the cutouts that it was trained on$"),
    ):
        (run / "run.json").write_text(json.dumps({**facts, "command": command}))
        with pytest.raises(InputError, match=wanted):
            push_to_hub(run, BACKBONE, dry_run=tmp_path / "dry")


def test_offline_is_said(hub, runs, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: unset it to publish"):
        push_to_hub(runs["ssl"], BACKBONE)
    assert not hub.waits


# Datasets


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return load_cutouts("simulated", cache_dir=str(tmp_path_factory.mktemp("cache")), **SMALL)


def test_a_data_set_is_pushed_and_comes_back_as_it_was(hub, simulated, tmp_path):
    push_dataset(simulated, "me/lenses", dry_run=tmp_path / "dry")
    assert push_dataset(simulated, "me/lenses") == f"{hub.url}/datasets/me/lenses"
    repository = hub.dataset("me/lenses")
    assert published(repository) == contents(tmp_path / "dry")
    push_dataset(simulated, "me/lenses")
    assert len(repository.history) == 2

    for source in ("me/lenses", str(tmp_path / "dry")):
        again = load_cutouts(source, cache_dir=str(tmp_path / "cache"))
        assert again.keys() == simulated.keys()
        for name, split in simulated.items():
            assert again[name].features == split.features and again[name].column_names == split.column_names
            np.testing.assert_array_equal(np.array(again[name]["pixels"]), np.array(split["pixels"]))
            assert again[name]["id"][:] == split["id"][:]
        info = cutout_info(again)
        assert vars(info) == vars(cutout_info(simulated)) | {"name": "me/lenses"}

    shown = datasets.load_dataset(str(tmp_path / "dry"), cache_dir=str(tmp_path / "cache"))["train"]
    assert shown.column_names[0] == "image" and isinstance(shown.features["image"], datasets.Image)
    picture = np.asarray(shown[3]["image"])
    np.testing.assert_array_equal(picture, colour_image(np.array(shown[3]["pixels"]), info.bands))

    # Other cutouts replace the old files; both would be loaded otherwise.
    fewer = datasets.DatasetDict(simulated | {"train": simulated["train"].select(range(6))})
    push_dataset(fewer, "me/lenses")
    assert sum(name.startswith("data/train") for name in repository.files()) == 1
    assert len(load_cutouts("me/lenses", cache_dir=str(tmp_path / "cache"))["train"]) == 6


def test_no_local_path_of_a_data_set_is_published(simulated, tmp_path):
    train, test = simulated["train"].select([3, 1, 2]), simulated["test"].select([0, 1])
    columns = {
        "id": (["/home/bob/a/0.fits", "/home/bob/b/0.fits", "a/1"], ["/home/bob/c/0.fits", "2024/05/01"]),
        "group": (["/scratch/bob/x", "/scratch/bob/y", ""], ["/scratch/bob/y", "a/b"]),
        "note": (["reduced from /scratch/bob/0.fits", None, "5 km/s"], ["https://x.org/a?b=/home/bob", "~5/6"]),
    }
    for name, values in columns.items():
        train, test = (
            split.remove_columns(name if name in split.column_names else []).add_column(name, list(texts))
            for split, texts in zip((train, test), values, strict=True)
        )
    train, test = (
        split.add_column("made", [{"of": [f"/scratch/bob/{i}.fits"], "at": 1 / 3}] * len(split))
        for i, split in enumerate((train, test))
    )
    push_dataset(datasets.DatasetDict(train=train, test=test), "me/lenses", dry_run=tmp_path / "dry")
    again = load_cutouts(str(tmp_path / "dry"), cache_dir=str(tmp_path / "cache"))
    ids = [*again["train"]["id"], *again["test"]["id"]]
    assert [name.replace("-", ".").split(".")[0] for name in ids] == ["0", "0", "a/1", "0", "2024/05/01"]
    assert len(set(ids)) == 5
    assert [*again["train"]["group"], *again["test"]["group"]] == ["x", "y", "", "y", "a/b"]
    assert again["train"]["note"][:] == ["reduced from 0.fits", None, "5 km/s"]
    assert again["test"]["note"][:] == columns["note"][1]
    assert again["train"]["made"][:] == [{"of": ["0.fits"], "at": 1 / 3}] * 3
    assert again["train"].column_names == train.column_names and again["train"].features == train.features
    np.testing.assert_array_equal(np.array(again["train"]["pixels"]), np.array(train["pixels"]))


def test_the_card_of_a_data_set(hub, simulated):
    push_dataset(simulated, "me/lenses")
    card = huggingface_hub.DatasetCard.load("me/lenses")
    assert card.data.license == "apache-2.0" and card.data.size_categories == ["n<1K"]
    assert "simulated-data" in card.data.tags and card.data.configs[0]["data_files"][0]["path"] == "data/train-*"
    text = card.content
    assert "> **Simulated cutouts, not observed ones.**" in text and "| unlabelled | 0 | 0 | 2 |" in text
    lenses = sum(simulated["train"]["label"])
    assert f"| train | {lenses} | {8 - lenses} | 0 |" in text
    assert 'load_dataset("me/lenses")' in text and cutout_info(simulated).fingerprint in text
    assert all(f"| `{name}` | " in text for name in ("image", *simulated["train"].column_names))
    assert "{{" not in text and "None" not in text


def test_cutouts_of_a_survey_need_a_licence(hub, tmp_path):
    for kind in ("lenses", "nonlenses"):
        (tmp_path / "survey" / kind).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number + 10 * len(kind)).normal(size=(4, 40, 40)).astype(np.float32)
            pixels[:, 15:25, 15:25] += 9
            np.save(tmp_path / "survey" / kind / f"{number}.npy", pixels)
    cutouts = load_cutouts(tmp_path / "survey", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="a licence for me/survey is missing: give the one that its owners allow"):
        push_dataset(cutouts, "me/survey")
    with pytest.raises(InputError, match=r'me/survey failed \(.*"license" must be one of'):
        push_dataset(cutouts, "me/survey", license="no such licence")
    assert not hub.repositories
    push_dataset(cutouts, "me/survey", license="cc-by-4.0", origin="Survey DR1")
    card = huggingface_hub.DatasetCard.load("me/survey")
    assert card.data.license == "cc-by-4.0" and "| Origin | Survey DR1 |" in card.content
    assert "Simulated" not in card.content


def test_a_model_names_the_data_set_that_it_was_trained_on(hub, runs, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["data"]["name"] = "me/lenses"
    (run / "run.json").write_text(json.dumps(facts))
    evaluate_model(run, ({"test": make_split(48, 2)}, facts["data"]), num_bootstrap=20)
    push_to_hub(run, CLASSIFIER)
    card = ModelCard.load(CLASSIFIER)
    assert card.data.datasets == ["me/lenses"]
    assert {result.dataset_type for result in card.data.eval_results} == {"me/lenses"}


def test_the_package_reads_private_models_and_data_sets(hub, runs, simulated, tmp_path, monkeypatch):
    push_to_hub(runs["ssl"], BACKBONE, with_heads=True, private=True)
    push_to_hub(runs["classifier"], CLASSIFIER, private=True)
    push_dataset(simulated, "me/lenses", private=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    split = make_split(2, 0)
    scores = [{one["label"]: one["score"] for one in result} for result in pipeline(CLASSIFIER)(split.pixels)]
    expected = predict(runs["classifier"], split).score
    assert [score["lens"] for score in scores] == pytest.approx(expected, abs=1e-5)
    heads, loading = AutoModel.from_pretrained(BACKBONE, subfolder="pretraining", output_loading_info=True)
    assert isinstance(heads, DinoForPreTraining) and not loading["missing_keys"] and not loading["unexpected_keys"]
    assert load_encoder(BACKBONE).config.cutouts == heads.config.cutouts
    assert (
        load_cutouts("me/lenses", cache_dir=str(tmp_path / "cache"))["train"]["id"][:] == simulated["train"]["id"][:]
    )
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"me/lenses is neither .* or log in if it is private"):
        load_cutouts("me/lenses", cache_dir=str(tmp_path / "other_cache"))


@pytest.mark.parametrize("method", METHODS)
def test_ssl_models_pushed_by_transformers_come_back_to_the_bit(method, hub, tmp_path):
    model = AutoModel.from_pretrained(write_pretrain_run(tmp_path, method) / "model")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a teacher that is not the student, and centres other than zero
        for value in model.state_dict().values():
            value.add_(torch.randint(1, 9, value.shape, generator=generator).to(value.dtype))
    model.push_to_hub("me/lens-ssl", private=True)
    loaded, loading = AutoModel.from_pretrained("me/lens-ssl", output_loading_info=True)
    assert type(loaded) is METHODS[method] and not any(loading.values())
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters() if name.startswith("teacher.")]


@pytest.mark.parametrize("trouble", [None, "offline", "no recipe", "foreign", 500])
def test_what_begins_on_the_hub_has_the_history_of_what_is_there(trouble, hub, runs, tmp_path, monkeypatch):
    """A collapsed pretraining that went on from somebody's ViT, which was pushed, is fine-tuned."""
    before = shutil.copytree(runs["ssl"], tmp_path / "ssl")
    facts = json.loads((before / "run.json").read_text())
    facts |= {"init": "somebody/vit", "init_method": "pretrained", "collapsed": True, "run_id": "ssl"}
    (before / "run.json").write_text(json.dumps(facts))
    push_to_hub(before, BACKBONE)
    repository, encoder = hub.model(BACKBONE), load_encoder(BACKBONE)
    if trouble == "offline":  # it is in the cache
        find_file(BACKBONE, "recipe.json")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif trouble == 500:
        hub.troubles.append(Trouble("recipe.json", 99, status=500))
    elif trouble:
        files = {name: data for name, data in repository.files().items() if name != "recipe.json"}
        repository.add("main", files | ({"recipe.json": b'{"task": "cook"}'} if trouble == "foreign" else {}))
    found = origin(BACKBONE, encoder)
    assert found["init_method"] == "dino"
    run = write_classifier_run(tmp_path / "run")
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | found))
    card = CardFacts.from_run(run, "lens-toy-classifier")
    assert (card.base_model, card.metadata().license) == (BACKBONE, None)
    if trouble in (None, "offline"):
        assert found["init_recipe"]["run_id"] == "ssl" and found["init_revision"] == repository.history[-1]
        assert card.collapsed and "those of `somebody/vit`, **whose licence holds" in str(render_card(card))
    else:
        assert not {"init_recipe", "init_revision"} & set(found)
        assert f"those of `{BACKBONE}`, **whose licence holds" in str(render_card(card))


# In processes of their own


def run_python(arguments, server, cache, token=None, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    environment.pop("HF_TOKEN", None)
    environment |= server.environment(cache, token)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_what_was_pushed_is_used_where_the_package_does_not_exist(hub, runs, simulated, tmp_path):
    push_to_hub(runs["ssl"], BACKBONE)
    push_to_hub(runs["classifier"], CLASSIFIER)
    push_dataset(simulated, "me/lenses")
    split = make_split(2, 0)
    np.save(tmp_path / "cutout.npy", split.pixels[0].numpy())
    code = f"""
import sys
sys.modules["lens_ssl_hf"] = None  # importing it fails
import numpy as np
from datasets import load_dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
pixels = np.load({str(tmp_path / "cutout.npy")!r})
picture = np.moveaxis(pixels.round().astype("uint8"), 0, -1)
Image.fromarray(picture).save({str(tmp_path / "cutout.png")!r})
model, loading = AutoModel.from_pretrained({BACKBONE!r}, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"]
processor = AutoImageProcessor.from_pretrained({CLASSIFIER!r})
model = AutoModelForImageClassification.from_pretrained({CLASSIFIER!r})
print(model(**processor(pixels, return_tensors="pt")).logits.softmax(-1)[0, 1].item())
classify = pipeline("image-classification", model={CLASSIFIER!r})
for result in (classify(pixels), classify({str(tmp_path / "cutout.png")!r})):
    print(next(r["score"] for r in result if r["label"] == "lens"))
cutouts = load_dataset("me/lenses").with_format("numpy")
print(cutouts["train"][0]["pixels"].sum(), *map(len, cutouts.values()), cutouts["test"].features["label"])
"""
    done = run_python(["-I", "-c", code], hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    *scores, last = done.stdout.splitlines()
    expected = predict(runs["classifier"], split).score[0]
    assert [float(score) for score in scores[:2]] == pytest.approx([expected] * 2, abs=1e-5)
    assert float(scores[2]) == pytest.approx(expected, abs=0.02)  # 8 bits
    assert float(last.split()[0]) == pytest.approx(np.array(simulated["train"][0]["pixels"]).sum(), rel=1e-5)
    assert "8 4 4 2 ClassLabel(names=['nonlens', 'lens'])" in last


@pytest.mark.slow
def test_the_script_pushes(hub, runs, tmp_path):
    command = ["scripts/push_to_hub.py", str(runs["ssl"]), "--repo_id", BACKBONE]
    refused = run_python(command, hub, tmp_path / "home")
    assert refused.returncode == 2 and refused.stderr.startswith(
        "error: no Hugging Face token is at hand: log in with"
    )
    done = run_python([*command, "--private"], hub, tmp_path / "home", WRITER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/{BACKBONE}" and hub.model(BACKBONE).private
    assert WRITER not in done.stdout + done.stderr
    export(runs["ssl"], tmp_path / "export", name=BACKBONE)
    assert published(hub.model(BACKBONE)) == contents(tmp_path / "export")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "repo_id"),
    [
        ("run_ssl.py", "--method simsiam --backbone vitt8 --epochs 1 --batch_size 48 --eval_every 1", BACKBONE),
        ("run_finetune.py", "--backbone vitt8 --steps 2 --eval_every 1", CLASSIFIER),
    ],
)
def test_training_pushes_when_it_is_done(script, options, repo_id, hub, tiny_cutouts, tmp_path):
    data, out = save_toy(tiny_cutouts, tmp_path / "cutouts"), tmp_path / "out"
    command = [f"scripts/{script}", *options.split(), "--precision", "fp32", "--dataset", str(data)]
    command += ["--output_dir", str(out), "--push_to_hub"]
    wrong = BACKBONE if repo_id == CLASSIFIER else CLASSIFIER
    refused = run_python([*command, wrong], hub, tmp_path / "home", WRITER)
    assert refused.returncode == 2 and not out.exists()  # before the training
    hub.troubles.append(Trouble("/commit/", 99, status=403))
    failed = run_python([*command, repo_id], hub, tmp_path / "home", WRITER)
    assert failed.returncode == 2 and f"the run {out} is done and kept but not published: your token" in failed.stderr
    assert "Traceback" not in failed.stderr and not hub.repositories
    hub.troubles.clear()
    done = run_python([*command, repo_id, "--resume", "auto"], hub, tmp_path / "home", WRITER)
    assert done.returncode == 0, done.stderr
    assert "is finished already" in done.stdout and f"{hub.url}/{repo_id}" in done.stdout
    assert {"model.safetensors", "metrics.json", "roc.png"} <= hub.model(repo_id).files().keys()


@pytest.mark.slow
def test_the_data_set_script_pushes(hub, tmp_path):
    sizes = [f"--{name}={value}" for name, value in SMALL.items()]
    command = ["scripts/push_dataset.py", "--repo_id", "me/lenses", "--dataset", "simulated", *sizes]
    command += ["--cache_dir", str(tmp_path / "cache")]
    dry = run_python([*command, "--dry_run", str(tmp_path / "dry")], hub, tmp_path / "home")
    assert dry.returncode == 0, dry.stderr
    done = run_python(command, hub, tmp_path / "home", WRITER)
    assert done.returncode == 0, done.stderr
    assert published(hub.dataset("me/lenses")) == contents(tmp_path / "dry")


# Spaces


def test_a_space_is_one_commit_of_what_a_dry_run_writes(hub, runs, tiny_cutouts, tmp_path):
    arguments = (runs["classifier"], tiny_cutouts, "me/lens-space")
    assert push_space(*arguments, dry_run=tmp_path / "dry") == str(tmp_path / "dry") and not hub.requests
    assert push_space(*arguments) == f"{hub.url}/spaces/me/lens-space"
    space = hub.space("me/lens-space")
    assert published(space) == contents(tmp_path / "dry") and len(space.history) == 2  # the first made the repository
    # What the user added stays, what an earlier version had goes.
    space.add("main", {**space.files(), "logo.svg": b"mine", "examples/old.fits": b"old"})
    push_space(*arguments)
    assert published(space) == {**contents(tmp_path / "dry"), "logo.svg": b"mine"}
    with pytest.raises(InputError, match="log in with"):
        with pytest.MonkeyPatch.context() as without_token:
            without_token.delenv("HF_TOKEN")
            push_space(*arguments)


@pytest.mark.slow
def test_a_space_of_a_published_model_loads_the_revision_that_was_calibrated(hub, runs, tiny_cutouts, tmp_path):
    push_to_hub(runs["classifier"], CLASSIFIER)
    model = hub.model(CLASSIFIER)
    data = save_toy(tiny_cutouts, tmp_path / "cutouts")
    command = ["scripts/push_space.py", "--model", CLASSIFIER, "--dataset", str(data), "--repo_id", "me/lens-space"]
    dry = run_python([*command, "--dry-run", str(tmp_path / "dry")], hub, tmp_path / "home")
    assert dry.returncode == 0, dry.stderr
    done = run_python([*command, "--private"], hub, tmp_path / "home", WRITER)
    assert done.returncode == 0 and WRITER not in done.stdout + done.stderr, done.stderr
    assert published(hub.space("me/lens-space")) == contents(tmp_path / "dry") and hub.space("me/lens-space").private
    facts = json.loads((tmp_path / "dry" / "space.json").read_text())
    assert (facts["model"], facts["revision"]) == (CLASSIFIER, model.branches["main"])
    assert not (tmp_path / "dry" / "model").exists()
    assert f"models:\n- {CLASSIFIER}\n" in (tmp_path / "dry" / "README.md").read_text()
    # Other weights are pushed; the Space goes on with those that its calibration was counted for.
    weights = safetensors.torch.load(model.files()["model.safetensors"])
    weights |= {name: -value for name, value in weights.items() if name.startswith("classifier.")}
    other = safetensors.torch.save(weights, {"format": "pt"})  # which says 1 - P(lens)
    model.add("main", {**model.files(), "model.safetensors": other})
    code = "import sys; from pathlib import Path; from lens_ssl_hf.space.finder import Finder\n"
    code += "space = Path(sys.argv[1]); print(Finder(space).look(space / 'examples' / 'lens-1.png').score)"
    looked = run_python(["-c", code, str(tmp_path / "dry")], hub, tmp_path / "other_home")
    assert looked.returncode == 0, looked.stderr
    scores = predict(runs["classifier"], tiny_cutouts)
    expected = scores.score[scores.label == 1][0]
    assert float(looked.stdout) == pytest.approx(expected, abs=0.05) and abs(expected - 0.5) > 0.1  # 8 bits
