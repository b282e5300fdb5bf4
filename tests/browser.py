"""Chromium without a window, for tests; where it is absent they are skipped, with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser: Playwright's sync API on the machine's own Chromium."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium`")
    api = pytest.importorskip("playwright.sync_api", reason="the extra `dev` has playwright")
    with api.sync_playwright() as playwright:
        # As root, and in containers, Chromium starts without its sandbox only.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
