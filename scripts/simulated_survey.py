"""
A simulated survey in which one cutout in a thousand is a lens, as Parquet files; and how many of its lenses the first
rows of several rankings hold.

```bash
python scripts/simulated_survey.py --output survey/
lens-ssl score --model model_cards/lens-dino-vits8-classifier --input survey/cutouts --output survey/one
python scripts/simulated_survey.py --output survey/ --best_of survey/one
lens-ssl score --model model_cards/lens-dino-vits8-classifier --input survey/best --output survey/views --views 8
python scripts/simulated_survey.py --output survey/ --rankings one_model=survey/one eight_views=survey/views
```

A command that was stopped goes on where it was: files that are there are not made again; survey.json says of which
survey they are. The seed decides which ids are lenses; no file says so. Scores of the best 20,000 cutouts alone rank
these; the others follow in the order of the first ranking.
"""

import json
from dataclasses import MISSING, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet
from tqdm.auto import tqdm

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.files.raw import readable
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import write_json, writing

MODEL = Path(__file__).parents[1] / "model_cards" / "lens-dino-vits8-classifier"
PER_FILE = 5_000
FIRST = (200, 1_000, 5_000)
BEST = 20_000
FIELD = (150.0, 2.0, 4.0)  # ra and dec of a corner, and the side, in degrees


@dataclass
class Arguments:
    """The survey, and the rankings that are compared."""

    output: str = option(MISSING, "The folder of the survey.")
    cutouts: int = option(200_000, "Its cutouts.")
    prevalence: float = option(1e-3, "Share of lenses.")
    seed: int = option(2026, "Seed of the simulation: another one than that of the training cutouts.")
    num_proc: int | None = option(None, "Processes; by default one per CPU core.")
    rankings: list[str] | None = option(None, "NAME=FOLDER of lens-ssl score each, that of all cutouts first.")
    best_of: str | None = option(None, "A folder of scores: copy the cutouts that it ranks first to best/.")
    profiles: str | None = option(None, "A dataset; rank by radial profiles, too, learned from 300 of its labels.")
    result: str = option("model_cards/results/simulated_survey.json", "The JSON file to write.")
    picture: str = option("docs/simulated_survey.png", "The PNG to write.")


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    if not 1 <= arguments.prevalence * arguments.cutouts <= arguments.cutouts:
        raise InputError(
            f"{arguments.cutouts} cutouts cannot hold lenses at a prevalence of {arguments.prevalence}: give more of "
            "them, and a share up to 1"
        )
    if arguments.seed < 0:
        raise InputError(f"seed is {arguments.seed}: give at least 0")
    if arguments.profiles and not arguments.rankings:
        raise InputError("profiles has no meaning without rankings: give the ranking of all cutouts")
    folder = Path(arguments.output)
    facts = truth(arguments.cutouts, arguments.prevalence, arguments.seed)
    refuse_another(folder, arguments)
    make(folder / "cutouts", facts, arguments.seed, arguments.num_proc)
    if arguments.best_of:
        copy_best(folder, logits_of(Path(arguments.best_of), facts))
    elif not arguments.rankings:
        print(f"{len(facts['id']):,} cutouts, {facts['is_lens'].sum()} of them lenses: {folder / 'cutouts'}")
    else:
        compare(arguments, facts)


def compare(arguments: Arguments, facts: dict[str, np.ndarray]) -> None:
    """Write, draw and print how many lenses each ranking has among its first rows."""
    logits: dict[str, np.ndarray] = {}
    for one in arguments.rankings or []:
        name, _, scores = one.partition("=")
        if not scores:
            raise InputError(f"rankings is {one}: give NAME=FOLDER")
        first = next(iter(logits.values()), None)
        logits[name.replace("_", " ")] = logits_of(Path(scores), facts, first)
    if arguments.profiles:
        logits["radial profiles"] = profile_logits(Path(arguments.output) / "cutouts", arguments.profiles)
    found = {name: lenses_among(values, facts["is_lens"]) for name, values in logits.items()}
    result = {"simulated": True, "cutouts": arguments.cutouts, "lenses": int(facts["is_lens"].sum())}
    result |= {"simulation_seed": arguments.seed, "first": FIRST, "lenses_among_the_first": found}
    write_json(Path(arguments.result), result)
    draw(logits, facts["is_lens"], Path(arguments.picture))
    for name, counts in found.items():
        print(f"{name:32}", "  ".join(f"{number} of {first:,}" for first, number in zip(FIRST, counts)))


def truth(count: int, prevalence: float, seed: int) -> dict[str, np.ndarray]:
    """Ids, positions and which of the cutouts are lenses."""
    rng = np.random.default_rng(seed)
    is_lens = rng.permutation(count) < round(prevalence * count)
    ra, dec = (start + rng.uniform(0, FIELD[2], count) for start in FIELD[:2])
    return {"id": 10**9 + np.arange(count), "ra": ra, "dec": dec, "is_lens": is_lens}


def refuse_another(folder: Path, arguments: Arguments) -> None:
    """Write of which survey a folder is, before its cutouts; refuse one of another, whose lenses would be others."""
    from lens_ssl_hf.data.simulation import SIMULATOR_VERSION

    path = folder / "survey.json"
    asked = {name: getattr(arguments, name) for name in ("cutouts", "prevalence", "seed")}
    asked["simulator_version"] = SIMULATOR_VERSION
    if path.is_file():
        with readable(path, "JSON", "choose another output"):
            found = json.loads(path.read_text())
        if others := [f"{name} {found.get(name)}" for name in asked if found.get(name) != asked[name]]:
            raise InputError(f"{folder} holds another survey ({', '.join(others)}): choose another output")
    elif any((folder / "cutouts").glob("*.parquet")):
        raise InputError(f"{folder} holds cutouts, but no survey.json says of which survey: choose another output")
    else:
        write_json(path, asked)


def make(folder: Path, facts: dict[str, np.ndarray], seed: int, num_proc: int | None) -> None:
    """Write the files of cutouts that are not there."""
    from lens_ssl_hf.data.simulation import SimulationConfig, simulate_cutouts

    count = len(facts["id"])
    starts = range(0, count, PER_FILE)
    names = [folder / f"cutouts-{number:05d}-of-{len(starts):05d}.parquet" for number in range(len(starts))]
    todo = [(start, name) for start, name in zip(starts, names) if not name.is_file()]
    rows = [np.arange(start, min(start + PER_FILE, count)) for start, _ in todo]
    if not rows:
        return
    asked = np.concatenate(rows)
    config = SimulationConfig(size=48)
    pixels = simulate_cutouts(seed, asked.tolist(), facts["is_lens"][asked].tolist(), config, num_proc)
    with tqdm(total=len(asked), desc="simulate") as bar:
        for members, (_, name) in zip(rows, todo):
            flux = []
            for one, _ in islice(pixels, len(members)):
                flux.append(one)
                bar.update()
            stacked = np.stack(flux)[:, ::-1]  # i, r, g, as the models of this project have their bands
            cutouts = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(stacked, np.float32))
            columns = {key: facts[key][members] for key in ("id", "ra", "dec")}
            with writing(name) as partial:
                parquet.write_table(pyarrow.table({**columns, "pixels": cutouts}), partial, row_group_size=500)


def logits_of(scores: Path, facts: dict[str, np.ndarray], first: np.ndarray | None = None) -> np.ndarray:
    """Of each id; minus infinity without a score. Ids that are not in the folder come last, in the order of first."""
    from lens_ssl_hf.survey import manifest as manifests
    from lens_ssl_hf.survey.rank import open_shards

    manifest, ids = manifests.read(scores), facts["id"]
    if first is None and manifest["input"]["cutouts"] != len(ids):
        raise InputError(f"{scores} does not hold the scores of all cutouts of this survey: score them all")
    logits = np.full(len(ids), -np.inf) if first is None else first - 1e6
    for table in open_shards(scores, manifest):
        rows = table["id"].to_numpy() - ids[0]
        # All surveys have the same ids, but positions of their own.
        if not (np.isin(rows, ids - ids[0]).all() and (table["ra"].to_numpy() == facts["ra"][rows]).all()):
            raise InputError(f"{scores} holds scores of another survey: score this one")
        logits[rows] = table["logit"].to_numpy()
    return logits


def copy_best(folder: Path, logits: np.ndarray) -> None:
    best = set(np.argsort(-logits, kind="stable")[:BEST].tolist())
    with writing(folder / "best") as partial:
        partial.mkdir(parents=True)
        for number, path in enumerate(sorted((folder / "cutouts").glob("*.parquet"))):
            mask = [PER_FILE * number + row in best for row in range(parquet.ParquetFile(path).metadata.num_rows)]
            parquet.write_table(parquet.read_table(path).filter(mask), partial / path.name, row_group_size=500)
    print(f"the best {len(best):,} cutouts: {folder / 'best'}")


def profile_logits(cutouts: Path, dataset: str) -> np.ndarray:
    """Of each row: a logistic regression on radial profiles, with as many labels as the model of the box had."""
    import torch

    from lens_ssl_hf.data.tensors import CutoutTensors, splits_and_info
    from lens_ssl_hf.evaluation.probes import linear_probe, radial_profiles
    from lens_ssl_hf.survey.inputs import Options, open_input
    from lens_ssl_hf.survey.scorer import Scorer
    from lens_ssl_hf.training.finetune import label_subset

    splits, _ = splits_and_info(dataset, "train", "validation")
    train = splits["train"].select(label_subset(splits["train"].labels, "300", seed=0))
    scorer = Scorer([MODEL])
    rows, size = open_input(cutouts, Options(), scorer.bands, 1), scorer.asked.preparations[0].size
    profiles = []
    for batch in rows.batches(0, len(rows), scorer.asked, 500):
        pixels = torch.from_numpy(np.stack([crops[0] for crops in batch.crops]))
        profiles.append(radial_profiles(CutoutTensors(pixels, pixels, [], [], []), size))
    sets = [(radial_profiles(one, size), one.labels.numpy()) for one in (train, splits["validation"])]
    scores, _ = linear_probe(*sets[0], *sets[1], np.concatenate(profiles))
    return np.log(scores) - np.log1p(-scores)


def lenses_among(logits: np.ndarray, is_lens: np.ndarray) -> list[int]:
    found = np.cumsum(is_lens[np.argsort(-logits, kind="stable")])
    return [int(found[min(first, len(found)) - 1]) for first in FIRST]


def draw(logits: dict[str, np.ndarray], is_lens: np.ndarray, path: Path) -> None:
    from lens_ssl_hf.evaluation.plots import COLOURS, new_figure, save_figure

    figure = new_figure((6.4, 4.2))
    axes = figure.subplots()
    ranks = np.arange(1, len(is_lens) + 1)
    for (name, values), colour in zip(logits.items(), COLOURS):
        axes.plot(
            ranks, np.cumsum(is_lens[np.argsort(-values, kind="stable")]) / is_lens.sum(), color=colour, label=name
        )
    axes.plot(ranks, ranks / len(ranks), color="0.6", linestyle=":", label="random order")
    axes.plot(ranks, np.minimum(1, ranks / is_lens.sum()), color="0.6", linestyle="--", label="all lenses first")
    axes.set(xscale="log", xlim=(10, len(is_lens)), ylim=(0, 1), xlabel="First rows of the ranking")
    axes.set_ylabel(f"Share of the {is_lens.sum()} lenses among them (simulated)")
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
