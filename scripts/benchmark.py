"""
Images per second of training, side by side in one run: ours, the way that is usual, and the bare floor.

```bash
python scripts/benchmark.py --output benchmark.json
```

- ours: the step of `lens-ssl pretrain` and `lens-ssl finetune`, split into views, forward, backward and optimizer;
- usual: per-sample PIL views in DataLoader workers, a pass per crop size, fp32, default AdamW, EMA in a Python loop;
- floor: forward and backward of the same tokens through the same stock ViT, with no views and no loss.

It needs what training needs, and Pillow for the usual way: a bare GPU machine will do.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.errors import InputError, exit_on_input_error

ROOT = Path(__file__).parents[1]
FINETUNING_BATCH = 64
LOCAL = {"local_size": 16, "local_scale_min": 0.05, "local_scale_max": 0.4}  # of all sides, whatever a recipe says
PARTS = ("pretrain", "finetune", "scaling", "memory", "startup")


@dataclass
class BenchmarkArguments:
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Some of {', '.join(PARTS)}."})
    methods: list[str] = field(default_factory=lambda: ["dino"], metadata={"help": "Some of simsiam, dino, ibot."})
    backbones: list[str] = field(default_factory=lambda: ["vits8"], metadata={"help": "Some of vitt8, vits8, vitb8."})
    batch_size: int = field(default=128, metadata={"help": "Images per pretraining step."})
    num_local_views: int = field(default=8, metadata={"help": "Small views per image (dino, ibot)."})
    repeats: int = field(default=5, metadata={"help": "Rounds, in each of which everything is measured once."})
    seconds: float = field(default=2.0, metadata={"help": "Least time of one measurement."})
    output: str = field(default="benchmark.json", metadata={"help": "JSON file to write; its other parts are kept."})
    worker: str = field(default="", metadata={"help": "Used by the script itself, for its processes."})


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(BenchmarkArguments, description=__doc__)
    quiet()
    for name in arguments.parts:
        if name not in PARTS:
            raise InputError(f"unknown part {name!r}: choose from {', '.join(PARTS)}")
    if arguments.worker:
        print("RESULT", json.dumps(WORKERS[arguments.worker](arguments)))
        return
    from lens_ssl_hf.files import write_json

    path = Path(arguments.output)
    results = json.loads(path.read_text()) if path.is_file() else {}
    results["machine"] = machine()
    for name in arguments.parts:
        print(f"== {name}", flush=True)
        results[name] = {**asdict(arguments), **globals()[f"measure_{name}"](arguments)}
        for key in ("parts", "output", "worker"):
            del results[name][key]
        write_json(path, results)
    print(f"results: {path}")


# ---- pretraining -----------------------------------------------------------------------------------


def measure_pretrain(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Ours, the usual way as it is and with bf16 and fused AdamW, and the floor; per method and backbone."""
    rows = []
    for backbone in arguments.backbones:
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as folder:
                ours = our_step(arguments, method, backbone, Path(folder))
                precision = ours.run.facts["precision"]
                ways = {
                    "ours": ours_in_order(ours),
                    "usual": UsualWay(arguments, method, backbone, "fp32", fused=False),
                    "usual, bf16 and fused AdamW": UsualWay(arguments, method, backbone, "bf16", fused=True),
                    "floor": floor_step(ours, precision),
                }
                rates = interleaved(ways, arguments, arguments.batch_size)
                row = {"method": method, "backbone": backbone, "precision": precision, **summary(rates)}
                row["split"] = split_of(ours)
                row["host_synchronisations"] = row["split"].pop("host_synchronisations")
                flops = step_flops(ours)
                row["flops_per_image"] = flops
                peak = matmul_flops(precision)
                row["model_flop_utilisation"] = row["images_per_second"]["ours"]["median"] * flops / peak
                row["peak_flops"] = peak
                rows.append(row)
                show(row)
    return {"rows": rows}


def our_step(arguments: BenchmarkArguments, method: str, backbone: str, folder: Path, **settings: Any) -> Any:
    """The `Trainer` of a pretraining of ours that has begun, on noise."""
    from lens_ssl_hf.training import pretrain as module
    from lens_ssl_hf.training.accelerator import choose_precision, make_accelerator
    from lens_ssl_hf.training.arguments import PretrainArguments, recipe
    from lens_ssl_hf.training.run_directory import RunDirectory
    from lens_ssl_hf.training.trainer import Trainer

    settings = {"num_local_views": arguments.num_local_views, "batch_size": arguments.batch_size, **LOCAL, **settings}
    settings = {**recipe(method), "method": method, "backbone": backbone, "epochs": 10**6, "eval_every": 0, **settings}
    ours = PretrainArguments(**settings, output_dir=str(folder))
    accelerator = make_accelerator(ours.precision, deterministic=False)
    tensors = ({"train": noise(2 * arguments.batch_size)}, INFO)
    data = module._open_data(tensors, ours, accelerator)
    run = RunDirectory(folder, "auto", accelerator.is_main_process)
    facts = {"arguments": asdict(ours), "num_processes": accelerator.num_processes}
    run.write_facts({**facts, "precision": choose_precision(accelerator, ours.precision)})
    task = module.Pretraining(module._make_model(ours, data), data, ours, accelerator)
    trainer = Trainer(task, accelerator, run)
    trainer.begin()
    return trainer


def ours_in_order(trainer: Any) -> Callable[[], None]:
    steps = iter(range(10**9))
    return lambda: trainer.step(next(steps))


class UsualWay:
    """A step as the study's code and common libraries make it."""

    def __init__(self, arguments: BenchmarkArguments, method: str, backbone: str, precision: str, fused: bool):
        import torch
        from torch.utils.data import DataLoader

        from lens_ssl_hf.models import METHODS, backbone_config

        self.method, self.precision = method, precision
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model_class = METHODS[method]
        self.model = model_class(model_class.config_class(backbone_config=backbone_config(backbone))).to(self.device)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, fused=fused or None)
        views = PILViews(
            noise(2 * arguments.batch_size).pixels, 0 if method == "simsiam" else arguments.num_local_views
        )
        loader = DataLoader(
            views,
            arguments.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=os.cpu_count(),
            persistent_workers=True,
            pin_memory=str(self.device) != "cpu",
        )
        self.batches = (batch for _ in iter(int, 1) for batch in loader)

    def __call__(self) -> None:
        import torch

        crops = [crop.to(self.device, non_blocking=True) for crop in next(self.batches)]
        views = {"global_views": torch.stack(crops[:2])}
        if len(crops) > 2:
            views["local_views"] = torch.stack(crops[2:])
        if self.method == "ibot":
            masks = [[torch.randperm(16)[:5] for _ in crops[0]] for _ in range(2)]
            views["masked_patches"] = torch.stack([torch.stack(mask) for mask in masks]).to(self.device)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.model(**views)
        self.optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.optimizer.step()
        if self.model.has_teacher:
            with torch.no_grad():
                for student, teacher in zip(self.model.student.parameters(), self.model.teacher.parameters()):
                    teacher.data.mul_(0.996).add_(0.004 * student.detach().data)
            self.model.update_centre(output)
        output.loss.item()


class PILViews:
    """A torch data set whose samples are views made by Pillow: crop, flip, rotation, jitter, blur."""

    def __init__(self, pixels: Any, num_local_views: int):
        from PIL import Image

        array = pixels.permute(0, 2, 3, 1).byte().numpy()
        self.images = [Image.fromarray(image) for image in array]
        self.num_local_views = num_local_views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Any]:
        sizes = [(32, 0.4, 1.0)] * 2 + [tuple(LOCAL.values())] * self.num_local_views
        return [self.view(self.images[index], *size) for size in sizes]

    @staticmethod
    def view(image: Any, size: int, low: float, high: float) -> Any:
        import random

        import numpy as np
        import torch
        from PIL import Image, ImageEnhance, ImageFilter

        image = image.rotate(random.uniform(0, 360), Image.Resampling.BILINEAR)
        side = round(32 * random.uniform(low, high) ** 0.5)
        left, top = (16 + random.randint(0, 32 - side) for _ in range(2))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.8, 1.2))
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.8, 1.2))
        if random.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - 0.5) / 0.2


def floor_step(trainer: Any, precision: str) -> Callable[[], None]:
    """Forward and backward of the tokens of one of our steps through the same stock ViTs."""
    import torch

    from lens_ssl_hf.models.backbones import hidden_states
    from lens_ssl_hf.training.accelerator import autocast

    task, device = trainer.task, trainer.accelerator.device
    arguments, model = task.arguments, task.model
    views = task.make_batch(*task.samples.batch(0, 0, 1))
    global_views, local_views = views["global_views"].flatten(0, 1), views.get("local_views")
    student = model.student.backbone if model.has_teacher else model.backbone
    masks = None
    if arguments.method == "ibot":
        masks = torch.zeros(len(global_views), 16, dtype=torch.bool, device=device)
        masks[:, :5] = True

    def step() -> None:
        with autocast(device, precision):
            if model.has_teacher:
                with torch.no_grad():
                    hidden_states(model.teacher.backbone, global_views)
            loss = hidden_states(student, global_views, masks).float().mean()
            if local_views is not None:
                loss = loss + hidden_states(student, local_views.flatten(0, 1)).float().mean()
        loss.backward()
        student.zero_grad(set_to_none=True)

    return step


def split_of(trainer: Any) -> dict[str, float]:
    """Seconds of the parts of one step, and how often the host waited for the device in it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as profiler:
        trainer.step(1)
        synchronise()
    events = {event.key: event for event in profiler.key_averages()}
    kind = "device_time_total" if torch.cuda.is_available() else "cpu_time_total"
    split = {name: getattr(events[name], kind) / 1e6 for name in ("views", "forward", "backward", "optimizer")}
    waits = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")
    # On a CPU the fused AdamW reads its step counts so; on a GPU it does not. The last one is the benchmark's own.
    reads = [event for event in profiler.events() if event.name in waits and not _is_within(event, "_fused_adamw_")]
    return {**split, "host_synchronisations": len(reads) - any("Device" in event.name for event in reads)}


def _is_within(event: Any, name: str) -> bool:
    while event is not None and name not in event.name:
        event = event.cpu_parent
    return event is not None


def step_flops(trainer: Any) -> float:
    """Floating-point operations per image of the ViTs in one step, a multiplication and an addition being two."""
    arguments, config = trainer.task.arguments, trainer.task.model.encoder.config
    width, depth = config.hidden_size, config.num_hidden_layers

    def forward(size: int) -> float:
        patches = (size // config.patch_size) ** 2
        tokens = patches + 1
        layer = 12 * width**2 * tokens + 2 * tokens**2 * width
        return 2 * (depth * layer + patches * width * config.num_channels * config.patch_size**2)

    large = forward(arguments.crop_size)
    if arguments.method == "simsiam":
        return 2 * 3 * large
    small = arguments.num_local_views * forward(arguments.local_size)
    return 3 * (2 * large + small) + 2 * large  # backward costs twice the forward; the teacher has none


def matmul_flops(precision: str) -> float:
    """What this machine reaches in one large matrix product."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = min(timed(lambda: left @ right, 10) for _ in range(5))
    return 2 * size**3 / seconds


# ---- what each lever brings ------------------------------------------------------------------------


# ---- fine-tuning -----------------------------------------------------------------------------------


def measure_finetune(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Ours, by the clock of real runs, and forward and backward of a batch through the same classifier."""
    rows = []
    for backbone in arguments.backbones:
        rates: dict[str, list[float]] = {"ours": [], "floor": []}
        for _ in range(arguments.repeats):
            rate, precision = finetuning_rate(backbone)
            rates["ours"].append(rate)
            rates["floor"].append(classifier_floor_rate(backbone, precision))
        rows.append({"backbone": backbone, "batch_size": FINETUNING_BATCH, "precision": precision, **summary(rates)})
        show(rows[-1])
    return {"rows": rows}


def finetuning_rate(backbone: str, steps: int = 60) -> tuple[float, str]:
    """Images per second between the first and the last log line but one of a run of `finetune`; and its precision."""
    from lens_ssl_hf import finetune

    data = ({"train": noise(256), "validation": noise(32)}, INFO)
    with tempfile.TemporaryDirectory() as folder:
        run = finetune(data, folder, backbone=backbone, steps=steps, eval_every=steps, batch_size=FINETUNING_BATCH)
        precision = json.loads((run / "run.json").read_text())["precision"]
        clock = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    first, last = clock[0], clock[-2]  # the last one counts the evaluation
    return FINETUNING_BATCH * (last["step"] - first["step"]) / (last["seconds"] - first["seconds"]), precision


def classifier_floor_rate(backbone: str, precision: str, steps: int = 40) -> float:
    import torch
    from torch.nn import functional as F
    from transformers import ViTForImageClassification

    from lens_ssl_hf.models import backbone_config
    from lens_ssl_hf.models.backbones import use_fast_attention
    from lens_ssl_hf.training.accelerator import autocast

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    classifier = ViTForImageClassification(backbone_config(backbone)).to(device).train()
    use_fast_attention(classifier)
    images = torch.randn(FINETUNING_BATCH, 3, 32, 32, device=device)
    labels = torch.arange(FINETUNING_BATCH, device=device) % 2

    def step() -> None:
        with autocast(device, precision):
            logits = classifier(images).logits
        F.cross_entropy(logits.float(), labels).backward()
        classifier.zero_grad(set_to_none=True)

    step()
    return FINETUNING_BATCH / timed(step, steps)


# ---- processes of their own ------------------------------------------------------------------------


def measure_scaling(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Two processes, pinned to a core each, against one on one core, with the same batch in all."""
    one = run_worker(arguments, "step", PIN="1")
    two = run_worker(arguments, "step", processes=2, PIN="1")
    rates = [one["images_per_second"], two["images_per_second"]]
    print(f"    one core {rates[0]:.1f} images/s, two {rates[1]:.1f}: {rates[1] / rates[0]:.2f} times")
    return {"one_process": rates[0], "two_processes": rates[1], "ratio": rates[1] / rates[0]}


def measure_memory(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Peak memory of DINO with vitb8, batch 256 and 2 + 4 views."""
    result = run_worker(arguments, "memory")
    print(f"    vitb8, batch 256: peak {result['peak_bytes'] / 2**30:.1f} GiB on the {result['device']}")
    return result


def measure_startup(arguments: BenchmarkArguments) -> dict[str, Any]:
    """What the import adds to that of transformers, and how long each script takes to explain itself."""
    base = "import transformers; from transformers import PreTrainedModel"
    codes = {"transformers": base, "ours": f"{base}; import lens_ssl_hf"}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(arguments.repeats):
        for name, code in codes.items():
            times[name].append(run_for(["-c", code]))
    added = statistics.median(ours - other for ours, other in zip(times["ours"], times["transformers"]))
    scripts = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if "parse(" in path.read_text())
    helps = {name: min(run_for([str(ROOT / "scripts" / name), "--help"]) for _ in range(3)) for name in scripts}
    print(f"    import: {added:+.2f} s; --help: {max(helps.values()):.2f} s at most")
    return {"import_seconds": times, "import_added_seconds": added, "help_seconds": helps}


def run_for(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


def run_worker(arguments: BenchmarkArguments, worker: str, processes: int = 1, **variables: str) -> dict[str, Any]:
    """One of `WORKERS` in processes of its own."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    options = ["--worker", worker, "--backbones", arguments.backbones[0], "--batch_size", arguments.batch_size]
    options += ["--num_local_views", arguments.num_local_views, "--seconds", arguments.seconds]
    command = [sys.executable, *launcher, __file__, *map(str, options)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])


def work_on_steps(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Images per second of all processes together, PINned to a core each."""
    import torch

    if os.environ.get("PIN"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ.get("LOCAL_RANK", "0"))]})
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        step = ours_in_order(our_step(arguments, "dino", arguments.backbones[0], Path(folder), precision="bf16"))
        step()
        seconds = min(timed(step, 3) for _ in range(3))
    return {"images_per_second": arguments.batch_size / seconds}


def work_on_memory(arguments: BenchmarkArguments) -> dict[str, Any]:
    import torch

    arguments.batch_size, arguments.num_local_views = 256, 4
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_step(arguments, "dino", "vitb8", Path(folder), precision="bf16")
        for step in range(2):
            trainer.step(step)
    if torch.cuda.is_available():
        return {"device": "cuda", "peak_bytes": torch.cuda.max_memory_allocated()}
    # Linux: getrusage's peak would be that of the parent where that is larger.
    status = Path("/proc/self/status").read_text()
    return {"device": "cpu", "peak_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024}


WORKERS = {"step": work_on_steps, "memory": work_on_memory}


# ---- clocks and tables -----------------------------------------------------------------------------

INFO = {
    "source": "folder",
    "name": "noise",
    "simulated": False,
    "bands": ["i", "r", "g"],
    "size": 64,
    "pixel_scale": None,
    "zero_point": None,
    "stretch": {"kind": "none"},
    "fingerprint": "noise",
}


def noise(size: int) -> Any:
    """Labelled cutouts of 64 pixels that hold noise."""
    import torch

    from lens_ssl_hf.data.tensors import CutoutTensors

    names = [str(number) for number in range(size)]
    generator = torch.Generator().manual_seed(0)
    pixels = 255 * torch.rand(size, 3, 64, 64, generator=generator)
    return CutoutTensors(pixels, torch.arange(size) % 2, names, names, names)


def interleaved(ways: dict[str, Callable[[], None]], arguments: BenchmarkArguments, images: int) -> dict[str, list]:
    """Images per second of every way, measured in turns."""
    counts = {}
    for name, way in ways.items():
        way()  # compiles, allocates, starts workers
        counts[name] = max(1, round(arguments.seconds / timed(way, 1)))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            rates[name].append(images / timed(way, counts[name]))
    return rates


def timed(way: Callable[[], Any], count: int) -> float:
    """Seconds of one call, the mean over `count`."""
    synchronise()
    start = time.perf_counter()
    for _ in range(count):
        way()
    synchronise()
    return (time.perf_counter() - start) / count


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Median, least and most of the rates, and the medians of ours / other in the same round."""
    result: dict[str, Any] = {
        "images_per_second": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in rates.items()
        }
    }
    result["ours_over"] = {
        name: statistics.median(ours / other for ours, other in zip(rates["ours"], rates[name]))
        for name in rates
        if name != "ours"
    }
    return result


def show(row: dict[str, Any]) -> None:
    print(f"    {row.get('method', 'classifier')} {row['backbone']} {row['precision']}")
    for name, rate in row["images_per_second"].items():
        ratio = row["ours_over"].get(name)
        print(f"        {name:30} {rate['median']:9.1f} images/s" + (f"   ours / this {ratio:.2f}" if ratio else ""))
    if "split" in row:
        total = sum(row["split"].values())
        print("        " + ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in row["split"].items()))
        print(f"        {row['model_flop_utilisation']:.0%} of what one large matrix product reaches")


def machine() -> dict[str, Any]:
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {**facts, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
