"""How far a distribution over next tokens points along the chat vector: arithmetic and tables.

The contexts come from `codit.first_order`, whose notation holds here, with
    beta, alpha  strength and plausibility of `contrast`
    V_head       plausible ids under the expert (at alpha)
    q_beta       the contrastive distribution at strength beta, on V_head: beta = 0 truncates the
                 expert, beta = 1 is CoDIT's
    E_q[tau . g] alignment: one SGD step on a token drawn from q moves the amateur's weights by
                 this much along tau, times the learning rate
Contexts of one prompt are not independent: they are averaged before prompts are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import pandas as pd
import torch
from torch import Tensor

from codit import intervals
from codit.contrast import contrast, plausible
from codit.first_order import Expansion, Rows, Weights, expectation, shifted
from codit.recipes import Decoding


def strength_slope(
    logq: Rows, scores: Rows, log_amateur: Rows
) -> Annotated[Tensor, "float [...], nats per unit of strength"]:
    """Return how the mean score changes when the strength grows.

    dE_{q_beta}[s] / dbeta = -Cov_{q_beta}(s, log p_theta),
    because q_beta ~ p_{theta+tau} exp(-beta log p_theta) on a fixed V_head

    Args:
        logq: log q_beta, -inf outside V_head.
        scores: s; with tau . g in its place, the slope of the alignment.
        log_amateur: log p_theta.

    Returns:
        Tensor: [...]. Of either sign: `strength_table` shows an example of each.

    Source: ours.
    """
    centred = scores - expectation(logq, scores)[..., None]
    return -expectation(logq, centred * log_amateur)


def total_variation(logq: Rows, logr: Rows) -> Annotated[Tensor, "float [...], share"]:
    """Return how much probability two distributions place differently.

    TV(q, r) = 1/2 sum_y |q(y) - r(y)|

    Args:
        logq: log q.
        logr: log r.

    Returns:
        Tensor: [...], from 0 (equal) to 1 (no id in common).

    Source: ours.
    """
    return (logq.exp() - logr.exp()).abs().sum(-1) / 2


def on_head(scores: Rows, keep: Annotated[Tensor, "bool [..., V]"]) -> Rows:
    """Return the distribution that scores make on a set of ids.

    log q(y) = x(y) - logsumexp_{u in keep} x(u) for y in keep, -inf elsewhere

    Args:
        scores: x: s for CoDIT at strength 1, tau . g for its linearisation, 0 for uniform.
        keep: V_head, not empty.

    Returns:
        Tensor: log q in the scores' dtype.

    Source: ours; the linearised CoDIT is what CoDIT's Equations 1-6 reason about.
    """
    return scores.masked_fill(~keep, -torch.inf).log_softmax(-1)


def relative_error(values: Rows, approximation: Rows) -> Annotated[Tensor, "float [...], share"]:
    """Return how far an approximation is off, measured against what it approximates.

    ||x - a|| / ||x||, Euclidean over the ids

    Args:
        values: x, not 0 everywhere.
        approximation: a.

    Returns:
        Tensor: [...]; 0 where exact, 1 where no better than 0.

    Source: ours.
    """
    return (values - approximation).norm(dim=-1) / values.norm(dim=-1)


def strength_table(
    expert: Sequence[float], amateur: Sequence[float], strengths: Sequence[float]
) -> pd.DataFrame:
    """Return what one context's distribution becomes as the strength grows, without truncation.

    Args:
        expert: probabilities of the expert, none 0.
        amateur: probabilities of the amateur, none 0.
        strengths: values of beta.

    Returns:
        DataFrame: strength, q (probabilities, as text), expected_score (E_q[s], nats) and slope
        (nats per unit of strength), in float64.

    Raises:
        ValueError: not two distributions of one size.

    Source: ours.
    """
    post, pre = (torch.tensor(list(row), dtype=torch.float64) for row in (expert, amateur))
    if post.shape != pre.shape or min(*post, *pre) <= 0 or (post.sum() - pre.sum()).abs() > 1e-9:
        raise ValueError(
            f"expected two distributions of one size, all positive; got {list(expert)} and "
            f"{list(amateur)}. Give probabilities that sum to 1."
        )
    scores, log_amateur = post.log() - pre.log(), pre.log()
    rows = []
    for strength in strengths:
        logq = (post.log() - strength * log_amateur).log_softmax(-1)
        rows.append(
            {
                "strength": strength,
                "q": " ".join(f"{p:.3f}" for p in logq.exp().tolist()),
                "expected_score": float(expectation(logq, scores)),
                "slope": float(strength_slope(logq, scores, log_amateur)),
            }
        )
    return pd.DataFrame(rows)


def distribution(one: Expansion, decoding: Decoding) -> Rows:
    """Return the distribution that an arm draws from, at the contexts of an answer.

    Args:
        one: the contexts.
        decoding: its strength and plausibility are read, and nothing else.

    Returns:
        Tensor: log q, float32 [T, V].

    Source: `contrast.contrast`.
    """
    numbers = {"strength": decoding.strength, "plausibility": decoding.plausibility}
    return contrast(one.expert, one.amateur, **numbers)


def alignment_table(
    expansions: Sequence[Expansion], decodings: Mapping[str, Decoding]
) -> pd.DataFrame:
    """Return how far each arm's distribution points along the chat vector, context by context.

    Args:
        expansions: the contexts; every arm is evaluated at the same ones.
        decodings: role -> Decoding, see `distribution`.

    Returns:
        DataFrame: id, position, role, n_plausible, alignment (E_q[tau . g], nats), expected_score
        (E_q[s], nats) and slope (dE_q[s]/dbeta at the arm's own strength).

    Source: ours.
    """
    tables = []
    for one in expansions:
        for role, decoding in decodings.items():
            logq = distribution(one, decoding)
            keep = plausible(one.expert, plausibility=decoding.plausibility)
            columns = {
                "n_plausible": keep.sum(-1),
                "alignment": expectation(logq, one.linear),
                "expected_score": expectation(logq, one.scores),
                "slope": strength_slope(logq, one.scores, one.amateur),
            }
            tables.append(_per_context(one.id, columns).assign(role=role))
    return pd.concat(tables, ignore_index=True)


def margins(table: pd.DataFrame, one: str, other: str, *, column: str) -> pd.DataFrame:
    """Return where one arm exceeds another, context by context.

    Args:
        table: of `alignment_table`.
        one: the role that is compared...
        other: ...with this one.
        column: what is compared.

    Returns:
        DataFrame: id, position, role (`other`), is_open (`one` has two plausible ids or more),
        difference (in the column's unit) and above (difference > 0).

    Raises:
        KeyError: a role or column that is not in the table.

    Source: ours.
    """
    wide = table.pivot_table(index=["id", "position"], columns="role", sort=False)
    difference = wide[column, one] - wide[column, other]
    is_open = wide["n_plausible", one] > 1
    columns = {"role": other, "is_open": is_open, "difference": difference}
    return pd.DataFrame({**columns, "above": difference > 0}).reset_index()


@torch.no_grad()
def reach_table(
    expansions: Sequence[Expansion],
    theta: Weights,
    tau: Weights,
    scales: Sequence[float],
    *,
    plausibility: float,
) -> pd.DataFrame:
    """Return how good the first-order expansion is as the chat vector is scaled.

    s_c = log p_{theta + c tau} - log p_theta against c tau . g; and the two distributions these
    make on the V_head of theta + c tau, which is how CoDIT would draw from that pair.

    Args:
        expansions: the contexts, expanded at theta along tau.
        theta: the amateur's weights.
        tau: the chat vector.
        scales: values of c, above 0; 1 is the real expert.
        plausibility: alpha.

    Returns:
        DataFrame: id, position, scale, n_plausible, largest (max_y |s_c|, nats), residual
        (max_y |s_c - c tau . g|, nats), error (`relative_error` over the whole vocabulary),
        head_error (on V_head, after what all its ids share is taken off both: only the rest
        reaches q; NaN where V_head is one id), linearised (total variation between q and the
        linearised q) and uniform (between q and equal probabilities on V_head: how much there is
        to explain).

    Source: ours.
    """
    tables = []
    for one in expansions:
        for scale in scales:
            expert = one.compute(shifted(theta, tau, scale))
            scores, linear = expert - one.amateur, scale * one.linear
            keep = plausible(expert, plausibility=plausibility)
            logq = on_head(scores, keep)
            columns = {
                "n_plausible": keep.sum(-1),
                "largest": scores.abs().amax(-1),
                "residual": (scores - linear).abs().amax(-1),
                "error": relative_error(scores, linear),
                "head_error": relative_error(_centred(scores, keep), _centred(linear, keep)),
                "linearised": total_variation(logq, on_head(linear, keep)),
                "uniform": total_variation(logq, on_head(torch.zeros_like(linear), keep)),
            }
            tables.append(_per_context(one.id, columns).assign(scale=scale))
    return pd.concat(tables, ignore_index=True)


def over_prompts(table: pd.DataFrame, column: str) -> intervals.Interval:
    """Return a column's mean over prompts with its 95 % bootstrap interval.

    Args:
        table: columns id and `column`, one row per context; a prompt's contexts are averaged.
        column: a number, or a yes-or-no column whose mean is a share.

    Returns:
        Interval: in the unit of the column.

    Raises:
        ValueError: fewer than two prompts.

    Source: ours.
    """
    means = table.astype({column: float}).groupby("id", sort=False)[column].mean()
    return intervals.mean_interval(means.to_numpy())


def curve(table: pd.DataFrame, column: str, *, by: str) -> pd.DataFrame:
    """Return a column's mean over prompts for each value of another, as `line_plots` draws it.

    Args:
        table: columns id, `by` and `column`.
        column: what is averaged, see `over_prompts`.
        by: what tells the means apart, in order of appearance.

    Returns:
        DataFrame: `by`, measure (the column's name), value, low, high, n (prompts).

    Raises:
        ValueError: fewer than two prompts.

    Source: ours.
    """
    points = []
    for place, rows in table.groupby(by, sort=False):
        found = over_prompts(rows, column)
        points.append({by: place, "measure": column, **intervals.columns(found), "n": found.n})
    return pd.DataFrame(points)


def _centred(scores: Rows, keep: Annotated[Tensor, "bool [..., V]"]) -> Rows:
    """Return scores less their plain mean over the kept ids, 0 elsewhere."""
    inside = scores.masked_fill(~keep, 0)
    mean = inside.sum(-1, keepdim=True) / keep.sum(-1, keepdim=True)
    return (inside - mean).masked_fill(~keep, 0)


def _per_context(name: str, columns: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return a row per context: id, position and the columns."""
    table = pd.DataFrame({column: value.tolist() for column, value in columns.items()})
    return table.rename_axis("position").reset_index().assign(id=name)
