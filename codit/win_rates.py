"""Win rates against a baseline: raw, and with the effect of length taken out, always together.

A table has one row for each instruction that both the model and the baseline answered:

    id                instruction, once each
    preference        for the model, in [0, 1]: 1 it wins, 0 the baseline does, .5 a tie, between
                      these a judge's probability; NaN, None or infinite: the judgement failed
    length            of the model's output, in characters
    length_baseline   of the baseline's output, in characters
    difficulty        optional: of the instruction, on the published scale

Failed judgements are left out of both rates and counted; nothing takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import pandas as pd
from scipy import special

from codit import logistic, resampling, statistics
from codit.logistic import FOLDS, Features, Numbers
from codit.statistics import Interval

Rows: TypeAlias = Annotated[
    tuple[Features, Numbers, Numbers], "features, preferences, weights of judgements"
]

GAMED_WEIGHT = 0.2  # published: of all gamed baselines together, against 1 for the model's rows
COLUMNS = ("id", "preference", "length", "length_baseline")


@dataclass(frozen=True, kw_only=True)
class WinRates:
    """What a table of preferences says of a model: both rates, and how they came about.

    Args:
        raw: mean preference, a share.
        length_controlled: share that the model would win at equal lengths; its interval is a
            percentile bootstrap over instructions.
        failed: rows left out, without a usable preference.
        ties: rows with preference .5.
        coefficients: of the terms `model`, `length` (above 0: the judge likes longer outputs) and,
            where given, `difficulty`; in log odds.
        inverse_penalty: C, chosen by cross-validation.
        length: mean of the model's outputs, characters.
        length_baseline: mean of the baseline's, characters.
        is_extreme: the two rates differ so much that the fit may have failed (published rule).
        note: which of the published variants was fitted, and what it lacks.
    """

    raw: Interval
    length_controlled: Interval
    failed: int
    ties: int
    coefficients: dict[str, float]
    inverse_penalty: float
    length: float
    length_baseline: float
    is_extreme: bool
    note: str


def win_rates(
    judgements: pd.DataFrame,
    *,
    gamed: Sequence[pd.DataFrame] = (),
    level: float = 0.95,
    resamples: int = resampling.RESAMPLES,
    seed: int = 0,
) -> WinRates:
    """Return a model's raw and length-controlled win rate with their intervals.

    raw = mean preference. Length-controlled: fit
    P(model preferred on x) = sigma(theta + phi tanh(d_x / sd(d)) + psi gamma_x), d_x the length of
    the model's output minus the baseline's, sd with n - 1, gamma_x the difficulty of x, without an
    intercept, and set d to 0: LC = mean_x sigma(theta + psi gamma_x).

    What differs from the published program. The difficulties and the judgements of the two gamed
    baselines are files to be downloaded, and are not used unless passed: without them this is the
    published variant "minimal" (no difficulty) or "noreg" (no gamed baseline), and `note` says
    which. Failed judgements take no part in sd(d) and in the mean over x; there they do. The fit is
    exact where theirs stops at a tolerance of 1e-4. Rows are put in the order of their ids before
    folds are made, so that the order of a file decides nothing. The interval is ours; theirs is a
    standard error of the predictions, 0 when minimal. It refits each resample with C as chosen, or
    1 where less was chosen: with little to be learned cross-validation shrinks all coefficients to
    0, LC is .5 exactly, and so would be every resample's, as if nothing were more certain.

    Args:
        judgements: the table described at the top of this module.
        gamed: tables of the baseline's own verbose and concise outputs (as "the model") against
            the baseline. They bear on length and difficulty only, with weight .2 together, and so
            hold phi near what is due to length alone: truncated outputs gain less.
        level: coverage of both intervals, in (0, 1).
        resamples: bootstrap samples of the length-controlled rate, at least 100 (ours: 1,000).
        seed: of the resampling.

    Returns:
        WinRates: shares.

    Raises:
        ValueError: a column is missing, ids repeat, a preference lies outside [0, 1], a length is
            no length, fewer than five judgements succeeded, all d are equal and not 0 (then length
            cannot be told from the model), level or resamples outside their range.

    Source: Dubois et al. 2024 (arXiv 2404.04475) and alpaca_eval 0.6.6; intervals: ours.
    """
    table, failed = _judged(judgements, "judgements")
    anchors = [_judged(rows, f"gamed[{place}]")[0] for place, rows in enumerate(gamed)]
    with_difficulty = "difficulty" in table
    if any(("difficulty" in rows) != with_difficulty for rows in anchors):
        raise ValueError("expected difficulty in all tables or in none; got it in some. Add it.")
    longer = table["length"] - table["length_baseline"]
    if longer.nunique() == 1 and longer.iloc[0] != 0:
        raise ValueError(
            f"expected length differences that vary; got {longer.iloc[0]:g} in every row, "
            "which cannot be told from the model. Report the raw rate alone."
        )
    raw = statistics.mean_interval(table["preference"], level=level, seed=seed)
    fixed = [_rows(rows, model=0.0, weight=GAMED_WEIGHT / len(anchors)) for rows in anchors]
    rows = _stacked([*fixed, _rows(table, model=1.0, weight=1.0)])
    c = logistic.choose_inverse_penalty(*rows)
    coefficients = logistic.fit(*rows, inverse_penalty=c)

    estimate = _at_equal_length(table, coefficients)

    def redrawn(places: Numbers) -> float:
        drawn = table.iloc[places]
        sample = _stacked([*fixed, _rows(drawn, model=1.0, weight=1.0)])
        return _at_equal_length(drawn, logistic.fit(*sample, inverse_penalty=max(c, 1.0)))

    interval = resampling.interval(
        redrawn, table["id"], estimate=estimate, level=level, resamples=resamples, seed=seed
    )
    terms = ("model", "length", "difficulty")[: len(coefficients)]
    return WinRates(
        raw=raw,
        length_controlled=interval,
        failed=failed,
        ties=int((table["preference"] == 0.5).sum()),
        coefficients=dict(zip(terms, coefficients.tolist(), strict=True)),
        inverse_penalty=c,
        length=float(table["length"].mean()),
        length_baseline=float(table["length_baseline"].mean()),
        is_extreme=is_extreme(raw.estimate, estimate),
        note=_note(with_difficulty, bool(anchors)),
    )


def is_extreme(raw: float, length_controlled: float) -> bool:
    """Return whether the two rates differ so much that the fit may have failed.

    LC < min(raw - raw/4, raw - .1) or LC > max(raw + (1 - raw)/4, raw + .1).

    Args:
        raw: a share.
        length_controlled: a share.

    Returns:
        bool: True: look at the outputs before believing either.

    Source: the published program.
    """
    low = min(raw - raw / 4, raw - 0.1)
    return length_controlled < low or length_controlled > max(raw + (1 - raw) / 4, raw + 0.1)


def _judged(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, int]:
    """Return the rows with a preference in the order of their ids, and how many have none."""
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{name} must have the columns {COLUMNS}; missing {missing}. Add them.")
    wanted = [*COLUMNS, *(["difficulty"] if "difficulty" in table else [])]
    rows = table[wanted].assign(preference=table["preference"].astype("float64"))
    if rows["id"].duplicated().any() or rows["id"].isna().any():
        raise ValueError(f"expected every id once in {name}; got others. Average equal ids.")
    rows = rows[np.isfinite(rows["preference"])]
    if not rows["preference"].between(0, 1).all():
        raise ValueError(
            f"preferences in {name} must lie in [0, 1]; got {rows['preference'].min():g} to "
            f"{rows['preference'].max():g}. Take 1 from AlpacaEval's, where 2 is a win."
        )
    numbers = rows[wanted[2:]].to_numpy(dtype="float64")
    if not np.isfinite(numbers).all() or (numbers[:, :2] < 0).any():
        raise ValueError(f"lengths and difficulties in {name} must be numbers; got others. Fill.")
    if len(rows) < FOLDS:
        raise ValueError(f"expected at least {FOLDS} judgements in {name}; got {len(rows)}.")
    is_number = pd.api.types.is_numeric_dtype(rows["id"])
    rows = rows.sort_values("id", key=None if is_number else lambda ids: ids.astype(str))
    return rows.reset_index(drop=True), len(table) - len(rows)


def _rows(table: pd.DataFrame, *, model: float, weight: float) -> Rows:
    """Return features, preferences and weights of one model's judgements."""
    longer = (table["length"] - table["length_baseline"]).to_numpy(dtype="float64")
    spread = longer.std(ddof=1)
    length = np.tanh(longer / spread) if spread > 0 else np.zeros(len(table))
    columns = [np.full(len(table), model), length]
    if "difficulty" in table:
        columns.append(table["difficulty"].to_numpy(dtype="float64"))
    preferences = table["preference"].to_numpy(dtype="float64")
    return np.stack(columns, axis=1), preferences, np.full(len(table), weight)


def _stacked(parts: Sequence[Rows]) -> Rows:
    features, preferences, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return features, preferences, weights


def _at_equal_length(table: pd.DataFrame, coefficients: Numbers) -> float:
    """Return mean_x sigma(theta + psi gamma_x)."""
    odds = np.full(len(table), coefficients[0])
    if "difficulty" in table:
        odds = odds + coefficients[2] * table["difficulty"].to_numpy(dtype="float64")
    return float(special.expit(odds).mean())


def _note(with_difficulty: bool, with_gamed: bool) -> str:
    """Say which published variant was fitted, and what was left out."""
    left_out = [] if with_difficulty else ["instruction difficulty was not given and is left out"]
    if not with_gamed:
        left_out.append("no gamed baselines hold the length coefficient")
    names = {(True, True): "length_controlled_v1", (True, False): "length_controlled_noreg"}
    names |= {(False, False): "length_controlled_minimal"}
    name = names.get((with_difficulty, with_gamed), "no published variant")
    return "; ".join([name, *left_out])
