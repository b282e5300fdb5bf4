"""A tokenizer's words: prompts to ids, which ids stop, ids to text, two tokenizers compared."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast

from codit import decode
from codit.engine.chat import (
    answer_ids,
    check_tokenizers,
    dated,
    prompt_ids,
    prompt_or_error,
    special_token_ids,
    stop_ids,
    text_of,
)
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


def changed(edit) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer after `edit` has changed its JSON."""
    content = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    edit(content)
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer.from_str(json.dumps(content))
    )


def rename_added(content):
    content["added_tokens"][3]["content"] = "<|reserved_3|>"
    content["model"]["vocab"]["<|reserved_3|>"] = content["model"]["vocab"].pop("<|system|>")


def rename_ordinary(content):
    content["model"]["merges"] = []
    vocab = content["model"]["vocab"]
    vocab["zzzz"] = vocab.pop(next(token for token, i in vocab.items() if i == 279))


def test_equal_vocabularies_agree_whatever_their_stop_tokens():
    expert, amateur = tiny.tokenizer(), tiny.tokenizer(eos_token=tiny.EOS)
    assert check_tokenizers(expert, amateur) == []


def test_a_renamed_added_token_is_refused_unless_allowed_and_is_then_reported(caplog):
    expert, amateur = tiny.tokenizer(), changed(rename_added)
    message = (
        "added tokens must be equal; 1 ids differ, (id, expert, amateur): "
        "[(3, '<|system|>', '<|reserved_3|>')]. If these are only names, pass allow_renamed=True"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tokenizers(expert, amateur)
    with caplog.at_level(logging.WARNING, logger="codit"):
        differences = check_tokenizers(expert, amateur, allow_renamed=True)
    assert differences == [(3, "<|system|>", "<|reserved_3|>")]
    assert "<|reserved_3|>" in caplog.text


def test_an_added_token_that_one_side_lacks_counts_as_renamed():
    expert, amateur = tiny.tokenizer(), tiny.tokenizer()
    expert.add_tokens(["<think>"], special_tokens=True)
    with pytest.raises(ValueError, match=re.escape("[(280, '<think>', None)]")):
        check_tokenizers(expert, amateur)
    assert check_tokenizers(expert, amateur, allow_renamed=True) == [(280, "<think>", None)]


def test_a_different_ordinary_token_is_refused_even_if_renaming_is_allowed():
    message = "ordinary vocabularies must be equal; 1 ids differ, (id, expert, amateur): [(279, "
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        check_tokenizers(tiny.tokenizer(), changed(rename_ordinary), allow_renamed=True)
    assert "Take the model that the expert was trained from." in str(refusal.value)


@pytest.mark.parametrize(
    ("listed", "expected"), [(None, [4]), (0, [0, 4]), (4, [4]), ([0, 4], [0, 4]), ([0], [0, 4])]
)
def test_stop_ids_unite_tokenizer_and_generation_config(listed, expected):
    assert stop_ids(tiny.tokenizer(), GenerationConfig(eos_token_id=listed)) == expected


def test_stop_ids_come_from_the_tokenizer_alone_without_a_config():
    assert stop_ids(tiny.tokenizer(eos_token=tiny.EOS), None) == [0]


def test_special_ids_include_those_that_begin_and_end_turns_and_no_plain_addition():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["plain"])
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, 4]


MOVED = (  # Mistral's way: the system turn before the last user's
    "{% for m in messages if m.role != 'system' %}{{ '<|' + m.role + '|>' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{{ m.content | trim }}{{ '<|end|>' }}{% endfor %}{{ '<|assistant|>' }}"
)
TALK = [
    {"role": "system", "content": "be brief "},
    {"role": "user", "content": " who?\n"},
    {"role": "assistant", "content": "<think>hm</think> the cat"},
    {"role": "user", "content": "and then?"},
]


def chatting(template: str) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        tiny.CHAT_TEMPLATE,
        MOVED,
        tiny.CHAT_TEMPLATE.replace(
            "message['content']", "message['content'].split('</think>')[-1]"
        ),
    ],
)
def test_templates_that_trim_move_the_system_turn_or_drop_old_thoughts_are_whole(
    template: str,
) -> None:
    assert decode.prompt_ids(chatting(template), TALK)


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        (MOVED.replace("{{ messages[0].content }}", ""), r"messages\[0\] \(system\), 'be brief'"),
        (MOVED.replace("m.content | trim", "m.content[:8] | trim"), r"messages\[2\] \(assistant"),
        ("{{ messages[-1].content }}", r"messages\[0\] \(system\)"),
        ("{{ messages[0].content }}{{ messages[3].content }}", r"messages\[1\] \(user\), 'who"),
        (
            "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
            r"messages\[2\] \(assistant\), 'the cat'",
        ),
    ],
)
def test_a_template_that_writes_less_than_the_conversation_is_refused(
    template: str, missing: str
) -> None:
    with pytest.raises(ValueError, match=f"the chat template does not write all of {missing}"):
        decode.prompt_ids(chatting(template), TALK)


def test_a_dated_template_writes_the_moment_that_it_is_given() -> None:
    template = (
        '{% if strftime_now is defined %}{% set d = strftime_now ("%d %b %Y") %}{% endif %}'
        "{{ d + strftime_now('%H') }}" + tiny.CHAT_TEMPLATE
    )
    tokenizer = chatting(template)
    pinned, date = dated(tokenizer, "2026-01-02T03:04:05")
    ids = decode.prompt_ids(pinned, TALK)
    assert date == "2026-01-02T03:04:05"
    assert tokenizer.decode(ids).startswith("02 Jan 202603<|system|>")
    assert tokenizer.chat_template == template, "the caller's own is left alone"
    plain = tiny.tokenizer()
    assert dated(plain, "2026-01-02") == (plain, None)
    with pytest.raises(ValueError, match="a chat template that writes the date in a fixed format"):
        dated(chatting("{{ strftime_now(messages[0].content) }}"), "2026-01-02")
