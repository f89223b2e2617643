"""From grades of the first rows of a ranking and of an audit sample: purity, completeness and the number of lenses."""

from bisect import bisect_left
from typing import Any

import numpy as np
import pandas
from scipy.stats import binomtest, hypergeom

MOST_UNGRADED = 0.2  # share of ungraded rows from which on nothing is said


def lens_interval(found: int, drawn: int, population: int, ungraded: int = 0) -> tuple[int, int]:
    """
    95 % interval for the number of lenses in a finite population, of which a random sample was drawn: the numbers that
    neither tail (2.5 %) of the hypergeometric distribution excludes, as Clopper & Pearson (1934) have it for the
    binomial. It never covers less, however few lenses there are.

    Args:
        found, drawn, population (`int`): lenses in the sample, its size, the size of the population.
        ungraded (`int`): rows of the sample that may be either: the lower end has none of them as lenses, the upper
            end all.
    """
    least, most = found, population - (drawn - found - ungraded)
    if drawn == population:
        return least, most
    numbers = range(least, most + 1)
    low = bisect_left(numbers, True, key=lambda one: hypergeom.sf(found - 1, population, one, drawn) > 0.025)
    above = bisect_left(
        numbers, True, key=lambda one: hypergeom.cdf(found + ungraded, population, one, drawn) <= 0.025
    )
    return least + low, least + above - 1


def ranks_to_report(top: pandas.DataFrame) -> list[int]:
    """1, 2, 5, 10, 20, 50, ..., the rank of the last row with a grade, and that of the last row."""
    count = len(top)
    steps = (digit * 10**power for power in range(len(str(count))) for digit in (1, 2, 5))
    last = int(np.flatnonzero(top["is_lens"].notna()).max(initial=-1)) + 1
    return sorted({*(rank for rank in steps if rank < count), last or count, count})


def purity(top: pandas.DataFrame, rank: int) -> dict[str, Any]:
    """
    Share of lenses among the first rows, with the 95 % score interval of Wilson (1927) for rows of this kind; its
    lower end takes rows without a grade as non-lenses, its upper end as lenses.

    Args:
        top (`pandas.DataFrame`): `is_lens` of each row in their order: 1.0, 0.0, or NaN without grade.
        rank (`int`): how many rows.
    """
    votes = top["is_lens"].to_numpy()[:rank]
    graded, lenses = int(np.isfinite(votes).sum()), int(np.nansum(votes))
    facts = {"rank": rank, "graded": graded, "lenses": lenses, "purity": None, "low": None, "high": None}
    if rank - graded > MOST_UNGRADED * rank:
        return facts | {"reason": f"{rank - graded} of {rank} have no grade"}
    low = binomtest(lenses, rank).proportion_ci(method="wilson").low
    high = binomtest(lenses + rank - graded, rank).proportion_ci(method="wilson").high
    return facts | {"purity": lenses / graded, "low": float(low), "high": float(high)}


def lenses_beyond(top: pandas.DataFrame, audit: pandas.DataFrame, rest: int) -> dict[str, Any]:
    """
    The lenses among the `rest` rows from which the audit sample was drawn: the estimate of Horvitz & Thompson (1952),
    each lens of the sample weighted by the inverse of its inclusion probability, and the interval of
    [`lens_interval`]. Rows at the end of the sample that nobody graded are left out: its first rows are a sample, too.

    Returns:
        `dict`: `graded`, `ungraded` and `lenses` of the sample, and `value`, `low`, `high`; or a `reason` against it.
    """
    votes = audit["is_lens"].to_numpy()
    votes = votes[: int(np.flatnonzero(np.isfinite(votes)).max(initial=-1)) + 1]
    graded, lenses = int(np.isfinite(votes).sum()), int(np.nansum(votes))
    ungraded, drawn = len(votes) - graded, len(votes)
    facts = {"rest": rest, "graded": graded, "ungraded": ungraded, "lenses": lenses}
    lacking = int(top["is_lens"].isna().sum())
    if rest and not graded:
        return facts | {"reason": "no row of an audit sample was graded"}
    if ungraded > MOST_UNGRADED * drawn:
        return facts | {"reason": f"{ungraded} of {drawn} rows of the audit sample have no grade"}
    if lacking > MOST_UNGRADED * len(top):
        return facts | {"reason": f"{lacking} of the first {len(top)} rows have no grade"}
    low, high = lens_interval(lenses, drawn, rest, ungraded)
    return facts | {"value": lenses * rest / max(graded, 1), "low": low, "high": high}


def lenses_of_survey(top: pandas.DataFrame, beyond: dict[str, Any]) -> dict[str, Any]:
    """
    The lenses among all rows of a survey, which are those of the ranking and those from which the audit sample was
    drawn: the estimate, and the ends of its 95 % interval, which takes ungraded first rows as non-lenses or lenses.

    Args:
        top (`pandas.DataFrame`): as in [`purity`]; not all without grade.
        beyond (`dict`): what [`lenses_beyond`] returns, without `reason`.

    Returns:
        `dict`: `rows`, and `lenses` and `prevalence`, their share of the rows, each with `value`, `low` and `high`.
    """
    votes, rows = top["is_lens"], len(top) + beyond["rest"]
    first = int(votes.sum())
    lenses = {
        "value": float(votes.mean() * len(top) + beyond["value"]),
        "low": first + beyond["low"],
        "high": first + int(votes.isna().sum()) + beyond["high"],
    }
    return {"rows": rows, "lenses": lenses, "prevalence": {name: one / rows for name, one in lenses.items()}}


def completeness(top: pandas.DataFrame, beyond: dict[str, Any], rank: int) -> dict[str, Any]:
    """
    Share of all lenses of the survey that are among its first `rank` rows, with its 95 % interval. Where the audit
    sample holds no lens, only the interval can be given: lenses beyond the ranking may be as many as its end says.
    First rows without a grade are lenses as often as those with one, so that all lenses are as many as
    [`lenses_of_survey`] says; the interval takes them as either.

    Args:
        top (`pandas.DataFrame`): as in [`purity`].
        beyond (`dict`): what [`lenses_beyond`] returns, without `reason`.
    """
    votes = top["is_lens"].to_numpy()
    inside, after = np.split(votes, [rank])
    first, later = (int(np.nansum(one)) for one in (inside, after))
    open_first, open_later = (int(np.isnan(one).sum()) for one in (inside, after))
    facts = {"rank": rank, "completeness": None, "low": 0.0, "high": 1.0}
    if most := first + later + open_later + beyond["high"]:
        facts["low"] = first / most
    if least := first + open_first + later + beyond["low"]:
        facts["high"] = (first + open_first) / least
    lenses = np.where(np.isnan(votes), np.nanmean(votes), votes).cumsum()
    if (total := lenses[-1] + beyond["value"]) and (beyond["lenses"] or beyond["low"] == beyond["high"]):
        facts["completeness"] = float(lenses[rank - 1] / total)
    return facts
