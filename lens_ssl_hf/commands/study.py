r"""
Does self-supervision help when labels are few? The whole table with one command.

```bash
lens-ssl study --dataset my_cutouts --backbones vits8 --methods supervised simsiam dino ibot \
    --labels 100 300 600 1200 all --seeds 3 --subsets 10 --output_dir runs/study
```

Pretrains once per (method, backbone, seed) on all training images without labels, fine-tunes on seeded label subsets,
tests, compares. Every cell is a directory: what is done is not done again, and an interruption costs one cell at most.
Several such commands on one output_dir share the cells, each on its own device (CUDA_VISIBLE_DEVICES); under
`accelerate launch` all processes train every cell together. `--dry_run yes` prints the plan and its time.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.options import DataArguments
from ..errors import InputError, exit_on_input_error
from .parsing import parse, read_yaml
from .shared import load_dataset, quiet, tell

MOST_USED = ("dataset", "output_dir", "methods", "backbones", "labels", "seeds", "subsets", "epochs", "steps")
MOST_USED += ("dry_run",)


@dataclass
class StudyDataArguments(DataArguments):
    """Where the cutouts come from and how they are brought to display units."""

    test_large_size: int | None = field(
        default=None,
        metadata={
            "help": (
                "Simulated: cutouts of a second test split, half of them lenses, for low false-positive rates; "
                "20000 by default, 0 for none."
            )
        },
    )


@dataclass
class StudyArguments:
    output_dir: str = field(default="runs/study", metadata={"help": "Gets a directory per cell, tables and pictures."})
    methods: list[str] = field(
        default_factory=lambda: ["supervised", "simsiam", "dino", "ibot"],
        metadata={
            "help": (
                "simsiam, dino, ibot; with -continued from the pretrainings of earlier_study, with -linear a linear "
                "probe instead of a fine-tuning; supervised (from scratch), supervised-long (with the compute of a "
                "pretraining as well), cnn (a small one), profiles (logistic regression on radial profiles)."
            )
        },
    )
    backbones: list[str] = field(default_factory=lambda: ["vits8"], metadata={"help": "vitt8, vits8, vitb8."})
    labels: list[str] = field(
        default_factory=lambda: ["100", "300", "600", "1200", "all"], metadata={"help": "Label budgets: numbers, all."}
    )
    seeds: int = field(default=3, metadata={"help": "Pretrainings per method and backbone."})
    subsets: int = field(default=10, metadata={"help": "Label subsets per budget and pretraining."})
    folds: list[int] | None = field(
        default=None, metadata={"help": "Of a table with folds: each of these is the test split in turn."}
    )
    epochs: int | None = field(default=None, metadata={"help": "Of the pretrainings; by default each recipe's."})
    steps: int | None = field(default=None, metadata={"help": "Of the fine-tunings; 1800 by default."})
    recipes: str = field(
        default="",
        metadata={
            "help": (
                "A YAML file with settings of the pretrainings by method, over its recipe, such as "
                "scripts/large_batches.yaml; epochs, precision and crop_size win over it."
            )
        },
    )
    crop_size: int | None = field(
        default=None, metadata={"help": "Side in pixels of the images that the models see; 32 by default."}
    )
    precision: str = field(default="auto", metadata={"help": "auto, bf16 or fp32."})
    earlier_study: str = field(
        default="",
        metadata={
            "help": "output_dir of a study on other cutouts; the -continued methods go on from its pretrainings."
        },
    )
    report_dir: str = field(default="", metadata={"help": "Gets tables and pictures; output_dir by default."})
    cards_dir: str = field(default="", metadata={"help": "Gets the model cards; report_dir by default."})
    dry_run: bool = field(default=False, metadata={"help": "Print what would be done and how long it would take."})


@exit_on_input_error
def main() -> None:
    arguments, data_arguments = parse(StudyArguments, StudyDataArguments, description=__doc__, most_used=MOST_USED)
    from ..files import make_folder
    from ..study.plan import describe_plan

    quiet()
    report = Path(arguments.report_dir or arguments.output_dir)
    cards = Path(arguments.cards_dir or report)
    study = _study(arguments, data_arguments)
    if arguments.dry_run:
        tell(describe_plan(study))
        return
    if arguments.report_dir:
        make_folder(report, "report_dir")  # after hours of training is too late
    if arguments.cards_dir:
        make_folder(cards, "cards_dir")
    records = study.run()
    failed = "; ".join(f"{cell.name}: {message}" for cell, message in study.failures.items())
    if failed and not any(record["labels"] != "none" for record in records):
        raise InputError(f"no cell could be done ({failed})")
    _report(study, records, report, cards, failed)
    if failed:
        raise InputError(f"{len(study.failures)} cells failed and are not in the table ({failed})")


def _study(arguments: StudyArguments, data_arguments: StudyDataArguments) -> Any:
    from ..study.methods import PRETRAINED
    from ..study.run import Study

    if arguments.folds and data_arguments.test_fold is not None:
        raise InputError("folds and test_fold both choose the test split: give one of them")
    if arguments.folds and data_arguments.dataset == "simulated":
        raise InputError("folds are of a table with a fold column, which simulated cutouts have not: leave folds out")
    if arguments.earlier_study and not any("-continued" in method for method in arguments.methods):
        raise InputError("earlier_study is for -continued methods: add one, such as ibot-continued, or leave it out")
    if data_arguments.test_large_size is None:
        data_arguments.test_large_size = 20_000 if data_arguments.dataset == "simulated" else 0
    options = [replace(data_arguments, test_fold=fold) for fold in arguments.folds or ()] or [data_arguments]
    given = {name: getattr(arguments, name) for name in ("precision", "crop_size", "epochs", "steps")}
    given = {name: value for name, value in given.items() if value is not None}
    pretraining, finetuning = ({n: v for n, v in given.items() if n != other} for other in ("steps", "epochs"))
    pretrained = [method.removesuffix("-linear") for method in arguments.methods if method in PRETRAINED]
    recipes = _read_recipes(arguments.recipes) if arguments.recipes else {}
    return Study(
        dict(zip(arguments.folds or (None,), map(load_dataset, options))),
        arguments.output_dir,
        arguments.methods,
        arguments.backbones,
        arguments.labels,
        arguments.seeds,
        arguments.subsets,
        pretraining={method: {**recipes.get(method, {}), **pretraining} for method in pretrained},
        finetuning={"all": finetuning},
        earlier_study=Path(arguments.earlier_study) if arguments.earlier_study else None,
    )


def _read_recipes(file: str) -> dict[str, dict[str, Any]]:
    """Settings by method from a YAML file."""
    from ..study.methods import PRETRAINED

    recipes = read_yaml(file, "recipes")
    known = [method for method in PRETRAINED if not method.endswith("-linear")]
    for method, settings in recipes.items():
        if method not in known:
            raise InputError(f"recipes {file} has {method!r}: choose from {', '.join(known)}")
        if not isinstance(settings, dict):
            raise InputError(f"recipes {file} gives {method} no settings: write `{method}: {{batch_size: 256}}`")
    return recipes


def _report(study: Any, records: list[dict[str, Any]], report: Path, cards: Path, failed: str) -> None:
    """Write tables, pictures and cards, from the main process."""
    from ..study.cards import write_cards
    from ..study.report import write_report
    from ..training.accelerator import process_state

    if not process_state().is_main_process:
        return
    with study.lock("report"):  # other commands may end at the same time
        try:
            results = write_report(study, records, report)
        except InputError as error:
            raise InputError(f"{error} ({failed})" if failed else str(error)) from error
        write_cards(study, records, results, cards, report)
    print((report / "table.md").read_text())
    print(f"tables and pictures: {report}")


if __name__ == "__main__":
    main()
