"""Which texts are compared: benchmarks' prompts, a row's fields, and their words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import overlap_texts
from codit.overlap_texts import read_benchmark, read_rows, texts_of, words


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  panic,\n**ever**!", ["don", "t", "panic", "ever"]),
        ("snake_case 3.14", ["snake", "case", "3", "14"]),
        ("Straße ＡＢＣ ﬁn", ["strasse", "abc", "fin"]),
        ("北京是首都 ok", ["北", "京", "是", "首", "都", "ok"]),
        ("こんにちは", ["こ", "ん", "に", "ち", "は"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("?! ...", []),
    ],
)
def test_words_are_what_is_left_without_case_form_and_punctuation(
    text: str, expected: list[str]
) -> None:
    assert words(text) == expected


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii")))
def test_plain_text_has_the_same_words_on_the_fast_way(text: str) -> None:
    # The no-break space is no ASCII, and no word.
    assert words(text) == words(text + "\u00a0")


def test_every_known_form_of_a_benchmark_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bench.jsonl",
        {"question_id": 81, "turns": ["first one", "second one"]},
        {"key": 1000, "prompt": "asked by key"},
        {"id": "x", "instruction": "an instruction"},
        {
            "messages": [
                {"role": "system", "content": "not compared"},
                {"role": "user", "content": "hello there"},
                {"role": "assistant", "content": "not compared"},
                {"role": "user", "content": "and again"},
            ]
        },
    )
    found = read_benchmark(path)
    assert found.name == "bench"
    assert found.left_out == 0
    assert found.prompts == {
        "81": "first one",
        "81#2": "second one",
        "1000": "asked by key",
        "x": "an instruction",
        "4": "hello there",
        "4#2": "and again",
    }


def test_rows_without_a_usable_prompt_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "good"}, {"text": "other column"}, {"prompt": " "}, {"prompt": 3}]
    rows += [{"prompt": "!?"}, {"turns": []}, {"messages": ["text"]}]
    found = read_benchmark(write(tmp_path / "b.jsonl", *rows), name="mine")
    assert (found.name, found.prompts, found.left_out) == ("mine", {"1": "good"}, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n', "got 1 without. Rename"),
        ("", "got 0 without"),
        ('{"prompt": "a"}\n{"prompt": \n', "JSON object in line 2"),
        ('["a"]\n', "expected an object in line 1"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', "every id once"),
    ],
)
def test_a_benchmark_that_cannot_be_read_says_why(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "b.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_benchmark(tmp_path / "b.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_benchmark(tmp_path / "none.jsonl")


def test_rows_are_read_whatever_ends_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"id": 1}', "", '{"id": 2, "score": [-0.5, -1e-3]}', '{"id": 3, "score": [[1]]}']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = list(read_rows(path))
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert "score" not in rows[1], "most of a dataset's bytes are passed over"


def test_a_row_in_either_form_has_the_same_texts() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    expected = {"instruction": ["three"], "response": ["four"]}
    expected["earlier turns"] = ["be kind", "one", "two"]
    assert texts_of({"messages": messages}) == expected
    assert texts_of({"messages": messages, "instruction": "three", "response": "four"}) == expected
    assert texts_of({"instruction": "a", "response": "b"}) == {
        "instruction": ["a"],
        "response": ["b"],
        "earlier turns": [],
    }
    assert set(expected) == set(overlap_texts.FIELDS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 5, "text": "x"}, "what is not read is not checked"),
        ({"id": 5, "instruction": 3}, "expected texts in row 5"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "expected texts"),
        ({"messages": [{"from": "human", "value": "x"}]}, "role and content"),
        ({"messages": "x"}, "role and content"),
    ],
)
def test_a_row_whose_texts_are_not_found_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts_of(row)
