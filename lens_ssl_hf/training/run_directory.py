"""The run directory: resolved settings, data fingerprint, versions, metrics and final weights of one training."""

import fcntl
import json
import logging
import math
import os
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import SafetensorError

from ..data.tensors import checksum, pixel_digests
from ..errors import InputError
from ..files import make_folder, remove_leftovers, replacing, through_memory, write_json, write_text, writing
from .arguments import FORMER_OPTIONS, FinetuneArguments, PretrainArguments, as_begun, makes_no_difference
from .faults import check_model
from .tracking import Trackers

logger = logging.getLogger(__name__)

RECIPE = "recipe.json"  # the run.json of an export
_TRAINED_ON = "trained_on.npy"
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "datasets", "huggingface_hub", "numpy")


# What may differ between a run and its continuation (init_run and init_weights say what init stands for); and what is
# noted where it does, since bits may differ then.
_FREE_ARGUMENTS = ("output_dir", "init", "resume", "stop_on_collapse", "report_to", "extra_labels", "extra_scores")
_ENVIRONMENT = ("versions", "git_revision", "num_processes", "device")


class RunDirectory:
    """
    One training's directory, as a context in which no other run can use it. Only the main process writes.

    Args:
        path (`str` or `os.PathLike`): the directory; made if it is missing.
        resume (`str`): `"auto"` goes on with what is there, `"never"` refuses a directory that holds a run.
        is_main_process (`bool`): whether this process writes.
        report_to (`Sequence[str]`, *optional*): trackers that get the lines of metrics.jsonl too.

    Raises:
        [`InputError`]: the directory cannot be written, holds a run and `resume` is `"never"`, or holds checkpoints of
            nobody knows which run.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        resume: str,
        is_main_process: bool = True,
        report_to: Sequence[str] | None = None,
    ):
        self.path = Path(path)
        self.is_main_process = is_main_process
        self.facts: dict[str, Any] = {}
        self._trackers = Trackers(report_to or ())
        self._earlier: dict[str, Any] | None = None  # read before the main process writes
        if (self.path / "run.json").exists():
            if resume == "never":
                raise InputError(
                    f"output_dir {self.path} already holds a run: choose another one, or go on with --resume auto"
                )
            self._earlier = read_run(self.path)
        elif any(self.checkpoints.glob("step-*.safetensors")):
            raise InputError(
                f"output_dir {self.path} holds checkpoints without the run.json of their run: choose another one, or "
                "take them away"
            )
        make_folder(self.path, "output_dir")
        self._lock_file: TextIO | None = None

    def __enter__(self) -> "RunDirectory":
        if self.is_main_process:
            self._lock()
        return self

    def __exit__(self, *exception: object) -> None:
        self._trackers.finish()
        if self._lock_file is not None:
            self._lock_file.close()  # which unlocks

    def _lock(self) -> None:
        try:
            self._lock_file = open(self.path / ".lock", "a+")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock_file.seek(0)
            owner = self._lock_file.read().strip() or "another process"
            self._lock_file.close()
            raise InputError(
                f"output_dir {self.path} is in use by {owner}: wait for it, stop it, or choose another one"
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): make sure that no other run uses it", self.path, error.strerror)
            return
        for folder in (self.path, self.checkpoints) if self._earlier is not None else ():
            remove_leftovers(folder)
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock_file.flush()

    @property
    def is_finished(self) -> bool:
        """Whether the run was there already, whole."""
        return self._earlier is not None and "seconds" in self._earlier and self.model.is_dir()

    def check_same(self, facts: dict[str, Any]) -> None:
        """
        Raises:
            [`InputError`]: the run that is there was begun with other settings, data or initial weights than `facts`.
        """
        if self._earlier is None:
            return
        facts = json.loads(json.dumps(facts))
        kind = PretrainArguments if facts["task"] == "pretrain" else FinetuneArguments
        old, new = as_begun(kind, self._earlier["arguments"]), FORMER_OPTIONS | facts["arguments"]
        differences = [
            f"{name} is {new.get(name)}, was {old.get(name)}"
            for name in sorted((old.keys() | new.keys()) - set(_FREE_ARGUMENTS))
            if old.get(name) != new.get(name) and not makes_no_difference(name, facts["method"])
        ]
        others = {"task": "the task is another", "data": "the data is another", "samples": "the cutouts are others"}
        others |= {"extra_fingerprint": "the extra labels or their cutouts are others"}
        others |= {"init_run": "the run that init names is another", "init_weights": "the weights of init are others"}
        if "content" in self._earlier:
            others |= {"content": "the pixels or labels are others"}
        differences += [text for name, text in others.items() if _stated(self._earlier, name) != _stated(facts, name)]
        if self._earlier.get("batch_size", facts.get("batch_size")) != facts.get("batch_size"):
            differences.append("the batches are others: give as many processes")
        if differences:
            raise InputError(
                f"output_dir {self.path} holds a run that was begun otherwise ({'; '.join(differences)}): "
                "choose another output_dir, or give what it was begun with"
            )

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def write_facts(self, facts: dict[str, Any]) -> None:
        """
        Write run.json; an id, the command that began the run, the versions and the code's revision are added. A run
        that goes on keeps what it was begun with; under `resumed` it lists where it went on otherwise.
        """
        self.facts = {**facts, "run_id": uuid.uuid4().hex[:12], "command": _command()}
        self.facts |= {"versions": _versions(), "git_revision": _git_revision()}
        if self._earlier is not None:
            changed = {
                name: self.facts.get(name) for name in _ENVIRONMENT if self.facts.get(name) != self._earlier.get(name)
            }
            resumed = self._earlier.get("resumed", [])
            if changed and changed not in resumed[-1:]:
                resumed = [*resumed, changed]
                if self.is_main_process:
                    logger.warning(
                        "%s was begun with other %s: its weights may differ in the last bits from those of a run "
                        "that nothing interrupted",
                        self.path,
                        ", ".join(changed),
                    )
            kept = ("run_id", "command", "precision", "init_recipe", *_ENVIRONMENT)
            self.facts |= {name: self._earlier[name] for name in kept if name in self._earlier}
            self.facts |= {"resumed": resumed} if resumed else {}
        self.add_facts({})

    def write_trained_on(self, hashes: np.ndarray) -> None:
        """Write what [`read_trained_on`] reads."""
        if self.is_main_process:
            with writing(self.path / _TRAINED_ON) as new, through_memory(new) as file:
                np.save(file, hashes)

    def add_facts(self, facts: dict[str, Any]) -> None:
        """Add to run.json."""
        self.facts |= facts
        if self.is_main_process:
            write_json(self.path / "run.json", self.facts)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """
        Append one line to metrics.jsonl, and report it; floats are rounded to 6 significant digits, and what is NaN or
        infinite is left out with a warning.
        """
        unknown = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        if unknown and self.is_main_process:
            logger.warning("step %d: %s is NaN or infinite", step, ", ".join(unknown))
        values = _rounded({name: value for name, value in values.items() if name not in unknown})
        self._append("metrics.jsonl", step, values)
        self._trackers.log(step, values)

    def log_time(self, step: int, values: dict[str, Any]) -> None:
        """Append one line to timing.jsonl: what depends on the clock has no place among the metrics."""
        self._append("timing.jsonl", step, _rounded(values))

    def _append(self, name: str, step: int, values: dict[str, Any]) -> None:
        if not self.is_main_process:
            return
        try:
            with open(self.path / name, "a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self.path / name} ({error.strerror}): make room, then go on with --resume auto"
            ) from error

    def forget_after(self, step: int) -> None:
        """
        Begin to report after `step`, where a run is resumed (-1: from the start), and drop the lines of metrics.jsonl
        that it writes again.
        """
        for path in (self.path / "metrics.jsonl", self.path / "timing.jsonl"):
            if self.is_main_process and path.exists():
                kept = [text for text, line in _lines(path) if line["step"] <= step]
                write_text(path, "".join(kept))
        if self.is_main_process:
            self._trackers.start(self.path, self.facts["run_id"], self.facts["arguments"], step)

    def save_model(self, model: torch.nn.Module, save: Callable[[Path], None]) -> None:
        """
        Call `save(folder)` on an empty folder that then becomes `model/` in one rename.

        Raises:
            [`InputError`]: a weight of `model` is NaN or infinite, or the disk is full.
        """
        check_model(model)
        try:
            with replacing(self.model) as folder:
                save(folder)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write {self.model} ({error}): make room, then go on with --resume auto"
            ) from error


def pixel_hashes(split: Any) -> np.ndarray:
    """Of each cutout of a split its pixels' hash, uint64 `(n,)`."""
    return np.frombuffer(b"".join(one[:8] for one in pixel_digests(split)), dtype="<u8")


def read_trained_on(run: str | os.PathLike) -> np.ndarray:
    """The [`pixel_hashes`] of what a fine-tuning, and one that it began from, saw labels of; none of anything else."""
    try:
        return np.load(Path(run) / _TRAINED_ON)
    except (OSError, ValueError):  # a pretraining, an export, a run of an earlier version
        return np.zeros(0, dtype="<u8")


def _stated(facts: dict[str, Any], name: str) -> Any:
    """A fact of a run; of its data what is known, so that fields of later versions change nothing."""
    fact = facts.get(name)
    return {key: value for key, value in fact.items() if value is not None} if name == "data" and fact else fact


def origin(init: str, encoder: torch.nn.Module | None) -> dict[str, Any]:
    """
    Where initial weights come from: `init`, `init_method` and, where a run of ours made them, that run's facts, else a
    checksum of the encoder's weights, and where they were exported the facts of what was exported, as `init_recipe`;
    where that was on the Hub also its commit, as `init_revision`.
    """
    if init == "scratch":  # also where a run is in a folder of this name
        return {"init": init, "init_method": "scratch"}
    if (Path(init) / "run.json").is_file():
        parent = read_run(init)
        return {"init": init, "init_method": parent["method"] or parent["init_method"], "init_run": parent}
    from ..models.loading import find_file  # transformers, which reading a run need not wait for

    method = getattr(encoder.config, "init_method", "pretrained")  # exports of ours name it
    facts = {"init": init, "init_method": method, "init_weights": checksum("", encoder.state_dict())}
    file = find_file(init, RECIPE)  # which `init` on the Hub may lack, and without a network nobody can tell
    recipe = None if file is None else read_recipe(file.parent)
    if recipe is None:
        return facts
    return facts | {"init_recipe": recipe} | ({} if Path(init).is_dir() else {"init_revision": file.parent.name})


def read_recipe(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The facts of the run that was exported to a folder; `None` where the folder does not tell them."""
    try:
        return dict(read_facts(Path(folder) / RECIPE))
    except InputError:  # there is none, or it is of something else
        return None


class RunFacts(dict):
    """The content of a run.json, which says in a sentence what it lacks."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        super().__init__(facts)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise InputError(f"{self.path} is damaged, it lacks {name!r}: train again in another output_dir")


_KINDS = {
    "arguments": dict,
    "data": dict,
    "resolved": dict,
    "versions": dict,
    "init_run": dict,
    "init_recipe": dict,
    "resumed": list,
    "crop_size": int,
}
_KINDS |= {"image_mean": list, "image_std": list, "seconds": int | float, "run_id": str}


def read_run(run: str | os.PathLike) -> RunFacts:
    """
    The facts in a run's run.json.

    Raises:
        [`InputError`]: there is none, or it is damaged.
    """
    return read_facts(Path(run) / "run.json")


def read_facts(path: Path) -> RunFacts:
    """[`read_run`] of a run.json, or of the recipe.json of an export."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.parent} is no run directory (no readable {path.name}): give one") from error
    if not isinstance(facts, dict) or facts.get("task") not in ("pretrain", "finetune"):
        raise InputError(f"{path} is damaged or of something else, it names no task: give a run directory")
    wrong = [name for name, kind in _KINDS.items() if name in facts and not isinstance(facts[name], kind)]
    if facts.get("precision", "fp32") not in ("bf16", "fp32"):
        wrong.append("precision")
    if wrong:
        value = repr(facts[wrong[0]])[:40]
        raise InputError(f"{path} is damaged, {wrong[0]} is {value}: train again in another output_dir")
    return RunFacts(path, facts)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl or timing.jsonl; none where there is no such file."""
    return [line for _, line in _lines(path)] if path.is_file() else []


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a log, as they stand and as they read. Damaged ones are left out with a warning."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(True)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): take it away, or choose another run") from error
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            is_whole = isinstance(line, dict) and isinstance(line.get("step"), int) and text.endswith("\n")
        except (ValueError, RecursionError):
            is_whole = False
        if is_whole:
            yield text, line
        elif number < len(lines):  # a killed run may leave half a line at the end
            logger.warning("line %d of %s is damaged and left out", number, path)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


def _command() -> str | None:
    """The command line, where a command of this project runs; a program that calls the Python API is not recorded."""
    program, package = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[1]
    if sys.argv[0].startswith("lens-ssl "):
        name = sys.argv[0].split()
    elif program.parent == package / "commands":  # python -m lens_ssl_hf.commands.pretrain
        name = ["lens-ssl", program.stem.replace("_", "-")]
    elif program.parent == package.parent / "scripts":
        name = ["python", str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program.name)]
    else:
        return None
    return shlex.join([*name, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """Revision of the checkout that this package runs from, -dirty where it was changed; `None` when installed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # git would find the repository that an environment happens to lie in
        return None
    try:
        arguments = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
