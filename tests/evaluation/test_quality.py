"""The quality measures against hand-made texts, and the authors' repetition rule at its edges."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit.evaluation import quality

CYCLE = "".join(chr(0x4E00 + i) for i in range(50))  # 50 different characters


def cycle(length: int) -> str:
    return (CYCLE * (length // 50 + 1))[:length]


def one_bigram(times: int) -> str:
    """101 characters: "ab" `times` times, kept apart so that every other bigram is unique."""
    unique = iter(chr(0x5000 + i) for i in range(200))
    text = "".join("ab" + next(unique) for _ in range(times))
    return text + "".join(next(unique) for _ in range(101 - len(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * 99, False),
        (" " * 50 + "a" * 99 + " " * 50, False),
        ("ab" * 49, False),
        ("ab" * 50, True),
        (" " * 200 + string.ascii_letters[:10], False),
        (cycle(549), False),
        (cycle(550), True),
        (one_bigram(16), True),
        (one_bigram(15), False),
        ("", False),
    ],
)
def test_repetition_follows_the_authors_rule_to_the_character(text: str, expected: bool) -> None:
    assert quality.is_repetitive(text) is expected


def test_the_edge_texts_are_what_they_claim_to_be() -> None:
    assert len(one_bigram(16)) == len(one_bigram(15)) == 101
    assert one_bigram(16).count("ab") / 100 == 0.16
    assert [math.ceil((length - 99) / 50) for length in (549, 550)] == [9, 10]


@pytest.mark.parametrize(("n", "at_least"), [(3, 18), (4, 20)])
def test_three_and_four_grams_have_their_own_thresholds(n: int, at_least: int) -> None:
    gram = string.ascii_lowercase[:n]

    def text(times: int) -> str:  # 100 n-grams; single letters fall below the bigram threshold
        unique = iter(chr(0x5000 + i) for i in range(200))
        made = "".join(gram + next(unique) for _ in range(times))
        return made + "".join(next(unique) for _ in range(100 + n - 1 - len(made)))

    made = [text(at_least - 1), text(at_least)]
    shares = [t.count(gram) / (len(t) - n + 1) for t in made]
    assert shares == [pytest.approx((at_least - 1) / 100), pytest.approx(at_least / 100)]
    alone = {k: v for k, v in quality.SHARES.items() if k == n}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "SHARES", alone)
        assert [quality.is_repetitive(t) for t in made] == [False, True]


def test_ordinary_prose_is_not_repetitive() -> None:
    text = (
        "The river rises in the hills north of the town and runs past two mills before it meets "
        "the sea. In summer children swim below the bridge, and in winter the banks freeze hard."
    )
    assert not quality.is_repetitive(text)
    assert quality.is_repetitive(text * 10)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_gets_a_verdict_and_short_ones_a_negative(text: str) -> None:
    verdict = quality.is_repetitive(text)
    assert verdict is False or len(text.strip()) >= 100


def test_distinct_counts_different_n_grams_over_all_texts() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b"], ["c"]]
    assert quality.distinct(texts, n=1) == pytest.approx(3 / 7)
    assert quality.distinct(texts, n=2) == pytest.approx(2 / 4)
    assert quality.distinct(texts, n=3) == pytest.approx(2 / 2)
    assert math.isnan(quality.distinct(texts, n=5))
    assert quality.distinct([[1, 2], [1, 2]], n=2) == 0.5


def test_distinct_refuses_n_grams_without_length() -> None:
    with pytest.raises(ValueError, match=r"n must be at least 1; got 0. Use 1, 2 or 3."):
        quality.distinct([["a"]], n=0)


def test_repetition_compresses_better_than_variety() -> None:
    varied = [chr(0x4E00 + i) * 2 for i in range(300)]
    assert quality.compression_ratio(["the same"] * 300) > 10 * quality.compression_ratio(varied)
    assert math.isnan(quality.compression_ratio([]))


def test_entropy_is_in_nats() -> None:
    assert quality.entropy("abcd") == pytest.approx(math.log(4))
    assert quality.entropy("aab") == pytest.approx(-(2 / 3) * math.log(2 / 3) + math.log(3) / 3)
    assert quality.entropy("aaaa") == 0.0
    assert math.isnan(quality.entropy([]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_entropy_lies_between_zero_and_the_log_of_the_kinds(values: list[int]) -> None:
    assert 0 <= quality.entropy(values) <= math.log(len(set(values))) + 1e-12


def test_a_dataset_is_summarised_in_one_row() -> None:
    rows = [
        {"response": "yes it is", "is_completed": True, "score": [-0.1, -0.2, -0.3, 0.0]},
        {"response": "no", "is_completed": True, "score": [-1.0, 0.0]},
        {"response": "ab" * 50, "is_completed": False, "score": [-1.0] * 6},
        {"response": "", "is_completed": True, "score": [0.0]},
    ]
    summary = quality.summarise(rows)
    assert summary["rows"] == 4
    assert summary["completion_rate"] == 0.75
    assert summary["repetition_rate"] == 0.25
    assert summary["empty_rate"] == 0.25
    assert summary["characters"] == pytest.approx((9 + 2 + 100 + 0) / 4)
    assert summary["characters_median"] == pytest.approx(5.5)
    assert summary["words"] == pytest.approx(5 / 4)
    assert summary["words_median"] == 1.0
    assert summary["tokens"] == pytest.approx(13 / 4)
    assert summary["tokens_median"] == 3.0
    assert [summary[f"distinct_{n}"] for n in (1, 2, 3)] == [1.0, 1.0, 1.0]
    assert summary["first_token_entropy"] == pytest.approx(math.log(3))
    assert summary["compression_ratio"] > 1


def test_what_is_not_known_is_nan_and_never_a_number() -> None:
    summary = quality.summarise([{"response": "hello there"}])
    assert math.isnan(summary["completion_rate"])
    assert math.isnan(summary["tokens"])
    empty = quality.summarise([])
    assert empty.pop("rows") == 0
    assert all(math.isnan(value) for value in empty.values())


def test_another_tokeniser_decides_what_the_first_token_is() -> None:
    rows = [{"response": "ab"}, {"response": "ac"}]
    assert quality.summarise(rows)["first_token_entropy"] == pytest.approx(math.log(2))
