"""Addressed noise.

One step, from scores to tokens, and the bar that counts them.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from tqdm.auto import tqdm
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from codit.engine import sampling
from codit.engine.sampling import Meter, default_ids, noise_key, uniforms
from codit.engine.sparse import Candidates
from tests.engine_rows import scores, step

WORD = 2**64


def signed(number: int) -> int:
    """The int64 with a number's low 64 bits."""
    return (number + WORD // 2) % WORD - WORD // 2


def mix(bits: int) -> int:
    """splitmix64's finalizer in Python's integers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % WORD
    return bits ^ (bits >> 31)


def test_the_mix_gives_the_published_numbers_of_splitmix64():
    states = [1234567 + k * 0x9E3779B97F4A7C15 for k in (1, 2, 3)]
    mixed = sampling._mix(torch.tensor([signed(state) for state in states]))
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mixed.tolist() == [signed(number) for number in published]


@given(key=st.integers(-(2**63), 2**63 - 1), t=st.integers(0, 2**31))
@settings(deadline=None)
def test_a_uniform_number_is_the_one_that_python_computes_from_key_and_step(key, t):
    mixed = mix((key + mix((t + 1) * 0x9E3779B97F4A7C15 % WORD)) % WORD)
    drawn = uniforms(torch.tensor([key]), torch.tensor([t]))
    assert drawn.dtype == torch.float64
    assert drawn.item() == (mixed >> 11) / 2**53
    assert 0 <= drawn.item() < 1


def test_noise_is_uniform_and_neither_rows_nor_steps_are_correlated():
    keys = torch.tensor([noise_key(0, name, 0) for name in range(400)])
    table = uniforms(keys[:, None], torch.arange(100)[None])
    assert table.shape == (400, 100)
    assert stats.kstest(table.flatten().numpy(), "uniform").pvalue > 1e-3
    for shifted in (table[1:], table[:, 1:]):
        kept = table[: len(shifted), : shifted.shape[1]]
        correlation = stats.pearsonr(shifted.flatten().numpy(), kept.flatten().numpy())
        assert correlation.pvalue > 1e-3


words = st.tuples(st.integers(-5, 5), st.text(max_size=4), st.integers(0, 5))


@given(words, words)
@settings(deadline=None)
def test_noise_keys_are_equal_for_equal_seed_id_and_sample_only(one, other):
    assert (noise_key(*one) == noise_key(*other)) == (one == other)


def test_an_id_counts_as_its_text_and_any_text_is_an_id():
    assert noise_key(0, 7, 0) == noise_key(0, "7", 0)
    assert noise_key(0, "\ud800", 0) != noise_key(0, "", 0)


def test_default_ids_are_the_prompts_hash_and_its_number_among_equals():
    names = default_ids([[1, 2], [3], [1, 2], [12], []])
    assert [name.split("-")[1] for name in names] == ["0", "0", "1", "0", "0"]
    assert names[0].split("-")[0] == names[2].split("-")[0]
    assert len({name.split("-")[0] for name in names}) == 4
    assert names[0] == "96a3cf72d606b6a4-0"  # stays what it is: files depend on it


def noise_of(rows: int) -> torch.Tensor:
    """Some noise, the same every time."""
    return uniforms(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


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


@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8}])
def test_plausible_ids_alone_draw_what_full_vectors_draw(how):
    logits, noise = scores(300, width=500), noise_of(300)
    a_step = step(500, plausibility=0.1, **how)
    found = a_step.narrow(logits)
    assert isinstance(found, Candidates)
    for few, full in zip(a_step.draw(found, noise), a_step.draw(logits, noise), strict=True):
        torch.testing.assert_close(few, full, atol=1e-5, rtol=0)


def test_where_many_ids_are_plausible_full_vectors_are_kept():
    logits = scores(3)
    assert step(plausibility=1e-9).narrow(logits).shape == logits.shape
    assert step(plausibility=0.0).narrow(logits).shape == logits.shape


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_distribution_has_a_log_q_that_says_so(bad):
    logits = scores(3, width=500)
    logits[1, 7] = bad
    for seen in (logits, step(500, plausibility=0.1).narrow(logits)):
        tokens, logprobs = step(500, plausibility=0.1).draw(seen, noise_of(3))
        assert logprobs.isfinite().tolist() == [True, False, True]
        assert (tokens >= 0).all()
        assert (tokens < 500).all()


def test_a_bar_inside_another_moves_no_cursor_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tqdm(total=1):
        meter = Meter(2, shown=True)
        meter.add(rows=2, tokens=5)
        meter.bar.close()
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "\x1b" not in shown


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
