import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from lens_ssl_hf.data.files.readers import raw_from_array, read_raw
from lens_ssl_hf.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 14), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 14, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (12, 14), dtype=np.uint16)


def palette(grey):
    image = Image.fromarray(GREY // 64).convert("P")
    steps = [(v, v, v) if grey else (v, 255 - v, 0) for v in (0, 80, 160, 255)]
    image.putpalette([value for step in steps for value in step])
    return image


def with_alpha(mode, alpha):
    image = Image.fromarray(COLOUR if mode == "RGBA" else GREY)
    image.putalpha(Image.new("L", image.size, alpha))
    return image


@pytest.mark.parametrize(
    ("name", "image", "bands", "is_display", "values"),
    [
        ("a.png", Image.fromarray(GREY), 1, True, GREY),
        ("a.png", Image.fromarray(COLOUR), 3, True, COLOUR),
        ("a.png", Image.fromarray(DEEP), 1, False, DEEP),
        ("a.tif", Image.fromarray(DEEP), 1, False, DEEP),
        ("a.tif", Image.fromarray(GREY.astype("f4") / 7), 1, False, GREY.astype("f4") / 7),
        ("a.tif", Image.fromarray(DEEP.astype("i4") * 9), 1, False, DEEP.astype("i4") * 9),
        ("a.png", Image.fromarray(GREY > 99), 1, True, 255 * (GREY > 99)),
        ("a.png", palette(grey=True), 1, True, None),
        ("a.png", palette(grey=False), 3, True, None),
        ("a.png", with_alpha("RGBA", 255), 3, True, COLOUR),
        ("a.png", with_alpha("LA", 255), 1, True, GREY),
    ],
)
def test_pictures_are_read_whole(tmp_path, name, image, bands, is_display, values):
    image.save(tmp_path / name)
    for raw in (read_raw(tmp_path / name), raw_from_array(image, "a")):
        assert len(raw.pixels) == bands and raw.display is is_display
        assert raw.bands == (("red", "green", "blue") if bands == 3 else None)
        if values is not None:
            np.testing.assert_array_equal(raw.pixels, np.atleast_3d(values).transpose(2, 0, 1).astype("f4"))


def tiff(path, array, photometric=1, sample_format=1):
    """A TIFF that Pillow does not write itself."""
    tags, bits, samples = ImageFileDirectory_v2(), 8 * array.itemsize, array[0, 0].size
    data = array.tobytes()
    values = {256: 14, 257: 12, 258: (bits,) * samples, 259: 1, 262: photometric, 277: samples, 278: 12}
    for tag, value in {**values, 279: len(data), 284: 1, 339: (sample_format,) * samples, 273: 0}.items():
        tags[tag] = value
    with open(path, "wb") as stream:
        stream.write(b"II*\0" + (8).to_bytes(4, "little"))
        tags.save(stream)
        stream.write(data)


@pytest.mark.parametrize(
    ("name", "image", "options", "message"),
    [
        ("a.png", with_alpha("RGBA", 200), {}, "has transparent pixels: save it without transparency"),
        ("a.png", with_alpha("LA", 200), {}, "has transparent pixels"),
        ("a.png", Image.fromarray(GREY), {"transparency": int(GREY[0, 0])}, "has transparent pixels"),
        ("a.png", Image.fromarray(DEEP), {"transparency": int(DEEP[0, 0])}, "is a deep picture with transparency"),
        ("a.jpg", Image.fromarray(COLOUR).convert("CMYK"), {}, "is a picture of mode CMYK: save it as 8-bit RGB"),
        ("a.tif", Image.fromarray(COLOUR).convert("LAB"), {}, "is a picture of mode LAB"),
        ("a.tif", Image.fromarray(COLOUR), {"pages": [COLOUR]}, "has 2 pages that are not grey bands of one size"),
        ("a.tif", Image.fromarray(GREY), {"pages": [GREY[:6]]}, "has 2 pages that are not grey bands of one size"),
        ("a.tif", Image.fromarray(GREY), {"pages": [GREY] * 11}, "has more than 10 pages or frames"),
        ("a.png", Image.fromarray(GREY), {"pages": [GREY // 2]}, "has 2 pages or frames: save one cutout per file"),
    ],
)
def test_pictures_that_would_lose_something_are_refused(tmp_path, name, image, options, message):
    options = dict(options)
    if pages := options.pop("pages", None):
        options |= {"save_all": True, "append_images": [Image.fromarray(page) for page in pages]}
    image.save(tmp_path / name, **options)
    with pytest.raises(InputError, match=message):
        read_raw(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (np.stack([DEEP] * 3, axis=-1), (2, 1), "has 16 bits per colour, of which 8 would be read"),
        (DEEP, (0, 1), r"is a negative \(white is 0\) of 16 bits: save it with black as 0"),
        (DEEP.astype("u4") << 16, (1, 1), "holds unsigned 32-bit values: save it as float"),
        (GREY.view("i1"), (1, 2), "holds signed 8-bit values: save it as float"),
    ],
)
def test_tiffs_that_pillow_reads_wrongly_are_refused(tmp_path, array, kind, message):
    tiff(tmp_path / "a.tif", array, *kind)
    with pytest.raises(InputError, match=message):
        read_raw(tmp_path / "a.tif")


def test_grey_pages_of_a_tiff_are_bands(tmp_path):
    pages = [Image.fromarray(GREY.astype("f4") + band) for band in range(4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    raw = read_raw(tmp_path / "a.tif")
    np.testing.assert_array_equal(raw.pixels, np.stack([GREY + np.float32(band) for band in range(4)]))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_turned_as_their_exif_says(tmp_path, suffix):
    image = Image.fromarray(np.kron(GREY, np.ones((8, 8), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    raw = read_raw(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(raw.pixels[0], np.rot90(np.asarray(image), -1), atol=8)


def test_turned_tiffs_are_refused_where_pillow_mixes_up_their_rows(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "a.tif", exif=exif)
    with pytest.raises(InputError, match="is turned by its orientation tag: save it upright"):
        read_raw(tmp_path / "a.tif")
