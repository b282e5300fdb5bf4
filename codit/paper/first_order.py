"""The paper's first-order argument, with models: the chat vector's derivative, one training step.

The paper argues (Equations 1-6) that contrastive decoding distils the chat vector from parameters
into text. That is a Taylor expansion, whose terms are computed here for real weights, and with
them how far a distribution over next tokens points along the chat vector.

Notation
    theta, tau  the amateur's weights; expert minus amateur (the chat vector), so that theta + tau
                is the expert; c * tau is the vector, scaled
    T, V        contexts of one answer (the prompt and a prefix each); ids of the vocabulary
    s(y)        scores: log p_{theta+tau}(y) - log p_theta(y)                      [T, V]
    g(y)        gradient of log p_theta(y) by theta
    tau . g(y)  its product with tau: d/dc log p_{theta + c tau}(y) at c = 0       [T, V]
    q           any distribution over next tokens                                  [T, V]
    beta, alpha  strength and plausibility of `contrast`
    V_head       plausible ids under the expert (at alpha)
    q_beta       the contrastive distribution at strength beta, on V_head: beta = 0 truncates the
                 expert, beta = 1 is CoDIT's
    E_q[tau . g] alignment: one SGD step on a token drawn from q moves the amateur's weights by
                 this much along tau, times the learning rate
Logarithms are natural, log-probabilities in nats. Nothing here draws a token. Contexts of one
prompt are not independent: they are averaged before prompts are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, jvp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit.contrast import contrast, plausible
from codit.engine.models import Conversation, answer_ids, prompt_ids
from codit.evaluation import intervals
from codit.pair import ContrastivePair
from codit.recipes import Decoding

Rows: TypeAlias = Annotated[Tensor, "float [..., V], nats"]
Weights: TypeAlias = dict[str, Tensor]
LogprobsOf: TypeAlias = Callable[[Weights], Rows]


@dataclass(frozen=True, eq=False)
class Expansion:
    """The contexts of one answer, and both models there.

    Args:
        id: the answer's name.
        compute: log-probabilities [T, V] at these contexts as a function of the weights.
        amateur: log p_theta, [T, V].
        expert: log p_{theta+tau}, [T, V].
        linear: tau . g, [T, V].
    """

    id: str
    compute: LogprobsOf
    amateur: Rows
    expert: Rows
    linear: Rows

    @property
    def scores(self) -> Rows:
        """What `linear` approximates: s = log p_{theta+tau} - log p_theta, [T, V]."""
        return self.expert - self.amateur


def chat_vector(expert: PreTrainedModel, amateur: PreTrainedModel) -> tuple[Weights, Weights]:
    """Return the amateur's weights and what the expert's add to them.

    tau = theta_expert - theta_amateur; a tied weight stands once

    Args:
        expert: post-trained model.
        amateur: its pre-trained counterpart, of the same shape.

    Returns:
        (dict, dict): theta and tau, name to float32 tensor, without gradient.

    Raises:
        ValueError: the models' weights have different names or shapes.

    Source: CoDIT (arXiv 2604.13538), its tau; Huang et al. 2023, chat vector.
    """
    theta = {name: weight.detach().float() for name, weight in amateur.named_parameters()}
    post = {name: weight.detach().to(amateur.device) for name, weight in expert.named_parameters()}
    before, after = ({n: tuple(w.shape) for n, w in part.items()} for part in (theta, post))
    if before != after:
        odd = sorted(n for n in theta | post if before.get(n) != after.get(n))
        raise ValueError(
            f"expected expert and amateur of one shape; got {len(odd)} weights that differ, the "
            f"first {odd[0]}: {after.get(odd[0])} and {before.get(odd[0])}. Take a pair of one "
            "architecture and one vocabulary."
        )
    return theta, {name: post[name].float() - theta[name] for name in theta}


def shifted(theta: Weights, tau: Weights, scale: float) -> Weights:
    """Return the weights theta + c tau.

    Args:
        theta: the amateur's weights.
        tau: the chat vector.
        scale: c; 0 is the amateur, 1 the expert.

    Returns:
        dict: name to tensor.

    Source: Huang et al. 2023.
    """
    return {name: weight + scale * tau[name] for name, weight in theta.items()}


def logprobs_of(
    model: PreTrainedModel, ids: Annotated[Tensor, "int64 [L]"], *, first: int, vocab_size: int
) -> LogprobsOf:
    """Return a model's log-probabilities at an answer's tokens as a function of its weights.

    Args:
        model: gives the architecture; its own weights are not read. Attention is computed step by
            step ("eager"), because fused attention has no forward-mode derivative.
        ids: prompt and answer.
        first: number of prompt tokens, at least 1.
        vocab_size: V, ids that are tokens.

    Returns:
        Callable: weights -> log p, [L - first, V]; row t is the distribution of the answer's
        token t. In the weights' dtype, but transformers computes norms and softmax in float32.

    Raises:
        ValueError: no prompt or no answer.

    Source: ours.
    """
    if not 1 <= first < len(ids):
        raise ValueError(
            f"expected a prompt and an answer, first in 1..{len(ids) - 1}; got {first}. It is the "
            "number of prompt tokens."
        )

    def compute(weights: Weights) -> Rows:
        with _eager(model):
            inputs = {"input_ids": ids[None], "use_cache": False}
            logits = functional_call(model, weights, (), inputs).logits
        return logits[0, first - 1 : -1, :vocab_size].log_softmax(-1)

    return compute


def differentiate(compute: LogprobsOf, theta: Weights, tau: Weights) -> tuple[Rows, Rows]:
    """Return log-probabilities and their derivative along the chat vector.

    tau . g(y) = d/dc log p_{theta + c tau}(y) at c = 0, by one pass in forward mode

    Args:
        compute: weights -> log p.
        theta: where.
        tau: along what.

    Returns:
        (Tensor, Tensor): log p_theta and tau . g, of one shape; sum_y p_theta(y) tau . g(y) = 0.

    Source: CoDIT, Equations 1-6 (a Taylor expansion); torch.func.jvp.
    """
    with torch.no_grad():  # forward mode keeps no graph
        value, derivative = jvp(compute, (theta,), (tau,))
    return value, derivative


def expand(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    answers: Sequence[str | Sequence[int]],
    *,
    ids: Sequence[str],
) -> list[Expansion]:
    """Compute both models and tau . g at every position of some answers.

    Args:
        pair: expert and amateur of one shape.
        tokenizer: the expert's.
        conversations: what was asked.
        answers: what was answered to each: token ids, or a text.
        ids: their names.

    Returns:
        list[Expansion]: one per answer; T is the number of its tokens.

    Raises:
        ValueError: models of different shapes, an answer without tokens, or lists of different
            lengths.

    Source: ours.
    """
    theta, tau = chat_vector(pair.expert, pair.amateur)
    expert = shifted(theta, tau, 1.0)
    expansions = []
    for name, conversation, answer in zip(ids, conversations, answers, strict=True):
        prompt = prompt_ids(tokenizer, conversation)
        row = torch.tensor(prompt + answer_ids(tokenizer, answer), device=pair.amateur.device)
        compute = logprobs_of(pair.amateur, row, first=len(prompt), vocab_size=pair.vocab_size)
        amateur, linear = differentiate(compute, theta, tau)
        with torch.no_grad():
            expansions.append(Expansion(name, compute, amateur, compute(expert), linear))
    return expansions


def expectation(logq: Rows, values: Rows) -> Annotated[Tensor, "float [...]"]:
    """Return the mean of values under a distribution.

    E_q[x] = sum_y q(y) x(y); an id of probability 0 counts nothing, whatever its value

    Args:
        logq: log q, -inf allowed.
        values: x, one per id.

    Returns:
        Tensor: [...], in the unit of the values.

    Source: ours.
    """
    return (logq.exp() * values.masked_fill(logq.isneginf(), 0)).sum(-1)


def one_step(
    compute: LogprobsOf,
    theta: Weights,
    tau: Weights,
    logq: Rows,
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> float:
    """Take one training step on text drawn from q and return how far it goes along tau.

    phi = one step from theta that lowers -mean_t sum_y q_t(y) log p_theta(y);  <tau, phi - theta>

    For plain SGD this is rate * mean_t E_{q_t}[tau . g], exactly and for every q. Adam rescales
    every coordinate, which need not even keep the sign.

    Args:
        compute: weights -> log p, [T, V].
        theta: where the student begins, copied to float64.
        tau: the direction.
        logq: what the student is taught, [T, V].
        optimiser: makes one from the weights: partial(torch.optim.SGD, lr=1.0).

    Returns:
        float: nats times the learning rate.

    Source: ours; it makes CoDIT's Equations 1-6 a statement that is exact.
    """
    before = {name: weight.detach().double() for name, weight in theta.items()}
    weights = {name: weight.clone().requires_grad_() for name, weight in before.items()}
    chosen = optimiser(list(weights.values()))
    loss = -expectation(logq.double(), compute(weights)).mean()
    loss.backward()
    chosen.step()
    with torch.no_grad():
        moved = [(tau[name] * (weights[name] - before[name])).sum() for name in before]
    return float(torch.stack(moved).sum())


def loglog_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent k of y = a x^k, by least squares on logarithms.

    Args:
        x: positive numbers, at least two different ones.
        y: positive numbers, as many.

    Returns:
        float: 2 for the residual of a first-order expansion.

    Raises:
        ValueError: numbers that have no logarithm, or too few.

    Source: ours.
    """
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(
            f"expected positive x and y, as many of each and two or more x; got {list(x)} and "
            f"{list(y)}. Leave out what is 0."
        )
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention step by step for a `with` block."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


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
    """Return a column's mean over prompts for each value of another, as `plots` draws it.

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
