"""Addressed noise."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codit.engine import sampling
from codit.engine.sampling import default_ids, noise_key, uniforms

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
