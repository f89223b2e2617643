"""Scores in bfloat16."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, score, search

pytestmark = pytest.mark.usefixtures("in_tmp_path")
COUNT = 200


@pytest.fixture
def survey():
    pixels = np.random.default_rng(0).uniform(0, 255, (COUNT, 3, 40, 40)).astype("float32")
    np.save("one.npy", pixels[7])
    parquet.write_table(pyarrow.table({"id": range(COUNT), "pixels": pixels.tolist()}), "shard.parquet")
    return write_classifier_run(Path("run"))


def logits(folder):
    (path,) = Path(folder).glob("*.parquet")
    return parquet.read_table(path)["logit"].to_numpy()


def test_bf16_changes_scores_a_little_and_makes_none_equal(survey):
    score(survey, "shard.parquet", "exact")
    score(survey, "shard.parquet", "fast", precision="bf16", embeddings=True)
    exact, fast = logits("exact"), logits("fast")
    assert 0 < np.abs(fast - exact).max() < 0.1 * np.ptp(exact)
    assert len(set(fast.tolist())) == COUNT  # 8 bits of mantissa would not tell 200 logits apart
    search("fast", "similar", like="one.npy", top=3)
    found = parquet.read_table("similar/ranking.parquet").to_pylist()
    assert found[0]["id"] == 7 and found[0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_scores_of_another_precision_are_refused_by_name_and_earlier_ones_are_fp32(survey):
    for precision, other in (("fp32", "bf16"), ("bf16", "fp32")):
        score(survey, "shard.parquet", precision, precision=precision)
        with pytest.raises(InputError, match=rf"otherwise \(precision was {precision}, not {other}\): choose another"):
            score(survey, "shard.parquet", precision, precision=other)
    path = Path("fp32/manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["options"]["precision"]
    path.write_text(json.dumps(manifest))
    assert score(survey, "shard.parquet", "fp32")["counts"]["scored"] == COUNT
    with pytest.raises(InputError, match=r"precision was fp32, not bf16"):
        score(survey, "shard.parquet", "fp32", precision="bf16")
    with pytest.raises(InputError, match="precision is fp16: choose fp32 or bf16"):
        score(survey, "shard.parquet", "half", precision="fp16")
