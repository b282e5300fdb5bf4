"""The README's tables of figures and claims, written from what stands beside the committed figures.

Nobody types a verdict: `python -m codit.claims` puts both tables between their marks, and a test
compares them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

from codit import figures, run, store
from codit.files import replacing

WORDS = {True: "holds", False: "does not", None: "undecided"}
MARKS = ("<!-- {}: written by `python -m codit.claims` -->", "<!-- end of {} -->")


def sidecars() -> dict[str, dict[str, Any]]:
    """Return the provenance of every committed figure by its name, in order.

    Returns:
        dict: as `figures.provenance` wrote it.

    Source: ours.
    """
    files = sorted(figures.folder().glob("[0-9][0-9]*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def reproduced(path: Path) -> str:
    """Return what of the paper a notebook reproduces, as its title cell says.

    Args:
        path: the notebook.

    Returns:
        str: "Figures 2 and 4".

    Raises:
        ValueError: the title does not say it.

    Source: ours.
    """
    title = nbformat.read(path, as_version=4).cells[0].source
    found = re.search(r"\*\*Reproduces:\*\* (.+?)(?: of CoDIT)? \(arXiv", title)
    if not found:
        raise ValueError(
            f"expected `**Reproduces:** ... (arXiv ...)` in the title of {path.name}; there is "
            "none. Say what of the paper the notebook reproduces."
        )
    return found[1]


def figure_table() -> str:
    """Return the README's table of figures: one row per notebook, with its first claim.

    Returns:
        str: Markdown.

    Source: ours.
    """
    lines = ["| notebook | the paper's | first claim | found | verdict |", "| --- " * 5 + "|"]
    known = sidecars()
    for path in run.choose(store.repository() / "notebooks"):
        name = run.declared_figures(path)[0]
        claim = known[name]["claims"][0]
        link = f"[{path.stem}](notebooks/{path.name})"
        picture = f"[{reproduced(path)}](figures/{name}.png)"
        lines.append(f"| {link} | {picture} | {_cells(claim)} |")
    return "\n".join(lines)


def claim_table() -> str:
    """Return the README's table of every claim that the notebooks evaluate.

    Returns:
        str: Markdown.

    Source: ours.
    """
    lines = ["| figure | claim | source | found | verdict |", "| --- " * 5 + "|"]
    for name, record in sidecars().items():
        for claim in record["claims"]:
            statement, *rest = _cells(claim).split(" | ")
            cells = " | ".join([statement, claim["source"], *rest])
            lines.append(f"| [{name[:2]}](figures/{name}.png) | {cells} |")
    return "\n".join(lines)


def readme(text: str) -> str:
    """Return the README with both tables as they should be.

    Args:
        text: the README, with the marks of both tables.

    Returns:
        str: the same with what stands between the marks replaced.

    Raises:
        ValueError: a mark is missing.

    Source: ours.
    """
    for name, table in (("figures", figure_table()), ("claims", claim_table())):
        begin, end = (mark.format(name) for mark in MARKS)
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"expected `{begin}` and `{end}` in the README. Put them back.")
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def _cells(claim: dict[str, Any]) -> str:
    cells = (claim["statement"], claim["ours"], f"**{WORDS[claim['holds']]}**")
    return " | ".join(cell.replace("|", "∣") for cell in cells)


def main() -> int:
    """Write both tables into the README.

    Returns:
        int: exit status.

    Source: ours.
    """
    path = store.repository() / "README.md"
    before = path.read_text(encoding="utf-8")
    after = readme(before)
    if after != before:
        with replacing(path) as stream:
            stream.write(after.encode())
    print(f"{path.name}: {'written' if after != before else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
