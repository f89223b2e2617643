"""Where rows are on the sky, and which of them are at the places of others."""

import numpy as np
import pyarrow
from astropy.coordinates import SkyCoord

Places = tuple[np.ndarray, SkyCoord]  # the numbers of the rows that have a position, and these positions


def places_of(table: pyarrow.Table) -> Places:
    """Of a table with `ra` and `dec` in degrees; null or NaN where they are unknown."""
    ra, dec = (table[name].to_pandas().to_numpy(dtype=float) for name in ("ra", "dec"))
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    return known, SkyCoord(ra[known], dec[known], unit="deg")


def chord(separation: float) -> float:
    """Distance of unit vectors that are `separation` (arcsec) apart."""
    return 2 * float(np.sin(np.radians(separation / 3600) / 2))


def near(table: pyarrow.Table, others: Places, separation: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a table that are within `separation` (arcsec) of some of the others, and the nearest one of each."""
    known, places = places_of(table)
    if not (separation > 0 and len(known) and len(others[0])):
        return np.empty(0, int), np.empty(0, int)
    nearest, distance, _ = places.match_to_catalog_sky(others[1])
    is_near = distance.arcsec <= separation
    return known[is_near], others[0][nearest[is_near]]
