"""
What pretrainings of 300, 1,000 and 3,000 steps are worth, with a teacher whose momentum stays as it is, and with one
whose momentum rises to 1, as in the papers of DINO and iBOT.

```bash
python scripts/short_runs.py --output runs/short
```

A ViT-Ti/8 is pretrained on 1,600 simulated cutouts and fine-tuned with 100 and with 300 of their labels, and so is the
same ViT from scratch. This takes hours on two cores. A command that was stopped goes on where it was.
"""

import itertools
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import write_json

DATA = {"size": 48, "train_size": 1600, "validation_size": 400, "test_size": 1000, "unlabelled_size": 0}
BATCH_SIZE = 32
# Pretrainings by their steps, each method with so many seeds.
SEEDS = {300: {"dino": 3, "ibot": 3}, 1000: {"dino": 2, "ibot": 1}, 3000: {"dino": 1}}
MOMENTA = {"constant": 0.99, "to 1": 1.0}  # what the teacher's momentum of 0.99 becomes
SCRATCH, SCRATCH_SEEDS = "supervised", 3
LABELS = ("100", "300")
FINETUNING = {"steps": 300, "precision": "bf16"}
MONITORED = ("probe_auc", "knn_auc", "effective_rank")


@dataclass
class Arguments:
    """What is trained, and where."""

    output: str = option(MISSING, "The folder of the cutouts and runs.")
    result: str = option("model_cards/results/short_runs.json", "The JSON file to write.")


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from lens_ssl_hf import load_cutouts, save_cutouts

    quiet()
    folder = Path(arguments.output)
    if not (folder / "cutouts").exists():
        save_cutouts(load_cutouts("simulated", **DATA), folder / "cutouts")
    cells, monitors = [], {}
    for steps, seeds in SEEDS.items():
        for method, (momentum, end) in itertools.product(seeds, MOMENTA.items()):
            settings = {"epochs": steps * BATCH_SIZE // DATA["train_size"], "batch_size": BATCH_SIZE}
            settings |= {"precision": "bf16", "final_teacher_momentum": end}
            name = f"{method}, {steps:,}, {momentum}"
            target = folder / f"{steps}-{momentum.replace(' ', '-')}"
            own, pretrained = trained(folder, target, method, seeds[method], {method: settings})
            cells += [cell | {"method": name} for cell in own]
            seen = [monitored(Path(one["directory"])) for one in pretrained]
            monitors[name] = [last for _, last in seen]
            if (steps, method) == (300, "dino"):
                monitors["random initialisation"] = [first for first, _ in seen]
    cells += trained(folder, folder / "scratch", SCRATCH, SCRATCH_SEEDS, {})[0]
    results = {"simulated": True, "data": DATA, "finetuning_steps": FINETUNING["steps"]}
    write_json(Path(arguments.result), results | {"rows": compared(cells), "monitor": monitors})


def trained(
    folder: Path, target: Path, method: str, seeds: int, pretraining: dict[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of a method's fine-tunings, and of its pretrainings."""
    from lens_ssl_hf.study.run import Study

    cutouts, tuning = {None: folder / "cutouts"}, {"all": FINETUNING}
    study = Study(cutouts, target, [method], ["vitt8"], LABELS, seeds, 1, pretraining, tuning)
    records = study.run()
    if study.failures:
        raise InputError("; ".join(f"{cell.name}: {reason}" for cell, reason in study.failures.items()))
    records = [one for one in records if one["method"] == method and one["seed"] < seeds]
    return [one for one in records if one["labels"] != "none"], [one for one in records if one["labels"] == "none"]


def monitored(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What the monitor of a pretraining saw at the start and at the end, on the validation split."""
    from lens_ssl_hf.training.run_directory import read_metrics

    lines = [line for line in read_metrics(run / "metrics.jsonl") if MONITORED[0] in line]
    first, last = ({name: round(line[name], 4) for name in MONITORED} for line in (lines[0], lines[-1]))
    return first, last


def compared(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The AUC of each start and number of labels, its gain over training from scratch, and that of `constant`."""
    from lens_ssl_hf.study.statistics import compare

    gains = {}
    for kept in {cell["method"] for cell in cells if cell["method"].endswith("constant")}:
        other = kept.replace("constant", "to 1")
        pair = [cell for cell in cells if cell["method"] == kept]
        pair += [cell | {"method": SCRATCH} for cell in cells if cell["method"] == other]  # as what to compare with
        for row in compare(pair):
            if row["method"] == kept:
                gains[kept, row["labels"]] = row["roc_auc"].get("minus", {}).get(SCRATCH)
    rows: list[dict[str, Any]] = []
    for row in compare(cells):
        auc, method = row["roc_auc"], row["method"]
        rows.append({"start": method, "labels": row["labels"], "seeds": row["seeds"]})
        rows[-1] |= {name: auc[name] for name in ("value", "low", "high", "test_set_alone")}
        rows[-1] |= {"minus from scratch": auc["minus"][SCRATCH]} if method != SCRATCH else {}
        gain = gains.get((method, row["labels"]))
        rows[-1] |= {"minus to 1": gain} if gain else {}
    return rows


def results_table(results: dict[str, Any]) -> str:
    """Short pretrainings, as Markdown: fine-tuned, and what the monitor of the pretraining saw."""
    from lens_ssl_hf.study.methods import METHOD_NAMES
    from lens_ssl_hf.study.tables import as_markdown, format_interval

    def named(start: str) -> list[str]:
        method, *how = start.split(", ")
        return [{**METHOD_NAMES, "supervised": "from scratch"}.get(method, method), *(how or ("", ""))]

    head = ["start", "steps", "momentum", "labels", "seeds", "ROC AUC", "minus from scratch", "minus momentum to 1"]
    lines = [head, ["---"] * len(head)]
    for start in dict.fromkeys(["supervised", *results["monitor"]]):
        for row in (one for one in results["rows"] if one["start"] == start):
            gains = [row.get(name) for name in ("minus from scratch", "minus to 1")]
            cells = [*named(start), row["labels"], str(row["seeds"]), format_interval(row)]
            lines.append([*cells, *(format_interval(gain, signed=True) if gain else "" for gain in gains)])
    head = ["start", "steps", "momentum", "linear probe", "nearest neighbours", "effective rank"]
    seen = [head, ["---"] * len(head)]
    for start, values in sorted(results["monitor"].items(), key=lambda one: "random" not in one[0]):
        probe, neighbours, rank = (fmean(one[name] for one in values) for name in MONITORED)
        seen.append([*named(start), f"{probe:.3f}", f"{neighbours:.3f}", f"{rank:.1f}"])
    return f"{as_markdown(lines)}\n\n{as_markdown(seen)}"


if __name__ == "__main__":
    main()
