"""Executing notebooks: once, in this interpreter, visibly, and never half."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from codit import reproduce
from tests import notebooks

FIGURE = """
from pathlib import Path
import os
for scale in (".", "micro"):
    Path(os.environ["CODIT_FIGURES"], scale, "01_a.png").write_text("picture")
"""
TITLE = "# A claim\n**Writes** figures/01_a.png"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODIT_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "figures" / "micro").mkdir(parents=True)
    return tmp_path / "notebooks"


def run(folder: Path, **options: Any) -> list[reproduce.Run]:
    return reproduce.reproduce(options.pop("parameters", {}), folder=folder, **options)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the cells here, without a kernel: these tests are about what is recorded."""

    def execute(job: reproduce.Job) -> str:
        written = nbformat.read(job.path, as_version=4)
        nbformat.write(written, job.out / f"failed-{job.path.name}")
        try:
            exec("\n".join(cell.source for cell in written.cells[1:]), {})
        except (ZeroDivisionError, FileNotFoundError) as error:
            return repr(error)
        return ""

    monkeypatch.setattr(reproduce, "_execute", execute)


def outputs(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))


@pytest.mark.usefixtures("pretended")
def test_a_notebook_is_executed_once_and_again_when_something_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks.write(folder / "01_a.ipynb", FIGURE, title=TITLE)
    (first,) = run(folder)
    assert (first.name, first.status, first.figures) == ("01_a", "executed", ("01_a",))
    assert sorted(file.name for file in (folder / "executed" / "micro").iterdir()) == [
        "01_a.ipynb",
        "01_a.json",
    ]
    assert [one.status for one in run(folder)] == ["up to date"]
    assert f"[01_a] up to date ({first.seconds:.1f} s when executed)" in capsys.readouterr().out
    assert [one.status for one in run(folder, fresh=True)] == ["executed"]
    assert [one.status for one in run(folder, parameters={"scale": "full"})] == ["executed"]
    (folder.parent / "figures" / "01_a.png").unlink()
    assert [one.status for one in run(folder, parameters={"scale": "full"})] == ["executed"]


def test_cells_see_their_parameters_their_folder_and_this_interpreter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = tmp_path / "jupyter" / "kernels" / "python3"
    impostor.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "other"}
    (impostor / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    cell = "import os, sys; print(scale, os.getcwd(), sys.executable)"
    path = notebooks.write(folder / "01_a.ipynb", cell)
    for cwd in (None, tmp_path):
        run(folder, parameters={"scale": "full"}, cwd=cwd, fresh=True)
        expected = f"full {cwd or folder} {sys.executable}\n"
        assert outputs(folder / "executed" / "full" / path.name) == expected


def test_a_failure_is_kept_aside_named_and_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks.write(folder / "01_a.ipynb", "print('before')", "1 / 0", "print('after')")
    notebooks.write(folder / "02_b.ipynb", "print(1)")
    runs = run(folder)
    assert [one.status for one in runs] == ["failed", "executed"]
    assert runs[0].error.endswith("ZeroDivisionError: division by zero")
    assert "----> 1 1 / 0" in runs[0].error
    assert "\x1b" not in runs[0].error
    files = sorted(file.name for file in (folder / "executed" / "micro").iterdir())
    assert files == ["02_b.ipynb", "02_b.json", "failed-01_a.ipynb"]
    assert outputs(folder / "executed" / "micro" / "failed-01_a.ipynb") == "before\n"
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.usefixtures("pretended")
def test_what_failed_is_tried_again_and_its_remains_go_when_it_passes(folder: Path) -> None:
    notebooks.write(folder / "01_a.ipynb", "1 / 0")
    assert [one.status for one in run(folder)] == ["failed"]
    assert [one.status for one in run(folder)] == ["failed"]
    notebooks.write(folder / "01_a.ipynb", "1 / 1")
    assert [one.status for one in run(folder)] == ["executed"]
    files = sorted(file.name for file in (folder / "executed" / "micro").iterdir())
    assert files == ["01_a.ipynb", "01_a.json"]


@pytest.mark.usefixtures("pretended")
def test_a_forced_execution_that_fails_is_not_up_to_date_afterwards(
    folder: Path, tmp_path: Path
) -> None:
    notebooks.write(folder / "01_a.ipynb", f"import os; os.stat({str(tmp_path / 'input')!r})")
    (tmp_path / "input").touch()
    assert [one.status for one in run(folder)] == ["executed"]
    (tmp_path / "input").unlink()
    assert [one.status for one in run(folder, fresh=True)] == ["failed"]
    assert [one.status for one in run(folder)] == ["failed"]


@pytest.mark.usefixtures("pretended")
def test_a_declared_figure_that_is_not_written_is_a_failure(folder: Path) -> None:
    notebooks.write(folder / "01_a.ipynb", "print(1)", title=TITLE)
    (run_,) = run(folder)
    assert run_.status == "failed"
    assert run_.error == "expected the notebook to write 01_a, as its title says."


def test_a_kernel_that_dies_is_a_failure_with_a_reason(folder: Path) -> None:
    notebooks.write(folder / "01_a.ipynb", "import os; os._exit(9)")
    (run_,) = run(folder)
    assert run_.status == "failed"
    assert run_.error.endswith("the kernel's process ended; it may have run out of memory.")


def test_every_finished_cell_and_what_a_long_one_writes_is_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "SECONDS_BETWEEN_LINES", 0.0)
    bar = "import sys\nfor i in range(3): print(f'\\r{i}/3', end='', file=sys.stderr, flush=True)"
    notebooks.write(folder / "01_a.ipynb", bar)
    run(folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[01_a] executing"
    assert re.fullmatch(r"\[01_a\] cell  1/2 +\d+\.\d s  scale = \"micro\"", lines[1])
    assert re.fullmatch(r"\[01_a\] cell  2/2 +\d+\.\d s  import sys", lines[-1])
    written = [line for line in lines if "..." in line]
    assert written
    assert re.fullmatch(r"\[01_a\] +\.\.\. +\d+\.\d s  2/3", written[-1])


def test_notebooks_run_at_the_same_time_are_all_executed(folder: Path) -> None:
    notebooks.write(folder / "01_a.ipynb", "1 / 0")
    notebooks.write(folder / "02_b.ipynb", "print(1)")
    runs = run(folder, jobs=2)
    assert [(one.name, one.status) for one in runs] == [("01_a", "failed"), ("02_b", "executed")]


@pytest.mark.usefixtures("pretended")
def test_each_scale_has_its_own_executed_notebooks_and_figures(folder: Path) -> None:
    notebooks.write(folder / "01_a.ipynb", FIGURE, title=TITLE)
    for scale in ("micro", "full"):
        assert [one.status for one in run(folder, parameters={"scale": scale})] == ["executed"]
        assert (folder / "executed" / scale / "01_a.ipynb").is_file()
    assert [one.status for one in run(folder, parameters={"scale": "micro"})] == ["up to date"]
    (folder.parent / "figures" / "micro" / "01_a.png").unlink()
    assert [one.status for one in run(folder, parameters={"scale": "full"})] == ["up to date"]
    assert [one.status for one in run(folder, parameters={"scale": "micro"})] == ["executed"]


def test_nothing_is_executed_when_one_notebook_lacks_a_parameter(folder: Path) -> None:
    notebooks.write(folder / "01_a.ipynb", parameters="scale = 1\nn = 1")
    notebooks.write(folder / "02_b.ipynb", parameters="scale = 1")
    with pytest.raises(ValueError, match=r"parameters of 02_b.ipynb, scale; got n. Choose"):
        run(folder, parameters={"n": 3})
    assert not (folder / "executed").exists()


def test_no_jobs_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"jobs must be at least 1; got 0. Give 1"):
        run(folder, jobs=0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n=3", 3),
        ("n=1e-5", 1e-5),
        ("n=None", None),
        ("n=(1, 2)", [1, 2]),  # papermill would hand a tuple on as a text
        ("n=micro", "micro"),
        ("n=a=b", "a=b"),
        ("n=", ""),
    ],
)
def test_a_parameter_is_a_literal_or_else_a_text(text: str, value: Any) -> None:
    assert reproduce._parse(text) == ("n", value)


@pytest.mark.parametrize("text", ["n", "=3", "1n=3"])
def test_a_parameter_of_another_form_is_refused(text: str) -> None:
    message = f"expected a parameter as name=value; got {text!r}. Write it that way."
    with pytest.raises(ValueError, match=re.escape(message)):
        reproduce._parse(text)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asked for; one notebook of two is said to have failed."""
    calls: list[Any] = []

    def pretend(parameters: dict[str, Any], **options: Any) -> list[reproduce.Run]:
        calls.append((parameters, options))
        made = reproduce.Run(name="01_a", status="executed", seconds=61.04, figures=("01_a", "01b"))
        return [made, reproduce.Run(name="02_b", status="failed", seconds=2)]

    monkeypatch.setattr(reproduce, "reproduce", pretend)
    return calls


def test_the_command_hands_on_its_flags_and_ends_with_costs_and_a_status(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.command(scale="full", only="01,03", jobs=2, parameter=("n=3",)) == 1
    options = {"only": ["01", "03"], "jobs": 2, "fresh": False}
    assert asked == [({"scale": "full", "n": 3}, options)]
    assert capsys.readouterr().out.splitlines() == [
        "notebook  status      seconds  figures",
        "01_a      executed       61.0  01_a, 01b",
        "02_b      failed          2.0  ",
        "all                      63.0",
    ]


def test_what_is_up_to_date_costs_nothing() -> None:
    table = reproduce.cost_table([reproduce.Run(name="01_a", status="up to date", seconds=60)])
    assert table.splitlines()[-1].split() == ["all", "0.0"]
