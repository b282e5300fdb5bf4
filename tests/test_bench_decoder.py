"""The benchmark of the decoder: what is compared is the same work, and what is told is told."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig

from codit import decode
from codit.contrast import plausible
from codit.engine.memory import n_weights
from codit.files import write_json
from codit.paper import shipped
from codit.recipes import Decoding
from tests.benchmarks import bench_decoder, random_pairs
from tests.benchmarks.bench_decoder import Case
from tests.benchmarks.random_pairs import SHAPES, Shape

TINY = Shape("tiny", "qwen3", 2, 8, 2, 1, 4, 16, 64)
LARGEST = [("qwen3-8b", 256), ("gemma3-27b", 16)]


def prompts(shape: Shape, rows: int = 5, tokens: int = 4) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randint(1, shape.vocabulary, (rows, tokens), generator=noise)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("gemma3-27b", 27_009_346_304),
    ],
)
def test_a_shape_has_as_many_parameters_as_the_model_it_is_named_after(
    name: str, published: int
) -> None:
    assert n_weights(random_pairs.config(SHAPES[name])) == published


def test_the_embedded_pair_s_shape_is_that_of_the_embedded_pair() -> None:
    config = AutoConfig.from_pretrained(shipped.folder("expert"))
    made = random_pairs.config(SHAPES["micro"])
    for field in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "head_dim"):
        assert getattr(made, field) == getattr(config, field)
    assert n_weights(made) == n_weights(config)


def test_a_gpu_s_plan_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, lengths = bench_decoder.plan("cuda")
    assert lengths is None
    assert {case.shape.dtype for case in cases} == {"bfloat16"}
    largest = [case for case in cases if (case.shape.name, case.rows) in LARGEST]
    for free, fitting in ((80e9, LARGEST[:1]), (140e9, LARGEST)):
        monkeypatch.setattr(bench_decoder, "free_bytes", lambda device, free=free: free)
        fit = [case for case in largest if bench_decoder.fits(case, "cuda")]
        assert [(case.shape.name, case.rows) for case in fit] == fitting


def test_a_quick_benchmark_measures_less_and_a_named_shape_is_kept() -> None:
    quick, _ = bench_decoder.plan("cpu", quick=True)
    assert {case.shape.name for case in quick} == {"llama-small", "micro"}
    assert len(bench_decoder.plan("cuda", quick=True)[0]) == 1
    named, _ = bench_decoder.plan("cpu", ("qwen3-0.6b",), quick=True)
    assert [case.shape.name for case in named] == ["qwen3-0.6b"]
    with pytest.raises(ValueError, match="expected shapes among .*; got .'huge'"):
        bench_decoder.plan("cpu", ("huge",))


def test_only_a_full_run_on_a_cpu_is_committed() -> None:
    with pytest.raises(ValueError, match="expected a full run on a CPU with --commit"):
        bench_decoder.main(quick=True, commit=True)


def test_what_is_compared_is_the_median_of_the_rounds_own_ratios() -> None:
    slow = np.array([1.0, 1.0, 9.0, 1.0, 4.0])  # moves both sides and no ratio
    times = pd.DataFrame({"a": [1.0, 8.0, 3.0, 2.0, 6.0], "b": [2.0, 2.0, 2.0, 1.0, 4.0]})
    for noise in (1.0, slow):
        found = bench_decoder.quartiles(noise * times["a"] / (noise * times["b"]))
        assert found == {"value": 1.5, "low": 1.5, "high": 2.0}


def test_everything_is_measured_in_turn_after_a_turn_that_does_not_count() -> None:
    order, clock = [], itertools.count()

    def way(name: str) -> dict[str, float]:
        order.append(name)
        return {name: float(next(clock))}

    found = bench_decoder.in_turn({"a": lambda: way("a"), "b": lambda: way("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert found.to_dict("list") == {"a": [2.0, 4.0], "b": [3.0, 5.0]}


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text"])
def test_the_expert_finds_a_realistic_number_of_ids_plausible(architecture: str) -> None:
    expert = random_pairs.pair(replace(SHAPES["micro"], architecture=architecture, layers=2)).expert
    logits = expert(prompts(SHAPES["micro"], rows=16)).logits[:, -1]
    assert 16 < plausible(logits, plausibility=0.01).sum(-1).float().mean() < 64


def test_the_naive_pair_and_ours_draw_the_same_tokens_for_equal_noise() -> None:
    pair = random_pairs.pair(replace(SHAPES["micro"], vocabulary=400))
    asked = prompts(TINY, rows=16)
    drawn, _ = bench_decoder.ours(pair, random_pairs.tokenizer(400), asked, 12)
    choose = bench_decoder.naive_choice(bench_decoder.keys(asked))
    naive, seconds = bench_decoder.two_forwards((pair.expert, pair.amateur), asked, 12, choose)
    assert naive.tolist() == drawn, "and nothing stops a random pair"
    assert len({tuple(row) for row in drawn}) == 16
    assert seconds > 0


@pytest.mark.parametrize("cached", [True, False])
def test_an_amateur_in_a_processor_samples_the_same_distribution(cached: bool) -> None:
    pair = random_pairs.pair(replace(TINY, vocabulary=40), n_plausible=5)
    models = (pair.expert, pair.amateur)
    asked = prompts(TINY, rows=1, tokens=4).remainder(40).clamp(min=1)
    torch.manual_seed(0)
    made, seconds = bench_decoder.with_processor(models, asked.expand(400, -1), 2, cached=cached)
    assert made.shape == (400, 2)
    assert seconds > 0
    expected = pair(asked).logits[0, -1].exp().detach()
    counts = made[:, 0].bincount(minlength=40) / 400
    assert (counts - expected).abs().max() < 0.1
    for first in made[:, 0].unique():
        text = torch.cat([asked, first[None, None]], dim=1)
        allowed = pair(text).logits[0, -1].isfinite()
        assert allowed[made[made[:, 0] == first, 1]].all()


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_a_pair_that_counts_down_writes_as_many_tokens_as_it_is_asked_for(engine: str) -> None:
    pair, tokenizer = random_pairs.countdown(SHAPES["micro"]), random_pairs.tokenizer(1536)
    asked = [3, 17, 5]
    chats = [random_pairs.chat([row + 1, length]) for row, length in enumerate(asked)]
    decoding = Decoding(max_new_tokens=32)
    found = decode.generate(pair, tokenizer, chats, decoding, engine=engine, progress=False)
    assert [one.token_ids for one in found] == [list(range(n - 1, -1, -1)) for n in asked]
    assert all(one.is_completed for one in found)


def test_lengths_have_a_long_tail_and_repeat() -> None:
    found = random_pairs.lengths(256, 33, most=1535)
    assert found == random_pairs.lengths(256, 33, most=1535)
    assert 25 < np.median(found) < 42
    assert max(found) > 8 * np.median(found)
    assert max(random_pairs.lengths(256, 33, most=40)) == 40


def test_the_goal_is_that_of_the_shape_else_of_any_and_only_ours_has_one() -> None:
    assert bench_decoder.goal("step", "qwen3-0.6b", "ours") == 0.85
    assert bench_decoder.goal("step", "small", "ours") == 1.0
    assert bench_decoder.goal("arithmetic", "micro", "ours") is None
    assert bench_decoder.goal("step", "small", "naive") is None


MEASURED = {
    ("step", "ours"), ("step", "naive"), ("arithmetic", "ours"), ("arithmetic", "naive"),
    ("rate", "uncached"), ("rate", "cached"), ("milliseconds", "ours"), ("milliseconds", "plain"),
    ("milliseconds", "naive"), ("tokens", "ours"), ("plausible", "expert"),
    ("engines", "static"), ("lengths", "middle half"), ("lengths", "longest"),
}  # fmt: skip


def test_one_round_of_the_smallest_shape_tells_what_was_measured_where_and_when(
    tmp_path: Any,
) -> None:
    case = Case(SHAPES["micro"], rows=2, tokens=3, rounds=1)
    found = bench_decoder.measure([case], (6, 3, 4, 1), "cpu")
    assert set(found["machine"]) == {"device", "cores", "threads", "system"}
    assert found["versions"]["torch"] == torch.__version__
    rows = pd.DataFrame(found["rows"])
    assert rows["value"].between(rows["low"], rows["high"]).all()
    assert set(zip(rows["quantity"], rows["way"], strict=True)) == MEASURED
    goals = rows.dropna(subset=["goal"])
    assert goals[["quantity", "way", "goal"]].values.tolist() == [["step", "ours", 1.0]]
    assert len(bench_decoder.table(found["rows"]).splitlines()) == len(rows) + 1
    told = json.loads(write_json(tmp_path / "found.json", found).read_text())
    kept = json.loads(bench_decoder.COMMITTED.read_text())
    assert told.keys() == kept.keys()
    assert told["rows"][0].keys() == kept["rows"][0].keys()


def test_the_committed_numbers_are_of_all_that_is_measured() -> None:
    kept = json.loads(bench_decoder.COMMITTED.read_text())
    cases, _ = bench_decoder.plan("cpu")
    assert kept["cases"] == json.loads(json.dumps([asdict(case) for case in cases]))
    packed = {("step", "unpacked"), ("milliseconds", "packing")}
    assert {(row["quantity"], row["way"]) for row in kept["rows"]} == MEASURED | packed
