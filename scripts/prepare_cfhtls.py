"""
Cut windows around the objects of the CFHTLS Space Warps stamps, and write one table with them and the graded cutouts.

```bash
python scripts/prepare_cfhtls.py --data_dir ../shared/data/cfhtls_spacewarps --output_dir runs/cfhtls/data
```

Windows have no label, so that only pretraining sees them, and the sky group of their stamp: of groups in the test
split or fold they are left out. The corners with text are never touched. The table is then a data set for every
script: `--dataset runs/cfhtls/data/catalogue.csv --bands i r g --subclass_column kind`, and with `--test_fold 0` one
of its five folds.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lens_ssl_hf.cli import parse
from lens_ssl_hf.errors import InputError, exit_on_input_error

MARGIN = 20  # rows and columns at the edge of a stamp that may carry text
COLUMNS = ("file", "label", "kind", "split", "fold", "group", "ra", "dec")


@dataclass
class Arguments:
    data_dir: str = field(metadata={"help": "Folder with catalog.csv, stamps.csv, cutouts/ and stamps/."})
    output_dir: str = field(metadata={"help": "Folder to write: catalogue.csv, cutouts/ and windows/."})
    window: int = field(default=32, metadata={"help": "Side of a window in pixels."})
    objects_per_stamp: int = field(
        default=10, metadata={"help": "Windows per stamp at most, the brightest objects first."}
    )


def find_objects(luminance, window: int, number: int) -> list[tuple[int, int]]:
    """(row, column) of the stamp's centre and of the brightest local maxima whose windows keep clear of the edge."""
    import numpy as np
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(luminance, 1.5)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    peaks = (smooth == ndimage.maximum_filter(smooth, size=9)) & (smooth > np.median(smooth) + 4 * noise)
    first, last = MARGIN + window // 2, len(luminance) - MARGIN - window // 2
    rows, columns = np.nonzero(peaks[first : last + 1, first : last + 1])
    order = np.argsort(-smooth[first + rows, first + columns])[: number - 1]
    centre = len(luminance) // 2
    found = [(int(first + rows[i]), int(first + columns[i])) for i in order]
    return [(centre, centre)] + [p for p in found if max(abs(p[0] - centre), abs(p[1] - centre)) > 4]


def read_table(path: Path, columns: tuple[str, ...]):
    """The table as a data frame that holds these columns."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table: give the cfhtls_spacewarps folder as data_dir") from error
    for column in columns:
        if column not in table:
            raise InputError(f"{path} has no column {column!r}: give the cfhtls_spacewarps folder as data_dir")
    return table


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    import numpy as np
    import pandas as pd
    from PIL import Image
    from tqdm import tqdm

    from lens_ssl_hf.data.readers import read_raw

    if arguments.window < 8 or arguments.window % 2:
        raise InputError(f"window is {arguments.window}: give an even number of at least 8 pixels")
    if arguments.objects_per_stamp < 1:
        raise InputError(f"objects_per_stamp is {arguments.objects_per_stamp}: give at least 1")
    source, target = Path(arguments.data_dir).resolve(), Path(arguments.output_dir)
    catalogue = read_table(source / "catalog.csv", COLUMNS)
    stamps = read_table(source / "stamps.csv", ("file", "group"))
    if not (source / "cutouts").is_dir():
        raise InputError(f"{source / 'cutouts'} is no folder: give the cfhtls_spacewarps folder as data_dir")
    windows, crops = [], []  # all stamps are read before anything is written
    for stamp in tqdm(list(stamps.itertuples()), desc="stamps"):
        path = source / str(stamp.file)
        pixels = read_raw(path).pixels
        half = arguments.window // 2
        if len(pixels) != 3 or min(pixels.shape[1:]) < 2 * MARGIN + arguments.window:
            raise InputError(f"{path} has shape {pixels.shape}: restore the colour stamp, or give a smaller window")
        image = pixels.transpose(1, 2, 0).astype(np.uint8)
        for row, column in find_objects(image.mean(axis=2), arguments.window, arguments.objects_per_stamp):
            name = f"windows/{path.stem}_{row}_{column}.png"
            crops.append(image[row - half : row + half, column - half : column + half])
            windows.append({"file": name, "label": "", "kind": "window", "split": "", "group": stamp.group})
    table = pd.concat([catalogue, pd.DataFrame(windows)], ignore_index=True)
    try:
        (target / "windows").mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / "cutouts", target / "cutouts", dirs_exist_ok=True)
        for window, crop in zip(windows, crops):
            Image.fromarray(crop).save(target / window["file"])
        # Last, so that there is no table unless there is all that it names.
        table[list(COLUMNS)].to_csv(target / "catalogue.csv", index=False)
    except OSError as error:  # also shutil.Error, which has no strerror
        raise InputError(f"cannot write {target} ({error.strerror or error}): choose another output_dir") from error
    print(f"{target / 'catalogue.csv'}: {len(catalogue)} graded cutouts, {len(windows)} windows")


if __name__ == "__main__":
    main()
