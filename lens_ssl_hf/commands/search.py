"""
Search a survey that lens-ssl score --embeddings went through: for what looks like some objects, for what looks like
nothing else, or by a map.

```bash
lens-ssl search scores/ --like object_17 --top 100 --output similar/
lens-ssl search scores/ --like object_17 my_lens.fits --unlike object_3 --output similar/
lens-ssl search scores/ --anomalies 100 --output anomalies/
lens-ssl search scores/ --map score --output map/
```

The first three write tables and a contact sheet, as lens-ssl rank does. A map is a picture, and a page on which a
click shows the cutout.
"""

from dataclasses import MISSING, dataclass

from ..data.options import option
from ..errors import InputError, exit_on_input_error
from ..launch import one_process
from .parsing import parse


@dataclass
class SearchArguments:
    scores: str = option(MISSING, "The folder that lens-ssl score --embeddings wrote.")
    output: str = option(MISSING, "The folder to write; it must not exist, or be empty.")
    like: list[str] | None = option(None, "Ids of the survey, or files, that the objects are to look like.")
    unlike: list[str] | None = option(None, "Ids or files that they are not to look like.")
    top: int = option(100, "Similar objects to list.")
    index: bool = option(False, "With --like: compare only what faiss proposes; its indexes are kept in scores/index.")
    anomalies: int | None = option(None, "In place of --like: so many objects that look like nothing else.")
    detector: str = option("neighbours", "How anomalies are found.", ["neighbours", "isolation_forest"])
    map: str | None = option(None, "In place of --like: draw a map, coloured by this column of the scores.")
    projection: str = option("pca", "Of the map; umap needs umap-learn.", ["pca", "umap"])
    separation: float = option(1.0, "Rows closer than this to a better one (arcsec) are the same object; 0: none are.")
    seed: int = option(0, "Seed of random samples.")
    device: str | None = option(None, "For files: such as cuda:1; by default the GPU where there is one.")


@exit_on_input_error
@one_process
def main() -> None:
    (one,) = parse(SearchArguments, description=__doc__, positional=("scores",))
    given = [name for name in ("like", "anomalies", "map") if getattr(one, name) is not None]
    if len(given) != 1:
        raise InputError(f"give one of like, anomalies and map, not {' and '.join(given) or 'none'}")
    if one.unlike and not one.like:
        raise InputError("unlike is given without like: add what the objects are to look like")
    if one.index and not one.like:
        raise InputError("index is given without like: leave it out")
    from .. import draw_map, find_anomalies, search

    if one.like:
        found = search(
            one.scores, one.output, one.like, one.unlike or (), one.top, one.separation, one.device, one.index
        )
    elif one.anomalies is not None:
        found = find_anomalies(one.scores, one.output, one.anomalies, one.detector, one.separation, one.seed)
    else:
        draw_map(one.scores, one.output, one.map, one.projection, one.seed)
    if not one.map:
        print(f"{found['top']} objects ({found['merged']} further rows at their places)")
    print(f"written to {one.output}")


if __name__ == "__main__":
    main()
