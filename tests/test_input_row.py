"""A row is asked, or set aside with the reason why it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from codit import input_row, prompts

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {str(n): n for n in range(99)},
            "got the fields ['0', '1', '2', '3', '4', '5', '6', '7', '8'",
        ),
        ({"id": 10**5000, "instruction": "a"}, "got int that cannot be shown"),
        ("not an object", "expected an object; got str"),
        (None, "expected an object; got NoneType"),
        ({}, "expected `instruction` or `messages`; got the fields []"),
        ({"id": "a", "text": "b"}, "got the fields ['id', 'text']"),
        ({"instruction": ""}, "instruction is empty"),
        ({"instruction": " \n"}, "instruction is empty"),
        ({"instruction": 3}, "instruction must be text; got int"),
        ({"instruction": "\ud800"}, "instruction holds half of a surrogate pair"),
        (
            {"id": "\udfff", "instruction": "a"},
            r"id must be non-empty text or an integer; got '\udfff'",
        ),
        ({"id": 1.5, "instruction": "a"}, "id must be non-empty text or an integer; got 1.5"),
        ({"id": True, "instruction": "a"}, "id must be non-empty text or an integer; got True"),
        ({"id": "", "instruction": "a"}, "id must be non-empty text or an integer; got ''"),
        ({"messages": "hi"}, "messages must be a non-empty list; got 'hi'"),
        ({"messages": []}, "messages must be a non-empty list; got []"),
        ({"messages": ["hi"]}, "messages[0] must be an object; got str"),
        ({"messages": [{"content": "hi"}]}, "messages[0] has role None; known are system, user"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0] has role 'tool'"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0] has role ['user']"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be text; got NoneType"),
        ({"messages": [USER, {**USER, "content": " "}]}, "messages[1].content is empty"),
        ({"messages": [USER, {**USER, "role": "system"}]}, "only the first may be one"),
        ({"messages": [USER, {**USER, "role": "assistant"}]}, "got role 'assistant'"),
        ({"messages": [USER], "instruction": "other"}, "instruction differs from the last user"),
    ],
)
def test_a_bad_row_is_recorded_with_its_reason_and_the_others_go_on(row: Any, reason: str) -> None:
    found = prompts.check([{"id": "good", "instruction": "a"}, row, {"instruction": "b"}])
    assert [good["line"] for good in found.rows] == [1, 3]
    (error,) = found.errors
    assert (error["line"], error["error"]) == (2, "bad row")
    assert reason in error["reason"]


def test_a_name_is_text_or_an_integer_as_text() -> None:
    values = ("a", 7, 0, -1, True, 1.5, None, "", " ", ["a"], "\ud800")
    names = [input_row.name_of({"id": value}) for value in values]
    assert names == ["a", "7", "0", "-1", None, None, None, None, None, None, None]
    assert input_row.name_of("no row") is None


def test_an_integer_that_python_cannot_write_is_no_name() -> None:
    assert input_row.name_of({"id": 10**1000}) == "1" + "0" * 1000
    assert input_row.name_of({"id": 10**5000}) is None


def test_what_is_shown_of_a_value_is_short() -> None:
    (error,) = prompts.check([{"messages": "x" * 1000}]).errors
    assert error["reason"] == f"messages must be a non-empty list; got '{'x' * 59}..."


def test_other_fields_of_a_turn_are_left_out() -> None:
    turn = {"role": "user", "content": "hi", "language": "English"}
    assert input_row.messages_of({"messages": [turn]}) == [USER]
