"""A tokenizer's words: a conversation to the ids of its prompt, which ids stop, ids to text.

And whether two tokenizers agree, and a model has a row for what they write. Ids, never text, go on
to a model. What has no source is ours.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

logger = logging.getLogger(__name__)

Conversation = Sequence[Mapping[str, str]]
NOW = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
CLOCK = re.compile(r"strftime_now\s*\(")
THOUGHT = re.compile("</?think>")
# What templates raise for a conversation they do not know: any of these.
TEMPLATE_ERRORS = (jinja2.TemplateError, AttributeError, KeyError, TypeError, ValueError)


def drawable(tokenizer: Tokenizer, width: int) -> tuple[int, list[int]]:
    """Return how many ids a pair scores, the highest id + 1, and those of them that are no token.

    Some tokenizers name an added token more than their text model has logits (Gemma 3 1B): these
    are left out. Ordinary tokens beyond the logits are left in, for the pair to refuse.
    """
    n, unused = _drawable(tokenizer, len(tokenizer), width)
    return n, list(unused)


@functools.lru_cache(maxsize=8)  # a walk through the vocabulary, which each call of decoding asks
def _drawable(tokenizer: Tokenizer, length: int, width: int) -> tuple[int, tuple[int, ...]]:
    known = set(tokenizer.get_vocab().values())
    beyond = {i for i in known if i >= width}
    n = width if beyond and beyond <= {*tokenizer.added_tokens_decoder} else max(known) + 1
    return n, tuple(sorted({*range(n)} - known))


def stop_ids(tokenizer: Tokenizer | None, generation_config: GenerationConfig | None) -> list[int]:
    """Return the ids that end a response, sorted: the tokenizer's stop token and the config's.

    A base model's config often lacks the id that ends a chat turn, and two models that stop on
    their own ids would part. Empty if neither names one.
    """
    listed = getattr(generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list) else [listed]
    own = None if tokenizer is None else tokenizer.eos_token_id
    return sorted({i for i in (*listed, own) if i is not None})


def check_stops(stops: Sequence[int], vocab_size: int, unused: Sequence[int] = ()) -> None:
    """Refuse stop ids that no engine could draw: responses would run on to the limit."""
    if bad := [i for i in stops if i >= vocab_size or i in unused]:
        raise ValueError(
            f"expected stop ids below {vocab_size} that are tokens; got {bad}. Name those of the "
            "tokenizer in the expert's generation config, or load both models with their tokenizer."
        )


def check_tokenizers(
    expert_tokenizer: Tokenizer, amateur_tokenizer: Tokenizer, *, allow_renamed: bool = False
) -> list[tuple[int, str | None, str | None]]:
    """Refuse two tokenizers whose ids do not mean the same: the amateur reads the expert's ids.

    Args:
        expert_tokenizer: the one that encodes and decodes.
        amateur_tokenizer: the one the amateur was trained with.
        allow_renamed: accept added tokens whose names differ at one id, or that one side lacks: a
            chat model often names what its base model keeps in reserve.

    Returns:
        list: the accepted differences (id, expert's name, amateur's name; None where there is
        no such id), also logged as a warning.

    Raises:
        ValueError: an ordinary token differs, or an added one does and `allow_renamed` is False.
    """
    both = (expert_tokenizer, amateur_tokenizer)
    names = [{i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in both]
    added = [tokenizer.added_tokens_decoder.keys() for tokenizer in both]
    rows = [(i, names[0].get(i), names[1].get(i)) for i in sorted({*names[0], *names[1]})]
    differences = [row for row in rows if row[1] != row[2]]
    ordinary = [
        row
        for row in differences
        if any(name and row[0] not in ids for name, ids in zip(row[1:], added, strict=True))
    ]
    if ordinary:
        raise ValueError(
            f"the tokenizers' ordinary vocabularies must be equal; {len(ordinary)} ids differ, "
            f"(id, expert, amateur): {ordinary[:3]}. Take the model that the "
            "expert was trained from."
        )
    if differences and not allow_renamed:
        raise ValueError(
            f"the tokenizers' added tokens must be equal; {len(differences)} ids differ, "
            f"(id, expert, amateur): {differences[:3]}. If these are only names, pass "
            "allow_renamed=True."
        )
    if differences:
        logger.warning("added tokens that differ (id, expert, amateur): %s", differences)
    return differences


def check_embedded(tokenizer: Tokenizer, *widths: int) -> None:
    """Refuse a tokenizer whose prompts hold ids that a model has no row for, of `widths` in all.

    Padding may be such an id: `decode.generate` then pads with a stop token.
    """
    user, system, answer = (
        {"role": role, "content": "a"} for role in ("user", "system", "assistant")
    )
    ids: set[int] = set()
    for chat in ([user], [system, user], [user, answer, user]):
        with contextlib.suppress(*TEMPLATE_ERRORS):
            ids.update(prompt_ids(tokenizer, chat))
    if missing := sorted(i for i in ids if i >= min(widths)):
        names = ", ".join(tokenizer.convert_ids_to_tokens(missing[:3]))
        raise ValueError(
            "expected embeddings with a row for every id of a prompt; got "
            f"{min(widths)} rows, and the ids {missing[:3]} ({names}). Take the model that the "
            "expert was trained from, or give it rows by resize_token_embeddings and save it."
        )


def special_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the sorted ids of special tokens, those that end and begin turns included."""
    flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(flagged | set(tokenizer.all_special_ids))


def prompt_ids(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
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
        ValueError: no conversation, or a template that begins with two BOS. Others: as `templated`.

    Source: enable_thinking=False: the authors' scripts.
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
    ids = templated(tokenizer, conversation, add_generation_prompt=True)
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("").input_ids[:1] == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError(
            f"expected exactly one BOS token ({tokenizer.bos_token!r}) at the start of the prompt; "
            "got two. Remove one from the chat template."
        )
    return ids


def dated(tokenizer: Tokenizer, moment: str) -> tuple[Tokenizer, str | None]:
    """Return a tokenizer whose chat template writes a moment (ISO 8601) in place of each new now.

    And the moment, or None where the template writes no date: then the tokenizer is the one given.
    ValueError: the template makes the format of its date while it is used.
    """
    template = tokenizer.get_chat_template() if tokenizer.chat_template is not None else ""
    if not CLOCK.search(template):
        return tokenizer, None
    when, copied = datetime.fromisoformat(moment), copy.copy(tokenizer)
    copied.chat_template = NOW.sub(lambda now: repr(when.strftime(now[2])), template)
    if CLOCK.search(copied.chat_template):
        raise ValueError(
            "expected a chat template that writes the date in a fixed format, strftime_now('...'); "
            "got another. Rows of one dataset would have other dates: give a template without."
        )
    return copied, moment


def templated(
    tokenizer: Tokenizer, conversation: Conversation, *, add_generation_prompt: bool = False
) -> list[int]:
    """Return the ids of a conversation as the chat template writes it, and check that it is whole.

    Each message's content, stripped, must stand in the text, in order; the system turn anywhere,
    for some templates write it into a later turn. Of an earlier assistant's turn what follows its
    thoughts will do (Qwen3's template leaves the thoughts out), and the white space around a
    thought is the template's own.

    ValueError: a message is left out or cut. Templates raise errors of their own for roles that
    they do not know.
    """
    messages = [dict(message) for message in conversation]
    how: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "enable_thinking": False}
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    place = 0
    for number, message in enumerate(messages):
        is_system = message["role"] == "system"
        for part in _parts(message, is_last=message is messages[-1]):
            found = text.find(part, 0 if is_system else place)
            if found < 0:
                raise ValueError(
                    f"the chat template does not write all of messages[{number}] "
                    f"({message['role']}), {part!r:.60}. Use another template, or leave it out"
                )
            place = place if is_system else found + len(part)
    ids: list[int] = tokenizer.apply_chat_template(
        messages, sanitize_control_tokens=True, return_dict=False, **how
    )
    return ids


def _parts(message: Mapping[str, str], *, is_last: bool) -> list[str]:
    """Return what must stand in the text of a message."""
    if message["role"] != "assistant":
        return [message["content"].strip()]
    parts = [part.strip() for part in THOUGHT.split(message["content"])]
    return parts if is_last else parts[-1:]


def prompt_or_error(
    tokenizer: Tokenizer, conversation: Conversation, context: int | None, max_new_tokens: int
) -> list[int] | str:
    """Return a conversation's `prompt_ids`, or the text that says why it has none.

    `max_new_tokens` of the `context` (tokens a model can read; None: no limit) are kept for the
    answer.
    """
    try:
        ids = prompt_ids(tokenizer, conversation)
    except TEMPLATE_ERRORS as error:
        return f"no prompt could be made: {type(error).__name__}: {error}"
    if context is not None and len(ids) > context - max_new_tokens:
        return (
            f"the prompt is too long: expected at most {max(context - max_new_tokens, 0)} tokens "
            f"(the model's {context} less max_new_tokens={max_new_tokens}); got {len(ids)}. "
            "Shorten the prompt or lower max_new_tokens."
        )
    return ids


def answer_ids(tokenizer: Tokenizer, answer: str | Sequence[int]) -> list[int]:
    """Return the ids, at least one, of an answer given as ids or as text (without a stop token)."""
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


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of token ids, special tokens left out and spaces as they were drawn."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
