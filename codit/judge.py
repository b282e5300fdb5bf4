"""An LLM as a judge: scores, comparisons in both orders, Best-of-N, benchmarks of two turns.

A judgement without a value is counted, left out of means, and never given a number. A run with too
many of them fails, after everything else is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from codit import judge_client, judge_prompts, judge_questions, judge_rows, judge_tables
from codit.judge_client import Tally
from codit.judge_questions import Asked
from codit.judge_requests import Asking, Judge
from codit.judge_rows import Rows

__all__ = [
    "Asking",
    "Judge",
    "Judged",
    "Tally",
    "TooManyFailures",
    "best_of",
    "compare",
    "conversations",
    "score",
]

REFERENCE_CATEGORIES = judge_prompts.REFERENCE_CATEGORIES
PATIENT = Asking()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a judge said.

    Args:
        table: one row for each thing judged; see the function that made it.
        judgements: one row for each judgement: what was judged, `draw` (which of k), `state`,
            `value`, `note`, `reply`, `schema`, tokens, seconds, `is_cached`.
        summary: means with intervals, and counts.
        tally: what this run asked and used.
        rows: of Best-of-N, the rows that were kept.
    """

    table: pd.DataFrame
    judgements: pd.DataFrame
    summary: dict[str, Any]
    tally: Tally
    rows: list[dict[str, Any]] = field(default_factory=list)


class TooManyFailures(ValueError):  # noqa: N818
    """More judgements without a value than allowed; `judged` holds what there is."""

    def __init__(self, message: str, judged: Judged) -> None:
        super().__init__(message)
        self.judged = judged


def score(
    rows: Rows, judge: Judge, *, cache: str | Path, samples: int = 1, asking: Asking = PATIENT
) -> Judged:
    """Let a judge score responses from 1 to 10.

    score of a row = mean of those of its k judgements that have a value.

    Args:
        rows: see `judge_rows.answered`; dicts or a file.
        judge: whom to ask.
        cache: SQLite file of every reply; made where there is none.
        samples: judgements of each response, k; more than 1 only with a temperature above 0.
        asking: concurrency, attempts, prices, allowed failures.

    Returns:
        Judged: its table has `id`, `sample`, `length` (characters), `score` (1 to 10; NaN without
        any value), `n_ok`, `n`, `state` ("ok", or that of the last judgement). Summary: `n` and
        `n_ok` (rows), `mean`, `low`, `high` (95 % over prompts), `failed` (share of judgements).

    Raises:
        TooManyFailures: see `Asking.max_failures`.
        ValueError: a row cannot be judged, samples do not fit, or as `judge_client.ask`.
        OSError: the cache cannot be read or written.

    Source: prompt, range, one judgement at temperature 1: the paper's code; the rest: ours.
    """
    asked = judge_questions.of_rows(judge_rows.answered(rows))
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    table = judge_tables.means(judgements, ["id", "sample", "length"])
    summary = {
        "n": len(table),
        **judge_tables.mean(table["score"], table["id"]),
        "failed": judge_tables.failed(judgements),
    }
    judged = Judged(table=table, judgements=judgements, summary=summary, tally=tally)
    return _checked(judged, asking, cache)


def compare(
    first: Rows,
    second: Rows,
    judge: Judge,
    *,
    cache: str | Path,
    samples: int = 1,
    asking: Asking = PATIENT,
) -> Judged:
    """Let a judge compare two arms prompt by prompt, each pair in both orders.

    An arm wins where both orders name it; else it is a tie. win rate = mean of 1, 1/2 and 0.

    Args:
        first: an arm's rows; see `score`.
        second: the other's. Rows are matched by id and sample; what one arm lacks is left out and
            counted.
        judge: whom to ask.
        cache: as in `score`.
        samples: comparisons of each pair in each order.
        asking: as in `score`.

    Returns:
        Judged: its table is that of `judge_tables.outcomes`, its summary that of
        `judge_tables.comparison` with `left_out`: rows of both arms without a partner.

    Raises:
        TooManyFailures: see `Asking.max_failures`.
        ValueError: no common row, different prompts under one id, or as `score`.
        OSError: the cache cannot be read or written.

    Source: both orders, disagreement as a tie: MT-Bench (arXiv 2306.05685); the rest: ours.
    """
    asked, left_out = judge_questions.of_arms(first, second)
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    table = judge_tables.outcomes(judgements)
    summary = judge_tables.comparison(table, judgements) | {"left_out": left_out}
    judged = Judged(table=table, judgements=judgements, summary=summary, tally=tally)
    return _checked(judged, asking, cache)


def best_of(
    rows: Rows,
    judge: Judge,
    *,
    cache: str | Path,
    n: int,
    samples: int = 1,
    asking: Asking = PATIENT,
) -> Judged:
    """Keep, of the first n responses to each prompt, the one that a judge scores highest.

    Args:
        rows: n or more responses to each id, numbered by `sample`; otherwise as in `score`.
        judge: whom to ask.
        cache: as in `score`, whose judgements it shares.
        n: responses considered, at least 1; 1 keeps the first of each and asks nothing.
        samples: judgements of each response.
        asking: as in `score`.

    Returns:
        Judged: `rows` are the kept ones, in the order of the ids; the table has `id`, `sample` (the
        kept), `score` and `first_score` (NaN without a value), `n_ok` (responses with a score),
        `is_tie`. Of equal scores the first is kept; a response without a score never beats one
        that has one; where none has, the first is kept. Summary: `n`, `n_ok`, `mean`, `low`, `high`
        of the kept, `first_mean`, `ties`, `unscored` (prompts), `failed`.

    Raises:
        TooManyFailures: see `Asking.max_failures`.
        ValueError: fewer than n responses to an id, or as `score`.
        OSError: the cache cannot be read or written.

    Source: the baseline and its prompt: the paper; N, ties and failures: ours.
    """
    chosen, asked = judge_questions.of_first(rows, n=n)
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    means = judge_tables.means(judgements, ["id", "sample"]) if asked else None
    scores = {} if means is None else means.set_index(["id", "sample"])["score"].to_dict()
    kept = [judge_tables.best(group, scores) for group in chosen]
    table = pd.DataFrame([labels for _, labels in kept])
    summary = {
        "n": len(table),
        **judge_tables.mean(table["score"], table["id"]),
        "first_mean": float(table["first_score"].mean()),
        "ties": int(table["is_tie"].sum()),
        "unscored": int((table["n_ok"] == 0).sum()) if n > 1 else 0,
        "failed": judge_tables.failed(judgements),
    }
    judged = Judged(
        table=table,
        judgements=judgements,
        summary=summary,
        tally=tally,
        rows=[dict(row.row) for row, _ in kept],
    )
    return _checked(judged, asking, cache)


def conversations(
    rows: Rows,
    judge: Judge,
    *,
    cache: str | Path,
    samples: int = 1,
    reference_categories: Collection[str] = REFERENCE_CATEGORIES,
    asking: Asking = PATIENT,
) -> Judged:
    """Let a judge score both turns of conversations, as MT-Bench does.

    Args:
        rows: see `judge_rows.turns`.
        judge: whom to ask.
        cache: as in `score`.
        samples: judgements of each turn.
        reference_categories: judged with their reference. Empty: none needs one.
        asking: as in `score`.

    Returns:
        Judged: its table has `id`, `category`, `turn`, `score`, `n_ok`, `n`, `state`. Summary: `n`
        (conversations), `n_ok` (with both turns), `mean`, `low`, `high` of their means, `turn_1`,
        `turn_2` and `categories` (means of the scored turns), `failed`.

    Raises:
        TooManyFailures: see `Asking.max_failures`.
        ValueError: a row is not of this form, or as `score`.
        OSError: the cache cannot be read or written.

    Source: MT-Bench (arXiv 2306.05685); wording of the prompts: ours.
    """
    asked = judge_questions.of_conversations(rows, reference_categories=reference_categories)
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    table = judge_tables.means(judgements, ["id", "category", "turn"])
    both = table.groupby("id", sort=False)["score"].agg(lambda turns: turns.mean(skipna=False))
    by_turn = table.groupby("turn")["score"].mean()
    by_category = table.groupby("category", sort=False)["score"].mean()
    summary = {
        "n": len(both),
        **judge_tables.mean(both, both.index.to_series()),
        **{f"turn_{turn}": float(mean) for turn, mean in by_turn.items()},
        "categories": {str(name): float(mean) for name, mean in by_category.items()},
        "failed": judge_tables.failed(judgements),
    }
    judged = Judged(table=table, judgements=judgements, summary=summary, tally=tally)
    return _checked(judged, asking, cache)


def _ask(
    asked: Sequence[Asked], judge: Judge, cache: str | Path, samples: int, asking: Asking
) -> tuple[pd.DataFrame, Tally]:
    """Ask k times each, and return a row for each judgement."""
    drawn = judge_questions.drawn(asked, judge, samples=samples)
    questions = [question for _, question in drawn]
    judgements, tally = judge_client.ask(questions, judge, cache=cache, asking=asking)
    records = [
        {**label, **asdict(judgement)}
        for (label, _), judgement in zip(drawn, judgements, strict=True)
    ]
    return pd.DataFrame(records), tally


def _checked(judged: Judged, asking: Asking, cache: str | Path) -> Judged:
    """Return what was judged, unless too much of it has no value."""
    share = judge_tables.failed(judged.judgements)
    if share > asking.max_failures:
        said = judge_tables.failures(judged.judgements)
        raise TooManyFailures(
            f"{share:.1%} of {len(judged.judgements)} judgements have no value, more than the "
            f"{asking.max_failures:.1%} allowed ({said}). Everything paid for is stored in {cache}:"
            " the same command asks only for what had no reply; more attempts, for the rest.",
            judged,
        )
    return judged
