"""The paper's first-order argument, with models: the chat vector's derivative, one training step.

The paper argues (Equations 1-6) that contrastive decoding distils the chat vector from parameters
into text. That is a Taylor expansion, whose terms are computed here for real weights. What follows
from them for distributions over tokens is `codit.first_order_tables`.

Notation
    theta, tau  the amateur's weights; expert minus amateur (the chat vector), so that theta + tau
                is the expert; c * tau is the vector, scaled
    T, V        contexts of one answer (the prompt and a prefix each); ids of the vocabulary
    s(y)        scores: log p_{theta+tau}(y) - log p_theta(y)                      [T, V]
    g(y)        gradient of log p_theta(y) by theta
    tau . g(y)  its product with tau: d/dc log p_{theta + c tau}(y) at c = 0       [T, V]
    q           any distribution over next tokens                                  [T, V]
Logarithms are natural, log-probabilities in nats. Nothing here draws a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, jvp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit.chat import Conversation, answer_ids, prompt_ids
from codit.pair import ContrastivePair

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
