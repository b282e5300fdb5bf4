"""Continuous batching: cells of noise, rows that are evicted, memory that runs out."""

from __future__ import annotations

import gc
import logging
from types import SimpleNamespace

import pytest
import torch
from transformers.generation.continuous_batching.requests import RequestState

from codit.engine import paged as paged_batches
from codit.engine.paged import PagedSampler, continuous
from codit.engine.sampling import uniforms
from codit.engine.static import static
from tests.engine_rows import PROMPTS, batch, drawn_by, model_and_step, scores, step


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Spare what was imported the garbage collections that end each continuous batching."""
    gc.freeze()
    yield
    gc.unfreeze()


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
    paging, again, evicted = (
        paged_batches._paging,
        RequestState.create_equivalent_initial_request,
        [],
    )

    def cramped(*arguments):
        config = paging(*arguments)
        config.page_size, config.num_blocks = 4, 7  # all rows begin, but cannot all grow
        return config

    def watched(state):
        evicted.append(state.request_id)
        return again(state)

    monkeypatch.setattr(paged_batches, "_paging", cramped)
    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", watched)
    made = drawn_by(continuous)
    assert evicted
    assert {row: tokens for row, (tokens, _) in made.items()} == {
        row: tokens for row, (tokens, _) in drawn_by(static).items()
    }


def test_continuous_batching_leaves_model_and_attention_as_they_were():
    model, how = model_and_step()
    model.set_attn_implementation("eager")
    list(continuous(model, batch(how)))
    assert model.config._attn_implementation == "eager"
    assert not hasattr(model, "_cached_continuous_batching_manager")


def test_continuous_batching_that_stops_says_how_many_rows_are_missing(monkeypatch):
    model, how = model_and_step()

    def broken(*_, **__):
        raise OSError("the device is gone")

    monkeypatch.setattr(model, "forward", broken)
    expected = "expected 4 responses; continuous batching stopped with 4 to come: the device is"
    with pytest.raises(RuntimeError, match=expected) as error:
        list(continuous(model, batch(how)))
    assert "Lower batch_size, or use engine='static'." in str(error.value)


def test_no_rows_need_no_engine():
    for engine in (static, continuous):
        model, how = model_and_step()
        assert list(engine(model, batch(how, rows={}))) == []


def test_where_memory_runs_out_the_rest_begins_again_with_half_the_rows(monkeypatch, caplog):
    expected, seen = drawn_by(static), []
    batched = paged_batches._batched

    def cramped(model, batch, share):
        seen.append((len(batch.rows), batch.size, round(share, 2)))
        drawn = batched(model, batch, share)
        if len(seen) == 2:  # one row ends before memory runs out
            yield next(drawn)
        if len(seen) < 3:
            raise RuntimeError("continuous batching stopped: CUDA out of memory. Tried to")
        yield from drawn

    monkeypatch.setattr(paged_batches, "_batched", cramped)
    with caplog.at_level(logging.WARNING):
        made = drawn_by(continuous)
    assert {row: tokens for row, (tokens, _) in made.items()} == {
        row: tokens for row, (tokens, _) in expected.items()
    }
    assert seen == [(4, None, 0.8), (4, 2, 0.6), (3, 1, 0.45)]
    assert "out of memory with 4 rows at once; going on with 2" in caplog.text


def test_a_single_paged_row_that_does_not_fit_is_an_error(monkeypatch):
    def cramped(*_):
        raise RuntimeError("CUDA out of memory")
        yield

    monkeypatch.setattr(paged_batches, "_batched", cramped)
    with pytest.raises(RuntimeError, match="out of memory"):
        drawn_by(continuous, 1)
