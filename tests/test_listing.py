"""Folders and tables as astronomers have them: what is taken, what is left out, what is refused."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from test_dataset import flux, labels, load, make_folder, make_table, rows_of

from lens_ssl_hf.data.info import cutout_info
from lens_ssl_hf.data.listing.file_patterns import suggest_pattern
from lens_ssl_hf.data.listing.names import harmless_names
from lens_ssl_hf.data.listing.table_files import read_table, typed
from lens_ssl_hf.data.listing.tables import read_position
from lens_ssl_hf.data.storage import ParquetSplits, save_cutouts
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.data.tensors import as_tensors, read_split
from lens_ssl_hf.errors import InputError

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def ids(data):
    return {name for split in data.values() for name in split["id"]}


# Folders


def test_linked_folders_are_taken_and_trash_is_not(caplog):
    root = make_folder("data", {"lenses": 10, "nonlenses": 20})
    make_folder("store", {"run2": 1, "run2/.ipynb_checkpoints": 1, "run2/__MACOSX": 1})
    for i, path in enumerate(Path("store").rglob("*.npy")):
        np.save(path, flux(100 + i))
    np.save("data/lenses/._000.npy", flux(200))
    os.symlink(Path("store/run2").absolute(), root / "lenses" / "run2")
    os.symlink(root.absolute(), root / "lenses" / "up")  # a circle
    make_folder(root, {"lenses_gradeB": 9})
    data = load(root)
    assert sum(map(len, data.values())) == 31 and "lenses/run2/000.npy" in ids(data)
    assert "31 cutouts taken (11 lens, 20 nonlens)" in caplog.text
    assert "left out: lenses_gradeB/ (9 files, not the name of a class: rename it, or give --label_map" in caplog.text
    assert "3 hidden or trash entries" in caplog.text


def test_a_class_folder_with_another_name_can_be_mapped():
    root = make_folder("data", {"lenses": 10, "nonlenses": 20})
    for i in range(9):
        (root / "lenses_gradeB").mkdir(exist_ok=True)
        np.save(root / "lenses_gradeB" / f"{i}.npy", flux(300 + i))
    data = load(root, label_map=["lenses_gradeB=lens"])
    assert sum(labels(split)[1] for split in data.values()) == 19
    with pytest.raises(InputError, match="label_map names 'gradeB', which data as the name of a folder does not hold"):
        load(root, label_map=["gradeB=lens"])


@pytest.mark.parametrize("layout", ["data", "data/unlabelled", "data/unlabelled/tile"])
def test_files_without_labels_are_a_dataset(layout, caplog):
    make_folder(".", {layout: 20})
    data = load("data")
    assert list(data) == ["unlabelled"] and labels(data["unlabelled"]) == {-1: 20}
    assert "20 unlabelled, none with a label" in caplog.text
    pixels = np.array(data["unlabelled"]["pixels"])
    assert 0 <= pixels.min() and 100 < pixels.max() <= 255  # the stretch is fitted on them
    save_cutouts(data, "saved")
    assert len(load("saved")["unlabelled"]) == len(as_tensors(data["unlabelled"])) == 20


def test_files_beside_class_folders_are_named(caplog):
    make_folder(".", {"data": 3})
    for i, path in enumerate(sorted(Path("data").glob("*.npy"))):
        np.save(path, flux(500 + i))
    make_folder("data", {"lenses": 10, "nonlenses": 10})
    assert sum(map(len, load("data").values())) == 20
    assert "left out: 3 files outside of the class folders" in caplog.text


BANDS_IN_NAMES = [
    "{i}_{b}.fits",
    "{b}/{i}.fits",
    "{i}-HSC-{B}.fits",
    "{i}/{i}_{b}.fits",
    "{i}{b}.fits",
    "x-{b}-{i}_3.fits",
]
NUMBERED = [f"obj{i}_{word}{k}.npy" for word in ("band", "filter_") for i in range(10) for k in range(3)]


@pytest.mark.parametrize("name", BANDS_IN_NAMES)
def test_one_file_per_band_is_refused_with_the_options_that_group_them(name):
    for kind, first in {"lenses": 100, "nonlenses": 120}.items():
        for i in range(first, first + 10):
            for band, plane in zip("gri", flux(i)):
                path = Path("data", kind, name.format(i=i, b=band, B=band.upper()))
                path.parent.mkdir(parents=True, exist_ok=True)
                fits.PrimaryHDU(plane).writeto(path)
    with pytest.raises(
        InputError, match="one file per band, which belong to one cutout: give --file_pattern"
    ) as error:
        load("data")
    words = shlex.split(str(error.value).split("give ")[1])
    data = load("data", file_pattern=words[1], bands=words[3:])
    assert sum(map(len, data.values())) == 20 and len(words[3:]) == 3
    assert set(data["train"]["subclass"]) == {""}


@pytest.mark.parametrize("names", [NUMBERED[:30], NUMBERED[30:]])
def test_bands_may_have_numbers(names):
    word = "band" if "band0" in names[0] else "filter_"
    right = f"--file_pattern '{{id}}_{{band}}.npy' --bands {word}0 {word}1 {word}2"
    assert suggest_pattern(names) == right


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.fits" for i in range(30)],
        [f"{i}_g.fits" for i in range(30)],
        [f"J1000+{i}_{k}.fits" for i in range(10) for k in "abc"],
        [f"tile_{k}_{i}.png" for i in range(10) for k in range(3)],
    ],
)
def test_other_names_are_no_bands(names):
    assert suggest_pattern(names) is None


# Tables


def write_table(columns, path="data/t.csv", delimiter=",", start="", end="\n"):
    path = Path(path)
    path.parent.mkdir(exist_ok=True)
    rows = list(zip(*columns.values()))
    lines = [delimiter.join(columns), *(delimiter.join(map(str, row)) for row in rows)]
    path.write_text(start + end.join(lines) + "\n", encoding="utf-8")
    for i in range(len(rows)):
        np.save(path.parent / f"{i}.npy", flux(i))
    return path


def columns_of(count, **further):
    files = [f"{i}.npy" for i in range(count)]
    return {"file": files, "label": [i % 2 for i in range(count)]} | {
        k: [f(i) for i in range(count)] for k, f in further.items()
    }


@pytest.mark.parametrize("kind", ["csv", "fits", "parquet", "ecsv", "xml"])
@pytest.mark.parametrize("case", [str.upper, str.title])
def test_columns_are_found_whatever_their_case(kind, case):
    split = ["test"] * 12 + ["validation"] * 8 + ["train"] * 20
    columns = columns_of(40, split=split.__getitem__, group=lambda i: f"g{i // 4}")
    table = write_table({case(name): values for name, values in columns.items()})
    if kind != "csv":
        table = table.with_suffix(f".{kind}")
        made = Table({case(name): values for name, values in columns.items()})
        if kind == "parquet":
            made.to_pandas().to_parquet(table)
        else:
            made.write(table, format="votable" if kind == "xml" else None)
    data = load(table)
    assert set(data["test"]["id"]) == {f"{i}.npy" for i in range(12)}
    assert len(set(data["train"]["group"])) == 5


def test_splits_under_another_name_are_not_replaced_by_drawn_ones():
    split = ["Testing"] * 12 + ["val"] * 8 + ["train"] * 20
    table = write_table(columns_of(40, partition=split.__getitem__))
    with pytest.raises(
        InputError, match=r"splits in column 'partition' \(testing, train, val\): give split_column part"
    ):
        load(table)
    assert set(load(table, split_column="partition")["test"]["id"]) == {f"{i}.npy" for i in range(12)}


@pytest.mark.parametrize(
    ("start", "delimiter", "end"), [("\ufeff", ",", "\n"), ("", ";", "\n"), ("", "\t", "\r\n"), ("", " , ", "\n")]
)
def test_dialects_of_csv(start, delimiter, end):
    data = load(
        write_table(columns_of(20, split=lambda i: "test" if i < 4 else "train"), "data/t.csv", delimiter, start, end)
    )
    assert set(data["test"]["id"]) == {f"{i}.npy" for i in range(4)}


@pytest.mark.parametrize(
    ("start", "delimiter"),
    [
        ("# made by TOPCAT\n", ","),
        ("# made by TOPCAT, 2 columns, on a day, by me\n#\n\n# again\n", ","),
        ("\ufeff# made, by\n", ";"),
    ],
)
def test_comments_above_the_names_of_the_columns_are_passed_over(start, delimiter):
    table = write_table(columns_of(20), "data/t.csv", delimiter, start)
    assert read_table(table).values == read_table(write_table(columns_of(20), "data/u.csv")).values
    with open(table, "a") as stream:
        stream.write("20.npy\n")
    line = start.count("\n") + 22
    with pytest.raises(InputError, match=rf"t\.csv, line {line} has 1 cell where the header has 2"):
        load(table)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#id,file\n7,a.npy\n", {"#id": ["7"], "file": ["a.npy"]}),
        ("# made by hand\n#id,file\n7,a.npy\n", {"#id": ["7"], "file": ["a.npy"]}),
        ("# by hand\n#id,note\n7,a|b|c\n", {"#id": ["7"], "note": ["a|b|c"]}),
        ("#id\n7\n8\n", {"#id": ["7", "8"]}),
        ("#id,file\n", {"#id": [], "file": []}),
        ("id,file\n#7,a.npy\n", {"id": ["#7"], "file": ["a.npy"]}),
    ],
)
def test_a_column_may_be_called_after_a_hash(text, expected):
    Path("t.csv").write_text(text)
    assert read_table(Path("t.csv")).values == expected


@pytest.mark.parametrize("start", ["# file label split", "# by hand\n#file label\tsplit", "# file label split\n#"])
def test_columns_separated_by_blanks_are_refused(start):
    Path("t.csv").write_text(f"{start}\na.npy lens train\nb.npy nonlens train\n")
    with pytest.raises(InputError, match=r"t\.csv has columns separated by blanks: save it as CSV or as \.ecsv"):
        read_table(Path("t.csv"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3.npy,1,", "t.csv, line 5 ends in a comma too many (3 cells where the header has 2): remove it"),
        ("3.npy", "t.csv, line 5 has 1 cell where the header has 2"),
        (
            "3.npy,1,2",
            "t.csv, line 5 has 3 cells where the header has 2: correct it, and quote cells that hold a comma",
        ),
    ],
)
def test_ragged_lines_are_named(line, message):
    table = write_table(columns_of(20))
    lines = table.read_text().splitlines()
    lines[4] = line
    table.write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        load(table)
    assert message in str(error.value)


def test_a_comma_at_the_end_of_every_line_changes_nothing():
    table = write_table(columns_of(20))
    table.write_text("".join(f"{line},\n" for line in table.read_text().splitlines()))
    assert sum(map(len, load(table).values())) == 20


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            "file,label,Split,SPLIT",
            {},
            "has the columns Split and SPLIT: name the one that is meant with split_column",
        ),
        ("file,label,label,x", {}, "has two columns 'label': rename or remove one of them"),
        ("file,label,,x", {}, "has a column without a name"),
        ("file,label,x,y", {"label_map": ["2=lens"]}, "label_map names '2', which column 'label' of .* does not hold"),
        ("file,label,x,y", {"label_map": ["2"]}, "label_map '2' must be NAME=lens"),
        ("file,label,id,x", {}, "has the id '7' in rows 1 and 2: make ids unique"),
        ("file,label,ra,x", {}, "row 1: '999' in column 'ra' is no ra in degrees"),
    ],
)
def test_tables_that_can_be_misread_are_refused(header, options, message):
    table = write_table(columns_of(20))
    rows = [f"{i}.npy,{i % 2},{999 if 'ra' in header else 7},train" for i in range(20)]
    table.write_text("\n".join([header, *rows]))
    with pytest.raises(InputError, match=message):
        load(table, **options)


def test_masked_and_bytes_values_of_fits_tables():
    table = write_table(columns_of(20)).with_suffix(".fits")
    label = MaskedColumn([b"lens", b"nonlens"] * 10, mask=[False] * 18 + [True] * 2)
    dec = MaskedColumn(np.arange(20.0), mask=[True] + [False] * 19)
    Table({"file": [f"{i}.npy" for i in range(20)], "label": label, "dec": dec, "n": np.arange(20)}).write(table)
    data = load(table)
    assert len(data["unlabelled"]) == 2
    row = next(row for split in data.values() for row in split if row["id"] == "0.npy")
    assert row["dec"] is None and row["n"] == 0 and data["train"].features["n"].dtype == "int64"


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".ecsv"])
def test_masked_cells_of_every_type_are_missing(suffix):
    cells = {"n": [1, 2, 3], "x": [1.5, 2.5, 3.5], "is_lens": [True, False, True], "name": ["a", "b", "c"]}
    if suffix == ".fits":
        del cells["is_lens"]  # of which astropy writes none as missing
    columns = {name: MaskedColumn(values, mask=[False, True, False]) for name, values in cells.items()}
    form = {".fits": "fits", ".vot": "votable", ".ecsv": "ascii.ecsv"}[suffix]
    Table(columns | {"all": [7, 8, 9]}).write(f"t{suffix}", format=form)
    wanted = {name: [values[0], None, values[2]] for name, values in cells.items()}
    assert read_table(Path(f"t{suffix}")).values == wanted | {"all": [7, 8, 9]}


def test_ids_that_lost_digits_as_floats_are_refused():
    np.save("a.npy", flux(0))
    Table({"file": ["a.npy"], "object": [float(2**53 + 2)]}).write("t.fits")
    with pytest.raises(InputError, match=r"column 'object': ids are stored as floats and have lost digits"):
        load("t.fits", id_column="object")


def test_unsigned_ids_beyond_int64_keep_their_digits():
    for values in ([2**63 + 1, 5, None], [-(2**64), 5], [2**64 - 1, 0.5]):
        wanted = [None if value is None else str(value) for value in values]
        assert typed(values, is_text=False) == ("string", wanted)
    assert typed([-(2**63), 2**63 - 1], is_text=False) == ("int64", [-(2**63), 2**63 - 1])
    ids = [2**63 + 2 * i + 1 for i in range(20)]
    table = write_table(columns_of(20)).with_suffix(".parquet")
    Table(columns_of(20) | {"object_id": np.array(ids, np.uint64)}).to_pandas().to_parquet(table)
    assert {one for split in load(table).values() for one in split["object_id"]} == set(map(str, ids))


@pytest.mark.parametrize("kind", ["csv", "parquet", "fits", "ecsv", "xml", "h5"])
def test_a_word_for_nothing_may_be_mapped_as_a_label(kind):
    words = ["lens", "none", "Null", "nan"]
    columns = columns_of(40, label=lambda i: words[i % 4], subclass=lambda i: "none" if i % 2 else "ring")
    table = write_table(columns).with_suffix(f".{kind}")
    if kind == "parquet":
        Table(columns).to_pandas().to_parquet(table)
    elif kind == "h5":
        with h5py.File(table, "w") as file:
            file["images"] = np.stack([flux(i) for i in range(40)])
            file.update({name: columns[name] for name in ("label", "subclass")})
    elif kind != "csv":
        Table(columns).write(table, format="votable" if kind == "xml" else None)
    data = load(table, label_map=["none=nonlens"])
    assert sum((labels(split) for split in data.values()), Counter()) == {1: 10, 0: 10, -1: 20}
    assert {one for split in data.values() for one in split["subclass"]} == {"ring", ""}
    with pytest.raises(InputError, match=r"names 'junk', .* does not hold \(it has Null, lens, nan, none\)"):
        load(table, label_map=["junk=nonlens"])


def test_a_table_without_labels_is_unlabelled(caplog):
    columns = columns_of(20)
    del columns["label"]
    data = load(write_table(columns | {"grade": ["A"] * 20}))
    assert list(data) == ["unlabelled"] and "has no column 'label' (it has file, grade; name yours with" in caplog.text
    with pytest.raises(InputError, match="has no column 'target'"):
        load("data/t.csv", label_column="target")


def test_a_pattern_of_files_beside_a_stack_is_refused():
    np.save("t.npy", np.stack([flux(i) for i in range(20)]))
    Path("t.csv").write_text("label\n" + "0\n1\n" * 10)
    for source in ("t.csv", "t.npy"):
        with pytest.raises(InputError, match=rf"file_pattern has no meaning for {source}, of which a stack holds all"):
            load(source, file_pattern="{id}_{band}.npy", bands=["g", "r", "i"])


def test_ids_positions_and_further_columns_travel():
    columns = columns_of(
        20,
        id=lambda i: 42164423456789000 + i,
        ra=lambda i: "10:00:28.6" if i == 1 else 150.0,
        dec=lambda i: "+02:12:21" if i == 1 else -2.5,
        mag=lambda i: 20.5 + i,
        tile=lambda i: f"00{i}",
        label=lambda i: ["Grade A", "QSO"][i % 2],
        pixels=lambda i: i,
        source=lambda i: f"/home/somebody/raw/{i}.fits",
    )
    data = load(write_table(columns), label_map=["Grade A=lens", "QSO=nonlens"])
    row = next(row for split in data.values() for row in split if row["id"] == "42164423456789001")
    assert (row["ra"], row["dec"]) == (pytest.approx(150.119167, abs=1e-6), pytest.approx(2.205833, abs=1e-6))
    assert (row["label"], row["mag"], row["tile"], row["table_pixels"], row["source"]) == (0, 21.5, "001", 1, "1.fits")
    assert {name: data["train"].features[name].dtype for name in ("mag", "tile", "table_pixels")} == {
        "mag": "float64",
        "tile": "string",
        "table_pixels": "int64",
    }
    save_cutouts(data, "saved")
    assert load("saved")["train"]["mag"] == data["train"]["mag"]
    parquet = ParquetSplits(Path("saved"))
    assert read_split(parquet, "train", 100).ids == as_tensors(data["train"]).ids


@pytest.mark.parametrize(
    ("unit", "ra"),
    [
        *((unit, 1.5) for unit in ("deg", "degrees", "DEG", "Degrees", "deg (J2000)", "decimal degrees")),
        *((unit, 22.5) for unit in ("h", "hr", "Hours", "hourangle")),
        *((unit, 1.5 * 180 / np.pi) for unit in ("rad", "RADIANS")),
        ("arcmin", 1.5 / 60),
    ],
)
def test_angles_have_the_units_that_catalogues_write(unit, ra):
    assert read_position("ra", "1.5", "t, row 1", "RA", {"RA": unit}) == pytest.approx(ra, rel=1e-14)


@pytest.mark.parametrize(
    ("key", "unit", "message"),
    [
        ("dec", "hours", "t, row 1: column 'x' has the unit hours, in which only ra is: give degrees"),
        ("ra", "mag", "t, row 1: column 'x' has the unit mag, which is no angle: give degrees"),
    ],
)
def test_other_units_of_a_position_are_refused(key, unit, message):
    with pytest.raises(InputError, match=message):
        read_position(key, "10.5", "t, row 1", "x", {"x": unit})


def write_fits_table(path, header_of, count=20):
    """FITS files whose headers `header_of` gives, and a table of them without positions."""
    path.parent.mkdir(parents=True)
    for i in range(count):
        fits.PrimaryHDU(flux(i), fits.Header(header_of(i))).writeto(path.parent / f"{i}.fits")
    rows = [(f"{i}.fits", "lens" if i % 2 else "nonlens") for i in range(count)]
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *rows])
    return path


def test_positions_come_from_the_files_where_the_table_has_none():
    def wcs(i):
        axes = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 16.5, "CRPIX2": 16.5}
        return axes | {"CRVAL1": 150.0 + i, "CRVAL2": 2.0, "CDELT1": -5e-5, "CDELT2": 5e-5}

    data = load(write_fits_table(Path("data/t.csv"), wcs))
    for split in data.values():
        assert split["ra"] == pytest.approx([150.0 + int(name.removesuffix(".fits")) for name in split["id"]])
        assert split["dec"] == pytest.approx([2.0] * len(split))


def test_files_without_a_zero_point_beside_others_need_one():
    table = write_fits_table(Path("data/t.csv"), lambda i: {} if i == 3 else {"BUNIT": "nJy"})
    with pytest.raises(InputError, match=r"3\.fits states no zero point where .*\.fits does: add MAGZERO or BUNIT"):
        load(table)
    load(table, zero_point=31.4)


@pytest.mark.parametrize(("bands", "zero_point"), [(None, 26), (["g", "r"], 27), (["r", "i"], 27), (["i"], 26)])
def test_bands_of_other_zero_points_are_scaled_to_the_first_of_those_that_are_wanted(bands, zero_point, caplog):
    orders = ["irg", "gri"]
    points = {"ZP_G": 27.0, "ZP_R": 27.0, "ZP_I": 26.0}
    data = load(write_fits_table(Path("data/t.csv"), lambda i: {"BANDS": orders[i % 2], **points}), bands=bands)
    info = cutout_info(data)
    assert info.zero_point == zero_point
    row = data["train"].with_format("numpy")[0]
    number = int(row["id"].removesuffix(".fits"))
    gains = [10 ** (0.4 * (zero_point - points[f"ZP_{band.upper()}"])) for band in info.bands]
    planes = [gain * flux(number)[orders[number % 2].index(band)] for gain, band in zip(gains, info.bands)]
    np.testing.assert_allclose(row["pixels"], Stretch.from_dict(info.stretch).apply(np.array(planes)), atol=1e-3)
    said = [text for text in caplog.messages if text.startswith("the bands have zero points of 26 to 27: all are")]
    assert [text.split("scaled to ")[1] for text in said] == (
        [f"{zero_point}, that of {info.bands[0]}"] if len(set(gains)) > 1 else []
    )


def of_a_mosaic(i):
    """Surface brightness, whose zero point follows the pixel scale, which a projection changes a little."""
    return {"BUNIT": "nmgy/arcsec2", "PIXSCALE": 0.168 * (1 + 1e-5 * i), "BANDS": "gri"}


def test_cutouts_of_one_mosaic_in_surface_brightness_have_one_zero_point():
    table = write_fits_table(Path("data/t.csv"), of_a_mosaic)
    data = load(table)
    points = [22.5 - 5 * np.log10(0.168 * (1 + 1e-5 * i)) for i in range(20)]
    info = cutout_info(data)
    assert info.zero_point == pytest.approx(np.median(points), abs=1e-9) and np.ptp(points) > 3e-4
    row = data["train"].with_format("numpy")[0]
    number = int(row["id"].removesuffix(".fits"))
    scaled = flux(number) * 10 ** (0.4 * (info.zero_point - points[number]))
    np.testing.assert_allclose(row["pixels"], Stretch.from_dict(info.stretch).apply(scaled), atol=1e-4)
    header, *rows = table.read_text().splitlines()
    Path("data/u.csv").write_text("\n".join([header, *reversed(rows)]))
    assert cutout_info(load("data/u.csv")).zero_point == info.zero_point


@pytest.mark.parametrize(
    ("last", "message"), [({"ZP_R": 26.996}, "26.996 to 27.004"), ({"ZP_R": 28.0, "ZP_G": 27.001}, "27 to 28")]
)
def test_zero_points_of_files_that_differ_are_refused_with_digits_that_tell_them_apart(last, message):
    points = {"BANDS": "gri", "ZP_G": 27.0, "ZP_R": 27.004, "ZP_I": 26.0}
    table = write_fits_table(Path("data/t.csv"), lambda i: points | (last if i == 19 else {}))
    with pytest.raises(InputError, match=f"have zero points of {message}: scale them with zero_point"):
        load(table)


def test_files_that_state_the_zero_points_of_other_bands_are_named():
    points = {"BANDS": "gri", "ZP_G": 27.0}
    table = write_fits_table(Path("data/t.csv"), lambda i: points | ({"ZP_R": 27.0} if i else {}))
    with pytest.raises(InputError, match=r"data/0\.fits states the zero point of some bands only: state it for all"):
        load(table, bands=["g", "r"])


@pytest.mark.parametrize(("of_r", "said"), [(27.0, []), (27.004, ["26.996 to 27.004: all are scaled to 26.996"])])
def test_bands_whose_zero_points_hardly_differ_need_no_word(of_r, said, caplog):
    points = {"BANDS": "gri", "ZP_G": 26.996, "ZP_R": of_r, "ZP_I": 27.0}
    assert cutout_info(load(write_fits_table(Path("data/t.csv"), lambda i: points))).zero_point == 26.996
    start, end = "the bands have zero points of ", ", that of g"
    assert [text for text in caplog.messages if "zero points" in text] == [f"{start}{one}{end}" for one in said]


def test_a_build_of_files_with_headers_by_an_earlier_version_is_not_taken_for_today_s(monkeypatch):
    for i in range(20):
        Path("data/in/lenses" if i % 2 else "data/in/nonlenses").mkdir(parents=True, exist_ok=True)
        np.savez(f"data/in/{'lenses' if i % 2 else 'nonlenses'}/{i}.npz", data=flux(i), zero_point=[25.0, 27.0, 27.0])
    now = cutout_info(load("data/in"))
    monkeypatch.setattr("lens_ssl_hf.data.dataset.FITS_VERSION", 2)
    assert now.zero_point == 25.0 and cutout_info(load("data/in")).fingerprint != now.fingerprint


# Nothing of this machine is published


@pytest.mark.parametrize("write", ["{0}/{1}", "file://{0}/{1}", "../data/{1}", "{0}/../data/{1}"])
def test_ids_and_groups_tell_nothing_of_the_machine(write):
    table = make_table("data/t.csv", rows_of(20))
    folder = table.parent.absolute()
    rows = [(write.format(folder, f"{i}.npy"), i % 2, f"{folder}/field{i // 2}", f"~me/x{i % 2}") for i in range(20)]
    with open(table, "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label", "group", "subclass"), *rows])
    data = load(table)
    assert ids(data) == {f"{i}.npy" for i in range(20)}
    assert {name for split in data.values() for name in split["group"]} == {f"field{i}" for i in range(10)}
    assert set(data["train"]["subclass"]) == {"x0", "x1"}


@pytest.mark.parametrize(
    "texts",
    [
        ["/home/me/a.npy", "/home/you/a.npy", "a.npy"],
        ["../../home/me/a.npy", "file:///home/me/a.npy", "~me/a.npy"],
        [r"C:\Users\me\a.npy", r"\\server\me\a.npy", "file:/home/me/a.npy"],
    ],
)
def test_files_elsewhere_have_harmless_and_unique_names(texts, tmp_path):
    names = harmless_names(texts, tmp_path)
    assert len(set(names)) == len(set(texts)) and harmless_names(names, tmp_path) == names
    assert all(name.startswith("a") and not set("/\\~:") & set(name) for name in names)
    assert harmless_names(["g/1.npy", "https://sky/1?a=../b", "~5 arcsec"], tmp_path)[2] == "~5 arcsec"


# Hostile files


@pytest.mark.parametrize("kind", ["device", "pipe", "large", "folder", "not_utf8"])
def test_what_is_no_file_of_a_cutout_is_not_read(kind):
    root = make_folder("data", {"lenses": 10, "nonlenses": 10})
    path = root / "lenses" / "bad.npy"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        with open(path, "wb") as stream:
            stream.truncate(2**33)
    elif kind == "not_utf8":
        os.rename(root / "lenses" / "000.npy", os.fsencode(root / "lenses") + b"/\xff.npy")
    else:
        path.mkdir()
        assert sum(map(len, load(root).values())) == 20
        return
    with pytest.raises(InputError):
        load(root)
    data = load(root, on_bad_file="skip")
    assert sum(map(len, data.values())) == 20 - (kind == "not_utf8")
    assert len(list(csv.reader(open("bad_files.csv", encoding="utf-8")))) == 2


@pytest.mark.parametrize(("value", "message"), [(0, "all zeros"), (7.5, "constant, 7.5 in all pixels")])
def test_a_band_without_contrast_has_a_sentence(value, message):
    root = make_folder("data", {"lenses": 10, "nonlenses": 10})
    pixels = flux(1)
    pixels[1] = value
    np.save(root / "lenses" / "003.npy", pixels)
    with pytest.raises(InputError, match=f"band 2 of data/lenses/003.npy is {message}: leave the cutout out"):
        load(root)


def test_what_is_impossible_is_said_before_files_are_read():
    root = make_folder("data", {"lenses": 10})
    (root / "lenses" / "000.npy").write_bytes(b"unreadable")
    with pytest.raises(InputError, match="holds only lens cutouts: add some with the label nonlens"):
        load(root)


# Processes, sizes, what was understood


def test_processes_give_the_same_data_and_the_same_error():
    root = make_folder("data", {"lenses": 40, "nonlenses": 40, "unlabelled": 20})
    one, several = (load_cutouts_in(root, cache, num_proc) for cache, num_proc in (("one", 1), ("several", 3)))
    for split in one:
        assert one[split]["id"] == several[split]["id"]
        np.testing.assert_array_equal(np.array(one[split]["pixels"]), np.array(several[split]["pixels"]))
    for name in ("lenses/021.npy", "nonlenses/030.npy"):
        (root / name).write_bytes(b"unreadable" + name.encode())
    messages = []
    for cache, num_proc in (("one", 1), ("several", 3)):
        with pytest.raises(InputError) as error:
            load_cutouts_in(root, cache, num_proc)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "lenses/021.npy" in messages[0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_build_that_is_told_to_stop_leaves_nothing_behind(number):
    make_folder("in", {"lenses": 100, "nonlenses": 100}, size=200)
    script = Path(__file__).parents[1] / "scripts" / "build_dataset.py"
    command = [sys.executable, script, "--dataset", "in", "--output", "out", "--cache_dir", "cache", "--num_proc", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    workers: list[str] = []
    while process.poll() is None and len(workers) < 2:
        time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in message, message
    assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not Path("out").exists() and not list(Path().glob(".out*"))


def load_cutouts_in(root, cache, num_proc):
    from lens_ssl_hf import load_cutouts

    return load_cutouts(root, cache_dir=cache, num_proc=num_proc)


def test_a_crop_in_arcsec():
    root = make_folder("data", {"lenses": 10, "nonlenses": 10}, size=48)
    data = load(root, size_arcsec=8.0, pixel_scale=0.2)
    assert np.array(data["train"]["pixels"]).shape[-1] == 40
    with pytest.raises(InputError, match="size_arcsec 8 needs a pixel scale, and data/lenses/000"):
        load(root, size_arcsec=8.0)
    with pytest.raises(InputError, match="size and size_arcsec are both given"):
        load(root, size_arcsec=8.0, size=32)
    with pytest.raises(InputError, match="48 x 48 pixels, smaller than the 50 of size_arcsec 10"):
        load(root, size_arcsec=10.0, pixel_scale=0.2)


def test_the_summary_tells_what_was_understood():
    from lens_ssl_hf.data.summary import describe_build

    root = Path("data")
    for kind in ("lenses", "nonlenses"):
        (root / kind).mkdir(parents=True)
        for i in range(10):
            pixels = 0.01 * flux(i + 10 * (kind == "lenses"), size=64)
            pixels[:, 30:34, 30:34] += 30
            pixels[:, 4:8, 4:8] += 10  # a quarter of the light lies outside of the central 32 pixels
            header = fits.Header({"MAGZERO": 27.0, "BANDS": "gri"} | ({"PIXSCALE": 0.1} if i < 4 else {}))
            fits.PrimaryHDU(pixels, header).writeto(root / kind / f"{i}.fits")
    text = describe_build(load(root, stretch="linear"), "data")
    for line in (
        "g r i, named by 20 of 20 files",
        "64 x 64 pixels, 6.4 arcsec",
        "3.2 of 6.4 arcsec; 24.8% of the training lenses' light lies outside",
        "0.1 arcsec, stated by 8 of 20 files",
        "27 (AB magnitude of flux 1), stated by 20 of 20 files",
        "7 lens, 7 nonlens",
        "left out      nothing",
    ):
        assert line in text, text


@pytest.mark.parametrize("name", ["set [v2]", "what?", "a*b", "{x}"])
def test_paths_that_look_like_patterns(name):
    make_folder(name, {"lenses": 10, "nonlenses": 10})
    data = load(name)
    save_cutouts(data, f"{name}/saved {name}")
    again = load(f"{name}/saved {name}")
    assert again["train"]["id"] == data["train"]["id"] and again["train"].features == data["train"].features
    assert json.loads(again["train"].info.description)["fingerprint"]
