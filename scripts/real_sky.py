"""
What longer pretrainings on pictures of the real sky are worth there, patches of 4 pixels, a teacher whose momentum
rises, and ensembles: five folds of the CFHTLS cutouts that experts graded.

```bash
python scripts/prepare_cfhtls.py --data_dir ../shared/data/cfhtls_spacewarps --output_dir runs/cfhtls/data
python scripts/real_sky.py --data_dir runs/cfhtls/data --output runs/cfhtls/real
```

A ViT-Ti is pretrained with iBOT on all windows and graded cutouts, once for all folds: without labels, but those of
the test folds are among them, as they are where somebody pretrains on the survey that is to be searched. A ViT from it
is fine-tuned on the training folds, and its frozen features are probed. Beside these, small CNNs from scratch. A
command that was stopped goes on.
"""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from labelled_simulations import PIXEL_SCALE, as_cell, compared, real_cutouts, scored

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.files import write_json, write_text

FOLDS, CNN_SEEDS = 5, 5
CONSTANT, RISEN = "patches of 8", "patches of 8, momentum to 1"  # of the teacher's momentum
PRETRAININGS = {
    CONSTANT: {"patch_size": 8, "epochs": 31},
    "patches of 4": {"patch_size": 4, "epochs": 20},  # four times as long
    RISEN: {"patch_size": 8, "epochs": 31, "final_teacher_momentum": 1.0},
}
STEPS, CNN_STEPS = 500, 1400  # of the fine-tunings
CNN = "small CNN"
MANY = f"{CNN}, 8 views of {CNN_SEEDS} seeds"
ALL = "mean of these CNNs and the first two fine-tuned ViTs"


@dataclass
class Arguments:
    """Where the cutouts are, and where the runs go."""

    data_dir: str = option(MISSING, "The folder that scripts/prepare_cfhtls.py wrote.")
    output: str = option(MISSING, "The folder of the runs.")
    result: str = option("model_cards/results/real_sky.json", "The JSON file to write.")


def pretrained(data_dir: Path, output: Path, name: str) -> Path:
    """A pretraining on all pictures, without their labels."""
    import pandas as pd

    from lens_ssl_hf import load_cutouts, pretrain

    table = data_dir / "unlabelled.csv"
    write_text(table, pd.read_csv(data_dir / "cfhtls.csv")[["file", "group"]].to_csv(index=False))
    pictures = load_cutouts(table, bands=["i", "r", "g"], pixel_scale=PIXEL_SCALE)
    settings = {"method": "ibot", "backbone": "vitt8", "eval_every": 0, "precision": "bf16", **PRETRAININGS[name]}
    return pretrain(pictures, output / named(name), resume="auto", **settings)


def named(text: str) -> str:
    """As a directory."""
    return text.replace(",", "").replace(" ", "-")


def tested(real: Any, output: Path, starts: dict[str, Path], fold: int) -> dict[str, list[Any]]:
    """Predictions of the test split of a fold, by what makes them: one per seed."""
    from lens_ssl_hf import finetune
    from lens_ssl_hf.evaluation.predictions import Predictions, ensemble
    from lens_ssl_hf.evaluation.probes import probe

    common, found, members = {"eval_every": 50, "resume": "auto"}, {}, []
    for seed in range(CNN_SEEDS):
        folder = output / f"cnn-{fold}-{seed}" / "real"
        run = finetune(real, folder, backbone="cnn", steps=CNN_STEPS, seed=seed, **common)
        single, views = scored(run, real).values()
        found.setdefault(CNN, []).append(single)
        members.append(views)
    every = [ensemble(members)]
    found[MANY] = [every[0]]
    for name, start in starts.items():
        folder = output / f"probe-{named(name)}-{fold}"
        probe(start, real, folder)
        found[f"iBOT, {name}, linear probe"] = [Predictions.load(folder / "predictions_linear.parquet")]
        run = finetune(real, output / f"tuned-{named(name)}-{fold}", init=start, steps=STEPS, **common)
        single, views = scored(run, real).values()
        found[f"iBOT, {name}, fine-tuned"], found[f"iBOT, {name}, fine-tuned, 8 views"] = [single], [views]
        every.append(views)
    found[ALL] = [ensemble(every[:3])]
    return found


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from lens_ssl_hf.training.run_directory import read_run

    data_dir, output = Path(arguments.data_dir), Path(arguments.output)
    starts = {name: pretrained(data_dir, output, name) for name in PRETRAININGS}
    cells = []
    for fold in range(FOLDS):
        for way, found in tested(real_cutouts(data_dir, fold), output, starts, fold).items():
            folder = output / "predictions"
            cells += [as_cell(one, folder, way, fold, seed) for seed, one in enumerate(found)]
    facts = {name: read_run(start) for name, start in starts.items()}
    result = {
        "pretraining": {
            name: {"images": one["num_train_images"], "seconds": round(one["seconds"]), **PRETRAININGS[name]}
            for name, one in facts.items()
        },
        "steps": STEPS,
        "cnn_steps": CNN_STEPS,
        "rows": compared(cells, MANY),
    }
    pairs = {way: (f"iBOT, {RISEN}, {way}", f"iBOT, {CONSTANT}, {way}") for way in ("linear probe", "fine-tuned")}
    result["momentum"] = {
        way: compared([cell for cell in cells if cell["method"] in pair], pair[1])[pair[0]]
        for way, pair in pairs.items()
    }
    write_json(Path(arguments.result), result)
    print(results_table(result))


def results_table(result: dict[str, Any]) -> str:
    """As Markdown."""
    from lens_ssl_hf.study.statistics import COMPARED
    from lens_ssl_hf.study.tables import as_markdown, format_interval

    minus = "minus that of the CNNs' mean"
    lines = [["model", "ROC AUC", minus, "ROC AUC, hard", minus]]
    lines.append(["---"] * len(lines[0]))
    for way, row in result["rows"].items():
        lines.append([way])
        for entry in (row[name] for name in COMPARED):
            found = entry.get("minus", {}).get("supervised")
            lines[-1] += [format_interval(entry), format_interval(found, signed=True) if found else ""]
    pretrainings = "; ".join(
        f"{name}: {one['epochs']} epochs on {one['images']:,} pictures, {one['seconds'] / 60:.0f} minutes"
        for name, one in result["pretraining"].items()
    )
    gains = {way: [row[name]["minus"]["supervised"] for name in COMPARED] for way, row in result["momentum"].items()}
    momenta = "; ".join(
        f"{way} {format_interval(auc, signed=True)}, hard {format_interval(hard, signed=True)}"
        for way, (auc, hard) in gains.items()
    )
    return (
        f"{as_markdown(lines)}\n\nMomentum to 1 minus a constant one, in ROC AUC: {momenta}.\n"
        f"Means over {FOLDS} test folds. The pretrainings: {pretrainings}. Steps of "
        f"fine-tuning: {result['steps']:,}; of the CNNs {result['cnn_steps']:,}. Intervals of 95 %: in square "
        "brackets over seeds and test groups, in round ones over test groups alone."
    )


if __name__ == "__main__":
    main()
