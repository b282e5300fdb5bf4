"""`codit chat-vector`, driven as a user drives it: folders, tables, and one line for a fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from codit import chat_vector, cli
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair, a student and the pair's chat vector."""
    folder = tmp_path_factory.mktemp("chat-vector")
    expert, amateur = tiny.save_pair(folder, "llama")
    tiny.model("llama", seed=5).save_pretrained(folder / "student")
    chat_vector.difference(expert, amateur, folder / "tau")
    tiny.model("llama", seed=6, num_hidden_layers=3).save_pretrained(folder / "deep")
    return folder


def run(action: str, flags: dict[str, object], *more: str) -> int:
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return cli.main(["chat-vector", action, *given, *more])


def test_a_vector_is_extracted_and_described(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"post": place / "expert", "pre": place / "amateur", "out": tmp_path / "tau"}
    assert run("extract", flags) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(
        r".*tau: 33440 numbers, 0\.57% exactly zero; adding it to .*amateur gives back "
        r"\d+\.\d\d% exactly; 21 tensors matched, 0 missing, 0 extra, 0 mismatched, 0 cut, "
        r"0 unloaded\n",
        shown,
    )
    (file,) = (tmp_path / "tau").glob("model-*.safetensors")
    (expected,) = (place / "tau").glob("model-*.safetensors")
    assert file.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("form", ["folder", "pair"])
def test_cosines_are_shown_by_module_and_written_whole(
    place: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, object] = {"after": place / "student", "before": place / "amateur"}
    if form == "folder":
        flags["vector"] = place / "tau"
    else:
        flags |= {"post": place / "expert", "pre": place / "amateur"}
    assert run("cosine", flags, "--out", str(tmp_path / "table.csv")) == 0
    shown = capsys.readouterr().out
    expected = chat_vector.cosines((place / "student", place / "amateur"), place / "tau")
    written = pd.read_csv(tmp_path / "table.csv", dtype={"name": str})
    assert written.columns.tolist() == expected.columns.tolist()
    assert written["name"].tolist() == expected["name"].tolist()
    assert (written["cosine"] - expected["cosine"]).abs().max() < 1e-6
    assert re.search(r"^ *module +embed +0\.\d+", shown, re.M)
    assert re.search(r"^ *global +all +0\.\d+", shown, re.M)
    assert "layers.0" not in shown
    assert "chance, independent directions: 0.0055; cosine undefined in 5 tensors" in shown
    assert "21 tensors matched, 0 missing" in shown


def test_groups_and_rows_are_chosen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"update": place / "tau", "vector": place / "tau", "rows": 100}
    assert run("cosine", flags, "--group", "layer", "--group", "tensor") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ *tensor +lm_head\.weight +1\.0 .* 3200 ", shown, re.M)
    assert len(re.findall(r"^ *layer +\d +1\.0", shown, re.M)) == 2
    assert "global" not in shown
    assert "2 cut" in shown


def test_vectors_are_added_each_with_its_scale(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"target": place / "amateur", "out": tmp_path / "sum"}
    scaled = ["--vector", str(place / "tau"), "--scale", "0.75"]
    scaled += ["--vector", str(place / "tau"), "--scale", "0.25"]
    assert run("add", flags, *scaled) == 0
    shown = capsys.readouterr().out
    assert re.search(r"sum: 33\d\d\d numbers changed, 0\.00% rounded away; 21 tensors", shown)
    (file,) = (tmp_path / "sum").glob("model-*.safetensors")
    expected = load_file(place / "expert" / "model.safetensors")
    for name, tensor in load_file(file).items():
        assert (tensor - expected[name]).abs().max() <= 1e-6


def test_what_two_depths_share_is_extracted_and_compared_where_asked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, object] = {"post": place / "deep", "pre": place / "amateur"}
    assert run("extract", flags | {"out": tmp_path / "tau"}, "--partial") == 0
    assert "21 tensors matched, 0 missing, 9 extra" in capsys.readouterr().out
    flags = {"after": place / "deep", "before": place / "amateur", "vector": place / "tau"}
    assert run("cosine", flags) == 2
    assert run("cosine", flags, "--partial") == 0


BAD = [
    ("extract", {"post": "no such", "pre": "amateur", "out": "x"}, "expected a folder or a model"),
    (
        "extract",
        {"post": "expert", "pre": "amateur", "out": "tau"},
        "out must be a new or an empty",
    ),
    ("extract", {"post": "expert", "pre": "deep", "out": "x"}, "got 9 tensors that only one has"),
    ("cosine", {"update": "tau", "vector": "amateur"}, "expected a folder made by chat_vector.dif"),
    ("cosine", {"update": "tau"}, "expected --vector, or else --post and --pre; got not exactly"),
    (
        "cosine",
        {"after": "expert", "vector": "tau"},
        "expected --update, or else --after and --bef",
    ),
    (
        "cosine",
        {"update": "tau", "after": "expert", "before": "amateur", "vector": "tau"},
        "expected --update, or else --after and --before; got not exactly one of these",
    ),
    (
        "cosine",
        {"update": "tau", "after": "expert", "vector": "tau"},
        "expected --update, or else --after and --before; got not exactly one of these",
    ),
    (
        "cosine",
        {"update": "tau", "vector": "tau", "out": "table.txt"},
        "out must be a file name ending in .csv; got",
    ),
    ("cosine", {"update": "tau", "vector": "tau", "rows": 0}, "rows must be at least 1; got 0."),
    ("add", {"target": "amateur", "out": "x"}, "expected one scale for each vector; got 0 scales"),
    (
        "add",
        {"target": "amateur", "vector": "tau", "out": "x", "scale": "inf"},
        "expected a finite scale",
    ),
]


@pytest.mark.parametrize(("action", "flags", "message"), BAD)
def test_what_a_user_can_mend_is_one_line_and_status_two(
    place: Path,
    action: str,
    flags: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"post", "pre", "out", "update", "after", "before", "vector", "target"}
    asked = {k: place / str(v) if k in names else v for k, v in flags.items()}
    assert run(action, asked) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("codit: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (place / "x").exists()


@pytest.mark.parametrize("flags", [[], ["nonsense"], ["extract"], ["cosine", "--group", "none"]])
def test_unknown_or_missing_arguments_are_status_two(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["chat-vector", *flags])
    assert stopped.value.code == 2
    assert "codit" in capsys.readouterr().err


def test_help_names_actions_and_flags_and_loads_no_torch() -> None:
    for asked, expected in (
        (["chat-vector", "--help"], ("extract", "cosine", "add")),
        (["chat-vector", "cosine", "--help"], ("--update", "--after", "--rows", "--group")),
    ):
        lean = f"import sys; from codit import cli\ntry: cli.main({asked})\n"
        lean += "except SystemExit: print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", lean], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "False", done.stderr
        assert all(word in done.stdout for word in expected)
