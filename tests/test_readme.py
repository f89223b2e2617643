"""What the README and docs/ show works: examples, command lines, links, and tables, which are the result files'."""

import csv
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from lens_ssl_hf import score
from lens_ssl_hf.commands import main as command_line
from lens_ssl_hf.commands import parsing
from lens_ssl_hf.data.files.headers import Headers, raw_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}

# Words by which each Python example is known.
PUBLISHED, FILES = "model=model)(pixels)", '"cutout.npy"'
STREAM, BACKBONE, LOAD, TRAIN = "iter(files)", "AutoModel.from_pretrained", "size=64", "pretrain(cutouts"
SCORES = "scores/*.parquet"


def blocks(language):
    """The blocks of code of a language on all pages."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```$"
    found = itertools.chain(*(re.findall(pattern, text, re.DOTALL | re.MULTILINE) for text in TEXTS.values()))
    return [textwrap.dedent(code) for _, code in found]


def example(words):
    (code,) = [code for code in blocks("python") if words in code]
    return code


def write_cutouts(folder, number, side):
    rng = np.random.default_rng(0)
    for kind, brightness in (("lenses", 60), ("nonlenses", 20)):
        (folder / kind).mkdir(parents=True)
        for i in range(number):
            flux = rng.normal(0, 1, size=(3, side, side)).astype(np.float32)
            flux[:, side // 2 - 4 : side // 2 + 4, side // 2 - 4 : side // 2 + 4] += brightness
            np.save(folder / kind / f"{i}.npy", flux)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the models of the repository, and cutouts in two formats beside them."""
    from astropy.io import fits

    folder = tmp_path_factory.mktemp("readme")
    (folder / "model_cards").symlink_to(ROOT / "model_cards")
    flux = np.random.default_rng(0).uniform(0, 3, size=(3, 40, 40)).astype(np.float32)
    np.save(folder / "cutout.npy", flux)
    fits.writeto(folder / "cutout.fits", flux)
    (folder / "survey" / "field").mkdir(parents=True)
    for name in ("a.fits", "field/b.fits"):
        shutil.copy(folder / "cutout.fits", folder / "survey" / name)
    return folder


def test_the_readme_is_a_page():
    assert len(TEXTS["README.md"].splitlines()) <= 170


def test_every_example_is_run():
    known = (PUBLISHED, FILES, STREAM, BACKBONE, LOAD, TRAIN, SCORES)
    assert [sum(words in code for words in known) for code in blocks("python")] == [1] * len(known)


@pytest.mark.parametrize("plain", [False, True])
def test_a_published_model_is_used_with_plain_transformers(workplace, plain):
    """With pixels that this package reads, or without it at all."""
    code = example(PUBLISHED)
    if plain:
        lines = [line for line in code.splitlines() if "read_cutout" not in line]
        assert len(lines) == len(code.splitlines()) - 2
        before = "import sys, numpy as np\nsys.modules['lens_ssl_hf'] = None\npixels = np.full((3, 40, 40), 9, 'f4')\n"
        code = before + "\n".join(lines) + "\n"
    command = [sys.executable, "-c", code + "print(sorted(s['label'] for s in scores))"]
    result = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=500)
    assert "['lens', 'nonlens']" in result.stdout, result.stderr


def test_the_backbone_loads(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {}
    exec(example(BACKBONE), names)
    assert type(names["backbone"]).__name__ == "ViTModel"


def test_the_package_reads_fits_and_npy(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {}
    exec(example(FILES).replace('pipeline("model', 'found = pipeline("model'), names)
    assert [len(labels) for labels in names["found"]] == [2, 2]


def test_a_folder_becomes_a_ranked_list(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    lines = [line for page, line in command_lines() if page == "README.md"]
    for command in ("score", "rank"):
        (line,) = [line for line in lines if line.startswith(f"lens-ssl {command} ")]
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        command_line.main()
    with open("ranking/ranking.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {"a.fits", "field/b.fits"}
    assert 1 >= float(rows[0]["score"]) >= float(rows[1]["score"]) >= 0


def test_a_generator_is_scored_file_by_file(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    exec(example(STREAM), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "survey/a.fits",
        "survey/field/b.fits",
    ]


def test_a_survey_is_scored_and_its_shards_are_read(workplace, tmp_path, monkeypatch):
    score(ROOT / "model_cards" / "lens-dino-vits8-classifier", workplace / "survey", tmp_path / "scores", shard_size=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = {}
    exec(example(SCORES), names)
    assert names["scores"]["id"] == ["a.fits", "field/b.fits"] and all(0 < one < 1 for one in names["scores"]["score"])


def test_a_folder_becomes_a_dataset(tmp_path, monkeypatch, capsys):
    write_cutouts(tmp_path / "my_cutouts", number=12, side=70)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = {}
    exec(example(LOAD), names)
    assert np.shape(names["cutouts"]["train"][0]["pixels"]) == (3, 64, 64)
    assert "['nonlens', 'lens']" in capsys.readouterr().out


@pytest.mark.slow
def test_ten_lines_train_a_model_from_a_folder(tmp_path):
    write_cutouts(tmp_path / "my_cutouts", number=110, side=64)
    code = example(TRAIN).replace("epochs=60", "epochs=2").replace("labels=300", "labels=60, steps=20")
    assert code.count("steps=20") == 2
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert "runs/dino-300" in result.stdout and "'value'" in result.stdout, result.stderr
    exported = tmp_path / "lens-dino-vitt8-classifier"
    assert (exported / "model.safetensors").is_file() and (exported / "README.md").is_file()


def test_units_have_the_zero_points_of_the_table():
    rows = re.findall(r"^\| ((?:`\w+`, )+`\w+`) \| ([\d., ]+) \|$", TEXTS["docs/data.md"], re.MULTILINE)
    assert len(rows) == 2
    for units, numbers in rows:
        for unit, number in zip(re.findall(r"\w+", units), numbers.split(", "), strict=True):
            facts = raw_of(np.ones((1, 40, 40)), np.dtype("f4"), Headers({"BUNIT": unit}, {}, unit))
            assert facts.zero_points == (pytest.approx(float(number), abs=0.01),), unit


def load_script(name, monkeypatch):
    """The module with the `main` of a script or of a command of `lens-ssl`."""
    path = ROOT / "scripts" / f"{name}.py"
    if not path.is_file():
        return importlib.import_module(f"lens_ssl_hf.commands.{name.replace('-', '_')}")
    if command := re.search(r"^from (lens_ssl_hf\.commands\.\w+) import main$", path.read_text(), re.MULTILINE):
        return importlib.import_module(command[1])
    monkeypatch.syspath_prepend(path.parent)  # as for one that is run: scripts import each other
    spec = importlib.util.spec_from_file_location(f"script_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [page for page in TEXTS if re.search(r"^<!-- table: ", TEXTS[page], re.MULTILINE)])
def test_tables_are_made_from_the_result_files(page, monkeypatch):
    assert load_script("make_tables", monkeypatch).fill(TEXTS[page]) == TEXTS[page], "run scripts/make_tables.py"


class Parsed(Exception):
    """What a script would do next: it is stopped once it has parsed its command line."""


def parse_command(name, words, monkeypatch):
    """The dataclasses of a script, after its command line was parsed as the script does it."""
    script = load_script(name, monkeypatch)

    def parse(*dataclasses, **options):
        parsing.parse(*dataclasses, **options)
        raise Parsed(dataclasses)

    monkeypatch.setattr(script, "parse", parse)
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *words])
    with pytest.raises(Parsed) as stopped:
        script.main()
    return stopped.value.args[0]


def command_lines():
    """(page, command) of all blocks, with variables of the shell in place, and of code in the text."""
    for page, text in TEXTS.items():
        variables = {}
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"\$(\w+)", lambda match, known=variables: known.get(match[1], match[0]), line)
                if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                    variables[assigned[1]] = assigned[2]
                else:
                    yield page, line
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            if code.startswith(("python ", "make ", "lens-ssl ")):
                yield page, code


def scripts_in(line):
    """(name, words) of the script, or of the command of `lens-ssl`, that a command line runs."""
    scripts, commands = (
        r"(?:python|launch .*?) ?scripts/(\w+)\.py(.*)",
        r"(?:lens-ssl|-m lens_ssl_hf) ([a-z][\w-]*)(.*)",
    )
    for name, rest in re.findall(scripts, line) + re.findall(commands, line):
        own = rest.rpartition('"')[0] if rest.count('"') % 2 else rest  # within the quotes of another command
        yield name, shlex.split(own, comments=True)


COMMANDS = [(page, *found) for page, line in command_lines() for found in scripts_in(line)]


@pytest.mark.parametrize(
    ("page", "name", "words"), COMMANDS, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(COMMANDS)]
)
def test_command_lines_parse(page, name, words, monkeypatch):
    if name in ("make_tables", "use_export"):  # without options
        assert len(words) == {"make_tables": 0, "use_export": 3}[name]
    elif not words:  # a command's name in the text
        assert name in command_line.COMMANDS
    else:
        parse_command(name, words, monkeypatch)


def test_launchers_know_their_options():
    from accelerate.commands.launch import launch_command_parser

    lines = [line for _, line in command_lines() if "accelerate launch" in line]
    assert len(lines) >= 2
    for line in lines:
        words = line.split("accelerate launch", 1)[1].split("scripts/run_")[0]
        options = re.sub(r"\$\(\(.*?\)\)|\\?\$\w+", "2", words).split()
        parsed, unknown = launch_command_parser().parse_known_args([*options, "script.py"])
        assert not [one for one in unknown if one.startswith("-")], line
        assert parsed.config_file is None or (ROOT / parsed.config_file).is_file()


def test_options_in_the_text_exist(monkeypatch):
    data = ["--dataset", "x"]
    required = {
        "simulate": ["x"],
        "build": [*data, "--output", "x"],
        "paint": [*data, "--output", "x", "--seeing", "0.7"],
        "pretrain": data,
        "finetune": data,
        "evaluate": ["m"],
        "export": ["x", "y"],
        "score": ["--model", "m", "--input", "x", "--output", "y"],
        "rank": ["x", "--output", "y"],
        "search": ["x", "--output", "y"],
        "grade": ["x", "--labels", "y"],
        "study": data,
        "push": ["r", "--repo_id", "me/x"],
        "push-dataset": [*data, "--repo_id", "me/x"],
        "push-space": ["m", *data, "--repo_id", "me/x"],
        "real_sky": ["--data_dir", "x", "--output", "y"],
        "space": ["x"],
        "box_cards": ["--second_sky", "x", "--cfhtls", "y"],
        "labelled_simulations": ["--data_dir", "x", "--output", "y"],
        "make_picture": ["x", "y"],
        "make_tiles": ["--output", "x"],
        "measure_search": ["x", "--dataset", "y"],
        "search_recipes": ["--trials", "x", "--log", "y"],
        "second_sky": ["--output", "x"],
        "short_runs": ["--output", "x"],
        "simulated_survey": ["--output", "x"],
    }
    names = {path.stem for path in (ROOT / "scripts").glob("*.py") if "parse(" in path.read_text()}
    known = {"help", "config", "config_file", "num_processes"}
    for name in (names | set(command_line.COMMANDS)) - {"prepare_cfhtls"}:
        known |= {
            field.name for cls in parse_command(name, required.get(name, []), monkeypatch) for field in fields(cls)
        }
    for page, text in TEXTS.items():
        for option in re.findall(r"`--([a-z][\w-]*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            assert option.replace("-", "_") in known, f"{page}: --{option}"


def test_make_knows_its_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, line in command_lines():
        if line.startswith("make "):
            assert line.split()[1] in targets, f"{page}: {line}"


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_named_files_exist(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[page]):
        name, _, anchor = target.partition("#")
        path = folder / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target
    for name in re.findall(r"\b(?:scripts|lens_ssl_hf|model_cards|tests|docs)/[\w./-]*[\w/]", TEXTS[page]):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name


def headings(path):
    """The anchors of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_pictures_are_small():
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXTS["README.md"]):
        assert (ROOT / name).stat().st_size < 300_000, name
