"""Tables hold what they say: verdicts of every arm, paired differences, gains over a grid.

One prompt looked at closely: the same noise for both arms, one step in numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codit import decode
from codit.contrast import contrast
from codit.evaluation import intervals
from codit.paper import scales, seeds, tables
from codit.paper.arms import Arm
from codit.recipes import Decoding, Model, Pair
from codit.world.recipes import WorldPrompts
from tests import tiny

# -- recipes for reading -------------------------------------------------------------------------


@pytest.mark.parametrize("name", scales.scales())
def test_the_recipe_table_shows_every_field_of_a_scale(name: str) -> None:
    table = tables.recipe_table(scales.scale(name, plausibility=0.125))
    assert table.index.name == "field"
    assert table.index.is_monotonic_increasing
    shown = {field.split(".")[0] for field in table.index}
    values = vars(scales.scales()[name])
    assert shown == {field for field, value in values.items() if value != {}}
    assert table.loc["decoding.plausibility", "value"] == "0.125"
    assert "decoding.version" not in table.index
    assert table["value"].map(type).eq(str).all()


def test_a_recipe_in_one_line_names_its_kind_and_what_is_not_default() -> None:
    assert tables.recipe_text(WorldPrompts(n=7)) == "WorldPrompts(n=7)"
    assert tables.recipe_text(Decoding()) == "Decoding()"
    pair = Pair(expert=Model(name="post"), amateur=Model(name="pre"))
    assert tables.recipe_text(pair) == "Pair(expert=Model(name=post), amateur=Model(name=pre))"
    assert tables.recipe_text(("test", WorldPrompts(n=7))) == "test WorldPrompts(n=7)"
    assert tables.recipe_text(0.5) == "0.5"


# -- means and differences ------------------------------------------------------------------------


def rows(seeds: int = 2, **arms: list[float]) -> pd.DataFrame:
    """Rows id, seed, arm, role, score: one list per arm, one number per prompt, seeds differ."""
    return pd.DataFrame(
        {
            "id": f"p{number}",
            "seed": seed,
            "arm": name,
            "role": name,
            "plausibility": 0.1,
            "strength": 1.0,
            "score": value + seed * (number % 3),
        }
        for name, values in arms.items()
        for seed in range(seeds)
        for number, value in enumerate(values)
    )


TABLE = rows(codit=[3, 5, 9, 4, 7], direct=[1, 5, 6, 4, 6])


def test_means_have_the_intervals_of_seeds_and_prompts() -> None:
    table = TABLE.assign(high=TABLE["score"] > 5)
    bars = tables.bar_table(table, ["high", "score"])
    assert list(bars.columns[:5]) == ["role", "measure", "value", "low", "high"]
    order = [("codit", "high"), ("codit", "score"), ("direct", "high"), ("direct", "score")]
    assert list(bars[["role", "measure"]].itertuples(index=False, name=None)) == order
    wide = table[table["role"] == "codit"].pivot_table(index="seed", columns="id", values="score")
    found = seeds.difference(wide.to_numpy())
    ends = [found.estimate, found.low, found.high]
    assert bars.loc[1, ["value", "low", "high"]].tolist() == pytest.approx(ends)
    assert bars.loc[1, ["seeds", "prompts"]].tolist() == [2, 5]


def test_noise_that_is_each_prompt_s_own_is_averaged_first() -> None:
    (bar, *_) = tables.bar_table(TABLE, ["score"], seeds=False).to_dict("records")
    own = TABLE[TABLE["role"] == "codit"].groupby("id")["score"].mean()
    found = seeds.difference(own.to_numpy()[None])
    assert (bar["low"], bar["high"]) == pytest.approx((found.low, found.high))
    assert bar["seeds"] == 2


def test_several_groups_keep_their_names_and_roles() -> None:
    table = pd.concat([TABLE.assign(student="a"), TABLE.assign(student="b", score=0)])
    bars = tables.bar_table(table, ["score"], by=["student", "arm"])
    assert bars[["student", "role"]].agg(" ".join, axis=1).tolist() == [
        "a codit", "a direct", "b codit", "b direct",
    ]  # fmt: skip
    assert bars["value"].tolist()[2:] == [0, 0]


def test_differences_are_paired_and_corrected_for_their_number() -> None:
    table = TABLE.assign(twice=2 * TABLE["score"])
    found = tables.differences(table, [("codit", "direct")], ["score", "twice"])
    expected = seeds.difference(seeds.table(TABLE, "score", "codit", "direct"))
    assert found["estimate"].tolist() == pytest.approx([expected.estimate, 2 * expected.estimate])
    assert found["p"].tolist() == pytest.approx([expected.p] * 2)
    assert found["p_holm"].tolist() == pytest.approx([min(1, 2 * expected.p)] * 2)
    assert found["text"][0] == tables.difference_text(expected)
    assert found["holds"][0] == tables.decided(expected)


def test_differences_of_noise_that_is_each_prompt_s_own_are_averaged_first() -> None:
    three = rows(3, codit=[3, 5, 9, 4, 7], direct=[1, 5, 6, 4, 6])
    uneven = three.assign(score=three["score"] + (three["arm"] == "codit") * 3 * three["seed"])
    (row,) = tables.differences(uneven, [("codit", "direct")], ["score"], seeds=False).to_dict(
        "records"
    )
    wide = seeds.table(uneven, "score", "codit", "direct", by="arm")
    alone = seeds.difference(wide.mean(0, keepdims=True))
    both = seeds.difference(wide)
    assert (row["low"], row["high"]) == pytest.approx((alone.low, alone.high))
    assert both.high - both.low > 2 * (alone.high - alone.low)


def test_a_paired_interval_lies_around_the_mean_and_the_base_has_none() -> None:
    table = tables.paired_table(TABLE, ["score"], "direct")
    codit, direct = table.to_dict("records")
    found = seeds.difference(seeds.table(TABLE, "score", "codit", "direct"))
    level = TABLE.loc[TABLE["arm"] == "direct", "score"].mean()
    assert direct["value"] == direct["low"] == direct["high"] == pytest.approx(level)
    assert codit["value"] == pytest.approx(TABLE.loc[TABLE["arm"] == "codit", "score"].mean())
    assert codit["high"] - codit["value"] == pytest.approx(found.high - found.estimate)
    gain, none = tables.paired_table(TABLE, ["score"], "direct", gain=True).to_dict("records")
    assert (gain["value"], none["value"]) == (pytest.approx(found.estimate), 0)


def test_the_plane_holds_each_arm_s_place_with_its_intervals() -> None:
    own = TABLE.assign(strict=TABLE["score"], correct=-TABLE["score"])
    place = tables.plane(own).set_index("arm")
    bars = tables.bar_table(own, ["correct"], by=["arm"]).set_index("arm")
    for arm in ("codit", "direct"):
        assert place.loc[arm, "correct"] == -place.loc[arm, "strict"] == bars.loc[arm, "value"]
        assert place.loc[arm, "correct_low"] == bars.loc[arm, "low"]
        assert place.loc[arm, "correct_high"] == pytest.approx(-place.loc[arm, "strict_low"])
    assert place["plausibility"].tolist() == [0.1, 0.1]


@pytest.mark.parametrize(
    ("ends", "answer"),
    [((-0.01, 0.3), True), ((-0.019, 0.0), True), ((-0.3, -0.03), False), ((-0.03, 0.1), None)],
)
def test_what_is_lost_by_less_than_the_margin_is_kept(
    ends: tuple[float, float], answer: bool | None
) -> None:
    assert tables.kept(interval(sum(ends) / 2, *ends)) is answer


@pytest.mark.parametrize(("p", "answer"), [(0.049, True), (0.051, None)])
def test_a_difference_that_the_correction_leaves_open_is_undecided(
    p: float, answer: bool | None
) -> None:
    assert tables.corrected(SimpleNamespace(low=0.1, high=0.3, p_holm=p)) is answer


def test_seed_points_are_each_seed_s_difference_to_the_base() -> None:
    two = pd.concat([TABLE.assign(student="a"), TABLE.assign(student="b")])
    points = tables.seed_points(two, "score", "direct", by=["student"])
    own = points[(points["arm"] == "codit") & (points["student"] == "b")]
    wide = seeds.table(TABLE, "score", "codit", "direct")
    assert own["value"].tolist() == pytest.approx(wide.mean(1).tolist())
    assert points.loc[points["arm"] == "direct", "value"].eq(0).all()
    alone = tables.seed_points(TABLE, "score", "direct")
    assert alone.loc[alone["arm"] == "codit", "value"].tolist() == own["value"].tolist()


def test_scores_are_counted_per_role_nobody_s_included() -> None:
    table = TABLE.assign(score=[1, 2, 2, 10, 10] * 4)
    shares = tables.score_table(table)
    assert len(shares) == 20
    codit = shares[shares["role"] == "codit"].set_index("score")["value"]
    assert codit.to_dict() == {str(k): {1: 0.2, 2: 0.4, 10: 0.4}.get(k, 0) for k in range(1, 11)}


@pytest.mark.parametrize("bad", [0, 11, 2.5, float("nan")])
def test_a_score_out_of_range_is_refused(bad: float) -> None:
    table = TABLE.assign(score=[bad, *[5] * 19])
    with pytest.raises(ValueError, match="expected whole scores from 1 to 10; got 1 others"):
        tables.score_table(table)


def interval(estimate: float, low: float, high: float) -> intervals.Interval:
    return intervals.Interval(estimate, low, high, n=9, method="BCa")


def test_an_interval_is_written_with_its_sign_and_ends() -> None:
    assert tables.difference_text(interval(0.12, 0.08, 0.16)) == "+0.120 [+0.080, +0.160]"
    assert tables.difference_text(interval(-0.5, -1, 0.25)) == "-0.500 [-1.000, +0.250]"


@pytest.mark.parametrize(
    ("ends", "answer"),
    [((0.1, 0.3), True), ((-0.3, -0.1), False), ((-0.1, 0.1), None), ((0, 0.1), None)],
)
def test_a_difference_is_decided_where_the_interval_excludes_zero(
    ends: tuple[float, float], answer: bool | None
) -> None:
    assert tables.decided(interval(sum(ends) / 2, *ends)) is answer


VALUES = {"codit": {0.1: 0.3, 0.3: 0.1}, "truncated": {0.1: 0.05, 0.3: 0.0}}


def table(noise: float = 0.01, students: int = 2) -> pd.DataFrame:
    """Answers of 3 seeds to 60 prompts: direct has mean 0, the others what VALUES says."""
    rng = np.random.default_rng(0)
    arms = [(Arm(role="direct"), 0.0)]
    for role, own in VALUES.items():
        arms += [(Arm(role=role, plausibility=p), v) for p, v in own.items()]
    rows = [
        {
            "student": f"s{student}", "seed": seed, "id": f"p{prompt}", "arm": arm.label,
            "role": arm.role, "plausibility": arm.plausibility, "strength": None,
            "strict": value + noise * rng.standard_normal(),
        }
        for student in range(students)
        for seed in range(3)
        for prompt in range(60)
        for arm, value in arms
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_best_plausibility_is_taken_where_none_is_tied_with_it() -> None:
    found = tables.choice(table(), "codit", measure="strict").set_index("plausibility")
    wide = seeds.table(table(), "strict", "CoDIT .1", "CoDIT .3", by="arm")
    assert found.loc[0.3, "behind"] == pytest.approx(wide.mean())
    assert found.loc[0.3, "error"] == pytest.approx(seeds.standard_error(wide))
    assert found["tied"].tolist() == found["taken"].tolist() == [True, False]
    assert found.loc[0.1, ["behind", "error"]].tolist() == [0, 0]


@pytest.mark.parametrize(("away", "taken"), [(0.9, 0.3), (1.1, 0.1)])
def test_of_values_within_a_standard_error_of_the_best_the_largest_is_taken(
    away: float, taken: float
) -> None:
    tied = table()
    wide = seeds.table(tied, "strict", "CoDIT .1", "CoDIT .3", by="arm")
    tied.loc[tied["arm"] == "CoDIT .3", "strict"] += wide.mean() - away * seeds.standard_error(wide)
    found = tables.choice(tied, "codit", measure="strict")
    assert found.loc[found["taken"], "plausibility"].tolist() == [taken]


def test_gains_are_over_direct_and_over_truncation_at_the_same_value() -> None:
    gained = tables.gains(table())
    assert len(gained) == 2 * 2 * 2
    found = gained.groupby(["plausibility", "against"])["estimate"].mean().round(2).to_dict()
    assert found == {
        (0.1, "direct"): 0.3, (0.1, "truncated"): 0.25,
        (0.3, "direct"): 0.1, (0.3, "truncated"): 0.1,
    }  # fmt: skip
    assert (gained["p_holm"] >= gained["p"]).all()
    assert tables.all_gain(gained) is True


def test_gains_average_each_prompt_s_own_noise_first() -> None:
    own = table(students=1)
    own["strict"] += (own["arm"] == "CoDIT .1") * own["seed"]
    wide = seeds.table(own, "strict", "CoDIT .1", "Direct", by="arm").mean(0, keepdims=True)
    (first, *_) = tables.gains(own, seeds=False).to_dict("records")
    assert first["text"] == tables.difference_text(seeds.difference(wide))


def test_a_sure_loss_refutes_and_an_unsure_gain_leaves_it_open() -> None:
    gained = tables.gains(table())
    lost = gained.assign(estimate=[-0.1, *gained["estimate"][1:]])
    assert tables.all_gain(lost) is False
    unsure = gained.assign(p_holm=[0.5, *gained["p_holm"][1:]])
    assert tables.all_gain(unsure) is None


def test_gains_are_counted_in_words() -> None:
    gained = tables.gains(table())
    least = gained.loc[gained["estimate"].idxmin(), "text"]
    told = tables.gains_text(gained)
    assert told == f"8 of 8 gains (corrected p < .05; all at .1, .3), 0 losses; least {least}"


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


def test_the_moving_steps_are_those_whose_distribution_contrast_changes_most() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    response = answered(pair, tokenizer)
    vocabulary = {"n": len(tokenizer)}
    moved = []
    for step in range(len(response.token_ids)):
        own = tables.step_table(pair, tokenizer, CHAT, response, step, **vocabulary)
        cut = own["p_expert"].where(own["q"] > 0, 0)
        moved.append((own["q"] - cut / cut.sum()).abs().sum())
    expected = sorted(np.argsort(moved)[-2:].tolist())
    assert tables.moving_steps(pair, tokenizer, CHAT, response) == expected
    every = tables.moving_steps(pair, tokenizer, CHAT, response, n=99)
    assert every == list(range(len(response.token_ids)))


def test_a_step_shows_the_experts_best_tokens_first() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    response = answered(pair, tokenizer)
    table = tables.step_table(pair, tokenizer, CHAT, response, 0, n=3)
    every = tables.step_table(pair, tokenizer, CHAT, response, 0, n=280)
    assert table.columns.tolist() == ["token", "p_expert", "p_amateur", "q"]
    assert table["p_expert"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(table, every[:3])
