"""
Fine-tune a lens / non-lens classifier on a few hundred labels.

```bash
accelerate launch scripts/run_finetune.py --dataset my_cutouts/ --labels 300 \
    --init runs/dino --output_dir runs/dino-300
accelerate launch scripts/run_finetune.py --dataset my_cutouts/ --labels 300 \
    --backbone vits8 --output_dir runs/scratch-300
```

`--init` is a pretraining run, an exported folder, the Hub id of a stock ViT, or scratch (the default).
`--push_to_hub me/lens-dino-vits8-classifier` evaluates and publishes the run when it is done; given again with
`--resume auto`, that of a finished run.
"""

import shlex

from lens_ssl_hf.cli import TrainingPushArguments, draw_curves, load_dataset, parse, quiet, tell
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.training.arguments import FinetuneArguments


@exit_on_input_error
def main() -> None:
    data_arguments, arguments, publication = parse(
        DataArguments, FinetuneArguments, TrainingPushArguments, description=__doc__
    )
    from lens_ssl_hf import finetune

    quiet()
    publication.check(is_classifier=True)
    cutouts = load_dataset(data_arguments)
    publication.check_splits(cutouts)
    run = finetune(cutouts, **vars(arguments))
    draw_curves(run)
    publication.push(run, cutouts)
    dataset = shlex.quote(data_arguments.dataset)
    tell(f"run: {run}   next: python scripts/run_eval.py {shlex.quote(str(run))} --dataset {dataset}")


if __name__ == "__main__":
    main()
