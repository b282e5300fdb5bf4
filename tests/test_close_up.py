"""One prompt looked at closely: the same noise for both arms, one step in numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from codit import decode
from codit.contrast import contrast
from codit.paper import scales, tables
from codit.recipes import Decoding
from tests import tiny

CHAT = [{"role": "user", "content": "the cat"}]


def test_samples_show_both_arms_under_the_same_noise() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    decoding = Decoding(plausibility=0.1, max_new_tokens=6)
    table = tables.samples(pair, tokenizer, CHAT, decoding, n=4)
    assert table.columns.tolist() == ["sample", "direct", "codit"]
    assert table["sample"].tolist() == [0, 1, 2, 3]
    for name in ("direct", "codit"):
        assert table[name].nunique() > 1
        drawn = replace(scales.arm(name, decoding), sample=3)
        (one,) = decode.generate(pair, tokenizer, [CHAT], drawn, ids=["0"], progress=False)
        assert table.loc[3, name] == one.text
    alike = tables.samples(
        pair, tokenizer, CHAT, replace(decoding, strength=0, plausibility=0), n=2
    )
    assert alike["direct"].tolist() == alike["codit"].tolist()


def test_the_disagreement_is_the_widest_gap_where_there_is_a_choice() -> None:
    tokens = pd.DataFrame(
        {
            "logp_expert": [-1.0, -0.5, -0.1, -2.0],
            "logp_amateur": [-1.5, -2.0, -9.0, -0.2],
            "n_plausible": [2, 3, 1, 5],
        }
    )
    assert tables.disagreement(tokens) == 3  # of step 2 every other token is implausible
    assert tables.disagreement(tokens[:2]) == 1
    assert tables.disagreement(tokens.assign(n_plausible=1)) == 0


def answered(pair: Any, tokenizer: Any) -> decode.Response:
    decoding = Decoding(strength=pair.strength, plausibility=pair.plausibility, max_new_tokens=6)
    (one,) = decode.generate(pair, tokenizer, [CHAT], decoding, progress=False)
    return one


def column(table: pd.DataFrame, name: str) -> torch.Tensor:
    return torch.tensor(table[name].tolist(), dtype=torch.float32)


@pytest.mark.parametrize("strength", [0.0, 1.0, 1.5])
def test_a_step_is_the_contrast_of_both_models(strength: float) -> None:
    pair, tokenizer = tiny.pair("llama", strength=strength, plausibility=0.02), tiny.tokenizer()
    response = answered(pair, tokenizer)
    step = len(response.token_ids) - 1
    table = tables.step_table(pair, tokenizer, CHAT, response, step, n=280)
    ids = decode.prompt_ids(tokenizer, CHAT) + response.token_ids[:step]
    expert, amateur = (m(torch.tensor([ids])).logits[:, -1] for m in (pair.expert, pair.amateur))
    q = contrast(expert, amateur, strength=strength, plausibility=0.02)[0].exp()
    order = expert[0].argsort(descending=True)
    assert table["token"].tolist() == [tokenizer.decode([int(i)]) for i in order]
    for name, probs in (("p_expert", expert[0].softmax(-1)), ("p_amateur", amateur[0].softmax(-1))):
        torch.testing.assert_close(column(table, name), probs[order].detach())
    torch.testing.assert_close(column(table, "q"), q[order].detach())


def test_the_probabilities_of_a_step_sum_to_one_over_the_plausible_tokens() -> None:
    pair, tokenizer = tiny.pair("llama", plausibility=0.02), tiny.tokenizer()
    table = tables.step_table(pair, tokenizer, CHAT, answered(pair, tokenizer), 0, n=280)
    plausible = table["p_expert"] >= 0.02 * table["p_expert"].max()
    assert 1 < plausible.sum() < 280
    assert table.loc[plausible, "q"].sum() == pytest.approx(1, abs=1e-5)
    assert table.loc[~plausible, "q"].eq(0).all()
    sums = table[["p_expert", "p_amateur"]].sum()
    assert sums.tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_step_agrees_with_the_token_table() -> None:
    pair, tokenizer = tiny.pair("llama", plausibility=0.02), tiny.tokenizer()
    response = answered(pair, tokenizer)
    tokens = decode.token_table(pair, tokenizer, CHAT, response)
    for step, row in tokens.iterrows():
        table = tables.step_table(pair, tokenizer, CHAT, response, int(step), n=280)
        alike = table[table["token"] == row["token"]]  # several where a token is a part of a letter
        for name, logp in (("p_expert", "logp_expert"), ("q", "logq")):
            assert (alike[name] - math.exp(row[logp])).abs().min() < 1e-5


def test_a_step_shows_the_experts_best_tokens_first() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    response = answered(pair, tokenizer)
    table = tables.step_table(pair, tokenizer, CHAT, response, 0, n=3)
    every = tables.step_table(pair, tokenizer, CHAT, response, 0, n=280)
    assert table.columns.tolist() == ["token", "p_expert", "p_amateur", "q"]
    assert table["p_expert"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(table, every[:3])
