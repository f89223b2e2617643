"""A scored survey searched by example, for anomalies and by a map."""

import base64
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pytest
from astropy.io import fits
from browser import CHROMEDRIVER, CHROMIUM, open_browser
from PIL import Image
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, draw_map, find_anomalies, score, search
from lens_ssl_hf.commands import search as command
from lens_ssl_hf.evaluation.pictures import colour_image
from lens_ssl_hf.survey import manifest as manifests
from lens_ssl_hf.survey.embedding_map import _colours, _project
from lens_ssl_hf.survey.embeddings import SHRINKAGE, Whitening, open_embeddings, sample
from lens_ssl_hf.survey.proposals import unlike
from lens_ssl_hf.survey.search import DISLIKE, NEIGHBOUR

COUNT = 120
ODD = 77  # it looks like no other
PIXELS = np.random.default_rng(0).uniform(90, 110, (COUNT, 3, 40, 40)).astype("float32")
PIXELS[:, :, 14:26, 14:26] += np.random.default_rng(1).uniform(0, 140, (COUNT, 3, 1, 1)).astype("float32")
PIXELS[ODD, :, ::2] = 0
IDS = [f"</script>{i}" if i == 5 else f"object {i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The folder with a run, its input and the scores of shards of 50, which are never written to again."""
    folder = tmp_path_factory.mktemp("survey")
    datasets.disable_progress_bars()
    write_classifier_run(folder / "run")
    columns = {"id": IDS, "pixels": PIXELS.tolist(), "ra": np.arange(COUNT) * 1.0, "dec": np.zeros(COUNT)}
    parquet.write_table(pyarrow.table(columns), folder / "input.parquet")
    for name, options in (("scores", {"embeddings": True}), ("bare", {})):
        score(str(folder / "run"), folder / "input.parquet", folder / name, shard_size=50, **options)
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lens_ssl_hf.survey.listed.SHEET", 4)  # drawing more takes longer


def embeddings(survey):
    paths = sorted((survey / "scores").glob("*.parquet"))
    return np.array(pyarrow.concat_tables(map(parquet.read_table, paths))["embedding"].to_pylist())


def listed(folder):
    return parquet.read_table(f"{folder}/ranking.parquet").to_pydict()


def test_similar_objects_are_those_of_the_formula(survey):
    """Cosines in the metric of the inverse covariance, by another way than axes and scales."""
    deviations = embeddings(survey) - embeddings(survey).mean(axis=0)
    covariance = np.cov(deviations.T, bias=True)
    metric = np.linalg.inv(covariance + SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    units = deviations / np.sqrt(np.einsum("ni,ij,nj->n", deviations, metric, deviations))[:, None]
    liked, disliked = [3, 8], [40, 60]
    query = units[liked].mean(axis=0) - DISLIKE * units[disliked].mean(axis=0)
    expected = units @ metric @ query / np.sqrt(query @ metric @ query)
    expected[liked + disliked] = -2
    order = np.argsort(-expected)[:10]
    facts = search(survey / "scores", "out", [IDS[i] for i in liked], [IDS[i] for i in disliked], top=10)
    found = listed("out")
    assert found["id"] == [IDS[i] for i in order] and found["rank"] == list(range(1, 11))
    assert found["similarity"] == pytest.approx(expected[order], abs=1e-4)
    assert facts["like"] == [IDS[i] for i in liked] and json.loads(Path("out/ranking.json").read_text()) == facts
    assert {path.name for path in Path("out").iterdir()} == {
        "contact_sheet.png",
        "page.html",
        *[f"ranking.{suffix}" for suffix in ("csv", "fits", "json", "parquet", "vot")],
    }
    with open("out/ranking.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == found["id"]


def test_a_file_is_embedded_as_the_survey_was(survey, tmp_path):
    np.save("mine.npy", PIXELS[3])
    search(survey / "scores", "file", "mine.npy", top=5)
    search(survey / "scores", "id", IDS[3], top=4)
    of_file, of_id = listed("file"), listed("id")
    assert of_file["id"] == [IDS[3], *of_id["id"]] and of_file["similarity"][0] == pytest.approx(1, abs=1e-4)
    assert of_file["similarity"][1:] == pytest.approx(of_id["similarity"], abs=1e-3)


def test_what_is_at_the_place_of_a_given_object_is_left_out(survey):
    """Rows 3 and 60 are in different shards; row 8 has no position, and the others are degrees away."""
    shutil.copytree(survey / "scores", "scores")
    for path in Path("scores").glob("*.parquet"):
        table = parquet.read_table(path)
        ra = {IDS[60]: 3 + 0.4 / 3600, IDS[8]: None}
        found = [ra.get(name, at) for name, at in zip(table["id"].to_pylist(), table["ra"].to_pylist())]
        place = table.column_names.index("ra")
        parquet.write_table(table.set_column(place, "ra", pyarrow.array(found, pyarrow.float64())), path)
    for separation, missing in ((1.0, {3, 8, 20, 60}), (0.3, {3, 8, 20})):
        search("scores", f"out {separation}", [IDS[3], IDS[8]], IDS[20], top=COUNT, separation=separation)
        assert set(IDS) - set(listed(f"out {separation}")["id"]) == {IDS[i] for i in missing}
    with pytest.raises(InputError, match="every scored object of scores is given, or within 1e\\+06 arcsec of one"):
        search("scores", "out", [IDS[3], IDS[8]], separation=1e6)


def test_a_file_is_no_result_at_its_own_place_and_says_what_it_leaves_open(survey, caplog):
    """Planes without names are taken in the model's order, which may be another."""
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 20.5, "CRPIX2": 20.5, "CRVAL2": 0.0})
    header.update({"CD1_1": -0.168 / 3600, "CD2_2": 0.168 / 3600, "CRVAL1": 3.0, "CUNIT1": "deg", "CUNIT2": "deg"})
    fits.writeto("mine.fits", PIXELS[3].astype(">f4"), header)
    search(survey / "scores", "out", "mine.fits", top=COUNT)
    assert set(IDS) - set(listed("out")["id"]) == {IDS[3]}
    (told,) = [one for one in caplog.messages if "mine.fits" in one]
    assert told == "mine.fits without bands: taken as g r i; if that is wrong, write BANDS into the FITS header"


def test_what_varies_most_does_not_hide_the_classes():
    rng = np.random.default_rng(0)
    label = np.arange(600) % 2
    features = rng.normal(size=(600, 16))
    features[:, 0] += 3 * label
    features[:, -2:] *= 100
    whitened = Whitening.fit(features)(features)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    purity = []
    for one in (units, whitened):
        order = np.argsort(-(one @ one.T), axis=1)[:, 1:11]
        purity.append((label[order] == label[:, None]).mean())
    assert purity[0] < 0.55 and purity[1] > 0.7
    with pytest.raises(InputError, match="no two different embeddings"):
        Whitening.fit(np.ones((5, 3)))


def test_shards_of_flagged_rows_alone_have_nothing_to_compare(survey):
    shutil.copytree(survey / "scores", "scores")
    for path in Path("scores").glob("*.parquet"):
        table = parquet.read_table(path)
        place = table.column_names.index("score")
        parquet.write_table(table.set_column(place, "score", pyarrow.nulls(len(table), pyarrow.float64())), path)
    for use in (lambda: find_anomalies("scores", "out"), lambda: draw_map("scores", "out")):
        with pytest.raises(InputError, match="scores holds no scored cutout, only flagged ones"):
            use()


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_a_map_in_the_colours_of_texts(kind):
    colours, legend = _colours(pyarrow.chunked_array([["a", "b", "a"]], kind), "tile")
    assert colours == [legend["a"], legend["b"], legend["a"]] and colours[0] != colours[1]


@pytest.mark.parametrize("size", [40, COUNT])
def test_the_distance_is_that_to_other_objects(survey, size, monkeypatch):
    """Rows of the reference do not count themselves."""
    monkeypatch.setattr("lens_ssl_hf.survey.search.SAMPLE", size)
    facts = find_anomalies(survey / "scores", "out", top=COUNT)
    shards = open_embeddings(survey / "scores", manifests.read(survey / "scores"))
    reference = sample(shards, size, 0)["row"].to_numpy()
    distances = np.linalg.norm(embeddings(survey)[:, None] - embeddings(survey)[None, reference], axis=2)
    distances[reference, range(len(reference))] = np.inf
    expected = dict(zip(IDS, np.sort(distances, axis=1)[:, NEIGHBOUR - 1]))
    found = listed("out")
    assert found["id"][0] == IDS[ODD] and found["distance"] == sorted(found["distance"], reverse=True)
    assert found["distance"] == pytest.approx([expected[one] for one in found["id"]], abs=1e-3)
    assert facts["reference"] == len(set(reference)) == size


def test_a_forest_finds_the_odd_one(survey):
    find_anomalies(survey / "scores", "out", top=3, detector="isolation_forest")
    assert listed("out")["id"][0] == IDS[ODD]
    assert listed("out")["isolation"] == sorted(listed("out")["isolation"], reverse=True)


def page_data(folder):
    page = Path(folder, "map.html").read_text()
    assert page.count("</script>") == 2  # no id ends the script
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


@pytest.mark.parametrize("column", ["logit", "source", "ra"])
def test_a_map_shows_every_object_with_its_cutout(survey, column):
    draw_map(survey / "scores", "map", column)
    data = page_data("map")
    assert sorted(data["id"]) == sorted(IDS) and data["column"] == column
    place = data["id"].index(IDS[ODD])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["picture"][place]))))
    expected = colour_image(PIXELS[ODD, :, 4:36, 4:36], ["g", "r", "i"])
    assert np.abs(picture.astype(float) - expected).mean() < 12
    deviations = embeddings(survey) - embeddings(survey).mean(axis=0)
    first = np.linalg.svd(deviations, full_matrices=False)[0][:, 0]
    x = dict(zip(data["id"], data["x"]))
    assert abs(np.corrcoef(first, [x[one] for one in IDS])[0, 1]) > 0.999
    if column == "source":
        assert set(data["colour"]) == set(data["legend"]["names"].values()) and not data["legend"]["bar"]
    else:
        low, high = (float(one.split()[1]) for one in data["legend"]["ends"])
        values = [float(one) for one in data["value"]]
        assert [low, high] == pytest.approx(np.percentile(values, [1, 99]), rel=1e-3)
        assert len(set(data["colour"])) > 50 and not data["legend"]["names"]
        for colour, limit in zip(data["legend"]["bar"][:: len(data["legend"]["bar"]) - 1], (min, max)):
            assert data["colour"][values.index(limit(values))] == colour
    image = Image.open("map/map.png")
    assert image.width > 600 and np.asarray(image.convert("L")).std() > 5


def test_a_map_without_its_input_has_no_cutouts(survey, caplog, monkeypatch):
    source = survey / "input.parquet"
    source.rename(survey / "moved")
    try:
        draw_map(survey / "scores", "map")
    finally:
        (survey / "moved").rename(source)
    assert set(page_data("map")["picture"]) == {""} and "the page shows no cutouts" in caplog.text


@pytest.mark.slow
def test_a_click_on_the_map_shows_the_nearest_cutout(survey, tmp_path):
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no chromium and chromedriver: Debian's packages are chromium and chromium-driver")
    draw_map(survey / "scores", "map", "ra")
    with open_browser(tmp_path / "profile") as browser:
        browser.open(f"file://{tmp_path}/map/map.html")
        browser.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")  # before any click
        width, height = browser.run("return [canvas.width - 2 * margin, canvas.height - 2 * margin]")
        x, y = (np.array(page_data("map")[name]) - 0.5 for name in "xy")
        assert browser.run("return chosen") == np.hypot(width * x, height * y).argmin()
        browser.run(
            "const at = {clientX: left(7), clientY: top_(7)};"
            "canvas.dispatchEvent(new MouseEvent('click', {...at, bubbles: true}));"
        )
        data = page_data("map")
        assert browser.run("return document.getElementById('text').textContent") == (
            f"{data['id'][7]}: logit {data['logit'][7]:.2f}, ra {data['value'][7]}"
        )
        width, height = browser.run("return [bar.clientWidth, bar.clientHeight]")  # the element with this id
        assert width > 200 and height > 10 and browser.run("return legend.innerText").split("\n")[0] == "ra"
        assert browser.run("return bar.nextSibling.textContent") == "".join(data["legend"]["ends"])
        assert browser.wait("return document.querySelector('img').naturalWidth") == 32
        browser.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
        assert browser.run("return data.x[chosen]") > data["x"][7] or data["x"][7] == 1


def test_a_seed_is_of_any_length(survey, monkeypatch):
    """scikit-learn and UMAP take 32 bits of it."""
    find_anomalies(survey / "scores", "out", 3, "isolation_forest", seed=2**32)
    assert len(unlike(np.random.default_rng(0).normal(size=(9, 2)), 3, 2**32 + 5)) == 3
    umap = SimpleNamespace(UMAP=lambda metric, random_state: SimpleNamespace(fit_transform=lambda x: random_state))
    monkeypatch.setitem(sys.modules, "umap", umap)
    assert _project(np.eye(3), "umap", 2**32 + 5) == 5


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("bare --like object", "bare holds no embeddings: score again with --embeddings"),
        ("scores", "give one of like, anomalies and map, not none"),
        ("scores --map score --anomalies 5", "give one of like, anomalies and map, not anomalies and map"),
        ("scores --map score --unlike x", "unlike is given without like"),
        ("scores --like object_1", "holds no scored object object_1, and there is no such file"),
        ("scores --like bad.npy", r"bad\.npy"),
        ("scores --anomalies 0", "top is 0: give at least 1"),
        ("scores --anomalies 3 --seed -1", "seed is -1: give at least 0"),
        ("scores --map score --seed -1", "seed is -1: give at least 0"),
        ("scores --map colour", "the scores have no column 'colour' to colour by: choose from id, ra, dec"),
        ("scores --map id", "column 'id' has 120 different texts: choose a column of numbers"),
        ("scores --map score --projection umap", "umap-learn is not installed"),
        ("scores --map score --output full", "full exists already"),
    ],
)
def test_what_cannot_be_searched_ends_in_one_sentence(words, match, survey, monkeypatch, capsys):
    Path("full").mkdir()
    Path("full/file").touch()
    np.save("bad.npy", np.full((3, 40, 40), np.nan, "float32"))
    monkeypatch.setitem(sys.modules, "umap", None)
    scores, *rest = words.split()
    monkeypatch.setattr(sys, "argv", ["lens-ssl", str(survey / scores), "--output", "out", *rest])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and not Path("out").exists()
    assert re.search(match, capsys.readouterr().err.strip().splitlines()[-1])


def test_a_file_is_not_compared_by_another_model(survey, tmp_path):
    np.save("mine.npy", PIXELS[3])
    config = survey / "run" / "model" / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"zero_point": 27.0', '"zero_point": 26.0'))
    try:
        with pytest.raises(InputError, match=r"is not the model of the scores \(cutouts\): score again"):
            search(survey / "scores", "out", "mine.npy")
    finally:
        config.write_text(before)
