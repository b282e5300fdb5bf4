"""Executing notebooks: what each says before it runs; once, in this interpreter, never half."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from papermill.exceptions import PapermillExecutionError

import codit
from codit.paper import run
from tests import notebooks

FIGURE = """
from pathlib import Path
import os
for scale in (".", "micro"):
    Path(os.environ["CODIT_FIGURES"], scale, "01_a.png").write_text("picture")
"""
TITLE = "# A claim\n**Writes** figures/01_a.png"
MICRO = {"scale": "micro"}
FULL = {"scale": "full"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODIT_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "figures" / "micro").mkdir(parents=True)
    return tmp_path / "notebooks"


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the cells here, without a kernel: these tests are about what is recorded."""

    def execute(path: Path, draft: Path, parameters: dict[str, Any], **_: Any) -> None:
        written = nbformat.read(path, as_version=4)
        nbformat.write(written, draft)
        try:
            exec("\n".join(cell.source for cell in written.cells[1:]), {})
        except (ZeroDivisionError, FileNotFoundError) as error:
            raise PapermillExecutionError(2, 1, "", type(error).__name__, str(error), []) from None

    monkeypatch.setattr(run.papermill, "execute_notebook", execute)


def outputs(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "executed" / "micro").iterdir())


@pytest.mark.usefixtures("pretended")
def test_a_notebook_is_executed_once_and_again_when_something_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebooks.write(folder / "01_a.ipynb", FIGURE, title=TITLE)
    assert run.bring_up_to_date(path, MICRO) == "executed"
    assert files(folder) == ["01_a.ipynb", "01_a.json"]
    assert re.search(r"\[01_a\] executed in \d+\.\d s: 01_a\n", capsys.readouterr().out)
    assert run.bring_up_to_date(path, MICRO) == "up to date"
    assert re.match(r"\[01_a\] up to date \(\d+\.\d s when exec", capsys.readouterr().out)
    assert run.bring_up_to_date(path, MICRO, fresh=True) == "executed"
    assert run.bring_up_to_date(path, FULL) == "executed"
    (folder.parent / "figures" / "01_a.png").unlink()
    assert run.bring_up_to_date(path, FULL) == "executed"


def test_cells_see_their_parameters_their_folder_and_this_interpreter(
    folder: Path, tmp_path: Path
) -> None:
    cell = "import os, sys; print(scale, os.getcwd(), sys.executable)"
    path = notebooks.write(folder / "01_a.ipynb", cell)
    for cwd in (None, tmp_path):
        run.bring_up_to_date(path, FULL, cwd=cwd, fresh=True)
        expected = f"full {cwd or folder} {sys.executable}\n"
        assert outputs(folder / "executed" / "full" / path.name) == expected


def test_a_failure_is_kept_aside_told_in_a_line_and_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = notebooks.write(folder / "01_a.ipynb", "print('before')", "1 / 0", "print('after')")
    good = notebooks.write(folder / "02_b.ipynb", "print(1)")
    assert run.reproduce([bad, good], MICRO) == ["failed", "executed"]
    assert files(folder) == ["02_b.ipynb", "02_b.json", "failed-01_a.ipynb"]
    assert "before\n" in outputs(folder / "executed" / "micro" / "failed-01_a.ipynb")
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "failed" in text)
    kept = folder / "executed" / "micro" / "failed-01_a.ipynb"
    told = r"In \[4\]: ZeroDivisionError: division by zero"
    assert re.fullmatch(rf"\[01_a\] failed after \d+\.\d s, {re.escape(str(kept))}: {told}", line)


@pytest.mark.usefixtures("pretended")
def test_what_failed_is_tried_again_and_its_remains_go_when_it_passes(folder: Path) -> None:
    path = notebooks.write(folder / "01_a.ipynb", "1 / 0")
    assert run.bring_up_to_date(path, MICRO) == "failed"
    assert run.bring_up_to_date(path, MICRO) == "failed"
    notebooks.write(path, "1 / 1")
    assert run.bring_up_to_date(path, MICRO) == "executed"
    assert files(folder) == ["01_a.ipynb", "01_a.json"]


@pytest.mark.usefixtures("pretended")
def test_a_forced_execution_that_fails_is_not_up_to_date_afterwards(
    folder: Path, tmp_path: Path
) -> None:
    cell = f"import os; os.stat({str(tmp_path / 'input')!r})"
    path = notebooks.write(folder / "01_a.ipynb", cell)
    (tmp_path / "input").touch()
    assert run.bring_up_to_date(path, MICRO) == "executed"
    (tmp_path / "input").unlink()
    assert run.bring_up_to_date(path, MICRO, fresh=True) == "failed"
    assert run.bring_up_to_date(path, MICRO) == "failed"


@pytest.mark.usefixtures("pretended")
def test_a_declared_figure_that_is_not_written_is_a_failure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebooks.write(folder / "01_a.ipynb", "print(1)", title=TITLE)
    assert run.bring_up_to_date(path, MICRO) == "failed"
    message = "expected the notebook to write 01_a, as its title says.\n"
    assert capsys.readouterr().out.endswith(message)


def test_a_kernel_that_dies_is_a_failure_with_a_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebooks.write(folder / "01_a.ipynb", "import os; os._exit(9)")
    assert run.bring_up_to_date(path, MICRO) == "failed"
    message = "the kernel's process ended; it may have run out of memory.\n"
    assert capsys.readouterr().out.endswith(message)


def test_every_finished_cell_is_a_line_and_notebooks_run_at_the_same_time(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = notebooks.write(folder / "01_a.ipynb", "1 / 0")
    good = notebooks.write(folder / "02_b.ipynb", "print(1)\nprint(2)")
    assert run.reproduce([bad, good], MICRO, jobs=2) == ["failed", "executed"]
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[02_b]")]
    assert lines[0] == "[02_b] executing"
    assert re.fullmatch(r"\[02_b\] +\d+\.\d s  print\(1\)", lines[-2])
    assert re.match(r"\[02_b\] executed in", lines[-1])


STOPPED = """
import sys
from pathlib import Path
from codit import cli
from codit.paper import store
store.repository = lambda: Path(sys.argv[1])
sys.exit(cli.main(["reproduce", "--jobs", "2"]))
"""
BUSY = """
import subprocess, sys
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", {program!r}], stdin=subprocess.PIPE)
Path({mark!r}).touch()
child.wait()
"""


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_workers_kernels_and_their_children_end_with_a_command_that_is_stopped(
    folder: Path, stop: signal.Signals
) -> None:
    mark = folder.parent / "mark"
    # The second reads until its parent is gone, as the judge's server does.
    waits = "time.sleep(90)" if stop == signal.SIGTERM else "os.read(0, 1)"
    program = f"import os, time; {waits}"
    notebooks.write(folder / "01_a.ipynb", BUSY.format(program=program, mark=str(mark)))
    command = [sys.executable, "-c", STOPPED, str(folder.parent)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not mark.exists():
            assert driver.poll() is None
            time.sleep(0.05)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(stop)
    assert driver.returncode == (143 if stop == signal.SIGTERM else -signal.SIGKILL)
    assert len(children) == 4, "a tracker, a worker, a kernel, its child"
    assert psutil.wait_procs(children, timeout=20)[1] == []


@pytest.mark.usefixtures("pretended")
def test_each_scale_has_its_own_executed_notebooks_and_figures(folder: Path) -> None:
    path = notebooks.write(folder / "01_a.ipynb", FIGURE, title=TITLE)
    for told in (MICRO, FULL):
        assert run.bring_up_to_date(path, told) == "executed"
        assert (folder / "executed" / told["scale"] / "01_a.ipynb").is_file()
    assert run.bring_up_to_date(path, MICRO) == "up to date"
    (folder.parent / "figures" / "micro" / "01_a.png").unlink()
    assert run.bring_up_to_date(path, FULL) == "up to date"
    assert run.bring_up_to_date(path, MICRO) == "executed"


def test_nothing_is_executed_when_one_notebook_lacks_a_parameter(folder: Path) -> None:
    one = notebooks.write(folder / "01_a.ipynb", parameters="scale = 1\nn = 1")
    two = notebooks.write(folder / "02_b.ipynb", parameters="scale = 1")
    with pytest.raises(ValueError, match=r"parameters of 02_b.ipynb, scale; got m, n. Choose"):
        run.reproduce([two, one], {**MICRO, "n": 3, "m": 4})
    with pytest.raises(ValueError, match=r"parameters of 02_b.ipynb, scale; got n. Choose"):
        run.reproduce([one, two], {**MICRO, "n": 3})
    assert not (folder / "executed").exists()


def test_no_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"jobs must be at least 1; got 0. Give 1"):
        run.reproduce([], MICRO, jobs=0)


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
    assert run._parse(text) == ("n", value)


@pytest.mark.parametrize("text", ["n", "=3", "1n=3"])
def test_a_parameter_of_another_form_is_refused(text: str) -> None:
    message = f"expected a parameter as name=value; got {text!r}. Write it that way."
    with pytest.raises(ValueError, match=re.escape(message)):
        run._parse(text)


@pytest.mark.parametrize("failed", [True, False])
def test_the_command_hands_on_its_flags_and_ends_with_a_status(
    failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def pretend(paths: list[Path], parameters: dict[str, Any], **options: Any) -> list[str]:
        asked.append(([path.stem[:2] for path in paths], parameters, options))
        return ["executed", "failed"] if failed else ["executed", "up to date"]

    monkeypatch.setattr(run, "reproduce", pretend)
    assert run.command(scale="full", only="01,03", jobs=2, parameter=("n=3",)) == failed
    told = {"scale": "full", "n": 3}
    assert asked == [(["01", "03"], told, {"jobs": 2, "fresh": False})]


def test_what_is_to_come_and_how_long_it_takes_is_said_before(folder: Path) -> None:
    new = notebooks.write(folder / "01_a.ipynb", title="# A\n- **Costs:** two minutes.")
    old = notebooks.write(folder / "02_b.ipynb", title="# B\n- **Costs:** an hour.")
    state = folder / "executed" / "micro" / "02_b.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"seconds": 61.4}')
    first, *lines = run.plan([new, old], MICRO, jobs=2).splitlines()
    assert first.startswith("2 notebooks at scale micro, 2 at a time")
    assert [line.split(maxsplit=1) for line in lines] == [
        ["01_a", "two minutes."],
        ["02_b", "61 s when last executed"],
    ]


def test_figures_are_listed_at_the_end_with_their_verdicts(folder: Path, tmp_path: Path) -> None:
    path = notebooks.write(
        folder / "01_a.ipynb", title="# A\nfigures/01_a figures/01b_b figures/01c_c"
    )
    claims = [{"holds": holds} for holds in (True, None, True)]
    place = tmp_path / "figures" / "micro"
    (place / "01_a.json").write_text(json.dumps({"claims": claims}))
    (place / "01b_b.json").write_text(json.dumps({"claims": []}))
    _, *lines = run.found([path], "micro").splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "holds 2, undecided 1",
        "no claims",
        "not written",
    ]
    assert Path(lines[0].split()[0]).resolve() == place / "01_a.png"


def test_notebooks_are_chosen_by_number_or_name_and_come_in_order(tmp_path: Path) -> None:
    paths = [notebooks.write(tmp_path / f"{n}.ipynb") for n in ("03_c", "00_a", "01_b")]
    notebooks.write(tmp_path / "draft.ipynb")
    first, second, third = sorted(paths)
    assert run.choose(tmp_path) == [first, second, third]
    assert run.choose(tmp_path, ["03_c", "0", "00"]) == [first, third]
    assert run.choose(tmp_path, ["1"]) == [second]


def test_a_notebook_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    notebooks.write(tmp_path / "00_a.ipynb")
    message = "expected one of the notebooks 00_a; got '04'. Name one."
    with pytest.raises(ValueError, match=re.escape(message)):
        run.choose(tmp_path, ["04"])


@pytest.mark.parametrize("only", [[], ["1"]])
def test_a_folder_without_notebooks_is_an_error(tmp_path: Path, only: list[str]) -> None:
    message = f"expected notebooks NN_slug.ipynb in {tmp_path}; there are none."
    with pytest.raises(ValueError, match=re.escape(message)):
        run.choose(tmp_path, only)


def test_parameters_are_the_names_of_the_tagged_cell(tmp_path: Path) -> None:
    text = 'scale = "micro"\n# a remark\nplausibility = None  # ours'
    path = notebooks.write(tmp_path / "00_a.ipynb", "other = 1", parameters=text)
    assert run.parameters_of(path) == {"scale": "micro", "plausibility": None}


@pytest.mark.parametrize(
    "statement", ["a, b = (1, 2)", "import os", "n: int = 1", "n += 1", "m = n * 2"]
)
def test_a_parameters_cell_that_computes_is_refused(tmp_path: Path, statement: str) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb", parameters=f"n = 0\n{statement}")
    message = f"in the parameters cell of 00_a.ipynb; got `{statement}`. Compute in the cells below"
    with pytest.raises(ValueError, match=re.escape(message)):
        run.parameters_of(path)


@pytest.mark.parametrize("copies", [0, 2])
def test_exactly_one_parameters_cell_is_required(tmp_path: Path, copies: int) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb")
    content = nbformat.read(path, as_version=4)
    content.cells[1:] = [nbformat.v4.new_code_cell("n = 1") for _ in range(copies)]
    for cell in content.cells[1:]:
        cell.metadata["tags"] = ["parameters"]
    nbformat.write(content, path)
    message = f"exactly one cell tagged `parameters` in 00_a.ipynb; got {copies}. Tag the cell"
    with pytest.raises(ValueError, match=re.escape(message)):
        run.parameters_of(path)


def test_declared_figures_are_those_the_title_names(tmp_path: Path) -> None:
    title = "![](../figures/01_a.png)\n**Writes** figures/01_a.{pdf,png}, figures/01b_by_task.csv"
    path = notebooks.write(tmp_path / "01_a.ipynb", "'figures/01c_other.png'", title=title)
    assert run.declared_figures(path) == ("01_a", "01b_by_task")


def test_the_fingerprint_follows_cells_and_parameters_but_not_outputs(tmp_path: Path) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb", "print(1)")
    before = run.fingerprint(path, {"n": 1})
    assert run.fingerprint(path, {"n": 2}) != before
    content = nbformat.read(path, as_version=4)
    content.cells[2].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(content, path)
    assert run.fingerprint(path, {"n": 1}) == before
    content.cells[2].source = "print(2)"
    nbformat.write(content, path)
    assert run.fingerprint(path, {"n": 1}) != before


@pytest.mark.parametrize(
    "file",
    [
        *("codit/new.py", "codit/world/new.py"),
        *("data/models/m/manifest.json", "data/results/new.json"),
    ],
)
def test_the_fingerprint_follows_the_package_and_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb")
    (tmp_path / "codit").mkdir()
    monkeypatch.setattr(codit, "__file__", str(tmp_path / "codit" / "__init__.py"))
    before = run.fingerprint(path, {})
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("1")
    after = run.fingerprint(path, {})
    (tmp_path / file).write_text("2")
    assert len({before, after, run.fingerprint(path, {})}) == 3
