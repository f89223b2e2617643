"""
Compare initialisations with the same labels, views, steps and selection: fine-tune, evaluate, intervals.

```bash
python scripts/run_study.py --dataset my_cutouts/ --inits scratch runs/dino --labels 100 300 --seeds 3 \
    --output_dir runs/study --results runs/study/results.json
```

A cell (initialisation, labels, seed) is a run directory; what is done is not done again.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from lens_ssl_hf.cli import load_dataset, parse, quiet
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.training.arguments import FinetuneArguments


@dataclass
class StudyArguments(FinetuneArguments):
    labels: list[str] = field(default_factory=lambda: ["300"], metadata={"help": "Label budgets: numbers or all."})
    inits: list[str] = field(
        default_factory=lambda: ["scratch"], metadata={"help": "Runs, exported folders, Hub ids, or scratch."}
    )
    seeds: int = field(default=3, metadata={"help": "Seeds per initialisation and budget."})
    results: str = field(default="", metadata={"help": "JSON file to write; results.json in output_dir by default."})

    def __post_init__(self) -> None:
        pass  # every cell's settings are checked when its FinetuneArguments are made


@exit_on_input_error
def main() -> None:
    data_arguments, arguments = parse(DataArguments, StudyArguments, description=__doc__)
    from lens_ssl_hf.evaluation.study import compare, run_study, write_results
    from lens_ssl_hf.training.run_directory import make_folder

    quiet()
    results = Path(arguments.results or f"{arguments.output_dir}/results.json")
    make_folder(results.parent, "results")  # after hours of training is too late
    own = {"labels", "inits", "seeds", "results", "output_dir", "init", "seed", "resume"}
    settings = {f.name: getattr(arguments, f.name) for f in fields(FinetuneArguments) if f.name not in own}
    cells = run_study(
        load_dataset(data_arguments),
        arguments.output_dir,
        arguments.inits,
        arguments.labels,
        arguments.seeds,
        **settings,
    )
    rows = compare(cells)
    write_results(results, cells, rows)
    for row in rows:
        print(f"{row['init']:16} {row['num_labels']:5} labels, {row['seeds']} seeds")
        for name, auc in row.items():
            if isinstance(auc, dict):
                line = f"    {name:24} {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
                if "difference" in auc:
                    low, high = auc["difference_low"], auc["difference_high"]
                    line += f"   minus scratch {auc['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
                print(line)
    print(f"results: {results}")


if __name__ == "__main__":
    main()
