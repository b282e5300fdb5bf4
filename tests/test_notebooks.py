"""The notebooks as products: what each must contain, and that each runs, small and offline."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from codit.paper import run

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 30
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)

# What the tests execute: the same notebooks with fewer prompts, seeds and steps, no other code.
FEW = {"n_prompts": 48, "seeds": [0, 1]}
FEWER = {**FEW, "n_test": 12, "students": 1}
TRIED = {"plausibilities": [0.03, 0.3], "strengths": [0.0, 1.0]}
REDUCED: dict[str, dict[str, Any]] = {
    "00_quickstart": {},
    "01_score_distribution": {**FEW, **TRIED},
    "02_alpha_tuning": {**FEWER, **TRIED},
    "03_student_sft": {**FEWER, "truncation": 0.3},
    "04_chat_vector_cosine": FEW,
    "05_knowledge_or_instruction": {**FEWER, **TRIED, "n_test": 40},
    "06_first_order": {"n_prompts": 12},
    "07_chat_vector_transfer": FEWER,
    "08_judge_agreement": {"n_prompts": 24, "n_test": 20},
    "21_throughput": {},
    "31_ctd_results": {"n_test": 8},
    "32_ctd_training": {"n_test": 8},
    "33_ctd_coefficient": {"n_test": 8},
    "34_ctd_tokens": {"n_test": 8},
    "42_iv_heads": {"kinds": ["capitals", "json"], "n_test": 64},
    "43_iv_intervention": {"kinds": ["capitals", "json"], "n_test": 64},
}
# Executed from the repository root, the others from notebooks/.
FROM_ROOT = "00_quickstart"
# More than a minute even small. `make reproduce` executes them too.
LONG = (
    "03_student_sft",
    "05_knowledge_or_instruction",
    "06_first_order",
    "08_judge_agreement",
    "32_ctd_training",
    "43_iv_intervention",
)


def cells(path: Path, kind: str = "code") -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tagged(path: Path, tag: str) -> list[Any]:
    return [cell for cell in cells(path) if tag in cell.metadata.get("tags", [])]


def below_parameters(path: Path) -> ast.Module:
    code = cells(path)
    first = next(i for i, c in enumerate(code) if "parameters" in c.metadata.get("tags", [])) + 1
    return ast.parse("\n".join(cell.source for cell in code[first:]))


def names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in found if isinstance(node.ctx, context)}


@each_notebook
def test_its_name_is_a_number_and_a_slug(path: Path) -> None:
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)


@each_notebook
def test_its_title_says_what_it_reproduces_reads_writes_and_costs(path: Path) -> None:
    title = nbformat.read(path, as_version=4).cells[0]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    for field in ("Reproduces", "Reads", "Writes", "Costs"):
        assert re.search(rf"\*\*{field}:?\*\*:? \S", title.source), f"the title names **{field}**"


@each_notebook
def test_its_title_shows_a_figure_that_it_writes_and_that_is_committed(path: Path) -> None:
    title = nbformat.read(path, as_version=4).cells[0].source
    shown = re.findall(r"!\[[^\]]+\]\(\.\./figures/([a-z0-9_]+)\.png\)", title)
    assert shown, "![what it shows](../figures/NN_slug.png)"
    declared = run.declared_figures(path)
    assert set(shown) <= set(declared)
    for name in declared:
        assert re.match(r"\d\d", name)[0] == path.stem[:2]  # type: ignore[index]
        for kind in ("pdf", "png", "csv", "json"):
            assert (ROOT / "figures" / f"{name}.{kind}").is_file()


@each_notebook
def test_it_has_one_parameters_cell_and_the_kernel_python3(path: Path) -> None:
    assert run.parameters_of(path)["scale"] == "micro"
    kernel = nbformat.read(path, as_version=4).metadata["kernelspec"]["name"]
    assert kernel == "python3"


@each_notebook
def test_a_parameter_besides_the_scale_is_left_to_the_scale_s_recipe(path: Path) -> None:
    values = run.parameters_of(path)
    values.pop("scale")
    assert set(values.values()) <= {None}


@each_notebook
def test_every_parameter_is_read_and_none_is_bound_again(path: Path) -> None:
    tree = below_parameters(path)
    parameters = set(run.parameters_of(path))
    assert parameters - names(tree, ast.Load) == set(), "papermill would change nothing"
    assert parameters & names(tree, ast.Store) == set(), "papermill's value would be lost"


@each_notebook
def test_it_defines_no_function_and_no_class(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [node for cell in cells(path) for node in ast.walk(ast.parse(cell.source))]
    assert not [ast.unparse(node) for node in nodes if isinstance(node, kinds)]


@each_notebook
def test_its_cells_are_short(path: Path) -> None:
    assert max(len(cell.source.splitlines()) for cell in cells(path)) <= LONGEST_CELL


@each_notebook
def test_it_holds_no_outputs(path: Path) -> None:
    assert [cell.outputs for cell in cells(path) if cell.outputs] == []
    assert {cell.execution_count for cell in cells(path)} == {None}


@each_notebook
def test_it_evaluates_claims_and_saves_them_with_the_figure(path: Path) -> None:
    (claims,) = tagged(path, "claims")
    assert "claims" in names(ast.parse(claims.source), ast.Store)
    assert "figures.Claim(" in claims.source
    calls = [n for n in ast.walk(below_parameters(path)) if isinstance(n, ast.Call)]
    saves = [call for call in calls if ast.unparse(call.func) == "figures.save"]
    assert saves
    assert any("claims" in {word.arg for word in call.keywords} for call in saves)


def test_every_notebook_has_reduced_parameters() -> None:
    assert sorted(REDUCED) == [path.stem for path in PATHS]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all workers: what one notebook makes, the others read."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    return shared / "notebooks"


def execute(path: Path, cwd: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Run a notebook with its reduced parameters; return the provenance of its figures."""
    parameters = {"scale": "micro", **REDUCED[path.stem]}
    executed = run.bring_up_to_date(path, parameters, out=tmp_path / "executed", cwd=cwd)
    assert executed == "executed", "see what it printed"
    files = sorted((tmp_path / "figures" / "micro").glob("*.json"))
    assert tuple(file.stem for file in files) == tuple(sorted(run.declared_figures(path)))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.long] * (p.stem in LONG), id=p.stem) for p in PATHS],
)
def test_it_runs_small_and_offline_and_records_its_claims(
    path: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIT_CACHE", str(cache))
    monkeypatch.setenv("CODIT_FIGURES", str(tmp_path / "figures"))
    records = execute(path, ROOT if path.stem == FROM_ROOT else FOLDER, tmp_path)
    assert any(record["claims"] for record in records)
