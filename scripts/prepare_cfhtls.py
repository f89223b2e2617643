"""
Cut windows around the objects of the CFHTLS Space Warps stamps, and write one table with them and the graded cutouts.

```bash
python scripts/prepare_cfhtls.py --data_dir ../shared/data/cfhtls_spacewarps --output_dir runs/cfhtls/data
```

Windows come from stamps whose sky group is not in the test split; they have no label, so that only pretraining sees
them. The corners with text are never touched. The table is then a data set for every script:
`--dataset runs/cfhtls/data/catalogue.csv`.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from lens_ssl_hf.errors import InputError, exit_on_input_error

MARGIN = 20  # rows and columns at the edge of a stamp that may carry text


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


@exit_on_input_error
def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    import numpy as np
    import pandas as pd
    from PIL import Image
    from tqdm import tqdm

    source, target = Path(arguments.data_dir).resolve(), Path(arguments.output_dir)
    if not (source / "catalog.csv").is_file() or not (source / "stamps.csv").is_file():
        raise InputError(f"data_dir {source} holds no catalog.csv and stamps.csv: give the cfhtls_spacewarps folder")
    catalogue, stamps = pd.read_csv(source / "catalog.csv"), pd.read_csv(source / "stamps.csv")
    held_out = set(catalogue.loc[catalogue["split"] == "test", "group"])
    windows = []
    (target / "windows").mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "cutouts", target / "cutouts", dirs_exist_ok=True)
    for stamp in tqdm([row for row in stamps.itertuples() if row.group not in held_out], desc="stamps"):
        image = np.asarray(Image.open(source / stamp.file).convert("RGB"))
        half = arguments.window // 2
        for row, column in find_objects(image.mean(axis=2), arguments.window, arguments.objects_per_stamp):
            name = f"windows/{Path(stamp.file).stem}_{row}_{column}.png"
            crop = image[row - half : row + half, column - half : column + half]
            Image.fromarray(crop).save(target / name)
            windows.append({"file": name, "label": "", "kind": "window", "split": "", "group": stamp.group})
    table = pd.concat([catalogue, pd.DataFrame(windows)], ignore_index=True)
    table[["file", "label", "kind", "split", "group", "ra", "dec"]].to_csv(target / "catalogue.csv", index=False)
    print(f"{target / 'catalogue.csv'}: {len(catalogue)} graded cutouts, {len(windows)} windows")


if __name__ == "__main__":
    main()
