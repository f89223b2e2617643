"""The options of [`load_cutouts`], one dataclass for the command line, the Python call and the builder."""

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from types import NoneType
from typing import Any, get_args, get_origin

from ..errors import InputError


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A field of a dataclass with what `--help` says of it."""
    return field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


_WORDS = {bool: "True or False", int: "a whole number", str: "text or a path"}
_WORDS |= {float: "a number, such as 7.0e-4 (which YAML takes for text where it is 7e-4)"}


def plain(name: str, value: Any, annotation: Any) -> Any:
    """A value of the kind that a setting is annotated with; numbers of NumPy become Python's, and paths text."""
    kind, *others = get_args(annotation) or (annotation,)
    if value is None and NoneType in others:
        return None
    if get_origin(kind) is list:
        return [plain(name, one, str) for one in (value if isinstance(value, list | tuple) else [value])]
    found = value.item() if getattr(value, "ndim", None) == 0 else value
    found = os.fspath(found) if isinstance(found, os.PathLike) else found
    if not isinstance(found, int | float if kind is float else kind) or (isinstance(found, bool) and kind is not bool):
        raise InputError(f"{name} is {value!r}: give {_WORDS[kind]}")
    return found


@dataclass
class DataArguments:
    """Where the cutouts come from and how they are brought to display units; see [`load_cutouts`]."""

    dataset: str = option(
        MISSING,
        "A folder (lenses/ and nonlenses/, ..., or files without labels), a table (.csv, .parquet, .fits, .xml, "
        ".ecsv), a stack (.h5, .npy), a directory that save_cutouts wrote, the Hub id of one, or 'simulated'.",
    )
    size: int | None = option(
        None,
        "Side of the stored cutouts in pixels (centre crop); by default 64 simulated, else the smallest found from 32 "
        "on.",
    )
    size_arcsec: float | None = option(
        None, "Side of the stored cutouts in arcsec, in place of size; needs a pixel scale."
    )
    bands: list[str] | None = option(
        None, "Bands to use, in order; names them where the files do not. Simulated default: i r g (red first)."
    )
    stretch: str = option(
        "auto",
        "Flux to display units, fitted on the training split; auto: none for 8-bit pictures, else asinh.",
        ["auto", "asinh", "sqrt", "linear", "none"],
    )
    pixel_scale: float | None = option(
        None, "Arcsec per pixel of the stored cutouts; files that state another one are resampled."
    )
    zero_point: float | None = option(
        None, "AB magnitude of flux 1; files that state another one are scaled to this one."
    )
    like: str | None = option(
        None,
        "A run, a model's folder or Hub id; its bands, pixel scale, zero point and stretch are used, so that it can "
        "score the cutouts.",
    )
    data_seed: int = option(0, "Seed of the simulation and of the splits that are made.")
    cache_dir: str | None = option(None, "Where built datasets are kept; by default the cache of datasets.")
    num_proc: int | None = option(None, "Processes that simulate or read cutouts; by default one per CPU core.")

    train_size: int = option(3863, "Simulated: labelled training cutouts.")
    validation_size: int = option(429, "Simulated: validation cutouts.")
    test_size: int = option(758, "Simulated: test cutouts.")
    test_large_size: int = option(
        0, "Simulated: cutouts of a second test split, half of them lenses, for low false-positive rates."
    )
    unlabelled_size: int = option(0, "Simulated: cutouts without labels, for pretraining only.")
    lens_fraction: float = option(0.604, "Simulated: share of lenses in every split.")
    min_arc_snr: float = option(80.0, "Simulated: least S/N of the arcs in g.")
    min_arc_contrast: float = option(
        0.65, "Simulated: least share of the arcs in the g light at their place, below 1; 0 asks for none."
    )
    min_radius_over_seeing: float = option(1.2, "Simulated: least Einstein radius in units of the seeing.")
    varied: bool = option(
        False,
        "Simulated: every cutout as another survey would see it, with its own depth, seeing and cuts, and more varied "
        "galaxies; for models that shall meet other skies.",
    )

    hdu: str | None = option(
        None,
        "FITS: number or name of the image HDU, by default the one image with flux, or one image for each band; "
        "several as 'G,R,I' are stacked. HDF5: path of the dataset with the pixels.",
    )
    file_pattern: str | None = option(
        None, "Several single-band files per object, such as '{id}_{band}.fits'; needs bands."
    )
    validation_fraction: float = option(0.1, "Share of validation where the source gives no such split.")
    test_fraction: float = option(0.2, "Share of test where the source gives no such split.")
    on_bad_file: str = option(
        "error", "'error' stops at the first bad file; 'skip' leaves bad files out and lists them.", ["error", "skip"]
    )
    bad_file_report: str = option("bad_files.csv", "Where 'skip' lists the files that it left out.")

    label_map: list[str] | None = option(
        None,
        "What labels of a table, or names of class folders, stand for: Galaxy=nonlens 'Grade A'=lens; lens, nonlens "
        "or unlabelled.",
    )
    id_column: str = option("id", "Table: unique name of the cutout; where it is missing, the file is the name.")
    file_column: str = option("file", "Table: path of the cutout, relative to the table.")
    label_column: str = option(
        "label", "Table: lens/nonlens, 1/0 or true/false; empty, -1 or no such column for cutouts without a label."
    )
    split_column: str = option("split", "Table: train, validation or test.")
    fold_column: str = option("fold", "Table: number of the fold; used with test_fold.")
    group_column: str = option("group", "Table: what splits must not divide, such as a field of the sky.")
    ra_column: str = option("ra", "Table: right ascension in degrees, or sexagesimal in hours.")
    dec_column: str = option("dec", "Table: declination in degrees, or sexagesimal.")
    subclass_column: str = option("subclass", "Table: kind of object, for evaluation by kind.")
    test_fold: int | None = option(None, "Table: this fold is the test split, the others are for training.")
    validation_fold: int | None = option(None, "Table: this fold is the validation split; needs test_fold.")
