"""The house's order: what may import what, how long modules are, what the repository pins."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.benchmarks.house import lines

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "codit"

# Who may import whom: a unit is a file on top or a folder. A folder is free inside itself.
MAY_IMPORT = {
    "contrast": "",
    "files": "",
    "recipes": "files",
    "engine": "contrast recipes files",
    "pair": "contrast engine recipes",
    "decode": "contrast engine pair recipes",
    "weights": "engine files",
    "chat_vector": "weights files",
    "training": "dataset engine pair decode recipes files",
    "contrastive_tuning": "contrast engine pair decode training recipes files",
    "instruction_vector": "contrast engine pair decode training recipes files",
    "dataset": "engine pair decode recipes files",
    "synthesis": "dataset engine pair decode recipes files",
    "student": "training decode engine recipes files",
    "evaluation": "contrast dataset engine pair decode recipes files",
    "world": "evaluation training student decode engine recipes files",
}
UNITS = {unit: set(names.split()) for unit, names in MAY_IMPORT.items()}
UNITS["paper"] = set(MAY_IMPORT)
UNITS["cli"] = {*MAY_IMPORT, "paper"}
FACES = ("__init__", "world", "cli")  # the package's own, the world's, and the main command
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
LONGEST = 350  # lines of code: docstrings, comments and blank lines are free


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """Units of the package that a source imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which module is meant"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "codit" and len(part) > 1} & set(UNITS)


def test_docstrings_comments_and_blank_lines_are_not_code() -> None:
    assert lines('"""What."""\n\n# why\ndef f():\n    """Tell."""\n    return 1\n')["code"] == 2


def test_imports_inside_functions_are_seen() -> None:
    source = "def f():\n    from codit import cli\n    import codit.paper.store\n    import json"
    assert imported(source) == {"cli", "paper"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_what_its_unit_may(path: Path) -> None:
    unit = unit_of(path)
    assert unit in UNITS, f"give {unit} a line in tests/test_layers.py"
    assert imported(path.read_text()) - {unit} <= UNITS[unit]


def test_the_face_of_a_folder_imports_nothing() -> None:
    faces = [path for path in PACKAGE.rglob("__init__.py") if unit_of(path) not in FACES]
    assert len(faces) > 6
    for path in faces:
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))], path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_has_one_subject_and_says_it(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module begins with what it is"
    assert lines(source)["code"] <= LONGEST


def test_every_requirement_is_pinned_within_its_tested_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    for extra in ("dev", "notebooks", "book"):
        wanted += project["project"]["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        pin = pinned[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{requirement} is locked at {pin}"


def test_everything_the_package_imports_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(line).name) for group in groups for line in group}
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    foreign = found - set(sys.stdlib_module_names) - {"codit"}
    assert {canonicalize_name(name) for name in foreign} - declared == set()


@pytest.mark.parametrize("lock", ["requirements.lock", "tests/vllm/requirements.lock"])
def test_the_lock_names_no_place_and_no_build(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin) for pin in pins)


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    source = (PACKAGE / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.+)"', source)
    assert version is not None
    assert f"version: {version[1]}\n" in citation


def test_no_text_installs_a_stranger_s_package() -> None:
    """The name `codit` is somebody else's on PyPI: extras are installed from the checkout."""
    names = ("*.md", "*.py", "*.ipynb", "*.toml", "*.yml", "*.cff")
    texts = [path for name in names for path in ROOT.glob(name)]
    for folder in ("codit", "tests", "notebooks", "data", "figures"):
        texts += [path for name in names for path in (ROOT / folder).rglob(name)]
    told = re.compile(r"pip install (?:-U )?[\"']?codit\b|codit\[(?:dev|eval|ray|serve|vllm)\b")
    found = {path: told.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {str(path): hits for path, hits in found.items() if hits} == {}
