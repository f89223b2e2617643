"""
Publish a Gradio Space in which people drop cutouts on a classifier: scores, calibration, attention, nearest cutouts.

```bash
hf auth login                                                    # once; or set HF_TOKEN
python scripts/push_space.py --model me/lens-dino-vits8-classifier --dataset my_cutouts/ --repo_id me/lens-space
python scripts/push_space.py --model runs/dino-300 --dataset my_cutouts/ --repo_id me/lens-space --dry-run
python -m lens_ssl_hf.space.page lens-space                      # what was written, on this machine
```

The model is a run, an exported folder or a Hub id; the data set gives the nearest cutouts (train) and the calibration
(test). The Space holds pictures of training cutouts and four whole test cutouts: publish only what you may. That of a
private model needs a secret HF_TOKEN in its settings. A push that fails leaves the Hub as it was and can be repeated.
"""

from dataclasses import dataclass, field

from lens_ssl_hf.cli import PushArguments, load_dataset_like, parse, quiet
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.launch import one_process


@dataclass
class SpaceArguments(PushArguments):
    model: str = field(
        default="", metadata={"help": "A fine-tuning run, an exported classifier's folder, or a Hub id."}
    )
    split: str = field(default="test", metadata={"help": "The split that calibration and examples come from."})


@exit_on_input_error
@one_process
def main() -> None:
    data_arguments, arguments = parse(DataArguments, SpaceArguments, description=__doc__, positional=("model",))
    from lens_ssl_hf import push_space
    from lens_ssl_hf.hub.push import check_repo_id

    quiet()
    check_repo_id(arguments.repo_id, needs_token=arguments.dry_run is None)
    print(push_space(cutouts=load_dataset_like(arguments.model, data_arguments), **vars(arguments)))


if __name__ == "__main__":
    main()
