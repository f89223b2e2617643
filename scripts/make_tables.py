"""
Write the tables of README.md from model_cards/results/*.json.

```bash
python scripts/make_tables.py
```

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`, and is made from model_cards/results/NAME.json
or, where a study wrote it, model_cards/results/NAME/results.json.
"""

import json
import re
from pathlib import Path

from lens_ssl_hf.evaluation.study_report import markdown_table

ROOT = Path(__file__).parents[1]
INITS = {"scratch": "from scratch", "dino": "DINO", "ibot": "iBOT", "simsiam": "SimSiam"}
INITS |= {"radial profiles": "(logistic regression on radial profiles)"}
COLUMNS = {"roc_auc": "ROC AUC, all", "auc_vs_hard_nonlens": "lens vs hard non-lens"}


def table(results: dict) -> str:
    """One results file as Markdown: mean AUC, 95 % interval, difference to scratch; and what it was made with."""
    columns = [name for name in COLUMNS if name in results["rows"][0]]
    head = ["labels", "initialisation", "seeds"]
    for name in columns:
        head += [f"{COLUMNS[name]} (95 %)", "minus scratch"]
    lines = [head, ["---"] * len(head)]
    for row in results["rows"]:
        cells = [str(row["num_labels"]), INITS.get(row["init_method"], row["init_method"]), str(row["seeds"])]
        for name in columns:
            auc = row[name]
            cells.append(f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]")
            has = "difference" in auc
            cells.append(
                f"{auc['difference']:+.3f} [{auc['difference_low']:+.3f}, {auc['difference_high']:+.3f}]"
                if has
                else ""
            )
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + caption(results)


def caption(results: dict) -> str:
    """What was tested on, pretrained on and fine-tuned how, in sentences."""
    test = results["test"]
    kinds = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in test["subclasses"].items() if name != "lens"
    )
    sentences = [f"Test split: {test['num_lenses']} lenses, {test['num_nonlenses']} non-lenses ({kinds})."]
    for run in results["pretraining"].values():
        sentences.append(
            f"{INITS[run['method']]}: {run['backbone']}, {run['arguments']['epochs']} epochs on "
            f"{run['num_train_images']:,} images, {run['seconds'] / 60:.0f} minutes on {run['device']} "
            f"({run['precision']}), one pretraining seed."
        )
    decays = ", ".join(f"{run['layer_decay']:g} {name}" for name, run in results["finetuning"].items())
    steps = {run["steps"] for run in results["finetuning"].values()}
    sentences.append(f"Fine-tuning: {' or '.join(map(str, steps))} steps; layer-wise learning-rate decay {decays}.")
    return "\n".join(sentences)


def speed_table(results: dict) -> str:
    """What scripts/benchmark.py wrote, as Markdown."""
    ways = ("usual", "usual, bf16 and fused AdamW", "floor")
    lines = [["training", "images/s", *(f"x {way}" for way in ways)], ["---"] * 5]
    for row in [*results["pretrain"]["rows"], *results["finetune"]["rows"]]:
        name = f"{INITS[row['method']]} pretraining" if "method" in row else "fine-tuning"
        ratios = [f"{row['ours_over'][way]:.2f}" if way in row["ours_over"] else "" for way in ways]
        rate = f"{row['images_per_second']['ours']['median']:.0f}"
        lines.append([f"{name}, {row['backbone']}, {row['precision']}", rate, *ratios])
    machine, asked = results["machine"], results["pretrain"]
    size = results["memory"]
    text = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}; pretraining with batch "
        f"{asked['batch_size']} and 2 + {asked['num_local_views']} views (simsiam 2). Peak memory of DINO with vitb8, "
        f"batch 256, 2 + 4 views: {size['peak_bytes'] / 2**30:.1f} GiB."
    )
    levers = [["lever", "predicted", "measured"], ["---"] * 3]
    for row in results["levers"]["rows"]:
        levers.append([row["lever"], f"{row['predicted']:.2f}", f"{row['measured']:.2f}"])
    tables = ["\n".join("| " + " | ".join(cells) + " |" for cells in rows) for rows in (lines, levers)]
    return f"{tables[0]}\n\n{text}\n\n{tables[1]}"


def fill(text: str) -> str:
    """`text` with every table made anew."""

    def replace(match: re.Match) -> str:
        folder = ROOT / "model_cards" / "results"
        if (folder / match[1] / "results.json").is_file():
            made = markdown_table(json.loads((folder / match[1] / "results.json").read_text()))
            return f"<!-- table: {match[1]} -->\n{made}\n<!-- end table -->"
        results = json.loads((folder / f"{match[1]}.json").read_text())
        made = speed_table(results) if match[1].startswith("benchmark") else table(results)
        return f"<!-- table: {match[1]} -->\n{made}\n<!-- end table -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end table -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
