"""README, figures and notebooks say the same: consistency, not that a claim holds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from codit import claims, committed, experiments, figures, notebook, recipes, store

ROOT = store.repository()
README = (ROOT / "README.md").read_text(encoding="utf-8")
SIDECARS = claims.sidecars()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FULL = experiments.scale("full")
TABLES = {recipes.key(recipe) for recipe, _ in committed.tables(FULL).values()}


def test_the_readme_s_tables_are_those_of_the_committed_figures() -> None:
    assert claims.readme(README) == README, "run `python -m codit.claims`"


def test_every_committed_figure_is_declared_by_a_notebook_and_every_declared_one_committed() -> (
    None
):
    declared = [name for path in NOTEBOOKS for name in notebook.declared_figures(path)]
    assert sorted(declared) == sorted(SIDECARS)


@pytest.mark.parametrize("name", SIDECARS)
def test_a_committed_figure_is_of_scale_full_at_a_clean_commit(name: str) -> None:
    record = SIDECARS[name]
    assert record["parameters"]["scale"] == "full"
    assert record["dirty"] is False
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])


@pytest.mark.parametrize("name", SIDECARS)
def test_a_committed_figure_is_made_from_today_s_recipes(name: str) -> None:
    parts = [one for group in SIDECARS[name]["results"].values() for one in group]
    assert parts
    studies = {"ResponseStudy", "StudentStudy", "AlignmentStudy", "TokenStudy", "TransferStudy"}
    assert FULL.dev is not None
    known = TABLES | {recipes.key(part) for part in (FULL.pair, FULL.decoding)}
    known |= {recipes.key(replace(FULL.dev, n=n)) for n in (100, FULL.dev.n)}
    known |= {recipes.key(experiments.arm(arm, FULL.decoding)) for arm in experiments.ARMS}
    known.add(recipes.key(recipes.File(path=str(ROOT / "data" / "results" / "throughput.json"))))
    for part in parts:
        assert part["key"] in known, "make the figures again: `make figures`"
        if part["recipe"]["recipe"] in studies:
            assert part["key"] in TABLES


@pytest.mark.parametrize("name", SIDECARS)
def test_a_verdict_agrees_with_the_interval_it_is_read_from(name: str) -> None:
    for claim in SIDECARS[name]["claims"]:
        found = re.match(r"^[^\[]*[+−-][\d.]+ \[([+-][\d.]+), ([+-][\d.]+)\]", claim["ours"])
        if found and claim["source"] != "ours (share)":
            low, high = map(float, found.groups())
            expected = None if low <= 0 <= high else low > 0
            # An end that rounds to zero may have been on either side of it.
            if 0 not in (low, high):
                assert claim["holds"] in (expected, None), claim


def test_a_verdict_on_speed_agrees_with_the_goal_and_the_quartiles_beside_it() -> None:
    checked = 0
    for claim in SIDECARS["21_throughput"]["claims"]:
        goal = re.search(r"at most ([\d.]+)(%?) of", claim["statement"])
        found = re.fullmatch(r"[\d.e-]+ \[([\d.e-]+), ([\d.e-]+)\]", claim["ours"])
        if goal and found:
            most = float(goal[1]) / (100 if goal[2] else 1)
            low, high = map(float, found.groups())
            if most not in (low, high):  # an end that was rounded may have been on either side
                assert claim["holds"] is (None if low < most < high else high < most), claim
                checked += 1
    assert checked


def test_the_first_claim_of_each_notebook_stands_in_the_figure_table() -> None:
    table = claims.figure_table()
    for path in NOTEBOOKS:
        first = SIDECARS[notebook.declared_figures(path)[0]]["claims"][0]
        assert f"({'notebooks/' + path.name})" in table
        assert first["ours"] in table


def test_the_plausibilities_of_the_scale_are_those_that_dev_chose() -> None:
    record = SIDECARS["02_alpha_tuning"]
    (chosen,) = [c for c in record["claims"] if "that dev prompts choose" in c["statement"]]
    assert chosen["holds"] is True


def test_a_missing_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected `<!-- figures"):
        claims.readme("# codit")


def test_a_title_that_does_not_say_what_it_reproduces_is_refused(tmp_path: Path) -> None:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 01 · A claim")])
    path = tmp_path / "01_a.ipynb"
    nbformat.write(made, path)
    with pytest.raises(ValueError, match=r"expected `\*\*Reproduces"):
        claims.reproduced(path)


def test_tables_are_written_between_their_marks_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = claims.MARKS
    parts = [mark.format(name) for name in ("figures", "claims") for mark in (begin, end)]
    text = f"above\n{parts[0]}\nOUTDATED\n{parts[1]}\nbetween\n{parts[2]}\n{parts[3]}\nbelow\n"
    found = claims.readme(text)
    assert found.startswith("above\n" + parts[0])
    assert found.endswith(parts[3] + "\nbelow\n")
    assert "OUTDATED" not in found
    assert claims.readme(found) == found
    record = json.loads((figures.folder() / "03_student_sft.json").read_text())
    assert record["claims"][0]["statement"] in found
