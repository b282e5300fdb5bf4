"""JSON lines are strict and whole, and a file is replaced at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit.files import line_of, read_lines, replacing, write_json


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_reader_takes_a_record_for_one_line(text: str) -> None:
    line = line_of({"id": text})
    assert line.splitlines() == [line.removesuffix("\n")]
    assert json.loads(line) == {"id": text}


def test_marks_blank_lines_and_separators_inside_a_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "\u2028"}\r\n\n{"a": 2}'.encode())
    assert list(read_lines(path)) == [(1, {"a": "\u2028"}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "expected an object; got list"),
        (b'{"a": NaN}', "expected one JSON object; NaN is not JSON"),
        (b'{"a": -Infinity}', "expected one JSON object; -Infinity is not JSON"),
        (b'{"b": {"a": 1, "a": 1}}', "expected one JSON object; the field 'a' stands there twice"),
        (b'{"a": "\xff"}', "expected UTF-8; invalid start byte at byte 7"),
        (b'{"a": 1', "expected one JSON object; Expecting ',' delimiter"),
        (b"[" * 100_000, "expected one JSON object; maximum recursion depth exceeded"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_or_kept_as_the_reason(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2 of ") as caught:
        list(read_lines(path))
    assert f"line 2 of {path}: {reason}" in str(caught.value)
    (_, first), (number, error), (_, last) = read_lines(path, keep_bad=True)
    assert (first, number, last) == ({"a": 1}, 2, {"a": 3})
    assert isinstance(error, ValueError)
    assert str(error).startswith(reason)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file of JSON lines .*; it is a folder"):
        list(read_lines(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is none"):
        list(read_lines(tmp_path / "none.jsonl"))


def test_a_json_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"text": "é", "n": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "é", "n": 1}
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"n": float("nan")})
    with pytest.raises(TypeError, match="bytes"), replacing(path) as stream:
        stream.write("text where bytes belong")
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.json"]
