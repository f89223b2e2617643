"""What a FITS header says of an image: bands, zero point and unit of the flux, pixel scale, position."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .bands import band_name, check_distinct, is_known_band

# Of flux 1 in AB magnitudes. PHOTZPT of the Hubble telescope is another thing (STMAG), and so is not here.
_ZERO_POINTS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG_ZP", "ZEROPT", "ZEROPOINT", "ZEROPNT", "ZPT", "ZP", "ZPAB", "ZP_AB")
_ZERO_POINTS += ("AB_ZP", "ABZP", "PHOT_ZP", "PHOTZP")
_BANDS = ("BANDS", "FILTERS", "FILTER", "BAND", "FILTBAND", "FPA.FILTERID", "ESO INS FILT1 NAME")
_LISTS = ("BANDS", "FILTERS")
_NO_FILTER = re.compile(r"(clear.*|open|empty|none|n/?a|unknown|blank|multi.*)?", re.I)
_PIXEL_SCALES = ("PIXSCALE", "PIXELSCL", "PIXSCAL1", "SECPIX", "SECPIX1")
_NOT_LINEAR = re.compile(r"\b(mag|mags|magnitudes?|dex|log(10)?|ln|asinh|arcsinh|sqrt|luptitudes?)\b", re.I)
_JANSKY = 8.9  # AB magnitude of 1 Jy
_ARCSEC = math.pi / 180 / 3600


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
        if self.own is not self.primary and self.own.get("INHERIT") is not False:
            yield self.primary

    def text(self, key: str) -> str:
        """What is stated, as text; empty where nothing is."""
        for header in self.chain():
            value = header.get(key)
            if value is not None and type(value).__name__ != "Undefined" and str(value).strip():
                return str(value).strip()
        return ""

    def number(self, key: str) -> float | None:
        """
        A stated number, also one that is written as text; `None` where nothing is stated.

        Raises:
            [`InputError`]: what is stated is no finite number.
        """
        return None if not (text := self.text(key)) else self._as_number(key, text)

    def numbers(self, key: str, count: int) -> list[float] | None:
        """One number for each of `count` planes: of `KEY` for all, as a list in it, or of `KEY1`, `KEY2`, ..."""
        if text := self.text(key):
            items = [item for item in re.split(r"[,;\s]+", text.strip("[]()")) if item]
            values = [self._as_number(key, item) for item in items]
            if len(values) not in (1, count):
                raise InputError(f"{self.name} has {len(values)} numbers in {key} for {count} bands: correct {key}")
            return values * count if len(values) == 1 else values
        values = [self.number(f"{key}{i + 1}") for i in range(count)]
        return values if count > 1 and None not in values else None

    def _as_number(self, key: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{self.name} has {text!r} in {key}, which is no number: correct or remove {key}")
        return value


@dataclass(frozen=True)
class Facts:
    """What a header states of `count` planes; see [`~lens_ssl_hf.data.raw.RawCutout`] for the fields."""

    bands: tuple[str | None, ...] | None
    zero_points: tuple[float | None, ...] | None
    unit: str | None
    pixel_scale: float | None
    ra: float | None
    dec: float | None


def facts_of(headers: Headers, shape: Sequence[int], unit: Any = None) -> Facts:
    """
    Args:
        headers ([`Headers`]): what is read.
        shape (`Sequence[int]`): `(bands, H, W)` of the image.
        unit (`str` or astropy unit, *optional*): that of the array itself, which is in place of BUNIT.

    Raises:
        [`InputError`]: values that are not linear flux, or that contradict each other.
    """
    scale, ra, dec = _celestial(headers, shape)
    unit_text = str(unit) if unit is not None else headers.text("BUNIT")
    zero_points, is_absolute = _zero_points(headers, unit_text, shape[0], scale)
    return Facts(
        bands=band_names(headers, shape[0]),
        zero_points=zero_points,
        unit=None if is_absolute else unit_text or None,
        pixel_scale=scale,
        ra=ra,
        dec=dec,
    )


def band_names(headers: Headers, count: int) -> tuple[str, ...] | None:
    """
    Band names of the planes: FILTER or BAND (one band), BANDS or FILTERS ("g,r,i"), BAND1... or FILTER1... (several);
    of a single plane also the name of its HDU, where that is the name of a band. What the image states itself comes
    before what its file states for all.
    """
    for header in headers.chain():
        one = Headers(header, {}, headers.name)
        names = _stated_names(one, count)
        if names is None and count == 1 and is_known_band(extension := one.text("EXTNAME")):
            names = [extension]
        if names:
            usual = tuple(band_name(name) for name in names)
            usual = usual if len(set(usual)) == count else tuple(names)
            check_distinct(usual, headers.name)
            return usual
    return None


def _stated_names(header: Headers, count: int) -> list[str] | None:
    for key in _BANDS:
        text = header.text(key).strip("[]()")
        if count == 1 and ("," in text or (key in _LISTS and re.search(r"[;\s]|^[ugrizyYJHK]{2,}$", text))):
            continue  # the bands of the whole file
        names = [text] if count == 1 else [name.strip("'\"") for name in re.split(r"[,;\s]+", text) if name]
        if len(names) == 1 and count > 1 and len(text) == count:
            names = list(text)  # "gri"
        if len(names) == count and not any(_NO_FILTER.fullmatch(name) for name in names):
            return names
    for key in ("BAND", "FILTER"):
        names = [header.text(f"{key}{i + 1}") for i in range(max(count, 2))]
        if count == 1:  # two wheels, one of which is open (Hubble)
            names = [name for name in names if not _NO_FILTER.fullmatch(name)]
        if len(names) == count and all(names):
            return names
    return None


def _zero_points(
    headers: Headers, unit: str, count: int, scale: float | None
) -> tuple[tuple[float, ...] | None, bool]:
    """AB zero points of the planes, where they are stated, and whether the unit alone tells them."""
    if _NOT_LINEAR.search(unit):
        raise InputError(f"{headers.name} is in {unit}, which is not linear flux: convert it to flux")
    stated = _stated_zero_points(headers, count)
    of_unit = _zero_point_of(unit, scale, headers)
    if of_unit is None:
        return stated and tuple(stated), False
    if stated and max(abs(value - of_unit) for value in stated) > 0.05:
        raise InputError(
            f"{headers.name} is in {unit}, whose zero point is {of_unit:.4g}, but states {stated[0]:.4g}: correct "
            "BUNIT or the zero point"
        )
    return (of_unit,) * count, True


def _stated_zero_points(headers: Headers, count: int) -> list[float] | None:
    for key in _ZERO_POINTS:
        if (values := headers.numbers(key, count)) is not None:
            return values
    if (fluxes := headers.numbers("FLUXMAG0", count)) is not None:  # HSC
        if min(fluxes) <= 0:
            raise InputError(f"{headers.name} has {min(fluxes):.4g} in FLUXMAG0, not a positive flux: correct it")
        return [2.5 * math.log10(flux) for flux in fluxes]
    if headers.text("FPA.ZP") and (seconds := headers.number("EXPTIME") or 0) > 0:  # Pan-STARRS stacks
        return [headers.number("FPA.ZP") + 2.5 * math.log10(seconds)] * count
    per_flux, wavelength = headers.number("PHOTFLAM") or 0, headers.number("PHOTPLAM") or 0
    if per_flux > 0 and wavelength > 0 and re.search(r"/\s*s|s\*{0,2}\^?-1", headers.text("BUNIT"), re.I):
        # Hubble: electrons per second to AB magnitudes (ACS Data Handbook, section 5.1)
        return [-2.5 * math.log10(per_flux) - 5 * math.log10(wavelength) - 2.408] * count
    return None


def _zero_point_of(text: str, scale: float | None, headers: Headers) -> float | None:
    """The AB zero point of a unit of flux density, `None` for one that says nothing absolute, such as counts."""
    import astropy.units as u

    unit = _parse(text)
    if unit is None:
        return None
    if unit.is_equivalent(u.mgy) or unit.is_equivalent(u.Jy):
        return _JANSKY - 2.5 * math.log10(unit.to(u.Jy, equivalencies=u.zero_point_flux(_maggy())))
    per_area = unit * u.sr
    if per_area.is_equivalent(u.mgy) or per_area.is_equivalent(u.Jy):  # surface brightness
        if scale is None:
            raise InputError(f"{headers.name} is in {text} without a pixel scale: add a WCS or PIXSCALE to its header")
        flux = per_area.to(u.Jy, equivalencies=u.zero_point_flux(_maggy())) * (scale * _ARCSEC) ** 2
        return _JANSKY - 2.5 * math.log10(flux)
    wavelength = headers.number("PHOTPLAM")
    if wavelength and unit.is_equivalent(u.erg / u.s / u.cm**2 / u.AA):
        flux = unit.to(u.Jy, equivalencies=u.spectral_density(wavelength * u.AA))
        return _JANSKY - 2.5 * math.log10(flux)
    return None


def _maggy() -> Any:
    import astropy.units as u

    return 10 ** (0.4 * _JANSKY) * u.Jy


def _parse(text: str) -> Any:
    """An astropy unit; `None` where there is none, or none that astropy knows."""
    import astropy.units as u

    spelled = re.sub(r"[A-Za-z]{5,}", lambda match: match[0].lower(), text)  # NANOMAGGIES, Jansky
    spelled = re.sub(r"maggies\b", "maggy", re.sub(r"janskys\b", "jansky", spelled))
    spelled = {"NJY": "nJy", "UJY": "uJy", "JY": "Jy", "NMGY": "nmgy"}.get(spelled, spelled)
    unit = u.Unit(spelled, parse_strict="silent") if spelled else None
    return None if unit is None or isinstance(unit, u.UnrecognizedUnit) else unit


def _celestial(headers: Headers, shape: Sequence[int]) -> tuple[float | None, float | None, float | None]:
    """Arcsec per pixel and the position of the centre from the WCS; the scale else from PIXSCALE and the like."""
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    for header in headers.chain():
        if not re.search("RA--|DEC-|LON|LAT", f"{header.get('CTYPE1', '')} {header.get('CTYPE2', '')}"):
            continue
        try:
            wcs = WCS(header).celestial
            scale = 3600 * float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs))))
            centre = wcs.pixel_to_world((shape[-1] - 1) / 2, (shape[-2] - 1) / 2).icrs
            ra, dec = float(centre.ra.deg), float(centre.dec.deg)
        except Exception:  # wcslib refuses a damaged WCS in many ways: then it states nothing
            continue
        if scale > 0 and math.isfinite(scale):
            return (scale, ra, dec) if math.isfinite(ra + dec) else (scale, None, None)
    scales = [value for key in _PIXEL_SCALES if (value := headers.number(key)) is not None and value > 0]
    return (scales[0] if scales else None), None, None


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
