"""What a study compares, as cells: the settings of each, what it costs, and whether it is done."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import ViTForImageClassification

from ..data.tensors import center_crop, labelled_splits, splits_and_info
from ..errors import InputError, check_at_least
from ..models import LensCnnConfig, LensCnnForImageClassification, backbone_config
from ..models.backbones import BACKBONES, use_fast_attention
from ..training.accelerator import autocast, native_precision, process_state
from ..training.arguments import (
    FORMER_OPTIONS,
    FinetuneArguments,
    PretrainArguments,
    as_begun,
    make_arguments,
    makes_no_difference,
    recipe,
)
from ..training.finetune import label_subset
from ..training.progress import format_time
from ..training.run_directory import read_run
from .cells import CELLS
from .methods import METHODS, PRETRAINED

# Settings that do not change what a cell is.
_FREE = ("output_dir", "init", "resume", "report_to", "stop_on_collapse")
# Settings that a study chooses for each cell by itself, and what to give in their place.
_CHOSEN = {
    "method": "choose methods",
    "backbone": "choose backbones",
    "labels": "choose labels",
    "seed": "give seeds, their number",
    "subset_seed": "give subsets, their number",
    "init": "choose a -continued method and give earlier_study",
    "output_dir": "leave it out",
    "resume": "leave it out",
    "stop_on_collapse": "leave it out",
}


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
class Plan:
    """
    What is compared, on which cutouts, with which settings.

    Args:
        cutouts (`Mapping[int | None, Any]`): datasets by test fold; `{None: cutouts}` where there are no folds. Each
            has train, validation and test, perhaps unlabelled, and perhaps test_large for completeness at low
            false-positive rates.
        output_dir (`Path`): gets a directory per cell.
        methods, backbones, labels (`Sequence[str]`): see [`Cell`]; labels are numbers or `"all"`.
        seeds (`int`): pretrainings per method and backbone.
        subsets (`int`): label subsets per budget; `"all"` has the same number of fine-tunings on one set.
        pretraining (`Mapping[str, Mapping]`): settings by method, over its recipe.
        finetuning (`Mapping[str, Mapping]`):
            settings by method, `"all"` for every one of them. Crops, and the patches of ViTs, are the same in all
            cells.
        earlier_study (`Path`, *optional*):
            directory of a study without folds on other cutouts (simulated ones, say), from whose pretrainings of the
            same method, backbone and seed those of the `-continued` methods go on.

    Raises:
        [`InputError`]: an unknown method or backbone, no seeds, settings with which methods cannot be compared, a
            split or a class that is missing, a budget that is too large, or `output_dir` holds cells of other cutouts
            or settings, or a report instead of cells.
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
        self._check_chosen()
        self.output_dir = Path(self.output_dir)
        if (self.output_dir / CELLS).is_file() and not (self.output_dir / "cells").is_dir():
            raise InputError(
                f"output_dir {self.output_dir} holds the report of a study, not its cells: choose another output_dir, "
                "or make the cells again with lens_ssl_hf.study.cells.unpack_cells"
            )
        self.data = {fold: splits_and_info(cutouts) for fold, cutouts in self.cutouts.items()}
        budgets = [make_arguments(FinetuneArguments, {"labels": str(budget)}).labels for budget in self.labels]
        self.labels = list(dict.fromkeys(one if one == "all" else str(int(one)) for one in budgets))
        for splits, _ in self.data.values():
            train, _, _ = labelled_splits(splits, "train", "validation", "test")
            for budget in self.labels:
                label_subset(train.labels, str(budget), seed=0)
        self._pretrained = self._pretrainings_there()
        self._check_common()
        for cell in self.cells():
            self._check_done(cell) if self.is_done(cell) else self._check_open(cell)
        self._check_equal_compute()

    def _check_chosen(self) -> None:
        """Refuse settings that would be overwritten, or have a cell begin from weights that its name does not tell."""
        for kind, given in (("pretraining", self.pretraining), ("fine-tuning", self.finetuning)):
            for method, name in ((method, name) for method, settings in (given or {}).items() for name in settings):
                if name in _CHOSEN:
                    raise InputError(
                        f"the {kind} of {method} has {name}, which a study chooses for each cell: {_CHOSEN[name]}"
                    )

    def _check_common(self) -> None:
        """Refuse other crops or patches of one method: it would see another field, or be no ViT of that name."""
        cells: dict[str, Cell] = {}  # one of each kind; a linear probe has what its pretraining has
        for cell in self.cells():
            kind = "pretraining" if cell.is_pretraining else "fine-tuning" if cell.is_trained else "regression"
            if cell.is_trained or cell.pretraining is None:
                cells.setdefault(f"the {kind} of {cell.method}", cell)
        crops = {kind: self.crop_size(cell) for kind, cell in cells.items()}
        patches = {kind: self.settings(cell).patch_size for kind, cell in cells.items() if cell.backbone}
        for name, found, fix in (
            ("crop_size", crops, "give --crop_size, which holds for all methods"),
            ("patch_size", patches, "leave it out, or give all ViTs the same"),
        ):
            values = list(found.values())
            if len(set(values)) > 1:  # told of the rarest that was given
                odd = min(found, key=lambda kind: (name not in self._given(cells[kind]), values.count(found[kind])))
                other = next(kind for kind in found if found[kind] != found[odd])
                raise InputError(f"{odd} has {name} {found[odd]}, {other} {found[other]}: {fix}")

    def _given(self, cell: Cell) -> dict[str, Any]:
        """The settings that were given for a cell."""
        if cell.is_pretraining:
            return dict((self.pretraining or {}).get(cell.method, {}))
        given = self.finetuning or {}
        return {**given.get("all", {}), **(given.get(cell.method, {}) if cell.is_trained else {})}

    def _pretrainings_there(self) -> dict[Cell, PretrainArguments]:
        """The finished pretrainings in `output_dir`, those of earlier commands too, with what they were made with."""
        found = {}
        for path in sorted(self.output_dir.glob("pretrainings/*/cell.json")):
            record = read_record(path, *RECORDED)
            settings = as_begun(PretrainArguments, record["settings"])
            own = {item.name: settings[item.name] for item in fields(PretrainArguments)}
            found[_cell_of(record)] = PretrainArguments(**own)
        return found

    def _check_equal_compute(self) -> None:
        """Refuse a dearer pretraining than the one whose compute a finished `supervised-long` was given."""
        for path in sorted(self.output_dir.glob("cells/*supervised-long*/cell.json")):
            record = read_record(path, *RECORDED)
            cell, made = _cell_of(record), record["settings"]["steps"]
            if cell.fold not in self.data or not self._rivals(cell):
                continue
            if made < (wanted := self.settings(cell).steps):
                raise InputError(
                    f"{cell.name} was given the compute of a cheaper pretraining ({made} steps, now {wanted}): delete "
                    f"{path.parent} and add supervised-long to the methods, or choose another output_dir"
                )

    def _check_open(self, cell: Cell) -> None:
        """Refuse settings with which a cell cannot be done."""
        arguments, (splits, info) = self.settings(cell), self.data[cell.fold]
        if cell.is_pretraining and cell.is_continued:
            _check_earlier(arguments.init, info)
        center_crop(splits["test"].pixels[:1], self.crop_size(cell))  # refuses small cutouts
        if cell.method == "cnn":
            check_at_least(LensCnnConfig().reduction, crop_size=self.crop_size(cell))
        source = cell.pretraining
        if source is not None and self.is_done(source) and not (self.directory(source) / "model").is_dir():
            file = self.directory(source) / "cell.json"
            raise InputError(f"{cell.name} needs the weights of {source.name}, which are gone: delete {file}")

    def _check_done(self, cell: Cell) -> None:
        """Refuse other settings than those that a cell was done with."""
        arguments = self.settings(cell)
        record = read_record(self.directory(cell) / "cell.json", *RECORDED)
        kind = PretrainArguments if cell.is_pretraining else FinetuneArguments
        made, wanted = as_begun(kind, record["settings"]), self.recorded(cell)
        wanted |= FORMER_OPTIONS if wanted else {}
        if cell.method == "supervised-long" and made["steps"] == self.settings(cell, formerly=True).steps:
            wanted["steps"] = made["steps"]
        checked = [n for n in wanted if n not in _FREE and not makes_no_difference(n, cell.ssl_method)]
        differs = [f"{n} {made[n]}, now {wanted[n]}" for n in checked if made[n] != wanted[n]]
        if cell.is_continued and cell.is_pretraining and (Path(arguments.init) / "run.json").is_file():
            now, then = read_run(arguments.init)["run_id"], record["continued_from"].get("run_id")
            differs += [f"earlier_study's run {then}, now {now}"] if then not in (None, now) else []
        if cell.pretraining is not None:
            self.check_pretraining(cell, self.weights_of(cell.pretraining))
        if differs:
            raise InputError(
                f"output_dir {self.output_dir} holds {cell.name}, made with {'; '.join(differs)}: choose another "
                "output_dir, or give what it was made with"
            )

    def weights_of(self, pretraining: Cell) -> int | None:
        """The checksum of its weights; `None` where it is not done, or an earlier version did it."""
        path = self.directory(pretraining) / "cell.json"
        return read_record(path, *RECORDED).get("weights") if path.is_file() else None

    def check_pretraining(self, cell: Cell, weights: int | None) -> None:
        """
        Raises:
            [`InputError`]: a finished cell was made from another pretraining than the one that has these weights.
        """
        made = read_record(self.directory(cell) / "cell.json", *RECORDED).get("pretraining_weights")
        if None not in (made, weights) and made != weights:
            raise InputError(
                f"{cell.name} was made from another {cell.pretraining.name}, which was replaced since: delete "
                f"{self.directory(cell)}, which is then made again, or choose another output_dir"
            )

    def cells(self) -> list[Cell]:
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

    def crop_size(self, cell: Cell) -> int:
        """Side of what a cell sees of a cutout, in pixels."""
        source = cell if cell.is_trained else cell.pretraining
        arguments = self.settings(source) if source else None
        if arguments is None:
            return self._given(cell).get("crop_size", FinetuneArguments.crop_size)
        return arguments.crop_size

    def recorded(self, cell: Cell) -> dict[str, Any]:
        """The settings that cell.json notes."""
        arguments = self.settings(cell)
        if arguments is not None:
            return asdict(arguments)
        return {"crop_size": self.crop_size(cell)} if cell.method == "profiles" else {}

    def settings(self, cell: Cell, formerly: bool = False) -> PretrainArguments | FinetuneArguments | None:
        """The arguments of a cell's training, or those that it `formerly` had; `None` for a logistic regression."""
        if not cell.is_trained:
            return None
        where = {"output_dir": str(self.directory(cell)), "resume": "auto"}
        if cell.is_pretraining:
            settings = {**recipe(cell.ssl_method), **self._given(cell)}
            # A collapse is a result: it is logged, and its features are measured.
            settings |= {"stop_on_collapse": False}
            where |= {"method": cell.ssl_method, "backbone": cell.backbone, "seed": cell.seed}
            if cell.is_continued:
                if self.earlier_study is None:
                    raise InputError(f"{cell.method} goes on from a pretraining on other cutouts: give earlier_study")
                earlier = Cell(cell.ssl_method, cell.backbone, "none", cell.seed, 0)
                where["init"] = str(Path(self.earlier_study) / "pretrainings" / earlier.name)
            arguments = make_arguments(PretrainArguments, {**settings, **where})
            arguments.settle_momentum(self._num_steps(cell, arguments))
            return arguments
        settings = self._given(cell)
        where |= {"labels": cell.labels, "subset_seed": cell.subset, "seed": 1000 * cell.seed + cell.subset}
        where |= {"backbone": cell.backbone or "cnn"}
        if cell.pretraining is not None:
            where["init"] = str(self.directory(cell.pretraining))
        arguments = make_arguments(FinetuneArguments, {**settings, **where})
        if cell.method == "supervised-long":
            arguments.steps = self._steps_of_equal_compute(cell, arguments, formerly)
        return arguments

    def _steps_of_equal_compute(self, cell: Cell, arguments: FinetuneArguments, formerly: bool) -> int:
        """
        Fine-tuning steps that cost as many passes of tokens through the ViT as the dearest pretraining and one; of a
        continued one what this study adds.
        """
        rivals = self._rivals(cell, formerly)
        if not rivals:
            raise InputError("supervised-long is given the compute of a pretraining: add a self-supervised method")
        return arguments.steps + round(max(rivals) / (self.cost(cell, arguments) / arguments.steps))

    def _rivals(self, cell: Cell, formerly: bool = False) -> list[float]:
        """The costs of the pretrainings that a cell is compared with, those of earlier commands among them."""
        planned = {Cell(m, cell.backbone, "all", cell.seed, 0, cell.fold).pretraining for m in self.methods} - {None}
        place = cell.backbone, cell.seed, cell.fold
        there = {one: a for one, a in self._pretrained.items() if (one.backbone, one.seed, one.fold) == place}
        return [self.cost(one, there.get(one), formerly) for one in planned | there.keys()]

    def cost(
        self, cell: Cell, arguments: PretrainArguments | FinetuneArguments | None = None, formerly: bool = False
    ) -> float:
        """
        Passes of tokens through the ViT, forward as 1 and backward as 2. A pretraining leaves out the incomplete batch
        of an epoch, which earlier versions counted, too.
        """
        arguments = arguments or self.settings(cell)
        if arguments is None:
            return 0.0
        tokens = _tokens(arguments.crop_size, arguments.patch_size)
        if not cell.is_pretraining:
            labels = len(self.data[cell.fold][0]["train"]) if cell.labels == "all" else int(cell.labels)
            return 3.0 * tokens * min(arguments.batch_size, labels) * arguments.steps
        student = 2 * tokens
        if cell.ssl_method != "simsiam":
            student += arguments.num_local_views * _tokens(arguments.local_size, arguments.patch_size)
        teacher = 0 if cell.ssl_method == "simsiam" else 2 * tokens
        seen = self._num_steps(cell, arguments) * arguments.batch_size
        seen = arguments.epochs * self._num_images(cell) if formerly else seen
        return float((3 * student + teacher) * seen)

    def _num_steps(self, cell: Cell, arguments: PretrainArguments) -> int:
        return arguments.epochs * (self._num_images(cell) // arguments.batch_size)

    def _num_images(self, cell: Cell) -> int:
        """How many cutouts a pretraining draws from."""
        splits, _ = self.data[cell.fold]
        return sum(len(splits[name]) for name in ("train", "unlabelled") if name in splits)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """What these cells are expected to take on this machine, from a few measured steps of each backbone."""
        needed = {cell.backbone or "cnn": self.settings(cell) for cell in cells if cell.is_trained}
        bands = len(next(iter(self.data.values()))[1]["bands"])
        rates = {name: seconds_per_token(name, a.crop_size, a.patch_size, bands) for name, a in needed.items()}
        return sum(self.cost(cell) * rates.get(cell.backbone or "cnn", 0.0) for cell in cells)


def describe_plan(study: Plan) -> str:
    """What a study would do, cell by cell kind, and how long it takes on this machine."""
    plan = study.cells()
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


def _cell_of(record: Mapping[str, Any]) -> Cell:
    return Cell(**{item.name: record[item.name] for item in fields(Cell)})


RECORDED = (*(item.name for item in fields(Cell)), "settings")


def read_record(path: Path, *names: str) -> dict[str, Any]:
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
    """Refuse to go on from a pretraining that is not there, or that has seen cutouts of this dataset."""
    facts = read_run(run)["data"]
    if not (Path(run) / "model").is_dir():
        raise InputError(f"the pretraining {run} has not finished: finish that study first")
    if not facts["simulated"] and (facts["source"], facts["name"]) == (info["source"], info["name"]):
        raise InputError(
            f"{run} was pretrained on {info['name']}, test cutouts included: give a study of other cutouts"
        )


def _tokens(size: int, patch_size: int) -> int:
    return (size // patch_size) ** 2 + 1


def weight(cell: Cell) -> float:
    """How much dearer a token is than one of a ViT-Ti/8: by the number of parameters."""
    return (BACKBONES[cell.backbone][0] / BACKBONES["vitt8"][0]) ** 2 if cell.backbone else 1.0


@lru_cache
def seconds_per_token(name: str, crop_size: int, patch_size: int, bands: int) -> float:
    """
    Measured on this machine: forward and backward of one batch, in the precision that auto gives, per token pass (of
    the small CNN per as many as a ViT would make).
    """
    device = process_state().device
    if name == "cnn":
        config = LensCnnConfig(image_size=crop_size, num_channels=bands)
        model = LensCnnForImageClassification(config).to(device).train()
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
