import pytest

from lens_ssl_hf.data.files.bands import band_name, band_order, bands_in_paths, is_known_band
from lens_ssl_hf.errors import InputError


@pytest.mark.parametrize(
    ("name", "usual"),
    {
        "HSC-G": "g",
        "HSC-R2": "r",
        "HSC-Y": "y",
        "SDSS_g": "g",
        "g DECam SDSS c0001 4720.0 1520.0": "g",
        "Y DECam c0005 10095.0 1130.0": "Y",
        "i.MP9702": "i",
        "g.00000": "g",
        "G": "g",
        "y": "y",
        "Y": "Y",
        "z": "z",
        "Z": "Z",
        "VISTA-Y": "Y",
        "NIR_Y": "NIR_Y",
        "NISP-Y": "NIR_Y",
        "OCAM_r_SDSS": "r",
        "DECam::g": "g",
        "SLOAN/SDSS.g": "g",
        "i_39": "i",
        "g_01": "g",
        "zr": "r",
        "g'": "g",
        "W-S-Z+": "z",
        "g_1": "g_1",
        "VIS": "VIS",
        "green": "green",
    }.items(),
)
def test_usual_names(name, usual):
    assert band_name(name) == usual


def test_only_names_of_bands_are_known():
    assert all(map(is_known_band, ("g", "HSC-I", "VIS", "NIR_Y", "F814W", "Ks")))
    assert not any(map(is_known_band, ("PRIMARY", "SCI", "IMAGE", "MASK", "OBJ17", "green", "")))


@pytest.mark.parametrize(
    ("stated", "wanted", "order"),
    [
        (["g", "r", "i"], ["i", "g"], [2, 0]),
        (["HSC-G", "HSC-R"], ["r", "g"], [1, 0]),
        (["y", "Y", "J"], ["Y", "y"], [1, 0]),
        (["g_1", "g_2"], ["g_2", "g_1"], [1, 0]),
        (["g", "r", None], ["i", "r", "g"], [2, 1, 0]),  # the one that is left over
        ([None, None, None], ["i", "r", "g"], [0, 1, 2]),
        (["red", "green", "blue"], ["i", "r", "g"], [0, 1, 2]),
        (["red", "green", "blue"], ["g", "r", "i"], [2, 1, 0]),
        (["red", "green", "blue"], ["r", "z", "g"], [1, 0, 2]),
        (["red", "green", "blue"], ["VIS", "NIR_Y", "NIR_H"], [2, 1, 0]),
        (["g", "r", "i"], ["red", "green", "blue"], [2, 1, 0]),
        (["red", "green", "blue"], ["b1", "b2", "b3"], [0, 1, 2]),
        (["red", "green", "blue"], ["blue", "green", "red"], [2, 1, 0]),
    ],
)
def test_bands_are_found(stated, wanted, order):
    assert band_order(stated, wanted, "a") == order


@pytest.mark.parametrize(
    ("stated", "wanted", "message"),
    [
        (["g", "r"], ["z"], "a has the bands g, r, but z are needed: give files with these bands"),
        (["g", "r", "Y"], ["y"], "a has the bands g, r, Y, but y are needed: bands that differ by case are different"),
        (
            ["g", None, None],
            ["g", "r", "i"],
            "a has the bands g, one without a name, one without a name, but .* header",
        ),
        (["g_1", "g_2"], ["g"], "a has the bands g_1, g_2, but g are needed"),
        (["r", None], ["g", "y"], "but g, y are needed"),
        ([None, None], ["g"], r"a has 2 bands, but 1 are needed \(g\)"),
        (["red", "green", "blue"], ["g", "r"], "a has the bands red, green, blue, but g, r are needed"),
    ],
)
def test_bands_that_cannot_be_told_apart_are_refused(stated, wanted, message):
    with pytest.raises(InputError, match=message):
        band_order(stated, wanted, "a")


@pytest.mark.parametrize(
    ("paths", "bands"),
    [
        (["i.fits", "r.fits", "g.fits"], ["i", "r", "g"]),
        (["7_HSC-Y.fits", "7_HSC-Z.fits"], ["HSC-Y", "HSC-Z"]),
        (["g/7.fits", "r/7.fits"], ["g", "r"]),
        (["a_i_g.fits", "a_i_r.fits"], ["g", "r"]),  # i is in both: it tells nothing apart
        (["1.fits", "2.fits"], None),
        (["g_1.fits", "g_2.fits"], None),
    ],
)
def test_names_of_files_name_the_bands_that_tell_them_apart(paths, bands):
    assert bands_in_paths(paths) == bands
