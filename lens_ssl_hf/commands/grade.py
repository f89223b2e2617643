"""
Measure a search by grades of its ranking: purity and completeness by rank, how far graders agree, and a calibration of
the scores.

```bash
lens-ssl grade ranking/ --labels my_grades.csv --output grading/
lens-ssl grade ranking/ --labels mine.csv hers.csv --positive A --store_in runs/dino-300   # lens-ssl score finds it
```

The tables of grades have the columns id, grade (A, B, C, X; lens, nonlens; 1, 0) and perhaps grader.
"""

from dataclasses import MISSING, asdict, dataclass, field

from ..data.options import option
from ..errors import exit_on_input_error
from ..launch import one_process
from .parsing import parse


@dataclass
class GradeArguments:
    ranking: str = option(MISSING, "The folder that lens-ssl rank wrote.")
    labels: list[str] = option(MISSING, "Tables of grades, such as the grading page exports.")
    output: str = option("grading", "The folder to write; it must not exist, or be empty.")
    positive: list[str] = field(default_factory=lambda: ["A", "B"], metadata={"help": "The grades of lenses."})
    prevalence: float | None = option(None, "Share of lenses in another survey that the calibration is meant for.")
    store_in: str | None = option(None, "The model that was ranked; its scores are calibrated from then on.")


@exit_on_input_error
@one_process
def main() -> None:
    (arguments,) = parse(GradeArguments, description=__doc__, positional=("ranking",))
    from .. import grade
    from ..survey.grade_report import describe

    print(describe(grade(**asdict(arguments))))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
