"""What the scripts share: recipes below the command line, and the data set that `--dataset` names."""

import difflib
import inspect
import re
import shutil
import sys
import textwrap
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from .data.arguments import DataArguments
from .errors import InputError


@dataclass
class PushArguments:
    """Where something is published."""

    repo_id: str = field(metadata={"help": "The repository on the Hub, such as me/lens-dino-vits8."})
    private: bool = field(default=False, metadata={"help": "Make a new repository that others cannot see."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch to commit to, made where it is missing; main by default."}
    )
    dry_run: str | None = field(
        default=None,
        metadata={
            "help": "Publish nothing; write what would be to this folder, by default the repository's name.",
            "nargs": "?",
            "const": "",
        },
    )

    def __post_init__(self) -> None:
        if self.dry_run == "":
            self.dry_run = self.repo_id.split("/")[-1]


@dataclass
class TrainingPushArguments:
    """What a training script publishes when it is done."""

    push_to_hub: str | None = field(
        default=None,
        metadata={
            "help": (
                "Then evaluate the run on the test split and publish it as this repository, such as "
                "me/lens-dino-vits8 (a classifier's ends in -classifier)."
            )
        },
    )
    hub_private: bool = field(default=False, metadata={"help": "Make a new repository that others cannot see."})

    def check(self, is_classifier: bool) -> None:
        """Refuse before the training what could not be published after it."""
        if self.push_to_hub:
            from .hub.push import check_repo_id

            check_repo_id(self.push_to_hub, is_classifier)

    def check_splits(self, cutouts: Any) -> None:
        """Refuse before the training cutouts on which it could not be evaluated after it."""
        if self.push_to_hub and "test" not in _split_names(cutouts):
            raise InputError(
                "push_to_hub evaluates the run on a test split, which the dataset lacks: add one, or leave "
                "push_to_hub out and publish the run after run_eval.py"
            )

    def push(self, run: Path, cutouts: Any) -> None:
        """Evaluate the run, if that was not done yet, and publish it; from the main process."""
        from .training.accelerator import process_state

        if not self.push_to_hub or not process_state().is_main_process:
            return
        from . import evaluate, load_cutouts, push_to_hub
        from .hub.card import read_evaluation

        try:
            if read_evaluation(run) is None:
                is_directory = isinstance(cutouts, str) and Path(cutouts).is_dir()
                evaluate(run, load_cutouts(cutouts) if is_directory else cutouts)
            print(push_to_hub(run, self.push_to_hub, private=self.hub_private))
        except InputError as error:
            raise InputError(
                f"the run {run} is done and kept but not published: {error} "
                f"(python scripts/push_to_hub.py {run} --repo_id {self.push_to_hub} publishes it alone)"
            ) from error


def parse(*dataclasses: type, description: str | None = None, positional: tuple[str, ...] = ()) -> list[Any]:
    """
    Parse the command line into dataclasses. A pretraining's method has a recipe, which sets the defaults; the command
    line wins. `--help` shows the defaults that hold for the rest of the command line.

    Args:
        dataclasses: field metadata `help` is shown by `--help`, under the first words of the class's docstring.
        positional (`tuple[str, ...]`, *optional*): fields that may be given without their names, in this order.

    Raises:
        [`InputError`]: an unknown option, a value that does not fit, or a missing one.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(dataclasses, add_help=False)
    parser.error = _refuse
    words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    wants_help = len(words) < len(sys.argv) - 1
    for action in parser._actions:
        action.required = action.required and not wants_help
    # Blank values stand in for required options until the words without a name are known.
    arguments = [*(f"--{name}=" for name in positional), *_with_plain_flags(words, parser)]
    known, rest = parser.parse_known_args(arguments)
    if hasattr(known, "method"):
        from .training.arguments import recipe

        parser.set_defaults(**recipe(known.method))
    if wants_help:
        print(_help(parser, dataclasses, description, positional))
        sys.exit()
    arguments += _name_words(rest, words, known, parser, positional)
    found = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True, look_for_args_file=False)
    return list(found[: len(dataclasses)])


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}: see --help")


def _with_plain_flags(words: list[str], parser: Any) -> list[str]:
    """
    The command line with a value in every flag that has none, so that argparse takes no other word for it: yes in
    `--private RUN`, an empty one in `--dry_run RUN`.
    """
    found = []
    for word, following in zip(words, [*words[1:], ""]):
        action = parser._option_string_actions.get(word)
        if action is None or action.nargs != "?" or (action.const is True and following.lower() in _YES_OR_NO):
            found.append(word)
        else:
            found.append(f"{word}={'yes' if action.const is True else action.const}")
    return found


_YES_OR_NO = ("yes", "no", "true", "false", "t", "f", "y", "n", "1", "0")


def _name_words(rest: list[str], words: list[str], known: Any, parser: Any, positional: tuple[str, ...]) -> list[str]:
    """The words without a name as options: positional ones, and a folder behind `--dry_run` where one word is left."""
    free = [word for word in rest if not word.startswith("-")]
    missing = [name for name in positional if not getattr(known, name)]
    named = []
    for flag, word in pairwise(words):
        if flag in ("--dry_run", "--dry-run") and word in free and len(free) > len(missing):
            free.remove(word)
            named.append(f"--dry_run={word}")
    for word in [word for word in rest if word.startswith("-")] + free[len(missing) :]:
        options = {option.lstrip("-"): option for option in parser._option_string_actions}
        close = difflib.get_close_matches(word.split("=")[0].lstrip("-"), options, n=1, cutoff=0.75)
        raise InputError(f"unknown argument {word}: {f'did you mean {options[close[0]]}?' if close else 'see --help'}")
    for name in missing[len(free) :]:
        raise InputError(f"{name} is missing: see --help")
    return named + [f"--{name}={word}" for name, word in zip(missing, free)]


def _help(parser: Any, dataclasses: tuple[type, ...], description: str | None, positional: tuple[str, ...]) -> str:
    """Every option with the default that holds, grouped by the class that it is of."""
    usage = " ".join(["usage:", parser.prog, *map(str.upper, positional), "[options]"])
    groups: dict[str, list[str]] = {}
    actions = {action.dest: action for action in reversed(parser._actions)}  # of --flip and --no_flip the first
    for cls in dataclasses:
        for item in fields(cls):
            owner = next(base for base in reversed(cls.__mro__) if item.name in inspect.get_annotations(base))
            lines = groups.setdefault(_title(owner), [])
            lines += _explain(f"--{item.name}", item.metadata["help"] + _default(item, actions[item.name]))
            if f"--no_{item.name}" in parser._option_string_actions:
                lines += _explain(f"--no_{item.name}", f"The same as --{item.name} no.")
    blocks = ["\n".join([f"{title}:", *lines]) for title, lines in groups.items()]
    return "\n\n".join([usage, (description or "").strip(), *blocks, "Names may be written with - instead of _."])


def _title(cls: type) -> str:
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "Options" if doc.startswith(f"{cls.__name__}(") else re.split(r"[.;]", doc)[0]


def _explain(option: str, text: str) -> list[str]:
    indent = 26
    width = max(60, min(120, shutil.get_terminal_size().columns - 2))
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False)
    first = [f"  {option.ljust(indent - 3)} {lines[0]}"] if len(option) < indent - 2 else [f"  {option}"]
    return first + [" " * indent + line for line in (lines if first[0].strip() == option else lines[1:])]


def _default(item: Field, action: Any) -> str:
    """`" (default: 32)"`, with the choices if there are some; nothing where the help itself says what happens."""
    if item.default is MISSING and item.default_factory is MISSING:
        return " (required)"
    value = action.default
    choices = f"one of {', '.join(action.choices)}; " if action.choices else ""
    if value in (None, ""):
        return f" ({choices[:-2]})" if choices else ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f" ({choices}default: {' '.join(map(str, value)) if isinstance(value, list) else value})"


def load_dataset(arguments: DataArguments, may_stream: bool = False) -> Any:
    """
    The cutouts that `--dataset` names: a `.safetensors` file as its path, and what [`save_cutouts`] wrote too where it
    `may_stream`; all else through [`load_cutouts`].
    """
    is_saved = may_stream and (Path(arguments.dataset) / "cutouts.json").is_file()
    if arguments.dataset.endswith(".safetensors") or is_saved:
        for name, value in asdict(DataArguments(dataset=arguments.dataset)).items():
            if getattr(arguments, name) != value and name not in ("cache_dir", "num_proc"):
                raise InputError(f"{name} cannot change {arguments.dataset}: give it to build_dataset.py")
        return arguments.dataset
    from .training.accelerator import main_process_first

    try:
        from .data.cutouts import load_cutouts
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: write the data set to one .safetensors file elsewhere "
            "(scripts/build_dataset.py) and give that as --dataset"
        ) from error
    options = asdict(arguments)
    with main_process_first():
        return load_cutouts(options.pop("dataset"), **options)


def load_dataset_like(model: str, arguments: DataArguments) -> Any:
    """
    As [`load_dataset`], for cutouts that `model` is to score: files that are no dataset yet are brought to its display
    units. What is simulated or built has its own, and is compared with the model's where it is scored.
    """
    path = Path(arguments.dataset)
    is_built = arguments.dataset.endswith(".safetensors") or (path / "cutouts.json").is_file()
    if is_built or not path.exists() or arguments.dataset == "simulated":
        return load_dataset(arguments)
    if arguments.like not in (None, model):
        raise InputError(f"like is {arguments.like} but {model} scores the cutouts: leave like out")
    from .models.loading import read_config

    if getattr(read_config(model), "cutouts", None):
        return load_dataset(replace(arguments, like=model))
    print(f"{model} does not say how its cutouts were made: {path} gets a stretch of its own", file=sys.stderr)
    return load_dataset(arguments)


def _split_names(cutouts: Any) -> set[str]:
    """The splits of what [`load_dataset`] returned."""
    if not isinstance(cutouts, str):
        return set(cutouts)
    if Path(cutouts).is_dir():
        return {path.name.split("-")[0] for path in Path(cutouts).glob("data/*.parquet")}
    from safetensors import safe_open

    with safe_open(cutouts, framework="pt") as file:
        return {name.rsplit(".", 1)[0] for name in file.keys()}


def draw_curves(run: Path) -> None:
    """Write `curves.png` into a run, from the main process, where matplotlib is installed."""
    from .training.accelerator import process_state

    if process_state().is_main_process and find_spec("matplotlib"):
        from .evaluation.plots import plot_curves

        plot_curves(run)


def tell(text: str) -> None:
    """Print from the main process alone."""
    from .training.accelerator import process_state

    if process_state().is_main_process:
        print(text)


def quiet() -> None:
    """No progress bars for steps that take no time, such as writing one file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
