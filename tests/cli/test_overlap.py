"""`codit decontaminate` as a user drives it: files, table, card, status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codit import cli
from codit.dataset.output import Files
from codit.evaluation import overlap
from tests.dataset.test_output import make, row

PROMPT = "describe a vivid and unique character using strong imagery and creative language please"
CLEAN = "say something that stands in no benchmark at all"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"id": "a", "instruction": PROMPT.upper(), "response": "no"},
        {"id": "b", "instruction": CLEAN, "response": f"You ask: {PROMPT}."},
        {"id": "c", "instruction": "fine", "response": "one two three four five"},
        {"id": "c", "sample": 1, "instruction": "fine", "response": "one two three four five!"},
    ]
    return write(tmp_path / "data.jsonl", *rows)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write(tmp_path / "bench.jsonl", {"question_id": 85, "turns": [PROMPT, "and now"]})


def run(data: Path, *more: str) -> int:
    return cli.main(["decontaminate", "--data", str(data), *more])


def test_a_table_says_what_is_shared(
    data: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.jsonl", {"prompt": CLEAN + " but longer"}, {"prompt": ""})
    assert run(data, "--benchmark", str(bench), "--benchmark", str(other)) == 0
    lines = capsys.readouterr().out.splitlines()
    # name, prompts, left out, prompts hit, rows hit, share, instruction, response, earlier turns
    assert lines[1].split() == ["bench", "2", "0", "1", "2", "50.0000%", "1", "1", "0"]
    assert lines[2].split() == ["other", "1", "1", "0", "0", "0.0000%", "0", "0", "0"]
    assert len({len(line) for line in lines[:3]}) == 1, "columns stand below each other"
    assert lines[3].startswith("2 of 4 rows share 13 words in a row")
    assert len(lines) == 4


@pytest.mark.parametrize(("name", "status"), [("bench", 1), ("clean", 0)])
def test_the_status_is_1_only_where_asked_for_and_hit(
    name: str, status: int, data: Path, bench: Path, tmp_path: Path
) -> None:
    write(tmp_path / "clean.jsonl", {"prompt": "a prompt that nobody has ever answered"})
    path = tmp_path / f"{name}.jsonl"
    assert run(data, "--benchmark", str(path)) == 0
    assert run(data, "--benchmark", str(path), "--fail-on-hit") == status


def test_n_decides_how_many_words_are_enough(data: Path, tmp_path: Path) -> None:
    words = PROMPT.split()
    near = " ".join([*words[:9], "other", *words[10:], "and", "more", "words", "follow"])
    path = write(tmp_path / "near.jsonl", {"prompt": near})
    given = ("--benchmark", str(path), "--fail-on-hit")
    assert run(data, *given) == 0
    assert run(data, *given, "--n", "9") == 1


def test_hits_are_written_for_whoever_removes_the_rows(
    data: Path, bench: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hits.jsonl"
    assert run(data, "--benchmark", str(bench), "--hits", str(out)) == 0
    hits = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(hit["line"], hit["row"], hit["field"]) for hit in hits] == [
        (1, "a", "instruction"),
        (2, "b", "response"),
    ]
    assert hits[0]["prompt"] == "85"
    assert hits[0]["text"] == PROMPT


def test_near_duplicates_are_counted_and_samples_of_a_prompt_are_none(
    data: Path, bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, "--benchmark", str(bench), "--near-duplicates", "0.8") == 0
    said = capsys.readouterr().out
    assert "Jaccard >= 0.8: 0 of 3 prompts, 1 of 4 responses" in said


def test_the_card_beside_a_dataset_says_it_once_and_keeps_the_rest(
    tmp_path: Path, bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = Files(tmp_path / "made.jsonl")
    make(files, [row("a", PROMPT), row("b")])
    card = files.beside(".README.md")
    before, manifest = card.read_text(), files.beside(".manifest.json").read_bytes()
    for _ in range(2):
        assert run(files.out, "--benchmark", str(bench), "--near-duplicates", "0.9") == 0
    after = card.read_text()
    assert after.count("## Decontamination") == 1
    assert "| bench | 2 | 1 | 50.0000% | 0 | 1 | 0 |" in after
    head, tail = before.split("\n## Limits\n")
    assert after.startswith(head)
    assert after.endswith("\n## Limits\n" + tail)
    assert files.beside(".manifest.json").read_bytes() == manifest
    assert "section Decontamination" in capsys.readouterr().out


def test_without_a_card_none_is_made(data: Path, bench: Path) -> None:
    run(data, "--benchmark", str(bench))
    assert not data.with_name("data.README.md").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmark", "none.jsonl"], "none.jsonl; there is none"),
        (["--benchmark", "bench.jsonl", "--n", "5"], "n must lie in [8, 13]"),
        (["--benchmark", "bench.jsonl", "--benchmark", "bench.jsonl"], "different names"),
        (["--benchmark", "bench.jsonl", "--hits", "data.jsonl"], "takes no input's place"),
        (["--benchmark", "bench.jsonl", "--near-duplicates", "2"], "threshold must lie"),
        (["--benchmark", "bench.jsonl", "--data", "empty.jsonl"], "it is empty"),
        (["--benchmark", "bench.jsonl", "--data", "odd.jsonl"], "not read is not checked"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    flags: list[str],
    message: str,
    data: Path,
    bench: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data.parent)
    write(Path("empty.jsonl"))
    write(Path("odd.jsonl"), {"id": 1, "completion": "x"})
    before = data.read_bytes()
    given = [] if "--data" in flags else ["--data", data.name]
    assert cli.main(["decontaminate", *given, *flags]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said
    assert data.read_bytes() == before


def test_help_and_a_check_without_near_duplicates_import_no_heavy_library(
    data: Path, bench: Path
) -> None:
    code = (
        "import sys\nfrom codit import cli\nfrom codit.evaluation import overlap\n"
        "rows = overlap.read_rows(sys.argv[1])\n"
        "known = [overlap.Benchmark('b', {'1': 'a b c'})]\n"
        "list(overlap.contaminated(rows, known))\n"
        "print({'torch', 'datasets', 'datasketch', 'pandas'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_table_of_a_tally_names_every_column() -> None:
    lines = overlap_lines()
    for name in ("prompts hit", "rows hit", "share", "instruction", "response", "earlier turns"):
        assert name in lines[0]


def overlap_lines() -> list[str]:
    from codit.cli import overlap as overlap_cli

    return overlap_cli.table(overlap.tally([], [overlap.Benchmark("b", {})], rows=1, n=13))
