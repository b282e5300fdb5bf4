"""JupyterLab as a reader uses it: `make lab`'s server, a browser, notebook 00 run to its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests import browser

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "notebooks/00_quickstart.ipynb"
PICTURE = "figures/00_quickstart.png"
ASKED = "Where does Zaro live?"
MINUTE = 60_000  # milliseconds; a loaded machine may need several
# What cells say of themselves, in order: "[*]" while one runs or waits, "[3]" when it is done.
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.innerText)"
DONE = f"{PROMPTS}.length && {PROMPTS}.every(t => /^\\[\\d+\\]/.test(t))"
IDLE = "text=/\\| Idle$/"  # what the status bar says of a kernel that has started
PARAMETERS = f'''scale = "micro"
prompt = "{ASKED}"
strength = None
plausibility = None
seed = None'''


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of the server that `make lab` starts, on a copy of the notebook."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lab:.*\n\t\$\(BIN\)/python (.*) \$\(ARGS\)$", makefile, re.M)
    assert recipe is not None
    for name in (NOTEBOOK, PICTURE):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)  # all cells are in the page, not those in sight alone
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root"]
    flags += ["--IdentityProvider.token=secret"]
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "CODIT_FIGURES")
    environment = {**os.environ, **{name: str(tmp_path / name) for name in homes}}
    environment.pop("MPLBACKEND", None)  # the kernel's own draws into the page
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path / "settings")
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, *recipe[1].split(), *flags]
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            answered(f"{url}/api?token=secret", (tmp_path / "log"))
            yield f"{url}/lab/tree/{NOTEBOOK}?token=secret"
        finally:
            server.terminate()
            server.wait(60)


def answered(url: str, log: Path, seconds: float = 300) -> None:
    """Wait until a server on loopback answers."""
    end = monotonic() + seconds
    while monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                assert json.load(reply)["version"]
                return
        except OSError:
            sleep(0.5)
    pytest.fail(log.read_text())


def run_all(page: Any) -> None:
    """Choose Run All Cells in the menu Run, and wait until the last cell is done."""
    page.get_by_role("menuitem", name="Run", exact=True).first.click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(f"{PROMPTS}.some(t => t.includes('*'))", timeout=MINUTE)
    page.wait_for_function(DONE, timeout=5 * MINUTE)
    assert page.locator(".jp-RenderedText[data-mime-type*=error]").count() == 0


@pytest.mark.long
def test_notebook_00_runs_and_its_prompt_and_its_widget_can_be_changed(
    address: str, tmp_path: Path
) -> None:
    with browser.chromium() as chromium:
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(address, timeout=2 * MINUTE)
        page.wait_for_selector(".jp-CodeCell", timeout=2 * MINUTE)
        page.wait_for_selector(IDLE, timeout=2 * MINUTE)
        page.screenshot(path=tmp_path / "opened.png")
        assert page.locator(".jp-MarkdownOutput img").first.evaluate("i => i.naturalWidth") > 400
        run_all(page)
        picture = page.locator(".jp-OutputArea-output img").last
        assert picture.evaluate("i => i.naturalWidth") > 400
        coloured = "[...document.querySelectorAll('.jp-OutputArea-output td')].filter(c => "
        coloured += "getComputedStyle(c).backgroundColor.startsWith('rgb(')).length"
        assert page.evaluate(coloured) > 3
        explore(page, tmp_path)
        page.locator(".jp-CodeCell .cm-content", has_text="prompt = None").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(PARAMETERS)
        run_all(page)
        assert page.locator(".jp-OutputArea-output td", has_text=ASKED).count() > 0
        assert ASKED in page.locator(".widget-text input").first.input_value()
        page.screenshot(path=tmp_path / "again.png")


def explore(page: Any, tmp_path: Path) -> None:
    """Move the widget's sliders and type a prompt; the answer and the distributions change."""
    shown = page.locator(".widget-html-content", has_text="CoDIT")  # not a progress bar's label
    shown.scroll_into_view_if_needed()
    colours = "all => new Set(all.map(e => getComputedStyle(e).backgroundColor)).size"
    assert shown.locator("span[title]").evaluate_all(colours) > 2
    page.screenshot(path=tmp_path / "widget.png")
    strength = page.locator(".widget-slider", has_text="strength").locator("[role=slider]")
    before = shown.inner_html()
    strength.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    changed(page, before)
    before = shown.inner_html()
    page.locator(".widget-text input").first.fill("Where does Zaro live?")
    page.keyboard.press("Enter")
    changed(page, before)
    assert "Zaro" in shown.inner_text()
    page.screenshot(path=tmp_path / "widget-moved.png")


def changed(page: Any, before: str) -> None:
    """Wait until the widget's picture is another."""
    picture = "[...document.querySelectorAll('.widget-html-content')]"
    picture += ".find(e => e.innerText.includes('CoDIT'))"
    page.wait_for_function(f"b => {picture}.innerHTML !== b", arg=before, timeout=MINUTE)
