"""What FITS files state of a cutout, in the headers where the standard and the surveys put it."""

import gzip

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import NDData

from lens_ssl_hf.data.display import to_display
from lens_ssl_hf.data.files.readers import raw_from_array, read_raw, read_raw_bands
from lens_ssl_hf.errors import InputError

PLANE = np.random.default_rng(0).normal(size=(20, 20)).astype("float32")
CENTRE = np.pad(np.ones((4, 4), "i4"), 8)
CUBE = np.stack([PLANE, PLANE + 1, PLANE + 2])


def scale(arcsec, ra=10.0, dec=5.0, unit=3600.0):
    wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec, "CRPIX1": 10.5, "CRPIX2": 10.5}
    return wcs | {"CD1_1": -arcsec / unit, "CD2_2": arcsec / unit}


def write(path, *hdus, primary=None, data=None):
    """HDUs as (data, name, header) behind a primary one."""
    images = [fits.ImageHDU(data, fits.Header(header), name=name or None) for data, name, header in hdus]
    fits.HDUList([fits.PrimaryHDU(data, fits.Header(primary or {})), *images]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("own", "primary"),
    [
        ({}, {"FILTER": "HSC-G", "FLUXMAG0": 10**10.8, **scale(0.168)}),
        ({"FILTER": "HSC-G", "FLUXMAG0": 10**10.8, **scale(0.168)}, {}),
        ({"FILTER": "HSC-G", "INHERIT": True}, {"FILTER": "HSC-R", "MAGZERO": "27.0", "PIXSCALE": "0.168"}),
        ({"EXTNAME": "G"}, {"FILTER": "HSC-R", "MAGZPT": 27, **scale(0.168)}),
        ({"FILTER1": "CLEAR1L", "FILTER2": "g"}, {"ZP": 27.0, "SECPIX": 0.168}),
        ({"BAND": "g", "CUNIT1": "arcsec", "CUNIT2": "arcsec", **scale(0.168, unit=1)}, {"ZEROPT": 27.0}),
        ({"EXTNAME": "SCI_G", "MAGZPT": 27, "PIXSCALE": 0.168}, {"FILTER": "r", "MAGZERO": 30, **scale(0.3)}),
        ({"FLUXMAG0": 10**10.8, "FILTER": "OCAM_g_SDSS"}, {"MAGZERO": 30, "PIXSCALE": "0.168 arcsec/pixel"}),
        ({"MAG_ZEROPOINT": "27.0 mag (AB)", "FILTER": "g_6"}, {"PIXEL_SCALE": 0.168}),
        ({"MAGZERO_G": "2.7D1", "MAGZERO_R": 30, "FILTER": "ZTF_g"}, {"PIXSCALE": 0.168}),
    ],
)
def test_facts_are_read_from_the_own_header_and_then_the_primary_one(tmp_path, own, primary):
    raw = read_raw(write(tmp_path / "a.fits", (PLANE, "", own), primary=primary))
    assert raw.bands == ("g",)
    assert raw.zero_points == pytest.approx((27.0,))
    assert raw.pixel_scale == pytest.approx(0.168, rel=1e-6)


def test_a_header_that_does_not_inherit_stands_alone(tmp_path):
    primary = {"FILTER": "g", "MAGZERO": 27.0, "PIXSCALE": 0.2}
    raw = read_raw(write(tmp_path / "a.fits", (PLANE, "", {"INHERIT": False}), primary=primary))
    assert (raw.bands, raw.zero_points, raw.pixel_scale) == (None, None, None)


@pytest.mark.parametrize("system", [{"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, {"RADESYS": "FK5"}, {"NAXIS3": 1}])
def test_a_wcs_of_any_kind_gives_scale_and_position(tmp_path, system):
    is_cube = system.pop("NAXIS3", None)
    header = scale(0.2) | system | ({"CTYPE3": "FREQ", "CRVAL3": 1e9, "CDELT3": 1.0} if is_cube else {})
    raw = read_raw(write(tmp_path / "a.fits", (PLANE[None] if is_cube else PLANE, "", header)))
    frame = "galactic" if "CTYPE1" in system else "icrs"
    right = SkyCoord(10, 5, unit="deg", frame=frame).icrs
    assert raw.pixel_scale == pytest.approx(0.2, rel=1e-5)
    assert (raw.ra, raw.dec) == pytest.approx((right.ra.deg, right.dec.deg), abs=1e-4)


SIP = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 1e-3, "B_ORDER": 2, "B_0_2": 1e-3}
TPV = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.002, "PV2_1": 1.002}


@pytest.mark.parametrize(("distortion", "pixel_scale"), [(SIP, 0.3 * (1 - 1e-3)), (TPV, 0.3 * 1.002)])
def test_a_cube_has_the_wcs_of_its_planes_with_their_distortion(tmp_path, distortion, pixel_scale):
    header = scale(0.3) | distortion | {"CRPIX1": 11.5, "CRPIX2": 11.5}
    cube = read_raw(write(tmp_path / "a.fits", (CUBE, "", {"BANDS": "g,r,i", **header})))
    plane = read_raw(write(tmp_path / "b.fits", (PLANE, "", header)))
    assert (cube.pixel_scale, cube.ra, cube.dec) == (plane.pixel_scale, plane.ra, plane.dec)
    assert cube.pixel_scale == pytest.approx(pixel_scale, rel=1e-6) and cube.dec == pytest.approx(5, abs=1e-3)


def test_a_tangential_projection_with_the_distortion_of_scamp_is_where_it_says(tmp_path):
    """PV keywords up to the first order alone, which wcslib takes for another pole: 88 degrees from where it is."""
    scamp = {"PV1_0": 0.0, "PV1_1": 1.0, "PV1_2": 0.0, "PV2_0": 0.0, "PV2_1": 1.0, "PV2_2": 0.0}
    raw = read_raw(write(tmp_path / "a.fits", (PLANE, "", scale(0.3) | scamp)))
    plain = read_raw(write(tmp_path / "b.fits", (PLANE, "", scale(0.3))))
    assert (raw.pixel_scale, raw.ra, raw.dec) == pytest.approx((plain.pixel_scale, plain.ra, plain.dec))


@pytest.mark.parametrize("crpix", [(10.5, 10.5), (10, 10.5), (11, 11.3), (9, 14), (500.5, 10.5)])
def test_pixels_at_the_pole_are_as_large_as_elsewhere(tmp_path, crpix):
    """Their longitudes turn by any angle within a pixel."""
    header = scale(0.168, ra=0.0, dec=90.0) | dict(zip(("CRPIX1", "CRPIX2"), crpix))
    raw = read_raw(write(tmp_path / "a.fits", (PLANE, "", header)))
    assert raw.pixel_scale == pytest.approx(0.168, rel=1e-6)


@pytest.mark.parametrize(
    "header",
    [
        {"INSTRUME": "VIRCAM"},
        {"TELESCOP": "WISE"},
        {"PHOTSYS": "VEGA"},
        {"ORIGIN": "2MASS", "BUNIT": "DN"},
        {"MAGSYS": "STMAG"},
        {"PHOTSYS": "ST", "BUNIT": "electron/s"},
    ],
)
def test_zero_points_of_vega_or_st_are_not_taken_for_ab(tmp_path, header):
    raw = read_raw(write(tmp_path / "a.fits", (PLANE, "", {"MAGZPT": 23.5, **header})))
    assert raw.zero_points is None and raw.unit.endswith((" of a Vega zero point", " of an ST zero point"))
    with pytest.raises(InputError, match=r"of an? (Vega|ST) zero point and states no AB zero point"):
        to_display(raw, {"bands": ["g"], "zero_point": 27.0, "stretch": {"kind": "none"}}, "a")


def test_the_wcs_gives_the_position_of_the_centre(tmp_path):
    header = scale(0.2, ra=359.9999, dec=-60) | {"CRPIX1": 1.0}
    raw = read_raw(write(tmp_path / "a.fits", (PLANE, "", header)))
    assert raw.ra == pytest.approx(359.9999 - 9.5 * 0.2 / 3600 / np.cos(np.radians(60)), abs=1e-6)
    assert raw.dec == pytest.approx(-60, abs=1e-5)


@pytest.mark.parametrize(
    ("header", "zero_point"),
    [
        ({"BUNIT": "nJy"}, 31.4),
        ({"BUNIT": "10 nJy"}, 28.9),
        ({"BUNIT": "uJy"}, 23.9),
        ({"BUNIT": "Jy"}, 8.9),
        ({"BUNIT": "nanomaggy"}, 22.5),
        ({"BUNIT": "NANOMAGGIES"}, 22.5),
        ({"BUNIT": "nMgy"}, 22.5),
        ({"BUNIT": "AB nanomaggies"}, 22.5),
        ({"BUNIT": "nanomaggies/pixel"}, 22.5),
        ({"BUNIT": "[njy]"}, 31.4),
        ({"BUNIT": "nJy, nJy, nJy"}, 31.4),
        ({"BUNIT": "microJy"}, 23.9),
        ({"BUNIT": "ergs/s/cm^2/Hz"}, -48.6),
        ({"BUNIT": "MJY/SR", "PIXSCALE": 0.2}, 23.967),
        ({"BUNIT": "none", "MAGZERO": 27}, 27),
        ({"BUNIT": "maggies"}, 0),
        ({"BUNIT": "erg/s/cm2/Hz"}, -48.6),
        # 1 MJy/sr of 0.2-arcsec pixels is 0.9402 microjansky
        ({"BUNIT": "MJy/sr", "PIXSCALE": 0.2}, 23.9 - 2.5 * np.log10(1e12 * (0.2 * np.pi / 180 / 3600) ** 2)),
        ({"BUNIT": "nJy", "MAGZERO": 31.4}, 31.4),
        ({"BUNIT": "adu", "MAGZERO": "30.0"}, 30),
        ({"MAGZERO": "30,30,30"}, 30),
        ({"MAGZERO1": 30, "MAGZERO2": 30, "MAGZERO3": 30}, 30),
        ({"ZP0": 30, "ZP1": 30, "ZP2": 30}, 30),
        ({"BANDS": "gri", "ZP_G": 30, "ZP_R": 30, "ZP_I": 30}, 30),
        ({"FPA.ZP": 25.0, "EXPTIME": 100.0}, 30),
        # ACS F814W: PHOTFLAM 7.0e-20, PHOTPLAM 8045 give 25.95 (ACS Data Handbook)
        ({"BUNIT": "ELECTRONS/S", "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0}, 25.95),
        ({"BUNIT": "1e-17 erg s-1 cm-2 AA-1", "PHOTPLAM": 8045.0}, 20.564),
        ({"BUNIT": "erg/s/cm2/Angstrom", "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0}, -21.936),
        ({"BUNIT": "MJy/sr", "PIXSCALE": 0.2, "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0}, 23.967),
    ],
)
def test_units_of_flux_become_zero_points(tmp_path, header, zero_point):
    found = read_raw(write(tmp_path / "a.fits", (CUBE, "", header))).zero_points
    assert found == pytest.approx((zero_point,) * 3, abs=6e-3)


def test_the_inverse_sensitivity_is_that_of_counts_per_second():
    def zero_points(bunit, unit=None):
        meta = {"BUNIT": bunit, "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0}
        return raw_from_array(NDData(PLANE, unit=unit, meta=meta), "a").zero_points

    for unit in (
        "electron / s",
        "[e-/s]",
        "counts/sec",
        "DN/second",
        "ct s-1",
        "adu.s^-1",
        "electron s**-1",
        "e/s/pix",
    ):
        assert zero_points(unit) == pytest.approx((25.95,), abs=6e-3), unit
    for unit in ("ELECTRONS", "counts", "erg/s/cm2/Angstrom/arcsec2", "nW/m2/sr", "photon/s/cm2/Angstrom", ""):
        assert zero_points(unit) is None, unit
    assert zero_points("ELECTRONS", unit="electron/s") is not None and zero_points("e/s", unit="electron") is None


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"BUNIT": "mag"}, "is in mag, which is not linear flux: convert it to flux"),
        ({"BUNIT": "mag/arcsec2"}, "which is not linear flux"),
        ({"BUNIT": "ABmag"}, "which is not linear flux"),
        ({"MAGZERO": -99.0}, "has -99 in MAGZERO, which is no zero point"),
        ({"MAGZERO": 27.0, "ZPT": 30.0}, "has 27 in MAGZERO but 30 in ZPT: remove the wrong one"),
        ({"BANDS": "griz"}, "has griz in BANDS, but 3 planes: name as many bands as planes"),
        ({"FILTER": "g"}, "has g in FILTER, but 3 planes"),
        (scale(0.2) | {"CD2_2": 0.4 / 3600}, r"has pixels of 0\.2 x 0\.4 arcsec: resample it to square pixels"),
        ({"BUNIT": "log10(Jy)"}, "which is not linear flux"),
        ({"BUNIT": "nJy", "MAGZERO": 27.0}, r"is in nJy, whose zero point is 31\.4, but states 27: correct"),
        ({"BUNIT": "MJy/sr"}, "is in MJy/sr without a pixel scale: add a WCS or PIXSCALE"),
        ({"MAGZERO": "NaN"}, "has 'NaN' in MAGZERO, which is no number: correct or remove MAGZERO"),
        ({"MAGZERO": "unknown"}, "has 'unknown' in MAGZERO, which is no number"),
        ({"MAGZERO": "27,28"}, "has 2 numbers in MAGZERO for 3 bands"),
        ({"FLUXMAG0": -1.0}, "has -1 in FLUXMAG0, not a positive flux"),
        ({"BSOFTEN": 95.0}, "is asinh-scaled but does not state BOFFSET"),
        ({"BANDS": "g,g,i"}, "has the band g twice"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        read_raw(write(tmp_path / "a.fits", (CUBE, "", header)))


def test_counts_without_a_zero_point_are_refused_where_the_model_needs_one(tmp_path):
    raw = read_raw(write(tmp_path / "a.fits", (CUBE, "", {"BUNIT": "adu"})))
    assert raw.unit == "adu" and raw.zero_points is None
    entry = {"bands": list("gri"), "zero_point": 27.0, "stretch": {"kind": "none"}}
    with pytest.raises(InputError, match=r"a is in adu and states no AB zero point, .* of zero point 27: add MAGZERO"):
        to_display(raw, entry, "a")


def test_a_zero_point_of_0_is_stated(tmp_path):
    raw = read_raw(write(tmp_path / "a.fits", (CUBE, "", {"BUNIT": "adu", "MAGZERO": 0.0})))
    curve = {"kind": "linear", "black": [0.0] * 3, "white": [255.0] * 3, "softening": [1.0] * 3}
    entry = {"bands": list("gri"), "zero_point": 2.5, "stretch": curve}
    np.testing.assert_allclose(to_display(raw, entry, "a"), 10 * CUBE, rtol=1e-5, atol=1e-5)


def test_asinh_magnitudes_of_panstarrs_become_flux(tmp_path):
    flux = 100 * CUBE
    stored = 2.5 * np.log10(np.e) * np.arcsinh((flux - 3) / (2 * 95))
    raw = read_raw(write(tmp_path / "a.fits", (stored, "", {"BSOFTEN": 95.0, "BOFFSET": 3.0})))
    np.testing.assert_allclose(raw.pixels, flux, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("dtype", "header", "is_display"),
    [("u1", {}, True), ("u1", {"BUNIT": "adu"}, False), ("u1", {"MAGZERO": 27.0}, False), ("i2", {}, False)],
)
def test_8_bit_values_are_display_units_unless_a_unit_is_stated(tmp_path, dtype, header, is_display):
    assert read_raw(write(tmp_path / "a.fits", (np.abs(CUBE).astype(dtype), "", header))).display is is_display


@pytest.mark.parametrize(
    ("hdus", "primary", "bands"),
    [
        ([("G", {}), ("R", {}), ("I", {})], {}, ("g", "r", "i")),
        ([("SCI", {"FILTER": "g"}), ("SCI", {"FILTER": "r", "EXTVER": 2})], {}, ("g", "r")),
        ([("", {}), ("", {}), ("", {})], {"BANDS": "g,r,i"}, ("g", "r", "i")),
        ([("g", {}), ("g_var", {}), ("g_mask", {}), ("r", {}), ("r_var", {})], {}, ("g", "r")),
        ([("", {"EXTNAME": "y"}), ("", {"EXTNAME": "Y"})], {}, ("y", "Y")),
        ([("SCI", {}), ("ERR", {}), ("DQ", {}), ("WHT", {})], {"FILTER": "F814W"}, ("F814W",)),
        ([("VIS", {}), ("NIR_Y", {})], {}, ("VIS", "NIR_Y")),
        (
            [("VIS_FLUX_MICROJANSKY", {}), ("NISP_Y_FLUX_MICROJANSKY", {}), ("VIS_PSF", {}), ("MERPSF", {})],
            {},
            ("VIS", "NIR_Y"),
        ),
        (
            [("IMAGE", {}), ("PSFIMAGE", {}), ("THUMBNAIL", {}), ("STAT", {}), ("OBJECT_MASK", {})],
            {"BAND": "g"},
            ("g",),
        ),
        ([("SCI", {}), ("SOMETHING", {})], {"FILTER": "CLEAR1L;F814W"}, ("F814W",)),
        ([("SCI", {})], {"FILTER": "F150W2", "PUPIL": "F162M"}, ("F162M",)),
        ([("SCI", {})], {"BAND": 1}, None),
    ],
)
def test_all_bands_of_a_file_are_read_and_nothing_else(tmp_path, hdus, primary, bands):
    images = [
        (np.ones_like(PLANE) if name == "WHT" else (0 * PLANE).astype("i2") if name in ("DQ", "g_mask") else PLANE)
        for name, _ in hdus
    ]
    path = write(tmp_path / "a.fits", *((data, *hdu) for data, hdu in zip(images, hdus)), primary=primary)
    raw = read_raw(path)
    assert raw.bands == bands and len(raw.pixels) == len(bands or "1")
    assert np.isfinite(raw.pixels).all()


@pytest.mark.parametrize(
    ("hdus", "message"),
    [
        ([(PLANE, "", {}), (PLANE, "", {})], "holds 2 images that are not named as bands: choose hdu among 1, 2"),
        ([(PLANE, "SCI", {"FILTER": "g"})] * 2, "holds 2 images that are not named as bands"),
        ([(PLANE, "VAR", {}), (PLANE, "MASK", {})], r"no image HDU of flux \(only 1 \(VAR\), 2 \(MASK\)\)"),
        ([(PLANE, "g", {}), (PLANE[:10], "r", {})], r"a\.fits\[R\] is 10 x 20 pixels where .*\[G\] is 20 x 20"),
        (
            [(PLANE, "VIS", scale(0.1)), (PLANE, "NIR_Y", scale(0.3))],
            r"\[NIR_Y\] has 0\.3 arcsec pixels where",
        ),
        (
            [(PLANE, "g", {"BUNIT": "adu"}), (PLANE, "r", {"BUNIT": "electron"})],
            "are in adu, electron: give",
        ),
        ([(PLANE, "SCI", {}), (np.ones((5, 5), "i2"), "DQ", {})], r"a mask of shape \(5, 5\) for an image of 20 x 20"),
        ([(PLANE, "", {}), (PLANE, "g", {})], "holds 2 images that are not named as bands"),
        ([(PLANE, "SCI", {}), ((PLANE > -5) * 1, "MASK", {})], "masked in 100% of its pixels"),  # 1 for good
        ([(PLANE, "SCI", {}), (CENTRE * 32, "MASK", {})], "masked in 4% of its pixels, its centre too, by MASK"),
        ([(PLANE, "SCI", {}), (CENTRE * np.float32(32), "MASK", {})], "masked in 4% of its pixels, its centre too"),
        (
            [(PLANE, "SCI", {}), (CENTRE * 32 - np.eye(20, dtype="i4"), "MASK", {"BLANK": -1})],
            "masked in 8% of its pixels, its centre too, by MASK",
        ),
        (
            [(PLANE, "SCI", {}), ((PLANE > -5) * 6, "MASK", {})],
            "masked in 100% of its pixels, its centre too, by MASK, whose bits",
        ),
    ],
)
def test_images_that_are_no_cutout_are_refused(tmp_path, hdus, message):
    with pytest.raises(InputError, match=message):
        read_raw(write(tmp_path / "a.fits", *hdus))


def test_an_extver_is_masked_by_its_own_mask(tmp_path):
    masks = [np.zeros((20, 20), "i2") for _ in range(2)]
    masks[1][3, 4] = 4
    hdus = [(PLANE, "SCI", {"FILTER": "g"}), (masks[0], "DQ", {})]
    hdus += [(PLANE, "SCI", {"FILTER": "r", "EXTVER": 2}), (masks[1], "DQ", {"EXTVER": 2})]
    raw = read_raw(write(tmp_path / "a.fits", *hdus), hdu="SCI")
    assert raw.bands == ("g", "r")
    assert np.argwhere(np.isnan(raw.pixels)).tolist() == [[1, 3, 4]]


@pytest.mark.parametrize(
    ("name", "values", "header", "masked"),
    [
        ("MASK", {(3, 4): 1}, {}, 1),
        ("WEIGHT", {(3, 4): 0}, {}, 1),
        ("MASK", {(3, 4): 1 << 0, (5, 5): 1 << 5}, {"MP_BAD": 0, "MP_DETECTED": 5}, 1),  # objects are DETECTED
        ("MASK", {(3, 4): 1 << 8, (5, 5): 1 << 2}, {"MP_NO_DATA": 8, "MP_INTRP": 2}, 1),
        ("invvar", {(3, 4): 0}, {}, 1),
        ("WHT", {(3, 4): -1}, {}, 1),
        ("QUALITY", {(3, 4): 2}, {}, 1),
        ("", {(3, 4): 1 << 3, (10, 10): 1 << 12}, {"IMAGETYP": "MASKBITS"}, 1),  # Legacy Surveys: 12 is GALAXY
    ],
)
@pytest.mark.parametrize("form", ["i4", "f4", "blank"])  # BLANK makes floats of integers
def test_masks_and_weights_beside_an_image_mask_it(tmp_path, name, values, header, masked, form):
    mask = np.full((20, 20), name in ("WEIGHT", "WHT", "invvar"), "f4" if form == "f4" else "i4")
    for position, value in values.items():
        mask[position] = value
    if form == "blank":
        mask[0, 0], header, masked = -99, header | {"BLANK": -99}, masked + 1
    raw = read_raw(write(tmp_path / "a.fits", (CUBE, "IMAGE", {}), (mask, name, header)))
    assert np.isnan(raw.pixels[:, 3, 4]).all() and np.isnan(raw.pixels).sum() == 3 * masked


def test_a_mask_of_fractions_is_bad_where_it_is_not_0(tmp_path):
    mask = np.zeros((20, 20), "f4")
    mask[3, 4], mask[5, 5], mask[6, 6] = 0.5, np.nan, 1e30
    for header in ({}, {"MP_BAD": 0, "MP_DETECTED": 5}):
        raw = read_raw(write(tmp_path / f"{len(header)}.fits", (PLANE, "IMAGE", {}), (mask, "MASK", header)))
        np.testing.assert_array_equal(np.isnan(raw.pixels[0]), mask != 0)


def test_blank_integers_are_masked(tmp_path):
    data = np.arange(400, dtype="i2").reshape(20, 20)
    raw = read_raw(write(tmp_path / "a.fits", (data, "", {"BLANK": 7, "BUNIT": "adu"})))
    assert np.argwhere(np.isnan(raw.pixels)).tolist() == [[0, 0, 7]]
    assert raw.pixels[0, 0, 8] == 8


def test_a_named_file_and_its_neighbours_name_the_one_that_is_left(tmp_path):
    for band in "gri":
        write(tmp_path / f"x{band}.fits", (PLANE, "", {} if band == "i" else {"FILTER": band}))
    raw = read_raw_bands([tmp_path / f"x{band}.fits" for band in "gri"])
    assert raw.bands == ("g", "r", None)


def test_tiles_that_unpack_to_more_than_their_pixels_are_refused(tmp_path):
    fits.CompImageHDU(PLANE.astype("i4"), compression_type="GZIP_1", tile_shape=(20, 20)).writeto(tmp_path / "a.fits")
    read_raw(tmp_path / "a.fits")
    tile = np.empty(1, object)
    tile[0] = np.frombuffer(gzip.compress(bytes(10**6)), "u1")
    with fits.open(tmp_path / "a.fits", disable_image_compression=True) as hdus:
        table = fits.BinTableHDU.from_columns([fits.Column("COMPRESSED_DATA", "1PB()", array=tile)])
        table.header.update({key: value for key, value in hdus[1].header.items() if key.startswith("Z")})
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "b.fits")
    with pytest.raises(InputError, match=r"b\.fits has tiles that unpack to more than its pixels"):
        read_raw(tmp_path / "b.fits")


def test_files_of_two_objects_are_not_one_cutout(tmp_path):
    paths = [
        write(tmp_path / f"{band}.fits", (PLANE, "", {"FILTER": band, **scale(0.2, ra=ra)}))
        for band, ra in (("g", 10.0), ("r", 10.001))
    ]
    with pytest.raises(InputError, match=r"r\.fits is centred 3\.59 arcsec from .*g\.fits: give the bands"):
        read_raw_bands(paths)
