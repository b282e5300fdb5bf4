"""The dataset's files: whole lines, one writer, clear words when the disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import filelock
import pytest

from codit import recipes
from codit.dataset import output
from codit.dataset.output import Files
from codit.files import line_of
from codit.world.recipes import WorldPrompts

FINGERPRINT = {"recipe": {"seed": 0}, "input": "abc"}
RECIPE = recipes.Synthesis(
    pair=recipes.Pair(expert=recipes.Model(name="e"), amateur=recipes.Model(name="a")),
    prompts=WorldPrompts(),
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
    names: list[output.Name] = [(record["id"], None) for record in records]
    with output.locked(files):
        _, start = output.begin(files, FINGERPRINT, [], names, lines_per_batch=2)
        output.append(files, records, at=start)
        ids = {"expert_model_id": "e", "amateur_model_id": "a"}
        return output.finish(files, RECIPE, lines=len(records), errors=[], **ids)


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
    manifest = make(files, [row("a"), error, row("c", " \n")])
    assert json.loads(files.beside(".manifest.json").read_text()) == manifest
    counted = {name: manifest[name] for name in ("rows", "completed", "empty", "errors")}
    assert counted == {"rows": 2, "completed": 2, "empty": 1, "errors": 1}
    assert manifest["tokens"] == 4
    assert manifest["fingerprint"] == FINGERPRINT
    assert manifest["key"] == recipes.key(RECIPE)
    assert json.loads(files.beside(".errors.jsonl").read_text()) == error


def test_a_dataset_reads_back_and_loads_as_the_hub_would_load_it(
    files: Files, tmp_path: Path
) -> None:
    make(files, [row("a"), row("b", "no")])
    read = output.read(files.out)
    hub = datasets.load_dataset(
        "json", data_files=str(files.out), split="train", cache_dir=str(tmp_path / "hub")
    )
    assert read["response"] == hub["response"] == ["yes", "no"]
    assert read[0]["messages"] == hub[0]["messages"] == row("a")["messages"]
    assert read[0]["score"] == [-0.5, 0.0]


def test_a_line_longer_than_the_readers_block_is_read(files: Files) -> None:
    make(files, [row("a", "word " * 500_000), row("b")])
    assert [len(text) for text in output.read(files.out)["response"]] == [2_500_000, 3]


def test_other_datasets_of_conversations_are_read_with_their_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    messages = row("a")["messages"]
    path.write_text(json.dumps({"messages": messages, "source": "mine"}) + "\n")
    read = output.read(path)
    assert read.to_list() == [{"messages": messages, "source": "mine"}]


@pytest.mark.parametrize("text", ["{", "1\n", '{"id": "a"}\n{"id": [1]}\n'])
def test_what_is_no_dataset_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"expected JSON objects, one a line, in .*data\.jsonl; "):
        output.read(tmp_path / "data.jsonl")


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file of JSON lines at .*no\.jsonl"):
        output.read(tmp_path / "no.jsonl")


def test_line_separators_survive_in_the_text_and_not_in_the_file(files: Files) -> None:
    text = "one\u2028two\u2029three\x85four"
    make(files, [row("a", text)])
    assert len(files.out.read_text(encoding="utf-8").splitlines()) == 1
    assert output.read(files.out)["response"] == [text]


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


def test_a_folder_that_takes_no_file_is_not_taken_for_a_lock_that_is_held() -> None:
    with pytest.raises(OSError, match=r"cannot write /proc/data\.jsonl .*: No such file.*mend the"):
        make(Files(Path("/proc/data.jsonl")), [row("a")])


# ---- a disk that is full

RECORDS = [row(str(number)) for number in range(4)]
NAMES: list[output.Name] = [(record["id"], None) for record in RECORDS]
IDS = {"expert_model_id": "e", "amateur_model_id": "a"}


def begin(files: Files) -> tuple[int, int]:
    assert output.earlier_runs(files, FINGERPRINT, resume="if_same") == []
    return output.begin(files, FINGERPRINT, [], NAMES, lines_per_batch=2)


def complete(files: Files) -> bytes:
    """Run what is left of a run over four rows in batches of two, and return the dataset."""
    with output.locked(files):
        kept, end = begin(files)
        for first in range(kept, 4, 2):
            end = output.append(files, RECORDS[first : first + 2], at=end)
        output.finish(files, RECIPE, lines=4, errors=[], **IDS)
    left = {path.name.removeprefix("data.") for path in files.out.parent.iterdir()}
    assert left == {"jsonl", "manifest.json", "README.md", ".data.jsonl.lock"}
    return files.out.read_bytes()


WHOLE = "".join(line_of(record) for record in RECORDS).encode()


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_batch_that_finds_no_room_leaves_no_half_of_it(files: Files) -> None:
    with output.locked(files):
        _, start = begin(files)
        end = output.append(files, RECORDS[:2], at=start)
        full = pytest.raises(OSError, match=r"File too large\. Make room or .*batches are kept")
        with room_for(end + 50), full:
            output.append(files, RECORDS[2:], at=end)
        assert files.beside(".partial").stat().st_size == end
    assert complete(files) == WHOLE


@pytest.mark.parametrize("size", [0, 200, 700, 1100])
def test_a_run_that_finds_no_room_at_its_beginning_or_end_is_completed(
    size: int, files: Files
) -> None:
    if size:  # room for the batches, and not for what comes at the end
        with output.locked(files):
            _, end = begin(files)
            output.append(files, RECORDS, at=end)
    with room_for(size), pytest.raises(OSError, match="File too large"):
        complete(files)
    assert not files.beside(".manifest.json").exists()
    assert not list(files.out.parent.glob("*.tmp"))
    assert complete(files) == WHOLE


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; skips the test where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a file system of its own, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_on_a_disk_that_is_full_is_completed_when_there_is_room(tiny_disk: Path) -> None:
    files = Files(tiny_disk / "data.jsonl")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 48 * 1024)
    batch = [row("0"), row("1", "yes " * 16_384)]
    with output.locked(files):
        _, start = begin(files)
        end = output.append(files, RECORDS[:2], at=start)
        with pytest.raises(OSError, match=r"No space left on device\. Make room or give another"):
            output.append(files, batch, at=end)
        assert files.beside(".partial").stat().st_size == end
    ballast.unlink()
    assert complete(files) == WHOLE


# ---- somebody else at the same files


def removed(path: Path) -> None:
    path.unlink()


def removed_with_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def grown(path: Path) -> None:
    with path.open("a") as stream:
        stream.write("{}\n")


CHANGES = [removed, removed_with_its_folder, cut, emptied, grown]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_partial_file_that_somebody_changed_is_not_added_to(
    change: Callable[[Path], None], files: Files
) -> None:
    with output.locked(files):
        _, start = begin(files)
        end = output.append(files, RECORDS[:2], at=start)
        change(files.beside(".partial"))
        before = state_of(files)
        with pytest.raises(
            ValueError, match=r"to hold \d+ bytes, as this run left it; got"
        ) as told:
            output.append(files, RECORDS[2:], at=end)
        assert "Run the same command again" in str(told.value)
        assert state_of(files) == before
    if change is grown:  # by what is no row of these prompts
        with pytest.raises(ValueError, match="holds other rows: its line 3 is of 'None'"):
            complete(files)
        os.truncate(files.beside(".partial"), end)
    assert complete(files) == WHOLE


def state_of(files: Files) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files.out.parent.glob("data.*")}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_partial_file_that_somebody_changed_is_not_finished(
    change: Callable[[Path], None], files: Files
) -> None:
    with output.locked(files):
        _, start = begin(files)
        end = output.append(files, RECORDS, at=start)
        change(files.beside(".partial"))
        before = state_of(files)
        with pytest.raises(
            (ValueError, OSError), match="to hold 4 lines, as this run left it; got|No such file"
        ):
            output.finish(files, RECIPE, lines=4, errors=[], **IDS)
        assert state_of(files) == before
        assert not files.out.exists()
    if change is grown:
        os.truncate(files.beside(".partial"), end)
    assert complete(files) == WHOLE


def test_a_partial_file_that_became_a_folder_is_no_file(files: Files) -> None:
    with output.locked(files):
        _, start = begin(files)
        files.beside(".partial").unlink()
        files.beside(".partial").mkdir()
        with pytest.raises(ValueError, match="to hold 0 bytes, as this run left it; got no file"):
            output.append(files, RECORDS[:2], at=start)


def test_a_dataset_that_somebody_removed_is_made_again(files: Files) -> None:
    assert complete(files) == WHOLE
    files.out.unlink()
    assert complete(files) == WHOLE


def test_a_second_process_cannot_write_and_changes_nothing(files: Files) -> None:
    other = (
        "import sys; from tests.dataset.test_output import *; complete(Files(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", other, str(files.out)]
    with output.locked(files):
        _, start = begin(files)
        output.append(files, RECORDS[:2], at=start)
        before = state_of(files)
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"ValueError: another process is writing {files.out}. Wait for it" in done.stderr
        assert state_of(files) == before
    subprocess.run(command, check=True)
    assert files.out.read_bytes() == WHOLE


@pytest.mark.parametrize("text", [None, "{", "[1]", "{}"])
def test_rows_without_a_record_of_their_settings_are_not_continued(
    files: Files, text: str | None
) -> None:
    files.out.parent.mkdir()
    files.beside(".partial").write_text("{}\n")
    if text is not None:
        files.beside(".partial.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"data\.partial\.json to say what made the rows beside it"
    ):
        output.earlier_runs(files, FINGERPRINT, resume="if_same")


def test_rows_that_others_numbered_are_read_with_their_numbers_as_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    lines = [json.dumps({"id": number, "messages": chat}) for number in (7, 8)]
    (tmp_path / "theirs.jsonl").write_text("\n".join(lines) + "\n")
    rows = output.read(tmp_path / "theirs.jsonl")
    assert rows["id"][:] == ["7", "8"]
    assert rows[1]["messages"] == chat


def test_a_file_of_something_else_than_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="expected JSON objects, one a line, in"):
        output.read(tmp_path / "list.jsonl")
