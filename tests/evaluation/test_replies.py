"""What a reply is worth, without a server: states, scores, the last valid object, the prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codit.evaluation import rubric
from codit.evaluation.replies import NotACompletion, read, score_of, value_in, verdict_of
from codit.evaluation.rubric import PAIRWISE, SINGLE, Template
from tests.fault_server import GOOD, TEXT, said

LOW = json.dumps({**GOOD, "score": 3})


def body(content: Any, **more: Any) -> Any:
    return json.loads(said(content, **more).body)


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (8, 8), ("8", 8), (" 8 ", 8), (8.0, 8), ("8.5", 8.5), (1, 1), (10, 10), ("10", 10),
        (0, None), (11, None), ("85", None), ("100", None), ("-3", None), (0.99, None),
        (10.01, None), (True, None), (False, None), (None, None), ("", None), ("8/10", None),
        ("[8]", None), ([8], None), ({"score": 8}, None), ("eight", None), ("8 points", None),
        ("1e1", None), ("٨", None), ("NaN", None), (float("nan"), None), (float("inf"), None),
        (10**400, None),
    ],
)  # fmt: skip
def test_a_score_is_a_number_from_1_to_10_and_nothing_is_clipped(
    value: Any, score: float | None
) -> None:
    found = score_of(value)
    assert found == score
    assert found is None or type(found) is float


@pytest.mark.parametrize(
    ("value", "verdict"),
    [("first", "first"), (" Second ", "second"), ("TIE", "tie"), ("A", None), ("", None),
     ("first or second", None), (1, None), (None, None), (True, None)],
)  # fmt: skip
def test_a_verdict_is_one_of_three_words(value: Any, verdict: str | None) -> None:
    assert verdict_of(value) == verdict


@pytest.mark.parametrize(
    ("text", "value", "is_pure"),
    [
        (TEXT, 8, True),
        (f"\n {TEXT} \n", 8, True),
        (TEXT.replace("clear", "two\nlines"), 8, True),
        (f"Here it is: {TEXT} I hope it helps.", 8, False),
        (f"```json\n{TEXT}\n```", 8, False),
        (f"{LOW}\nOn reflection:\n{TEXT}", 8, False),
        (f"{TEXT}\n{LOW}", 3, False),
        (f"{TEXT}\nScale: {{'score': 1}} to {{10}}", 8, False),
        (f"{TEXT} and {TEXT[:-9]}", 8, False),
        (f"<think>{LOW}</think>{TEXT}", 8, False),
        (f"{LOW} is my draft</think>\n{TEXT}", 8, False),
        (TEXT.replace("clear", "shows </think> well"), 8, True),
        (json.dumps({**GOOD, "weaknesses": f"it says {LOW}"}), 8, True),
        ('{"score": 8}', None, False),
        (json.dumps({"result": GOOD}), None, False),
        (f"the instruction {json.dumps({'a': GOOD})}", None, False),
        (TEXT[:-9], None, False),
        (TEXT.replace("8", "Infinity"), None, False),
        (TEXT.replace("8", "1" * 5000), None, False),
        ("{" * 5000, None, False),
        ('{"a":' * 5000, None, False),
        ("8", None, False),
    ],
)
def test_the_last_valid_object_counts(text: str, value: float | None, is_pure: bool) -> None:
    found, pure, reason = value_in(text, SINGLE)
    assert (found, pure) == (value, is_pure)
    assert (found is None) == bool(reason)


@given(st.text())
def test_no_text_makes_a_value_out_of_nothing(text: str) -> None:
    value, _, _ = value_in(text, SINGLE)
    assert value is None  # a text at random has no object with three keys


@given(st.text(), st.text(), st.integers(1, 10))
def test_prose_around_an_object_does_not_change_it(before: str, after: str, score: int) -> None:
    whole = json.dumps({**GOOD, "score": score})
    before, after = (text.replace("{", "").replace("<", "") for text in (before, after))
    assert value_in(f"{before}\n{whole}\n{after}", SINGLE)[0] == score


@pytest.mark.parametrize(
    ("content", "more", "state"),
    [
        (TEXT, {}, "ok"),
        ([{"type": "text", "text": TEXT}], {}, "ok"),
        (TEXT, {"finish": None}, "ok"),
        (TEXT, {"refusal": "no"}, "refused"),
        (TEXT, {"finish": "content_filter"}, "refused"),
        (TEXT, {"finish": "length"}, "truncated"),
        ("", {"finish": "length"}, "truncated"),
        ("", {"finish": "length", "refusal": "no"}, "refused"),
        (TEXT.replace("clear", "\\ud800"), {}, "ok"),
        (None, {}, "empty"),
        (8, {}, "empty"),
        ("<think>it goes on", {}, "empty"),
        ("no", {}, "parse_error"),
    ],
)
def test_a_completion_has_one_state(content: Any, more: dict[str, Any], state: str) -> None:
    reading = read(body(content, **more), SINGLE)
    assert reading.state == state
    assert (reading.value is not None) == (state == "ok")
    assert bool(reading.note) == (state != "ok")
    assert (reading.reply + reading.note).encode()  # half a character cannot be stored


def test_reasoning_without_an_answer_is_noticed_however_it_is_sent() -> None:
    for name in ("reasoning", "reasoning_content"):
        assert "reasoned (5 char" in read(body(None, **{name: "hm hm"}), SINGLE).note
    assert "20 tokens were counted" in read(body(None), SINGLE).note
    assert read(body(None, usage=None), SINGLE).note == "no text"
    cut = read(body(None, finish="length", reasoning="hm"), SINGLE)
    assert cut.state == "truncated"
    assert "reasoned" in cut.note


def test_usage_and_text_are_kept_whatever_the_state() -> None:
    reading = read(body("prose", usage=(7, 3)), SINGLE)
    assert (reading.prompt_tokens, reading.completion_tokens) == (7, 3)
    assert (reading.reply, reading.model) == ("prose", "a-judge")
    assert read(body("prose", usage=None), SINGLE).prompt_tokens is None


@pytest.mark.parametrize(
    "value", [None, [], {}, 3, {"choices": []}, {"choices": [{}]}, {"error": 1}]
)
def test_what_is_no_completion_is_no_reply(value: Any) -> None:
    with pytest.raises(NotACompletion, match="expected a chat completion"):
        read(value, SINGLE)


TEMPLATES = [value for value in vars(rubric).values() if isinstance(value, Template)]


def test_a_placeholder_inside_a_text_stays_a_text() -> None:
    values = {"instruction": "Fill {response} and {instruction}", "response": "{score} {x"}
    prompt = rubric.fill(SINGLE, values)
    assert values["instruction"] in prompt
    assert values["response"] in prompt
    assert prompt.count("{response}") == 1


def test_missing_and_unknown_values_of_a_template_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['instruction', 'response'\].*\['instruction'\]"):
        rubric.fill(SINGLE, {"instruction": "x"})
    with pytest.raises(ValueError, match="Give one text for each"):
        rubric.fill(SINGLE, {"instruction": "x", "response": "y", "z": "w"})


def test_every_rubric_has_five_bands_and_asks_for_the_analysis_first() -> None:
    assert len(TEMPLATES) == 5
    for template in TEMPLATES:
        *analysis, answer = rubric.fields(template)
        form = template.text[template.text.rindex("{") :]
        assert [form.index(f'"{name}"') for name in (*analysis, answer)] == sorted(
            form.index(f'"{name}"') for name in (*analysis, answer)
        )
        if template.answer == "score":
            bands = [f"{2 * n - 1}-{2 * n}:" for n in (5, 4, 3, 2, 1)]
            places = [template.text.index(band) for band in bands]
            assert places == sorted(places)


def test_the_schema_demands_what_the_parser_demands() -> None:
    for template in (SINGLE, PAIRWISE):
        schema = rubric.schema(template)["json_schema"]["schema"]
        assert tuple(schema["required"]) == rubric.fields(template)
        assert list(schema["properties"]) == schema["required"]
    assert rubric.schema(SINGLE)["json_schema"]["schema"]["properties"]["score"] == {
        "type": "integer", "minimum": 1, "maximum": 10,
    }  # fmt: skip


def test_another_word_in_a_template_is_another_template() -> None:
    other = Template(name="single", text=SINGLE.text + " Be strict.")
    assert rubric.template_hash(other) != rubric.template_hash(SINGLE)
    assert len({rubric.template_hash(template) for template in TEMPLATES}) == 5


def test_a_conversation_shows_every_turn_and_a_single_turn_only_itself() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turns.append({"role": "user", "content": "c"})
    assert rubric.conversation(turns[:1]) == "a"
    shown = rubric.conversation(turns)
    assert shown == "[user]\na\n\n[assistant]\nb\n\n[user]\nc"
