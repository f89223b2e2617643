"""Scoring through DataTrove: the rows are those of one process, and the shards alone tell what is done."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, score
from lens_ssl_hf.commands import score as command
from lens_ssl_hf.survey.executors import ScoreTask, score_with

pytest.importorskip("datatrove")
COUNT = 60
OPTIONS = {"shard_size": 10, "embeddings": True}


@pytest.fixture(autouse=True)
def survey(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    write_classifier_run(Path("run"))
    write_shards(COUNT)


def write_shards(count):
    pixels = np.random.default_rng(0).uniform(0, 255, (count, 3, 40, 40)).astype("float32")
    Path("shards").mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"id": range(count), "pixels": pixels.tolist()}), "shards/0.parquet")


def shards(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("scores-*")}


def command_line(*words):
    options = "--model run --input shards --output scores --shard_size 10 --embeddings".split()
    return [sys.executable, "-m", "lens_ssl_hf", "score", *options, *words]


def test_a_shard_that_was_removed_is_made_again_whatever_datatrove_remembers():
    score("run", "shards", "whole", **OPTIONS)
    assert score_with("local", "run", "shards", "scores", tasks=3, workers=1, **OPTIONS)["counts"]["scored"] == COUNT
    assert len(list(Path("scores/logs/completions").iterdir())) == 3
    Path("scores/scores-00004-of-00006.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in Path("scores").glob("scores-*")}
    assert score_with("local", "run", "shards", "scores", tasks=2, workers=1, **OPTIONS)["counts"]["scored"] == COUNT
    assert shards("scores") == shards("whole") and len(kept) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.parametrize(
    ("words", "missing", "match"),
    [
        (
            "--executor local",
            "datatrove",
            r"needs datatrove, which is not installed: pip install 'lens-ssl-hf\[survey",
        ),
        ("--executor ray", "ray", "needs ray, which is not installed: pip install ray"),
        ("--executor slurm --slurm_options partition=main", None, "Slurm needs a partition and a time limit"),
        ("--executor slurm --slurm_options partition=a time=1 mem=32G", None, "no mem beside .* give mem-per-cpu=4G"),
        ("--executor slurm --slurm_options partition=a time=1 mem-per-gpu=9G", None, "no mem-per-gpu .* mem-per-cpu"),
        ("--executor local --slurm_options time=1", None, "slurm_options has no meaning for the executor local"),
        ("--executor local --workers 0", None, "workers is 0: give at least 1"),
        ("--executor local --tasks 2 --task 1", None, "the executor runs every task: leave task out"),
        ("--executor local --views 3", None, "views is 3: choose 1 or 8"),
        ("--workers 2", None, "workers has no meaning without executor"),
    ],
)
def test_what_cannot_be_run_ends_in_one_sentence(words, missing, match, monkeypatch, capsys):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", command_line(*words.split())[3:])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and not Path("scores").exists()
    with pytest.raises(InputError, match=match):
        raise InputError(capsys.readouterr().err.strip().splitlines()[-1])


def test_slurm_is_asked_for_the_memory_that_is_given(monkeypatch):
    """By the script that sbatch gets; the last job, which sums up statistics, has its own."""
    Path("bin").mkdir()
    Path("bin/sbatch").write_text('#!/bin/sh\nfor last; do :; done\ncat "$last" >> asked\necho Submitted 1\n')
    Path("bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    options = {"partition": "main", "time": "10"}
    for given, memory in ({}, "2G"), ({"mem-per-cpu": "4G"}, "4G"):
        score_with("slurm", "run", "shards", "scores", slurm_options=options | given, **OPTIONS)
        lines = Path("asked").read_text().splitlines()
        assert [line for line in lines if "mem" in line] == [f"#SBATCH --mem-per-cpu={one}" for one in (memory, "1G")]
        Path("asked").unlink()


def test_logs_that_cannot_be_written_end_in_one_sentence():
    Path("scores/logs").mkdir(parents=True)
    Path("scores/logs/executor.json").mkdir()
    with pytest.raises(InputError, match=r"cannot write scores/logs \(Is a directory\): choose a writable place"):
        score_with("local", "run", "shards", "scores", tasks=2, workers=1, **OPTIONS)
    Path("scores/logs/executor.json").rmdir()
    assert score_with("local", "run", "shards", "scores", tasks=2, workers=1, **OPTIONS)["counts"]["scored"] == COUNT


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is not here tells which one was chosen")
@pytest.mark.parametrize(("seen", "rank", "chosen"), [(4, 6, "cuda:2"), (1, 6, "cuda:0"), (0, 6, "nonsense")])
def test_a_task_takes_the_gpu_of_its_number_among_those_it_sees(seen, rank, chosen, monkeypatch):
    """On a machine of four; where Slurm or Ray shows it one; and where the user names a device."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    named = {} if seen else {"device": "nonsense"}
    step = ScoreTask({"model": "run", "cutouts": "shards", "output": "scores", "shard_size": 1, **named}, os.getcwd())
    with pytest.raises(InputError, match=rf"device is {chosen}\b"):
        step(None, rank, world_size=8)


@pytest.mark.slow
def test_two_workers_give_the_rows_of_one_process_to_the_bit():
    score("run", "shards", "whole", **OPTIONS)
    words = command_line("--executor", "local", "--tasks", "4", "--workers", "2")
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert f"{COUNT} of {COUNT} cutouts scored" in done.stdout
    assert shards("scores") == shards("whole")
    assert Path("scores/logs/logs/task_00003.log").is_file()


def begun():
    """A command with two workers that has written a shard: its words, its process, and the workers."""
    write_shards(1200)
    words = command_line("--executor", "local", "--tasks", "8", "--workers", "2")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(Path("scores").glob("scores-*")):
        assert process.poll() is None
        time.sleep(0.02)
    server = next(one for one in psutil.Process(process.pid).children() if "forkserver" in " ".join(one.cmdline()))
    return words, process, server.children()


@pytest.mark.slow
def test_workers_end_with_a_command_that_is_killed():
    _, process, workers = begun()
    begotten = psutil.Process(process.pid).children(recursive=True)  # also a manager, which holds the terminal
    process.kill()  # a zombie until the last line
    _, alive = psutil.wait_procs(begotten, timeout=20)
    assert set(workers) < set(begotten) and not alive
    process.communicate(timeout=20)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_goes_on():
    words, process, workers = begun()
    workers[0].send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and "error: a process of the executor was killed" in error
    assert 0 < len(shards("scores")) < 120
    subprocess.run(words, check=True, capture_output=True)
    score("run", "shards", "whole", **OPTIONS)
    assert shards("scores") == shards("whole")


@pytest.fixture
def partition():
    """A partition of the Slurm that is running here."""
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch: install Slurm")
    found = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, timeout=60)
    if found.returncode:
        pytest.skip("no Slurm controller answers: start slurmctld and slurmd, and set SLURM_CONF")
    return found.stdout.split()[0].strip("*")


@pytest.mark.slow
def test_slurm_goes_on_after_a_task_was_killed(partition):
    write_shards(1200)
    score("run", "shards", "whole", **OPTIONS)
    words = command_line("--executor", "slurm", "--tasks", "4", "--slurm_options", f"partition={partition}", "time=10")
    submit(words)
    wait_for_a_shard()
    tasks = [one for one in psutil.process_iter() if is_task(one)]
    tasks[0].send_signal(signal.SIGKILL)
    wait_for_jobs()
    assert 0 < len(shards("scores")) < 120
    submit(words)
    wait_for_jobs()
    assert shards("scores") == shards("whole")
    assert "1200 of 1200 cutouts scored" in submit(words)


@pytest.mark.slow
def test_slurm_puts_a_task_back_into_the_queue_when_its_time_is_nearly_up(partition):
    """The signal is sent by scancel, to whom `signal=USR1@120` has it sent, so that no minutes are waited for."""
    write_shards(1200)
    score("run", "shards", "whole", **OPTIONS)
    options = ("--slurm_options", f"partition={partition}", "time=10", "signal=USR1@120")
    submit(command_line("--executor", "slurm", *options))
    wait_for_a_shard()
    job = subprocess.check_output(["squeue", "-h", "-n", "lens-ssl-score", "-t", "R", "-o", "%A"], text=True).strip()
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    while "Restarts=1" not in subprocess.check_output(["scontrol", "show", "job", job], text=True):
        time.sleep(0.5)
    kept = shards("scores")
    assert 0 < len(kept) < 120
    wait_for_jobs()  # Slurm lets a task wait for up to two minutes before it starts again
    assert shards("scores") == shards("whole") and kept.items() <= shards("scores").items()


def submit(words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def wait_for_a_shard():
    while not list(Path("scores").glob("scores-*")):
        time.sleep(0.1)


def is_task(process):
    try:
        return process.name().startswith("launch_pickled") and os.getcwd() == process.cwd()
    except psutil.Error:
        return False


def wait_for_jobs():
    end = time.monotonic() + 300
    while subprocess.check_output(["squeue", "-h", "-n", "lens-ssl-score"], text=True):
        assert time.monotonic() < end
        time.sleep(1)
