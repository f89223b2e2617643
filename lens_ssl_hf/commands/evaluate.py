"""
Evaluate a classifier on a labelled split, with 95 % intervals; or a pretrained backbone, by kNN and linear probe.

```bash
lens-ssl evaluate runs/dino-300 --dataset my_cutouts/            # writes runs/dino-300/evaluation/
lens-ssl evaluate runs/dino-300 --dataset other_cutouts/         # evaluation-other_cutouts-.../ beside it
lens-ssl evaluate runs/dino-300 --dataset unlabelled/ --predict_only
lens-ssl evaluate model_cards/lens-dino-vits8-classifier --dataset other_cutouts/ --eval_dir evaluation/
lens-ssl evaluate runs/dino-300/evaluation/predictions.parquet --eval_dir evaluation/ --prevalence 1e-4
```

The model is a run, an exported folder, a Hub id, or a file of predictions. Files are brought to the model's bands,
pixel scale, zero point and stretch; a dataset that was built keeps its own. `--predict_only` writes
predictions.parquet.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.options import DataArguments
from ..errors import InputError, exit_on_input_error
from ..files import looks_local
from ..launch import one_process
from .parsing import parse
from .shared import load_dataset, load_dataset_like, quiet

MOST_USED = ("model", "dataset", "split", "eval_dir", "prevalence", "batch_size", "predict_only")


@dataclass
class EvalDataArguments(DataArguments):
    """Where the cutouts come from and how they are brought to display units."""

    dataset: str = field(
        default="",
        metadata={
            "help": (
                "A folder, a table, a stack, a directory that save_cutouts wrote, the Hub id of one, or 'simulated'. "
                "Required, unless the model is a file of predictions; with one it adds the contact sheet."
            )
        },
    )


@dataclass
class EvalArguments:
    model: str = field(metadata={"help": "A run, an exported folder, a Hub id, or a file of predictions."})
    split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on; test by default, or the only one."}
    )
    eval_dir: str | None = field(
        default=None,
        metadata={
            "help": (
                "Where to write; by default evaluation/ of a run for the test split of its own dataset, and a folder "
                "beside it for other datasets and splits."
            )
        },
    )
    prevalence: float = field(default=1e-3, metadata={"help": "Share of lenses on the sky, for the expected purity."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Draws of the bootstrap over groups."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap."})
    batch_size: int = field(default=256, metadata={"help": "Cutouts per forward pass."})
    predict_only: bool = field(default=False, metadata={"help": "Write predictions.parquet and measure nothing."})


@exit_on_input_error
@one_process
def main() -> None:
    arguments, data_arguments = parse(
        EvalArguments, EvalDataArguments, description=__doc__, positional=("model",), most_used=MOST_USED
    )
    model = Path(arguments.model)
    has_predictions = model.suffix == ".parquet"
    if not has_predictions and not data_arguments.dataset:
        raise InputError("--dataset is missing: give the cutouts to evaluate on")
    if arguments.split and not data_arguments.dataset:
        raise InputError("--split is one of a dataset, and a file of predictions has none: give --dataset, too")
    if looks_local(arguments.model) and not model.exists():
        raise InputError(f"{model} does not exist: correct the path")
    if not arguments.eval_dir and not (model / "run.json").is_file():
        raise InputError(f"{model} is no run: say with --eval_dir where to write")
    from .. import evaluate_model, predict
    from ..evaluation.reports import evaluation_folder, name_if_changed
    from ..inference.inputs import choose_split

    quiet()
    cutouts = None
    if has_predictions and data_arguments.dataset:  # for the contact sheet
        cutouts = load_dataset(data_arguments)
    elif not has_predictions:
        cutouts = load_dataset_like(arguments.model, data_arguments)
    if arguments.eval_dir:
        folder = Path(arguments.eval_dir)
    else:
        chosen, info, split = choose_split(cutouts, arguments.split)
        folder = evaluation_folder(model, info, name_if_changed(model, info, split, chosen))
    if arguments.predict_only:
        predictions = predict(arguments.model, cutouts, arguments.batch_size, split=arguments.split)
        print(predictions.save(folder / "predictions.parquet"))
        return
    names = ("split", "prevalence", "num_bootstrap", "seed", "batch_size")
    result = evaluate_model(arguments.model, cutouts, folder, **{name: getattr(arguments, name) for name in names})
    for name, report in result.get("probes", {"": result}).items():
        if name:
            print(f"-- {name} probe")
        for entry in report["metrics"].values():
            _tell(entry)
    print(f"written to {folder}")


def _tell(entry: dict[str, Any]) -> None:
    if entry["value"] is None:
        print(f"{entry['title']:48} not measured: {entry['reason']}")
        return
    interval = f"[{entry['low']:.3f}, {entry['high']:.3f}]" if entry["low"] is not None else ""
    print(f"{entry['title']:48} {entry['value']:.3f} {interval}")
    if note := entry.get("note"):
        print(f"{'':48} {note}")


if __name__ == "__main__":
    main()
