"""
The one training loop: resume, step, log, evaluate, save, stop. What it trains is a [`Task`], of which there are two:
pretraining and fine-tuning.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.profiler import record_function
from tqdm.auto import tqdm

from ..data.batches import ResidentImages, StreamedImages
from ..models.backbones import use_fast_attention
from .accelerator import autocast, choose_precision
from .arguments import FinetuneArguments, PretrainArguments
from .averages import Averages
from .checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from .faults import BuffersBefore, Faults, optimizer_step
from .interruption import StopRequest
from .progress import Forecast, progress_bar
from .run_directory import RunDirectory


class Task:
    """
    What is trained: from a batch to a loss, the optimizer and its schedules, what follows a step, how the model is
    evaluated. A faulty step is none of its business, but for weights that it moves itself in `after_step`.

    Attributes:
        name (`str`): beside the progress bar.
        watched (`tuple[str, ...]`): the outputs of `forward` whose means are logged, where they are there.
        best_by (`str` or `None`): what `evaluate` gives of which the best checkpoint is kept beside the newest.
        evaluates_first (`bool`): evaluate before the first step, too.
        arguments: the settings, of which the loop reads those that both tasks have.
        model (`torch.nn.Module`), samples: what is trained, and the batch of each step.
        steps (`int`): of the whole run.
        section, evaluate_every, save_every (`int`):
            Steps between lines of the log that come whatever `log_every` is, between evaluations (0 for none but the
            last) and between checkpoints; the latter two are multiples of the first.
    """

    name: str
    watched: tuple[str, ...] = ("loss",)
    best_by: str | None = None
    evaluates_first = False
    arguments: PretrainArguments | FinetuneArguments
    model: torch.nn.Module
    samples: ResidentImages | StreamedImages
    steps: int
    section: int
    evaluate_every: int
    save_every: int

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fused optimizer, which can skip a step without the host, of the model on its device."""
        raise NotImplementedError

    def schedule(self, step: int, groups: list[dict[str, Any]]) -> dict[str, float]:
        """Set the optimizer's `groups` for a step; returns the scheduled values, which are logged."""
        raise NotImplementedError

    def make_batch(self, images: torch.Tensor, indices: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        """What `forward` takes, made of the `images` `(b, bands, H, W)` of one process and their `indices` `(b,)`."""
        raise NotImplementedError

    def forward(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], scheduled: dict[str, float]
    ) -> Mapping[str, torch.Tensor]:
        """The `"loss"` and other outputs of the `model`, which is wrapped for several processes; in autocast."""
        raise NotImplementedError

    def after_backward(self, step: int, output: Mapping[str, torch.Tensor]) -> None:
        """What comes before the gradients are clipped."""

    def after_step(self, scheduled: dict[str, float], skip: torch.Tensor) -> None:
        """What follows the optimizer, unless `skip`, a bool on the device. Buffers are restored by the loop."""

    def epoch(self, done: int) -> float:
        """The epoch of the log lines after so many steps."""
        raise NotImplementedError

    def evaluate(self, done: int) -> dict[str, float]:
        """What is logged of an evaluation; every process calls it."""
        raise NotImplementedError

    def warning(self, done: int, means: dict[str, float]) -> str | None:
        """A sentence for the log where the `means` of the steps since the last line bode ill; raises if they must."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights and optimizer: JSON-able values, and tensors."""
        return {}

    def restore(self, extra: dict[str, Any]) -> None:
        """Take [`state`] out of what a checkpoint holds."""

    def finish(self) -> dict[str, Any]:
        """Make the model what is to be saved; returns facts for run.json. Raises where it is of no use."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the model into an empty folder."""
        raise NotImplementedError


def train(task: Task, facts: dict[str, Any], accelerator: Accelerator) -> Path:
    """
    Train in the run directory that the task's arguments name, unless the run there is finished. Every process calls it.

    Args:
        facts (`dict`): of the task, for run.json; what all trainings have is added.

    Raises:
        [`InputError`]: the directory holds another run, or the training fails.
    """
    arguments = task.arguments
    facts |= {"arguments": dataclasses.asdict(arguments), "crop_size": arguments.crop_size, "seed": arguments.seed}
    facts |= {"num_processes": accelerator.num_processes, "device": accelerator.device.type}
    facts |= {"samples": task.samples.digest, "precision": choose_precision(accelerator, arguments.precision)}
    with RunDirectory(arguments.output_dir, arguments.resume, accelerator.is_main_process, arguments.report_to) as run:
        accelerator.wait_for_everyone()
        run.check_same(facts)
        if run.is_finished:
            accelerator.print(f"{run.path} is finished already")
            return run.path
        run.write_facts(facts)
        outcome = Trainer(task, accelerator, run).train()
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

    def train(self) -> dict[str, Any]:
        """Train to the end; returns what came of it, the number of skipped steps and the seconds that it took."""
        task, accelerator, run = self.task, self.accelerator, self.run
        first_step = self.begin()
        with StopRequest() as stop, progress_bar(accelerator, task.name, first_step, task.steps) as bar:
            forecast, shown = Forecast(accelerator, bar, task.steps), {}
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
                if self._is_due(done, task.save_every) or stops:
                    self._save(done, found.get(task.best_by))
                if stops and done < task.steps:
                    raise stop.interruption(accelerator, done, task.steps, run.path)
        skipped = self.faults.finish(task.steps)
        outcome = task.finish()
        return {**outcome, "skipped_steps": skipped, "seconds": round(time.perf_counter() - self.start, 1)}

    def begin(self) -> int:
        """Make the optimizer, and take up the newest checkpoint; returns the steps done."""
        task, accelerator, run = self.task, self.accelerator, self.run
        use_fast_attention(task.model.to(accelerator.device).train())
        newest = newest_checkpoint(run.checkpoints, accelerator, run.facts["run_id"])
        self.wrapped, self.optimizer = accelerator.prepare(task.model, task.make_optimizer())
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
        return done

    def step(self, step: int) -> dict[str, float]:
        """
        One optimizer step on one global batch, or none where it is faulty; returns the scheduled values. Nothing here
        waits for the device.
        """
        task, accelerator = self.task, self.accelerator
        scheduled = task.schedule(step, self.optimizer.param_groups)
        before = BuffersBefore(task.model)
        images, indices, epoch = task.samples.batch(step, accelerator.process_index, accelerator.num_processes)
        with record_function("views"):
            batch = task.make_batch(images, indices, epoch)
        with record_function("forward"), autocast(accelerator.device, self.run.facts["precision"]):
            output = task.forward(self.wrapped, batch, scheduled)
        with record_function("backward"):
            accelerator.backward(output["loss"])
        with record_function("optimizer"):
            task.after_backward(step, output)
            gradient_norm = accelerator.clip_grad_norm_(self.trainable, task.arguments.clip_grad_norm or math.inf)
            fault = self.faults.note(accelerator, step, output["loss"], gradient_norm, before)
            optimizer_step(self.optimizer, fault, before)
            task.after_step(scheduled, fault)
        watched = {name: output[name] for name in task.watched if name in output}
        self.averages.add({**watched, "gradient_norm": gradient_norm}, fault)
        return scheduled

    def _is_due(self, done: int, every: int) -> bool:
        """Whether it is the turn of what is done every so many steps (0 for never), and at the end."""
        return done == self.task.steps or (every > 0 and done % every == 0)

    def _log(self, done: int, scheduled: dict[str, float], bar: tqdm) -> dict[str, float]:
        """Log the means since the last line, and return them; too many faults in a row, or a warning, may end the run."""
        means = self.averages.pop(self.accelerator)
        skipped = self.faults.check(self.task.samples.ids)
        self.run.log(done, {"epoch": self.task.epoch(done), **means, **scheduled, "skipped": skipped})
        warning = self.task.warning(done, means) if means else None  # all steps were skipped where there are none
        if warning:
            self.run.log(done, {"warning": warning})
            bar.write(f"warning: {warning}")
        return means

    def _evaluate(self, done: int) -> dict[str, float]:
        found = self.task.evaluate(done)
        self.run.log(done, {"epoch": self.task.epoch(done), **found})
        return found

    def _save(self, done: int, score: float | None) -> None:
        if not self.accelerator.is_main_process:
            return
        extra = {"seconds": time.perf_counter() - self.start, "faults": self.faults.counts()}
        extra |= {**self.averages.state(), **self.task.state()}
        run, optimizer = self.run, self.optimizer.optimizer
        save_checkpoint(run.checkpoints, done, self.task.model, optimizer, extra, score, run.facts["run_id"])
