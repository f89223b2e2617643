"""ROC curves, ranked contact sheets in colour, and training curves, as PNG files."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..quoting import in_figure
from ..training.run_directory import read_metrics, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .evaluate import Predictions

# Okabe-Ito colours: told apart by colour-blind readers, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LENS_COLOUR, NONLENS_COLOUR = "#009E73", "#D55E00"
WAVELENGTH_ORDER = ("blue", "u", "g", "green", "r", "red", "i", "z", "y", "Y", "J", "H", "K")


def plot_roc(
    predictions: Mapping[str, "Predictions"],
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
        title (`str`, *optional*): above the panels, such as the name of the data set.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    figure = _figure((9.6, 4.6))
    linear, logarithmic = figure.subplots(1, 2)
    most_negatives = 1
    for (name, one), colour in zip(predictions.items(), COLOURS * 3):
        fpr, tpr, _ = roc_curve(one.label, one.score, drop_intermediate=False)
        negatives = int((one.label == 0).sum())
        most_negatives = max(most_negatives, negatives)
        auc = (metrics or {}).get(name, {}).get("roc_auc") or {"value": roc_auc_score(one.label, one.score)}
        interval = f" [{auc['low']:.3f}, {auc['high']:.3f}]" if auc.get("low") is not None else ""
        label = f"{in_figure(name)}: AUC {auc['value']:.3f}{interval}"
        linear.step(fpr, tpr, where="post", color=colour, label=label, linewidth=1.8)
        seen = fpr > 0  # no false positive is drawn at half of one
        first = tpr[~seen].max(initial=0)
        rates, found = np.append(0.5 / negatives, fpr[seen]), np.append(first, tpr[seen])
        logarithmic.step(rates, found, where="post", color=colour, linewidth=1.8)
    chance = np.geomspace(0.5 / most_negatives, 1, 200)
    for axes, kwargs in ((linear, {"label": "chance"}), (logarithmic, {})):
        axes.plot(chance, chance, color="0.6", linestyle=":", linewidth=1.2, zorder=0, **kwargs)
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate (completeness)", ylim=(-0.02, 1.02))
        axes.grid(color="0.92")
    linear.set_xlim(-0.02, 1.02)
    linear.set_aspect("equal")
    linear.legend(loc="lower right", fontsize=8, framealpha=0.95)
    logarithmic.set(xscale="log", xlim=(0.45 / most_negatives, 1.1), xlabel="False-positive rate (logarithmic)")
    resolution = 1 / most_negatives
    logarithmic.axvline(resolution, color="0.6", linewidth=1)
    note = f"1 of {most_negatives} non-lenses"
    top_of_axes = logarithmic.get_xaxis_transform()
    logarithmic.text(resolution, 1.01, note, fontsize=8, color="0.4", ha="left", transform=top_of_axes)
    figure.suptitle(in_figure(title), fontsize=11)
    return _save(figure, path)


def contact_sheet(
    pixels: np.ndarray,
    predictions: "Predictions",
    path: str | os.PathLike,
    bands: Sequence[str] | None = None,
    crop_size: int | None = None,
    title: str = "",
    pixel_scale: float | None = None,
) -> Path:
    """
    The best-ranked cutouts, then the worst mistakes: non-lenses that score highest and lenses that score lowest. Each
    with its score, kind and id, which is shortened where it is long.

    Args:
        pixels (`np.ndarray` of shape `(n, bands, H, W)`): display units, 0 to 255.
        predictions ([`Predictions`]): labelled, of the same cutouts in the same order.
        path (`str` or `os.PathLike`): the PNG to write.
        bands (`Sequence[str]`, *optional*): their names, from which the colours follow.
        crop_size (`int`, *optional*): side of what the model sees, marked by a thin square.
        title (`str`, *optional*): above the sheet.
        pixel_scale (`float`, *optional*): arcsec per pixel, for a scale bar in the first cutout of each section.
    """
    columns = 10
    ranked = np.argsort(-predictions.score, kind="stable")
    is_lens = predictions.label[ranked] == 1
    sections = {
        "Highest scores": ranked[: 3 * columns],
        "Non-lenses that score highest": ranked[~is_lens][:columns],
        "Lenses that score lowest": ranked[is_lens][::-1][:columns],
    }
    rows = sum(-(-len(chosen) // columns) for chosen in sections.values())
    # In inches from the top: a header, then per section a heading, then rows of cutouts with three lines of text each.
    cell, gap, text, heading, header = 1.15, 0.1, 0.45, 0.3, 0.62 if title else 0.4
    width = columns * (cell + gap) + gap
    height = header + len(sections) * heading + rows * (cell + text) + gap
    figure = _figure((width, height), layout=None)
    legend = "frame: green solid = lens, orange dashed = non-lens; number = P(lens)"
    if crop_size and crop_size < pixels.shape[-1]:
        legend += f"; square = the {crop_size} pixels that the model sees"
    head = f"{in_figure(title)}\n" * bool(title) + legend
    figure.text(0.5, 1 - 0.12 / height, head, fontsize=10, ha="center", va="top")
    top = header
    for name, chosen in sections.items():
        figure.text(gap / width, 1 - (top + 0.2) / height, name, fontsize=10, fontweight="bold")
        top += heading
        for start in range(0, len(chosen), columns):
            for column, index in enumerate(chosen[start : start + columns]):
                left = gap + column * (cell + gap)
                box = (left / width, 1 - (top + cell) / height, cell / width, cell / height)
                image, axes = colour_image(pixels[index], bands), figure.add_axes(box)
                _draw_cutout(axes, image, predictions, int(index), crop_size)
                if pixel_scale and index == chosen[0]:
                    _draw_scale_bar(axes, len(image), pixel_scale)
            top += cell + text
    return _save(figure, path)


def _draw_cutout(axes: Any, image: np.ndarray, predictions: "Predictions", index: int, crop_size: int | None) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    is_lens = predictions.label[index] == 1
    for spine in axes.spines.values():
        spine.set(color=LENS_COLOUR if is_lens else NONLENS_COLOUR, linewidth=2.5, linestyle="-" if is_lens else "--")
    size = image.shape[0]
    if crop_size and crop_size < size:
        from matplotlib.patches import Rectangle

        corner = ((size - crop_size) // 2 - 0.5,) * 2
        axes.add_patch(Rectangle(corner, crop_size, crop_size, fill=False, color="w", alpha=0.45, linewidth=0.7))
    kind = predictions.subclass[index] or ("lens" if is_lens else "non-lens")
    axes.set_xlabel(
        f"{format_score(predictions.score[index])}\n{in_figure(_shorten(kind, 17))}", fontsize=7, labelpad=2
    )
    name = in_figure(_shorten_id(predictions.id[index], 20))
    axes.annotate(name, (0.5, 0), (0, -19.5), "axes fraction", "offset points", fontsize=6, ha="center", va="top")


def _draw_scale_bar(axes: Any, size: int, pixel_scale: float) -> None:
    """At the lower left, white on black so that it shows on any sky: of a round length, at most 0.4 of the side."""
    from matplotlib.patheffects import withStroke

    lengths = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
    length = max((one for one in lengths if one <= 0.4 * size * pixel_scale), default=lengths[0])
    left, row = 0.06 * size, 0.92 * size
    outline = [withStroke(linewidth=3, foreground="k")]
    axes.plot([left, left + length / pixel_scale], [row, row], color="w", linewidth=1.5, path_effects=outline)
    axes.text(left, row - 0.04 * size, f"{length:g} arcsec", color="w", fontsize=6, va="bottom", path_effects=outline)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def colour_image(pixels: np.ndarray, bands: Sequence[str] | None = None) -> np.ndarray:
    """
    Display units as a picture: the reddest band red, the bluest blue; one band grey.

    Args:
        pixels (`np.ndarray` of shape `(bands, H, W)`): display units.
        bands (`Sequence[str]`, *optional*): names; bands without known names are taken as red first.

    Returns:
        `np.ndarray` of shape `(H, W, 3)`: uint8.
    """
    from ..data.files.bands import band_name

    names = [band_name(name) for name in bands or ()]
    order = list(range(len(pixels)))
    if len(names) == len(pixels) and set(names) <= set(WAVELENGTH_ORDER):
        order.sort(key=lambda i: -WAVELENGTH_ORDER.index(names[i]))
        if {"g", "r", "i"} <= set(names):
            order = [names.index(name) for name in "irg"]
    chosen = [order[0], order[len(order) // 2], order[-1]]
    image = np.clip(np.nan_to_num(pixels[chosen]), 0, 255)
    if len(order) == 2:
        image[1] = (image[0] + image[2]) / 2
    return np.moveaxis(image, 0, -1).round().astype(np.uint8)


def plot_curves(run: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """
    Training curves of a run from its metrics.jsonl: loss, AUC on the validation split, learning rate and, for DINO and
    iBOT, the teacher's entropy (for SimSiam the spread of the outputs).

    Args:
        run (`str` or `os.PathLike`): the run directory.
        path (`str` or `os.PathLike`, *optional*): the PNG to write, by default `curves.png` of the run.

    Raises:
        [`InputError`]: it is no run directory, or its metrics.jsonl holds nothing to draw.
    """
    run = Path(run)
    facts, lines = read_run(run), read_metrics(run / "metrics.jsonl")
    spread = "the projections" if facts.get("method") == "simsiam" else "[CLS]"
    panels = [
        ({"loss": "total", "cls_loss": "[CLS]", "patch_loss": "patches"}, "Loss"),
        ({"knn_auc": "kNN", "validation_auc": "classifier"}, "ROC AUC, validation split"),
        ({"learning_rate": ""}, "Learning rate"),
        ({"teacher_entropy": ""}, "Teacher entropy (nats)"),
        ({"output_std": ""}, f"Spread of {spread} (std of unit vectors)"),
        ({"gradient_norm": ""}, "Gradient norm before clipping"),
    ]
    panels = [panel for panel in panels if any(line.get(name) is not None for line in lines for name in panel[0])][:4]
    if not panels:
        raise InputError(f"{run}/metrics.jsonl holds no step yet: train first")
    figure = _figure((9.6, 6.4 if len(panels) > 2 else 3.4))
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
    return _save(figure, path or run / "curves.png")


def _draw_marks(axes: Any, names: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """What makes a panel readable: where collapse lies, which weights were kept, where an AUC ends."""
    prototypes = facts["arguments"].get("num_prototypes")
    if "teacher_entropy" in names and prototypes:
        collapse = np.log(prototypes)
        axes.axhline(collapse, color="0.5", linestyle=":")
        note = f"uniform collapse: ln {prototypes} = {collapse:.2f}"
        axes.text(
            0.98,
            collapse,
            note,
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.4",
        )
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
    names = {"dino": "DINO", "ibot": "iBOT", "simsiam": "SimSiam"}
    backbone = facts.get("backbone")
    if facts["task"] == "pretrain":
        method = names.get(facts["method"], facts["method"])
        return f"{method} pretraining of {backbone} on {facts.get('num_train_images')} cutouts"
    method = facts.get("init_method")
    origin = "trained from scratch" if method == "scratch" else f"fine-tuned after {names.get(method, method)}"
    return f"{backbone}, {origin} on {facts.get('num_labels')} labels"


def format_score(value: float) -> str:
    """Three digits, but 0.9996 does not become 1.000."""
    return "> 0.999" if 0.9995 <= value < 1 else "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _shorten_id(text: str, length: int) -> str:
    """What is too long loses its folders, then its suffix, then its middle: survey and number stand at the ends."""
    name = PurePath(text).name
    for shorter in (text, name, re.sub(r"\.(fits?|fits\.[a-z0-9]+|np[yz]|png|jpe?g|tiff?)$", "", name)):
        if len(shorter) <= length:
            return shorter
    half = (length - 1) // 2
    return f"{shorter[:half]}…{shorter[half + 1 - length :]}"


def _figure(size: tuple[float, float], layout: str | None = "constrained") -> "Figure":
    """A figure of its own: no pyplot, so that the user's backend and open figures stay as they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: str | os.PathLike) -> Path:
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png", dpi=130, metadata={"Software": None})
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"cannot write {path} ({error.strerror or error}): choose a writable place") from error
    return path


_SSL = {"simsiam": ("SimSiam", "#E69F00"), "dino": ("DINO", "#0072B2"), "ibot": ("iBOT", "#009E73")}
_HOW = {
    "": ("", "-"),
    "-continued": (", continued", "--"),
    "-linear": (", linear probe", ":"),
    "-continued-linear": (", continued, linear probe", "-."),
}
_METHODS = {
    "supervised": ("supervised", "#000000", "-"),
    "supervised-long": ("supervised, equal total compute", "#000000", "--"),
    **{m + h: (name + how, colour, line) for h, (how, line) in _HOW.items() for m, (name, colour) in _SSL.items()},
    "cnn": ("small CNN", "#D55E00", "--"),
    "profiles": ("radial profiles", "#CC79A7", "--"),
}
METHOD_NAMES = {method: name for method, (name, _, _) in _METHODS.items()}


def _style(method: str) -> dict[str, str]:
    _, colour, line = _METHODS[method]
    return {"color": colour, "linestyle": line, "markerfacecolor": "white" if method.endswith("-linear") else colour}


def _marker(method: str) -> str:
    return "s" if "-continued" in method else "D" if method.endswith("-long") else "o"


def plot_study_roc(
    panels: Mapping[str, Mapping[str, Sequence["Predictions"]]], path: str | os.PathLike, title: str = ""
) -> Path:
    """
    A panel of ROC curves per label budget, each the mean true-positive rate over a method's cells.

    Args:
        panels (`Mapping[str, Mapping[str, Sequence[Predictions]]]`): predictions per panel and method.
        path (`str` or `os.PathLike`): the PNG to write.
        title (`str`, *optional*): above the panels.
    """
    from sklearn.metrics import roc_curve

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure((4.2 * columns, 4.1 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    rates = np.linspace(0, 1, 501)
    for axes, (name, methods) in zip(grid, panels.items()):
        for method, tables in methods.items():
            curves = []
            for table in tables:
                fpr, tpr, _ = roc_curve(table.label, table.score, drop_intermediate=False)
                last = np.searchsorted(fpr, rates, side="right") - 1  # steps: the highest TPR at no more than this FPR
                curves.append(tpr[last])
            axes.plot(rates, np.mean(curves, axis=0), label=METHOD_NAMES[method], linewidth=1.6, **_style(method))
        axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
        axes.set(
            xlabel="False-positive rate",
            ylabel="True-positive rate",
            title=in_figure(name),
            xlim=(0, 1),
            ylim=(0, 1.01),
        )
        axes.set_aspect("equal")
        axes.grid(color="0.92")
        axes.legend(loc="lower right", fontsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(in_figure(title), fontsize=11)
    return _save(figure, path)


def plot_label_efficiency(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = "") -> Path:
    """
    AUC and accuracy against the number of labels, a line with its 95 % band per method, a column per backbone.

    Args:
        rows (`Sequence[Mapping]`): from [`~lens_ssl_hf.evaluation.comparison.compare`].
        path (`str` or `os.PathLike`): the PNG to write.
        title (`str`, *optional*): above the panels.
    """
    measures = {"roc_auc": "ROC AUC", "auc_vs_hard_nonlens": "ROC AUC, hard non-lenses", "accuracy": "Accuracy"}
    measures = {name: text for name, text in measures.items() if any(name in row for row in rows)}
    backbones = sorted({row["backbone"] for row in rows} - {""}) or [""]
    figure = _figure((5.2 * len(measures), 4.2 * len(backbones) + 0.6))
    grid = figure.subplots(len(backbones), len(measures), squeeze=False)
    for line, backbone in zip(grid, backbones):
        for axes, (measure, text) in zip(line, measures.items()):
            budgets = set()
            shown = [row for row in rows if row["backbone"] in (backbone, "") and measure in row]
            methods = [method for method in METHOD_NAMES if any(row["method"] == method for row in shown)]
            for place, method in enumerate(methods):
                found, name = [row for row in shown if row["method"] == method], METHOD_NAMES[method]
                budgets |= {row["num_labels"] for row in found}
                side = 1.006 ** (place - (len(methods) - 1) / 2)  # beside each other, so that intervals can be read
                x = [row["num_labels"] * side for row in found]
                low, value, high = ([row[measure][key] for row in found] for key in ("low", "value", "high"))
                style = _style(method)
                axes.plot(x, value, marker=_marker(method), markersize=4, label=name, linewidth=1.6, **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
                if len(x) == 1:
                    axes.errorbar(
                        x, value, [[max(0, value[0] - low[0])], [max(0, high[0] - value[0])]], color=style["color"]
                    )
            ticks = sorted(budgets)
            axes.set(xlabel="Labels", ylabel=text, xscale="log", title=in_figure(backbone))
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
            axes.set_xticks([], minor=True)
            axes.grid(color="0.92")
    entries = {name: one for axes in grid.flat for one, name in zip(*axes.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), fontsize=8, loc="outside lower center", ncols=4)
    figure.suptitle(in_figure(title), fontsize=11)
    return _save(figure, path)


def plot_calibration(
    panels: Mapping[str, Mapping[str, Sequence["Predictions"]]], path: str | os.PathLike, title: str = ""
) -> Path:
    """
    Reliability diagrams (Guo et al. 2017): the share of lenses against P(lens), a panel per label budget, a line per
    method over all its cells; bins with fewer than 20 different cutouts are left out.

    Args:
        panels (`Mapping[str, Mapping[str, Sequence[Predictions]]]`): predictions per panel and method.
        path (`str` or `os.PathLike`): the PNG to write.
        title (`str`, *optional*): above the panels.
    """
    from .metrics import reliability

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure((4.2 * columns, 4.1 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, methods) in zip(grid, panels.items()):
        axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
        for method, tables in methods.items():
            labels, scores = (np.concatenate([getattr(t, key) for t in tables]) for key in ("label", "score"))
            repeats = len(labels) / len({one for table in tables for one in table.id})
            bins = [one for one in reliability(labels, scores) if one["count"] >= 20 * repeats]
            middles = [(one["low"] + one["high"]) / 2 for one in bins]
            shares = [one["lenses"] / one["count"] for one in bins]
            axes.plot(
                middles,
                shares,
                marker=_marker(method),
                markersize=3.5,
                label=METHOD_NAMES[method],
                linewidth=1.4,
                **_style(method),
            )
        axes.set(xlabel="P(lens)", ylabel="Share of lenses", title=in_figure(name), xlim=(0, 1), ylim=(-0.01, 1.01))
        axes.set_aspect("equal")
        axes.grid(color="0.92")
        axes.legend(loc="upper left", fontsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(in_figure(title), fontsize=11)
    return _save(figure, path)
