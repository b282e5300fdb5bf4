"""Tables hold what they say: verdicts of every arm, paired differences, one step in numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from codit import decode, evidence, experiments, results, statistics, world
from codit.contrast import contrast
from codit.experiments import Scale
from codit.recipes import Decoding, File, Model, Pair, WorldPrompts
from tests import tiny

CHAT = [{"role": "user", "content": "the cat"}]
VERDICTS = {"id", "family", "response", "tokens", "is_completed", "strict", "loose", "correct"} | {
    "format", "repeats", "held", "score",
}  # fmt: skip


# -- recipes for reading -------------------------------------------------------------------------


@pytest.mark.parametrize("name", experiments.scales())
def test_the_recipe_table_shows_every_field_of_a_scale(name: str) -> None:
    table = evidence.recipe_table(experiments.scale(name, plausibility=0.125))
    assert table.index.name == "field"
    assert table.index.is_monotonic_increasing
    shown = {field.split(".")[0] for field in table.index}
    assert shown == {*vars(experiments.scales()[name])}
    assert table.loc["decoding.plausibility", "value"] == "0.125"
    assert "decoding.version" not in table.index
    assert table["value"].map(type).eq(str).all()


def test_a_recipe_in_one_line_names_its_kind_and_what_is_not_default() -> None:
    assert evidence.recipe_text(WorldPrompts(n=7)) == "WorldPrompts(n=7)"
    assert evidence.recipe_text(Decoding()) == "Decoding()"
    pair = Pair(expert=Model(name="post"), amateur=Model(name="pre"))
    assert evidence.recipe_text(pair) == "Pair(expert=Model(name=post), amateur=Model(name=pre))"
    assert evidence.recipe_text(("test", WorldPrompts(n=7))) == "test WorldPrompts(n=7)"
    assert evidence.recipe_text(0.5) == "0.5"


# -- verdicts ------------------------------------------------------------------------------------


def test_every_arm_is_judged_on_every_prompt(micro: Scale, idle: Any) -> None:
    table = evidence.dataset_verdicts(micro)
    assert set(table) == VERDICTS | {"role"}
    ids = [row["id"] for row in world.prompts(micro.prompts)]
    assert table["role"].unique().tolist() == list(experiments.ARMS)
    assert all(group["id"].tolist() == ids for _, group in table.groupby("role"))
    codit = results.responses(experiments.synthesis(micro, "codit"))
    assert table.loc[table["role"] == "codit", "response"].tolist() == codit["response"]
    idle()
    pd.testing.assert_frame_equal(evidence.dataset_verdicts(micro), table)


def test_every_arm_has_a_student_per_seed_judged_on_every_held_out_prompt(
    micro: Scale, idle: Any
) -> None:
    two = replace(micro, seeds=(0, 1), tests=micro.tests[:1])
    table = evidence.student_verdicts(two, micro.students[0])
    assert set(table) == VERDICTS | {"role", "seed", "split"}
    (split, asked), *_ = two.tests
    groups = dict(list(table.groupby(["role", "seed", "split"])))
    assert {k for k in groups if k[0] in experiments.ARMS} == {
        (arm, seed, split) for arm in experiments.ARMS for seed in (0, 1)
    }
    ids = [row["id"] for row in world.prompts(asked)]
    assert all(group["id"].tolist() == ids for group in groups.values())
    made = experiments.training(two, micro.students[0], "codit", seed=1)
    answers = results.answers(experiments.evaluations(two, made)[split])
    assert groups["codit", 1, split]["response"].tolist() == answers["response"].tolist()
    idle()
    pd.testing.assert_frame_equal(evidence.student_verdicts(two, micro.students[0]), table)


@pytest.mark.parametrize(
    "change", [{"evaluations": ("judge",)}, {"prompts": File(path="rows.jsonl")}], ids=str
)
def test_a_scale_without_the_verifier_is_refused(micro: Scale, change: dict[str, Any]) -> None:
    chosen = replace(micro, **change)
    message = r"expected a scale that the verifier can score; got .* 'micro' or 'full'"
    with pytest.raises(ValueError, match=message):
        evidence.dataset_verdicts(chosen)
    with pytest.raises(ValueError, match=message):
        evidence.student_verdicts(chosen, micro.students[0])


def test_greedy_verdicts_of_a_folder_are_those_of_its_recipe(micro: Scale) -> None:
    prompts = dict(micro.tests)["test"]
    folder = Path(results.model_path(micro.pair.expert))
    found = evidence.greedy_verdicts(folder, prompts)
    longer = replace(micro, decoding=experiments.GREEDY)
    recipe = experiments.evaluations(longer, micro.pair.expert)["test"]
    pd.testing.assert_frame_equal(found, results.answers(recipe), check_dtype=False)


def test_constraints_are_counted_one_by_one() -> None:
    recipe = WorldPrompts(n=40)
    asked = world.prompts(recipe)
    ideal = pd.DataFrame([{"id": r["id"], "role": "ideal", "response": r["ideal"]} for r in asked])
    mute = ideal.assign(role="mute", response="")
    table = evidence.by_constraint(pd.concat([mute, ideal]), recipe)
    assert table.columns.tolist() == ["mute", "ideal", "n"]
    assert table["ideal"].eq(1).all()
    assert table["mute"].eq(0).all()
    kinds = [one["kind"] for row in asked for one in row["constraints"]]
    assert table["n"].to_dict() == {kind: kinds.count(kind) for kind in set(kinds)}


def test_a_constraint_is_counted_whatever_else_the_response_misses() -> None:
    recipe = WorldPrompts(n=60)
    row = next(
        r
        for r in world.prompts(recipe)
        if {"capitals", "begins"} <= {c["kind"] for c in r["constraints"]}
    )
    shouted = pd.DataFrame([{"id": row["id"], "role": "a", "response": "XYZZY."}])
    table = evidence.by_constraint(shouted, recipe)
    assert (table.loc["capitals", "a"], table.loc["begins", "a"]) == (1, 0)
    assert table["n"].eq(1).all()


# -- differences ---------------------------------------------------------------------------------


def scores(**roles: list[float]) -> pd.DataFrame:
    """Rows id, role, score: one list per role, one number per prompt."""
    return pd.DataFrame(
        [
            {"id": f"p{number}", "role": role, "score": value}
            for role, values in roles.items()
            for number, value in enumerate(values)
        ]
    )


def test_a_difference_pairs_prompts_whatever_their_order() -> None:
    table = scores(codit=[3, 5, 9, 4, 7], direct=[1, 5, 6, 4, 6])
    expected = statistics.difference_interval([3, 5, 9, 4, 7], [1, 5, 6, 4, 6])
    assert evidence.paired(table, "score", "codit", "direct") == expected
    shuffled = table.sample(frac=1, random_state=0)
    assert evidence.paired(shuffled, "score", "codit", "direct") == expected
    assert evidence.paired(table, "score", "direct", "codit").estimate == -expected.estimate


def test_a_prompt_that_only_one_role_answered_is_refused() -> None:
    table = scores(codit=[3, 5, 9], direct=[1, 5])
    with pytest.raises(ValueError, match="got 1 of 3 that are NaN or infinite. Drop these prompts"):
        evidence.paired(table, "score", "codit", "direct")
    with pytest.raises(KeyError, match="truncated"):
        evidence.paired(table, "score", "codit", "truncated")


def test_seeds_of_a_prompt_are_averaged_before_prompts_are_counted() -> None:
    first, second = scores(a=[1, 0, 1, 1], b=[0, 0, 1, 0]), scores(a=[0, 0, 1, 0], b=[0, 1, 0, 0])
    table = pd.concat([first.assign(seed=0), second.assign(seed=1)])
    expected = statistics.difference_interval([0.5, 0, 1, 0.5], [0, 0.5, 0.5, 0])
    assert evidence.paired(table, "score", "a", "b") == expected
    (bar, _) = evidence.bar_table(table, ["score"]).to_dict("records")
    assert (bar["n"], bar["value"]) == (4, 0.5)


def test_bars_are_means_with_the_intervals_of_statistics() -> None:
    table = scores(codit=[1, 0, 1, 1], direct=[0, 0, 1, 0])
    table["strict"] = table["score"] > 0
    bars = evidence.bar_table(table, ["strict", "score"])
    assert bars.columns.tolist() == ["role", "measure", "value", "low", "high", "n"]
    order = [("codit", "strict"), ("direct", "strict"), ("codit", "score"), ("direct", "score")]
    assert list(bars[["role", "measure"]].itertuples(index=False, name=None)) == order
    found = statistics.mean_interval([1, 0, 1, 1])
    assert bars.loc[0, ["value", "low", "high"]].tolist() == [0.75, found.low, found.high]


def interval(estimate: float, low: float, high: float) -> statistics.Interval:
    return statistics.Interval(estimate, low, high, level=0.95, n=9, method="BCa")


def test_an_interval_is_written_with_its_sign_and_ends() -> None:
    assert evidence.difference_text(interval(0.12, 0.08, 0.16)) == "+0.120 [+0.080, +0.160]"
    assert evidence.difference_text(interval(-0.5, -1, 0.25)) == "-0.500 [-1.000, +0.250]"


@pytest.mark.parametrize(
    ("ends", "answer"),
    [((0.1, 0.3), True), ((-0.3, -0.1), False), ((-0.1, 0.1), None), ((0, 0.1), None)],
)
def test_a_difference_is_decided_where_the_interval_excludes_zero(
    ends: tuple[float, float], answer: bool | None
) -> None:
    assert evidence.decided(interval(sum(ends) / 2, *ends)) is answer


# -- one prompt, one step ------------------------------------------------------------------------


def test_samples_show_both_arms_under_the_same_noise() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    decoding = Decoding(plausibility=0.1, max_new_tokens=6)
    table = evidence.samples(pair, tokenizer, CHAT, decoding, n=4)
    assert table.columns.tolist() == ["sample", "direct", "codit"]
    assert table["sample"].tolist() == [0, 1, 2, 3]
    for name in ("direct", "codit"):
        assert table[name].nunique() > 1
        drawn = replace(experiments.arm(name, decoding), sample=3)
        (one,) = decode.generate(pair, tokenizer, [CHAT], drawn, ids=["0"], progress=False)
        assert table.loc[3, name] == one.text
    alike = evidence.samples(
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
    assert evidence.disagreement(tokens) == 3  # of step 2 every other token is implausible
    assert evidence.disagreement(tokens[:2]) == 1
    assert evidence.disagreement(tokens.assign(n_plausible=1)) == 0


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
    table = evidence.step_table(pair, tokenizer, CHAT, response, step, n=280)
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
    table = evidence.step_table(pair, tokenizer, CHAT, answered(pair, tokenizer), 0, n=280)
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
        table = evidence.step_table(pair, tokenizer, CHAT, response, int(step), n=280)
        alike = table[table["token"] == row["token"]]  # several where a token is a part of a letter
        for name, logp in (("p_expert", "logp_expert"), ("q", "logq")):
            assert (alike[name] - math.exp(row[logp])).abs().min() < 1e-5


def test_a_step_shows_the_experts_best_tokens_first() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    response = answered(pair, tokenizer)
    table = evidence.step_table(pair, tokenizer, CHAT, response, 0, n=3)
    every = evidence.step_table(pair, tokenizer, CHAT, response, 0, n=280)
    assert table.columns.tolist() == ["token", "p_expert", "p_amateur", "q"]
    assert table["p_expert"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(table, every[:3])
