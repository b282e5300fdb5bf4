"""Makes small notebooks for tests."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write(
    path: Path,
    *cells: str,
    title: str = "# A claim",
    parameters: str = 'scale = "micro"',
    kernel: str = "python3",
) -> Path:
    """Write a notebook with a title, a parameters cell and code cells."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    code = [new_code_cell(cell) for cell in cells]
    notebook = new_notebook(cells=[new_markdown_cell(title), tagged, *code])
    notebook.metadata["kernelspec"] = {**KERNEL, "name": kernel}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path
