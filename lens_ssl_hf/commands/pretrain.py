r"""
Pretrain a ViT on cutouts without their labels.

```bash
lens-ssl pretrain --method dino --backbone vitt8 --dataset my_cutouts/ --output_dir runs/dino
accelerate launch --config_file scripts/accelerate/many_gpus.yaml --num_processes 8 \
    scripts/run_ssl.py --method dino --backbone vits8 --dataset my_cutouts/ --output_dir runs/dino
```

The recipe of the method (lens_ssl_hf/recipes/) sets the numbers; a file that --config names wins over it, and the
command line over both. `--push_to_hub me/lens-dino-vits8` evaluates and publishes the run when it is done; given again
with `--resume auto`, that of a finished run.
"""

import shlex

from ..data.options import DataArguments
from ..errors import exit_on_input_error
from ..training.arguments import PretrainArguments
from .parsing import parse
from .shared import TrainingPushArguments, draw_curves, load_dataset, options_of, quiet, tell

MOST_USED = ("dataset", "method", "backbone", "init", "output_dir", "epochs", "batch_size", "learning_rate")
MOST_USED += ("seed", "resume")
GROUPS = {
    "Optimizer": (
        "optimizer",
        "final_learning_rate",
        "warmup_fraction",
        "weight_decay",
        "final_weight_decay",
        "clip_grad_norm",
    ),
    "Sizes and masks of views": (
        "global_scale_min",
        "num_local_views",
        "local_size",
        "local_scale_min",
        "local_scale_max",
        "mask_ratio",
    ),
    "Heads, teacher and losses": (
        "head_hidden_size",
        "head_bottleneck_size",
        "num_prototypes",
        "projection_size",
        "prediction_hidden_size",
        "student_temperature",
        "teacher_temperature",
        "warmup_teacher_temperature",
        "patch_teacher_temperature",
        "warmup_patch_teacher_temperature",
        "temperature_warmup_fraction",
        "teacher_momentum",
        "centre_momentum",
        "cls_loss_weight",
        "patch_loss_weight",
        "freeze_last_layer_fraction",
    ),
}


@exit_on_input_error
def main() -> None:
    arguments, data_arguments, publication = parse(
        PretrainArguments,
        DataArguments,
        TrainingPushArguments,
        description=__doc__,
        most_used=MOST_USED,
        groups=GROUPS,
    )
    from .. import pretrain
    from ..training.run_directory import read_run

    quiet()
    publication.check(is_classifier=False)
    cutouts = load_dataset(data_arguments, may_stream=True)
    publication.check_splits(cutouts)
    run = pretrain(cutouts, **vars(arguments))
    draw_curves(run)
    publication.push(run, cutouts)
    labels = min(300, read_run(run).get("num_train_labels", 300))
    options = options_of(data_arguments) if labels else "--dataset LABELLED_CUTOUTS"
    init = shlex.quote(str(run))
    tell(f"run: {run}   next: lens-ssl finetune --init {init} {options} --labels {labels or 'all'}")


if __name__ == "__main__":
    main()
