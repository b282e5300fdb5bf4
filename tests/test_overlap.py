"""Overlap with benchmarks and near-duplicates, against searches that try everything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import overlap
from codit.overlap import Hit, contaminated, near_duplicates, tally
from codit.overlap_texts import Benchmark, read_benchmark, words

NUMBERS = [f"w{k}" for k in range(40)]
PROMPT = " ".join(NUMBERS[:20])


def bench(*prompts: str, name: str = "b") -> Benchmark:
    return Benchmark(name, {str(place): text for place, text in enumerate(prompts)})


def hits(text: str, *prompts: str, n: int = 13) -> list[Hit]:
    return list(contaminated([{"id": "r", "instruction": text}], [bench(*prompts)], n=n))


def longest_run(text: list[str], prompt: list[str]) -> int:
    """The longest common run of words, by trying every place in both."""
    best = 0
    for i, j in itertools.product(range(len(text)), range(len(prompt))):
        length = 0
        while text[i + length : i + length + 1] == prompt[j + length : j + length + 1] != []:
            length += 1
        best = max(best, length)
    return best


def is_hit(text: list[str], prompt: list[str], n: int) -> bool:
    if len(prompt) < 8:
        return text == prompt
    return longest_run(text, prompt) >= min(n, len(prompt))


FEW = st.lists(st.sampled_from("abc"), min_size=1, max_size=24)  # so few that runs meet by chance


@settings(deadline=None, max_examples=300)
@given(st.lists(FEW, min_size=1, max_size=4), st.data(), st.sampled_from([8, 10, 13]))
def test_what_is_found_is_what_trying_everything_finds(
    prompts: list[list[str]], data: st.DataObject, n: int
) -> None:
    parts = [data.draw(FEW)]
    for prompt in data.draw(st.lists(st.sampled_from(prompts), max_size=3)):
        start = data.draw(st.integers(0, len(prompt)))
        parts += [prompt[start:], data.draw(FEW)]
    joined = list(itertools.chain(*parts))
    text = joined if data.draw(st.booleans()) else data.draw(st.sampled_from(prompts))
    expected = [place for place, prompt in enumerate(prompts) if is_hit(text, prompt, n)]
    found = hits(" ".join(text), *map(" ".join, prompts), n=n)
    assert len(found) == bool(expected)
    if expected:
        runs = {place: longest_run(text, prompts[place]) for place in expected}
        assert found[0].prompts == len(expected)
        assert found[0].n_words == max(runs.values())
        assert int(found[0].prompt) == max(runs, key=lambda place: (runs[place], -place))
        shared = found[0].text.split()
        assert longest_run(text, shared) == longest_run(shared, prompts[int(found[0].prompt)])


@pytest.mark.parametrize(("length", "expected"), [(12, 0), (13, 1)])
def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not(length: int, expected: int) -> None:
    text = "before " + " ".join(NUMBERS[3 : 3 + length]) + " after"
    assert len(hits(text, PROMPT)) == expected


def test_the_longest_run_is_given_with_its_prompt() -> None:
    text = f"x {' '.join(NUMBERS[:14])} y {' '.join(NUMBERS[2:19])} z"
    (found,) = hits(text, "another prompt " + " ".join(NUMBERS[:14]), PROMPT)
    assert (found.prompt, found.prompts, found.n_words) == ("1", 2, 17)
    assert found.text == " ".join(NUMBERS[2:19])
    assert (found.line, found.row, found.field, found.benchmark) == (1, "r", "instruction", "b")


def test_a_run_is_found_once_however_long_and_wherever_it_stands() -> None:
    prompt = tuple(NUMBERS[:20])
    index = overlap._indexed([prompt], 13)
    text = ("x", *prompt, "y", *prompt[:15])
    assert list(overlap._shared(text, [prompt], index)) == [(0, prompt), (0, prompt[:15])]


def test_case_punctuation_and_line_breaks_hide_nothing() -> None:
    text = "\n\n".join(f"**{word.upper()}**," for word in NUMBERS[:20])
    assert hits(text, PROMPT)[0].n_words == 20


def test_words_in_another_order_or_with_one_exchanged_are_no_hit() -> None:
    assert not hits(" ".join(reversed(NUMBERS[:20])), PROMPT)
    changed = [*NUMBERS[:10], "other", *NUMBERS[11:20]]
    assert not hits(" ".join(changed), PROMPT, n=13)
    assert hits(" ".join(changed), PROMPT, n=8)[0].n_words == 10


def test_a_shorter_prompt_matches_as_a_whole_and_a_very_short_one_alone() -> None:
    nine, four = " ".join(NUMBERS[:9]), "write a short poem"
    assert hits(f"please {nine} now", nine)[0].n_words == 9
    assert not hits(f"please {' '.join(NUMBERS[:8])} now", nine), "not all of it"
    assert hits("Write a short poem!", four)[0].n_words == 4
    assert not hits("write a short poem about trees", four)


def test_fields_rows_and_benchmarks_are_told_apart() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "instruction": PROMPT, "response": f"You say: {PROMPT}"},
        {"instruction": "nothing", "response": "of it"},
        {"response": " ".join(NUMBERS[20:])},
        {
            "id": 7,
            "messages": [
                {"role": "user", "content": PROMPT},
                {"role": "assistant", "content": "no"},
                {"role": "user", "content": "yes"},
                {"role": "assistant", "content": "no"},
            ],
        },
    ]
    known = [bench(PROMPT, name="one"), bench(" ".join(NUMBERS[20:]), PROMPT, name="two")]
    found = {(hit.line, hit.row, hit.field, hit.benchmark) for hit in contaminated(rows, known)}
    assert found == {
        (1, "a", "instruction", "one"),
        (1, "a", "instruction", "two"),
        (1, "a", "response", "one"),
        (1, "a", "response", "two"),
        (3, "3", "response", "two"),
        (4, "7", "earlier turns", "one"),
        (4, "7", "earlier turns", "two"),
    }


def test_a_tally_counts_rows_once_and_names_benchmarks_without_hits() -> None:
    rows = [{"id": "same", "instruction": PROMPT, "response": PROMPT}] * 3
    rows += [{"id": "other", "instruction": "x", "response": "y"}] * 5
    known = [bench(PROMPT, "never met", name="one"), bench("never met", name="two")]
    found = tally(contaminated(rows, known), known, rows=8, n=13)
    assert (found["rows"], found["n"], found["rows_hit"], found["share"]) == (8, 13, 3, 3 / 8)
    one, two = found["benchmarks"]
    counts = [one[key] for key in ("rows_hit", "instruction", "response", "earlier turns")]
    assert counts == [3, 3, 3, 0]
    assert (one["prompts"], one["prompts_hit"], two["rows_hit"], two["share"]) == (2, 1, 0, 0)
    assert json.loads(json.dumps(found)) == found


def test_rows_are_read_one_at_a_time() -> None:
    read = []

    def rows() -> Any:
        for place in range(10):
            read.append(place)
            yield {"instruction": PROMPT if place == 3 else "x"}

    next(iter(contaminated(rows(), [bench(PROMPT)])))
    assert read == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [7, 14])
def test_n_has_a_range(n: int) -> None:
    with pytest.raises(ValueError, match=r"\[8, 13\]"):
        hits("x", "y", n=n)


def test_benchmarks_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="different names"):
        list(contaminated([], [bench("a"), bench("b")]))


def test_a_benchmark_contaminates_a_dataset_made_of_it(prompts_dir: Path) -> None:
    for path in sorted(prompts_dir.glob("*.jsonl")):
        known = read_benchmark(path)
        rows = [{"id": key, "response": f"x {text} y"} for key, text in known.prompts.items()]
        long = [row for row in rows if len(words(row["response"])) >= 10]
        assert len(list(contaminated(long, [known]))) == len(long)


# Near-duplicates


def jaccard(a: str, b: str) -> float:
    first, second = (
        {tuple(split[k : k + 3]) for k in range(max(1, len(split) - 2))}
        for split in (words(a), words(b))
    )
    return len(first & second) / len(first | second)


TEXTS = st.lists(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=8).map(" ".join), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.booleans())
def test_only_and_exactly_true_near_duplicates_are_reported(
    texts: list[str], threshold: float, exact: bool
) -> None:
    found = near_duplicates(texts, threshold=threshold, exact=exact)
    assert [one.index for one in found] == sorted({one.index for one in found})
    for one in found:
        assert one.of < one.index
        assert one.jaccard == jaccard(texts[one.index], texts[one.of]) >= threshold
    if exact:
        firsts = [k for k, text in enumerate(texts) if all(jaccard(text, e) < 1 for e in texts[:k])]
        for index, text in enumerate(texts):
            before = [k for k in firsts if k < index and jaccard(text, texts[k]) >= threshold]
            assert (index in {one.index for one in found}) == bool(before)


def changed(words_of: list[str], every: int, mark: str = "x") -> str:
    return " ".join(f"{mark}{k}" if k % every == 0 else word for k, word in enumerate(words_of))


MARKS = ((60, "x"), (20, "y"))


def test_minhash_misses_next_to_nothing_that_trying_all_pairs_finds() -> None:
    originals = [[f"t{k}w{j}" for j in range(200)] for k in range(110)]
    texts = [" ".join(one) for one in originals]
    near, far = ([changed(one, every, mark) for one in originals] for every, mark in MARKS)
    texts += near + far
    assert jaccard(texts[0], near[0]) > 0.85 > 0.8 > jaccard(texts[0], far[0]) > 0.7
    everything = near_duplicates(texts, threshold=0.8, exact=True)
    proposed = near_duplicates(texts, threshold=0.8, exact=False)
    assert len(everything) == 110
    assert set(proposed) <= set(everything)
    assert len(proposed) >= 109


def test_equal_texts_are_never_missed_and_point_to_the_first() -> None:
    texts = ["one two three four", "other words here", "One, two; three FOUR", "one two three four"]
    for exact in (True, False):
        found = near_duplicates(texts, threshold=0.9, exact=exact)
        assert [(one.index, one.of, one.jaccard) for one in found] == [(2, 0, 1.0), (3, 0, 1.0)]


@pytest.mark.parametrize("exact", [True, False])
def test_of_several_earlier_texts_the_earliest_is_named(exact: bool) -> None:
    split = [f"w{k}" for k in range(300)]
    texts = [changed(split, 150, mark) for mark in "abc"]
    assert [one.of for one in near_duplicates(texts, threshold=0.8, exact=exact)] == [0, 0]


def test_texts_without_words_are_no_duplicates() -> None:
    assert near_duplicates(["", "!!", "", "a", "a"], threshold=0.5)[0].index == 4
    assert len(near_duplicates(["", "!!", "", "a", "a"], threshold=0.5)) == 1


def test_thousands_of_equal_texts_take_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    shingles = overlap._shingles

    def counted(text: str) -> set[str]:
        nonlocal made
        made += 1
        return shingles(text)

    monkeypatch.setattr(overlap, "_shingles", counted)
    assert len(near_duplicates(["the same few words again"] * 3_000)) == 2_999
    assert made == 3_000, "once each"


def test_equal_seeds_give_equal_reports() -> None:
    texts = [changed([f"t{k % 60}w{j}" for j in range(60)], 7 + k % 5) for k in range(400)]
    first = near_duplicates(texts, threshold=0.7, seed=3)
    assert first == near_duplicates(texts, threshold=0.7, seed=3)
    assert len(first) > 100


@pytest.mark.parametrize("threshold", [0.0, 1.1])
def test_a_threshold_has_a_range(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        near_duplicates(["a"], threshold=threshold)
