"""Trainings that are killed, stopped, poisoned or out of disk lose nothing and end as if nothing had happened."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import STRETCH, save_toy
from safetensors.torch import load_file
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, evaluate_model, export, finetune, load_cutouts, predict, pretrain
from lens_ssl_hf.data.pool import map_chunks
from lens_ssl_hf.data.samplers import epoch_order
from lens_ssl_hf.data.simulation import SimulationConfig, simulate_cutouts
from lens_ssl_hf.data.views import Views
from lens_ssl_hf.errors import handling_stop_signals, interrupted_later
from lens_ssl_hf.hub.card import CardFacts, render_card
from lens_ssl_hf.training.faults import BuffersBefore, Faults
from lens_ssl_hf.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
SSL = {
    "backbone": "vitt8",
    "precision": "fp32",
    "batch_size": 32,
    "epochs": 4,
    "warmup_fraction": 0.1,
    "log_every": 2,
    "checkpoint_every": 1,
    "eval_every": 2,
    "num_local_views": 1,
    "num_prototypes": 64,
    "head_hidden_size": 32,
}
NOT_CLIPPED = {"stretch": {**STRETCH, "kind": "linear"}}  # whose pixels may have any value
LABELS = {"backbone": "vitt8", "precision": "fp32", "steps": 12, "eval_every": 3, "log_every": 2, "batch_size": 32}
# A process that kills itself, as SIGKILL from outside would, when it comes to a step or to the renaming of a file.
DRIVER = """
import json, os, signal, sys
from lens_ssl_hf import finetune, pretrain
from lens_ssl_hf.training import trainer
task, data, run, settings, moment, count = sys.argv[1:]
def at(function, name):
    calls = []
    def wrapper(*arguments, **keywords):
        calls.append(1)
        if name == moment and len(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return wrapper
trainer.optimizer_step = at(trainer.optimizer_step, "step")
os.replace = at(os.replace, "rename")
{"pretrain": pretrain, "finetune": finetune}[task](data, run, resume="auto", **json.loads(settings))
"""


def run_until_killed(task, data, run, settings, moment, count):
    command = [sys.executable, "-c", DRIVER, task, data, run, json.dumps(settings), moment, str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


def lines(run):
    return (run / "metrics.jsonl").read_text()


def has_logged(run, since, after_step):
    """Whether a run has written a whole line of a later step since a moment."""
    path = run / "metrics.jsonl"
    if not path.exists() or path.stat().st_mtime < since:
        return False
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("}\n")]
    return bool(whole) and json.loads(whole[-1])["step"] > after_step


def assert_same_run(run, expected):
    weights, wanted = (load_file(one / "model" / "model.safetensors") for one in (run, expected))
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert lines(run) == lines(expected)
    states = []
    for one in (run, expected):
        newest = max((one / "checkpoints").glob("step-*.safetensors"))
        states.append(load_file(newest))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.fixture(scope="module")
def data(tiny_cutouts, tmp_path_factory):
    return save_toy(tiny_cutouts, tmp_path_factory.mktemp("data") / "cutouts")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A pretraining of 4 epochs, 3 steps each, that nothing interrupts; on one thread, as the killed ones."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_until_killed("pretrain", data, run, {"method": "dino", **SSL}, "never", 0).returncode == 0
    return run


def test_a_killed_pretraining_ends_as_if_nothing_had_happened(whole, data, tmp_path):
    run, settings = tmp_path / "run", {"method": "dino", **SSL}
    # In the middle of an epoch after the warm-up and the frozen one; in the middle of writing a checkpoint, after
    # run.json and the two logs; and once more.
    for moment, count in (("step", 5), ("rename", 4), ("step", 4)):
        assert run_until_killed("pretrain", data, run, settings, moment, count).returncode == -signal.SIGKILL
        assert not (run / "model").exists()
    assert run_until_killed("pretrain", data, run, settings, "never", 0).returncode == 0
    assert_same_run(run, whole)


def test_a_killed_finetuning_ends_as_if_nothing_had_happened(data, tmp_path):
    assert run_until_killed("finetune", data, tmp_path / "whole", LABELS, "never", 0).returncode == 0
    for moment, count in (("step", 5), ("rename", 5)):
        killed = run_until_killed("finetune", data, tmp_path / "run", LABELS, moment, count)
        assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "run" / "checkpoints").glob(".*.partial"))  # it was killed in the middle of writing one
    assert run_until_killed("finetune", data, tmp_path / "run", LABELS, "never", 0).returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["simsiam", "dino", "ibot", "finetune"])
def test_killed_from_outside_at_any_moment(task, data, tmp_path):
    """SIGKILL after the warm-up and the frozen first epoch, at moments that nobody chose, until it gets through."""
    settings = {**SSL, "epochs": 12, "projection_size": 64, "method": task}
    settings = {**LABELS, "steps": 40} if task == "finetune" else settings
    command = ["finetune" if task == "finetune" else "pretrain", data, tmp_path / "run", settings, "never", 0]
    assert run_until_killed(*command[:2], tmp_path / "whole", *command[3:]).returncode == 0
    arguments = [sys.executable, "-c", DRIVER, *map(str, command[:3]), json.dumps(settings), "never", "0"]
    moments = []
    while len(moments) < 5:
        begun = time.time()
        process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        while process.poll() is None and not has_logged(tmp_path / "run", since=begun, after_step=3):
            time.sleep(0.001)
        moments.append(random.uniform(0, 1.5))
        time.sleep(moments[-1])
        process.kill()
        if process.wait() == 0:
            break  # it was through before the moment came
    print("seconds from a log line to the kill:", moments)
    assert process.returncode == -signal.SIGKILL or len(moments) > 1
    assert run_until_killed(*command).returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("damage", [pytest.param("cut", marks=pytest.mark.slow), "flipped"])
def test_a_damaged_checkpoint_is_set_aside(damage, whole, data, tmp_path, caplog):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", whole, run], check=True)
    subprocess.run(["rm", "-r", run / "model"], check=True)
    newest = max((run / "checkpoints").glob("step-*"))
    content = bytearray(newest.read_bytes())
    content[-1000] ^= 1
    newest.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    resumed = run_until_killed("pretrain", data, run, {"method": "dino", **SSL}, "never", 0)
    assert resumed.returncode == 0 and f"{newest.name} is damaged" in resumed.stderr
    assert newest.with_name(f"{newest.name}.damaged").exists()
    assert_same_run(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_says_how_to_go_on(number, whole, data, tmp_path):
    run, options = tmp_path / "run", " ".join(f"--{name} {value}" for name, value in SSL.items())
    command = f"scripts/run_ssl.py --method dino {options} --dataset {data} --output_dir {run} --resume auto"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command.split()], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not ((run / "metrics.jsonl").exists() and len(lines(run).splitlines()) > 2):
        time.sleep(0.001)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + number, message
    assert "is saved at step" in message and "--resume auto" in message and "Traceback" not in message
    saved = max((run / "checkpoints").glob("step-*"))
    assert f"step {int(saved.stem[5:])} of 12" in message
    assert run_until_killed("pretrain", data, run, {"method": "dino", **SSL}, "never", 0).returncode == 0
    assert_same_run(run, whole)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_simulation_that_is_told_to_stop_leaves_no_process_behind(tmp_path):
    command = f"scripts/build_dataset.py --dataset simulated --num_proc 2 --cache_dir {tmp_path}/cache"
    command += f" --output {tmp_path}/set"
    process = subprocess.Popen([sys.executable, *command.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    workers: list[str] = []
    while process.poll() is None and len(workers) < 2:
        time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in message, message
    assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not (tmp_path / "set").exists()


def test_a_simulation_whose_worker_is_killed_ends():
    """As by a kernel that is out of memory; the other workers must end when the pool terminates them."""
    code = (
        "import multiprocessing\n"
        "from lens_ssl_hf.data.simulation import simulate_cutouts\n"
        "cutouts = simulate_cutouts(0, range(2000), [True] * 2000, num_proc=2)\n"
        "next(cutouts)\n"
        "multiprocessing.active_children()[0].kill()\n"
        "list(cutouts)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 1 and "BrokenProcessPool" in ended.stderr


@pytest.mark.parametrize("meanwhile", ["list(cutouts)", "time.sleep(60)"])
def test_a_simulation_that_is_killed_takes_its_workers_along(meanwhile):
    """Busy workers and waiting ones: while one lives, it holds the pipe that `communicate` reads to the end."""
    code = (
        "import multiprocessing, time\n"
        "from lens_ssl_hf.data.simulation import simulate_cutouts\n"
        "cutouts = simulate_cutouts(0, range(200_000), [True] * 200_000, num_proc=3)\n"
        "next(cutouts)\n"
        "print(len(multiprocessing.active_children()), flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code + meanwhile], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "3\n"
    process.kill()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL


def test_a_full_disk_loses_nothing(whole, data, tmp_path):
    run = tmp_path / "run"
    assert run_until_killed("pretrain", data, run, {"method": "dino", **SSL}, "step", 5).returncode < 0
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").glob("step-*")}
    options = " ".join(f"--{name} {value}" for name, value in SSL.items())
    command = f"scripts/run_ssl.py --method dino {options} --dataset {data} --output_dir {run} --resume auto"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    full = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=300
    )
    message = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert full.returncode == 2 and len(message) == 1 and "make room" in message[0] and "Traceback" not in full.stderr
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
    assert run_until_killed("pretrain", data, run, {"method": "dino", **SSL}, "never", 0).returncode == 0
    assert_same_run(run, whole)


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nothing can be made; by root neither, where the file system knows immutable ones."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0:
        subprocess.run(["chattr", "+i", folder], capture_output=True)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("root can write to every folder here")
        yield folder
    finally:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", folder], capture_output=True)
        folder.chmod(0o755)


def test_a_read_only_folder_is_named(read_only, tiny_cutouts, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    predictions = predict(run, tiny_cutouts)
    for write in (
        lambda: pretrain(tiny_cutouts, read_only / "a", "dino", **SSL),
        lambda: finetune(tiny_cutouts, read_only / "a", **LABELS),
        lambda: save_toy(tiny_cutouts, read_only / "a"),
        lambda: export(run, read_only / "a"),
        lambda: predictions.save(read_only / "a.parquet"),
        lambda: evaluate_model(predictions, output_dir=read_only / "a", num_bootstrap=0),
        lambda: load_cutouts("simulated", train_size=4, cache_dir=str(read_only / "a")),
    ):
        reason = "Operation not permitted|Permission denied|cannot be written to"
        with pytest.raises(InputError, match=rf"read_only.*({reason}).*: (make room, or )?choose"):
            write()
    assert not list(read_only.iterdir())


def test_one_run_at_a_time_writes_a_directory(tiny_cutouts, tmp_path):
    with RunDirectory(tmp_path / "run", "auto"):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
            finetune(tiny_cutouts, tmp_path / "run", **LABELS)
    finetune(tiny_cutouts, tmp_path / "run", **{**LABELS, "steps": 1})


def test_a_run_of_data_that_stated_less_goes_on(tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    settings = {**LABELS, "steps": 1, "resume": "auto"}
    finetune(tiny_cutouts, tmp_path / "run", **settings)
    finetune((splits, {**info, "of_a_later_version": None}), tmp_path / "run", **settings)
    with pytest.raises(InputError, match="the data is another"):
        finetune((splits, {**info, "of_a_later_version": "3"}), tmp_path / "run", **settings)


def poison(monkeypatch, from_epoch):
    crops = Views.crops

    def poisoned(self, images, indices, settings, epoch, first, count):
        views = crops(self, images, indices, settings, epoch, first, count)
        return torch.where(torch.as_tensor(epoch >= from_epoch), torch.nan, views)  # the epoch may be on a GPU

    monkeypatch.setattr(Views, "crops", poisoned)


@pytest.mark.parametrize("method", ["dino", "simsiam", "ibot"])
def test_a_step_that_is_not_finite_changes_nothing(method, tiny_cutouts, tmp_path, monkeypatch):
    settings = {**SSL, "epochs": 2, "projection_size": 64, "prediction_hidden_size": 16}
    poison(monkeypatch, from_epoch=1)  # the second half: three steps
    run = pretrain(tiny_cutouts, tmp_path / "run", method, **settings)
    assert json.loads((run / "run.json").read_text())["skipped_steps"] == 3
    before, after = (load_file(run / "checkpoints" / f"step-0000000{step}.safetensors") for step in (3, 6))
    kept = [name for name in before if not name.startswith("extra.")]
    assert len(kept) > 100 and all(torch.equal(before[name], after[name]) for name in kept)
    centres = {"dino": {"model.centre"}, "simsiam": set(), "ibot": {"model.centre", "model.patch_centre"}}[method]
    assert centres == {name for name in kept if "centre" in name}
    assert all(before[name].abs().max() > 0 for name in centres)  # they had begun to move
    assert "NaN" not in lines(run)


def test_a_finetuning_step_that_is_not_finite_changes_nothing(tiny_cutouts, tmp_path, monkeypatch):
    poison(monkeypatch, from_epoch=1)
    run = finetune(tiny_cutouts, tmp_path / "run", **{**LABELS, "steps": 6})
    assert json.loads((run / "run.json").read_text())["skipped_steps"] == 3
    before, after = (load_file(run / "checkpoints" / f"step-0000000{step}.safetensors") for step in (3, 6))
    kept = [name for name in before if not name.startswith("extra.")]
    assert len(kept) > 100 and all(torch.equal(before[name], after[name]) for name in kept)


def test_a_step_that_overflows_leaves_batch_norm_alone(tiny_cutouts, tmp_path):
    """One cutout holds 3e38 outside the central crop, where views that are rotated see it and statistics do not."""
    splits, info = tiny_cutouts
    train = splits["train"].select(torch.arange(96))
    train.pixels = train.pixels.clone()
    last = epoch_order(96, 0, 0)[3 * 32 - 1]  # in the last of three steps
    inside = train.pixels[last, :, 4:36, 4:36].clone()
    train.pixels[last] = 3e38
    train.pixels[last, :, 4:36, 4:36] = inside
    settings = {"backbone": "cnn", "precision": "fp32", "steps": 3, "eval_every": 1, "batch_size": 32}
    run = finetune(({**splits, "train": train}, info | NOT_CLIPPED), tmp_path / "run", **settings)
    assert json.loads((run / "run.json").read_text())["skipped_steps"] == 1
    before, after = (load_file(run / "checkpoints" / f"step-0000000{step}.safetensors") for step in (2, 3))
    kept = [name for name in before if not name.startswith("extra.")]
    assert any("running_var" in name for name in kept)
    assert all(torch.equal(before[name], after[name]) and after[name].isfinite().all() for name in kept)


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_run_that_skips_its_steps_does_not_end_as_finished(task, tiny_cutouts, tmp_path):
    train, settings = (pretrain, SSL) if task == "pretrain" else (finetune, {**LABELS, "steps": 6})
    settings |= {"epochs": 2} if task == "pretrain" else {}
    splits, info = tiny_cutouts
    splits = {name: replace(split, pixels=split.pixels.clone()) for name, split in splits.items()}
    splits["train"].pixels[:, :, :4] = 3e38  # outside the crop that statistics are of, inside rotated views
    for _ in range(2):
        with pytest.raises(InputError, match="of 6 steps gave a loss or gradient that is NaN or infinite"):
            train((splits, info | NOT_CLIPPED), tmp_path / "run", resume="auto", **settings)
    assert "seconds" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert not (tmp_path / "run" / "model").exists()


def test_a_first_step_that_is_not_finite_leaves_no_garbage(tiny_cutouts, tmp_path, monkeypatch):
    crops, seen = Views.crops, []

    def poisoned(self, *arguments):
        seen.append(1)
        return crops(self, *arguments) * (torch.nan if len(seen) == 1 else 1)

    monkeypatch.setattr(Views, "crops", poisoned)
    settings = {**SSL, "epochs": 1, "projection_size": 64, "prediction_hidden_size": 16}
    run = pretrain(tiny_cutouts, tmp_path / "run", "simsiam", **settings)
    assert json.loads((run / "run.json").read_text())["skipped_steps"] == 1
    assert all(value.isfinite().all() for value in load_file(run / "model" / "model.safetensors").values())


def test_many_steps_in_a_row_that_are_not_finite_end_the_run(tiny_cutouts, tmp_path, monkeypatch):
    poison(monkeypatch, from_epoch=2)
    with pytest.raises(InputError, match=r"10 steps in a row.* holds 0-\d+, 0-\d+, 0-\d+ and others"):
        pretrain(tiny_cutouts, tmp_path / "run", "dino", **{**SSL, "epochs": 8})
    weights = load_file(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    assert all(value.isfinite().all() for value in weights.values())


def test_the_last_batch_that_was_not_finite_is_named_and_forgiven_later():
    accelerator, one, buffers = Accelerator(), torch.tensor(1.0), BuffersBefore(torch.nn.Identity())
    faults = Faults(torch.device("cpu"))
    for step in range(30):
        faults.note(accelerator, step, one * torch.nan if 2 <= step < 12 else one, one, buffers)
        if step == 19:  # the next log line after them
            with pytest.raises(InputError, match=r"10 steps in a row .*the batch of step 12 holds 11a, 11b"):
                faults.check(lambda step: [f"{step}a", f"{step}b"])
    resumed = Faults(torch.device("cpu"), **faults.counts())
    assert faults.check(lambda step: []) == resumed.check(lambda step: []) == 10


def test_a_collapse_ends_the_run_unless_told_otherwise(tiny_cutouts, tmp_path):
    settings = {**SSL, "epochs": 6, "log_every": 1, "teacher_temperature": 50.0, "warmup_teacher_temperature": 50.0}
    with pytest.raises(InputError, match=r"uniform.*10 log lines in a row"):
        pretrain(tiny_cutouts, tmp_path / "run", "dino", **settings)
    assert '"warning"' in lines(tmp_path / "run")
    run = pretrain(tiny_cutouts, tmp_path / "run", "dino", stop_on_collapse=False, resume="auto", **settings)
    assert json.loads((run / "run.json").read_text())["collapsed"]
    assert "**The pretraining collapsed.**" in str(render_card(CardFacts.from_run(run, "lens-toy")))


def test_the_best_checkpoint_is_kept(tmp_path):
    from lens_ssl_hf.training.checkpoints import save_checkpoint

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, score in enumerate((0.5, 0.9, 0.7, None, 0.6)):
        save_checkpoint(tmp_path, step, model, optimizer, score=score)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"step-0000000{step}.safetensors" for step in (1, 3, 4)]
    (tmp_path / kept[0]).write_bytes(b"")  # damaged, but too old to be read
    save_checkpoint(tmp_path, 5, model, optimizer, score=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{step}.safetensors" for step in (4, 5)]


@pytest.mark.parametrize("source", ["files", "simulation"])
def test_no_process_is_left_once_all_results_are_taken(source):
    """A pool that a forgotten generator closes when it is collected would swallow a Ctrl-C."""
    if source == "files":
        results = map_chunks(list, range(40), num_proc=2)
    else:
        results = simulate_cutouts(0, range(40), [False] * 40, SimulationConfig(size=32), num_proc=2)
    assert len(list(islice(results, 40))) == 40
    assert not multiprocessing.active_children()


def test_processes_that_resample_do_not_wait_for_threads_of_the_main_process():
    """A fork loses the threads of numpy's BLAS, which has to notice it."""
    code = (
        "import numpy as np\n"
        "from lens_ssl_hf.data.flux import resample\n"
        "from lens_ssl_hf.data.pool import map_chunks\n"
        "pixels = np.ones((3, 300, 300), np.float32)\n"
        "resample(pixels, 1.7)\n"
        "def work(chunk):\n"
        "    return [resample(pixels, 1.7) for _ in chunk]\n"
        "print(len(list(map_chunks(work, range(40), 2))))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "4"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, env=environment)
    assert done.stdout == "40\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_waits_is_not_lost_where_what_it_waits_for_fails(number):
    came = []
    with handling_stop_signals(lambda number, frame: came.append(number)):
        with pytest.raises(OSError), interrupted_later():
            signal.raise_signal(number)
            raise OSError
    assert came == [number]
