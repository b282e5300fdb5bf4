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
prompt are not independent: they are averaged before prompts are resampled. What makes the paper's
equations exact or measures them (residuals, slopes, one training step) is ours.
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
from codit.engine.chat import Conversation, answer_ids, prompt_ids
from codit.evaluation import intervals
from codit.pair import ContrastivePair
from codit.recipes import Decoding

Rows: TypeAlias = Annotated[Tensor, "float [..., V], nats"]
Weights: TypeAlias = dict[str, Tensor]
LogprobsOf: TypeAlias = Callable[[Weights], Rows]


@dataclass(frozen=True, eq=False)
class Expansion:
    """The contexts of one answer, and both models there, [T, V].

    `compute` gives log-probabilities there as a function of the weights; `amateur` is log p_theta,
    `expert` log p_{theta+tau}, `linear` tau . g.
    """

    id: str
    compute: LogprobsOf
    amateur: Rows
    expert: Rows
    linear: Rows

    @property
    def scores(self) -> Rows:
        """What `linear` approximates: s = log p_{theta+tau} - log p_theta."""
        return self.expert - self.amateur


def chat_vector(expert: PreTrainedModel, amateur: PreTrainedModel) -> tuple[Weights, Weights]:
    """Return theta and tau = theta_expert - theta_amateur by name, in float32; a tied weight once.

    ValueError: weights of different names or shapes. Source: CoDIT; Huang et al. 2023.
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
    """Return the weights theta + c tau; scale 0 is the amateur, 1 the expert."""
    return {name: weight + scale * tau[name] for name, weight in theta.items()}


def expand(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    answers: Sequence[str | Sequence[int]],
    *,
    ids: Sequence[str],
) -> list[Expansion]:
    """Compute both models and tau . g at every token of the answer to each conversation.

    Answers are token ids or texts; `ids` are their names. ValueError: models of different shapes,
    an answer without tokens, or lists of different lengths.
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


def logprobs_of(
    model: PreTrainedModel, ids: Annotated[Tensor, "int64 [L]"], *, first: int, vocab_size: int
) -> LogprobsOf:
    """Return a model's log p at an answer's tokens as a function of weights: -> [L - first, V].

    The model gives the architecture, its own weights are not read; `first` is the number of prompt
    tokens in `ids`. Attention is computed step by step ("eager"), because fused attention has no
    forward-mode derivative. transformers computes norms and softmax in float32.
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
    """Return log p_theta and its derivative along the chat vector, by one pass in forward mode.

    tau . g(y) = d/dc log p_{theta + c tau}(y) at c = 0; sum_y p_theta(y) tau . g(y) = 0

    Source: CoDIT, Equations 1-6 (a Taylor expansion).
    """
    with torch.no_grad():  # forward mode keeps no graph
        value, derivative = jvp(compute, (theta,), (tau,))
    return value, derivative


def expectation(logq: Rows, values: Rows) -> Annotated[Tensor, "float [...]"]:
    """Return E_q[x] = sum_y q(y) x(y), where an id of probability 0 counts nothing."""
    return (logq.exp() * values.masked_fill(logq.isneginf(), 0)).sum(-1)


def distribution(one: Expansion, decoding: Decoding) -> Rows:
    """Return log q, float32 [T, V], of an arm: its strength and plausibility and nothing else."""
    numbers = {"strength": decoding.strength, "plausibility": decoding.plausibility}
    return contrast(one.expert, one.amateur, **numbers)


def one_step(
    compute: LogprobsOf,
    theta: Weights,
    tau: Weights,
    logq: Rows,
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> float:
    """Take one training step on text drawn from q and return how far it goes along tau.

    phi = one step from theta, in float64, that lowers -mean_t sum_y q_t(y) log p_theta(y);
    returned is <tau, phi - theta>, nats times the learning rate. `optimiser` makes one from the
    weights: partial(torch.optim.SGD, lr=1.0). For plain SGD this is rate * mean_t E_{q_t}[tau . g],
    exactly and for every q. Adam rescales every coordinate, which need not even keep the sign.
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


def strength_slope(
    logq: Rows, scores: Rows, log_amateur: Rows
) -> Annotated[Tensor, "float [...], nats per unit of strength"]:
    """Return dE_{q_beta}[s] / dbeta = -Cov_{q_beta}(s, log p_theta), of either sign.

    Because q_beta ~ p_{theta+tau} exp(-beta log p_theta) on a fixed V_head. With tau . g in the
    place of s, the slope of the alignment.
    """
    centred = scores - expectation(logq, scores)[..., None]
    return -expectation(logq, centred * log_amateur)


def total_variation(logq: Rows, logr: Rows) -> Annotated[Tensor, "float [...], share"]:
    """Return TV(q, r) = 1/2 sum_y |q(y) - r(y)|, from 0 (equal) to 1 (no id in common)."""
    return (logq.exp() - logr.exp()).abs().sum(-1) / 2


def on_head(scores: Rows, keep: Annotated[Tensor, "bool [..., V]"]) -> Rows:
    """Return log q(y) = x(y) - logsumexp_{u in keep} x(u) on the ids to keep, -inf elsewhere.

    x is s for CoDIT at strength 1, tau . g for its linearisation, which Equations 1-6 reason
    about, 0 for uniform.
    """
    return scores.masked_fill(~keep, -torch.inf).log_softmax(-1)


def relative_error(values: Rows, approximation: Rows) -> Annotated[Tensor, "float [...], share"]:
    """Return ||x - a|| / ||x|| over the ids: 0 where exact, 1 where no better than a = 0."""
    return (values - approximation).norm(dim=-1) / values.norm(dim=-1)


def loglog_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent k of y = a x^k, of positive numbers, by least squares on logarithms."""
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(
            f"expected positive x and y, as many of each and two or more x; got {list(x)} and "
            f"{list(y)}. Leave out what is 0."
        )
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def strength_table(
    expert: Sequence[float], amateur: Sequence[float], strengths: Sequence[float]
) -> pd.DataFrame:
    """Return what one context's distribution becomes as the strength grows, without truncation.

    Expert and amateur are probabilities, none 0. Columns, in float64: strength, q (probabilities,
    as text), expected_score (E_q[s], nats) and slope (nats per unit of strength).
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


def alignment_table(
    expansions: Sequence[Expansion], decodings: Mapping[str, Decoding]
) -> pd.DataFrame:
    """Return how far each arm's distribution points along the chat vector, context by context.

    Every arm, role -> Decoding, is evaluated at the same contexts. Columns: id, position, role,
    n_plausible, alignment (E_q[tau . g], nats), expected_score (E_q[s], nats) and slope
    (dE_q[s]/dbeta at the arm's own strength).
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
    """Return where role `one` exceeds role `other` in a column of `alignment_table`.

    Columns: id, position, role (`other`), is_open (`one` has two plausible ids or more),
    difference (in the column's unit) and above (difference > 0).
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
    """Return how good the first-order expansion at theta is as the chat vector is scaled by c > 0.

    s_c = log p_{theta + c tau} - log p_theta against c tau . g; and the two distributions these
    make on the V_head of theta + c tau, which is how CoDIT would draw from that pair.

    Columns: id, position, scale, n_plausible, largest (max_y |s_c|, nats), residual
    (max_y |s_c - c tau . g|, nats), error (`relative_error` over the whole vocabulary), head_error
    (on V_head, after what all its ids share is taken off both: only the rest reaches q; NaN where
    V_head is one id), linearised (total variation between q and the linearised q) and uniform
    (between q and equal probabilities on V_head: how much there is to explain).
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
    """Return a column's mean over prompts, at least two, with its 95 % bootstrap interval.

    A prompt (column id) has one row per context; these are averaged.
    """
    means = table.astype({column: float}).groupby("id", sort=False)[column].mean()
    return intervals.mean_interval(means.to_numpy())


def curve(table: pd.DataFrame, column: str, *, by: str) -> pd.DataFrame:
    """Return a column's mean over prompts for each value of `by`, as `plots` draws it.

    Columns: `by`, measure (the column's name), value, low, high, n (prompts).
    """
    points = []
    for place, rows in table.groupby(by, sort=False):
        found = over_prompts(rows, column)
        points.append({by: place, "measure": column, **intervals.columns(found), "n": found.n})
    return pd.DataFrame(points)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention step by step for a `with` block."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _centred(scores: Rows, keep: Annotated[Tensor, "bool [..., V]"]) -> Rows:
    """Return scores less their plain mean over the kept ids, 0 elsewhere."""
    inside = scores.masked_fill(~keep, 0)
    mean = inside.sum(-1, keepdim=True) / keep.sum(-1, keepdim=True)
    return (inside - mean).masked_fill(~keep, 0)


def _per_context(name: str, columns: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return a row per context: id, position and the columns."""
    table = pd.DataFrame({column: value.tolist() for column, value in columns.items()})
    return table.rename_axis("position").reset_index().assign(id=name)
