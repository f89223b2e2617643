"""What the scripts share: recipes below the command line, and the data set that `--dataset` names."""

import argparse
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .data.arguments import DataArguments
from .errors import InputError


def parse(*dataclasses: type, description: str | None = None, positional: tuple[str, ...] = ()) -> list[Any]:
    """
    Parse the command line into dataclasses. `--method M` first takes the numbers of M's recipe; the command line wins.

    Args:
        dataclasses: one argument group each; field metadata `help` is shown by `--help`.
        positional (`tuple[str, ...]`, *optional*): fields that are given without their names, in this order.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        dataclasses, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments = sys.argv[1:]
    named = []
    while positional and arguments and not arguments[0].startswith("-"):
        named += [f"--{positional[len(named) // 2]}", arguments.pop(0)]
        if len(named) // 2 == len(positional):
            break
    known, _ = parser.parse_known_args(named + arguments)
    if hasattr(known, "method"):
        from .training.arguments import recipe

        parser.set_defaults(**recipe(known.method))
    return list(parser.parse_args_into_dataclasses(args=named + arguments))


def load_dataset(arguments: DataArguments) -> Any:
    """The cutouts that `--dataset` names: a `.safetensors` file as its path, all else through [`load_cutouts`]."""
    if arguments.dataset.endswith(".safetensors"):
        return arguments.dataset
    from accelerate import PartialState

    try:
        from .data.cutouts import load_cutouts
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: write the data set to one .safetensors file elsewhere "
            "(scripts/build_dataset.py) and give that as --dataset"
        ) from error
    options = asdict(arguments)
    with PartialState().main_process_first():
        return load_cutouts(options.pop("dataset"), **options)


def draw_curves(run: Path) -> None:
    """Write `curves.png` into a run, from the main process, where matplotlib is installed."""
    from accelerate import PartialState

    if PartialState().is_main_process and find_spec("matplotlib"):
        from .evaluation.plots import plot_curves

        plot_curves(run)


def quiet() -> None:
    """No progress bars for steps that take no time, such as writing one file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
