"""What a grid says: the best value, what ties with it, and gains that are counted honestly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from codit import crossed, evidence, tuning
from codit.comparison import Arm

VALUES = {"codit": {0.1: 0.3, 0.3: 0.1}, "truncated": {0.1: 0.05, 0.3: 0.0}}


def table(noise: float = 0.01, students: int = 2) -> pd.DataFrame:
    """Answers of 2 seeds to 60 prompts: direct has mean 0, the others what VALUES says."""
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
        for seed in range(2)
        for prompt in range(60)
        for arm, value in arms
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_best_is_the_highest_of_each_role() -> None:
    bars = evidence.paired_table(table().assign(teacher="A"), ["strict"], "Direct", by=["teacher"])
    best = tuning.best(bars).set_index("role")["plausibility"]
    assert (best["codit"], best["truncated"]) == (0.1, 0.1)


def test_rivals_are_all_other_values_with_the_lead_over_them() -> None:
    (row,) = tuning.rivals(table(), "codit").to_dict("records")
    assert (row["best"], row["plausibility"], row["tied"]) == (0.1, 0.3, False)
    expected = crossed.difference(
        crossed.table(table(), "strict", "CoDIT .1", "CoDIT .3", by="arm")
    )
    assert row["lead"] == evidence.difference_text(expected)


def test_values_that_noise_cannot_tell_apart_are_tied() -> None:
    (row,) = tuning.rivals(table(noise=5.0), "truncated").to_dict("records")
    assert row["tied"]


def test_one_value_has_no_rivals() -> None:
    alone = table()
    alone = alone[alone["plausibility"] != 0.3]
    with pytest.raises(ValueError, match="expected two plausibilities of 'codit' or more; got 1"):
        tuning.rivals(alone, "codit")


def test_gains_are_over_direct_and_over_truncation_at_the_same_value() -> None:
    gained = tuning.gains(table())
    assert len(gained) == 2 * 2 * 2
    found = gained.groupby(["plausibility", "against"])["estimate"].mean().round(2).to_dict()
    assert found == {
        (0.1, "direct"): 0.3, (0.1, "truncated"): 0.25,
        (0.3, "direct"): 0.1, (0.3, "truncated"): 0.1,
    }  # fmt: skip
    assert (gained["p_holm"] >= gained["p"]).all()
    assert tuning.all_gain(gained) is True


def test_noise_that_is_each_prompt_s_own_is_averaged_first() -> None:
    own = table(students=1)
    own["strict"] += (own["arm"] == "CoDIT .1") * own["seed"]
    wide = crossed.table(own, "strict", "CoDIT .1", "Direct", by="arm").mean(0, keepdims=True)
    (first, *_) = tuning.gains(own, seeds=False).to_dict("records")
    assert first["text"] == evidence.difference_text(crossed.difference(wide))


def test_a_sure_loss_refutes_and_an_unsure_gain_leaves_it_open() -> None:
    gained = tuning.gains(table())
    lost = gained.assign(estimate=[-0.1, *gained["estimate"][1:]])
    assert tuning.all_gain(lost) is False
    unsure = gained.assign(p_holm=[0.5, *gained["p_holm"][1:]])
    assert tuning.all_gain(unsure) is None


def test_gains_are_counted_in_words() -> None:
    gained = tuning.gains(table())
    least = gained.loc[gained["estimate"].idxmin(), "text"]
    assert tuning.gains_text(gained) == f"8 of 8 gains (corrected p < .05), 0 losses; least {least}"
