"""Static batches: their plan, compaction, chunks, and memory that runs out."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import LlamaForCausalLM as Library

from codit.engine import static as static_batches
from codit.engine.cache import CACHE
from codit.engine.sampling import Step
from codit.engine.static import static
from codit.recipes import Decoding
from tests import tiny
from tests.engine_rows import PROMPTS, batch, drawn_by, model_and_step, step


def watched(monkeypatch) -> list[int]:
    """Collect the rows of every forward pass."""
    seen, run = [], static_batches.Runner._run

    def counted(runner, ids, mask, positions):
        seen.append(tuple(ids.shape))
        return run(runner, ids, mask, positions)

    monkeypatch.setattr(static_batches.Runner, "_run", counted)
    return seen


def test_static_batches_are_ranges_of_the_rows_sorted_by_length(monkeypatch):
    seen = watched(monkeypatch)
    drawn_by(static, 3)
    assert [shape for shape in seen if shape[1] > 1] == [(3, 4), (1, 9)]


def test_rows_that_ended_are_taken_out_and_the_others_go_on_as_they_would(monkeypatch):
    model, how = model_and_step()
    expected = drawn_by(static)
    stops = [expected[4][0][3], expected[9][0][6]]  # ids that end two of the rows early
    seen = watched(monkeypatch)
    made = static(model, batch(how, stops=stops))
    for row, tokens, logprobs in made:
        whole = expected[row][0]
        end = next((t for t, token in enumerate(whole) if token in stops), len(whole))
        assert tokens == whole[: end + 1]
        assert logprobs == pytest.approx(expected[row][1][: end + 1], abs=1e-5)
    assert [rows for rows, _ in seen] == sorted((rows for rows, _ in seen), reverse=True)
    assert seen[-1][0] < 4


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tokens", [1, 12])
def test_prompts_read_in_chunks_give_the_same_responses(architecture, tokens, monkeypatch):
    pair = tiny.pair(architecture, plausibility=0.1)
    how = Step(Decoding(plausibility=0.1, max_new_tokens=5), 280, is_pair=True)

    def drawn():
        rows = static(pair, batch(how))
        return {row: tokens for row, tokens, _ in rows}

    expected = drawn()
    monkeypatch.setattr(static_batches, "PREFILL_TOKENS", tokens)
    seen = watched(monkeypatch)
    assert drawn() == expected
    assert len(seen) > 5


class Elsewhere(Library):
    """A forward as older code has it: another name of the cache, and no further arguments."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):
        held = {CACHE: past_key_values, "use_cache": use_cache}
        return super().forward(input_ids, attention_mask, **held)


class Forgetful(Library):
    """A forward that takes a cache and does not fill it."""

    def forward(self, input_ids, attention_mask=None, cache=None, **kwargs):
        return super().forward(input_ids, attention_mask)


class Wrapped(Library):
    """A forward that hands on what it is given, as adapters have it."""

    def forward(self, input_ids, **kwargs):
        return super().forward(input_ids, **kwargs)


def of_kind(kind):
    model = tiny.model("llama", seed=0)
    model.__class__ = kind
    return model


@pytest.mark.parametrize(
    ("kind", "rows"), [(Wrapped, PROMPTS), (Elsewhere, {0: [5] * 9, 1: [*range(9)]})]
)
def test_a_forward_of_other_code_gets_what_it_needs(kind, rows):
    keys, how = dict.fromkeys(rows, 7), step(280)
    made = [list(static(of_kind(k), batch(how, rows=rows, keys=keys))) for k in (Library, kind)]
    assert [row[:2] for row in made[0]] == [row[:2] for row in made[1]]


def test_a_forward_that_fills_no_cache_is_refused():
    with pytest.raises(RuntimeError, match="expected a Forgetful to keep the 9 tokens"):
        list(static(of_kind(Forgetful), batch(step(280))))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_where_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(error, monkeypatch, caplog):
    expected, decode, seen = drawn_by(static), static_batches._decode, []

    def cramped(model, batch, rows):
        seen.append(len(rows))
        if len(rows) > 1:
            raise error
        return decode(model, batch, rows)

    monkeypatch.setattr(static_batches, "_decode", cramped)
    with caplog.at_level(logging.WARNING):
        made = drawn_by(static)
    assert {row: tokens for row, (tokens, _) in made.items()} == {
        row: tokens for row, (tokens, _) in expected.items()
    }
    assert seen == [4, 2, 1, 1, 1, 1]
    assert "out of memory with 4 rows at once; going on with 2" in caplog.text


def test_one_row_that_does_not_fit_is_named_by_its_length(monkeypatch):
    def cramped(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(static_batches, "_decode", cramped)
    with pytest.raises(RuntimeError, match=r"room for one row of 2 prompt tokens .* 12 new ones"):
        drawn_by(static)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(static_batches, "_decode", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        drawn_by(static)


def test_fewer_rows_are_planned_where_memory_is_short_and_the_caller_said_nothing(monkeypatch):
    monkeypatch.setattr(static_batches, "rows_that_fit", lambda *_, most: min(most, 2))
    seen = watched(monkeypatch)
    drawn_by(static)
    assert {rows for rows, _ in seen} == {2}
    drawn_by(static, 4)
    assert seen[-1][0] == 4
