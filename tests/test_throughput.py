"""Speed: what is counted is counted right, what is compared is the same work, what moves moves."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codit import (
    decode,
    limits,
    random_pairs,
    recipes,
    rivals,
    speed_tables,
    step_times,
    throughput,
    transport,
)
from codit.limits import Speed
from codit.random_pairs import Shape
from codit.recipes import Decoding
from codit.step_times import Case
from codit.throughput import Throughput
from tests.benchmarks import bench_decoder

SHAPES = random_pairs.shapes()
TINY = Shape(
    name="tiny", layers=2, hidden=8, heads=2, kv_heads=1, head_size=4, intermediate=16,
    vocabulary=64,
)  # fmt: skip
# One layer: q 8·8, k and v 8·4 each, o 8·8, three MLP products 8·16, two norms of 8, and Qwen3's
# norms of q and k, 4 each. Then the last norm and the head, 64·8.
LAYER = 64 + 32 + 32 + 64 + 3 * 128 + 16 + 8
READ = 2 * LAYER + 8 + 64 * 8
SPEED = Speed(device="none", bytes_per_second=1e9, flops_per_second=1e10, source="a test")


def prompts(shape: Shape, rows: int = 5, tokens: int = 4) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randint(1, shape.vocabulary, (rows, tokens), generator=noise)


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_of_a_step_are_counted_as_by_hand(tied: bool) -> None:
    config = random_pairs.config(replace(TINY, tied=tied))
    assert limits.n_read(config) == READ
    assert limits.n_weights(config) == READ + (0 if tied else 64 * 8)


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
    assert limits.n_weights(random_pairs.config(SHAPES[name])) == published


def test_the_embedded_pair_s_shape_is_that_of_the_embedded_pair() -> None:
    from transformers import AutoConfig

    from codit import shipped

    config = AutoConfig.from_pretrained(shipped.folder("expert"))
    made = random_pairs.config(SHAPES["micro"])
    for field in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "head_dim"):
        assert getattr(made, field) == getattr(config, field)
    assert limits.n_weights(made) == limits.n_weights(config)


def test_the_bytes_of_a_step_are_weights_once_and_both_caches() -> None:
    configs = [random_pairs.config(TINY)] * 2
    token = 2 * 2 * 1 * 4 * 4  # keys and values, layers, heads, head size, float32
    found = limits.bytes_per_step(configs, rows=3, context=10, itemsize=4)
    assert found == 2 * (READ * 4 + 3 * 10 * token)
    fewer = limits.bytes_per_step(configs, rows=3, context=10, itemsize=4, unread=60)
    assert found - fewer == 60 * 8 * 4


def test_the_operations_of_a_step_are_two_a_weight_and_those_of_attention() -> None:
    configs = [random_pairs.config(TINY)] * 2
    found = limits.flops_per_step(configs, rows=3, context=10)
    assert found == 3 * 2 * (2 * READ + 4 * 2 * 2 * 4 * 10)
    assert found - limits.flops_per_step(configs, rows=3, context=10, unread=5) == 3 * 2 * 5 * 8


def test_a_gpu_needs_at_least_the_time_to_read_both_models() -> None:
    configs = [random_pairs.config(SHAPES["qwen3-8b"])] * 2
    found = limits.least_milliseconds(configs, rows=1, context=1, itemsize=2)
    weights = 2 * 2 * (8_190_735_360 - 151_936 * 4096)
    assert found["H100"] == pytest.approx(1000 * weights / 3.35e12, rel=1e-4)
    many = limits.least_milliseconds(configs, rows=10_000, context=1, itemsize=2)
    assert many["H100"] == many["H200"], "then operations decide"


def test_a_mixture_of_experts_has_no_fixed_bytes() -> None:
    from tests import tiny

    with pytest.raises(ValueError, match="expected a model of dense layers; got qwen3_moe"):
        limits.n_read(tiny.config("qwen3_moe"))


def test_a_gpu_s_plan_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = throughput.recipe("paper")
    assert plan.device == "cuda"
    assert {case.shape.dtype for case in plan.cases} == {"bfloat16"}
    monkeypatch.setattr(step_times, "free_bytes", lambda device: 80e9)
    fit = {(case.shape.name, case.rows) for case in plan.cases if step_times.fits(case, "cuda")}
    assert fit == {("qwen3-8b", rows) for rows in (1, 4, 16, 64, 256)}
    monkeypatch.setattr(step_times, "free_bytes", lambda device: 140e9)
    assert all(step_times.fits(case, "cuda") for case in plan.cases)


def test_a_gpu_s_speed_is_its_datasheet_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert limits.speed("cuda").bytes_per_second == 3.35e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    with pytest.raises(ValueError, match="expected a GPU among H100, H200 .SXM.; got NVIDIA H100"):
        limits.speed("cuda")


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    times = pd.DataFrame({"a": [1.0, 8.0, 3.0, 2.0, 6.0], "b": [2.0, 2.0, 2.0, 1.0, 4.0]})
    assert step_times.ratio(times, "a", "b") == {"value": 1.5, "low": 1.5, "high": 2.0}


def test_a_slow_round_moves_both_sides_and_no_ratio() -> None:
    slow = np.array([1.0, 1.0, 9.0, 1.0, 4.0])
    times = pd.DataFrame({"a": 0.5 * slow, "b": slow})
    assert step_times.ratio(times, "a", "b") == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_a_round_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number for each round"):
        step_times.quartiles([1.0, float("nan")])


def test_everything_is_measured_in_turn_after_a_turn_that_does_not_count() -> None:
    order, clock = [], itertools.count()

    def way(name: str) -> dict[str, float]:
        order.append(name)
        return {name: float(next(clock))}

    found = step_times.in_turn({"a": lambda: way("a"), "b": lambda: way("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert found.to_dict("list") == {"a": [2.0, 4.0], "b": [3.0, 5.0]}


def test_the_expert_finds_a_realistic_number_of_ids_plausible() -> None:
    pair, found = random_pairs.pair(SHAPES["micro"])
    assert 16 < found < 64
    tokenizer = random_pairs.tokenizer(1536)
    asked = prompts(SHAPES["micro"], rows=8)
    drawn, _ = rivals.ours(pair, tokenizer, asked, 9)
    assert {len(row) for row in drawn} == {9}, "nothing stops a random pair"
    texts = torch.cat([asked, torch.tensor(drawn)], dim=1)
    assert 8 < step_times.plausible_ids(pair, texts, 4) < 128


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_the_expert_of_another_architecture_is_sharpened_too(architecture: str) -> None:
    shape = replace(SHAPES["micro"], architecture=architecture, layers=2)
    assert 16 < random_pairs.pair(shape)[1] < 64


def test_the_naive_pair_and_ours_draw_the_same_tokens_for_equal_noise() -> None:
    pair, _ = random_pairs.pair(replace(SHAPES["micro"], vocabulary=400))
    asked = prompts(TINY, rows=16)
    drawn, _ = rivals.ours(pair, random_pairs.tokenizer(400), asked, 12)
    choose = rivals.naive_choice(rivals.keys(asked), plausibility=rivals.PLAUSIBILITY)
    naive, seconds = rivals.two_forwards((pair.expert, pair.amateur), asked, 12, choose)
    assert naive.tolist() == drawn
    assert len({tuple(row) for row in drawn}) == 16
    assert seconds > 0


@pytest.mark.parametrize("cached", [True, False])
def test_an_amateur_in_a_processor_samples_the_same_distribution(cached: bool) -> None:
    pair, _ = random_pairs.pair(replace(TINY, vocabulary=40), n_plausible=5)
    models = (pair.expert, pair.amateur)
    asked = prompts(TINY, rows=1, tokens=4).remainder(40).clamp(min=1)
    torch.manual_seed(0)
    made, seconds = rivals.with_processor(
        models, asked.expand(400, -1), 2, plausibility=0.01, cached=cached
    )
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
    found = throughput.lengths(256, 33, most=1535)
    assert found == throughput.lengths(256, 33, most=1535)
    assert 25 < np.median(found) < 42
    assert max(found) > 8 * np.median(found)
    assert max(throughput.lengths(256, 33, most=40)) == 40


@pytest.mark.parametrize(("rows", "vocabulary"), [(3, 50), (8, 20_000)])
def test_the_transport_moves_the_bytes_that_it_claims(rows: int, vocabulary: int) -> None:
    seconds, moved = transport.seconds_per_step(rows, vocabulary, steps=4)
    assert len(seconds) == 4
    assert moved == 2 * transport.matrix_bytes(rows, vocabulary) == 2 * 2 * rows * vocabulary


def test_the_authors_batch_moves_121_megabytes_a_step() -> None:
    assert 2 * transport.matrix_bytes(200, 151_936) == 121_548_800


def test_a_process_that_ends_early_is_an_error_and_no_wait() -> None:
    import socket

    one, other = socket.socketpair()
    with one:
        other.sendall(b"half")
        other.close()
        with pytest.raises(ConnectionError, match="expected 8 bytes .* got 4 before it closed"):
            transport.receive(one, bytearray(8))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A measurement of a tiny pair, written and read again."""
    case = Case(shape=TINY, rows=2, tokens=3, rounds=2)
    recipe = Throughput(cases=(case,), transports=((2, 64),), moves=2, lengths=(6, 3, 4), rounds=2)
    path = tmp_path_factory.mktemp("measured") / throughput.FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "BUFFER", 2**16)
        patch.setattr(limits, "SIDE", 64)
        throughput.write(throughput.measure(recipe), path)
    return throughput.read(path)


def test_a_measurement_says_what_was_measured_where_and_when(found: dict[str, Any]) -> None:
    assert set(found["machine"]) == {"device", "cores", "threads", "system"}
    assert found["speed"]["bytes_per_second"] > 0
    assert found["versions"]["torch"] == torch.__version__
    rows = found["rows"]
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    measured = set(zip(rows["quantity"], rows["way"], strict=True))
    assert {("step", "ours"), ("step", "naive"), ("arithmetic", "ours"), ("arithmetic", "naive"),
            ("rate", "uncached"), ("rate", "cached"), ("limit", "bytes"), ("limit", "FLOP"),
            ("transport", "ours"), ("transport", "authors'"), ("engines", "static"),
            ("lengths", "longest"), ("plausible", "expert")} <= measured  # fmt: skip
    goals = rows.dropna(subset=["goal"])
    assert goals[["quantity", "way", "goal"]].values.tolist() == [["step", "ours", 1.0]]


def test_goals_are_those_of_the_shape() -> None:
    assert throughput.goal("step", "qwen3-0.6b", "ours") == 0.85
    assert throughput.goal("step", "small", "ours") == 1.0
    assert throughput.goal("arithmetic", "qwen3-0.6b", "ours") == 0.005
    assert throughput.goal("arithmetic", "micro", "ours") is None
    assert throughput.goal("step", "small", "naive") is None


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.7, 0.85, True), (0.8, 0.9, None), (0.86, 0.9, False)]
)
def test_a_goal_is_reached_where_the_whole_middle_half_is_at_most_it(
    low: float, high: float, expected: bool | None
) -> None:
    assert speed_tables.reached({"low": low, "high": high}, 0.85) is expected


def test_what_is_plotted_is_relative_to_ours(found: dict[str, Any]) -> None:
    rows = found["rows"]
    table = speed_tables.beside(rows)
    assert list(speed_tables.steps(rows)["way"]) == ["ours", "naive"]
    (cached,) = table[table["way"] == "amateur in a processor, cached"].to_dict("records")
    (rate,) = rows[(rows["quantity"] == "rate") & (rows["way"] == "cached")].to_dict("records")
    assert cached["value"] == 1 / rate["value"]
    assert cached["low"] <= cached["value"] <= cached["high"]


def test_the_transport_is_added_to_our_step_of_its_size() -> None:
    base = {"shape": "small", "batch": 8, "unit": "ms per step"}
    ends = {"value": 30.0, "low": 20.0, "high": 40.0}
    moved = {**base, "quantity": "transport", "way": "authors'", **ends}
    rows = pd.DataFrame(
        [
            {**base, "quantity": "milliseconds", "way": "ours", **ends},
            {**moved, "shape": "V = 151,936"},
            {**moved, "shape": "V = 151,936", "batch": 200},
        ]
    )
    (one,) = speed_tables.beside(rows).to_dict("records")
    assert one["case"] == "small, B = 8"
    assert (one["value"], one["low"], one["high"]) == (0.5, 30 / 70, 0.6)


def test_a_figure_is_drawn_of_every_case(found: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    step = speed_tables.steps(found["rows"])
    speed_tables.draw_steps(left, step)
    speed_tables.draw_beside(right, speed_tables.beside(found["rows"]), list(step["case"]))
    shown = [one.get_text() for one in right.get_yticklabels()]
    assert shown == ["tiny, B = 2", "micro, B = 3"]
    assert right.get_xscale() == "log"


def test_the_store_keeps_a_measurement_and_does_not_measure_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]
) -> None:
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(throughput, "measure", lambda recipe: calls.append(recipe) or found)
    recipe = throughput.recipe("micro", rounds=1)
    assert {case.rounds for case in recipe.cases} == {1} == {recipe.rounds}
    for _ in range(2):
        pd.testing.assert_frame_equal(throughput.study(recipe)["rows"], found["rows"])
    assert calls == [recipe]


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of the scales micro, .*; got 'huge'"):
        throughput.recipe("huge")


def test_every_scale_s_recipe_has_a_key_of_its_own() -> None:
    keys = {recipes.key(throughput.recipe(name)) for name in ("micro", "full", "laptop", "paper")}
    assert len(keys) == 4


def test_a_quick_benchmark_measures_less_and_a_named_shape_is_kept() -> None:
    quick = bench_decoder.chosen("cpu", (), quick=True)
    assert {case.shape.name for case in quick.cases} == {"llama-small", "micro"}
    assert len(bench_decoder.chosen("cuda", (), quick=True).cases) == 1
    named = bench_decoder.chosen("cpu", ("qwen3-0.6b",), quick=True)
    assert [case.shape.name for case in named.cases] == ["qwen3-0.6b"]
    assert bench_decoder.chosen("cpu", (), quick=False) == throughput.recipe("full")
    assert bench_decoder.chosen("cuda", (), quick=False) == throughput.recipe("paper")
    with pytest.raises(ValueError, match="expected shapes among .*; got .'huge'"):
        bench_decoder.chosen("cpu", ("huge",), quick=False)


def test_the_table_of_the_benchmark_has_a_line_per_number(found: dict[str, Any]) -> None:
    assert len(bench_decoder.table(found["rows"]).splitlines()) == len(found["rows"]) + 1
