"""Raw cutouts -> display units (float32, 0 to 255): bands, zero point, pixel scale, masked pixels, stretch."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import raw as limits
from .bands import PICTURE_BANDS, band_name, band_order
from .raw import RawCutout, check_valid

__all__ = [
    "PICTURE_BANDS",
    "STRETCHES",
    "CutoutInfo",
    "Stretch",
    "band_name",
    "check_display",
    "cutout_info",
    "fill_masked",
    "save_processor",
    "standardise",
    "to_display",
]

STRETCHES = ("asinh", "sqrt", "linear", "none")

# Where the fitted curve lies, in units of the sky noise sigma and of the brightness of the centres.
SOFTENING_SIGMA = 5.0
BLACK_SIGMA = 2.0
WHITE_PERCENTILE = 99.7


@dataclass(frozen=True)
class Stretch:
    """
    The curve from linear flux to display units, one per band; [`~Stretch.fit`] finds it on a training split.

    Args:
        kind (`str`):
            `"asinh"`, `"sqrt"` (both clipped to [0, 255]), `"linear"` (not clipped), or `"none"`: the values are
            display units already.
        black (`tuple[float, ...]`): flux shown as 0, per band.
        white (`tuple[float, ...]`): flux shown as 255, per band.
        softening (`tuple[float, ...]`): flux where the curve turns from linear to compressed, per band.
    """

    kind: str
    black: tuple[float, ...] = ()
    white: tuple[float, ...] = ()
    softening: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind not in STRETCHES:
            raise InputError(f"unknown stretch {self.kind!r}: choose one of {', '.join(STRETCHES)}")
        for name in ("black", "white", "softening"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    @classmethod
    def fit(cls, pixels: Iterable[np.ndarray], kind: str = "asinh") -> "Stretch":
        """
        Fit the curve to cutouts of the training split.

        Per band: the sky and its noise come from the outer border of each cutout (median and MAD; the median over
        cutouts), black lies 2 sigma below the sky, the softening is 5 sigma, and white is the 99.7th percentile of the
        pixels in the central half.

        Args:
            pixels (iterable of `np.ndarray` of shape `(bands, H, W)`):
                Linear flux, NaN where masked; a thousand cutouts are plenty.
            kind (`str`, *optional*, defaults to `"asinh"`):
                See [`Stretch`].

        Raises:
            [`InputError`]: no cutout, or a band without any contrast.
        """
        if kind == "none":
            return cls("none")
        borders, centres = [], []
        for cutout in pixels:
            height, width = cutout.shape[-2:]
            rim, half = max(1, min(height, width) // 8), (slice(height // 4, -(height // 4) or None),) * 2
            border = np.ones((height, width), bool)
            border[rim:-rim, rim:-rim] = False
            median = _nanmedian(cutout[:, border])
            noise = 1.4826 * _nanmedian(np.abs(cutout[:, border] - median[:, None]))
            borders.append((median, noise))
            centres.append(cutout[:, half[0], half[1]].reshape(len(cutout), -1))
        if not borders:
            raise InputError("there is no training cutout to fit the stretch on: add some or use stretch='none'")
        sky, noise = _nanmedian(np.array(borders).T.transpose(1, 0, 2))
        white = np.nanpercentile(np.concatenate(centres, axis=1), WHITE_PERCENTILE, axis=1)
        noise = np.where(noise > 0, noise, (white - sky) / 1000)  # cutouts whose sky was cut away
        softening, black = SOFTENING_SIGMA * noise, sky - BLACK_SIGMA * noise
        white = np.maximum(white, sky + 3 * softening)
        if not (np.isfinite(white).all() and (white > black).all() and (softening > 0).all()):
            band = int(np.flatnonzero(~((white > black) & (softening > 0)))[0]) + 1
            raise InputError(
                f"band {band} of the training cutouts has no contrast: leave it out or use stretch='none'"
            )
        return cls(kind, tuple(black), tuple(white), tuple(softening))

    def apply(self, flux: np.ndarray) -> np.ndarray:
        """
        Args:
            flux (`np.ndarray` of shape `(..., bands, H, W)`): finite (see [`fill_masked`]).

        Returns:
            `np.ndarray` of the same shape, float32 display units.

        Raises:
            [`InputError`]: another number of bands; for `"none"`, values outside 0 to 255.
        """
        if self.kind != "none" and flux.shape[-3] != len(self.black):
            raise InputError(f"the cutout has {flux.shape[-3]} bands where the stretch has {len(self.black)}")
        if self.kind == "none":
            check_display(flux)
        from .lens_image_processor import stretch_flux  # imports transformers

        return stretch_flux(flux, **asdict(self))

    def invert(self, display: np.ndarray) -> np.ndarray:
        """
        Flux that [`~Stretch.apply`] makes these display units of, `(..., bands, H, W)` float32; what was clipped comes
        back as black or white.
        """
        if self.kind == "none":
            return display
        curve, inverse = {
            "asinh": (np.arcsinh, np.sinh),
            "sqrt": (lambda x: np.sign(x) * (np.sqrt(1 + abs(x)) - 1), lambda y: np.sign(y) * ((1 + abs(y)) ** 2 - 1)),
            "linear": (lambda x: x, lambda y: y),
        }[self.kind]
        black, white, softening = (np.array(v)[:, None, None] for v in (self.black, self.white, self.softening))
        low, high = curve(black / softening), curve(white / softening)
        return (softening * inverse(low + display / 255 * (high - low))).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Stretch":
        """The inverse of [`~Stretch.to_dict`]."""
        return cls(**values)


def check_display(pixels: np.ndarray) -> None:
    """
    Raises:
        [`InputError`]: values below 0 or above 255, or none above 1, which cannot be display units.
    """
    if not pixels.size:
        return
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):
        raise InputError(
            f"values from {low:.4g} to {high:.4g} are no display units (0 to 255): "
            "rescale them, or build the dataset with a stretch"
        )
    if high <= 1 and low < high:
        raise InputError(
            f"values from {low:.4g} to {high:.4g} are no display units (0 to 255): multiply them by 255 if 1 is white"
        )


def _nanmedian(values: np.ndarray) -> np.ndarray:
    """Median over the last axis, NaN left out; NaN without a warning where nothing is left."""
    if np.isfinite(values).all():
        return np.median(values, axis=-1)
    return np.ma.median(np.ma.masked_invalid(values), axis=-1).filled(np.nan)


def fill_masked(flux: np.ndarray) -> np.ndarray:
    """Replace NaN of `(..., H, W)` by the mean of finite neighbours, from the rim of each hole inwards."""
    from .lens_image_processor import fill_masked as fill  # imports transformers

    return fill(flux)


@dataclass
class CutoutInfo:
    """
    What a data set of cutouts knows of itself. It travels in `dataset.info.description` as JSON, and as `cutouts.json`
    beside Parquet files.

    Args:
        source (`str`): `"simulated"`, `"folder"` or `"catalogue"`.
        name (`str`): short name for people.
        simulated (`bool`): whether the pixels are simulated.
        bands (`list[str]`): names of the bands, in order.
        size (`int`): side of the stored cutouts in pixels.
        pixel_scale (`float`, *optional*): arcsec per pixel.
        zero_point (`float`, *optional*): AB magnitude of flux 1, before the stretch.
        stretch (`dict`): [`Stretch.to_dict`].
        fingerprint (`str`): hex digest of the source's files or the simulator's version, and of all settings.
        left_out (`int`): number of bad files that were left out.
        simulator_version (`str`, *optional*): of simulated cutouts; of real ones and of older sets `None`.
    """

    source: str
    name: str
    simulated: bool
    bands: list[str]
    size: int
    pixel_scale: float | None = None
    zero_point: float | None = None
    stretch: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    fingerprint: str = ""
    left_out: int = 0
    simulator_version: str | None = None

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CutoutInfo":
        """The inverse of [`~CutoutInfo.to_json`]; keys of later versions are ignored."""
        values = json.loads(text)
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def cutout_info(dataset: Any) -> CutoutInfo:
    """
    The [`CutoutInfo`] of a `Dataset` or `DatasetDict` that [`load_cutouts`] returned, also after `select`, `filter`,
    `map` and `train_test_split`.

    Raises:
        [`InputError`]: the data set was not made by [`load_cutouts`].
    """
    split = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    try:
        return CutoutInfo.from_json(split.info.description)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError("this data set does not say how its pixels were made: make it with load_cutouts") from error


def standardise(
    raw: RawCutout,
    name: str | Path,
    bands: list[str] | None = None,
    pixel_scale: float | None = None,
    zero_point: float | None = None,
) -> np.ndarray:
    """
    Bring a raw cutout to the bands, pixel scale and zero point that are asked for, as far as it states its own, and
    fill its masked pixels.

    Args:
        raw ([`RawCutout`]): what a reader returned.
        name (`str` or `Path`): how to call it in errors.
        bands (`list[str]`, *optional*):
            Wanted bands; chosen by name (see [`~lens_ssl_hf.data.bands.band_order`]), or all in order where the file
            names none.
        pixel_scale (`float`, *optional*): wanted arcsec per pixel; resampled if it differs by more than 1 %.
        zero_point (`float`, *optional*): wanted zero point.

    Returns:
        `np.ndarray` of shape `(bands, H, W)`: finite float32.

    Raises:
        [`InputError`]: a band is missing or has no valid pixel, or only some of the bands state a zero point.
    """
    pixels, zero_points = raw.pixels, raw.zero_points
    if bands:
        order = band_order(raw.bands or [None] * len(pixels), list(bands), name)
        pixels = pixels[order]
        zero_points = tuple(zero_points[i] for i in order) if zero_points else None
    check_valid(pixels, name, tuple(bands) if bands else raw.bands)
    if zero_point is not None and zero_points and any(one is not None for one in zero_points):
        if None in zero_points:
            raise InputError(f"{name} states the zero point of some bands only: state it for all, or for none")
        gain = 10 ** (0.4 * (zero_point - np.array(zero_points)))
        pixels = pixels * gain[:, None, None].astype(np.float32)
    if np.isnan(pixels).any():
        pixels = fill_masked(pixels)
    if pixel_scale and raw.pixel_scale and abs(raw.pixel_scale / pixel_scale - 1) > 0.01:
        from .lens_image_processor import resample  # imports transformers

        factor = raw.pixel_scale / pixel_scale
        if pixels[0].size * factor**2 > limits.MAX_PIXELS:
            raise InputError(
                f"{name} has pixels of {raw.pixel_scale:.4g} arcsec, too large to be resampled to {pixel_scale:.4g}: "
                "give a larger pixel_scale"
            )
        pixels = resample(pixels, factor, is_flux=not raw.display)
    return pixels


def to_display(raw: RawCutout, cutouts: Mapping[str, Any], name: str | Path) -> np.ndarray:
    """
    A raw cutout as the display units that a model was trained on.

    Args:
        raw ([`RawCutout`]): what a reader returned; 8-bit pictures are display units already.
        cutouts (`Mapping`): the model's `config.cutouts`, with `bands`, `pixel_scale`, `zero_point` and `stretch`.
        name (`str` or `Path`): how to call the cutout in errors.

    Returns:
        `np.ndarray` of shape `(bands, H, W)`: float32 display units.

    Raises:
        [`InputError`]: wrong bands, no valid pixel, or values that cannot be flux as the model expects it.
    """
    zero_point = cutouts.get("zero_point")
    if zero_point is not None and raw.unit and not any(point is not None for point in raw.zero_points or ()):
        raise InputError(
            f"{name} is in {raw.unit} and states no AB zero point, where the model needs flux of zero point "
            f"{zero_point:.4g}: add MAGZERO to its header, or convert it"
        )
    pixels = standardise(raw, name, cutouts.get("bands"), cutouts.get("pixel_scale"), zero_point)
    if raw.display:
        return pixels
    stretch = Stretch.from_dict(cutouts["stretch"])
    try:
        display = stretch.apply(pixels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if stretch.kind != "none":
        _check_plausible(display, stretch, name)
    return display


def _check_plausible(display: np.ndarray, stretch: Stretch, name: str | Path) -> None:
    """Refuse flux in other units: it comes out of the stretch without contrast, or all black and white."""
    saturated = float(((display <= 0) | (display >= 255)).mean())
    if saturated > 0.9:
        problem = f"{saturated:.0%} of its pixels are black or white"
    elif np.ptp(display, axis=(-2, -1)).max() < 2:
        problem = "it has no contrast"
    else:
        return
    raise InputError(
        f"{name}: after the model's {stretch.kind} stretch {problem}, so it is not flux in the model's units: "
        "convert the flux to the model's zero point, or give display units (0 to 255)"
    )


def save_processor(
    folder: Path, cutouts: Mapping[str, Any], crop_size: int, image_mean: list[float], image_std: list[float]
) -> None:
    """
    Write the image processor of a model that reads display units: centre crop, x / 255, (x - mean) / std. For three
    bands that is the stock `ViTImageProcessor`; for other numbers, which the stock one cannot read,
    [`LensImageProcessor`], with its code beside it. From JSON, because the classes themselves need Pillow and training
    does not.

    Args:
        folder (`Path`): the model's folder.
        cutouts (`Mapping`): `bands`, `pixel_scale` and `stretch` of the training data.
        crop_size (`int`): side of the crop in pixels.
        image_mean, image_std (`list[float]`): one per band, of display units / 255.
    """
    common = {
        "crop_size": {"height": crop_size, "width": crop_size},
        "rescale_factor": 1 / 255,
        "image_mean": image_mean,
        "image_std": image_std,
    }
    if len(cutouts["bands"]) == 3:
        steps = {"do_resize": False, "do_center_crop": True, "do_rescale": True, "do_normalize": True}
        config = {"image_processor_type": "ViTImageProcessor", **steps, **common}
    else:
        code = Path(__file__).with_name("lens_image_processor.py")
        shutil.copyfile(code, folder / code.name)
        names = {
            "image_processor_type": "LensImageProcessor",
            "auto_map": {"AutoImageProcessor": f"{code.stem}.LensImageProcessor"},
        }
        own = {name: cutouts[name] for name in ("bands", "pixel_scale", "stretch")}
        config = {**names, **own, "do_stretch": False, **common}
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")
