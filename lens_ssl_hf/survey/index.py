"""Indexes of a survey's embeddings by faiss, one per shard: a search then decodes only the shards it has to."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from ..data.files.raw import readable
from ..errors import InputError
from ..files import alone_in, remove_leftovers, writing
from .embeddings import SAMPLE, Whitening, embeddings_of, sample
from .rank import SPARE, Shards, best_of

FOLDER = "index"  # in that of the scores
KIND = "SQ8"  # a byte per number: scripts/measure_search.py compares it with others
CANDIDATES = 2  # times as many as are asked for are compared exactly


@dataclass(frozen=True)
class Index:
    """
    The indexes of all shards, and the whitening of what is in them.

    Args:
        shards ([`Shards`]): with embeddings.
        whiten ([`Whitening`]): by a sample of the survey, as without an index.
        paths (`list[Path]`): of the indexes, in the order of the shards.
    """

    shards: Shards
    whiten: Whitening
    paths: list[Path]

    def candidates(self, query: np.ndarray, top: int, separation: float, left_out: list[int]) -> np.ndarray:
        """Numbers of the rows that may be among the `top` most similar to a whitened query `(width,)`."""
        number = 2 * CANDIDATES * top + SPARE + len(left_out)  # of each shard: as many as best_of holds
        nearest = _Nearest(self, query.astype(np.float32), number, left_out)
        return best_of(nearest, CANDIDATES * top, separation, by="similarity")["row"].to_numpy()


@dataclass(frozen=True)
class _Nearest:
    """The `number` rows of each shard that are most similar by its index."""

    index: Index
    query: np.ndarray
    number: int
    left_out: list[int]

    def __iter__(self) -> Iterator[pyarrow.Table]:
        columns = [name for name in self.index.shards.columns if name != "embedding"]
        for table, path in zip(replace(self.index.shards, columns=columns), self.index.paths):
            if len(table):
                similarity, places = _open(path).search(self.query[None], min(self.number, len(table)))
                nearest = table.take(places[0])
                nearest = nearest.append_column("similarity", pyarrow.array(similarity[0], pyarrow.float64()))
                yield nearest.filter(~np.isin(nearest["row"].to_numpy(), self.left_out))


def open_index(shards: Shards) -> Index:
    """
    The indexes of a scored survey. Those that are missing, or older than their shards, are made first.

    Raises:
        [`InputError`]: faiss is not installed, an index is damaged or cannot be written, or the survey holds no two
            different embeddings.
    """
    _faiss()
    folder = shards.paths[0].parent / FOLDER
    with alone_in(folder):
        remove_leftovers(folder)
        states = [_state(path) for path in shards.paths]
        whiten = _whitening(folder / f"whitening.{_digest(states)}.npz", shards)
        of_whitening = whiten.mean.tobytes() + whiten.matrix.tobytes()
        names = [f"{path.stem}.{_digest([state, of_whitening])}.faiss" for path, state in zip(shards.paths, states)]
        paths = [folder / name for name in names]
        for number, path in enumerate(paths):
            if not path.is_file():
                _build(whiten(embeddings_of(shards.read(number))), path)
        for old in {*folder.glob("*.faiss")} - {*paths}:
            old.unlink()
    return Index(shards, whiten, paths)


def _state(path: Path) -> str:
    facts = path.stat()
    return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _whitening(path: Path, shards: Shards) -> Whitening:
    """That of an earlier call, while no shard has changed; raises [`InputError`] where it is damaged."""
    if path.is_file():
        with readable(path, fix="remove it, and it is made again"), np.load(path, allow_pickle=False) as stored:
            return Whitening(stored["mean"], stored["matrix"])
    whiten = Whitening.fit(embeddings_of(sample(shards, SAMPLE)))
    for old in path.parent.glob("whitening.*.npz"):
        old.unlink()
    with writing(path) as new, new.open("wb") as file:
        np.savez(file, mean=whiten.mean, matrix=whiten.matrix)
    return whiten


def _build(vectors: np.ndarray, path: Path) -> None:
    faiss = _faiss()
    index = faiss.index_factory(vectors.shape[1], KIND, faiss.METRIC_INNER_PRODUCT)
    if len(vectors):
        index.train(vectors)
        index.add(vectors)
    with writing(path) as new:
        new.write_bytes(faiss.serialize_index(index).tobytes())


def _open(path: Path) -> Any:
    """Mapped into memory, so that it is read as far as it is searched."""
    faiss = _faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise InputError(f"{path} is damaged: remove it, and it is made again") from error


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("faiss is not installed: pip install 'lens-ssl-hf[search]', or leave index out") from error
    return faiss
