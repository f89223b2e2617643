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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    timed,
)

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.errors import InputError, exit_on_input_error

ROOT = Path(__file__).parents[1]
FINETUNING_BATCH = 64
PIXEL_SCALE = 0.168  # arcsec, of the tiles
PARTS = ("pretrain", "finetune", "scaling", "memory", "startup", "tiles", "positions", "scoring")


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
                size = arguments.batch_size, arguments.num_local_views
                ours = our_step(method, backbone, Path(folder), *size)
                precision = ours.run.facts["precision"]
                ways = {
                    "ours": ours_in_order(ours),
                    "usual": UsualWay(method, backbone, *size, "fp32", fused=False),
                    "usual, bf16 and fused AdamW": UsualWay(method, backbone, *size, "bf16", fused=True),
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

    target = device()
    classifier = ViTForImageClassification(backbone_config(backbone)).to(target).train()
    use_fast_attention(classifier)
    images = torch.randn(FINETUNING_BATCH, 3, 32, 32, device=target)
    labels = torch.arange(FINETUNING_BATCH, device=target) % 2

    def step() -> None:
        with autocast(target, precision):
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


def measure_positions(arguments: BenchmarkArguments) -> dict[str, Any]:
    """
    What opening a table of positions on tiles takes: seconds, and memory beyond what the process had; and how long a
    further task needs, which reads their order and a shard of them.
    """
    result = run_worker(arguments, "positions")
    print(f"    {result['positions']:,}: {result['seconds']:.0f} s, {result['bytes_per_position']:.0f} bytes each")
    print(f"    a further task: {result['seconds_of_a_further_task']:.2f} s")
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


def measure_scoring(arguments: BenchmarkArguments) -> dict[str, Any]:
    """What `lens-ssl score` does per second on one core and on two, beside the bare forward and a plain loop."""
    found = {cores: run_worker(arguments, "scoring", CORES=str(cores)) for cores in (1, 2)}
    for cores, one in found.items():
        rates = ", ".join(f"{name} {one[name]:.0f}" for name in ("parquet", "files", "one_file_at_a_time"))
        print(f"    {cores} cores: {rates} cutouts/s; {one['parquet_over_forward']:.2f} of the bare forward in fp32")
        for name, engine in one["engines"].items():
            print(
                f"        {name:40} {engine['cutouts_per_second']:7.0f} cutouts/s, x {engine['over_torch_fp32']:.2f}; "
                f"AUC {engine['roc_auc']:.4f}; changes a score by {engine['changes_a_score_by']:.1e}"
            )
    return {f"{cores}_cores": one for cores, one in found.items()}


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
        size = arguments.batch_size, arguments.num_local_views
        step = ours_in_order(our_step("dino", arguments.backbones[0], Path(folder), *size, precision="bf16"))
        step()
        seconds = min(timed(step, 3) for _ in range(3))
    return {"images_per_second": arguments.batch_size / seconds}


def work_on_memory(arguments: BenchmarkArguments) -> dict[str, Any]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        trainer = our_step("dino", "vitb8", Path(folder), 256, 4, precision="bf16")
        for step in range(2):
            trainer.step(step)
    if torch.cuda.is_available():
        return {"device": "cuda", "peak_bytes": torch.cuda.max_memory_allocated()}
    # Linux: getrusage's peak would be that of the parent where that is larger.
    status = Path("/proc/self/status").read_text()
    return {"device": "cpu", "peak_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024}


def work_on_scoring(arguments: BenchmarkArguments) -> dict[str, Any]:
    from benchmark_scoring import measure

    return measure(int(os.environ["CORES"]), arguments.seconds)


def work_on_positions(arguments: BenchmarkArguments, number: int = 10_000_000, tiles: int = 100) -> dict[str, Any]:
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    from lens_ssl_hf.survey.inputs import Options, open_input

    def kilobytes(name: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])

    with tempfile.TemporaryDirectory() as folder:
        for i in range(tiles):
            write_tile(Path(folder), i, 200)
        rng, reach = np.random.default_rng(0), 95 * PIXEL_SCALE / 3600
        columns = {"id": rng.permutation(number), "ra": rng.integers(150, 150 + tiles, number).astype(float)}
        columns["ra"] += rng.uniform(-reach, reach, number)
        parquet.write_table(
            pyarrow.table(columns | {"dec": rng.uniform(-reach, reach, number)}), f"{folder}/t.parquet"
        )
        del columns
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start = kilobytes("VmRSS"), time.perf_counter()
        source = open_input(f"{folder}/t.parquet", Options(tiles=f"{folder}/{{band}}/*.fits"), INFO["bands"])
        source.fingerprint  # noqa: B018 (a run asks for it, too)
        seconds = time.perf_counter() - start
        taken = (kilobytes("VmHWM") - before) * 1024
        stored = Path(folder, "positions.arrow")
        source.keep(stored)
        size, start = stored.stat().st_size, time.perf_counter()
        again = open_input(
            f"{folder}/t.parquet", Options(tiles=f"{folder}/{{band}}/*.fits"), INFO["bands"], None, stored
        )
        again.rows.part(0, 100_000)  # a shard
        again_seconds = time.perf_counter() - start
    found = {"positions": len(source), "tiles": tiles, "seconds": seconds, "bytes_per_position": taken / number}
    return found | {"seconds_of_a_further_task": again_seconds, "bytes_stored_per_position": size / number}


WORKERS = {"step": work_on_steps, "memory": work_on_memory, "scoring": work_on_scoring}
WORKERS["positions"] = work_on_positions


# ---- scoring ----------------------------------------------------------------------------------------


def measure_tiles(arguments: BenchmarkArguments, side: int = 4000, positions: int = 10_000) -> dict[str, Any]:
    """Cutouts per second of one process that cuts positions out of two tiles of three bands, up to the forward."""
    import numpy as np
    from astropy.table import Table

    from lens_ssl_hf.survey.crops import Asked, Preparation
    from lens_ssl_hf.survey.inputs import Options, open_input

    stretch = {"kind": "asinh", "black": [-1.0] * 3, "white": [50.0] * 3, "softening": [1.0] * 3}
    cutouts = {"bands": INFO["bands"], "pixel_scale": PIXEL_SCALE, "zero_point": 27.0, "stretch": stretch}
    rates: dict[str, list[float]] = {"fits": [], "fits.fz": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            write_tile(Path(folder), i, side)
        reach = 0.48 * side * PIXEL_SCALE / 3600
        offsets = np.random.default_rng(0).uniform(-reach, reach, (positions, 2))
        table = Path(folder) / "positions.csv"
        Table({"ra": 150 + np.arange(positions) % 2 + offsets[:, 0], "dec": offsets[:, 1]}).write(table)
        for _ in range(arguments.repeats):
            for kind, found in rates.items():
                options = Options(tiles=f"{folder}/{{band}}/*.{kind}")
                source = open_input(table, options, INFO["bands"], num_proc=1)
                asked = Asked([Preparation(cutouts, 3, 32)])
                start = time.perf_counter()
                count = sum(len(batch.crops) for batch in source.batches(0, positions, asked, 256))
                found.append(count / (time.perf_counter() - start))
    for kind, found in rates.items():
        print(f"    .{kind}: {statistics.median(found):.0f} cutouts/s before the forward")
    return {"side": side, "positions": positions, "cutouts_per_second": rates}


def write_tile(folder: Path, number: int, side: int) -> None:
    """Noise around ra 150 + `number` and dec 0, plain and compressed, in `folder`/BAND."""
    import numpy as np
    from astropy.io import fits

    flux = np.random.default_rng(number).normal(0, 5, (side, side)).astype(np.float32)
    scale, middle = PIXEL_SCALE / 3600, side / 2 + 0.5
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0 + number, "CRVAL2": 0.0})
    header.update({"CRPIX1": middle, "CRPIX2": middle, "CD1_1": -scale, "CD2_2": scale, "MAGZERO": 27.0})
    for band in INFO["bands"]:
        (folder / band).mkdir(exist_ok=True)
        fits.writeto(folder / band / f"{number}.fits", flux, header)
        fits.CompImageHDU(flux, header).writeto(folder / band / f"{number}.fits.fz")


# ---- tables ------------------------------------------------------------------------------------------


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


if __name__ == "__main__":
    main()
