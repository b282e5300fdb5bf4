"""What a study of judges shows: tables and panels of notebook 08.

Reliability, ranking, Best-of-N, failures and costs, and what moves a judge besides quality: order
and length. The tables come from `codit.paper.judges`. Where the verifier knows nothing its rows are
missing, and a table without rows leaves its panel empty and says so. Intervals: 95 % over prompts.
Source of all tables: ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from codit.evaluation import agreement, intervals
from codit.evaluation.judge import length_controlled, outcomes
from codit.paper import plots, tables

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]

VERIFIER = "verifier"
AUTHORS = -1.0  # what the authors' code puts in the place of a score it cannot read
MIDDLE = 5.0  # what other tools put there
FILLS = {"minus one": AUTHORS, "five": MIDDLE}
ENDS = ("value", "low", "high")
INTERVAL = "95 % over prompts"
INTERVAL_BOTH = "95 %, left over prompts and seeds, right over prompts"


def judges(scores: pd.DataFrame) -> list[str]:
    """Return the judges of a table in the order of the study.

    Args:
        scores: of the study.

    Returns:
        list[str]: labels.
    """
    return list(dict.fromkeys(scores["judge"]))


def reliability(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how far each judge's scores are the verifier's, and the other judges'.

    Args:
        scores: of the study; its part "arms" is used.

    Returns:
        DataFrame: one, other (a judge, then the verifier or a later judge), equal (share),
        spearman and kappa (weighted) with their ends `_low`, `_high`, n (responses that both
        scored).

    Raises:
        ValueError: see `judge_agreement.agreement`.
    """
    by = _by_judge(scores)
    named = {**by, **_truth(scores)}
    pairs = [(a, b) for a, b in itertools.combinations(named, 2) if a in by]
    rows = []
    for one, other in pairs:
        both = agreement.agreement(named[one], named[other], kind="scores")
        ends: dict[str, float] = {}
        for name, found in (("spearman", both.spearman), ("kappa", both.kappa)):
            ends |= intervals.columns(found, name)
        rows.append({"one": one, "other": other, "equal": both.equal, **ends, "n": both.n_both})
    measures = [f"{name}{end}" for name in ("spearman", "kappa") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["one", "other", "equal", *measures, "n"])


def error_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how far two judges err alike: the correlation of their distances from the verifier.

    error of a judge on a response = its score minus the verifier's. Judges that err alike agree
    with each other more than either does with the truth.

    Args:
        scores: of the study, with the verifier's.

    Returns:
        DataFrame: one, other, value, low, high (Spearman over responses), n; empty where there are
        no two judges, or no verifier.
    """
    by, rows = _by_judge(scores), []
    for one, other in itertools.combinations(by, 2):
        told = [by[k].assign(score=by[k]["score"] - by[k]["verifier"]) for k in (one, other)]
        if told[0]["score"].isna().all():
            break
        found = agreement.agreement(*told, kind="scores").spearman
        rows.append({"one": one, "other": other, **intervals.columns(found), "n": found.n})
    return pd.DataFrame(rows, columns=["one", "other", *ENDS, "n"])


def arms(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean score of each arm by each judge and by the verifier.

    Args:
        scores: of the study; its part "arms" is used. What has no score is left out.

    Returns:
        DataFrame: who, arm, role, value, low, high, n (responses scored).
    """
    rows = []
    for who, table in {**_truth(scores), **_by_judge(scores)}.items():
        for arm, own in table.groupby("arm", sort=False):
            known = own["score"].dropna()
            ends = intervals.columns(intervals.mean_interval(known.to_numpy(dtype="float64")))
            rows.append({"who": who, "arm": arm, "role": arm, **ends, "n": len(known)})
    return pd.DataFrame(rows)


def differences(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return paired differences of arms by each judge and by the verifier.

    Args:
        scores: of the study; prompts on which one of the two has no score are left out.
        pairs: (one, other) arms.

    Returns:
        DataFrame: who, role (a colour), one, other, value, low, high, text, holds (see
        `evidence.decided`).
    """
    rows = []
    for who, table in {**_truth(scores), **_by_judge(scores)}.items():
        wide = table.pivot_table(index="id", columns="arm", values="score")
        for one, other in pairs:
            gaps = (wide[one] - wide[other]).dropna().to_numpy(dtype="float64")
            found = intervals.mean_interval(gaps)
            told = {"text": tables.difference_text(found), "holds": tables.decided(found)}
            told["role"] = role(who, scores)
            rows.append(
                {"who": who, "one": one, "other": other, **intervals.columns(found), **told}
            )
    return pd.DataFrame(rows)


def best_of(scores: pd.DataFrame, sizes: Sequence[int] = (1, 2, 4)) -> pd.DataFrame:
    """Return how good the kept response is by the verifier, by who chooses and among how many.

    Args:
        scores: of the study, with the verifier's; its part "pool" is used.
        sizes: responses that compete: the first ones.

    Returns:
        DataFrame: who (a judge, the verifier), role, n, value, low, high (the verifier's mean
        score of the kept), share (of what the verifier's own choice gains over the first).
        Empty without a verifier.
    """
    pool = scores[scores["part"] == "pool"]
    if pool["verifier"].isna().all():
        return pd.DataFrame(columns=["who", "role", "n", *ENDS, "share"])
    rows: list[dict[str, Any]] = []
    for size in sizes:
        gains = {}
        for who in (VERIFIER, *judges(pool)):
            kept = _kept(pool, who, size)
            gains[who] = float((kept["verifier"] - kept["first"]).mean())
            best = gains[VERIFIER]
            values = kept["verifier"].to_numpy(dtype="float64")
            ends = intervals.columns(intervals.mean_interval(values))
            share = gains[who] / best if best else float("nan")
            rows.append({"who": who, "role": role(who, pool), "n": size, **ends, "share": share})
    return pd.DataFrame(rows)


def failures(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what replies that are cut cost, and what becomes of a mean that hides them.

    Of one judge on the same responses, by its budget of tokens. `dropped`: mean of what has a
    score, as here; `minus one`: failures enter as -1, as the authors' parser gives; `five`: as 5.

    Args:
        scores: of the study; its part "budget", and the same responses in "arms".

    Returns:
        DataFrame: judge, budget, n, failed (share), full (mean with the judge's own budget),
        dropped, minus one, five (errors of the mean: less `full`), failed_low, failed_high, and
        the mean of the judge's full scores of what failed and of what did not.
    """
    rows = []
    for judge, budget, cut, full in _budgets(scores):
        lost = ~np.isfinite(cut)
        share = intervals.mean_interval(lost.astype("float64"))
        mean = float(full.mean())
        filled = {k: float(np.where(lost, v, cut).mean()) - mean for k, v in FILLS.items()}
        rows.append(
            {
                "judge": judge,
                "budget": budget,
                "n": len(cut),
                **intervals.columns(share, "failed"),
                "full": mean,
                "dropped": _mean(cut[~lost]) - mean,
                **filled,
                "full of failed": _mean(full[lost]),
                "full of kept": _mean(full[~lost]),
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["judge", "budget"])


def failure_errors(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how wrong a mean score is by what takes the place of replies that were cut.

    Args:
        scores: of the study; see `failures`.

    Returns:
        DataFrame: judge, budget, failed (share), treatment, value, low, high (points; 95 % over
        prompts; the mean so treated less the mean of the same responses with room enough).
    """
    rows = []
    for judge, budget, cut, full in _budgets(scores):
        for name, fill in {"dropped": None, **FILLS}.items():
            told = cut if fill is None else np.where(np.isfinite(cut), cut, fill)
            if np.isfinite(told).sum() > 1:
                found = intervals.statistic_interval(partial(_error, told, full), range(len(full)))
                told_of = {"judge": judge, "budget": budget, "failed": _mean(~np.isfinite(cut))}
                rows.append({**told_of, "treatment": name, **intervals.columns(found)})
    return pd.DataFrame(rows, columns=["judge", "budget", "failed", "treatment", *ENDS])


def _error(told: Numbers, full: Numbers, drawn: Numbers) -> float:
    known = told[drawn]
    known = known[np.isfinite(known)]
    return float(known.mean() - full[drawn].mean()) if len(known) else float("nan")


def _budgets(scores: pd.DataFrame) -> Iterator[tuple[str, int, Numbers, Numbers]]:
    """Yield judge, budget, and scores of the same responses under it and without a limit."""
    whole = scores[scores["part"] == "arms"].set_index(["judge", "arm", "id", "sample"])["score"]
    parts = scores[scores["part"] == "budget"]
    for (judge, budget), own in parts.groupby(["judge", "budget"], sort=False):
        keys = pd.MultiIndex.from_frame(own[["judge", "arm", "id", "sample"]])
        full = whole.reindex(keys).to_numpy(dtype="float64")
        cut = own["score"].to_numpy(dtype="float64")
        yield str(judge), int(budget), cut[np.isfinite(full)], full[np.isfinite(full)]


def costs(told: pd.DataFrame) -> pd.DataFrame:
    """Return what each run of a study asked and used.

    Args:
        told: of the study.

    Returns:
        DataFrame: judge, run, judgements, cached, calls, seconds, judged/s, prompt and completion
        tokens, ok and honoured (shares of the judgements: with a value, kept to the schema).
    """
    names = ["questions", "cached", "calls", "seconds", "prompt_tokens", "completion_tokens"]
    summed = told.groupby(["judge", "run"], sort=False)[[*names, "ok", "honoured"]].sum()
    rate = summed["questions"] / summed["seconds"]
    shares = {name: summed[name] / summed["questions"] for name in ("ok", "honoured")}
    found = summed.drop(columns=["ok", "honoured"]).assign(**{"judged/s": rate}, **shares)
    return found.rename(columns={"questions": "judgements"}).reset_index()


def _kept(pool: pd.DataFrame, who: str, size: int) -> pd.DataFrame:
    """Return the chosen response to each prompt; of equals, and without a score, the first."""
    own = pool[(pool["judge"] == (judges(pool)[0] if who == VERIFIER else who))]
    own = own[own["sample"] < size].sort_values(["id", "sample"])
    by = own["verifier"] if who == VERIFIER else own["score"]
    best = by.fillna(-np.inf).groupby(own["id"]).idxmax()
    first = own.groupby("id")["verifier"].first()
    return own.loc[best].set_index("id")[["verifier"]].assign(first=first)


def _by_judge(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each judge's scores of the arms; an id is a prompt, a sample an arm's response."""
    part = _arms(scores)
    return {name: part[part["judge"] == name].drop(columns="judge") for name in judges(scores)}


def _truth(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the verifier's scores of the arms, where it knows any."""
    part = _arms(scores)
    part = part[part["judge"] == judges(scores)[0]].drop(columns=["judge", "score"])
    told = part.rename(columns={"verifier": "score"})
    return {} if told["score"].isna().all() else {VERIFIER: told}


def _arms(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of the arms, each response told apart by id and sample."""
    part = scores[scores["part"] == "arms"].copy()
    part["sample"] = part["arm"].map({arm: n for n, arm in enumerate(dict.fromkeys(part["arm"]))})
    part["score"] = part["score"].astype("float64")
    kept = ["judge", "arm", "id", "sample", "score", "verifier", "length"]
    return part[kept].sort_values(["sample", "id"], kind="stable", ignore_index=True)


def role(who: str, scores: pd.DataFrame) -> str:
    """Return whose colour somebody who scores has.

    Args:
        who: a judge of the study, or the verifier.
        scores: of the study.

    Returns:
        str: a key of `figures.COLOURS`.
    """
    if who == VERIFIER:
        return "ideal"
    return ("chat-vector", "amateur", "expert")[judges(scores).index(who) % 3]


def _mean(values: Numbers) -> float:
    return float(values.mean()) if len(values) else float("nan")


def order(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return how much the order of two responses decides, by judge and by what was compared.

    Args:
        comparisons: of the study.

    Returns:
        DataFrame: judge, compared, pairs, flips (rate), reversed (named different winners), first
        (preference for what stands first: .5 without a bias), each with `_low`, `_high`.
    """
    rows = []
    for (judge, one, other), own in comparisons.groupby(["judge", "one", "other"], sort=False):
        found = agreement.position_bias(own)
        measures = {
            "flips": found.flip_rate,
            "reversed": found.reversed_rate,
            "first": found.first_share,
        }
        told: dict[str, Any] = {"judge": judge, "compared": _compared(one, other), "pairs": found.n}
        for name, value in measures.items():
            told |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(told)
    return pd.DataFrame(rows)


def wins(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return win rates by judge, raw and length-controlled, and by the verifier.

    Args:
        comparisons: of the study. The verifier prefers what it scores higher; equal is a tie.

    Returns:
        DataFrame: who, compared, kind ("raw" or "length-controlled"), value, low, high (NaN where
        nothing can be fitted), ties (share), pairs, equal (share of pairs on which a judge and the
        verifier name the same winner, or a tie; NaN for the verifier).
    """
    rows: list[dict[str, Any]] = []
    parts = comparisons[comparisons["one"] != comparisons["other"]]
    for (one, other), pair in parts.groupby(["one", "other"], sort=False):
        truth = _truths(pair)
        told = {"compared": _compared(one, other)}
        for who, own in pair.groupby("judge", sort=False):
            rows += _rates(str(who), _outcomes(own), truth, told)
        if not truth["preference"].isna().all():
            rows += _rates(VERIFIER, truth, None, told)
    return pd.DataFrame(rows)


def length(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how scores go with length within a prompt: by the verifier, by judges, by their error.

    Longer may be better; what a judge adds to the verifier's slope is its own.

    Args:
        scores: of the study; its part "arms" is used.

    Returns:
        DataFrame: who, kind ("score" or "error": score less the verifier's), value, low, high
        (points for each doubling of the length), prompts.
    """
    part = scores[scores["part"] == "arms"]
    first = part[part["judge"] == part["judge"].iloc[0]]
    has_truth = bool(part["verifier"].notna().any())
    rows = [_slope(VERIFIER, "score", first, first["verifier"])] if has_truth else []
    for who, own in part.groupby("judge", sort=False):
        rows.append(_slope(str(who), "score", own, own["score"]))
        if has_truth:
            rows.append(_slope(str(who), "error", own, own["score"] - own["verifier"]))
    return pd.DataFrame(rows)


def misses(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what judges see and what they miss: their errors by what is true of a response.

    Args:
        scores: of the study, with the verifier's; its part "arms" is used.

    Returns:
        DataFrame: who, correct, obeyed (every instruction), n (responses), verifier (its mean
        score), value, low, high (a judge's mean score less the verifier's). Without rows where the
        verifier knows nothing.
    """
    part = scores[(scores["part"] == "arms") & scores["verifier"].notna()]
    rows = []
    for (who, correct, obeyed), own in part.groupby(["judge", "correct", "strict"], sort=True):
        gaps = (own["score"].astype("float64") - own["verifier"]).groupby(own["id"]).mean()
        told = {"who": who, "correct": bool(correct), "obeyed": bool(obeyed), "n": len(own)}
        found = intervals.mean_interval(gaps.dropna().to_numpy(dtype="float64"))
        rows.append({**told, "verifier": float(own["verifier"].mean()), **intervals.columns(found)})
    columns = ["who", "correct", "obeyed", "n", "verifier", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _slope(who: str, kind: str, table: pd.DataFrame, values: pd.Series[float]) -> dict[str, Any]:
    found = agreement.length_bias(table.assign(score=values.astype("float64")))
    return {"who": who, "kind": kind, **intervals.columns(found.slope), "prompts": found.n_slope}


def _rates(
    who: str, table: pd.DataFrame, truth: pd.DataFrame | None, told: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return both win rates of one judge, or of the verifier."""
    known = table["preference"].dropna()
    equal = np.nan
    if truth is not None:
        both = table.merge(truth, on="id", suffixes=("", "_true")).dropna()
        signs = [np.sign(both[c] - 0.5) for c in ("preference", "preference_true")]
        equal = float((signs[0] == signs[1]).mean()) if len(both) else np.nan
    common = {"ties": float((known == 0.5).mean()), "pairs": len(known), "equal": equal}
    raw = intervals.mean_interval(known.to_numpy(dtype="float64"))
    rows = [{"who": who, **told, "kind": "raw", **intervals.columns(raw), **common}]
    controlled = length_controlled(table)  # of few or lopsided pairs there may be none
    named = {"value": "length_controlled", "low": "lc_low", "high": "lc_high"}
    ends = {end: controlled[name] for end, name in named.items()}
    return [*rows, {"who": who, **told, "kind": "length-controlled", **ends, **common}]


def _outcomes(own: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair by a judge, as `judge.outcomes` decides it."""
    names = {"length_one": "length", "length_other": "length_baseline"}
    return outcomes(own.rename(columns=names).assign(draw=0))


def _truths(pair: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair by the verifier's scores."""
    own = pair.drop_duplicates("id")
    gap = own["verifier_one"].astype("float64") - own["verifier_other"].astype("float64")
    return pd.DataFrame(
        {
            "id": own["id"],
            "preference": (np.sign(gap) + 1) / 2,
            "length": own["length_one"],
            "length_baseline": own["length_other"],
        }
    )


def _compared(one: str, other: str) -> str:
    return f"{one} with itself" if one == other else f"{one} with {other}"


def draw_arms(axes: Axes, gaps: pd.DataFrame) -> None:
    """Draw what each judge and the verifier say of one arm less another.

    Args:
        axes: where to draw.
        gaps: of `differences` with a column `set`, one pair of arms.
    """
    named = gaps.assign(arm=gaps["who"] + ", " + gaps["set"])
    plots.forest(axes, named, interval=INTERVAL, zero=True)


def draw_best_of(axes: Axes, best: pd.DataFrame) -> None:
    """Draw how good the kept response is over N, a curve for each who chooses.

    Args:
        axes: where to draw.
        best: of `best_of`, one set.
    """
    axes.set(xlabel="N", ylabel="verifier's score of the kept")
    if _is_empty(axes, best):
        return
    for (who, role), own in best.groupby(["who", "role"], sort=False):
        plots.line(axes, own, x="n", role=role, label=f"by {who}")
    axes.set_xticks(sorted(set(best["n"])))
    axes.legend(fontsize="small")


def draw_failures(axes: Axes, errors: pd.DataFrame) -> None:
    """Draw how wrong a mean is over the share of cut replies, a curve for each treatment.

    Args:
        axes: where to draw.
        errors: of `failure_errors`, one judge.
    """
    axes.set(xlabel="share of replies that were cut", ylabel="error of the mean score (points)")
    axes.axhline(0, color="black", linewidth=0.8)
    if _is_empty(axes, errors):
        return
    treatments = errors.groupby("treatment", sort=False)
    for (name, own), style in zip(treatments, plots.STYLES, strict=False):
        plots.line(axes, own, x="failed", role=None, label=str(name), style=style)
    axes.legend(fontsize="small", title="failures are")


def draw_order(axes: Axes, order: pd.DataFrame, roles: Mapping[str, str]) -> None:
    """Draw the preference for what stands first, a row for each judge and comparison.

    Args:
        axes: where to draw.
        order: of `order` with a column `set`.
        roles: a judge's colour.
    """
    table = order.rename(columns={"first": "value", "first_low": "low", "first_high": "high"})
    table["arm"] = table["judge"] + ": " + table["compared"] + ", " + table["set"]
    axes.axvline(0.5, color="black", linewidth=0.8)
    plots.forest(axes, table.assign(role=table["judge"].map(roles)), interval=INTERVAL)


def draw_length(axes: Axes, length: pd.DataFrame, roles: Mapping[str, str]) -> None:
    """Draw how scores go with length, a row for each who scores.

    Args:
        axes: where to draw.
        length: of `length` with a column `set`.
        roles: a judge's, and the verifier's, colour.
    """
    table = length.assign(role=length["who"].map(roles))
    table["arm"] = table["who"] + ": " + table["kind"] + ", " + table["set"]
    plots.forest(axes, table, interval=None, zero=True)


def draw_students(axes: Axes, table: pd.DataFrame, *, zero: bool = True) -> None:
    """Draw what each who scores says of students, a row for each arm.

    Args:
        axes: where to draw.
        table: of `judging.score_gains`, or of one kind of `wins` with a column `role`.
        zero: draw a line at 0, and name the intervals; False: a line at .5, of win rates.
    """
    table = table.dropna(subset=["value"])
    if _is_empty(axes, table):
        return
    named = table.assign(arm=table["who"] + ": " + table["arm"])
    plots.forest(axes, named, interval=INTERVAL_BOTH if zero else None, zero=zero)
    if not zero:
        axes.axvline(0.5, color="black", linewidth=0.8)


def _is_empty(axes: Axes, table: pd.DataFrame) -> bool:
    if len(table) == 0:
        axes.text(0.5, 0.5, "not asked at this scale", ha="center", transform=axes.transAxes)
    return len(table) == 0
