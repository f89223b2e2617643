"""Doing a study: every cell of its table is a directory, which one process at a time has for itself."""

import contextlib
import fcntl
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..data.tensors import checksum
from ..errors import InputError, Interrupted
from ..evaluation.metrics import measure
from ..evaluation.predictions import Predictions
from ..evaluation.probes import extract_features, linear_probe, probe, radial_profiles
from ..files import make_folder, write_json
from ..inference.classifier import predict
from ..models.backbones import load_encoder
from ..training.accelerator import process_state
from ..training.finetune import finetune, label_subset
from ..training.pretrain import pretrain
from ..training.progress import format_time
from ..training.run_directory import read_run
from .plan import RECORDED, Cell, Plan, read_record, weight

logger = logging.getLogger(__name__)

LARGE_SPLIT = "test_large"
KEPT_SOURCES = 6  # whose features are kept, some 40 MB each
# What cell.json takes over from the run.json of a training.
_KEPT = ("seconds", "precision", "device", "num_processes", "num_labels", "num_train_images", "num_parameters")
_KEPT += ("validation_auc", "best_step", "collapsed", "versions", "git_revision")


class Study(Plan):
    """
    A [`Plan`] that is carried out.

    Attributes:
        failures (`dict[Cell, str]`): what ended cells that could not be done.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.failures: dict[Cell, str] = {}
        self._kept: dict[Cell, Callable[[str], np.ndarray]] = {}

    def run(self) -> list[dict[str, Any]]:
        """
        Do what is not done yet, and return the records of all cells that are. Several processes may run one study,
        each on its own device: every cell is taken by one of them. What an [`InputError`] or too little memory ends is
        noted in `failures`, and the rest goes on; under a launch of several processes it ends the study.
        """
        make_folder(self.output_dir, "output_dir")
        with self.lock("study"):
            write_data(self)
        cells = self.cells()
        if _is_main():
            for cell in filter(self.is_done, cells):
                self._tidy(cell)
        with _Progress(self, cells) as progress:
            while todo := _agreed([cell for cell in cells if not self._is_settled(cell)]):
                progressed = False
                for cell in todo:
                    start = time.perf_counter()
                    if self._take(cell):
                        progress.count(cell, time.perf_counter() - start)
                        progressed = True
                if not progressed:
                    time.sleep(5)  # others are at the rest
        return self.records()

    def _take(self, cell: Cell) -> bool:
        """Do a cell, unless its pretraining is not there yet or another process has it; whether it was tried."""
        before = cell.pretraining
        if _agreed(self._is_settled(cell) or (before is not None and not self.is_done(before))):
            return False
        with self._claim(cell) as claimed:
            if claimed:
                self._try(cell)
        return claimed

    def _is_settled(self, cell: Cell) -> bool:
        """Whether nothing is left to do: it is done, or it or its pretraining has failed."""
        return self.is_done(cell) or cell in self.failures or cell.pretraining in self.failures

    def _try(self, cell: Cell) -> None:
        try:
            self.do(cell)
        except (InputError, MemoryError, RuntimeError) as error:
            lacks_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
            if process_state().num_processes > 1 or not (lacks_memory or isinstance(error, InputError)):
                raise  # in a launch the others wait for this one
            self.failures[cell] = (str(error) or "too little memory").splitlines()[0]
            logger.warning("%s failed: %s", cell.name, self.failures[cell])
        except Interrupted as interrupted:
            message = f"{cell.name} is saved; the same command goes on"
            raise Interrupted(message, interrupted.signal_number) from interrupted

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Whether the main process has the lock of this name, which one process at a time holds."""
        if not _is_main():
            yield True
            return
        folder = self.output_dir / ".claims"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "w") as file:  # closing it unlocks
            held = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                held = False
            except OSError as error:
                logger.warning("%s cannot be locked (%s): run one command at a time", folder, error.strerror)
            yield held

    @contextlib.contextmanager
    def _claim(self, cell: Cell) -> Iterator[bool]:
        """Whether this process, or this launch of several, has the cell for itself."""
        with self.lock(cell.name, wait=False) as held:
            yield _agreed(held and not self.is_done(cell))  # by another, since we looked

    def do(self, cell: Cell) -> None:
        """Train and test one cell; its cell.json, written when all else is there, says that it is whole."""
        directory, cutouts = self.directory(cell), self.data[cell.fold]
        settings = self.recorded(cell)
        record: dict[str, Any] = {**asdict(cell), "directory": str(directory), "settings": settings}
        if cell.is_pretraining:
            pretrain(cutouts, **settings)
            if _is_main():
                if "init_run" in read_run(directory):
                    record["continued_from"] = _origin(read_run(directory)["init_run"])
                report = probe(directory, cutouts)
                record["probes"] = {name: _values(one["metrics"]) for name, one in report["probes"].items()}
                record["weights"] = checksum("", load_encoder(directory).state_dict())
                for other in self.cells():
                    if other.pretraining == cell and self.is_done(other):
                        self.check_pretraining(other, record["weights"])
        elif not cell.is_trained:
            if _is_main():
                record |= self._test_regression(cell)
        else:
            finetune(cutouts, **settings)
            if _is_main():
                record |= self._test(directory, lambda split: predict(directory, cutouts, split=split))
        if _is_main():
            if cell.pretraining is not None:
                record["pretraining_weights"] = self.weights_of(cell.pretraining)
            if cell.is_trained:
                facts = read_run(directory)
                record |= {name: facts[name] for name in _KEPT if name in facts}
            write_json(directory / "cell.json", record)
            self._tidy(cell)
        process_state().wait_for_everyone()

    def _tidy(self, cell: Cell) -> None:
        """Remove what a cell no longer needs once its cell.json stands: a killed process may leave that undone."""
        shutil.rmtree(self.directory(cell) / "checkpoints", ignore_errors=True)
        if not cell.is_pretraining and cell.subset:  # weights of one subset are enough to publish
            shutil.rmtree(self.directory(cell) / "model", ignore_errors=True)

    def _test(self, directory: Path, predictions_of: Callable[[str], Predictions]) -> dict[str, Any]:
        record = {}
        for split, name in (("test", ""), (LARGE_SPLIT, "_large")):
            if split in next(iter(self.data.values()))[0]:
                predictions = predictions_of(split)
                predictions.save(directory / f"predictions{name}.parquet")
                known = predictions.labelled()
                found = measure(known.label, known.score, known.group, known.subclass, num_bootstrap=0)
                record[f"metrics{name}"] = _values(found)
        return record

    def _test_regression(self, cell: Cell) -> dict[str, Any]:
        """Logistic regression on radial profiles, or on the frozen [CLS] of a pretraining."""
        splits, _ = self.data[cell.fold]
        features = self._features_of(cell)
        labels = {name: splits[name].labels for name in splits}
        chosen = label_subset(labels["train"], cell.labels, cell.subset)
        sets = [features("train")[chosen], labels["train"][chosen].numpy()]
        sets += [features("validation"), labels["validation"].numpy()]

        def predictions_of(split: str) -> Predictions:
            return Predictions.of(splits[split], linear_probe(*sets, features(split))[0])

        return {"num_labels": len(chosen), **self._test(self.directory(cell), predictions_of)}

    def _features_of(self, cell: Cell) -> Callable[[str], np.ndarray]:
        """What a regression sees of a split; kept, since cells of other methods come in between."""
        source = cell.pretraining or Cell("profiles", "", "none", 0, 0, cell.fold)
        if source in self._kept:
            return self._kept[source]
        splits, _ = self.data[cell.fold]
        if cell.pretraining is None:
            crop_size = self.crop_size(cell)

            def features(split: str) -> np.ndarray:
                return radial_profiles(splits[split], crop_size)

        else:
            run = self.directory(cell.pretraining)
            encoder, facts = load_encoder(run), read_run(run)

            def features(split: str) -> np.ndarray:
                return extract_features(encoder, splits[split], facts["image_mean"], facts["image_std"]).numpy()

        while len(self._kept) >= KEPT_SOURCES:
            del self._kept[next(iter(self._kept))]
        self._kept[source] = lru_cache(features)
        return self._kept[source]

    def records(self) -> list[dict[str, Any]]:
        """What the finished cells wrote, those of earlier commands on the same directory too: pretrainings first."""
        kinds = ("pretrainings", "cells")
        done = [path for kind in kinds for path in sorted(self.output_dir.glob(f"{kind}/*/cell.json"))]
        return [{**read_record(path, *RECORDED), "directory": str(path.parent)} for path in done]


class _Progress:
    """A bar that counts the cells that are done, and tells the time that is left by what they cost."""

    def __init__(self, study: Study, cells: Sequence[Cell]):
        self.study, self.costs = study, {cell: study.cost(cell) * weight(cell) for cell in cells}
        self.spent = self.spent_cost = 0.0
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]"
        self.bar = tqdm(total=len(cells), desc="study", bar_format=form, disable=not _is_main())

    def __enter__(self) -> "_Progress":
        self._show()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._show()
        self.bar.close()

    def count(self, cell: Cell, seconds: float) -> None:
        """Another cell has taken so long."""
        self.spent += seconds
        self.spent_cost += self.costs[cell]
        self._show()

    def _show(self) -> None:
        left = [cell for cell in self.costs if not self.study.is_done(cell)]
        self.bar.n = len(self.costs) - len(left)
        if self.spent_cost:
            seconds = self.spent * sum(self.costs[cell] for cell in left) / self.spent_cost
            self.bar.set_postfix_str(f"{format_time(seconds)} left")
        self.bar.refresh()


def write_data(study: Study) -> None:
    """
    Write study.json: what the data of a directory's cells are, by fold.

    Raises:
        [`InputError`]: the directory holds a study of other cutouts.
    """
    path = study.output_dir / "study.json"
    data = {}
    for fold, (splits, info) in study.data.items():
        test = splits["test"]
        kinds = Counter(kind for kind, label in zip(test.subclasses, test.labels.tolist()) if label == 0)
        data["" if fold is None else str(fold)] = {
            "fingerprint": info["fingerprint"],
            "num_train_labels": len(splits["train"]),
            "num_validation_labels": len(splits["validation"]),
            "num_lenses": int((test.labels == 1).sum()),
            "num_nonlenses": kinds.total(),
            "nonlenses": {kind: number for kind, number in sorted(kinds.items()) if kind},
        }
    earlier = read_record(path, "data")["data"] if path.is_file() else {}
    mixes = bool(earlier) and ("" in earlier) != ("" in data)
    if mixes or any(earlier[fold] != data[fold] for fold in earlier.keys() & data.keys()):
        raise InputError(f"output_dir {study.output_dir} holds a study of other data: choose another output_dir")
    if _is_main():
        write_json(path, {"data": dict(sorted({**earlier, **data}.items()))})


def _origin(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says of the pretraining that another goes on from."""
    kept = {name: facts.get(name) for name in ("run_id", "num_train_images", "seconds", "precision", "device")}
    data = {"data": facts["data"]["name"], "simulator_version": facts["data"].get("simulator_version")}
    return {**data, "epochs": facts["arguments"]["epochs"], **kept}


def _values(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    return {name: entry["value"] for name, entry in metrics.items()}


def _is_main() -> bool:
    return process_state().is_main_process


def _agreed(value: Any) -> Any:
    """The main process's value, in all processes."""
    return broadcast_object_list([value])[0]
