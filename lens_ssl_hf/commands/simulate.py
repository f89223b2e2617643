"""
Write a dataset of simulated cutouts: lenses, and galaxies that look like them.

```bash
lens-ssl simulate sim_cutouts/                              # then --dataset sim_cutouts/ of every command
lens-ssl simulate many/ --train_size 20000 --size 48 --bands g r i z y
lens-ssl simulate for_model/ --like model_cards/lens-dino-vits8-classifier  # in its display units, for lens-ssl score
```
"""

from dataclasses import dataclass, field, fields, make_dataclass

from ..data.options import DataArguments
from ..errors import exit_on_input_error
from ..launch import one_process
from .build import write_dataset
from .parsing import parse

# Options that other cutouts have too.
GENERAL = ("size", "bands", "stretch", "like", "data_seed", "cache_dir", "num_proc")


@dataclass
class OutputArguments:
    """Where the dataset goes."""

    output: str = field(metadata={"help": "The directory to write."})


# Those of all datasets that have a meaning here.
SimulationArguments = make_dataclass(
    "SimulationArguments",
    [
        (option.name, option.type, field(default=option.default, metadata=option.metadata))
        for option in fields(DataArguments)
        if option.name in GENERAL or option.metadata["help"].startswith("Simulated:")
    ],
)


@exit_on_input_error
@one_process
def main() -> None:
    arguments, simulation = parse(
        OutputArguments, SimulationArguments, description=__doc__, positional=("output",), most_used=("output",)
    )
    write_dataset(DataArguments("simulated", **vars(simulation)), arguments.output)


if __name__ == "__main__":
    main()
