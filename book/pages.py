"""Lays out the pages of the book and has Sphinx set them: `python book/pages.py OUT`.

A page for each question, which begins with its answer, the notebook's claims on the committed
results, and goes on with the executed notebook; the data card, findings, all claims; and the
reference, from docstrings and from `--help`. Nobody types a number here.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell
from sphinx.cmd import build

import codit
from codit import cli
from codit.paper import run, shipped

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "notebooks" / "executed" / "full"
# What a reader asks, and how the claims begin that answer it (None: those of the README's table).
# A notebook that is not named here has its title for a question, and answers with all its claims.
QUESTIONS: dict[str, tuple[str, str | None]] = {
    "00_quickstart": ("What does contrast change in one answer?", ""),
    "01_score_distribution": ("Do contrastive responses score higher?", None),
    "02_alpha_tuning": ("At which plausibility do students gain?", None),
    "03_student_sft": ("Does contrast make better students?", None),
    "04_chat_vector_cosine": ("Do students move along the chat vector?", None),
    "05_knowledge_or_instruction": (
        "Does contrast suppress knowledge and amplify instruction-following?",
        None,
    ),
    "06_first_order": ("Is contrast the chat vector, to first order?", None),
    "07_chat_vector_transfer": (
        "Does text carry the chat vector where it cannot be added?",
        "Contrastive text gives",
    ),
    "08_judge_agreement": (
        "Do judges see what a verifier sees?",
        "Contrastive responses score higher than direct ones",
    ),
    "21_throughput": ("What does a step of the pair cost?", "A step takes at most"),
    "31_ctd_results": ("Does a model gain by contrast with itself?", "CTD answers more prompts"),
    "32_ctd_training": ("How long should a soft prefix be tuned?", ""),
    "33_ctd_coefficient": ("How strongly should a second view be subtracted?", ""),
    "34_ctd_tokens": ("Which tokens does a second view change?", ""),
    "42_iv_heads": ("Which heads carry an instruction?", ""),
    "43_iv_intervention": ("Can a vector stand for an instruction?", ""),
}
LIVE = {"text/plain", "application/vnd.jupyter.widget-view+json"}  # what needs a kernel to be seen
# Shown as they are in the repository.
SHARED = (
    "codit",
    "data",
    "figures",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "CITATION.cff",
)
ANSWER = """\
# {question}

:::{{admonition}} {words}
:class: tip

| claim | found, with its 95 % interval | verdict |
| --- | --- | --- |
{rows}
:::
"""
INDEX = """\
# CoDIT, reproduced

A strong post-trained model, the *expert*, answers prompts while its own pre-trained self, the
*amateur*, is subtracted. Students trained on such answers are said to follow instructions better
(arXiv 2604.13538). This book tests that, step by step, in an artificial world where a program
knows what is true and what was asked.

![Right over obeyed: students of every arm](figures/03_student_sft.png)

| question | what we find |
| --- | --- |
{rows}

Intervals are 95 %. A claim *holds* where its whole interval lies above zero, after correction for
all claims of the page; it *does not* where the interval lies below; else it is *undecided*. The
models have a million parameters: the numbers compare with nothing outside this book.

```{{toctree}}
:hidden:
:caption: Questions

{questions}
```

```{{toctree}}
:hidden:
:caption: Evidence

findings
All claims <figures/README>
data/README
The plan <data/PLAN>
{tables}
```

```{{toctree}}
:hidden:
:caption: Use

Install and use <README>
api
cli
Changes <CHANGELOG>
```
"""


def main(out: Path, executed: Path = EXECUTED) -> int:
    """Write the book's source and then the book, `out/source` and `out/html`; return a status.

    `executed`: the folder of the executed notebooks; each becomes a page.
    """
    source = out / "source"
    paths = run.choose(executed)
    shutil.rmtree(source, ignore_errors=True)
    (source / "notebooks").mkdir(parents=True)
    for name in SHARED:
        (source / name).symlink_to(ROOT / name)
    for path in paths:
        nbformat.write(question_page(path), source / "notebooks" / path.name)
    pages = {"index": index(paths), "findings": findings(), "api": api(), "cli": commands()}
    for name, text in pages.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    settings = ["-q", "-W", "--keep-going", "-c", str(ROOT / "book")]
    return int(build.main([*settings, str(source), str(out / "html")]))


def index(paths: list[Path]) -> str:
    """Return the first page: questions with their answers, and the order of all pages."""
    rows = []
    for path in paths:
        words, claims = answer(path)
        first = "<br>".join(claims[0][:3:2])
        rows.append(f"| [{question(path)}](notebooks/{path.name}) | {words}<br>{first} |")
    tables = [path.stem for path in sorted((ROOT / "tests" / "tables").glob("*.md"))]
    return INDEX.format(
        rows="\n".join(rows),
        questions="\n".join(f"{question(path)} <notebooks/{path.stem}>" for path in paths),
        tables="\n".join(f"Tests: {t.replace('_', ' ')} <tests/tables/{t}>" for t in tables),
    )


def title(path: Path) -> str:
    """Return a notebook's title, without its number."""
    return nbformat.read(path, as_version=4).cells[0].source.partition("\n")[0].partition(" · ")[2]


def question(path: Path) -> str:
    """Return what a notebook's page is called."""
    return QUESTIONS.get(path.stem, (title(path), ""))[0]


def answer(path: Path) -> tuple[str, list[list[str]]]:
    """Return the verdicts that answer a notebook's question, counted, and each with its numbers."""
    begins = QUESTIONS.get(path.stem, ("", ""))[1]
    if begins is None:
        begins = {name: text for _, name, text in shipped.PAPER}[path.stem]
    return shipped.answer(run.declared_figures(path)[0], begins)


def question_page(path: Path) -> nbformat.NotebookNode:
    """Return an executed notebook that begins with its question and answer; pictures have words."""
    notebook = nbformat.read(path, as_version=4)
    words, claims = answer(path)
    rows = "\n".join(f"| {said} | {found} | {verdict} |" for said, _, found, verdict in claims)
    heading, first = title(path), notebook.cells[0]
    first.source = re.sub(r"^# (.*)", r"**\1**", first.source)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.findall(r"^#+ (.+)$", cell.source, re.M)):
            heading = found[-1]
        if cell.cell_type == "code":  # bars that show a kernel's progress have nothing to show here
            cell.outputs = [o for o in cell.outputs if set(o.get("data", {"": ""})) != LIVE]
        cell.metadata["mystnb"] = {"image": {"alt": f"Figure: {heading}"}}
    top = ANSWER.format(question=question(path), words=words.replace("**", ""), rows=rows)
    notebook.cells.insert(0, new_markdown_cell(top))
    return notebook


def findings() -> str:
    """Return the changelog's findings as a page, the newest first."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.findall(r"^### Findings\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    return "# Findings\n\nWith their numbers, negative ones included.\n" + "\n".join(found)


def api() -> str:
    """Return the page of the public names: their signatures and docstrings, read by Sphinx."""
    lines = ["# Python reference", "", "`import codit` offers these names.", ""]
    for name, home in {**codit._HOME, "contrast": "", "chat_vector": ""}.items():
        kind = "autoclass" if name[0].isupper() else "autofunction" if home else "automodule"
        place = ".".join(filter(None, ("codit", home, name)))
        options = "" if kind == "autofunction" else "\n   :members:"
        lines += [f"## {name}", "", f"```{{eval-rst}}\n.. {kind}:: {place}{options}\n```", ""]
    return "\n".join(lines)


def commands() -> str:
    """Return the page of the command line: what each command says to `--help`."""
    text = "\n".join(itertools.chain(*map(helps, subcommands(told("--help")))))
    return f"# Command line\n\n`codit COMMAND --help` says the same.\n\n{text}"


def helps(*words: str) -> list[str]:
    """Return a command's help as a section, and those of its subcommands after it."""
    text = told(*words, "--help")
    inner = [helps(*words, name) for name in subcommands(text)]
    return [f"## codit {' '.join(words)}\n\n```text\n{text}\n```\n", *itertools.chain(*inner)]


def subcommands(text: str) -> list[str]:
    """Return the names of the commands that a help lists."""
    is_group = re.search(r"^\W*subcommands\W*$", text, re.M)
    found = re.search(r"\{([a-z,\s-]+)\}", text) if is_group else None
    return re.findall(r"[a-z-]+", found[1]) if found else []


def told(*words: str) -> str:
    """Return what the command line says, 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.main(words)
    return said.getvalue().rstrip()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
