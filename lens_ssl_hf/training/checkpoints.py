"""
Checkpoints: one safetensors file each, with weights, optimizer state and the step.

Data order and views are functions of the step, so that nothing else is needed to go on.
"""

import contextlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.tensors import checksum
from ..errors import InputError
from ..files import replacing

logger = logging.getLogger(__name__)

_KEEP = 2


def save_checkpoint(
    directory: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any] | None = None,
    score: float | None = None,
    run_id: str | None = None,
) -> Path:
    """
    Write `directory/step-<step>.safetensors` atomically, and delete all but the newest two and the best one.

    Args:
        step (`int`): optimizer steps done.
        extra (`Mapping`, *optional*): JSON-able values, and tensors under string keys, that come back from loading.
        score (`float`, *optional*): the larger the better; decides which checkpoint is the best. NaN is no score.
        run_id (`str`, *optional*): of the run; no other one goes on from the checkpoint.

    Raises:
        [`InputError`]: the disk is full or cannot be written; the checkpoints before are untouched.
    """
    extra = extra or {}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer.{name}.{key}"] = value
    tensors |= {f"extra.{name}": value for name, value in extra.items() if isinstance(value, torch.Tensor)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    values = {name: value for name, value in extra.items() if not isinstance(value, torch.Tensor)}
    score = score if score is not None and math.isfinite(score) else None
    header = json.dumps({"step": step, "values": values, "score": score, "run_id": run_id})
    metadata = {"header": header, "checksum": str(checksum(header, tensors))}
    path = directory / f"step-{step:08d}.safetensors"
    try:
        write_safetensors(path, tensors, metadata)
    except OSError as error:
        raise InputError(
            f"cannot write the checkpoint {path} ({error}): make room, then go on with --resume auto"
        ) from error
    _delete_old(directory)
    return path


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """
    Write a safetensors file atomically.

    Raises:
        `OSError`: it cannot be written, or the disk is full.
    """
    with replacing(path) as new:
        try:
            save_file(dict(tensors), new, metadata=metadata)
        except SafetensorError as error:  # of the file system, too, and without its number
            raise OSError(str(error)) from error


def newest_checkpoint(directory: Path, accelerator: Accelerator, run_id: str | None = None) -> Path | None:
    """
    The newest whole `step-*.safetensors` in `directory`, or `None` where there is none. Newer damaged ones are
    renamed to `*.damaged` with a warning. Every process must call it; the main one looks for all.

    Raises:
        [`InputError`]: all are damaged, the newest is of another run than `run_id`, or a process does not see what the
            main one does.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = _newest_whole(directory, run_id)
        except InputError as error:
            found[1] = str(error)
    path, problem = broadcast_object_list(found)
    if problem:
        raise InputError(problem)
    if path is not None and not path.is_file():
        raise InputError(f"a process cannot see {path}: give an output_dir that all machines share")
    return path


def _newest_whole(directory: Path, run_id: str | None) -> Path | None:
    paths = sorted(directory.glob("step-*.safetensors"), reverse=True)
    for path in paths:
        try:
            owner = _read(path)[0].get("run_id")
        except OSError as error:
            raise InputError(f"cannot read the checkpoint {path} ({error.strerror}): try again") from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("%s is damaged (%s): set aside as .damaged", path, error)
            path.rename(path.with_name(f"{path.name}.damaged"))
        else:
            if owner not in (None, run_id):  # earlier versions noted none
                raise InputError(
                    f"the checkpoint {path} is of another run ({owner}, not {run_id}): take it away, or choose "
                    "another output_dir"
                )
            return path
    if paths:
        raise InputError(
            f"all checkpoints in {directory} were damaged and set aside: begin anew in another output_dir"
        )
    return None


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict]:
    """Restore `model` and `optimizer` in place; returns the steps done and the `extra` that was saved."""
    header, tensors = _read(path)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    extra = header["values"] | {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("extra.")}
    return header["step"], extra


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if str(checksum(metadata["header"], tensors)) != metadata["checksum"]:
        raise ValueError("its checksum is wrong")
    return json.loads(metadata["header"]), tensors


def _delete_old(directory: Path) -> None:
    paths = sorted(directory.glob("step-*.safetensors"))
    scores = {}
    for path in paths:
        # A damaged one that nobody needed to read is not the best one.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
            with safe_open(path, framework="pt") as file:
                score = json.loads(file.metadata()["header"])["score"]
            if score is not None and math.isfinite(score):
                scores[path] = score
    best = max(scores, key=scores.get, default=None)
    for path in paths[:-_KEEP]:
        if path != best:
            path.unlink()
