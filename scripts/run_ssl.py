"""
Pretrain a ViT on cutouts without their labels.

```bash
accelerate launch scripts/run_ssl.py --method dino --backbone vits8 --dataset my_cutouts/ --output_dir runs/dino
```

On a laptop `python scripts/run_ssl.py --method dino --backbone vitt8 ...` does the same. The recipe of the method
(lens_ssl_hf/recipes/) sets the numbers; options on the command line win. `--push_to_hub me/lens-dino-vits8` evaluates
and publishes the run when it is done; given again with `--resume auto`, that of a finished run.
"""

import shlex

from lens_ssl_hf.cli import TrainingPushArguments, draw_curves, load_dataset, parse, quiet, tell
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.training.arguments import PretrainArguments


@exit_on_input_error
def main() -> None:
    data_arguments, arguments, publication = parse(
        DataArguments, PretrainArguments, TrainingPushArguments, description=__doc__
    )
    from lens_ssl_hf import pretrain
    from lens_ssl_hf.training.run_directory import read_run

    quiet()
    publication.check(is_classifier=False)
    cutouts = load_dataset(data_arguments, may_stream=True)
    publication.check_splits(cutouts)
    run = pretrain(cutouts, **vars(arguments))
    draw_curves(run)
    publication.push(run, cutouts)
    labels = min(300, read_run(run).get("num_train_labels", 300))
    dataset = shlex.quote(data_arguments.dataset) if labels else "LABELLED_CUTOUTS"
    options = f"--dataset {dataset} --labels {labels or 'all'}"
    tell(f"run: {run}   next: python scripts/run_finetune.py --init {shlex.quote(str(run))} {options}")


if __name__ == "__main__":
    main()
