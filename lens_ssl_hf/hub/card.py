"""Cards that write themselves: a dataclass collects what a run and its evaluation recorded, a template tells it."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import InputError

METHOD_NAMES = {"dino": "DINO", "ibot": "iBOT", "simsiam": "SimSiam", "scratch": "from scratch"}
HUB_METRICS = {"accuracy": "accuracy", "roc_auc": "roc_auc"}


@dataclass
class CardFacts:
    """
    All that a card says; nothing in it is typed by hand.

    Args:
        name (`str`): name of the model, that of its folder.
        run (`dict`): run.json.
        reports (`dict[str, dict]`):
            What was measured on held-out labels, by the name of the classifier on the backbone (`"linear probe"`,
            `"nearest neighbours"`) or `"classifier"`; empty where the run was not evaluated.
        monitor (`dict`): last kNN values of a pretraining on the validation split.
        pictures (`list[str]`): file names of the pictures beside the card.
        base_model (`str`, *optional*): Hub id of the backbone that was fine-tuned.
    """

    name: str
    run: dict[str, Any]
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    monitor: dict[str, float] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    base_model: str | None = None

    @classmethod
    def from_run(cls, run: str | os.PathLike, name: str, base_model: str | None = None) -> "CardFacts":
        """Collect run.json, metrics.jsonl and evaluation/ of a run."""
        run = Path(run)
        facts = json.loads((run / "run.json").read_text())
        init = str(facts.get("init", ""))
        is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", init) and not Path(init).exists()
        return cls(
            name=name,
            run=facts,
            reports=_reports(run / "evaluation" / "metrics.json"),
            monitor=_last_monitor(run / "metrics.jsonl"),
            pictures=[file.name for file in (*run.glob("evaluation/*.png"), *run.glob("curves.png"))],
            base_model=base_model or (init if is_hub_id and "init_run" not in facts else None),
        )

    @property
    def is_classifier(self) -> bool:
        return self.run["task"] == "finetune"

    @property
    def method(self) -> str:
        """How the weights began: `DINO`, `iBOT`, `SimSiam`, or for classifiers also `from scratch`."""
        method = self.run.get("method") or self.run.get("init_method") or "scratch"
        return METHOD_NAMES.get(method, method)

    @property
    def data(self) -> dict[str, Any]:
        """The fields of the training data's `CutoutInfo`."""
        return self.run["data"]

    def metadata(self) -> ModelCardData:
        """The card's YAML header, with accuracy and ROC AUC as the `model-index` that the Hub reads."""
        bands = len(self.data["bands"])
        tags = ["astronomy", "gravitational-lensing", "vit", "lens_ssl_hf"]
        if self.method != "from scratch":
            tags += ["self-supervised-learning", str(self.run.get("method") or self.run.get("init_method"))]
        tags += ["simulated-data"] if self.data["simulated"] else []
        return ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            pipeline_tag="image-classification" if self.is_classifier else "image-feature-extraction",
            tags=tags if bands == 3 else [*tags, f"{bands}-bands"],
            base_model=self.base_model,
            datasets=[self.data["name"]] if re.fullmatch(r"[\w.-]+/[\w.-]+", self.data["name"]) else None,
            metrics=list(HUB_METRICS) if self.reports else None,
            model_name=self.name if self.reports else None,
            eval_results=self.eval_results() or None,
        )

    def eval_results(self) -> list[EvalResult]:
        """Accuracy and ROC AUC of every report; for a backbone the metric's name says with which classifier."""
        results = []
        for classifier, report in self.reports.items():
            for key, metric_type in HUB_METRICS.items():
                entry = report["metrics"][key]
                low, high = entry["low"], entry["high"]
                interval = "" if low is None else f" (95 % {low:.3f} to {high:.3f})"
                suffix = "" if self.is_classifier else f", {classifier}"
                results.append(
                    EvalResult(
                        task_type="image-classification",
                        dataset_type=_slug(report["dataset"] or "cutouts"),
                        dataset_name=report["dataset"] or "cutouts",
                        dataset_split=report["split"],
                        dataset_revision=report["fingerprint"],
                        metric_type=metric_type,
                        metric_name=f"{entry['title']}{suffix}{interval}",
                        metric_value=round(entry["value"], 4),
                    )
                )
        return results


def write_card(facts: CardFacts, folder: str | os.PathLike) -> Path:
    """Render the card into `folder`/README.md, with no need of the network."""
    path = Path(folder) / "README.md"
    path.write_text(str(render_card(facts)), encoding="utf-8")
    return path


def render_card(facts: CardFacts) -> ModelCard:
    """The card as a `huggingface_hub.ModelCard`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_templates()), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.globals.update(
        facts=facts,
        cell=format_cell,
        reproduction=reproduction,
        bands=facts.data["bands"],
        stretch=facts.data["stretch"],
    )
    template = environment.get_template("classifier.md.jinja" if facts.is_classifier else "backbone.md.jinja")
    text = template.render(metadata=facts.metadata().to_yaml())
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def format_cell(entry: dict[str, Any]) -> str:
    """`0.953 (0.921 to 0.978)`, or why there is no number."""
    if entry["value"] is None:
        return f"not measured: {entry['reason']}"
    if entry["low"] is None:
        return _number(entry["value"])
    return f"{_number(entry['value'])} ({_number(entry['low'])} to {_number(entry['high'])})"


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0095 or value == 0 else f"{value:.1e}"


def reproduction(run: dict[str, Any]) -> str:
    """The command, or the call of the Python API, that made a run, as a Markdown block."""
    if run["command"]:
        return f"```bash\n{run['command']}\n```"
    from ..training.arguments import FinetuneArguments, PretrainArguments, recipe

    pretraining = run["task"] == "pretrain"
    defaults = vars((PretrainArguments if pretraining else FinetuneArguments)())
    defaults |= recipe(run["method"]) if pretraining else {}
    settings = {name: value for name, value in run["arguments"].items() if value != defaults.get(name)}
    folder = settings.pop("output_dir", defaults["output_dir"])
    settings.pop("resume", None)
    call = ", ".join([f"cutouts, {folder!r}", *(f"{name}={value!r}" for name, value in settings.items())])
    return f"```python\nlens_ssl_hf.{'pretrain' if pretraining else 'finetune'}({call})\n```"


def _reports(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: evaluate the run again") from error
    if "probes" not in report:
        return {"classifier": report}
    shared = {key: value for key, value in report.items() if key != "probes"}
    names = {"linear": "linear probe", "knn": "nearest neighbours"}
    return {names[key]: {**shared, **found} for key, found in report["probes"].items()}


def _last_monitor(path: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = [{key: line[key] for key in ("knn_auc", "knn_accuracy")} for line in lines if "knn_auc" in line]
    return found[-1] if found else {}


def _templates() -> Path:
    """The templates in the installed package, or those of the checkout."""
    packaged = Path(__file__).parent / "templates"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_cards" / "templates"


def _slug(text: str) -> str:
    return re.sub(r"[^0-9a-z]+", "-", text.lower()).strip("-")
