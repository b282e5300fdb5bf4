"""What a study of judges shows, as tables: reliability, ranking, Best-of-N, failures, costs.

The tables come from `codit.judge_study`; what moves a judge besides quality: `judge_leanings`.
Where the verifier knows nothing its rows are missing. Intervals: 95 % over prompts.
Source of all tables: ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd

from codit import evidence, intervals, judge_agreement

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]

VERIFIER = "verifier"
AUTHORS = -1.0  # what the authors' code puts in the place of a score it cannot read
MIDDLE = 5.0  # what other tools put there
FILLS = {"minus one": AUTHORS, "five": MIDDLE}
ENDS = ("value", "low", "high")


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
        both = judge_agreement.agreement(named[one], named[other], kind="scores")
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
        found = judge_agreement.agreement(*told, kind="scores").spearman
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
            told = {"text": evidence.difference_text(found), "holds": evidence.decided(found)}
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
            ends = intervals.columns(
                intervals.mean_interval(kept["verifier"].to_numpy(dtype="float64"))
            )
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
