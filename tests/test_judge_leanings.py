"""What moves a judge besides quality: tables by hand, and the numbers that must come out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from codit import judge_leanings
from codit.win_rates import INVERSE_PENALTIES

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


def test_a_response_beside_itself_wins_nothing() -> None:
    itself = compared([FLIP] * 8, one="codit", other="codit", part="itself")
    both = pd.concat([compared(VERDICTS), itself], ignore_index=True)
    found = judge_leanings.wins(both)
    pd.testing.assert_frame_equal(found, judge_leanings.wins(compared(VERDICTS)))


def test_the_raw_rate_is_the_mean_preference_of_each_judge_and_pair() -> None:
    verdicts = [WIN, TIE, LOSS, WIN, WIN, TIE, LOSS, WIN]
    other = compared(verdicts, judge="B", other="truncated")
    found = judge_leanings.wins(pd.concat([compared(VERDICTS), other], ignore_index=True))
    raw = found[found["kind"] == "raw"].set_index(["who", "compared"])
    assert raw.loc[("B", "codit with truncated"), "value"] == 5 / 8
    assert raw.loc[("B", "codit with truncated"), "ties"] == 2 / 8
    assert ("B", "codit with direct") not in raw.index
    assert raw.loc[("verifier", "codit with truncated"), "value"] == pytest.approx(3.5 / 8)


def test_of_a_few_pairs_the_raw_rate_stands_alone() -> None:
    found = judge_leanings.wins(compared(VERDICTS[:4])).set_index(["who", "kind"])
    assert found.loc[("A", "raw"), "value"] == pytest.approx((0 + 0.5 + 1 + 0.5) / 4)
    assert found.loc[("A", "length-controlled"), ["value", "low", "high"]].isna().all()
    assert found.loc[("A", "length-controlled"), "pairs"] == 4


def test_where_the_longer_always_wins_equal_lengths_bring_the_rate_to_a_half() -> None:
    verdicts = [WIN if k % 4 else LOSS for k in range(16)]
    table = compared(verdicts).assign(length_one=20)
    longer = table["id"].isin([f"p{k}" for k in range(16) if k % 4])
    table["length_other"] = np.where(longer, 10, 30)
    found = judge_leanings.wins(table).set_index(["who", "kind"])["value"]
    assert found["A", "raw"] == 0.75
    assert 0.45 < found["A", "length-controlled"] < 0.7
    alike = judge_leanings.wins(table.assign(length_other=20)).set_index(["who", "kind"])["value"]
    # Of n pairs the fit's penalty takes 1 / (n C), for the C that was chosen.
    fits = 0.75 - 1 / (16 * np.array(INVERSE_PENALTIES))
    assert np.abs(fits - alike["A", "length-controlled"]).min() < 1e-6


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


def test_a_slope_weighs_prompts_by_the_spread_of_their_lengths() -> None:
    told = {"p0": ((8, 16), (3.0, 5.0)), "p1": ((4, 64), (6.0, 6.0)), "p2": ((5, 50), (1.0, NAN))}
    rows = [
        {"judge": "A", "part": "arms", "id": name, "length": size, "score": score, "verifier": NAN}
        for name, (lengths, values) in told.items()
        for size, score in zip(lengths, values, strict=True)
    ]
    (found,) = judge_leanings.length(pd.DataFrame(rows)).to_dict("records")
    # p0: doublings -.5 and .5, points -1 and 1; p1: doublings -2 and 2, no points; p2 has one.
    assert found["value"] == pytest.approx((0.5 + 0.5) / (0.5 + 8))
    assert found["prompts"] == 2


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
