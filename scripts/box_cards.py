"""
Measure the classifiers for simulated cutouts in model_cards/ on cutouts of elsewhere, and write that into their cards.

```bash
python scripts/box_cards.py --second_sky runs/sky2/dataset --cfhtls runs/cfhtls/data
```

The second sky is that of scripts/second_sky.py, of which the test split is taken; CFHTLS is what
scripts/prepare_cfhtls.py wrote, of which all graded cutouts are taken.
"""

from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from labelled_simulations import real_cutouts

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import exit_on_input_error
from lens_ssl_hf.files import write_json

BOX = Path(__file__).parents[1] / "model_cards"
CLASSIFIERS = ("lens-dino-vits8-classifier", "lens-dino-vits8-varied-classifier")
NOT_SHOWN = ("model", "num_bootstrap", "seed")
# What the cards call the cutouts, which know no more of themselves than their files.
SECOND_SKY = {"dataset": "another simulated sky (scripts/second_sky.py)", "simulated": True}
CFHTLS = {"dataset": "graded candidates and other objects of the CFHTLS (Space Warps)"}


@dataclass
class Arguments:
    """The cutouts."""

    second_sky: str = option(MISSING, "The dataset that scripts/second_sky.py made.")
    cfhtls: str = option(MISSING, "The folder that scripts/prepare_cfhtls.py wrote.")
    result: str = option(str(BOX / "results" / "elsewhere.json"), "The JSON file to write.")


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from datasets import concatenate_datasets

    from lens_ssl_hf import evaluate_model, load_cutouts
    from lens_ssl_hf.hub.card import CardFacts, write_card

    quiet()
    folds = [real_cutouts(Path(arguments.cfhtls), fold)["test"] for fold in range(5)]
    skies = [(load_cutouts(arguments.second_sky)["test"], SECOND_SKY), (concatenate_datasets(folds), CFHTLS)]
    reports = {}
    for name in CLASSIFIERS:
        found = [evaluate_model(BOX / name, sky) | called for sky, called in skies]
        reports[name] = [{key: value for key, value in one.items() if key not in NOT_SHOWN} for one in found]
        facts = CardFacts.from_export(BOX / name, reports[name])
        write_card(replace(facts, name=f"{BOX.name}/{name}"), BOX / name)
        print(name, *(f"{one['dataset']}: AUC {one['metrics']['roc_auc']['value']:.3f}" for one in reports[name]))
    write_json(Path(arguments.result), reports)


if __name__ == "__main__":
    main()
