"""A map of a survey's embeddings: a picture, and a page on which a click shows the cutout."""

import base64
import io
import json
import logging
import os
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from PIL import Image

from ..data.storage import check_target
from ..errors import InputError, check_at_least
from ..evaluation.pictures import colour_image
from ..evaluation.plots import COLOURS, new_figure, save_figure
from ..files import writing
from ..quoting import in_figure
from . import manifest as manifests
from .crops import Asked
from .embeddings import Whitening, embeddings_of, open_embeddings, sample
from .listed import open_again
from .ranking_tables import VIEWER

logger = logging.getLogger(__name__)

POINTS = 5_000  # at most
PROJECTIONS = ("pca", "umap")
UNKNOWN = "#bbbbbb"  # colour of objects without a value


def draw_map(
    scores: str | os.PathLike,
    output: str | os.PathLike,
    column: str = "score",
    projection: str = "pca",
    seed: int = 0,
) -> Path:
    """
    Write a map of up to `POINTS` random objects as map.png and map.html.

    Args:
        scores (`str` or `os.PathLike`): the folder that [`score`] wrote, with embeddings.
        output (`str` or `os.PathLike`): the folder to write; it must not exist, or be empty.
        column (`str`, *optional*, defaults to `"score"`): the column of the scores that gives the colour.
        projection (`str`, *optional*): `pca`, the two axes of most variance; or `umap`, of the whitened embeddings.
        seed (`int`, *optional*, defaults to `0`): of the sample and of UMAP.

    Raises:
        [`InputError`]: no embeddings, no such column, umap-learn is missing, or what [`rank`] refuses.
    """
    scores, output = Path(scores), Path(output)
    check_at_least(0, seed=seed)
    if projection not in PROJECTIONS:
        raise InputError(f"projection is {projection}: choose from {', '.join(PROJECTIONS)}")
    if projection == "umap" and find_spec("umap") is None:
        raise InputError("umap-learn is not installed: pip install umap-learn, or choose the projection pca")
    check_target(output)
    manifest = manifests.read(scores)
    manifests.check_output(output, manifest["input"]["path"])
    shards = open_embeddings(scores, manifest)
    known = [name for name in shards.columns if name != "embedding"]
    if column not in known:
        raise InputError(f"the scores have no column {column!r} to colour by: choose from {', '.join(known)}")
    table = sample(shards, POINTS, seed)
    colours, legend = _colours(table[column], column)
    places = _project(embeddings_of(table), projection, seed)
    with writing(output) as new:
        new.mkdir()
        _draw(places, colours, legend, column, projection, new / "map.png")
        page = _page(table, places, colours, legend, column, _pictures(table["row"].to_numpy(), scores, manifest))
        (new / "map.html").write_text(page, encoding="utf-8")
    return output


def _project(embeddings: np.ndarray, projection: str, seed: int) -> np.ndarray:
    """`(n, 2)`."""
    if projection == "umap":
        from umap import UMAP

        return UMAP(metric="cosine", random_state=seed % 2**32).fit_transform(Whitening.fit(embeddings)(embeddings))
    deviations = embeddings - embeddings.mean(axis=0)
    _, axes = np.linalg.eigh(deviations.T @ deviations)
    return deviations @ axes[:, :-3:-1]


def _colours(values: pyarrow.ChunkedArray, column: str) -> tuple[list[str], Any]:
    """A colour for each value; and the names of the colours, or the scale of numbers."""
    if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
        texts = [str(value) for value in values.to_pylist()]
        names = sorted(set(texts))
        if len(names) > len(COLOURS):
            raise InputError(f"column {column!r} has {len(names)} different texts: choose a column of numbers")
        legend = dict(zip(names, COLOURS))
        return [legend[text] for text in texts], legend
    numbers = values.to_pandas().to_numpy(dtype=float)
    is_known = np.isfinite(numbers)
    low, high = np.percentile(numbers[is_known], [1, 99]) if is_known.any() else (0.0, 1.0)
    scale = Normalize(low, high, clip=True)
    found = map(to_hex, colormaps["viridis"](scale(numbers)))
    return [colour if known else UNKNOWN for colour, known in zip(found, is_known)], scale


def _draw(places: np.ndarray, colours: list[str], legend: Any, column: str, projection: str, path: Path) -> None:
    figure = new_figure((7.2, 6.0))
    axes = figure.subplots()
    axes.scatter(*places.T, c=colours, s=6, linewidths=0)
    axes.set(xticks=[], yticks=[], xlabel=f"{projection.upper()} 1", ylabel=f"{projection.upper()} 2")
    axes.set_title(f"{len(places)} objects by their embeddings", fontsize=11)
    if isinstance(legend, dict):
        for name, colour in legend.items():
            axes.scatter([], [], c=colour, s=20, label=in_figure(name))
        axes.legend(title=in_figure(column), fontsize=8)
    else:
        figure.colorbar(ScalarMappable(legend, "viridis"), ax=axes, label=in_figure(column), extend="both")
    save_figure(figure, path)


def _page(
    table: pyarrow.Table, places: np.ndarray, colours: list[str], legend: Any, column: str, pictures: list[str]
) -> str:
    """The page, with all that it shows inside."""
    low, extent = places.min(axis=0), np.ptp(places, axis=0).clip(1e-12)
    x, y = ((places - low) / extent).round(4).T.tolist()
    positions = zip(table["ra"].to_pylist(), table["dec"].to_pylist())
    data = {
        "x": x,
        "y": y,
        "colour": colours,
        "legend": _legend_of_page(legend, UNKNOWN in colours),
        "id": [str(one) for one in table["id"].to_pylist()],
        "logit": table["logit"].to_numpy().round(2).tolist(),
        "column": column,
        "value": [f"{one:.6g}" if isinstance(one, float) else str(one) for one in table[column].to_pylist()],
        "viewer": [None if None in at else VIEWER.format(*at) for at in positions],
        "picture": pictures,
    }
    template = files(__package__).joinpath("templates", "map.html").read_text(encoding="utf-8")
    return template.replace("{{ data }}", json.dumps(data).replace("<", "\\u003c"))  # no text ends the script


def _legend_of_page(legend: Any, has_unknown: bool) -> dict[str, Any]:
    """The colours of a bar from left to right with the numbers at its ends, or none; and colours by what they mean."""
    if isinstance(legend, dict):
        return {"bar": None, "ends": None, "names": legend}
    ends = [f"\N{LESS-THAN OR EQUAL TO} {legend.vmin:.4g}", f"\N{GREATER-THAN OR EQUAL TO} {legend.vmax:.4g}"]
    bar = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, 17))]
    return {"bar": bar, "ends": ends, "names": {"no value": UNKNOWN} if has_unknown else {}}


def _pictures(rows: np.ndarray, scores: Path, manifest: dict[str, Any]) -> list[str]:
    """JPEGs in base64 of the cutouts in rows of the input; empty where it can no longer be read."""
    try:
        source, preparation = open_again(scores, manifest)
    except (InputError, OSError) as error:
        logger.warning(f"the page shows no cutouts: {error}")
        return [""] * len(rows)
    picked = sorted(rows.tolist())
    found = dict(zip(picked, source.pick(picked, Asked([preparation]))))
    bands = preparation.cutouts.get("bands")
    return ["" if isinstance(found[row], str) else _jpeg(colour_image(found[row][0], bands)) for row in rows.tolist()]


def _jpeg(image: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
