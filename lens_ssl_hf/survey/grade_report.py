"""What grades say of a search, in words and as a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.plots import COLOURS, new_figure, save_figure
from ..quoting import in_markdown

FEW = 5  # lenses in an audit sample, below which an estimate rests on single objects
POOR_KAPPA = 0.4  # "fair" or less (Landis & Koch 1977)


def describe(found: Mapping[str, Any]) -> str:
    """The text of grading.md: the numbers, and what they cannot carry."""
    lines = ["# What the grades say", "", *_counts(found), "", *_table(found), "", "## Agreement", ""]
    lines += [*_agreement(found["agreement"]), "", "## Calibration", "", *_calibration(found["calibration"]), ""]
    return "\n".join([*lines, "## What these numbers cannot carry", "", *(f"- {one}" for one in doubts(found)), ""])


def _counts(found: Mapping[str, Any]) -> Iterator[str]:
    grades = " or ".join(in_markdown(one) for one in found["positive"])
    yield f"A lens is what more than half of its graders call {grades}."
    yield f"{found['graded']} of the first {found['top']} rows are graded, {found['lenses']} of them are lenses."
    beyond = found["beyond"]
    if "reason" in beyond:
        yield f"Completeness is not measured: {beyond['reason']}."
    elif beyond["rest"]:
        yield (
            f"The audit sample has {beyond['lenses']} lenses among {beyond['graded']} graded rows, drawn from "
            f"{beyond['rest']}: {beyond['value']:.0f} [{beyond['low']}, {beyond['high']}] lenses are in these."
        )
    if survey := found["survey"]:
        lenses, share = survey["lenses"], survey["prevalence"]
        yield (
            f"The survey has {lenses['value']:.0f} [{lenses['low']}, {lenses['high']}] lenses among {survey['rows']} "
            f"rows, a prevalence of {share['value']:.3g} [{share['low']:.3g}, {share['high']:.3g}]."
        )


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    yield "95 % intervals are in brackets."
    yield ""
    yield "| first rows | graded | lenses | purity | completeness |"
    yield "| ---: | ---: | ---: | --- | --- |"
    complete = {one["rank"]: _share(one, "completeness") for one in found["completeness"]}
    for one in found["purity"]:
        cells = (one["rank"], one["graded"], one["lenses"], _share(one, "purity"), complete.get(one["rank"], ""))
        yield f"| {' | '.join(map(str, cells))} |"


def _share(one: Mapping[str, Any], name: str) -> str:
    if "reason" in one:
        return f"not measured: {one['reason']}"
    value = "" if one[name] is None else f"{one[name]:.3f} "
    return f"{value}[{one['low']:.3f}, {one['high']:.3f}]"


def _agreement(found: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{in_markdown(name)}: {number} objects" for name, number in found["graders"].items()) + "."
    for one in found["pairs"]:
        names = " and ".join(map(in_markdown, one["graders"]))
        raw = "" if one["raw"] is None else f"equal verdicts on {one['raw']:.3f} of {one['shared']} shared objects, "
        yield f"{names}: {raw}Cohen's kappa {_kappa(one)}."
    if fleiss := found.get("fleiss"):
        yield f"All graders on {fleiss['shared']} shared objects: Fleiss' kappa {_kappa(fleiss)}."


def _kappa(one: Mapping[str, Any]) -> str:
    return f"not computable: {one['reason']}" if one["kappa"] is None else f"{one['kappa']:.3f}"


def _calibration(found: Mapping[str, Any]) -> Iterator[str]:
    if "reason" in found:
        yield f"There is none: {found['reason']}."
        return
    sign, size = "-" if found["b"] < 0 else "+", abs(found["b"])
    yield (
        f"P(lens) = 1 / (1 + exp(-({found['a']:.3f} x logit {sign} {size:.3f}))), from {found['lenses']} lenses among "
        f"{found['graded']} objects (standard errors {found['a_error']:.3f} and {found['b_error']:.3f})."
    )
    if "fitted_prevalence" in found:
        yield f"It was moved from a prevalence of {found['fitted_prevalence']:.3g} to {found['prevalence']:.3g}."


def doubts(found: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what cannot be concluded."""
    yield "A lens here is what graders call one in these pictures; none of them is confirmed by it."
    beyond, calibration, lacking = found["beyond"], found["calibration"], found["top"] - found["graded"]
    if lacking:
        yield f"{lacking} of the first rows have no grade: intervals take them as lenses at one end, not at the other."
    if "reason" in beyond:
        yield f"Nothing follows on completeness, as {beyond['reason']}."
    elif beyond["low"] != beyond["high"] and not beyond["lenses"]:
        yield (
            f"No lens is in the audit sample: up to {beyond['high']} may be beyond the first rows, so that "
            "completeness has bounds only, no value."
        )
    elif beyond["low"] != beyond["high"] and beyond["lenses"] < FEW:
        yield f"The audit sample has few lenses ({beyond['lenses']}): use the interval of completeness, not its value."
    if ungraded := beyond.get("ungraded"):
        yield f"{ungraded} rows of the audit sample have no grade: the interval takes them as either."
    if found["proposed"]:
        yield f"{found['proposed']} graded rows were chosen by their scores to learn from: they count in none of this."
    if found["ties"]:
        yield f"{found['ties']} objects have as many votes for a lens as against it, and are counted as none."
    yield from _doubts_on_graders(found["agreement"])
    yield from _doubts_on_calibration(calibration, beyond)


def _doubts_on_graders(found: Mapping[str, Any]) -> Iterator[str]:
    if len(found["graders"]) == 1:
        yield "One person graded: how far others would agree is unknown."
    for one in [*found["pairs"], *([found["fleiss"]] if "fleiss" in found else [])]:
        if one["kappa"] is not None and one["kappa"] < POOR_KAPPA:
            yield f"Graders agree little beyond chance (kappa {one['kappa']:.2f}): others would give other numbers."
            return


def _doubts_on_calibration(found: Mapping[str, Any], beyond: Mapping[str, Any]) -> Iterator[str]:
    if "reason" in found:
        return
    if found["lowest_logit"] is not None:
        yield f"The calibration holds above a logit of {found['lowest_logit']:.2f}; below it p_lens stays empty."
    elif beyond["lenses"] < FEW and beyond["rest"]:
        yield "Few lenses of low scores were graded: the calibration extrapolates there."
    yield "The calibration is for this survey; for another one with another share of lenses, see --prevalence."


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Purity and completeness by rank, with their intervals."""
    figure = new_figure((6.4, 4.2))
    axes = figure.subplots()
    for name, colour in zip(("purity", "completeness"), COLOURS):
        known = [one for one in found[name] if "reason" not in one]
        ranks, low, high = ([one[key] for one in known] for key in ("rank", "low", "high"))
        label = name if any(one[name] is not None for one in known) or not known else f"{name}: bounds only"
        _curve(axes, ranks, [one[name] for one in known], colour, label if known else f"{name}: not measured")
        axes.fill_between(ranks, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlim(0.8, 1.25 * max(found["top"], 1))  # a logarithmic axis needs it where nothing is known
    axes.set(xscale="log", xlabel="First rows of the ranking", ylabel="Share", ylim=(-0.02, 1.02))
    axes.grid(color="0.92")
    axes.legend(fontsize=8, framealpha=0.95)
    save_figure(figure, path)


def _curve(axes: Any, ranks: Sequence[int], values: Sequence[float | None], colour: str, label: str) -> None:
    shown = [float("nan") if value is None else value for value in values]
    axes.plot(ranks, shown, color=colour, marker="o", markersize=3, label=label)
