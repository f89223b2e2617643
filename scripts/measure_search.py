"""
What whitening brings to lens-ssl search: the share of lenses among the 20 objects that are most similar to a lens, and
to five of them, in a survey whose labels are known. And what the candidates of --index miss, by kind of index.

```bash
lens-ssl build --dataset simulated --train_size 2000 --test_size 8000 --lens_fraction 0.03 --data_seed 77 --output sim/
lens-ssl score --model runs/dino-300 --input sim/ --output scores/ --embeddings
python scripts/measure_search.py scores/ --dataset sim/ --output search.json
python scripts/measure_search.py scores/ --output search.json  # the indexes alone
```
"""

import json
from dataclasses import MISSING, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.options import option
from lens_ssl_hf.errors import InputError, exit_on_input_error

NEAREST = 20
LIKED = 5
DRAWS = 200
INDEXES = ("SQfp16", "SQ8", "SQ4", "IVF256,SQ8", "IVF256,SQ4")  # as faiss calls them
LEAST = 256  # objects, since an index with 256 lists needs as many
PROBES = 32  # of the lists
TOP, QUERIES = 100, 50


@dataclass
class MeasureArguments:
    scores: str = option(MISSING, "The folder that lens-ssl score --embeddings wrote.")
    dataset: str | None = option(None, "The dataset that was scored, with labels; without it, indexes are compared.")
    name: str = option("model", "How to call the model.")
    output: str = option("search.json", "JSON file to write; its other models are kept.")


@exit_on_input_error
def main() -> None:
    (arguments,) = parse(MeasureArguments, description=__doc__, positional=("scores",))
    import pyarrow

    from lens_ssl_hf.data.files.raw import readable
    from lens_ssl_hf.files import write_json
    from lens_ssl_hf.survey.embeddings import SAMPLE, Whitening, embeddings_of, open_embeddings, sample
    from lens_ssl_hf.survey.manifest import read

    path, results = Path(arguments.output), {}
    if path.is_file():
        with readable(path, "JSON", "give another output"):
            results = json.loads(path.read_text())
    shards = open_embeddings(Path(arguments.scores), read(Path(arguments.scores)))
    table = pyarrow.concat_tables(list(shards))
    found = embeddings_of(table)
    whitened = Whitening.fit(embeddings_of(sample(shards, SAMPLE)))(found)
    if arguments.dataset is None:
        facts = {"objects": len(table), "top": TOP, "queries": QUERIES, "indexes": compare_indexes(whitened)}
    else:
        is_lens = lenses_of(arguments.dataset, table["id"].to_pylist())
        raw = found / np.linalg.norm(found, axis=1, keepdims=True)
        facts = {"objects": len(table), "lenses": int(is_lens.sum()), "nearest": NEAREST, "liked": LIKED}
        facts["draws"] = DRAWS
        for name, vectors in (("raw", raw), ("whitened", whitened)):
            facts[name] = {"of_one": share(vectors, is_lens, 1), "of_several": share(vectors, is_lens, LIKED)}
    write_json(path, results | {arguments.name: facts})
    print(json.dumps(facts, indent=2))


def lenses_of(directory: str, ids: list) -> np.ndarray:
    """Which of the scored objects are lenses by a dataset."""
    from lens_ssl_hf.data.storage import ParquetSplits

    splits, lenses = ParquetSplits(Path(directory)), set()
    for path, group, _ in (place for groups in splits.groups.values() for place in groups):
        names, labels = (splits.read(path, group, column) for column in ("id", "label"))
        lenses |= {name for name, label in zip(names, labels) if label == 1}
    is_lens = np.array([one in lenses for one in ids])
    if is_lens.sum() <= LIKED:
        raise InputError(
            f"{directory} says of {is_lens.sum()} scored objects that they are lenses: give what was scored, with more"
        )
    return is_lens


def compare_indexes(vectors: np.ndarray) -> dict[str, dict[str, float]]:
    """Bytes per object, and the share of the `TOP` most similar ones that are among so many candidates of an index."""
    if find_spec("faiss") is None:
        raise InputError("faiss is not installed: pip install faiss-cpu, or give the dataset")
    if len(vectors) < LEAST:
        raise InputError(f"the survey has {len(vectors)} objects: score at least {LEAST}, or give the dataset")
    import faiss

    rng, found = np.random.default_rng(0), {}
    queries, shown = (
        vectors[rng.choice(len(vectors), min(n, len(vectors)), replace=False)] for n in (QUERIES, 20_000)
    )
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :TOP]
    for kind in INDEXES:
        index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        index.train(shown)
        index.add(vectors)
        if "IVF" in kind:
            index.nprobe = PROBES
        facts = {"bytes_per_object": len(faiss.serialize_index(index)) / len(vectors)}
        for number in (TOP, 2 * TOP):
            _, candidates = index.search(queries, number)
            facts[f"recall_among_{number}"] = float(np.mean([np.isin(*both) for both in zip(exact, candidates)]))
        found[kind] = facts
    return found


def share(vectors: np.ndarray, is_lens: np.ndarray, number: int) -> float:
    """The mean share of lenses among the `NEAREST` to the mean of `number` lenses, which are left out."""
    rng, lenses, shares = np.random.default_rng(0), np.flatnonzero(is_lens), []
    for _ in range(DRAWS):
        liked = rng.choice(lenses, number, replace=False)
        similarity = vectors @ vectors[liked].mean(axis=0)
        similarity[liked] = -np.inf
        shares.append(is_lens[np.argsort(-similarity)[:NEAREST]].mean())
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
