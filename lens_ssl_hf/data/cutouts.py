"""The `datasets` builder: simulated | folder | catalogue -> splits of cutouts in display units."""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError, DatasetsError

from ..errors import InputError
from .arguments import DataArguments
from .processing import PICTURE_BANDS, STRETCHES, CutoutInfo, Stretch, cutout_info, standardise
from .readers import RawCutout, read_raw, read_raw_bands
from .simulation import BANDS, SIMULATOR_VERSION, SimulationConfig, simulate_cutouts
from .sources import LABELS, BadFiles, Row, assign_splits, digest_rows, list_catalogue, list_folder

logger = logging.getLogger(__name__)

BUILDER_VERSION = "1.0.0"  # raise it whenever the same source gives other data: it is part of the fingerprint
FIT_CUTOUTS = 1000  # training cutouts that the stretch is fitted on, at most
MODEL_CROP = 32  # pixels that the models see by default: without a size, no smaller cutout sets that of all others
MIN_SIZE = 8
ROW_GROUP_BYTES = 4_000_000  # what streaming reads at once
SHARD_BYTES = 500_000_000  # of a Parquet file
CARD_FILE = "cutouts.json"
PICTURE_COLUMN = "image"  # colour renderings of published data sets, for people who look at them on the Hub
REPORT_FILE = "bad_files.csv"
TABLE_SUFFIXES = (".csv", ".parquet", ".pq", ".fits", ".fit", ".fits.gz")

# Each split of the simulation has its own range of indices, so that the size of one does not change the others.
_FIRST_INDEX = {"train": 0, "validation": 10**7, "test": 2 * 10**7, "unlabelled": 3 * 10**7, "test_large": 4 * 10**7}
_SIMULATED = {f"{split}_size" for split in _FIRST_INDEX}
_SIMULATED |= {"lens_fraction", "min_arc_snr", "min_arc_contrast", "min_radius_over_seeing", "num_proc"}
_FILES = {"hdu", "file_pattern", "validation_fraction", "test_fraction", "on_bad_file", "bad_file_report"}
_CATALOGUE = {f.name for f in fields(DataArguments) if f.name.endswith(("_column", "_fold"))}
_NOT_CONTENT = {"dataset", "cache_dir", "num_proc", "bad_file_report"}  # cannot change the data
# Options that are younger than published fingerprints, which their defaults leave alone.
_LATER = {"min_arc_contrast", "test_large_size"}


@dataclass(eq=False)
class CutoutsConfig(datasets.BuilderConfig, DataArguments):
    """One of the configurations `simulated`, `folder` and `catalogue`; the options are those of [`DataArguments`]."""

    def create_config_id(self, config_kwargs: dict, custom_features: Any = None) -> str:
        """List and hash the source: the fingerprint in the name of the cache makes a stale cache impossible."""
        _check_options(self)
        self.bad = BadFiles(self.on_bad_file)
        self.rows: list[Row] = []
        try:
            if self.name == "folder":
                self.rows = list_folder(Path(self.dataset), self.file_pattern, self.bands, self.bad)
            elif self.name == "catalogue":
                self.rows = list_catalogue(Path(self.dataset), self, self.bad)
        except OSError as error:
            name = error.filename or self.dataset
            raise InputError(f"{name} cannot be read ({error.strerror}): give yourself access to it") from error
        self.rows = digest_rows(self.rows, self.bad)
        irrelevant = _NOT_CONTENT | (_FILES | _CATALOGUE if self.name == "simulated" else _SIMULATED)
        irrelevant |= {name for name in _LATER if getattr(self, name) == getattr(DataArguments, name)}
        content = {
            "versions": [BUILDER_VERSION, SIMULATOR_VERSION if self.name == "simulated" else None],
            "options": {f.name: getattr(self, f.name) for f in fields(DataArguments) if f.name not in irrelevant},
            "rows": [asdict(replace(row, paths=())) for row in self.rows],
        }
        encoded = json.dumps(content, sort_keys=True).encode()
        self.fingerprint = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        return f"{self.name}-{self.fingerprint}"


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
        splits, info = (_open_simulation if simulated else _open_files)(self.config)
        self._splits = splits
        self._stretch = Stretch.from_dict(info.stretch)
        self.info.description = info.to_json()
        self.info.features = _features(len(info.bands), info.size, simulated)
        if self.config.bad.problems:
            self.config.bad.write(Path(self._output_dir) / REPORT_FILE)
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (flux, columns) in enumerate(self._splits[split]):
            yield i, {"pixels": self._stretch.apply(flux), **columns}


def load_cutouts(source: str | Path = "simulated", **options: Any) -> datasets.DatasetDict:
    """
    Cutouts in display units with labels, as train / validation / test and, where there are some, unlabelled; of
    simulated ones also test_large, if it is asked for.

    ```python
    >>> data = load_cutouts("simulated", train_size=1000)
    >>> data = load_cutouts("my_folder", size=64)  # my_folder/lenses/*.npy, my_folder/nonlenses/*.npy
    >>> data = load_cutouts("catalogue.csv", subclass_column="kind", test_fold=0)
    ```

    Args:
        source (`str` or `Path`, *optional*, defaults to `"simulated"`):
            - `"simulated"`: cutouts of the built-in simulator.
            - a folder with `lenses/` and `nonlenses/`; or `train_lenses/`, `train_nonlenses/`, `test_lenses/`,
              `test_nonlenses/`; or `train/`, `val/`, `test/` each with the two; and optionally `unlabelled/`.
            - a table (`.csv`, `.parquet`, `.fits`) with a file and a label column, and optionally split, fold, group,
              ra, dec and subclass.
            - a directory that [`save_cutouts`] wrote, or the Hub id of one.
        **options:
            Any field of [`DataArguments`], such as `size`, `bands`, `stretch`, `data_seed`, `test_fold`.

    Returns:
        `datasets.DatasetDict` with the columns `id`, `pixels` (float32 `(bands, size, size)`, 0 to 255), `label`
        (1 lens, 0 nonlens, -1 unlabelled), `subclass` (`""` unknown), `group`, `ra`, `dec` (degrees, None unknown); of
        simulated ones also `einstein_radius`, `seeing` (arcsec), `zero_point`, `pixel_scale`. [`cutout_info`] says how
        they were made.

    Raises:
        [`InputError`]: a mistake in the source or an option; nothing is written then.
    """
    known = {f.name: f.default for f in fields(DataArguments)}
    for name in options:
        if name not in known or name == "dataset":
            raise InputError(f"load_cutouts has no option {name!r}: see DataArguments")
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


def _load(source: str, options: dict[str, Any]) -> datasets.DatasetDict:
    path = Path(source)
    if os.path.isfile(path / CARD_FILE):  # False, unlike Path.is_file, where the folder cannot be entered
        return _load_saved(source, options, path / CARD_FILE)
    if source == "simulated":
        name = "simulated"
    elif os.path.isdir(path):
        name = "folder"
    elif os.path.isfile(path):
        name = "catalogue"
        if not source.lower().endswith(TABLE_SUFFIXES):
            raise InputError(
                f"{source} is not a table: give a folder or a file that ends in {', '.join(TABLE_SUFFIXES)}"
            )
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return _load_from_hub(source, options)
    else:
        raise InputError(f"{source} does not exist: give 'simulated', a folder, a table or the Hub id of a data set")
    cache_dir = options.pop("cache_dir", None)
    builder = Cutouts(cache_dir=cache_dir, config_name=name, hash=_code_digest(), dataset=source, **options)
    builder.download_and_prepare()
    dataset_dict = builder.as_dataset()
    if left_out := cutout_info(dataset_dict).left_out:
        report = builder.config.bad_file_report
        _copy(Path(builder.cache_dir) / REPORT_FILE, report)
        logger.warning(f"{left_out} bad files of {source} are left out: see {report}")
    return dataset_dict


def _code_digest() -> str:
    """Hash of the code that makes the pixels; part of the cache's path, so that no cache outlives a change of it."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.blake2b(code, digest_size=8).hexdigest()


def _copy(source: Path, target: str) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"cannot write {target} ({error.strerror}): choose another bad_file_report") from error


def _check_options(config: CutoutsConfig) -> None:
    """Refuse unknown values, and options that belong to another kind of source instead of ignoring them."""
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
    for name in ("pixel_scale", "zero_point", "min_arc_snr", "min_arc_contrast", "min_radius_over_seeing"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value > 0 or name != "pixel_scale")):
            raise InputError(f"{name} is {value}: give a {'positive' if name == 'pixel_scale' else 'finite'} number")
    for name, least in {"data_seed": 0, "unlabelled_size": 0, "test_large_size": 0, "num_proc": 1}.items():
        if (value := getattr(config, name)) is not None and value < least:
            raise InputError(f"{name} is {value}: give at least {least}")
    if len(set(config.bands or ())) < len(config.bands or ()):
        raise InputError(f"bands {' '.join(config.bands)} names a band twice: name each once")
    report = Path(config.bad_file_report)
    if config.on_bad_file == "skip" and (report.is_dir() or not os.access(report.parent, os.W_OK)):
        raise InputError(f"cannot write {report}: choose another bad_file_report")  # before anything is built


def _features(bands: int, size: int, simulated: bool) -> datasets.Features:
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
    return datasets.Features(features)


def _open_simulation(config: CutoutsConfig) -> tuple[dict[str, Iterable], CutoutInfo]:
    """The splits as iterators over (flux, columns), simulated as they are read."""
    bands = config.bands or list(reversed(BANDS))  # red first, as in a colour picture
    if not set(bands) <= set(BANDS) or len(set(bands)) < len(bands):
        raise InputError(f"bands {' '.join(bands)} cannot be simulated: choose among {' '.join(BANDS)}")
    if not 0 < config.lens_fraction < 1:
        raise InputError(f"lens_fraction is {config.lens_fraction}: give a number between 0 and 1")
    chosen = {name: getattr(config, name) for name in ("min_arc_snr", "min_arc_contrast", "min_radius_over_seeing")}
    chosen |= {
        name: value for name in ("size", "pixel_scale", "zero_point") if (value := getattr(config, name)) is not None
    }
    simulation = SimulationConfig(**chosen)
    counts = {split: getattr(config, f"{split}_size") for split in _FIRST_INDEX}
    indices, lenses = [], []
    for split, first in _FIRST_INDEX.items():
        count = counts[split]
        num_lenses = round(count * (0.5 if split == "test_large" else config.lens_fraction))
        is_left_out = split == "test_large" and not count
        if split != "unlabelled" and not is_left_out and not 0 < num_lenses < count:
            raise InputError(f"{split}_size {count} leaves a class empty: simulate more")
        is_lens = np.arange(count) < num_lenses
        np.random.default_rng((config.data_seed, first)).shuffle(is_lens)
        indices += range(first, first + count)
        lenses += is_lens.tolist()
    stream = _simulate(config, indices, lenses, simulation, bands)  # one pool of processes for all splits
    splits = {split: islice(stream, count) for split, count in counts.items() if count}
    sample = list(islice(splits["train"], FIT_CUTOUTS))
    splits["train"] = chain(sample, splits["train"])
    stretch = Stretch.fit((flux for flux, _ in sample), "asinh" if config.stretch == "auto" else config.stretch)
    info = CutoutInfo(
        source="simulated",
        name="simulated lenses",
        simulated=True,
        bands=list(bands),
        size=simulation.size,
        pixel_scale=simulation.pixel_scale,
        zero_point=simulation.zero_point,
        stretch=stretch.to_dict(),
        fingerprint=config.fingerprint,
        simulator_version=SIMULATOR_VERSION,
    )
    return splits, info


def _simulate(
    config: CutoutsConfig, indices: list[int], lenses: list[bool], simulation: SimulationConfig, bands: list[str]
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    order = [BANDS.index(band) for band in bands]
    cutouts = simulate_cutouts(config.data_seed, indices, lenses, simulation, num_proc=config.num_proc)
    for index, lens, (flux, meta) in zip(indices, lenses, cutouts):
        labelled = not _FIRST_INDEX["unlabelled"] <= index < _FIRST_INDEX["test_large"]
        name = f"sim-{config.data_seed}-{index}"
        columns = {"id": name, "group": name, "label": int(lens) if labelled else -1}
        columns["subclass"] = meta["subclass"] if labelled else ""
        columns["einstein_radius"] = meta["einstein_radius"] if labelled else float("nan")
        columns["seeing"] = [float(meta["seeing"][i]) for i in order]
        columns |= {key: meta[key] for key in ("ra", "dec", "zero_point", "pixel_scale")}
        yield standardise(RawCutout(flux[order]), name), columns


@dataclass(frozen=True)
class _Checked:
    """What is kept of a readable file until all have been seen."""

    shape: tuple[int, int, int]
    bands: tuple[str, ...] | None
    zero_points: tuple[float, ...] | None
    pixel_scale: float | None
    display: bool


def _open_files(config: CutoutsConfig) -> tuple[dict[str, Iterable], CutoutInfo]:
    """Read every file once to check it, draw the splits, fit the stretch; the splits then read the files again."""
    checked = {}
    for row in datasets.utils.tqdm(config.rows, desc="Checking cutouts", unit=" cutouts"):
        try:
            checked[row.id] = _check(row, config)
        except InputError as error:
            config.bad.add(row.name, error)
    rows = [row for row in config.rows if row.id in checked]
    rows = _same_bands(rows, checked, config)
    if not rows:
        raise InputError(f"{config.dataset} holds no readable cutout{config.bad}: restore the files")
    bands, display, pixel_scale, zero_point = _common(rows, checked, config)
    smallest = min(rows, key=lambda row: min(checked[row.id].shape[1:]))
    size = config.size or min(checked[smallest.id].shape[1:])
    if config.size is None and len({checked[row.id].shape for row in rows}) > 1:
        logger.warning(f"cutouts differ in size: all are centre-cropped to {size} pixels, the size of {smallest.name}")
    source = f"{config.name} {config.dataset}{config.bad}"
    splits = assign_splits(rows, source, config.validation_fraction, config.test_fraction, config.data_seed)

    def read(members: list[Row]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        for row in members:
            flux = standardise(_read(row, config), row.name, bands, pixel_scale, zero_point)
            columns = {key: getattr(row, key) for key in ("id", "label", "subclass", "group", "ra", "dec")}
            yield _centre_crop(flux, size), columns

    kind = config.stretch if config.stretch != "auto" else "none" if display else "asinh"
    train = splits["train"]
    sample = np.random.default_rng(config.data_seed).permutation(len(train))[:FIT_CUTOUTS]
    stretch = Stretch.fit((flux for flux, _ in read([train[i] for i in sorted(sample)])), kind)
    info = CutoutInfo(
        source=config.name,
        name=Path(config.dataset).resolve().stem,
        simulated=False,
        bands=bands or [f"band {i + 1}" for i in range(checked[smallest.id].shape[0])],
        size=size,
        pixel_scale=pixel_scale,
        zero_point=zero_point,
        stretch=stretch.to_dict(),
        fingerprint=config.fingerprint,
        left_out=len(config.bad.problems),
    )
    return {split: read(members) for split, members in splits.items()}, info


def _read(row: Row, config: CutoutsConfig) -> RawCutout:
    if len(row.paths) == 1:
        return read_raw(row.paths[0], config.hdu)
    return read_raw_bands(list(row.paths), config.bands, config.hdu)


def _check(row: Row, config: CutoutsConfig) -> _Checked:
    raw = _read(row, config)
    pixels = standardise(raw, row.name, config.bands, config.pixel_scale, config.zero_point)
    if config.stretch == "none":
        try:
            Stretch("none").apply(pixels)
        except InputError as error:
            raise InputError(f"{row.name}: {error}") from error
    height, width = pixels.shape[1:]
    if (smallest := min(height, width)) < (config.size or MODEL_CROP):
        wanted = f"size {config.size}" if config.size else f"the {MODEL_CROP} that models see"
        mend = "cut it out larger"
        if config.size is None and smallest >= MIN_SIZE:
            mend += f", or give size {smallest} or less and train with such a crop_size"
        raise InputError(f"{row.name} is {height} x {width} pixels, smaller than {wanted}: {mend}")
    return _Checked(pixels.shape, raw.bands, raw.zero_points, raw.pixel_scale, raw.display)


def _same_bands(rows: list[Row], checked: dict[str, _Checked], config: CutoutsConfig) -> list[Row]:
    """The rows with the bands that most rows have; the others are bad."""

    def bands(row: Row) -> tuple[int, tuple[str, ...]]:
        found = checked[row.id]
        named = not config.bands and found.bands and found.bands != PICTURE_BANDS
        return found.shape[0], tuple(sorted(found.bands)) if named else ()

    common = Counter(map(bands, rows)).most_common(1)[0][0] if rows else None
    for row in rows:
        if (found := bands(row)) != common:
            have, others = (f"{n} band{'s' * (n > 1)} {' '.join(names)}".strip() for n, names in (found, common))
            sentence = f"{row.name} has {have} where most cutouts have {others}: leave it out, or choose bands"
            config.bad.add(row.name, InputError(sentence))
    return [row for row in rows if bands(row) == common]


def _common(
    rows: list[Row], checked: dict[str, _Checked], config: CutoutsConfig
) -> tuple[list[str] | None, bool, float | None, float | None]:
    """Bands, whether all are display units, pixel scale and zero point that hold for all rows."""
    found = [checked[row.id] for row in rows]
    bands = config.bands or (list(found[0].bands) if found[0].bands else None)
    display = [one.display for one in found]
    if config.stretch == "auto" and any(display) and not all(display):
        picture, flux = rows[display.index(True)], rows[display.index(False)]
        raise InputError(
            f"{picture.name} is an 8-bit picture but {flux.name} is flux: keep one kind, or give a stretch"
        )
    scales = [one.pixel_scale for one in found if one.pixel_scale]
    if config.pixel_scale is None and scales and max(scales) > 1.01 * min(scales):
        span = f"{min(scales):.4g} to {max(scales):.4g} arcsec"
        raise InputError(f"the cutouts of {config.dataset} have pixels of {span}: resample them with pixel_scale")
    points = {zero_point for one in found for zero_point in one.zero_points or ()}
    per_file = {one.zero_points for one in found if one.zero_points}
    if config.zero_point is None and len(per_file) > 1:
        span = f"{min(points):.4g} to {max(points):.4g}"
        raise InputError(f"the cutouts of {config.dataset} have zero points of {span}: scale them with zero_point")
    scale = config.pixel_scale or (float(np.median(scales)) if scales else None)
    common = points.pop() if len(points) == 1 else None
    return bands, all(display), scale, common if config.zero_point is None else config.zero_point


def _centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def save_cutouts(dataset_dict: datasets.DatasetDict, directory: str | Path, readme: str | None = None) -> None:
    """
    Write a data set as Parquet files that plain `datasets.load_dataset(directory)` reads, also from the Hub, with a
    README.md and `cutouts.json`, from which [`load_cutouts`] knows how the pixels were made.

    Args:
        dataset_dict (`datasets.DatasetDict`): as [`load_cutouts`] returns it.
        directory (`str` or `Path`): must not exist, or be empty.
        readme (`str`, *optional*): another README.md, whose header holds that of [`card_header`].

    Raises:
        [`InputError`]: the directory holds something, or cannot be written.
    """
    info, directory = cutout_info(dataset_dict), Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists already: choose another directory or remove it")
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        (temporary / "data").mkdir()
        files: dict[str, list[str]] = {name: [] for name in dataset_dict}
        for name, split in dataset_dict.items():
            shards = max(1, -(-split.data.nbytes // SHARD_BYTES))
            for i in range(shards):
                path = temporary / "data" / f"{name}-{i:05d}-of-{shards:05d}.parquet"
                rows = max(1, ROW_GROUP_BYTES // (len(info.bands) * info.size**2 * 4))
                split.shard(shards, i, contiguous=True).to_parquet(
                    str(path), batch_size=rows, write_page_checksum=True
                )
                # The cache of load_dataset goes by what README.md says: other content must have another name there.
                digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
                path = path.rename(path.with_stem(f"{path.stem}-{digest}"))
                files[name].append(f"data/{path.name}")
        (temporary / CARD_FILE).write_text(info.to_json() + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(readme or _readme(dataset_dict, info, files), encoding="utf-8")
        temporary.chmod(0o755)
        os.replace(temporary, directory)
    except OSError as error:
        raise InputError(f"cannot write {directory} ({error.strerror or error}): choose another directory") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def card_header(dataset_dict: datasets.DatasetDict, files: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """
    The YAML header of the README.md beside Parquet files: what `load_dataset` and the Hub's viewer go by, with the
    `files` of each split by name where they are given.
    """
    features = next(iter(dataset_dict.values())).features
    splits = [
        {"name": name, "num_bytes": split.data.nbytes, "num_examples": len(split)}
        for name, split in dataset_dict.items()
    ]
    return {
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": (files or {}).get(name, f"data/{name}-*")} for name in dataset_dict
                ],
            }
        ],
        "dataset_info": {"features": features._to_yaml_list(), "splits": splits},
        "task_categories": ["image-classification"],
        "tags": ["astronomy", "gravitational-lensing"],
    }


def _readme(dataset_dict: datasets.DatasetDict, info: CutoutInfo, files: dict[str, list[str]]) -> str:
    import yaml

    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset_dict.items())
    return f"""---
{yaml.safe_dump(card_header(dataset_dict, files), sort_keys=False)}---
# Cutouts of gravitational lenses and look-alikes: {info.name}

{"**Simulated**, not observed. " if info.simulated else ""}Splits: {sizes}. `pixels` are float32
`({", ".join(info.bands)}) x {info.size} x {info.size}` in display units (0 to 255), stretch: {info.stretch["kind"]};
`label` is 1 for a lens, 0 for a non-lens and -1 for unlabelled. `cutouts.json` holds the stretch and the pixel scale.
"""


def _load_saved(source: str, options: dict[str, Any], card: Path) -> datasets.DatasetDict:
    extra = sorted(set(options) - {"cache_dir"})
    if extra:
        raise InputError(f"{source} is built already, {extra[0]} cannot change it: build it again from its source")
    try:
        info = CutoutInfo.from_json(card.read_text(encoding="utf-8"))
        if os.path.isdir(source):
            from .batches import check_shards  # imports torch

            check_shards(Path(source))
        dataset_dict = datasets.load_dataset(source, cache_dir=options.get("cache_dir"))
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError, DatasetsError) as error:
        raise InputError(f"{source} cannot be read (truncated?): write it again with save_cutouts") from error
    for name, split in dataset_dict.items():
        if not {"id", "pixels", "label"} <= set(split.column_names):
            raise InputError(f"{source} holds {CARD_FILE} but no cutouts: write it again with save_cutouts")
        if PICTURE_COLUMN in split.column_names:
            split = dataset_dict[name] = split.remove_columns(PICTURE_COLUMN)
        split.info.description = info.to_json()
    return dataset_dict


def _load_from_hub(source: str, options: dict[str, Any]) -> datasets.DatasetDict:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        card = hf_hub_download(source, CARD_FILE, repo_type="dataset")
        return _load_saved(source, options, Path(card))
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{source} is neither a folder or table here nor, as far as can be seen, a data set on the Hub with "
            f"{CARD_FILE}: correct the path or the id, or log in if it is private"
        ) from error
