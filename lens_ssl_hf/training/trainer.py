"""
The one training loop: resume, step, log, evaluate, save, stop. What it trains is a [`Task`], of which there are two:
pretraining and fine-tuning.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.profiler import record_function
from tqdm.auto import tqdm

from ..data.samplers import ResidentImages, StreamedImages
from ..data.views import Counter
from ..errors import handling_stop_signals
from ..models.backbones import can_compile, compile_layers, use_fast_attention
from .accelerator import autocast, choose_precision
from .arguments import FinetuneArguments, PretrainArguments
from .checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from .faults import BuffersBefore, Faults, optimizer_step
from .interruption import StopRequest
from .monitors import Averages
from .progress import Forecast, progress_bar
from .run_directory import RunDirectory
from .step_graph import StepGraph

# Images of a run and process from which on compilation pays: on an H100 it takes 15 seconds and saves 20 microseconds
# an image.
COMPILED_FROM = 1_000_000
# Share of the time that saving may take, and parameters below which every checkpoint is saved. On a GPU, 50 steps of
# fine-tuning a ViT take less time than saving the weights, the optimizer and the best weights.
SAVING_SHARE, SMALL_MODEL = 0.1, 10_000_000
Batch = Mapping[str, torch.Tensor]
Number = float | torch.Tensor  # on a GPU a 0-dim tensor, which a graph can be given anew


class Task:
    """
    What is trained: a batch to a loss, the optimizer and its schedules, what follows a step, how the model is
    evaluated. What a faulty step must restore is the loop's business: weights, optimizer, buffers (centres, batch
    norm). A task skips no more than the weights that it moves itself in `after_step`.
    """

    name: str  # beside the progress bar
    arguments: PretrainArguments | FinetuneArguments  # the loop reads those that both have
    model: torch.nn.Module
    samples: ResidentImages | StreamedImages
    watched: tuple[str, ...] = ("loss",)  # outputs of `forward` whose means are logged
    best_by: str | None = None  # of what `evaluate` gives: the best checkpoint is kept beside the newest ones
    evaluates_first = False  # before the first step, too
    steps: int  # of the whole run
    section: int  # steps after which a line is logged in any case; the next two are multiples of it
    evaluate_every: int  # steps; 0 evaluates at the end alone
    save_every: int  # steps, at least; see `SAVING_SHARE`

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fused optimizer, which can skip a step on the device; the model is there already."""

    def schedule(self, step: int, groups: list[dict[str, Any]]) -> dict[str, float]:
        """Set the optimizer's groups for a step; returns the scheduled values, which are logged."""

    def phase(self, step: int) -> Hashable:
        """What a step does besides computing with other numbers: steps of one phase are the same computation."""

    def make_batch(self, images: torch.Tensor, indices: torch.Tensor, epoch: Counter) -> Batch:
        """Views of the `images` `(b, bands, H, W)` of one process, and what else `forward` needs."""

    def forward(self, model: torch.nn.Module, batch: Batch, scheduled: Mapping[str, Number]) -> Batch:
        """The `"loss"` and more, in autocast, of the `model` as it is wrapped for several processes."""

    def after_backward(self, phase: Hashable, output: Batch) -> None:
        """What comes before the gradients are clipped. It may change buffers: a faulty step restores them."""

    def after_step(self, scheduled: Mapping[str, Number], skip: torch.Tensor) -> None:
        """What follows the optimizer, unless `skip`, a bool on the device."""

    def epoch(self, done: int) -> float:
        """The epoch that is logged after so many steps."""

    def evaluate(self, done: int) -> dict[str, float]:
        """What is logged of an evaluation; every process calls it."""

    def warning(self, done: int, means: dict[str, float]) -> str | None:
        """What is logged of `means` that bode ill; raises where the training must end."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights and optimizer: JSON-able values, and tensors."""
        return {}

    def restore(self, extra: dict[str, Any]) -> None:
        """Take [`state`] up again."""

    def finish(self) -> dict[str, Any]:
        """Make the model what is to be saved; returns facts for run.json. Raises where it is of no use."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the model into an empty folder."""


def train(task: Task, facts: dict[str, Any], accelerator: Accelerator, trained_on: np.ndarray | None = None) -> Path:
    """
    Train in the run directory that the arguments name, unless the run there is finished. Every process calls it.

    Args:
        facts (`dict`): of the task, for run.json; what all trainings have is added.
        trained_on (`np.ndarray`, *optional*): the [`pixel_hashes`] of cutouts whose labels the model will have seen.

    Raises:
        [`InputError`]: the directory holds another run, or the training fails.
    """
    arguments = task.arguments
    facts |= {"arguments": dataclasses.asdict(arguments), "crop_size": arguments.crop_size, "seed": arguments.seed}
    facts |= {"num_processes": accelerator.num_processes, "device": accelerator.device.type}
    facts |= {name: task.model.config.cutouts[name] for name in ("image_mean", "image_std")}
    facts |= {"samples": task.samples.digest, "precision": choose_precision(accelerator, arguments.precision)}
    with RunDirectory(arguments.output_dir, arguments.resume, accelerator.is_main_process, arguments.report_to) as run:
        accelerator.wait_for_everyone()
        run.check_same(facts)
        if run.is_finished:
            accelerator.print(f"{run.path} is finished already")
            return run.path
        run.write_facts(facts)
        if trained_on is not None:
            run.write_trained_on(trained_on)
        outcome = Trainer(task, accelerator, run).loop()
        if accelerator.is_main_process:
            run.save_model(task.model, task.save)
        run.add_facts(outcome)
        accelerator.wait_for_everyone()
        return run.path


class Trainer:
    """One run of the loop. The parts of a step carry names for the profiler: views, forward, backward, optimizer."""

    def __init__(self, task: Task, accelerator: Accelerator, run: RunDirectory):
        self.task, self.accelerator, self.run = task, accelerator, run
        self.averages, self.faults = Averages(), Faults(accelerator.device)

    def loop(self) -> dict[str, Any]:
        """Train to the end; returns what came of it, the number of skipped steps and the seconds that it took."""
        task, accelerator, run = self.task, self.accelerator, self.run
        first_step = self.begin()
        stop, shown = StopRequest(), {}
        bar = progress_bar(accelerator, task.name, first_step, task.steps)
        with handling_stop_signals(stop.note), bar:
            forecast = Forecast(accelerator, bar, task.steps)
            for step in range(first_step, task.steps):
                scheduled = self.step(step)
                done, found = step + 1, {}
                bar.update()
                logs = self._is_due(done, task.arguments.log_every) or self._is_due(done, task.section)
                if logs:
                    shown |= self._log(done, scheduled, bar)
                    forecast.update(done)
                    run.log_time(done, {"seconds": time.perf_counter() - self.start})
                if self._is_due(done, task.evaluate_every):
                    found = self._evaluate(done)
                    shown |= found
                bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if k == "loss" or "auc" in k}, refresh=False)
                stops = stop.seen_by_any(accelerator, logs)
                if (self._is_to_save(done, found.get(task.best_by)) or stops) and accelerator.is_main_process:
                    self._save(done, found.get(task.best_by))
                if stops and done < task.steps:
                    raise stop.interruption(accelerator, done, task.steps, run.path)
        skipped = self.faults.finish(task.steps)
        with torch.compiler.set_stance("force_eager"):
            outcome = task.finish()
        return {**outcome, "skipped_steps": skipped, "seconds": round(time.perf_counter() - self.start, 1)}

    def begin(self) -> int:
        """Make the optimizer, and take up the newest checkpoint; returns the steps done."""
        task, accelerator, run = self.task, self.accelerator, self.run
        use_fast_attention(task.model.to(accelerator.device).train())
        is_long = task.steps * task.arguments.batch_size >= COMPILED_FROM * accelerator.num_processes
        # Compilation chooses kernels by their speed, not the same ones each time.
        if is_long and not task.arguments.deterministic and can_compile(accelerator.device):
            compile_layers(task.model)
        newest = newest_checkpoint(run.checkpoints, accelerator, run.facts["run_id"])
        self.wrapped, self.optimizer = accelerator.prepare(task.model, task.make_optimizer())
        self.train_on: Callable[..., None] = self._train_on
        if accelerator.device.type == "cuda" and accelerator.num_processes == 1:
            self.train_on = StepGraph(self._train_on, self.optimizer.param_groups, accelerator.device)
        self.trainable = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        done, seconds = 0, 0.0
        if newest is None:
            run.forget_after(-1)
            if task.evaluates_first:
                self._evaluate(0)
        else:
            done, extra = load_checkpoint(newest, task.model, self.optimizer.optimizer)
            seconds, self.faults = extra["seconds"], Faults(accelerator.device, **extra["faults"])
            self.averages.restore(extra, accelerator.device)
            task.restore(extra)
            run.forget_after(done)
            accelerator.print(f"resuming from {newest}")
        self.start = time.perf_counter() - seconds
        self.saved_at, self.saving_takes = time.perf_counter(), 0.0
        return done

    def step(self, step: int) -> dict[str, float]:
        """
        One optimizer step on one global batch, or none where it is faulty; returns the scheduled values. Nothing here
        waits for the device.
        """
        task, accelerator = self.task, self.accelerator
        scheduled = task.schedule(step, self.optimizer.param_groups)
        images, indices, epoch = task.samples.batch(step, accelerator.process_index, accelerator.num_processes)
        self.train_on(images, indices, {"step": step, "epoch": epoch, **scheduled}, task.phase(step))
        return scheduled

    def _train_on(
        self, images: torch.Tensor, indices: torch.Tensor, numbers: Mapping[str, Number], phase: Hashable
    ) -> None:
        """The computation of a step. What it changes it changes in place: a graph replays it."""
        task, accelerator = self.task, self.accelerator
        before = BuffersBefore(task.model)
        with record_function("views"):
            batch = task.make_batch(images, indices, numbers["epoch"])
        with record_function("forward"), autocast(accelerator.device, self.run.facts["precision"]):
            output = task.forward(self.wrapped, batch, numbers)
        with record_function("backward"):
            accelerator.backward(output["loss"])
        with record_function("optimizer"):
            task.after_backward(phase, output)
            gradient_norm = accelerator.clip_grad_norm_(self.trainable, task.arguments.clip_grad_norm or math.inf)
            fault = self.faults.note(accelerator, numbers["step"], output["loss"], gradient_norm, before)
            optimizer_step(self.optimizer, fault, before)
            task.after_step(numbers, fault)
        watched = {name: output[name] for name in task.watched if name in output}
        self.averages.add({**watched, "gradient_norm": gradient_norm}, fault)

    def _is_due(self, done: int, every: int) -> bool:
        """Whether it is the turn of what is done every so many steps (0 for never), and at the end."""
        return done == self.task.steps or (every > 0 and done % every == 0)

    def _log(self, done: int, scheduled: dict[str, float], bar: tqdm) -> dict[str, float]:
        """Log the means since the last line, and return them; too many faults in a row end the run."""
        means = self.averages.pop(self.accelerator)
        skipped = self.faults.check(self.task.samples.ids)
        self.run.log(done, {"epoch": self.task.epoch(done), **means, **scheduled, "skipped": skipped})
        warning = self.task.warning(done, means) if means else None  # all steps were skipped where there are none
        if warning:
            self.run.log(done, {"warning": warning})
            bar.write(f"warning: {warning}")
        return means

    def _evaluate(self, done: int) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):  # other shapes, in which few steps are done
            found = self.task.evaluate(done)
        self.run.log(done, {"epoch": self.task.epoch(done), **found})
        return found

    def _is_to_save(self, done: int, score: float | None) -> bool:
        """Whether a checkpoint is due, and is one with a score or does not come too soon after the last one."""
        if not self._is_due(done, self.task.save_every):
            return False
        is_small = sum(parameter.numel() for parameter in self.task.model.parameters()) < SMALL_MODEL
        is_late = time.perf_counter() - self.saved_at >= self.saving_takes / SAVING_SHARE
        return score is not None or is_late or is_small

    def _save(self, done: int, score: float | None) -> None:
        begun = time.perf_counter()
        extra = {"seconds": time.perf_counter() - self.start, "faults": self.faults.counts()}
        extra |= {**self.averages.state(), **self.task.state()}
        run, optimizer = self.run, self.optimizer.optimizer
        save_checkpoint(run.checkpoints, done, self.task.model, optimizer, extra, score, run.facts["run_id"])
        self.saved_at = time.perf_counter()
        self.saving_takes = self.saved_at - begun
