"""
The whole path in minutes on two CPU cores: simulate, pretrain, fine-tune, compare, export, load with transformers.

```bash
make demo
```

It shows that everything works. It is far too short to show what self-supervision is good for.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.errors import exit_on_input_error

ROOT = Path(__file__).parents[1]
DATA = {"train_size": 1500, "validation_size": 300, "test_size": 500}
PRETRAIN = {"backbone": "vitt8", "epochs": 6, "eval_every": 2}
# Milder views than the default, which so few steps do not suffice for.
VIEWS = {"gain": 0.2, "offset": 0.2, "band_jitter": 0.0, "scale_min": 0.7}
FINETUNE = {"labels": 300, "steps": 240, "eval_every": 30, **VIEWS}


@dataclass
class DemoArguments:
    output_dir: str = field(
        default="demo", metadata={"help": "The folder to write; a finished part is not done again."}
    )


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(DemoArguments, description=__doc__)
    start = time.time()
    import numpy as np

    from lens_ssl_hf import evaluate_model, export, finetune, load_cutouts, pretrain
    from lens_ssl_hf.evaluation.plots import plot_roc
    from lens_ssl_hf.evaluation.predictions import Predictions
    from lens_ssl_hf.space.build import build_space

    quiet()
    folder = Path(arguments.output_dir)
    say("1/6  simulated cutouts: lenses, and galaxies that look like them")
    cutouts = load_cutouts("simulated", cache_dir=str(folder / "cache"), **DATA)
    say(f"2/6  DINO on {len(cutouts['train'])} cutouts without labels")
    dino = pretrain(cutouts, folder / "dino", "dino", resume="auto", **PRETRAIN)
    say(f"3/6  {FINETUNE['labels']} labels: fine-tuned from DINO, and the same ViT from scratch")
    runs = {
        "DINO": finetune(cutouts, folder / "dino-300", init=dino, resume="auto", **FINETUNE),
        "from scratch": finetune(cutouts, folder / "scratch-300", backbone="vitt8", resume="auto", **FINETUNE),
    }
    say("4/6  evaluation on the test split")
    metrics = {name: evaluate_model(run, cutouts["test"])["metrics"] for name, run in runs.items()}
    predictions = {name: Predictions.load(run / "evaluation" / "predictions.parquet") for name, run in runs.items()}
    roc = plot_roc(predictions, folder / "roc.png", metrics, f"{FINETUNE['labels']} labels, simulated cutouts")
    say("5/6  export as stock transformers models, and as a page for the browser")
    backbone = export(dino, folder / "lens-dino-vitt8")
    classifier = export(runs["DINO"], folder / "lens-dino-vitt8-classifier")
    build_space(classifier, cutouts, folder / "space")
    say("6/6  loading them in a process that does not know this package")
    example = folder / "example.npy"
    np.save(example, np.asarray(cutouts["test"][0]["pixels"], dtype=np.float32))
    use_export = ROOT / "scripts" / "use_export.py"
    subprocess.run([sys.executable, use_export, backbone, classifier, example], check=True)

    print(f"\nSimulated cutouts, {len(cutouts['test'])} for testing, {FINETUNE['labels']} labels, one seed:")
    print_table({name: (values["roc_auc"], values["accuracy"]) for name, values in metrics.items()})
    print("It proves the path, not the science: minutes of training on simulated cutouts say nothing about the sky.")
    print_longer_run()
    print(f"ROC curves       {roc}")
    print(f"contact sheet    {runs['DINO']}/evaluation/contact_sheet.png")
    print(f"training curves  {backbone}/curves.png, {classifier}/curves.png")
    print(f"model card       {classifier}/README.md")
    print("in a browser     make space")
    needs = record_needs(folder, time.time() - start)
    print("took             {minutes} minutes, {memory_gib} GiB of memory, {disk_mb} MB of disk".format(**needs))


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def print_table(rows: dict[str, tuple[dict, dict]]) -> None:
    print(f"    {'':14} {'ROC AUC (95 %)':24} accuracy (95 %)")
    for name, cells in rows.items():
        auc, accuracy = (f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in cells)
        print(f"    {name:14} {auc:24} {accuracy}")


def print_longer_run() -> None:
    """The committed result of a longer run, for comparison."""
    from lens_ssl_hf.study.methods import METHOD_NAMES
    from lens_ssl_hf.study.tables import format_interval

    path = ROOT / "model_cards" / "results" / "simulated" / "results.json"
    print(f"A longer run ({path.parent.relative_to(ROOT)}), simulated too:")
    for row in json.loads(path.read_text())["rows"]:
        if row["num_labels"] == FINETUNE["labels"] and row["backbone"] == "vitt8":
            auc, runs = format_interval(row["roc_auc"]), f"{row['seeds']} x {row['subsets']} runs"
            print(f"    {METHOD_NAMES[row['method']]:24} {row['num_labels']:5} labels, {runs}   ROC AUC {auc}")


def record_needs(folder: Path, seconds: float) -> dict:
    """Write what the demo took to `needs.json`, from which scripts/make_tables.py takes the README's line."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    needs = {
        "minutes": round(seconds / 60, 1),
        "memory_gib": round(peak / 2**30, 1),
        "disk_mb": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}",
        "torch": torch.__version__,
    }
    (folder / "needs.json").write_text(json.dumps(needs, indent=2) + "\n")
    return needs


if __name__ == "__main__":
    main()
