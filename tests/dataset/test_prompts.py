"""Prompts arrive the same from every source, and a bad row is set aside with its reason."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import recipes, world
from codit.dataset import prompts
from codit.world.recipes import WorldPrompts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def test_an_instruction_becomes_a_conversation_of_one_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"id": "a", "instruction": "Say hi."}')
    found = prompts.load(path)
    messages = [{"role": "user", "content": "Say hi."}]
    row = {"id": "a", "instruction": "Say hi.", "messages": messages, "line": 1}
    assert (found.rows, found.errors) == ([row], [])


def test_the_instruction_of_a_conversation_is_its_last_user_turn() -> None:
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]
    (row,) = prompts.load([{"id": 7, "messages": messages, "family": "x"}]).rows
    assert row == {"id": "7", "instruction": "user 3", "messages": messages, "line": 1}


def test_an_id_may_be_missing_or_an_integer() -> None:
    rows = [{"instruction": "a"}, {"id": None, "instruction": "b"}, {"id": 3, "instruction": "c"}]
    assert [row["id"] for row in prompts.load(rows).rows] == [None, None, "3"]


def test_marks_line_ends_and_blank_lines_of_other_systems_are_accepted(tmp_path: Path) -> None:
    first, second = b'\xef\xbb\xbf{"id": "a", "instruction": "x"}\r', b'{"instruction": "y"}\r'
    path = write(tmp_path / "in.jsonl", first, b"\r", b"  ", second, b"", b"")
    found = prompts.load(path)
    assert [(row["instruction"], row["line"]) for row in found.rows] == [("x", 1), ("y", 4)]
    assert found.errors == []


def test_unicode_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\x0csix"
    path = write(tmp_path / "in.jsonl", json.dumps({"instruction": text}, ensure_ascii=False))
    assert [row["instruction"] for row in prompts.load(path).rows] == [text]


def test_a_very_long_line_is_read_whole(tmp_path: Path) -> None:
    text = "word " * 1_000_000
    path = write(tmp_path / "in.jsonl", json.dumps({"instruction": text}), '{"instruction": "b"}')
    assert [len(row["instruction"]) for row in prompts.load(path).rows] == [5_000_000, 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
def test_whatever_text_json_can_write_comes_back(texts: list[str], ascii_only: bool) -> None:
    lines = [json.dumps({"instruction": text}, ensure_ascii=ascii_only) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        found = prompts.load(write(Path(folder) / "in.jsonl", *lines))
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
    found = prompts.load(path)
    assert [row["line"] for row in found.rows] == [1, 3]
    (error,) = found.errors
    assert (error["id"], error["line"]) == (None, 2)
    assert error["reason"].startswith(reason)


def test_a_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a file of JSON lines at .*; it is a folder"):
        prompts.load(tmp_path)


def test_a_bad_row_keeps_its_id_where_it_has_one() -> None:
    found = prompts.load([{"id": 12, "instruction": ""}, {"id": 1.5, "instruction": "a"}])
    assert [error["id"] for error in found.errors] == ["12", None]


def test_repeated_ids_are_named() -> None:
    rows = [{"id": name, "instruction": "a"} for name in ("a", 1, "b", "1", "b")]
    with pytest.raises(ValueError, match=r"2 occur more than once: 1, b\. Rename them"):
        prompts.load(rows)


def test_of_many_repeated_ids_ten_are_named_and_all_counted() -> None:
    rows = [{"id": i, "instruction": "a"} for i in [*range(12), *range(12)]]
    with pytest.raises(ValueError, match=r"12 occur .* once: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\."):
        prompts.load(rows)


def test_no_rows_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected at least one prompt; .*in.jsonl is empty"):
        prompts.load(write(tmp_path / "in.jsonl", "", " "))
    with pytest.raises(ValueError, match="the rows given is empty"):
        prompts.load([])


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


def test_what_is_no_source_of_prompts_is_refused() -> None:
    message = r"got WorldPrompts\. Give its rows; those of the micro world are codit\.world"
    with pytest.raises(ValueError, match=message):
        prompts.load(WorldPrompts(n=5))  # type: ignore[arg-type]
    rows = world.prompts(WorldPrompts(n=5))
    found = prompts.load(rows)
    assert [(row["id"], row["instruction"]) for row in found.rows] == [
        (str(row["id"]), row["instruction"]) for row in rows
    ]


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


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A collection that lies in a folder in place of the Hub's: its rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")

    def rows(source: str, columns: dict[str, list[Any]], **how: Any) -> list[dict[str, Any]]:
        folder = save(tmp_path / source, columns)
        one = prompts.COLLECTIONS[source]._replace(repository=folder)
        monkeypatch.setitem(prompts.COLLECTIONS, source, one)
        return prompts.hub(recipes.HubPrompts(source=source, **how))

    return rows


@pytest.mark.parametrize(
    ("source", "id_column"), [("lmsys", "conversation_id"), ("wildchat", "conversation_hash")]
)
def test_a_chat_collection_gives_first_user_turns_in_english(
    source: str, id_column: str, local: Any
) -> None:
    columns = {id_column: list("abcde"), "conversation": CHATS, "language": LANGUAGES}
    rows = local(source, columns)
    assert rows == [{"id": "a", "instruction": "Hello"}, {"id": "e", "instruction": "Bye"}]
    recipe = recipes.HubPrompts(source=source, n=1)
    assert [row["instruction"] for row in prompts.load(recipe).rows] == ["Hello"]


def test_dolci_gives_first_user_turns_without_the_system_turn(local: Any) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    columns = {"id": ["x", "y"], "messages": [system + talk("One?", "1"), talk("Two?", "2")]}
    rows = local("dolci", columns)
    assert rows == [{"id": "x", "instruction": "One?"}, {"id": "y", "instruction": "Two?"}]


def test_another_collection_is_told_by_its_columns(local: Any) -> None:
    with pytest.raises(ValueError, match=r"missing \['conversation_id', 'conversation', 'langu"):
        local("lmsys", {"text": ["a"]})


def test_an_unknown_collection_is_named() -> None:
    with pytest.raises(ValueError, match=r"one of \['lmsys', 'wildchat', 'dolci'\]; got 'c4'"):
        prompts.load(recipes.HubPrompts(source="c4"))


# ---- what a row may be


USER = {"role": "user", "content": "hi"}
PART = {"type": "text", "text": "i"}


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
        ({}, "expected `instruction`, `prompt`, `messages` or `conversations`; got the fields []"),
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
    found = prompts.load([{"id": "good", "instruction": "a"}, row, {"instruction": "b"}])
    assert [good["line"] for good in found.rows] == [1, 3]
    (error,) = found.errors
    assert (error["line"], error["error"]) == (2, "bad row")
    assert reason in error["reason"]


def test_a_name_is_text_or_an_integer_as_text() -> None:
    values = ("a", 7, 0, -1, True, 1.5, None, "", " ", ["a"], "\ud800")
    names = [prompts.name_of({"id": value}) for value in values]
    assert names == ["a", "7", "0", "-1", None, None, None, None, None, None, None]
    assert prompts.name_of("no row") is None


def test_an_integer_that_python_cannot_write_is_no_name() -> None:
    assert prompts.name_of({"id": 10**1000}) == "1" + "0" * 1000
    assert prompts.name_of({"id": 10**5000}) is None


def test_what_is_shown_of_a_value_is_short() -> None:
    (error,) = prompts.load([{"messages": "x" * 1000}]).errors
    assert error["reason"] == f"messages must be a non-empty list; got '{'x' * 59}..."


def test_other_fields_of_a_turn_are_left_out() -> None:
    turn = {"role": "user", "content": "hi", "language": "English"}
    assert prompts.messages_of({"messages": [turn]}) == [USER]


ASKED = [USER]
SYSTEM = {"role": "system", "content": "be brief"}
TOLD = {"role": "assistant", "content": "hello"}
HUMAN = {"from": "human", "value": "hi"}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "hi"}, ASKED),
        ({"instruction": "hi", "input": ""}, ASKED),
        ({"instruction": "hi", "input": "there"}, [{**USER, "content": "hi\n\nthere"}]),
        ({"instruction": "hi", "output": "hello"}, [*ASKED, TOLD]),
        ({"prompt": "hi", "completion": "hello"}, [*ASKED, TOLD]),
        ({"instruction": "hi", "prompt": "hi", "response": "hello"}, [*ASKED, TOLD]),
        ({"instruction": "hi", "system": "be brief"}, [SYSTEM, *ASKED]),
        ({"messages": [SYSTEM, USER], "system_prompt": "be brief"}, [SYSTEM, *ASKED]),
        ({"messages": [USER, TOLD], "instruction": "hi", "response": "hello"}, [*ASKED, TOLD]),
        ({"messages": [USER, TOLD, USER], "prompt": "hi"}, [USER, TOLD, USER]),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "hello"}]}, [*ASKED, TOLD]),
        ({"conversations": [{"from": "system", "value": "be brief"}, HUMAN]}, [SYSTEM, *ASKED]),
        ({"conversation": [USER]}, ASKED),
        ({"messages": [{**USER, "content": [{"type": "text", "text": "h"}, PART]}]}, ASKED),
        ({"messages": [USER, {**TOLD, "content": ""}]}, [USER, {**TOLD, "content": ""}]),
        ({"messages": None, "instruction": "hi", "context": " ", "tools": [], "n": [1.5]}, ASKED),
        ({"instruction": "hi", "source": "x", "references": ["y"], "is_ideal": True}, ASKED),
    ],
)
def test_every_layout_of_the_table_is_one_conversation(row: Any, turns: Any) -> None:
    assert prompts.conversation_of(row) == turns
    if turns[-1]["role"] == "user" or ("messages" not in row and "conversations" not in row):
        assert prompts.messages_of(row) == (turns[:-1] if turns[-1] == TOLD else turns)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "hi", "context": "c"}, "the field context is not read; it holds 'c'. Put"),
        ({"instruction": "hi", "\ud800": "x"}, r"the field \ud800 is not read"),
        ({"instruction": "hi", "history": [["a", "b"]]}, "the field history is not read"),
        ({"instruction": "hi", "tools": [{"name": "f"}]}, "the field tools is not read"),
        ({"instruction": "hi", "images": [object()]}, "the field images is not read"),
        ({"messages": [{**USER, "name": "Zaro"}]}, "the field messages[0].name is not read"),
        (
            {"messages": [USER, {**TOLD, "reasoning_content": "so"}]},
            "messages[1].reasoning_content",
        ),
        ({"messages": [{**USER, "content": [{**PART, "cache": "x"}]}]}, "content[0].cache is not"),
        (
            {"messages": [{**USER, "content": [{"type": "image"}]}]},
            "a part of type 'text'; got 'im",
        ),
        ({"messages": [{**USER, "content": ["hi"]}]}, "a part of type 'text'; got 'hi'"),
        ({"messages": [{**USER, "content": []}]}, "messages[0].content is empty"),
        (
            {"messages": [USER, {**TOLD, "content": None}]},
            "messages[1].content must be text; got N",
        ),
        ({"messages": [USER], "conversations": [HUMAN]}, "messages and conversations differ"),
        ({"messages": [USER], "input": "x"}, "input stands beside messages, which says all"),
        ({"messages": [SYSTEM, USER], "system": "x"}, "system differs from the first message"),
        ({"messages": [USER, TOLD], "response": "x"}, "response differs from the last message"),
        ({"instruction": "hi", "response": "x", "output": "y"}, "response and output differ"),
        ({"instruction": "hi", "response": ["x"]}, "response must be text; got list"),
        ({"instruction": "hi", "input": 3}, "input must be text; got int"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "conversations[0] has role 'tool'"),
        ({"conversations": [{"from": "human"}]}, "conversations[0].value must be text; got NoneTy"),
        ({"input": "x"}, "expected `instruction`, `prompt`, `messages` or `conversations`; got"),
    ],
)
def test_what_is_read_by_nobody_or_says_two_things_is_a_bad_row(row: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        prompts.conversation_of(row)


def test_what_our_own_files_hold_is_known() -> None:
    metadata = {"expert_model_id": "e", "alpha": 0.1}
    row = {"id": "a", "sample": 1, "instruction": "hi", "response": "hello", "score": [-0.5]}
    row |= {"is_completed": True, "messages": [USER, TOLD], "res_metadata": metadata}
    assert prompts.conversation_of(row) == [USER, TOLD]
    for world_row in world.prompts(WorldPrompts(n=20)):
        assert prompts.messages_of(world_row)[0]["content"] == world_row["instruction"]


def test_a_value_nested_deeper_than_calls_is_content() -> None:
    value: Any = "x"
    for _ in range(10_000):
        value = [value]
    with pytest.raises(ValueError, match="the field deep is not read; it holds list that cannot"):
        prompts.conversation_of({"instruction": "a", "deep": value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0), "it is compressed"),
        (b'\n[{"instruction": "a"}]', "the file is one JSON array"),
        (b'[\n{"instruction": "a"}\n]', "the file is one JSON array"),
    ],
)
def test_a_file_of_another_kind_is_told_in_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prompts.load(tmp_path / "in.jsonl")
