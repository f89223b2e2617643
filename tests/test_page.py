"""The grading page: what is in it, and that people can grade with it; known lenses in a ranking."""

import base64
import contextlib
import csv
import hashlib
import io
import json
import re
import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from astropy.coordinates import SkyCoord
from browser import CHROMEDRIVER, CHROMIUM, open_browser, wait
from PIL import Image
from pyarrow import parquet
from scipy.stats import binomtest
from tiny_runs import FLUX_STRETCH as STRETCH

from lens_ssl_hf import InputError, rank, score
from lens_ssl_hf.commands import rank as command
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.evaluation import plots
from lens_ssl_hf.evaluation.pictures import colour_image
from lens_ssl_hf.quoting import in_spreadsheet
from lens_ssl_hf.survey.crops import Asked, Preparation
from lens_ssl_hf.survey.grades import read_grades, votes_by_object
from lens_ssl_hf.survey.inputs import Options, open_input
from lens_ssl_hf.survey.known import completeness
from lens_ssl_hf.survey.page import curves, encode, write_page

pytestmark = pytest.mark.usefixtures("in_tmp_path")

COUNT, SIZE, SIDE = 60, 32, 45  # the model sees the middle 32 of 45 pixels
ENTER, ESCAPE, CONTROL, SHIFT, LEFT, RIGHT = "\ue007", "\ue00c", "\ue009", "\ue008", "\ue012", "\ue014"
BANDS = ["g", "r", "i"]
NASTY = [
    '</script><script>document.title = "x"</script>',
    'a,"b"',
    "=1+1",
    "<!--",
    "x\ny z",
    "é\u2028&amp;",
    "__proto__",
]


EMPTY = pyarrow.table({name: [] for name in "id ra dec sample inclusion_probability score logit rank viewer".split()})


def make_flux():
    """Noise with an object of another brightness in the middle of each."""
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(COUNT, 3, SIDE, SIDE)).astype("float32")
    flux[:, :, 20:25, 20:25] += rng.uniform(5, 60, (COUNT, 3, 1, 1))
    return flux


def write_scores(run, ids, flux=None, **columns):
    """A survey of two files with row groups of 7, and its scores in shards of 17."""
    table = pyarrow.table({"id": ids, "pixels": (make_flux() if flux is None else flux).tolist(), **columns})
    Path("shards").mkdir()
    for i in range(2):
        parquet.write_table(table.slice(i * COUNT // 2, COUNT // 2), f"shards/{i}.parquet", row_group_size=7)
    score(run, "shards", "scores", shard_size=17)


def read_page(path="ranking/page.html"):
    return json.loads(re.search(r'id="data">(.*?)</script>', Path(path).read_text(), re.DOTALL)[1])


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(float)


def test_the_page_holds_what_is_listed_with_the_pictures_that_the_model_sees(run):
    ids = [2**60 + i for i in range(COUNT)]
    ra = [None, *np.linspace(0, 300, COUNT - 1)]
    write_scores(run, ids, ra=ra, dec=pyarrow.array([None, *[-1.5] * (COUNT - 1)]))
    rank("scores", "ranking", top=20, audit=15, seed=2**32 + 3)  # of which the page's order takes 32 bits
    page, table = read_page(), parquet.read_table("ranking/ranking.parquet")
    assert page["rows"]["id"] == [str(one) for one in table["id"].to_pylist()]
    for name in ("ra", "dec", "sample", "inclusion_probability", "score", "logit", "rank", "viewer"):
        assert page["rows"][name] == table[name].to_pylist()
    assert (page["seed"], page["size"], page["has_field"], page["rows"]["known"]) == (3, SIZE, True, None)
    display = Stretch.from_dict(STRETCH).apply(make_flux())
    for name, text in zip(page["rows"]["id"], page["rows"]["picture"]):
        expected = colour_image(display[ids.index(int(name))], BANDS).astype(float)
        # 44 of 45 pixels: the model sees 32 from the 7th on, and they have to be in the middle
        assert picture(text).shape == (44, 44, 3)
        assert (
            np.abs(picture(text) - expected[:44, :44]).mean()
            < 6
            < 10
            < np.abs(picture(text) - expected[1:, :44]).mean()
        )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_reaches_no_network_and_runs_no_code_but_its_own(run):
    write_scores(run, [*NASTY, *map(str, range(len(NASTY), COUNT))])
    rank("scores", "ranking", top=COUNT)
    text = Path("ranking/page.html").read_text()
    parser = Tags()
    parser.feed(text)
    assert [tag for tag, _ in parser.tags if tag in ("script", "style")] == ["style", "script", "script"]
    assert not [one for _, one in parser.tags if {"src", "href", "style", "onclick"} & set(one)]
    assert set(read_page()["rows"]["id"]) >= set(NASTY)
    (policy,) = [one["content"] for _, one in parser.tags if one.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert (
        rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and rules["img-src"] == "data:"
    )
    for name, content in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        digest = hashlib.sha256(re.search(content, text, re.DOTALL)[1].encode()).digest()
        assert rules[f"{name}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_stretches_are_those_of_the_flux():
    shown = {one["name"]: np.array(one["table"]) for one in curves({"bands": BANDS, "stretch": STRETCH}, 3)}
    assert (shown["model"] == np.arange(256)).all()
    for channel, band in enumerate((2, 1, 0)):  # i r g
        black, white, softening = (STRETCH[name][band] for name in ("black", "white", "softening"))
        low, high = np.arcsinh(black / softening), np.arcsinh(white / softening)
        flux = softening * np.sinh(low + np.arange(256) / 255 * (high - low))
        assert np.abs(shown["linear"][channel] - 255 * (flux - black) / (white - black)).max() < 0.6
    assert (shown["faint"][:, 60] > 90).all() and (shown["faint"] + shown["faint, negative"] == 255).mean() > 0.9
    for bands in (1, 2, 5):
        pictures = curves({"stretch": {"kind": "none"}}, bands)
        assert all(np.shape(one["table"]) == (3, 256) and np.ptp(one["table"]) == 255 for one in pictures)


@pytest.mark.parametrize(
    ("bands", "text"),
    [
        (["VIS", "NIR_Y", "NIR_H"], " Bands: VIS, NIR_Y, NIR_H; NIR_H is red, VIS blue."),
        (["g", "r", "i", "z"], " Bands: g, r, i, z; i is red, g blue."),
        (["F606W", "F814W"], " Bands: F606W, F814W; F606W is red, F814W blue."),
        (["g"], " Bands: g."),
        (None, ""),
    ],
)
def test_the_page_says_which_band_is_red(bands, text):
    cutouts = {"bands": bands, "stretch": {"kind": "none"}}
    write_page(EMPTY, [], Preparation(cutouts, len(bands or "irg"), SIZE), 0, Path("page.html"))
    assert read_page("page.html")["about"] == f"The model sees 32 pixels a side.{text}"


def test_rows_that_are_picked_are_those_of_batches(run):
    write_scores(run, list(range(COUNT)))
    np.save("stack.npy", make_flux())
    asked = Asked([Preparation({"bands": BANDS, "stretch": STRETCH}, 3, SIZE)], side=40)
    wanted = [0, 3, 6, 7, 29, 30, 31, 44, 45, 59]
    for name in ("shards", "stack.npy"):
        source = open_input(name, Options(), BANDS)
        every = [crops[0] for batch in source.batches(0, COUNT, asked, 13) for crops in batch.crops]
        picked = [crops[0] for crops in source.pick(wanted, asked)]
        assert np.shape(picked) == (10, 3, 40, 40) and (np.array(picked) == np.array(every)[wanted]).all()


def test_captions_tell_apart_what_rounds_to_a_score_of_1(run, monkeypatch):
    save, figures = plots.save_figure, []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    write_scores(run, list(range(COUNT)), 30 * make_flux())
    rank("scores", "ranking", top=12)
    logits = parquet.read_table("ranking/ranking.parquet")["logit"].to_pylist()
    captions = [axes.get_xlabel() for axes in figures[0].axes]
    assert captions == [f"{logit:.2f}\nrank {i}" for i, logit in enumerate(logits, start=1)]


def write_earlier(ids):
    """Grades of an earlier ranking by two people, in the form that the page exports, and by one without a name."""
    time = "2026-01-02T03:04:05.678Z"
    lines = ["id,grade,grader,time", *(f"{one},A,Ada,{time}" for one in ids[:3]), f"{ids[0]},x,Bob,{time}"]
    Path("page.csv").write_text("\n".join([*lines, f"elsewhere,B,Ada,{time}"]))
    Path("mine.csv").write_text(f"id,grade,time\n{ids[4]},lens,{time}\n{ids[5]},B,{time}\n")
    return ["page.csv", "mine.csv"]


def test_a_second_ranking_knows_the_grades_of_the_first(run, monkeypatch, capsys):
    write_scores(run, [f"o{i}" for i in range(COUNT)])
    rank("scores", "first", top=10, audit=5)
    ids = parquet.read_table("first/ranking.parquet")["id"].to_pylist()
    line = "lens-ssl scores --output second --top 10 --audit 5 --graded".split()
    monkeypatch.setattr("sys.argv", [*line, *write_earlier(ids)])
    command.main()
    assert "5 of the listed rows are graded already" in capsys.readouterr().out
    table = parquet.read_table("second/ranking.parquet").to_pydict()
    assert table["id"] == ids and table["grade"] == ["A X", "A", "A", None, "lens", "B", *[None] * 9]
    page, one = read_page("second/page.html"), {"grade": "A", "time": "2026-01-02T03:04:05.678Z"}
    assert page["graded"] == {"Ada": dict.fromkeys(ids[:3], one), "Bob": {ids[0]: one | {"grade": "X"}}}
    assert "mine.csv" not in Path("second/page.html").read_text()  # the page goes to others
    assert read_page("first/page.html")["graded"] == {}


def test_a_long_list_has_no_page(run, monkeypatch, caplog):
    write_scores(run, list(range(COUNT)))
    monkeypatch.setattr("lens_ssl_hf.survey.listed.LIMIT", 30)
    rank("scores", "ranking", top=25, audit=6)
    assert "no grading page of 31 rows is written: it holds 30 at most, lower top or audit" in caplog.text
    assert not Path("ranking/page.html").exists() and Path("ranking/contact_sheet.png").exists()


def write_positions(run):
    """Pairs of rows 0.4 arcsec apart, many of equal scores; and a table of known lenses beside some."""
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, COUNT), rng.uniform(-60, 60, COUNT)
    ra[1::2], dec[1::2] = ra[::2], dec[::2] + 0.4 / 3600
    write_scores(run, [f"o{i}" for i in range(COUNT)], make_flux()[np.minimum(np.arange(COUNT), 20)], ra=ra, dec=dec)
    with open("known.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Name", "RA", "Dec"])
        writer.writerows([f"L{i}", ra[i], dec[i] - 0.3 / 3600] for i in range(0, 32, 4))
        writer.writerow(["none here", 10, 80])
        writer.writerow(["", ra[50], dec[50]])
        writer.writerow(["nowhere", "", ""])
    return SkyCoord(ra, dec, unit="deg")


def test_known_lenses_are_found_with_their_ranks(run):
    places = write_positions(run)
    facts = rank("scores", "ranking", top=10, audit=COUNT, known="known.csv", separation=1.0)
    assert facts["known"] == {"table": "known.csv", "lenses": 10, "merged": 0, "scored": 9}
    scores = pyarrow.concat_tables([parquet.read_table(path) for path in sorted(Path("scores").glob("*.parquet"))])
    order = sorted(range(COUNT), key=lambda i: (-scores["logit"][i].as_py(), i))
    assert len(set(scores["logit"].to_pylist())) == 21
    with open("known.csv", newline="") as file:
        lenses = [line for line in csv.DictReader(file) if line["RA"]]
    expected = {}
    for number, lens in enumerate(lenses):
        place = SkyCoord(float(lens["RA"]), float(lens["Dec"]), unit="deg")
        rows = np.flatnonzero(place.separation(places).arcsec <= 1)
        if len(rows):
            best = min(rows, key=order.index)
            expected[lens["Name"] or str(number + 1)] = (f"o{best}", order.index(best) + 1)
    with open("ranking/known.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert {line["name"]: (line["id"], int(line["rank"])) for line in found} == expected
    assert [int(line["rank"]) for line in found] == sorted(int(line["rank"]) for line in found)
    listed = parquet.read_table("ranking/ranking.parquet").to_pylist()
    for row in listed:
        number = int(row["id"][1:]) // 2 * 2
        assert row["known"] == ("10" if number == 50 else f"L{number}" if number % 4 == 0 and number < 32 else None)
    assert read_page()["rows"]["known"] == [row["known"] for row in listed]
    assert Image.open("ranking/known.png").width > 500


def test_a_lens_that_the_table_names_several_times_counts_once(run, monkeypatch, capsys):
    """Its rows are 0.8 arcsec apart, one behind the other; objects are at the last row, beyond it, and elsewhere."""
    steps = [1.6, 2.4, 3600, 7200]
    dec = [step / 3600 for step in steps] + [50.0] * (COUNT - len(steps))
    write_scores(run, [f"o{i}" for i in range(COUNT)], ra=[10.0] * COUNT, dec=dec)
    rows = [("first", 0), ("other", 3600), ("again", 0.8), ("third", 1.6), ("unseen", 9000), ("twice", 9000.5)]
    Path("t.csv").write_text("name,ra,dec\n" + "".join(f"{name},10,{step / 3600}\n" for name, step in rows))
    monkeypatch.setattr("sys.argv", "lens-ssl scores --output ranking --top 9 --known t.csv".split())
    command.main()
    said = "2 of 3 known lenses were scored (3 further rows of the table are at their places)\n"
    assert said in capsys.readouterr().out
    facts = json.loads(Path("ranking/ranking.json").read_text())
    assert facts["known"] == {"table": "t.csv", "lenses": 3, "merged": 3, "scored": 2}
    found = list(csv.DictReader(Path("ranking/known.csv").read_text().splitlines()))
    assert {line["name"]: float(line["dec"]) for line in found} == {"first": 0, "other": 1}
    listed = parquet.read_table("ranking/ranking.parquet").to_pylist()
    assert {row["id"]: row["known"] for row in listed if row["known"]}.items() >= {"o2": "other"}.items()
    assert {row["known"] for row in listed if row["id"] in ("o0", "o1")} == {"first"}


def test_completeness_has_binomial_intervals():
    steps, shares, low, high = completeness(np.array([1, 5, 100]), 1000)
    assert steps.tolist() == [1, 1, 5, 100, 1000] and shares * 3 == pytest.approx([1, 1, 2, 3, 3])
    for share, *interval in zip(shares, low, high):
        assert interval == pytest.approx(list(binomtest(round(3 * share), 3).proportion_ci(method="wilson")), abs=1e-6)
    assert completeness(np.array([7]), 9)[1].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        ("name,x,y\na,1,2\n", {}, r"t.csv has no columns ra and dec \(it has name, x, y\)"),
        ("ra,dec\n1,95\n", {}, r"t.csv, row 1: '95' in column 'dec' is no dec in degrees"),
        ("ra,dec\n,\n", {}, "t.csv holds no position"),
        ("ra,dec\n1,2\n", {"separation": 0}, "separation is 0: give one within which"),
        ("ra,dec\n1,2\n", {"known": "lenscat"}, r"lenscat is not installed: pip install 'lens-ssl-hf\[survey\]'"),
    ],
)
def test_known_lenses_that_cannot_be_used_end_in_one_sentence(content, options, match, run, monkeypatch):
    write_scores(run, list(range(COUNT)))
    Path("t.csv").write_text(content)
    if "known" in options:
        monkeypatch.setattr("sys.path", [])
    with pytest.raises(InputError, match=match):
        rank("scores", "ranking", **{"known": "t.csv", **options})
    assert not Path("ranking").exists()


def test_known_lenses_elsewhere_are_no_error(run, caplog):
    write_scores(run, list(range(COUNT)), ra=[1.0] * COUNT, dec=[1.0] * COUNT)
    Path("t.csv").write_text("ra,dec\n200,2\n")
    rank("scores", "ranking", known="t.csv")
    assert "no scored row is within 1 arcsec of a known lens" in caplog.text
    assert Path("ranking/known.csv").read_text() == "name,ra,dec,id,score,rank\n"


def test_of_lenscat_the_confident_lenses_are_taken(run, monkeypatch, tmp_path):
    """Lines of the package's table, of its version 1.1.3, where the package has it."""
    write_scores(run, list(range(COUNT)), ra=[2.83435] * COUNT, dec=[-8.7643] * COUNT)
    (tmp_path / "lenscat" / "data").mkdir(parents=True)
    (tmp_path / "lenscat" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "lenscat" / "data" / "catalog.csv").write_text(
        "name,RA [deg],DEC [deg],zlens,type,grading,ref\n"
        "J0011-0845,2.83435,-8.7643,-,galaxy,confident,https://x\nA,2.83435,-8.7643,-,galaxy,probable,https://x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    counts = {"lenses": 1, "merged": 0, "scored": 1}
    assert rank("scores", "ranking", known="lenscat")["known"] == {"table": "lenscat", **counts}


@pytest.fixture(scope="module")
def ranking(run, tmp_path_factory):
    """The page of 30 candidates and 20 of the rest, some with ids that could break it; and its rows."""
    folder = tmp_path_factory.mktemp("ranking")
    with contextlib.chdir(folder):
        write_scores(run, [*NASTY, *map(str, range(2**60, 2**60 + COUNT - len(NASTY)))])
        rank("scores", "ranking", top=30, audit=20)
        return folder / "ranking" / "page.html", read_page()["rows"]


@pytest.fixture
def page(tmp_path):
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no chromium and chromedriver: Debian's packages are chromium and chromium-driver")
    (tmp_path / "downloads").mkdir()
    with open_browser(tmp_path / "profile", (1280, 720), tmp_path / "downloads") as page:
        yield page


def write_made(path, pictures, seed=0):
    """A page of rows that no survey has."""
    count = len(pictures)
    columns = {"id": list(range(count)), "ra": [1.5] * count, "dec": [2.5] * count, "sample": ["top"] * count}
    columns |= {"inclusion_probability": [1.0] * count, "rank": list(range(count)), "viewer": ["https://x"] * count}
    columns |= {name: [0.5] * count for name in ("score", "logit")}
    preparation = Preparation({"bands": BANDS, "stretch": STRETCH, "pixel_scale": 0.2}, 3, 64)
    write_page(pyarrow.table(columns), pictures, preparation, seed, path)
    return path


def start(page, path, grader="Ada", seed=None):
    """The order that a grader gets who opens the page."""
    page.open(path.as_uri())
    page.wait("return document.getElementById('start').open")
    page.run("document.getElementById('grader').select()")
    page.press(*grader)
    if seed is not None:
        page.run("document.getElementById('seed').value = arguments[0]", seed)
    page.press(ENTER)
    return page.wait("return state.order.length && state.order")


def text(page, name):
    return page.run("return document.getElementById(arguments[0]).textContent", name)


def graded(page, order):
    """What is graded, by the place in the order."""
    grades = page.run("return [...state.grades].map(([row, one]) => [row, one.grade])")
    return {order.index(row): grade for row, grade in grades}


@pytest.mark.slow
def test_one_by_one_with_keys(ranking, page):
    path, rows = ranking
    order = start(page, path)
    assert sorted(order) == list(range(50)) != order and {rows["sample"][i] for i in order[:20]} == {"top", "audit"}
    width = "document.getElementById('large').firstElementChild.width"
    page.wait(f"return {width} == 32")
    assert "Score" not in text(page, "facts")
    page.press("a", "b", "x", "c")
    assert graded(page, order) == {0: "A", 1: "B", 2: "X", 3: "C"} and page.run("return state.at") == 4
    assert text(page, "counts") == "4 of 50 graded (A 1, B 1, C 1, X 1)"
    page.press("u", CONTROL + "z")
    assert graded(page, order) == {0: "A", 1: "B"} and page.run("return state.at") == 2
    page.press("x", LEFT, LEFT, "c", "n", "s", "f", "i")  # the second again; then on to the next ungraded
    assert graded(page, order) == {0: "A", 1: "C", 2: "X"}
    assert page.run("return [state.at, state.curve, state.wide]") == [3, 1, True]
    page.wait(f"return {width} == 44")
    assert f"logit {rows['logit'][order[3]]:.2f}Listed" in text(page, "facts")
    page.press("?", "a", ESCAPE, "b")
    assert graded(page, order) == {0: "A", 1: "C", 2: "X", 3: "B"}


@pytest.mark.slow
def test_mosaic_with_clicks_and_keys(ranking, page):
    order = start(page, ranking[0])
    page.press("m")
    page.wait("return [...document.querySelectorAll('#cells canvas')].filter((one) => one.width == 32).length == 50")
    for i, held in ((0, ""), (1, SHIFT), (2, ""), (2, ""), (3, "")):
        page.click(f"#cells button:nth-child({i + 1})", held)
    page.press("a")  # the one under the pointer
    assert graded(page, order) == {0: "B", 1: "C", 3: "A"}
    badges = page.run("return [...document.querySelectorAll('#cells b')].map((one) => one.textContent)")
    assert badges[:5] == ["B", "C", "", "A", ""]
    page.press("r")
    assert text(page, "counts") == "50 of 50 graded (A 1, B 1, C 1, X 47)"
    page.press("u", "u", "m")
    assert graded(page, order) == {0: "B", 1: "C", 3: "B"} and page.run("return state.at") == 3


def point(page, css):
    """The pointer comes to rest in the middle of what `css` finds."""
    box = "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
    x, y = page.run(f"{box} return [box.x + box.width / 2, box.y + box.height / 2].map(Math.round)", css)
    move = {"type": "pointerMove", "x": x, "y": y}
    page._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})


@pytest.mark.slow
def test_keys_grade_what_is_under_a_pointer_at_rest(page, tmp_path):
    """No event says that the page has turned below it."""
    order = start(page, write_made(tmp_path / "page.html", [None] * 250))
    page.press("m")
    point(page, "#cells button:nth-child(3)")
    size = page.run("return document.querySelectorAll('#cells button').length")
    page.press("r", "a")
    assert graded(page, order) == {**dict.fromkeys(range(size), "X"), size + 2: "A"}
    page.press(LEFT, "b")
    assert graded(page, order)[2] == "B"
    page.click("#cells button:nth-child(3)")
    page.run("state.order.length = perPage() + grid().columns - 2")  # one line, in the middle: its cells are elsewhere
    page.press(RIGHT, "c")
    assert graded(page, order)[size + 1] == "C"
    page.press("m")
    assert page.run("return state.at") == size + 1


@pytest.mark.slow
def test_a_page_of_a_long_seed_starts_with_the_order_that_it_shows(page, tmp_path):
    path = write_made(tmp_path / "page.html", [None] * 50, seed=2**32 + 5)
    order = start(page, path)
    assert "random order of seed 5" in text(page, "about") and start(page, path, "Bob", seed=5) == order


@pytest.mark.slow
def test_grades_survive_a_reload_and_graders_and_seeds_are_told_apart(ranking, page, tmp_path):
    path, _ = ranking
    order = start(page, path)
    page.press("a", "b", "b")
    assert start(page, path) == order and graded(page, order) == {0: "A", 1: "B", 2: "B"}
    assert page.run("return state.at") == 3
    other = start(page, path, "Bob", seed=1)
    assert other != order and graded(page, other) == {}
    page.press("x")
    assert start(page, path, "Bob") == other and graded(page, other) == {0: "X"}
    with open_browser(tmp_path / "elsewhere") as elsewhere:
        assert start(elsewhere, path, "Eve") == order and start(elsewhere, path, "Bob", seed=1) == other


@pytest.mark.slow
def test_what_is_exported_is_read_by_others_and_imported_elsewhere(ranking, page, tmp_path):
    path, rows = ranking
    order, expected = start(page, path, 'Ada, "A"'), {}
    for row in [i for i, name in enumerate(rows["id"]) if name in NASTY or i < 12]:
        page.run("move(state.order.indexOf(arguments[0]))", row)
        assert page.run("return document.querySelector('#facts dd:nth-of-type(2)').textContent") == rows["id"][row]
        expected[rows["id"][row]] = "ABCX"[row % 4]
        page.press("abcx"[row % 4])
    assert page.run("return document.title") == "Grade 50 candidates" and len(set(NASTY) & set(expected)) > 3
    page.click("#export")
    file = tmp_path / "downloads" / "grades-Ada_A_.csv"
    wait(file.exists, 20, "the file")
    with open(file, newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == "id,ra,dec,sample,inclusion_probability,grade,grader,time".split(",")
    written = {str(in_spreadsheet(name)): name for name in expected}
    assert {written[one["id"]]: one["grade"] for one in found} == expected
    for one in found:
        row = rows["id"].index(written[one["id"]])
        assert one["sample"] == rows["sample"][row] and one["grader"] == 'Ada, "A"' and one["ra"] == ""
        assert float(one["inclusion_probability"]) == rows["inclusion_probability"][row]
        assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(one["time"]) < timedelta(minutes=5)
    votes = votes_by_object(read_grades([file]), rows["id"], "the ranking")
    assert {name: bool(vote) for name, vote in votes.iloc[:, 0].items()} == {k: v in "AB" for k, v in expected.items()}
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    bad = tmp_path / "bad.csv"
    bad.write_text("id,grade,grader,time\nx,Q,Ada,2026-01-01T00:00:00Z\n")
    with open_browser(tmp_path / "elsewhere") as elsewhere:
        assert start(elsewhere, path, 'Ada, "A"') == order and graded(elsewhere, order) == {}
        elsewhere.choose_files("#file", file)
        elsewhere.wait("return state.grades.size")
        assert elsewhere.run("return writeCsv()").encode() == file.read_bytes()
        elsewhere.choose_files("#file", bad)
        elsewhere.wait("return document.getElementById('message').textContent.startsWith('bad.csv is not')")
        assert text(elsewhere, "message") == "bad.csv is not imported: row 1 has the grade 'Q': use A, B, C or X."
        start(elsewhere, path, "Bob")
        elsewhere.choose_files("#file", file)
        elsewhere.wait("return !document.getElementById('message').hidden")
        assert f"0 of {len(found)} grades" in text(elsewhere, "message") and graded(elsewhere, order) == {}


@pytest.mark.slow
def test_who_graded_before_goes_on_with_the_rest(run, page):
    write_scores(run, [f"o{i}" for i in range(COUNT)])
    rank("scores", "first", top=10)
    ids = parquet.read_table("first/ranking.parquet")["id"].to_pylist()
    rank("scores", "second", top=10, graded=write_earlier(ids))
    path = Path("second/page.html").absolute()
    order = start(page, path)
    assert {order[place]: grade for place, grade in graded(page, order).items()} == {0: "A", 1: "A", 2: "A"}
    assert order[page.run("return state.at")] > 2 and page.run("return writeCsv()").count("2026-01-02T03:04:05") == 3
    page.run("move(state.order.indexOf(0))")
    page.press("c")
    assert graded(page, start(page, path))[order.index(0)] == "C"
    page.run("change([[1, undefined]])")  # taken back, though it came with the page
    kept = {order[place]: grade for place, grade in graded(page, start(page, path)).items()}
    assert kept == {0: "C", 2: "A"}
    older = {ids[0]: {"grade": "X", "time": "2025-01-01T00:00:00Z"}, ids[5]: {"grade": "B", "time": "2025-01-01"}}
    page.run("localStorage.setItem(keyOf('Ada'), JSON.stringify({seed: state.seed, grades: arguments[0]}))", older)
    kept = {order[place]: grade for place, grade in graded(page, start(page, path)).items()}
    assert kept == {0: "A", 1: "A", 2: "A", 5: "B"}  # of an older page: what came with this one is newer
    lines = [f"{ids[5]},{grade},Ada,{year}-02-01T00:00:00Z" for grade, year in (("X", 2026), ("C", 2024), ("A", 2025))]
    Path("exports.csv").write_text("\n".join(["id,grade,grader,time", *lines]))  # put together, newest first
    page.choose_files("#file", Path("exports.csv").absolute())
    page.wait("return document.getElementById('message').textContent.includes('exports.csv')")
    assert text(page, "message").startswith("1 of 3 grades of exports.csv are imported; 2 are not newer than others")
    assert graded(page, order)[order.index(5)] == "X"
    assert list(graded(page, start(page, path, "Bob")).values()) == ["X"]
    assert not graded(page, start(page, path, "Eve"))
    page.open(path.as_uri())
    page.run("document.getElementById('grader').select()")
    page.press(*"Al")
    assert text(page, "known-grader") == "Here are earlier grades by Ada, Bob."


@pytest.mark.slow
def test_a_browser_that_keeps_no_grades_says_so(ranking, page):
    start(page, ranking[0])
    page.press("x", "a")
    assert page.run("return document.getElementById('warning').hidden")
    page.run(
        "for (let fill = 'x'.repeat(2 ** 20), i = 0; fill; )"
        "  try { localStorage.setItem(i++, fill) } catch { fill = fill.slice(0, fill.length / 2) }"
    )
    page.press(*"xxx")
    assert "This browser does not keep your grades (QuotaExceededError" in text(page, "warning")
    assert not page.run("return document.getElementById('warning').hidden")


@pytest.mark.slow
def test_two_thousand_candidates_load_in_seconds(page, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [encode(rng.normal(60, 15, (3, 96, 96)), BANDS) for _ in range(20)] * 100
    path = write_made(tmp_path / "page.html", pictures)
    assert path.stat().st_size < 40e6
    before = time.monotonic()
    start(page, path)
    page.wait("return document.getElementById('large').firstElementChild.width == 64")
    assert time.monotonic() - before < 10  # 1 on an idle machine
    page.press("m")
    page.wait("return [...document.querySelectorAll('#cells canvas')].every((one) => one.width == 64)")
    assert page.run("return document.querySelectorAll('#cells canvas').length") >= 70
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
