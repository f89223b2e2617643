"""
What `scripts/benchmark.py --parts scoring` measures in a process of its own, pinned to some cores: cutouts per second
from Parquet and from FITS files, beside the bare forward by several engines, reading without a forward, and a loop
that takes one file at a time.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_engines import SCORED, compare_engines

MODEL = Path(__file__).parents[1] / "model_cards" / "lens-dino-vits8-classifier"
CUTOUTS, FILES, SIDE = 8192, 10_000, 64


def measure(cores: int, seconds: float) -> dict[str, Any]:
    """Cutouts per second, all of the same model."""
    import torch

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"engines": compare_engines(classifier(), cores, seconds)}
        cutouts, files = write_parquet(Path(folder)), write_files(Path(folder))
        found["read_alone"] = {"parquet": reading_rate(cutouts, cores), "files": reading_rate(files, cores)}
        found["parquet"] = scoring_rate(cutouts, cores)
        found |= {"files": scoring_rate(files, cores), "one_file_at_a_time": loop_rate(files, seconds)}
    return found | {
        "parquet_over_forward": found["parquet"] / found["engines"][SCORED]["cutouts_per_second"],
        "files_over_loop": found["files"] / found["one_file_at_a_time"],
    }


def classifier() -> Any:
    from lens_ssl_hf.inference.classifier import Classifier

    return Classifier.load(MODEL)


def rate(way: Callable[[], Any], count: int, seconds: float) -> float:
    """Cutouts per second of a call that takes `count` of them, over at least some seconds."""
    way()
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        way()
        calls += 1
    return count * calls / (time.perf_counter() - start)


def scoring_rate(source: Path, cores: int) -> float:
    """Of `lens-ssl score` from the first cutout that is read to the shard on the disk, without its start."""
    from lens_ssl_hf.survey.score import score_shard
    from lens_ssl_hf.survey.scorer import Scorer

    scorer = Scorer([MODEL])
    count, read = reader(source, scorer, cores)
    with tempfile.TemporaryDirectory() as folder:
        score_shard(scorer, read(256), Path(folder) / "warm.parquet")
        start = time.perf_counter()
        score_shard(scorer, read(count), Path(folder) / "scores.parquet")
        return count / (time.perf_counter() - start)


def reading_rate(source: Path, cores: int) -> float:
    """Of the same without a forward: what a GPU would wait for."""
    from lens_ssl_hf.survey.scorer import Scorer

    count, read = reader(source, Scorer([MODEL]), cores)
    return rate(lambda: sum(len(batch.crops) for batch in read(count)), count, 0)


def reader(source: Path, scorer: Any, cores: int) -> tuple[int, Callable[[int], Any]]:
    """How many cutouts there are, and what reads the first of them in batches."""
    from dataclasses import replace

    from lens_ssl_hf.survey.inputs import Options, open_input

    opened = open_input(source, Options(), scorer.bands, cores)
    asked = replace(scorer.asked, stated=frozenset())
    return len(opened), lambda count: opened.batches(0, count, asked, 256)


def loop_rate(folder: Path, seconds: float) -> float:
    """Of a loop that opens, crops, stretches and scores one file after the other."""
    import torch

    from lens_ssl_hf import read_cutout

    model, paths = classifier(), sorted(folder.glob("*.fits"))
    turns = iter(paths * 1000)
    return rate(lambda: model.logits(torch.from_numpy(read_cutout(next(turns), like=model.model))[None]), 1, seconds)


def flux(number: int) -> np.ndarray:
    """Sky noise with a source in it, `(3, SIDE, SIDE)`, in the model's units."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    source = np.exp(-(x**2 + y**2) / rng.uniform(8, 60))
    return (0.1 * rng.normal(size=(3, SIDE, SIDE)) + rng.uniform(1, 8, (3, 1, 1)) * source).astype(np.float32)


def write_parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    path, kind = folder / "cutouts.parquet", pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.float32())))
    with parquet.ParquetWriter(path, pyarrow.schema({"pixels": kind})) as writer:
        for first in range(0, CUTOUTS, 256):
            pixels = pyarrow.array([flux(i).tolist() for i in range(first, first + 256)], kind)
            writer.write_table(pyarrow.table({"pixels": pixels}))
    return path


def write_files(folder: Path) -> Path:
    from astropy.io import fits

    files = folder / "cutouts"
    files.mkdir()
    for i in range(FILES):
        fits.writeto(files / f"{i:05d}.fits", flux(i))
    return files
