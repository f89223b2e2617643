"""
Write the tables of README.md from model_cards/results/*.json.

```bash
python scripts/make_tables.py
```

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`, and is made from model_cards/results/NAME.json.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
INITS = {"scratch": "from scratch", "dino": "DINO", "ibot": "iBOT", "simsiam": "SimSiam"}
COLUMNS = {"roc_auc": "ROC AUC, all", "auc_vs_hard_nonlens": "lens vs hard non-lens"}


def table(results: dict) -> str:
    """The rows of one results file as Markdown: mean AUC, 95 % interval, difference to scratch."""
    columns = [name for name in COLUMNS if name in results["rows"][0]]
    head = ["labels", "initialisation", "seeds"]
    for name in columns:
        head += [f"{COLUMNS[name]} (95 %)", "minus scratch"]
    lines = [head, ["---"] * len(head)]
    for row in results["rows"]:
        cells = [str(row["num_labels"]), INITS[row["init_method"]], str(row["seeds"])]
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
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fill(text: str) -> str:
    """`text` with every table made anew."""

    def replace(match: re.Match) -> str:
        results = json.loads((ROOT / "model_cards" / "results" / f"{match[1]}.json").read_text())
        return f"<!-- table: {match[1]} -->\n{table(results)}\n<!-- end table -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end table -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
