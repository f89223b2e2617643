"""
Write the cards of the models in model_cards/ again, from the files in model_cards/results; and before that measure the
classifiers for simulated cutouts on cutouts from elsewhere, where these are given.

```bash
python scripts/box_cards.py
python scripts/box_cards.py --second_sky runs/sky2/dataset --cfhtls ../shared/data/cfhtls_spacewarps
```

Of the second sky, that of scripts/second_sky.py, the test split is taken, and of the CFHTLS all graded cutouts in the
pixels of the survey, which are nearly those of the simulated ones.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labelled_simulations import results_table, story

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import write_json

BOX = Path("model_cards")  # of the checkout, in which this is started: recipes name their start like that
RESULTS = BOX / "results"
CLASSIFIERS = ("lens-dino-vits8-classifier", "lens-dino-vits8-varied-classifier")
CNN = "lens-cnn-cfhtls-classifier"
SIZE = 32  # of the smallest graded cutouts, in pixels
NOT_SHOWN = ("model", "num_bootstrap", "seed")
# What the cards call the cutouts, which know no more of themselves than their files.
SECOND_SKY = {"dataset": "another simulated sky (scripts/second_sky.py)", "simulated": True}
CFHTLS = {"dataset": "graded candidates and other objects of the CFHTLS (Space Warps)"}
# What made the datasets, by fingerprint; the recipes know how they were called.
VARIED = "lens-ssl simulate varied --varied yes --like model_cards/lens-dino-vits8 --train_size 20000 "
VARIED += "--validation_size 1000 --test_size 2000 --size 48 --lens_fraction 0.5"
MADE_BY = {
    "de475e7d8acc2c7c4a2b964eb05727e7": "lens-ssl simulate study_data --size 48 --unlabelled_size 60000 "
    "--test_large_size 20000",
    "d5c47999b0099f2872f2f303bbf46f6c": "lens-ssl simulate sim --size 48 --test_large_size 20000",
    "447668c225f8334168fee98dc7e14fb3": f"{VARIED} --data_seed 11",
    "be4a625542c92cd9abf78af7c6d2080d": f"{VARIED} --data_seed 12",
}


@dataclass
class Arguments:
    """The cutouts, where it is measured again."""

    second_sky: str | None = option(None, "The dataset that scripts/second_sky.py made.")
    cfhtls: str | None = option(None, "The folder with catalog.csv and cutouts/ that scripts/prepare_cfhtls.py reads.")
    result: str = option(str(RESULTS / "elsewhere.json"), "The JSON file of what is measured.")


def measure(second_sky: str, cfhtls: str) -> dict[str, list[dict[str, Any]]]:
    """Reports of the classifiers on the cutouts from elsewhere."""
    from datasets import concatenate_datasets

    from lens_ssl_hf import evaluate_model, load_cutouts
    from lens_ssl_hf.hub.clean import without_local_paths

    graded = {"bands": ["i", "r", "g"], "subclass_column": "kind", "validation_fraction": 0.2, "pixel_scale": 0.187}
    table = Path(cfhtls) / "catalog.csv"
    folds = [load_cutouts(table, test_fold=fold, size=SIZE, **graded)["test"] for fold in range(5)]
    skies = [(load_cutouts(second_sky)["test"], SECOND_SKY), (concatenate_datasets(folds), CFHTLS)]
    reports = {}
    for name in CLASSIFIERS:
        found = [without_local_paths(evaluate_model(BOX / name, sky)) | called for sky, called in skies]
        reports[name] = [{key: value for key, value in one.items() if key not in NOT_SHOWN} for one in found]
        print(name, *(f"{one['dataset']}: AUC {one['metrics']['roc_auc']['value']:.3f}" for one in reports[name]))
    return reports


def cards(reports: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the card of each model says, by its name."""
    from lens_ssl_hf.hub.card import CardFacts

    monitors, simulations = (
        json.loads((RESULTS / name).read_text()) for name in ("monitors.json", "labelled_simulations.json")
    )
    found = {}
    for folder in sorted(path.parent for path in BOX.glob("*/recipe.json")):
        study = story(0, results_table({"cnn": simulations["cnn"]})) if folder.name == CNN else ""
        options = {"study": study, "monitor": monitors.get(folder.name, {}), "made_by": MADE_BY}
        facts = CardFacts.from_export(folder, reports.get(folder.name, ()), **options)
        found[folder.name] = replace(facts, name=f"{BOX}/{folder.name}")
    return found


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from lens_ssl_hf.hub.card import write_card

    if (arguments.second_sky is None) != (arguments.cfhtls is None):
        raise InputError("second_sky and cfhtls are measured together: give both, or none")
    quiet()
    if arguments.cfhtls:
        write_json(Path(arguments.result), measure(arguments.second_sky, arguments.cfhtls))
    for name, facts in cards(json.loads(Path(arguments.result).read_text())).items():
        write_card(facts, BOX / name)


if __name__ == "__main__":
    main()
