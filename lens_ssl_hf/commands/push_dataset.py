r"""
Publish a dataset on the Hub as Parquet, with a card and a preview in colour; `datasets.load_dataset` reads it.

```bash
lens-ssl push-dataset --repo_id me/lens-cutouts --dataset my_cutouts/ \
    --license cc-by-4.0 --origin "HSC PDR2; candidates of Sonnenfeld et al. 2018, field galaxies of the same tracts"
lens-ssl push-dataset --repo_id me/simulated-lenses --dataset simulated
lens-ssl push-dataset --repo_id me/simulated-lenses --dataset simulated --dry_run  # only writes simulated-lenses/
lens-ssl pretrain --dataset me/simulated-lenses --output_dir runs/dino     # and anybody can use it
```

`--dataset` is whatever the other commands take. Cutouts that were not simulated need a `--license`, which their owners
allow.
"""

from dataclasses import dataclass, field

from ..data.options import DataArguments
from ..errors import exit_on_input_error
from ..launch import one_process
from .parsing import parse
from .shared import PushArguments, load_dataset

MOST_USED = ("repo_id", "dataset", "license", "origin", "private", "dry_run", "size", "bands")


@dataclass
class DatasetArguments(PushArguments):
    license: str | None = field(
        default=None,
        metadata={"help": "Licence as the Hub names it, such as cc-by-4.0; apache-2.0 by default if simulated."},
    )
    origin: str | None = field(
        default=None, metadata={"help": "Where the cutouts come from: survey, release, selection, references."}
    )


@exit_on_input_error
@one_process
def main() -> None:
    arguments, data_arguments = parse(DatasetArguments, DataArguments, description=__doc__, most_used=MOST_USED)
    from .. import push_dataset
    from ..hub.push import check_repo_id

    check_repo_id(arguments.repo_id, needs_token=arguments.dry_run is None)  # before the dataset is built
    print(push_dataset(load_dataset(data_arguments), **vars(arguments)))


if __name__ == "__main__":
    main()
