"""
A second simulated sky, which has nothing from the simulator of this package, and what a classifier of ours is worth
there: without a label of it, and with 100.

```bash
pip install lenstronomy
python scripts/second_sky.py --output sky2/
```

The images are those of lenstronomy (Birrer & Amara 2018), with the pixel scale, seeing and depth of the Kilo-Degree
Survey (KiDS; Kuijken et al. 2019): shallower and coarser than the HSC of our training cutouts. Lenses are power-law
ellipsoids with shear, sources are disks with clumps, faint arcs are kept. What is no lens is an elliptical, a spiral,
a ring galaxy, a merger, or an elliptical with blue companions, each drawn anew here. The PSF is a Gaussian and the
noise is white. Cutouts are FITS files; a command that was stopped goes on where it was.
"""

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from tqdm.auto import tqdm

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.files.raw import readable
from lens_ssl_hf.data.options import option
from lens_ssl_hf.data.pool import map_chunks
from lens_ssl_hf.errors import InputError, exit_on_input_error
from lens_ssl_hf.files import through_memory, write_json, writing

BANDS = ("g", "r", "i")
SIDE, PIXEL_SCALE, ZERO_POINT = 61, 0.2, 25.0  # pixels, arcsec, AB magnitude
SEEING = np.array([0.86, 0.68, 0.80])  # median FWHM in arcsec
DEPTH = np.array([25.1, 25.0, 23.7])  # 5 sigma in an aperture of 2 arcsec
LEAST_SNR = 15.0  # of the arcs in g
SIZES = {"train": 400, "validation": 200, "test": 1000}
LABELS = "100"

Flux = np.ndarray  # (3,), in g, r, i


@dataclass
class Arguments:
    """The sky, and what is tried on it."""

    output: str = option(MISSING, "The folder of the cutouts and runs.")
    model: str = option("model_cards/lens-dino-vits8-classifier", "A classifier for simulated cutouts.")
    varied: str = option("model_cards/lens-dino-vits8-varied-classifier", "A classifier for those of varied skies.")
    backbone: str = option("model_cards/lens-dino-vits8", "A pretrained ViT for simulated cutouts.")
    also: list[str] = option(None, "Further classifiers, as NAME=PATH, that are tried without a label.")
    only: list[str] = option(None, "Measure what has one of these in its name; the rest stays as in the result file.")
    steps: int = option(400, "Steps of a fine-tuning.")
    seeds: int = option(3, "Label subsets, each with a seed of its own.")
    num_proc: int = option(1, "Processes that simulate.")
    result: str = option("model_cards/results/second_sky.json", "The JSON file to write.")


# ---- the sky ---------------------------------------------------------------------------------------


def observed(rng: np.random.Generator) -> tuple[list[Callable[..., np.ndarray]], np.ndarray]:
    """Per band a function that renders a model as it is seen, and the noise of a pixel."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    fwhm = SEEING * rng.lognormal(0, 0.1, 3)
    noise = 10 ** (0.4 * (ZERO_POINT - DEPTH)) / 5 / math.sqrt(math.pi / PIXEL_SCALE**2) * rng.lognormal(0, 0.1, 3)

    def renderer(seeing: float) -> Callable[..., np.ndarray]:
        corner = -(SIDE - 1) / 2 * PIXEL_SCALE
        data = ImageData(
            np.zeros((SIDE, SIDE)),
            ra_at_xy_0=corner,
            dec_at_xy_0=corner,
            transform_pix2angle=PIXEL_SCALE * np.eye(2),
            background_rms=1.0,
            exposure_time=1.0,
        )
        psf = PSF("GAUSSIAN", fwhm=seeing, pixel_size=PIXEL_SCALE)

        def render(light: list[tuple[str, dict]], lens: list[tuple[str, dict]] | None = None) -> np.ndarray:
            model = LightModel([name for name, _ in light])
            parts = {"source_model_class": model} if lens else {"lens_light_model_class": model}
            parts |= {"lens_model_class": LensModel([name for name, _ in lens])} if lens else {}
            image = ImageModel(data, psf, kwargs_numerics={"supersampling_factor": 3 if lens else 2}, **parts)
            given = {"kwargs_source" if lens else "kwargs_lens_light": [values for _, values in light]}
            given |= {"kwargs_lens": [values for _, values in lens]} if lens else {}
            return image.image(**given)

        return render

    return [renderer(one) for one in fwhm], noise


def flux_of(magnitude: float, colours: tuple[float, float]) -> Flux:
    """Of a magnitude in r, and g - r and r - i."""
    return 10 ** (0.4 * (ZERO_POINT - (magnitude + np.array([colours[0], 0.0, -colours[1]]))))


def sersic(rng: np.random.Generator, x: float, y: float, radius: float, index: float, axis_ratio: float) -> dict:
    angle, size = rng.uniform(0, math.pi), (1 - axis_ratio) / (1 + axis_ratio)
    ellipticity = {"e1": size * math.cos(2 * angle), "e2": size * math.sin(2 * angle)}
    return {"amp": 1.0, "R_sersic": radius, "n_sersic": index, "center_x": x, "center_y": y, **ellipticity}


def scaled(images: np.ndarray, flux: Flux) -> np.ndarray:
    """Images `(3, SIDE, SIDE)` with the total flux of each band."""
    return images * (flux / images.sum(axis=(1, 2)))[:, None, None]


def galaxy(renders: list, one: dict, flux: Flux) -> np.ndarray:
    return scaled(np.stack([render([("SERSIC_ELLIPSE", one)]) for render in renders]), flux)


def red_galaxy(rng: np.random.Generator, renders: list, shape: dict) -> np.ndarray:
    flux = flux_of(rng.uniform(17.8, 20.3), (rng.normal(1.35, 0.2), rng.normal(0.5, 0.1)))
    return galaxy(renders, shape, flux)


def elliptical_shape(rng: np.random.Generator) -> dict:
    return sersic(rng, *rng.normal(0, 0.05, 2), rng.lognormal(math.log(0.9), 0.35), rng.uniform(2.5, 5.5),
                  rng.uniform(0.5, 0.98))  # fmt: skip


def around(rng: np.random.Generator, least: float, most: float) -> tuple[float, float]:
    """x and y of a place at some distance in arcsec."""
    distance, angle = rng.uniform(least, most), rng.uniform(0, 2 * math.pi)
    return distance * math.cos(angle), distance * math.sin(angle)


def blue(rng: np.random.Generator) -> tuple[float, float]:
    return rng.normal(0.35, 0.25), rng.normal(0.2, 0.15)


def lens(rng: np.random.Generator, renders: list, noise: np.ndarray) -> np.ndarray:
    while True:
        shape = elliptical_shape(rng)
        radius = rng.uniform(0.9, 1.9)
        mass = {"theta_E": radius, "gamma": rng.normal(2.0, 0.12), "center_x": shape["center_x"]}
        mass |= {"center_y": shape["center_y"], "e1": shape["e1"] + rng.normal(0, 0.04)}
        mass |= {"e2": shape["e2"] + rng.normal(0, 0.04)}
        shear = {"gamma1": rng.normal(0, 0.04), "gamma2": rng.normal(0, 0.04)}
        distance, angle = 0.5 * radius * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        disk = sersic(rng, x, y, rng.uniform(0.12, 0.45), rng.uniform(0.5, 2.0), rng.uniform(0.3, 1.0))
        clumps = [sersic(rng, *(disk[c] + rng.normal(0, 0.7 * disk["R_sersic"]) for c in ("center_x", "center_y")),
                         0.05, 0.8, 1.0) for _ in range(rng.integers(0, 4))]  # fmt: skip
        for clump in clumps:
            clump["amp"] = rng.uniform(0.5, 4.0)
        source = [("SERSIC_ELLIPSE", one) for one in (disk, *clumps)]
        model = [("EPL", mass), ("SHEAR", shear)]
        arcs = np.stack([render(source, model) for render in renders])
        magnification = rng.uniform(4, 15)  # the flux of the arcs is drawn, not that of the source
        arcs = scaled(arcs, magnification * flux_of(rng.uniform(23.0, 25.5), blue(rng)))
        if math.sqrt((arcs[0] ** 2).sum()) / noise[0] > LEAST_SNR:
            return red_galaxy(rng, renders, shape) + arcs


def elliptical(rng: np.random.Generator, renders: list, noise: np.ndarray) -> np.ndarray:
    return red_galaxy(rng, renders, elliptical_shape(rng))


def companions(rng: np.random.Generator, renders: list, noise: np.ndarray) -> np.ndarray:
    image = elliptical(rng, renders, noise)
    for _ in range(rng.integers(1, 5)):
        place = around(rng, 0.9, 3.0)
        shape = sersic(rng, *place, rng.uniform(0.15, 0.5), rng.uniform(0.5, 2.0), rng.uniform(0.25, 1.0))
        image = image + galaxy(renders, shape, flux_of(rng.uniform(21.0, 23.5), blue(rng)))
    return image


def merger(rng: np.random.Generator, renders: list, noise: np.ndarray) -> np.ndarray:
    image = 0.0
    for _ in range(rng.integers(2, 4)):
        shape = sersic(rng, *rng.normal(0, 0.9, 2), rng.uniform(0.3, 1.0), rng.uniform(0.7, 4.0), rng.uniform(0.3, 1))
        colours = rng.normal(0.8, 0.35), rng.normal(0.35, 0.15)
        image = image + galaxy(renders, shape, flux_of(rng.uniform(18.5, 21.5), colours))
    return image


def painted(
    rng: np.random.Generator, renders: list, light: Callable[[np.ndarray, np.ndarray], np.ndarray], flux: Flux
):
    """Light on a fine grid `(r in arcsec, angle)`, turned and inclined, as it is seen."""
    from scipy.ndimage import gaussian_filter

    axis = (np.arange(3 * SIDE) - (3 * SIDE - 1) / 2) * PIXEL_SCALE / 3
    turn, ratio = rng.uniform(0, 2 * math.pi), rng.uniform(0.45, 1.0)
    x, y = np.meshgrid(axis, axis)
    along, across = x * math.cos(turn) + y * math.sin(turn), (y * math.cos(turn) - x * math.sin(turn)) / ratio
    fine = light(np.hypot(along, across), np.arctan2(across, along))
    seen = []
    for render in renders:
        point = render([("GAUSSIAN", {"amp": 1.0, "sigma": 0.02, "center_x": 0.0, "center_y": 0.0})])
        width = math.sqrt(1 / (2 * math.pi * point.max() / point.sum()))  # of the PSF, in pixels
        seen.append(gaussian_filter(fine, 3 * width).reshape(SIDE, 3, SIDE, 3).sum(axis=(1, 3)))
    return scaled(np.stack(seen), flux)


def spiral(rng: np.random.Generator, renders: list, noise: np.ndarray) -> np.ndarray:
    arms, pitch, scale = rng.integers(2, 5), math.tan(math.radians(rng.uniform(10, 30))), rng.uniform(0.6, 1.4)
    strength = rng.uniform(0.4, 0.95)

    def light(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
        return np.exp(-r / scale) * (1 + strength * np.cos(arms * (angle - np.log(r + 0.05) / pitch)))

    bulge = sersic(rng, 0, 0, rng.uniform(0.2, 0.6), rng.uniform(1, 4), rng.uniform(0.6, 1.0))
    magnitude = rng.uniform(17.8, 20.5)
    red = flux_of(magnitude + rng.uniform(0.3, 2.0), (rng.normal(1.0, 0.2), rng.normal(0.4, 0.1)))
    return galaxy(renders, bulge, red) + painted(rng, renders, light, flux_of(magnitude, blue(rng)))


def ring(rng: np.random.Generator, renders: list, noise: np.ndarray) -> np.ndarray:
    radius, width = rng.uniform(0.9, 2.2), rng.uniform(0.12, 0.35)
    knots, phase, depth = rng.integers(1, 6), rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.8)

    def light(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
        return np.exp(-(((r - radius) / width) ** 2) / 2) * (1 + depth * np.cos(knots * angle + phase))

    return elliptical(rng, renders, noise) + painted(rng, renders, light, flux_of(rng.uniform(20.0, 22.5), blue(rng)))


NONLENSES = {"elliptical": elliptical, "companions": companions, "merger": merger, "spiral": spiral, "ring": ring}


def cutout(split: str, index: int) -> tuple[np.ndarray, str]:
    """Flux `(3, SIDE, SIDE)` of one cutout, half of them lenses, and its kind."""
    rng = np.random.default_rng([list(SIZES).index(split), index, 2])
    kind = "lens" if index % 2 else list(NONLENSES)[rng.integers(len(NONLENSES))]
    renders, noise = observed(rng)
    image = (lens if kind == "lens" else NONLENSES[kind])(rng, renders, noise)
    for _ in range(rng.poisson(0.8)):
        place = around(rng, 3.2, 6.0)
        shape = sersic(rng, *place, rng.uniform(0.15, 0.7), rng.uniform(0.5, 4), rng.uniform(0.3, 1.0))
        flux = flux_of(rng.uniform(20.0, 24.0), (rng.normal(0.7, 0.4), rng.normal(0.3, 0.2)))
        image = image + galaxy(renders, shape, flux)
    return (image + noise[:, None, None] * rng.normal(size=image.shape)).astype(np.float32), kind


def path_of(folder: Path, split: str, index: int) -> Path:
    return folder / split / ("lenses" if index % 2 else "nonlenses") / f"{index:05d}.fits"


def write_chunk(jobs: list[tuple[str, int]], folder: Path) -> list[str]:
    """The kind of each of these cutouts, whose files are written."""
    kinds = []
    for split, index in jobs:
        pixels, kind = cutout(split, index)
        header = fits.Header({"MAGZERO": ZERO_POINT, "FILTER": ",".join(BANDS), "KIND": kind})
        header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 0.0, "CRVAL2": 0.0})
        header.update({"CD1_1": -PIXEL_SCALE / 3600, "CD2_2": PIXEL_SCALE / 3600})
        with writing(path_of(folder, split, index)) as partial, through_memory(partial) as file:
            fits.writeto(file, pixels, header)
        kinds.append(kind)
    return kinds


def make(folder: Path, model: str, num_proc: int) -> Path:
    """The dataset of all cutouts, in the display units of a model."""
    from lens_ssl_hf import load_cutouts, save_cutouts
    from lens_ssl_hf.data.storage import ParquetSplits
    from lens_ssl_hf.inference.compatibility import differences
    from lens_ssl_hf.models.loading import read_config

    dataset = folder / "dataset"
    if dataset.is_dir() and differences(read_config(model).cutouts, ParquetSplits(dataset).info, model):
        raise InputError(f"{dataset} is in the display units of another model than {model}: choose another output")
    jobs = [(split, index) for split, count in SIZES.items() for index in range(count)]
    todo = [job for job in jobs if not path_of(folder / "fits", *job).is_file()]
    for _ in tqdm(map_chunks(write_chunk, todo, num_proc, (folder / "fits",)), total=len(todo), desc="simulate"):
        pass
    if not dataset.is_dir():
        save_cutouts(load_cutouts(folder / "fits", like=model, size=48), dataset)
    return dataset


# ---- what it shows ---------------------------------------------------------------------------------


def measured(found: Any, folder: Path) -> dict[str, Any]:
    """Of predictions: the ROC AUC with its interval over the test set, and the AUC against each kind of non-lens."""
    from lens_ssl_hf.evaluation.metrics import measure

    kinds = [fits.getheader(folder / "fits" / one)["KIND"] for one in found.id]
    every = measure(found.label, found.score, subclasses=kinds)
    against = {kind: every[f"auc_vs_{kind}"]["value"] for kind in NONLENSES}
    return {**{key: every["roc_auc"][key] for key in ("value", "low", "high")}, "against": against}


def probed(backbone: str, dataset: Path, seed: int) -> Any:
    """Predictions of a logistic regression on the frozen [CLS]."""
    from lens_ssl_hf.data.tensors import splits_and_info
    from lens_ssl_hf.evaluation.predictions import Predictions
    from lens_ssl_hf.evaluation.probes import extract_features, linear_probe
    from lens_ssl_hf.models.backbones import load_encoder
    from lens_ssl_hf.training.finetune import label_subset

    splits, _ = splits_and_info(dataset)
    splits["train"] = splits["train"].select(label_subset(splits["train"].labels, LABELS, seed))
    encoder = load_encoder(backbone)
    known = encoder.config.cutouts
    features = {
        name: extract_features(encoder, one, known["image_mean"], known["image_std"]).numpy()
        for name, one in splits.items()
    }
    sets = [(features[name], splits[name].labels.numpy()) for name in ("train", "validation")]
    return Predictions.of(splits["test"], linear_probe(*sets[0], *sets[1], features["test"])[0])


def of_eight_views(model: str, dataset: Path) -> Any:
    """Predictions by the mean logit over all flips and quarter rotations, as of `lens-ssl score --views 8`."""
    import torch

    from lens_ssl_hf import predict
    from lens_ssl_hf.data.tensors import splits_and_info

    test = splits_and_info(dataset, "test")[0]["test"]
    sides = (test.pixels, test.pixels.flip(-1))
    views = [torch.rot90(one, turns, (-2, -1)) for one in sides for turns in range(4)]
    found = [predict(model, replace(test, pixels=view)) for view in views]
    logits = np.mean([np.log(one.score) - np.log1p(-one.score) for one in found], axis=0)
    return replace(found[0], score=1 / (1 + np.exp(-logits)))


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__)
    if find_spec("lenstronomy") is None:
        raise InputError("lenstronomy is not installed: pip install lenstronomy")
    if arguments.seeds < 1 or arguments.steps < 1:
        raise InputError(f"seeds is {arguments.seeds} and steps is {arguments.steps}: give at least 1 of each")
    from lens_ssl_hf import finetune, predict
    from lens_ssl_hf.models.loading import read_config

    classifiers = {"our classifier": arguments.model, "our classifier of varied skies": arguments.varied}
    also = dict(word.partition("=")[::2] for word in arguments.also or ())
    for model in (*classifiers.values(), arguments.backbone, *also.values()):
        read_config(model)  # after the simulation is too late
    folder, path = Path(arguments.output), Path(arguments.result)
    dataset = make(folder, arguments.model, arguments.num_proc)

    def tuned(way: str, init: str, seed: int) -> dict[str, Any]:
        run = folder / "runs" / f"{way.replace(' ', '-').replace(',', '')}-{seed}"
        settings = {"init": init, "labels": LABELS, "subset_seed": seed, "seed": seed, "steps": arguments.steps}
        settings |= {"backbone": "vits8"} if init == "scratch" else {}
        finetune(dataset, run, resume="auto", **settings)
        return measured(predict(run, dataset), folder)

    starts = {f"fine-tuned from {name}, {LABELS} labels": model for name, model in classifiers.items()}
    starts |= {f"fine-tuned from our backbone, {LABELS} labels": arguments.backbone}
    starts |= {f"from scratch, {LABELS} labels": "scratch"}
    seeds = range(arguments.seeds)
    jobs: dict[str, list[Callable[[], dict[str, Any]]]] = {
        f"{name}, no label of this sky": [lambda model=model: measured(predict(model, dataset), folder)]
        for name, model in (classifiers | also).items()
    }
    jobs["our classifier of varied skies, eight views, no label of this sky"] = [
        lambda: measured(of_eight_views(arguments.varied, dataset), folder)
    ]
    jobs[f"frozen features, {LABELS} labels"] = [
        lambda seed=seed: measured(probed(arguments.backbone, dataset, seed), folder) for seed in seeds
    ]
    jobs |= {way: [partial(tuned, way, init, seed) for seed in seeds] for way, init in starts.items()}
    kept = {}
    if arguments.only:
        with readable(path, "JSON", "leave only out"):
            kept = json.loads(path.read_text())["roc_auc"]
        kept = {way: found for way, found in kept.items() if not any(word in way for word in arguments.only)}
    ways = {way: kept[way] if way in kept else [job() for job in own] for way, own in jobs.items()}
    write_json(path, {"simulated": True, "labels": int(LABELS), "steps": arguments.steps, "test": SIZES["test"],
                      "roc_auc": ways})  # fmt: skip
    for way, found in ways.items():
        print(f"{way:44}", "  ".join(f"{one['value']:.3f}" for one in found))


if __name__ == "__main__":
    main()
