"""
The point of the project in minutes on two CPU cores: what self-supervision brings when labels are few.

```bash
make demo
```

A ViT that DINO pretrained on simulated cutouts without labels (model_cards/lens-dino-vits8) and the same ViT from
scratch are fine-tuned with the same labels and steps, and compared. The classifier of the pretrained one scores 2,000
cutouts, and its candidates are ranked on a page to look at. A pretraining of a minute or two shows how one begins: it
sees a hundredth of the images that the other one has seen.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.errors import exit_on_input_error

ROOT = Path(__file__).parents[1]
BOX = ROOT / "model_cards" / "lens-dino-vits8"
DATA = {"train_size": 1500, "validation_size": 200, "test_size": 500, "size": 48}
# One cutout in fifty is a lens here; on the sky it is one in many thousands.
SURVEY = {"train_size": 100, "validation_size": 50, "test_size": 2000, "lens_fraction": 0.02}
SURVEY |= {"size": 48, "data_seed": 1}
PRETRAIN = {"method": "simsiam", "backbone": "vitt8", "epochs": 6, "eval_every": 2}
# Milder views than the default, which so few steps do not suffice for.
VIEWS = {"gain": 0.2, "offset": 0.2, "band_jitter": 0.0, "scale_min": 0.7}
FINETUNE = {"labels": 100, "steps": 100, "batch_size": 32, "eval_every": 20, **VIEWS}


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
    from datasets import DatasetDict

    from lens_ssl_hf import evaluate_model, export, finetune, load_cutouts, pretrain, rank, save_cutouts, score
    from lens_ssl_hf.evaluation.plots import plot_roc
    from lens_ssl_hf.evaluation.predictions import Predictions
    from lens_ssl_hf.space.build import build_space

    quiet()
    folder = Path(arguments.output_dir)
    simulated = {"like": str(BOX), "cache_dir": str(folder / "cache")}
    say("1/6  simulated cutouts: lenses, and galaxies that look like them; a survey of 2,000")
    cutouts = load_cutouts("simulated", **simulated, **DATA)
    survey = load_cutouts("simulated", **simulated, **SURVEY)["test"]
    if not (folder / "survey").exists():
        save_cutouts(DatasetDict(unlabelled=survey), folder / "survey")
    say(f"2/6  how a pretraining begins: SimSiam on {len(cutouts['train'])} cutouts without labels")
    begun = pretrain(cutouts, folder / "simsiam", resume="auto", **PRETRAIN)
    print_monitor(begun)
    say(f"3/6  {FINETUNE['labels']} labels: fine-tuned from {BOX.relative_to(ROOT)}, and the same ViT from scratch")
    runs = {
        "DINO": finetune(cutouts, folder / "dino-100", init=BOX, resume="auto", **FINETUNE),
        "from scratch": finetune(cutouts, folder / "scratch-100", backbone="vits8", resume="auto", **FINETUNE),
    }
    for run in runs.values():
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # 1.4 GB, of no use once the run is finished
    metrics = {name: evaluate_model(run, cutouts["test"])["metrics"] for name, run in runs.items()}
    predictions = {name: Predictions.load(run / "evaluation" / "predictions.parquet") for name, run in runs.items()}
    roc = plot_roc(predictions, folder / "roc.png", metrics, f"{FINETUNE['labels']} labels, simulated cutouts")
    say("4/6  export as stock transformers models, and as a page for the browser")
    export(begun, folder / "lens-simsiam-vitt8")
    classifier = export(runs["DINO"], folder / "lens-dino-vits8-classifier")
    build_space(classifier, cutouts, folder / "space")
    say("5/6  loading them in a process that does not know this package")
    example = folder / "example.npy"
    np.save(example, np.asarray(cutouts["test"][0]["pixels"], dtype=np.float32))
    use_export = ROOT / "scripts" / "use_export.py"
    subprocess.run([sys.executable, use_export, BOX, classifier, example], check=True)
    say(f"6/6  {len(survey)} cutouts of the survey, scored and ranked")
    score(classifier, folder / "survey", folder / "scores")
    if not (folder / "ranking").exists():
        rank(folder / "scores", folder / "ranking", top=200, audit=50)

    print(f"\nSimulated cutouts, {len(cutouts['test'])} for testing, {FINETUNE['labels']} labels, one seed:")
    print_table({name: (values["roc_auc"], values["accuracy"]) for name, values in metrics.items()})
    print_found(folder / "ranking", survey)
    print("Simulated cutouts say nothing about the sky. docs/study.md tells what is known there.\n")
    print(f"candidates       {folder}/ranking/page.html (open it in a browser; A B C X grade)")
    print(f"ROC curves       {roc}")
    print(f"training curves  {folder}/lens-simsiam-vitt8/curves.png, {classifier}/curves.png")
    print(f"model card       {classifier}/README.md")
    print("in a browser     make space")
    needs = record_needs(folder, time.time() - start)
    print("took             {minutes} minutes, {memory_gib} GiB of memory, {disk_mb} MB of disk".format(**needs))
    print(NEXT)


NEXT = """
Next, with your own files in my_cutouts/lenses/, my_cutouts/nonlenses/ and survey/:
    lens-ssl finetune --init model_cards/lens-dino-vits8 --dataset my_cutouts --like model_cards/lens-dino-vits8 \\
        --labels all --output_dir runs/mine
    lens-ssl score --model runs/mine --input survey/ --output scores/
    lens-ssl rank scores/ --top 500 --audit 300 --output ranking/"""


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def print_table(rows: dict[str, tuple[dict, dict]]) -> None:
    print(f"    {'':14} {'ROC AUC (95 %)':24} accuracy (95 %)")
    for name, cells in rows.items():
        auc, accuracy = (f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in cells)
        print(f"    {name:14} {auc:24} {accuracy}")


def print_monitor(run: Path) -> None:
    """A linear probe of the features as the pretraining goes on, and where the pretrained backbone ended."""
    from lens_ssl_hf.training.run_directory import read_metrics

    found = ", ".join(f"{one['probe_auc']:.3f}" for one in read_metrics(run / "metrics.jsonl") if "probe_auc" in one)
    card = json.loads((BOX / "metrics.json").read_text())["probes"]["linear"]["metrics"]["roc_auc"]["value"]
    seen, in_box = (
        record["arguments"]["epochs"] * record["num_train_images"]
        for record in (json.loads(file.read_text()) for file in (run / "run.json", BOX / "recipe.json"))
    )
    print(f"ROC AUC of a linear probe on the features, before and after every second epoch: {found}. They have seen")
    print(f"{seen:,} images; those of {BOX.name} have seen {in_box:,}, and have {card:.3f} on their own test split.")


def print_found(ranking: Path, survey) -> None:
    """How many of the survey's lenses stand where a grader would begin."""
    import pandas as pd

    labels = dict(zip(survey["id"], survey["label"]))
    table = pd.read_csv(ranking / "ranking.csv", dtype={"id": str})
    first = [labels[name] for name in table["id"][table["sample"] == "top"]]
    print(f"The survey: {sum(labels.values())} lenses among {len(labels)} cutouts, {sum(first[:50])} of them in the")
    print(f"first 50 of the ranking, {sum(first)} in the first {len(first)}.")


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
