"""What a notebook says before it runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

from codit import notebook
from tests import notebooks


def test_notebooks_are_chosen_by_number_or_name_and_come_in_order(tmp_path: Path) -> None:
    paths = [notebooks.write(tmp_path / f"{n}.ipynb") for n in ("03_c", "00_a", "01_b")]
    notebooks.write(tmp_path / "draft.ipynb")
    first, second, third = sorted(paths)
    assert notebook.choose(tmp_path) == [first, second, third]
    assert notebook.choose(tmp_path, ["03_c", "0", "00"]) == [first, third]
    assert notebook.choose(tmp_path, ["1"]) == [second]


def test_a_notebook_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    notebooks.write(tmp_path / "00_a.ipynb")
    message = "expected one of the notebooks 00_a; got '04'. Name one."
    with pytest.raises(ValueError, match=re.escape(message)):
        notebook.choose(tmp_path, ["04"])


@pytest.mark.parametrize("only", [[], ["1"]])
def test_a_folder_without_notebooks_is_an_error(tmp_path: Path, only: list[str]) -> None:
    message = f"expected notebooks NN_slug.ipynb in {tmp_path}; there are none."
    with pytest.raises(ValueError, match=re.escape(message)):
        notebook.choose(tmp_path, only)


def test_parameters_are_the_names_of_the_tagged_cell(tmp_path: Path) -> None:
    text = 'scale = "micro"\n# a remark\nplausibility = None  # ours'
    path = notebooks.write(tmp_path / "00_a.ipynb", "other = 1", parameters=text)
    values = {name: ast.unparse(value) for name, value in notebook.parameters_of(path).items()}
    assert values == {"scale": "'micro'", "plausibility": "None"}


@pytest.mark.parametrize("statement", ["a, b = (1, 2)", "import os", "n: int = 1", "n += 1"])
def test_a_parameters_cell_that_computes_is_refused(tmp_path: Path, statement: str) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb", parameters=f"n = 0\n{statement}")
    message = f"in the parameters cell of 00_a.ipynb; got `{statement}`. Compute in the cells below"
    with pytest.raises(ValueError, match=re.escape(message)):
        notebook.parameters_of(path)


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
        notebook.parameters_of(path)


def test_another_kernel_is_refused(tmp_path: Path) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb", kernel="codit")
    message = "expected kernel python3 in 00_a.ipynb; got codit. Set its kernel."
    with pytest.raises(ValueError, match=re.escape(message)):
        notebook.parameters_of(path)


def test_an_unknown_parameter_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb", parameters="scale = 1\nn = None")
    notebook.check_parameters(path, {"n": 3})
    message = "expected parameters of 00_a.ipynb, scale, n; got alpha, m. Choose the notebooks"
    with pytest.raises(ValueError, match=re.escape(message)):
        notebook.check_parameters(path, {"n": 3, "m": 4, "alpha": 1})


def test_declared_figures_are_those_the_title_names(tmp_path: Path) -> None:
    title = "![](../figures/01_a.png)\n**Writes** figures/01_a.{pdf,png}, figures/01b_by_task.csv"
    path = notebooks.write(tmp_path / "01_a.ipynb", "'figures/01c_other.png'", title=title)
    assert notebook.declared_figures(path) == ("01_a", "01b_by_task")


def test_the_fingerprint_follows_cells_and_parameters_but_not_outputs(tmp_path: Path) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb", "print(1)")
    before = notebook.fingerprint(path, {"n": 1})
    assert notebook.fingerprint(path, {"n": 2}) != before
    content = nbformat.read(path, as_version=4)
    content.cells[2].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(content, path)
    assert notebook.fingerprint(path, {"n": 1}) == before
    content.cells[2].source = "print(2)"
    nbformat.write(content, path)
    assert notebook.fingerprint(path, {"n": 1}) != before


@pytest.mark.parametrize(
    "file", ["codit/new.py", "codit/world/new.py", "data/models/m/manifest.json"]
)
def test_the_fingerprint_follows_the_package_and_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path = notebooks.write(tmp_path / "00_a.ipynb")
    (tmp_path / "codit").mkdir()
    monkeypatch.setattr(notebook, "__file__", str(tmp_path / "codit" / "notebook.py"))
    before = notebook.fingerprint(path, {})
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("1")
    after = notebook.fingerprint(path, {})
    (tmp_path / file).write_text("2")
    assert len({before, after, notebook.fingerprint(path, {})}) == 3
