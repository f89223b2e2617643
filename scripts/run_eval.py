"""
Evaluate a classifier on a labelled split, with 95 % intervals; or a pretrained backbone, by kNN and linear probe.

```bash
python scripts/run_eval.py runs/dino-300 --dataset my_cutouts/            # writes runs/dino-300/evaluation/
python scripts/run_eval.py runs/dino-300 --dataset other_cutouts/         # evaluation-other_cutouts-.../ beside it
python scripts/run_eval.py runs/dino-300 --dataset unlabelled/ --predict_only
python scripts/run_eval.py lens-dino-vits8-classifier --dataset other_cutouts/ --eval_dir evaluation/
python scripts/run_eval.py runs/dino-300/evaluation/predictions.parquet --eval_dir evaluation/ --prevalence 1e-4
```

The model is a run, an exported folder, a Hub id, or a file of predictions. Files are brought to the model's bands,
pixel scale, zero point and stretch; a dataset that was built keeps its own. `--predict_only` writes predictions.csv
and needs nothing but torch, transformers and safetensors.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lens_ssl_hf.cli import load_dataset_like, parse, quiet
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.launch import one_process


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
    predict_only: bool = field(default=False, metadata={"help": "Write predictions.csv and measure nothing."})


@exit_on_input_error
@one_process
def main() -> None:
    data_arguments, arguments = parse(DataArguments, EvalArguments, description=__doc__, positional=("model",))
    from lens_ssl_hf import evaluate, predict
    from lens_ssl_hf.evaluation.evaluate import choose_split, evaluation_folder

    quiet()
    model = Path(arguments.model)
    if not arguments.eval_dir and not (model / "run.json").is_file():
        raise InputError(f"{model} is no run: say with --eval_dir where to write")
    has_predictions = model.suffix in (".parquet", ".csv")
    cutouts = None if has_predictions else load_dataset_like(arguments.model, data_arguments)
    if arguments.eval_dir:
        folder = Path(arguments.eval_dir)
    else:
        _, info, split = choose_split(cutouts, arguments.split)
        folder = evaluation_folder(model, info, split)
    if arguments.predict_only:
        predictions = predict(arguments.model, cutouts, arguments.batch_size, split=arguments.split)
        print(predictions.save(folder / "predictions.csv"))
        return
    result = evaluate(
        arguments.model,
        cutouts,
        folder,
        split=arguments.split,
        prevalence=arguments.prevalence,
        num_bootstrap=arguments.num_bootstrap,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    for name, report in result.get("probes", {"": result}).items():
        if name:
            print(f"-- {name} probe")
        for entry in report["metrics"].values():
            if entry["value"] is None:
                print(f"{entry['title']:48} not measured: {entry['reason']}")
            else:
                interval = f"[{entry['low']:.3f}, {entry['high']:.3f}]" if entry["low"] is not None else ""
                print(f"{entry['title']:48} {entry['value']:.3f} {interval}")
                if note := entry.get("note"):
                    print(f"{'':48} {note}")
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
