"""The tables of a study's results.json, as Markdown and as LaTeX, with a caption that says what they stand on."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.probes import PROBE_NAMES
from ..files import write_text
from .methods import BASELINES, METHOD_NAMES
from .statistics import COMPARED, MIN_SEEDS, MIN_SUBSETS

GSOC2024 = Path(__file__).with_name("gsoc2024_results.csv")
_MEASURES = {
    "roc_auc": "ROC AUC",
    "auc_vs_hard_nonlens": "ROC AUC, hard",
    "accuracy": "accuracy",
    "completeness_at_fpr_1e-3": "completeness at FPR 1e-3",
}


def write_tables(results: Mapping[str, Any], folder: Path) -> None:
    """Write table.md and table.tex of the content of a results.json."""
    write_text(folder / "table.md", markdown_table(results) + "\n")
    write_text(folder / "table.tex", latex_table(results))


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table of a study's results.json as Markdown, with what it stands on."""
    head, rows = _cells(results)
    lines = [head, ["---"] * len(head), *rows]
    tables = [lines, _difference_cells(results), _ensemble_cells(results), _probe_cells(results)]
    text, *more = (as_markdown(table) for table in tables if table)
    return "\n\n".join([text, caption(results), *more])


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, head and rule among them, as a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _difference_cells(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, rule and rows of the table of differences to the baselines besides `supervised`; empty without these."""
    measures = [name for name in COMPARED if any(name in row for row in results["rows"])]
    found = [row[measures[0]].get("minus", {}) for row in results["rows"]]
    baselines = [name for name in BASELINES if name != "supervised" and any(name in one for one in found)]
    if not baselines:
        return []
    columns = [(name, baseline) for name in measures for baseline in baselines]
    head = ["labels", "method", "backbone"]
    head += [f"{_MEASURES[name]} minus that of {METHOD_NAMES[baseline]} (95 %)" for name, baseline in columns]
    lines = [head, ["---"] * len(head)]
    for row in results["rows"]:
        entries = [row.get(name, {}).get("minus", {}).get(baseline) for name, baseline in columns]
        if any(entries):
            numbers = [format_interval(one, signed=True) if one else "" for one in entries]
            lines.append([_labels(row), METHOD_NAMES[row["method"]], row["backbone"], *numbers])
    return lines


def _labels(row: Mapping[str, Any]) -> str:
    return f"all ({row['num_labels']:,})" if row["labels"] == "all" else f"{row['num_labels']:,}"


def _ensemble_cells(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, rule and rows of the table of ensembles."""
    rows = results.get("ensembles", [])  # which earlier versions did not have
    if not rows:
        return []
    names = [name for name in COMPARED if any(name in row for row in rows)]
    head = ["labels", "mean logit of all seeds of", "backbone", "seeds"]
    for name in names:
        head += [f"{_MEASURES[name]} (95 %)", "minus a single one (95 %)"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [_labels(row), METHOD_NAMES[row["method"]], row["backbone"], str(row["members"])]
        for name in names:
            cells += [format_interval(row[name]), format_interval(row[name]["minus"]["single"], signed=True)]
        lines.append(cells)
    return lines


def _probe_cells(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, rule and rows of the table of frozen features."""
    if not results["probes"]:
        return []
    head = ["ROC AUC of frozen features, range over seeds", "backbone", "seeds", *PROBE_NAMES.values()]
    lines = [head, ["---"] * len(head)]
    for row in results["probes"]:
        found = [row[name] for name in PROBE_NAMES]
        numbers = [f"{one['value']:.3f}" for one in found]
        if row["seeds"] > 1:
            spans = [f", {one['lowest']:.3f} to {one['highest']:.3f}" for one in found]
            numbers = [number + span for number, span in zip(numbers, spans)]
        lines.append([METHOD_NAMES[row["method"]], row["backbone"], str(row["seeds"]), *numbers])
    return lines


def _tex(text: str) -> str:
    """Text for LaTeX: specials escaped, signs as mathematics."""
    text = re.sub(r"[&%$#_{}]", lambda special: "\\" + special.group(), text.replace("\\", "/"))
    text = text.replace("^", r"\textasciicircum{}").replace("~", r"\textasciitilde{}")
    return re.sub(r"(?<![\w.])[+-]\d+\.\d+|[<>]", lambda sign: f"${sign.group()}$", text)


def latex_table(results: Mapping[str, Any]) -> str:
    """The same as LaTeX (booktabs): the table, and those of differences, ensembles and frozen features."""
    head, rows = _cells(results)
    tabulars = [_tabular(head, rows)]
    for more in (_difference_cells(results), _ensemble_cells(results), _probe_cells(results)):
        if more:
            tabulars += ["", r"\medskip", _tabular(more[0], more[2:])]
    text = [rf"\caption{{{_tex(' '.join(caption(results).split()))}}}", r"\end{table}", ""]
    return "\n".join([r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", *tabulars, *text])


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_tex, cells)) + r" \\"

    body: list[str] = []
    for before, cells in zip([None, *rows], rows):
        body += [r"\midrule"] if before is not None and before[0] != cells[0] else []
        body.append(line(cells))
    begin = [rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\toprule", line(head), r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}"])


def _cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = results["rows"]
    measures = {name: text for name, text in _MEASURES.items() if any(name in row for row in rows)}
    compared = [name for name in COMPARED if name in measures]
    earlier = _earlier_study(results)
    head = ["labels", "method", "backbone", "runs"]
    minuses = {name: [row.get(name, {}).get("minus", {}).get("supervised", {}) for row in rows] for name in compared}
    tested = [name for name, found in minuses.items() if any("p_holm" in one for one in found)]
    for name, text in measures.items():
        head += [f"{text} (95 %)"] + ["minus supervised (95 %)"] * (name in compared) + ["p, Holm"] * (name in tested)
    head += ["GSoC 2024: AUC, accuracy"] if earlier else []
    lines = []
    for row in rows:
        runs = f"{row['seeds']} x {row['subsets']}"
        cells = [_labels(row), METHOD_NAMES[row["method"]], row["backbone"] or "", runs]
        for name in measures:
            entry = row.get(name)
            cells.append(format_interval(entry) if entry else "")
            if name in compared:
                minus = (entry or {}).get("minus", {}).get("supervised")
                cells.append(format_interval(minus, signed=True) if minus else "")
            if name in tested:
                cells.append(_p(minus) if minus else "")
        if earlier:
            cells.append(earlier.get((row["method"], row["backbone"], row["num_labels"]), ""))
        lines.append(cells)
    return head, lines


def format_interval(entry: Mapping[str, Any], signed: bool = False) -> str:
    """The value with its interval: `[low, high]`, or `(low to high)` over the test set alone."""
    sign = "+" if signed else ""
    if entry["low"] is None:
        return f"{entry['value']:{sign}.3f}"
    ends = "({} to {})" if entry["test_set_alone"] else "[{}, {}]"
    return f"{entry['value']:{sign}.3f} " + ends.format(f"{entry['low']:{sign}.3f}", f"{entry['high']:{sign}.3f}")


def _p(entry: Mapping[str, float]) -> str:
    """Not below 0.01: how seldom rarer differences arise by chance is not known from a few seeds and subsets."""
    p = entry.get("p_holm")
    return "" if p is None else f"{p:.3f}" if p >= 0.01 else "< 0.01"


def _earlier_study(results: Mapping[str, Any]) -> dict[tuple[str, str, int], str]:
    """AUC and accuracy of the GSoC 2024 study by method, backbone and labels; empty for sets of another size."""
    with open(GSOC2024, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    size = max(int(row["labels"]) for row in rows)
    if not 0.9 < results["num_train_labels"] / size < 1.1 or not any(
        r["backbone"] in ("vits8", "vitb8") for r in results["rows"]
    ):
        return {}
    sizes = {size: results["num_train_labels"]}  # that all labels of this set are about as many
    return {
        (
            row["method"],
            row["backbone"],
            sizes.get(int(row["labels"]), int(row["labels"])),
        ): f"{float(row['roc_auc']):.3f}, {float(row['accuracy_percent']) / 100:.3f}"
        for row in rows
    }


def caption(results: Mapping[str, Any]) -> str:
    """What was tested on, pretrained and fine-tuned how, and what the statistics are, in sentences."""
    test, folds = results["test"], results["folds"]
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in test["nonlenses"].items())
    simulated = "Simulated cutouts. " if results["data"]["simulated"] else ""
    where = f"{len(folds)} test folds, whose results are averaged" if folds else "Test split"
    nonlenses = f"{test['num_nonlenses']:,} non-lenses" + (f" ({kinds})" if kinds else "")
    sentences = [f"{simulated}{where}: {test['num_lenses']:,} lenses, {nonlenses}."]
    differences = [row["roc_auc"].get("minus", {}).get("supervised", {}) for row in results["rows"]]
    comparisons = sum("p_holm" in one for one in differences)
    correction = f", corrected after Holm over the {comparisons} comparisons of a column" if comparisons else ""
    sentences.append(
        "Runs are seeds x label subsets. Intervals in square brackets are over seeds, label subsets and test groups. "
        "Those in round brackets are over the test set alone and say nothing of other seeds or subsets: fewer than "
        f"{MIN_SEEDS} seeds or {MIN_SUBSETS} subsets do not tell how much these differ. p-values are given where "
        f"intervals have square brackets{correction}. A difference is over the subsets that both sides have."
    )
    sentences.append(
        f"The {results['num_validation_labels']:,} labels of the validation split choose the step of a fine-tuning "
        "and the regularisation of a regression. The frozen features are probed with all training labels."
    )
    if any(row.get("completeness_at_fpr_1e-3", {"low": 0})["low"] is None for row in results["rows"]):
        sentences.append(
            "Completeness has no interval where the large test split has few non-lenses, or its scores were not kept."
        )
    sentences += _trainings(results)
    if left := _left_out(results):
        sentences.append(f"Left out, since not there for all seeds, subsets or folds: {left}.")
    if _earlier_study(results):
        sentences.append("GSoC 2024: the numbers of that study, on its own data.")
    return "\n".join(sentences)


def _trainings(results: Mapping[str, Any]) -> Iterator[str]:
    """What was pretrained and fine-tuned how long."""
    shown = {(row["method"].removesuffix("-linear"), row["backbone"]) for row in results["rows"]}
    for one in results["pretraining"]:
        if (one["method"], one["backbone"]) not in shown:  # begun, but no cell of it is done
            continue
        before = ""
        if earlier := one.get("continued_from"):
            before = f", after {earlier['epochs']} on {earlier['num_train_images']:,} images of {earlier['data']}"
        yield (
            f"{METHOD_NAMES[one['method']]}, {one['backbone']}: {_text(one['settings']['epochs'])} epochs on "
            f"{one['num_train_images']:,} images{before}; {one['seconds'] / 60:.0f} minutes on {_text(one['device'])} "
            f"({_text(one['precision'])})."
        )
        if seeds := one.get("collapsed_seeds"):
            which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            yield f"This pretraining collapsed ({which}): its outputs were alike for all cutouts."
    if steps := _by_setting(results["finetuning"], "steps"):
        yield f"Fine-tuning steps: {_listed(steps)}."
    if len(crops := _by_setting(results["finetuning"], "crop_size")) > 1:
        yield f"Pixels that are seen of a cutout, by side: {_listed(crops)}."


def _by_setting(finetuning: Sequence[Mapping[str, Any]], setting: str) -> dict[str, list[str]]:
    """The names of what was fine-tuned with each value of a setting."""
    found: dict[str, list[str]] = {}
    for one in finetuning:
        name = METHOD_NAMES[one["method"]] + (f" {one['backbone']}" if one["backbone"] else "")
        if setting in one["settings"]:  # which reports of earlier versions may lack
            found.setdefault(_text(one["settings"][setting]), []).append(name)
    return found


def _listed(names: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(own)})" for value, own in names.items())


def _text(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _left_out(results: Mapping[str, Any]) -> str:
    """The cells that no row is made of, by method."""
    counts: Counter[str] = Counter()
    for row in results["rows"]:
        counts[row["method"]] += row["left_out"]
    shown = {(row["method"], row["backbone"], row["labels"]) for row in results["rows"]}
    counts.update(
        cell["method"]
        for cell in results["cells"]
        if cell["labels"] != "none" and (cell["method"], cell["backbone"], cell["labels"]) not in shown
    )
    return ", ".join(f"{number} of {METHOD_NAMES[method]}" for method, number in counts.items() if number)
