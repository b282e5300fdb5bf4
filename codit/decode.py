"""Text from a pair or a single model: `generate`, the one way text is produced.

A response depends on its prompt, not on its neighbours: the uniform number that draws step t is a
pure function of (seed, id, sample, t), whatever the batch size, the order or the engine.
`token_table` shows, token by token, what contrast changed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from codit.chat import Conversation, answer_ids, prompt_ids, prompt_or_error, text_of
from codit.contrast import contrast, plausible
from codit.decode_arguments import ENGINES as ENGINES
from codit.decode_arguments import check
from codit.drawing import Meter, Step
from codit.noise import default_ids, noise_key
from codit.paged_batches import continuous
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from codit.shared_cache import paged_shape
from codit.static_batches import static
from codit.vllm_pair import VllmPair, vllm_batches
from codit.vocabulary import stop_ids

logger = logging.getLogger(__name__)

RUN: dict[str, Any] = {"static": static, "continuous": continuous, "vllm": vllm_batches}

__all__ = ["Response", "default_ids", "generate", "prompt_ids", "token_table"]


@dataclass(frozen=True, kw_only=True)
class Response:
    """What was answered to one prompt.

    Args:
        id: the prompt's.
        text: decoded `token_ids` without special tokens.
        token_ids: the tokens drawn, the stop token included when one was drawn.
        logprobs: log q(token | prompt, prefix) in nats, one for each of `token_ids`; at
            temperature 1 and before top-k and top-p, whatever the token was drawn with.
        is_completed: True iff the last token is a stop token.
        error: None, or why there is no answer; then the other fields are empty.
    """

    id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_completed: bool = False
    error: str | None = None


def generate(
    model: PreTrainedModel | VllmPair,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    decoding: Decoding,
    *,
    ids: Sequence[Any] | None = None,
    engine: str = "auto",
    batch_size: int | None = None,
    progress: bool = True,
) -> list[Response]:
    """Answer each conversation once, by a pair or by a single causal LM.

    One step: next-token scores of the pair (mask from the untempered expert, then contrast) or of
    the model (then the mask) -> / temperature -> top-k -> top-p -> smallest id with cdf > u.

    Args:
        model: a `ContrastivePair`, whose own strength and plausibility `decoding` overrides for
            this call; or any causal LM, for which strength must be 0 and plausibility > 0
            truncates (the arm "truncated"). Or a `VllmPair`, which keeps the two numbers that it
            was started with.
        tokenizer: the expert's, with its chat template; thinking mode is switched off.
        conversations: lists of {"role", "content"} that ask for an answer.
        decoding: how tokens are drawn.
        ids: names of the rows, unequal as text; a word of the noise key. None: `default_ids`.
        engine: "static" (length-sorted left-padded batches), "continuous" (paged cache: a row
            that ends makes room for the next), "vllm" (a `VllmPair`; noise is vLLM's own, one
            seed for each row), "auto": see `chosen_engine`.
        batch_size: rows computed at once. None: 64 when static, as many as fit when continuous.
            Where memory runs out it is halved, and nothing is lost.
        progress: show a bar with rows/s and tokens/s.

    Returns:
        list[Response]: in the order of `conversations`. A conversation that the template refuses,
        whose prompt leaves no room for max_new_tokens, or to which a model answers with numbers
        that are not finite, gives a Response with `error`.

    Raises:
        ValueError: an argument is out of its range, or two rows have the same id.
        RuntimeError: the continuous engine stopped before all rows were answered, or a single row
            does not fit into memory.

    Source: order of one step and stop set: the authors' scripts (arXiv 2604.13538). Noise,
    engines and rows with errors: ours.
    """
    check(model, tokenizer, conversations, decoding, ids, engine, batch_size)
    room = _context(model), int(decoding.max_new_tokens)
    prompts = [prompt_or_error(tokenizer, chat, *room) for chat in conversations]
    if ids is None:
        ids = default_ids([[] if isinstance(prompt, str) else prompt for prompt in prompts])
    names = [str(name) for name in ids]
    rows = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, str)}
    answers = {
        i: Response(id=names[i], error=prompt)
        for i, prompt in enumerate(prompts)
        if isinstance(prompt, str)
    }
    keys = {i: noise_key(decoding.seed, names[i], decoding.sample) for i in rows}
    stops = stop_ids(tokenizer, model.generation_config)
    chosen = chosen_engine(model, engine)
    logger.info("engine %s (asked for: %s)", chosen, engine)
    step = Step(decoding, len(tokenizer), is_pair=isinstance(model, (ContrastivePair, VllmPair)))
    meter = Meter(len(prompts), progress)
    with _overridden(model, tokenizer, decoding, stops), meter.bar:
        meter.add(rows=len(answers))
        for i, drawn, logprobs in RUN[chosen](model, step, rows, keys, batch_size, meter):
            answers[i] = _response(tokenizer, names[i], drawn, logprobs, stops)
            meter.add(rows=1, tokens=len(answers[i].token_ids))
    return [answers[i] for i in range(len(prompts))]


def chosen_engine(model: PreTrainedModel | VllmPair, engine: str = "auto") -> str:
    """Return the engine that `generate` uses.

    Args:
        model: a pair or a single causal LM.
        engine: "auto": vLLM's for a pair in it; continuous batching on a GPU, where both models'
            keys have one shape; otherwise static batches, which were quicker on a CPU.

    Returns:
        str: "static", "continuous" or "vllm".

    Source: ours.
    """
    if isinstance(model, VllmPair):
        return "vllm"
    if engine != "auto":
        return engine
    if model.device.type != "cuda":
        return "static"
    halves = [model.expert, model.amateur] if isinstance(model, ContrastivePair) else [model]
    return "continuous" if len({paged_shape(half.config) for half in halves}) == 1 else "static"


@torch.no_grad()
def token_table(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    response: Response | str | Sequence[int],
) -> pd.DataFrame:
    """Return, for each token of an answer, what both models and the pair thought of it.

    One teacher-forced pass of each model, at the pair's own strength and plausibility:
    log q = contrast(z_E, z_A).

    Args:
        pair: the models; `with pair.override(...)` shows other strengths.
        tokenizer: the expert's.
        conversation: what was asked.
        response: what was answered: a `Response`, its token ids, or a text, which is tokenised
            and gets no stop token.

    Returns:
        pd.DataFrame: a row per token: token (text), token_id, logp_expert, logp_amateur, logq
        (nats at temperature 1; logq is -inf where the pair could not draw the token), n_plausible
        (ids that were plausible) and argmax_changed (the best id of q is not the expert's best).

    Raises:
        ValueError: no pair, or an answer without tokens.

    Source: ours.
    """
    if not isinstance(pair, ContrastivePair):
        raise ValueError(
            f"token_table compares two models; got a {type(pair).__name__}. Make a "
            "ContrastivePair of it and its amateur."
        )
    given = response.token_ids if isinstance(response, Response) else response
    answer = answer_ids(tokenizer, given)
    prompt = prompt_ids(tokenizer, conversation)
    ids = torch.tensor([prompt + answer], device=pair.device)
    drawn = torch.tensor(answer, device=pair.device)[:, None]
    with _evaluating(pair):
        logits = [z[0, len(prompt) - 1 : -1] for z in pair.both_logits(ids)]
    logq = contrast(*logits, strength=pair.strength, plausibility=pair.plausibility)
    logp = [z.float().log_softmax(-1).gather(1, drawn)[:, 0].tolist() for z in logits]
    keep = plausible(logits[0], plausibility=pair.plausibility)
    return pd.DataFrame(
        {
            "token": [tokenizer.decode([token]) for token in answer],
            "token_id": answer,
            "logp_expert": logp[0],
            "logp_amateur": logp[1],
            "logq": logq.gather(1, drawn)[:, 0].tolist(),
            "n_plausible": keep.sum(-1).tolist(),
            "argmax_changed": (logq.argmax(-1) != logits[0].argmax(-1)).tolist(),
        }
    )


def _context(model: PreTrainedModel | VllmPair) -> int | None:
    """Return how many tokens a model, or both models of a pair, can read."""
    if isinstance(model, VllmPair):
        return model.context
    parts = [model.expert, model.amateur] if isinstance(model, ContrastivePair) else [model]
    configs = [part.config.get_text_config() for part in parts]
    limits = [getattr(config, "max_position_embeddings", None) for config in configs]
    return min((limit for limit in limits if limit), default=None)


def _response(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    drawn: list[int],
    logprobs: list[float],
    stops: Sequence[int],
) -> Response:
    """Return what was drawn up to the first stop token, or an error where a draw had no numbers."""
    end = next((t for t, token in enumerate(drawn) if token in stops), len(drawn))
    logprobs = logprobs[: end + 1]
    bad = next((t for t, logprob in enumerate(logprobs) if not math.isfinite(logprob)), None)
    if bad is not None:
        return Response(
            id=name,
            error=f"bad logits: expected finite numbers; at token {bad + 1} of the response a "
            "model gave NaN or infinity. Its weights may be damaged, or its dtype too narrow: try "
            "bfloat16 or float32",
        )
    return Response(
        id=name,
        text=text_of(tokenizer, drawn[:end]),
        token_ids=drawn[: end + 1],
        logprobs=logprobs,
        is_completed=end < len(drawn),
    )


@contextmanager
def _overridden(
    model: PreTrainedModel | VllmPair,
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    stops: list[int],
) -> Iterator[None]:
    """Make the model decode as `decoding` says and nothing else does, for a `with` block."""
    if isinstance(model, VllmPair):  # was started so, and each request says the rest
        yield
        return
    pad = tokenizer.pad_token_id
    before = model.generation_config
    # A checkpoint's own generation config may hold penalties, temperatures and limits, which
    # `generate` would mix in. The draw is ours, so its arg max is the token.
    config = GenerationConfig(
        max_new_tokens=int(decoding.max_new_tokens),
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=min(stops) if pad is None else pad,
    )
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        if isinstance(model, ContrastivePair):
            values = {"strength": decoding.strength, "plausibility": decoding.plausibility}
            stack.enter_context(model.override(**values))
        model.generation_config = config
        try:
            yield
        finally:
            model.generation_config = before


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a `with` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
