"""What a study of judges shows: tables and panels of notebook 08.

Reliability, ranking, Best-of-N, failures and costs, and what moves a judge besides quality: order
and length. `scores`, `comparisons` and `told` are the tables of `judges.study`. Where the verifier
knows nothing its rows are missing, and a table without rows leaves its panel empty and says so.
`value`, `low`, `high`: an estimate and the ends of its 95 % interval over prompts. Values and
choices without a source are ours.
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
from codit.evaluation.judge import outcomes
from codit.paper import plots, tables
from codit.paper.judges import VERIFIER, rates

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]

# What others put in the place of a score that cannot be read: the authors' code, other tools.
FILLS = {"minus one": -1.0, "five": 5.0}
ENDS = ("value", "low", "high")
INTERVAL = "95 % over prompts"


def judges(scores: pd.DataFrame) -> list[str]:
    """Return the labels of a table's judges in the order of the study."""
    return list(dict.fromkeys(scores["judge"]))


def role(who: str, scores: pd.DataFrame) -> str:
    """Return whose colour, of `figures.COLOURS`, a judge of the study or the verifier has."""
    if who == VERIFIER:
        return "ideal"
    return ("chat-vector", "amateur", "expert")[judges(scores).index(who) % 3]


def costs(told: pd.DataFrame) -> pd.DataFrame:
    """Return what each run of a study asked and used.

    Returns:
        DataFrame: judge, run, judgements, cached, calls, seconds, judged/s, prompt and completion
        tokens, ok and honoured (shares of the judgements: with a value, kept to the schema).
    """
    names = ["questions", "cached", "calls", "seconds", "prompt_tokens", "completion_tokens"]
    summed = told.groupby(["judge", "run"], sort=False)[[*names, "ok", "honoured"]].sum()
    found = summed[names].assign(**{"judged/s": summed["questions"] / summed["seconds"]})
    for name in ("ok", "honoured"):
        found[name] = summed[name] / summed["questions"]
    return found.rename(columns={"questions": "judgements"}).reset_index()


def reliability(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how far each judge's scores of the arms are the verifier's, and the other judges'.

    Returns:
        DataFrame: one, other (a judge, then a later judge or the verifier), equal (share),
        spearman and kappa (weighted) with their ends `_low`, `_high`, n (responses that both
        scored).

    Raises:
        ValueError: see `agreement.agreement`.
    """
    named, rows = _scorers(scores), []
    for one, other in itertools.combinations(sorted(named, key=lambda who: who == VERIFIER), 2):
        both = agreement.agreement(named[one], named[other], kind="scores")
        ranked = intervals.columns(both.spearman, "spearman")
        ends = {**ranked, **intervals.columns(both.kappa, "kappa")}
        rows.append({"one": one, "other": other, "equal": both.equal, **ends, "n": both.n_both})
    measures = [f"{name}{end}" for name in ("spearman", "kappa") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["one", "other", "equal", *measures, "n"])


def error_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how far two judges err alike: the correlation of their distances from the verifier.

    Judges that err alike agree with each other more than either does with the truth.

    Returns:
        DataFrame: one, other, value, low, high (Spearman over responses), n; empty where there are
        no two judges, or no verifier.
    """
    named, rows = _scorers(scores), []
    known = [who for who in named if who != VERIFIER] if VERIFIER in named else []
    errors = {k: named[k].assign(score=named[k]["score"] - named[k]["verifier"]) for k in known}
    for one, other in itertools.combinations(errors, 2):
        found = agreement.agreement(errors[one], errors[other], kind="scores").spearman
        rows.append({"one": one, "other": other, **intervals.columns(found), "n": found.n})
    return pd.DataFrame(rows, columns=["one", "other", *ENDS, "n"])


def arms(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean score of each arm by each judge and by the verifier.

    Returns:
        DataFrame: who, arm, role, value, low, high, n (responses scored; others are left out).
    """
    rows = []
    for who, table in _scorers(scores).items():
        for arm, own in table.groupby("arm", sort=False):
            known = own["score"].dropna()
            ends = intervals.columns(intervals.mean_interval(known))
            rows.append({"who": who, "arm": arm, "role": arm, **ends, "n": len(known)})
    return pd.DataFrame(rows)


def differences(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return paired differences of arms by each judge and by the verifier.

    Args:
        scores: of the study; prompts on which one of the two has no score are left out.
        pairs: (one, other) arms.

    Returns:
        DataFrame: who, one, other, value, low, high, text, holds (see `tables.decided`), role (a
        colour).
    """
    rows = []
    for who, table in _scorers(scores).items():
        wide = table.pivot_table(index="id", columns="arm", values="score")
        for one, other in pairs:
            found = intervals.mean_interval((wide[one] - wide[other]).dropna())
            told = {"who": who, "one": one, "other": other, **intervals.columns(found)}
            told |= {"text": tables.difference_text(found), "holds": tables.decided(found)}
            rows.append({**told, "role": role(who, scores)})
    return pd.DataFrame(rows)


def misses(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what judges see and what they miss: their errors by what is true of a response.

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
        found = intervals.mean_interval(gaps.dropna())
        rows.append({**told, "verifier": float(own["verifier"].mean()), **intervals.columns(found)})
    return pd.DataFrame(rows, columns=["who", "correct", "obeyed", "n", "verifier", *ENDS])


def order(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return how much the order of two responses decides, by judge and by what was compared.

    Returns:
        DataFrame: judge, compared, pairs, flips (rate), reversed (named different winners), first
        (preference for what stands first: .5 without a bias), each with `_low`, `_high`.
    """
    rows = []
    for (judge, one, other), own in comparisons.groupby(["judge", "one", "other"], sort=False):
        found = agreement.position_bias(own)
        told = {"judge": judge, "compared": _compared(one, other), "pairs": found.n}
        told |= intervals.columns(found.flip_rate, "flips")
        told |= intervals.columns(found.reversed_rate, "reversed")
        rows.append({**told, **intervals.columns(found.first_share, "first")})
    return pd.DataFrame(rows)


def wins(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return win rates by judge, raw and length-controlled, and by the verifier.

    The verifier prefers what it scores higher; equal is a tie.

    Returns:
        DataFrame: who, compared, kind ("raw" or "length-controlled"), value, low, high (NaN where
        nothing can be fitted), ties (share), pairs, equal (share of pairs on which a judge and the
        verifier name the same winner, or a tie; NaN for the verifier).
    """
    rows: list[dict[str, Any]] = []
    parts = comparisons[comparisons["one"] != comparisons["other"]]
    names = {"length_one": "length", "length_other": "length_baseline"}
    for (one, other), pair in parts.rename(columns=names).groupby(["one", "other"], sort=False):
        by = pair.groupby("judge", sort=False)
        said = {str(who): outcomes(own.assign(draw=0)) for who, own in by}
        truth = _truth(pair)
        if truth["preference"].notna().any():
            said[VERIFIER] = truth
        for who, table in said.items():
            known = table["preference"].dropna().to_numpy(dtype="float64")
            equal = np.nan if who == VERIFIER else _equal(table, truth)
            common = {"ties": float((known == 0.5).mean()), "pairs": len(known), "equal": equal}
            told = {"who": who, "compared": _compared(one, other)}
            rows += [{**told, **rate, **common} for rate in rates(known, table)]
    return pd.DataFrame(rows)


def length(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how scores go with length within a prompt: by the verifier, by judges, by their error.

    Longer may be better; what a judge adds to the verifier's slope is its own.

    Returns:
        DataFrame: who, kind ("score" or "error": score less the verifier's), value, low, high
        (points for each doubling of the length), prompts.
    """
    part = scores[scores["part"] == "arms"]
    has_truth = bool(part["verifier"].notna().any())
    first = part[part["judge"] == part["judge"].iloc[0]]
    said = [(VERIFIER, "score", first, first["verifier"])] if has_truth else []
    for who, own in part.groupby("judge", sort=False):
        said.append((str(who), "score", own, own["score"]))
        if has_truth:
            said.append((str(who), "error", own, own["score"] - own["verifier"]))
    rows = []
    for name, kind, own, values in said:
        found = agreement.length_bias(own.assign(score=values.astype("float64")))
        rows.append({"who": name, "kind": kind, **intervals.columns(found), "prompts": found.n})
    return pd.DataFrame(rows)


def failures(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what replies that are cut cost, and what becomes of a mean that hides them.

    Of one judge on the same responses, by its budget of tokens. `dropped`: mean of what has a
    score, as here; `minus one`: failures enter as -1, as the authors' parser gives; `five`: as 5.

    Returns:
        DataFrame: judge, budget, n, failed (share) with its ends, full (mean with the judge's own
        budget), dropped, minus one, five (errors of the mean: less `full`), and the mean of the
        judge's full scores of what failed and of what did not.
    """
    rows = []
    for judge, budget, cut, full in _budgets(scores):
        lost = ~np.isfinite(cut)
        share = intervals.columns(intervals.mean_interval(lost), "failed")
        told = {"judge": judge, "budget": budget, "n": len(cut), **share, "full": full.mean()}
        told["dropped"] = _mean(cut[~lost]) - full.mean()
        told |= {k: np.where(lost, v, cut).mean() - full.mean() for k, v in FILLS.items()}
        whole = {"full of failed": _mean(full[lost]), "full of kept": _mean(full[~lost])}
        rows.append({**told, **whole})
    return pd.DataFrame(rows, columns=None if rows else ["judge", "budget"])


def failure_errors(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how wrong a mean score is by what takes the place of replies that were cut.

    Returns:
        DataFrame: judge, budget, failed (share), treatment (see `failures`), value, low, high
        (points: the mean so treated less the mean of the same responses with room enough).
    """
    rows = []
    for judge, budget, cut, full in _budgets(scores):
        lost = ~np.isfinite(cut)
        told = {"judge": judge, "budget": budget, "failed": _mean(lost)}
        for name, fill in {"dropped": np.nan, **FILLS}.items():
            filled = np.where(lost, fill, cut)
            if np.isfinite(filled).sum() > 1:
                error = partial(_error, filled, full)
                ends = intervals.columns(intervals.statistic_interval(error, range(len(full))))
                rows.append({**told, "treatment": name, **ends})
    return pd.DataFrame(rows, columns=["judge", "budget", "failed", "treatment", *ENDS])


def best_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how good the kept response is by the verifier, by who chooses and among how many.

    Of the study's part "pool" the first 1, 2 and 4 responses compete.

    Returns:
        DataFrame: who (a judge, the verifier), role, n, value, low, high (the verifier's mean
        score of the kept), share (of what the verifier's own choice gains over the first).
        Empty without a verifier.
    """
    pool = scores[scores["part"] == "pool"]
    rows: list[dict[str, Any]] = []
    for size in (1, 2, 4) if pool["verifier"].notna().any() else ():
        most = np.nan  # what the verifier's choice gains: it comes first
        for who in (VERIFIER, *judges(pool)):
            kept = _kept(pool, who, size)
            gain = float((kept["verifier"] - kept["first"]).mean())
            most = gain if who == VERIFIER else most
            ends = intervals.columns(intervals.mean_interval(kept["verifier"]))
            share = gain / most if most else np.nan
            rows.append({"who": who, "role": role(who, pool), "n": size, **ends, "share": share})
    return pd.DataFrame(rows, columns=["who", "role", "n", *ENDS, "share"])


# -- panels --------------------------------------------------------------------------------------


def draw_arms(axes: Axes, gaps: pd.DataFrame) -> None:
    """Draw `differences` of one pair of arms, with a column `set`: a row for each who scores."""
    named = gaps.assign(arm=gaps["who"] + ", " + gaps["set"])
    plots.forest(axes, named, interval=INTERVAL, zero=True)


def draw_best_of(axes: Axes, best: pd.DataFrame) -> None:
    """Draw `best_of` of one set over N: a curve for each who chooses."""
    axes.set(xlabel="N", ylabel="verifier's score of the kept")
    if _is_empty(axes, best):
        return
    for (who, role), own in best.groupby(["who", "role"], sort=False):
        plots.line(axes, own, x="n", role=role, label=f"by {who}")
    axes.set_xticks(sorted(set(best["n"])))
    axes.legend(fontsize="small")


def draw_failures(axes: Axes, errors: pd.DataFrame) -> None:
    """Draw `failure_errors` of one judge over the share of cut replies: a curve by treatment."""
    axes.set(xlabel="share of replies that were cut", ylabel="error of the mean score (points)")
    axes.axhline(0, color="black", linewidth=0.8)
    if _is_empty(axes, errors):
        return
    treatments = errors.groupby("treatment", sort=False)
    for (name, own), style in zip(treatments, plots.STYLES, strict=False):
        plots.line(axes, own, x="failed", role=None, label=str(name), style=style)
    axes.legend(fontsize="small", title="failures are")


def draw_order(axes: Axes, order: pd.DataFrame, roles: Mapping[str, str]) -> None:
    """Draw the preference for what stands first, of `order` with a column `set`.

    `roles`: whose colour a judge has.
    """
    table = order.rename(columns={"first": "value", "first_low": "low", "first_high": "high"})
    table["arm"] = table["judge"] + ": " + table["compared"] + ", " + table["set"]
    axes.axvline(0.5, color="black", linewidth=0.8)
    plots.forest(axes, table.assign(role=table["judge"].map(roles)), interval=INTERVAL)


def draw_length(axes: Axes, length: pd.DataFrame, roles: Mapping[str, str]) -> None:
    """Draw `length` with a column `set`; `roles`: whose colour a judge and the verifier have."""
    table = length.assign(role=length["who"].map(roles))
    table["arm"] = table["who"] + ": " + table["kind"] + ", " + table["set"]
    plots.forest(axes, table, interval=None, zero=True)


def draw_students(axes: Axes, table: pd.DataFrame, *, interval: str | None = None) -> None:
    """Draw what each who scores says of students, a row for each arm.

    Args:
        axes: where to draw.
        table: of `judges.score_gains`, or of one kind of `judges.wins`.
        interval: what the whiskers of both panels are, of gains, around a line at 0; None: of win
            rates, around one at .5.
    """
    table = table.dropna(subset=["value"])
    if _is_empty(axes, table):
        return
    named = table.assign(arm=table["who"] + ": " + table["arm"])
    plots.forest(axes, named, interval=interval, zero=interval is not None)
    if interval is None:
        axes.axvline(0.5, color="black", linewidth=0.8)


def _is_empty(axes: Axes, table: pd.DataFrame) -> bool:
    if len(table) == 0:
        axes.text(0.5, 0.5, "not asked at this scale", ha="center", transform=axes.transAxes)
    return len(table) == 0


# -- parts of the tables -------------------------------------------------------------------------


def _scorers(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return everyone's scores of the arms: the verifier's, where it knows any, then the judges'.

    An id is a prompt, a sample an arm's response.
    """
    part = scores[scores["part"] == "arms"].copy()
    part["sample"] = part["arm"].map({arm: n for n, arm in enumerate(dict.fromkeys(part["arm"]))})
    part["score"] = part["score"].astype("float64")
    part = part.sort_values(["sample", "id"], kind="stable", ignore_index=True)
    said = {name: part[part["judge"] == name] for name in judges(scores)}
    first = said[judges(scores)[0]]
    truth = {VERIFIER: first.assign(score=first["verifier"])}
    return {**truth, **said} if first["verifier"].notna().any() else said


def _budgets(scores: pd.DataFrame) -> Iterator[tuple[str, int, Numbers, Numbers]]:
    """Yield judge, budget, and scores of the same responses under it and without a limit."""
    whole = scores[scores["part"] == "arms"].set_index(["judge", "arm", "id", "sample"])["score"]
    parts = scores[scores["part"] == "budget"]
    for (judge, budget), own in parts.groupby(["judge", "budget"], sort=False):
        keys = pd.MultiIndex.from_frame(own[["judge", "arm", "id", "sample"]])
        full = whole.reindex(keys).to_numpy(dtype="float64")
        cut = own["score"].to_numpy(dtype="float64")
        yield str(judge), int(budget), cut[np.isfinite(full)], full[np.isfinite(full)]


def _error(told: Numbers, full: Numbers, drawn: Numbers) -> float:
    known = told[drawn]
    return _mean(known[np.isfinite(known)]) - float(full[drawn].mean())


def _kept(pool: pd.DataFrame, who: str, size: int) -> pd.DataFrame:
    """Return the chosen response to each prompt; of equals, and without a score, the first."""
    own = pool[(pool["judge"] == (judges(pool)[0] if who == VERIFIER else who))]
    own = own[own["sample"] < size].sort_values(["id", "sample"])
    by = own["verifier"] if who == VERIFIER else own["score"]
    best = by.fillna(-np.inf).groupby(own["id"]).idxmax()
    first = own.groupby("id")["verifier"].first()
    return own.loc[best].set_index("id")[["verifier"]].assign(first=first)


def _truth(pair: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair by the verifier's scores."""
    own = pair.drop_duplicates("id")
    gap = own["verifier_one"].astype("float64") - own["verifier_other"].astype("float64")
    own = own.assign(preference=(np.sign(gap) + 1) / 2)
    return own[["id", "preference", "length", "length_baseline"]]


def _equal(table: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Return the share of pairs on which a judge names the winner that the verifier names."""
    both = table.merge(truth, on="id", suffixes=("", "_true")).dropna()
    signs = [np.sign(both[c] - 0.5) for c in ("preference", "preference_true")]
    return _mean((signs[0] == signs[1]).to_numpy())


def _mean(values: Numbers) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _compared(one: str, other: str) -> str:
    return f"{one} with itself" if one == other else f"{one} with {other}"
