"""
List the best candidates of a survey that lens-ssl score went through, each object once, and a random sample of the
rest, from which completeness can be measured.

```bash
lens-ssl rank scores/ --top 500 --audit 300 --output ranking/
```

It writes ranking.csv, .parquet, .fits and .vot, page.html, on which they are graded, and a contact sheet of the first
100.
"""

from dataclasses import MISSING, asdict, dataclass

from ..data.options import option
from ..errors import exit_on_input_error
from ..launch import one_process
from .parsing import parse


@dataclass
class RankArguments:
    scores: str = option(MISSING, "The folder that lens-ssl score wrote.")
    output: str = option(MISSING, "The folder to write; it must not exist, or be empty.")
    top: int = option(500, "Candidates to list.")
    audit: int = option(0, "Rows to draw from all others at random.")
    uncertain: int = option(0, "Rows to grade next: those of which the model is least sure.")
    diverse: int = option(0, "Rows to grade next: good ones that are unlike each other (needs embeddings).")
    graded: list[str] | None = option(None, "Tables of grades, which the ranking shows and does not propose again.")
    separation: float = option(1.0, "Rows closer than this to a better one (arcsec) are the same object; 0: none are.")
    seed: int = option(0, "Seed of the draw, and of the order on the grading page.")
    known: str | None = option(None, "Known lenses to look for: a table with ra and dec, or lenscat.")


@exit_on_input_error
@one_process
def main() -> None:
    (arguments,) = parse(RankArguments, description=__doc__, positional=("scores",))
    from .. import rank

    found = rank(**asdict(arguments))
    print(f"{found['top']} candidates ({found['merged']} further rows at their places), {found['audit']} of the rest")
    if known := found.get("known"):
        merged = f" ({known['merged']} further rows of the table are at their places)" if known["merged"] else ""
        print(f"{known['scored']} of {known['lenses']} known lenses were scored{merged}")
    if "graded" in found:
        print(f"{found['graded']} of the listed rows are graded already")
    for name in ("uncertain", "diverse"):
        if name in found:
            print(f"{found[name]} {name} rows to grade next")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
