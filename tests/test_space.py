"""The Space: what is told of a cutout is right, and the page works in a browser from the folder that is published."""

import asyncio
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from browser import CHROMEDRIVER, CHROMIUM, open_browser, wait
from conftest import make_split
from huggingface_hub import SpaceCard
from PIL import Image
from scipy.stats import binomtest
from tiny_runs import cutouts, write_classifier_run

from lens_ssl_hf import InputError, predict
from lens_ssl_hf.data.stretch import Stretch
from lens_ssl_hf.data.tensors import CutoutTensors
from lens_ssl_hf.evaluation.metrics import reliability
from lens_ssl_hf.quoting import in_markdown
from lens_ssl_hf.space.build import _card, build_space
from lens_ssl_hf.space.finder import Finder, at_prevalence, calibration, wilson_interval
from lens_ssl_hf.space.limits import MAX_BYTES, LimitedUploads
from lens_ssl_hf.space.page import calibration_sentence, introduction, overlay, render

ASINH = {"kind": "asinh", "black": [-2.0] * 5, "white": [100.0] * 5, "softening": [5.0] * 5}


def make_data(bands=3):
    info = {"name": "toy", "simulated": False, "fingerprint": "0123456789abcdef", "source": "folder", "size": 40}
    info |= cutouts(bands)
    return {"train": make_split(24, 0, bands), "test": make_split(12, 1, bands)}, info


def make_space(folder, bands=3, stretch=None):
    """A Space of a tiny run, whose training data had this stretch."""
    run = write_classifier_run(folder / "run", bands)
    if stretch:
        config = json.loads((run / "model" / "config.json").read_text())
        config["cutouts"]["stretch"] = {k: v if k == "kind" else v[:bands] for k, v in stretch.items()}
        (run / "model" / "config.json").write_text(json.dumps(config))
    return build_space(run, make_data(bands), folder / "space")


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return make_space(tmp_path_factory.mktemp("space"), stretch=ASINH)


@pytest.fixture(scope="module")
def finder(space):
    return Finder(space)


def test_the_folder_is_a_space_that_the_hub_can_start(space):
    data = SpaceCard.load(space / "README.md").data
    assert data.sdk == "gradio" and data.app_file == "app.py" and data.models is None
    requirements = (space / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements and len(requirements) == 5
    assert (space / "lens_ssl_hf" / "space" / "page.py").is_file()
    assert not [path for path in space.rglob("*") if "__pycache__" in path.parts]
    assert [path.name for path in space.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("bands", "stretch"), [(3, ASINH), (3, None), (5, ASINH), (5, None)])
def test_examples_score_as_the_cutouts_that_they_come_from(bands, stretch, tmp_path):
    space = make_space(tmp_path, bands, stretch)
    finder = Finder(space)
    splits, _ = make_data(bands)
    expected = predict(tmp_path / "run", splits["test"])
    kinds = {(3, True): ".fits .npy .png", (3, False): ".png", (5, True): ".fits .npy", (5, False): ".npy"}
    examples = sorted((space / "examples").iterdir())
    assert {path.suffix for path in examples} == set(kinds[bands, bool(stretch)].split()) and len(examples) == 4
    for path in examples:
        label, number = path.stem.split("-")
        index = np.flatnonzero(expected.label == (label == "lens"))[int(number) - 1]
        eight_bit = not stretch or path.suffix == ".png"
        difference = np.abs(finder.pipeline.display(path) - splits["test"].pixels[index].numpy()).max()
        assert difference <= (0.5 if eight_bit else 1e-3)
        assert finder.look(path).score == pytest.approx(expected.score[index], abs=0.05 if eight_bit else 1e-4)


def test_a_training_cutout_is_its_own_nearest_neighbour(finder, tmp_path):
    splits, _ = make_data()
    np.save(tmp_path / "cutout.npy", splits["train"].pixels[5].numpy())
    finding = finder.look(tmp_path / "cutout.npy", units="display")
    nearest = finding.neighbours[0]
    assert nearest.similarity == pytest.approx(1, abs=1e-5) and (nearest.label, nearest.name) == (1, "lens")
    assert np.array_equal(nearest.picture, finding.crop) and finding.crop.shape == (32, 32, 3)
    similarities = [one.similarity for one in finding.neighbours]
    assert len(similarities) == 6 and similarities == sorted(similarities, reverse=True)


def test_attention_is_that_of_the_cls_token_in_the_last_layer(finder, tmp_path):
    splits, _ = make_data()
    display = splits["test"].pixels[0].numpy()
    np.save(tmp_path / "cutout.npy", display)
    weights = []
    last = finder.pipeline.model.vit.layers[-1].attention
    hook = last.register_forward_hook(lambda module, arguments, output: weights.append(output[1]))
    try:
        finding = finder.look(tmp_path / "cutout.npy", units="display")
    finally:
        hook.remove()
    shares = weights[0][0, :, 0, 1:].mean(dim=0)  # (1, heads, 1 + 16 queries, 1 + 16 keys)
    np.testing.assert_allclose(finding.attention.ravel(), shares / shares.mean(), rtol=1e-5)
    assert finding.attention.shape == (4, 4)


def test_the_glow_lies_where_the_attention_is():
    crop, attention = np.full((32, 32, 3), 40, np.uint8), np.full((4, 4), 0.5)
    attention[0, 3] = 8
    glow = np.abs(overlay(crop, attention).astype(int) - 40).max(axis=-1)
    assert glow.shape == (256, 256) and glow[10, 245] > 100 and glow[128:].max() == 0 and glow[:, :128].max() == 0
    assert np.array_equal(overlay(crop, np.ones((4, 4))), np.full((256, 256, 3), 40))  # an even share everywhere


def test_calibration_is_counted_in_the_split_and_told_for_rare_lenses(finder):
    splits, _ = make_data()
    known = predict(finder.pipeline.model.name_or_path, splits["test"])
    bins = finder.facts["calibration"]
    assert bins == reliability(known.label, known.score)
    assert sum(one["count"] for one in bins) == 12 and sum(one["lenses"] for one in bins) == 6
    for score, label in zip(known.score, known.label):
        found = calibration(score, bins)
        assert found["low"] <= score <= found["high"] and found["count"] >= 1 and found["lenses"] >= label
    for lenses, count in ((0, 5), (3, 7), (7, 7), (50, 90)):
        exact = binomtest(lenses, count).proportion_ci(method="wilson")
        assert wilson_interval(lenses, count) == pytest.approx((exact.low, exact.high), abs=1e-6)
    # 90 of 100 lenses and 10 of 100 others score so; of a million galaxies with 1000 lenses 900 and 99,900 do.
    assert at_prevalence(0.9, 0.5, 1e-3) == pytest.approx(900 / (900 + 99_900))
    facts = {"split": "test", "data": {"name": "toy"}, "num_lenses": 100, "num_nonlenses": 100}
    bins = [{"low": 0.0, "high": 0.5, "count": 0, "lenses": 0}, {"low": 0.5, "high": 1.0, "count": 100, "lenses": 90}]
    assert "was not measured" in calibration_sentence(0.2, {**facts, "calibration": bins})
    sentence = calibration_sentence(1.0, {**facts, "calibration": bins}).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "90 were lenses: 90 % (83 % to 94 % at 95 % confidence)" in sentence and "0.47 % to 1.7 % of them" in sentence
    )
    bins[1]["lenses"] = 100
    sentence = calibration_sentence(1.0, {**facts, "calibration": bins}).replace("\N{NO-BREAK SPACE}", " ")
    assert "more than 2.5 % of them" in sentence


def test_what_cannot_be_read_is_told_in_a_sentence_and_nothing_else_is_lost(space, finder, tmp_path):
    folder = tmp_path / "upload-1a2b"
    folder.mkdir()
    good = shutil.copy(space / "examples" / "lens-1.fits", folder / "good.fits")
    bad = folder / "<script>alert(1)<script>.fits"
    bad.write_bytes(b"SIMPLE  = nonsense" * 200)
    (folder / "notes.txt").write_text("no cutout")
    np.save(folder / "five.npy", np.zeros((5, 40, 40), np.float32))
    shown = render(finder, [str(path) for path in (good, bad, folder / "notes.txt", folder / "five.npy")], "flux")
    assert shown.count('role="alert"') == 3 and shown.count("lens-score") == 1
    assert shown.rindex('role="alert"') < shown.index("good.fits")
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "upload-1a2b" not in shown
    assert "cannot be read as FITS" in shown and "notes.txt is not a cutout file" in shown
    assert "five.npy has 5 bands, but 3 are needed" in shown and "Traceback" not in shown
    large = [folder / f"{number}.npy" for number in range(3)]
    for path in large:
        with open(path, "wb") as file:
            file.truncate(50 * 2**20)  # sparse
    assert "have 150 MiB, more than 128 together" in render(finder, list(map(str, large)), "flux")
    assert "more than 32 at once" in render(finder, [str(good)] * 33, "flux")
    assert render(finder, [], "flux") == ""
    np.save(folder / "flux.npy", np.full((3, 40, 40), -5, np.float32))
    assert "flux.npy: values from -5 to -5 are no display units" in render(finder, [f"{folder}/flux.npy"], "display")


def test_a_large_cutout_is_shown_by_its_centre_and_a_huge_one_is_refused(finder, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (3, 700, 501)).astype(np.float32)
    np.save(tmp_path / "large.npy", pixels)
    finding = finder.look(tmp_path / "large.npy", "display")
    assert finding.picture.shape == (256, 256, 3) and not finding.is_whole
    assert np.array_equal(finding.picture[112:144, 112:144], finding.crop)  # the square that the page draws
    shown = render(finder, [f"{tmp_path}/large.npy"], "display")
    assert len(shown) < 2**20 and "Colour rendering of the centre" in shown
    np.save(tmp_path / "huge.npy", np.zeros((3, 512, 2049), np.float32))
    with pytest.raises(InputError, match=r"is 512 x 2049 pixels, more than 1024 x 1024: cut the object out"):
        finder.look(tmp_path / "huge.npy")


def test_a_request_has_sixty_seconds(space, finder, monkeypatch):
    clock = iter([0.0, 1.0, 61.0, 62.0])
    monkeypatch.setattr("lens_ssl_hf.space.page.time.monotonic", lambda: next(clock))
    shown = render(finder, [str(path) for path in sorted((space / "examples").iterdir())[:3]], "flux")
    assert shown.count("lens-score") == 1 and shown.count("was not read, as the others took 60 seconds") == 2


def test_names_are_no_markup(space, finder, tmp_path):
    name = "<img src=x onerror=alert(1)> $$x$$ `a` [b](javascript:c) **d** _e_ https://x.y www.x.y"
    facts = {**finder.facts, "name": name, "split": name, "data": {**finder.facts["data"], "name": name}}
    page = introduction(facts) + str(_card({**facts, "model": None}).text)
    assert not re.search(r"<img|\$\$|`a`|\]\(java|\*\*d|_e_|https://x|www\.x", page)
    assert html.unescape(in_markdown(name)) == name
    assert in_markdown("lens-dino 1.5, a") == "lens-dino 1.5, a" and in_markdown("- a\n# b") == "&#45; a &#35; b"
    damaged = Finder(space)
    damaged.facts = facts
    shown = render(damaged, [str(space / "examples" / "lens-1.fits")], "flux")
    assert "<img src=x" not in shown and "&lt;img src=x" in shown


def test_uploads_are_bounded_whatever_they_state():
    taken, answers = [], []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            taken.append(len(message["body"]))

    async def receive():
        return {"type": "http.request", "body": b"0" * 2**24, "more_body": True}

    async def send(message):
        answers.append(message)

    uploads = LimitedUploads(app)
    asyncio.run(uploads({"type": "http", "headers": []}, receive, send))
    assert sum(taken) == MAX_BYTES and not answers
    stated = [(b"content-length", str(MAX_BYTES + 1).encode())]
    asyncio.run(uploads({"type": "http", "headers": stated}, receive, send))
    assert answers[0]["status"] == 413 and b"more than 128 MiB at once" in answers[1]["body"]


def test_stretches_are_inverted():
    display = np.random.default_rng(0).uniform(0, 255, size=(3, 8, 8)).astype(np.float32)
    for kind in ("asinh", "sqrt", "linear", "none"):
        stretch = Stretch(kind, (-2.0, -1.0, -3.0), (90.0, 80.0, 70.0), (5.0, 4.0, 3.0))
        np.testing.assert_allclose(stretch.apply(stretch.invert(display)), display, atol=1e-3)


def test_refusals(space, tmp_path):
    run, (splits, info) = write_classifier_run(tmp_path / "run"), make_data()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than an earlier Space"):
        build_space(run, (splits, info), tmp_path / "mine")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="holds something else"):
        build_space(run, (splits, info), tmp_path / "file")
    with pytest.raises(InputError, match="has no train split"):
        build_space(run, ({"test": splits["test"]}, info), tmp_path / "new")
    unlabelled = CutoutTensors(**{**vars(splits["train"]), "labels": torch.full((24,), -1)})
    with pytest.raises(InputError, match="train split lacks labelled"):
        build_space(run, ({**splits, "train": unlabelled}, info), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="holds no Space: make one with make demo"):
        Finder(tmp_path)
    shutil.copytree(space, tmp_path / "damaged")
    (tmp_path / "damaged" / "neighbours.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged"):
        Finder(tmp_path / "damaged")
    shutil.copytree(space, tmp_path / "modelless")
    (tmp_path / "modelless" / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model .* cannot be loaded .* secret HF_TOKEN"):
        Finder(tmp_path / "modelless")
    (tmp_path / "damaged" / "old.txt").write_text("of an earlier version")
    build_space(run, (splits, info), tmp_path / "damaged")
    assert Finder(tmp_path / "damaged") and not (tmp_path / "damaged" / "old.txt").exists()


# What requirements.txt does not bring is not there, and neither is this checkout.
SERVER = """
import runpy, sys
for name in ("datasets", "evaluate", "sklearn", "matplotlib", "accelerate", "psutil", "pyarrow", "h5py"):
    sys.modules[name] = None
sys.path.insert(0, ".")
import lens_ssl_hf
assert lens_ssl_hf.__file__.startswith(sys.argv[1]), lens_ssl_hf.__file__
runpy.run_path("app.py")
"""


@pytest.mark.slow
def test_the_published_folder_works_in_a_browser(space, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: make space installs it")
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no chromium and chromedriver: Debian's packages are chromium and chromium-driver")
    port = browser.free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    command = [sys.executable, "-c", SERVER, str(space)]
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"SIMPLE  = nonsense" * 200)
    with open(tmp_path / "log.txt", "w") as log:
        server = subprocess.Popen(command, cwd=space, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait(lambda: server.poll() is not None or browser.is_open(port), 90, "the page")
            assert server.poll() is None, (tmp_path / "log.txt").read_text()
            with open_browser(tmp_path / "profile") as page:
                _use(page, port, space, bad, tmp_path)
        finally:
            server.terminate()
            server.wait(30)
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def _use(page: browser.Browser, port: int, space: Path, bad: Path, folder: Path) -> None:
    page.open(f"http://127.0.0.1:{port}")
    page.wait("return document.querySelector('input[type=file]') !== null")
    page.choose_files("input[type=file]", space / "examples" / "lens-1.fits", bad)
    page.wait("return document.querySelectorAll('.lens-card').length == 2")
    shown = page.run("return [...document.querySelectorAll('.lens-card')].map(card => card.innerText)")
    assert shown[0].split("\n")[0] == "bad.fits" and "cannot be read as FITS" in shown[0]
    score = float(page.run("return document.querySelector('.lens-score span').innerText"))
    assert score == pytest.approx(Finder(space).look(space / "examples" / "lens-1.fits").score, abs=1e-3)
    assert "of the test split of toy that scored" in shown[1]
    pictures = "[...document.querySelectorAll('.lens-card img')]"
    page.wait(f"return {pictures}.length == 8 && {pictures}.every(image => image.complete && image.naturalWidth > 0)")
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.screenshot(folder / "page.png")
    assert len(Image.open(folder / "page.png").convert("RGB").getcolors(10**7)) > 500  # not a blank page
    # An example, by a click.
    page.run(
        "[...document.querySelectorAll('button')].find(one => one.innerText.trim() == 'nonlens-2.npy').click()",
    )
    page.wait("return [...document.querySelectorAll('.lens-card h3')].map(one => one.innerText) == 'nonlens-2.npy'")
    hosts = page.run("return performance.getEntriesByType('resource').map(one => new URL(one.name).hostname)")
    assert set(hosts) == {"127.0.0.1"}
