"""
Cut the CFHTLS Space Warps stamps anew, and write one table with the graded cutouts and unlabelled windows.

```bash
python scripts/prepare_cfhtls.py --data_dir ../shared/data/cfhtls_spacewarps --output_dir runs/cfhtls/data
```

A graded cutout is found in its stamp and cut with more sky around it, since many lenses have arcs outside of a square
of 32 pixels of the stamps; resampled to 0.28 arcsec, the central 32 pixels then show 9 arcsec. Windows around other
objects have no label, so that only pretraining sees them, and the sky group of their stamp: of groups in the test
split or fold they are left out. What lies beyond a stamp's edge or on its lines of text is mirrored. The table is then
a dataset for every script: `--dataset runs/cfhtls/data/cfhtls.csv --bands i r g --subclass_column kind`, and with
`--test_fold 0` one of its five folds.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.errors import InputError, check_at_least, exit_on_input_error
from lens_ssl_hf.files import cannot_write, writing

MARGIN = 36  # least distance of a window's centre from the edge of a stamp, in pixels
# Text stands in the first TITLE_COLUMNS of a stamp's first rows, and in the first CREDIT_COLUMNS of its last.
TEXT_ROWS, TITLE_COLUMNS, CREDIT_COLUMNS = 16, 116, 72
COLUMNS = ("file", "label", "kind", "split", "fold", "group", "ra", "dec")


@dataclass
class Arguments:
    data_dir: str = field(metadata={"help": "Folder with catalog.csv, stamps.csv, cutouts/ and stamps/."})
    output_dir: str = field(metadata={"help": "Folder to write: cfhtls.csv, cutouts/ and windows/."})
    window: int = field(default=72, metadata={"help": "Side of what is cut, in pixels of the stamps."})
    size: int = field(default=48, metadata={"help": "Side that it is resampled to, in pixels."})
    objects_per_stamp: int = field(
        default=10, metadata={"help": "Windows per stamp at most, the brightest objects first."}
    )


def find_objects(luminance, number: int) -> list[tuple[int, int]]:
    """(row, column) of the stamp's centre and of the brightest local maxima that keep clear of the edge."""
    import numpy as np
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(luminance, 1.5)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    peaks = (smooth == ndimage.maximum_filter(smooth, size=9)) & (smooth > np.median(smooth) + 4 * noise)
    last = len(luminance) - MARGIN
    rows, columns = np.nonzero(peaks[MARGIN : last + 1, MARGIN : last + 1])
    order = np.argsort(-smooth[MARGIN + rows, MARGIN + columns])[: number - 1]
    centre = len(luminance) // 2
    found = [(int(MARGIN + rows[i]), int(MARGIN + columns[i])) for i in order]
    return [(centre, centre)] + [p for p in found if max(abs(p[0] - centre), abs(p[1] - centre)) > 4]


def find_cutout(stamp, cutout) -> tuple[int, int] | None:
    """(row, column) of the centre of a cutout `(h, w, 3)` in the stamp `(H, W, 3)` that it was cut from."""
    import numpy as np

    height, width = cutout.shape[:2]
    if height > len(stamp) or width > stamp.shape[1]:
        return None
    corners = stamp[: len(stamp) - height + 1, : stamp.shape[1] - width + 1]
    for row, column in np.argwhere((corners == cutout[0, 0]).all(axis=-1)).tolist():
        if (stamp[row : row + height, column : column + width] == cutout).all():
            return row + height // 2, column + width // 2
    return None


def without_text(stamp):
    """The stamp with the sky beside its two lines of text mirrored over them."""
    stamp = stamp.copy()
    stamp[:TEXT_ROWS, :TITLE_COLUMNS] = stamp[TEXT_ROWS : 2 * TEXT_ROWS, :TITLE_COLUMNS][::-1]
    stamp[-TEXT_ROWS:, :CREDIT_COLUMNS] = stamp[-2 * TEXT_ROWS : -TEXT_ROWS, :CREDIT_COLUMNS][::-1]
    return stamp


def cut(stamp, row: int, column: int, window: int, size: int):
    """The window around a position, mirrored beyond the stamp's edge, as a picture of `size` pixels."""
    import numpy as np
    from PIL import Image

    half = window // 2
    padded = np.pad(stamp, ((half, half), (half, half), (0, 0)), mode="symmetric")
    picture = Image.fromarray(padded[row : row + window, column : column + window])
    return picture.resize((size, size), Image.Resampling.HAMMING)


def read_table(path: Path, columns: tuple[str, ...], fix: str = "give the cfhtls_spacewarps folder as data_dir"):
    """The table as a data frame that holds these columns."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table: {fix}") from error
    for column in columns:
        if column not in table:
            raise InputError(f"{path} has no column {column!r}: {fix}")
    return table


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    import numpy as np
    import pandas as pd
    from tqdm import tqdm

    from lens_ssl_hf.data.files.readers import read_raw

    for name in ("window", "size"):
        if getattr(arguments, name) < 8 or getattr(arguments, name) % 2:
            raise InputError(f"{name} is {getattr(arguments, name)}: give an even number of at least 8 pixels")
    check_at_least(1, objects_per_stamp=arguments.objects_per_stamp)
    source, target = Path(arguments.data_dir).resolve(), Path(arguments.output_dir)
    if target.resolve() == source:
        raise InputError(f"output_dir {target} is data_dir, whose cutouts it would replace: choose another output_dir")
    catalogue = read_table(source / "catalog.csv", (*COLUMNS, "stamp"))
    stamps = read_table(source / "stamps.csv", ("file", "group"))

    def pixels_of(file: str) -> np.ndarray:
        pixels = read_raw(source / file).pixels
        if len(pixels) != 3:
            raise InputError(f"{source / file} has shape {pixels.shape}: restore the colour picture")
        return pixels.transpose(1, 2, 0).astype(np.uint8)

    def stamp_of(file: str) -> np.ndarray:
        pixels = pixels_of(file)
        if min(pixels.shape[:2]) < 2 * MARGIN:
            raise InputError(f"{source / file} has shape {pixels.shape}: restore the stamp")
        if min(pixels.shape[:2]) < arguments.window:
            raise InputError(f"window is {arguments.window}, more than {source / file} has: give fewer pixels")
        return pixels

    windows, pictures = [], {}  # all is read before anything is written
    size = arguments.window, arguments.size
    for name, graded in tqdm(list(catalogue.groupby("stamp", dropna=False)), desc="graded cutouts"):
        image = stamp_of(str(name))
        clean = without_text(image)
        for file in graded["file"]:
            if Path(str(file)).is_absolute() or ".." in Path(str(file)).parts:
                raise InputError(f"{source / 'catalog.csv'} names {file}: give paths inside of its folder")
            place = find_cutout(image, pixels_of(str(file)))
            if place is None:
                raise InputError(f"{source / file} is no part of {source / str(name)}: restore both")
            pictures[file] = cut(clean, *place, *size)
    for stamp in tqdm(list(stamps.itertuples()), desc="windows"):
        image = stamp_of(str(stamp.file))
        clean = without_text(image)
        for row, column in find_objects(image.mean(axis=2), arguments.objects_per_stamp):
            name = f"windows/{Path(str(stamp.file)).stem}_{row}_{column}.png"
            pictures[name] = cut(clean, row, column, *size)
            windows.append({"file": name, "label": "", "kind": "window", "split": "", "group": stamp.group})
    table = pd.concat([catalogue, pd.DataFrame(windows)], ignore_index=True)
    try:
        for name, picture in pictures.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(target / name)
    except OSError as error:
        raise cannot_write(target, error) from error
    with writing(target / "cfhtls.csv") as new:  # last: there is no table unless there is all that it names
        table[list(COLUMNS)].to_csv(new, index=False)
    print(f"{target / 'cfhtls.csv'}: {len(catalogue)} graded cutouts, {len(windows)} windows")


if __name__ == "__main__":
    main()
