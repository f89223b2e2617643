"""
The page of a Space: drop cutouts, see what the model says of each, and why.

```bash
lens-ssl space demo/space
```
"""

import base64
import html
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..evaluation.pictures import format_score
from ..quoting import in_markdown
from .finder import Finder, Finding, at_prevalence, calibration
from .limits import MAX_FILE_SIZE, MAX_FILES, MAX_PIXELS, MAX_SECONDS, LimitedUploads, check_files

PREVALENCE = 1e-3  # the default of lens-ssl evaluate
UNITS = {"flux, in the units of the training data": "flux", "display units, 0 to 255": "display"}
ATTENTION_COLOUR = np.array([255, 60, 172])  # unlike any galaxy's

CSS = """
#results .html-container { padding: 0; }
#results .lens-card { display: flex; flex-wrap: wrap; gap: 20px; padding: 16px; margin-bottom: 14px;
  border: 1px solid var(--border-color-primary); border-radius: 10px; background: var(--block-background-fill); }
#results .lens-error { border-color: #d55e00; }
.lens-card h3 { margin: 0 0 4px; font-size: 1rem; overflow-wrap: anywhere; }
.lens-card p { margin: 6px 0; line-height: 1.45; }
.lens-card figure { margin: 0; }
.lens-card figure > div { position: relative; }
.lens-card figcaption { margin-top: 5px; font-size: .8rem; line-height: 1.3; opacity: .75; }
.lens-card img { display: block; width: 100%; margin: 0; image-rendering: pixelated; background: #000; }
.lens-square { position: absolute; border: 1px solid rgb(255 255 255 / 70%); }
.lens-pictures { display: flex; gap: 14px; }
.lens-pictures figure { width: 170px; }
.lens-words { flex: 1 1 340px; min-width: 0; }
.lens-score { display: flex; align-items: center; gap: 10px; font-size: 1.35rem; font-weight: 600; }
.lens-bar { flex: 1; max-width: 320px; height: 10px; border-radius: 5px; background: var(--border-color-primary); }
.lens-bar div { height: 100%; border-radius: 5px; background: #0072b2; }
.lens-neighbours { display: flex; flex-wrap: wrap; gap: 10px; margin-top: 8px; }
.lens-neighbours figure { width: 86px; }
.lens-neighbours img { border: 3px solid #009e73; }
.lens-neighbours .nonlens img { border: 3px dashed #d55e00; }
"""


def launch(folder: Path) -> None:
    """
    Serve the page of a Space's folder: on this machine only, at a free port, unless Gradio's variables say otherwise
    (GRADIO_SERVER_PORT, GRADIO_SERVER_NAME), as they do on the Hub.

    Raises:
        [`InputError`]: the folder holds no Space, or gradio is not installed.
    """
    finder = Finder(folder)
    page = make_page(finder, folder)
    from starlette.middleware import Middleware  # comes with gradio

    limits = {"max_file_size": MAX_FILE_SIZE, "app_kwargs": {"middleware": [Middleware(LimitedUploads)]}}
    page.launch(css=CSS, footer_links=[], share=False, ssr_mode=False, **limits)


def make_page(finder: Finder, folder: Path) -> Any:
    """The page as `gradio.Blocks`. It loads nothing from elsewhere and sends nothing."""
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError("gradio is not installed: in a checkout, pip install '.[space]' or make space") from error

    examples = sorted((folder / "examples").iterdir())
    # What is dropped here is deleted after ten to twenty minutes.
    with gr.Blocks(title="Lens finder", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(introduction(finder.facts), latex_delimiters=[])
        with gr.Row():
            files = gr.File(label="Cutouts: FITS, .npy, .npz, PNG, JPEG or TIFF", file_count="multiple", scale=2)
            units = gr.Radio(
                list(UNITS.items()),
                value="flux",
                label="Float values are",
                info="8-bit pictures are display units.",
                scale=1,
            )
        gr.Examples(
            [[[str(path)]] for path in examples],
            [files],
            example_labels=[path.name for path in examples],
            label="Examples",
        )
        results = gr.HTML(elem_id="results")
        with gr.Accordion("What this model reads, and what the numbers mean", open=False):
            gr.Markdown(explanation(finder), latex_delimiters=[])
        gr.on(
            [files.change, units.change],
            lambda paths, unit: render(finder, paths or [], unit),
            [files, units],
            results,
            show_progress="minimal",
        )
    return page


def render(finder: Finder, paths: list[str], units: str) -> str:
    """The results of some files as HTML: what cannot be read first, then by falling score."""
    try:
        check_files(paths)
    except InputError as error:
        return _error_card("Too much at once", str(error))
    errors, found, start = [], [], time.monotonic()
    for path in paths:
        name = Path(path).name
        try:
            if time.monotonic() - start > MAX_SECONDS:
                raise InputError(f"{name} was not read, as the others took {MAX_SECONDS} seconds: drop it again")
            finding = finder.look(path, units)
            found.append((finding.score, _card(name, finding, finder.facts)))
        except InputError as error:
            errors.append(_error_card(name, str(error).replace(path, name)))
    return "".join(errors + [card for _, card in sorted(found, key=lambda one: -one[0])])


def _error_card(name: str, sentence: str) -> str:
    name, sentence = html.escape(name), html.escape(sentence)
    return f'<div class="lens-card lens-error" role="alert"><div><h3>{name}</h3><p>{sentence}</p></div></div>'


def _card(name: str, finding: Finding, facts: dict[str, Any]) -> str:
    rendering, square = "Colour rendering" + ("" if finding.is_whole else " of the centre"), ""
    height, width = finding.picture.shape[:2]
    size = len(finding.crop)
    if min(height, width) > size:
        rendering += f"; the square is the {size} pixels that the model sees"
        top, left = (height - size) // 2 / height, (width - size) // 2 / width
        square = f"top:{top:.1%};left:{left:.1%};height:{size / height:.1%};width:{size / width:.1%}"
    attention = f"Attention of [CLS] in the last layer, at most {finding.attention.max():.1f} times an even share"
    pictures = _figure(finding.picture, rendering, square=square)
    pictures += _figure(overlay(finding.crop, finding.attention), attention)
    neighbours = "".join(
        _figure(one.picture, f"{one.name}, {one.similarity:.3f}", "lens" if one.label == 1 else "nonlens")
        for one in finding.neighbours
    )
    return f"""<div class="lens-card">
<div class="lens-pictures">{pictures}</div>
<div class="lens-words">
<h3>{html.escape(name)}</h3>
<div class="lens-score">P(lens) <span>{format_score(finding.score)}</span>
<div class="lens-bar"><div style="width:{finding.score:.1%}"></div></div></div>
<p>{html.escape(calibration_sentence(finding.score, facts))}</p>
<p>Nearest training cutouts, with the cosine similarity of their [CLS] features:</p>
<div class="lens-neighbours">{neighbours}</div>
</div>
</div>
"""


def _figure(picture: np.ndarray, caption: str, kind: str = "", square: str = "") -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    image += f'<div class="lens-square" style="{square}"></div>' if square else ""
    return f'<figure class="{kind}"><div>{image}</div><figcaption>{text}</figcaption></figure>'


def overlay(crop: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """
    The crop, enlarged up to eight times and 512 pixels, under a glow that grows with the attention: none where a patch
    gets the even share or less.

    Args:
        crop (`np.ndarray` of shape `(size, size, 3)`): uint8.
        attention (`np.ndarray` of shape `(rows, columns)`): multiples of an even share.

    Returns:
        `np.ndarray` of shape `(scale * size, scale * size, 3)`: uint8.
    """
    scale = max(1, min(8, 512 // len(crop)))
    large = np.kron(crop, np.ones((scale, scale, 1), np.uint8))
    strength = Image.fromarray(np.maximum(attention - 1, 0).astype(np.float32))
    strength = np.asarray(strength.resize(large.shape[1::-1], Image.Resampling.BILINEAR))
    opacity = 0.6 * strength / max(strength.max(), 0.5)  # an even attention stays dark
    return (large * (1 - opacity[..., None]) + ATTENTION_COLOUR * opacity[..., None]).astype(np.uint8)


def calibration_sentence(score: float, facts: dict[str, Any]) -> str:
    """How often cutouts with such a score were lenses in the evaluated split, and what that means on the sky."""
    found = calibration(score, facts["calibration"])
    split, data = facts["split"], facts["data"]["name"]
    between = f"between {found['low']:.2f} and {found['high']:.2f}"
    if found["share"] is None:
        return f"No cutout of the {split} split of {data} scored {between}: what such a score means was not measured."
    low, high = found["share_low"], found["share_high"]
    here = facts["num_lenses"] / (facts["num_lenses"] + facts["num_nonlenses"])
    rare = tuple(_percent(at_prevalence(share, here, PREVALENCE)) for share in (low, high))
    if found["lenses"] == 0:
        sky = f"less than {rare[1]}"
    else:
        sky = f"more than {rare[0]}" if found["lenses"] == found["count"] else f"{rare[0]} to {rare[1]}"
    return (
        f"Of the {found['count']} cutouts of the {split} split of {data} that scored {between}, "
        f"{found['lenses']} were lenses: {_percent(found['share'])} ({_percent(low)} to {_percent(high)} at 95 % "
        f"confidence). Where only one galaxy in {1 / PREVALENCE:,.0f} is a lens, instead of {_percent(here)} as in "
        f"that split, {sky} of them would be."
    )


def _percent(share: float) -> str:
    """Two digits, and a space that no line breaks at."""
    is_round = share in (0, 1) or 0.0995 <= share < 0.995
    return f"{100 * share:.{'0f' if is_round else '2g'}}\N{NO-BREAK SPACE}%"


def introduction(facts: dict[str, Any]) -> str:
    """The head of the page, as Markdown."""
    data = facts["data"]
    warning = (
        "**These are simulated cutouts: nothing here tells how it does on the sky.**" if data["simulated"] else ""
    )
    return f"""# Lens finder

Drop up to {MAX_FILES} cutouts of galaxies. For each, **{in_markdown(facts["name"])}** tells how probable a strong
gravitational lens is, where it looks, and which training cutouts are most similar.
Calibration and training cutouts: {in_markdown(data["name"])}. {warning}
"""


def explanation(finder: Finder) -> str:
    """What the model accepts, and how each part of a result is to be read, as Markdown."""
    cutouts, facts = finder.pipeline.cutouts, finder.facts
    bands, split = ", ".join(map(in_markdown, finder.bands)), in_markdown(facts["split"])
    side = math.isqrt(MAX_PIXELS)
    size, scale, zero_point = finder.pipeline.min_size, cutouts.get("pixel_scale"), cutouts.get("zero_point")
    return f"""
- **Cutouts** have {len(finder.bands)} bands ({bands}), in this order where the file does not name them, and {size} x
  {size} to {side} x {side} pixels {f"of {scale:.4g} arcsec" if scale else ""} around the object. Flux has
  {"the zero point of the training data" if zero_point is None else f"the zero point {zero_point:.4g}"} and becomes
  display units by the model's {cutouts["stretch"]["kind"]} stretch. Where a FITS header states another scale or zero
  point, it is converted.
- **P(lens)** is the softmax of the classifier.
- **Calibration**: of the cutouts of the {split} split ({facts["num_lenses"]} lenses, {facts["num_nonlenses"]}
  non-lenses) whose score lies in the same of {len(facts["calibration"])} bins, the share that are lenses, with its
  95 % Wilson interval. On the sky lenses are far rarer; Bayes' rule turns the share into that for one lens in
  {1 / PREVALENCE:,.0f} galaxies.
- **Attention** is what the [CLS] token takes from each patch in the last layer, the mean over the heads
  ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)). It shows where the model looks, not why it decides.
- **Nearest training cutouts** are those of the train split whose [CLS] features point in the most similar direction.
  Green frames are lenses, dashed orange ones non-lenses.
"""
