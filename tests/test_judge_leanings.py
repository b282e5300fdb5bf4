"""What moves a judge besides quality: tables by hand, and the numbers that must come out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from codit import judge_leanings

NAN = float("nan")


def compared(verdicts: list[tuple[str | None, str | None]], **more: object) -> pd.DataFrame:
    """Pairs judged in both orders; prompt k has verdicts[k], forward and swapped."""
    rows = [
        {
            "judge": "A",
            "part": "arms",
            "one": "codit",
            "other": "direct",
            "id": f"p{k}",
            "sample": 0,
            "order": order,
            "value": value,
            "state": "ok" if value else "empty",
            "length_one": 10 + k,
            "length_other": 12,
            "verifier_one": float(k % 3),
            "verifier_other": 1.0,
        }
        for k, both in enumerate(verdicts)
        for order, value in zip(("forward", "swapped"), both, strict=True)
    ]
    return pd.DataFrame(rows).assign(**more)


WIN, LOSS, TIE = ("first", "second"), ("second", "first"), ("tie", "tie")
FLIP = ("first", "first")
# By the verifier p0 loses (0 < 1), p1 is a tie, p2 wins, and so on.
VERDICTS = [LOSS, TIE, WIN, FLIP, WIN, WIN, ("first", None), LOSS]


def test_order_is_measured_on_pairs_judged_twice() -> None:
    itself = compared([TIE, FLIP, TIE, TIE], one="codit", other="codit", part="itself")
    found = judge_leanings.order(pd.concat([compared(VERDICTS), itself], ignore_index=True))
    first, second = found.to_dict("records")
    assert (first["compared"], second["compared"]) == ("codit with direct", "codit with itself")
    assert first["pairs"] == 7
    assert first["flips"] == pytest.approx(1 / 7)
    assert first["reversed"] == pytest.approx(1 / 7)
    assert first["first"] == pytest.approx((0.5 * 6 + 1) / 7)
    assert second["flips"] == 0.25
    assert second["first"] == pytest.approx((0.5 * 3 + 1) / 4)


def test_win_rates_are_both_and_the_verifiers_come_from_its_scores() -> None:
    found = judge_leanings.wins(compared(VERDICTS)).set_index(["who", "kind"])
    assert set(found.index) == {
        (who, kind) for who in ("A", "verifier") for kind in ("raw", "length-controlled")
    }
    # A: loss, tie, win, flip (half), win, win, none, loss.
    assert found.loc[("A", "raw"), "value"] == pytest.approx((0 + 0.5 + 1 + 0.5 + 1 + 1 + 0) / 7)
    assert found.loc[("A", "raw"), "pairs"] == 7
    assert found.loc[("A", "raw"), "ties"] == pytest.approx(2 / 7)
    # The verifier: 0, .5, 1, 0, .5, 1, 0, .5.
    assert found.loc[("verifier", "raw"), "value"] == pytest.approx(3.5 / 8)
    # They name the same winner, or a tie, in p0, p1, p2 and p5 of the seven.
    assert found.loc[("A", "raw"), "equal"] == pytest.approx(4 / 7)
    assert np.isnan(found.loc[("verifier", "raw"), "equal"])
    assert found["value"].between(found["low"], found["high"]).all()


def test_without_a_verifier_a_judges_rates_stand_alone() -> None:
    blind = compared(VERDICTS, verifier_one=NAN, verifier_other=NAN)
    found = judge_leanings.wins(blind)
    assert set(found["who"]) == {"A"}
    assert found["equal"].isna().all()


def scores(truth: bool = True) -> pd.DataFrame:
    """Two responses to each of six prompts: the second twice as long, one point higher for A."""
    rows = [
        {
            "judge": "A",
            "part": "arms",
            "id": f"p{k}",
            "score": 4.0 + k % 2 + longer,
            "length": 8 * (k + 1) * (1 + longer),
            "verifier": 5.0 - 0.5 * longer if truth else NAN,
            "correct": float(k % 2) if truth else NAN,
            "strict": float(longer) if truth else NAN,
        }
        for k in range(6)
        for longer in range(2)
    ]
    return pd.DataFrame(rows)


def test_length_is_weighed_within_prompts_beside_the_verifier() -> None:
    found = judge_leanings.length(scores()).set_index(["who", "kind"])
    assert found["value"].to_dict() == {
        ("verifier", "score"): pytest.approx(-0.5),
        ("A", "score"): pytest.approx(1.0),
        ("A", "error"): pytest.approx(1.5),
    }
    alone = judge_leanings.length(scores(truth=False))
    assert list(zip(alone["who"], alone["kind"], strict=True)) == [("A", "score")]


def test_misses_are_errors_by_what_is_true_of_a_response() -> None:
    found = judge_leanings.misses(scores()).set_index(["correct", "obeyed"])
    # Of even prompts the shorter has 4, the longer 5; the verifier says 5 and 4.5.
    assert found["value"].to_dict() == {
        (False, False): -1.0,
        (False, True): 0.5,
        (True, False): 0.0,
        (True, True): 1.5,
    }
    assert found["n"].tolist() == [3, 3, 3, 3]
    assert found.loc[(True, True), "verifier"] == 4.5
    nothing = judge_leanings.misses(scores(truth=False))
    assert nothing.empty
    assert {"correct", "obeyed", "value"} <= set(nothing)
