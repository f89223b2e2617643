"""
Export a run as a folder that plain transformers loads, with its card and pictures.

```bash
python scripts/export.py runs/dino lens-dino-vits8                     # AutoModel.from_pretrained("lens-dino-vits8")
python scripts/export.py runs/dino-300 lens-dino-vits8-classifier      # pipeline("image-classification", model=...)
```
"""

from dataclasses import dataclass, field

from lens_ssl_hf.cli import parse, quiet
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.launch import one_process


@dataclass
class ExportArguments:
    run: str = field(metadata={"help": "A run directory of run_ssl.py or run_finetune.py."})
    folder: str = field(metadata={"help": "The folder to write."})


@exit_on_input_error
@one_process
def main() -> None:
    (arguments,) = parse(ExportArguments, description=__doc__, positional=("run", "folder"))
    from lens_ssl_hf import export

    quiet()
    print(export(arguments.run, arguments.folder))


if __name__ == "__main__":
    main()
