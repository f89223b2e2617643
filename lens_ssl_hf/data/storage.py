"""The stored form of a dataset, here and on the Hub: a directory of Parquet files with a card and `cutouts.json`."""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from pyarrow import parquet

from ..errors import InputError
from ..files import cannot_write, writing
from .files.raw import readable
from .info import SPLITS, CutoutInfo, info_of_splits

ROW_GROUP_BYTES = 4_000_000  # what streaming reads at once
SHARD_BYTES = 500_000_000  # of a Parquet file
CARD_FILE = "cutouts.json"
NO_SAFETENSORS = "datasets are directories of Parquet files: build one with lens-ssl build"
_WRITE_AGAIN = "write it again with save_cutouts"
_SPLIT_NAME = r"(?!(?i:all)$)\w+(\.\w+)*"  # what datasets reads
PICTURE_COLUMN = "image"  # colour renderings of published datasets, for people who look at them on the Hub


def check_target(path: str | Path) -> None:
    """
    What can be known before a dataset is built that is to be saved as the directory `path`.

    Raises:
        [`InputError`]: a directory holds something, or nothing can be written there.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: {NO_SAFETENSORS}")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists already: choose another directory or remove it")
        parent = next(one for one in path.absolute().parents if one.exists())
    except OSError as error:
        raise cannot_write(path, error) from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "cannot be written to" if parent.is_dir() else "is not a folder"
        raise InputError(f"cannot write {path} ({parent} {reason}): choose another directory")


def check_dataset_target(path: str | Path) -> None:
    """
    As [`check_target`], for what is then given as `--dataset`.

    Raises:
        [`InputError`]: as there, or the directory is called simulated.
    """
    if Path(path).name == "simulated":
        raise InputError(f"{path} would hide the simulator, which --dataset simulated names: choose another name")
    check_target(path)


def save_cutouts(dataset_dict: datasets.DatasetDict, directory: str | Path, readme: str | None = None) -> None:
    """
    Write a dataset as Parquet files that plain `datasets.load_dataset(directory)` reads, also from the Hub, with a
    README.md and `cutouts.json`, from which [`load_cutouts`] knows how the pixels were made.

    Args:
        dataset_dict (`datasets.DatasetDict`): as [`load_cutouts`] returns it; what was cropped is saved with its size.
        directory (`str` or `Path`): must not exist, or be empty.
        readme (`str`, *optional*): another README.md, whose header holds that of [`card_header`].

    Raises:
        [`InputError`]: the directory holds something, or cannot be written; a split is empty, or has a name that
            cannot be read; or splits differ in their columns or the shape of their cutouts.
    """
    info, directory = info_of_splits(dataset_dict), Path(directory)
    for name, split in dataset_dict.items():
        if not re.fullmatch(_SPLIT_NAME, name):
            raise InputError(f"a split is called {name!r}: give it a name of letters, digits and _, such as test_hard")
        if not len(split):  # datasets cannot read a Parquet file without rows
            raise InputError(f"the {name} split is empty: take it out of the dataset, or put cutouts into it")
    _check_columns(dataset_dict)
    check_target(directory)
    with writing(directory) as new:
        (new / "data").mkdir(parents=True)
        files = {name: _write_split(split, name, info, new / "data") for name, split in dataset_dict.items()}
        (new / CARD_FILE).write_text(info.to_json() + "\n", encoding="utf-8")
        (new / "README.md").write_text(readme or _readme(dataset_dict, info, files), encoding="utf-8")


def _check_columns(dataset_dict: datasets.DatasetDict) -> None:
    """Refuse splits that cannot be read together: the columns of one are taken for those of all."""
    first, like = next(iter(dataset_dict.items()))
    for name, split in dataset_dict.items():
        for column in sorted({"id", "pixels", "label"} - set(split.column_names)):
            raise InputError(f"the {name} split has no column {column!r}: make the dataset with load_cutouts")
        for column in sorted(set(like.column_names) ^ set(split.column_names)):
            has, lacks = (first, name) if column in like.column_names else (name, first)
            raise InputError(f"the {has} split has a column {column!r}, {lacks} has not: add it there or remove it")
        for column in sorted(set(like.column_names) - {"pixels", "label"}):
            kinds = [one.features[column] for one in (split, like)]
            if kinds[0] != kinds[1]:
                raise InputError(
                    f"column {column!r} is {kinds[0]} in the {name} split and {kinds[1]} in {first}: make them equal "
                    "with cast_column"
                )


def _write_split(split: datasets.Dataset, name: str, info: CutoutInfo, folder: Path) -> list[str]:
    """The Parquet files of a split, named by their content."""
    shards = min(max(1, -(-_nbytes(split) // SHARD_BYTES)), len(split))
    rows = max(1, ROW_GROUP_BYTES // (len(info.bands) * info.size**2 * 4))
    files = []
    for i in range(shards):
        path = folder / f"{name}-{i:05d}-of-{shards:05d}.parquet"
        split.shard(shards, i, contiguous=True).to_parquet(str(path), batch_size=rows, write_page_checksum=True)
        # The cache of load_dataset goes by what README.md says: other content must have another name there.
        files.append(f"data/{path.rename(path.with_stem(f'{path.stem}-{_digest(path)}')).name}")
    return files


def _nbytes(split: datasets.Dataset) -> int:
    """Bytes of a split; its table holds the rows, too, that `select` or `filter` left out."""
    return split.data.nbytes * len(split) // max(1, split.data.num_rows)


def card_header(dataset_dict: datasets.DatasetDict, files: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """
    The YAML header of the README.md beside Parquet files: what `load_dataset` and the Hub's viewer go by, with the
    `files` of each split by name where they are given.
    """
    features = next(iter(dataset_dict.values())).features
    splits = [
        {"name": name, "num_bytes": _nbytes(split), "num_examples": len(split)} for name, split in dataset_dict.items()
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
    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset_dict.items())
    return f"""---
{yaml.safe_dump(card_header(dataset_dict, files), sort_keys=False)}---
# Cutouts of gravitational lenses and look-alikes: {info.name}

{"**Simulated**, not observed. " if info.simulated else ""}Splits: {sizes}. `pixels` are float32
`({", ".join(info.bands)}) x {info.size} x {info.size}` in display units (0 to 255), stretch: {info.stretch["kind"]};
`label` is 1 for a lens, 0 for a non-lens and -1 for unlabelled. `cutouts.json` holds the stretch and the pixel scale.
"""


def load_saved(source: str, options: dict[str, Any], card: Path) -> datasets.DatasetDict:
    """What [`save_cutouts`] wrote: a directory, or a repository of the Hub whose `cutouts.json` is `card`."""
    extra = sorted(set(options) - {"cache_dir", "num_proc"})  # which change nothing
    if extra:
        raise InputError(f"{source} is built already, {extra[0]} cannot change it: build it again from its source")
    try:
        info = CutoutInfo.from_json(card.read_text(encoding="utf-8"))
        if os.path.isdir(source):
            dataset_dict = _load_directory(Path(source), options.get("cache_dir"))
        else:
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


def _load_directory(directory: Path, cache_dir: str | None) -> datasets.DatasetDict:
    """The Parquet files by their names: `load_dataset` takes brackets and stars in a path for a pattern."""
    check_shards(directory)
    paths = sorted((directory / "data").absolute().glob("*.parquet"))
    splits: dict[str, list[str]] = {}
    for name in sorted({split_of(path) for path in paths}, key=_order):
        splits[name] = [str(path) for path in paths if split_of(path) == name]
        if not re.fullmatch(_SPLIT_NAME, name):  # earlier versions wrote it
            raise InputError(
                f"{directory} holds a split that is called {name!r}: rename its files, also in README.md, with "
                "letters, digits and _ alone"
            )
    if not splits:
        raise InputError(f"{directory} holds {CARD_FILE} but no cutouts: write it again with save_cutouts")
    # Names of files hold digests of their content; sizes and times tell where somebody changed one in place.
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    files = DataFilesDict({name: DataFilesList(paths, [(path,) for path in paths]) for name, paths in splits.items()})
    builder = Parquet(cache_dir=cache_dir, dataset_name="cutouts", data_files=files, hash=digest)
    if not os.path.isdir(builder.cache_dir):
        for path in paths:
            _check_content(path)
    builder.download_and_prepare()
    return builder.as_dataset()


def _check_content(path: Path) -> None:
    """Refuse a file whose content is not the one that gave it its name."""
    name = re.search(r"-([0-9a-f]{16})$", path.stem)
    if name and _digest(path) != name[1]:
        raise InputError(f"{path} is damaged: copy the directory again or write it anew")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def split_of(path: Path) -> str:
    """The split of a Parquet file by its name, such as `test_large-00000-of-00001-0f3c9a2187e4b6d5.parquet`."""
    return re.split(r"-\d+-of-", path.name)[0]


def _order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def load_from_hub(source: str, options: dict[str, Any]) -> datasets.DatasetDict:
    """What is published as the dataset `source`."""
    try:
        card = hf_hub_download(source, CARD_FILE, repo_type="dataset")
        return load_saved(source, options, Path(card))
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{source} is neither a folder or table here nor, as far as can be seen, a dataset on the Hub with "
            f"{CARD_FILE}: correct the path or the id, or log in if it is private"
        ) from error


class ParquetSplits:
    """
    Random access to the row groups of a directory that [`save_cutouts`] wrote.

    Args:
        directory (`Path`): the directory, with `data/<split>-*.parquet`.

    Attributes:
        groups (`dict[str, list[tuple[Path, int, int]]]`): per split, file, number and rows of each row group.
        columns (`set[str]`): those that all files have.
        info (`dict`): the fields of `CutoutInfo`.

    Raises:
        [`InputError`]: [`save_cutouts`] did not write the directory, or a file is damaged or missing.
    """

    def __init__(self, directory: Path):
        card = directory / CARD_FILE
        if not card.is_file():
            raise InputError(f"{directory} holds no {CARD_FILE}: give load_cutouts({str(directory)!r}) instead of it")
        with readable(card, fix=_WRITE_AGAIN):
            self.info = asdict(CutoutInfo.from_json(card.read_text(encoding="utf-8")))
        check_shards(directory)
        self.groups: dict[str, list[tuple[Path, int, int]]] = {}
        columns = []
        for path in sorted((directory / "data").glob("*.parquet")):
            with readable(path, fix=_WRITE_AGAIN), parquet.ParquetFile(path) as file:
                rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
                columns.append(set(file.schema_arrow.names))
            groups = self.groups.setdefault(split_of(path), [])
            groups += [(path, i, count) for i, count in enumerate(rows)]
        self.columns = set.intersection(*columns) if columns else set()

    def read(self, path: Path, group: int, column: str) -> Any:
        """One column of one row group: `pixels` as `(rows, bands, H, W)` float32, others as a list."""
        with readable(path, fix=_WRITE_AGAIN), parquet.ParquetFile(path, page_checksum_verification=True) as file:
            values = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
            if column == "pixels":
                shape = (len(values), len(self.info["bands"]), self.info["size"], self.info["size"])
                values = getattr(values, "storage", values)
                for _ in range(3):
                    values = values.flatten()
                if len(values) != math.prod(shape):  # cropped ones would be read as other, scrambled ones
                    raise InputError(
                        f"{path} holds cutouts of another shape than {CARD_FILE} states, {shape[1:]}: load the "
                        "directory with load_cutouts and write it again with save_cutouts"
                    )
                found = values.to_numpy(zero_copy_only=False).reshape(shape)
            else:
                found = values.to_pylist()
        return found

    def nbytes(self, splits: Sequence[str]) -> int:
        """Bytes that the pixels of some splits take in memory."""
        rows = sum(rows for split in splits for _, _, rows in self.groups.get(split, ()))
        return rows * len(self.info["bands"]) * self.info["size"] ** 2 * 4


def check_shards(directory: Path) -> None:
    """
    Raises:
        [`InputError`]: the directory lacks a file that [`save_cutouts`] wrote, or holds two in the place of one.
    """
    numbers: dict[str, list[str]] = {}  # by what the names of a split's files share
    for path in (directory / "data").glob("*.parquet"):
        if match := re.match(r"(.+?)-(\d+)-of-(\d+)", path.name):
            numbers.setdefault(f"{match[1]}-*-of-{match[3]}", []).append(match[2])
    for pattern, found in numbers.items():
        wanted = {f"{number:05d}" for number in range(int(pattern.rsplit("-", 1)[1]))}
        if wrong := sorted(wanted ^ set(found)) or [number for number in found if found.count(number) > 1]:
            problem = "twice" if wrong[0] in found else "no longer"
            name = f"data/{pattern.replace('*', wrong[0])}"
            raise InputError(f"{directory} holds {name} {problem}: copy the directory again or write it anew")
    card = directory / "README.md"
    for name in re.findall(r"data/[\w.-]+\.parquet", card.read_text(errors="replace") if card.is_file() else ""):
        if not (directory / name).is_file():  # the only one of a split
            raise InputError(f"{directory} holds {name} no longer: copy the directory again or write it anew")
