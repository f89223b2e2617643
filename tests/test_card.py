"""Cards say what the run and its evaluation recorded, and huggingface_hub reads them back."""

import html
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tiny_runs import write_classifier_run, write_pretrain_run

from lens_ssl_hf import InputError, evaluate_model, export
from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.simulate import OutputArguments, SimulationArguments
from lens_ssl_hf.data.dataset import CutoutsConfig
from lens_ssl_hf.data.display import to_display
from lens_ssl_hf.data.files.readers import read_raw
from lens_ssl_hf.data.listing.names import harmless_names
from lens_ssl_hf.evaluation.probes import PROBE_NAMES
from lens_ssl_hf.files import write_json
from lens_ssl_hf.hub.card import CardFacts, cautions, render_card, with_history, write_card
from lens_ssl_hf.hub.clean import without_local_paths
from lens_ssl_hf.inference.compatibility import differences
from lens_ssl_hf.training.arguments import FinetuneArguments

ROOT = Path(__file__).parents[1]


@pytest.fixture
def evaluated(tiny_cutouts, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    return run, evaluate_model(run, tiny_cutouts, num_bootstrap=30)


def change(run, **values):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, **values}))


def test_metadata_is_read_back(evaluated, tmp_path):
    run, report = evaluated
    card = ModelCard.load(write_card(CardFacts.from_run(run, "lens-toy-classifier"), tmp_path))
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-classification" and "gravitational-lensing" in card.data.tags
    assert card.data.model_name == "lens-toy-classifier"
    results = {result.metric_type: result for result in card.data.eval_results}
    for name in ("accuracy", "roc_auc"):
        entry = report["metrics"][name]
        assert results[name].metric_value == round(entry["value"], 4)
        assert f"(95 % {entry['low']:.3f} to {entry['high']:.3f})" in results[name].metric_name
        assert results[name].dataset_split == "test" and results[name].dataset_revision == "0123456789abcdef"


def test_every_number_of_the_table_comes_from_the_evaluation(evaluated):
    run, report = evaluated
    change(run, num_lenses=8)
    text = str(render_card(CardFacts.from_run(run, "lens-toy-classifier")))
    assert "Trained on 20 labelled cutouts (8 lenses, 12 non-lenses); " in text
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, flags=re.M))
    for entry in report["metrics"].values():
        if entry["value"] is None:
            assert rows[entry["title"]] == f"not measured: {entry['reason']}"
        else:
            cell, _, note = rows[entry["title"]].partition("; ")
            assert note == entry.get("note", "")
            value, low, high = (float(number) for number in re.findall(r"\d[\d.]*(?:e-\d+)?", cell))
            expected = pytest.approx((entry["value"], entry["low"], entry["high"]), abs=6e-4)
            assert (value, low, high) == expected
    assert "scripts/run_finetune.py --labels 20" in text
    for heading in ("How to use it", "What it accepts", "Training data", "Results", "Bias, risks and misuse",
                    "How to reproduce it", "Citation"):  # fmt: skip
        assert f"\n## {heading}\n" in text
    assert "![ROC curve](roc.png)" in text and "![Best-ranked" in text
    assert "{{" not in text and "{%" not in text and "None" not in text


@pytest.mark.parametrize("write", [write_classifier_run, write_pretrain_run])
def test_what_came_as_pictures_is_not_offered_flux(write, tmp_path):
    run = write(tmp_path / "run")  # its data have no stretch
    text = str(render_card(CardFacts.from_run(run, "lens-toy")))
    assert "object.png" in text and "object.fits" not in text and "raw flux" not in text
    data = json.loads((run / "run.json").read_text())["data"]
    levels = [1.0] * len(data["bands"])
    stretch = {"kind": "asinh", "black": levels, "white": levels, "softening": levels}
    change(run, data={**data, "stretch": stretch})
    assert "object.fits" in str(render_card(CardFacts.from_run(run, "lens-toy")))


@pytest.mark.parametrize("write", [write_classifier_run, write_pretrain_run])
@pytest.mark.parametrize(
    ("bands", "same"),
    [("i r g", True), ("g r i", False), ("r i g", False), ("y z i", True), ("J H K", False), ("a b c", True),
     ("red green blue", True), ("blue green red", False), ("HSC-I HSC-R HSC-G", True)],
)  # fmt: skip
def test_pictures_are_offered_where_plain_transformers_reads_them_as_we_do(write, bands, same, tmp_path):
    bands, run = bands.split(), write(tmp_path / "run")
    change(run, data={**json.loads((run / "run.json").read_text())["data"], "bands": bands})
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    Image.fromarray(picture).save(tmp_path / "a.png")
    read = to_display(read_raw(tmp_path / "a.png"), {"bands": bands, "stretch": {"kind": "none"}}, "a.png")
    text = str(render_card(CardFacts.from_run(run, "lens-toy")))
    assert ((read == picture.transpose(2, 0, 1)).all() == same) and ('("cutout.png")' in text) == same
    assert ("PNG files" in text) == same and ('former `read_cutout("cutout.png", like=model)`' in text) != same
    if not same:
        ours = [bands[[(read[i] == picture[..., k]).all() for i in range(3)].index(True)] for k in range(3)]
        assert f"blue of a picture for {', '.join(bands)}, `lens_ssl_hf` for {', '.join(ours)}:\n" in text


@pytest.mark.parametrize("write", [write_classifier_run, write_pretrain_run])
def test_what_files_do_not_state_is_named(write, tmp_path):
    run = write(tmp_path / "run")
    data = json.loads((run / "run.json").read_text())["data"]
    data["stretch"] = {"kind": "asinh"} | {key: [1.0] * 3 for key in ("black", "white", "softening")}
    for values, expected in (
        ({}, "`g`, `r`, `i` in this order, zero point 27, 0.168 arcsec per pixel"),
        ({"zero_point": None, "pixel_scale": None}, "`g`, `r`, `i` in this order"),
    ):
        change(run, data=data | values)
        text = str(render_card(CardFacts.from_run(run, "lens-toy")))
        assert f"(a .npy file states nothing) is taken to be the model's: {expected}.\n" in text


def test_what_is_measured_on_real_cutouts_is_said_at_the_top(evaluated):
    run, report = evaluated
    change(run, data={**json.loads((run / "run.json").read_text())["data"], "simulated": True})
    facts = CardFacts.from_run(run, "a")
    assert "they say nothing about real" in str(render_card(facts))
    other = report | {"simulated": True, "warnings": []}
    facts.elsewhere = [("classifier", other), ("classifier", other | {"simulated": False, "painted": True})]
    assert "they say nothing about real" in str(render_card(facts))
    for value in (0.579, 0.664):
        metrics = report["metrics"] | {"roc_auc": report["metrics"]["roc_auc"] | {"value": value}}
        facts.elsewhere.append(("classifier", other | {"simulated": False, "metrics": metrics}))
    text = str(render_card(facts))
    assert "On the real cutouts that were tried the ROC AUC is 0.579 to 0.664 (see\n> *On" in text
    assert "they say nothing about real" not in text


PICTURES = (
    "runs/a b was trained on another stretch than the one these cutouts were made with, which 8-bit pictures keep"
)
FILES = (
    "m was trained on another stretch than the one these cutouts were made with: build them from their files with like"
)
SCALE = "m was trained on 0.168 arcsec pixels, these cutouts have 0.187"
SEEN = "m was trained on 3 of these 5 cutouts, and scores them too well: leave them out"


@pytest.mark.parametrize(
    ("warnings", "sentences"),
    [
        ([], []),
        (
            [PICTURES, SCALE],
            [
                "These are 8-bit pictures with a stretch of their own and 0.187 arcsec pixels; the model was trained "
                "on another stretch and 0.168 arcsec pixels"
            ],
        ),
        (
            [SEEN, FILES],
            ["These cutouts have a stretch of their own; the model was trained on another stretch", SEEN],
        ),
        ([SCALE], ["These cutouts have 0.187 arcsec pixels; the model was trained on 0.168 arcsec pixels"]),
    ],
)
def test_what_differs_on_other_cutouts_is_one_sentence(warnings, sentences):
    assert cautions(warnings) == sentences


def test_differences_are_known_to_cards():
    """Whatever the sentences of `differences` become."""
    model = {"bands": ["i"], "stretch": {"kind": "asinh"}, "pixel_scale": 0.168}
    for kind in ("none", "sqrt"):
        found = differences(model, {"bands": ["r"], "stretch": {"kind": kind}, "pixel_scale": 0.2}, "the model")
        (sentence,) = cautions(found)
        assert len(found) == 3 and ("8-bit" in sentence) == (kind == "none")
        assert "bands r" in sentence.split("; ")[0] and "bands i" in sentence.split("; ")[1]


SIMULATED = {"simulated": True, "simulator_version": "5", "name": "simulated lenses", "fingerprint": "abc"}


@pytest.mark.parametrize(
    ("command", "data", "said"),
    [
        ("x --dataset varied --steps 2", SIMULATED,
         "`--dataset varied` is the dataset simulated lenses (fingerprint `abc`), made by version 5 of the "
         "simulator; its options are not recorded."),
        ("x --dataset varied", SIMULATED | {"fingerprint": "known"},
         "`--dataset varied` was made by version 5 of the simulator:\n\n```bash\nsimulate varied --seed 11\n```"),
        ("x --dataset simulated --data_seed 4", SIMULATED, ""),
        ("x --dataset me/lenses", {"name": "me/lenses"}, ""),
        ("x --data_dir data", {}, ""),
        ("x --dataset='my sky' --labels 3", {},
         "`--dataset my sky` is the dataset toy (fingerprint `0123456789abcdef`), which is not published here."),
        (None, {}, "`cutouts` is the dataset toy (fingerprint `0123456789abcdef`), which is not published here."),
    ],
)  # fmt: skip
def test_a_card_says_what_the_dataset_of_its_command_is(command, data, said, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    change(run, command=command, data={**json.loads((run / "run.json").read_text())["data"], **data})
    facts = CardFacts.from_run(run, "a", made_by={"known": "simulate varied --seed 11"})
    text = str(render_card(facts)).split("## How to reproduce it")[1]
    assert said in text if said else not re.search(r"fingerprint|was made", text)


def test_a_model_that_went_on_from_itself_says_so(tmp_path):
    first = json.loads((write_classifier_run(tmp_path / "first") / "run.json").read_text())
    first |= {"num_labels": 321, "command": "finetune --dataset simulated"}
    first["data"] = {**first["data"], "fingerprint": "other"}
    run = write_classifier_run(tmp_path / "run")
    change(run, init="box/lens-toy", init_run=first, command="finetune --init box/lens-toy --dataset simulated")
    text = str(render_card(CardFacts.from_run(run, "box/lens-toy")))
    assert "It began as an earlier model of this name, which was trained on 321 other labelled cutouts of toy" in text
    assert "It went on from an earlier model of this name, which was in its place (`--init box/lens-toy`)" in text
    other = str(render_card(CardFacts.from_run(run, "box/lens-other")))
    assert "It began as a classifier that was trained on 321 labelled" in other and "this name" not in other


def test_the_cards_of_the_box_are_up_to_date(monkeypatch):
    """And the commands in them make the datasets that the models were trained on."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import box_cards

    found = box_cards.cards(json.loads((box_cards.RESULTS / "elsewhere.json").read_text()))
    assert len(found) == 4
    made = {}
    for name, facts in found.items():
        assert str(render_card(facts)) == Path("model_cards", name, "README.md").read_text()
        made |= {one["data"]["fingerprint"]: one["data"]["simulator_version"] for one in facts.runs}
    assert box_cards.MADE_BY.keys() <= made.keys()
    for fingerprint, command in box_cards.MADE_BY.items():
        monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
        _, options = parse(OutputArguments, SimulationArguments, description="", positional=("output",))
        monkeypatch.setattr("lens_ssl_hf.data.dataset.SIMULATOR_VERSION", made[fingerprint])
        config = CutoutsConfig(name="simulated", dataset="simulated", **vars(options))
        assert config.create_config_id({}) == f"simulated-{fingerprint}"


def test_a_run_of_the_python_api_is_reproduced_by_its_call(evaluated):
    run, _ = evaluated
    steps = FinetuneArguments.steps  # what is default is not said
    arguments = {"output_dir": "runs/x", "labels": "20", "init": "runs/dino", "steps": steps, "resume": "auto"}
    change(run, command=None, arguments=arguments)
    text = str(render_card(CardFacts.from_run(run, "lens-toy-classifier")))
    call = "lens_ssl_hf.finetune(cutouts, 'runs/x', init='runs/dino', labels='20')"
    assert f"```python\n{call}\n```" in text


def test_a_classifier_that_began_as_a_classifier_was_not_pretrained_without_labels(tmp_path):
    first = json.loads((write_classifier_run(tmp_path / "first") / "run.json").read_text())
    first |= {"init": "scratch", "init_method": "scratch", "num_labels": 321}
    first.pop("init_run", None)
    first["data"] |= {"name": "painted", "painted": True}
    run = write_classifier_run(tmp_path / "run")
    change(run, init="runs/first", init_method="scratch", init_run=first)
    text = str(render_card(CardFacts.from_run(run, "a")))
    assert "after fine-tuning on 321 labels of painted." in text
    assert "It began as a classifier that was trained on 321 labelled cutouts of painted.\n" in text
    assert "was pretrained" not in text and "supervised pretraining" not in text and "from scratch" not in text
    change(
        run,
        init_run={**first, "init_run": json.loads((write_pretrain_run(tmp_path / "ssl") / "run.json").read_text())},
    )
    text = str(render_card(CardFacts.from_run(run, "a")))
    assert "That training went on from a pretraining on " in text
    facts = json.loads((run / "run.json").read_text())
    del facts["init_run"]  # as of an exported folder, whose config names the method
    (run / "run.json").write_text(json.dumps({**facts, "init": "exported"}))
    text = str(render_card(CardFacts.from_run(run, "a")))
    assert "labels from the weights of `exported`." in text and "from scratch" not in text


def test_without_evaluation_there_is_no_number(tmp_path):
    facts = CardFacts.from_run(write_classifier_run(tmp_path / "run"), "lens-toy-classifier")
    card = render_card(facts)
    assert "**This model has not been evaluated.**" in str(card)
    assert card.data.eval_results is None and "metrics" not in card.data.to_dict()
    backbone = str(render_card(CardFacts.from_run(write_pretrain_run(tmp_path / "ssl"), "lens-toy")))
    assert "**These features have not been evaluated on a test split.**" in backbone
    assert "ROC AUC 0.875, accuracy 0.750 on the validation split" in backbone  # the monitor's, from metrics.jsonl


def test_a_backbones_card_shows_its_probes(tiny_cutouts, tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    report = evaluate_model(run, tiny_cutouts, num_bootstrap=20)
    card = render_card(CardFacts.from_run(run, "lens-dino-vitt8"))
    assert card.data.pipeline_tag == "image-feature-extraction" and "dino" in card.data.tags
    values = [r.metric_value for r in card.data.eval_results if r.metric_type == "roc_auc"]
    assert values == [round(report["probes"][name]["metrics"]["roc_auc"]["value"], 4) for name in PROBE_NAMES]
    assert "### Linear probe on frozen features" in str(card)


def test_simulated_data_are_said_to_be_simulated(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    loud = "> **Trained on simulated cutouts, not on the sky.**"
    assert loud not in str(render_card(CardFacts.from_run(run, "a")))
    change(run, data={**json.loads((run / "run.json").read_text())["data"], "simulated": True})
    card = render_card(CardFacts.from_run(run, "a"))
    assert loud in str(card) and "simulated-data" in card.data.tags


def test_the_origin_of_the_weights(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    text = str(render_card(CardFacts.from_run(run, "a")))
    assert "from scratch" in text and "base_model" not in text
    change(run, init="somebody/lens-dino-vits8", init_method="pretrained")
    card = render_card(CardFacts.from_run(run, "a"))
    assert card.data.base_model == "somebody/lens-dino-vits8" and "weights of `somebody/lens-dino-vits8`" in str(card)
    parent = json.loads((write_pretrain_run(tmp_path / "ssl") / "run.json").read_text())
    change(
        run, init=str(tmp_path / "ssl"), init_method="dino", init_run={**parent, "command": "run_ssl.py --method dino"}
    )
    card = render_card(CardFacts.from_run(run, "a", base_model="me/lens-dino-vitt8"))
    assert card.data.base_model == "me/lens-dino-vitt8"
    assert "with DINO on 96 unlabelled cutouts" in str(card) and "run_ssl.py --method dino" in str(card)


@pytest.mark.parametrize("method", ["dino", "ibot", "simsiam"])
def test_the_paper_of_the_method_alone_is_cited(method, tmp_path):
    text = str(render_card(CardFacts.from_run(write_pretrain_run(tmp_path / "run", method), "a")))
    names = {"dino": "caron2021dino", "ibot": "zhou2021ibot", "simsiam": "chen2021simsiam"}
    assert re.findall(r"@\w+{(\w+),", text) == [names[method]]
    assert "@inproceedings" not in str(render_card(CardFacts.from_run(write_classifier_run(tmp_path / "a"), "a")))


@pytest.mark.parametrize("zero_point,stated", [(0.0, "0 (AB magnitude of flux 1)"), (None, "not stated")])
def test_a_zero_point_of_zero_is_one(zero_point, stated, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    change(run, data={**json.loads((run / "run.json").read_text())["data"], "zero_point": zero_point})
    assert f"| Zero point | {stated} |" in str(render_card(CardFacts.from_run(run, "a")))


def test_the_stretch_is_written_out(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    stretch = {"kind": "asinh", "black": [-0.5] * 3, "white": [19.5] * 3, "softening": [0.125] * 3}
    change(run, data={**json.loads((run / "run.json").read_text())["data"], "stretch": stretch})
    text = str(render_card(CardFacts.from_run(run, "a")))
    assert "| g: black, white, softening | -0.5, 19.5, 0.125 |" in text and "f = arcsinh" in text


LOCAL_PATHS = [
    ("/home/alice/data/x.csv", "x.csv"),
    ("/home/alice", "~"),
    ("/home/alice/my data/x y.csv", "x y.csv"),
    ("file:///home/alice/x.csv", "x.csv"),
    ("~alice/x.csv", "x.csv"),
    ("~/alice/x.csv", "x.csv"),
    ("../../home/alice/x.csv", "x.csv"),
    ("runs/../../alice/x.csv", "x.csv"),
    ("C:\\Users\\alice\\x.csv", "x.csv"),
    ("C:/Users/alice/x.csv", "x.csv"),
    ("\\\\server\\alice\\x.csv", "x.csv"),
    ("cluster:/scratch/alice/x.csv", "cluster:x.csv"),
    ("no pixel in '/home/alice/my data/x.csv' or /home/alice/y.csv, 1/2", "no pixel in 'x.csv' or y.csv, 1/2"),
    ("me/lens-dino-vits8", "me/lens-dino-vits8"),
    ("runs/dino-300", "runs/dino-300"),
    ("see https://example.org/home/alice", "see https://example.org/home/alice"),
    ("see https://example.org/a?b=/c/d", "see https://example.org/a?b=/c/d"),
    ("from [/scratch/alice/x.fits], FILE:///alice/y.fits", "from [x.fits], y.fits"),
]
# What tables and sentences hold that looks like a path.
NO_PATHS = ["5 km/s", "2024/05/01", "a/b", "~5/6", "x // y", "1 /s", '0.2"/pix/s or 3"/pix/s', "cutouts (1)/a/b.npy"]
NO_PATHS += ["see file: x.fits", "M 31 / M 32"]


@pytest.mark.parametrize(("text", "published"), LOCAL_PATHS)
def test_no_local_path_stays_in_what_is_published(text, published):
    record = {"arguments": {"init": [text]}, "command": shlex.join(["python", "run.py", "--a", text, f"--b={text}"])}
    expected = {"arguments": {"init": [published]}}
    expected["command"] = shlex.join(["python", "run.py", "--a", published, f"--b={published}"])
    assert without_local_paths(record) == expected
    text = f"reduced from {text}" if " " not in text else text  # datasets are published by the same rule
    assert harmless_names([text]) == [without_local_paths(text)] and "alice/" not in harmless_names([text])[0]


@pytest.mark.parametrize("text", NO_PATHS)
def test_what_is_no_path_stays(text):
    assert without_local_paths(text) == text and harmless_names([text]) == [text]


def test_the_backslashes_of_a_command_are_those_of_paths():
    command = without_local_paths({"command": r"python run.py --dataset C:\Users\alice\x.csv"})["command"]
    assert command == "python run.py --dataset x.csv"


def test_names_cannot_break_out_of_a_card(evaluated):
    run, _ = evaluated
    name = "x` | <script>alert(1)</script>\n---\n# [here](http://evil)"
    facts = json.loads((run / "run.json").read_text())
    change(run, data={**facts["data"], "name": name, "bands": ["g|", "<b>", "i`"]}, command="run.py '```\n# x'")
    report = json.loads((run / "evaluation" / "metrics.json").read_text())
    report |= {"dataset": name, "warnings": [name]}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(report))
    card = render_card(CardFacts.from_run(run, 'a"b|c'))
    assert "# [here]" in card.data.eval_results[0].dataset_name  # YAML quotes what it must
    assert not re.search(r"<script|<b>|\n#+ \[|\[here|x`", card.text)
    assert "(`g&#124;`, `&#60;b>`, `i&#96;`, in this order)" in card.text and '\n# a"b&#124;c\n' in card.text
    assert "\n````bash\nrun.py '```\n# x'\n````\n" in card.text  # in a longer fence
    assert r'model="a\"b|c")' in card.text  # a string of Python


def test_a_damaged_evaluation_is_named(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text('{"met')
    with pytest.raises(InputError, match=r"metrics\.json is damaged: evaluate the run again"):
        CardFacts.from_run(run, "a")


def evaluate_elsewhere(run, report, **reports):
    for name, facts in reports.items():
        (run / f"evaluation-{name}").mkdir()
        (run / f"evaluation-{name}" / "metrics.json").write_text(json.dumps(report | facts))


def test_what_was_measured_on_other_datasets_is_told(evaluated, tmp_path):
    """All splits of foreign datasets; of those that the weights have seen, the test split alone."""
    run, report = evaluated
    before = json.loads((run / "run.json").read_text())
    change(run, init_run={**before, "data": {**before["data"], "fingerprint": "before", "name": "seen"}})
    evaluate_elsewhere(
        run,
        report,
        sky={"dataset": "sky", "fingerprint": "other", "split": None, "simulated": True, "warnings": ["other pixels"]},
        again={"dataset": "toy"},
        validation={"dataset": "toy", "split": "validation"},
        before={"dataset": "seen", "fingerprint": "before", "split": "test", "num_lenses": 7},
        train={"dataset": "seen", "fingerprint": "before", "split": "train"},
        rebuilt={"dataset": "seen", "fingerprint": "in other sizes", "split": "train"},
        unknown={"dataset": None, "fingerprint": None, "split": "test"},
    )
    facts = CardFacts.from_run(run, "lens-toy-classifier")
    found = [(one["dataset"], one["split"]) for _, one in facts.elsewhere]
    assert found == [("seen", "test"), ("sky", None)]
    text = str(render_card(facts))
    rows = [line for line in text.splitlines() if line.startswith(("| seen", "| sky", "> **"))]
    auc = report["metrics"]["roc_auc"]
    assert rows[0].startswith(f"| seen, test split | 7, {report['num_nonlenses']} | {auc['value']:.3f} (")
    assert rows[1].startswith("| sky (**simulated**) | ") and rows[2] == "> **sky:** other pixels."
    listed = [one.dataset_name for one in facts.eval_results()]
    assert listed == ["toy", "toy", "seen", "seen", "sky", "sky"]
    (run / "evaluation-sky" / "metrics.json").write_text('{"fingerprint": 1, "metrics": {}}')
    with pytest.raises(InputError, match=r"evaluation-sky/metrics\.json is damaged: evaluate the run again"):
        CardFacts.from_run(run, "a")


def test_what_probes_measured_on_other_datasets_is_told(tiny_cutouts, tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    report = evaluate_model(run, tiny_cutouts, num_bootstrap=20)
    evaluate_elsewhere(run, report, sky={"dataset": "sky", "fingerprint": "other"})
    text = html.unescape(str(render_card(CardFacts.from_run(run, "a"))))
    table = [line for line in text.splitlines() if line.startswith(("| Cutouts", "|---|---|---|---|---|", "| sky"))]
    assert [line.count("|") for line in table] == [7] * (2 + len(PROBE_NAMES))
    assert [line.split(" | ")[1] for line in table[2:]] == list(PROBE_NAMES.values())


def test_a_folder_that_happens_to_be_where_a_run_began_is_not_its_history(tmp_path, monkeypatch):
    """Of runs of earlier versions, which did not record what they began from."""
    monkeypatch.chdir(tmp_path)
    facts = json.loads((write_classifier_run(tmp_path / "run") / "run.json").read_text()) | {"run_id": "mine"}
    for name in ("scratch", "model"):
        Path(name).mkdir()
        Path(name, "recipe.json").write_text(json.dumps(facts))
    assert "init_run" not in with_history(facts)
    assert "init_run" not in with_history(facts | {"init": "model"})  # its own export
    other = facts | {"init": "model", "run_id": "other"}
    assert with_history(other)["init_run"] == facts
    assert "init_run" not in with_history(other | {"run_id": "next", "init_recipe": other})["init_run"]


@pytest.mark.parametrize(
    "damage", [{"num_parameters": None}, {"crop_size": ...}, {"command": 7}, {"data": {"fingerprint": "a"}}]
)
def test_a_damaged_record_is_named(damage, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    facts = {**json.loads((run / "run.json").read_text()), **damage}
    (run / "run.json").write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))
    with pytest.raises(InputError, match=r"the card of a cannot be written .*: run\.json or .* is damaged, train or"):
        render_card(CardFacts.from_run(run, "a"))


def test_an_exported_folder_gives_the_card_of_its_run(evaluated, tiny_cutouts, tmp_path):
    run, report = evaluated
    folder = export(run, tmp_path / "lens-toy-classifier")
    card = (folder / "README.md").read_text()
    assert str(render_card(CardFacts.from_export(folder))) == card
    other = {**report, "dataset": "another sky", "fingerprint": "1"}
    with_other = str(render_card(CardFacts.from_export(folder, [other])))
    assert "### On other cutouts" in with_other and "| another sky, test split |" in with_other
    (folder / "recipe.json").unlink()
    with pytest.raises(InputError, match=r"lens-toy-classifier holds no recipe\.json: give a folder"):
        CardFacts.from_export(folder)


SHOWN = {0.5: "0.5000", 0.88181: "0.8819", 0.07: "0.07000", 3e-5: "0.00003000", 0.999987735: "0.99998774", 1: "1.0000"}


@pytest.mark.parametrize("score, shown", SHOWN.items())
def test_a_threshold_near_0_or_1_keeps_its_digits(evaluated, score, shown):
    run, report = evaluated
    write_json(run / "evaluation" / "metrics.json", {**report, "threshold_at_fpr_1e-2": score})
    text = str(render_card(CardFacts.from_run(run, "lens-toy-classifier")))
    assert f"is kept at P(lens) >= {shown}.\n" in text
