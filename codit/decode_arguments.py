"""What `decode.generate` refuses before it computes anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit.chat import Conversation
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from codit.vllm_pair import VllmPair
from codit.vocabulary import stop_ids

ENGINES = ("auto", "static", "continuous", "vllm")


def check(
    model: PreTrainedModel | VllmPair,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    decoding: Decoding,
    ids: Sequence[Any] | None,
    engine: str,
    batch_size: int | None,
) -> None:
    """Raise ValueError for arguments of `decode.generate` that no row could be answered with.

    Args:
        model: a pair, one in vLLM's engine, or a causal LM.
        tokenizer: the expert's.
        conversations: what is asked.
        decoding: how tokens are drawn.
        ids: names of the rows.
        engine: one of `ENGINES`.
        batch_size: rows computed at once.

    Raises:
        ValueError: says which argument, and what to do.

    Source: ours.
    """
    check_engine(engine, batch_size)
    _check_engine_of(model, engine)
    if tokenizer.chat_template is None:
        raise ValueError(
            "expected a tokenizer with a chat template; got none. Use the expert's tokenizer, or "
            "set tokenizer.chat_template."
        )
    if ids is not None and len(ids) != len(conversations):
        raise ValueError(
            f"expected an id for each of {len(conversations)} conversations; got {len(ids)}. "
            "Give as many, or None."
        )
    twice = [name for name, n in Counter(map(str, ids or ())).items() if n > 1]
    if twice:
        raise ValueError(
            f"ids must be unique, for equal ids share their noise; got more than once: "
            f"{', '.join(sorted(twice)[:10])}. Rename them, or pass None."
        )
    if not stop_ids(tokenizer, model.generation_config):
        raise ValueError(
            "expected a stop token from the tokenizer or the expert's generation_config; got none. "
            "Set tokenizer.eos_token or generation_config.eos_token_id."
        )
    _check_model(model, tokenizer, decoding)


def check_engine(engine: str, batch_size: int | None) -> None:
    """Raise ValueError for an engine that does not exist or a batch without rows.

    Args:
        engine: one of `ENGINES`.
        batch_size: rows computed at once. None: chosen later.

    Raises:
        ValueError: says which argument, and what to do.

    Source: ours.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}. None chooses one.")


def _check_engine_of(model: PreTrainedModel | VllmPair, engine: str) -> None:
    """Raise ValueError for a model that another engine holds."""
    allowed = ("auto", "vllm") if isinstance(model, VllmPair) else ENGINES[:-1]
    if engine not in allowed:
        raise ValueError(
            f"a {type(model).__name__} decodes with engine {', '.join(allowed)}; got {engine!r}. "
            "vLLM loads its models itself: make a vllm_pair.VllmPair for it, a ContrastivePair "
            "for the others."
        )


def _check_model(
    model: PreTrainedModel | VllmPair, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> None:
    """Raise ValueError if the model cannot decode as asked."""
    if isinstance(model, VllmPair):
        model.check(decoding)
    if isinstance(model, (ContrastivePair, VllmPair)):
        width = model.config.get_text_config().vocab_size
        if width > len(tokenizer):
            raise ValueError(
                f"expected a pair of at most {len(tokenizer)} ids, as many as the tokenizer has; "
                f"got {width}. Make it with ContrastivePair(..., vocab_size=len(tokenizer))."
            )
    elif decoding.strength:
        raise ValueError(
            "a single model has no amateur to contrast: strength must be 0; got "
            f"{decoding.strength}. Use Decoding(strength=0), or a ContrastivePair."
        )
