"""What the scripts share: recipes below the command line, and the data set that `--dataset` names."""

import argparse
import difflib
import sys
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
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

    def push(self, run: Path, cutouts: Any) -> None:
        """Evaluate the run, if that was not done yet, and publish it; from the main process."""
        from .training.loop import process_state

        if not self.push_to_hub or not process_state().is_main_process:
            return
        from . import evaluate, load_cutouts, push_to_hub

        try:
            if not (run / "evaluation" / "metrics.json").is_file():
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
    line wins.

    Args:
        dataclasses: one argument group each; field metadata `help` is shown by `--help`.
        positional (`tuple[str, ...]`, *optional*): fields that may be given without their names, in this order.

    Raises:
        [`InputError`]: an unknown option, a value that does not fit, or a missing one.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        dataclasses, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = _refuse
    # Blank values stand in for required options until the words without a name are known.
    arguments = [*(f"--{name}=" for name in positional), *sys.argv[1:]]
    known, rest = parser.parse_known_args(arguments)
    words = [word for word in rest if not word.startswith("-")]
    for word in [word for word in rest if word.startswith("-")] + words[len(positional) :]:
        close = difflib.get_close_matches(word.split("=")[0], parser._option_string_actions, n=1)
        raise InputError(f"unknown argument {word}: {f'did you mean {close[0]}?' if close else 'see --help'}")
    arguments += [f"--{name}={word}" for name, word in zip(positional, words)]
    for name in positional[len(words) :]:
        if not getattr(known, name):
            raise InputError(f"{name} is missing: see --help")
    if hasattr(known, "method"):
        from .training.arguments import recipe

        parser.set_defaults(**recipe(known.method))
    return list(parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)[: len(dataclasses)])


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}: see --help")


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
    from .training.loop import main_process_first

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


def draw_curves(run: Path) -> None:
    """Write `curves.png` into a run, from the main process, where matplotlib is installed."""
    from .training.loop import process_state

    if process_state().is_main_process and find_spec("matplotlib"):
        from .evaluation.plots import plot_curves

        plot_curves(run)


def tell(text: str) -> None:
    """Print from the main process alone."""
    from .training.loop import process_state

    if process_state().is_main_process:
        print(text)


def quiet() -> None:
    """No progress bars for steps that take no time, such as writing one file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
