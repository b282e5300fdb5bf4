"""Prompts arrive the same from every source, and a bad row is set aside with its reason."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import prompts, recipes, world

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


@pytest.fixture
def local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


def test_an_instruction_becomes_a_conversation_of_one_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"id": "a", "instruction": "Say hi."}')
    found = prompts.read_jsonl(path)
    messages = [{"role": "user", "content": "Say hi."}]
    row = {"id": "a", "instruction": "Say hi.", "messages": messages, "line": 1}
    assert (found.rows, found.errors) == ([row], [])


def test_the_instruction_of_a_conversation_is_its_last_user_turn() -> None:
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]
    (row,) = prompts.check([{"id": 7, "messages": messages, "family": "x"}]).rows
    assert row == {"id": "7", "instruction": "user 3", "messages": messages, "line": 1}


def test_an_id_may_be_missing_or_an_integer() -> None:
    rows = [{"instruction": "a"}, {"id": None, "instruction": "b"}, {"id": 3, "instruction": "c"}]
    assert [row["id"] for row in prompts.check(rows).rows] == [None, None, "3"]


def test_marks_line_ends_and_blank_lines_of_other_systems_are_accepted(tmp_path: Path) -> None:
    first, second = b'\xef\xbb\xbf{"id": "a", "instruction": "x"}\r', b'{"instruction": "y"}\r'
    path = write(tmp_path / "in.jsonl", first, b"\r", b"  ", second, b"", b"")
    found = prompts.read_jsonl(path)
    assert [(row["instruction"], row["line"]) for row in found.rows] == [("x", 1), ("y", 4)]
    assert found.errors == []


def test_unicode_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\x0csix"
    path = write(tmp_path / "in.jsonl", json.dumps({"instruction": text}, ensure_ascii=False))
    assert [row["instruction"] for row in prompts.read_jsonl(path).rows] == [text]


def test_a_very_long_line_is_read_whole(tmp_path: Path) -> None:
    text = "word " * 1_000_000
    path = write(tmp_path / "in.jsonl", json.dumps({"instruction": text}), '{"instruction": "b"}')
    assert [len(row["instruction"]) for row in prompts.read_jsonl(path).rows] == [5_000_000, 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
def test_whatever_text_json_can_write_comes_back(texts: list[str], ascii_only: bool) -> None:
    lines = [json.dumps({"instruction": text}, ensure_ascii=ascii_only) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        found = prompts.read_jsonl(write(Path(folder) / "in.jsonl", *lines))
    assert [row["instruction"] for row in found.rows] == texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "half', "expected one JSON object; Unterminated string"),
        ("{'id': 1}", "expected one JSON object; Expecting property name"),
        ('{"instruction": "a"} {"instruction": "b"}', "expected one JSON object; Extra data"),
        ("[" * 200_000, "expected one JSON object; "),
        (b'{"instruction": "\xff"}', "expected UTF-8; invalid start byte at byte 17"),
        ("[1]", "expected an object; got list"),
        ('{"id": 1, "instruction": "a", "id": 2}', "expected one JSON object; the field 'id' stan"),
        (
            '{"instruction": "a", "x": [{"y": 1, "y": 1}]}',
            "expected one JSON object; the field 'y'",
        ),
        (b'{"instruction": "a\x00"}', "expected one JSON object; Invalid control character"),
        ('{"instruction": %s}' % ("9" * 5000), "expected one JSON object; Exceeds the limit"),
    ],
)
def test_a_line_that_is_not_a_json_object_is_recorded(
    line: str | bytes, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "in.jsonl", '{"instruction": "a"}', line, '{"instruction": "b"}')
    found = prompts.read_jsonl(path)
    assert [row["line"] for row in found.rows] == [1, 3]
    (error,) = found.errors
    assert (error["id"], error["line"]) == (None, 2)
    assert error["reason"].startswith(reason)


def test_a_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a file of JSON lines at .*; it is a folder"):
        prompts.read_jsonl(tmp_path)


def test_a_bad_row_keeps_its_id_where_it_has_one() -> None:
    found = prompts.check([{"id": 12, "instruction": ""}, {"id": 1.5, "instruction": "a"}])
    assert [error["id"] for error in found.errors] == ["12", None]


def test_repeated_ids_are_named() -> None:
    rows = [{"id": name, "instruction": "a"} for name in ("a", 1, "b", "1", "b")]
    with pytest.raises(ValueError, match=r"2 occur more than once: 1, b\. Rename them"):
        prompts.check(rows)


def test_of_many_repeated_ids_ten_are_named_and_all_counted() -> None:
    rows = [{"id": i, "instruction": "a"} for i in [*range(12), *range(12)]]
    with pytest.raises(ValueError, match=r"12 occur .* once: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\."):
        prompts.check(rows)


def test_no_rows_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected at least one prompt; .*in.jsonl is empty"):
        prompts.read_jsonl(write(tmp_path / "in.jsonl", "", " "))
    with pytest.raises(ValueError, match="the rows given is empty"):
        prompts.check([])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file of JSON lines at .*no\.jsonl"):
        prompts.load(tmp_path / "no.jsonl")


def test_a_limit_takes_the_first_input_rows_good_or_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"instruction": "a"}', "bad", '{"instruction": "b"}')
    found = prompts.load(path, limit=2)
    assert (len(found.rows), len(found.errors)) == (1, 1)
    assert len(prompts.load(path, limit=99).rows) == 2
    with pytest.raises(ValueError, match="limit must be at least 1; got 0"):
        prompts.load(path, limit=0)


def test_a_file_recipe_and_its_path_give_the_same_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"id": "a", "instruction": "x"}')
    assert prompts.load(recipes.File(path=str(path))) == prompts.load(str(path))


def test_the_worlds_prompts_come_as_rows() -> None:
    recipe = recipes.WorldPrompts(n=5)
    found = prompts.load(recipe)
    assert found.errors == []
    expected = [(str(row["id"]), row["instruction"]) for row in world.prompts(recipe)]
    assert [(row["id"], row["instruction"]) for row in found.rows] == expected
    assert len(expected) == 5


def talk(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def save(folder: Path, columns: dict[str, list[Any]]) -> str:
    folder.mkdir()
    pd.DataFrame(columns).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


CHATS = [
    talk("Hello", "Hi", "And?"),
    talk("Bonjour", "Salut"),
    talk(" Hello\n", "Hey"),
    talk(" "),
    talk("Bye"),
]
LANGUAGES = ["English", "French", "English", "English", "English"]


@pytest.mark.usefixtures("local_cache")
@pytest.mark.parametrize(
    ("loader", "id_column"),
    [(prompts.lmsys, "conversation_id"), (prompts.wildchat, "conversation_hash")],
)
def test_a_chat_collection_gives_first_user_turns(
    loader: Any, id_column: str, tmp_path: Path
) -> None:
    columns = {id_column: list("abcde"), "conversation": CHATS, "language": LANGUAGES}
    path = save(tmp_path / "chats", columns)
    rows = loader(path=path)
    assert rows == [{"id": "a", "instruction": "Hello"}, {"id": "e", "instruction": "Bye"}]
    assert [row["id"] for row in loader(path=path, dedupe=False)] == ["a", "c", "e"]
    assert [row["id"] for row in loader(path=path, language="French")] == ["b"]
    assert [row["id"] for row in loader(path=path, language=None)] == ["a", "b", "e"]
    assert len(prompts.load(rows).rows) == 2


@pytest.mark.usefixtures("local_cache")
def test_dolci_gives_first_user_turns_without_the_system_turn(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    columns = {"id": ["x", "y"], "messages": [system + talk("One?", "1"), talk("Two?", "2")]}
    rows = prompts.dolci(path=save(tmp_path / "dolci", columns))
    assert rows == [{"id": "x", "instruction": "One?"}, {"id": "y", "instruction": "Two?"}]


@pytest.mark.usefixtures("local_cache")
def test_another_collection_is_told_by_its_columns(tmp_path: Path) -> None:
    path = save(tmp_path / "other", {"text": ["a"]})
    with pytest.raises(ValueError, match=r"missing \['conversation_id', 'conversation', 'langu"):
        prompts.lmsys(path=path)
