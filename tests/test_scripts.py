"""The scripts as a user runs them, in processes of their own."""

import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_toy
from safetensors.torch import load_file
from test_samplers import write_data_set
from tiny_runs import write_classifier_run, write_flux_run

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import options_of
from lens_ssl_hf.data.options import DataArguments
from lens_ssl_hf.errors import InputError

ROOT = Path(__file__).parents[1]
LAUNCH = "-m accelerate.commands.launch"
QUICK = "--backbone vitt8 --precision fp32 --eval_every 1"


def run(command, path=str(ROOT), **variables):
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    arguments = [sys.executable, *command.split()]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.fixture(scope="module")
def data(tiny_cutouts, tmp_path_factory):
    return save_toy(tiny_cutouts, tmp_path_factory.mktemp("data") / "cutouts")


@pytest.mark.slow
def test_a_script_that_writes_alone_does_so_on_two_processes_too(data, tmp_path):
    model = write_classifier_run(tmp_path / "run")
    launched = "-m torch.distributed.run --nproc_per_node 2 scripts"
    for command in (
        f"run_eval.py {model} --dataset {data} --num_bootstrap 20",
        f"export.py {model} {tmp_path}/export",
    ):
        done = run(f"{launched}/{command}")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert len(done.stdout.splitlines()) == len(set(done.stdout.splitlines()))  # nothing is said twice
    assert json.loads((model / "evaluation" / "metrics.json").read_text())["num_lenses"] == 24
    assert (tmp_path / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["simsiam", pytest.param("dino", marks=pytest.mark.slow), "ibot"])
def test_two_processes_are_one(method, data, tmp_path):
    """
    Two processes with half the batch each log the same losses and gradients, and end with the same weights: centres
    and batch norm run over both. SGD, since AdamW makes steps of the rounding where gradients vanish.
    """
    arguments = f"tests/record_batches.py --method {method} {QUICK} --epochs 2 --batch_size 48 --num_local_views 1 "
    arguments += "--optimizer sgd --learning_rate 0.01 --warmup_fraction 0 --projection_size 64 --log_every 1 "
    arguments += f"--checkpoint_every 1 --dataset {data}"
    one = run(f"{arguments} --output_dir {tmp_path}/one", RECORD=f"{tmp_path}/one.txt")
    assert one.returncode == 0, one.stderr
    launch = f"{LAUNCH} --config_file scripts/accelerate/cpu.yaml"
    two = run(f"{launch} {arguments} --output_dir {tmp_path}/two", RECORD=f"{tmp_path}/two.txt")
    assert two.returncode == 0, two.stderr
    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert [fact["num_processes"] for fact in facts] == [1, 2]
    records = [sorted(map(json.loads, (tmp_path / f"{name}.txt").read_text().splitlines())) for name in ("one", "two")]
    assert [(step, process) for step, process, _ in records[1]] == [(step, p) for step in range(4) for p in (0, 1)]
    for (_, _, whole), (_, _, first), (_, _, second) in zip(records[0], records[1][::2], records[1][1::2]):
        assert len(first) == len(second) == 24 and not set(first) & set(second) and first + second == whole
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    logs = [[line for line in map(json.loads, log) if "loss" in line] for log in logs]
    assert len(logs[0]) == 4
    for name in ("loss", "gradient_norm"):
        values = [[line[name] for line in log] for log in logs]
        assert values[1] == pytest.approx(values[0], rel=2e-5, abs=2e-6)  # SimSiam's loss is a cosine near zero
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[1][name], weights[0][name], atol=1e-5) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["no", "yes"])
def test_two_processes_that_are_told_to_stop_go_on_to_the_bit(stream, tmp_path):
    """Resident and streamed; and what is streamed by two processes is what one streams."""
    data = write_data_set(tmp_path / "set", 330)
    script = f"scripts/run_ssl.py --method dino {QUICK} --epochs 6 --batch_size 64 --num_local_views 1 --log_every 1 "
    script += f"--optimizer sgd --learning_rate 0.01 --checkpoint_every 1 --stream {stream} --dataset {data}"
    launch = f"{LAUNCH} --config_file scripts/accelerate/cpu.yaml {script}"
    one, whole, cut = (tmp_path / name for name in ("one", "whole", "cut"))
    for result in (run(f"{script} --output_dir {one}"), run(f"{launch} --output_dir {whole}")):
        assert result.returncode == 0, result.stderr
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *launch.split(), "--output_dir", cut, "--resume", "auto"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = cut / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=120)
    assert process.returncode != 0 and message.count("is saved at step") >= 1, message
    assert not (cut / "model").exists()
    assert run(f"{launch} --output_dir {cut} --resume auto").returncode == 0
    weights = [load_file(path / "model" / "model.safetensors") for path in (whole, cut, one)]
    assert all(torch.equal(weights[1][name], weights[0][name]) for name in weights[0])
    assert log.read_text() == (whole / "metrics.jsonl").read_text()
    assert all(torch.allclose(weights[2][name], weights[0][name], atol=1e-5) for name in weights[0])


def test_a_launch_that_runs_fewer_processes_than_asked_for_stops(data, tmp_path):
    script = f"scripts/run_ssl.py --dataset {data} --output_dir {tmp_path}/out"
    result = run(f"{LAUNCH} --cpu --num_processes 2 --num_machines 1 {script}")
    assert result.returncode != 0 and "error: 2 processes were asked for but 1 run" in result.stderr


@pytest.mark.parametrize(
    "name,number,machines",
    [
        pytest.param("one_gpu", 1, 1, marks=pytest.mark.slow),
        pytest.param("many_gpus", 2, 1, marks=pytest.mark.slow),
        ("many_machines", 2, 2),
    ],
)
def test_accelerate_files_start_what_they_say(name, number, machines, data, tmp_path):
    """All but the GPUs themselves: as many processes as asked for, which are one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--config_file scripts/accelerate/{name}.yaml --num_processes {number} --num_machines {machines} "
    options += f"--main_process_port {port}"
    script = f"scripts/run_finetune.py {QUICK} --steps 1 --dataset {data} --output_dir {tmp_path}/out"
    with ThreadPoolExecutor() as pool:
        ranks = [f"--machine_rank {rank}" if machines > 1 else "" for rank in range(machines)]
        results = list(pool.map(lambda rank: run(f"{LAUNCH} {options} {rank} {script}"), ranks))
    for result in results:
        assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_processes"] == number


def test_processes_wait_for_the_main_one_longer_than_a_collective_may_take(tmp_path):
    """Reading a large folder takes longer than the ten minutes that NCCL gives to a collective; here one second."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import datetime, pathlib, time\n"
        "from torch.distributed.distributed_c10d import _set_pg_timeout\n"
        "from lens_ssl_hf.training.accelerator import main_process_first, process_state\n"
        "state = process_state()\n"
        "_set_pg_timeout(datetime.timedelta(seconds=1))  # once both have started, which may take longer\n"
        f"done = pathlib.Path({str(tmp_path / 'done')!r})\n"
        "with main_process_first():\n"
        "    if state.is_main_process:\n"
        "        time.sleep(3)\n"
        "        done.touch()\n"
        "    print(f'process {state.process_index}: {done.exists()}')\n"
    )
    result = run(f"{LAUNCH} --config_file scripts/accelerate/cpu.yaml --num_processes 2 {script}")
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["process 0: True", "process 1: True"]


def test_two_processes_train_a_cnn_as_one(data, tmp_path):
    """Its batch norm, too, runs over the batch of both."""
    script = f"-m lens_ssl_hf.commands.finetune --dataset {data} --backbone cnn --labels 64 --batch_size 32 --steps 4 "
    script += "--log_every 1 --eval_every 4 --precision fp32 --crop_size 16 --output_dir"
    launch = f"{LAUNCH} --config_file scripts/accelerate/cpu.yaml --num_processes 2"
    for command, name in ((script, "one"), (f"{launch} {script}", "two")):
        result = run(f"{command} {tmp_path}/{name}")
        assert result.returncode == 0, result.stderr
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[line["loss"] for line in map(json.loads, log) if "loss" in line] for log in logs]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    for name in weights[0]:
        if "running" in name:
            assert torch.allclose(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-5), name


def test_the_next_command_is_about_the_same_splits(monkeypatch):
    given = DataArguments("my cutouts", data_seed=3, bands=["g", "r"], label_map=["A B=lens"], varied=True, like="m")
    monkeypatch.setattr(sys, "argv", ["evaluate", *shlex.split(options_of(given))])
    assert parse(DataArguments) == [replace(given, like=None)]


def test_several_processes_share_a_batch_and_name_a_mistake_once(data, tmp_path):
    launch = f"{LAUNCH} --config_file scripts/accelerate/cpu.yaml"
    script = f"-m lens_ssl_hf.commands.finetune {QUICK} --steps 1 --dataset {data}"
    result = run(f"{launch} {script} --labels 17 --output_dir {tmp_path}/run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("batches of 16 cutouts instead of 17") == 1
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["batch_size"], facts["num_processes"]) == (16, 2)
    assert facts["command"].startswith("lens-ssl finetune --backbone vitt8")
    assert f"next: lens-ssl evaluate {tmp_path}/run --dataset {data}" in result.stdout
    again = run(f"{launch} {script} --labels 17 --output_dir {tmp_path}/run")
    assert again.returncode != 0 and again.stderr.count("error: output_dir") == 1


@pytest.mark.parametrize(
    "command,named",
    [
        ("run_ssl.py --dataset no_such_folder --output_dir {out}", "no_such_folder"),
        ("run_ssl.py --method byol --dataset {data}", "simsiam, dino, ibot"),
        ("run_finetune.py --dataset {data} --init no/such/run --output_dir {out}", "no/such/run"),
        ("run_finetune.py --dataset {data} --labels 0", "labels"),
        ("run_eval.py no_such_run --dataset {data} --eval_dir {out}", "no_such_run"),
        ("export.py no_such_run {out}", "no_such_run"),
        ("export.py", "run is missing"),
        ("push_to_hub.py no_such_run --repo_id me/lens", "no_such_run"),
        ("push_dataset.py --dataset {data} --repo_id lens", "give me/lens"),
        ("push_space.py no_such_model --dataset {data} --repo_id me/lens --dry-run {out}", "no_such_model"),
        ("run_eval.py --eval_dir {out} --dataset {data} no_such_run", "no_such_run"),
        ("run_finetune.py --dataset {data} --epoch 3", "unknown argument --epoch"),
        ("run_ssl.py --dataset {data} --nonsense", "unknown argument --nonsense: see --help"),
        ("run_ssl.py --dataset {data} --epochs many", "--epochs"),
        ("run_ssl.py --dataset {data} --bands g r", "bands cannot change"),
        ("run_study.py --dataset {data} --output_dir {out} --labels 16 --report_dir {data}/README.md/x", "report_dir"),
    ],
)
def test_mistakes_end_in_one_sentence(command, named, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", command.format(data=data, out=tmp_path / "out").split())
    main = runpy.run_path(str(ROOT / "scripts" / sys.argv[0]))["main"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and named in message[0]
    assert not (tmp_path / "out").exists()


def test_a_simulated_survey_is_not_continued_with_the_cutouts_of_another(tmp_path, monkeypatch, capsys):
    def simulate(*words):
        line = f"simulated_survey.py --output {tmp_path} --cutouts 4 --prevalence 0.5 --num_proc 1".split()
        monkeypatch.setattr(sys, "argv", [*line, *words])
        runpy.run_path(str(ROOT / "scripts" / "simulated_survey.py"))["main"]()

    simulate("--seed", "1")
    (path,) = (tmp_path / "cutouts").iterdir()
    made = path.stat().st_mtime_ns
    simulate("--seed", "1")
    assert path.stat().st_mtime_ns == made
    path.unlink()
    for words, named in ((["--seed", "2"], "seed 1"), (["--seed", "1", "--prevalence", "0.25"], "prevalence 0.5")):
        with pytest.raises(SystemExit):
            simulate(*words)
        assert f"{tmp_path} holds another survey ({named}): choose another output" in capsys.readouterr().err
        assert not path.exists()


def test_a_second_sky_is_not_measured_in_the_display_units_of_another_model(data, tmp_path):
    same, other = write_classifier_run(tmp_path / "same"), write_flux_run(tmp_path / "other")
    (tmp_path / "dataset").symlink_to(data)
    script = runpy.run_path(str(ROOT / "scripts" / "second_sky.py"))
    script["SIZES"].clear()  # nothing is left to be simulated
    assert script["make"](tmp_path, str(same), 1) == tmp_path / "dataset"
    with pytest.raises(InputError, match="dataset is in the display units of another model than"):
        script["make"](tmp_path, other, 1)


def test_a_mistake_ends_a_script_without_a_traceback(data, tmp_path):
    result = run(f"scripts/run_study.py --dataset {data} --output_dir {tmp_path}/out --methods supervised byol")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: methods has 'byol'") and not (tmp_path / "out").exists()
