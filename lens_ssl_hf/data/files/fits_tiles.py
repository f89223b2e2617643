"""A tile: large FITS images with a WCS, one a band or all bands in one file, of which only cutouts are read."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from ...errors import InputError
from .fits_files import headers_of, images_of, open_fits, stack
from .headers import linear_flux, raw_of, wcs_of
from .masks import Mask, masks_of, refuse_hcompress
from .raw import RawCutout, as_pixels, check_valid, readable
from .readers import join_files

AT_THE_EDGE = "at the edge of the tile"
_STRIP = 256  # rows that are read beyond those of a cutout: the next cutouts lie in them
_RIM = 64  # points along each side of an image
_OFF_GRID = 3  # pixels


class _Parts:
    """
    The values of an HDU, `(..., H, W)`, read in parts: from mapped memory, else (compressed, scaled or gzipped ones)
    in strips over the whole width, each of which serves all cutouts in it.
    """

    def __init__(self, hdu: Any, name: str | Path):
        refuse_hcompress(hdu, name)
        self.hdu, self.top, self.strip = hdu, 0, np.empty((0, 0))
        self.shape = hdu.shape if hdu.header["NAXIS"] < 4 else hdu.shape[-3:]
        self.mapped, file, header = None, hdu.fileinfo()["file"], hdu.header
        is_scaled = (header.get("BSCALE", 1), header.get("BZERO", 0)) != (1, 0)
        self.is_8_bit = header["BITPIX"] == 8 and not is_scaled
        if header["BITPIX"] < 0 and not (is_scaled or file.compression or hasattr(hdu, "compressed_data")):
            dtype = {-32: ">f4", -64: ">f8"}[header["BITPIX"]]
            self.mapped = np.memmap(file.name, dtype, "r", hdu.fileinfo()["datLoc"], hdu.shape).reshape(self.shape)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """`(..., rows, columns)`."""
        if self.mapped is not None:
            return self.mapped[..., rows, columns]
        if rows.start < self.top or rows.stop > self.top + self.strip.shape[-2]:
            bottom = min(rows.stop + _STRIP, self.shape[-2])
            leading = (0,) * (len(self.hdu.shape) - len(self.shape)) + (slice(None),) * (len(self.shape) - 2)
            self.strip = self.hdu.section[(*leading, slice(rows.start, bottom), slice(None))]
            self.top = rows.start
        return self.strip[..., rows.start - self.top : rows.stop - self.top, columns]


class _Image:
    """
    One image of flux of a tile, with its masks.

    Raises:
        [`InputError`]: it has no WCS; and what [`raw_of`] raises.
    """

    def __init__(self, hdus: Sequence[Any], hdu: Any, chosen: list[Any], name: str | Path):
        self.headers, self.values = headers_of(hdus, hdu, name), _Parts(hdu, name)
        self.masks: list[tuple[Mask, _Parts]] = [
            (mask, _Parts(mask.hdu, name)) for mask in masks_of(hdus, hdu, chosen, name)
        ]
        shape = (1, *self.values.shape)[-3:]
        dtype = np.dtype(np.uint8 if self.values.is_8_bit else np.float32)
        self.wcs: WCS | None = next(filter(None, map(wcs_of, self.headers.chain())), None)
        facts = raw_of(np.broadcast_to(np.float32(0), shape), dtype, self.headers, wcs=self.wcs)
        self.facts = replace(facts, pixels=np.empty((shape[0], 1, 1)))
        if self.wcs is None or facts.ra is None:
            raise InputError(f"{self.headers.name} has no WCS of the sky: add one to its header")

    def places(self, sky: SkyCoord) -> np.ndarray:
        """Pixels `(2, n)`, x and y from 0, of positions."""
        return np.array(self.wcs.world_to_pixel(sky))

    def depth(self, sky: SkyCoord) -> np.ndarray:
        """Pixels to the nearest edge, negative outside; NaN where the WCS has no such place."""
        height, width = self.values.shape[-2:]
        x, y = self.places(sky) + 0.5
        return np.min([x, y, width - x, height - y], axis=0)

    def read(self, x: float, y: float, side: int, name: str) -> np.ndarray | None:
        """The flux `(bands, side, side)` around a pixel; `None` where some of it would lie outside."""
        left, top = math.ceil(x - side / 2), math.ceil(y - side / 2)  # as astropy's Cutout2D rounds
        height, width = self.values.shape[-2:]
        if not (0 <= left <= width - side and 0 <= top <= height - side):
            return None
        part = slice(top, top + side), slice(left, left + side)
        pixels = as_pixels(linear_flux(self.values.read(*part), self.headers), name)
        for mask, values in self.masks:
            pixels[np.broadcast_to(mask.bad(values.read(*part), name), pixels.shape)] = np.nan
        return pixels


@dataclass(frozen=True)
class Tile:
    """
    An open tile.

    Args:
        images (`list`): one a band, or one with all bands.
        facts ([`RawCutout`]): what holds for every cutout of it, with the centre of the tile.
    """

    images: list[_Image]
    facts: RawCutout

    def circle(self) -> tuple[SkyCoord, float]:
        """Centre and radius in degrees of a circle around the first image."""
        image, rim = self.images[0], np.linspace(0, 1, _RIM)
        height, width = image.values.shape[-2:]
        x, y = np.concatenate([[rim, 0 * rim], [rim, 0 * rim + 1], [0 * rim, rim], [0 * rim + 1, rim]], axis=1)
        edge = image.wcs.pixel_to_world(x * width - 0.5, y * height - 0.5).icrs
        centre = SkyCoord(self.facts.ra, self.facts.dec, unit="deg")
        distance = centre.separation(edge).deg
        return centre, float(np.max(distance, where=np.isfinite(distance), initial=0)) + 2 * self._degrees

    @property
    def grid(self) -> tuple[float, ...]:
        """Which pixels of the sky these are: shape and WCS of the first image, but for their last bits."""
        image = self.images[0]
        wcs = image.wcs.wcs.crval, image.wcs.wcs.crpix, image.wcs.pixel_scale_matrix.ravel()
        return *image.values.shape[-2:], *np.round(np.concatenate(wcs), 9).tolist()

    def depth(self, sky: SkyCoord) -> np.ndarray:
        """How far positions lie from the nearest edge of any band, in degrees; negative outside the tile."""
        return np.min([one.depth(sky) for one in self.images], axis=0) * self._degrees

    def rows(self, sky: SkyCoord) -> np.ndarray:
        """The rows of pixels of the first image in which positions lie."""
        return np.round(self.images[0].places(sky)[1])

    def cutouts(self, ra: Sequence[float], dec: Sequence[float], side: int) -> Iterator[RawCutout | str]:
        """
        A cutout of `side x side` pixels around each position (degrees, ICRS), or why there is none. They are read
        fastest in the order of [`rows`].
        """
        sky = SkyCoord(ra, dec, unit="deg")
        places = np.moveaxis([one.places(sky) for one in self.images], -1, 0)
        yield from (self._cutout(*one, side) for one in zip(ra, dec, places))

    def _cutout(self, ra: float, dec: float, places: np.ndarray, side: int) -> RawCutout | str:
        name = f"{self.images[0].headers.name} at {ra:.5f} {dec:+.5f}"
        try:
            with readable(name, "FITS"):
                parts = [one.read(x, y, side, name) for one, (x, y) in zip(self.images, places)]
                if any(part is None for part in parts):
                    return AT_THE_EDGE
                pixels = np.concatenate(parts)
            check_valid(pixels, name, self.facts.bands)
        except InputError as error:
            return str(error)
        return replace(self.facts, pixels=pixels, ra=ra, dec=dec)

    @property
    def _degrees(self) -> float:
        return self.facts.pixel_scale / 3600


@contextlib.contextmanager
def open_tile(
    paths: Sequence[Path], bands: Sequence[str] | None = None, hdu: int | str | None = None
) -> Iterator[Tile]:
    """
    Open the files of a tile; only their headers are read.

    Args:
        paths (`Sequence[Path]`): one file a band, or one file.
        bands (`Sequence[str]`, *optional*): the bands of the files; without them one file holds all.
        hdu (`int` or `str`, *optional*): see [`~readers.read_raw`].

    Raises:
        [`InputError`]: a file is missing, damaged, or without a WCS; or the bands do not fit together.
    """
    images, raws = [], []
    with contextlib.ExitStack() as files, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            with readable(path, "FITS"):
                hdus = files.enter_context(open_fits(path))
                chosen = images_of(hdus, path, hdu)
                found = [_Image(hdus, one, chosen, path) for one in chosen]
                raws.append(stack([one.facts for one in found], chosen, hdus, path))
            images += found
        facts = join_files(raws, paths, bands) if bands else raws[0]
        for one in images[1:]:
            _check_grid(one, images[0])
        yield Tile(images, facts)


def _check_grid(image: _Image, first: _Image) -> None:
    """
    Raises:
        [`InputError`]: the sky lies elsewhere in an image, by more than [`join_bands`] allows, or is turned.
    """
    if image.wcs.wcs.compare(first.wcs.wcs):
        return
    height, width = first.values.shape[-2:]
    corners = np.array([[0, width, 0, width], [0, 0, height, height]]) - 0.5
    if not np.abs(image.places(first.wcs.pixel_to_world(*corners)) - corners).max() <= _OFF_GRID:
        raise InputError(
            f"{image.headers.name} is on another grid of pixels than {first.headers.name}: resample the bands of a "
            "tile to one grid"
        )
