"""Cards that write themselves: a dataclass collects what a run and its evaluation recorded, a template tells it."""

import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from .. import __version__
from ..data.info import cutout_info
from ..errors import InputError
from ..evaluation.pictures import colour_bands
from ..evaluation.probes import PROBE_NAMES
from ..files import write_text
from ..quoting import fenced, in_markdown
from ..training.arguments import (
    FORMER_OPTIONS,
    METHOD_NAMES,
    FinetuneArguments,
    PretrainArguments,
    as_begun,
    makes_no_difference,
    recipe,
)
from ..training.run_directory import read_metrics, read_recipe, read_run
from .clean import one_line, without_local_paths

HUB_METRICS = {"accuracy": "accuracy", "roc_auc": "roc_auc"}
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"


@dataclass
class CardFacts:
    """
    All that a card says; nothing in it is typed by hand.

    Args:
        name (`str`): what the model is loaded by: its folder's name, or its id on the Hub.
        run (`dict`): run.json.
        reports (`dict[str, dict]`):
            What was measured on held-out labels, by the name of the classifier on the backbone (`"linear probe"`,
            `"nearest neighbours"`) or `"classifier"`; empty where the run was not evaluated.
        elsewhere (`list[tuple[str, dict]]`): the same of other datasets, as pairs of name and report.
        monitor (`dict`): last kNN values of a pretraining on the validation split.
        pictures (`list[str]`): file names of the pictures beside the card.
        base_model (`str`, *optional*): Hub id of the backbone that was fine-tuned.
        license (`str`, *optional*): the Hub's name of the licence of the weights; by default `"apache-2.0"` where they
            are ours.
        has_heads (`bool`, *optional*, defaults to `False`):
            Whether the SSL checkpoint with its heads lies beside the card, in `pretraining/`.
        study (`str`, *optional*): Markdown on what a study measured with this backbone.
        made_by (`dict[str, str]`, *optional*): commands that make datasets, by their fingerprint.
    """

    name: str
    run: dict[str, Any]
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    elsewhere: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    monitor: dict[str, float] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    base_model: str | None = None
    license: str | None = None
    has_heads: bool = False
    study: str = ""
    made_by: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_run(cls, run: str | os.PathLike, name: str, base_model: str | None = None, **options: Any) -> "CardFacts":
        """Collect run.json, metrics.jsonl and the evaluations of a run, without the local paths in them."""
        run = Path(run)
        facts, evaluation = with_history(read_run(run)), read_evaluation(run)
        init = str(facts.get("init", ""))
        is_base = _is_hub_id(init) and ("init_run" not in facts or "init_revision" in facts)
        return cls(
            name=name,
            run=one_line(without_local_paths(facts)),
            reports=_reports(one_line(evaluation)),
            elsewhere=[pair for one in _others(run, facts) for pair in _reports(one_line(one)).items()],
            monitor=_last_monitor(run / "metrics.jsonl"),
            pictures=[file.name for file in run.glob("evaluation/*.png") if evaluation]
            + [file.name for file in run.glob("curves.png")],
            base_model=base_model or (init if is_base else None),
            **options,
        )

    @classmethod
    def from_export(
        cls, folder: str | os.PathLike, elsewhere: Sequence[dict[str, Any]] = (), **options: Any
    ) -> "CardFacts":
        """
        Collect what an exported folder knows of its run, and reports of [`evaluate_model`] on other datasets. What
        [`export`] was told beyond that (`base_model`, `license`, `has_heads`, `study`), and the last values of the
        `monitor`, must be given as options.

        Raises:
            [`InputError`]: `folder` holds no recipe.json.
        """
        folder = Path(folder)
        facts, metrics = read_recipe(folder), folder / "metrics.json"
        if facts is None:
            raise InputError(f"{folder} holds no recipe.json: give a folder that lens-ssl export wrote")
        return cls(
            name=folder.name,
            run=one_line(without_local_paths(with_history(facts))),
            reports=_reports(one_line(_read_report(metrics)) if metrics.is_file() else None),
            elsewhere=[pair for one in elsewhere for pair in _reports(one_line(without_local_paths(one))).items()],
            pictures=[file.name for file in folder.glob("*.png")],
            **options,
        )

    @property
    def title(self) -> str:
        """The model's name without the account."""
        return self.name.split("/")[-1]

    @property
    def is_classifier(self) -> bool:
        return self.run["task"] == "finetune"

    @property
    def is_cnn(self) -> bool:
        """Whether it is the convolutional baseline, whose code is published beside its weights."""
        return self.run["backbone"] == "cnn"

    @property
    def picture_bands(self) -> list[str]:
        """The bands that `lens_ssl_hf` reads from red, green and blue of a picture; none where there are not three."""
        bands = self.data["bands"]
        return [bands[i] for i in colour_bands(bands, 3)] if len(bands) == 3 else []

    @property
    def takes_pictures(self) -> bool:
        """Whether plain transformers, which takes red, green and blue in this order, reads pictures as we do."""
        return self.picture_bands == self.data["bands"]

    @property
    def real_auc(self) -> str:
        """The ROC AUC on real cutouts, as far as it was measured, or the least and the highest; else empty."""
        real = [one for _, one in self.elsewhere if one["simulated"] is False and not one.get("painted")]
        found = [value for one in real if (value := one["metrics"]["roc_auc"]["value"]) is not None]
        return " to ".join(dict.fromkeys(_number(pick(found)) for pick in (min, max))) if found else ""

    @property
    def careful(self) -> list[tuple[str, str]]:
        """What differs on other cutouts, as pairs of their name and a sentence; each once for all classifiers."""
        pairs = ((one["dataset"], sentence) for _, one in self.elsewhere for sentence in cautions(one["warnings"]))
        return list(dict.fromkeys(pairs))

    @property
    def began_as_itself(self) -> bool:
        """Whether it went on from an earlier model of this name."""
        return "init_run" in self.run and re.split(r"[\\/]", str(self.run.get("init")))[-1] == self.title

    @property
    def runs(self) -> list[dict[str, Any]]:
        """run.json of the run, and of those before it that its weights come from."""
        runs = [self.run]
        while "init_run" in runs[-1]:
            runs.append(runs[-1]["init_run"])
        return runs

    @property
    def collapsed(self) -> bool:
        """Whether the run, or a pretraining before it, ended with outputs that are alike for all cutouts."""
        return any(run.get("collapsed") for run in self.runs)

    @property
    def begun_elsewhere(self) -> bool:
        """Whether the weights began as those of a model that this package did not make, or may not have made."""
        first = self.runs[-1]
        return first.get("init_method") == "pretrained" or _is_hub_id(str(first.get("init", "scratch")))

    @property
    def method(self) -> str:
        """How the weights began: `DINO`, `iBOT`, `SimSiam`, or for classifiers also `from scratch`."""
        method = self.run.get("method") or self.run.get("init_method") or "scratch"
        return "from scratch" if method == "scratch" else METHOD_NAMES.get(method, method)

    @property
    def data(self) -> dict[str, Any]:
        """The fields of the training data's `CutoutInfo`."""
        return self.run["data"]

    @property
    def dataset_ids(self) -> list[str]:
        """The Hub ids of what it was trained on, the pretrainings before included."""
        names = [run["data"]["name"] for run in self.runs]
        return sorted({name for name in names if re.fullmatch(HUB_ID, name)})

    @property
    def begun_from(self) -> str:
        """What the pretraining went on from, as Markdown; empty where it began with random weights."""
        run = self.run.get("init_run", {}) if self.is_classifier else self.run
        if "init_run" in run:
            earlier = run["init_run"]
            simulated = " (**simulated**)" if earlier["data"]["simulated"] else ""
            kind = "pretraining" if earlier["task"] == "pretrain" else "fine-tuning with labels"
            name = in_markdown(earlier["data"]["name"])
            return Markup(f"a {kind} on {earlier['num_train_images']:,} cutouts of {name}{simulated}")
        init = run.get("init", "scratch")
        return "" if init == "scratch" else Markup(f"the weights of `{in_markdown(init)}`")

    def metadata(self) -> ModelCardData:
        """The card's YAML header, with accuracy and ROC AUC as the `model-index` that the Hub reads."""
        bands = len(self.data["bands"])
        tags = ["astronomy", "gravitational-lensing", "cnn" if self.is_cnn else "vit", "lens_ssl_hf"]
        if self.method != "from scratch":
            tags += ["self-supervised-learning", str(self.run.get("method") or self.run.get("init_method"))]
        simulated = self.data["simulated"] or any(run["data"].get("painted") for run in self.runs)
        tags += ["simulated-data"] if simulated else []
        return ModelCardData(
            license=self.license or (None if self.begun_elsewhere else "apache-2.0"),
            library_name="transformers",
            pipeline_tag="image-classification" if self.is_classifier else "image-feature-extraction",
            tags=tags if bands == 3 else [*tags, f"{bands}-bands"],
            base_model=self.base_model,
            datasets=self.dataset_ids or None,
            metrics=list(HUB_METRICS) if self.reports or self.elsewhere else None,
            model_name=self.title if self.reports or self.elsewhere else None,
            eval_results=self.eval_results() or None,
        )

    def eval_results(self) -> list[EvalResult]:
        """Accuracy and ROC AUC of every report; for a backbone the metric's name says with which classifier."""
        results = []
        for classifier, report in [*self.reports.items(), *self.elsewhere]:
            dataset = report["dataset"] or "cutouts"
            for key, metric_type in HUB_METRICS.items():
                entry = report["metrics"][key]
                low, high = entry["low"], entry["high"]
                interval = "" if low is None else f" (95 % {low:.3f} to {high:.3f})"
                suffix = "" if self.is_classifier else f", {classifier}"
                results.append(
                    EvalResult(
                        task_type="image-classification",
                        dataset_type=dataset if re.fullmatch(HUB_ID, dataset) else _slug(dataset),
                        dataset_name=dataset,
                        dataset_split=report["split"],
                        dataset_revision=report["fingerprint"],
                        metric_type=metric_type,
                        metric_name=f"{entry['title']}{suffix}{interval}",
                        metric_value=round(entry["value"], 4),
                    )
                )
        return results


def _is_hub_id(init: str) -> bool:
    return re.fullmatch(HUB_ID, init) is not None and not Path(init).exists()


def with_history(facts: Mapping[str, Any]) -> dict[str, Any]:
    """
    The facts of a run; where it or a run before it began from an exported folder, with those of the run that was
    exported, as `init_run`.
    """
    found, init = _as_recorded(facts), str(facts.get("init", "scratch"))
    if "init_run" in found or init == "scratch":
        return found
    recipe = read_recipe(init)  # of what may be there now: earlier versions did not record it when a run began
    is_other = recipe is not None and recipe.get("run_id") != facts.get("run_id")
    return {**found, "init_run": recipe} if is_other else found


def _as_recorded(facts: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in facts.items() if name != "init_recipe"}
    earlier = facts.get("init_run") or facts.get("init_recipe")
    return {**rest, "init_run": _as_recorded(earlier)} if earlier else rest


def write_card(facts: CardFacts, folder: str | os.PathLike) -> Path:
    """Render the card into `folder`/README.md, with no need of the network."""
    path = Path(folder) / "README.md"
    write_text(path, str(render_card(facts)))
    return path


def render_card(facts: CardFacts) -> ModelCard:
    """
    The card as a `huggingface_hub.ModelCard`.

    Raises:
        [`InputError`]: what the run or its evaluation recorded is damaged.
    """
    try:
        return _render(
            "classifier.md.jinja" if facts.is_classifier else "backbone.md.jinja",
            metadata=Markup(facts.metadata().to_yaml()),
            facts=facts,
            cell=format_cell,
            reproduction=reproduction,
            provenance=provenance,
            cautions=cautions,
            threshold=_threshold,
            bands=facts.data["bands"],
            band_names=_code_spans(facts.data["bands"]),
            study=Markup(facts.study),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise InputError(
            f"the card of {facts.name} cannot be written ({error}): run.json or evaluation/metrics.json of its run is "
            "damaged, train or evaluate it again"
        ) from error


def render_dataset_card(
    cutouts: Mapping[str, Any], header: dict[str, Any], repo_id: str, license: str, origin: str
) -> ModelCard:
    """
    The card of a dataset.

    Args:
        cutouts (`DatasetDict`): what is published.
        header (`dict`): its [`~lens_ssl_hf.data.storage.card_header`].
        repo_id (`str`): its id on the Hub.
        license (`str`): the Hub's name of its licence.
        origin (`str`): where the cutouts come from.
    """
    info = cutout_info(cutouts)
    size = sum(len(split) for split in cutouts.values())
    metadata = {
        "license": license,
        "pretty_name": f"Gravitational lenses and look-alikes: {repo_id.split('/')[-1]}",
        "size_categories": [_SIZE_CATEGORIES[max(0, min(len(str(size)), 7) - 3)]],
        **header,
        "tags": [*header["tags"], *(["simulated-data"] if info.simulated or info.painted else [])],
    }
    return _render(
        "dataset.md.jinja",
        metadata=Markup(yaml_dump(metadata, sort_keys=False).strip()),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        info=info,
        band_names=_code_spans(info.bands),
        splits={name: Counter(split["label"][:]) for name, split in cutouts.items()},
        columns=next(iter(cutouts.values())).column_names,
        meanings={name: Markup(text) for name, text in _FEATURES.items()},
        origin=Markup(in_markdown(without_local_paths(origin)).replace("&#58;//", "://")),  # its links are links
        source=_SOURCES.get(info.source, info.source),
        license=license,
        version=__version__,
    )


_SIZE_CATEGORIES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
_SOURCES = {
    "simulated": "the simulator of lens_ssl_hf",
    "folder": "a folder of image files per class",
    "catalogue": "a catalogue of image files",
}
_FEATURES = {
    "image": "colour rendering of `pixels`, 8 bits, to look at; models read `pixels`",
    "id": "name of the cutout",
    "pixels": "float32 `(bands, height, width)` in display units, 0 to 255",
    "label": "1 lens, 0 nonlens, -1 unlabelled",
    "subclass": "kind of object; empty where unknown",
    "group": "what splits do not divide, such as a field of the sky",
    "ra": "right ascension in degrees; missing where unknown",
    "dec": "declination in degrees; missing where unknown",
    "einstein_radius": "simulated: Einstein radius in arcsec; NaN without a lens",
    "zero_point": "AB magnitude of flux 1, before the stretch",
    "pixel_scale": "arcsec per pixel",
    "seeing": "full width at half maximum of the point-spread function in arcsec, per band",
}


def _render(template: str, **values: Any) -> ModelCard:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=True,  # marks what macros return as done
        finalize=_shown,
    )
    environment.globals.update(values)  # macros of other files see them too
    text = environment.get_template(template).render()
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def _shown(value: Any) -> Any:
    """What a card shows of a value: numbers with separators of thousands, and texts escaped, except for `Markup`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if not isinstance(value, str) or isinstance(value, Markup) else Markup(in_markdown(value))


def format_cell(entry: dict[str, Any]) -> str:
    """`0.953 (0.921 to 0.978)` and what is to be known of it, or why there is no number."""
    if entry["value"] is None:
        return f"not measured: {entry['reason']}"
    if entry["low"] is None:
        return _number(entry["value"])
    interval = f"{_number(entry['value'])} ({_number(entry['low'])} to {_number(entry['high'])})"
    return f"{interval}; {entry['note']}" if "note" in entry else interval


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0095 or value == 0 else f"{value:.1e}"


def _threshold(score: float) -> str:
    """With four digits of what is left to 0 or 1, and rounded up, so that it keeps its false-positive rate."""
    distance = min(score, 1 - score) or 1
    digits = 4 - min(0, math.ceil(math.log10(distance)))
    return str(Decimal(repr(float(score))).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING))


def reproduction(run: dict[str, Any]) -> Markup:
    """The command, or the call of the Python API, that made a run, as a Markdown block."""
    if run["command"]:
        return Markup(fenced(run["command"], "bash"))
    pretraining = run["task"] == "pretrain"
    kind = PretrainArguments if pretraining else FinetuneArguments
    defaults = FORMER_OPTIONS | vars(kind()) | (recipe(run["method"]) if pretraining else {})
    settings = {
        name: value
        for name, value in as_begun(kind, run["arguments"]).items()
        if value != defaults.get(name) and not makes_no_difference(name, run["method"])
    }
    folder = settings.pop("output_dir", defaults["output_dir"])
    settings.pop("resume", None)
    call = ", ".join([f"cutouts, {folder!r}", *(f"{name}={value!r}" for name, value in settings.items())])
    return Markup(fenced(f"lens_ssl_hf.{'pretrain' if pretraining else 'finetune'}({call})", "python"))


def provenance(run: dict[str, Any], made_by: Mapping[str, str]) -> Markup:
    """What the dataset of [`reproduction`] is; empty where the command itself says it."""
    data, name = run["data"], _dataset_in(run["command"]) if run["command"] else "cutouts"
    if name in ("", "simulated", data["name"] if re.fullmatch(HUB_ID, data["name"]) else ""):
        return Markup("")
    given = f"`{'--dataset ' if run['command'] else ''}{in_markdown(name)}`"
    number = data.get("simulator_version")  # unknown of older datasets
    version = f"version {in_markdown(number)} of the simulator" if number else "the simulator"
    if command := made_by.get(data["fingerprint"]):
        return Markup(f"{given} was made by {version}:\n\n{fenced(command, 'bash')}")
    what = f"{in_markdown(data['name'])} (fingerprint `{in_markdown(data['fingerprint'])}`)"
    how = f"made by {version}; its options are not recorded" if data["simulated"] else "which is not published here"
    return Markup(f"{given} is the dataset {what}, {how}.")


def _dataset_in(command: str) -> str:
    """The value of `--dataset` in a command line; empty where there is none."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that does not end
        return ""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return next((after for word, after in pairwise(parts) if word == "--dataset"), "")


# What `differences` says after "was trained on": the side of the cutouts, and that of the model.
_DIFFERENCES = {
    r"another stretch than .*": ("a stretch of their own", "another stretch"),
    r"(\S+ arcsec) pixels, these cutouts have (\S+)": (r"\2 arcsec pixels", r"\1 pixels"),
    r"bands (.+), these cutouts have (.+)": (r"bands \2", r"bands \1"),
}


def cautions(warnings: Sequence[str]) -> list[str]:
    """The warnings of a report; all that differs between its cutouts and those of the training in one sentence."""
    sentences, sides = [], []
    for warning in warnings:
        tried = ((re.fullmatch(rf".* was trained on {one}", warning), both) for one, both in _DIFFERENCES.items())
        found = next(([match.expand(side) for side in both] for match, both in tried if match), None)
        if found:
            sides.append(found)
        else:
            sentences.append(warning)
    if sides:
        what = "are 8-bit pictures with" if any("8-bit" in one for one in warnings) else "cutouts have"
        theirs, own = (" and ".join(side) for side in zip(*sides))
        sentences.insert(0, f"These {what} {theirs}; the model was trained on {own}")
    return sentences


def _code_spans(names: list[str]) -> Markup:
    """``g`, `r`, `i``, without the outer quotes."""
    return Markup("`, `").join(map(_shown, names))


def read_evaluation(run: str | os.PathLike) -> dict[str, Any] | None:
    """
    The evaluation/metrics.json of a run, without the local paths in it; `None` where it was not evaluated, or where
    that is of another dataset than the run's own, or of another split than test.
    """
    path = Path(run) / "evaluation" / "metrics.json"
    if not path.is_file():
        return None
    report = _read_report(path)
    is_own = (report["fingerprint"], report["split"]) == (read_run(run)["data"].get("fingerprint"), "test")
    return without_local_paths(report) if is_own else None


def _others(run: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    The evaluations of a run on other datasets, without the local paths in them: on their test split, and on others of
    datasets that neither it nor a run before it was trained on, by fingerprint and name. Of cutouts without a
    fingerprint nobody knows what they are.
    """
    own, seen = facts["data"].get("fingerprint"), set()
    while facts:
        seen |= {facts.get("data", {}).get(name) for name in ("fingerprint", "name")}
        facts = facts.get("init_run", {})
    found = []
    for path in sorted(run.glob("evaluation-*/metrics.json")):
        report = _read_report(path, *_SHOWN)
        is_unseen = report["split"] == "test" or not seen & {report["fingerprint"], report["dataset"]}
        if report["fingerprint"] not in (None, "", own) and is_unseen:
            found.append(without_local_paths(report))
    return found


# What a card shows of an evaluation on other cutouts.
_SHOWN = ("dataset", "split", "simulated", "warnings", "num_lenses", "num_nonlenses", "metrics")
_MEASURES = ("roc_auc", "accuracy", "completeness_at_fpr_1e-2")


def _read_report(path: Path, *names: str) -> dict[str, Any]:
    """The metrics.json of an evaluation, which must have these entries."""
    try:
        report = json.loads(path.read_text())
        lacks = "fingerprint" not in report
        for one in _reports(report).values():
            lacks |= any(name not in one for name in names)
            lacks |= "metrics" in names and any(name not in one["metrics"] for name in _MEASURES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: evaluate the run again") from error
    if lacks:
        raise InputError(f"{path} is damaged: evaluate the run again")
    return report


def _reports(report: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    if report is None:
        return {}
    if "probes" not in report:
        return {"classifier": report}
    shared = {key: value for key, value in report.items() if key != "probes"}
    return {PROBE_NAMES[key]: {**shared, **found} for key, found in report["probes"].items()}


def _last_monitor(path: Path) -> dict[str, float]:
    names = ("knn_auc", "knn_accuracy", "probe_auc", "effective_rank")
    found = [{key: line[key] for key in names if key in line} for line in read_metrics(path) if "knn_auc" in line]
    return found[-1] if found else {}


def _slug(text: str) -> str:
    return re.sub(r"[^0-9a-z]+", "-", text.lower()).strip("-")
