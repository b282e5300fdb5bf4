"""The dataset's files: whole lines, one writer, clear words when the disk is full."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import datasets
import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import dataset_file, recipes, resumption
from codit.dataset_file import Files

FINGERPRINT = {"recipe": {"seed": 0}, "input": "abc"}
RECIPE = recipes.Synthesis(
    pair=recipes.Pair(expert=recipes.Model(name="e"), amateur=recipes.Model(name="a")),
    prompts=recipes.WorldPrompts(),
)


def row(name: str, text: str = "yes") -> dict[str, Any]:
    return {
        "id": name,
        "is_completed": True,
        "instruction": "x",
        "response": text,
        "res_metadata": {"temperature": 1.0, "max_tokens": 4},
        "score": [-0.5, 0.0],
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}],
    }


def make(files: Files, records: list[dict[str, Any]]) -> dict[str, Any]:
    names: list[resumption.Name] = [(record["id"], None) for record in records]
    with dataset_file.locked(files):
        resumption.begin(files, FINGERPRINT, [], names, lines_per_batch=2)
        dataset_file.append(files, records)
        ids = {"expert_model_id": "e", "amateur_model_id": "a"}
        return dataset_file.finish(files, RECIPE, errors=[], **ids)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "new" / "data.jsonl")


@pytest.mark.parametrize("name", ["data.json", "data", "folder.jsonl"])
def test_a_dataset_is_a_file_of_json_lines(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"must be a file name ending in \.jsonl; got .*Rename it"):
        Files(tmp_path / name)


def test_the_manifest_counts_what_the_dataset_holds(files: Files) -> None:
    error = {"id": "b", "line": 2, "error": "too long", "reason": "expected less"}
    manifest = make(files, [row("a"), error, row("c")])
    assert json.loads(files.beside(".manifest.json").read_text()) == manifest
    counted = {name: manifest[name] for name in ("rows", "completed", "tokens", "errors")}
    assert counted == {"rows": 2, "completed": 2, "tokens": 4, "errors": 1}
    assert manifest["fingerprint"] == FINGERPRINT
    assert manifest["key"] == recipes.key(RECIPE)
    assert json.loads(files.beside(".errors.jsonl").read_text()) == error


def test_a_dataset_reads_back_and_loads_as_the_hub_would_load_it(
    files: Files, tmp_path: Path
) -> None:
    make(files, [row("a"), row("b", "no")])
    read = dataset_file.read(files.out)
    hub = datasets.load_dataset(
        "json", data_files=str(files.out), split="train", cache_dir=str(tmp_path / "hub")
    )
    assert read["response"] == hub["response"] == ["yes", "no"]
    assert read[0]["messages"] == hub[0]["messages"] == row("a")["messages"]
    assert read[0]["score"] == [-0.5, 0.0]


def test_a_line_longer_than_the_readers_block_is_read(files: Files) -> None:
    make(files, [row("a", "word " * 500_000), row("b")])
    assert [len(text) for text in dataset_file.read(files.out)["response"]] == [2_500_000, 3]


def test_other_datasets_of_conversations_are_read_with_their_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    messages = row("a")["messages"]
    path.write_text(json.dumps({"messages": messages, "source": "mine"}) + "\n")
    read = dataset_file.read(path)
    assert read.to_list() == [{"messages": messages, "source": "mine"}]


@pytest.mark.parametrize("text", ["{", "1\n", '{"id": "a"}\n{"id": [1]}\n'])
def test_what_is_no_dataset_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"expected JSON objects, one a line, in .*data\.jsonl; "):
        dataset_file.read(tmp_path / "data.jsonl")


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file of JSON lines at .*no\.jsonl"):
        dataset_file.read(tmp_path / "no.jsonl")


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_reader_takes_a_record_for_one_line(text: str) -> None:
    line = dataset_file._line({"id": text})
    assert line.splitlines() == [line.removesuffix("\n")]
    assert json.loads(line) == {"id": text}


def test_line_separators_survive_in_the_text_and_not_in_the_file(files: Files) -> None:
    text = "one\u2028two\u2029three\x85four"
    make(files, [row("a", text)])
    assert len(files.out.read_text(encoding="utf-8").splitlines()) == 1
    assert dataset_file.read(files.out)["response"] == [text]


def test_one_process_writes_a_dataset_at_a_time(files: Files) -> None:
    files.out.parent.mkdir()
    with (
        filelock.FileLock(files.out.with_name(".data.jsonl.lock")),
        pytest.raises(ValueError, match=r"another process is writing .*Wait for it, or give"),
    ):
        make(files, [row("a")])
    assert make(files, [row("a")])["rows"] == 1


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so() -> None:
    with pytest.raises(
        OSError, match=r"cannot write /dev/null/x/data\.jsonl and its companions: Not"
    ):
        make(Files(Path("/dev/null/x/data.jsonl")), [row("a")])


def test_a_full_disk_keeps_what_is_complete(files: Files) -> None:
    records = [row(str(number)) for number in range(4)]
    names: list[resumption.Name] = [(record["id"], None) for record in records]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with dataset_file.locked(files):
        resumption.begin(files, FINGERPRINT, [], names, lines_per_batch=2)
        dataset_file.append(files, records[:2])
        room = files.beside(".partial").stat().st_size + 50
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match=r"File too large\. Make room or .*batches are kept"):
                dataset_file.append(files, records[2:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with dataset_file.locked(files):
        earlier = resumption.earlier_runs(files, FINGERPRINT, resume="if_same")
        assert earlier == []
        assert resumption.begin(files, FINGERPRINT, [], names, lines_per_batch=2) == 2


@pytest.mark.parametrize("text", [None, "{", "[1]", "{}"])
def test_rows_without_a_record_of_their_settings_are_not_continued(
    files: Files, text: str | None
) -> None:
    files.out.parent.mkdir()
    files.beside(".partial").write_text("")
    if text is not None:
        files.beside(".partial.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"data\.partial\.json to say what made the rows beside it"
    ):
        resumption.earlier_runs(files, FINGERPRINT, resume="if_same")


def test_rows_that_others_numbered_are_read_with_their_numbers_as_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    lines = [json.dumps({"id": number, "messages": chat}) for number in (7, 8)]
    (tmp_path / "theirs.jsonl").write_text("\n".join(lines) + "\n")
    rows = dataset_file.read(tmp_path / "theirs.jsonl")
    assert rows["id"][:] == ["7", "8"]
    assert rows[1]["messages"] == chat


def test_a_file_of_something_else_than_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="expected JSON objects, one a line, in"):
        dataset_file.read(tmp_path / "list.jsonl")
