"""The stored form of a dataset, here and on the Hub: a directory of Parquet files with a card and `cutouts.json`."""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from ..errors import InputError
from .processing import CutoutInfo, cutout_info

ROW_GROUP_BYTES = 4_000_000  # what streaming reads at once
SHARD_BYTES = 500_000_000  # of a Parquet file
CARD_FILE = "cutouts.json"
PICTURE_COLUMN = "image"  # colour renderings of published datasets, for people who look at them on the Hub


def check_target(path: str | Path) -> None:
    """
    What can be known before a dataset is built that is to be saved as `path`, a directory or a `.safetensors` file.

    Raises:
        [`InputError`]: a directory holds something, or nothing can be written there.
    """
    path = Path(path)
    is_file = path.name.endswith(".safetensors")
    try:
        if not is_file and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists already: choose another directory or remove it")
        if is_file and path.is_dir():
            raise InputError(f"cannot write {path} (it is a folder): choose another name")
        parent = next(one for one in path.absolute().parents if one.exists())
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): choose another directory") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "cannot be written to" if parent.is_dir() else "is not a folder"
        raise InputError(f"cannot write {path} ({parent} {reason}): choose another directory")


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
    check_target(directory)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        (temporary / "data").mkdir(parents=True)
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
        os.replace(temporary, directory)
    except OSError as error:
        raise InputError(f"cannot write {directory} ({error.strerror or error}): choose another directory") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(directory: Path) -> None:
    """Remove what writers of the same directory, on this machine, left when they were killed."""
    for path in directory.parent.iterdir():
        match = re.fullmatch(rf"\.{re.escape(directory.name)}\.(\d+)\.partial", path.name)
        if match and not Path("/proc", match[1]).exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


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


def load_saved(source: str, options: dict[str, Any], card: Path) -> datasets.DatasetDict:
    """What [`save_cutouts`] wrote: a directory, or a repository of the Hub whose `cutouts.json` is `card`."""
    extra = sorted(set(options) - {"cache_dir"})
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
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.parquet.parquet import Parquet

    from .batches import check_shards  # imports torch

    check_shards(directory)
    paths = sorted((directory / "data").absolute().glob("*.parquet"))
    splits: dict[str, list[str]] = {}
    for name in sorted({path.name.split("-")[0] for path in paths}, key=_order):
        splits[name] = [str(path) for path in paths if path.name.split("-")[0] == name]
    if not splits:
        raise InputError(f"{directory} holds {CARD_FILE} but no cutouts: write it again with save_cutouts")
    # Names of files hold digests of their content; sizes and times tell where somebody changed one in place.
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    files = DataFilesDict({name: DataFilesList(paths, [(path,) for path in paths]) for name, paths in splits.items()})
    builder = Parquet(cache_dir=cache_dir, dataset_name="cutouts", data_files=files, hash=digest)
    builder.download_and_prepare()
    return builder.as_dataset()


def _order(split: str) -> tuple[int, str]:
    names = ("train", "validation", "test", "unlabelled", "test_large")
    return (names.index(split) if split in names else len(names), split)


def load_from_hub(source: str, options: dict[str, Any]) -> datasets.DatasetDict:
    """What is published as the dataset `source`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        card = hf_hub_download(source, CARD_FILE, repo_type="dataset")
        return load_saved(source, options, Path(card))
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{source} is neither a folder or table here nor, as far as can be seen, a data set on the Hub with "
            f"{CARD_FILE}: correct the path or the id, or log in if it is private"
        ) from error
