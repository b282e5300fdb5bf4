"""One step, and the two engines that repeat it."""

from __future__ import annotations

import gc
import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching.requests import RequestState

from codit import engines
from codit.engines import Meter, PagedSampler, Step, continuous, static
from codit.noise import noise_key, uniforms
from codit.recipes import Decoding
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Spare what was imported the garbage collections that end each continuous batching."""
    gc.freeze()
    yield
    gc.unfreeze()


def scores(rows: int, *, width: int = 40, seed: int = 0) -> torch.Tensor:
    """Random next-token scores."""
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def noise_of(rows: int) -> torch.Tensor:
    """Some noise, the same every time."""
    return uniforms(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def step(width: int = 40, *, is_pair: bool = False, **decoding: float) -> Step:
    """A step over `width` ids that draws as `decoding` says."""
    values = {"strength": 0.0, "plausibility": 0.0, "max_new_tokens": 8} | decoding
    return Step(Decoding(**values), width, is_pair=is_pair)


def test_at_temperature_zero_the_best_id_is_drawn_whatever_the_noise():
    logits = scores(20)
    for u in (0.0, 0.5, 1 - 2**-53):
        drawn, _ = step(temperature=0.0).draw(logits, torch.full((20,), u, dtype=torch.float64))
        assert drawn.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 0.7), (2.0, 5, 1.0), (1.3, 7, 0.6), (1.0, 1, 1.0), (1.0, 0, 0.01)],
)
def test_a_step_draws_from_what_the_librarys_own_warpers_leave(temperature, top_k, top_p):
    logits, grid = scores(1).repeat(5000, 1), (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    drawn, _ = step(temperature=temperature, top_k=top_k, top_p=top_p).draw(logits, grid)
    expected = TemperatureLogitsWarper(temperature)(None, logits[:1])
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    shares = torch.bincount(drawn, minlength=40) / 5000
    # An even grid of noise meets each id as often as its probability says, but for its two ends.
    torch.testing.assert_close(shares, expected.softmax(-1)[0], atol=2 / 5000, rtol=0)
    assert not shares[expected[0].isinf()].any()


@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=12), st.floats(0.05, 0.99))
@settings(deadline=None)
def test_top_p_keeps_the_fewest_best_ids_that_reach_it(logits, top_p):
    row = torch.tensor([logits])
    probs = row.double().softmax(-1)[0]
    order = probs.argsort(descending=True).tolist()
    totals = list(itertools.accumulate(probs[order].tolist()))
    assume(all(abs(total - top_p) > 1e-5 for total in totals[:-1]))  # not decided by rounding
    assume(len({round(logit, 4) for logit in logits}) == len(logits))
    needed = next((n for n, total in enumerate(totals, 1) if total >= top_p), len(order))
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn, _ = step(len(logits), top_p=top_p).draw(row.repeat(4000, 1), grid)
    assert set(drawn.tolist()) == set(order[:needed])  # the rarest kept has .01 / 11 or more


def test_log_q_is_recorded_at_temperature_one_and_before_top_k_and_top_p():
    logits, noise = scores(50), noise_of(50)
    drawn, logprobs = step(temperature=0.3, top_k=3, top_p=0.9).draw(logits, noise)
    assert logprobs.dtype == torch.float32
    expected = logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)


def test_a_single_models_implausible_ids_are_not_drawn_and_log_q_is_renormalised():
    logits, noise = scores(500), noise_of(500)
    drawn, logprobs = step(plausibility=0.2).draw(logits, noise)
    probs = logits.double().softmax(-1)
    head = probs.where(probs >= 0.2 * probs.amax(-1, keepdim=True), 0)
    q = (head / head.sum(-1, keepdim=True)).gather(1, drawn[:, None])[:, 0]
    assert (q > 0).all()
    torch.testing.assert_close(logprobs, q.log().float(), atol=1e-5, rtol=0)


def test_a_pairs_scores_are_drawn_from_as_they_are():
    logq = scores(50).log_softmax(-1)
    noise = noise_of(50)
    drawn, logprobs = step(is_pair=True, plausibility=1.0, strength=1.0).draw(logq, noise)
    assert torch.equal(logprobs, logq.gather(1, drawn[:, None])[:, 0])
    assert (drawn != logq.argmax(-1)).any()


def test_columns_beyond_the_tokenizers_ids_are_never_drawn():
    logits = scores(200)
    logits[:, 30:] = 50.0
    drawn, logprobs = step(30).draw(logits, noise_of(200))
    assert drawn.max() < 30
    expected = logits[:, :30].log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)


def test_a_forced_token_is_the_arg_max_of_scores_as_wide_as_the_models():
    logits, noise = scores(30), noise_of(30)
    forced, logprobs = step(25).force(logits, noise)
    drawn, expected = step(25).draw(logits, noise)
    assert forced.shape == logits.shape
    assert torch.equal(forced.argmax(-1), drawn)
    assert torch.equal(logprobs, expected)


def request(row: int | str, position: int) -> SimpleNamespace:
    """What the library shows a processor of a request with a new token."""
    return SimpleNamespace(state=SimpleNamespace(request_id=str(row), position_offset=position))


def paged(**decoding: float) -> PagedSampler:
    """A sampler of two rows with prompts of 3 and 5 tokens and 8 steps each."""
    return PagedSampler(step(**decoding), [3, 5], [11, 22], torch.device("cpu"))


def test_a_paged_request_has_the_cell_of_its_row_and_step():
    sampler = paged()
    cells = sampler.prepare_tensor_args([request(1, 5), request(0, 3 + 7)])
    assert cells.dtype == torch.int32
    assert cells.tolist() == [8, 7]


def test_a_paged_cell_that_nobody_reads_takes_warm_up_and_what_follows_the_last_step():
    sampler = paged()
    cells = sampler.prepare_tensor_args([request("__warmup_0__", 3), request(0, 3 + 8)])
    assert cells.tolist() == [sampler.nowhere] * 2
    default = torch.zeros(1, dtype=torch.int32)
    sampler.fill_defaults(default)
    assert default.tolist() == [sampler.nowhere] == [16]


def test_more_cells_than_32_bits_can_name_are_refused():
    with pytest.raises(ValueError, match=r"fewer than 2 rows at 1073741824 new .* got 2\. Decode"):
        PagedSampler(step(max_new_tokens=2**30), [3, 5], [11, 22], torch.device("cpu"))


def test_a_smaller_paged_batch_overwrites_the_cells_of_a_larger_one():
    sampler = paged()
    sampler.prepare_tensor_args([request(0, 3), request(1, 5)])
    assert sampler.prepare_tensor_args([request(1, 6)]).tolist() == [9, sampler.nowhere]


def test_a_paged_step_draws_with_its_cells_noise_and_keeps_log_q_there():
    sampler, logits = paged(), scores(2)
    cells = sampler.prepare_tensor_args([request(1, 5 + 2), request(0, 3)])
    forced = sampler(logits, cells)
    noise = uniforms(torch.tensor([22, 11]), torch.tensor([2, 0]))
    drawn, logprobs = step().draw(logits, noise)
    assert torch.equal(forced.argmax(-1), drawn)
    assert torch.equal(sampler.logprobs[[8 + 2, 0]], logprobs)


PROMPTS = {4: [7, 8, 9], 0: [5] * 9, 2: [6, 5], 9: [9, 9, 9, 9]}
KEYS = {row: noise_key(0, row, 0) for row in PROMPTS}


def model_and_step(**decoding: float) -> tuple[object, Step]:
    """A tiny model that stops at no token, and a step of 12 tokens."""
    model = tiny.model("llama", seed=3, scale=4.0)
    model.generation_config.eos_token_id = -1
    model.generation_config.max_new_tokens = 12
    return model, step(280, max_new_tokens=12, **decoding)


def drawn_by(engine, batch_size: int | None = None, prompts=None) -> dict[int, tuple]:
    """What an engine draws, by row."""
    model, how = model_and_step()
    prompts = prompts or PROMPTS
    rows = engine(model, how, prompts, KEYS, batch_size, Meter(4, shown=False))
    return {row: (tokens, logprobs) for row, tokens, logprobs in rows}


def test_static_batches_are_ranges_of_the_rows_sorted_by_length():
    seen = []
    model, how = model_and_step()
    generate = model.generate

    def watched(**inputs):
        seen.append(inputs["attention_mask"].sum(-1).tolist())
        return generate(**inputs)

    model.generate = watched
    list(static(model, how, PROMPTS, KEYS, 3, Meter(4, shown=False)))
    assert seen == [[2, 3, 4], [9]]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("engine", [static, continuous])
def test_engines_draw_the_same_tokens_at_every_batch_size_and_order(engine, batch_size):
    expected = drawn_by(static)
    backwards = dict(reversed(PROMPTS.items()))
    made = drawn_by(engine, batch_size, backwards)
    assert {row: tokens for row, (tokens, _) in made.items()} == {
        row: tokens for row, (tokens, _) in expected.items()
    }
    for row, (tokens, logprobs) in made.items():
        assert len(tokens) == len(logprobs) == 12
        assert logprobs == pytest.approx(expected[row][1], abs=1e-5)


def test_a_paged_row_that_was_evicted_and_read_again_continues_with_its_own_noise(monkeypatch):
    paging, again, evicted = engines._paging, RequestState.create_equivalent_initial_request, []

    def cramped(*arguments):
        config = paging(*arguments)
        config.page_size, config.num_blocks = 4, 7  # all rows begin, but cannot all grow
        return config

    def watched(state):
        evicted.append(state.request_id)
        return again(state)

    monkeypatch.setattr(engines, "_paging", cramped)
    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", watched)
    made = drawn_by(continuous)
    assert evicted
    assert {row: tokens for row, (tokens, _) in made.items()} == {
        row: tokens for row, (tokens, _) in drawn_by(static).items()
    }


def test_continuous_batching_leaves_model_and_attention_as_they_were():
    model, how = model_and_step()
    model.set_attn_implementation("eager")
    list(continuous(model, how, PROMPTS, KEYS, None, Meter(4, shown=False)))
    assert model.config._attn_implementation == "eager"
    assert not hasattr(model, "_cached_continuous_batching_manager")


def test_continuous_batching_that_stops_says_how_many_rows_are_missing(monkeypatch):
    model, how = model_and_step()

    def broken(*_, **__):
        raise OSError("the device is gone")

    monkeypatch.setattr(model, "forward", broken)
    expected = "expected 4 responses; continuous batching stopped with 4 to come: the device is"
    with pytest.raises(RuntimeError, match=expected) as error:
        list(continuous(model, how, PROMPTS, KEYS, None, Meter(4, shown=False)))
    assert "Lower batch_size, or use engine='static'." in str(error.value)


def test_no_rows_need_no_engine():
    for engine in (static, continuous):
        model, how = model_and_step()
        assert list(engine(model, how, {}, {}, None, Meter(0, shown=False))) == []


def test_the_meter_shows_rows_tokens_and_tokens_a_second(capsys):
    meter = Meter(2, shown=True)
    with meter.bar:
        meter.add(rows=2, tokens=30)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "row/s" in shown
    assert "30 tokens" in shown
    assert "tokens/s" in shown


def test_a_silent_meter_writes_nothing(capsys):
    meter = Meter(2, shown=False)
    with meter.bar:
        meter.add(rows=2, tokens=30)
    assert capsys.readouterr() == ("", "")
