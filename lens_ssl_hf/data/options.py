"""The options of [`load_cutouts`], one dataclass for the command line, the Python call and the builder."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Where the cutouts come from and how they are brought to display units; see [`load_cutouts`]."""

    dataset: str = field(
        metadata={
            "help": (
                "A folder (lenses/ and nonlenses/, ..., or files without labels), a table (.csv, .parquet, .fits, "
                ".xml, .ecsv), a stack (.h5, .npy), a directory that save_cutouts wrote, the Hub id of one, or "
                "'simulated'."
            )
        },
    )
    size: int | None = field(
        default=None,
        metadata={
            "help": (
                "Side of the stored cutouts in pixels (centre crop); by default 64 simulated, else the smallest found "
                "from 32 on."
            )
        },
    )
    size_arcsec: float | None = field(
        default=None, metadata={"help": "Side of the stored cutouts in arcsec, in place of size; needs a pixel scale."}
    )
    bands: list[str] | None = field(
        default=None,
        metadata={
            "help": (
                "Bands to use, in order; names them where the files do not. Simulated default: i r g (red first)."
            )
        },
    )
    stretch: str = field(
        default="auto",
        metadata={
            "help": "Flux to display units, fitted on the training split; auto: none for 8-bit pictures, else asinh.",
            "choices": ["auto", "asinh", "sqrt", "linear", "none"],
        },
    )
    pixel_scale: float | None = field(
        default=None,
        metadata={"help": "Arcsec per pixel of the stored cutouts; files that state another one are resampled."},
    )
    zero_point: float | None = field(
        default=None, metadata={"help": "AB magnitude of flux 1; files that state another one are scaled to this one."}
    )
    like: str | None = field(
        default=None,
        metadata={
            "help": (
                "Files: a run, a model's folder or Hub id; its bands, pixel scale, zero point and stretch are used, "
                "so that it can score the cutouts."
            )
        },
    )
    data_seed: int = field(default=0, metadata={"help": "Seed of the simulation and of the splits that are made."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where built data sets are kept; by default the cache of datasets."}
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "Processes that simulate or read cutouts; by default one per CPU core."}
    )

    train_size: int = field(default=3863, metadata={"help": "Simulated: labelled training cutouts."})
    validation_size: int = field(default=429, metadata={"help": "Simulated: validation cutouts."})
    test_size: int = field(default=758, metadata={"help": "Simulated: test cutouts."})
    test_large_size: int = field(
        default=0,
        metadata={
            "help": "Simulated: cutouts of a second test split, half of them lenses, for low false-positive rates."
        },
    )
    unlabelled_size: int = field(
        default=0, metadata={"help": "Simulated: cutouts without labels, for pretraining only."}
    )
    lens_fraction: float = field(default=0.604, metadata={"help": "Simulated: share of lenses in every split."})
    min_arc_snr: float = field(default=80.0, metadata={"help": "Simulated: least S/N of the arcs in g."})
    min_arc_contrast: float = field(
        default=0.65,
        metadata={
            "help": "Simulated: least share of the arcs in the g light at their place, below 1; 0 asks for none."
        },
    )
    min_radius_over_seeing: float = field(
        default=1.2, metadata={"help": "Simulated: least Einstein radius in units of the seeing."}
    )

    hdu: str | None = field(
        default=None,
        metadata={
            "help": (
                "FITS: number or name of the image HDU, by default the first image; several as 'G,R,I' are stacked. "
                "HDF5: path of the dataset with the pixels."
            )
        },
    )
    file_pattern: str | None = field(
        default=None,
        metadata={"help": "Several single-band files per object, such as '{id}_{band}.fits'; needs bands."},
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of validation where the source gives no such split."}
    )
    test_fraction: float = field(default=0.2, metadata={"help": "Share of test where the source gives no such split."})
    on_bad_file: str = field(
        default="error",
        metadata={
            "help": "'error' stops at the first bad file; 'skip' leaves bad files out and lists them.",
            "choices": ["error", "skip"],
        },
    )
    bad_file_report: str = field(
        default="bad_files.csv", metadata={"help": "Where 'skip' lists the files that it left out."}
    )

    label_map: list[str] | None = field(
        default=None,
        metadata={
            "help": (
                "What labels of a table, or names of class folders, stand for: Galaxy=nonlens 'Grade A'=lens; lens, "
                "nonlens or unlabelled."
            )
        },
    )
    id_column: str = field(
        default="id", metadata={"help": "Table: unique name of the cutout; where it is missing, the file is the name."}
    )
    file_column: str = field(default="file", metadata={"help": "Table: path of the cutout, relative to the table."})
    label_column: str = field(
        default="label",
        metadata={
            "help": "Table: lens/nonlens, 1/0 or true/false; empty, -1 or no such column for cutouts without a label."
        },
    )
    split_column: str = field(default="split", metadata={"help": "Table: train, validation or test."})
    fold_column: str = field(default="fold", metadata={"help": "Table: number of the fold; used with test_fold."})
    group_column: str = field(
        default="group", metadata={"help": "Table: what splits must not divide, such as a field of the sky."}
    )
    ra_column: str = field(
        default="ra", metadata={"help": "Table: right ascension in degrees, or sexagesimal in hours."}
    )
    dec_column: str = field(default="dec", metadata={"help": "Table: declination in degrees, or sexagesimal."})
    subclass_column: str = field(
        default="subclass", metadata={"help": "Table: kind of object, for evaluation by kind."}
    )
    test_fold: int | None = field(
        default=None, metadata={"help": "Table: this fold is the test split, the others are for training."}
    )
    validation_fold: int | None = field(
        default=None, metadata={"help": "Table: this fold is the validation split; needs test_fold."}
    )
