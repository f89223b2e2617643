"""What the commands share: publication, the dataset that `--dataset` names, and what the main process says."""

import shlex
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.options import DataArguments
from ..errors import InputError


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
            self.dry_run = self.repo_id.split("/")[-1] or "published"


@dataclass
class TrainingPushArguments:
    """What a training publishes when it is done."""

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
            from ..hub.push import check_repo_id

            check_repo_id(self.push_to_hub, is_classifier)

    def check_splits(self, cutouts: Any) -> None:
        """Refuse before the training cutouts on which it could not be evaluated after it."""
        if self.push_to_hub and "test" not in _split_names(cutouts):
            raise InputError(
                "push_to_hub evaluates the run on a test split, which the dataset lacks: add one, or leave "
                "push_to_hub out and publish the run after lens-ssl evaluate"
            )

    def push(self, run: Path, cutouts: Any) -> None:
        """Evaluate the run, if that was not done yet, and publish it; from the main process."""
        from ..training.accelerator import process_state

        if not self.push_to_hub or not process_state().is_main_process:
            return
        from .. import evaluate_model, push_to_hub
        from ..hub.card import read_evaluation

        try:
            if read_evaluation(run) is None:
                evaluate_model(run, cutouts)
            print(push_to_hub(run, self.push_to_hub, private=self.hub_private))
        except InputError as error:
            raise InputError(
                f"the run {run} is done and kept but not published: {error} "
                f"(lens-ssl push {run} --repo_id {self.push_to_hub} publishes it alone)"
            ) from error


def load_dataset(arguments: DataArguments, may_stream: bool = False) -> Any:
    """
    The cutouts that `--dataset` names, through [`load_cutouts`]; what [`save_cutouts`] wrote as its path where it
    `may_stream`.
    """
    if may_stream and (Path(arguments.dataset) / "cutouts.json").is_file():
        for name, value in asdict(DataArguments(dataset=arguments.dataset)).items():
            if getattr(arguments, name) != value and name not in ("cache_dir", "num_proc"):
                raise InputError(f"{name} cannot change {arguments.dataset}: give it to lens-ssl build")
        return arguments.dataset
    from ..data.dataset import load_cutouts
    from ..training.accelerator import main_process_first

    options = asdict(arguments)
    with main_process_first():
        return load_cutouts(options.pop("dataset"), **options)


def load_dataset_like(model: str, arguments: DataArguments) -> Any:
    """
    As [`load_dataset`], for cutouts that `model` is to score: files that are no dataset yet are brought to its display
    units. What is simulated or built has its own, and is compared with the model's where it is scored.
    """
    path = Path(arguments.dataset)
    if (path / "cutouts.json").is_file() or not path.exists() or arguments.dataset == "simulated":
        return load_dataset(arguments)
    if arguments.like not in (None, model):
        raise InputError(f"like is {arguments.like} but {model} scores the cutouts: leave like out")
    from ..models.loading import read_config

    if getattr(read_config(model), "cutouts", None):
        return load_dataset(replace(arguments, like=model))
    print(f"{model} does not say how its cutouts were made: {path} gets a stretch of its own", file=sys.stderr)
    return load_dataset(arguments)


def options_of(arguments: DataArguments) -> str:
    """
    The words of a command line for the same splits of the same cutouts. `--like` is left out: what reads them next has
    a model whose stretch it takes.
    """
    words = ["--dataset", arguments.dataset]
    for item in fields(DataArguments):
        value = getattr(arguments, item.name)
        if value != item.default and item.name not in ("dataset", "like", "cache_dir", "num_proc"):
            is_flag = isinstance(value, bool)
            words += [f"--{item.name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
            words[-1] = ("yes" if value else "no") if is_flag else words[-1]
    return shlex.join(words)


def _split_names(cutouts: Any) -> set[str]:
    """The splits of what [`load_dataset`] returned."""
    if not isinstance(cutouts, str):
        return set(cutouts)
    from ..data.storage import split_of

    return {split_of(path) for path in Path(cutouts).glob("data/*.parquet")}


def draw_curves(run: Path) -> None:
    """Write `curves.png` into a run, from the main process, where matplotlib is installed."""
    from ..training.accelerator import process_state

    if process_state().is_main_process and find_spec("matplotlib"):
        from ..evaluation.plots import plot_curves

        plot_curves(run)


def tell(text: str) -> None:
    """Print from the main process alone."""
    from ..training.accelerator import process_state

    if process_state().is_main_process:
        print(text)


def quiet() -> None:
    """No progress bars for steps that take no time, such as writing one file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
