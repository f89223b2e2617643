"""The galaxies that lens, and the colours of those behind them."""

import math
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .survey import MAX_DRAWS, SimulationConfig, flux_of

# Flat LCDM, H0 = 70 km/s/Mpc, Omega_m = 0.3: comoving distance in Mpc on a grid of redshifts.
_Z_GRID = np.linspace(0.0, 4.0, 2001)
_INVERSE_E = 1.0 / np.sqrt(0.3 * (1 + _Z_GRID) ** 3 + 0.7)
_STEPS = (_INVERSE_E[1:] + _INVERSE_E[:-1]) / 2 * np.diff(_Z_GRID)
_COMOVING = 299792.458 / 70.0 * np.concatenate([[0.0], np.cumsum(_STEPS)])

# Colours of a passive galaxy against redshift (Fukugita et al. 1995; Eisenstein et al. 2001), and the correction of
# its r magnitude for bandpass and passive evolution; approximate, after those papers.
_RED_Z = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
_RED_GR = np.array([0.90, 1.12, 1.36, 1.56, 1.64, 1.66, 1.66, 1.64, 1.60])
_RED_RI = np.array([0.38, 0.44, 0.50, 0.57, 0.70, 0.88, 1.02, 1.12, 1.18])
_RED_KE = np.array([0.02, 0.05, 0.12, 0.22, 0.38, 0.55, 0.70, 0.85, 1.00])


@dataclass
class Galaxy:
    """An early-type galaxy: fluxes (3,) at the zero point, half-light radius in arcsec, angles in radians."""

    flux: np.ndarray
    r_eff: float
    sersic_index: float
    axis_ratio: float
    angle: float
    x: float
    y: float


@dataclass
class System:
    """A visible lens: its galaxy, Einstein radius in arcsec and arcs, (3, n, n) flux before the PSF."""

    galaxy: Galaxy
    einstein_radius: float
    arcs: np.ndarray
    arc_snr: float
    blue: np.ndarray  # fluxes (3,) of the young stars that a non-lens shows in place of the arcs


def _distance(z: float) -> float:
    return float(np.interp(z, _Z_GRID, _COMOVING))


def draw_galaxy(rng: np.random.Generator, config: SimulationConfig, seeing: float) -> tuple[Galaxy, float]:
    """
    Draw a massive early-type galaxy and its Einstein radius in arcsec, until that is large enough for the seeing and
    fits the cutout.

    Velocity dispersions follow Choi et al. (2007), weighted with the lensing cross-section (proportional to sigma^4)
    as in LensPop (Collett 2015) and with sigma^6 more, a choice of ours, since wide lenses are the ones found from the
    ground. Approximate, after: redshifts of SL2S and SuGOHI (Sonnenfeld et al. 2013, 2018), Faber-Jackson relation of
    Bernardi et al. (2003), size-luminosity relation of Hyde & Bernardi (2009). Of varied skies redshifts are uniform,
    magnitudes and colours scatter more, and the mass around a galaxy up to doubles the Einstein radius.
    """
    for _ in range(MAX_DRAWS):
        sigma = 161.0 * rng.gamma((2.32 + 10) / 2.67) ** (1 / 2.67)  # km/s
        z_lens = rng.uniform(0.1, 0.8) if config.varied else min(max(rng.normal(0.55, 0.15), 0.2), 0.9)
        z_source = min(max(rng.normal(1.8, 0.5), z_lens + 0.4), 3.5)
        d_lens, d_source = _distance(z_lens), _distance(z_source)
        radius = 4 * math.pi * (sigma / 299792.458) ** 2 * (1 - d_lens / d_source) * 206264.8
        if config.varied:  # the mass of a group around the galaxy
            radius *= rng.uniform(1.0, 2.0)
        if config.min_radius_over_seeing * seeing < radius < config.max_einstein_radius:
            break
    else:
        raise InputError("no lens passes the cuts; lower min_radius_over_seeing or the seeing of the SimulationConfig")
    m_abs = -21.15 - 9.78 * (math.log10(sigma) - 2.203) + rng.normal(0, 0.35)
    r_kpc = 10 ** (4.72 + 0.63 * m_abs + 0.02 * m_abs**2 + rng.normal(0, 0.12))
    r_mag = m_abs + 5 * math.log10(d_lens * (1 + z_lens) * 1e5) + np.interp(z_lens, _RED_Z, _RED_KE)
    g_r = np.interp(z_lens, _RED_Z, _RED_GR) + rng.normal(0, 0.05)
    r_i = np.interp(z_lens, _RED_Z, _RED_RI) + rng.normal(0, 0.03)
    if config.varied:
        r_mag, g_r, r_i = np.array([r_mag, g_r, r_i]) + rng.normal(0, [0.6, 0.15, 0.1])
    galaxy = Galaxy(
        flux=flux_of([r_mag + g_r, r_mag, r_mag - r_i], config),
        r_eff=r_kpc / (d_lens / (1 + z_lens) * 1e3 / 206264.8),
        sersic_index=min(max(rng.normal(4.2, 0.9), 2.5), 6.5),
        axis_ratio=min(max(rng.normal(0.78, 0.11), 0.45), 0.98),
        angle=rng.uniform(0, math.pi),
        x=rng.normal(0, 0.05),
        y=rng.normal(0, 0.05),
    )
    return galaxy, radius


def draw_blue_colour(rng: np.random.Generator, varied: bool = False) -> np.ndarray:
    """
    Fluxes in g, r, i relative to g of a blue star-forming galaxy; approximate, after the sources of SL2S. `varied`
    ones scatter twice as much and are redder in the mean.
    """
    g_r = rng.normal(0.3, 0.3) if varied else rng.normal(0.15, 0.15)
    r_i = rng.normal(0.15, 0.2) if varied else rng.normal(0.10, 0.10)
    return 10 ** (0.4 * np.array([0.0, g_r, g_r + r_i]))
