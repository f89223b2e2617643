"""
What one GPU does with our trainings, in a few minutes: every stage writes its numbers at once.

```bash
python scripts/benchmark_gpu.py --output benchmark_gpu.json
```

- machine: what one large matrix product and one large copy reach;
- pretrain: images per second, peak memory and share of the machine's arithmetic, per method, backbone and batch;
- levers: a step with and without each of them, in turns, beside what was expected;
- profile: where the time of a step goes, kernel by kernel, and how long the GPU has nothing to do;
- usual: the way that is usual on the same machine (see benchmark.py), and the bare forward and backward;
- finetune: real runs, alone and as processes side by side;
- scoring: classifiers on cutouts that are on the device.
"""

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmark_steps import (
    INFO,
    UsualWay,
    device,
    floor_step,
    machine,
    matmul_flops,
    noise,
    our_step,
    ours_in_order,
    split_of,
    step_flops,
    synchronise,
    timed,
)
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import write_json

ROOT = Path(__file__).parents[1]
STAGES = ("machine", "scoring", "finetune", "pretrain", "levers", "profile", "usual")
# method, backbone, batch: the most important first
PRETRAININGS = [
    ("dino", "vitb8", 1024), ("ibot", "vits8", 1024), ("dino", "vits8", 1024), ("simsiam", "vits8", 1024),
    ("dino", "vits8", 128), ("dino", "vits8", 32), ("dino", "vits8", 512), ("dino", "vitb8", 128),
    ("ibot", "vitb8", 512), ("simsiam", "vitb8", 512),
]  # fmt: skip
# What each lever was expected to bring before it was measured: seconds of a step without it / with it, per batch.
PREDICTIONS = {
    "the step as one CUDA graph": {128: 2.5, 1024: 1.1},
    "layers compiled": {128: 1.1, 1024: 1.6},
    "attention by a kernel for few tokens": {128: 1.3, 1024: 1.5},
    "fused attention: memory-efficient for cuDNN's": {128: 1.0, 1024: 0.95},
    "fused attention: FlashAttention 2 for cuDNN's": {128: 1.0, 1024: 1.0},
}


@dataclass
class GPUArguments:
    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Some of {', '.join(STAGES)}."})
    output: str = field(default="benchmark_gpu.json", metadata={"help": "JSON file to write; other stages are kept."})
    seconds: float = field(default=1.5, metadata={"help": "Least time of one measurement."})
    budget: float = field(default=240.0, metadata={"help": "Seconds after which no further measurement begins."})
    tiny: bool = field(default=False, metadata={"help": "Rehearse with tiny sizes, on a CPU too."})
    worker: str = field(default="", metadata={"help": "Used by the script itself, for its processes."})


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(GPUArguments, description=__doc__)
    quiet()
    if wrong := [name for name in arguments.stages if name not in STAGES]:
        raise InputError(f"unknown stage {wrong[0]!r}: choose from {', '.join(STAGES)}")
    if arguments.worker:
        print("RESULT", json.dumps(finetuning_rate(*arguments.worker.split(","))))
        return
    path = Path(arguments.output)
    results = json.loads(path.read_text()) if path.is_file() else {}
    clock = Clock(arguments.budget)
    for name in arguments.stages:
        start = time.perf_counter()
        rows: list[dict[str, Any]] = []
        for row in globals()[f"measure_{name}"](arguments, clock):
            rows.append(row)
            print(f"{name}: {json.dumps(row)[:400]}", flush=True)
            results[name] = {"rows": rows, "seconds": round(time.perf_counter() - start, 1)}
            write_json(path, results)
    print(f"results: {path}")


class Clock:
    def __init__(self, budget: float):
        self.end = time.perf_counter() + budget

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self.end


def measured(clock: Clock, facts: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row of facts and measured values, or of what went wrong; none when the time is up."""
    if clock.is_over:
        print(f"no time for {facts}", flush=True)
        return
    start = time.perf_counter()
    try:
        row = measure()
    except Exception as error:  # on a machine that is at hand for minutes the other measurements must go on
        traceback.print_exc()
        row = {"error": f"{type(error).__name__}: {error}"[:500]}
    forget()
    yield {**facts, **row, "seconds": round(time.perf_counter() - start, 1)}


def forget() -> None:
    """Give memory and compiled code of the last measurement back."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# ---- stages ----------------------------------------------------------------------------------------


def measure_machine(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    yield machine()

    def measure() -> dict[str, Any]:
        size = 2**20 if arguments.tiny else 2**31
        source = torch.empty(size, dtype=torch.uint8, device=device()).random_()
        target = torch.empty_like(source)
        target.copy_(source)
        seconds = min(timed(lambda: target.copy_(source), 10) for _ in range(3))
        return {"bf16_flops": matmul_flops("bf16"), "copy_bytes_per_second": 2 * size / seconds}

    yield from measured(clock, {}, measure)


def measure_pretrain(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    peak = matmul_flops("bf16")
    for method, backbone, batch in sizes(arguments, PRETRAININGS):
        facts = {"method": method, "backbone": backbone, "batch_size": batch, "num_local_views": 8}

        def measure() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                ours, first = started(method, backbone, batch, folder)
                rate = batch / time_of(ours, arguments)
                use = rate * step_flops(ours) / peak
                return {
                    "images_per_second": rate,
                    "model_flop_utilisation": use,
                    "first_steps_seconds": first,
                    **peaks(),
                }

        yield from measured(clock, facts, measure)


def measure_levers(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    """DINO with vits8."""
    for batch in (8,) if arguments.tiny else (1024, 128):
        with tempfile.TemporaryDirectory() as folder:
            seconds = {}
            for number, name in enumerate(LEVERS):

                def measure() -> dict[str, Any]:
                    with contextlib.ExitStack() as stack:
                        for change in LEVERS[name]:
                            stack.enter_context(change())
                        ours, _ = started("dino", "vits8", batch, Path(folder) / str(number))
                        seconds[name] = time_of(ours, arguments)
                        return {"images_per_second": batch / seconds[name], **peaks()}

                yield from measured(clock, {"step": name, "batch_size": batch}, measure)
        for lever, (without, with_it) in PAIRS.items():
            if without in seconds and with_it in seconds:
                gain = seconds[without] / seconds[with_it]
                expected = PREDICTIONS[lever].get(batch)
                yield {"lever": lever, "batch_size": batch, "predicted": expected, "measured": gain}


def measure_profile(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    for method, backbone, batch in sizes(arguments, [("dino", "vits8", 1024), ("dino", "vits8", 128)]):

        def measure() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                ours, _ = started(method, backbone, batch, folder)
                step = time_of(ours, arguments)
                kernels = kernel_seconds(ours_in_order(ours), count=3)
                busy = sum(seconds for seconds, _ in kernels.values())
                top = sorted(kernels.items(), key=lambda item: -item[1][0])[:40]
                table = [{"kernel": name[:160], "share": s / busy, "calls": calls} for name, (s, calls) in top]
                row = {"step_seconds": step, "kernel_seconds": busy, "idle": 1 - busy / step, "kernels": table}
                ours.train_on = ours._train_on  # a graph's kernels belong to no part
                ours.step(1)
                return {**row, "split": split_of(ours)}

        yield from measured(clock, {"method": method, "backbone": backbone, "batch_size": batch}, measure)


def measure_usual(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    for method, backbone, batch in sizes(arguments, [("dino", "vits8", 512), ("dino", "vitb8", 512)]):
        for precision, fused in (("fp32", False), ("bf16", True)):
            facts = {"method": method, "backbone": backbone, "batch_size": batch, "precision": precision}

            def measure() -> dict[str, Any]:
                usual = UsualWay(method, backbone, batch, 8, precision, fused)
                usual()
                return {"images_per_second": batch / time_of_calls(usual, arguments)}

            yield from measured(clock, {**facts, "way": "usual", "fused": fused}, measure)

        def floor() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder, uncompiled():
                ours, _ = started(method, backbone, batch, folder)
                return {"images_per_second": batch / time_of_calls(floor_step(ours, "bf16"), arguments)}

        yield from measured(
            clock, {"method": method, "backbone": backbone, "batch_size": batch, "way": "floor"}, floor
        )


def measure_finetune(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    for backbone in ("vitt8",) if arguments.tiny else ("vits8", "vitb8"):
        for processes in (1, 2):
            steps = 10 if arguments.tiny else 1200

            def measure() -> dict[str, Any]:
                rates = [rate for rate, _ in side_by_side(f"{backbone},{steps}", processes)]
                return {"steps_per_second": sum(rates), "of_each": rates}

            yield from measured(clock, {"backbone": backbone, "processes": processes}, measure)


def measure_scoring(arguments: GPUArguments, clock: Clock) -> Iterator[dict[str, Any]]:
    """Forward passes of classifiers over cutouts of 32 pixels that are on the device."""
    for backbone in ("vitt8",) if arguments.tiny else ("vits8", "vitb8"):
        for name in ("fp32", "tf32", "bf16", "bf16, few tokens", "bf16, few tokens, compiled"):

            def measure() -> dict[str, Any]:
                return scoring_rate(backbone, name, arguments)

            yield from measured(clock, {"backbone": backbone, "precision": name}, measure)


# ---- ours, with and without each lever -------------------------------------------------------------


def started(method: str, backbone: str, batch: int, folder: str | Path) -> tuple[Any, float]:
    """A trainer that has compiled and captured, and the seconds that this took."""
    start = time.perf_counter()
    ours = our_step(method, backbone, Path(folder), batch, precision="bf16", freeze_last_layer_fraction=0.0)
    for step in range(6):
        ours.step(step)
    synchronise()
    return ours, round(time.perf_counter() - start, 1)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    with mock.patch("lens_ssl_hf.training.trainer.can_compile", lambda device: False):
        yield


@contextlib.contextmanager
def without_graph() -> Iterator[None]:
    from lens_ssl_hf.training.trainer import Trainer

    begin = Trainer.begin

    def begin_without(self: Any) -> int:
        done = begin(self)
        self.train_on = self._train_on
        return done

    with mock.patch.object(Trainer, "begin", begin_without):
        yield


def attention(backend: str) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: sdpa_kernel(getattr(SDPBackend, backend))


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    with mock.patch("lens_ssl_hf.models.backbones.can_compile", lambda device: False):
        yield


LEVERS: dict[str, list[Callable[[], contextlib.AbstractContextManager]]] = {
    "ours": [],
    "without graph": [without_graph],
    "without compile": [uncompiled],
    "fused attention": [fused_attention],
    "fused attention, efficient": [fused_attention, attention("EFFICIENT_ATTENTION")],
    "fused attention, flash": [fused_attention, attention("FLASH_ATTENTION")],
}
PAIRS = {
    "the step as one CUDA graph": ("without graph", "ours"),
    "layers compiled": ("without compile", "ours"),
    "attention by a kernel for few tokens": ("fused attention", "ours"),
    "fused attention: memory-efficient for cuDNN's": ("fused attention", "fused attention, efficient"),
    "fused attention: FlashAttention 2 for cuDNN's": ("fused attention", "fused attention, flash"),
}


# ---- fine-tuning and scoring -----------------------------------------------------------------------


def finetuning_rate(backbone: str, steps: str) -> tuple[float, float]:
    """Steps per second of a run with 300 labels after its first 200 steps, and the seconds of those."""
    from lens_ssl_hf import finetune

    count = int(steps)
    data = ({"train": noise(300), "validation": noise(400 if count > 100 else 20)}, INFO)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"backbone": backbone, "steps": count, "log_every": 5, "precision": "bf16"}
        run = finetune(data, folder, **settings)
        clock = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    first = next(line for line in clock if line["step"] >= min(200, count // 2))
    return (clock[-1]["step"] - first["step"]) / (clock[-1]["seconds"] - first["seconds"]), first["seconds"]


def side_by_side(worker: str, processes: int) -> list[tuple[float, float]]:
    """What so many processes print that do the same at the same time."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, __file__, "--worker", worker]
    options = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen(command, **options) for _ in range(processes)]
    outputs = [one.communicate(timeout=240)[0] for one in started]
    return [json.loads(text.split("RESULT ", 1)[1].splitlines()[0]) for text in outputs]


def scoring_rate(backbone: str, precision: str, arguments: GPUArguments) -> dict[str, Any]:
    from transformers import ViTForImageClassification

    from lens_ssl_hf.models import backbone_config
    from lens_ssl_hf.models.backbones import compile_layers, use_fast_attention
    from lens_ssl_hf.training.accelerator import autocast

    batch = 32 if arguments.tiny else 4096
    model = ViTForImageClassification(backbone_config(backbone)).to(device()).eval()
    if "few tokens" in precision:
        use_fast_attention(model)
    if "compiled" in precision:
        compile_layers(model)
    images = torch.randn(batch, 3, 32, 32, device=device())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"

    @torch.inference_mode()
    def score() -> torch.Tensor:
        with autocast(device(), precision[:4]):
            return F.softmax(model(images).logits.float(), dim=-1)[:, 1]

    score()
    rate = batch / time_of_calls(score, arguments)
    return {"cutouts_per_second": rate, "batch_size": batch, **peaks()}


# ---- clocks ----------------------------------------------------------------------------------------


def sizes(arguments: GPUArguments, wanted: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    return [(method, "vitt8", 8) for method in ("dino", "ibot")] if arguments.tiny else wanted


def time_of(ours: Any, arguments: GPUArguments) -> float:
    return time_of_calls(ours_in_order(ours), arguments)


def time_of_calls(way: Callable[[], Any], arguments: GPUArguments) -> float:
    """Seconds of one call, the median of three measurements."""
    count = max(2, round(arguments.seconds / 3 / timed(way, 2)))
    return statistics.median(timed(way, count) for _ in range(3))


def peaks() -> dict[str, Any]:
    return {"peak_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}


def kernel_seconds(way: Callable[[], None], count: int) -> dict[str, tuple[float, int]]:
    """Seconds and calls of each kernel in one call of `way`."""
    kind = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        for _ in range(count):
            way()
        synchronise()
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profiler.key_averages():
        seconds = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        found[event.key][0] += seconds / 1e6 / count
        found[event.key][1] += event.count // count
    return {name: (seconds, calls) for name, (seconds, calls) in found.items() if seconds}


if __name__ == "__main__":
    main()
