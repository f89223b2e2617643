"""
What pretrainings of 300, 1,000 and 3,000 steps are worth, with a teacher whose momentum stays as it is, and with one
whose momentum rises to 1, as in the papers of DINO and iBOT; and what larger batches are worth that see as much.

```bash
python scripts/short_runs.py --output runs/short
```

A ViT-Ti/8 is pretrained on 1,600 simulated cutouts and fine-tuned with 100 and with 300 of their labels, and so is the
same ViT from scratch: with as many steps, and, with 100 labels, also with the compute of the longest pretraining. This
takes hours on two cores. A command that was stopped goes on where it was.
"""

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
MOMENTA = {"constant": 0.99, "to 1": 1.0}  # what the teacher's momentum of 0.99 becomes
# Pretrainings: their steps, method, momentum and seeds.
PRETRAININGS = [
    (300, "dino", "constant", 3),
    (300, "dino", "to 1", 3),
    (300, "ibot", "constant", 3),
    (300, "ibot", "to 1", 3),
    (1000, "dino", "constant", 3),
    (1000, "dino", "to 1", 2),
    (1000, "ibot", "constant", 3),
    (1000, "ibot", "to 1", 1),
    (3000, "dino", "constant", 3),
    (3000, "dino", "to 1", 1),
    (3000, "ibot", "constant", 3),
]
LONGEST = max(steps for steps, *_ in PRETRAININGS)
LONGEST_DINO = f"dino, {LONGEST:,}, constant"
# Larger batches, with as many images or as many steps as the longest pretraining; what fills no batch is left out.
BATCHES = [(128, "images"), (512, "images"), (128, "steps")]
SCRATCH, SCRATCH_SEEDS = "supervised", 3
LONG = "supervised-long"  # from scratch, with the compute of the longest pretraining on top
LABELS = ("100", "300")
PRETRAINING = {"batch_size": BATCH_SIZE, "precision": "bf16"}
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
    for steps, method, momentum, seeds in PRETRAININGS:
        target = folder / f"{steps}-{momentum.replace(' ', '-')}"
        settings = PRETRAINING | {"epochs": epochs(steps), "final_teacher_momentum": MOMENTA[momentum]}
        own, pretrained = trained(folder, target, [method], seeds, {method: settings})
        name = f"{method}, {steps:,}, {momentum}"
        cells += [cell | {"method": name} for cell in own]
        if name == LONGEST_DINO:
            own, _ = trained(folder, target, [method, LONG], 1, {method: settings}, LABELS[:1])
            (long,) = (cell for cell in own if cell["method"] == LONG)
            cells.append(long)
        seen = [monitored(Path(one["directory"])) for one in pretrained]
        monitors[name] = [last for _, last in seen]
        if (steps, method) == (300, "dino"):
            monitors["random initialisation"] = [first for first, _ in seen]
    for size, same in BATCHES:
        name = f"batches of {size}, as many {same}"
        settings = PRETRAINING | larger_batches(size, same)
        own, pretrained = trained(
            folder, folder / name.replace(", ", "-").replace(" ", "-"), ["dino"], 1, {"dino": settings}
        )
        cells += [cell | {"method": f"dino, {name}"} for cell in own]
        monitors[f"dino, {name}"] = [monitored(Path(one["directory"]))[1] for one in pretrained]
    cells += trained(folder, folder / "scratch", [SCRATCH], SCRATCH_SEEDS, {})[0]
    results = {"simulated": True, "data": DATA, "finetuning_steps": FINETUNING["steps"]}
    results |= {LONG: {"steps": long["settings"]["steps"], "best_step": long["best_step"]}}
    write_json(Path(arguments.result), results | {"rows": compared(cells), "monitor": monitors})


def epochs(steps: int, batch_size: int = BATCH_SIZE) -> int:
    """How many epochs so many steps of full batches are."""
    return steps // (DATA["train_size"] // batch_size)


def larger_batches(batch_size: int, same: str) -> dict[str, float]:
    """The longest pretraining of DINO with other batches and as many ``images`` or ``steps``."""
    numbers = scaled("dino", batch_size, same)
    numbers |= {"batch_size": batch_size, "final_teacher_momentum": numbers["teacher_momentum"]}
    return numbers | {"epochs": epochs(LONGEST, BATCH_SIZE if same == "images" else batch_size)}


def scaled(method: str, batch_size: int, same: str = "images") -> dict[str, float]:
    """
    A recipe's numbers for other batches: learning rates by the square root of their size (Malladi et al. 2022).
    Momenta are of one step: with as many ``images`` they are taken to the power that makes them the same over these
    (Busbridge et al. 2023); with as many ``steps`` they stay.
    """
    from lens_ssl_hf.training.arguments import PretrainArguments, recipe

    known = vars(PretrainArguments()) | recipe(method)
    scale = batch_size / known["batch_size"]
    power = scale if same == "images" else 1
    momenta = {name: known[name] ** power for name in ("teacher_momentum", "centre_momentum")}
    return momenta | {name: known[name] * scale**0.5 for name in ("learning_rate", "final_learning_rate")}


def trained(
    folder: Path,
    target: Path,
    methods: list[str],
    seeds: int,
    pretraining: dict[str, dict[str, Any]],
    labels: Sequence[str] = LABELS,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of fine-tunings, and of pretrainings."""
    from lens_ssl_hf.study.run import Study

    cutouts, tuning = {None: folder / "cutouts"}, {"all": FINETUNING}
    study = Study(cutouts, target, methods, ["vitt8"], labels, seeds, 1, pretraining, tuning)
    records = study.run()
    if study.failures:
        raise InputError("; ".join(f"{cell.name}: {reason}" for cell, reason in study.failures.items()))
    records = [one for one in records if one["method"] in methods and one["seed"] < seeds]
    return [one for one in records if one["labels"] != "none"], [one for one in records if one["labels"] == "none"]


def monitored(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What the monitor of a pretraining saw at the start and at the end, on the validation split."""
    from lens_ssl_hf.training.run_directory import read_metrics

    lines = [line for line in read_metrics(run / "metrics.jsonl") if MONITORED[0] in line]
    first, last = ({name: round(line[name], 4) for name in MONITORED} for line in (lines[0], lines[-1]))
    return first, last


def compared(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The AUC of each start and number of labels, its gain over training from scratch, and that over its rival, by the
    seeds that both have: another pretraining may differ by more than what is compared.
    """
    from lens_ssl_hf.study.statistics import compare

    rivals = {
        name: name.replace("constant", "to 1") for name in {cell["method"] for cell in cells} if "constant" in name
    }
    rivals |= {name: LONGEST_DINO for name in {cell["method"] for cell in cells} if "batches" in name}
    gains = {}
    for name, rival in rivals.items():
        own, other = ([cell for cell in cells if cell["method"] == one] for one in (name, rival))
        both = {cell["seed"] for cell in own} & {cell["seed"] for cell in other}
        pair = own + [cell | {"method": SCRATCH} for cell in other]  # as what to compare with
        pair = [cell for cell in pair if cell["seed"] in both]
        for row in compare(pair):
            if row["method"] == name:
                gains[name, row["labels"]] = row["roc_auc"].get("minus", {}).get(SCRATCH)
    rows: list[dict[str, Any]] = []
    for row in compare(cells):
        auc, method = row["roc_auc"], row["method"]
        rows.append({"start": method, "labels": row["labels"], "seeds": row["seeds"]})
        rows[-1] |= {name: auc[name] for name in ("value", "low", "high", "test_set_alone")}
        rows[-1] |= {"minus from scratch": auc["minus"][SCRATCH]} if method != SCRATCH else {}
        gain = gains.get((method, row["labels"]))
        rows[-1] |= {"rival": rivals[method], "minus rival": gain} if gain else {}
    return rows


def results_table(results: dict[str, Any]) -> str:
    """As Markdown: short pretrainings, fine-tuned; what the monitor saw of them; batches of other sizes."""
    from lens_ssl_hf.study.methods import METHOD_NAMES
    from lens_ssl_hf.study.tables import as_markdown, format_interval

    names = METHOD_NAMES | {SCRATCH: "from scratch", LONG: "from scratch, equal total compute"}
    rows, monitor = results["rows"], results["monitor"]

    def gain(row: dict[str, Any], name: str) -> str:
        return format_interval(row[name], signed=True) if name in row else ""

    def named(start: str) -> list[str]:
        method, *how = start.split(", ")
        return [names.get(method, method), *(how or ("", ""))]

    def features(start: str) -> list[str]:
        probe, neighbours, rank = (fmean(one[name] for one in monitor[start]) for name in MONITORED)
        return [f"{probe:.3f}", f"{neighbours:.3f}", f"{rank:.1f}"]

    def of(start: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["start"] == start]

    starts = [start for start in monitor if "batches" not in start]
    lines = [["start", "steps", "momentum", "labels", "seeds", "ROC AUC", "minus from scratch", "minus momentum to 1"]]
    for start in (SCRATCH, LONG, *starts):
        for row in of(start):
            cells = [*named(start), row["labels"], str(row["seeds"]), format_interval(row)]
            lines.append([*cells, gain(row, "minus from scratch"), gain(row, "minus rival")])
    seen = [["start", "steps", "momentum", "linear probe", "nearest neighbours", "effective rank"]]
    for start in sorted(starts, key=lambda one: "random" not in one):
        seen.append([*named(start), *features(start)])
    batches = [["batch", "epochs", "steps", "labels", "ROC AUC", f"minus batches of {BATCH_SIZE}"]]
    batches[0] += ["linear probe", "nearest neighbours"]
    sizes = {LONGEST_DINO: (BATCH_SIZE, "steps")}
    sizes |= {f"dino, batches of {size}, as many {same}": (size, same) for size, same in BATCHES}
    for start, (size, same) in sizes.items():
        passes = epochs(LONGEST, BATCH_SIZE if same == "images" else size)
        steps = passes * (DATA["train_size"] // size)
        for row in of(start):
            cells = [str(size), str(passes), f"{steps:,}", row["labels"], format_interval(row)]
            minus = gain(row, "minus rival") if size != BATCH_SIZE else ""
            batches.append([*cells, minus, *features(start)[:2]])
    return "\n\n".join(as_markdown([one[0], ["---"] * len(one[0]), *one[1:]]) for one in (lines, seen, batches))


if __name__ == "__main__":
    main()
