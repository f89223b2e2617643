"""
Build a dataset once: a directory of Parquet files, which every command takes as its --dataset. It says what it
understood of the source, and draws some of the cutouts.

```bash
lens-ssl build --dataset my_cutouts/ --output my_dataset/  # load_dataset("my_dataset")
```
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.options import DataArguments
from ..errors import InputError, exit_on_input_error
from ..launch import one_process
from .parsing import parse
from .shared import load_dataset

MOST_USED = ("dataset", "output", "size", "bands", "stretch", "pixel_scale", "zero_point", "file_pattern")
MOST_USED += ("label_map", "on_bad_file")
COLUMNS = 8  # cutouts of a kind that are drawn
SIDE = 128  # of a drawn cutout, in pixels at least


@dataclass
class OutputArguments:
    """Where the dataset goes."""

    output: str = field(metadata={"help": "The directory to write."})


def draw_examples(cutouts: Any, path: Path) -> None:
    """
    A row of lenses and one of non-lenses, or two of unlabelled cutouts; of painted ones the same galaxies as they are,
    with arcs and with companions. A square marks what models see.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from .. import cutout_info
    from ..data.from_files import MODEL_CROP
    from ..evaluation.pictures import colour_image

    info = cutout_info(cutouts)
    split = cutouts["train"] if "train" in cutouts else cutouts["unlabelled"]
    labels = np.array(split["label"])
    rows = {name: np.flatnonzero(labels == label)[:COLUMNS] for name, label in (("lens", 1), ("nonlens", 0))}
    if "train" not in cutouts:
        first = np.arange(len(split))[: 2 * COLUMNS]
        rows = {"unlabelled": first[:COLUMNS], "": first[COLUMNS:]}
    if info.painted:
        places = {name: place for place, name in enumerate(split["id"])}
        galaxies = [name.removesuffix("-arcs0") for name in places if name.endswith("-arcs0")][:COLUMNS]
        rows = {
            title: np.array([places.get(name + end, -1) for name in galaxies], int)
            for title, end in (("as they are", ""), ("with arcs: lens", "-arcs0"), ("with companions", "-companions0"))
        }
    scale = max(1, -(-SIDE // info.size))
    cell = scale * info.size + 4
    sheet = Image.new("RGB", (COLUMNS * cell, len(rows) * (cell + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, indices) in enumerate(rows.items()):
        top = number * (cell + 14)
        draw.text((2, top), name, fill="black")
        for column, index in enumerate(indices.tolist()):
            if index < 0:  # some have no companions
                continue
            pixels = np.asarray(split.with_format("numpy")[index]["pixels"])
            image = Image.fromarray(colour_image(pixels, info.bands))
            left, upper = column * cell + 2, top + 14
            sheet.paste(image.resize((scale * info.size,) * 2, Image.Resampling.NEAREST), (left, upper))
            if info.size > MODEL_CROP:
                edge, side = scale * ((info.size - MODEL_CROP) // 2), scale * MODEL_CROP
                corners = (left + edge, upper + edge, left + edge + side - 1, upper + edge + side - 1)
                draw.rectangle(corners, outline=(160, 160, 160))
    try:
        sheet.save(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): the dataset itself is saved") from error


def write_dataset(arguments: DataArguments, output: str) -> None:
    """Build a dataset, write it, and say and draw what is in it."""
    from ..data.storage import check_dataset_target, save_cutouts
    from ..data.summary import describe_build

    target = Path(output)
    check_dataset_target(target)  # before hours of building
    cutouts = load_dataset(arguments)
    save_cutouts(cutouts, target)
    print(describe_build(cutouts, arguments.dataset))
    draw_examples(cutouts, target / "examples.png")
    print(f"{target / 'examples.png'}: some of the cutouts")
    print(f"{output}: " + ", ".join(f"{len(split)} {name}" for name, split in cutouts.items()))


@exit_on_input_error
@one_process
def main() -> None:
    data_arguments, arguments = parse(DataArguments, OutputArguments, description=__doc__, most_used=MOST_USED)
    write_dataset(data_arguments, arguments.output)


if __name__ == "__main__":
    main()
