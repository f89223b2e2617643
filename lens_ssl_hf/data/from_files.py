"""The files of a source -> splits of flux: each is checked, what all have in common is found, the stretch fitted."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from ..errors import InputError
from ..files import write_json
from .display import center_crop, standardise, to_display
from .files.bands import PICTURE_BANDS, band_order
from .files.raw import RawCutout, flat_band
from .files.readers import read_raw, read_raw_bands
from .files.stacks import Stack, read_stack_rows
from .info import CutoutInfo
from .listing.rows import Row
from .listing.splits import assign_splits
from .pool import map_chunks
from .stretch import FIT_CUTOUTS, Stretch

if TYPE_CHECKING:
    from .dataset import CutoutsConfig

logger = logging.getLogger(__name__)

MODEL_CROP = 32  # pixels that the models see by default: without a size, no smaller cutout sets that of all others
MIN_SIZE = 8
SAME_ZERO_POINT = 0.005  # mag; that of surface brightness differs by less among the cutouts of one mosaic
FACTS_FILE = "understood.json"


@dataclass(frozen=True)
class _Settings:
    """What the reading of a file depends on, for processes."""

    hdu: str | None
    bands: list[str] | None
    pixel_scale: float | None
    zero_point: float | None
    size: int | None
    size_arcsec: float | None
    stretch: str
    stack: Stack | None
    model: dict[str, Any] | None


@dataclass(frozen=True)
class _Checked:
    """What is kept of a readable file until all have been seen: what it states, without its pixels."""

    shape: tuple[int, int, int]
    stated: RawCutout
    problem: str  # of a band without any contrast; said where the bands are those that are wanted


def open_files(config: "CutoutsConfig", output_dir: Path) -> tuple[dict[str, Iterable], CutoutInfo]:
    """
    Read every file once to check it, draw the splits, fit the stretch; the splits then read the files again. What was
    understood of the files is written into `output_dir`, for [`summary`](summary.py).
    """
    _splits_of(config.listing.rows, config)  # what is impossible is said before all files are read
    settings = _Settings(
        stack=config.listing.stack,
        **{name: getattr(config, name) for name in _Settings.__dataclass_fields__ if name != "stack"},
    )
    checked = _check_all(config, settings)
    rows = _same_bands([row for row in config.listing.rows if row.id in checked], checked, config)
    if not rows:
        raise InputError(f"{config.dataset} holds no readable cutout{config.bad}: restore the files")
    kept = {row.id for row in rows}
    bands = _wanted_bands(rows, checked, config)
    checked = {row.id: _of_bands(checked[row.id], bands, row.name) for row in rows}
    display, pixel_scale, zero_point = _common(rows, checked, config, bands)
    size = _size(rows, checked, config, pixel_scale)
    splits = _splits_of([_with_position(row, checked[row.id]) for row in rows], config)
    missing = sum(row.label < 0 for row in rows) - len(splits.get("unlabelled", ()))
    if missing:
        logger.warning(f"{missing} unlabelled cutouts of {config.dataset} belong to the test split: they are left out")
    settings = replace(settings, bands=bands, pixel_scale=pixel_scale, zero_point=zero_point, size=size)
    info = CutoutInfo(
        source=config.name,
        name="",  # that of the source, and what it left out, is said once it is loaded: the cache may serve others
        simulated=False,
        bands=_band_names(bands, checked[rows[0].id]),
        size=size,
        pixel_scale=pixel_scale,
        zero_point=zero_point,
        stretch=_stretch(splits, settings, display, config).to_dict(),
        fingerprint=config.fingerprint,
    )
    bad = {row.id: (row.names, config.bad.problems[row.name]) for row in config.listing.rows if row.id not in kept}
    write_json(output_dir / FACTS_FILE, _stated([checked[row.id] for row in rows]) | {"bad": bad})
    return {split: _read(members, settings, config.num_proc) for split, members in splits.items()}, info


def _splits_of(rows: list[Row], config: "CutoutsConfig") -> dict[str, list[Row]]:
    source = f"{config.name} {config.dataset}{config.bad}"
    return assign_splits(rows, source, config.validation_fraction, config.test_fraction, config.data_seed)


def _stretch(splits: dict[str, list[Row]], settings: _Settings, display: bool, config: "CutoutsConfig") -> Stretch:
    """That of the model, or one that is fitted to a sample of the training cutouts."""
    if config.model and not display:
        return Stretch.from_dict(config.model["stretch"])
    kind = "none" if display and (config.model or config.stretch == "auto") else config.stretch
    train = splits.get("train") or splits["unlabelled"]
    sample = np.random.default_rng(config.data_seed).permutation(len(train))[:FIT_CUTOUTS]
    cutouts = _read([train[i] for i in sorted(sample)], settings, config.num_proc)
    return Stretch.fit((flux for flux, _ in cutouts), "asinh" if kind == "auto" else kind)


def _read(rows: list[Row], settings: _Settings, num_proc: int | None) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Flux and columns of each row."""
    for row, flux in zip(rows, map_chunks(_read_chunk, rows, num_proc, (settings,))):
        if isinstance(flux, str):
            raise InputError(flux)
        columns = {key: getattr(row, key) for key in ("id", "label", "subclass", "group", "ra", "dec")}
        yield flux, columns | row.columns


def _check_all(config: "CutoutsConfig", settings: _Settings) -> dict[str, _Checked]:
    """What is known of each file that can be used, by the id of its row; the others are bad files."""
    rows = config.listing.rows
    checked = {}
    results = map_chunks(_check_chunk, rows, config.num_proc, (settings,))
    progress = datasets.utils.tqdm(results, desc="Checking cutouts", unit=" cutouts", total=len(rows))
    for result, row in zip(progress, rows):
        if isinstance(result, str):
            config.bad.add(row.name, InputError(result))
        else:
            checked[row.id] = result
    return checked


def _check_chunk(rows: list[Row], settings: _Settings) -> list[_Checked | str]:
    """What is known of each file, or why it cannot be used."""
    return [_or_problem(_check, row, raw, settings) for row, raw in zip(rows, read_raws(rows, settings))]


def _read_chunk(rows: list[Row], settings: _Settings) -> list[np.ndarray | str]:
    """The flux of each file in the common bands, scale, zero point and size, or why it cannot be read."""
    return [_or_problem(_flux, row, raw, settings) for row, raw in zip(rows, read_raws(rows, settings))]


def _or_problem(function: Any, row: Row, raw: RawCutout | str, settings: _Settings) -> Any:
    if isinstance(raw, str):
        return raw
    try:
        return function(row, raw, settings)
    except InputError as error:
        return str(error)


def read_raws(rows: list[Row], settings: Any) -> list[RawCutout | str]:
    """The content of each file, or why it cannot be read; of the `settings` it takes `stack`, `bands` and `hdu`."""
    if settings.stack is None:
        return [_read_raw(row, settings) for row in rows]
    try:
        return list(read_stack_rows(settings.stack, [row.position for row in rows]))
    except InputError as error:
        return [str(error)] if len(rows) == 1 else [read_raws([row], settings)[0] for row in rows]


def _read_raw(row: Row, settings: Any) -> RawCutout | str:
    try:
        if len(row.paths) == 1:
            return read_raw(row.paths[0], settings.hdu)
        return read_raw_bands(list(row.paths), settings.bands, settings.hdu)
    except InputError as error:
        return str(error)


def _flux(row: Row, raw: RawCutout, settings: _Settings) -> np.ndarray:
    flux = standardise(raw, row.name, settings.bands, settings.pixel_scale, settings.zero_point)
    return center_crop(flux, settings.size)


def _check(row: Row, raw: RawCutout, settings: _Settings) -> _Checked:
    pixels = standardise(raw, row.name, settings.bands, settings.pixel_scale, settings.zero_point)
    problem = flat_band(pixels, row.name, settings.bands or raw.bands)
    if settings.stretch == "none":
        try:
            Stretch("none").apply(pixels)
        except InputError as error:
            raise InputError(f"{row.name}: {error}") from error
    if settings.model:
        to_display(raw, settings.model, row.name)  # refuses what cannot be flux in the model's units
    _check_size(row, pixels, raw.pixel_scale, settings)
    return _Checked(pixels.shape, replace(raw, pixels=np.empty(0)), problem)


def _check_size(row: Row, pixels: np.ndarray, pixel_scale: float | None, settings: _Settings) -> None:
    height, width = pixels.shape[1:]
    size = settings.size
    if settings.size_arcsec is not None:
        size = _pixels_of(settings.size_arcsec, settings.pixel_scale or pixel_scale, row.name)
    if (smallest := min(height, width)) >= (size or MODEL_CROP):
        return
    wanted = f"size {size}" if size else f"the {MODEL_CROP} that models see"
    if settings.size_arcsec is not None:
        wanted = f"the {size} of size_arcsec {settings.size_arcsec:g}"
    fix = "cut it out larger"
    if size is None and smallest >= MIN_SIZE:
        fix += f", or give size {smallest} or less and train with such a crop_size"
    raise InputError(f"{row.name} is {height} x {width} pixels, smaller than {wanted}: {fix}")


def _pixels_of(arcsec: float, pixel_scale: float | None, name: str) -> int:
    if not pixel_scale:
        raise InputError(f"size_arcsec {arcsec:g} needs a pixel scale, and {name} states none: give pixel_scale")
    if (size := round(arcsec / pixel_scale)) < MIN_SIZE:
        raise InputError(
            f"size_arcsec {arcsec:g} is {size} pixels of {pixel_scale:.4g}: give at least {MIN_SIZE} pixels"
        )
    return size


def _size(rows: list[Row], checked: dict[str, _Checked], config: "CutoutsConfig", pixel_scale: float | None) -> int:
    """Side of the stored cutouts in pixels: what is asked for, else that of the smallest."""
    smallest = min(rows, key=lambda row: min(checked[row.id].shape[1:]))
    least = min(checked[smallest.id].shape[1:])
    if config.size_arcsec is not None:
        # Scales that differ by less than a percent may round to another pixel.
        return min(_pixels_of(config.size_arcsec, pixel_scale, smallest.name), least)
    if config.size is None and len({checked[row.id].shape for row in rows}) > 1:
        logger.warning(
            f"cutouts differ in size: all are centre-cropped to {least} pixels, the size of {smallest.name}"
        )
    return config.size or least


def _with_position(row: Row, found: _Checked) -> Row:
    """The row with the position of the file's WCS, where the table gives none."""
    if row.ra is not None or row.dec is not None:
        return row
    return replace(row, ra=found.stated.ra, dec=found.stated.dec)


def _same_bands(rows: list[Row], checked: dict[str, _Checked], config: "CutoutsConfig") -> list[Row]:
    """The rows with the bands that most rows have, each with some contrast; the others are bad."""

    def bands(row: Row) -> tuple[int, tuple[str, ...]]:
        count, stated = checked[row.id].shape[0], checked[row.id].stated.bands
        if config.bands or not stated or stated == PICTURE_BANDS:
            return count, ()
        names = tuple(name or "unnamed" for name in stated)
        return count, tuple(sorted(names)) if all(stated) else names

    common = Counter(map(bands, rows)).most_common(1)[0][0] if rows else None
    for row in rows:
        if (found := bands(row)) != common:
            have, others = (f"{n} band{'s' * (n > 1)} {' '.join(names)}".strip() for n, names in (found, common))
            sentence = f"{row.name} has {have} where most cutouts have {others}: leave it out, or choose bands"
            config.bad.add(row.name, InputError(sentence))
        elif problem := checked[row.id].problem:
            config.bad.add(row.name, InputError(problem))
    return [row for row in rows if bands(row) == common and not checked[row.id].problem]


def _wanted_bands(rows: list[Row], checked: dict[str, _Checked], config: "CutoutsConfig") -> list[str] | None:
    """Those that are asked for, or else those that the first file names, in its order."""
    names = checked[rows[0].id].stated.bands
    return config.bands or (list(names) if names and all(names) else None)


def _of_bands(found: _Checked, bands: list[str] | None, name: str) -> _Checked:
    """With the zero points of the wanted bands alone, in their order, as [`standardise`] takes them."""
    points = found.stated.zero_points
    if not (bands and points):
        return found
    order = band_order(found.stated.bands or [None] * len(points), bands, name)
    return replace(found, stated=replace(found.stated, zero_points=tuple(points[i] for i in order)))


def _common(
    rows: list[Row], checked: dict[str, _Checked], config: "CutoutsConfig", bands: list[str] | None
) -> tuple[bool, float | None, float | None]:
    """Whether all are display units, pixel scale and zero point that hold for all rows."""
    found = [checked[row.id].stated for row in rows]
    display = [one.display for one in found]
    stretch = config.model["stretch"]["kind"] if config.model else config.stretch
    if stretch != "none" and any(display) and not all(display):
        picture, flux = rows[display.index(True)], rows[display.index(False)]
        fix = "" if config.model else ", or give stretch none if both are display units (0 to 255)"
        raise InputError(f"{picture.name} is an 8-bit picture but {flux.name} is flux: keep one kind{fix}")
    if any(display) and config.stretch not in ("auto", "none"):  # no model would stretch them when it scores them
        picture = rows[display.index(True)]
        raise InputError(f"{picture.name} is an 8-bit picture, in display units already: leave stretch out")
    units = {one.unit: row for one, row in zip(found, rows) if one.unit}
    if len(units) > 1:
        (one, row), (other, another) = list(units.items())[:2]
        raise InputError(f"{row.name} has the unit {one} but {another.name} has {other}: convert them to one unit")
    scales = [one.pixel_scale for one in found if one.pixel_scale]
    if config.pixel_scale is None and scales and max(scales) > 1.01 * min(scales):
        span = f"{min(scales):.4g} to {max(scales):.4g} arcsec"
        raise InputError(f"the cutouts of {config.dataset} have pixels of {span}: resample them with pixel_scale")
    points = _zero_points(rows, found, config)
    _check_silent_files(rows, found, config)
    scale = config.pixel_scale or (float(np.median(scales)) if scales else None)
    return all(display), scale, _zero_point(points, bands, config)


def _zero_points(rows: list[Row], found: list[RawCutout], config: "CutoutsConfig") -> list[list[float]]:
    """What the files that state a zero point state, band by band; where none is asked for, that is the same in all."""
    stated = [one.zero_points for one in found if _states_zero_point(one)]
    points = [[point for point in band if point is not None] for band in zip(*stated)]
    for band in points if config.zero_point is None else ():
        if 0 < len(band) < len(stated):
            row = next(row for row, one in zip(rows, found) if _states_zero_point(one) and None in one.zero_points)
            raise InputError(f"{row.name} states the zero point of some bands only: state it for all, or for none")
        if band and max(band) - min(band) > SAME_ZERO_POINT:
            raise InputError(
                f"the cutouts of {config.dataset} have zero points of {_span(band)}: scale them with zero_point"
            )
    return [band for band in points if band]


def _states_zero_point(one: RawCutout) -> bool:
    return any(point is not None for point in one.zero_points or ())


def _zero_point(points: list[list[float]], bands: list[str] | None, config: "CutoutsConfig") -> float | None:
    """
    What is asked for, or what the bands of every file state, in the median of the files; where the bands differ that
    of the first, to scale all to it.
    """
    if config.zero_point is not None or not points:
        return config.zero_point
    if (config.model or config.stretch == "none") and len({point for band in points for point in band}) > 1:
        return None  # the model takes flux as it comes, or these are display units: nothing is scaled
    medians = [float(np.median(band)) for band in points]
    if max(medians) - min(medians) > SAME_ZERO_POINT:
        name = bands[0] if bands else "the first"
        scaled = f"all are scaled to {medians[0]:.6g}, that of {name}"
        logger.warning(f"the bands have zero points of {_span(medians)}: {scaled}")
    return medians[0]


def _span(values: list[float]) -> str:
    """The least and the largest, with as many digits as tell them apart."""
    ends = min(values), max(values)
    texts = ([f"{end:.{digits}g}" for end in ends] for digits in range(4, 18))
    return " to ".join(next(two for two in texts if len({*two}) == 2))


def _stated(checked: list[_Checked]) -> dict[str, Any]:
    """How many files state what."""
    found = [one.stated for one in checked]
    units = Counter(one.unit for one in found if one.unit)
    return {
        "files": len(found),
        "bands": sum(bool(one.bands) and all(one.bands) for one in found),
        "pixel_scale": sum(bool(one.pixel_scale) for one in found),
        "zero_point": sum(bool(one.zero_points) and None not in one.zero_points for one in found),
        "unit": dict(units),
        "display": sum(one.display for one in found),
        "smallest": min(min(one.shape[1:]) for one in checked),
        "largest": max(max(one.shape[1:]) for one in checked),
    }


def _check_silent_files(rows: list[Row], found: list[RawCutout], config: "CutoutsConfig") -> None:
    """
    Files that state nothing beside others that do: their pixel scale is taken to be the others', which a look at the
    pictures would show; their zero point, which nothing shows, must be asked for.
    """
    scales = [bool(one.pixel_scale) for one in found]
    if any(scales) and not all(scales):
        silent = f"{scales.count(False)} of {len(scales)} files"
        logger.warning(f"{silent} state no pixel scale: they are taken to have the others'")
    points = [_states_zero_point(one) for one in found]
    if config.model and not all(one.display for one in found):
        for name, value, stated in (
            ("pixel scale", config.pixel_scale, scales),
            ("zero point", config.zero_point, points),
        ):
            if value is not None and not any(stated):
                logger.warning(f"no file states a {name}: they are taken to have the model's, {value:.4g}")
    if config.asked["zero_point"] is None and any(points) and not all(points):
        row, other = rows[points.index(False)], rows[points.index(True)]
        raise InputError(
            f"{row.name} states no zero point where {other.name} does: add MAGZERO or BUNIT to its header, or give "
            "zero_point if that of the silent files is known"
        )


def _band_names(bands: list[str] | None, found: _Checked) -> list[str]:
    names = bands or found.stated.bands or [None] * found.shape[0]
    return [name or f"band {i + 1}" for i, name in enumerate(names)]
