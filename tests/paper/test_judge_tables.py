"""What a study of judges shows: tables by hand, and the numbers that must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from codit.evaluation.win_rates import INVERSE_PENALTIES
from codit.paper import judge_tables

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
    found = judge_tables.reliability(SCORES).set_index(["one", "other"])
    assert list(found.index) == [("A", "B"), ("A", "verifier"), ("B", "verifier")]
    assert found.loc[("A", "verifier"), "equal"] == 4 / 8
    assert found.loc[("A", "B"), "equal"] == pytest.approx(4 / 7)  # B has no score of one
    assert found.loc[("B", "verifier"), "n"] == 7
    assert (found["spearman_low"] <= found["spearman"]).all()
    alone = judge_tables.reliability(BLIND)
    assert list(zip(alone["one"], alone["other"], strict=True)) == [("A", "B")]
    assert judge_tables.reliability(BLIND[BLIND["judge"] == "A"]).empty


def test_agreement_with_the_verifier_is_that_of_a_hand() -> None:
    found = judge_tables.reliability(SCORES).set_index(["one", "other"]).loc[("A", "verifier")]
    # A: 4 6 8 10 7 7 10 10, the verifier: 4 6 8 10 5 5 9 9. Squared distances: 10 of 8 responses;
    # variances 4.1875 and 4.5, means .75 apart.
    assert found["kappa"] == pytest.approx(1 - (10 / 8) / (4.1875 + 4.5 + 0.75**2))
    # Ranks 1 2 5 7 3.5 3.5 7 7 and 1 4 5 8 2.5 2.5 6.5 6.5, less their mean 4.5.
    assert found["spearman"] == pytest.approx(36.5 / np.sqrt(39.5 * 41))
    ends = [f"{m}{end}" for m in ("spearman", "kappa") for end in ("", "_low", "_high")]
    assert list(judge_tables.reliability(SCORES)) == ["one", "other", "equal", *ends, "n"]


def test_scores_are_matched_by_response_and_not_by_row() -> None:
    mixed = SCORES.sample(frac=1, random_state=1).sort_values("judge", kind="stable")
    for measure in (judge_tables.reliability, judge_tables.error_agreement):
        one, other = (measure(table).drop(columns="n") for table in (SCORES, mixed))
        points = [name for name in one if not name.endswith(("low", "high"))]
        pd.testing.assert_frame_equal(one[points], other[points])


def test_errors_that_go_together_are_seen() -> None:
    (row,) = judge_tables.error_agreement(SCORES).to_dict("records")
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
    assert judge_tables.error_agreement(BLIND).empty
    assert judge_tables.error_agreement(SCORES[SCORES["judge"] == "A"]).empty


def test_means_and_differences_of_arms_are_by_everyone_who_scores() -> None:
    means = judge_tables.arms(SCORES).set_index(["who", "arm"])
    assert means.loc[("verifier", "direct"), "value"] == 7
    assert means.loc[("A", "codit"), "value"] == 8.5
    assert means.loc[("B", "direct"), "value"] == pytest.approx(19 / 3)
    assert means.loc[("B", "direct"), "n"] == 3
    gaps = judge_tables.differences(SCORES, [("codit", "direct")]).set_index("who")
    assert gaps["value"].to_dict() == {
        "verifier": 0.0,
        "A": 1.5,
        "B": pytest.approx((2 + 2 + 1) / 3),  # of the prompts that it scored in both arms
    }
    assert gaps.loc["B", "holds"]
    assert gaps.loc["verifier", "holds"] is None
    assert list(judge_tables.differences(BLIND, [("codit", "direct")])["who"]) == ["A", "B"]
    assert set(judge_tables.arms(BLIND)["who"]) == {"A", "B"}
    back = judge_tables.differences(SCORES, [("direct", "codit")]).set_index("who")
    assert back["value"].tolist() == (-gaps["value"]).tolist()
    for table in (means, gaps):
        assert (table["low"] <= table["value"]).all()
        assert (table["value"] <= table["high"]).all()


def test_other_parts_of_a_study_are_no_scores_of_arms() -> None:
    more = [SCORES, scored("A", "pool", [1.0] * 4, [1.0] * 4, part="pool")]
    more.append(scored("A", "codit", [NAN] * 4, TRUTH["codit"], part="budget", budget=3))
    table = pd.concat(more, ignore_index=True)
    pairs = [("codit", "direct")]
    for measure in (
        judge_tables.reliability,
        judge_tables.arms,
        judge_tables.error_agreement,
    ):
        pd.testing.assert_frame_equal(measure(table), measure(SCORES))
    expected = judge_tables.differences(SCORES, pairs)
    pd.testing.assert_frame_equal(judge_tables.differences(table, pairs), expected)


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
    found = judge_tables.best_of(pool()).set_index(["who", "n"])
    # Of one: the first. Of two: A keeps 5 > 3 (8), nothing known: the first (4), a tie: the first.
    assert found.loc[("A", 1), "value"] == pytest.approx((2 + 4 + 5) / 3)
    assert found.loc[("A", 2), "value"] == pytest.approx((8 + 4 + 5) / 3)
    assert found.loc[("A", 4), "value"] == pytest.approx((6 + 4 + 5) / 3)
    assert found.loc[("verifier", 4), "value"] == pytest.approx((10 + 9 + 10) / 3)
    assert found.loc[("A", 2), "share"] == pytest.approx(6 / (6 + 0 + 5))
    assert found.loc[("verifier", 2), "share"] == 1
    assert found.loc[("A", 4), "share"] == pytest.approx((4 + 0 + 0) / (8 + 5 + 5))
    assert np.isnan(found.loc[("A", 1), "share"])
    assert found["value"].between(found["low"], found["high"]).all()


def test_what_is_kept_hangs_on_samples_and_not_on_the_order_of_rows() -> None:
    mixed = pool().sample(frac=1, random_state=0, ignore_index=True)
    pd.testing.assert_frame_equal(judge_tables.best_of(mixed), judge_tables.best_of(pool()))


def test_every_judge_chooses_by_its_own_scores() -> None:
    turned = pool().assign(judge="B")
    turned["score"] = -turned["verifier"]  # keeps the worst: 2, 1 and 5
    found = judge_tables.best_of(pd.concat([pool(), turned], ignore_index=True))
    found = found[found["n"] == 4]
    values = found.set_index("who")["value"]
    assert values["B"] == pytest.approx((2 + 1 + 5) / 3)
    assert values["A"] == pytest.approx((6 + 4 + 5) / 3)
    assert found.set_index("who").loc["B", "share"] == pytest.approx((0 - 3 + 0) / 18)


def test_without_a_verifier_nobody_can_say_what_was_kept() -> None:
    found = judge_tables.best_of(pool().assign(verifier=NAN))
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
    found = judge_tables.failures(CUT).set_index("budget")
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
    assert found.loc[3, "five"] == 5 - 6
    assert found.loc[7, "n"] == 4
    assert found.loc[7, "failed_low"] < 0.5 < found.loc[7, "failed_high"]


def test_a_response_without_a_full_score_is_no_part_of_an_error() -> None:
    full = scored("A", "codit", [2.0, 4.0, NAN, 9.0], [NAN] * 4)
    cut = scored("A", "codit", [2.0, NAN, 3.0, NAN], [NAN] * 4, part="budget", budget=7)
    table = pd.concat([full, cut], ignore_index=True)
    (row,) = judge_tables.failures(table).to_dict("records")
    assert (row["n"], row["full"], row["dropped"]) == (3, 5, 2 - 5)
    assert row["failed"] == pytest.approx(2 / 3)
    assert row["minus one"] == (2 - 1 - 1) / 3 - 5
    errors = judge_tables.failure_errors(table).set_index("treatment")["value"]
    assert errors.to_dict() == {"minus one": -5, "five": 4 - 5}  # one score has no interval


def test_its_error_has_an_interval_and_no_number_where_nothing_is_left() -> None:
    found = judge_tables.failure_errors(CUT).set_index(["budget", "treatment"])
    assert found.loc[(7, "dropped"), "value"] == -3
    assert found.loc[(7, "five"), "value"] == -2
    assert (3, "dropped") not in found.index
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    assert found.loc[(7, "dropped"), "failed"] == 0.5
    nothing = judge_tables.failure_errors(SCORES)
    assert nothing.empty
    assert {"judge", "failed", "treatment", "value"} <= set(nothing)
    assert judge_tables.failures(SCORES).empty


def test_costs_are_summed_over_the_parts_of_a_run() -> None:
    told = pd.DataFrame(
        [
            {"judge": "A", "run": run, "questions": 10, "cached": cached, "calls": 10 - cached}
            | {"seconds": 2.0, "prompt_tokens": 100, "completion_tokens": 30}
            | {"ok": 9, "honoured": 8}
            for run, cached in ((1, 0), (1, 4), (2, 10), (2, 10))
        ]
    )
    first, second = judge_tables.costs(told).to_dict("records")
    assert (first["judgements"], first["cached"], first["calls"]) == (20, 4, 16)
    assert (first["judged/s"], first["ok"], first["honoured"]) == (5.0, 0.9, 0.8)
    assert (second["calls"], second["cached"]) == (0, 20)


def test_whoever_scores_has_a_colour_of_their_own() -> None:
    from codit.paper.figures import COLOURS

    roles = [judge_tables.role(who, SCORES) for who in ("verifier", "A", "B")]
    assert len(set(roles)) == 3
    assert set(roles) <= set(COLOURS)


def test_judges_keep_the_order_of_the_study() -> None:
    turned = pd.concat([SCORES[SCORES["judge"] == name] for name in ("B", "A")])
    assert judge_tables.judges(turned) == ["B", "A"]
    assert list(dict.fromkeys(judge_tables.arms(turned)["who"])) == ["verifier", "B", "A"]


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
    found = judge_tables.order(pd.concat([compared(VERDICTS), itself], ignore_index=True))
    first, second = found.to_dict("records")
    assert (first["compared"], second["compared"]) == ("codit with direct", "codit with itself")
    assert first["pairs"] == 7
    assert first["flips"] == pytest.approx(1 / 7)
    assert first["reversed"] == pytest.approx(1 / 7)
    assert first["first"] == pytest.approx((0.5 * 6 + 1) / 7)
    assert second["flips"] == 0.25
    assert second["first"] == pytest.approx((0.5 * 3 + 1) / 4)


def test_win_rates_are_both_and_the_verifiers_come_from_its_scores() -> None:
    found = judge_tables.wins(compared(VERDICTS)).set_index(["who", "kind"])
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
    found = judge_tables.wins(blind)
    assert set(found["who"]) == {"A"}
    assert found["equal"].isna().all()


def test_a_response_beside_itself_wins_nothing() -> None:
    itself = compared([FLIP] * 8, one="codit", other="codit", part="itself")
    both = pd.concat([compared(VERDICTS), itself], ignore_index=True)
    found = judge_tables.wins(both)
    pd.testing.assert_frame_equal(found, judge_tables.wins(compared(VERDICTS)))


def test_the_raw_rate_is_the_mean_preference_of_each_judge_and_pair() -> None:
    verdicts = [WIN, TIE, LOSS, WIN, WIN, TIE, LOSS, WIN]
    other = compared(verdicts, judge="B", other="truncated")
    found = judge_tables.wins(pd.concat([compared(VERDICTS), other], ignore_index=True))
    raw = found[found["kind"] == "raw"].set_index(["who", "compared"])
    assert raw.loc[("B", "codit with truncated"), "value"] == 5 / 8
    assert raw.loc[("B", "codit with truncated"), "ties"] == 2 / 8
    assert ("B", "codit with direct") not in raw.index
    assert raw.loc[("verifier", "codit with truncated"), "value"] == pytest.approx(3.5 / 8)


def test_of_a_few_pairs_the_raw_rate_stands_alone() -> None:
    found = judge_tables.wins(compared(VERDICTS[:4])).set_index(["who", "kind"])
    assert found.loc[("A", "raw"), "value"] == pytest.approx((0 + 0.5 + 1 + 0.5) / 4)
    assert found.loc[("A", "length-controlled"), ["value", "low", "high"]].isna().all()
    assert found.loc[("A", "length-controlled"), "pairs"] == 4


def test_where_the_longer_always_wins_equal_lengths_bring_the_rate_to_a_half() -> None:
    verdicts = [WIN if k % 4 else LOSS for k in range(16)]
    table = compared(verdicts).assign(length_one=20)
    longer = table["id"].isin([f"p{k}" for k in range(16) if k % 4])
    table["length_other"] = np.where(longer, 10, 30)
    found = judge_tables.wins(table).set_index(["who", "kind"])["value"]
    assert found["A", "raw"] == 0.75
    assert 0.45 < found["A", "length-controlled"] < 0.7
    alike = judge_tables.wins(table.assign(length_other=20)).set_index(["who", "kind"])["value"]
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
    found = judge_tables.length(scores()).set_index(["who", "kind"])
    assert found["value"].to_dict() == {
        ("verifier", "score"): pytest.approx(-0.5),
        ("A", "score"): pytest.approx(1.0),
        ("A", "error"): pytest.approx(1.5),
    }
    alone = judge_tables.length(scores(truth=False))
    assert list(zip(alone["who"], alone["kind"], strict=True)) == [("A", "score")]


def test_a_slope_weighs_prompts_by_the_spread_of_their_lengths() -> None:
    told = {"p0": ((8, 16), (3.0, 5.0)), "p1": ((4, 64), (6.0, 6.0)), "p2": ((5, 50), (1.0, NAN))}
    rows = [
        {"judge": "A", "part": "arms", "id": name, "length": size, "score": score, "verifier": NAN}
        for name, (lengths, values) in told.items()
        for size, score in zip(lengths, values, strict=True)
    ]
    (found,) = judge_tables.length(pd.DataFrame(rows)).to_dict("records")
    # p0: doublings -.5 and .5, points -1 and 1; p1: doublings -2 and 2, no points; p2 has one.
    assert found["value"] == pytest.approx((0.5 + 0.5) / (0.5 + 8))
    assert found["prompts"] == 2


def test_misses_are_errors_by_what_is_true_of_a_response() -> None:
    found = judge_tables.misses(scores()).set_index(["correct", "obeyed"])
    # Of even prompts the shorter has 4, the longer 5; the verifier says 5 and 4.5.
    assert found["value"].to_dict() == {
        (False, False): -1.0,
        (False, True): 0.5,
        (True, False): 0.0,
        (True, True): 1.5,
    }
    assert found["n"].tolist() == [3, 3, 3, 3]
    assert found.loc[(True, True), "verifier"] == 4.5
    nothing = judge_tables.misses(scores(truth=False))
    assert nothing.empty
    assert {"correct", "obeyed", "value"} <= set(nothing)
