"""Text from a pair or a single model: `generate`, the one way text is produced.

A response depends on its prompt, not on its neighbours: the uniform number that draws step t is a
pure function of (seed, id, sample, t), whatever the batch size, the order or the engine.
`token_table` shows, token by token, what contrast changed.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from codit.contrast import contrast, plausible
from codit.engine import models
from codit.engine.cache import engines, reach, shared_width
from codit.engine.chat import (
    Conversation,
    answer_ids,
    check_stops,
    drawable,
    prompt_ids,
    prompt_or_error,
    stop_ids,
    text_of,
)
from codit.engine.paged import continuous
from codit.engine.sampling import Batch, Meter, Step, default_ids, noise_key
from codit.engine.static import static
from codit.engine.vllm.engine import vllm_batches
from codit.pair import ContrastivePair
from codit.recipes import Decoding

logger = logging.getLogger(__name__)

RUN: dict[str, Any] = {"static": static, "continuous": continuous, "vllm": vllm_batches}
ENGINES = ("auto", *RUN)

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
    model: PreTrainedModel | Decoder,
    tokenizer: Tokenizer,
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
            this call; any causal LM, for which strength must be 0 (with plausibility > 0: the arm
            "truncated"); or a `VllmPair`, which keeps the two numbers that it was started with.
        tokenizer: the expert's, with its chat template; thinking mode is switched off.
        conversations: lists of {"role", "content"} that ask for an answer.
        decoding: how tokens are drawn.
        ids: names of the rows, unequal as text; a word of the noise key. None: `default_ids`.
        engine: "static" (length-sorted left-padded batches), "continuous" (paged cache: a row
            that ends makes room for the next), "vllm" (a `VllmPair`; noise is vLLM's own, one
            seed for each row), "auto": vLLM's for a pair in it, "continuous" on a GPU where all
            keys have one shape, "static" elsewhere.
        batch_size: rows computed at once. None: 64 when static, as many as fit when continuous.
            Where memory runs out it is halved, and nothing is lost.
        progress: show a bar with rows/s and tokens/s.

    Returns:
        list[Response]: in the order of `conversations`. A conversation that the template refuses,
        whose prompt leaves no room for max_new_tokens, or to which a model answers with numbers
        that are not finite, gives a Response with `error`.

    Raises:
        ValueError: an argument is out of its range, or two rows have the same id.
        RuntimeError: an engine stopped before all rows were answered, or a single row does not
            fit into memory.

    Source: order of one step and stop set: the authors' scripts (arXiv 2604.13538).
    """
    check_engine(engine, batch_size)
    chosen, decoder = chosen_engine(model, engine), _decoder(model)
    stops = stop_ids(tokenizer, decoder.generation_config)
    _check(decoder, tokenizer, ids, len(conversations), stops)
    room = decoder.context, int(decoding.max_new_tokens)
    prompts = [prompt_or_error(tokenizer, chat, *room) for chat in conversations]
    if ids is None:
        ids = default_ids([[] if isinstance(prompt, str) else prompt for prompt in prompts])
    names = [str(name) for name in ids]
    rows = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, str)}
    errors = {i: error for i, error in enumerate(prompts) if isinstance(error, str)}
    answers = {i: Response(id=names[i], error=error) for i, error in errors.items()}
    logger.info("engine %s (asked for: %s)", chosen, engine)
    meter = Meter(len(prompts), progress)
    width, unused = drawable(tokenizer, decoder.vocab_size)
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batch = Batch(
        step=Step(decoding, width, is_pair=decoder.is_contrast, unused=tuple(unused)),
        rows=rows,
        keys={i: noise_key(decoding.seed, names[i], decoding.sample) for i in rows},
        stops=stops,
        pad=pad if pad < width else stops[0],  # an added token that the amateur has no row for
        size=batch_size,
        meter=meter,
    )
    with decoder.deciding(decoding) as ready, meter.bar:
        meter.add(rows=len(errors))
        for i, drawn, logprobs in RUN[chosen](ready, batch):
            answers[i] = _response(tokenizer, names[i], drawn, logprobs, stops)
            meter.add(rows=1, tokens=len(answers[i].token_ids))
    return [answers[i] for i in range(len(prompts))]


def chosen_engine(model: PreTrainedModel | Decoder, engine: str = "auto") -> str:
    """Return the engine that `generate` uses: the one asked for, or the model's first."""
    offered = _decoder(model).engines
    if engine not in ("auto", *offered):
        raise ValueError(
            f"a {type(model).__name__} decodes with engine {', '.join(('auto', *offered))}; got "
            f"{engine!r}. vLLM loads its models itself: make a codit.engine.vllm.engine.VllmPair "
            "for it, a ContrastivePair for the others."
        )
    return offered[0] if engine == "auto" else engine


@runtime_checkable
class Decoder(Protocol):
    """What `generate` asks of what it decodes with; a single causal LM becomes one by `Single`."""

    @property
    def generation_config(self) -> Any:
        """Where its own stop ids stand."""

    @property
    def is_contrast(self) -> bool:
        """Whether its scores are log q: masked, contrasted and cut to `vocab_size` already."""

    @property
    def vocab_size(self) -> int:
        """Number of ids that it scores."""

    @property
    def context(self) -> int | None:
        """How many tokens it can read; None: no limit is known."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Keys of `RUN`, the one that "auto" means first."""

    def deciding(self, decoding: Decoding) -> AbstractContextManager[Any]:
        """Yield the model that an engine runs, set as `decoding` says for the length of a block.

        Raises:
            ValueError: a decoding that it cannot follow.
        """


class Single:
    """One causal LM as a `Decoder`: sampled as it is, or truncated."""

    is_contrast = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.generation_config = model, model.generation_config
        self.vocab_size = shared_width(model.config)
        self.context = reach(model.config)
        # What acts on the last position of a row needs rows, and prompts that are read whole.
        is_whole = getattr(model, "reads_whole", False)
        self.engines = ("static",) if is_whole else engines(model.device, model.config)

    @contextmanager
    def deciding(self, decoding: Decoding) -> Iterator[PreTrainedModel]:
        """See `Decoder`."""
        if decoding.strength:
            raise ValueError(
                "a single model has no amateur to contrast: strength must be 0; got "
                f"{decoding.strength}. Use Decoding(strength=0), or a ContrastivePair."
            )
        with models.evaluating(self.model):
            yield self.model


def _decoder(model: PreTrainedModel | Decoder) -> Decoder:
    return model if isinstance(model, Decoder) else Single(model)


@torch.no_grad()
def token_table(
    pair: ContrastivePair,
    tokenizer: Tokenizer,
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
    """
    if not hasattr(pair, "both_logits"):
        raise ValueError(
            f"token_table compares two models; got a {type(pair).__name__}. Make a "
            "ContrastivePair of it and its amateur."
        )
    given = response.token_ids if isinstance(response, Response) else response
    answer = answer_ids(tokenizer, given)
    prompt = prompt_ids(tokenizer, conversation)
    ids = torch.tensor([prompt + answer], device=pair.device)
    drawn = torch.tensor(answer, device=pair.device)[:, None]
    with models.evaluating(pair):
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


def _response(
    tokenizer: Tokenizer, name: str, drawn: list[int], logprobs: list[float], stops: Sequence[int]
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


def check_engine(engine: str, batch_size: int | None) -> None:
    """Raise ValueError for an engine that does not exist or a batch without rows."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}. None chooses one.")


def _check(
    decoder: Decoder, tokenizer: Tokenizer, ids: Sequence[Any] | None, n: int, stops: Sequence[int]
) -> None:
    """Raise ValueError for arguments of `generate` that none of n rows could be answered with."""
    if tokenizer.chat_template is None:
        raise ValueError(
            "expected a tokenizer with a chat template; got none. Use the expert's tokenizer, or "
            "set tokenizer.chat_template."
        )
    if ids is not None and len(ids) != n:
        raise ValueError(
            f"expected an id for each of {n} conversations; got {len(ids)}. Give as many, or None."
        )
    if twice := [name for name, times in Counter(map(str, ids or ())).items() if times > 1]:
        raise ValueError(
            f"ids must be unique, for equal ids share their noise; got more than once: "
            f"{', '.join(sorted(twice)[:10])}. Rename them, or pass None."
        )
    if not stops:
        raise ValueError(
            "expected a stop token from the tokenizer or the expert's generation_config; got none. "
            "Set tokenizer.eos_token or generation_config.eos_token_id."
        )
    width, unused = drawable(tokenizer, decoder.vocab_size)
    check_stops(stops, width, unused)
    if decoder.is_contrast and decoder.vocab_size > width:
        raise ValueError(
            f"expected a pair of at most {width} ids, the tokenizer's highest + 1; got "
            f"{decoder.vocab_size}. Make it with {type(decoder).__name__}(..., vocab_size={width})."
        )
