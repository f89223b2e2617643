"""Positions on tiles: the same cutouts as those cut by hand, each from the right tile, or the reason why not."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from pyarrow import parquet
from test_survey import read, write_run

from lens_ssl_hf import InputError, rank, score
from lens_ssl_hf.data.files.raw import RawCutout
from lens_ssl_hf.survey.crops import Asked, Preparation
from lens_ssl_hf.survey.inputs import Options, open_input

BANDS = ("g", "r", "i")
SHAPE = (260, 300)
CENTRES = [(150.0, 2.0), (150.01, 2.0), (150.2, 2.0)]  # the first two overlap
PATTERN = "tiles/{band}/*.fits"
IDS = [2**60 + i for i in range(30)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """It takes g r i of 0.168 arcsec and zero point 27, and sees 32 pixels."""
    return write_run(tmp_path_factory.mktemp("models") / "run")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


def wcs_at(ra, dec, scale=0.168, shape=SHAPE, frame="RA---TAN DEC--TAN"):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = frame.split()
    wcs.wcs.crval, wcs.wcs.crpix = (ra, dec), (shape[1] / 2 + 0.5, shape[0] / 2 + 0.5)
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = turn @ np.diag([-scale, scale]) / 3600
    return wcs


def pixels_of(number, shape=SHAPE):
    """Noise, blobs and bad pixels in nJy, other ones in every band."""
    rng = np.random.default_rng(number)
    flux = rng.normal(size=(3, *shape))
    for _ in range(120):
        y, x = rng.integers(0, shape[0] - 6), rng.integers(0, shape[1] - 6)
        flux[:, y : y + 5, x : x + 5] += rng.uniform(5, 60, (3, 1, 1))
    flux[0, 100:104, 100:190] = flux[2, :, 200] = np.nan
    return (flux * 10 ** (0.4 * (31.4 - 27))).astype("f4")


def as_planes(path, plane, header):
    fits.writeto(path, plane, header)


def as_compressed(path, plane, header):
    hdu = fits.CompImageHDU(plane, header, quantize_level=0, compression_type="GZIP_2")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(f"{path}.fz")


def as_integers(path, plane, header):
    hdu = fits.PrimaryHDU(np.nan_to_num(plane * 10).astype("i4"), header)
    hdu.writeto(path)
    with fits.open(path, "update") as hdus:
        hdus[0].header["BSCALE"] = 0.1


def as_masked(path, plane, header):
    """HSC: facts in the primary header, bits of the mask named in its own."""
    mask = np.where(np.isnan(plane), 1, 32).astype("i4")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.nan_to_num(plane), header, name="IMAGE")]
    hdus.append(fits.ImageHDU(mask, fits.Header({"MP_BAD": 0, "MP_DETECTED": 5}), name="MASK"))
    hdus[0].header["FILTER"] = "HSC-" + hdus[1].header.pop("FILTER").upper()
    fits.HDUList(hdus).writeto(path)


def write_tiles(write=as_planes, scale=0.168, centres=CENTRES, frame="RA---TAN DEC--TAN"):
    for number, (ra, dec) in enumerate(centres):
        wcs = wcs_at(ra, dec, scale, frame=frame)
        for band, plane in zip(BANDS, pixels_of(number)):
            Path("tiles", band).mkdir(parents=True, exist_ok=True)
            write(f"tiles/{band}/{number}.fits", plane, wcs_header(wcs, FILTER=band))


def wcs_header(wcs, **facts):
    header = wcs.to_header()
    header.update({"BUNIT": "nJy"} | facts)
    return header


def positions(centres=CENTRES, count=30, reach=0.0045):
    rng = np.random.default_rng(5)
    offsets = rng.uniform(-reach, reach, (count, 2))
    return np.array([np.add(centres[i % len(centres)], offset) for i, offset in enumerate(offsets)]).T


def write_positions(ra, dec, name="positions.csv", **columns):
    Table({"id": IDS[: len(ra)], "ra": ra, "dec": dec, "name": ["x"] * len(ra)} | columns).write(name)
    return name


def cut_by_hand(ra, dec, side, suffix=".fits"):
    """Files `hand/ID_BAND.fits` out of the tile whose edges are farthest, by astropy."""
    Path("hand").mkdir()
    chosen = []
    for name, one in zip(IDS, SkyCoord(ra, dec, unit="deg")):
        best = None
        for path in sorted(Path("tiles/g").iterdir()):
            with fits.open(path) as hdus:
                hdu = next(hdu for hdu in hdus if hdu.shape and hdu.header["NAXIS"] == 2)
                x, y = WCS(hdu.header).world_to_pixel(one)
                depth = min(x, y, hdu.shape[1] - 1 - x, hdu.shape[0] - 1 - y)
            best = max(best or (-1, None), (depth, path.name))
        chosen.append(best[1])
        for band in BANDS:
            with fits.open(f"tiles/{band}/{best[1]}") as hdus:
                new = []
                for hdu in hdus:
                    if not hdu.shape:
                        new.append(fits.PrimaryHDU(header=hdu.header))
                        continue
                    wcs = WCS(hdu.header) if "CTYPE1" in hdu.header else WCS(hdus[1].header)
                    cut = Cutout2D(hdu.data, one, side, wcs, mode="strict")
                    header = cut.wcs.to_header() if "CTYPE1" in hdu.header else fits.Header()
                    for key in ("BUNIT", "FILTER", "MP_BAD", "MP_DETECTED"):
                        if key in hdu.header:
                            header[key] = hdu.header[key]
                    new.append((fits.ImageHDU if new else fits.PrimaryHDU)(cut.data, header))
                    new[-1].name = hdu.name if len(hdus) > 1 else ""
                fits.HDUList(new).writeto(f"hand/{name}_{band}.fits")
    return chosen


def crops_of(source, preparation):
    batch = next(source.batches(0, len(source), Asked([preparation]), 1000))
    return dict(zip(map(int, batch.columns["id"].to_pylist()), batch.crops)), batch


@pytest.mark.parametrize(
    ("write", "scale", "side"),
    [
        (as_planes, 0.168, 48),
        (as_planes, 0.25, 34),
        (as_planes, 0.13, 64),
        (as_compressed, 0.168, 48),
        (as_integers, 0.168, 48),
        (as_masked, 0.168, 48),
    ],
)
def test_cutouts_are_those_cut_by_hand_to_the_bit(write, scale, side, run):
    write_tiles(write, scale)
    ra, dec = positions(reach=0.003)
    chosen = cut_by_hand(ra, dec, side)
    assert len(set(chosen)) == 3
    config = json.loads(Path(run, "model", "config.json").read_text())["cutouts"]
    preparation, pattern = Preparation(config, 3, 32), PATTERN + (".fz" if write is as_compressed else "")
    table = write_positions(ra, dec)
    expected, _ = crops_of(open_input("hand", Options(file_pattern="{id}_{band}.fits"), list(BANDS)), preparation)
    found, batch = crops_of(open_input(table, Options(tiles=pattern), list(BANDS)), preparation)
    for name in IDS:
        assert np.array_equal(found[name], expected[name]) and np.ptp(found[name]) > 20
    sources = dict(zip(batch.columns["id"].to_pylist(), batch.columns["source"].to_pylist()))
    assert [sources[name] for name in IDS] == [", ".join(f"tiles/{b}/{tile}" for b in BANDS) for tile in chosen]
    manifest = score(run, table, "scores", tiles=pattern, num_proc=2)
    score(run, "hand", "hand_scores", file_pattern="{id}_{band}.fits")
    by_id, by_hand = ({int(row["id"]): row for row in read(name).to_pylist()} for name in ("scores", "hand_scores"))
    assert [by_id[i]["logit"] for i in IDS] == pytest.approx([by_hand[i]["logit"] for i in IDS], abs=1e-6)
    assert [(by_id[i]["ra"], by_id[i]["dec"]) for i in IDS] == list(zip(ra, dec))
    assert manifest["input"]["kind"] == "tiles" and read()["id"].type == pyarrow.int64()
