"""Score a survey with many processes, on one machine or many, through the executors of DataTrove."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
import transformers

from ..errors import InputError, check_at_least
from ..files import cannot_write, write_text
from ..processes import CHECK_EVERY, leave_with
from . import manifest as manifests
from .score import is_done, score, shards_of, with_counts

LOGS = "logs"  # in the folder of the scores
PACKAGES = {"local": ["datatrove"], "slurm": ["datatrove"], "ray": ["datatrove", "ray"]}  # that executors need


@dataclass(frozen=True)
class ScoreTask:
    """
    The one step of a DataTrove pipeline: [`score`] of the shards of a task.

    Args:
        arguments (`dict`): of [`score`].
        folder (`str`): the working directory, where relative paths begin.
        threads (`int`, *optional*): of torch, where other tasks share the machine and the terminal.
        main_process (`int`): the one that makes this; tasks that share the machine with others end with it.
    """

    arguments: dict[str, Any]
    folder: str
    threads: int | None = None
    main_process: int = field(default_factory=os.getpid)

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        os.chdir(self.folder)
        if self.threads:
            leave_with(self.main_process)  # a pool's workers would go on, beside those of the next command
            torch.set_num_threads(self.threads)
            datasets.disable_progress_bars()
            transformers.utils.logging.disable_progress_bar()
        gpus = torch.cuda.device_count()
        device = self.arguments.get("device") or (f"cuda:{rank % gpus}" if gpus else None)
        score(**self.arguments | {"device": device}, tasks=world_size, task=rank)


def score_with(
    executor: str,
    model: Any,
    cutouts: str | os.PathLike,
    output: str | os.PathLike,
    tasks: int = 1,
    workers: int | None = None,
    slurm_options: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    [`score`] as tasks that DataTrove runs. The same call again does what is left, by the shards that are there. A
    program that calls this needs `if __name__ == "__main__"`, since its processes import it.

    Args:
        executor (`str`): `local`, `slurm` or `ray`.
        model, cutouts, output, options: as [`score`] has them.
        tasks (`int`, *optional*, defaults to `1`): task i scores the shards whose number modulo `tasks` is i.
        workers (`int`, *optional*):
            Tasks that run at once; by default all, but of the local executor one per GPU, or per core without GPUs.
        slurm_options (`Mapping[str, str]`, *optional*):
            Options of sbatch; `partition` and `time` are needed. Memory is given as `mem-per-cpu`.

    Returns:
        `dict`: the manifest; once all shards are done with `counts`. Slurm's tasks are submitted, not awaited.

    Raises:
        [`InputError`]: what [`score`] refuses, before any task runs; a package or sbatch is missing or refuses; a full
            disk.
    """
    slurm_options = dict(slurm_options or {})
    _check(executor, workers, slurm_options)
    output = Path(output)
    arguments = {"model": model, "cutouts": cutouts, "output": output, **options}
    manifest = score(**arguments, tasks=tasks, task=None)
    if "counts" in manifest:
        return manifest
    key, paths = manifests.key_of(manifest), manifests.shard_paths(output, manifest)
    _mark_done(output / LOGS / "completions", [is_done(path, key) for path in paths], tasks)
    threads = None
    if executor == "local":
        cores = len(os.sched_getaffinity(0))
        workers = min(workers or torch.cuda.device_count() or cores, tasks)
        if workers > 1:
            threads = min(torch.get_num_threads(), max(1, cores // workers))
            arguments["num_proc"] = options.get("num_proc") or max(1, cores // workers)
    step = ScoreTask(arguments, os.getcwd(), threads)
    # Absolute, since fsspec keeps the folder that a relative path once stood for.
    common = {
        "pipeline": [step],
        "tasks": tasks,
        "workers": workers or -1,
        "logging_dir": str((output / LOGS).absolute()),
    }
    try:
        _run(executor, common, slurm_options)
    except OSError as error:  # of DataTrove's own logs
        raise cannot_write(output / LOGS, error) from error
    return with_counts(output, manifest, key, paths)


def _check(executor: str, workers: int | None, slurm_options: Mapping[str, str]) -> None:
    if executor not in PACKAGES:
        raise InputError(f"executor is {executor}: choose from {', '.join(PACKAGES)}")
    for package in PACKAGES[executor]:
        if find_spec(package) is None:
            extra = "'lens-ssl-hf[survey]'" if package == "datatrove" else package
            raise InputError(f"the executor {executor} needs {package}, which is not installed: pip install {extra}")
    check_at_least(1, workers=workers)
    if executor != "slurm" and slurm_options:
        raise InputError(f"slurm_options has no meaning for the executor {executor}: leave it out")
    if executor == "slurm" and not {"partition", "time"} <= set(slurm_options):
        raise InputError("Slurm needs a partition and a time limit: add slurm_options partition=... time=...")
    if refused := {"mem", "mem-per-gpu"} & set(slurm_options):
        raise InputError(
            f"sbatch takes no {min(refused)} beside the memory per core, which DataTrove always asks for: give "
            "mem-per-cpu=4G or so in slurm_options instead"
        )


def _mark_done(marks: Path, done: list[bool], tasks: int) -> None:
    """
    Make DataTrove's marks agree with the shards: its own would skip a task whose shard was removed since, or that had
    other shards when there were fewer tasks.
    """
    shutil.rmtree(marks, ignore_errors=True)
    for task in range(tasks):
        if all(done[i] for i in shards_of(task, tasks, len(done))):
            write_text(marks / f"{task:05d}", "")


def _run(executor: str, common: dict[str, Any], slurm_options: dict[str, str]) -> None:
    """Run the tasks that are not marked as done, or submit them."""
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

    if executor == "local":
        from multiprocess.util import register_after_fork

        step = common["pipeline"][0]
        register_after_fork(step, lambda step: leave_with(step.main_process))  # DataTrove's manager, which is a fork
        with _noticing_killed(common["workers"]):
            LocalPipelineExecutor(**common).run()
    elif executor == "ray":
        import ray

        ray.init(ignore_reinit_error=True)
        RayPipelineExecutor(**common, gpus_per_task=int(ray.cluster_resources().get("GPU", 0) > 0)).run()
    else:
        named = {name: slurm_options.pop(name, None) for name in ("partition", "time", "qos")}
        cpus = slurm_options.pop("cpus-per-task", "1")
        named |= {"cpus_per_task": cpus, "srun_args": {"cpus-per-task": cpus}}  # srun does not ask sbatch for it
        # DataTrove's last job, which sums up its statistics, must not wait for ever for a task that failed.
        sbatch_args = {"kill-on-invalid-dep": "yes", **slurm_options}
        environment = f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"'
        try:
            SlurmPipelineExecutor(
                **common, **named, job_name="lens-ssl-score", env_command=environment, sbatch_args=sbatch_args
            ).run()
        except FileNotFoundError as error:
            raise InputError("there is no sbatch here: give the command on a machine that submits jobs") from error
        except subprocess.CalledProcessError as error:
            raise InputError("sbatch refuses the job, as it says above: change slurm_options") from error


@contextlib.contextmanager
def _noticing_killed(workers: int) -> Iterator[None]:
    """
    Raises:
        [`InputError`]: a worker was killed. Its pool only replaces it, and would wait for its task for ever.
    """
    from multiprocess import active_children

    def fail(number: int, frame: object) -> NoReturn:
        raise InputError(
            "a process of the executor was killed (too little memory?): give the command again, with fewer workers"
        )

    def watch() -> None:
        seen: set[int] = set()
        while not ended.wait(CHECK_EVERY):
            seen |= {one.pid for one in active_children() if "PoolWorker" in one.name}
            if len(seen) > workers:  # one was replaced
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                return

    ended, thread = threading.Event(), threading.Thread(target=watch, daemon=True)
    before = signal.signal(signal.SIGUSR1, fail)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
