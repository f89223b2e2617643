"""The pictures of a study."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from ..evaluation.metrics import reliability
from ..evaluation.plots import new_figure, save_figure
from ..evaluation.predictions import Predictions
from ..quoting import in_figure
from .methods import METHOD_NAMES

Panels = Mapping[str, Mapping[str, Sequence[Predictions]]]

_COLOURS = {"supervised": "#000000", "simsiam": "#E69F00", "dino": "#0072B2", "ibot": "#009E73"}
_COLOURS |= {"cnn": "#D55E00", "profiles": "#CC79A7"}
_LINES = {"long": "--", "continued": "--", "linear": ":", "continued-linear": "-."}
_MEASURES = {"roc_auc": "ROC AUC", "auc_vs_hard_nonlens": "ROC AUC, hard non-lenses", "accuracy": "Accuracy"}


def _style(method: str) -> dict[str, str]:
    family, _, variant = method.partition("-")
    colour, line = _COLOURS[family], _LINES.get(variant, "--" if family in ("cnn", "profiles") else "-")
    return {"color": colour, "linestyle": line, "markerfacecolor": "white" if method.endswith("-linear") else colour}


def _marker(method: str) -> str:
    return "s" if "-continued" in method else "D" if method.endswith("-long") else "o"


def plot_study_roc(panels: Panels, path: str | os.PathLike, title: str = "") -> Path:
    """
    A panel of ROC curves per label budget, each the mean true-positive rate over a method's cells.

    Args:
        panels (`Mapping[str, Mapping[str, Sequence[Predictions]]]`): predictions per panel and method.
        path (`str` or `os.PathLike`): the PNG to write.
        title (`str`, *optional*): above the panels.
    """
    rates = np.linspace(0, 1, 501)

    def draw(axes: Any, method: str, tables: Sequence[Predictions]) -> None:
        curves = []
        for table in tables:
            fpr, tpr, _ = roc_curve(table.label, table.score, drop_intermediate=False)
            last = np.searchsorted(fpr, rates, side="right") - 1  # steps: the highest TPR at no more than this FPR
            curves.append(tpr[last])
        axes.plot(rates, np.mean(curves, axis=0), label=METHOD_NAMES[method], linewidth=1.6, **_style(method))

    labels = {"xlabel": "False-positive rate", "ylabel": "True-positive rate", "ylim": (0, 1.01)}
    return _plot_panels(panels, path, title, draw, "lower right", **labels)


def plot_calibration(panels: Panels, path: str | os.PathLike, title: str = "") -> Path:
    """
    Reliability diagrams (Guo et al. 2017): the share of lenses against P(lens), a panel per label budget, a line per
    method over all its cells; bins with fewer than 20 different cutouts are left out.

    Args:
        panels, path, title: as for [`plot_study_roc`].
    """

    def draw(axes: Any, method: str, tables: Sequence[Predictions]) -> None:
        labels, scores = (np.concatenate([getattr(t, key) for t in tables]) for key in ("label", "score"))
        repeats = len(labels) / len({one for table in tables for one in table.id})
        bins = [one for one in reliability(labels, scores) if one["count"] >= 20 * repeats]
        middles = [(one["low"] + one["high"]) / 2 for one in bins]
        shares = [one["lenses"] / one["count"] for one in bins]
        style = {"marker": _marker(method), "markersize": 3.5, "linewidth": 1.4, **_style(method)}
        axes.plot(middles, shares, label=METHOD_NAMES[method], **style)

    labels = {"xlabel": "P(lens)", "ylabel": "Share of lenses", "ylim": (-0.01, 1.01)}
    return _plot_panels(panels, path, title, draw, "upper left", **labels)


def _plot_panels(
    panels: Panels,
    path: str | os.PathLike,
    title: str,
    draw: Callable[[Any, str, Sequence[Predictions]], None],
    legend: str,
    **labels: Any,
) -> Path:
    """A square panel with its diagonal for each label budget, in which `draw` draws each method."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure((4.2 * columns, 4.1 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, methods) in zip(grid, panels.items()):
        axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
        for method, tables in methods.items():
            draw(axes, method, tables)
        axes.set(title=in_figure(name), xlim=(0, 1), **labels)
        axes.set_aspect("equal")
        axes.grid(color="0.92")
        axes.legend(loc=legend, fontsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(in_figure(title), fontsize=11)
    return save_figure(figure, path)


def plot_label_efficiency(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = "") -> Path:
    """
    AUC and accuracy against the number of labels, a line per method, a row of panels per backbone. Bars are 95 %
    intervals, those over the test set alone dotted.

    Args:
        rows (`Sequence[Mapping]`): from [`~lens_ssl_hf.study.statistics.compare`].
        path (`str` or `os.PathLike`): the PNG to write.
        title (`str`, *optional*): above the panels.
    """
    measures = {name: text for name, text in _MEASURES.items() if any(name in row for row in rows)}
    backbones = sorted({row["backbone"] for row in rows} - {""}) or [""]
    figure = new_figure((5.2 * len(measures), 4.2 * len(backbones) + 0.6))
    grid = figure.subplots(len(backbones), len(measures), squeeze=False)
    for line, backbone in zip(grid, backbones):
        for axes, (measure, text) in zip(line, measures.items()):
            shown = [row for row in rows if row["backbone"] in (backbone, "") and measure in row]
            _draw_lines(axes, shown, measure)
            ticks = sorted({row["num_labels"] for row in shown})
            axes.set(xlabel="Labels", ylabel=text, xscale="log", title=in_figure(backbone))
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
            axes.set_xticks([], minor=True)
            axes.grid(color="0.92")
    entries = {name: one for axes in grid.flat for one, name in zip(*axes.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), fontsize=8, loc="outside lower center", ncols=4)
    bars = "bars: 95 % over seeds, label subsets and test set; dotted: over the test set alone"
    figure.suptitle(f"{in_figure(title)}\n{bars}", fontsize=10)
    return save_figure(figure, path)


def _draw_lines(axes: Any, rows: Sequence[Mapping[str, Any]], measure: str) -> None:
    methods = [method for method in METHOD_NAMES if any(row["method"] == method for row in rows)]
    for place, method in enumerate(methods):
        found, style = [row for row in rows if row["method"] == method], _style(method)
        side = 1.012 ** (place - (len(methods) - 1) / 2)  # beside each other, so that intervals can be read
        x = [row["num_labels"] * side for row in found]
        value = [row[measure]["value"] for row in found]
        axes.plot(x, value, marker=_marker(method), markersize=4, label=METHOD_NAMES[method], linewidth=1.6, **style)
        for place, row in zip(x, found):
            entry, alone = row[measure], row[measure]["test_set_alone"]
            if entry["low"] is not None:
                ends = {"linewidth": 0.7, "linestyle": ":"} if alone else {"linewidth": 1.4}
                axes.vlines(place, entry["low"], entry["high"], color=style["color"], **ends)
