"""A classifier and a dataset -> the folder of a Gradio Space, and that folder -> the Hub."""

import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import SpaceCard, SpaceCardData
from safetensors.torch import save_file
from transformers.utils import cached_file, extract_commit_hash

from .. import __version__
from ..data.files.bands import band_name
from ..data.listing.labels import LABELS
from ..data.stretch import Stretch
from ..data.tensors import CutoutTensors, center_crop, splits_and_info
from ..errors import InputError
from ..evaluation.metrics import reliability
from ..evaluation.pictures import colour_image
from ..evaluation.probes import extract_features
from ..files import through_memory, write_json, write_text
from ..hub.export import replace_folder
from ..hub.push import check_repo_id, publish
from ..inference.classifier import Classifier, predict
from ..quoting import in_markdown
from .finder import FACTS_FILE, INDEX_FILE, MODEL_FOLDER

MAX_INDEX = 5000  # cutouts: 20 MB, and a search that takes a millisecond
GRADIO_VERSION = "6.31.0"  # what the page was tested with
# What the page imports. Pillow and huggingface_hub come with gradio, in versions that fit it.
REQUIREMENTS = ("torch", "transformers", "safetensors", "numpy", "astropy")
APP = '''"""Scores cutouts in the browser. On the Hub this file is run as it is; here: python app.py"""

from pathlib import Path

from lens_ssl_hf.space.page import launch

launch(Path(__file__).parent)
'''
CARD = """# {title}

Drop cutouts of galaxies (FITS, .npy, PNG) and see the probability of a strong gravitational lens, what the calibration
on the {split} split of {data} tells for such a score, where the model looks, and the nearest training cutouts.
{warning}
Model: {model}. Calibration and nearest cutouts: {data} (fingerprint `{fingerprint}`).

`lens_ssl_hf/` is a copy of the package that made this Space, version {version}, so that the page runs with the code
that it was tested with, whatever is on a package index. On your own machine: `pip install -r requirements.txt
gradio=={gradio}`, then `python app.py`.
"""


def build_space(model: str | Path, cutouts: Any, folder: str | Path, split: str = "test") -> Path:
    """
    Write the folder of a Space: app.py, requirements.txt, README.md, a copy of this package, example cutouts, the
    index of the labelled `train` cutouts, and the calibration on `split`. A model on the Hub is named with its
    revision; a run's or an exported one is copied. The folder holds pictures of up to 5,000 training cutouts and four
    cutouts of `split`.

    The package is copied because nothing else is sure to work: it is on no index under a name that we can promise, and
    the Hub installs requirements before the repository's files are there, so that a wheel in it is not found.

    Args:
        model (`str` or `Path`): a fine-tuning run, an exported classifier's folder, or a Hub id.
        cutouts (`DatasetDict` or path of a saved dataset): labelled `train` and `split`, in display units.
        folder (`str` or `Path`): an earlier Space there is replaced.
        split (`str`, *optional*, defaults to `"test"`): what calibration and examples come from.

    Returns:
        `Path`: the folder.

    Raises:
        [`InputError`]: the model or the data cannot be used, or `folder` holds something else or cannot be written.
    """
    folder = Path(folder)
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not (folder / FACTS_FILE).is_file():
        raise InputError(f"{folder} holds something else than an earlier Space: choose another folder")
    classifier = Classifier.load(model)
    if not classifier.cutouts:
        raise InputError(
            f"{model} does not say how its cutouts were made (config.cutouts): export it with this package"
        )
    if not hasattr(classifier.model, "vit"):
        raise InputError(f"{model} is no stock ViT, whose attention a Space shows: give a ViT classifier")
    splits, info = splits_and_info(cutouts, "train", split)
    train, held_out = (_labelled(splits, name) for name in ("train", split))
    scores = predict(classifier, (splits, info), split=split)
    known = scores.labelled()
    is_hub_id = not Path(model).exists()
    facts = {
        "name": str(model) if is_hub_id else Path(model).resolve().name,
        "model": str(model) if is_hub_id else None,
        "revision": _revision(str(model)) if is_hub_id else None,
        "data": {name: info[name] for name in ("name", "simulated", "fingerprint")},
        "split": split,
        "num_lenses": int((known.label == 1).sum()),
        "num_nonlenses": int((known.label == 0).sum()),
        "calibration": reliability(known.label, known.score),
        "lens_ssl_hf": __version__,
    }
    with replace_folder(folder) as partial:
        write_json(partial / FACTS_FILE, facts)
        _write_index(partial / INDEX_FILE, classifier, train)
        _write_examples(partial / "examples", held_out, classifier.cutouts)
        if not is_hub_id:
            _copy_model(Path(model), partial / MODEL_FOLDER)
        package = Path(__file__).parents[1]
        shutil.copytree(package, partial / package.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        write_text(partial / "app.py", APP)
        versions = [f"{name}=={metadata.version(name).split('+')[0]}\n" for name in REQUIREMENTS]
        write_text(partial / "requirements.txt", "".join(versions))
        write_text(partial / "README.md", str(_card(facts)))
    return folder


def push_space(
    model: str | Path,
    cutouts: Any,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    split: str = "test",
    dry_run: str | Path | None = None,
) -> str:
    """
    Publish what [`build_space`] writes, in one commit, as [`push_to_hub`] publishes a model.

    Args:
        model, cutouts, split: as for [`build_space`].
        repo_id (`str`): such as `"me/lens-space"`.
        private, revision, dry_run: as for [`push_to_hub`].

    Returns:
        `str`: the page of the Space on the Hub; of a dry run the folder.

    Raises:
        [`InputError`]: the model or the data cannot be used; nobody is logged in; or the Hub refuses or cannot be
            reached.
    """
    check_repo_id(repo_id, needs_token=dry_run is None)

    def write(folder: Path) -> None:
        build_space(model, cutouts, folder, split)

    return publish(write, repo_id, "space", _is_of_space, private, revision, dry_run)


def _is_of_space(path: str) -> bool:
    """Whether a path in a repository is that of a file that `build_space` writes, now or in an earlier version."""
    files = ("README.md", "app.py", "requirements.txt", FACTS_FILE, INDEX_FILE)
    return path in files or path.startswith(("lens_ssl_hf/", "examples/", f"{MODEL_FOLDER}/"))


def _labelled(splits: dict[str, CutoutTensors], name: str) -> CutoutTensors:
    if name not in splits:
        raise InputError(f"the dataset has no {name} split: a Space needs one")
    found = splits[name].select((splits[name].labels >= 0).nonzero().flatten())
    if set(found.labels.tolist()) != {0, 1}:
        raise InputError(f"the {name} split lacks labelled lenses or non-lenses: a Space needs both")
    return found


def _revision(model: str) -> str:
    """The commit of a model on the Hub that was loaded."""
    return extract_commit_hash(cached_file(model, "config.json", local_files_only=True), None)


def _write_index(path: Path, classifier: Classifier, train: CutoutTensors) -> None:
    """[CLS] features of unit length, what the model sees of each cutout as a picture, labels and subclasses."""
    if len(train) > MAX_INDEX:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:MAX_INDEX]
        train = train.select(chosen.sort().values)
    features = extract_features(classifier.model.vit, train, classifier.mean, classifier.std)
    crops = center_crop(train.pixels, classifier.crop_size).cpu().numpy()
    pictures = np.stack([colour_image(pixels, classifier.cutouts["bands"]) for pixels in crops])
    tensors = {
        "features": torch.nn.functional.normalize(features),
        "pictures": torch.from_numpy(pictures).contiguous(),
        "labels": train.labels.cpu(),
    }
    save_file(tensors, path, metadata={"subclasses": json.dumps(train.subclasses)})


def _write_examples(folder: Path, held_out: CutoutTensors, cutouts: dict[str, Any]) -> None:
    """The first two lenses and non-lenses, as FITS and .npy of flux and as PNG; 8-bit where there is no flux."""
    from PIL import Image

    folder.mkdir()
    stretch = Stretch.from_dict(cutouts["stretch"])
    has_flux, is_colour = stretch.kind != "none", len(cutouts["bands"]) == 3
    suffixes = {"nonlens-1": ".fits", "nonlens-2": ".npy", "lens-1": ".fits", "lens-2": ".png"}
    for label, word in enumerate(LABELS):
        for number, index in enumerate((held_out.labels == label).nonzero().flatten()[:2].tolist(), start=1):
            display = held_out.pixels[index].cpu().numpy()
            rounded = display.clip(0, 255).round().astype(np.uint8)
            path, suffix = folder / f"{word}-{number}", suffixes[f"{word}-{number}"]
            if is_colour and (suffix == ".png" or not has_flux):  # with red as the reddest, as pictures are read
                Image.fromarray(colour_image(rounded, cutouts["bands"])).save(path.with_suffix(".png"))
            elif suffix == ".fits" and has_flux:
                _write_fits(path.with_suffix(".fits"), stretch.invert(display), cutouts)
            else:
                with through_memory(path.with_suffix(".npy")) as file:
                    np.save(file, stretch.invert(display) if has_flux else rounded)


def _write_fits(path: Path, flux: np.ndarray, cutouts: dict[str, Any]) -> None:
    """A FITS cube that states its bands, zero point and pixel scale, where they are known."""
    from astropy.io import fits

    hdu = fits.PrimaryHDU(flux)
    if all(re.fullmatch(r"[^,;\s]+", band) for band in cutouts["bands"]):
        hdu.header["BANDS"] = ",".join(map(band_name, cutouts["bands"])), "in the order of the planes"
    if cutouts.get("zero_point") is not None:
        hdu.header["MAGZERO"] = cutouts["zero_point"], "AB magnitude of flux 1"
    if cutouts.get("pixel_scale") is not None:
        hdu.header["PIXSCALE"] = cutouts["pixel_scale"], "arcsec per pixel"
    with through_memory(path) as file:
        hdu.writeto(file)


def _copy_model(model: Path, folder: Path) -> None:
    source = model / "model" if (model / "run.json").is_file() else model
    folder.mkdir()
    for file in (*source.glob("*config.json"), *source.glob("model*.safetensors*")):
        shutil.copy(file, folder)


def _card(facts: dict[str, Any]) -> SpaceCard:
    """README.md: the metadata that the Hub starts the Space from, and what the page is."""
    is_hub_id = facts["model"] is not None
    data = SpaceCardData(
        title=f"{facts['name'].split('/')[-1]}: lens finder",
        emoji="🔭",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0" if facts["data"]["simulated"] else "other",  # the pictures of others are theirs
        short_description="Strong gravitational lenses in cutouts",
        models=[facts["model"]] if is_hub_id else None,
        datasets=[facts["data"]["name"]] if re.fullmatch(r"[\w.-]+/[\w.-]+", facts["data"]["name"]) else None,
        tags=["astronomy", "gravitational-lensing"],
    )
    warning = "**Evaluated on simulated cutouts, not on the sky.**" if facts["data"]["simulated"] else ""
    text = CARD.format(
        title=in_markdown(data.title),
        split=in_markdown(facts["split"]),
        data=in_markdown(facts["data"]["name"]),
        warning=f"\n{warning}\n" if warning else "",
        model=f"[{in_markdown(facts['model'])}](https://huggingface.co/{facts['model']})"
        if is_hub_id
        else f"`{MODEL_FOLDER}/`",
        fingerprint=in_markdown(facts["data"]["fingerprint"]),
        version=__version__,
        gradio=GRADIO_VERSION,
    )
    return SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
