"""
Publish a data set on the Hub as Parquet, with a card and a preview in colour; `datasets.load_dataset` reads it.

```bash
python scripts/push_dataset.py --repo_id me/lens-cutouts --dataset my_cutouts/ \
    --license cc-by-4.0 --origin "HSC PDR2; candidates of Sonnenfeld et al. 2018, field galaxies of the same tracts"
python scripts/push_dataset.py --repo_id me/simulated-lenses --dataset simulated
python scripts/push_dataset.py --repo_id me/simulated-lenses --dry_run             # only writes simulated-lenses/
python scripts/run_ssl.py --dataset me/simulated-lenses --output_dir runs/dino     # and anybody can use it
```

`--dataset` is whatever the other scripts take. Cutouts that were not simulated need a `--license`, which their owners
allow.
"""

from dataclasses import dataclass, field

from lens_ssl_hf.cli import PushArguments, load_dataset, parse
from lens_ssl_hf.data.arguments import DataArguments
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.launch import one_process


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
    data_arguments, arguments = parse(DataArguments, DatasetArguments, description=__doc__)
    from lens_ssl_hf import push_dataset
    from lens_ssl_hf.hub.push import check_repo_id

    check_repo_id(arguments.repo_id, needs_token=arguments.dry_run is None)  # before the data set is built
    print(push_dataset(load_dataset(data_arguments), **vars(arguments)))


if __name__ == "__main__":
    main()
