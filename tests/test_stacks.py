"""Stacks: HDF5 with columns beside the pixels, .npy with a table."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_dataset import flux, labels, load

from lens_ssl_hf.data.files.stacks import open_hdf5, read_stack_rows
from lens_ssl_hf.data.info import cutout_info
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.errors import InputError

pytestmark = pytest.mark.usefixtures("in_tmp_path")

COUNT = 30
PIXELS = np.stack([flux(i) for i in range(COUNT)])


def write_hdf5(pixels=PIXELS, columns=None, group="", attrs=None, **options):
    columns = {"label": np.arange(COUNT) % 2, "id": [f"o{i}" for i in range(COUNT)]} if columns is None else columns
    with h5py.File("s.h5", "w") as file:
        dataset = file.create_dataset(f"{group}images", data=pixels, **options)
        for name, values in columns.items():
            file.create_dataset(f"{group}{name}", data=values)
        dataset.attrs.update({"bands": ["g", "r", "i"]} | (attrs or {}))
    return "s.h5"


def write_npy(pixels=PIXELS, columns=None):
    np.save("s.npy", pixels)
    if columns:
        with open("s.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([columns, *zip(*columns.values())])


def check_pixels(data, number_of):
    stretch = Stretch.from_dict(cutout_info(data).stretch)
    for split in data.values():
        for row in split.with_format("numpy"):
            expected = stretch.apply(PIXELS[number_of(row["id"])])
            np.testing.assert_allclose(row["pixels"], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"chunks": (7, 3, 32, 32), "compression": "gzip"}])
def test_hdf5_with_columns_beside_the_pixels(options):
    columns = {
        "label": np.arange(COUNT) % 2,
        "id": [f"o{i}" for i in range(COUNT)],
        "split": ["test"] * 10 + ["train"] * 20,
        "ra": np.linspace(0, 10, COUNT),
        "mag": np.arange(COUNT, dtype="f4"),
    }
    data = load(write_hdf5(columns=columns, group="survey/", **options))
    assert set(data["test"]["id"]) == {f"o{i}" for i in range(10)} and cutout_info(data).bands == ["g", "r", "i"]
    assert data["test"]["mag"][3] == 3.0 and data["test"]["ra"][0] == 0.0
    check_pixels(data, lambda name: int(name[1:]))


@pytest.mark.parametrize(
    ("attrs", "zero_point", "unit"),
    [
        ({"unit": "nanomaggies"}, 22.5, None),
        ({"unit": "MJy/sr", "pixel_scale": 0.2}, 23.967, None),
        ({"units": ["nJy"] * 3, "ZeroPoint": 31.4}, 31.4, None),
        ({"BUNIT": b"adu", "zero_point": np.float32(27)}, 27, "adu"),
        ({"unit": "flux", "zero_point": "0.0 mag"}, 0, None),
        ({"unit": "counts"}, None, "counts"),
    ],
)
def test_attributes_of_the_flux_are_read_as_headers_are(attrs, zero_point, unit):
    stack, _, _ = open_hdf5(Path(write_hdf5(attrs=attrs)), None)
    (raw,) = read_stack_rows(stack, [0])
    assert raw.zero_points == (None if zero_point is None else pytest.approx((zero_point,) * 3, abs=6e-3))
    assert (raw.unit, raw.pixel_scale) == (unit, attrs.get("pixel_scale"))


def test_display_units_are_not_scaled_by_the_zero_point_of_their_flux():
    pixels = np.random.default_rng(0).integers(0, 255, PIXELS.shape, "uint8")
    data = load(write_hdf5(pixels, attrs={"zero_point": 24.5}), zero_point=27.0)
    for row in data["train"].with_format("numpy"):
        np.testing.assert_array_equal(row["pixels"], pixels[int(row["id"][1:])])


def test_hdf5_in_any_order_of_axes_and_number_of_processes():
    last = np.moveaxis(PIXELS, 1, -1)
    one = load(write_hdf5(last))
    several = load("s.h5", num_proc=2, stretch="asinh")
    check_pixels(one, lambda name: int(name[1:]))
    check_pixels(several, lambda name: int(name[1:]))
    grey = load(write_hdf5(PIXELS[:, 1], {"label": np.arange(COUNT) % 2}), bands=["r"])
    assert np.array(grey["train"]["pixels"]).shape[1:] == (1, 32, 32) and "s-0" in {
        name for split in grey.values() for name in split["id"]
    }


@pytest.mark.parametrize("source", ["s.npy", "s.csv"])
def test_npy_with_a_table_of_the_same_name(source):
    write_npy(columns={"label": [i % 2 for i in range(COUNT)], "split": ["test"] * 10 + ["train"] * 20})
    data = load(source)
    assert set(data["test"]["id"]) == {f"s-{i}" for i in range(10)} and labels(data["test"]) == {0: 5, 1: 5}
    check_pixels(data, lambda name: int(name[2:]))


def test_stacks_without_labels_are_unlabelled():
    write_npy()
    assert len(load("s.npy")["unlabelled"]) == len(load(write_hdf5(columns={}))["unlabelled"]) == COUNT


def test_bad_cutouts_of_a_stack_are_named_and_skipped():
    pixels = PIXELS.copy()
    pixels[4], pixels[7, 1] = np.nan, 0
    write_hdf5(pixels)
    with pytest.raises(InputError, match=r"s\.h5, cutout 5 has no valid pixel"):
        load("s.h5")
    assert sum(map(len, load("s.h5", on_bad_file="skip").values())) == COUNT - 2


def damaged(content):
    with open("s.h5", "r+b") as stream:
        stream.truncate(content)


def virtual():
    layout = h5py.VirtualLayout((COUNT, 3, 32, 32), "f4")
    layout[:] = h5py.VirtualSource("gone.h5", "images", (COUNT, 3, 32, 32))
    with h5py.File("s.h5", "w") as file:
        file.create_virtual_dataset("images", layout)


def empty():
    with h5py.File("s.h5", "w") as file:
        file.create_dataset("images", (10**6, 3, 64, 64), "f4", chunks=(1, 3, 64, 64))


def two():
    write_hdf5()
    with h5py.File("s.h5", "a") as file:
        file["mask"] = np.zeros((COUNT, 3, 32, 32), "u1")


def elsewhere():
    write_hdf5()
    with h5py.File("s.h5", "a") as file:
        del file["images"]
        file["images"] = h5py.ExternalLink("other.h5", "/images")


def long_header():
    with open("s.npy", "wb") as stream:
        stream.write(b"\x93NUMPY\x02\x00\x00\x00\x00\xc0")
        stream.truncate(3 * 2**30)


@pytest.mark.parametrize(
    ("spoil", "source", "message"),
    [
        (lambda: (write_hdf5(), damaged(5000)), "s.h5", "cannot be read"),
        (virtual, "s.h5", "the values of /images are in other files"),
        (empty, "s.h5", "nothing was ever written into /images"),
        (two, "s.h5", r"holds several stacks \(images, mask\): choose one with hdu"),
        (elsewhere, "s.h5", "holds no stack of shape"),
        (lambda: write_hdf5(columns={"label": [0, 1]}), "s.h5", None),
        (
            lambda: write_hdf5(attrs={"unit": "mag(AB)", "zero_point": 27.0}),
            "s.h5",
            r"s\.h5 is in mag\(AB\), which is not",
        ),
        (lambda: write_hdf5(attrs={"unit": "log(flux)"}), "s.h5", "which is not linear flux: convert it to flux"),
        (lambda: write_hdf5(attrs={"unit": "MJy/sr"}), "s.h5", "is in MJy/sr without a pixel scale"),
        (lambda: write_hdf5(attrs={"unit": "nJy", "zero_point": 27.0}), "s.h5", r"zero point is 31\.4, but states 27"),
        (lambda: write_hdf5(attrs={"zero_point": np.nan}), "s.h5", "in ZERO_POINT, which is no number: correct or"),
        (lambda: write_hdf5([b"a"] * 5), "s.h5", "holds no stack of shape"),
        (lambda: write_npy(columns={"label": [0, 1]}), "s.npy", "holds 30 cutouts and s.csv 2 rows"),
        (lambda: write_npy(PIXELS[0]), "s.npy", r"has shape \(3, 32, 32\), which may be the bands of one cutout"),
        (lambda: np.save("s.npy", np.array([None] * 4)), "s.npy", "cannot be read"),
        (long_header, "s.npy", "declares a header longer than"),
    ],
)
def test_stacks_that_cannot_be_used_end_in_one_sentence(spoil, source, message):
    spoil()
    if message is None:  # a column of another length is no column, and said
        assert list(load(source)) == ["unlabelled"]
        return
    with pytest.raises(InputError, match=message) as error:
        load(source)
    assert "\n" not in str(error.value)
