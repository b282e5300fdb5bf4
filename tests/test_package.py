"""What `import codit` offers: the public names, loaded when they are asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import codit

ROOT = Path(codit.__file__).parents[1]

PUBLIC = {
    "ContrastivePair": "codit.pair",
    "Decoding": "codit.recipes",
    "Response": "codit.decode",
    "evaluate": "codit.student",
    "generate": "codit.decode",
    "load_tokenizer": "codit.pair",
    "synthesize": "codit.synthesis",
    "token_table": "codit.decode",
    "train": "codit.student",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_the_one_of_its_module(name: str) -> None:
    assert getattr(codit, name) is getattr(import_module(PUBLIC[name]), name)
    assert name in dir(codit)


def test_an_editor_and_mypy_see_what_python_finds() -> None:
    tree = ast.parse(Path(codit.__file__).read_text())
    told = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("codit.")
        for alias in node.names
    }
    assert told == PUBLIC


def test_the_import_loads_no_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import codit; dir(codit); "
        "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "{'codit'}", ran.stderr


def test_modules_of_the_method_are_there_without_an_import_of_their_own() -> None:
    program = "import codit; print(codit.chat_vector.add.__name__, codit.contrast.sample.__name__)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.split() == ["add", "sample"], ran.stderr


def test_an_unknown_name_is_said_beside_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"'codit' has no attribute 'pear'; it has \['Contra"):
        codit.pear  # noqa: B018


def test_no_public_name_is_a_module_too() -> None:
    folder = Path(codit.__file__).parent
    assert not [name for name in PUBLIC if (folder / f"{name}.py").exists()]


def test_the_example_of_the_readme_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(ROOT)
    exec(found[1], {})
    assert "Zaro" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["3.11.0", "3.12.0", "3.13.0"])
def test_every_locked_package_takes_the_first_release_of_each_python(version: str) -> None:
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.M)
    wanted = {name: metadata.metadata(name)["Requires-Python"] or "" for name in names}
    assert len(wanted) > 100
    assert [name for name, range_ in wanted.items() if version not in SpecifierSet(range_)] == []
