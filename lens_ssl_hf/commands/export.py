"""
Export a run as a folder that plain transformers loads, with its card and pictures.

```bash
lens-ssl export runs/dino lens-dino-vits8                     # AutoModel.from_pretrained("lens-dino-vits8")
lens-ssl export runs/dino-300 lens-dino-vits8-classifier      # pipeline("image-classification", model=...)
```
"""

from dataclasses import dataclass, field

from ..errors import exit_on_input_error
from ..launch import one_process
from .parsing import parse
from .shared import quiet


@dataclass
class ExportArguments:
    run: str = field(metadata={"help": "A run directory of lens-ssl pretrain or finetune."})
    folder: str = field(metadata={"help": "The folder to write."})
    half: bool = field(
        default=False, metadata={"help": "Store the weights as bfloat16, in half the space; they load as float32."}
    )


@exit_on_input_error
@one_process
def main() -> None:
    (arguments,) = parse(ExportArguments, description=__doc__, positional=("run", "folder"))
    from .. import export

    quiet()
    print(export(arguments.run, arguments.folder, half=arguments.half))


if __name__ == "__main__":
    main()
