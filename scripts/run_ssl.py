"""
Pretrain a ViT on cutouts without their labels.

```bash
accelerate launch scripts/run_ssl.py --method dino --backbone vits8 --dataset my_cutouts/ --output_dir runs/dino
```

On a laptop `python scripts/run_ssl.py --method dino --backbone vitt8 ...` does the same. The recipe of the method
(lens_ssl_hf/recipes/) sets the numbers; options on the command line win.
"""

from lens_ssl_hf.cli import draw_curves, load_dataset, parse, quiet
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.training.arguments import PretrainArguments


@exit_on_input_error
def main() -> None:
    data_arguments, arguments = parse(DataArguments, PretrainArguments, description=__doc__)
    from lens_ssl_hf import pretrain

    quiet()
    run = pretrain(load_dataset(data_arguments, may_stream=True), **vars(arguments))
    draw_curves(run)
    print(f"run: {run}   next: python scripts/run_finetune.py --init {run} --labels 300 ...")


if __name__ == "__main__":
    main()
