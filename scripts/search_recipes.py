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

from lens_ssl_hf.cli import parse, quiet
from lens_ssl_hf.errors import InputError, exit_on_input_error


@dataclass
class Arguments:
    trials: str = field(metadata={"help": "YAML file: data (options of load_cutouts) and a list of trials."})
    log: str = field(metadata={"help": "JSON file that gets a record per trial."})
    output_dir: str = field(default="runs/trials", metadata={"help": "Gets a study per trial."})


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    import yaml

    from lens_ssl_hf import load_cutouts
    from lens_ssl_hf.data.tensors import splits_and_info
    from lens_ssl_hf.evaluation.study import Study
    from lens_ssl_hf.training.run_directory import write_json

    quiet()
    try:
        plan = yaml.safe_load(Path(arguments.trials).read_text())
        log = json.loads(Path(arguments.log).read_text()) if Path(arguments.log).is_file() else []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {arguments.trials} or {arguments.log} ({error}): mend the file") from error
    for name in ("data", "trials", "backbones", "labels", "subsets"):
        if name not in plan:
            raise InputError(f"{arguments.trials} has no {name!r}: see model_cards/results/trials.yaml")
    known = {record["name"] for record in log}
    splits, info = splits_and_info(load_cutouts(**plan["data"]))
    splits["test"] = splits["validation"]
    for trial in plan["trials"]:
        if trial["name"] in known:
            continue
        trial["finetuning"] = {**plan.get("finetuning", {}), **trial.get("finetuning", {})}
        method = trial["method"]
        study = Study(
            {None: (splits, info)},
            Path(arguments.output_dir) / trial["name"],
            [method],
            plan["backbones"],
            [str(budget) for budget in trial.get("labels", plan["labels"])],
            seeds=1,
            subsets=trial.get("subsets", plan["subsets"]),
            pretraining={method: trial.get("pretraining", {})},
            finetuning={"all": trial["finetuning"]},
        )
        if "pretrained_by" in trial:
            earlier = Path(arguments.output_dir) / trial["pretrained_by"] / "pretrainings"
            shutil.copytree(earlier, study.output_dir / "pretrainings", dirs_exist_ok=True)
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
        write_json(Path(arguments.log), log)
        print(json.dumps(record))


if __name__ == "__main__":
    main()
