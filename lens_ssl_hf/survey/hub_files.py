"""The Parquet files of a dataset on the Hub, at one commit."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RevisionNotFoundError

from ..data.info import CutoutInfo
from ..data.listing.table_files import PARQUET_SUFFIXES
from ..data.storage import CARD_FILE
from ..errors import InputError
from ..files import looks_local

CONVERTED = "refs/convert/parquet"  # where the Hub keeps Parquet that it made of a dataset in another format
_DATASET = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?"


def may_be_on_hub(source: Any) -> bool:
    """Whether `source` can be the id of a dataset, perhaps with a revision: `me/survey` or `me/survey@v1`."""
    return re.fullmatch(_DATASET, str(source)) is not None and not looks_local(str(source).split("@")[0])


def find_on_hub(source: Any) -> tuple[str, list[str], dict[str, Any] | None]:
    """
    The Parquet files of a dataset; of one in another format those that the Hub made of it.

    Args:
        source (`str`): an id, perhaps with a revision.

    Returns:
        `tuple`: the id with the commit, `"me/survey@1a2b..."`; the addresses of the files, such as
        `"hf://datasets/me/survey@1a2b.../data/0.parquet"`, which pandas opens, too, in the order of their names; and
        of what [`save_cutouts`] wrote the fields of `CutoutInfo`.

    Raises:
        [`InputError`]: there is no such dataset, it holds no Parquet, or the Hub cannot be reached.
    """
    repo_id, revision = re.fullmatch(_DATASET, str(source)).groups()
    with reaching(f"{source} does not exist here, and as a dataset on the Hub it"):
        name, paths = _list(repo_id, revision)
        if not any(map(_is_parquet, paths)) and revision is None:
            name, paths = _list_converted(repo_id)
        info = None
        if CARD_FILE in paths:
            text = HfFileSystem().read_text(f"datasets/{name}/{CARD_FILE}", encoding="utf-8")
            info, paths = asdict(CutoutInfo.from_json(text)), [path for path in paths if path.startswith("data/")]
    files = [f"hf://datasets/{name}/{path}" for path in sorted(filter(_is_parquet, paths))]
    if not files:
        raise InputError(
            f"{source} is not in Parquet: convert it with datasets.load_dataset({repo_id!r}, split=...).to_parquet("
            "'shards/0.parquet'), and give the folder shards"
        )
    return name, files, info


def _list(repo_id: str, revision: str | None) -> tuple[str, list[str]]:
    """The dataset with its commit, and all paths in it."""
    api = HfApi()
    commit = api.dataset_info(repo_id, revision=revision).sha
    return f"{repo_id}@{commit}", api.list_repo_files(repo_id, repo_type="dataset", revision=commit)


def _list_converted(repo_id: str) -> tuple[str, list[str]]:
    """As [`_list`], of what the Hub made of it; of a large dataset it makes a part, which is left alone."""
    try:
        name, paths = _list(repo_id, CONVERTED)
    except RevisionNotFoundError:
        return repo_id, []
    return name, [] if any("partial-" in path for path in paths) else paths


def _is_parquet(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.suffix.lower() in PARQUET_SUFFIXES and not pure.name.startswith((".", "_"))


@contextlib.contextmanager
def reaching(what: str) -> Iterator[None]:
    """
    Raises:
        [`InputError`]: the block asks the Hub for something that it does not give. What follows `?` in an address is
            not told, since it may be signed.
    """
    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, ConnectionError, FileNotFoundError) as error:
        reason = re.sub(r"\?[^\s']*", "", (str(error).strip() or type(error).__name__).split("\n")[0])
        fix = "correct it, log in if it is private, or give the command again when the Hub can be reached"
        raise InputError(f"{what} cannot be read ({reason.rstrip('.')}): {fix}") from error
