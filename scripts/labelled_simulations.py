"""
What simulated arcs on real galaxies are worth on a real sky, and candidates that experts were undecided about: five
folds of the CFHTLS cutouts that experts graded.

```bash
python scripts/prepare_cfhtls.py --data_dir ../shared/data/cfhtls_spacewarps --output_dir runs/cfhtls/data
python scripts/labelled_simulations.py --data_dir runs/cfhtls/data --output runs/cfhtls/painted --start cnn
```

Arcs are painted on the windows and non-lenses outside of the test fold (lens-ssl paint). A classifier is fine-tuned on
these, and then on the real labels of the training folds; beside it one on the real labels alone, with as many steps.
Each is scored as it is, with the mean logit of eight views, and with that of all seeds and views. Windows that show
the graded candidate of their own stamp, which may be a lens, are left out. With `--undecided` another classifier
trains on real labels and on candidates of middling grades, with soft labels. A command that was stopped goes on.
"""

import hashlib
import json
import math
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import InputError, check_at_least, exit_on_input_error
from lens_ssl_hf.files import write_json, write_text

PIXEL_SCALE, SEEING = 0.28, 0.7  # arcsec, of the cutouts that prepare_cfhtls writes
# A graded candidate is in the middle of its stamp. A crop of 32 pixels shows 48 of the stamp; its corners are 34 away
# from its middle.
CANDIDATE, REACH = (80, 80), 34
# What the card of the exported classifier says of these cutouts, beside the numbers.
ORIGIN = """\
The cutouts are 8-bit pictures of the CFHT Legacy Survey from github.com/drphilmarshall/SpaceWarps (MIT licence). The
labels are grades of experts (Space Warps: Marshall et al. 2016, More et al. 2016), not spectroscopy: a lens is a
candidate with a mean grade of 1.7 or more out of 3, a hard non-lens a candidate with 0.3, and a field non-lens another
object near a candidate. Field non-lenses are fainter than candidates, and the sky around many of them is mirrored at
the edge of a picture, so most of them are told apart by more than their shape: read the AUC against hard non-lenses.

**Do not search other surveys or unselected galaxies with it as it is.** It has seen graded candidates of one survey
and objects beside them, at 0.28 arcsec per pixel: resample pictures to that first, so that 32 pixels show 9 arcsec.
"""
# Candidates with mean grades between those of hard non-lenses and lenses count as lenses by a share.
NONLENS_GRADE, LENS_GRADE = 0.3, 1.7
VOTES = 14  # which give all of these shares: the mean grades are 0.7, 1.0 and 1.3
ARCS, BOTH, REAL = "simulated arcs alone", "simulated arcs, then real labels", "real labels alone"
SOFT = "real labels, and soft labels of undecided candidates"


@dataclass
class Arguments:
    """The cutouts, the start, and the steps."""

    data_dir: str = option(MISSING, "The folder that scripts/prepare_cfhtls.py wrote.")
    output: str = option(MISSING, "The folder of the painted cutouts and runs.")
    start: str = option("model_cards/lens-dino-vits8", "A pretrained ViT, or vitt8, vits8 or cnn from scratch.")
    painted_steps: int = option(1000, "Steps on simulated arcs.")
    real_steps: int = option(400, "Steps on real labels after that.")
    undecided: str | None = option(None, "A stamps.csv with mean grades, whose undecided candidates are added.")
    per_galaxy: int = option(3, "Simulated lenses of each galaxy.")
    seeds: int = option(1, "Repetitions.")
    folds: list[int] = option(None, "Test folds; by default all five.")
    num_proc: int | None = option(None, "Processes that paint.")
    result: str = option("model_cards/results/labelled_simulations.json", "The JSON file to write, or add to.")
    export: str | None = option(None, "A folder for the classifier of real labels alone, of the first fold and seed.")


def shows_a_candidate(file: str) -> bool:
    """Whether a window, whose name ends with its row and column in the stamp, shows the candidate of the stamp."""
    if not file.startswith("windows/"):
        return False
    row, column = (int(part) for part in Path(file).stem.split("_")[-2:])
    return math.hypot(row - CANDIDATE[0], column - CANDIDATE[1]) < REACH


def real_cutouts(data_dir: Path, fold: int, table: str = "cfhtls.csv") -> Any:
    from lens_ssl_hf import load_cutouts

    return load_cutouts(data_dir / table, bands=["i", "r", "g"], subclass_column="kind", test_fold=fold,
                        validation_fraction=0.2, pixel_scale=PIXEL_SCALE)  # fmt: skip


def painted(arguments: Arguments, fold: int) -> Path:
    """The dataset of simulated arcs for a test fold."""
    import pandas as pd

    from lens_ssl_hf import paint

    data_dir = Path(arguments.data_dir)
    rows = pd.read_csv(data_dir / "cfhtls.csv")
    table = rows[~rows["file"].map(shows_a_candidate)].to_csv(index=False)
    digest = hashlib.blake2b(f"{arguments.per_galaxy}\n{table}".encode(), digest_size=4).hexdigest()
    output = Path(arguments.output) / f"painted-{fold}-{digest}"
    if not output.exists():
        write_text(data_dir / "galaxies.csv", table)
        settings = {"per_galaxy": arguments.per_galaxy, "num_proc": arguments.num_proc}
        paint(real_cutouts(data_dir, fold, "galaxies.csv"), output, SEEING, **settings)
    return output


def runs(arguments: Arguments, real: Any, fold: int, seed: int, lenses: dict[str, int]) -> dict[str, Path]:
    """The fine-tuned classifiers of a fold and seed; with soft labels where there are `lens_votes`."""
    from lens_ssl_hf import finetune

    is_name = arguments.start in ("vitt8", "vits8", "cnn")
    start = {"backbone": arguments.start} if is_name else {"init": arguments.start}
    folder = Path(arguments.output) / f"{Path(arguments.start).name}-{fold}-{seed}"
    common = {"seed": seed, "resume": "auto", "eval_every": 50}
    arcs = str(painted(arguments, fold))
    first = finetune(arcs, folder / "painted", steps=arguments.painted_steps, **start, **common)
    steps = arguments.painted_steps + arguments.real_steps
    found = {
        ARCS: first,
        BOTH: finetune(real, folder / "both", init=first, steps=arguments.real_steps, **common),
        REAL: finetune(real, folder / "real", steps=steps, **start, **common),
    }
    if lenses:
        votes, scores = undecided(lenses, real, found[REAL], folder)
        extra = {"extra_labels": [votes], "extra_scores": scores}
        found[SOFT] = finetune(real, folder / "soft", steps=steps, **extra, **start, **common)
    return found


def lens_votes(stamps: str) -> dict[str, int]:
    """How many of `VOTES` say lens, of the windows that show a candidate which is neither lens nor non-lens."""
    from prepare_cfhtls import read_table

    table = read_table(Path(stamps), ("file", "grade"), "give the stamps.csv of the candidates as undecided")
    between = table[table["grade"].between(NONLENS_GRADE, LENS_GRADE, inclusive="neither")]
    share = (between["grade"] - NONLENS_GRADE) / (LENS_GRADE - NONLENS_GRADE)
    names = [f"windows/{Path(file).stem}_{CANDIDATE[0]}_{CANDIDATE[1]}.png" for file in between["file"]]
    return dict(zip(names, (VOTES * share).round().astype(int).tolist()))


def undecided(lenses: dict[str, int], real: Any, model: Path, folder: Path) -> tuple[Path, Path]:
    """
    A table of votes for the undecided candidates of a fold, and the scores by which `extra_labels` finds their
    cutouts. Groups of the validation and the test split are left out.
    """
    import pandas as pd
    from datasets import DatasetDict

    from lens_ssl_hf import save_cutouts, score

    held_out = {group for split in ("validation", "test") for group in real[split]["group"]}
    pool = real["unlabelled"]
    pairs = enumerate(zip(pool["id"], pool["group"]))
    chosen = pool.select([i for i, (name, group) in pairs if name in lenses and group not in held_out])
    rows = [
        {"id": name, "grade": "lens" if vote < lenses[name] else "nonlens", "grader": vote}
        for name in chosen["id"]
        for vote in range(VOTES)
    ]
    table = pd.DataFrame(rows, columns=["id", "grade", "grader"]).to_csv(index=False)
    folder = folder / f"undecided-{hashlib.blake2b(table.encode(), digest_size=4).hexdigest()}"
    if not (folder / "cutouts").exists():
        save_cutouts(DatasetDict(unlabelled=chosen), folder / "cutouts")
    score(model, folder / "cutouts", folder / "scores")
    write_text(folder / "votes.csv", table)
    return folder / "votes.csv", folder / "scores"


def scored(run: Path, real: Any) -> dict[str, Any]:
    """Predictions of the test split, as it is and by eight views."""
    import numpy as np
    from scipy.special import expit

    from lens_ssl_hf import predict
    from lens_ssl_hf.survey.scorer import Scorer

    single = predict(run, real)
    crops = ((one,) for one in real["test"].with_format("numpy")["pixels"][:])
    logits = np.concatenate([found.logits[:, 0] for found in Scorer([run], views=8).score(crops)])
    return {"": single, ", 8 views": replace(single, score=expit(logits))}


def as_cell(predictions: Any, folder: Path, way: str, fold: int, seed: int) -> dict[str, Any]:
    """Predictions, which are saved, as a cell of `compare`."""
    directory = folder / f"{way}, {fold}, {seed}"
    directory.mkdir(parents=True, exist_ok=True)
    predictions.save(directory / "predictions.parquet")
    cell = {"method": way, "backbone": "", "labels": "all", "num_labels": 0, "seed": seed, "subset": 0}
    return cell | {"fold": fold, "directory": str(directory)}


def compared(cells: list[dict[str, Any]], baseline: str) -> dict[str, dict[str, Any]]:
    """The AUCs of each way, and what they are above those of the baseline, which `compare` calls supervised."""
    from lens_ssl_hf.study.statistics import COMPARED, compare

    names = {way: "supervised" if way == baseline else way for way in (cell["method"] for cell in cells)}
    rows = {row["method"]: row for row in compare([cell | {"method": names[cell["method"]]} for cell in cells])}
    return {way: {name: rows[names[way]][name] for name in COMPARED} for way in names}


def results_table(result: dict[str, Any]) -> str:
    """The table of results, by their start."""
    from lens_ssl_hf.study.statistics import COMPARED
    from lens_ssl_hf.study.tables import as_markdown, format_interval

    minus = "minus real labels alone, same scoring"
    head = ["model", "fine-tuned on", "ROC AUC", minus, "ROC AUC, hard", minus]
    lines = [head, ["---"] * len(head)]
    for start, own in result.items():
        for way, row in own["rows"].items():
            cells = [start, way]
            for entry in (row[name] for name in COMPARED):
                found = entry.get("minus", {}).get("supervised")
                cells += [format_interval(entry), format_interval(found, signed=True) if found else ""]
            lines.append(cells)
    note = []
    for start, own in result.items():
        steps = own["painted_steps"], own["real_steps"]
        note.append(
            f"{start}: means over {len(own['folds'])} test folds and seeds; seeds of the training: {own['seeds']}. "
            f"{steps[0]:,} steps on simulated arcs, {steps[1]:,} on real labels after them; {sum(steps):,} on real "
            "labels alone, or with soft labels. Rows of several seeds have one ensemble per fold."
        )
    note.append(
        "Intervals of 95 %: in square brackets over seeds and test groups, in round ones over test groups alone."
    )
    return f"{as_markdown(lines)}\n\n" + "\n".join(note)


def story(fold: int, table: str) -> str:
    """What the card of the published classifier says of its cutouts, and of what to expect."""
    text = f"{ORIGIN}\nThis is one of the classifiers of real labels alone, that of test fold {fold} and seed 0. What "
    return text + f"to expect of it is the first line of this table, and not what it has on its own fold.\n\n{table}"


def publish(arguments: Arguments, run: Path, predictions: Any, info: Any, table: str) -> None:
    """Export a classifier, with a card that tells what all folds gave, and without pictures of the cutouts."""
    from lens_ssl_hf import export
    from lens_ssl_hf.evaluation.reports import describe, report_on
    from lens_ssl_hf.hub.card import CardFacts, write_card

    folder = export(run, arguments.export)
    fold = arguments.folds[0]
    facts = CardFacts.from_run(run, str(arguments.export), study=story(fold, table))
    facts.pictures = [file.name for file in folder.glob("*.png")]
    report = {
        **describe(vars(info), "test"),
        "dataset": f"{info.name}, fold {fold}",
        "model": folder.name,
        "warnings": [],
        **report_on(predictions),
    }
    facts.reports = {"classifier": report}
    write_json(folder / "metrics.json", report)
    write_card(facts, folder)


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from lens_ssl_hf import cutout_info
    from lens_ssl_hf.data.files.raw import readable
    from lens_ssl_hf.evaluation.predictions import ensemble
    from lens_ssl_hf.study.statistics import COMPARED

    path, start, result = Path(arguments.result), Path(arguments.start).name, {}
    if path.exists():
        with readable(path, "JSON", "give another result"):
            result = json.loads(path.read_text())
    arguments.folds = arguments.folds or list(range(5))
    for fold in arguments.folds:
        if fold not in range(5):
            raise InputError(f"folds has {fold}: give numbers from 0 to 4")
    check_at_least(1, seeds=arguments.seeds)
    lenses = {} if arguments.undecided is None else lens_votes(arguments.undecided)
    cells: dict[str, list[dict[str, Any]]] = {}  # by how they are scored

    def add(way: str, how: str, fold: int, seed: int, predictions: Any) -> None:
        folder = Path(arguments.output) / "predictions" / start / how.removeprefix(", ")
        cells.setdefault(how, []).append(as_cell(predictions, folder, way, fold, seed))

    for fold in arguments.folds:
        real, members = real_cutouts(Path(arguments.data_dir), fold), {}
        for seed in range(arguments.seeds):
            for way, run in runs(arguments, real, fold, seed, lenses).items():
                for how, found in scored(run, real).items():
                    add(way, how, fold, seed, found)
                    if (way, how, fold, seed) == (REAL, "", arguments.folds[0], 0):
                        best = run, found, cutout_info(real)
                members.setdefault(way, []).append(found)  # of eight views
        for way, every in members.items() if arguments.seeds > 1 else ():
            add(way, f", 8 views of {arguments.seeds} seeds", fold, 0, ensemble(every))
    rows = {}
    for how, own in cells.items():
        rows |= {way + how: row for way, row in compared(own, REAL).items()}
    facts = {name: getattr(arguments, name) for name in ("painted_steps", "real_steps", "per_galaxy", "seeds")}
    result[start] = {**facts, "undecided": len(lenses), "folds": arguments.folds, "rows": rows}
    write_json(path, result)
    if arguments.export is not None:
        publish(arguments, *best, results_table({start: result[start]}))
    for method, row in rows.items():
        print(f"{method:50}", "  ".join(f"{name} {row[name]['value']:.3f}" for name in COMPARED))


if __name__ == "__main__":
    main()
