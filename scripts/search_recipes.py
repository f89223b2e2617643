"""
Try recipes on simulated validation data, and log what each gave.

```bash
python scripts/search_recipes.py --trials model_cards/results/trials.yaml --log model_cards/results/trials.json
```

The file lists trials: a name, a method (supervised, cnn, simsiam, dino, ibot), settings of pretraining over the
recipe's and of fine-tuning over the file's, and where they differ from the file's, labels and subsets. Each is a small
study that is scored on the validation split; no test split is seen. A trial with `pretrained_by` takes the pretraining
of the trial of that name, which stands before it. What is in the log is not done again.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.commands.shared import quiet
from lens_ssl_hf.errors import InputError, exit_on_input_error


@dataclass
class Arguments:
    trials: str = field(metadata={"help": "YAML file: data (options of load_cutouts) and a list of trials."})
    log: str = field(metadata={"help": "JSON file that gets a record per trial."})
    output_dir: str = field(default="runs/trials", metadata={"help": "Gets a study per trial."})


def read_plan(path: Path) -> dict:
    """The trials of a YAML file; of a trial with `pretrained_by`, one before it has that name and that pretraining."""
    import yaml

    try:
        plan = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path} ({error}): fix the file") from error
    kinds = {"data": dict, "trials": list, "backbones": list, "labels": list, "subsets": int}
    for name, kind in kinds.items():
        if not isinstance(plan, dict) or not isinstance(plan.get(name), kind):
            raise InputError(f"{path} has no {name!r} as it should be: see model_cards/results/trials.yaml")
    before: dict[str, dict] = {}
    for trial in plan["trials"]:
        if not isinstance(trial, dict) or not {"name", "method"} <= trial.keys():
            raise InputError(f"{path}: the trial {trial} has no name and method: give both")
        name = str(trial["name"])
        if name in before or Path(name).name != name:
            raise InputError(f"{path}: {name!r} is there twice or no plain name: choose another")
        if not isinstance(trial.get("labels", []), list):
            raise InputError(f"{path}: labels of {name} is {trial['labels']}: give a list")
        if "pretrained_by" in trial:
            earlier = before.get(trial["pretrained_by"], {})
            if (earlier.get("method"), earlier.get("pretraining")) != (trial["method"], trial.get("pretraining")):
                raise InputError(
                    f"{path}: {name} and {trial['pretrained_by']}, which must stand before it, differ in method or "
                    "pretraining: give both the same"
                )
        before[name] = trial
    return plan


def read_log(path: Path) -> list[dict]:
    """What was logged before, if anything."""
    if not path.exists():
        return []
    try:
        log = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): fix the file") from error
    if not isinstance(log, list) or not all(isinstance(record, dict) and "name" in record for record in log):
        raise InputError(f"{path} is no log of trials: give another file as log")
    return log


def pretrainings_of(trial: dict, arguments: Arguments) -> Path:
    return Path(arguments.output_dir) / trial["pretrained_by"] / "pretrainings"


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    from lens_ssl_hf import load_cutouts
    from lens_ssl_hf.data.tensors import splits_and_info
    from lens_ssl_hf.files import make_folder, write_json
    from lens_ssl_hf.study.run import Study

    quiet()
    log_file = Path(arguments.log)
    plan, log = read_plan(Path(arguments.trials)), read_log(log_file)
    known = {record["name"] for record in log}
    splits, info = splits_and_info(load_cutouts(**plan["data"]))
    splits["test"] = splits["validation"]
    studies = {}  # all are made before the first is run, so that mistakes show at once
    for trial in plan["trials"]:
        if trial["name"] in known:
            continue
        trial["finetuning"] = {**plan.get("finetuning", {}), **trial.get("finetuning", {})}
        method = trial["method"]
        studies[trial["name"]] = (
            trial,
            Study(
                {None: (splits, info)},
                Path(arguments.output_dir) / trial["name"],
                [method],
                plan["backbones"],
                [str(budget) for budget in trial.get("labels", plan["labels"])],
                seeds=1,
                subsets=trial.get("subsets", plan["subsets"]),
                pretraining={method: trial.get("pretraining", {})},
                finetuning={"all": trial["finetuning"]},
            ),
        )
        if "pretrained_by" in trial and trial["pretrained_by"] not in studies:
            earlier = pretrainings_of(trial, arguments)
            if not earlier.is_dir():
                raise InputError(
                    f"{trial['name']} goes on from {earlier}, which is not there: take {trial['pretrained_by']} out "
                    f"of {log_file}, to have it done again"
                )
    make_folder(log_file.parent, "log")
    for trial, study in studies.values():
        if "pretrained_by" in trial:
            shutil.copytree(pretrainings_of(trial, arguments), study.output_dir / "pretrainings", dirs_exist_ok=True)
        records = study.run()
        if study.failures:
            raise InputError("; ".join(f"{cell.name}: {message}" for cell, message in study.failures.items()))
        record = {**trial, "validation_auc": {}, "seconds": round(sum(one.get("seconds", 0) for one in records))}
        for one in records:
            if one["labels"] == "none":
                record["linear_probe_auc"] = round(one["probes"]["linear"]["roc_auc"], 4)
            else:
                record["validation_auc"].setdefault(one["labels"], []).append(round(one["metrics"]["roc_auc"], 4))
        log.append(record)
        write_json(log_file, log)
        print(json.dumps(record))


if __name__ == "__main__":
    main()
