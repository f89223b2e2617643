"""
Paint simulated arcs onto your own galaxies: a labelled dataset of your sky, where you have few labels or none.

```bash
lens-ssl paint --dataset my_cutouts/ --seeing 0.7 --output painted/
lens-ssl finetune --dataset painted/ --backbone cnn --output_dir runs/painted
lens-ssl finetune --dataset my_cutouts/ --like runs/painted --init runs/painted --output_dir runs/mine   # on labels
```

The galaxies are the cutouts without a label, and the non-lenses of the training split; cutouts of the validation and
test splits are left alone. Those that could be lenses, the redder half of the brightest 35 %, are written with arcs
(lens) and with blue companions (nonlens), and all of them as they are (nonlens).
"""

from dataclasses import dataclass, field

from ..data.options import DataArguments
from ..errors import exit_on_input_error
from ..launch import one_process
from .build import draw_examples
from .parsing import parse
from .shared import load_dataset

MOST_USED = ("dataset", "output", "seeing", "per_galaxy", "pixel_scale", "bands")


@dataclass
class PaintArguments:
    """What is painted, and where the dataset goes."""

    output: str = field(metadata={"help": "The directory to write."})
    seeing: float = field(metadata={"help": "FWHM of the PSF in arcsec."})
    per_galaxy: int = field(default=1, metadata={"help": "Lenses that are made of each galaxy."})
    seed: int = field(default=0, metadata={"help": "Seed of the arcs, and of the groups held out for validation."})


@exit_on_input_error
@one_process
def main() -> None:
    data_arguments, arguments = parse(DataArguments, PaintArguments, description=__doc__, most_used=MOST_USED)
    from ..data.dataset import load_cutouts
    from ..data.painting import paint
    from ..data.storage import check_target

    check_target(arguments.output)  # before hours of building
    cutouts = load_dataset(data_arguments)
    settings = {"per_galaxy": arguments.per_galaxy, "seed": arguments.seed, "num_proc": data_arguments.num_proc}
    output = paint(cutouts, arguments.output, arguments.seeing, **settings)
    painted = load_cutouts(output)
    draw_examples(painted, output / "examples.png")
    print(f"{output / 'examples.png'}: some of the cutouts")
    for name, split in painted.items():
        lenses, companions = sum(split["label"]), sum("-companions" in one for one in split["id"])
        plain = len(split) - lenses - companions
        print(f"{name:12}{lenses} with arcs, {companions} with companions, {plain} as they are")
        if companions < lenses / 2:
            print(f"{'':12}few companions fit in at this seeing: blue light near a galaxy may be taken for a lens")


if __name__ == "__main__":
    main()
