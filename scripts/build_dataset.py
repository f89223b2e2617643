"""
Build a data set once: a directory of Parquet, or one safetensors file for a machine with only torch and transformers.

```bash
python scripts/build_dataset.py --dataset my_cutouts/ --output my_dataset/            # load_dataset("my_dataset")
python scripts/build_dataset.py --dataset my_cutouts/ --output my_dataset.safetensors # --dataset of every script
```
"""

from dataclasses import dataclass, field

from lens_ssl_hf.cli import load_dataset, parse
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.launch import one_process


@dataclass
class OutputArguments:
    output: str = field(metadata={"help": "The directory, or the file that ends in .safetensors, to write."})


@exit_on_input_error
@one_process
def main() -> None:
    data_arguments, arguments = parse(DataArguments, OutputArguments, description=__doc__)
    from lens_ssl_hf import save_cutouts, save_tensors

    cutouts = load_dataset(data_arguments)
    save = save_tensors if arguments.output.endswith(".safetensors") else save_cutouts
    save(cutouts, arguments.output)
    print(f"{arguments.output}: " + ", ".join(f"{len(split)} {name}" for name, split in cutouts.items()))


if __name__ == "__main__":
    main()
