"""Positions on tiles: the same cutouts as those cut by hand, each from the right tile, or the reason why not."""

import json
import runpy
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from PIL import Image
from pyarrow import parquet
from test_page import picture, read_page
from test_survey import read

from lens_ssl_hf import InputError, rank, score
from lens_ssl_hf.commands import score as command
from lens_ssl_hf.data.simulation import simulate_cutout
from lens_ssl_hf.survey import inputs, tiles
from lens_ssl_hf.survey import positions as positions_module
from lens_ssl_hf.survey.crops import Asked, Preparation
from lens_ssl_hf.survey.inputs import Options, open_input
from lens_ssl_hf.survey.positions import of_parquet

pytestmark = pytest.mark.usefixtures("in_tmp_path")

BANDS = ("g", "r", "i")
SHAPE = (260, 300)
CENTRES = [(150.0, 2.0), (150.01, 2.0), (150.2, 2.0)]  # the first two overlap
PATTERN = "tiles/{band}/*.fits"
NO_STRETCH = {"stretch": {"kind": "none"}}
Reading = namedtuple("Reading", "asked bands hdu")
IDS = [2**60 + i for i in range(30)]


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
    Table({"id": IDS[: len(ra)], "ra": ra, "dec": dec, "name": ["x"] * len(ra)} | columns).write(
        name, format="votable" if name.endswith(".vot") else None
    )
    return name


def depth_in(wcs, position):
    """Pixels to the nearest edge."""
    x, y = map(float, wcs.world_to_pixel(position))
    return min(x + 0.5, y + 0.5, SHAPE[1] - 0.5 - x, SHAPE[0] - 0.5 - y)


def cut_by_hand(ra, dec, side):
    """Files `hand/ID_BAND.fits` out of the tile whose edges are farthest, by astropy."""
    Path("hand").mkdir()
    chosen = []
    for name, one in zip(IDS, SkyCoord(ra, dec, unit="deg")):
        best = None
        for path in sorted(Path("tiles/g").iterdir()):
            with fits.open(path) as hdus:
                hdu = next(hdu for hdu in hdus if hdu.shape and hdu.header["NAXIS"] == 2)
                best = max(best or (-1, None), (depth_in(WCS(hdu.header), one), path.name))
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


def asked(run):
    return Asked([Preparation(json.loads(Path(run, "model", "config.json").read_text())["cutouts"], 3, 32)])


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
    ra, dec = positions(count=12, reach=0.002 if scale < 0.15 else 0.003)
    chosen = cut_by_hand(ra, dec, side)
    assert len(set(chosen)) == 3
    pattern, table = PATTERN + (".fz" if write is as_compressed else ""), write_positions(ra, dec)
    by_hand = open_input("hand", Options(file_pattern="{id}_{band}.fits"), list(BANDS))
    (expected,), (batch,) = (
        one.batches(0, 30, asked(run), 30) for one in (by_hand, open_input(table, Options(tiles=pattern), list(BANDS)))
    )
    expected = dict(zip(map(int, expected.columns["id"].to_pylist()), expected.crops))
    for name, crops in zip(batch.columns["id"].to_pylist(), batch.crops):
        assert np.array_equal(crops, expected[name]) and np.ptp(crops) > 20
    sources = dict(zip(batch.columns["id"].to_pylist(), batch.columns["source"].to_pylist()))
    assert [sources[name] for name in IDS[:12]] == [", ".join(f"tiles/{b}/{tile}" for b in BANDS) for tile in chosen]
    manifest = score(run, table, "scores", tiles=pattern, num_proc=2)
    score(run, "hand", "hand_scores", file_pattern="{id}_{band}.fits")
    by_id, by_hand = ({int(row["id"]): row for row in read(name).to_pylist()} for name in ("scores", "hand_scores"))
    assert [by_id[i]["logit"] for i in by_hand] == pytest.approx([by_hand[i]["logit"] for i in by_hand], abs=1e-6)
    assert [(by_id[i]["ra"], by_id[i]["dec"]) for i in IDS[:12]] == list(zip(ra, dec))
    assert manifest["input"]["kind"] == "tiles" and read()["id"].type == pyarrow.int64()


def flags(folder="scores"):
    return {row["id"]: row["flag"] for row in read(folder).to_pylist()}


def test_a_position_goes_to_the_tile_that_holds_its_cutout_or_has_a_reason(run):
    centres = [(150.0, 2.0), (150.004, 2.0)]
    write_tiles(centres=centres)
    first, second = (wcs_at(*centre) for centre in centres)
    overlap = [first.pixel_to_world(x, 130) for x in range(0, 300, 10)]
    depths = np.array([[depth_in(wcs, one) for wcs in (first, second)] for one in overlap])
    ra, dec = ([getattr(one, key).deg for one in overlap] for key in ("ra", "dec"))
    score(run, write_positions(ra, dec), "scores", tiles=PATTERN)
    for i, (depth, row) in enumerate(zip(depths, sorted(read().to_pylist(), key=lambda row: row["id"]))):
        assert row["ra"] == ra[i] and f"/{depth.argmax()}.fits" in row["source"]
        assert (row["flag"] is None) == (depth.max() > 24) and row["flag"] in (None, "at the edge of the tile")
    assert {depth.argmax() for depth in depths if depth.min() > 24} == {0, 1} and depths.max(axis=1).min() < 24


def test_rows_off_the_tiles_or_without_a_position_are_flagged_and_others_are_sexagesimal(run):
    write_tiles()
    cells = ["10:00:00,2:00:00", "200,2", ",", "nan,nan", "150,2.3", "150.2005,2.0"]
    Path("t.csv").write_text("name,RA,Dec\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    manifest = score(run, "t.csv", "scores", tiles=PATTERN, id_column="name")
    off, none = "off every tile", "the table gives no position"
    assert flags() == {0: None, 1: off, 2: none, 3: none, 4: off, 5: None}
    assert read()["id"].to_pylist() == [0, 5, 1, 2, 3, 4] and read()["source"].to_pylist()[2:] == [None] * 4
    assert read()["ra"].to_pylist() == pytest.approx([150, 150.2005, 200, None, None, 150])
    assert manifest["counts"]["flagged"] == 4


@pytest.mark.parametrize("frame", ["RA---TAN DEC--TAN", "GLON-TAN GLAT-TAN", "DEC--TAN RA---TAN"])
def test_tiles_of_all_bands_give_the_same_as_one_file_a_band(frame, run):
    centre = SkyCoord(150, 2, unit="deg")
    places = {"G": (centre.galactic.l.deg, centre.galactic.b.deg), "D": (2.0, 150.0)}
    write_tiles(centres=[places.get(frame[0], (150.0, 2.0))], frame=frame)
    ra, dec = positions([(150.0, 2.0)], reach=0.003)
    score(run, write_positions(ra, dec), "scores", tiles=PATTERN)
    planes = [fits.getdata(f"tiles/{band}/0.fits") for band in "irg"]
    header = fits.getheader("tiles/g/0.fits")
    header["BANDS"] = header.pop("FILTER") and "i,r,g"
    fits.writeto("tiles/cube_0.fits", np.stack(planes), header)
    hdus = [fits.ImageHDU(plane, header, name=band) for band, plane in zip("IRG", planes)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto("tiles/several_0.fits")
    for name in ("cube", "several"):
        score(run, "positions.csv", name, tiles=f"tiles/{name}_*.fits")
        assert read(name)["logit"].to_pylist() == read()["logit"].to_pylist() and read()["flag"].null_count == 30
        assert set(read(name)["source"].to_pylist()) == {f"tiles/{name}_0.fits"}


def test_each_tile_is_opened_once(run, monkeypatch):
    write_tiles()
    source = open_input(write_positions(*positions(reach=0.002)), Options(tiles=PATTERN), list(BANDS), num_proc=1)
    opened, open_tile = [], tiles.open_tile
    monkeypatch.setattr(
        tiles, "open_tile", lambda paths, *rest: opened.append(paths[0].name) or open_tile(paths, *rest)
    )
    assert [len(batch.crops) for batch in source.batches(0, 30, asked(run), 7)] == [7, 7, 7, 7, 2]
    assert opened == ["0.fits", "1.fits", "2.fits"]


def test_shards_follow_the_tiles_and_a_run_goes_on_from_anywhere(run):
    write_tiles()
    table = write_positions(*positions(reach=0.002))
    score(run, table, "scores", tiles=PATTERN, shard_size=8, tasks=2, num_proc=1)
    kept = {path: path.stat().st_mtime_ns for path in Path("scores").glob("*.parquet")}
    assert len(kept) == 2
    score(run, table, "scores", tiles=str(Path(PATTERN).absolute()), shard_size=8, num_proc=2)
    assert len(list(Path("scores").glob("*.parquet"))) == 4 and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert [row["source"][-6:] for row in read().to_pylist()] == [f"{i}.fits" for i in range(3) for _ in range(10)]
    score(run, table, "whole", tiles=PATTERN)
    assert read("whole")["id"].to_pylist() == read()["id"].to_pylist()
    assert read("whole")["logit"].to_numpy() == pytest.approx(read()["logit"].to_numpy(), abs=1e-5)


def test_a_tile_that_changed_is_another_input_and_one_that_broke_is_flagged(run, monkeypatch):
    write_tiles()
    table = write_positions(*positions(reach=0.002))
    score(run, table, "scores", tiles=PATTERN, shard_size=20)
    with fits.open("tiles/r/2.fits", "update") as hdus:
        hdus[0].data[100] += 1
    with pytest.raises(InputError, match=r"the input is another: fingerprint"):
        score(run, table, "scores", tiles=PATTERN, shard_size=20)
    source = open_input(table, Options(tiles=PATTERN), list(BANDS))
    Path("tiles/r/2.fits").unlink()
    (batch,) = source.batches(0, 30, asked(run), 30)
    broken = ["/2.fits" in source for source in batch.columns["source"].to_pylist()]
    assert [isinstance(crop, str) and "tiles/r/2.fits cannot be read" in crop for crop in batch.crops] == broken
    assert sum(broken) == 10


def test_masked_pixels_and_flat_cutouts_are_as_in_files(run):
    write_tiles(centres=CENTRES[:1])
    with fits.open("tiles/r/0.fits", "update") as hdus:
        hdus[0].data[60:140, 60:140] = np.nan
        hdus[0].data[60:140, 210:290] = 0
    at = wcs_at(*CENTRES[0]).pixel_to_world([100, 200, 250], [100, 180, 100])
    score(run, write_positions(at.ra.deg, at.dec.deg), "scores", tiles=PATTERN)
    assert flags()[IDS[1]] is None and "has no valid pixel in band r" in flags()[IDS[0]]
    assert flags()[IDS[2]].startswith("band r of") and "is all zeros: leave the cutout out" in flags()[IDS[2]]


def test_a_ranking_of_positions_has_a_contact_sheet_and_a_page(run):
    """Whose pictures show more than the model sees, unless that lies beyond the tile."""
    write_tiles()
    score(run, write_positions(*positions()), "scores", tiles=PATTERN, shard_size=7)
    facts = rank("scores", "ranking", top=30)
    assert np.asarray(Image.open("ranking/contact_sheet.png").convert("L")).std() > 20
    rows = read_page()["rows"]
    sides = [picture(one).shape[0] for one in rows["picture"]]
    assert len(sides) == facts["top"] > 20 and 32 <= min(sides) < max(sides) == 112


@pytest.mark.parametrize("suffix", [".parquet", ".fits", ".vot", ".ecsv"])
def test_tables_of_positions_of_every_kind(suffix, run):
    write_tiles(centres=CENTRES[:1])
    ra, dec = positions(CENTRES[:1], count=3, reach=0.002)
    source = open_input(write_positions(ra, dec, f"t{suffix}"), Options(tiles=PATTERN), list(BANDS))
    assert source.rows.ids.type == pyarrow.int64() and set(source.rows.ids.to_pylist()) == set(IDS[:3])


def write_both(columns):
    """The same table as CSV and as Parquet; their names."""
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in zip(*columns.values())]
    Path("t.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    big = any(isinstance(one, int) and one >= 2**63 for one in columns.get("id", ()))
    ids = {"id": pyarrow.array(columns["id"], pyarrow.uint64())} if big else {}
    parquet.write_table(pyarrow.table(columns | ids), "t.parquet")
    return "t.csv", "t.parquet"


@pytest.mark.parametrize(
    ("columns", "by_columns"),
    [
        (
            {"id": [2**62, 5, -3], "ra": [150.001, None, 201.0], "dec": [2.0, None, 3.0], "other": ["x", "y", "z"]},
            True,
        ),
        ({"id": [" a ", "b 2", "nano"], "RA": [150, 150, 150], "Dec": [2.0001, 2.0, 1.999]}, True),
        ({"id": ["12", "7", "-1"], "ra": [150.001, float("nan"), 150.0], "dec": [2.0, float("nan"), 2.0]}, True),
        ({"id": ["12", "007", "1"], "ra": [150.001, 150.0, 150.0], "dec": [2.0, 2.0, 2.001]}, True),
        ({"ra": [150.001, 12.0, 150.0], "dec": [2.0, 2.0, 2.001]}, True),
        ({"id": [1, 2], "ra": ["10:00:00", "150"], "dec": ["2:00:00", "2.001"]}, False),
        ({"id": [2**63, 2], "ra": [150.0, 150.0], "dec": [2.0, 2.001]}, False),
        ({"id": ["a/b", "/home/me/c.fits"], "ra": [150.0, 150.0], "dec": [2.0, 2.001]}, False),
        ({"id": ["a/b", "5~6"], "ra": [150.0, 150.0], "dec": [2.0, 2.001]}, True),
    ],
)
def test_parquet_is_read_by_columns_and_means_the_same_as_csv(columns, by_columns):
    write_tiles(centres=CENTRES[:1])
    sources = [open_input(name, Options(tiles=PATTERN), list(BANDS)) for name in write_both(columns)]
    assert (of_parquet(Path("t.parquet"), "id", "ra", "dec") is not None) == by_columns
    assert sources[0].rows[:] == sources[1].rows[:] and len(sources[0].rows[:]) >= 2
    assert sources[0].rows.ids.to_pylist() == sources[1].rows.ids.to_pylist()
    (first,), (second,) = (one.batches(0, 3, Asked([Preparation(NO_STRETCH, 3, 32)]), 3) for one in sources)
    assert pyarrow.table(first.columns) == pyarrow.table(second.columns)
    assert sources[0].fingerprint == sources[1].fingerprint


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"id": [4, 5, 4], "ra": [150.0] * 3, "dec": [2.0] * 3}, "has the id '4' in rows 1 and 3: make ids unique"),
        ({"id": ["x", "x "], "ra": [150.0] * 2, "dec": [2.0] * 2}, "has the id 'x' in rows 1 and 2: make ids unique"),
        ({"id": [4, None], "ra": [150.0] * 2, "dec": [2.0] * 2}, "row 2: column 'id' is empty: fill it"),
        ({"id": ["x", "NaN"], "ra": [150.0] * 2, "dec": [2.0] * 2}, "row 2: column 'id' is empty: fill it"),
        ({"ra": [150.0, 150.0], "dec": [2.0, -91.5]}, "row 2: '-91.5' in column 'dec' is no dec in degrees"),
        ({"ra": [150.0, float("inf")], "dec": [2.0, 2.0]}, "row 2: 'inf' in column 'ra' is not a number"),
        ({"ra": [150.0, None], "dec": [2.0, 2.0]}, "row 2 has no ra: add it, or leave ra and dec empty"),
        ({"ra": [150.0], "RA": [150.0], "Dec": [2.0]}, None),
        ({"Ra": [150.0], "RA": [150.0], "dec": [2.0]}, "has the columns Ra and RA: name the one that is meant"),
        ({"ra": [150.0], "d": [2.0]}, r"has no column 'dec' \(it has ra, d\): name yours with dec_column"),
    ],
)
def test_positions_that_are_none_end_in_the_same_sentence_in_csv_and_parquet(columns, match):
    write_tiles(centres=CENTRES[:1])
    for name in write_both(columns):
        if match is None:
            open_input(name, Options(tiles=PATTERN), list(BANDS))
            continue
        with pytest.raises(InputError, match=f"^{name}(, | ){match}"):
            open_input(name, Options(tiles=PATTERN), list(BANDS))


def test_a_tile_without_positions_changes_nothing():
    write_tiles(centres=CENTRES[:1])
    table = write_positions(*positions(CENTRES[:1], reach=0.002))
    before = open_input(table, Options(tiles=PATTERN), list(BANDS)).fingerprint
    for band, plane in zip(BANDS, pixels_of(0)):  # its name comes first
        fits.writeto(f"tiles/{band}/-1.fits", plane, wcs_header(wcs_at(20.0, 2.0), FILTER=band))
    source = open_input(table, Options(tiles=PATTERN), list(BANDS))
    assert source.fingerprint == before and len(source.rows.tiles) == 2


@pytest.mark.parametrize("ids", [IDS, [f"\u00fc {i}" for i in range(30)]])
def test_tasks_read_the_positions_in_their_order_and_neither_table_nor_headers(ids, run, monkeypatch):
    monkeypatch.setattr(positions_module, "STORED_AT_ONCE", 8)
    write_tiles()
    ra, dec = positions()
    ra[3], ra[4], dec[4] = 20.0, np.nan, np.nan  # off every tile, and unknown
    table = write_positions(ra, dec, "t.parquet", id=ids)
    held = open_input(table, Options(tiles=PATTERN), list(BANDS))
    score(run, table, "scores", tiles=PATTERN, shard_size=7, task=None)
    monkeypatch.setattr(inputs, "of_parquet", None)
    monkeypatch.setattr(tiles, "put_on_tiles", None)
    stored = Path("scores/positions.arrow")
    source = open_input(table, Options(tiles=PATTERN), list(BANDS), stored=stored)
    assert source.rows[:] == held.rows[:] and source.rows[17] == held.rows[17] and len(source) == 30
    assert source.fingerprint == held.fingerprint and source.rows.on_tiles == held.rows.on_tiles == 28
    for start, stop in ((0, 30), (5, 23), (8, 16), (29, 30)):
        for one, other in zip(*(one.batches(start, stop, asked(run), 10) for one in (source, held)), strict=True):
            assert pyarrow.table(one.columns) == pyarrow.table(other.columns)
            assert str(one.crops) == str(other.crops)
    for task in (1, 0):
        score(run, table, "scores", tiles=PATTERN, shard_size=7, tasks=2, task=task)
    assert read()["id"].to_pylist() == held.rows.ids.to_pylist()
    assert rank("scores", "ranking")["top"] and Path("ranking/page.html").is_file()


def test_positions_that_were_stored_are_not_taken_for_others(run):
    write_tiles(centres=CENTRES[:1])
    ra, dec = positions(CENTRES[:1], reach=0.002)
    table, stored = write_positions(ra, dec), Path("scores/positions.arrow")
    score(run, table, "scores", tiles=PATTERN, shard_size=20, tasks=2)
    first = stored.read_bytes()
    stored.write_bytes(first[: len(first) // 2])
    score(run, table, "scores", tiles=PATTERN, shard_size=20, tasks=2, task=1)
    assert stored.read_bytes() == first and read()["id"].to_pylist()
    Path(table).unlink()
    write_positions(ra[::-1], dec)
    with pytest.raises(InputError, match=r"the input is another: fingerprint"):
        score(run, table, "scores", tiles=PATTERN, shard_size=20)
    Path("other").mkdir()
    Path("other/positions.arrow").write_bytes(first)
    score(run, table, "other", tiles=PATTERN)
    assert (
        read("other")["id"].to_pylist() != read()["id"].to_pylist()
        and Path("other/positions.arrow").read_bytes() != first
    )


def of_pattern(pattern):
    return lambda: (write_tiles(centres=CENTRES[:1]), {"tiles": pattern})[1]


def without_wcs():
    write_tiles(centres=CENTRES[:1])
    fits.writeto("tiles/r/0.fits", pixels_of(0)[1], overwrite=True)


def of_other_pixels():
    write_tiles(centres=CENTRES[:1])
    fits.writeto("tiles/r/0.fits", pixels_of(0)[1], wcs_header(wcs_at(*CENTRES[0], scale=0.3)), overwrite=True)


def with_maps_of_noise():
    """In the folder of the images, as surveys keep them; the first by its name would be taken."""
    write_tiles(centres=CENTRES[:2])
    for band in BANDS:
        header = fits.getheader(f"tiles/{band}/1.fits")
        header["CRPIX1"] += 1e-13
        fits.writeto(f"tiles/{band}/0-invvar.fits", np.ones(SHAPE, "f4"), header)


def turned():
    """By a right angle around the same centre."""
    write_tiles(centres=CENTRES[:1])
    wcs = wcs_at(*CENTRES[0])
    wcs.wcs.cd = wcs.wcs.cd @ [[0, -1], [1, 0]]
    fits.writeto("tiles/r/0.fits", pixels_of(0)[1], wcs_header(wcs), overwrite=True)


def of_another_band():
    write_tiles(centres=CENTRES[:1])
    fits.setval("tiles/r/0.fits", "FILTER", value="z")


def truncated():
    write_tiles(centres=CENTRES[:1])
    content = Path("tiles/i/0.fits").read_bytes()
    Path("tiles/i/0.fits").write_bytes(content[: len(content) // 2])


def with_table(text):
    def write():
        write_tiles(centres=CENTRES[:1])
        Path("positions.csv").write_text(text)

    return write


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (
            of_pattern("elsewhere/{band}/*.fits"),
            r"tiles 'elsewhere/\{band\}/\*.fits' fits no file of band g: correct it",
        ),
        (of_pattern("tiles/*.fits"), "fits no file: correct it"),
        (of_pattern("tiles/"), r"tiles 'tiles/' fits the folder tiles: give .* such as 'sky/\{band\}/\*.fits'"),
        (of_pattern("tiles/{band}"), r"tiles 'tiles/\{band\}' fits the folder tiles/g: give a pattern of files"),
        (lambda: of_pattern(PATTERN)() | {"bands": ["g", "r", "z"]}, "fits no file of band z: correct it"),
        (
            lambda: of_pattern("tiles/g/*.fits")() | {"bands": ["g"]},
            "g/0.fits has the bands g, but g, r, i are needed",
        ),
        (lambda: of_pattern(PATTERN)() | {"pixel_column": "x"}, "pixel_column has no meaning"),
        (lambda: of_pattern(PATTERN)() | {"cutouts": "tiles"}, "tiles is no table of positions on tiles: give a file"),
        (lambda: of_pattern(PATTERN)() | {"cutouts": "tiles/g/0.fits"}, "cannot be read as a table"),
        (without_wcs, "tiles/r/0.fits has no WCS of the sky: add one to its header"),
        (of_other_pixels, r"tiles/r/0.fits has 0.3 arcsec pixels where another band has 0.168: resample the bands"),
        (with_maps_of_noise, "tiles/g/1.fits covers the same pixels as tiles/g/0-invvar.fits: narrow tiles to the im"),
        (turned, "tiles/r/0.fits is on another grid of pixels than tiles/g/0.fits: resample"),
        (of_another_band, "tiles/r/0.fits states the band z where r is expected"),
        (truncated, r"tiles/i/0.fits is shorter than its header says \(truncated\?\)"),
        (
            with_table("id,dec\n1,2\n"),
            r"positions.csv has no column 'ra' \(it has id, dec\): name yours with ra_column",
        ),
        (lambda: {"tiles": None}, r"has positions but no column 'file' \(it has id, ra, dec, name\): give tiles, "),
        (with_table("id,ra,dec\n1,10,2\n2,,\n"), "no position of positions.csv lies on one of the tiles"),
        (with_table("id,ra,dec\n1,150,2\n1,150,2\n"), "has the id '1' in rows 1 and 2"),
        (with_table("id,ra,dec\n1,150,2\n2,150,\n"), "positions.csv, row 2 has no dec: add it"),
        (with_table("id,ra,dec\n1,150,92\n"), "is no dec in degrees"),
        (with_table("id,ra,dec\n"), "positions.csv names no cutouts: add rows"),
    ],
)
def test_what_cannot_be_cut_out_ends_in_one_sentence(write, match, run):
    write_positions([150.0], [2.0])
    options = {"tiles": PATTERN, "cutouts": "positions.csv"} | (write() or {})
    with pytest.raises(InputError, match=match) as error:
        score(run, output="scores", **options)
    assert "\n" not in str(error.value) and not list(Path().glob("scores/*"))


def test_the_command_takes_tiles_and_ends_with_status_2(run, monkeypatch, capsys):
    write_tiles(centres=CENTRES[:1])
    write_positions([150.0, 150.001], [2.0, 2.0])
    line = f"lens-ssl --model {run} --input positions.csv --output scores --tiles".split()
    monkeypatch.setattr("sys.argv", [*line, "tiles/{band}/none*.fits"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and "fits no file of band g" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*line, PATTERN])
    command.main()
    assert "2 of 2 cutouts scored, 0 flagged" in capsys.readouterr().out


def test_a_quoted_tilde_is_the_home_and_stays_as_it_was_given(run, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    write_tiles(centres=CENTRES[:1])
    table = write_positions([150.0, 150.001], [2.0, 2.0])
    manifest = score(run, table, "scores", tiles=f"~/{PATTERN}")
    assert manifest["counts"]["scored"] == 2 and manifest["options"]["tiles"] == f"~/{PATTERN}"
    assert score(run, table, "scores", tiles=f"~/{PATTERN}") == manifest
    rank("scores", "ranking")
    assert Path("ranking/contact_sheet.png").is_file()


def test_tiles_of_simulated_sky_hold_the_simulated_cutouts(monkeypatch):
    words = "make_tiles.py --output sky --tiles 2 --objects 10 --prevalence 0.3 --seed 3 --num_proc 1".split()
    monkeypatch.setattr("sys.argv", words)
    runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "make_tiles.py"))["main"]()
    table = Table.read("sky/catalogue.csv")
    assert table["id"].tolist() == list(range(10)) and table["label"].sum() == 3
    source = open_input("sky/catalogue.csv", Options(tiles="sky/{band}/*.fits"), list(BANDS), num_proc=1)
    for raw, row in zip(
        tiles.read_cutouts(source.rows, Reading(Asked([Preparation({}, 3, 32)]), BANDS, None)), source.rows
    ):
        expected, facts = simulate_cutout(3, int(row.id), bool(table["label"][int(row.id)]))
        assert np.array_equal(raw.pixels, expected[:, 8:56, 8:56], equal_nan=True)
        assert raw.bands == tuple(facts["bands"]) and raw.zero_points == (facts["zero_point"],) * 3
        assert raw.pixel_scale == pytest.approx(facts["pixel_scale"], rel=1e-6)
