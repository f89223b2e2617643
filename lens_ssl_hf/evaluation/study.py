"""The study: does self-supervision help when labels are few? Every cell of its table is a directory."""

import contextlib
import fcntl
import itertools
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import ViTForImageClassification

from ..data.tensors import center_crop, labelled_splits, splits_and_info
from ..errors import InputError, Interrupted
from ..files import make_folder, write_json
from ..models import CNN, CNNConfig, backbone_config
from ..models.backbones import BACKBONES, load_encoder, use_fast_attention
from ..training.accelerator import autocast, native_precision, process_state
from ..training.arguments import FinetuneArguments, PretrainArguments, make_arguments, makes_no_difference, recipe
from ..training.finetune import finetune, label_subset
from ..training.pretrain import pretrain
from ..training.progress import format_time
from ..training.run_directory import read_run
from .comparison import METHODS, PRETRAINED
from .evaluate import Predictions, predict
from .metrics import measure
from .probes import extract_features, linear_probe, probe, radial_profiles
from .study_cells import CELLS

logger = logging.getLogger(__name__)

LARGE_SPLIT = "test_large"
# Settings that do not change what a cell is.
_FREE = ("output_dir", "init", "resume", "report_to", "stop_on_collapse")


@dataclass(frozen=True)
class Cell:
    """
    One entry of the study: a fine-tuned and tested classifier, or a pretraining (`labels` is `"none"` then).

    Args:
        method (`str`):
            simsiam, dino or ibot; the same with `-continued` (the pretraining goes on from one on other cutouts), with
            `-linear` (logistic regression on its frozen [CLS]) or with both; supervised (the same ViT from scratch),
            supervised-long (the same with as much compute as a pretraining and a fine-tuning together), cnn (a small
            one), or profiles (logistic regression on radial profiles).
        backbone (`str`): of a ViT; empty for the others.
        labels (`str`): label budget.
        seed (`int`): of the pretraining; of initial weights where there is none.
        subset (`int`): seed of the label subset.
        fold (`int`, *optional*): test fold.
    """

    method: str
    backbone: str
    labels: str
    seed: int
    subset: int
    fold: int | None = None

    @property
    def is_pretraining(self) -> bool:
        return self.labels == "none"

    @property
    def name(self) -> str:
        parts = [*([] if self.fold is None else [f"fold{self.fold}"]), self.method]
        parts += [self.backbone] if self.backbone else []
        parts += [] if self.method == "profiles" else [f"seed{self.seed}"]
        parts += [] if self.is_pretraining else [f"labels{self.labels}", f"subset{self.subset}"]
        return "-".join(parts)

    @property
    def ssl_method(self) -> str:
        """The method of the pretraining."""
        return self.method.split("-")[0]

    @property
    def is_continued(self) -> bool:
        """Whether its pretraining goes on from one on other cutouts."""
        return "-continued" in self.method

    @property
    def is_trained(self) -> bool:
        """Whether it trains a network; a logistic regression else."""
        return self.method != "profiles" and not self.method.endswith("-linear")

    @property
    def pretraining(self) -> "Cell | None":
        """The pretraining that a self-supervised cell starts from."""
        if self.is_pretraining or self.method not in PRETRAINED:
            return None
        return Cell(self.method.removesuffix("-linear"), self.backbone, "none", self.seed, 0, self.fold)


@dataclass
class Study:
    """
    What is compared, on which cutouts, with which settings.

    Args:
        cutouts (`Mapping[int | None, Any]`): data sets by test fold; `{None: cutouts}` where there are no folds. Each
            has train, validation and test, perhaps unlabelled, and perhaps test_large for completeness at low
            false-positive rates.
        output_dir (`Path`): gets a directory per cell.
        methods, backbones, labels (`Sequence[str]`): see [`Cell`]; labels are numbers or `"all"`.
        seeds (`int`): pretrainings per method and backbone.
        subsets (`int`): label subsets per budget; `"all"` has the same number of fine-tunings on one set.
        pretraining (`Mapping[str, Mapping]`): settings by method, over its recipe.
        finetuning (`Mapping[str, Mapping]`):
            settings by method, `"all"` for every one of them.
        earlier_study (`Path`, *optional*):
            directory of a study without folds on other cutouts (simulated ones, say), from whose pretrainings of the
            same method, backbone and seed those of the `-continued` methods go on.

    Raises:
        [`InputError`]: an unknown method or backbone, no seeds, a split or a class that is missing, a budget that is
            too large, or `output_dir` holds cells of other cutouts or settings, or a report instead of cells.
    """

    cutouts: Mapping[int | None, Any]
    output_dir: Path
    methods: Sequence[str]
    backbones: Sequence[str]
    labels: Sequence[str]
    seeds: int = 3
    subsets: int = 10
    pretraining: Mapping[str, Mapping[str, Any]] | None = None
    finetuning: Mapping[str, Mapping[str, Any]] | None = None
    earlier_study: Path | None = None

    def __post_init__(self) -> None:
        # After hours of training is too late for these.
        for kind, chosen, known in (("methods", self.methods, METHODS), ("backbones", self.backbones, BACKBONES)):
            if wrong := [name for name in chosen if name not in known]:
                raise InputError(f"{kind} has {wrong[0]!r}: choose from {', '.join(known)}")
        for name in ("seeds", "subsets"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")
        self.methods, self.backbones = (list(dict.fromkeys(names)) for names in (self.methods, self.backbones))
        self.output_dir = Path(self.output_dir)
        if (self.output_dir / CELLS).is_file() and not (self.output_dir / "cells").is_dir():
            raise InputError(
                f"output_dir {self.output_dir} holds the report of a study, not its cells: choose another output_dir, "
                "or make the cells again with lens_ssl_hf.evaluation.study_cells.unpack_cells"
            )
        self.data = {fold: splits_and_info(cutouts) for fold, cutouts in self.cutouts.items()}
        budgets = [make_arguments(FinetuneArguments, {"labels": str(budget)}).labels for budget in self.labels]
        self.labels = list(dict.fromkeys(one if one == "all" else str(int(one)) for one in budgets))
        for splits, _ in self.data.values():
            train, _, _ = labelled_splits(splits, "train", "validation", "test")
            for budget in self.labels:
                label_subset(train.labels, str(budget), seed=0)
        self.failures: dict[Cell, str] = {}
        self._kept: tuple[Cell, Callable[[str], np.ndarray]] | None = None
        for cell in self.plan():
            self._check(cell)

    def _check(self, cell: Cell) -> None:
        """Refuse settings that are wrong, and a cell that was done with others."""
        arguments = self.settings(cell)
        if cell.is_pretraining and cell.is_continued and not self.is_done(cell):
            _check_earlier(arguments.init, self.data[cell.fold][1])
        if not self.is_done(cell):
            center_crop(self.data[cell.fold][0]["test"].pixels[:1], self._crop_size(cell))  # refuses small cutouts
            source = cell.pretraining
            if source is not None and self.is_done(source) and not (self.directory(source) / "model").is_dir():
                file = self.directory(source) / "cell.json"
                raise InputError(f"{cell.name} needs the weights of {source.name}, which are gone: delete {file}")
            return
        record = _read(self.directory(cell) / "cell.json", *_RECORDED)
        kind = PretrainArguments if cell.is_pretraining else FinetuneArguments
        made, wanted = {item.name: item.default for item in fields(kind)} | record["settings"], self._recorded(cell)
        checked = [n for n in wanted if n not in _FREE and not makes_no_difference(n, cell.ssl_method)]
        differs = [f"{n} {made[n]}, now {wanted[n]}" for n in checked if made[n] != wanted[n]]
        if cell.is_continued and cell.is_pretraining and (Path(arguments.init) / "run.json").is_file():
            now, then = read_run(arguments.init)["run_id"], record["continued_from"].get("run_id")
            differs += [f"earlier_study's run {then}, now {now}"] if then not in (None, now) else []
        if differs:
            raise InputError(
                f"output_dir {self.output_dir} holds {cell.name}, made with {'; '.join(differs)}: choose another "
                "output_dir, or give what it was made with"
            )

    def plan(self) -> list[Cell]:
        """All cells, so ordered that a table is whole after the first seed, and better with each that follows."""
        cells = []
        for seed, fold in itertools.product(range(self.seeds), self.cutouts):
            pairs = [(m, b) for b in self.backbones for m in self.methods if m not in ("cnn", "profiles")]
            pairs += [(m, "") for m in self.methods if m in ("cnn", "profiles")]
            own = [Cell(method, backbone, "all", seed, 0, fold).pretraining for method, backbone in pairs]
            cells += [cell for cell in dict.fromkeys(own) if cell is not None]
            for subset, budget, (method, backbone) in itertools.product(range(self.subsets), self.labels, pairs):
                if seed == 0 or method != "profiles":  # nothing in a logistic regression depends on a seed
                    cells.append(Cell(method, backbone, str(budget), seed, subset, fold))
        return cells

    def directory(self, cell: Cell) -> Path:
        return self.output_dir / ("pretrainings" if cell.is_pretraining else "cells") / cell.name

    def is_done(self, cell: Cell) -> bool:
        return (self.directory(cell) / "cell.json").is_file()

    def _crop_size(self, cell: Cell) -> int:
        """Side of what a cell sees of a cutout, in pixels."""
        source = cell if cell.is_trained else cell.pretraining
        arguments = self.settings(source) if source else None
        if arguments is None:
            return (self.finetuning or {}).get("all", {}).get("crop_size", FinetuneArguments.crop_size)
        return arguments.crop_size

    def _recorded(self, cell: Cell) -> dict[str, Any]:
        """The settings that cell.json notes."""
        arguments = self.settings(cell)
        if arguments is not None:
            return asdict(arguments)
        return {"crop_size": self._crop_size(cell)} if cell.method == "profiles" else {}

    def settings(self, cell: Cell) -> PretrainArguments | FinetuneArguments | None:
        """The arguments of a cell's training; `None` for a logistic regression."""
        if not cell.is_trained:
            return None
        where = {"output_dir": str(self.directory(cell)), "resume": "auto"}
        if cell.is_pretraining:
            settings = {**recipe(cell.ssl_method), **(self.pretraining or {}).get(cell.method, {})}
            # A collapse is a result: it is logged, and its features are measured.
            settings |= {"stop_on_collapse": False}
            where |= {"method": cell.ssl_method, "backbone": cell.backbone, "seed": cell.seed}
            if cell.is_continued:
                if self.earlier_study is None:
                    raise InputError(f"{cell.method} goes on from a pretraining on other cutouts: give earlier_study")
                earlier = Cell(cell.ssl_method, cell.backbone, "none", cell.seed, 0)
                where["init"] = str(Path(self.earlier_study) / "pretrainings" / earlier.name)
            return make_arguments(PretrainArguments, {**settings, **where})
        given = self.finetuning or {}
        settings = {**given.get("all", {}), **given.get(cell.method, {})}
        where |= {"labels": cell.labels, "subset_seed": cell.subset, "seed": 1000 * cell.seed + cell.subset}
        where |= {"backbone": cell.backbone or "cnn"}
        if cell.pretraining is not None:
            where["init"] = str(self.directory(cell.pretraining))
        arguments = make_arguments(FinetuneArguments, {**settings, **where})
        if cell.method == "supervised-long":
            arguments.steps = self._steps_of_equal_compute(cell, arguments)
        return arguments

    def _steps_of_equal_compute(self, cell: Cell, arguments: FinetuneArguments) -> int:
        """
        Fine-tuning steps that cost as many passes of tokens through the ViT as the dearest pretraining and one; of a
        continued one what this study adds.
        """
        cells = [Cell(m, cell.backbone, "all", cell.seed, 0, cell.fold).pretraining for m in self.methods]
        rivals = [one for one in cells if one is not None]
        if not rivals:
            raise InputError("supervised-long is given the compute of a pretraining: add a self-supervised method")
        dearest = max(map(self.cost, rivals))
        return arguments.steps + round(dearest / (self.cost(cell, arguments) / arguments.steps))

    def cost(self, cell: Cell, arguments: PretrainArguments | FinetuneArguments | None = None) -> float:
        """Passes of tokens through the ViT, forward as 1 and backward as 2."""
        arguments = arguments or self.settings(cell)
        if arguments is None:
            return 0.0
        tokens = _tokens(arguments.crop_size, arguments.patch_size)
        if not cell.is_pretraining:
            labels = len(self.data[cell.fold][0]["train"]) if cell.labels == "all" else int(cell.labels)
            return 3.0 * tokens * min(arguments.batch_size, labels) * arguments.steps
        splits, _ = self.data[cell.fold]
        images = sum(len(splits[name]) for name in ("train", "unlabelled") if name in splits)
        student = 2 * tokens
        if cell.ssl_method != "simsiam":
            student += arguments.num_local_views * _tokens(arguments.local_size, arguments.patch_size)
        teacher = 0 if cell.ssl_method == "simsiam" else 2 * tokens
        return float((3 * student + teacher) * images * arguments.epochs)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """What these cells are expected to take on this machine, from a few measured steps of each backbone."""
        needed = {cell.backbone or "cnn": self.settings(cell) for cell in cells if cell.is_trained}
        bands = len(next(iter(self.data.values()))[1]["bands"])
        rates = {name: _seconds_per_token(name, a.crop_size, a.patch_size, bands) for name, a in needed.items()}
        return sum(self.cost(cell) * rates.get(cell.backbone or "cnn", 0.0) for cell in cells)

    def run(self) -> list[dict[str, Any]]:
        """
        Do what is not done yet, and return the records of all cells that are. Several processes may run one study,
        each on its own device: every cell is taken by one of them. What an [`InputError`] or too little memory ends is
        noted in `failures`, and the rest goes on; under a launch of several processes it ends the study.
        """
        make_folder(self.output_dir, "output_dir")
        with self.lock("study"):
            write_data(self)
        plan = self.plan()
        if _is_main():
            for cell in filter(self.is_done, plan):
                self._tidy(cell)
        costs = {cell: self.cost(cell) * _weight(cell) for cell in plan}
        spent = spent_cost = 0.0
        done = sum(map(self.is_done, plan))
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]"  # costs differ
        with tqdm(total=len(plan), initial=done, desc="study", bar_format=form, disable=not _is_main()) as bar:
            while todo := _agreed([cell for cell in plan if not self._is_settled(cell)]):
                progressed = False
                for cell in todo:
                    before = cell.pretraining
                    if _agreed(self._is_settled(cell) or (before is not None and not self.is_done(before))):
                        continue
                    with self._claim(cell) as claimed:
                        if not claimed:
                            continue
                        start = time.perf_counter()
                        self._try(cell)
                        spent += time.perf_counter() - start
                        spent_cost += costs[cell]
                        progressed = True
                    left = [one for one in plan if not self.is_done(one)]
                    bar.n = len(plan) - len(left)
                    bar.set_postfix_str(_time_left(spent, spent_cost, sum(costs[one] for one in left)))
                if not progressed:
                    time.sleep(5)  # others are at the rest
            bar.n = sum(map(self.is_done, plan))
            bar.refresh()
        return self.records()

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
        settings = self._recorded(cell)
        record: dict[str, Any] = {**asdict(cell), "directory": str(directory), "settings": settings}
        if cell.is_pretraining:
            pretrain(cutouts, **settings)
            if _is_main():
                if "init_run" in read_run(directory):
                    record["continued_from"] = _origin(read_run(directory)["init_run"])
                report = probe(directory, cutouts)
                record["probes"] = {name: _values(one["metrics"]) for name, one in report["probes"].items()}
        elif not cell.is_trained:
            if _is_main():
                record |= self._test_regression(cell)
        else:
            finetune(cutouts, **settings)
            if _is_main():
                record |= self._test(directory, lambda split: predict(directory, cutouts, split=split))
        if _is_main():
            if cell.is_trained:
                facts = read_run(directory)
                kept = ("seconds", "precision", "device", "num_processes", "num_labels", "num_train_images",
                        "num_parameters", "validation_auc", "best_step", "versions", "git_revision")  # fmt: skip
                record |= {name: facts[name] for name in kept if name in facts}
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
            test = splits[split]
            scores, _ = linear_probe(*sets, features(split))
            return Predictions(test.ids, test.labels.numpy(), test.groups, test.subclasses, scores)

        return {"num_labels": len(chosen), **self._test(self.directory(cell), predictions_of)}

    def _features_of(self, cell: Cell) -> Callable[[str], np.ndarray]:
        """What a regression sees of a split; kept for the next cells of the same pretraining and fold."""
        source = cell.pretraining or Cell("profiles", "", "none", 0, 0, cell.fold)
        if self._kept is not None and self._kept[0] == source:
            return self._kept[1]
        splits, _ = self.data[cell.fold]
        if cell.pretraining is None:
            crop_size = self._crop_size(cell)

            def features(split: str) -> np.ndarray:
                return radial_profiles(splits[split], crop_size)

        else:
            run = self.directory(cell.pretraining)
            encoder, facts = load_encoder(run), read_run(run)

            def features(split: str) -> np.ndarray:
                return extract_features(encoder, splits[split], facts["image_mean"], facts["image_std"]).numpy()

        self._kept = source, lru_cache(features)
        return self._kept[1]

    def records(self) -> list[dict[str, Any]]:
        """What the finished cells wrote, those of earlier commands on the same directory too: pretrainings first."""
        kinds = ("pretrainings", "cells")
        done = [path for kind in kinds for path in sorted(self.output_dir.glob(f"{kind}/*/cell.json"))]
        return [{**_read(path, *_RECORDED), "directory": str(path.parent)} for path in done]


def describe_plan(study: Study) -> str:
    """What a study would do, cell by cell kind, and how long it takes on this machine."""
    plan = study.plan()
    todo = [cell for cell in plan if not study.is_done(cell)]
    lines = []
    for fold, (splits, info) in study.data.items():
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
        lines.append(f"{info['name']}{'' if fold is None else f', test fold {fold}'}: {sizes}")
    for method, backbone in dict.fromkeys((cell.method, cell.backbone) for cell in plan):
        own = [cell for cell in plan if (cell.method, cell.backbone) == (method, backbone)]
        open_cells = [cell for cell in own if not study.is_done(cell)]
        number = sum(cell.is_pretraining for cell in own)
        budgets = ", ".join(dict.fromkeys(cell.labels for cell in own if not cell.is_pretraining))
        kinds = f"pretrainings: {number}, cells: {len(own) - number} ({budgets} labels)"
        time_left = format_time(study.seconds(open_cells))
        lines.append(f"{method} {backbone}".ljust(24) + f"{kinds}, to do: {len(open_cells)}, {time_left}")
    lines.append(
        f"{len(plan) - len(todo)} of {len(plan)} are done; the rest takes about {format_time(study.seconds(todo))}"
    )
    return "\n".join(lines)


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
    earlier = _read(path, "data")["data"] if path.is_file() else {}
    mixes = bool(earlier) and ("" in earlier) != ("" in data)
    if mixes or any(earlier[fold] != data[fold] for fold in earlier.keys() & data.keys()):
        raise InputError(f"output_dir {study.output_dir} holds a study of other data: choose another output_dir")
    if _is_main():
        write_json(path, {"data": dict(sorted({**earlier, **data}.items()))})


_RECORDED = (*(item.name for item in fields(Cell)), "settings")


def _read(path: Path, *names: str) -> dict[str, Any]:
    """A record, which must hold these entries."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it, and it is made again") from error
    lacks = [name for name in names if not isinstance(record, dict) or name not in record]
    if lacks or any(not isinstance(record[name], dict) for name in ("settings", "data") if name in names):
        raise InputError(f"{path} is damaged ({', '.join(lacks) or 'its entries'}): delete it, and it is made again")
    return record


def _check_earlier(run: str, info: Mapping[str, Any]) -> None:
    """Refuse to go on from a pretraining that is not there, or that has seen cutouts of this data set."""
    facts = read_run(run)["data"]
    if not (Path(run) / "model").is_dir():
        raise InputError(f"the pretraining {run} has not finished: finish that study first")
    if not facts["simulated"] and (facts["source"], facts["name"]) == (info["source"], info["name"]):
        raise InputError(
            f"{run} was pretrained on {info['name']}, test cutouts included: give a study of other cutouts"
        )


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


def _tokens(size: int, patch_size: int) -> int:
    return (size // patch_size) ** 2 + 1


def _weight(cell: Cell) -> float:
    """How much dearer a token is than one of a ViT-Ti/8: by the number of parameters."""
    return (BACKBONES[cell.backbone][0] / BACKBONES["vitt8"][0]) ** 2 if cell.backbone else 1.0


def _time_left(spent: float, spent_cost: float, left: float) -> str:
    return f"{format_time(spent * left / spent_cost)} left" if spent_cost else ""


@lru_cache
def _seconds_per_token(name: str, crop_size: int, patch_size: int, bands: int) -> float:
    """
    Measured on this machine: forward and backward of one batch, in the precision that auto gives, per token pass (of
    the small CNN per as many as a ViT would make).
    """
    device = process_state().device
    if name == "cnn":
        model = CNN(CNNConfig(image_size=crop_size, num_channels=bands)).to(device).train()
    else:
        model = ViTForImageClassification(backbone_config(name, crop_size, patch_size, bands)).to(device).train()
        use_fast_attention(model)
    images = torch.randn(64, bands, crop_size, crop_size, device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with autocast(device, native_precision(device)):
            loss = model(images).logits.float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / (64 * 3 * _tokens(crop_size, patch_size))
