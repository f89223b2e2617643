"""Accelerate as a training needs it: as many processes as were launched, their device, and the precision there."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list

from ..errors import InputError


def process_state() -> PartialState:
    """Accelerate's state of the processes; where there is no GPU, several talk over gloo, not each to itself."""
    return PartialState(cpu=_many_without_gpu())


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """
    What is inside is run by the main process first, while the others wait, for days if it must be. Accelerate's own
    `main_process_first` waits in a collective of NCCL, which ends the run after ten minutes.
    """
    state = process_state()
    if state.num_processes == 1:
        yield
        return
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    if not state.is_main_process:
        torch.distributed.barrier(group)
    yield
    if state.is_main_process:
        torch.distributed.barrier(group)
    torch.distributed.destroy_process_group(group)


def _many_without_gpu() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def make_accelerator(precision: str, deterministic: bool) -> Accelerator:
    """
    An `Accelerator` that runs as many processes as were launched.

    Args:
        precision (`str`): what is asked for: auto, bf16 or fp32.
        deterministic (`bool`): the same bits in every repetition on a GPU, too.

    Raises:
        [`InputError`]: a launch that silently runs as one process, fp16, or fp32 where Accelerate was configured with
            bf16.
    """
    if deterministic:  # otherwise what the program around it has chosen stays
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed before the first product
        torch.use_deterministic_algorithms(True)
    # A step is made of every batch: without the plugin, an environment variable would divide the gradients.
    plugin = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(cpu=_many_without_gpu(), gradient_accumulation_plugin=plugin)
    accelerator.native_amp = False  # the loop has its own autocast; Accelerate's would be in evaluations, too
    asked_for = _processes_asked_for()
    if asked_for != accelerator.num_processes:
        raise InputError(
            f"{asked_for} processes were asked for but {accelerator.num_processes} run: launch with one of the files "
            "in scripts/accelerate, as in accelerate launch --config_file scripts/accelerate/cpu.yaml"
        )
    if accelerator.mixed_precision == "fp16":
        raise InputError("mixed_precision fp16 gives NaN with these methods: use bf16 or no")
    if accelerator.mixed_precision == "bf16" and precision == "fp32":
        raise InputError("precision fp32 contradicts mixed_precision bf16 of the accelerate configuration: drop one")
    if accelerator.device.type == "cpu":
        _keep_freed_memory()
    return accelerator


def _keep_freed_memory() -> None:
    """
    Make malloc keep what a step frees for the next one. By default glibc gives it back to the kernel, which must clear
    every page anew: a tenth of a step, and where the machine is virtual up to nine tenths.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes


def _processes_asked_for() -> int:
    """
    What `accelerate launch` was asked for on its command line or in its configuration. Where it cannot start several
    processes (`--cpu --num_processes 2`), it starts one and tells it nothing; only its own command line shows it.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        command = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return launched
    # accelerate launch ..., accelerate-launch ..., python -m accelerate.commands.launch ...
    ends = ("launch", "launch.py")
    position = next((i for i, word in enumerate(command) if word.endswith(ends)), None)
    if position is None or not any("accelerate" in word for word in command[: position + 1]):
        return launched
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    options, _ = launch_command_parser().parse_known_args(command[position + 1 :])
    if options.num_processes:
        return options.num_processes
    if options.config_file or (os.path.isfile(default_config_file) and not options.cpu):
        return load_config_from_file(options.config_file).num_processes
    return launched


def choose_precision(accelerator: Accelerator, requested: str) -> str:
    """
    `"bf16"` or `"fp32"`: what Accelerate was configured with, what is requested, or for auto what the device computes
    in. That is a property of the device, so that one command always trains the same weights there.
    """
    if accelerator.mixed_precision == "bf16":
        return "bf16"
    if requested != "auto":
        return requested
    return broadcast_object_list([native_precision(accelerator.device)])[0]  # the main process decides for all


def native_precision(device: torch.device) -> str:
    """`"bf16"` where a device has instructions for it, `"fp32"` where it would have to emulate them."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)  # compute capability 8.0 and later
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        has_bf16 = False
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
