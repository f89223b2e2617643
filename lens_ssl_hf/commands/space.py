"""
Open the page that scores cutouts in a browser, on this machine.

```bash
lens-ssl push-space --model runs/dino-300 --dataset my_cutouts/ --repo_id me/lens-space --dry_run
lens-ssl space lens-space  # the folder that the first line wrote
```

It takes the extra `space`: pip install '.[space]'.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import exit_on_input_error
from ..launch import one_process
from .parsing import parse


@dataclass
class PageArguments:
    folder: str = field(metadata={"help": "The folder of a Space, as push-space --dry_run or make demo wrote it."})


@exit_on_input_error
@one_process
def main() -> None:
    (arguments,) = parse(PageArguments, description=__doc__, positional=("folder",))
    from ..space.page import launch

    launch(Path(arguments.folder))


if __name__ == "__main__":
    main()
