"""
How many grades a search needs to reach a completeness, where the loop chooses what is graded and where chance does: on
simulated cutouts, by a logistic regression on the frozen [CLS] of a backbone.

```bash
python scripts/active_learning.py --backbone model_cards/lens-dino-vits8
```

A seed halves the survey: objects of one half are graded, completeness is measured on the other. Every strategy begins
with the same few lenses and non-lenses. Then it grades a batch, fits anew, and so on.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from sklearn.linear_model import LogisticRegression

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import write_json
from lens_ssl_hf.survey.proposals import doubt, unlike

STRATEGIES = ("random", "top", "uncertain", "diverse", "mixed")  # mixed: a third each of the three before it
SETTINGS = {
    "simulated": True,
    "simulation_seed": 719,  # other cutouts than those of the pretraining
    "prevalence": 0.01,
    "first_lenses": 5,  # and ten times as many non-lenses, graded at the beginning
    "batch": 90,  # grades between two fits
    "within": 0.02,  # the best rows, as a share of all, that completeness is measured in
    "target": 0.6,  # about what the grades of all objects give
}


@dataclass
class Arguments:
    """The experiment."""

    backbone: str = option("model_cards/lens-dino-vits8", "A pretrained ViT for simulated cutouts.")
    result: str = option("model_cards/results/active_learning.json", "The JSON file to write.")
    picture: str = option("docs/active_learning.png", "The PNG to write.")
    cutouts: int = option(16_000, "Cutouts of the simulated survey.")
    rounds: int = option(30, "Batches of grades.")
    seeds: int = option(3, "Halvings of the survey, first objects and draws.")


def embed(backbone: str, count: int):
    """[CLS] `(n, width)`, scaled to equal variances, and whether it is a lens `(n,)`, of all cutouts."""
    import torch

    from lens_ssl_hf.data.files.raw import RawCutout
    from lens_ssl_hf.data.simulation import BANDS, simulate_cutouts
    from lens_ssl_hf.data.tensors import normalise
    from lens_ssl_hf.models.backbones import extract_cls, load_encoder
    from lens_ssl_hf.survey.crops import Asked, Preparation

    encoder, seed = load_encoder(backbone), SETTINGS["simulation_seed"]
    known = encoder.config.cutouts
    asked = Asked([Preparation(known, encoder.config.num_channels, encoder.config.image_size)])
    is_lens = np.random.default_rng(seed).permutation(count) < round(SETTINGS["prevalence"] * count)
    stream = simulate_cutouts(seed, range(count), is_lens.tolist(), num_proc=1)
    crops = [asked.crops(RawCutout(flux, tuple(BANDS)), "a cutout")[0] for flux, _ in stream]
    images = normalise(torch.from_numpy(np.stack(crops)), known["image_mean"], known["image_std"])
    with torch.inference_mode():
        features = extract_cls(encoder, images).numpy()
    return (features - features.mean(axis=0)) / features.std(axis=0), is_lens


def choose(strategy: str, number: int, logits, features, left, rng):
    """`number` of the objects `left` (indices), to be graded next."""
    best = left[np.argsort(-logits[left])]
    if strategy == "random":
        return rng.permutation(left)[:number]
    if strategy == "top":
        return best[:number]
    if strategy == "uncertain":
        return left[np.argsort(-doubt(pyarrow.table({"logit": logits[left]}), None))[:number]]
    if strategy == "diverse":
        pool = best[: 20 * number]  # as rank has it
        return pool[unlike(features[pool], number, int(rng.integers(2**31)))]
    found = np.empty(0, int)
    for one in ("top", "uncertain", "diverse"):
        found = np.append(found, choose(one, number // 3, logits, features, np.setdiff1d(left, found), rng))
    return found


def run(strategy: str, seed: int, features, is_lens, rounds: int) -> dict[str, list]:
    """Of each fit: the number of grades, the lenses among them, and the completeness on the other half."""
    rng, curve = np.random.default_rng(seed), {"grades": [], "lenses": [], "completeness": []}
    pool, test = np.array_split(rng.permutation(len(features)), 2)
    lenses, others = pool[is_lens[pool]], pool[~is_lens[pool]]
    graded = np.append(lenses[: SETTINGS["first_lenses"]], others[: 10 * SETTINGS["first_lenses"]])
    for _ in range(rounds + 1):
        model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
        logits = model.fit(features[graded], is_lens[graded]).decision_function(features)
        first = test[np.argsort(-logits[test])[: round(SETTINGS["within"] * len(test))]]
        curve["grades"].append(len(graded))
        curve["lenses"].append(int(is_lens[graded].sum()))
        curve["completeness"].append(round(float(is_lens[first].sum() / is_lens[test].sum()), 4))
        left = np.setdiff1d(pool, graded)
        more = left if strategy == "all" else choose(strategy, SETTINGS["batch"], logits, features, left, rng)
        graded = np.append(graded, more)
    return curve


def needed(curve: dict[str, list]) -> int | None:
    """Grades with which the completeness first reaches the target; `None` where it never does."""
    pairs = zip(curve["grades"], curve["completeness"])
    return next((grades for grades, found in pairs if found >= SETTINGS["target"]), None)


def draw(result: dict, path: Path) -> None:
    from lens_ssl_hf.evaluation.plots import COLOURS, new_figure, save_figure

    figure = new_figure((6.4, 4.2))
    axes = figure.subplots()
    for (name, one), colour in zip(result["strategies"].items(), COLOURS):
        grades, values = one["curves"][0]["grades"], list(zip(*(curve["completeness"] for curve in one["curves"])))
        axes.plot(grades, [sum(found) / len(found) for found in values], color=colour, label=name)
        axes.fill_between(grades, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.12)
    axes.axhline(result["target"], color="0.6", linewidth=1)
    axes.set(xlabel="Graded objects", ylabel=f"Completeness in the first {result['within']:.0%} (simulated)")
    axes.grid(color="0.92")
    axes.legend(fontsize=8, title="mean and range of the seeds", title_fontsize=8)
    save_figure(figure, path)


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    graded = SETTINGS["batch"] * (arguments.rounds + 1) + 11 * SETTINGS["first_lenses"]  # of one half
    for name, least in {"rounds": 1, "seeds": 1, "cutouts": max(2 * graded, 2000)}.items():
        if (value := getattr(arguments, name)) < least:
            raise InputError(f"{name} is {value}: give at least {least}")
    start, seeds = time.perf_counter(), range(arguments.seeds)
    survey = embed(arguments.backbone, arguments.cutouts)
    result = SETTINGS | {"backbone": Path(arguments.backbone).name, "cutouts": arguments.cutouts, "strategies": {}}
    result |= {"completeness_of_all": [run("all", seed, *survey, 1)["completeness"][-1] for seed in seeds]}
    for name in STRATEGIES:
        curves = [run(name, seed, *survey, arguments.rounds) for seed in seeds]
        result["strategies"][name] = {"grades_needed": list(map(needed, curves)), "curves": curves}
        print(f"{name:10} grades to reach {SETTINGS['target']:.0%}: {result['strategies'][name]['grades_needed']}")
    write_json(Path(arguments.result), result | {"seconds": round(time.perf_counter() - start)})
    draw(result, Path(arguments.picture))


if __name__ == "__main__":
    main()
