"""
What simulated arcs on real galaxies are worth on a real sky: five folds of the CFHTLS cutouts that experts graded.

```bash
python scripts/prepare_cfhtls.py --data_dir ../shared/data/cfhtls_spacewarps --output_dir runs/cfhtls/data
python scripts/labelled_simulations.py --data_dir runs/cfhtls/data --output runs/cfhtls/painted
python scripts/labelled_simulations.py --data_dir runs/cfhtls/data --output runs/cfhtls/painted --start cnn
```

Arcs are painted on the windows and non-lenses outside of the test fold (lens-ssl paint). A classifier is fine-tuned on
these, and then on the real labels of the training folds; beside it one on the real labels alone, with as many steps.
Windows on the graded candidates themselves, which may be lenses, are left out. A command that was stopped goes on.
"""

import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.files import write_json

PIXEL_SCALE, SEEING = 0.28, 0.7  # arcsec, of the cutouts that prepare_cfhtls writes
CENTRE = "_80_80.png"  # the end of a window's name where it shows the candidate of its stamp
MEASURES = ("roc_auc", "auc_vs_hard_nonlens")
WAYS = ("simulated arcs alone", "simulated arcs, then real labels", "real labels alone")


@dataclass
class Arguments:
    """The cutouts, the start, and the steps."""

    data_dir: str = option(MISSING, "The folder that scripts/prepare_cfhtls.py wrote.")
    output: str = option(MISSING, "The folder of the painted cutouts and runs.")
    start: str = option("model_cards/lens-dino-vits8", "A pretrained ViT, or vitt8, vits8 or cnn from scratch.")
    painted_steps: int = option(1000, "Steps on simulated arcs.")
    real_steps: int = option(400, "Steps on real labels after that.")
    per_galaxy: int = option(3, "Simulated lenses of each galaxy.")
    seeds: int = option(1, "Repetitions; the logits of all are averaged, too.")
    folds: list[int] = option(None, "Test folds; by default all five.")
    ways: list[int] = option(None, "Numbers of the ways, from 0; by default all three.")
    num_proc: int | None = option(None, "Processes that paint.")
    result: str = option("model_cards/results/labelled_simulations.json", "The JSON file to write, or add to.")


def real_cutouts(data_dir: Path, fold: int, table: str = "cfhtls.csv") -> Any:
    from lens_ssl_hf import load_cutouts

    return load_cutouts(data_dir / table, bands=["i", "r", "g"], subclass_column="kind", test_fold=fold,
                        validation_fraction=0.2, pixel_scale=PIXEL_SCALE)  # fmt: skip


def painted(arguments: Arguments, fold: int) -> Path:
    """The dataset of simulated arcs for a test fold."""
    import pandas as pd

    from lens_ssl_hf import paint

    output, data_dir = Path(arguments.output) / f"painted-{fold}", Path(arguments.data_dir)
    if not output.exists():
        rows = pd.read_csv(data_dir / "cfhtls.csv")
        rows[~rows["file"].str.endswith(CENTRE)].to_csv(data_dir / "galaxies.csv", index=False)
        settings = {"per_galaxy": arguments.per_galaxy, "num_proc": arguments.num_proc}
        paint(real_cutouts(data_dir, fold, "galaxies.csv"), output, SEEING, **settings)
    return output


def scored(arguments: Arguments, fold: int, seed: int, way: str) -> Any:
    """Predictions of the test fold."""
    from lens_ssl_hf import finetune, predict

    real = real_cutouts(Path(arguments.data_dir), fold)
    is_name = arguments.start in ("vitt8", "vits8", "cnn")
    start = {"backbone": arguments.start} if is_name else {"init": arguments.start}
    folder = Path(arguments.output) / f"{Path(arguments.start).name}-{fold}-{seed}"
    common = {"seed": seed, "resume": "auto", "eval_every": 50}
    if way == WAYS[2]:
        steps = arguments.painted_steps + arguments.real_steps
        return predict(finetune(real, folder / "real", steps=steps, **start, **common), real)
    first = finetune(
        str(painted(arguments, fold)), folder / "painted", steps=arguments.painted_steps, **start, **common
    )
    if way == WAYS[0]:
        return predict(first, real)
    return predict(finetune(real, folder / "both", init=first, steps=arguments.real_steps, **common), real)


def measured(found: list[Any]) -> dict[str, list[float]]:
    """Of the predictions of each seed: their measures, and at last those of the mean logit."""
    import numpy as np

    from lens_ssl_hf.evaluation.metrics import measure

    scores = [one.score for one in found]
    if len(scores) > 1:
        logits = [np.log(np.clip(one, 1e-7, 1)) - np.log(np.clip(1 - one, 1e-7, 1)) for one in scores]
        scores.append(1 / (1 + np.exp(-np.mean(logits, axis=0))))
    every = [measure(found[0].label, one, subclasses=found[0].subclass) for one in scores]
    return {name: [round(one[name]["value"], 4) for one in every] for name in MEASURES}


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    path, start = Path(arguments.result), Path(arguments.start).name
    result = json.loads(path.read_text()) if path.exists() else {}
    facts = {name: getattr(arguments, name) for name in ("painted_steps", "real_steps", "per_galaxy", "seeds")}
    result[start] = own = {**facts, "folds": {}}  # of several seeds, the last values are those of the mean logit
    for fold in range(5) if arguments.folds is None else arguments.folds:
        for way in WAYS if arguments.ways is None else [WAYS[number] for number in arguments.ways]:
            found = [scored(arguments, fold, seed, way) for seed in range(arguments.seeds)]
            own["folds"].setdefault(way, {})[str(fold)] = measured(found)
            write_json(path, result)
    for way, folds in own["folds"].items():
        print(
            f"{way:34}", "  ".join(f"{name} {fmean(one[name][-1] for one in folds.values()):.3f}" for name in MEASURES)
        )


if __name__ == "__main__":
    main()
