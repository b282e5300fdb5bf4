"""The book as a reader sees it: three pages of questions and all others, in a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from codit.paper import run
from tests import browser

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ("00_quickstart", "03_student_sft", "21_throughput")
PHONE = {"width": 390, "height": 844}
# Tables, code and formulas that are wider than the screen, and cannot be scrolled to their end.
CUT = """[...document.querySelectorAll("article table, article pre, article math")].filter(e => {
    const scrolls = a => ["auto", "scroll"].includes(getComputedStyle(a).overflowX);
    for (let a = e; a; a = a.parentElement) if (scrolls(a)) return false;
    return e.getBoundingClientRect().right > innerWidth;
}).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book with three questions; made once, for all workers of a session."""
    pytest.importorskip("myst_nb", reason="the extra `book` has it")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "book.lock"):
        if not (folder / "book" / "html" / "objects.inv").exists():
            build(folder / "book")
    return folder / "book" / "html"


def build(folder: Path) -> None:
    """Build it from the notebooks that `make figures` executed, or else afresh."""
    executed = folder / "executed"
    executed.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODIT_FIGURES", str(folder / "figures"))
        patch.delenv("MPLBACKEND", raising=False)  # the kernel's own draws into the page
        for name in SAMPLE:
            path = ROOT / "notebooks" / f"{name}.ipynb"
            made = path.parent / "executed" / "full" / path.name
            if made.is_file():
                shutil.copy(made, executed)
            else:
                assert run.bring_up_to_date(path, {"scale": "full"}, out=executed) == "executed"
    # Sphinx says so, and fails, where a page, a picture or a docstring cannot be read.
    program = "import sys; from pathlib import Path; from book import pages; "
    program += "sys.exit(pages.main(*map(Path, sys.argv[1:])))"
    command = [sys.executable, "-c", program, str(folder), str(executed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as started:
        yield started


def pages(book: Path) -> list[Path]:
    return sorted(
        path for path in book.rglob("*.html") if "_" not in path.relative_to(book).parts[0]
    )


def test_a_page_begins_with_its_question_and_the_answer_with_its_interval(book: Path) -> None:
    page = (book / "notebooks" / "03_student_sft.html").read_text(encoding="utf-8")
    text = re.sub(r"\s*<[^>]+>\s*", " ", page.partition("<h1>")[2])
    assert text.split("¶")[0].strip() == "Does contrast make better students?"
    assert re.search(r"\[[+-]?\d\.\d+, [+-]?\d\.\d+\]", text[:600])
    assert text.index("holds") < text.index("03 · Students")


def test_the_book_holds_every_command_and_every_public_name(book: Path) -> None:
    import codit

    commands = (book / "cli.html").read_text(encoding="utf-8")
    for name in ("synthesize", "chat-vector cosine", "train", "reproduce"):
        assert re.search(rf"<h2>codit {name}", commands)
    assert commands.count("usage: codit") > 10
    api = (book / "api.html").read_text(encoding="utf-8")
    for name, home in codit._HOME.items():
        assert f'id="codit.{home}.{name}"' in api
    assert 'id="codit.chat_vector.cosines"' in api


def test_outputs_and_coloured_tokens_are_in_place(book: Path) -> None:
    page = (book / "notebooks" / "00_quickstart.html").read_text(encoding="utf-8")
    assert page.count("dataframe") >= 2
    assert re.search(r"background-color: #[0-9a-f]{6}", page)
    assert re.search(r'<img alt="Figure: What happens at a step\?"', page)


def test_every_page_opens_without_errors_and_every_picture_has_words(
    book: Path, chromium: Any
) -> None:
    said: list[str] = []
    page = chromium.new_page()
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    assert len(pages(book)) > 15
    for path in pages(book):
        page.goto(path.as_uri())
        bare = page.eval_on_selector_all("img", "all => all.filter(i => !i.alt).map(i => i.src)")
        assert (path.name, said, bare) == (path.name, [], [])


def test_on_a_phone_what_is_wide_scrolls_and_the_page_does_not(book: Path, chromium: Any) -> None:
    page = chromium.new_page(viewport=PHONE)
    for path in pages(book):
        page.goto(path.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        assert (path.name, width, page.evaluate(CUT)) == (path.name, PHONE["width"], [])


def test_it_is_dark_where_the_reader_s_screen_is(book: Path, chromium: Any) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        page = chromium.new_page(color_scheme=scheme)
        page.goto((book / "notebooks" / "00_quickstart.html").as_uri())
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert shades["light"] > 700
    assert shades["dark"] < 100
