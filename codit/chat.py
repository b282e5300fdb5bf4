"""From a conversation to the token ids of its prompt, and from an answer's ids to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, str]]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the token ids of a templated conversation, ready for an answer.

    Ids, never text, go on to the model: text would be tokenised again, with a second BOS. Special
    tokens written in a message are encoded as ordinary text, so no message can end a turn.

    Args:
        tokenizer: the expert's. Thinking mode is switched off where its template knows it.
        conversation: {"role", "content"} of each message.

    Returns:
        list[int]: the generation prompt last; exactly one BOS first where the template writes
        one or the tokenizer adds one to texts.

    Raises:
        ValueError: no conversation, or a template that begins with two BOS. Templates raise
            errors of their own for roles they do not know.

    Source: the authors' scripts pass enable_thinking=False; one BOS and literal text: ours.
    """
    if not conversation or not all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in conversation
    ):
        raise ValueError(
            'expected at least one message {"role": text, "content": text}; '
            f"got {conversation!r}. Give every message both."
        )
    ids: list[int] = tokenizer.apply_chat_template(
        [dict(message) for message in conversation],
        add_generation_prompt=True,
        enable_thinking=False,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("").input_ids[:1] == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError(
            f"expected exactly one BOS token ({tokenizer.bos_token!r}) at the start of the prompt; "
            "got two. Remove one from the chat template."
        )
    return ids


def prompt_or_error(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    context: int | None,
    max_new_tokens: int,
) -> list[int] | str:
    """Return a conversation's `prompt_ids`, or the text that says why it has none.

    Args:
        tokenizer: the expert's.
        conversation: {"role", "content"} of each message.
        context: tokens a model can read. None: no limit.
        max_new_tokens: tokens of the context that are kept for the answer.

    Returns:
        list[int] | str: the ids; or what was expected, what came, and what to do.

    Source: ours.
    """
    try:
        ids = prompt_ids(tokenizer, conversation)
    except (jinja2.TemplateError, AttributeError, KeyError, TypeError, ValueError) as error:
        # What templates raise for a conversation they do not know: any of these.
        return f"no prompt could be made: {type(error).__name__}: {error}"
    if context is not None and len(ids) > context - max_new_tokens:
        return (
            f"the prompt is too long: expected at most {max(context - max_new_tokens, 0)} tokens "
            f"(the model's {context} less max_new_tokens={max_new_tokens}); got {len(ids)}. "
            "Shorten the prompt or lower max_new_tokens."
        )
    return ids


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str | Sequence[int]) -> list[int]:
    """Return the token ids of an answer given as text, which gets no stop token, or as ids.

    Raises:
        ValueError: no token at all.
    """
    if isinstance(answer, str):
        ids = tokenizer(answer, add_special_tokens=False).input_ids
    else:
        ids = [int(token) for token in answer]
    if not ids:
        raise ValueError(
            f"expected an answer of at least one token; got {answer!r}. Give a Response without "
            "an error, token ids or a text."
        )
    return ids


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of token ids, special tokens left out and spaces as they were drawn."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
