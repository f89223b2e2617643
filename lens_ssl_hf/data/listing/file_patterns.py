"""Several files per object, one for each band: the pattern of their names, and how it is found where none is given."""

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from .rows import BadFiles

# In the order of wavelength, which is that of the suggestion.
_BANDS = ("u", "b", "blue", "g", "v", "green", "r", "red", "vis", "i", "z", "y", "j", "h", "k", "ks")
# Between a name and its neighbours stands no letter, but a capital may follow a small one (imageG), and "band" a name.
_BAND = re.compile(
    r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[UGRIZYJHK])))(?P<band>[ugriz]\.MP9\d{3}|NIR[-_][YJH]|[ugrizy]2(?![0-9])"
    r"|F\d{3,4}[WMNLXP]\d?(?![0-9])|NB?\d{3,4}(?![0-9])|W[1-4](?![0-9])|ch[1-4](?![0-9])|Ks|red|green|blue|VIS"
    r"|(?:band|filter|channel)[_-]?[0-9](?![0-9])"
    r"|(?:sdss|hsc|des|ps1|decam|lsst|cfht|megacam)?[ugrizyjhkbv])(?=band|[^A-Za-z]|$)",
    re.I,
)


def check_pattern(pattern: str, bands: Sequence[str] | None) -> None:
    """
    Raises:
        [`InputError`]: the pattern lacks a field, has another one, or no bands are given.
    """
    try:
        pattern.format(id="", band="")
        known = "{id}" in pattern and "{band}" in pattern
    except (ValueError, LookupError):  # a lone brace or another field
        known = False
    if not known or not bands:
        raise InputError(
            f"file_pattern {pattern!r} must hold {{id}} and {{band}} and no other braces, and bands list the bands"
        )


def match_pattern(
    directory: Path, files: list[Path], pattern: str, bands: Sequence[str], bad: BadFiles | None
) -> list[tuple[str, tuple[Path, ...]]]:
    """
    Objects whose files below `directory` match `pattern`, with their files in the order of `bands`. One that lacks a
    file is bad; without `bad` it is kept, with the path that the file should have.
    """
    regex = re.escape(pattern).replace(r"\{id\}", "(?P<id>.+)", 1).replace(r"\{id\}", "(?P=id)")
    regex = regex.replace(r"\{band\}", f"(?P<band>{'|'.join(map(re.escape, bands))})", 1)
    regex = regex.replace(r"\{band\}", "(?P=band)")
    found = defaultdict(dict)
    for path in files:
        if match := re.fullmatch(regex, path.relative_to(directory).as_posix()):
            found[match["id"]][match["band"]] = path
    objects = []
    for name, paths in sorted(found.items()):
        missing = [pattern.format(id=name, band=band) for band in bands if band not in paths]
        if missing and bad is not None:
            first = str(next(iter(paths.values())))
            bad.add(first, InputError(f"{directory / missing[0]} is missing beside {first}: add it"))
        else:
            wanted = {band: directory / pattern.format(id=name, band=band) for band in bands}
            objects.append((name, tuple((wanted | paths)[band] for band in bands)))
    return objects


def refuse_bands_as_objects(names: Sequence[str], where: str) -> None:
    """
    Raises:
        [`InputError`]: the names of most files differ from others by a band alone: they would become one cutout each,
            and the bands of an object would go to different splits. It names the options that group them.
    """
    if option := suggest_pattern(names):
        raise InputError(f"{where} holds one file per band, which belong to one cutout: give {option}")


def suggest_pattern(names: Sequence[str]) -> str | None:
    """
    `--file_pattern ... --bands ...` for files whose names differ by a band alone, `None` for others.

    Args:
        names (`Sequence[str]`): paths relative to a folder of objects, with `/`.
    """
    objects: dict[tuple[str, str], set[str]] = defaultdict(set)  # what stands before and after the band: bands
    for name in names:
        for match in _BAND.finditer(name):
            objects[name[: match.start()], name[match.end() :]].add(match["band"])
    objects = {sides: bands for sides, bands in objects.items() if len(bands) > 1}
    if 2 * len(_names(objects)) <= len(names):
        return None
    frequent = Counter(band for bands in objects.values() for band in bands)
    bands = sorted((band for band, count in frequent.items() if 2 * count >= max(frequent.values())), key=_wavelength)
    pattern = _pattern(list(objects), names, bands)
    if pattern is None:
        return f"--file_pattern, such as '{{id}}_{{band}}.fits', with --bands {shlex.join(bands)}, and name them alike"
    return f"--file_pattern {shlex.quote(pattern)} --bands {shlex.join(bands)}"


def _names(objects: dict[tuple[str, str], set[str]]) -> set[str]:
    return {f"{before}{band}{after}" for (before, after), bands in objects.items() for band in bands}


def _pattern(sides: list[tuple[str, str]], names: Sequence[str], bands: Sequence[str]) -> str | None:
    """The pattern that most of the names fit, if there is one."""
    befores, afters = Counter(before for before, _ in sides), Counter(after for _, after in sides)
    before, after = befores.most_common(1)[0][0], afters.most_common(1)[0][0]
    own = [one for one, other in sides if other == after]
    joint = re.search(r"[^A-Za-z0-9][A-Za-z-]*[^A-Za-z0-9]?$|$", own[0])[0] if own else ""
    if not all(one.endswith(joint) and len(one) > len(joint) for one in own):
        joint = re.search(r"[^A-Za-z0-9]*$", own[0])[0]
    suffix = re.search(r"(?:\.[A-Za-z]\w*)*$", sides[0][1])[0]
    separator = re.match(r"[^A-Za-z0-9]*", sides[0][1])[0]
    candidates = [
        f"{{id}}{joint}{{band}}{after}",
        f"{{id}}{{band}}{after}",
        f"{before}{{band}}{separator}{{id}}{suffix}",
        f"{before}{{band}}{{id}}{suffix}",
    ]
    candidates = [one for one in candidates if one.count("{") == one.count("}") == 2]  # none of the names' own
    fitting = {pattern: _fitting(pattern, names, bands) for pattern in candidates}
    best = max(candidates, key=fitting.__getitem__, default="")
    return best if best and 2 * fitting[best] > len(names) else None


def _fitting(pattern: str, names: Sequence[str], bands: Sequence[str]) -> int:
    """The number of files that a pattern groups into whole objects."""
    objects = match_pattern(Path(), [Path(name) for name in names], pattern, bands, BadFiles("skip"))
    return len(objects) * len(bands)


def _wavelength(band: str) -> tuple[int, int, str]:
    name = re.sub(r"^NIR[-_]|[\d.].*$", "", band, flags=re.I).lower()
    number = re.search(r"\d+", band)
    return _BANDS.index(name) if name in _BANDS else len(_BANDS), int(number[0]) if number else 0, band
