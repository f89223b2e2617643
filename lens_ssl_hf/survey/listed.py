"""The cutouts of the listed rows, read again: a contact sheet of the first, and the grading page of all."""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow

from ..data.display import center_crop
from ..errors import InputError
from ..evaluation.plots import contact_sheet
from ..evaluation.predictions import Predictions
from . import manifest as manifests
from .crops import Asked, Preparation
from .inputs import Options, open_input
from .page import LIMIT, SIDE, encode, write_page

logger = logging.getLogger(__name__)

SHEET = 100  # candidates on the contact sheet


def draw(
    table: pyarrow.Table,
    numbers: list[int],
    scores: Path,
    manifest: dict[str, Any],
    seed: int,
    folder: Path,
    by: str,
    grades: pandas.DataFrame | None = None,
) -> None:
    """
    Write contact_sheet.png and page.html, with the cutouts as the first model sees them; where that cannot be, a
    warning says why. No more than a contact sheet of cutouts is held, and small pictures.

    Args:
        table (`pyarrow.Table`): a ranking.
        numbers (`list[int]`): of its rows in the input.
        scores (`Path`), manifest (`dict`): the folder of the scores, and what it says of them.
        seed (`int`): of the order on the page.
        folder (`Path`): where they are written.
        by (`str`): the column that the contact sheet shows and is sorted by.
        grades (`pandas.DataFrame`, *optional*): earlier ones, which the page shows to those who gave them.
    """
    try:
        source, preparation = open_again(scores, manifest)
    except (InputError, OSError) as error:
        logger.warning(f"no contact sheet is drawn and no grading page written: {error}")
        return
    has_page = len(numbers) <= LIMIT
    if not has_page:
        logger.warning(
            f"no grading page of {len(numbers)} rows is written: it holds {LIMIT} at most, lower top or audit"
        )
        numbers = numbers[:SHEET]
    order = np.argsort(numbers)
    cutouts = source.pick([numbers[i] for i in order], Asked([preparation], side=SIDE))
    sheet: dict[int, np.ndarray] = {}
    pictures: list[bytes | None] = [None] * len(numbers)
    for i, found in zip(order.tolist(), datasets.utils.tqdm(cutouts, "Reading", len(order), unit=" cutouts")):
        if not isinstance(found, str):
            pictures[i] = encode(found[0], preparation.cutouts.get("bands"))
            if i < SHEET and table["sample"][i].as_py() == "top":
                sheet[i] = center_crop(found[0], preparation.size).copy()
    if sheet:
        _draw_sheet(table, dict(sorted(sheet.items())), preparation, folder / "contact_sheet.png", by)
    if has_page:
        write_page(table, pictures, preparation, seed, folder / "page.html", grades)


def open_again(scores: Path, manifest: dict[str, Any]) -> tuple[Any, Preparation]:
    """
    The input of a scored survey, and what the first model asks of its cutouts.

    Raises:
        [`InputError`] or `OSError`: it is gone, or not what it was.
    """
    first = manifest["models"][0]
    preparation = Preparation(first["cutouts"], first["num_bands"], first["size"])
    options = Options.of_manifest(manifest["options"])
    bands = [band for one in manifest["models"] for band in one["cutouts"].get("bands") or ()]
    bands, stored = list(dict.fromkeys(bands)), scores / manifests.POSITIONS
    source = open_input(manifest["input"]["path"], options, bands, stored=stored)
    if source.fingerprint != manifest["input"]["fingerprint"]:
        raise InputError(f"{source.name} is not what it was")
    return source, preparation


def _draw_sheet(
    table: pyarrow.Table, crops: dict[int, np.ndarray], preparation: Preparation, path: Path, by: str
) -> None:
    names = [str(table["id"][i].as_py()) for i in crops]
    ranks = [f"rank {i + 1}" for i in crops]
    score = table[by].to_numpy()[list(crops)]
    predictions = Predictions(names, np.full(len(names), -1), names, ranks, score)
    facts = preparation.cutouts.get("bands"), None, "", preparation.cutouts.get("pixel_scale")
    contact_sheet(np.stack(list(crops.values())), predictions, path, *facts, value=by)
