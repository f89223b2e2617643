"""Units of flux, as headers spell them, and their AB zero points."""

import math
import re
from typing import Any

import astropy.units as u

from ...errors import InputError

_NOT_LINEAR = re.compile(
    r"\b(mags?|magnitudes?|abmags?|stmags?|magab|db|dex|log(10)?|ln|asinh|arcsinh|sqrt|luptitudes?)\b", re.I
)
_NO_UNIT = re.compile(r"(none|null|n/?a|unknown|undefined|flux|unitless|dimensionless|1|-+)?", re.I)
_FLUX_UNIT = re.compile(
    r"(?<![a-z])(?P<prefix>nano|micro|milli|mu|[nup])?[ -]?(?P<unit>janskys?|jy|magg(y|ys|ies?)|mgy)(?![a-z])", re.I
)
_BESIDE_UNIT = re.compile(r"^ab(\s+|(?=n))|\s*\(ab\)|\s*(/|\bper\b)\s*pix(els?)?$|\s+pix(els?)?\^?-1$", re.I)
_JANSKY = 8.9  # AB magnitude of 1 Jy
_ARCSEC = math.pi / 180 / 3600


def unit_text(text: str, name: str) -> str:
    """
    A unit as it is stated, once where it is repeated for each plane, empty where it says nothing.

    Raises:
        [`InputError`]: values in it are not linear flux, such as magnitudes.
    """
    units = set(re.split(r"[,;]\s*", text.strip()))
    text = units.pop() if len(units) == 1 else text.strip()
    if _NOT_LINEAR.search(text):
        raise InputError(f"{name} is in {text}, which is not linear flux: convert it to flux")
    return "" if _NO_UNIT.fullmatch(text) else text


def zero_point_of(text: str, scale: float | None, wavelength: float | None, name: str) -> float | None:
    """
    The AB zero point of a unit of flux density; `None` for one that says nothing absolute, such as counts.

    Args:
        text (`str`): the unit; see [`unit_text`].
        scale (`float`, *optional*): arcsec per pixel, which surface brightness needs.
        wavelength (`float`, *optional*): in Angstrom, which flux per wavelength needs.
        name (`str`): how errors call the image.

    Raises:
        [`InputError`]: surface brightness without a pixel scale.
    """
    unit = _parse(text)
    if unit is None:
        return None
    if unit.is_equivalent(u.mgy) or unit.is_equivalent(u.Jy):
        return _JANSKY - 2.5 * math.log10(unit.to(u.Jy, equivalencies=u.zero_point_flux(_maggy())))
    per_area = unit * u.sr
    if per_area.is_equivalent(u.mgy) or per_area.is_equivalent(u.Jy):  # surface brightness
        if scale is None:
            raise InputError(f"{name} is in {text} without a pixel scale: add a WCS or PIXSCALE to its header")
        flux = per_area.to(u.Jy, equivalencies=u.zero_point_flux(_maggy())) * (scale * _ARCSEC) ** 2
        return _JANSKY - 2.5 * math.log10(flux)
    if wavelength and unit.is_equivalent(u.erg / u.s / u.cm**2 / u.AA):
        flux = unit.to(u.Jy, equivalencies=u.spectral_density(wavelength * u.AA))
        return _JANSKY - 2.5 * math.log10(flux)
    return None


def _maggy() -> Any:
    return 10 ** (0.4 * _JANSKY) * u.Jy


def _parse(text: str) -> Any:
    """An astropy unit; `None` where there is none, or none that astropy knows."""
    spelled = _FLUX_UNIT.sub(_usual_unit, _BESIDE_UNIT.sub("", text.strip("[] ")))
    spelled = re.sub(r"[A-Za-z]{5,}", lambda match: match[0].lower(), spelled)  # ANGSTROM
    spelled = re.sub(r"\bergs\b", "erg", re.sub(r"/A$", "/AA", spelled))
    spelled = {"MJY/SR": "MJy/sr"}.get(spelled, spelled)  # MJY alone may be mega or milli
    unit = u.Unit(spelled, parse_strict="silent") if spelled else None
    return None if unit is None or isinstance(unit, u.UnrecognizedUnit) or not unit.scale > 0 else unit


def _usual_unit(match: re.Match) -> str:
    """`"nmgy"` for "nanomaggies", `"uJy"` for "microJansky" and "UJY"."""
    prefix = (match["prefix"] or "").lower()
    prefix = {"nano": "n", "micro": "u", "mu": "u", "milli": "m"}.get(prefix, prefix)
    return prefix + ("Jy" if match["unit"].lower().startswith("j") else "mgy")
