import os
import struct
import time
import zipfile
import zlib

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits
from astropy.nddata import CCDData, Cutout2D, NDData
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from PIL import Image

from lens_ssl_hf.data.display import standardise
from lens_ssl_hf.data.files import fits_files, numpy_files, pictures, raw
from lens_ssl_hf.data.files.raw import check_file
from lens_ssl_hf.data.files.readers import raw_from_array, read_raw, read_raw_bands
from lens_ssl_hf.data.flux import fill_masked
from lens_ssl_hf.errors import InputError

FLUX = np.random.default_rng(0).normal(size=(3, 20, 20)).astype("float32")


def write_fits(path, data, **header):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, fits.Header(header))]).writeto(path)
    return path


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">i2"])
def test_numpy_values_survive_dtype_and_byte_order(tmp_path, dtype):
    values = (FLUX * 10).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", image=values, redshift=np.float64(0.5))
    for name in ("a.npy", "a.npz"):
        pixels = read_raw(tmp_path / name).pixels
        assert pixels.dtype == np.float32 and pixels.dtype.isnative
        np.testing.assert_allclose(pixels, values.astype("f8"), rtol=1e-6)


def test_band_axis_moves_only_where_it_is_unambiguous(tmp_path):
    np.save(tmp_path / "last.npy", np.moveaxis(FLUX, 0, 2))
    np.save(tmp_path / "flat.npy", FLUX[0])
    np.save(tmp_path / "both.npy", FLUX[:, :, :3])  # (3, 20, 3): the first axis wins
    np.testing.assert_array_equal(read_raw(tmp_path / "last.npy").pixels, FLUX)
    np.testing.assert_array_equal(read_raw(tmp_path / "flat.npy").pixels, FLUX[:1])
    np.testing.assert_array_equal(read_raw(tmp_path / "both.npy").pixels, FLUX[:, :, :3])


def test_fits_header_gives_bands_scale_and_zero_point(tmp_path):
    angle, step = 0.3, 0.168 / 3600
    wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": -step * np.cos(angle), "CD1_2": step * np.sin(angle)}
    wcs |= {"CD2_1": step * np.sin(angle), "CD2_2": step * np.cos(angle)}
    raw = read_raw(write_fits(tmp_path / "cube.fits", FLUX, BANDS="g,r,i", FLUXMAG0=10**10.8, **wcs))
    np.testing.assert_array_equal(raw.pixels, FLUX)
    assert raw.bands == ("g", "r", "i") and not raw.display
    assert raw.pixel_scale == pytest.approx(0.168) and raw.zero_points == pytest.approx((27, 27, 27))


def test_fits_hdus_are_chosen_by_number_and_name_and_stacked(tmp_path):
    hdus = [fits.ImageHDU(plane, name=name) for plane, name in zip(FLUX, ("HSC-G", "HSC-R", "HSC-I"))]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    np.testing.assert_array_equal(read_raw(tmp_path / "a.fits").pixels, FLUX)
    np.testing.assert_array_equal(read_raw(tmp_path / "a.fits", hdu=2).pixels, FLUX[1:2])
    stacked = read_raw(tmp_path / "a.fits", hdu="HSC-I,1")
    assert stacked.bands == ("i", "g")
    np.testing.assert_array_equal(stacked.pixels, FLUX[[2, 0]])
    with pytest.raises(InputError, match=r"no image in HDU 7: choose hdu among 1 \(HSC-G\), 2"):
        read_raw(tmp_path / "a.fits", hdu=7)


def test_single_band_files_are_stacked(tmp_path):
    paths = [write_fits(tmp_path / f"a_{band}.fits", plane, FILTER=f"HSC-{band}") for band, plane in zip("GRI", FLUX)]
    raw = read_raw_bands(paths)
    assert raw.bands == ("g", "r", "i")
    np.testing.assert_array_equal(raw.pixels, FLUX)
    odd = write_fits(tmp_path / "odd.fits", FLUX[0, :10])
    with pytest.raises(InputError, match=r"odd\.fits is 10 x 20 pixels where .*a_G\.fits is 20 x 20"):
        read_raw_bands([paths[0], odd])


def test_pictures_are_display_units(tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(FLUX[0]).save(tmp_path / "flux.tif")
    for name in ("a.png", "a.tif"):
        raw = read_raw(tmp_path / name)
        assert raw.display
        np.testing.assert_array_equal(raw.pixels, values.transpose(2, 0, 1))
    raw = read_raw(tmp_path / "flux.tif")
    assert not raw.display
    np.testing.assert_array_equal(raw.pixels, FLUX[:1])


def test_masked_pixels_are_nan(tmp_path):
    values = FLUX.copy()
    values[0, 0, 0], values[1, 1, 1] = np.inf, np.nan
    np.save(tmp_path / "a.npy", values)
    assert np.isnan(read_raw(tmp_path / "a.npy").pixels).sum() == 2


def spoil(path, position):
    content = bytearray(path.read_bytes())
    content[position : position + 40] = bytes(40)
    path.write_bytes(content)


def bad_files(folder):
    np.save(folder / "whole.npy", FLUX)
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:500])
    np.savez(folder / "whole.npz", a=FLUX)
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:500])
    np.savez_compressed(folder / "bits.npz", a=FLUX)
    spoil(folder / "bits.npz", 300)
    (folder / "empty.npy").write_bytes(b"")
    (folder / "words.npy").write_text("1 2 3")
    header = str({"descr": "<f4", "fortran_order": False, "shape": (2, 2000, 4000)}).encode()
    (folder / "short.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    header = header.replace(b"(2, 2000, 4000)", b"(3, 10000, 10000)")
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    (folder / "header.npy").write_bytes((folder / "whole.npy").read_bytes().replace(b"20)", b"20("))
    np.save(folder / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(folder / "text.npy", np.full((3, 20, 20), "x"))
    np.save(folder / "flat.npy", np.zeros(5))
    np.save(folder / "many.npy", np.zeros((11, 20, 20)))
    np.save(folder / "nan.npy", FLUX * np.nan)
    np.save(folder / "band.npy", np.where([[[0]], [[1]], [[0]]], np.nan, FLUX))
    write_fits(folder / "whole.fits", FLUX)
    (folder / "cut.fits").write_bytes((folder / "whole.fits").read_bytes()[:6000])
    fits.HDUList([fits.PrimaryHDU()]).writeto(folder / "none.fits")
    write_fits(folder / "bits.fits.gz", FLUX)
    spoil(folder / "bits.fits.gz", 2000)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(FLUX[0])]).writeto(folder / "key.fits.fz")
    key = (folder / "key.fits.fz").read_bytes().replace(b"ZNAXIS1 ", b"ZNAXES1 ")
    (folder / "key.fits.fz").write_bytes(key)
    whole = (folder / "whole.fits").read_bytes()
    (folder / "huge.fits").write_bytes(
        whole.replace(b"NAXIS1  =                   20", b"NAXIS1  =              2000000")
    )
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:50])
    for name, side in {"huge": 5000, "bomb": 60000}.items():
        chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (folder / f"{name}.png").write_bytes(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0x35AF061E))
    (folder / "words.png").write_text("not a picture")
    (folder / "a.txt").write_text("1")
    blanks = b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + b" " * 1000
    (folder / "blanks.npy").write_bytes(blanks)
    with zipfile.ZipFile(folder / "blanks.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", blanks)
    os.mkfifo(folder / "pipe.npy")
    os.symlink("/dev/zero", folder / "zero.npy")
    (folder / "folder.npy").mkdir()
    with open(folder / "sparse.npy", "wb") as stream:
        stream.truncate(3 * 2**29)


def crowded_files(folder):
    with zipfile.ZipFile(folder / "members.npz", "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number}.npy", b"")
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(FLUX[0]) for _ in range(250))]).writeto(folder / "many.fits")


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "missing.npy": "does not exist",
        "a.txt": "is not a cutout file: convert it",
        "cut.npy": r"truncated\?",
        "cut.npz": r"truncated\?",
        "empty.npy": r"truncated\?",
        "words.npy": r"is not a \.npy or \.npz file whatever its name: save it with numpy\.save",
        "header.npy": r"cannot be read as a numpy array \(truncated\?\)",
        "short.npy": r"shorter than its header says \(truncated\?\)",
        "huge.npy": r"has shape \(3, 10000, 10000\), more than 16777216 pixels: cut",
        "bits.npz": r"cannot be read as a numpy array \(truncated\?\)",
        "bits.fits.gz": r"cannot be read as FITS \(truncated\?\)",
        "key.fits.fz": r"cannot be read as FITS \(truncated\?\)",
        "huge.fits": r"shorter than its header says \(truncated\?\)",
        "huge.png": r"has shape \(3, 5000, 5000\), more than",
        "bomb.png": "has more than 16777216 pixels: cut",
        "object.npy": "holds pickled objects, not numbers",
        "text.npy": "values, not numbers",
        "flat.npy": r"has shape \(5,\): save it as \(bands, height, width\)",
        "many.npy": "more than 10 bands",
        "nan.npy": r"no valid pixel \(all NaN or masked\)",
        "blanks.npy": "declares a header longer than 10000 bytes: save",
        "blanks.npz": "declares a header longer than 10000 bytes: save",
        "members.npz": "holds 60000 arrays: save one image per file",
        "many.fits": "has more than 200 HDUs: cut the object out of it",
        "pipe.npy": "is a pipe or a device, not a file",
        "zero.npy": "is a pipe or a device, not a file",
        "folder.npy": "is a folder: give the files in it",
        "sparse.npy": r"has 1\.5 GiB, more than a cutout: cut the object out",
        "band.npy": "no valid pixel in band 2",
        "cut.fits": r"truncated\?",
        "none.fits": "no image HDU",
        "cut.png": r"truncated\?",
        "words.png": "cannot be read as a picture",
    }.items(),
)
def test_bad_file_gives_one_sentence_that_names_it(tmp_path, name, message):
    crowded_files(tmp_path) if name in ("members.npz", "many.fits") else bad_files(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_raw(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".fits", ".tif"])
def test_size_is_checked_before_pixels_are_read(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".fits":
        write_fits(path, FLUX[0])
    else:
        Image.fromarray(FLUX[0]).save(path) if suffix == ".tif" else (np.save if suffix == ".npy" else np.savez)(
            path, FLUX[0]
        )
    read_raw(path)
    monkeypatch.setattr(raw, "MAX_PIXELS", 399)
    for module in (numpy_files, fits_files, pictures):
        monkeypatch.setattr(module, "as_pixels", None)
    with pytest.raises(InputError, match=r"a\.\w+ has shape \((1, )?20, 20\), more than 399 pixels: cut"):
        read_raw(path)


def in_memory():
    """One cutout, whose central pixels are masked, in all the forms in which it may come."""
    masked = np.zeros(FLUX.shape, bool)
    masked[:, 9:11, 9:11] = True
    plain = np.where(masked, np.nan, FLUX)
    quantity = FLUX * u.nJy
    return plain, {
        "numpy": plain,
        "numpy.ma": np.ma.masked_array(FLUX, masked),
        "channels last": np.ma.masked_array(np.moveaxis(FLUX, 0, 2), np.moveaxis(masked, 0, 2)),
        "tensor": torch.from_numpy(plain),
        "Masked": Masked(FLUX, masked),
        "Masked quantity": Masked(quantity, masked),
        "CCDData": CCDData(FLUX, mask=masked, unit="nJy", meta={"BANDS": "gri"}),
        "quantity": np.where(masked, np.nan, quantity),
        "HDU": fits.ImageHDU(plain, fits.Header({"BUNIT": "nJy", "BANDS": "gri"})),
        "HDUList": fits.HDUList(
            [fits.PrimaryHDU(), fits.ImageHDU(FLUX, name="SCI"), fits.ImageHDU(masked.astype("u1"), name="MASK")]
        ),
    }


@pytest.mark.parametrize("form", in_memory()[1])
def test_masks_and_units_of_what_is_in_memory_are_read(form):
    plain, forms = in_memory()
    found = raw_from_array(forms[form], "a", 3)
    np.testing.assert_array_equal(found.pixels, plain.astype("f4"))
    is_flux_density = form in ("Masked quantity", "CCDData", "quantity", "HDU")
    assert found.zero_points == (pytest.approx((31.4,) * 3) if is_flux_density else None)
    assert found.bands == (("g", "r", "i") if form in ("CCDData", "HDU") else None)


def sky(arcsec):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [10.5, 10.5]
    wcs.wcs.cdelt = [-arcsec / 3600, arcsec / 3600]
    return wcs


@pytest.mark.parametrize(
    "item",
    [
        CCDData(FLUX[0], unit="nJy", wcs=sky(0.2)),
        NDData(FLUX[0], unit="nJy", wcs=sky(0.2)),
        Cutout2D(FLUX[0] * u.nJy, (9.5, 9.5), 20, wcs=sky(0.2)),
    ],
)
def test_a_wcs_that_is_not_in_a_header_is_read(item):
    found = raw_from_array(item, "a")
    assert (found.pixel_scale, found.ra, found.dec) == pytest.approx((0.2, 150, 2))
    assert found.zero_points == pytest.approx((31.4,))
    np.testing.assert_array_equal(found.pixels, FLUX[:1])


def test_lists_of_planes_keep_the_masks_units_and_bands_of_each():
    mask = FLUX[0] > 1
    found = raw_from_array([np.ma.masked_array(plane, mask) for plane in FLUX], "a")
    np.testing.assert_array_equal(found.pixels, np.where(mask, np.nan, FLUX))
    found = raw_from_array([FLUX[0] * u.nJy, CCDData(FLUX[1], unit="uJy", meta={"filter": "r"})], "a")
    assert found.bands == (None, "r") and found.zero_points == pytest.approx((31.4, 23.9))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([[1, 2], [3]], r"cannot be made a numpy array \(list\): give one"),
        ({"flux": FLUX}, "is a dict, not an image"),
        ((plane for plane in FLUX), "is a generator, not an image"),
        (pd.DataFrame(FLUX[0]), "is a DataFrame: give its values as an array"),
        (FLUX > 0, "holds bool values, not numbers"),
        (torch.empty(3, 4, 4, device="meta"), r"cannot be made a numpy array \(Tensor\)"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(item, message):
    with pytest.raises(InputError, match=f"a {message}"):
        raw_from_array(item, "a")


@pytest.mark.parametrize(
    "beside",
    [{"mask": FLUX[0] > 2}, {"weight": (FLUX[0] <= 2) * 1.0, "psf": FLUX[:, :5, :5]}, {"mask": (FLUX[0] > 2) * 1}],
)
@pytest.mark.parametrize("points", [{"zero_point": [27, 28, 29]}, {"zp_g": 27, "zp_r": 28, "zp_i": 29}])
def test_arrays_beside_the_image_of_a_npz_mask_it_and_state_its_facts(tmp_path, beside, points):
    facts = {"bands": np.array(list("gri")), **points, "pixel_scale": 0.2, "name": "J1"}
    np.savez(tmp_path / "a.npz", image=FLUX, **facts, **beside)
    assert raw_from_array(NDData(FLUX, meta=facts), "a").zero_points == (27, 28, 29)
    found = read_raw(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.pixels, np.where(FLUX[0] > 2, np.nan, FLUX))
    assert (found.bands, found.zero_points, found.pixel_scale) == (("g", "r", "i"), (27, 28, 29), 0.2)


def test_names_of_files_name_the_bands_that_headers_leave_out(tmp_path):
    paths = [write_fits(tmp_path / f"{b}.fits", FLUX[0], **({"FILTER": "HSC-G"} if b == "g" else {})) for b in "irg"]
    assert read_raw_bands(paths).bands == ("i", "r", "g")


def test_bfloat16_tensors_are_read():
    tensor = torch.from_numpy(FLUX).bfloat16()
    np.testing.assert_array_equal(raw_from_array(tensor, "a").pixels, tensor.float().numpy())


def test_a_large_hole_is_filled_in_a_time_that_its_size_bounds():
    flux = np.full((1, 1500, 1500), np.nan, "f4")
    flux[0, 700, 20] = 7
    start = time.process_time()
    filled = fill_masked(flux)
    assert (filled == 7).all()
    assert time.process_time() - start < 30  # it took minutes while each ring passed over all pixels


def test_masked_files_of_one_object_keep_their_masks_and_facts(tmp_path):
    for band, plane in zip("gri", FLUX):
        header = fits.Header({"FILTER": f"HSC-{band.upper()}", "BUNIT": "nJy" if band != "i" else "adu"})
        fits.PrimaryHDU(plane, header).writeto(tmp_path / f"{band}.fits")
    found = read_raw_bands([tmp_path / f"{band}.fits" for band in "gri"])
    assert found.bands == ("g", "r", "i") and found.unit == "adu"
    assert found.zero_points == (pytest.approx(31.4), pytest.approx(31.4), None)
    with pytest.raises(InputError, match=r"a states the zero point of some bands only: state it for all, or for none"):
        standardise(found, "a", list("irg"), zero_point=27.0)


def test_a_band_that_contradicts_its_file_is_refused(tmp_path):
    paths = [write_fits(tmp_path / f"{band}.fits", plane, FILTER=band) for band, plane in zip("gr", FLUX)]
    with pytest.raises(
        InputError, match=r"g\.fits states the band g where r is expected: correct bands or the header"
    ):
        read_raw_bands(paths, ["r", "g"])


def test_checked_paths(tmp_path):
    np.save(tmp_path / "a.npy", FLUX)
    check_file(tmp_path / "a.npy")
    with pytest.raises(InputError, match="cannot be a path"):
        check_file("a\0.npy")
