"""Engines side by side: run here or in another Python, compared, and never with other rows."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codit import decode, engine_runs, engine_study, engine_tables
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from tests import tiny

GREEDY = Decoding(temperature=0.0, plausibility=0.1, max_new_tokens=6)
CHATS = [[{"role": "user", "content": text}] for text in ("the cat", "is it in")]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    expert, amateur = tiny.save_pair(tmp_path_factory.mktemp("pair"), "llama")
    return {
        "expert": str(expert),
        "amateur": str(amateur),
        "chats": CHATS,
        "decodings": {
            "greedy": asdict(GREEDY),
            "sampled": asdict(replace(GREEDY, temperature=1.0)),
        },
        "repeats": 2,
    }


def test_another_python_answers_as_this_one(request_: dict[str, Any]) -> None:
    here = engine_runs.run(["static"], **request_)["static"]
    there = engine_runs.ask(sys.executable, {**request_, "engines": ["static"]})["static"]
    assert there["answers"] == here["answers"]
    assert there["samples"] == here["samples"]
    assert (len(there["seconds"]), len(there["samples"]), there["standins"]) == (2, 3, False)
    pair = ContrastivePair.from_pretrained(request_["expert"], request_["amateur"])
    expected = decode.generate(pair, tiny.tokenizer(), CHATS, GREEDY, progress=False)
    for row, one in zip(here["answers"]["greedy"], expected, strict=True):
        assert [int(token) for token in row["tokens"].split()] == one.token_ids
        found = [float(value) for value in row["logprobs"].split()]
        assert found == pytest.approx(one.logprobs, abs=1e-5)


def test_both_library_engines_share_their_noise(request_: dict[str, Any]) -> None:
    runs = engine_runs.run(["static", "continuous"], **request_)
    tokens = [[row["tokens"] for row in run["answers"]["sampled"]] for run in runs.values()]
    assert tokens[0] == tokens[1]


def test_a_python_that_is_not_there_or_fails_is_told_in_one_line(
    request_: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is none at .*nowhere"):
        engine_runs.ask(tmp_path / "nowhere", {**request_, "engines": ["static"]})
    wrong = {**request_, "expert": str(tmp_path / "none"), "engines": ["static"]}
    with pytest.raises(ChildProcessError, match="ended with status 1: .*there is no such folder"):
        engine_runs.ask(sys.executable, wrong)


def row(tokens: list[int], logprobs: list[float]) -> dict[str, Any]:
    return {"tokens": tokens, "logprobs": logprobs}


def test_agreement_is_over_whole_answers_first_tokens_and_common_prefixes() -> None:
    one = [row([1, 2, 3], [-1.0, -2.0, -3.0]), row([4, 5], [-1.0, -1.0])]
    other = [row([1, 2, 9], [-1.0, -2.5, -9.0]), row([4, 5], [-1.0, -1.25])]
    runs = {"a": {"answers": {"greedy": one}}, "b": {"answers": {"greedy": other}}}
    (found,) = engine_tables.agreement(runs, "greedy", first=2).to_dict("records")
    assert (found["same"], found["begin"], found["shared"]) == (0.5, 1.0, 4)
    assert found["apart"] == 0.5, "the third token differs, so its log q is not compared"


def test_agreement_needs_the_same_prompts() -> None:
    runs = {
        "a": {"answers": {"greedy": [row([1], [-1.0])]}},
        "b": {"answers": {"greedy": []}},
    }
    with pytest.raises(ValueError, match="got 1 of a and 0 of b"):
        engine_tables.agreement(runs, "greedy")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.1, 0.1, True), (-0.05, 0.2, None), (0.11, 0.2, False), (-0.3, -0.2, False)],
)
def test_a_difference_is_small_where_its_whole_interval_is(low, high, expected) -> None:
    assert engine_tables.within(low, high, 0.1) is expected


def test_rates_are_tokens_over_seconds_turn_by_turn() -> None:
    run = {"tokens": [10, 30, 20], "seconds": [1.0, 2.0, 1.0], "standins": True, "origin": "here"}
    (found,) = engine_tables.rates({"vllm": run}).to_dict("records")
    assert (found["value"], found["standins"], found["origin"]) == (15.0, True, "here")
    other = {**run, "seconds": [2.0, 4.0, 2.0]}
    assert engine_tables.quicker({"a": run, "b": other}, "a", "b")["value"] == 2.0


def test_samples_compare_prompt_by_prompt() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 40))
    runs = {
        name: {"samples": [{"logprobs": turn + up, "lengths": turn * 0 + 3} for turn in noise]}
        for name, up in (("static", 0.0), ("vllm", 0.5))
    }
    table = engine_tables.samples(runs).set_index(["engine", "measure"])
    found = table.loc["vllm", engine_tables.MEASURES["logprobs"]]
    assert found["difference"] == pytest.approx(0.5)
    assert found["difference_high"] - found["difference_low"] < 1e-6
    assert np.isnan(table.loc["static", engine_tables.MEASURES["lengths"]]["difference"])


def test_committed_rows_of_another_recipe_are_refused() -> None:
    full = engine_study.recipe("full")
    rows = engine_study.committed_rows(full)
    assert len(rows["answers"]["greedy"]) == 100
    few = engine_study.recipe("full", n_prompts=7)
    assert engine_study.committed_rows(few) == rows, "the first ones will do"
    other = replace(full, greedy=replace(full.greedy, plausibility=0.5))
    with pytest.raises(ValueError, match="they differ in greedy"):
        engine_study.committed_rows(other)


def test_the_origin_tells_when_and_where_committed_rows_were_taken() -> None:
    runs = engine_study.study(engine_study.recipe("full"))
    assert list(runs) == ["static", "continuous", "vllm"]
    assert runs["static"]["origin"].startswith("committed, taken on 20")
    assert runs["vllm"]["origin"].endswith("stand-in kernels") == runs["vllm"]["standins"]


def test_the_three_engines_committed_answers_are_the_same() -> None:
    greedy = engine_tables.agreement(engine_study.study(engine_study.recipe("full")), "greedy")
    assert (greedy["same"] == 1).all()
    assert greedy["apart"].max() < 1e-4
