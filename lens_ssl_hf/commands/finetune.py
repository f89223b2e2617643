"""
Fine-tune a lens / non-lens classifier on a few hundred labels.

```bash
lens-ssl finetune --init runs/dino --labels 300 --dataset my_cutouts/ --output_dir runs/dino-300
lens-ssl finetune --backbone vits8 --labels 300 --dataset my_cutouts/ --output_dir runs/scratch-300
```

`--init` is a pretraining run, an exported folder, the Hub id of a ViT, DINOv2 or I-JEPA, or scratch (the
default).
`--push_to_hub me/lens-dino-vits8-classifier` evaluates and publishes the run when it is done; given again with
`--resume auto`, that of a finished run.
"""

import shlex

from ..data.options import DataArguments
from ..errors import exit_on_input_error
from ..training.arguments import FinetuneArguments
from .parsing import parse
from .shared import TrainingPushArguments, draw_curves, load_dataset, options_of, quiet, tell

MOST_USED = ("dataset", "init", "backbone", "labels", "output_dir", "steps", "batch_size", "learning_rate")
MOST_USED += ("seed", "resume")


@exit_on_input_error
def main() -> None:
    arguments, data_arguments, publication = parse(
        FinetuneArguments, DataArguments, TrainingPushArguments, description=__doc__, most_used=MOST_USED
    )
    from .. import finetune

    quiet()
    publication.check(is_classifier=True)
    cutouts = load_dataset(data_arguments)
    publication.check_splits(cutouts)
    run = finetune(cutouts, **vars(arguments))
    draw_curves(run)
    publication.push(run, cutouts)
    options = options_of(data_arguments) if "test" in cutouts else "--dataset LABELLED_CUTOUTS"
    tell(f"run: {run}   next: lens-ssl evaluate {shlex.quote(str(run))} {options}")


if __name__ == "__main__":
    main()
