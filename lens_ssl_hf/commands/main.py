"""
Find strong gravitational lenses with few labels: `lens-ssl COMMAND --help` explains each command.

```bash
lens-ssl pretrain --method dino --backbone vitt8 --dataset my_cutouts --output_dir runs/dino
```
"""

import difflib
import importlib
import sys

from ..errors import InputError, exit_on_input_error

COMMANDS = {
    "simulate": "write a dataset of simulated cutouts",
    "build": "write a dataset of your own cutouts, and show what was understood of them",
    "paint": "write a labelled dataset of your own galaxies with simulated arcs",
    "pretrain": "train a ViT on cutouts without their labels",
    "finetune": "train a classifier on a few hundred labels",
    "evaluate": "measure a model on labelled cutouts, with intervals",
    "score": "score every cutout of a survey",
    "rank": "list the best candidates of a scored survey, and a random sample of the rest",
    "search": "find what looks like some objects of a scored survey, or like nothing else",
    "grade": "measure a search by grades of its ranking, and calibrate its scores",
    "export": "write a run as a folder that plain transformers loads",
    "study": "compare methods over label budgets and seeds",
    "push": "publish a run on the Hub",
    "push-dataset": "publish a dataset on the Hub",
    "push-space": "publish a page that scores cutouts in the browser",
    "space": "open such a page on this machine",
}
_HELP = f"""usage: lens-ssl COMMAND [options]

{__doc__.strip().splitlines()[0]}

commands:
{chr(10).join(f"  {name:14} {does}" for name, does in COMMANDS.items())}

options of every command:
  --help         Its options and their defaults.
  --config FILE  A YAML file with options. The command line wins."""


@exit_on_input_error
def main() -> None:
    before, name, after = _split(sys.argv[1:])
    if name is None:
        if not {"-h", "--help"} & set(before):
            raise InputError(f"give a command: {', '.join(COMMANDS)}; see lens-ssl --help")
        print(_HELP)
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean lens-ssl {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {name}: {hint}")
    sys.argv = [f"lens-ssl {name}", *before, *after]  # what a command parses, and what a run records
    importlib.import_module(f".{name.replace('-', '_')}", __package__).main()


def _split(words: list[str]) -> tuple[list[str], str | None, list[str]]:
    """The words before the command, which are options of every command; the command, if there is one; the rest."""
    for position, word in enumerate(words):
        if not word.startswith("-") and (position == 0 or words[position - 1] != "--config"):
            return words[:position], word, words[position + 1 :]
    return words, None, []
