"""
Checkpoints: one safetensors file each, with weights, optimizer state and the step.

Data order and views are functions of the step, so that nothing else is needed to go on.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_KEEP = 2


def save_checkpoint(
    directory: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, extra: dict | None = None
) -> Path:
    """
    Write `directory/step-<step>.safetensors` atomically and delete all but the newest two.

    Args:
        step (`int`): optimizer steps done.
        extra (`dict`, *optional*): JSON-able values, and tensors under string keys, that come back from loading.
    """
    extra = extra or {}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer.{name}.{key}"] = value
    tensors |= {f"extra.{name}": value for name, value in extra.items() if isinstance(value, torch.Tensor)}
    values = {name: value for name, value in extra.items() if not isinstance(value, torch.Tensor)}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:08d}.safetensors"
    partial = directory / f".{path.name}.partial"
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()},
        partial,
        metadata={"step": str(step), "values": json.dumps(values)},
    )
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in sorted(directory.glob("step-*.safetensors"))[:-_KEEP]:
        old.unlink()
    return path


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest `step-*.safetensors` in `directory`, or `None`."""
    return max(directory.glob("step-*.safetensors"), default=None)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict]:
    """Restore `model` and `optimizer` in place; returns the steps done and the `extra` that was saved."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    extra = json.loads(metadata["values"])
    extra |= {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("extra.")}
    return int(metadata["step"]), extra
