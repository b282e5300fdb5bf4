"""`codit judge-agreement`: two judges of the same rows, their files read, how far they agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from codit.intervals import Interval
    from codit.judge_agreement import Agreement, Kind

# pandas is imported by the command that needs it: help takes no seconds.

COLUMNS = {"score": "scores", "preference": "preferences"}


def judge_agreement(*, first: Path, second: Path) -> int:
    """Say how far two judges agree: two files that `codit judge` wrote about the same data.

    Both hold scores (of responses, or of both turns of conversations), or both comparisons
    (--against) of the same two datasets in the same order. What either judge could not judge is
    left out and counted.

    Args:
        first: a judge's file.
        second: the other's.

    Returns:
        int: exit status.

    Source: ours.
    """
    from codit import judge_agreement as agreeing

    (one, kind), (other, another) = read(first), read(second)
    if kind != another:
        raise ValueError(
            f"expected two files of one kind; {first} holds {kind}, {second} {another}. "
            "Judge both in the same way."
        )
    found = agreeing.agreement(one, other, kind=kind)
    print(table(found, kind))
    return 0


def read(path: Path) -> tuple[pd.DataFrame, Kind]:
    """Return what a judge said, from the file that `codit judge` wrote.

    Args:
        path: JSON lines with `id`, `sample` or `turn`, and `score` or `preference`.

    Returns:
        tuple: a row for each thing judged, a turn's number as its `sample`; "scores" or
        "preferences".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.

    Source: ours.
    """
    import pandas as pd

    from codit import judge_rows

    rows = judge_rows.read(path)
    kinds = {tuple(name for name in COLUMNS if name in row) for row in rows}
    if kinds not in ({("score",)}, {("preference",)}) or not all("id" in row for row in rows):
        raise ValueError(
            f"expected `id` and one of `score` and `preference` in every row of {path}; got others."
            " Name a file that `codit judge` wrote, not --best-of's dataset."
        )
    ((column,),) = kinds
    values = [row[column] for row in rows]
    if not all(value is None or type(value) in (int, float) for value in values):
        raise ValueError(
            f"expected numbers or null in `{column}` of {path}; got others. Name a file that "
            "`codit judge` wrote, not --best-of's dataset."
        )
    # Not as pandas reads JSON: it would take ids for numbers or dates.
    found = pd.DataFrame({"id": [str(row["id"]) for row in rows]})
    for name in ("sample", "turn"):
        if all(name in row for row in rows):
            found["sample"] = [row[name] for row in rows]
    found[column] = pd.Series(values, dtype="float64")
    return found, "scores" if column == "score" else "preferences"


def table(found: Agreement, kind: Kind) -> str:
    """Return an agreement as lines for people.

    Args:
        found: from `judge_agreement.agreement`.
        kind: what was compared.

    Returns:
        str: rows, Spearman, both kappas with their intervals, share of equal judgements.

    Source: ours.
    """
    equal = "the same score" if kind == "scores" else "the same winner, or a tie for both"
    lines = {
        "rows": f"{found.n_both:,} judged by both, {found.n_first:,} by the first alone, "
        f"{found.n_second:,} by the second alone, {found.n_neither:,} by neither",
        "Spearman": _interval(found.spearman),
        "kappa": _interval(found.plain_kappa),
        "weighted": f"{_interval(found.weighted_kappa)} (kappa, by squared distance)",
        "equal": f"{found.equal:.1%}: {equal}",
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def _interval(value: Interval) -> str:
    from codit import intervals

    if math.isnan(value.estimate):
        return "undefined: a judge says the same of every row"
    return intervals.text(value.estimate, value.low, value.high, ".3f")
