"""Prompts to token ids and ids to text."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from codit.engine.models import answer_ids, prompt_ids, prompt_or_error, text_of
from tests import tiny

TOKENIZER = tiny.tokenizer()
CHAT = [{"role": "user", "content": "the cat"}]


def test_a_prompt_is_the_conversation_and_the_beginning_of_an_answer():
    chat = [*CHAT, {"role": "assistant", "content": "sat"}, {"role": "user", "content": "on"}]
    expected = "<|user|>the cat<|end|><|assistant|>sat<|end|><|user|>on<|end|><|assistant|>"
    assert TOKENIZER.decode(prompt_ids(TOKENIZER, chat)) == expected


def with_bos(template: str, *, adds: bool) -> Any:
    """A tokenizer with a BOS token of its own."""
    made = tiny.tokenizer()
    made.add_special_tokens({"bos_token": "<|bos|>"})
    made.chat_template = template
    if adds:
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", made.bos_token_id)]
        )
    return made


@pytest.mark.parametrize(
    ("prefix", "adds", "expected"),
    [("", False, 0), ("{{ bos_token }}", False, 1), ("", True, 1), ("{{ bos_token }}", True, 1)],
)
def test_a_prompt_has_one_bos_where_the_template_or_the_tokenizer_wants_one(prefix, adds, expected):
    tokenizer = with_bos(prefix + tiny.CHAT_TEMPLATE, adds=adds)
    assert (tokenizer("x").input_ids[0] == tokenizer.bos_token_id) == adds
    ids = prompt_ids(tokenizer, CHAT)
    assert ids == [tokenizer.bos_token_id] * expected + prompt_ids(TOKENIZER, CHAT)


@pytest.mark.parametrize("adds", [False, True])
def test_a_template_with_two_bos_is_an_error(adds):
    tokenizer = with_bos("{{ bos_token }}{{ bos_token }}" + tiny.CHAT_TEMPLATE, adds=adds)
    expected = r"expected exactly one BOS token \('<\|bos\|>'\) at the start of the prompt; got two"
    with pytest.raises(ValueError, match=expected) as error:
        prompt_ids(tokenizer, CHAT)
    assert "Remove one from the chat template." in str(error.value)


def test_special_tokens_in_a_message_are_text():
    ids = prompt_ids(TOKENIZER, [{"role": "user", "content": "a<|end|><|assistant|>b"}])
    special = [i for i in ids if i in TOKENIZER.all_special_ids]
    assert TOKENIZER.convert_ids_to_tokens(special) == ["<|user|>", "<|end|>", "<|assistant|>"]
    assert "a<|end|><|assistant|>b" in TOKENIZER.decode(ids)


def test_thinking_is_switched_off_where_the_template_knows_it():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is false %}no thoughts{% endif %}"
    assert TOKENIZER.decode(prompt_ids(tokenizer, CHAT)).endswith("no thoughts")


@pytest.mark.parametrize(
    "bad", [[], None, "hello", ["hello"], [{"role": "user"}], [{"role": "user", "content": 3}]]
)
def test_what_is_no_conversation_is_refused(bad):
    with pytest.raises(ValueError, match="expected at least one message") as error:
        prompt_ids(TOKENIZER, bad)
    assert f"got {bad!r}. Give every message both." in str(error.value)


def test_a_prompt_may_fill_the_context_but_for_the_answer():
    n = len(prompt_ids(TOKENIZER, CHAT))
    assert prompt_or_error(TOKENIZER, CHAT, n + 5, 5) == prompt_ids(TOKENIZER, CHAT)
    assert prompt_or_error(TOKENIZER, CHAT, None, 5) == prompt_ids(TOKENIZER, CHAT)
    assert prompt_or_error(TOKENIZER, CHAT, n + 4, 5) == (
        f"the prompt is too long: expected at most {n - 1} tokens (the model's {n + 4} less "
        f"max_new_tokens=5); got {n}. Shorten the prompt or lower max_new_tokens."
    )


def test_text_has_no_special_tokens_and_its_spaces_as_they_are():
    made = tiny.tokenizer()
    made.clean_up_tokenization_spaces = True
    ids = made("the cat , is n't <|end|>").input_ids
    assert text_of(made, ids) == "the cat , is n't "


def test_an_answer_is_ids_or_a_text():
    assert answer_ids(TOKENIZER, "the cat") == TOKENIZER("the cat").input_ids
    assert answer_ids(TOKENIZER, (5, 6)) == [5, 6]


@pytest.mark.parametrize("empty", ["", []])
def test_an_answer_without_tokens_is_refused(empty):
    with pytest.raises(ValueError, match="an answer of at least one token; got") as error:
        answer_ids(TOKENIZER, empty)
    assert "Give a Response without an error, token ids or a text." in str(error.value)
