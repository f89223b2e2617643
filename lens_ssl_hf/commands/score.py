"""
Score every cutout of a survey: a score from 0 to 1 that ranks, and P(lens) where the model is calibrated
(lens-ssl grade), in Parquet shards. A run that was killed goes on with the same command.

```bash
lens-ssl score --model runs/dino-300 --input cutouts/ --output scores/
lens-ssl score --model runs/dino-300 runs/ibot-300 --input catalogue.csv --output scores/ --views 8
lens-ssl score --model runs/dino-300 --input positions.csv --tiles 'tiles/{band}/*.fits' --output scores/
lens-ssl score --model runs/dino-300 --input shards/ --output scores/ --tasks 8 --task 0   # of eight processes
lens-ssl score --model runs/dino-300 --input shards/ --output scores/ --tasks 16 --executor local --workers 4
```

A cutout that cannot be read or scored is a row with a flag. manifest.json says what the scores were made of.
"""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import Any

from ..data.options import DataArguments, option
from ..errors import InputError, exit_on_input_error
from .parsing import parse
from .shared import quiet


def _of_data(name: str) -> Any:
    """The option of all datasets of that name."""
    item = DataArguments.__dataclass_fields__[name]
    return option(item.default, item.metadata["help"].removeprefix("Table: "))


@dataclass
class ScoreArguments:
    model: list[str] = option(MISSING, "A run, an exported folder or a Hub id; several are averaged.")
    input: str = option(
        MISSING,
        "A folder or a table of files, a table of positions, a stack, a saved dataset, Parquet files, or the id of a "
        "dataset on the Hub.",
    )
    output: str = option(MISSING, "The folder to write.")
    tiles: str | None = option(
        None,
        "FITS images to cut the positions of a table out of, such as 'tiles/{band}/*.fits'; or all bands in each.",
    )
    embeddings: bool = option(False, "Keep the [CLS] token of each cutout, by the first model, as float16.")
    views: int = option(1, "8: the mean logit over all flips and quarter rotations, at 8 times the cost.")
    precision: str = option("fp32", "bf16 is faster on hardware that has it, and less exact.", ["fp32", "bf16"])
    calibration: str | None = option(None, "A calibration.json of lens-ssl grade; by default the model's own.")
    shard_size: int = option(100_000, "Cutouts in a shard.")
    tasks: int = option(1, "Processes that share the shards, on one machine or many.")
    task: int = option(0, "Which of them this one is, from 0: it scores the shards i with i % tasks == task.")
    executor: str | None = option(None, "Run all tasks through DataTrove.", ["local", "slurm", "ray"])
    workers: int | None = option(None, "Executors: tasks at once; by default all, locally one per GPU or core.")
    slurm_options: list[str] | None = option(
        None, "Slurm: options of sbatch, such as partition=gpu time=12:00:00 gpus=1 cpus-per-task=8 mem-per-cpu=4G."
    )
    batch_size: int = option(256, "Cutouts per forward pass.")
    device: str | None = option(None, "Such as cuda:1; by default the GPU where there is one.")
    num_proc: int | None = option(None, "Processes that read files; by default one per CPU core.")
    hdu: str | None = _of_data("hdu")
    file_pattern: str | None = option(None, "Several single-band files per object, such as '{id}_{band}.fits'.")
    bands: list[str] | None = option(
        None, "Bands of cutouts that do not name theirs, in order; with file_pattern or {band} as the names have them."
    )
    zero_point: float | None = option(None, "AB magnitude of flux 1, of cutouts that do not state it.")
    pixel_scale: float | None = option(None, "Arcsec per pixel, of cutouts that do not state it.")
    id_column: str = _of_data("id_column")
    file_column: str = _of_data("file_column")
    ra_column: str = _of_data("ra_column")
    dec_column: str = _of_data("dec_column")
    pixel_column: str | None = option(None, "Parquet: the column that holds the cutouts, where several could.")


@exit_on_input_error
def main() -> None:
    most_used = ("model", "input", "output", "tiles", "embeddings", "views", "tasks", "task", "executor", "workers")
    (arguments,) = parse(ScoreArguments, description=__doc__, most_used=most_used)
    quiet()
    manifest = _score(arguments)
    counts = manifest.get("counts")
    if counts is None:
        is_done = f"task {arguments.task} of {arguments.tasks} is done; others are not yet"
        print("the tasks are submitted: the same command tells when all is done" if arguments.executor else is_done)
        return
    print(f"{counts['scored']} of {counts['cutouts']} cutouts scored, {counts['flagged']} flagged")
    if counts["first_flag"]:
        print(f"the first flag: {counts['first_flag']}")
    print(f"written to {arguments.output}")


def _score(arguments: ScoreArguments) -> dict[str, Any]:
    options = asdict(arguments)
    names = ("model", "input", "output")
    positional = [options.pop(name) for name in names]
    executor, workers, slurm_options = (options.pop(name) for name in ("executor", "workers", "slurm_options"))
    if executor is None:
        for name, value in (("workers", workers), ("slurm_options", slurm_options)):
            if value is not None:
                raise InputError(f"{name} has no meaning without executor: add it, or leave {name} out")
        from .. import score

        return score(*positional, **options)
    if options.pop("task"):
        raise InputError("the executor runs every task: leave task out")
    from ..survey.executors import score_with

    return score_with(executor, *positional, workers=workers, slurm_options=_pairs(slurm_options or ()), **options)


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Words such as `time=12:00:00`; options of sbatch without a value are the name alone."""
    pairs = (word.lstrip("-").partition("=") for word in words)
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    main()
