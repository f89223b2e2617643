"""What the simulated survey looks like, and the limits that all of the simulation keeps."""

import math
from dataclasses import dataclass, replace

import numpy as np

from ...errors import InputError

SIMULATOR_VERSION = "5"  # raise it whenever the pixels change: it is part of a dataset's fingerprint
BANDS = ("g", "r", "i")

MARGIN = 16  # pixels simulated beyond each edge, and half-width of the PSF kernel: what wraps around stays in it
MAX_ARC_RADIUS = 1.9  # arcsec; arcs, and what is painted in place of them, lie inside the central 32 pixels
MAX_EINSTEIN_RADIUS = 1.6  # arcsec
VARIED_ARC_RADIUS, VARIED_EINSTEIN_RADIUS = 2.6, 2.3  # the same for varied skies
MAX_DRAWS = 20_000  # systems tried for one cutout before the visibility cuts are called impossible


@dataclass(frozen=True)
class SimulationConfig:
    """
    What the simulated survey looks like and which lenses are visible in it. The defaults are those of the Wide layer
    of the Hyper Suprime-Cam survey (HSC; Aihara et al. 2019, 2022).

    Args:
        size (`int`, *optional*, defaults to `64`): side of a cutout in pixels, even and at least 32.
        pixel_scale (`float`, *optional*, defaults to `0.168`): arcsec per pixel.
        zero_point (`float`, *optional*, defaults to `27.0`): AB magnitude of one unit of flux.
        depth (`tuple[float, float, float]`, *optional*, defaults to `(26.5, 26.2, 26.0)`): 5 sigma point-source
            magnitudes in g, r, i; they set the sky noise, with 0.1 mag of scatter. The flux is that of a least-squares
            fit of a round Gaussian PSF of the median seeing, after a local sky is subtracted, and its noise takes the
            correlation of the pixels into account. The simulated PSFs are Moffat profiles: their wings cost a fit of
            them some 0.27 mag more.
        seeing (`tuple[float, float, float]`, *optional*, defaults to `(0.77, 0.72, 0.60)`): median FWHM of the PSF in
            g, r, i, in arcsec.
        min_arc_snr (`float`, *optional*, defaults to `80.0`): least signal-to-noise ratio of the arcs in g: of the
            flux that a least-squares fit of the convolved arcs finds, in correlated sky noise.
        min_arc_contrast (`float`, *optional*, defaults to `0.65`): least share of the arcs in the g light at their
            place (mean over the arcs' light), the rest being the galaxy's.
        min_radius_over_seeing (`float`, *optional*, defaults to `1.2`): least Einstein radius in units of the worst of
            the three seeings.
        masked_fraction (`float`, *optional*, defaults to `0.15`): share of the cutouts with masked (NaN) pixels.
        varied (`bool`, *optional*, defaults to `False`): each cutout is seen by a survey of its own, see
            [`draw_survey`], and the galaxies, sources and non-lenses vary more; arcs are wider and fainter. For models
            that shall meet other skies.

    Raises:
        InputError: for values that no cutout could be made with.
    """

    size: int = 64
    pixel_scale: float = 0.168
    zero_point: float = 27.0
    depth: tuple[float, float, float] = (26.5, 26.2, 26.0)
    seeing: tuple[float, float, float] = (0.77, 0.72, 0.60)
    min_arc_snr: float = 80.0
    min_arc_contrast: float = 0.65
    min_radius_over_seeing: float = 1.2
    masked_fraction: float = 0.15
    varied: bool = False

    def __post_init__(self):
        if self.size < 32 or self.size % 2:
            raise InputError(f"size is {self.size}; give an even number of at least 32 pixels")
        if not 0 < self.pixel_scale < math.inf or not 0 < min(self.seeing) <= max(self.seeing) < math.inf:
            raise InputError("pixel_scale and seeing must be positive, in arcsec")
        if self.size * self.pixel_scale < 2 * self.max_arc_radius:
            least = 2 * math.ceil(self.max_arc_radius / self.pixel_scale)
            raise InputError(f"size is {self.size}, where arcs reach further: give at least {least} pixels")
        if not self.min_radius_over_seeing > 0:
            raise InputError(f"min_radius_over_seeing is {self.min_radius_over_seeing}: give a number above 0")
        if self.min_arc_contrast >= 1:
            raise InputError(f"min_arc_contrast is {self.min_arc_contrast}; give a share below 1")
        if self.min_radius_over_seeing * max(self.seeing) > 0.9 * self.max_einstein_radius:
            ratio = self.min_radius_over_seeing
            raise InputError(f"min_radius_over_seeing {ratio} puts arcs outside the central 32 pixels; lower it")

    @property
    def max_arc_radius(self) -> float:
        """How far out arcs, and what is painted in place of them, may lie, in arcsec."""
        return VARIED_ARC_RADIUS if self.varied else MAX_ARC_RADIUS

    @property
    def max_einstein_radius(self) -> float:
        """In arcsec."""
        return VARIED_EINSTEIN_RADIUS if self.varied else MAX_EINSTEIN_RADIUS


def flux_of(magnitudes, config: SimulationConfig) -> np.ndarray:
    return 10 ** (0.4 * (config.zero_point - np.asarray(magnitudes, dtype=float)))


def draw_survey(rng: np.random.Generator, config: SimulationConfig) -> SimulationConfig:
    """
    A survey from the ground, of those between the Dark Energy Survey's and Rubin's depth and seeing, that keeps the
    size, pixel scale and zero point of `config`, and has cuts of its own: from bright arcs beside their galaxy, as the
    defaults ask for, to faint ones within its light.
    """
    deeper = rng.uniform(-2.5, 1.0)  # magnitudes
    depth = np.array(SimulationConfig.depth) + deeper + rng.normal(0, 0.5, size=3)
    seeing = np.clip(rng.uniform(0.55, 1.15) * np.exp(rng.normal(0, 0.12, size=3)), 0.5, 1.3)
    highest = SimulationConfig.min_arc_snr * 10 ** (0.4 * min(deeper, 0.0))  # the same arcs in more noise
    return replace(
        config,
        depth=tuple(depth),
        seeing=tuple(seeing),
        min_arc_snr=math.exp(rng.uniform(math.log(12.0), math.log(max(highest, 12.0)))),
        min_arc_contrast=rng.uniform(0.1, SimulationConfig.min_arc_contrast),
        min_radius_over_seeing=rng.uniform(0.85, 1.2),
    )
