"""What a FITS header says of an image: bands, zero point and unit of the flux, pixel scale, position."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord, angular_separation
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame

from ...errors import InputError
from .bands import band_name, band_of_extension, check_distinct, is_known_band
from .raw import RawCutout
from .units import unit_text, zero_point_of

# Of flux 1 in AB magnitudes. PHOTZPT of the Hubble telescope is another thing (STMAG), and so is not here.
_ZERO_POINTS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG_ZP", "ZEROPT", "ZEROPOINT", "ZEROPNT", "ZPT", "ZP", "ZPAB", "ZP_AB")
_ZERO_POINTS += ("AB_ZP", "ABZP", "PHOT_ZP", "PHOTZP", "MAG_ZERO", "MAG_ZEROPOINT", "MAGZEROPOINT", "ZERO_POINT")
_ZERO_POINTS += ("ABMAGZP", "AB_ZEROPOINT", "ZP_MAG", "ZPMAG", "ZEROPOINTS", "ZERO_POINTS", "MAGZEROP", "ABZERO")
_NO_ZERO_POINT = 90  # -99, 99 or 999 stand for "not measured"
_DIFFER = 0.05  # mag
_SYSTEMS = ("PHOTSYS", "MAGSYS", "ZPSYS", "MAG_SYS")
_VEGA_CAMERAS = re.compile(r"\b(WFCAM|VIRCAM|WISE|2MASS)\b", re.I)  # whose archives state zero points for Vega
_BANDS = ("BANDS", "FILTERS", "FILTER", "BAND", "FILTBAND", "FILTNAME", "FILTNAM", "BANDPASS", "PASSBAND")
_BANDS += ("FPA.FILTERID", "ESO INS FILT1 NAME")
_LISTS = ("BANDS", "FILTERS")
_NO_FILTER = re.compile(r"(clear.*|open|empty|none|n/?a|unknown|blank|multi.*|\d+)?", re.I)
# Of which PHOTFLAM is the inverse sensitivity; not "erg/s/cm2/AA" or "MJy/sr", nor counts of a whole exposure.
_COUNT_RATE = re.compile(
    r"(e-?|electrons?|counts?|cts?|adu|dn)(\s*/\s*s(ec(ond)?s?)?|[\s.*]+s(\*\*|\^)?\(?-1\)?)(\s*/\s*pix(els?)?)?", re.I
)
_PIXEL_SCALES = ("PIXSCALE", "PIXELSCL", "PIXSCAL1", "SECPIX", "SECPIX1", "PIXEL_SCALE", "PIX_SCALE", "PIXELSCALE")
_NOT_SQUARE = 0.05  # relative
_UNITS = re.compile(r"\b(ab|mags?|arcsec|arcseconds?|pix|pixels?)\b|[][(){}'\"/]", re.I)  # beside a number


@dataclass(frozen=True)
class Headers:
    """
    The header of an image and, behind it, the primary one of its file, from which it inherits what it does not state
    itself, unless INHERIT is F (FITS standard 4.0, section 4.4.2.6). Surveys such as HSC keep the facts there.

    Args:
        own, primary (`Mapping`): headers; `primary` may be empty.
        name (`str`): how errors call the image.
    """

    own: Any
    primary: Any
    name: str

    def chain(self) -> Iterator[Any]:
        """The headers to look into, in that order."""
        yield self.own
        if self.own is not self.primary and self.own.get("INHERIT") not in (False, "F"):
            yield self.primary

    def text(self, key: str) -> str:
        """What is stated, as text; empty where nothing is."""
        for header, keywords in self._keywords:
            spelled = keywords.get(key.upper())
            value = None if spelled is None else header.get(spelled)
            if value is not None and type(value).__name__ != "Undefined" and str(value).strip():
                return str(value).strip()
        return ""

    @cached_property
    def _keywords(self) -> list[tuple[Any, dict[str, str]]]:
        """
        The headers with their keywords in upper case and as they spell them: case means nothing, but a dictionary
        looks at it, and astropy is slow to say that a keyword is missing.
        """
        return [(header, {str(key).upper(): key for key in header}) for header in self.chain()]

    def number(self, key: str) -> float | None:
        """
        A stated number, also one that is written as text; `None` where nothing is stated.

        Raises:
            [`InputError`]: what is stated is no finite number.
        """
        values = self.numbers(key, 1)
        return values[0] if values else None

    def numbers(self, key: str, count: int, bands: Sequence[str | None] = ()) -> list[float | None] | None:
        """
        One number for each of `count` planes: of `KEY` for all, as a list in it, or of `KEY1`, `KEY2`, ..., `KEY0`,
        `KEY1`, ..., `KEY_1`, `KEY_2`, ... or `KEY_G`, `KEY_R`, ...; `None` for planes of which nothing is stated.
        """
        if text := self.text(key):
            values = [self._as_number(key, item) for item in re.split(r"[,;\s]+", _UNITS.sub(" ", text).strip())]
            if len(values) not in (1, count):
                raise InputError(f"{self.name} has {len(values)} numbers in {key} for {count} bands: correct {key}")
            return values * count if len(values) == 1 else values
        families = [[f"{key}_{band}" for band in bands]]
        if count > 1:
            first = 0 if self.text(f"{key}0") else 1
            families += [[f"{key}{between}{i + first}" for i in range(count)] for between in ("", "_")]
        for family in families:
            texts = [self.text(one) for one in family]
            if any(texts):
                return [self._as_number(one, text) if text else None for one, text in zip(family, texts)]
        return None

    def _as_number(self, key: str, text: str) -> float:
        try:
            value = float(re.sub(r"(?<=[\d.])[dD](?=[-+]?\d)", "e", text))  # Fortran
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{self.name} has {text!r} in {key}, which is no number: correct or remove {key}")
        return value


def raw_of(pixels: np.ndarray, dtype: np.dtype, headers: Headers, unit: Any = None, wcs: Any = None) -> RawCutout:
    """
    A cutout with what its headers state of it.

    Args:
        pixels (`np.ndarray` of shape `(bands, H, W)`): its flux.
        dtype (`np.dtype`): of the values as they are stored; 8-bit ones are display units, unless a unit or a zero
            point is stated.
        headers ([`Headers`]): what is read.
        unit (`str` or astropy unit, *optional*): that of the array itself, which is in place of BUNIT.
        wcs (astropy `WCS`, *optional*): that of the array itself, which is in place of the header's.

    Raises:
        [`InputError`]: values that are not linear flux, or that contradict each other.
    """
    shape = pixels.shape
    scale, ra, dec = _celestial(headers, shape) if wcs is None else wcs_facts(wcs, shape, headers.name)
    bands = band_names(headers, shape[0])
    if bands is None and shape[0] > 1:
        _check_count(headers, shape[0])
    text = unit_text(str(unit) if unit is not None else headers.text("BUNIT"), headers.name)
    zero_points, text = _zero_points(headers, text, bands or (None,) * shape[0], scale)
    is_display = dtype == np.uint8 and not (text or zero_points)
    return RawCutout(pixels, bands, zero_points, scale, is_display, text or None, ra, dec)


def band_names(headers: Headers, count: int) -> tuple[str, ...] | None:
    """
    Band names of the planes: FILTER or BAND (one band), BANDS or FILTERS ("g,r,i"), BAND1... or FILTER1... (several);
    of a single plane also the name of its HDU, where that is the name of a band. What the image states itself comes
    before what its file states for all.
    """
    for header in headers.chain():
        one = Headers(header, {}, headers.name)
        names = _stated_names(one, count)
        if names is None and count == 1 and (band := band_of_extension(one.text("EXTNAME"))):
            names = [band]
        if names:
            usual = tuple(band_name(name) for name in names)
            usual = usual if len(set(usual)) == count else tuple(names)
            check_distinct(usual, headers.name)
            return usual
    return None


def _stated_names(header: Headers, count: int) -> list[str] | None:
    if count == 1 and re.fullmatch(r"F\d{3}[WMN]", pupil := header.text("PUPIL")):  # JWST: the narrower of two
        return [pupil]
    for key in _BANDS:
        text = header.text(key).strip("[](){}'\" ")
        if count == 1 and ("," in text or (key in _LISTS and re.search(r"[;\s]|^[ugrizyYJHK]{2,}$", text))):
            continue  # the bands of the whole file
        names = _wheels(text) if count == 1 else _split_names(text, count)
        if len(names) == count and not any(_NO_FILTER.fullmatch(name) for name in names):
            return names
    for key in ("BAND", "FILTER"):
        first = 1 if header.text(f"{key}{count}") or not header.text(f"{key}0") else 0
        names = [header.text(f"{key}{i + first}") for i in range(max(count, 2))]
        if count == 1:  # two wheels, one of which is open (Hubble)
            names = [name for name in names if not _NO_FILTER.fullmatch(name)]
        if len(names) == count and all(names):
            return names
    return None


def _wheels(text: str) -> list[str]:
    """The filters of one plane, one of a wheel, without open ones: `["F814W"]` for "F814W;CLEAR2L"."""
    names = [name for name in re.split(r"\s*[;|]\s*|\s\+\s", text) if not _NO_FILTER.fullmatch(name)]
    return names if len(names) == 1 else [text]


def _split_names(text: str, count: int) -> list[str]:
    if len(text) == count and text.isalpha():
        return list(text)  # "gri"
    separated = [[name.strip("'\"") for name in re.split(one, text) if name] for one in (r"[,;\s]+", r"\s*[|/+:]\s*")]
    return next((names for names in separated if len(names) == count), separated[0])


def _check_count(headers: Headers, count: int) -> None:
    """Refuse to take planes for bands where the header names bands, but not as many."""
    for key in _BANDS:
        text = headers.text(key)
        names = list(text) if key in _LISTS and text.isalpha() else _split_names(text.strip("[](){}"), count)
        if names and all(map(is_known_band, names)):
            raise InputError(f"{headers.name} has {text} in {key}, but {count} planes: name as many bands as planes")


def _zero_points(
    headers: Headers, unit: str, bands: Sequence[str | None], scale: float | None
) -> tuple[tuple[float | None, ...] | None, str]:
    """AB zero points of the planes, where they are stated, and the unit, unless it alone tells them."""
    of_unit = zero_point_of(unit, scale, headers.number("PHOTPLAM"), headers.name)
    stated = None if (system := _other_system(headers)) else _stated_zero_points(headers, bands, unit)
    if of_unit is None:
        return stated, f"{unit or 'counts'} of {system} zero point" if system else unit
    if stated and max(abs(value - of_unit) for value in stated if value is not None) > _DIFFER:
        raise InputError(
            f"{headers.name} is in {unit}, whose zero point is {of_unit:.4g}, but states {stated[0]:.4g}: correct "
            "BUNIT or the zero point"
        )
    return (of_unit,) * len(bands), ""


def _other_system(headers: Headers) -> str:
    """Where zero points are of Vega or ST magnitudes its name with an article, nothing where they are of AB ones."""
    stated = next(filter(None, map(headers.text, _SYSTEMS)), "").lower()
    is_camera_of_vega = any(_VEGA_CAMERAS.search(headers.text(key)) for key in ("INSTRUME", "TELESCOP", "ORIGIN"))
    if "vega" in stated or (not stated and is_camera_of_vega):
        return "a Vega"
    return "an ST" if re.fullmatch(r"st[ _-]?(mag)?", stated) else ""


def _stated_zero_points(headers: Headers, bands: Sequence[str | None], unit: str) -> tuple[float | None, ...] | None:
    count = len(bands)
    for header in headers.chain():
        if zero_points := _zero_points_in(Headers(header, {}, headers.name), bands):
            return zero_points
    if headers.text("FPA.ZP") and (seconds := headers.number("EXPTIME") or 0) > 0:  # Pan-STARRS stacks
        return (headers.number("FPA.ZP") + 2.5 * math.log10(seconds),) * count
    per_flux, wavelength = headers.number("PHOTFLAM") or 0, headers.number("PHOTPLAM") or 0
    if per_flux > 0 and wavelength > 0 and _COUNT_RATE.fullmatch(unit.strip("[] ")):
        # Hubble: electrons per second to AB magnitudes (ACS Data Handbook, section 5.1)
        return (-2.5 * math.log10(per_flux) - 5 * math.log10(wavelength) - 2.408,) * count
    return None


def _zero_points_in(header: Headers, bands: Sequence[str | None]) -> tuple[float | None, ...] | None:
    """What one header states, which must not contradict itself."""
    found = {key: values for key in _ZERO_POINTS if (values := header.numbers(key, len(bands), bands)) is not None}
    if (fluxes := header.numbers("FLUXMAG0", len(bands), bands)) is not None:  # HSC
        found["FLUXMAG0"] = [_of_flux_at_0(flux, header) for flux in fluxes]
    if not found:
        return None
    first_key, first = next(iter(found.items()))
    for key, values in found.items():
        if any(value is not None and abs(value) > _NO_ZERO_POINT for value in values):
            raise InputError(
                f"{header.name} has {values[0]:.4g} in {key}, which is no zero point: correct or remove it"
            )
        if any(None not in pair and abs(pair[0] - pair[1]) > _DIFFER for pair in zip(values, first)):
            raise InputError(
                f"{header.name} has {first[0]:.4g} in {first_key} but {values[0]:.4g} in {key}: remove the wrong one"
            )
    return tuple(first)


def _of_flux_at_0(flux: float | None, header: Headers) -> float | None:
    if flux is not None and flux <= 0:
        raise InputError(f"{header.name} has {flux:.4g} in FLUXMAG0, not a positive flux: correct it")
    return None if flux is None else 2.5 * math.log10(flux)


def _celestial(headers: Headers, shape: Sequence[int]) -> tuple[float | None, float | None, float | None]:
    """Arcsec per pixel and the position of the centre from the WCS; the scale else from PIXSCALE and the like."""
    for header in headers.chain():
        found = wcs_facts(wcs_of(header), shape, headers.name)
        if found[0] is not None:
            return found
        one = Headers(header, {}, headers.name)
        scales = [value for key in _PIXEL_SCALES if (value := one.number(key)) is not None and value > 0]
        if scales:
            return scales[0], None, None
    return None, None, None


def wcs_of(header: Any) -> WCS | None:
    """The WCS of the sky in a header; `None` where it has none, or a damaged one."""
    is_sky = [re.search("RA--|DEC-|LON|LAT", str(header.get(key, ""))) for key in ("CTYPE1", "CTYPE2")]
    if not any(is_sky):
        return None
    if all(is_sky) and all(header[f"CTYPE{axis}"].endswith("-TAN") for axis in (1, 2)) and "PV2_1" in header:
        # This projection has no such parameters: it is SCAMP's distortion, which wcslib tells by higher orders alone.
        header = header.copy()
        for axis in (1, 2):
            header[f"CTYPE{axis}"] = header[f"CTYPE{axis}"].replace("-TAN", "-TPV")
    try:
        # In a cube the two axes by themselves: astropy refuses distortions (SIP, TPV) beside a third one.
        wcs = WCS(header, naxis=2 if all(is_sky) else None)
        return wcs if wcs.naxis == 2 else wcs.celestial
    except Exception:  # wcslib refuses it in many ways
        return None


def wcs_facts(wcs: Any, shape: Sequence[int], name: str) -> tuple[float | None, float | None, float | None]:
    """
    Arcsec per pixel at the centre of `(..., H, W)`, and its position in degrees (ICRS); `None` for what a WCS does not
    tell.

    Raises:
        [`InputError`]: pixels that are not square.
    """
    x, y = (shape[-1] - 1) / 2, (shape[-2] - 1) / 2
    try:
        sky = wcs if wcs.naxis == 2 else wcs.celestial
        points = sky.all_pix2world([[x, y], [x + 1, y], [x, y + 1]], 0)
        lon, lat = points[:, sky.wcs.lng], points[:, sky.wcs.lat]
        frame = wcs_to_celestial_frame(sky)
        centre = lon[0], lat[0]
        if frame.name != "icrs":
            position = SkyCoord(*centre, unit="deg", frame=frame).icrs
            centre = position.ra.deg, position.dec.deg
    except Exception:  # as above
        return None, None, None
    lon, lat = np.radians(lon), np.radians(lat)
    steps = 3600 * np.degrees(angular_separation(lon[0], lat[0], lon[1:], lat[1:]))  # true at the poles, too
    if not (np.isfinite(steps).all() and steps.min() > 0):
        return None, None, None
    if steps.max() / steps.min() - 1 > _NOT_SQUARE:
        raise InputError(f"{name} has pixels of {steps[0]:.4g} x {steps[1]:.4g} arcsec: resample it to square pixels")
    return float(np.sqrt(np.prod(steps))), float(centre[0]), float(centre[1])


def linear_flux(data: np.ndarray, headers: Headers) -> np.ndarray:
    """
    The flux of Pan-STARRS stacks, which store asinh magnitudes: BOFFSET + 2 BSOFTEN sinh(v / 1.0857) (Waters et al.
    2020, section 3.4); other data as it is.

    Raises:
        [`InputError`]: only one of BSOFTEN and BOFFSET is stated.
    """
    softening, offset = headers.number("BSOFTEN"), headers.number("BOFFSET")
    if softening is None and offset is None:
        return data
    if softening is None or offset is None:
        missing = "BSOFTEN" if softening is None else "BOFFSET"
        raise InputError(f"{headers.name} is asinh-scaled but does not state {missing}: add it, or convert it to flux")
    with np.errstate(over="ignore"):
        return offset + 2 * softening * np.sinh(np.asarray(data, dtype=np.float64) / (2.5 * np.log10(np.e)))
