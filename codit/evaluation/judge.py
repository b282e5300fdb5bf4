"""An LLM as a judge: scores, comparisons in both orders, Best-of-N, benchmarks of two turns.

What each way asks, the tables of what was said, and the look before anything is asked. A response
without a text is counted as empty and never asked about. A judgement without a value is counted,
left out of means, and never given a number. A run with too many of them
fails, after everything else is stored. Values and choices without a source are ours.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from codit.evaluation import client, intervals, judged_rows, reply_cache, rubric, win_rates
from codit.evaluation.client import Asking, Judge, Question, Tally
from codit.evaluation.judged_rows import Answered, Rows
from codit.evaluation.rubric import REFERENCE_CATEGORIES

__all__ = [
    "Asking", "Judge", "Judged", "Plan", "Tally", "TooManyFailures", "best_of", "compare",
    "conversations", "length_controlled", "outcomes", "plan", "questions", "score",
]  # fmt: skip

PATIENT = Asking()
CHARACTERS = 4  # of a token: usual for English prose; other scripts take more tokens
WIN = {"forward": {"first": 1.0, "second": 0.0}, "swapped": {"first": 0.0, "second": 1.0}}


@dataclass(frozen=True)
class Judged:
    """What a judge said; `table` is that of the function that made it."""

    table: pd.DataFrame  # a row for each thing judged
    # A row for each judgement: what was judged, `draw` (which of k), `template`, `state`, `value`,
    # `note`, `reply`, `schema`, tokens, seconds, `is_cached`.
    judgements: pd.DataFrame
    # `n` and `n_ok` (rows of the table, and those with a value), `mean`, `low`, `high` (95 % over
    # prompts), `failed` (share of judgements), and more.
    summary: dict[str, Any]
    tally: Tally
    rows: list[dict[str, Any]] = field(default_factory=list)  # those that Best-of-N kept


class TooManyFailures(ValueError):  # noqa: N818
    """More judgements without a value than allowed; `judged` holds what there is."""

    def __init__(self, message: str, judged: Judged) -> None:
        super().__init__(message)
        self.judged = judged


def score(
    rows: Rows, judge: Judge, *, cache: str | Path, samples: int = 1, asking: Asking = PATIENT
) -> Judged:
    """Let a judge score responses from 1 to 10; a row's score is the mean of its k judgements.

    The table has `id`, `sample`, `length` (characters), `score` (NaN without any value), `n_ok`,
    `n`, `state` ("ok", or that of the last judgement).

    Args:
        rows: dicts or a file, with `instruction` or `messages`, and `response`.
        judge: whom to ask.
        cache: SQLite file of every reply; made where there is none.
        samples: judgements of each response, k; more than 1 only with a temperature above 0.
        asking: concurrency, attempts, prices, allowed failures.

    Raises:
        TooManyFailures: see `Asking.max_failures`.
        ValueError: a row cannot be judged, samples do not fit, or as `client.ask`.
        OSError: the cache cannot be read or written.

    Source: range, one judgement at temperature 1: the paper's code.
    """
    given = judged_rows.answered(rows)
    asked = _some(_of_rows(given))
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    table = _means(judgements, ["id", "sample", "length"])
    summary = _summary(judgements, table["score"], table["id"])
    summary["empty"] = len(given) - len(asked)
    return _checked(Judged(table, judgements, summary, tally), cache, asking)


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

    An arm wins where both orders name it; else it is a tie. win rate = mean of 1, 1/2 and 0. Rows
    are matched by id and sample. The table is that of `outcomes`. Summary: `mean` is the raw win
    rate of the first arm (see `length_controlled` for the other); `first`, `tie`, `second` (pairs);
    `flip_rate` (share of draws whose two orders disagree); `first_place_rate` (share of the
    verdicts for what stood first, ties aside); `left_out` (rows without a partner). Arguments and
    errors: see `score`; it is a ValueError too where no id is common, or prompts differ.

    Source: both orders, disagreement as a tie: MT-Bench (arXiv 2306.05685).
    """
    asked, left_out, empty = _of_arms(first, second)
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    table = outcomes(judgements)
    wins, draws = table["preference"], table["n_ok"].sum()
    named = judgements.loc[judgements["value"].isin(["first", "second"]), "value"]
    summary = _summary(judgements, wins, table["id"]) | {
        "first": int((wins > 0.5).sum()),
        "tie": int((wins == 0.5).sum()),
        "second": int((wins < 0.5).sum()),
        "flip_rate": float(table["flips"].sum() / draws) if draws else math.nan,
        "first_place_rate": float((named == "first").mean()) if len(named) else math.nan,
        "left_out": left_out,
        "empty": empty,
    }
    return _checked(Judged(table, judgements, summary, tally), cache, asking)


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

    Of equal scores the first is kept; a response without a score never beats one that has one;
    where none has, the first is kept. n = 1 asks nothing. `rows` are the kept ones; the table has
    `id`, `sample` (the kept), `score` and `first_score` (NaN without a value), `n_ok` (responses
    with a score), `is_tie`. Summary, of the kept: also `first_mean`, `ties`, `unscored` (prompts).
    Arguments and errors: see `score`; fewer than n responses to an id are a ValueError too.

    Source: the baseline and its prompt: the paper.
    """
    chosen, asked = _of_first(rows, n=n)
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    means = _means(judgements, ["id", "sample"]).to_dict("records") if asked else []
    scores = {(row["id"], row["sample"]): row["score"] for row in means}
    kept = [_best(group, scores) for group in chosen]
    table = pd.DataFrame([labels for _, labels in kept])
    summary = _summary(judgements, table["score"], table["id"]) | {
        "first_mean": float(table["first_score"].mean()),
        "ties": int(table["is_tie"].sum()),
        "unscored": int((table["n_ok"] == 0).sum()) if n > 1 else 0,
        "empty": sum(not row.response.strip() for group in chosen for row in group),
    }
    kept_rows = [dict(row.row) for row, _ in kept]
    return _checked(Judged(table, judgements, summary, tally, kept_rows), cache, asking)


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

    Rows: see `judged_rows.turns`; those of `reference_categories` are judged with their reference.
    The table has `id`, `category`, `turn`, `score`, `n_ok`, `n`, `state`. Summary: `n` counts
    conversations, `n_ok` those with both turns, whose means `mean` averages; `turn_1`, `turn_2` and
    `categories` (means of the scored turns). Other arguments and errors: see `score`.

    Source: MT-Bench (arXiv 2306.05685).
    """
    given = judged_rows.read(rows)
    asked = _some(judged_rows.turns(given, reference_categories=reference_categories))
    judgements, tally = _ask(asked, judge, cache, samples, asking)
    table = _means(judgements, ["id", "category", "turn"])
    both = table.groupby("id", sort=False)["score"].agg(lambda turns: turns.mean(skipna=False))
    by_turn = table.groupby("turn")["score"].mean()
    by_category = table.groupby("category", sort=False)["score"].mean()
    summary = _summary(judgements, both, both.index.to_series()) | {
        **{f"turn_{turn}": float(mean) for turn, mean in by_turn.items()},
        "categories": {str(name): float(mean) for name, mean in by_category.items()},
        "empty": len(given) - len(both),
    }
    return _checked(Judged(table, judgements, summary, tally), cache, asking)


def questions(
    data: Rows,
    *,
    against: Rows | None = None,
    best_of: int | None = None,
    conversations: bool = False,
    reference_categories: Collection[str] = REFERENCE_CATEGORIES,
) -> list[Question]:
    """Return what `score`, or the function that a keyword names, would ask: each once."""
    if against is not None:
        return _some(_of_arms(data, against)[0])
    if best_of is not None:
        return _of_first(data, n=best_of)[1]
    if conversations:
        return _some(judged_rows.turns(data, reference_categories=reference_categories))
    return _some(_of_rows(judged_rows.answered(data)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would ask."""

    questions: int  # judgements wanted; equal ones count each
    to_ask: int  # what the cache does not know; equal ones once
    prompt_tokens: int  # estimated: characters / 4
    reply_tokens: int  # at most, of one reply to each: `Judge.max_tokens`
    cost: float | None  # of both; None without prices


def plan(
    asked: Sequence[Question],
    judge: Judge,
    *,
    cache: str | Path,
    samples: int = 1,
    asking: Asking = PATIENT,
) -> Plan:
    """Return what a run would ask, and what it would cost with one full reply to each question.

    `asked` comes from `questions`; a cache that is not there is not made.
    """
    drawn = _drawn(asked, judge, samples)
    left = {client.item_of(judge, one): len(one.prompt) for one in drawn}
    if Path(cache).exists():
        with reply_cache.opened(cache, is_asking=False) as known:
            for item in list(left):
                if reply_cache.final(known.attempts(item), limit=asking.attempts) is not None:
                    del left[item]
    prompt_tokens = sum(-(-n // CHARACTERS) for n in left.values())
    reply_tokens = judge.max_tokens * len(left)
    return Plan(
        questions=len(drawn),
        to_ask=len(left),
        prompt_tokens=prompt_tokens,
        reply_tokens=reply_tokens,
        cost=asking.cost(prompt_tokens, reply_tokens),
    )


def outcomes(judgements: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair: an arm that both orders name, else nobody.

    Judgements have `id`, `sample`, `length`, `length_baseline` (characters of the first and of the
    second arm's response), `draw`, `order` ("forward" or "swapped"), `state`, `value`. The table
    has the first four, `preference` (for the first arm: mean of 1, 1/2 and 0 over draws; NaN
    without any), `flips` (draws whose two orders disagree), `n_ok` (draws with a verdict in both
    orders), `n` (draws), `state` ("ok", or that of the last failed judgement).

    Source: disagreement as a tie: MT-Bench (arXiv 2306.05685).
    """
    rows = []
    by = ["id", "sample", "length", "length_baseline"]
    for name, pair in judgements.groupby(by, sort=False):
        draws = [draw for _, draw in pair.groupby("draw", sort=False)]
        both = [
            [
                WIN[order].get(value, 0.5)
                for order, value in zip(draw["order"], draw["value"], strict=True)
            ]
            for draw in draws
            if (draw["state"] == "ok").all()
        ]
        wins = [one if one == other else 0.5 for one, other in both]
        last = draws[-1]["state"]
        told = {
            "preference": math.fsum(wins) / len(wins) if wins else math.nan,
            "flips": sum(one != other for one, other in both),
            "n_ok": len(wins),
            "n": len(draws),
            "state": "ok" if wins else last[last != "ok"].iloc[-1],
        }
        rows.append(dict(zip(by, name, strict=True)) | told)
    return pd.DataFrame(rows)


def length_controlled(table: pd.DataFrame) -> dict[str, Any]:
    """Return the win rate that the first arm of `outcomes` would have at equal lengths.

    Several pairs of a prompt are averaged first. `length_controlled` and its `lc_low`, `lc_high`
    (95 % over prompts), and `lc_note`: which published variant was fitted, or why none could be:
    then the three are NaN.

    Source: Dubois et al. 2024 (arXiv 2404.04475); see `win_rates.length_controlled`.
    """
    columns = ["preference", "length", "length_baseline"]
    averaged = table.dropna(subset="preference").groupby("id", sort=False)[columns].mean()
    try:
        found = win_rates.length_controlled(averaged.reset_index())
    except ValueError as error:
        unknown = dict.fromkeys(("length_controlled", "lc_low", "lc_high"), math.nan)
        return {**unknown, "lc_note": str(error)}
    ends = {"length_controlled": found.estimate, "lc_low": found.low, "lc_high": found.high}
    return {**ends, "lc_note": win_rates.VARIANT}


def _some(asked: list[Question]) -> list[Question]:
    """Return questions; ValueError: there is none."""
    if not asked:
        raise ValueError("expected at least one response with a text; got none. Nothing to judge.")
    return asked


def _of_rows(rows: Sequence[Answered]) -> list[Question]:
    """Return one question for each response that has a text: how good is it?"""
    return [
        Question.of(
            rubric.SINGLE,
            {"instruction": row.instruction, "response": row.response},
            {"id": row.id, "sample": row.sample, "length": len(row.response)},
        )
        for row in rows
        if row.response.strip()
    ]


def _of_arms(first: Rows, second: Rows) -> tuple[list[Question], int, int]:
    """Return two questions for each pair, one in each order, rows without a partner, empty pairs.

    A pair is empty where one of its responses is.
    """
    pairs, left_out = judged_rows.pairs(judged_rows.answered(first), judged_rows.answered(second))
    asked, empty = [], 0
    for one, other in pairs:
        if not one.response.strip() or not other.response.strip():
            empty += 1
            continue
        label = {"id": one.id, "sample": one.sample, "length": len(one.response)}
        label["length_baseline"] = len(other.response)
        for order, (a, b) in (("forward", (one, other)), ("swapped", (other, one))):
            values = {"instruction": a.instruction, "first": a.response, "second": b.response}
            asked.append(Question.of(rubric.PAIRWISE, values, {**label, "order": order}))
    return asked, left_out, empty


def _of_first(rows: Rows, *, n: int) -> tuple[list[list[Answered]], list[Question]]:
    """Return the first n responses to each prompt, and what to ask about them."""
    groups: dict[str, list[Answered]] = defaultdict(list)
    for row in judged_rows.answered(rows):
        groups[row.id].append(row)
    short = [name for name, group in groups.items() if len(group) < n]
    if n < 1 or short:
        raise ValueError(
            f"expected n of at least 1 and as many responses to every id; got n = {n}, and "
            f"{len(short)} ids with fewer{f', the first {short[0]!r}' if short else ''}. "
            "Synthesize with --n-samples."
        )
    kept = [sorted(group, key=lambda row: row.sample)[:n] for group in groups.values()]
    return kept, _of_rows([row for group in kept for row in group]) if n > 1 else []


def _drawn(asked: Sequence[Question], judge: Judge, samples: int) -> list[Question]:
    """Return k questions for each thing to be judged."""
    if samples < 1 or (samples > 1 and judge.temperature == 0):
        raise ValueError(
            "samples must be at least 1, and 1 where the temperature is 0, as all would be equal; "
            f"got {samples} at temperature {judge.temperature:g}."
        )
    return [replace(one, sample=draw) for one in asked for draw in range(samples)]


def _ask(
    asked: Sequence[Question], judge: Judge, cache: str | Path, samples: int, asking: Asking
) -> tuple[pd.DataFrame, Tally]:
    """Ask k times each, and return a row for each judgement."""
    drawn = _drawn(asked, judge, samples)
    judgements, tally = client.ask(drawn, judge, cache=cache, asking=asking)
    told = [one.label | {"draw": one.sample, "template": one.template.name} for one in drawn]
    both = zip(told, judgements, strict=True)
    return pd.DataFrame([label | asdict(judgement) for label, judgement in both]), tally


def _means(judgements: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the mean score of each thing judged, in the order of first occurrence."""
    is_ok = judgements["state"] == "ok"
    scored = judgements.assign(score=judgements["value"].where(is_ok).astype("float64"))
    groups = scored.groupby(by, sort=False)
    table = groups["score"].agg(score="mean", n_ok="count", n="size")
    table["state"] = groups["state"].agg(lambda s: "ok" if (s == "ok").any() else s.iloc[-1])
    return table.reset_index()


def _best(
    group: Sequence[Answered], scores: Mapping[tuple[str, int], float]
) -> tuple[Answered, dict[str, Any]]:
    """Return the response that scored highest; of equals, and without any score, the first."""
    said = [scores.get((row.id, row.sample), math.nan) for row in group]
    known = [value for value in said if not math.isnan(value)]
    place = said.index(max(known)) if known else 0
    return group[place], {
        "id": group[place].id,
        "sample": group[place].sample,
        "score": said[place],
        "first_score": said[0],
        "n_ok": len(known),
        "is_tie": bool(known) and known.count(max(known)) > 1,
    }


def _summary(
    judgements: pd.DataFrame, values: pd.Series[float], ids: pd.Series[str]
) -> dict[str, Any]:
    """Return counts, and the mean over prompts of what has a value; its ends need two prompts."""
    left = values.dropna()
    known = left.groupby(ids[left.index], sort=False).mean()
    ends = intervals.mean_interval(known) if len(known) > 1 else None
    return {
        "n": len(values),
        "n_ok": len(left),
        "mean": float(known.mean()),
        "low": ends.low if ends else math.nan,
        "high": ends.high if ends else math.nan,
        "failed": float((judgements["state"] != "ok").mean()) if len(judgements) else 0.0,
    }


def _checked(judged: Judged, cache: str | Path, asking: Asking) -> Judged:
    """Return what was judged, unless too much of it has no value."""
    share = judged.summary["failed"]
    if share > asking.max_failures:
        bad = judged.judgements[judged.judgements["state"] != "ok"]
        counted = ", ".join(f"{n} {state}" for state, n in Counter(bad["state"]).most_common())
        raise TooManyFailures(
            f"{share:.1%} of {len(judged.judgements)} judgements have no value, more than the "
            f"{asking.max_failures:.1%} allowed ({counted}; the first: {bad['note'].iloc[0]}). "
            f"Everything paid for is stored in {cache}: the same command asks only for what had no "
            "reply; more attempts, for the rest.",
            judged,
        )
    return judged
