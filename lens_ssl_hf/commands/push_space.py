"""
Publish a Gradio Space in which people drop cutouts on a classifier: scores, calibration, attention, nearest cutouts.

```bash
hf auth login                                                    # once; or set HF_TOKEN
lens-ssl push-space --model me/lens-dino-vits8-classifier --dataset my_cutouts/ --repo_id me/lens-space
lens-ssl push-space --model runs/dino-300 --dataset my_cutouts/ --repo_id me/lens-space --dry-run
lens-ssl space lens-space                                        # what was written, on this machine
```

The model is a run, an exported folder or a Hub id; the dataset gives the nearest cutouts (train) and the calibration
(test). The Space holds pictures of training cutouts and four whole test cutouts: publish only what you may. That of a
private model needs a secret HF_TOKEN in its settings. A push that fails leaves the Hub as it was and can be repeated.
"""

from dataclasses import dataclass, field

from ..data.options import DataArguments
from ..errors import exit_on_input_error
from ..launch import one_process
from .parsing import parse
from .shared import PushArguments, load_dataset_like, quiet

MOST_USED = ("model", "dataset", "repo_id", "split", "private", "dry_run")


@dataclass
class SpaceArguments(PushArguments):
    model: str = field(
        default="", metadata={"help": "A fine-tuning run, an exported classifier's folder, or a Hub id."}
    )
    split: str = field(default="test", metadata={"help": "The split that calibration and examples come from."})


@exit_on_input_error
@one_process
def main() -> None:
    arguments, data_arguments = parse(
        SpaceArguments, DataArguments, description=__doc__, positional=("model",), most_used=MOST_USED
    )
    from .. import push_space
    from ..hub.push import check_repo_id

    quiet()
    check_repo_id(arguments.repo_id, needs_token=arguments.dry_run is None)
    print(push_space(cutouts=load_dataset_like(arguments.model, data_arguments), **vars(arguments)))


if __name__ == "__main__":
    main()
