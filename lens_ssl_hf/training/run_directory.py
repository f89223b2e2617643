"""The run directory: resolved settings, data fingerprint, versions, metrics and final weights of one training."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError

_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "datasets", "huggingface_hub", "numpy")


class RunDirectory:
    """
    One training's directory. Only the main process writes.

    Args:
        path (`str` or `os.PathLike`): the directory; made if it is missing.
        resume (`str`): `"auto"` goes on with what is there, `"never"` refuses a directory that holds a run.
        is_main_process (`bool`): whether this process writes.

    Raises:
        [`InputError`]: the directory cannot be written, or holds a run and `resume` is `"never"`.
    """

    def __init__(self, path: str | os.PathLike, resume: str, is_main_process: bool = True):
        self.path = Path(path)
        self.is_main_process = is_main_process
        if resume == "never" and (self.path / "run.json").exists():
            raise InputError(
                f"output_dir {self.path} already holds a run: choose another one, or go on with --resume auto"
            )
        if is_main_process:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                probe = self.path / ".writable"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise InputError(
                    f"output_dir {self.path} cannot be written ({error.strerror}): choose another one"
                ) from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Write run.json; the facts of the machine and the code are added."""
        if self.is_main_process:
            facts = {**facts, "command": _command(), "versions": _versions(), "git_revision": _git_revision()}
            write_json(self.path / "run.json", facts)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; floats are rounded to 6 significant digits."""
        if self.is_main_process:
            line = {"step": step} | {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again."""
        path = self.path / "metrics.jsonl"
        if self.is_main_process and path.exists():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_text(path, "".join(line + "\n" for line in lines))

    def save_model(self, save: Any) -> None:
        """Call `save(folder)` on an empty folder that then becomes `model/` in one rename."""
        partial = self.path / ".model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        save(partial)
        shutil.rmtree(self.model, ignore_errors=True)
        os.replace(partial, self.model)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    if not script.is_file():  # a notebook or an interactive session
        return "python"
    script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script.name
    return shlex.join(["python", str(script), *sys.argv[1:]])


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
    try:
        arguments = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
