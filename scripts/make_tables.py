"""
Write the tables of README.md from model_cards/results/*.json.

```bash
python scripts/make_tables.py
```

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`, and is made from what a study wrote to
model_cards/results/NAME/results.json, or scripts/benchmark.py or scripts/search_recipes.py to
model_cards/results/NAME.json.
"""

import json
import re
from pathlib import Path
from statistics import fmean

from lens_ssl_hf.evaluation.plots import METHOD_NAMES
from lens_ssl_hf.evaluation.study_report import markdown_table

ROOT = Path(__file__).parents[1]
# What sets an older simulator apart from today's; no table of version 1 is left.
OLD_SIMULATORS = {"2": "its depth is 0.45 mag shallower than version 3's and than it says"}


def speed_table(results: dict) -> str:
    """What scripts/benchmark.py wrote, as Markdown."""
    ways = ("usual", "usual, bf16 and fused AdamW", "floor")
    lines = [["training", "images/s", *(f"x {way}" for way in ways)], ["---"] * 5]
    for row in [*results["pretrain"]["rows"], *results["finetune"]["rows"]]:
        name = f"{METHOD_NAMES[row['method']]} pretraining" if "method" in row else "fine-tuning"
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


def trials_table(log: list[dict]) -> str:
    """How many recipes scripts/search_recipes.py tried per method, and the best with 100 and with 300 labels."""
    head = ["method", "trials", "best with 100 labels", "AUC (subsets)", "best with 300 labels", "AUC (subsets)"]
    lines = [head, ["---"] * len(head)]
    for method, title in METHOD_NAMES.items():
        own = [trial for trial in log if trial["method"] == method]
        if not own:
            continue
        cells = [title, str(len(own))]
        for budget in ("100", "300"):
            scored = [
                (one["validation_auc"][budget], one["name"]) for one in own if budget in one.get("validation_auc", {})
            ]
            found, name = max(scored, key=lambda one: fmean(one[0]), default=([], ""))
            cells += [name, f"{fmean(found):.3f} ({len(found)})"] if found else ["", ""]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def study_table(results: dict) -> str:
    """What scripts/run_study.py wrote, as Markdown, and which simulator made the cutouts of tests or pretrainings."""
    earlier = (one["continued_from"] for one in results["pretraining"] if "continued_from" in one)
    versions = {one.get("simulator_version") for one in (results["data"], *earlier)} - {None}
    notes = [
        f"Simulator version {version}" + (f": {OLD_SIMULATORS[version]}." if version in OLD_SIMULATORS else ".")
        for version in sorted(versions)
    ]
    return "\n\n".join([markdown_table(results), *notes])


def fill(text: str) -> str:
    """`text` with every table made anew."""

    def replace(match: re.Match) -> str:
        folder = ROOT / "model_cards" / "results"
        study = folder / match[1] / "results.json"
        results = json.loads((study if study.is_file() else folder / f"{match[1]}.json").read_text())
        make = study_table if study.is_file() else trials_table if match[1] == "trials" else speed_table
        made = make(results)
        return f"<!-- table: {match[1]} -->\n{made}\n<!-- end table -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end table -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
