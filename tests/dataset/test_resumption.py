"""A run goes on only where it would make what was begun."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from codit import recipes
from codit.dataset import output
from codit.dataset.output import Files
from codit.files import check_apart
from tests.dataset.test_output import FINGERPRINT, RECIPE, make, row

OTHER = {"recipe": {"seed": 1}, "input": "abc"}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "data.jsonl")


def begun(files: Files, *, fingerprint: dict[str, Any] = FINGERPRINT) -> None:
    """Leave two whole batches of two, and half a line."""
    names: list[output.Name] = [(str(number), None) for number in range(6)]
    _, start = output.begin(files, fingerprint, [], names, lines_per_batch=2)
    output.append(files, [row(str(number)) for number in range(4)], at=start)
    with files.beside(".partial").open("a") as stream:
        stream.write('{"id": "4", "is_com')


def ask(files: Files, fingerprint: dict[str, Any], resume: str) -> list[dict[str, Any]] | None:
    return output.earlier_runs(files, fingerprint, resume=resume)


def test_nothing_at_all_may_begin_in_every_mode(files: Files) -> None:
    assert [ask(files, FINGERPRINT, mode) for mode in output.RESUME] == [[], [], []]


def test_the_same_settings_go_on(files: Files) -> None:
    begun(files)
    assert ask(files, FINGERPRINT, "if_same") == []


def test_other_settings_go_on_only_always_and_are_remembered(files: Files) -> None:
    begun(files)
    with pytest.raises(ValueError, match=r"recipe\.seed was 0, is 1\. Give another out"):
        ask(files, OTHER, "if_same")
    earlier = ask(files, OTHER, "always")
    assert earlier == [{"fingerprint": FINGERPRINT}]
    names: list[output.Name] = [(str(number), None) for number in range(6)]
    assert output.begin(files, OTHER, earlier, names, lines_per_batch=2)[0] == 4
    assert ask(files, OTHER, "if_same") == [{"fingerprint": FINGERPRINT, "lines": 4}]


def test_only_whole_batches_of_whole_lines_are_kept(files: Files) -> None:
    names: list[output.Name] = [(str(number), None) for number in range(6)]
    for size, kept in ((1, 4), (2, 4), (3, 3), (4, 4), (5, 0)):
        begun(files)
        found, end = output.begin(files, FINGERPRINT, [], names, lines_per_batch=size)
        left = files.beside(".partial").read_bytes()
        assert (found, end) == (kept, len(left)) == (left.count(b"\n"), len(left))
        files.beside(".partial").unlink()


def test_a_last_batch_that_is_short_is_whole(files: Files) -> None:
    names: list[output.Name] = [(str(number), None) for number in range(4)]
    begun(files)
    assert output.begin(files, FINGERPRINT, [], names, lines_per_batch=3)[0] == 4


def test_a_broken_line_ends_what_is_kept(files: Files) -> None:
    names: list[output.Name] = [(str(number), None) for number in range(6)]
    begun(files)
    lines = files.beside(".partial").read_bytes().split(b"\n")
    lines[1] = lines[1][:20] + b"\0" * 20
    files.beside(".partial").write_bytes(b"\n".join(lines))
    assert output.begin(files, FINGERPRINT, [], names, lines_per_batch=1)[0] == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0", "1", "x", "3"], r"holds other rows: its line 3 is of '2'"),
        (["0", "1"], r"holds other rows: its line 3 is of '2'"),
    ],
)
def test_rows_of_other_prompts_are_refused(files: Files, names: list[str], message: str) -> None:
    begun(files)
    before = files.beside(".partial").read_bytes()
    with pytest.raises(ValueError, match=message):
        output.begin(files, FINGERPRINT, [], [(n, None) for n in names], lines_per_batch=2)
    assert files.beside(".partial").read_bytes() == before


def test_other_samples_are_other_rows(files: Files) -> None:
    begun(files)
    names: list[output.Name] = [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    with pytest.raises(ValueError, match=r"its line 1 is of '0', which is not what these prompts"):
        output.begin(files, FINGERPRINT, [], names, lines_per_batch=2)


def test_a_finished_dataset_needs_no_run(files: Files) -> None:
    make(files, [row("a")])
    assert ask(files, FINGERPRINT, "if_same") is None
    assert ask(files, FINGERPRINT, "always") is None
    with pytest.raises(ValueError, match=r"resume is never, but .*data\.jsonl exists"):
        ask(files, FINGERPRINT, "never")


def test_a_finished_dataset_of_other_settings_is_kept_only_always(files: Files) -> None:
    make(files, [row("a")])
    with pytest.raises(ValueError, match=r"data\.jsonl was made with other settings: recipe\.seed"):
        ask(files, OTHER, "if_same")
    assert ask(files, OTHER, "always") is None


def test_a_finished_dataset_of_other_prompts_is_never_taken_for_this_one(files: Files) -> None:
    make(files, [row("a")])
    with pytest.raises(ValueError, match="other settings: input was abc, is xyz"):
        ask(files, {**FINGERPRINT, "input": "xyz"}, "always")


def test_a_finished_dataset_that_was_edited_is_not_taken_for_its_own(files: Files) -> None:
    make(files, [row("a")])
    files.out.write_text(files.out.read_text().replace("yes", "no"))
    with pytest.raises(ValueError, match=r"was changed after it was made\. Delete it, or give"):
        ask(files, FINGERPRINT, "if_same")


def test_a_file_of_another_program_is_not_written_over(files: Files) -> None:
    files.out.write_text("mine\n")
    for mode in ("if_same", "always"):
        with pytest.raises(ValueError, match=r"without data\.manifest\.json: another program"):
            ask(files, FINGERPRINT, mode)
    assert files.out.read_text() == "mine\n"


def test_leftovers_of_a_kill_after_the_manifest_are_cleared(files: Files) -> None:
    make(files, [row("a")])
    files.beside(".partial").write_text("")
    files.beside(".partial.json").write_text("{}")
    assert ask(files, FINGERPRINT, "if_same") is None
    assert not files.beside(".partial").exists()
    assert not files.beside(".partial.json").exists()


def test_temporary_files_of_a_killed_run_are_cleared_and_no_others(files: Files) -> None:
    mine, other = (files.out.with_name(f".{n}.jsonl.x1.tmp") for n in ("data", "data.v2"))
    mine.touch()
    other.touch()
    begun(files)
    assert (mine.exists(), other.exists()) == (False, True)


def test_differences_name_the_place_and_both_values() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": 3, "e": None}
    assert output.differences(old, old) == []
    new = {"a": {"b": 1, "c": 5}, "d": 3, "f": "x"}
    assert output.differences(old, new) == ["a.c was 2, is 5", "f was None, is x"]


def test_many_differences_are_counted(files: Files) -> None:
    begun(files, fingerprint={str(n): n for n in range(9)})
    with pytest.raises(ValueError, match=r"4 was 4, is 5 and 4 more\. Give another out"):
        ask(files, {str(n): n + 1 for n in range(9)}, "if_same")


# ---- what else may have happened


@pytest.mark.parametrize("ending", [".jsonl", ".errors.jsonl", ".partial", ".manifest.json"])
def test_prompts_are_not_written_over(ending: str, files: Files) -> None:
    source = files.beside(ending)
    with pytest.raises(ValueError, match=r"takes no input's place; .*\. Give another out"):
        check_apart(files.every(), [source.parent / ".." / source.parent.name / source.name])
    check_apart(files.every(), [files.out.with_name("in.jsonl")])


def test_a_run_that_made_no_row_is_in_nobodys_way(files: Files) -> None:
    names: list[output.Name] = [("0", None)]
    output.begin(files, FINGERPRINT, [], names, lines_per_batch=2)
    assert ask(files, OTHER, "if_same") == []


def test_a_run_that_made_errors_alone_is_finished_by_its_own_settings(files: Files) -> None:
    names: list[output.Name] = []
    output.begin(files, FINGERPRINT, [], names, lines_per_batch=2)
    files.out.write_bytes(b"")  # killed before the manifest
    assert ask(files, FINGERPRINT, "if_same") == []
    with pytest.raises(ValueError, match=r"was made with other settings: recipe\.seed"):
        ask(files, OTHER, "if_same")


def test_a_clock_that_is_set_back_changes_no_order(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[output.Name] = [(str(number), None) for number in range(4)]
    end = 0
    for day, first in ((3, 0), (2, 1), (1, 2)):  # each run a day before the last
        now = datetime(2026, 1, day, tzinfo=UTC)
        monkeypatch.setattr(recipes, "datetime", Mock(now=Mock(return_value=now)))
        monkeypatch.setattr(time, "time", now.timestamp)
        fingerprint = {"seed": day}
        with output.locked(files):
            earlier = ask(files, fingerprint, "always")
            assert earlier is not None
            kept, end = output.begin(files, fingerprint, earlier, names, lines_per_batch=1)
            assert kept == first
            end = output.append(files, [row(str(first))], at=end)
    with output.locked(files):
        output.append(files, [row("3")], at=end)
        ids = {"expert_model_id": "e", "amateur_model_id": "a"}
        made = output.finish(files, RECIPE, lines=4, errors=[], **ids)
    seeds = [(run["fingerprint"]["seed"], run["lines"]) for run in made["earlier"]]
    assert seeds == [(3, 1), (2, 2)]
    assert made["fingerprint"] == {"seed": 1}
    assert ask(files, {"seed": 1}, "if_same") is None


@pytest.mark.parametrize("resume", output.RESUME)
@pytest.mark.parametrize(
    "state", ["nothing", "unfinished", "finished", "manifest lost", "out lost"]
)
def test_what_each_mode_makes_of_each_state(state: str, resume: str, files: Files) -> None:
    if state == "unfinished":
        begun(files)
    elif state != "nothing":
        make(files, [row(str(number)) for number in range(4)])
    lost = {"manifest lost": files.beside(".manifest.json"), "out lost": files.out}.get(state)
    if lost is not None:
        lost.unlink()
    begins = {"nothing", "out lost"}
    before = {path: path.read_bytes() for path in files.out.parent.glob("data.*")}
    if state not in begins and (resume == "never" or state == "manifest lost"):
        with pytest.raises(ValueError, match="exists"):
            ask(files, FINGERPRINT, resume)
    else:
        assert ask(files, FINGERPRINT, resume) == (None if state == "finished" else [])
    assert {path: path.read_bytes() for path in files.out.parent.glob("data.*")} == before
