"""Prediction equals the pipeline's; evaluation writes what it promises and refuses what it cannot measure."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import STRETCH, at_most, make_split, save_toy
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tiny_runs import write_classifier_run, write_pretrain_run
from transformers import AutoImageProcessor, ViTForImageClassification, pipeline

from lens_ssl_hf import InputError, evaluate_model, export, finetune, load_cutouts, predict, save_cutouts
from lens_ssl_hf.commands import evaluate as evaluate_command
from lens_ssl_hf.data.info import CutoutInfo
from lens_ssl_hf.data.tensors import CutoutTensors, as_tensors, split_checksum
from lens_ssl_hf.evaluation import plots
from lens_ssl_hf.evaluation.pictures import colour_image
from lens_ssl_hf.evaluation.plots import contact_sheet, plot_curves, plot_roc
from lens_ssl_hf.evaluation.predictions import Predictions
from lens_ssl_hf.evaluation.probes import extract_features, linear_probe
from lens_ssl_hf.hub.card import read_evaluation
from lens_ssl_hf.models.backbones import load_encoder
from lens_ssl_hf.quoting import in_figure


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_classifier_run(tmp_path_factory.mktemp("runs") / "classifier")


@pytest.fixture(scope="module")
def report(run, tiny_cutouts):
    return evaluate_model(run, tiny_cutouts, num_bootstrap=50)


def test_scores_equal_those_of_the_pipeline(run):
    split = make_split(9, seed=3, side=41)  # odd margins
    scores = predict(run, split, batch_size=4).score
    results = pipeline("image-classification", model=str(run / "model"))([image.numpy() for image in split.pixels])
    expected = [next(r["score"] for r in result if r["label"] == "lens") for result in results]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.std() > 0.05  # a constant would pass, too


def test_predict_takes_a_run_a_folder_a_loaded_model_and_any_form_of_data(run, tiny_cutouts, tmp_path):
    split = tiny_cutouts[0]["test"]
    scores = predict(run, split).score
    model = ViTForImageClassification.from_pretrained(run / "model")
    processor = AutoImageProcessor.from_pretrained(run / "model")
    path = save_toy(tiny_cutouts, tmp_path / "toy")
    for source, cutouts in ((run / "model", tiny_cutouts), ((model, processor), path), (str(run), path)):
        found = predict(source, cutouts)
        assert np.array_equal(found.score, scores) and found.id == split.ids


def test_evaluation_writes_its_files(run, report, tiny_cutouts):
    folder = run / "evaluation"
    assert json.loads((folder / "metrics.json").read_text()) == report
    names = {"metrics.json", "predictions.parquet", "roc.png", "contact_sheet.png"}
    assert {file.name for file in folder.iterdir()} == names
    predictions, split = Predictions.load(folder / "predictions.parquet"), tiny_cutouts[0]["test"]
    assert predictions.id == split.ids and predictions.subclass == split.subclasses
    assert report["metrics"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(predictions.label, predictions.score))
    assert report["dataset"] == "toy" and report["num_nonlenses"] == 24 and report["warnings"] == []
    assert "auc_vs_field" in report["metrics"]


def test_a_report_names_the_split_that_was_measured(run, report, tiny_cutouts, tmp_path):
    from datasets import Dataset

    split = tiny_cutouts[0]["validation"]
    columns = {"pixels": split.pixels.numpy(), "label": split.labels.tolist(), "id": split.ids}
    dataset = Dataset.from_dict(columns, split="validation")
    assert report["split"] == "test"
    assert evaluate_model(run, dataset, tmp_path, num_bootstrap=0)["split"] == "validation"
    assert evaluate_model(run, split, tmp_path, num_bootstrap=0)["split"] is None


@pytest.mark.parametrize("name", ["a.parquet", "a.png"])
def test_a_full_disk_leaves_nothing_half_written(name, report, run, tmp_path):
    predictions = Predictions.load(run / "evaluation" / "predictions.parquet")
    with at_most(1000), pytest.raises(InputError, match=rf"cannot write .*{name}"):
        if name == "a.png":
            plot_roc({"classifier": predictions}, tmp_path / name)
        else:
            predictions.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_only_the_split_that_is_measured_is_read_and_once(run, tiny_cutouts, tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict

    from lens_ssl_hf.data.info import CutoutInfo
    from lens_ssl_hf.evaluation import evaluate as evaluation
    from lens_ssl_hf.inference import classifier

    splits, info = tiny_cutouts
    cutouts = DatasetDict()
    for name, split in splits.items():
        columns = {"pixels": split.pixels.numpy(), "label": split.labels.tolist(), "id": split.ids}
        cutouts[name] = Dataset.from_dict(columns)
        cutouts[name].info.description = CutoutInfo(**info).to_json()
    converted, as_tensors = [], evaluation.as_tensors

    def spy(split):
        converted.extend([split] if isinstance(split, Dataset) else [])
        return as_tensors(split)

    for module in (evaluation, classifier):
        monkeypatch.setattr(module, "as_tensors", spy)
    assert evaluate_model(run, cutouts, tmp_path, num_bootstrap=0)["num_lenses"] == 24
    assert len(converted) == 1 and converted[0] is cutouts["test"]


def test_only_the_test_split_of_its_own_dataset_is_the_evaluation_of_a_run(tiny_cutouts, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    own = evaluate_model(run, tiny_cutouts, num_bootstrap=20)
    splits, info = tiny_cutouts
    evaluate_model(run, tiny_cutouts, split="validation", num_bootstrap=0)
    for fingerprint in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        evaluate_model(run, (splits, {**info, "name": "other / survey", "fingerprint": fingerprint}), num_bootstrap=0)
    evaluate_model(run, splits["test"], num_bootstrap=0)  # nobody knows of what it is
    names = ("other_survey-aaaaaaaa", "other_survey-bbbbbbbb", "unnamed", "validation")
    assert sorted(path.name for path in run.glob("evaluation*")) == ["evaluation", *(f"evaluation-{n}" for n in names)]
    assert read_evaluation(run)["metrics"] == own["metrics"]
    # and one of another dataset that was written there is not taken for it
    evaluate_model(run, (splits, {**info, "fingerprint": "c"}), run / "evaluation", num_bootstrap=0)
    assert read_evaluation(run) is None
    folder = export(run, tmp_path / "lens-toy-classifier")
    assert "has not been evaluated" in (folder / "README.md").read_text() and not (folder / "roc.png").exists()


@pytest.mark.parametrize("write", [write_classifier_run, write_pretrain_run])
def test_a_part_of_the_test_split_is_not_taken_for_the_whole(write, tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    columns = {
        name: {"pixels": split.pixels.numpy(), "label": split.labels.tolist(), "id": split.ids}
        for name, split in splits.items()
    }
    cutouts = datasets.DatasetDict({name: datasets.Dataset.from_dict(one) for name, one in columns.items()})
    for name, split in cutouts.items():
        split.info.description = CutoutInfo(**info).to_json()
        split.info.splits = datasets.SplitDict({name: datasets.SplitInfo(name, num_examples=len(split))})
    run = write(tmp_path / "run")
    evaluate_model(run, cutouts, num_bootstrap=0)
    for rows in (range(10), range(10, 20)):
        part = datasets.DatasetDict(cutouts)
        part["test"] = part["test"].select(rows)
        assert evaluate_model(run, part, num_bootstrap=0)["split"].startswith("test_10_of_48_")
    evaluations = sorted(run.glob("evaluation*"))
    assert [path.name[:25] for path in evaluations] == ["evaluation", *["evaluation-test_10_of_48_"] * 2]
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["split"] == "test"


def test_predictions_carry_the_columns_of_the_dataset(run, tiny_cutouts, tmp_path):
    split = tiny_cutouts[0]["test"]
    count = len(split)
    columns = {"pixels": split.pixels.numpy(), "label": [-1] * count, "id": [f"={i}" for i in range(count)]}
    columns |= {"ra": [1.5 * i for i in range(count)], "dec": [None] * count, "seeing": [[1.0]] * count}
    columns |= {"object": [2**60 + i for i in range(count)], "field": [f"-{i}" for i in range(count)]}
    cutouts = datasets.DatasetDict(unlabelled=datasets.Dataset.from_dict(columns))
    cutouts["unlabelled"].info.description = CutoutInfo(**tiny_cutouts[1]).to_json()
    found = predict(run, cutouts)  # the only split
    assert found.columns == {name: columns[name] for name in ("ra", "object", "field")}
    again = Predictions.load(found.save(tmp_path / "a.parquet"))
    assert again.id == columns["id"] and again.columns == found.columns
    with pytest.raises(InputError, match=r"as \.parquet, not a\.csv"):
        found.save(tmp_path / "a.csv")
    with pytest.raises(InputError, match="none of the cutouts has a label"):
        evaluate_model(run, cutouts)


def test_evaluations_of_one_run_at_the_same_time_do_not_mix(tiny_cutouts, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: evaluate_model(run, tiny_cutouts, num_bootstrap=10, seed=seed), range(4)))
    names = {"metrics.json", "predictions.parquet", "roc.png", "contact_sheet.png"}
    assert {file.name for file in (run / "evaluation").iterdir()} == names
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["seed"] in range(4)


def test_evaluation_can_start_from_predictions(run, report, tmp_path):
    again = evaluate_model(run / "evaluation" / "predictions.parquet", output_dir=tmp_path / "again", num_bootstrap=50)
    assert again["metrics"] == report["metrics"]
    assert (tmp_path / "again" / "roc.png").is_file() and not (tmp_path / "again" / "contact_sheet.png").exists()


def test_the_command_takes_cutouts_beside_predictions(run, report, tiny_cutouts, tmp_path, monkeypatch, capsys):
    def evaluated(*words):
        file = run / "evaluation" / "predictions.parquet"
        line = ["lens-ssl evaluate", str(file), "--eval_dir", str(tmp_path / "out"), "--num_bootstrap", "0", *words]
        monkeypatch.setattr(sys, "argv", line)
        evaluate_command.main()
        return {file.name for file in (tmp_path / "out").iterdir()}

    assert "contact_sheet.png" not in evaluated()
    with pytest.raises(SystemExit):
        evaluated("--split", "test")
    cutouts = ["--dataset", str(save_toy(tiny_cutouts, tmp_path / "toy")), "--cache_dir", str(tmp_path / "cache")]
    assert "contact_sheet.png" in evaluated(*cutouts)
    with pytest.raises(SystemExit):
        evaluated(*cutouts, "--split", "validation")
    errors = capsys.readouterr().err
    assert "--split is one of a dataset" in errors and "not of these cutouts (the ids differ)" in errors


def test_a_table_of_predictions_that_pandas_wrote_is_read(tmp_path):
    """With numbers for names, and with None or NaN for what is empty."""
    own = {"id": [7, 8, 9], "label": [1.0, 0.0, -1.0], "score": [0.9, 0.2, 0.4]}

    def loaded(**columns):
        pyarrow.parquet.write_table(pyarrow.table({**own, **columns}), tmp_path / "p.parquet")
        return Predictions.load(tmp_path / "p.parquet")

    found = loaded(group=[None, "a", ""], subclass=[None, "spiral", ""])
    assert (found.id, found.group, found.subclass) == (["7", "8", "9"], ["7", "a", ""], ["", "spiral", ""])
    assert found.label.tolist() == [1, 0, -1] and found.label.dtype == np.int64
    found = loaded(group=[float("nan")] * 3, subclass=[1, 2, 2])
    assert (found.group, found.subclass) == (["7", "8", "9"], ["1", "2", "2"])
    names = {"group": [1, 1, 2], "subclass": [None] * 3}
    assert loaded(**names).group == ["1", "1", "2"]
    for label in ([1, 0, 0.4], [1, 0, 2], [1, 0, -5], [1, 0, None]):
        with pytest.raises(InputError, match=rf"p.parquet has the label {label[2]}: write 1 for a lens"):
            loaded(**names, label=label)
    with pytest.raises(InputError, match="has a row without an id"):
        loaded(**names, id=["a", None, "c"])


def test_unlabelled_cutouts_are_scored_but_not_measured(run, tiny_cutouts, tmp_path):
    split = tiny_cutouts[0]["test"]
    labels = split.labels.clone()
    labels[:10] = -1
    mixed = CutoutTensors(split.pixels, labels, split.ids, split.groups, split.subclasses)
    found = evaluate_model(run, mixed, tmp_path, num_bootstrap=0)
    assert found["num_lenses"] + found["num_nonlenses"] == 38
    assert len(Predictions.load(tmp_path / "predictions.parquet")) == 48
    keep = labels >= 0
    expected = roc_auc_score(labels[keep], predict(run, mixed).score[keep])
    assert found["metrics"]["roc_auc"]["value"] == pytest.approx(expected)


def test_other_cutouts_than_the_models(run, tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    swapped = (splits, {**info, "bands": ["i", "r", "g"]})
    with pytest.raises(InputError, match="takes bands in the order g r i, not i r g"):
        evaluate_model(run, swapped)
    with pytest.raises(InputError, match=r"the cutouts have 4 bands but .* takes 3"):
        evaluate_model(run, make_split(8, 0, bands=4))
    with pytest.raises(InputError, match="smaller than crop_size 32"):
        evaluate_model(run, make_split(8, 0, side=30))
    stretched = {**info, "stretch": {**STRETCH, "kind": "asinh"}, "pixel_scale": 0.2}
    warnings = evaluate_model(run, (splits, stretched), tmp_path, num_bootstrap=0)["warnings"]
    assert "another stretch" in warnings[0] and "0.168 arcsec pixels, these cutouts have 0.2" in warnings[1]


def test_cutouts_that_a_run_may_have_seen_are_told(tiny_cutouts, tmp_path, caplog):
    """The same folder with another seed of the splits, or that of the pretraining; but not what is simulated."""
    splits, info = tiny_cutouts
    run = write_classifier_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())

    def warnings(of_run, of_start=None, **changes):
        start = {"init_run": {"data": of_start}} if of_start else {}
        (run / "run.json").write_text(json.dumps(facts | {"data": of_run} | start))
        return evaluate_model(run, (splits, info | changes), num_bootstrap=0)["warnings"]

    def told(found):
        return [
            one for one in found if "trained on cutouts called toy, too, which were read or split otherwise" in one
        ]

    other = info | {"fingerprint": "another"}
    assert told(warnings(other)) and told(warnings(info, other)) and "may have seen some of these" in caplog.text
    assert not told(warnings(info)) and not told(warnings(info, info))
    assert not told(warnings(other | {"name": "sky"})) and not told(warnings(other, simulated=True))


def test_cutouts_that_a_run_was_trained_on_are_told(tmp_path, caplog, monkeypatch):
    """Splits that were joined or divided anew keep the fingerprint of their source: pixels tell what was seen."""
    sizes = {"train_size": 16, "validation_size": 8, "test_size": 8, "unlabelled_size": 0, "size": 48}
    data = load_cutouts("simulated", cache_dir=str(tmp_path / "cache"), lens_fraction=0.5, **sizes)
    joined = datasets.concatenate_datasets([data["train"], data["test"]])
    settings = {"steps": 2, "eval_every": 1, "batch_size": 8, "precision": "fp32"}
    run = finetune(data, tmp_path / "run", backbone="cnn", **settings)
    assert evaluate_model(run, data, num_bootstrap=0)["warnings"] == []
    own = (run / "evaluation" / "metrics.json").read_bytes()
    bare = data["test"].remove_columns("id")
    assert split_checksum(bare) == split_checksum(data["test"]) == split_checksum(as_tensors(bare))
    assert split_checksum(bare.to_iterable_dataset()) is split_checksum(bare.remove_columns("label")) is None
    report = evaluate_model(run, joined, num_bootstrap=0)
    seen, count = len(data["train"]), len(joined)
    assert f"was trained on {seen} of these {count} cutouts" in report["warnings"][0]
    assert (run / "evaluation" / "metrics.json").read_bytes() == own  # this one is beside it
    assert (run / "evaluation-parts" / "metrics.json").is_file()
    for changed in (
        data["test"].map(lambda x: {"pixels": np.float32(x["pixels"]) / 2}, features=data["test"].features),
        data["test"].map(lambda x: {"label": 1 - x["label"]}),
    ):
        changes = datasets.DatasetDict(data | {"test": changed})
        assert evaluate_model(run, changed, num_bootstrap=0)["split"].startswith("test_changed_")
        assert evaluate_model(run, changes, num_bootstrap=0)["split"].startswith("test_changed_")
    assert (run / "evaluation" / "metrics.json").read_bytes() == own  # a map keeps the fingerprint, too
    assert "of this test split are not those of the dataset" in caplog.text
    with pytest.raises(InputError, match="the labels differ"):
        evaluate_model(run / "evaluation" / "predictions.parquet", changed, tmp_path / "out")
    again = datasets.DatasetDict(train=joined, validation=data["validation"])
    leaky = finetune(again, tmp_path / "scratch", backbone="cnn", **settings)
    save_cutouts(data, tmp_path / "saved")
    evaluation = evaluate_model(leaky, tmp_path / "saved", num_bootstrap=0)
    assert f"was trained on {len(data['test'])} of these {len(data['test'])} cutouts" in evaluation["warnings"][0]
    tuned = finetune(data, tmp_path / "tuned", init=leaky, **settings)  # from what has seen the test split
    assert "leave them out" in evaluate_model(tuned, data, num_bootstrap=0)["warnings"][0]
    monkeypatch.chdir(tmp_path)  # where a run is called as training from scratch is
    alone = finetune(data, tmp_path / "alone", backbone="cnn", **settings)
    assert evaluate_model(alone, data, num_bootstrap=0)["warnings"] == []
    caplog.clear()
    again = datasets.DatasetDict(train=joined, validation=data["test"])
    finetune(again, tmp_path / "chosen", backbone="cnn", **settings)
    assert f"{len(data['test'])} of {len(data['test'])} validation cutouts are trained on, too" in caplog.text


def test_the_users_model_stays_as_it_is(run, tiny_cutouts):
    model = ViTForImageClassification.from_pretrained(run / "model").train().to(torch.bfloat16)
    evaluate_model((model, AutoImageProcessor.from_pretrained(run / "model")), tiny_cutouts, num_bootstrap=0)
    assert model.training and model.dtype == torch.bfloat16


def test_refusals(run, tiny_cutouts, tmp_path):
    split = tiny_cutouts[0]["test"]

    def labelled(values, pixels=split.pixels):
        return CutoutTensors(pixels, values, split.ids, split.groups, split.subclasses)

    nan = split.pixels.clone()
    nan[5, 0, 20, 20] = torch.nan
    dark = {"test": labelled(split.labels, split.pixels / 255)}, tiny_cutouts[1]
    streamed = datasets.Dataset.from_dict({"pixels": [[[[0.0]]]], "label": [0]}).to_iterable_dataset()
    (tmp_path / "file").write_text("in the way")
    datasets.Dataset.from_dict({"id": ["a"], "score": [0.5]}).to_parquet(tmp_path / "bad.parquet")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text('{"task": "finetune"}')
    cases = [
        (lambda: evaluate_model(run, labelled(torch.full_like(split.labels, -1))), "none of the cutouts has a label"),
        (lambda: evaluate_model(run, labelled(torch.ones_like(split.labels))), "no non-lens among the 48"),
        (lambda: evaluate_model(run), "cutouts are missing"),
        (lambda: evaluate_model(run, tiny_cutouts, split="holdout"), "no holdout split"),
        (
            lambda: evaluate_model(run, tiny_cutouts, tmp_path / "file" / "out", num_bootstrap=0),
            "choose a writable place",
        ),
        (lambda: predict(run, labelled(split.labels, nan)), "cutout 2-5 has NaN or infinite pixels: build"),
        (lambda: predict(run, dark), "the split: values from 0.03255 to 0.8321 are no display"),
        (lambda: evaluate_model(run, dark), "the split: values from 0.03255 to 0.8321 are no display"),
        (lambda: predict(run, streamed), "a streamed dataset cannot be measured or trained on: load it without"),
        (lambda: evaluate_model(run, {"test": streamed}), "a streamed dataset cannot be measured"),
        (lambda: predict(tmp_path / "unfinished", split), "has not finished"),
        (lambda: predict(str(tmp_path / "absent"), split), "cannot load a model from"),
        (lambda: Predictions.load(tmp_path / "bad.parquet"), "no column 'label'"),
        (lambda: evaluate_model(tmp_path / "none.parquet"), "cannot read predictions"),
        (lambda: evaluate_model(run, tiny_cutouts, seed=-1), "seed is -1: give at least 0"),
        (lambda: predict(run, split, batch_size=0), "batch_size is 0: give at least 1"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_pretraining_run_is_probed(tiny_cutouts, tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    report = evaluate_model(run, tiny_cutouts, num_bootstrap=20)
    assert set(report["probes"]) == {"linear", "linear_patches", "knn"}
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == report
    predictions = Predictions.load(run / "evaluation" / "predictions_linear.parquet")
    auc = roc_auc_score(predictions.label, predictions.score)
    assert report["probes"]["linear"]["metrics"]["roc_auc"]["value"] == pytest.approx(auc)
    with pytest.raises(InputError, match="cutouts must be a DatasetDict"):
        evaluate_model(run, tiny_cutouts[0]["test"])
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=f"split is {split}, but probes are fitted on train and choose C on val"):
            evaluate_model(run, tiny_cutouts, split=split)


def test_a_backbone_that_gives_no_finite_features_is_not_probed(tiny_cutouts, tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    weights = load_file(run / "model" / "model.safetensors")
    weights["teacher.backbone.layernorm.weight"].fill_(3e38)  # finite, but what it gives is not
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the backbone of .* gives NaN or infinite features on train: pretrain"):
        evaluate_model(run, tiny_cutouts, num_bootstrap=0)
    assert not (run / "evaluation").exists()


def test_features_are_the_models_cls_and_the_probe_is_scikit_learns(tiny_cutouts, tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    splits, facts = tiny_cutouts[0], json.loads((run / "run.json").read_text())
    encoder = load_encoder(run)
    features = {name: extract_features(encoder, one, facts["image_mean"], facts["image_std"], 32).numpy()
                for name, one in splits.items()}  # fmt: skip
    image = splits["test"].pixels[:1, :, 4:36, 4:36] / 255
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        tokens = encoder.eval()((image - mean) / std).last_hidden_state
    cls, patches = tokens[:, 0], tokens[:, 1:].mean(dim=1)
    np.testing.assert_allclose(features["test"][:1], cls, atol=1e-5)
    both = extract_features(encoder, splits["test"], facts["image_mean"], facts["image_std"], mean_patch=True)
    np.testing.assert_allclose(both[:1], torch.cat([cls, patches], dim=1), atol=1e-5)
    sets = [array for name in ("train", "validation") for array in (features[name], splits[name].labels.numpy())]
    scores, strength = linear_probe(*sets, features["test"])
    scaler = StandardScaler().fit(sets[0])
    model = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(sets[0]), sets[1])
    np.testing.assert_allclose(scores, model.predict_proba(scaler.transform(features["test"]))[:, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("bands", "colours"),
    [
        (["g", "r", "i"], [30, 20, 10]),
        (["HSC-I", "HSC-R", "HSC-G"], [10, 20, 30]),
        (["red", "green", "blue"], [10, 20, 30]),
        (["band 1", "band 2", "band 3"], [10, 20, 30]),
        (["F606W", "F814W", "band 3"], [10, 20, 30]),
        (["VIS", "Y", "J"], [30, 20, 10]),
        (["VIS", "NIR_Y", "NISP-H"], [30, 20, 10]),
        (["Ks", "Z", "J"], [10, 30, 20]),
        (["i", "VIS", "r"], [10, 20, 30]),
        (["VIS"], [10, 10, 10]),
        (["g", "i"], [20, 15, 10]),
    ],
)
def test_colours_follow_the_bands(bands, colours):
    pixels = np.stack([np.full((2, 2), value) for value in (10.0, 20.0, 30.0)])
    assert colour_image(pixels[: len(bands)], bands)[0, 0].tolist() == colours


def test_colours_of_five_bands():
    five = np.stack([np.full((2, 2), value) for value in (-5.0, 20.0, 30.0, 40.0, 300.0)])
    assert colour_image(five, ["u", "g", "r", "i", "z"])[0, 0].tolist() == [40, 30, 20]
    assert colour_image(five)[0, 0].tolist() == [0, 30, 255]  # clipped


@pytest.mark.parametrize(("method", "label"), [("simsiam", "Spread of the projections"), ("other", "Spread of [CLS]")])
def test_curves_name_what_spreads(method, label, tmp_path, monkeypatch):
    run = write_pretrain_run(tmp_path / "run", "simsiam")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "method": method}))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": -0.5, "output_std": 0.2}\n')
    figures = []
    monkeypatch.setattr("lens_ssl_hf.evaluation.plots.save_figure", lambda figure, path: figures.append(figure))
    plot_curves(run)
    assert f"{label}\n(std of unit vectors)" in [axes.get_ylabel() for axes in figures[0].axes]


def words_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_the_contact_sheet_has_ids_and_a_scale_bar(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("lens_ssl_hf.evaluation.plots.save_figure", lambda figure, path: figures.append(figure))
    ids = ["sim-0-7", "lenses/a_survey/HSC-0123.fits", "HSCJ021737.2-051329.7-wide-coadd"]
    predictions = Predictions(ids, np.array([1, 0, 1]), ids, [""] * 3, np.array([0.9, 0.5, 0.1]))
    pixels = np.zeros((3, 3, 64, 64), dtype=np.float32)
    for pixel_scale in (0.168, None):
        contact_sheet(pixels, predictions, tmp_path / "sheet.png", pixel_scale=pixel_scale)
    with_bar, without = map(words_of, figures)
    assert with_bar.count("sim-0-7") == 2 and with_bar.count("HSC-0123.fits") == 2
    assert "HSCJ02173…wide-coadd" in with_bar
    assert with_bar.count("2 arcsec") == 3 and not [word for word in without if "arcsec" in word]
    bars = [line for line in figures[0].findobj(Line2D) if len(line.get_xdata()) == 2 and line.get_color() == "w"]
    assert {round(np.ptp(bar.get_xdata()) * 0.168, 9) for bar in bars} == {2.0}


@pytest.mark.parametrize("name", ["$x_1^2$", "a $ b", r"\frac{$}{", "_hidden", "a\udcffb", "two\nlines"])
def test_names_in_pictures_are_shown_as_they_are(name, tmp_path, monkeypatch):
    save, figures = plots.save_figure, []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    predictions = Predictions([name] * 2, np.array([1, 0]), ["a", "b"], [name] * 2, np.array([0.9, 0.8]))
    contact_sheet(np.zeros((2, 3, 20, 20), np.float32), predictions, tmp_path / "sheet.png", title=name)
    plot_roc({name: predictions}, tmp_path / "roc.png", title=name)
    assert len(figures[1].axes[0].get_legend().get_texts()) == 2  # a leading _ hides none
    shown = in_figure(name).replace(r"\$", "$").strip()
    assert shown == {"a\udcffb": "a�b", "two\nlines": "two�lines"}.get(name, name)


def test_pictures(run, tmp_path):
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1])
    names = list("abcd")
    predictions = Predictions(names, labels, names, ["lens", "spiral", "lens", ""], scores)
    pixels = np.zeros((4, 3, 20, 20), dtype=np.float32)
    pixels[2, 0] = 255  # red only
    sheet = contact_sheet(pixels, predictions, tmp_path / "sheet.png", ["i", "r", "g"], crop_size=10)
    colours = {tuple(c) for c in np.asarray(Image.open(sheet).convert("RGB")).reshape(-1, 3)}
    assert {(255, 0, 0), (0, 0, 0), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)} <= colours  # pixels and frames
    for path in (plot_roc({"a": predictions, "b": predictions}, tmp_path / "roc.png"), plot_curves(run)):
        assert min(Image.open(path).size) > 400
    with pytest.raises(InputError, match=r"no run directory \(no readable run\.json\)"):
        plot_curves(tmp_path)
