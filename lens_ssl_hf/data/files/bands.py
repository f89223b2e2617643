"""Names of bands: what they are called in headers, which of them are the same, and their order by wavelength."""

import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError

PICTURE_BANDS = ("red", "green", "blue")
WAVELENGTH_ORDER = ("blue", "u", "g", "green", "r", "red", "VIS", "i", "z", "Z", "y", "Y", "NIR_Y", "J", "NIR_J")
WAVELENGTH_ORDER += ("H", "NIR_H", "K", "Ks")

# Words in the name of an HDU that say that it holds flux.
IMAGE_WORDS = {"SCI", "SCIENCE", "IMAGE", "IMG", "DATA", "PRIMARY", "COMPRESSED", "COADD", "FLUX", "CUTOUT"}
_FLUX_WORDS = IMAGE_WORDS | {"NJY", "NANOJANSKY", "UJY", "MICROJANSKY", "NANOMAGGIES", "BAND"}

_SURVEYS = "hsc|sdss|ps1|panstarrs|pan-starrs|lsst|lsstcam|megacam|cfht|cfis|subaru|suprimecam|decam|des|delve|legacy"
_SURVEYS += "|vista|vircam|ukidss|wfcam|ukirt|2mass|ztf|kids|ocam|omegacam|bass|mzls|wishes|jpcam|skymapper|nir|nisp"
# Whose Y and Z are not the y and z of optical cameras.
_NEAR_INFRARED = ("vista", "vircam", "ukidss", "wfcam", "ukirt", "2mass")
_OWN_Y = (*_NEAR_INFRARED, "decam", "des")
_WITH_SURVEY = re.compile(
    rf"(?:[\w-]+/)?(?P<survey>{_SURVEYS})(?:[-_. ]|::)?(?P<band>[ugrizyjhk]|ks)(?:2|_SDSS)?", re.I
)
# "g DECam SDSS c0001 4720.0 1520.0", "i.MP9702", "g.00000" (Pan-STARRS), "r SDSS", "g_SDSS"
_WITH_SUFFIX = re.compile(
    rf"(?P<band>[ugrizyY])(?:\.MP\d{{4}}|\.\d{{5}}| DECam .*|[ _.-](?:{_SURVEYS}|decals)|'|_?prime)", re.I
)
_PHYSICAL = re.compile(r"(?P<band>[ugrizy])_0\d|u_24|g_6|r_57|i_39|z_20|y_10")  # Rubin: LSSTComCam and LSSTCam
_OWN = re.compile(r"W-S-([GRIZ])\+|z([gri])")  # Suprime-Cam, ZTF


def band_name(name: str) -> str:
    """
    The usual name of a band: `"g"` for `"HSC-G"`, `"g DECam SDSS c0001"`, `"g.MP9401"` and `"G"`; other names as they
    are. `y` and `Y`, `z` and `Z` are bands of their own (optical and near-infrared cameras), and so are `g_1`, `g_2`.
    """
    name = name.strip()
    if name in ("U", "G", "R", "I") or _PHYSICAL.fullmatch(name):
        return name[0].lower()
    if match := _OWN.fullmatch(name):
        return (match[1] or match[2]).lower()
    if match := _WITH_SURVEY.fullmatch(name):
        survey, band = match["survey"].lower(), match["band"]
        if survey in ("nir", "nisp"):  # Euclid
            return f"NIR_{band.upper()}"
        if survey in _NEAR_INFRARED or (survey in _OWN_Y and band == "Y"):
            return "Ks" if band.lower() == "ks" else band.upper()
        return band.lower() if band.lower() in "ugrizy" else band.upper()
    if match := _WITH_SUFFIX.fullmatch(name):
        band = match["band"]
        return band if band == "Y" and "decam" in name.lower() else band.lower()
    return name


def is_known_band(name: str) -> bool:
    """Whether a name, of an HDU or in a file's name, can only be that of a band."""
    name = name.strip()
    if band_name(name) in WAVELENGTH_ORDER and name.lower() not in PICTURE_BANDS:
        return True
    return bool(re.fullmatch(r"F\d{3,4}[WMNLXP]\d?|(?:NIR|NISP)[-_][YJH]|VIS|[UBVRI]J?", name, re.I))


def band_of_extension(name: str) -> str | None:
    """The band in the name of an HDU that says nothing else: `"G"` for `"G"` and `"SCI_G"`; `None` for others."""
    if is_known_band(name):
        return name
    rest = "_".join(word for word in re.split(r"[^A-Za-z0-9]+", name) if word and word.upper() not in _FLUX_WORDS)
    return rest if rest and is_known_band(rest) else None


def band_order(stated: Sequence[str | None], wanted: Sequence[str], name: str | Path) -> list[int]:
    """
    Positions of the `wanted` bands among those that a cutout states.

    A name is looked for as it is, then by its usual form ([`band_name`]) where only one band has it. A single band
    without a name is the one that is left over. Bands of a colour picture go by wavelength, the reddest to red.

    Args:
        stated (`Sequence[str | None]`): one name per plane, `None` where there is none.
        wanted (`Sequence[str]`): names that are asked for.
        name (`str` or `Path`): how errors call the cutout.

    Raises:
        [`InputError`]: a band is missing, or cannot be told from another.
    """
    if not any(stated):
        return _in_order(len(stated), wanted, name)
    colours = _by_wavelength(stated, wanted)
    if colours is not None:
        return colours
    positions = [_position(band, stated, wanted) for band in wanted]
    missing = [i for i, position in enumerate(positions) if position is None]
    unnamed = [i for i, band in enumerate(stated) if band is None]
    if len(missing) == 1 and len(unnamed) == 1:
        positions[missing[0]] = unnamed[0]
    elif missing:
        have = ", ".join(band or "one without a name" for band in stated)
        problem = f"{name} has the bands {have}, but {', '.join(wanted)} are needed"
        similar = {band_name(band).lower() for band in stated if band} & {wanted[i].lower() for i in missing}
        hint = "give files with these bands, correct --bands, or take another model"
        if unnamed:
            hint = "name them in the header"
        elif similar:
            hint = "bands that differ by case are different bands, name them alike"
        raise InputError(f"{problem}: {hint}")
    return positions


def _in_order(count: int, wanted: Sequence[str], name: str | Path) -> list[int]:
    if count != len(wanted):
        raise InputError(
            f"{name} has {count} bands, but {len(wanted)} are needed ({', '.join(wanted)}): give these bands"
        )
    return list(range(count))


def _position(band: str, stated: Sequence[str | None], wanted: Sequence[str]) -> int | None:
    exact = [i for i, one in enumerate(stated) if one == band]
    if exact:
        return exact[0]
    usual = band_name(band)
    same = [i for i, one in enumerate(stated) if one is not None and band_name(one) == usual]
    rivals = [other for other in wanted if band_name(other) == usual]
    return same[0] if len(same) == 1 and len(rivals) == 1 else None


def _by_wavelength(stated: Sequence[str | None], wanted: Sequence[str]) -> list[int] | None:
    """The positions where one side is red, green, blue and the other is not; `None` where that is not so."""
    if (tuple(stated) == PICTURE_BANDS) == (tuple(wanted) == PICTURE_BANDS) or len(stated) != len(wanted):
        return None
    ranks = []
    for names in (stated, wanted):
        usual = [band_name(one or "") for one in names]
        if not set(usual) <= set(WAVELENGTH_ORDER):
            return list(range(len(wanted))) if tuple(stated) == PICTURE_BANDS else None
        ranks.append([WAVELENGTH_ORDER.index(one) for one in usual])
    by_rank = [sorted(range(len(rank)), key=rank.__getitem__) for rank in ranks]
    return [by_rank[0][by_rank[1].index(i)] for i in range(len(wanted))]


def check_distinct(bands: Sequence[str | None], name: str | Path) -> None:
    """Raise [`InputError`] where two planes have one name."""
    named = [band for band in bands if band]
    twice = [band for band in named if named.count(band) > 1]
    if twice:
        raise InputError(f"{name} has the band {twice[0]} twice: choose one, or give the bands different names")


def bands_in_paths(paths: Sequence[str | Path]) -> list[str] | None:
    """
    The bands that tell the names of one object's files apart (`i.fits`, `7_HSC-G.fits`, `r/7.fits`); `None` where the
    names do not.
    """
    parts = [set(_words(Path(path))) for path in paths]
    common = set.intersection(*parts) if len(parts) > 1 else set()
    found = [[word for word in words - common if is_known_band(word)] for words in parts]
    names = [words[0] for words in found if len(words) == 1]
    return names if len(names) == len(set(names)) == len(parts) else None


def _words(path: Path) -> list[str]:
    stem = re.sub(r"\.(fits?|fts|npy|npz|png|jpe?g|tiff?|gz|fz)\b.*$", "", path.name, flags=re.I)
    words = [word for part in (stem, path.parent.name) for word in re.split(r"[_. ]+", part)]
    return [part for word in words for part in ([word] if is_known_band(word) else word.split("-")) if part]
