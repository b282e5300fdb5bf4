"""What a notebook says before it runs: its number, its parameters, the figures it declares.

This module reads notebooks and executes nothing; `codit.reproduce` does.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from codit import store
from codit.files import versions

KERNEL = "python3"


def choose(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks of a folder, all or those named.

    Args:
        folder: holds `NN_slug.ipynb`.
        only: numbers ("1", "01") or names ("01_score_distribution").

    Returns:
        list[Path]: in the order of the numbers, each once.

    Raises:
        ValueError: there is no notebook, or one that is named does not exist.

    Source: ours.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ValueError(f"expected notebooks NN_slug.ipynb in {folder}; there are none.")
    names = ", ".join(path.stem for path in paths)
    chosen = set()
    for name in only:
        number = name.zfill(2)
        matches = [path for path in paths if name == path.stem or path.stem[:3] == f"{number}_"]
        if not matches:
            raise ValueError(f"expected one of the notebooks {names}; got {name!r}. Name one.")
        chosen.update(matches)
    return sorted(chosen) if only else paths


def parameters_of(path: Path) -> dict[str, ast.expr]:
    """Return a notebook's parameters: name to expression of its cell tagged `parameters`.

    Args:
        path: the notebook.

    Returns:
        dict: in the order of the cell.

    Raises:
        ValueError: not exactly one such cell, a statement in it is not `name = value`, or the
            notebook asks for another kernel than `python3`.

    Source: ours.
    """
    notebook = nbformat.read(path, as_version=4)
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != KERNEL:
        raise ValueError(f"expected kernel {KERNEL} in {path.name}; got {kernel}. Set its kernel.")
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(
            f"expected exactly one cell tagged `parameters` in {path.name}; got {len(cells)}. "
            "Tag the cell whose values a reader may want to change."
        )
    found = {}
    for statement in ast.parse(cells[0].source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case _:
                raise ValueError(
                    f"expected `name = value` in the parameters cell of {path.name}; got "
                    f"`{ast.unparse(statement)}`. Compute in the cells below."
                )
    return found


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless a notebook has every one of the parameters.

    Args:
        path: the notebook.
        parameters: what it is to be executed with.

    Raises:
        ValueError: names that the notebook does not have; papermill would only warn.

    Source: ours.
    """
    known = parameters_of(path)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"expected parameters of {path.name}, {', '.join(known)}; got {', '.join(unknown)}. "
            "Choose the notebooks that have it with --only."
        )


def declared_figures(path: Path) -> tuple[str, ...]:
    """Return the figures a notebook says it writes: `figures/NAME` in its first cell.

    Args:
        path: the notebook.

    Returns:
        tuple[str, ...]: names without folder and ending, each once, in order.

    Source: ours.
    """
    title = nbformat.read(path, as_version=4).cells[0].source
    return tuple(dict.fromkeys(re.findall(r"figures/(\d\d[a-z]?_[a-z0-9_]+)", title)))


def fingerprint(path: Path, parameters: Mapping[str, Any]) -> str:
    """Return the hash of what an execution depends on.

    Args:
        path: the notebook; its cells count, its outputs and metadata do not.
        parameters: what it is executed with.

    Returns:
        str: hexadecimal SHA-256 of cells, parameters, package, package versions and the manifests
        of shipped models and results.

    Source: ours.
    """
    package = Path(__file__).parent
    inputs = sorted(package.rglob("*.py"))
    for place in store.SHIPPED:
        inputs += sorted((package.parent / place).glob(f"*/{store.MANIFEST}"))
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(path, as_version=4).cells]
    files = [
        (file.relative_to(package.parent).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest())
        for file in inputs
    ]
    parts = [cells, sorted(parameters.items()), files, versions()]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()
