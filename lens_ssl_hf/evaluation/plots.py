"""ROC curves, ranked contact sheets in colour, and training curves, as PNG files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from sklearn.metrics import roc_auc_score, roc_curve

from ..errors import InputError
from ..files import writing
from ..quoting import in_figure
from ..training.arguments import METHOD_NAMES
from .pictures import colour_image, format_score, shorten, shorten_id
from .predictions import Predictions

# Okabe-Ito colours: told apart by colour-blind readers, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LENS_COLOUR, NONLENS_COLOUR = "#009E73", "#D55E00"


def plot_roc(
    predictions: Mapping[str, Predictions],
    path: str | os.PathLike,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "",
) -> Path:
    """
    ROC curves of one or more classifiers, with linear and with logarithmic false-positive rates.

    Args:
        predictions (`Mapping[str, Predictions]`): labelled predictions by the name in the legend.
        path (`str` or `os.PathLike`): the PNG to write.
        metrics (`Mapping[str, Mapping]`, *optional*): by the same names, what [`measure`] returned; its AUC and
            interval go into the legend.
        title (`str`, *optional*): above the panels, such as the name of the dataset.
    """
    figure = new_figure((9.6, 4.6))
    linear, logarithmic = figure.subplots(1, 2)
    for (name, one), colour in zip(predictions.items(), COLOURS * 3):
        fpr, tpr, _ = roc_curve(one.label, one.score, drop_intermediate=False)
        auc = (metrics or {}).get(name, {}).get("roc_auc") or {"value": roc_auc_score(one.label, one.score)}
        interval = f" [{auc['low']:.3f}, {auc['high']:.3f}]" if auc.get("low") is not None else ""
        label = f"{in_figure(name)}: AUC {auc['value']:.3f}{interval}"
        linear.step(fpr, tpr, where="post", color=colour, label=label, linewidth=1.8)
        seen = fpr > 0  # no false positive is drawn at half of one
        first = tpr[~seen].max(initial=0)
        rates, found = np.append(0.5 / (one.label == 0).sum(), fpr[seen]), np.append(first, tpr[seen])
        logarithmic.step(rates, found, where="post", color=colour, linewidth=1.8)
    negatives = max([1, *(int((one.label == 0).sum()) for one in predictions.values())])
    chance = np.geomspace(0.5 / negatives, 1, 200)
    for axes, kwargs in ((linear, {"label": "chance"}), (logarithmic, {})):
        axes.plot(chance, chance, color="0.6", linestyle=":", linewidth=1.2, zorder=0, **kwargs)
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate (completeness)", ylim=(-0.02, 1.02))
        axes.grid(color="0.92")
    linear.set_xlim(-0.02, 1.02)
    linear.set_aspect("equal")
    linear.legend(loc="lower right", fontsize=8, framealpha=0.95)
    logarithmic.set(xscale="log", xlim=(0.45 / negatives, 1.1), xlabel="False-positive rate (logarithmic)")
    logarithmic.axvline(1 / negatives, color="0.6", linewidth=1)
    place = {"fontsize": 8, "color": "0.4", "ha": "left", "transform": logarithmic.get_xaxis_transform()}
    logarithmic.text(1 / negatives, 1.01, f"1 of {negatives} non-lenses", **place)
    figure.suptitle(in_figure(title), fontsize=11)
    return save_figure(figure, path)


def contact_sheet(
    pixels: np.ndarray,
    predictions: Predictions,
    path: str | os.PathLike,
    bands: Sequence[str] | None = None,
    crop_size: int | None = None,
    title: str = "",
    pixel_scale: float | None = None,
    value: str = "P(lens)",
) -> Path:
    """
    The best-ranked cutouts, then the worst mistakes: non-lenses that score highest and lenses that score lowest; of
    unlabelled ones the best 100. Each with its score, kind and id, which is shortened where it is long.

    Args:
        pixels (`np.ndarray` of shape `(n, bands, H, W)`): display units, 0 to 255.
        predictions ([`Predictions`]): all labelled or none, of the same cutouts in the same order.
        path (`str` or `os.PathLike`): the PNG to write.
        bands (`Sequence[str]`, *optional*): their names, from which the colours follow.
        crop_size (`int`, *optional*): side of what the model sees, marked by a thin square.
        title (`str`, *optional*): above the sheet.
        pixel_scale (`float`, *optional*): arcsec per pixel, for a scale bar in the first cutout of each section.
        value (`str`, *optional*): what the scores are.
    """
    columns = 10
    ranked = np.argsort(-predictions.score, kind="stable")
    is_lens = predictions.label[ranked] == 1
    sections = {
        "Highest scores": ranked[: 3 * columns],
        "Non-lenses that score highest": ranked[~is_lens][:columns],
        "Lenses that score lowest": ranked[is_lens][::-1][:columns],
    }
    is_labelled = bool((predictions.label >= 0).any())
    if not is_labelled:
        name = "Highest scores" if value == "P(lens)" else f"Highest {value}"
        sections = {name: ranked[: 10 * columns]}
    rows = sum(-(-len(chosen) // columns) for chosen in sections.values())
    # In inches from the top: a header, then per section a heading, then rows of cutouts with three lines of text each.
    cell, gap, text, heading, header = 1.15, 0.1, 0.45, 0.3, 0.62 if title else 0.4
    width = columns * (cell + gap) + gap
    height = header + len(sections) * heading + rows * (cell + text) + gap
    figure = new_figure((width, height), layout=None)
    legend = "frame: green solid = lens, orange dashed = non-lens; " * is_labelled + f"number = {value}"
    if crop_size and crop_size < pixels.shape[-1]:
        legend += f"; square = the {crop_size} pixels that the model sees"
    head = f"{in_figure(title)}\n" * bool(title) + legend
    figure.text(0.5, 1 - 0.12 / height, head, fontsize=10, ha="center", va="top")
    top = header
    for name, chosen in sections.items():
        figure.text(gap / width, 1 - (top + 0.2) / height, name, fontsize=10, fontweight="bold")
        top += heading
        for place, index in enumerate(chosen):
            row, column = divmod(place, columns)
            left, bottom = gap + column * (cell + gap), top + row * (cell + text) + cell
            axes = figure.add_axes((left / width, 1 - bottom / height, cell / width, cell / height))
            _draw_cutout(axes, colour_image(pixels[index], bands), predictions, int(index), crop_size, value)
            if pixel_scale and place == 0:
                _draw_scale_bar(axes, pixels.shape[-1], pixel_scale)
        top += -(-len(chosen) // columns) * (cell + text)
    return save_figure(figure, path)


def _draw_cutout(
    axes: Any, image: np.ndarray, predictions: Predictions, index: int, crop_size: int | None, value: str
) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    is_lens = predictions.label[index] == 1
    for spine in axes.spines.values() if predictions.label[index] >= 0 else ():
        spine.set(color=LENS_COLOUR if is_lens else NONLENS_COLOUR, linewidth=2.5, linestyle="-" if is_lens else "--")
    size = image.shape[0]
    if crop_size and crop_size < size:
        corner = ((size - crop_size) // 2 - 0.5,) * 2
        axes.add_patch(Rectangle(corner, crop_size, crop_size, fill=False, color="w", alpha=0.45, linewidth=0.7))
    kind = predictions.subclass[index] or ("lens" if is_lens else "non-lens")
    score = float(predictions.score[index])
    number = format_score(score) if value == "P(lens)" else f"{score:.2f}" if value == "logit" else f"{score:.3f}"
    axes.set_xlabel(f"{number}\n{in_figure(shorten(kind, 17))}", fontsize=7, labelpad=2)
    name = in_figure(shorten_id(predictions.id[index], 20))
    axes.annotate(name, (0.5, 0), (0, -19.5), "axes fraction", "offset points", fontsize=6, ha="center", va="top")


def _draw_scale_bar(axes: Any, size: int, pixel_scale: float) -> None:
    """At the lower left, white on black so that it shows on any sky: of a round length, at most 0.4 of the side."""
    lengths = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
    length = max((one for one in lengths if one <= 0.4 * size * pixel_scale), default=lengths[0])
    left, row = 0.06 * size, 0.92 * size
    outline = [withStroke(linewidth=3, foreground="k")]
    axes.plot([left, left + length / pixel_scale], [row, row], color="w", linewidth=1.5, path_effects=outline)
    axes.text(left, row - 0.04 * size, f"{length:g} arcsec", color="w", fontsize=6, va="bottom", path_effects=outline)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def plot_curves(run: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """
    Training curves of a run from its metrics.jsonl: loss and AUC on the validation split; of a pretraining the
    effective rank of [CLS] and the teacher's entropy (for SimSiam the spread of the outputs); of a fine-tuning the
    learning rate.

    Args:
        run (`str` or `os.PathLike`): the run directory.
        path (`str` or `os.PathLike`, *optional*): the PNG to write, by default `curves.png` of the run.

    Raises:
        [`InputError`]: it is no run directory, or its metrics.jsonl holds nothing to draw.
    """
    from ..training.run_directory import read_metrics, read_run  # torch, which the other plots do not need

    run = Path(run)
    facts, lines = read_run(run), read_metrics(run / "metrics.jsonl")
    spread = "the projections" if facts.get("method") == "simsiam" else "[CLS]"
    panels = [
        ({"loss": "total", "cls_loss": "[CLS]", "patch_loss": "patches"}, "Loss"),
        ({"knn_auc": "kNN", "probe_auc": "linear probe", "validation_auc": "classifier"}, "ROC AUC, validation split"),
        ({"effective_rank": ""}, "Effective rank of [CLS]"),
        ({"teacher_entropy": ""}, "Teacher entropy (nats)"),
        ({"output_std": ""}, f"Spread of {spread}\n(std of unit vectors)"),
        ({"learning_rate": ""}, "Learning rate"),
        ({"gradient_norm": ""}, "Gradient norm before clipping"),
    ]
    panels = [panel for panel in panels if any(line.get(name) is not None for line in lines for name in panel[0])][:4]
    if not panels:
        raise InputError(f"{run}/metrics.jsonl holds no step yet: train first")
    figure = new_figure((9.6, 6.4 if len(panels) > 2 else 3.4))
    grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
    for axes, (names, label) in zip(grid, panels):
        for (name, legend), colour in zip(names.items(), COLOURS):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                marker = "o" if len(points) < 40 else None
                axes.plot(*zip(*points), color=colour, label=legend, linewidth=1.5, marker=marker, markersize=3)
        axes.set(xlabel="Optimizer step", ylabel=label)
        axes.locator_params(axis="x", integer=True)
        axes.grid(color="0.92")
        _draw_marks(axes, names, facts)
        if len(axes.lines) > 1 and "teacher_entropy" not in names:
            axes.legend(fontsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(in_figure(_describe(facts)), fontsize=11)
    return save_figure(figure, path or run / "curves.png")


def _draw_marks(axes: Any, names: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """What makes a panel readable: where collapse lies, which weights were kept, where an AUC ends."""
    prototypes = facts["arguments"].get("num_prototypes")
    if "teacher_entropy" in names and prototypes:
        collapse = np.log(prototypes)
        axes.axhline(collapse, color="0.5", linestyle=":")
        note = f"uniform collapse: ln {prototypes} = {collapse:.2f}"
        place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 8, "color": "0.4"}
        axes.text(0.98, collapse, note, **place)
        axes.set_ylim(0, 1.15 * collapse)
    if "validation_auc" in names:
        if facts.get("best_step"):
            axes.axvline(facts["best_step"], color="0.5", linestyle=":", label="weights kept")
        curves = [line for line in axes.lines if line.get_label() != "weights kept"]
        lowest = min(min(line.get_ydata()) for line in curves)
        margin = max(0.02, 0.1 * (1 - lowest))
        axes.set_ylim(lowest - margin, 1 + margin)
    if "learning_rate" in names:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _describe(facts: Mapping[str, Any]) -> str:
    backbone = facts.get("backbone")
    if facts["task"] == "pretrain":
        method = METHOD_NAMES.get(facts["method"], facts["method"])
        return f"{method} pretraining of {backbone} on {facts.get('num_train_images')} cutouts"
    method = facts.get("init_method")
    origin = "trained from scratch" if method == "scratch" else f"fine-tuned after {METHOD_NAMES.get(method, method)}"
    if facts.get("init_run", {}).get("task") == "finetune" or method == "scratch" != facts.get("init", method):
        origin = "fine-tuned from a classifier"
    return f"{backbone}, {origin} on {facts.get('num_labels')} labels"


def new_figure(size: tuple[float, float], layout: str | None = "constrained") -> Figure:
    """A figure of its own: no pyplot, so that the user's backend and open figures stay as they are."""
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """
    Write a PNG atomically, without the versions that would make it differ between machines.

    Raises:
        [`InputError`]: it cannot be written.
    """
    path = Path(path)
    with writing(path) as new:
        figure.savefig(new, format="png", dpi=130, metadata={"Software": None})
    return path
