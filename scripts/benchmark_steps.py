"""
What benchmarks time: a step of ours, the way that is usual, and the floor under both, forward and backward alone.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

LOCAL = {"local_size": 16, "local_scale_min": 0.05, "local_scale_max": 0.4}  # of all sides, whatever a recipe says


def our_step(
    method: str, backbone: str, folder: Path, batch_size: int, num_local_views: int = 8, **settings: Any
) -> Any:
    """The `Trainer` of a pretraining of ours that has begun, on noise."""
    from lens_ssl_hf.training import pretrain as module
    from lens_ssl_hf.training.accelerator import choose_precision, make_accelerator
    from lens_ssl_hf.training.arguments import PretrainArguments, recipe
    from lens_ssl_hf.training.run_directory import RunDirectory
    from lens_ssl_hf.training.trainer import Trainer

    settings = {"num_local_views": num_local_views, "batch_size": batch_size, **LOCAL, **settings}
    settings = {**recipe(method), "method": method, "backbone": backbone, "epochs": 10**6, "eval_every": 0, **settings}
    ours = PretrainArguments(**settings, output_dir=str(folder))
    accelerator = make_accelerator(ours.precision, deterministic=False)
    tensors = ({"train": noise(2 * batch_size)}, INFO)
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

    def __init__(self, method: str, backbone: str, batch_size: int, num_local_views: int, precision: str, fused: bool):
        import torch
        from torch.utils.data import DataLoader

        from lens_ssl_hf.models import METHODS, backbone_config

        self.method, self.precision = method, precision
        self.device = device()
        model_class = METHODS[method]
        self.model = model_class(model_class.config_class(backbone_config=backbone_config(backbone))).to(self.device)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, fused=fused or None)
        views = PILViews(noise(2 * batch_size).pixels, 0 if method == "simsiam" else num_local_views)
        loader = DataLoader(
            views,
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=os.cpu_count(),
            persistent_workers=True,
            pin_memory=self.device.type != "cpu",
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
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
    """A torch dataset whose samples are views made by Pillow: crop, flip, rotation, jitter, blur."""

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

    size = 8192 if device().type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    seconds = min(timed(lambda: left @ right, 10) for _ in range(5))
    return 2 * size**3 / seconds


# ---- cutouts and clocks ------------------------------------------------------------------------------

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


def device() -> Any:
    """The `torch.device` that is measured: the GPU where there is one."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


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


def machine() -> dict[str, Any]:
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {**facts, "threads": torch.get_num_threads()}
