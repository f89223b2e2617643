"""Score every cutout of a survey, shard by shard: a killed run goes on, several machines share the shards."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from pyarrow import parquet

from ..data.files.raw import RawCutout
from ..errors import InputError, check_at_least
from ..files import make_folder, remove_dead, write_json, writing
from ..inference.read_cutout import FACTS
from . import calibration as calibrations
from . import manifest as manifests
from .crops import Batch, facts_of, text_array
from .inputs import Options, TileInput, open_input
from .parquet_input import ParquetInput
from .scorer import Scorer, Scores

logger = logging.getLogger(__name__)

VIEWS = (1, 8)
PRECISIONS = ("fp32", "bf16")
LOOKED_AT = 32  # cutouts that are read before a run begins


def score(
    model: Any,
    cutouts: str | os.PathLike,
    output: str | os.PathLike,
    shard_size: int = 100_000,
    embeddings: bool = False,
    views: int = 1,
    precision: str = "fp32",
    calibration: str | os.PathLike | None = None,
    tasks: int = 1,
    task: int | None = 0,
    batch_size: int = 256,
    device: str | None = None,
    num_proc: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Write a score of every cutout that ranks, 0 to 1, and P(lens) where the model is calibrated, into Parquet shards.
    What an earlier run finished is kept.

    ```python
    >>> score("runs/dino-300", "cutouts/", "scores/")
    ```

    Args:
        model (`str`, `os.PathLike`, or list of them):
            Fine-tuning runs, exported folders or Hub ids. Several are averaged in logit space.
        cutouts (`str` or `os.PathLike`):
            A folder of files; a table of files, or of positions with the option `tiles`; a stack; what
            [`save_cutouts`] wrote; Parquet files with cutouts in a column, or the id of a dataset on the Hub.
        output (`str` or `os.PathLike`): the folder to write.
        shard_size (`int`, *optional*, defaults to `100_000`): cutouts in a shard, in the order of the input.
        embeddings (`bool`, *optional*): keep the [CLS] tokens of the first model, as float16.
        views (`int`, *optional*, defaults to `1`): 8 averages the logits of all flips and quarter rotations.
        precision (`str`, *optional*, defaults to `"fp32"`): `"bf16"` for faster scores that are less exact.
        calibration (`str` or `os.PathLike`, *optional*):
            A calibration.json of [`grade`], by which `p_lens` is filled; by default the one that is stored with the
            model, where there is one.
        tasks, task (`int`, *optional*):
            This process scores the shards i with i % tasks == task; none where task is `None`, but everything is
            checked, and the manifest written.
        batch_size (`int`, *optional*, defaults to `256`): cutouts per forward pass.
        device (`str`, *optional*): by default the GPU where there is one.
        num_proc (`int`, *optional*): processes that read files; by default one per core.
        options: fields of [`Options`], such as `hdu`, `file_pattern`, `bands`, `zero_point`, `id_column`.

    Returns:
        `dict`: the manifest; once all shards are done with `counts`.

    Raises:
        [`InputError`]: no model, no cutout, cutouts that the model cannot score, an option that cannot be, a
            calibration of another model, scores of something else in `output`, a full disk. Shards that are done stay.
    """
    models = list(model) if isinstance(model, list | tuple) else [model]
    given = _options(options)
    _check(models, views, precision, tasks, task)
    check_at_least(1, shard_size=shard_size, tasks=tasks, batch_size=batch_size, num_proc=num_proc)
    shard_size, views, embeddings = int(shard_size), int(views), bool(embeddings)  # as the command has them
    output = Path(output)
    manifests.check_output(output, cutouts)
    scorer = Scorer(models, views, embeddings, batch_size, device, precision)
    source = open_input(cutouts, given, scorer.bands, num_proc, output / manifests.POSITIONS)
    settings = {"shard_size": shard_size, "views": views, "precision": precision, "embeddings": embeddings}
    manifest = manifests.describe(scorer, models, source, settings | asdict(given))
    manifest["calibration"] = scorer.calibration = calibrations.find(calibration, models, manifest)
    manifest["stated"] = _look(source, scorer)
    scorer.asked = replace(scorer.asked, stated=frozenset(manifest["stated"]))
    if not os.path.isfile(output / manifests.NAME):
        source.check()
    if task is not None:
        scorer.move()
    make_folder(output, "output")
    manifests.agree(output, manifest)
    if isinstance(source, TileInput):
        source.keep(output / manifests.POSITIONS)  # whose columns and order other tasks need not hold
    key, paths = manifests.key_of(manifest), manifests.shard_paths(output, manifest)
    own = shards_of(task, tasks, len(paths)) if task is not None else []
    done = {i for i in own if is_done(paths[i], key)}
    for i in done:
        remove_dead(paths[i])  # of a process that was killed between writing a shard and tidying up
    sizes = [min(shard_size, len(source) - i * shard_size) for i in range(len(paths))]
    total, before = sum(sizes[i] for i in own), sum(sizes[i] for i in done)
    with datasets.utils.tqdm(desc="Scoring", unit=" cutouts", total=total, initial=before) as progress:
        for i in own:
            if i not in done:
                start = i * shard_size
                rows = source.batches(start, start + sizes[i], scorer.asked, batch_size)
                score_shard(scorer, rows, paths[i], key, progress.update)
    return with_counts(output, manifest, key, paths)


def score_shard(
    scorer: Scorer, rows: Iterable[Batch], output: Path, key: str = "", tell: Callable[[int], Any] = lambda count: None
) -> None:
    """
    Write the scores of some rows as one Parquet file, whole or not at all.

    Args:
        scorer ([`Scorer`]): the models.
        rows (`Iterable[Batch]`): what a source's `batches` gives; it is read as it is scored.
        output (`Path`): the file.
        key (`str`, *optional*): what the file says that it was made of.
        tell (`Callable`, *optional*): called with the number of cutouts of each batch that is scored.
    """
    columns: list[dict[str, pyarrow.Array]] = []

    def crops() -> Iterator[Any]:
        for batch in rows:
            columns.append(batch.columns)
            yield from batch.crops

    scores: list[Scores] = []
    for one in scorer.score(crops()):
        scores.append(one)
        tell(len(one.flags))
    table = pyarrow.concat_tables([pyarrow.table(one) for one in columns])
    for name, values in _score_columns(scores, scorer).items():
        table = table.append_column(name, values)
    flagged = table.num_rows - table["score"].drop_null().length()
    facts = {"key": key, "flagged": flagged, "first_flag": next(iter(table["flag"].drop_null().to_pylist()), None)}
    with writing(output) as new:
        parquet.write_table(
            table.replace_schema_metadata({manifests.METADATA: json.dumps(facts)}), new, compression="zstd"
        )


def _score_columns(scores: Sequence[Scores], scorer: Scorer) -> dict[str, pyarrow.Array]:
    logits = np.concatenate([one.logits for one in scores])
    flags = [flag for one in scores for flag in one.flags]
    missing = np.array([flag is not None for flag in flags])
    logit = logits.mean(axis=1)
    with np.errstate(over="ignore"):
        found = {"score": pyarrow.array(1 / (1 + np.exp(-logit)), mask=missing)}
    found["p_lens"] = pyarrow.array(calibrations.apply(scorer.calibration, logit), from_pandas=True)
    found["logit"] = pyarrow.array(logit, mask=missing)
    if len(scorer.classifiers) > 1:
        found["spread"] = pyarrow.array(logits.std(axis=1), mask=missing)
    found["flag"] = text_array(flags)
    if scorer.width is not None:
        values = pyarrow.array(np.concatenate([one.embeddings for one in scores]).ravel())
        found["embedding"] = pyarrow.FixedSizeListArray.from_arrays(values, scorer.width, mask=pyarrow.array(missing))
    return found


def _options(options: Mapping[str, Any]) -> Options:
    known = Options.__dataclass_fields__
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"score has no option {', '.join(unknown)}: choose from {', '.join(known)}")
    return Options(**options)


def _check(models: list[Any], views: int, precision: str, tasks: int, task: int | None) -> None:
    if not models:
        raise InputError("no model is given: give a run, a folder or a Hub id")
    for one in models:
        if not isinstance(one, str | os.PathLike):
            raise InputError("model must be a run, a folder or a Hub id, or a list of these")
    if task is not None and not 0 <= task < tasks:
        raise InputError(f"task is {task}: give one from 0 to {tasks - 1}, as tasks is {tasks}")
    if views not in VIEWS:
        raise InputError(f"views is {views}: choose 1 or 8")
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision}: choose fp32 or bf16")


def _look(source: Any, scorer: Scorer) -> list[str]:
    """
    What the input states, by some of its cutouts; what it leaves open, while the models need it, is said.

    Raises:
        [`InputError`]: none of them can be scored; or a saved dataset is of other units than the models'.
    """
    if isinstance(source, ParquetInput) and source.info:
        for classifier, preparation in zip(scorer.classifiers, scorer.preparations):
            source.check_against(preparation, classifier.name)
        return []
    problems, stated, looked_at = [], Counter(), 0
    for raw, name in source.sample(LOOKED_AT, scorer.asked):
        looked_at += 1
        crops = scorer.asked.crops(raw, name) if isinstance(raw, RawCutout) else raw
        problems += [crops] if isinstance(crops, str) else []
        if isinstance(raw, RawCutout):
            stated.update({"picture"} | (facts_of(raw) & {"pixel scale"}) if raw.display else facts_of(raw) | {"flux"})
    if len(problems) == looked_at:
        raise InputError(f"none of {looked_at} cutouts of {source.name} can be scored; the first: {problems[0]}")
    for name, key in FACTS.items():
        known = [value for one in scorer.preparations if (value := one.cutouts.get(key)) is not None]
        if known and key == "zero_point" and 0 < 2 * stated[name] <= stated["flux"]:
            raise InputError(
                f"half of the cutouts of {source.name}, or more, state no zero point where others do: give "
                "zero_point, or add MAGZERO or BUNIT to their headers"
            )
        is_asked = stated["flux"] or (name == "pixel scale" and stated["picture"])
        silent = stated["flux"] + (stated["picture"] if name == "pixel scale" else 0) - stated[name]
        if known and is_asked and silent and (not stated[name] or name != "zero point"):
            value = " ".join(known[0]) if key == "bands" else f"{known[0]:.4g}"
            which = f"{silent} of {silent + stated[name]} cutouts" if stated[name] else "no cutout"
            were = "were looked at state no" if stated[name] else "was looked at states its"
            logger.warning(
                f"{which} of {source.name} that {were} {name}: taken as {value}; if that is wrong, give {key}"
            )
    return sorted(set(stated) - {"flux", "picture"})


def shards_of(task: int, tasks: int, count: int) -> range:
    """The numbers of the shards, of `count`, that a task scores."""
    return range(task, count, tasks)


def is_done(path: Path, key: str) -> bool:
    """
    Whether a shard is there.

    Raises:
        [`InputError`]: the shard is damaged, or of something else.
    """
    if not path.exists():
        return False
    if manifests.shard_facts(path)["key"] != key:
        raise InputError(f"{path} is of another model, input or option: remove it, or choose another output")
    return True


def with_counts(output: Path, manifest: dict[str, Any], key: str, paths: list[Path]) -> dict[str, Any]:
    """The manifest; where all shards are done, with the counts, which are stored."""
    if not all(path.exists() for path in paths):
        return manifest
    facts = [manifests.shard_facts(path) for path in paths]
    if any(one["key"] != key for one in facts):
        return manifest  # of another task, which says so
    flagged = sum(one["flagged"] for one in facts)
    first = next((one["first_flag"] for one in facts if one["first_flag"]), None)
    total = manifest["input"]["cutouts"]
    manifest["counts"] = {"cutouts": total, "scored": total - flagged, "flagged": flagged, "first_flag": first}
    write_json(output / manifests.NAME, manifest)
    return manifest
