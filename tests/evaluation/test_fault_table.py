"""The committed table of a judge's faults is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import fault_table
from tests.fault_server import FAULTS, TEXT, said
from tests.fault_table import TABLE, does, written


def test_the_committed_table_of_faults_is_what_happens(tmp_path: Path) -> None:
    found = written(tmp_path)
    assert found == TABLE.read_text(encoding="utf-8"), "python -m tests.fault_table --commit"
    rows = re.findall(
        r"^\| (.+?) \| .* \| (\w+) \| none \| \d+ \| \d+ \| \d+ \| .+ \|$", found, re.M
    )
    assert [name for name, _ in rows] == list(FAULTS)
    assert found.endswith("\n| 5 | 2 | 7 | 12 | 0 |\n")


def test_a_number_that_a_fault_gave_would_stand_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAULTS, "prose alone", said(TEXT))
    found = fault_table.outcome("prose alone", tmp_path)
    assert (found.state, found.value, found.sent, found.paid, found.again) == ("ok", 8.0, 1, 1, 0)


def test_what_a_server_does_is_said_in_one_line() -> None:
    assert does(FAULTS["429 with Retry-After"]).startswith("429, Retry-After: 0.05: `{")
    assert does(FAULTS["white space"]) == '200: a completion, content: `" \\n"`'
    assert does(FAULTS["reasoning ate the budget"]) == (
        "200: a completion, content: `null`, reasoning: Let me think., finish_reason: length"
    )
