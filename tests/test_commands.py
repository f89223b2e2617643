"""The command `lens-ssl`: what it parses, explains and refuses. What the commands do is tested where it is done."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from conftest import save_toy

import lens_ssl_hf
from lens_ssl_hf.commands.main import COMMANDS, main
from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import PushArguments
from lens_ssl_hf.data.options import DataArguments
from lens_ssl_hf.training.arguments import PretrainArguments, make_arguments, recipe

ROOT = Path(__file__).parents[1]
NEED = {  # what a command cannot do without
    "simulate": "x",
    "build": "--dataset x --output y",
    "paint": "--dataset x --output y --seeing 0.7",
    "pretrain": "--dataset x",
    "finetune": "--dataset x",
    "evaluate": "m --dataset x",
    "export": "x y",
    "score": "--model m --input x --output y",
    "rank": "x --output y",
    "search": "x --output y",
    "grade": "x --labels m",
    "study": "--dataset x",
    "push": "r --repo_id me/x",
    "push-dataset": "--dataset x --repo_id me/x",
    "push-space": "m --dataset x --repo_id me/x",
    "space": "x",
}


class Parsed(Exception):
    """The arguments of a command, which is stopped once it has parsed them."""


@pytest.fixture
def parsed(monkeypatch):
    """`parsed("pretrain --dataset x")`: the dataclasses that the command gets."""

    def of(line):
        words = line.split()
        for name in {word.replace("-", "_") for word in words if word in COMMANDS}:
            module = importlib.import_module(f"lens_ssl_hf.commands.{name}")

            def stop(*dataclasses, **options):
                raise Parsed(*parse(*dataclasses, **options))

            monkeypatch.setattr(module, "parse", stop)
        monkeypatch.setattr(sys, "argv", ["lens-ssl", *words])
        with pytest.raises(Parsed) as stopped:
            main()
        return stopped.value.args

    return of


@pytest.fixture
def said(monkeypatch, capsys):
    """`said("pretrain --nonsense")`: the status of `lens-ssl`, and what it prints."""

    def of(line):
        monkeypatch.setattr(sys, "argv", ["lens-ssl", *line.split()])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code, out + err

    return of


def options_in(text):
    """Each option in what `--help` prints, with its words."""
    entries = text.split("\n  --")[1:]
    return [(entry.split()[0], " ".join(entry.split("\n\n")[0].split())) for entry in entries]


def test_the_command_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lens-ssl", "--help"])
    main()
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "pretrain --method simsiam", "pretrain --method ibot"])
def test_help_shows_every_option_once_with_the_default_that_holds(command, parsed, said):
    status, text = said(f"{command} --help")
    assert not status and text.startswith(f"usage: lens-ssl {command.split()[0]}")
    shown = options_in(text)
    found = dict(shown)
    assert len(found) == len(shown) and found.pop("config")
    name, _, rest = command.partition(" ")
    for arguments in parsed(f"{name} {NEED[name]} {rest}"):
        for item in fields(arguments):
            value, words = getattr(arguments, item.name), found.pop(item.name)
            if isinstance(value, bool):
                assert (found.pop(f"no_{item.name}", None) is not None) == (item.default is True)
                value = "yes" if value else "no"
            if value not in (None, "", ["m"]) and str(value) not in NEED[name].split() and item.name != "method":
                shown_value = " ".join(map(str, value)) if isinstance(value, list) else value
                assert words.endswith(f"default: {shown_value})"), words
    assert not found


@pytest.mark.parametrize("command", ["pretrain", "finetune", "build", "study"])
def test_help_begins_with_the_options_that_matter(command, said):
    first = said(f"{command} --help")[1].split("\n\nMost used:\n")[1].split("\n\n")[0]
    names = [name for name, _ in options_in("\n" + first)]
    assert "dataset" in names and names[-1] == "config" and 9 <= len(names) <= 11


def test_groups_of_help_name_options_that_exist():
    module = importlib.import_module("lens_ssl_hf.commands.pretrain")
    names = {item.name for cls in (PretrainArguments, DataArguments) for item in fields(cls)}
    grouped = [name for group in (module.MOST_USED, *module.GROUPS.values()) for name in group]
    assert set(grouped) <= names and len(set(grouped)) == len(grouped)


def test_help_comes_without_torch():
    parsing = [path for path in (ROOT / "scripts").glob("*.py") if "import parse\n" in path.read_text()]
    own = ("make_tables.py", "benchmark_gpu.py")  # for those who work on this project
    scripts = [path for path in parsing if path.name not in own]
    assert len(scripts) >= 5
    program = (
        "import contextlib, io, runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help'] if name.endswith('.py') else ['lens-ssl', name, '--help']\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        runpy.run_path(name, run_name='__main__') if name.endswith('.py') else "
        "runpy.run_module('lens_ssl_hf', run_name='__main__')\n"
        "    assert 'usage: ' in said.getvalue(), name\n"
        "    assert not {'torch', 'datasets'} & sys.modules.keys(), name\n"
    )
    line = [sys.executable, "-c", program, *COMMANDS, *map(str, scripts)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    result = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "command", ["build", "pretrain", "finetune", "evaluate", "study", "push-dataset", "push-space"]
)
def test_no_command_takes_a_dataset_that_was_not_given(command, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    need = re.sub(r"--dataset x ?", "", NEED[command])
    status, text = said(f"{command} {need}" + (" --eval_dir y" if command == "evaluate" else ""))
    assert status == 2 and text.startswith("error: --dataset is missing: ")
    assert not list(tmp_path.iterdir())


def test_python_takes_no_dataset_that_was_not_given_either():
    with pytest.raises(TypeError, match="source"):
        lens_ssl_hf.load_cutouts()


@pytest.mark.parametrize(
    "line,sentence",
    [
        ("", "give a command: simulate, build, "),
        ("pretrian --dataset x", "unknown command pretrian: did you mean lens-ssl pretrain?"),
        ("nonsense", "unknown command nonsense: choose from simulate, "),
        ("pretrain --dataset x --nonsense", "unknown argument --nonsense: see --help"),
        ("finetune --dataset x --stepp 4", "unknown argument --stepp: did you mean --steps?"),
        ("export", "run is missing: see --help"),
        ("push r", "--repo_id is missing"),
        ("export a b c", "unknown argument c"),
        (
            "search x --output y --like -001.50_1",
            "argument --like: expected at least one argument (a value that begins with - is given as "
            "--like=-001.50_1): see --help",
        ),
        ("score --model x --output -001.5_1", "argument --output: expected one argument (a value that begins"),
        (
            "score --model x --file-pattern -{id}.fits",
            "argument --file_pattern/--file-pattern: expected one argument (a value that begins with - is given as "
            "--file-pattern=-{id}.fits)",
        ),
        ("search x --output y --like --top 9", "argument --like: expected at least one argument: see --help"),
        ("search x --output y --like", "argument --like: expected at least one argument: see --help"),
        ("simulate x --file_pattern y", "unknown argument --file_pattern"),
    ],
)
def test_mistakes_are_refused_with_a_sentence(line, sentence, said):
    status, text = said(line)
    assert status == 2 and text.startswith(f"error: {sentence}") and len(text.splitlines()) == 1


def test_what_may_not_be_accessed_ends_in_one_sentence(said, monkeypatch):
    def refuse(*names):
        raise PermissionError(13, "Permission denied", "secret.fits")

    monkeypatch.setattr(importlib, "import_module", refuse)
    sentence = "cannot access secret.fits (Permission denied): give yourself access, or choose another place"
    assert said("score") == (2, f"error: {sentence}\n")


def test_simulated_cutouts_are_written_without_naming_a_dataset(parsed):
    output, simulation = parsed("simulate out --train_size 5 --bands g r --data_seed 3 --like m")
    options = DataArguments("simulated", **vars(simulation))
    assert (output.output, options.train_size, options.bands, options.data_seed) == ("out", 5, ["g", "r"], 3)
    assert options.like == "m"
    assert {item.name for item in fields(simulation)} < {item.name for item in fields(DataArguments)}


@pytest.mark.parametrize("line", ["simulate a/simulated/", "build --dataset a --output simulated"])
def test_no_dataset_takes_the_name_of_the_simulator(line, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a/simulated" if "a/sim" in line else "simulated"
    sentence = "would hide the simulator, which --dataset simulated names: choose another name"
    assert said(line) == (2, f"error: {name} {sentence}\n") and not list(tmp_path.iterdir())


@pytest.fixture
def config(tmp_path):
    def write(text, name="recipe.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    "line",
    [
        "pretrain --config {file} --epochs 9",
        "pretrain --epochs 9 --config={file}",
        "--config {file} pretrain --epochs 9",
        "--config={file} pretrain --epochs=9",
    ],
)
def test_a_file_gives_options_and_the_command_line_wins(line, parsed, config):
    text = (
        "dataset: cutouts\nmethod: simsiam\nepochs: 7\nlearning-rate: 1e-4\nrotate: no\nstream: yes\nbands: [g, r]\n"
    )
    arguments, data, _ = parsed(line.format(file=config(text)))
    assert (arguments.method, arguments.epochs, arguments.learning_rate) == ("simsiam", 9, 1e-4)
    assert (arguments.rotate, arguments.stream) == (False, "yes")  # YAML takes yes and no for true and false
    assert arguments.weight_decay == recipe("simsiam")["weight_decay"]  # of the method in the file
    assert (data.dataset, data.bands) == ("cutouts", ["g", "r"])


def test_a_method_on_the_command_line_brings_its_recipe(parsed, config):
    arguments, _, _ = parsed(f"pretrain --config {config('method: simsiam')} --dataset x --method ibot")
    assert arguments == PretrainArguments(**recipe("ibot"), method="ibot")


def test_the_record_of_a_run_is_such_a_file(parsed, config):
    arguments, _, _ = parsed("pretrain --dataset x --method ibot --epochs 3 --report_to tensorboard --no_flip")
    former = {"gradient_accumulation_steps": 1}  # of a version that had it
    settings = vars(arguments) | former
    record = json.dumps({"task": "pretrain", "arguments": settings})
    assert parsed(f"pretrain --dataset x --config {config(record, 'run.json')}")[0] == arguments
    assert make_arguments(PretrainArguments, vars(arguments)) == arguments  # as the command hands them on
    del settings["final_teacher_momentum"]  # of a version that had it not, and in which it was 1
    record = json.dumps({"task": "pretrain", "arguments": settings})
    assert parsed(f"pretrain --dataset x --config {config(record, 'run.json')}")[0].final_teacher_momentum == 1


def test_words_without_a_name_win_over_the_file(parsed, config):
    file = config("run: theirs\nrepo_id: me/x\nwith_heads: true\ndry_run: true\n")
    assert parsed(f"push --config {file}")[0].run == "theirs"
    arguments = parsed(f"push mine --config {file}")[0]
    assert (arguments.run, arguments.with_heads, arguments.dry_run) == ("mine", True, "x")


def test_help_shows_the_values_of_the_file(said, config):
    file = config("epochs: 7\ndataset: mine\n")
    _, text = said(f"pretrain --help --config {file}")
    found = dict(options_in(text))
    assert found["epochs"].endswith("(default: 7)") and found["dataset"].endswith("(default: mine)")


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("epoch: 3", "unknown option epoch: did you mean epochs?"),
        ("nonsense: 3", "unknown option nonsense: see --help"),
        ("config: other.yaml", "unknown option config"),
        ("epochs: many", "argument --epochs: invalid int value: 'many'"),
        ("epochs: [1, 2]", "epochs is [1, 2]: give one value"),
        ("epochs:", "epochs has no value: give one, or leave the line out"),
        ("stretch: log", "argument --stretch: invalid choice: 'log'"),
        ("just words", "holds no options: write one on each line"),
        ("a: [", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_a_file_with_a_mistake_is_refused(text, sentence, said, config, tmp_path):
    file = tmp_path / "missing.yaml" if text is None else config(text)
    status, message = said(f"pretrain --dataset x --config {file}")
    assert status == 2 and message.startswith("error: ") and len(message.splitlines()) == 1
    assert str(file) in message and sentence in message


@pytest.mark.parametrize(
    "line,expected",
    [
        ("--repo_id me/x --dry_run RUN", ("RUN", "x", False)),
        ("RUN --repo-id me/x --dry-run FOLDER", ("RUN", "FOLDER", False)),
        ("--dry_run FOLDER RUN --repo_id me/x", ("RUN", "FOLDER", False)),
        ("--run RUN --repo_id me/x --dry_run FOLDER", ("RUN", "FOLDER", False)),
        ("--repo_id me/x --dry_run=FOLDER --private RUN", ("RUN", "FOLDER", True)),
        ("--private no RUN --repo_id me/x", ("RUN", None, False)),
    ],
)
def test_a_flag_takes_no_word_that_is_not_its_own(line, expected, monkeypatch):
    @dataclass
    class Arguments(PushArguments):
        run: str = field(default="", metadata={"help": "A run."})

    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *line.split()])
    (arguments,) = parse(Arguments, positional=("run",))
    assert (arguments.run, arguments.dry_run, arguments.private) == expected


@pytest.mark.parametrize(
    "program",
    [
        "import lens_ssl_hf; from transformers import AutoConfig",
        "from transformers import AutoConfig; import lens_ssl_hf",
        "import lens_ssl_hf; from transformers import ViTModel, pipeline, AutoConfig",
        "import lens_ssl_hf.data.image_processor; from transformers import AutoConfig",
    ],
)
def test_models_are_registered_in_whatever_order_a_program_imports(program):
    program += """
from transformers import MODEL_MAPPING
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name as find
print([AutoConfig.for_model(f"lens_{name}").model_type for name in ("dino", "ibot", "simsiam")])
print(MODEL_MAPPING[type(AutoConfig.for_model("lens_dino"))])
print(find("LensImageProcessor"))
"""
    result = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.splitlines() == [
        "['lens_dino', 'lens_ibot', 'lens_simsiam']",
        "<class 'lens_ssl_hf.models.dino.DinoForPreTraining'>",
        "<class 'lens_ssl_hf.data.image_processor.LensImageProcessor'>",
    ], result.stderr


@pytest.mark.parametrize("first", ["lens_ssl_hf", "transformers.pipelines"])
def test_the_pipeline_is_registered_in_either_order(first):
    program = f"import {first}, lens_ssl_hf; from transformers.pipelines import PIPELINE_REGISTRY as registry; "
    program += "print(registry.check_task('lens-classification')[1]['impl'].__name__)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "LensClassificationPipeline\n", result.stderr


def test_importing_the_package_takes_neither_torch_nor_transformers():
    program = "import lens_ssl_hf, sys; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "set()\n", result.stderr


def test_editors_see_the_public_names():
    tree = ast.parse(Path(lens_ssl_hf.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == lens_ssl_hf._EXPORTS


def test_scripts_are_commands():
    found = re.compile(r"^from lens_ssl_hf\.commands\.(\w+) import main$", re.MULTILINE)
    texts = [path.read_text() for path in (ROOT / "scripts").glob("*.py") if found.search(path.read_text())]
    commands = {found.search(text)[1].replace("_", "-") for text in texts}
    assert commands == set(COMMANDS) - {"simulate", "paint", "score", "rank", "search", "grade", "space"}
    assert max(len(text.splitlines()) for text in texts) <= 6


@pytest.mark.parametrize(
    "argv,expected",
    [
        (["lens-ssl pretrain", "--dataset", "my cutouts"], "lens-ssl pretrain --dataset 'my cutouts'"),
        ([str(ROOT / "lens_ssl_hf/commands/push_dataset.py"), "--x"], "lens-ssl push-dataset --x"),
        ([str(ROOT / "scripts/run_ssl.py"), "--x"], "python scripts/run_ssl.py --x"),
        (["/usr/bin/pytest", "--x"], None),
    ],
)
def test_a_run_records_the_command_that_was_typed(argv, expected, monkeypatch):
    from lens_ssl_hf.training.run_directory import _command

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", argv)
    assert _command() == expected


def test_recipes_that_make_a_study_unfair_are_refused(said, tiny_cutouts, tmp_path):
    data, recipes = save_toy(tiny_cutouts, tmp_path / "toy"), tmp_path / "recipes.yaml"
    line = f"study --dataset {data} --methods supervised dino --labels 32 --output_dir {tmp_path / 'study'}"
    for settings, sentence in (
        ("patch_size: 4", "the pretraining of dino has patch_size 4, the fine-tuning of supervised 8"),
        ("crop_size: 24", "the pretraining of dino has crop_size 24, the fine-tuning of supervised 32"),
        ("init: x", "the pretraining of dino has init"),
    ):
        recipes.write_text(f"dino: {{{settings}}}")
        status, text = said(f"{line} --recipes {recipes} --dry_run")
        assert status == 2 and f"error: {sentence}" in text and not (tmp_path / "study").exists()
