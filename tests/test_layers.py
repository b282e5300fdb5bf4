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

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "codit"

# From the bottom up. A module imports from lower lines only; `world` freely inside itself.
LAYERS = (
    ("content", "files"),
    ("recipes",),
    # Arithmetic, texts and the world: they know of no model's files and of no result's place.
    (
        "contrast",
        "statistics",
        "power",
        "quality",
        "tensor_names",
        "world",
        "judge_prompts",
        "logistic",
        "judge_recipes",
    ),
    ("vllm_plugin", "vllm_settings", "resampling", "world_lessons"),
    (
        "candidates",
        "chat",
        "comparison",
        "cosine_table",
        "crossed",
        "dataset_card",
        "head_rows",
        "model_server",
        "judge_http",
        "judge_replies",
        "noise",
        "prompts",
        "judge_agreement",
        "judge_bias",
        "shared_cache",
        "tensor_files",
        "vocabulary",
        "workers",
        "win_rates",
    ),
    (
        "checkpoints",
        "store",
        "drawing",
        "memory",
        "pair_logits",
        "training_loop",
        "chat_files",
        "judge_cache",
        "judge_requests",
        "tensor_match",
        "transport",
    ),
    ("packed_weights", "judge_client", "overlap_texts"),
    (
        "pair",
        "static_batches",
        "paged_batches",
        "limits",
        "vllm_model",
        "vllm_pair",
        "vector_files",
        "overlap",
    ),
    ("decode_arguments",),
    ("decode", "figures", "notebook", "dataset_file", "addition", "random_pairs"),
    (
        "plots",
        "line_plots",
        "token_classes",
        "token_plots",
        "resumption",
        "teacher",
        "training_rows",
        "first_order",
        "chat_vector",
        "rivals",
    ),
    ("step_times", "speed_tables", "judge_rows", "ifeval_data"),
    ("judge_tables", "judge_questions", "engine_runs", "engine_tables"),
    ("synthesis", "token_tables", "first_order_tables", "throughput"),
    ("judge", "judge_plan", "student", "pretraining", "preview", "ifeval", "mt_bench"),
    (
        "experiments",
        "contrastive_tuning",
        "instruction_vector",
        "release",
        "world_judge",
    ),
    ("judging",),
    ("results",),
    ("studies", "verdicts", "engine_study"),
    ("evidence", "token_evidence", "alignment", "transfer", "judge_study"),
    ("judge_students",),
    ("close_up", "committed", "embedded", "tuning", "judge_evidence"),
    ("judge_leanings", "judge_plots"),
    (
        "claims",
        "reproduce",
        "chat_vector_cli",
        "ifeval_cli",
        "judge_agreement_cli",
        "judge_cli",
        "mt_bench_cli",
        "overlap_cli",
        "serve_cli",
        "synthesis_cli",
    ),
    ("cli",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
LONGEST = 350  # lines of code: docstrings, comments and blank lines are free


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """Modules of the package that a source imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which module is meant"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "codit" and len(part) > 1} & set(LAYER)


def code_lines(source: str) -> int:
    """Lines that are neither blank, comment nor docstring."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            told |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    told |= {number for number, line in lines if line.strip()[:1] in ("", "#")}
    return len(source.splitlines()) - len(told)


def test_docstrings_comments_and_blank_lines_are_not_code() -> None:
    assert code_lines('"""What."""\n\n# why\ndef f():\n    """Tell."""\n    return 1\n') == 2


def test_imports_inside_functions_are_seen() -> None:
    source = "def f():\n    from codit import cli\n    import codit.store\n    import json"
    assert imported(source) == {"cli", "store"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_from_lower_layers_only(path: Path) -> None:
    own = module_of(path)
    assert own in LAYER, f"give {own} a layer in tests/test_layers.py"
    upward = {name for name in imported(path.read_text()) if LAYER[name] >= LAYER[own]}
    assert upward - {own} == set(), f"{own} may not import these"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_has_one_subject_and_says_it(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module begins with what it is"
    assert code_lines(source) <= LONGEST


def test_the_package_itself_imports_nothing() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_every_requirement_is_pinned_within_its_tested_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    wanted += project["project"]["optional-dependencies"]["dev"]
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
