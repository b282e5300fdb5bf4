"""What a study of judges shows: tables by hand, and the numbers that must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from codit import judge_evidence

NAN = float("nan")


def scored(
    judge: str, arm: str, scores: list[float], truth: list[float], **more: Any
) -> pd.DataFrame:
    """Scores of one judge on one arm: prompt k has scores[k], and truth[k] by the verifier."""
    n = len(scores)
    values = {
        "judge": judge,
        "part": "arms",
        "arm": arm,
        "id": [f"p{k}" for k in range(n)],
        "sample": 0,
        "budget": 0,
        "length": 10,
        "score": scores,
        "verifier": truth,
        "state": "ok",
    }
    return pd.DataFrame({**values, **more})


TRUTH = {"direct": [4.0, 6.0, 8.0, 10.0], "codit": [5.0, 5.0, 9.0, 9.0]}
JUDGED = {
    ("A", "direct"): [4.0, 6.0, 8.0, 10.0],
    ("A", "codit"): [7.0, 7.0, 10.0, 10.0],
    ("B", "direct"): [5.0, 6.0, 8.0, NAN],
    ("B", "codit"): [7.0, 8.0, 9.0, 10.0],
}
SCORES = pd.concat(
    [scored(judge, arm, told, TRUTH[arm]) for (judge, arm), told in JUDGED.items()],
    ignore_index=True,
)
BLIND = SCORES.assign(verifier=NAN)


def test_judges_are_compared_with_each_other_and_with_the_verifier() -> None:
    found = judge_evidence.reliability(SCORES).set_index(["one", "other"])
    assert list(found.index) == [("A", "B"), ("A", "verifier"), ("B", "verifier")]
    assert found.loc[("A", "verifier"), "equal"] == 4 / 8
    assert found.loc[("A", "B"), "equal"] == pytest.approx(4 / 7)  # B has no score of one
    assert found.loc[("B", "verifier"), "n"] == 7
    assert (found["spearman_low"] <= found["spearman"]).all()
    alone = judge_evidence.reliability(BLIND)
    assert list(zip(alone["one"], alone["other"], strict=True)) == [("A", "B")]
    assert judge_evidence.reliability(BLIND[BLIND["judge"] == "A"]).empty


def test_errors_that_go_together_are_seen() -> None:
    (row,) = judge_evidence.error_agreement(SCORES).to_dict("records")
    errors = {
        name: np.array(
            [
                told - true
                for arm in ("direct", "codit")
                for told, true in zip(JUDGED[name, arm], TRUTH[arm], strict=True)
            ]
        )
        for name in ("A", "B")
    }
    both = np.isfinite(errors["B"])
    ranks = [pd.Series(errors[name][both]).rank() for name in ("A", "B")]
    assert row["value"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert judge_evidence.error_agreement(BLIND).empty
    assert judge_evidence.error_agreement(SCORES[SCORES["judge"] == "A"]).empty


def test_means_and_differences_of_arms_are_by_everyone_who_scores() -> None:
    means = judge_evidence.arms(SCORES).set_index(["who", "arm"])
    assert means.loc[("verifier", "direct"), "value"] == 7
    assert means.loc[("A", "codit"), "value"] == 8.5
    assert means.loc[("B", "direct"), "value"] == pytest.approx(19 / 3)
    assert means.loc[("B", "direct"), "n"] == 3
    gaps = judge_evidence.differences(SCORES, [("codit", "direct")]).set_index("who")
    assert gaps["value"].to_dict() == {
        "verifier": 0.0,
        "A": 1.5,
        "B": pytest.approx((2 + 2 + 1) / 3),  # of the prompts that it scored in both arms
    }
    assert gaps.loc["B", "holds"]
    assert gaps.loc["verifier", "holds"] is None
    assert list(judge_evidence.differences(BLIND, [("codit", "direct")])["who"]) == ["A", "B"]


def pool() -> pd.DataFrame:
    """Two prompts with four responses each: what a judge and the verifier say."""
    told = {
        "p0": ([3.0, 5.0, NAN, 9.0], [2.0, 8.0, 10.0, 6.0]),
        "p1": ([NAN, NAN, NAN, NAN], [4.0, 4.0, 9.0, 1.0]),
        "p2": ([7.0, 7.0, 6.0, 7.0], [5.0, 10.0, 10.0, 10.0]),
    }
    rows = [
        {"judge": "A", "part": "pool", "arm": "pool", "id": name, "sample": k}
        | {"score": scores[k], "verifier": truth[k]}
        for name, (scores, truth) in told.items()
        for k in range(4)
    ]
    return pd.DataFrame(rows)


def test_the_kept_response_is_judged_by_the_verifier() -> None:
    found = judge_evidence.best_of(pool()).set_index(["who", "n"])
    # Of one: the first. Of two: A keeps 5 > 3 (8), nothing known: the first (4), a tie: the first.
    assert found.loc[("A", 1), "value"] == pytest.approx((2 + 4 + 5) / 3)
    assert found.loc[("A", 2), "value"] == pytest.approx((8 + 4 + 5) / 3)
    assert found.loc[("A", 4), "value"] == pytest.approx((6 + 4 + 5) / 3)
    assert found.loc[("verifier", 4), "value"] == pytest.approx((10 + 9 + 10) / 3)
    assert found.loc[("A", 2), "share"] == pytest.approx(6 / (6 + 0 + 5))
    assert found.loc[("verifier", 2), "share"] == 1
    assert np.isnan(found.loc[("A", 1), "share"])


def test_without_a_verifier_nobody_can_say_what_was_kept() -> None:
    found = judge_evidence.best_of(pool().assign(verifier=NAN))
    assert found.empty
    assert {"who", "n", "value", "low", "high", "share", "role"} <= set(found)


CUT = pd.concat(
    [
        scored("A", "codit", [2.0, 4.0, 9.0, 9.0], [NAN] * 4),
        scored("A", "codit", [2.0, 4.0, NAN, NAN], [NAN] * 4, part="budget", budget=7),
        scored("A", "codit", [NAN] * 4, [NAN] * 4, part="budget", budget=3),
    ],
    ignore_index=True,
)


def test_a_cut_reply_costs_what_stands_in_its_place() -> None:
    found = judge_evidence.failures(CUT).set_index("budget")
    assert found.loc[7, "failed"] == 0.5
    assert found.loc[7, "full"] == 6
    assert found.loc[7, "dropped"] == 3 - 6
    assert found.loc[7, "minus one"] == (2 + 4 - 1 - 1) / 4 - 6
    assert found.loc[7, "five"] == (2 + 4 + 5 + 5) / 4 - 6
    assert found.loc[7, "full of failed"] == 9
    assert found.loc[7, "full of kept"] == 3
    assert found.loc[3, "failed"] == 1
    assert np.isnan(found.loc[3, "dropped"])
    assert found.loc[3, "minus one"] == -1 - 6


def test_its_error_has_an_interval_and_no_number_where_nothing_is_left() -> None:
    found = judge_evidence.failure_errors(CUT).set_index(["budget", "treatment"])
    assert found.loc[(7, "dropped"), "value"] == -3
    assert found.loc[(7, "five"), "value"] == -2
    assert (3, "dropped") not in found.index
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    assert found.loc[(7, "dropped"), "failed"] == 0.5
    nothing = judge_evidence.failure_errors(SCORES)
    assert nothing.empty
    assert {"judge", "failed", "treatment", "value"} <= set(nothing)
    assert judge_evidence.failures(SCORES).empty


def test_costs_are_summed_over_the_parts_of_a_run() -> None:
    told = pd.DataFrame(
        [
            {"judge": "A", "run": run, "questions": 10, "cached": cached, "calls": 10 - cached}
            | {"seconds": 2.0, "prompt_tokens": 100, "completion_tokens": 30}
            | {"ok": 9, "honoured": 8}
            for run, cached in ((1, 0), (1, 4), (2, 10), (2, 10))
        ]
    )
    first, second = judge_evidence.costs(told).to_dict("records")
    assert (first["judgements"], first["cached"], first["calls"]) == (20, 4, 16)
    assert (first["judged/s"], first["ok"], first["honoured"]) == (5.0, 0.9, 0.8)
    assert (second["calls"], second["cached"]) == (0, 20)


def test_whoever_scores_has_a_colour_of_their_own() -> None:
    from codit.figures import COLOURS

    roles = [judge_evidence.role(who, SCORES) for who in ("verifier", "A", "B")]
    assert len(set(roles)) == 3
    assert set(roles) <= set(COLOURS)


def test_judges_keep_the_order_of_the_study() -> None:
    turned = pd.concat([SCORES[SCORES["judge"] == name] for name in ("B", "A")])
    assert judge_evidence.judges(turned) == ["B", "A"]
    assert list(dict.fromkeys(judge_evidence.arms(turned)["who"])) == ["verifier", "B", "A"]
