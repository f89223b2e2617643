"""
Measure the classifiers for simulated cutouts in model_cards/ on cutouts from elsewhere, and tell that in their cards.

```bash
python scripts/box_cards.py --second_sky runs/sky2/dataset --cfhtls ../shared/data/cfhtls_spacewarps
```

Of the second sky, that of scripts/second_sky.py, the test split is taken, and of the CFHTLS all graded cutouts in the
pixels of the survey, which are nearly those of the simulated ones.
"""

from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.files import write_json

BOX = Path("model_cards")  # of the checkout, in which this is started: recipes name their start like that
CLASSIFIERS = ("lens-dino-vits8-classifier", "lens-dino-vits8-varied-classifier")
SIZE = 32  # of the smallest graded cutouts, in pixels
NOT_SHOWN = ("model", "num_bootstrap", "seed")
# What the cards call the cutouts, which know no more of themselves than their files.
SECOND_SKY = {"dataset": "another simulated sky (scripts/second_sky.py)", "simulated": True}
CFHTLS = {"dataset": "graded candidates and other objects of the CFHTLS (Space Warps)"}


@dataclass
class Arguments:
    """The cutouts."""

    second_sky: str = option(MISSING, "The dataset that scripts/second_sky.py made.")
    cfhtls: str = option(MISSING, "The folder with catalog.csv and cutouts/ that scripts/prepare_cfhtls.py reads.")
    result: str = option(str(BOX / "results" / "elsewhere.json"), "The JSON file to write.")


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from datasets import concatenate_datasets

    from lens_ssl_hf import evaluate_model, load_cutouts
    from lens_ssl_hf.hub.card import CardFacts, write_card
    from lens_ssl_hf.hub.clean import without_local_paths

    quiet()
    graded = {"bands": ["i", "r", "g"], "subclass_column": "kind", "validation_fraction": 0.2, "pixel_scale": 0.187}
    table = Path(arguments.cfhtls) / "catalog.csv"
    folds = [load_cutouts(table, test_fold=fold, size=SIZE, **graded)["test"] for fold in range(5)]
    skies = [(load_cutouts(arguments.second_sky)["test"], SECOND_SKY), (concatenate_datasets(folds), CFHTLS)]
    reports = {}
    for name in CLASSIFIERS:
        found = [without_local_paths(evaluate_model(BOX / name, sky)) | called for sky, called in skies]
        reports[name] = [{key: value for key, value in one.items() if key not in NOT_SHOWN} for one in found]
        facts = CardFacts.from_export(BOX / name, reports[name])
        write_card(replace(facts, name=f"{BOX}/{name}"), BOX / name)
        print(name, *(f"{one['dataset']}: AUC {one['metrics']['roc_auc']['value']:.3f}" for one in reports[name]))
    write_json(Path(arguments.result), reports)


if __name__ == "__main__":
    main()
