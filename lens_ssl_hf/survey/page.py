"""The grading page of a ranking: one HTML file that holds the pictures of all listed rows and needs no network."""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..data.stretch import Stretch
from ..evaluation.pictures import colour_bands, colour_image
from ..files import write_text
from .crops import Preparation

LIMIT = 5000  # candidates on a page
_GRADES = ("A", "B", "C", "X")
SIDE = 112  # pixels a side of a picture, where the cutout is larger than the model's crop
_COLUMNS = ["ra", "dec", "sample", "inclusion_probability", "score", "logit", "rank", "viewer"]
_PARTS = ("page.css", "grades.js", "page.js")
_QUALITY = 92  # below, artefacts show in the noise; WebP would halve the resolution of colours
_ASSUMED = {"black": -2.0, "white": 100.0, "softening": 5.0}  # of pictures, in sigma as the fit of a stretch has them


def write_page(
    table: pyarrow.Table,
    pictures: Sequence[bytes | None],
    preparation: Preparation,
    seed: int,
    path: Path,
    grades: pandas.DataFrame | None = None,
) -> None:
    """
    Write the page.

    Args:
        table (`pyarrow.Table`): a ranking.
        pictures (`list[bytes | None]`): of each row what [`encode`] returned; `None` where there is none.
        preparation ([`Preparation`]): of the model that the pictures are for.
        seed (`int`): of the order that the page proposes; of a longer one the last 32 bits, which its shuffle takes.
        path (`Path`): the file to write.
        grades (`pandas.DataFrame`, *optional*):
            Earlier ones, as [`grades_of`] returns them. Who gave them sees them; those without a time or a grader's
            name are left out.
    """
    ids = [str(one) for one in table["id"].to_pylist()]
    rows = {"id": ids, **{name: table[name].to_pylist() for name in _COLUMNS}}
    rows["known"] = table["known"].to_pylist() if "known" in table.column_names else None
    listed = json.dumps([rows[name] for name in ("id", "sample", "inclusion_probability")])
    rows["picture"] = [one and base64.b64encode(one).decode() for one in pictures]
    sides = {Image.open(io.BytesIO(one)).width for one in pictures if one}
    data = {
        "ranking": hashlib.sha256(listed.encode()).hexdigest()[:16],
        "seed": seed % 2**32,
        "size": preparation.size,
        "has_field": max(sides, default=0) > preparation.size,
        "curves": curves(preparation.cutouts, preparation.num_bands),
        "about": _about(preparation),
        "graded": {} if grades is None else _by_grader(grades),
        "rows": rows,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    style, *scripts = (environment.loader.get_source(environment, name)[0] for name in _PARTS)
    script = "\n".join(scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    text = environment.get_template("page.html").render(
        count=len(ids),
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        # Within a script element nothing but "<" can end it.
        data=Markup(json.dumps(data, allow_nan=False).replace("<", r"\u003c")),
    )
    write_text(path, text)


def encode(display: np.ndarray, bands: Sequence[str] | None) -> bytes:
    """A JPEG with colours of full resolution, of display units `(bands, H, W)`."""
    stream = io.BytesIO()
    Image.fromarray(colour_image(display, bands)).save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def curves(cutouts: Mapping[str, Any], num_bands: int) -> list[dict[str, Any]]:
    """
    The stretches that the page offers: each with its `name` and a `table` of `(3, 256)` that takes the red, green and
    blue of a picture to those that are shown.

    Args:
        cutouts (`Mapping`): the model's `config.cutouts`. Where its stretch is none, that of a fit is assumed.
        num_bands (`int`): of the model.
    """
    stretch = Stretch.from_dict(cutouts["stretch"])
    if stretch.kind == "none":
        stretch = Stretch("asinh", **{name: [value] * num_bands for name, value in _ASSUMED.items()})
    black, white, softening = (np.array(one) for one in (stretch.black, stretch.white, stretch.softening))
    ramp = np.broadcast_to(np.arange(256, dtype=np.float32), (num_bands, 1, 256))
    flux = stretch.invert(ramp)
    faint = np.minimum(white, black + 6 * softening)
    shown = {
        "model": ramp,
        "faint": Stretch("asinh", black, faint, softening / 2).apply(flux),
        "faint, negative": 255 - Stretch("asinh", black, faint, softening / 2).apply(flux),
        "linear": Stretch("linear", black, white, softening).apply(flux),
    }
    return [
        {"name": name, "table": colour_image(display, cutouts.get("bands"))[0].T.tolist()}
        for name, display in shown.items()
    ]


def _by_grader(grades: pandas.DataFrame) -> dict[str, dict[str, dict[str, str]]]:
    """What the page keeps of each grader's grades by their ids: grade and time."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for one in grades.itertuples():
        is_named = one.grader != one.file  # which stands in for a name; paths are nothing to send to others
        if is_named and one.grade in _GRADES and isinstance(one.time, str):
            found.setdefault(one.grader, {})[one.id] = {"grade": one.grade, "time": one.time}
    return found


def _about(preparation: Preparation) -> str:
    """What the pictures are."""
    bands, scale = preparation.cutouts.get("bands"), preparation.cutouts.get("pixel_scale")
    size = f"{preparation.size} pixels" + (f" ({preparation.size * scale:.3g} arcsec)" if scale else "")
    text = f"The model sees {size} a side."
    if bands:
        red, _, blue = (bands[i] for i in colour_bands(bands, len(bands)))
        text += f" Bands: {', '.join(bands)}" + (f"; {red} is red, {blue} blue." if len(bands) > 1 else ".")
    return text


def _digest(text: str) -> str:
    """As a content security policy names a script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
