"""Whatever bytes lie in a file of prompts or of rows, they are read, recorded or refused."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codit import decode
from codit.dataset import output, prompts
from codit.dataset.output import Files
from codit.files import line_of, record_of
from codit.recipes import Decoding
from tests import tiny
from tests.dataset.test_output import FINGERPRINT, RECIPE, row

DOCUMENTED = (  # of the reader
    "expected every id once",
    "expected at least one prompt",
    "expected an object in each line of",
    "expected JSON lines in",
)
ANY_TEXT = st.text(st.characters())  # half surrogates too
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBER = st.integers(-(10**30), 10**30) | st.floats()
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries(
    {},
    optional={"role": st.sampled_from(["system", "user", "assistant", "tool"]) | VALUE}
    | {"content": TEXT | VALUE},
)
ROW = st.fixed_dictionaries(
    {},
    optional={"id": TEXT | NUMBER | VALUE, "instruction": TEXT | VALUE}
    | {"messages": st.lists(TURN, max_size=3) | VALUE, "other": VALUE},
)


@st.composite
def line(draw: st.DrawFn) -> bytes:
    """One line: JSON of a row or of anything, bytes, or JSON that something happened to."""
    value = draw(ROW | ROW | VALUE)
    made = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    kind = draw(st.sampled_from(["whole", "whole", "cut", "changed", "twice", "bytes", "blank"]))
    if kind == "cut":
        made = made[: draw(st.integers(0, len(made)))]
    elif kind == "changed":
        place = draw(st.integers(0, len(made)))
        made = made[:place] + draw(st.binary(max_size=3)) + made[place + 1 :]
    elif kind == "twice":
        made = made.replace(b"{", b'{"id": 1, "id": 2, ', 1)
    elif kind == "bytes":
        made = draw(st.binary(max_size=30))
    elif kind == "blank":
        made = draw(st.sampled_from([b"", b" ", b"\r", b"\t\x0b\x0c"]))
    return made.replace(b"\n", b" ")


def read(data: bytes) -> prompts.Prompts | None:
    """Read a file of these bytes; None where it is refused as documented."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_bytes(data)
        try:
            return prompts.load(path)
        except ValueError as error:
            if not str(error).startswith(DOCUMENTED):
                raise
            return None


def check_all_there(data: bytes, found: prompts.Prompts) -> None:
    """Every line that is not blank is a row or an error, once and in order."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = [n for n, text in enumerate(lines, start=1) if text.strip()]
    rows, errors = ([entry["line"] for entry in part] for part in (found.rows, found.errors))
    assert rows == sorted(rows)
    assert errors == sorted(errors)
    assert sorted(rows + errors) == expected
    for entry in found.rows:
        assert entry["messages"][-1] == {"role": "user", "content": entry["instruction"]}
        assert entry["instruction"].strip()
    json.dumps([found.rows, found.errors], ensure_ascii=False).encode()  # can be written


@settings(deadline=None, max_examples=300)
@given(st.lists(line(), max_size=6), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_every_line_is_a_row_or_an_error(lines: list[bytes], end: bytes, marked: bool) -> None:
    data = b"\xef\xbb\xbf" * marked + end.join(lines)
    found = read(data)
    if found is not None:
        check_all_there(data, found)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    found = read(data)
    if found is not None:
        check_all_there(data, found)


@settings(deadline=None, max_examples=100)
@given(st.lists(VALUE | ROW, max_size=5))
def test_any_values_in_memory_are_rows_or_errors(values: list[Any]) -> None:
    try:
        found = prompts.load(values)
    except ValueError as error:
        if not str(error).startswith(DOCUMENTED):
            raise
    else:
        assert len(found.rows) + len(found.errors) == len(values)


@pytest.mark.parametrize(
    "value",
    [
        {"id": 10**5000, "instruction": "a"},
        {"id": "a", "messages": 10**5000},
        {"id": "a", "messages": [{"role": 10**5000, "content": "b"}]},
        {"id": "a", **{str(n): n for n in range(10_000)}},
        {"\ud800": 1},
    ],
    ids=["id too long", "messages a number", "role a number", "many fields", "half a field name"],
)
def test_values_that_are_hard_to_show_are_recorded_in_few_words(value: Any) -> None:
    (error,) = prompts.load([value]).errors
    assert len(error["reason"]) < 200
    json.dumps(error, ensure_ascii=False).encode()


def test_a_message_nested_as_deep_as_json_allows_is_recorded(tmp_path: Path) -> None:
    for depth in range(0, 1100, 7):
        inner = "[" * depth + "]" * depth
        for text in (inner, f'[{{"role": {inner}, "content": "a"}}]', f'[{{"role": {inner}}}]'):
            (tmp_path / "in.jsonl").write_text(f'{{"id": "a", "messages": {text or 0}}}\n')
            (error,) = prompts.load(tmp_path / "in.jsonl").errors
            assert error["error"] == "bad row"


def random_line(draw: random.Random) -> bytes:
    """One line, good or bad in one of many ways, as the strategies above make it and faster."""
    text = "".join(
        chr(draw.choice([draw.randrange(32, 127), draw.randrange(0xD7FF)])) for _ in "ab" * 9
    )
    value: dict[str, Any] = {"id": draw.getrandbits(64), "instruction": text}
    bad = [None, "", "  ", 1.5, True, [], {}, [[1]], float("nan"), "\ud800"]
    kind = draw.randrange(12)
    if kind == 0:
        value[draw.choice(["id", "instruction", "messages"])] = draw.choice(bad)
    elif kind == 1:
        del value["instruction"]
    elif kind == 2:
        roles = draw.choices(["system", "user", "assistant", "tool"], k=draw.randrange(4))
        value = {"id": value["id"], "messages": [{"role": r, "content": text} for r in roles]}
    made = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if kind == 3:
        made = made[: draw.randrange(len(made))]
    elif kind == 4:
        made = bytes(byte if draw.random() < 0.99 else draw.randrange(256) for byte in made)
    elif kind == 5:
        made = draw.randbytes(draw.randrange(40))
    elif kind == 6:
        made = b"[" * draw.randrange(3000) + made
    return made.replace(b"\n", b" ")


def test_ten_thousand_random_lines_are_rows_or_errors() -> None:
    draw = random.Random(0)
    data = b"\n".join(random_line(draw) for _ in range(10_000))
    found = read(data)
    assert found is not None
    check_all_there(data, found)
    assert len(found.rows) > 4000
    assert len(found.errors) > 2000


# ---- the dataset's own files

RECORD = st.fixed_dictionaries(
    {
        "is_completed": st.booleans(),
        "instruction": TEXT,
        "response": TEXT,
        "score": st.lists(st.floats(-1e6, 0), max_size=4),
        "messages": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=2),
    }
)
FAULT = st.fixed_dictionaries({"line": st.integers(1, 99), "error": TEXT, "reason": TEXT})


@settings(deadline=None, max_examples=100)
@given(st.lists(RECORD | FAULT, min_size=1, max_size=6))
def test_records_come_back_as_they_were_written(records: list[dict[str, Any]]) -> None:
    records = [{"id": f'"score": [{n}', **record} for n, record in enumerate(records)]
    names: list[output.Name] = [(record["id"], None) for record in records]
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder) / "data.jsonl")
        _, end = output.begin(files, FINGERPRINT, [], names, lines_per_batch=2)
        output.append(files, records, at=end)
        ids = {"expert_model_id": "e", "amateur_model_id": "a"}
        made = output.finish(files, RECIPE, lines=len(records), errors=[], **ids)
        rows = [record for record in records if "error" not in record]
        assert [json.loads(text) for text in files.out.read_bytes().splitlines()] == rows
        back = output.read(files.out)
        assert back["response"][:] == [record["response"] for record in rows]
        assert back["score"][:] == [record["score"] for record in rows]
    assert made["tokens"] == sum(len(record["score"]) for record in rows)
    assert made["errors"] == len(records) - len(rows)


@settings(deadline=None, max_examples=200)
@given(RECORD | FAULT, st.data())
def test_a_line_that_was_cut_or_changed_is_never_taken_for_more_than_it_is(
    record: dict[str, Any], data: st.DataObject
) -> None:
    whole = line_of({"id": "a", **record}).encode()
    found = record_of(whole)
    assert found is not None
    assert output.is_finished(found)
    assert found.pop("tokens") == len(record.get("score", []))
    assert found == {"id": "a", **{k: v for k, v in record.items() if k != "score"}}
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert record_of(whole[:cut]) is None
    assert record_of(whole[:cut] + whole) is None or cut == 0
    place, junk = data.draw(st.integers(0, len(whole))), data.draw(st.binary(max_size=4))
    record_of(whole[:place] + junk + whole[place:])  # whatever it is, it raises nothing


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10_000),
    st.binary(max_size=40) | st.just(b"\0" * 4096) | line(),
    st.integers(1, 4),
)
def test_garbage_after_any_cut_costs_no_whole_batch_and_no_row_is_wrong(
    cut: int, garbage: bytes, size: int
) -> None:
    records = [row(str(number), f"answer {number}") for number in range(6)]
    names: list[output.Name] = [(record["id"], None) for record in records]
    texts = [line_of(record).encode() for record in records]
    whole = b"".join(texts)
    cut %= len(whole) + 1
    lines = sum(len(b"".join(texts[:n])) <= cut for n in range(1, 7))
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder) / "data.jsonl")
        output.begin(files, FINGERPRINT, [], names, lines_per_batch=size)
        files.beside(".partial").write_bytes(whole[:cut] + garbage)
        try:
            kept, end = output.begin(files, FINGERPRINT, [], names, lines_per_batch=size)
        except ValueError as error:  # the garbage is a line of its own, of an object
            if "holds other rows" not in str(error):
                raise
            return
        assert kept >= (lines if lines == 6 else lines // size * size)
        assert whole.startswith(files.beside(".partial").read_bytes())
        assert files.beside(".partial").stat().st_size == end
        for first in range(kept, 6, size):
            end = output.append(files, records[first : first + size], at=end)
        ids = {"expert_model_id": "e", "amateur_model_id": "a"}
        output.finish(files, RECIPE, lines=6, errors=[], **ids)
        assert files.out.read_bytes() == whole


# ---- settings

POSITIVE = st.floats(-1, 5) | st.floats()
SETTING: dict[str, st.SearchStrategy[Any]] = {
    "strength": POSITIVE,
    "plausibility": st.floats(-0.5, 1.5) | st.floats(),
    "temperature": POSITIVE,
    "top_p": st.floats(-0.5, 1.5) | st.floats(),
    "top_k": st.integers(-2, 400),
    "max_new_tokens": st.integers(-1, 4),
    "seed": st.integers(-(2**70), 2**70),
    "sample": st.integers(-3, 2**70),
}


@pytest.fixture(scope="module")
def ready() -> tuple[Any, Any]:
    tokenizer = tiny.tokenizer()
    return tiny.pair("llama", vocab_size=len(tokenizer)), tokenizer


def test_every_setting_is_drawn() -> None:
    assert set(SETTING) == {field.name for field in fields(Decoding)}


@settings(deadline=None, max_examples=150)
@given(values=st.fixed_dictionaries({}, optional=SETTING))
def test_settings_are_refused_or_decode(ready: tuple[Any, Any], values: dict[str, Any]) -> None:
    model, tokenizer = ready
    chats = [[{"role": "user", "content": text}] for text in ("the cat", "a house is")]
    try:
        decoding = Decoding(**{"max_new_tokens": 3, **values})
        answers = decode.generate(model, tokenizer, chats, decoding, progress=False)
    except ValueError as error:
        if "; got " not in str(error):
            raise
        return
    for answer in answers:
        assert answer.error is None
        assert 1 <= len(answer.token_ids) <= decoding.max_new_tokens
        assert all(logprob <= 1e-6 for logprob in answer.logprobs), "no NaN among them"
