"""The curve from flux to display units (float32, 0 to 255), fitted on the training split of a dataset."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .flux import stretch_flux, unstretch_flux

STRETCHES = ("asinh", "sqrt", "linear", "none")

# Where the fitted curve lies, in units of the sky noise sigma and of the brightness of the centres.
SOFTENING_SIGMA = 5.0
BLACK_SIGMA = 2.0
WHITE_PERCENTILE = 99.7
FIT_CUTOUTS = 1000  # training cutouts that it is fitted on, at most


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
            height = cutout.shape[-2]
            half = (slice(height // 4, -(height // 4) or None),) * 2
            borders.append(border_sky(cutout))
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
        return stretch_flux(flux, **asdict(self))

    def invert(self, display: np.ndarray) -> np.ndarray:
        """
        Flux that [`~Stretch.apply`] makes these display units of, `(..., bands, H, W)` float32; what was clipped comes
        back as black or white.
        """
        return unstretch_flux(display, **asdict(self))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Stretch":
        """The inverse of [`~Stretch.to_dict`]."""
        return cls(**values)


def border_sky(flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level and standard deviation `(bands,)` of the sky in a cutout `(bands, H, W)`: median and MAD of its border."""
    height, width = flux.shape[-2:]
    rim = max(1, min(height, width) // 8)
    border = np.ones((height, width), bool)
    border[rim:-rim, rim:-rim] = False
    sky = _nanmedian(flux[:, border])
    return sky, 1.4826 * _nanmedian(np.abs(flux[:, border] - sky[:, None]))


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
