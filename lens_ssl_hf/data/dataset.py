"""The `datasets` builder: simulated | folder | catalogue -> splits of cutouts in display units."""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, get_type_hints

import datasets
from datasets.exceptions import DatasetGenerationError

from ..errors import InputError, check_at_least
from ..files import looks_local
from .files.readers import FITS_SUFFIXES
from .files.stacks import HDF5_SUFFIXES, STACK_SUFFIXES
from .from_files import FACTS_FILE, MIN_SIZE, open_files
from .from_simulation import FIRST_INDEX, open_simulation
from .info import cutout_info
from .like import ADOPTED, adopt, describe, fingerprint_of_run, stated_by
from .listing.copies import digest_rows
from .listing.folders import list_folder
from .listing.labels import LABELS, parse_label_map
from .listing.rows import BadFiles, Listing, Row, bad_files
from .listing.table_files import TABLE_SUFFIXES
from .listing.tables import list_catalogue, list_stack
from .options import DataArguments, plain
from .simulation import SIMULATOR_VERSION
from .storage import CARD_FILE, NO_SAFETENSORS, load_from_hub, load_saved
from .stretch import STRETCHES, Stretch

logger = logging.getLogger(__name__)

BUILDER_VERSION = "1.0.0"  # raise it whenever the same source gives other data: it is part of the fingerprint
# Raise it whenever the same FITS or .npz file gives other pixels: it is part of fingerprints with such files.
FITS_VERSION = 3

_SIMULATED = {f"{split}_size" for split in FIRST_INDEX}
_SIMULATED |= {"lens_fraction", "min_arc_snr", "min_arc_contrast", "min_radius_over_seeing", "varied"}
_FILES = {"hdu", "file_pattern", "validation_fraction", "test_fraction", "on_bad_file", "bad_file_report", "label_map"}
_CATALOGUE = {f.name for f in fields(DataArguments) if f.name.endswith(("_column", "_fold"))}
_NOT_CONTENT = {"dataset", "cache_dir", "num_proc", "bad_file_report"}  # cannot change the data
# Options that are younger than published fingerprints, which their defaults leave alone.
_LATER = {"min_arc_contrast", "test_large_size", "size_arcsec", "label_map", "id_column", "like", "varied"}


@dataclass(eq=False)
class CutoutsConfig(datasets.BuilderConfig, DataArguments):
    """One of the configurations `simulated`, `folder` and `catalogue`; the options are those of [`DataArguments`]."""

    dataset: str = ""  # that of a builder is given when it is made

    def create_config_id(self, config_kwargs: dict, custom_features: Any = None) -> str:
        """List and hash the source: the fingerprint in the name of the cache makes a stale cache impossible."""
        _check_options(self)
        self.asked = {name: getattr(self, name) for name in ADOPTED}
        self.model = stated_by(self.like) if self.like else None
        if self.model:
            adopt(self, self.model)
        self.bad = BadFiles(self.on_bad_file)
        self.listing = Listing([])
        if self.name != "simulated":
            try:
                self.listing = self._list()
            except OSError as error:
                name = error.filename or self.dataset
                raise InputError(f"{name} cannot be read ({error.strerror}): give yourself access to it") from error
            so_far = [f"{text} so far" for text in bad_files(len(self.bad.problems))]
            _say(f"{self.dataset}: {replace(self.listing, left_out=self.listing.left_out + so_far)}")
        if self.model and self._digest(self.asked | {"like": None}) == fingerprint_of_run(self.like):
            vars(self).update(self.asked, like=None, model=None)  # its own dataset, which its stretch was fitted to
        self.fingerprint = self._digest({"like": self.model})
        return f"{self.name}-{self.fingerprint}"

    def _digest(self, changes: dict[str, Any]) -> str:
        """Hash of the source's content and of the options, with `changes` of these."""
        options = {f.name: getattr(self, f.name) for f in fields(DataArguments)} | changes
        irrelevant = _NOT_CONTENT | (_FILES | _CATALOGUE if self.name == "simulated" else _SIMULATED)
        irrelevant |= {name for name in _LATER if options[name] == getattr(DataArguments, name)}
        content = {
            "versions": [BUILDER_VERSION, SIMULATOR_VERSION if self.name == "simulated" else None],
            "options": {name: value for name, value in options.items() if name not in irrelevant},
            "rows": [_content(row) for row in self.listing.rows],
        }
        if self.listing.stack is not None:
            content["stack"] = asdict(self.listing.stack) | {"path": ""}
        if _any_file(self.listing.rows, (*FITS_SUFFIXES, ".npz")):
            content["fits"] = FITS_VERSION
        encoded = json.dumps(content, sort_keys=True).encode()
        return hashlib.blake2b(encoded, digest_size=16).hexdigest()

    def _list(self) -> Listing:
        """The cutouts of the source, with digests, and what of it is left out."""
        path = Path(self.dataset)
        if self.name == "folder":
            listing = list_folder(path, self.file_pattern, self.bands, parse_label_map(self.label_map), self.bad)
        elif self.dataset.lower().endswith(STACK_SUFFIXES):
            listing = list_stack(path, self, self.bad)
        else:
            listing = list_catalogue(path, self, self.bad)
        self._refuse_unused(listing.rows)
        listing.rows, copies = digest_rows(listing.rows, self.bad, self.num_proc, listing.stack)
        if copies:
            listing.left_out.append(f"{copies} unlabelled copies of other cutouts")
        return listing

    def _refuse_unused(self, rows: list[Row]) -> None:
        """
        Raises:
            [`InputError`]: an option is given that this source leaves without effect.
        """
        if self.hdu is not None and not _any_file(rows, (*FITS_SUFFIXES, *HDF5_SUFFIXES)):
            raise InputError(f"hdu has no meaning for {self.dataset}, without FITS or HDF5 files: leave it out")
        given = {row.split for row in rows if row.label >= 0}
        for split in ("validation", "test"):
            name = f"{split}_fraction"
            if getattr(self, name) != getattr(DataArguments, name) and (split in given or not given):
                why = f"which gives the {split} split itself" if given else "of which nothing has a label"
                raise InputError(f"{name} has no meaning for {self.dataset}, {why}: leave it out")


def _any_file(rows: list[Row], suffixes: tuple[str, ...]) -> bool:
    return any(str(path).lower().endswith(suffixes) for row in rows for path in row.paths)


def _content(row: Row) -> dict[str, Any]:
    """What a row adds to the fingerprint; fields younger than published fingerprints only where they are set."""
    content = {name: value for name, value in vars(row).items() if name not in ("position", "columns")}
    return content | {"paths": ()} | ({"columns": row.columns} if row.columns else {})


def _say(text: str) -> None:
    """Log what everybody should see; of several processes the first one does."""
    logger.log(logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG, text)


class Cutouts(datasets.GeneratorBasedBuilder):
    """Builds cutouts in display units from the simulator, a folder or a catalogue; [`load_cutouts`] calls it."""

    VERSION = datasets.Version(BUILDER_VERSION)
    BUILDER_CONFIG_CLASS = CutoutsConfig
    BUILDER_CONFIGS = [  # noqa: RUF012
        CutoutsConfig(name=name, version=datasets.Version(BUILDER_VERSION))
        for name in ("simulated", "folder", "catalogue")
    ]
    DEFAULT_CONFIG_NAME = "simulated"
    DEFAULT_WRITER_BATCH_SIZE = 200

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()  # bands and size are known when the source has been read

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        simulated = self.config.name == "simulated"
        output_dir = Path(self._output_dir)
        splits, info = open_simulation(self.config) if simulated else open_files(self.config, output_dir)
        self._splits = splits
        self._stretch = Stretch.from_dict(info.stretch)
        self.info.description = info.to_json()
        self.info.features = features_of(len(info.bands), info.size, simulated, self.config.listing.columns)
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (flux, columns) in enumerate(self._splits[split]):
            yield i, {"pixels": self._stretch.apply(flux), **columns}


def load_cutouts(source: str | Path, **options: Any) -> datasets.DatasetDict:
    """
    Cutouts in display units with labels, as train / validation / test and, where there are some, unlabelled; of
    simulated ones also test_large, if it is asked for.

    ```python
    >>> data = load_cutouts("simulated", train_size=1000)
    >>> data = load_cutouts("my_folder", size=64)  # my_folder/lenses/*.npy, my_folder/nonlenses/*.npy
    >>> data = load_cutouts("catalogue.csv", subclass_column="kind", test_fold=0)
    ```

    Args:
        source (`str` or `Path`):
            - `"simulated"`: cutouts of the built-in simulator.
            - a folder with `lenses/` and `nonlenses/`; or `train_lenses/`, `train_nonlenses/`, `test_lenses/`,
              `test_nonlenses/`; or `train/`, `val/`, `test/` each with the two; and optionally `unlabelled/`.
              A folder of files without any of these is unlabelled.
            - a table (`.csv`, `.tsv`, `.ecsv`, `.parquet`, `.fits`, `.xml`) with a file column, and optionally label,
              id, split, fold, group, ra, dec and subclass; further columns are kept.
            - a stack: HDF5 (`.h5`) with an array `(N, bands, H, W)` and columns of length N beside it, or such an
              array as `.npy`, with a table of N rows of the same name.
            - a directory that [`save_cutouts`] wrote, or the Hub id of one.
        **options:
            Any field of [`DataArguments`], such as `size`, `bands`, `stretch`, `data_seed`, `test_fold`.

    Returns:
        `datasets.DatasetDict` with the columns `id`, `pixels` (float32 `(bands, size, size)`, 0 to 255), `label`
        (1 lens, 0 nonlens, -1 unlabelled), `subclass` (`""` unknown), `group`, `ra`, `dec` (degrees, None unknown); of
        tables also their further columns; of simulated ones also `einstein_radius`, `seeing` (arcsec), `zero_point`,
        `pixel_scale`. A source without any label has the one split `unlabelled`. [`cutout_info`] says how they were
        made.

    Raises:
        [`InputError`]: a mistake in the source or an option; nothing is written then.
    """
    known = {f.name: f.default for f in fields(DataArguments)}
    for name in options:
        if name not in known or name == "dataset":
            raise InputError(f"load_cutouts has no option {name!r}: see DataArguments")
    options = {name: _plain_option(name, value) for name, value in options.items()}
    options = {name: value for name, value in options.items() if value != known[name]}
    source = str(source)
    try:
        return _load(source, options)
    except (DatasetGenerationError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, InputError):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        place, reason = cause.filename or options.get("cache_dir") or "", cause.strerror or cause
        raise InputError(f"cannot write the cache {place} ({reason}): choose another folder with cache_dir") from error


def _plain_option(name: str, value: Any) -> Any:
    """The value of an option as a command line gives it; but in Python labels may be a mapping and an HDU a number."""
    if name == "label_map" and isinstance(value, Mapping):
        return dict(value)
    is_number = name == "hdu" and isinstance(value, Integral)
    return plain(name, value, int if is_number else get_type_hints(DataArguments)[name])


def _load(source: str, options: dict[str, Any]) -> datasets.DatasetDict:
    path = Path(source)
    if path.suffix == ".safetensors":
        raise InputError(f"{source}: {NO_SAFETENSORS}")
    if os.path.isfile(path / CARD_FILE):  # False, unlike Path.is_file, where the folder cannot be entered
        return load_saved(source, options, path / CARD_FILE)
    if source == "simulated":
        name = "simulated"
    elif os.path.isdir(path):
        name = "folder"
    elif os.path.isfile(path):
        name = "catalogue"
        suffixes = (*TABLE_SUFFIXES, *STACK_SUFFIXES)
        if not source.lower().endswith(suffixes):
            raise InputError(f"{source} is not a table: give a folder or a file that ends in {', '.join(suffixes)}")
    elif os.path.exists(path):
        raise InputError(f"{source} is a pipe or a device: give a folder or a file")
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not looks_local(source):
        return load_from_hub(source, options)
    else:
        raise InputError(f"{source} does not exist: give 'simulated', a folder, a table or the Hub id of a dataset")
    cache_dir = options.pop("cache_dir", None)
    names = {"config_name": name, "dataset_name": "cutouts"}
    builder = Cutouts(cache_dir=cache_dir, hash=_code_digest(), dataset=source, **names, **options)
    builder.download_and_prepare()
    dataset_dict = builder.as_dataset()
    config = builder.config
    if config.name != "simulated":
        _tell_of_source(dataset_dict, config, Path(builder.cache_dir))
    if config.model:
        _say(f"{source}: {describe(config, config.model, cutout_info(dataset_dict).stretch['kind'])}")
    if config.bad.problems:
        config.bad.write(Path(config.bad_file_report))
        logger.warning(
            f"bad files of {source} that are left out: {len(config.bad.problems)}; {config.bad_file_report} lists them"
        )
    return dataset_dict


def _tell_of_source(dataset_dict: datasets.DatasetDict, config: CutoutsConfig, cache: Path) -> None:
    """
    Name and what was left out, as of this source: the cache is by what was taken, which another source, or this one
    before something was put beside it, may have had in common.
    """
    bad = json.loads((cache / FACTS_FILE).read_text(encoding="utf-8"))["bad"]  # what the reading of the files found
    for row in config.listing.rows:
        if row.id in bad:
            config.bad.add(row.name, InputError(_renamed(*bad[row.id], row)))
    name, left_out = Path(config.dataset).resolve().stem, len(config.bad.problems)
    info = replace(cutout_info(dataset_dict), name=name, left_out=left_out)
    for split in dataset_dict.values():
        split.info.description = json.dumps(asdict(info) | {"also_left_out": config.listing.left_out})


def _renamed(names: list[str], problem: str, row: Row) -> str:
    """A problem of a row that had these names, with those that it has now."""
    now = dict(zip(names, row.names))
    return re.sub("|".join(map(re.escape, now)), lambda found: now[found[0]], problem)


def _code_digest() -> str:
    """Hash of the code that makes the pixels; part of the cache's path, so that no cache outlives a change of it."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return hashlib.blake2b(code, digest_size=8).hexdigest()


def _check_options(config: CutoutsConfig) -> None:
    """Refuse unknown values, and options that belong to another kind of source instead of ignoring them."""
    config.bands = [config.bands] if isinstance(config.bands, str) else config.bands  # not letter by letter
    for name, choices in {"stretch": ("auto", *STRETCHES), "on_bad_file": ("error", "skip")}.items():
        if getattr(config, name) not in choices:
            raise InputError(f"{name} is {getattr(config, name)!r}: choose one of {', '.join(choices)}")
    foreign = {"simulated": _FILES | _CATALOGUE, "folder": _SIMULATED | _CATALOGUE, "catalogue": _SIMULATED}[
        config.name
    ]
    for name in sorted(foreign):
        if getattr(config, name) != getattr(DataArguments, name):
            raise InputError(f"{name} has no meaning for {config.name} cutouts: leave it out")
    if config.size is not None and config.size < MIN_SIZE:
        raise InputError(f"size is {config.size}: give at least {MIN_SIZE} pixels")
    if config.size is not None and config.size_arcsec is not None:
        raise InputError("size and size_arcsec are both given: give one of them")
    parse_label_map(config.label_map)
    lengths = ("pixel_scale", "size_arcsec")
    for name in (*lengths, "zero_point", "min_arc_snr", "min_arc_contrast", "min_radius_over_seeing"):
        value, is_length = getattr(config, name), name in lengths
        if value is not None and not (math.isfinite(value) and (value > 0 or not is_length)):
            raise InputError(f"{name} is {value}: give a {'positive' if is_length else 'finite'} number")
    check_at_least(1, num_proc=config.num_proc)
    check_at_least(0, **{name: getattr(config, name) for name in ("data_seed", "unlabelled_size", "test_large_size")})
    if len(set(config.bands or ())) < len(config.bands or ()):
        raise InputError(f"bands {' '.join(config.bands)} names a band twice: name each once")
    report = Path(config.bad_file_report)
    if config.on_bad_file == "skip" and (report.is_dir() or not os.access(report.parent, os.W_OK)):
        raise InputError(f"cannot write {report}: choose another bad_file_report")  # before anything is built


def features_of(bands: int, size: int, simulated: bool, columns: dict[str, str]) -> datasets.Features:
    """The columns of a dataset; `columns` are further ones with their types."""
    features = {
        "id": datasets.Value("string"),
        "pixels": datasets.Array3D((bands, size, size), "float32"),
        "label": datasets.ClassLabel(names=list(LABELS)),
        "subclass": datasets.Value("string"),
        "group": datasets.Value("string"),
        "ra": datasets.Value("float64"),
        "dec": datasets.Value("float64"),
    }
    if simulated:
        features |= {name: datasets.Value("float64") for name in ("einstein_radius", "zero_point", "pixel_scale")}
        features["seeing"] = datasets.List(datasets.Value("float64"))
    return datasets.Features(features | {name: datasets.Value(kind) for name, kind in columns.items()})
