"""Overlap with benchmarks and near-duplicates, against searches that try everything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit.evaluation import overlap
from codit.evaluation.overlap import (
    Benchmark,
    Hit,
    contaminated,
    near_duplicates,
    read_benchmark,
    read_rows,
    tally,
    texts_of,
    words,
)

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
        assert int(found[0].prompt) in expected
        shared = found[0].text.split()
        assert len(shared) == min(n, len(prompts[int(found[0].prompt)]))
        for whole in (text, prompts[int(found[0].prompt)]):
            assert longest_run(whole, shared) == len(shared)


@pytest.mark.parametrize(("length", "expected"), [(12, 0), (13, 1)])
def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not(length: int, expected: int) -> None:
    text = "before " + " ".join(NUMBERS[3 : 3 + length]) + " after"
    assert len(hits(text, PROMPT)) == expected


def test_what_stands_first_in_the_text_is_given_with_its_prompt() -> None:
    text = f"x {' '.join(NUMBERS[2:19])} y {' '.join(NUMBERS[:14])} z"
    (found,) = hits(text, "another prompt " + " ".join(NUMBERS[:14]), PROMPT)
    assert (found.prompt, found.text) == ("1", " ".join(NUMBERS[2:15]))
    assert (found.line, found.row, found.field, found.benchmark) == (1, "r", "instruction", "b")


def test_case_punctuation_and_line_breaks_hide_nothing() -> None:
    text = "\n\n".join(f"**{word.upper()}**," for word in NUMBERS[:20])
    assert hits(text, PROMPT)[0].text == " ".join(NUMBERS[:13])


def test_words_in_another_order_or_with_one_exchanged_are_no_hit() -> None:
    assert not hits(" ".join(reversed(NUMBERS[:20])), PROMPT)
    changed = [*NUMBERS[:10], "other", *NUMBERS[11:20]]
    assert not hits(" ".join(changed), PROMPT, n=13)
    assert hits(" ".join(changed), PROMPT, n=8)[0].text == " ".join(NUMBERS[:8])


def test_a_shorter_prompt_matches_as_a_whole_and_a_very_short_one_alone() -> None:
    nine, four = " ".join(NUMBERS[:9]), "write a short poem"
    assert hits(f"please {nine} now", nine)[0].text == nine
    assert not hits(f"please {' '.join(NUMBERS[:8])} now", nine), "not all of it"
    assert hits("Write a short poem!", four)[0].text == four
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
@given(TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_only_true_near_duplicates_are_reported(texts: list[str], threshold: float) -> None:
    found = near_duplicates(texts, threshold=threshold)
    for index, of in found.items():
        assert of < index
        assert of not in found
        assert jaccard(texts[index], texts[of]) >= threshold
    equal = {k for k, text in enumerate(texts) if any(jaccard(text, e) == 1 for e in texts[:k])}
    assert equal <= set(found), "never missed"


def changed(words_of: list[str], every: int, mark: str = "x") -> str:
    return " ".join(f"{mark}{k}" if k % every == 0 else word for k, word in enumerate(words_of))


MARKS = ((60, "x"), (20, "y"))


def test_minhash_misses_next_to_nothing_that_trying_all_pairs_finds() -> None:
    originals = [[f"t{k}w{j}" for j in range(200)] for k in range(110)]
    texts = [" ".join(one) for one in originals]
    near, far = ([changed(one, every, mark) for one in originals] for every, mark in MARKS)
    texts += near + far
    assert jaccard(texts[0], near[0]) > 0.85 > 0.8 > jaccard(texts[0], far[0]) > 0.7
    found = near_duplicates(texts, threshold=0.8)
    assert set(found.items()) <= {(110 + k, k) for k in range(110)}
    assert len(found) >= 109


def test_equal_texts_are_never_missed_and_point_to_the_first() -> None:
    texts = ["one two three four", "other words here", "One, two; three FOUR", "one two three four"]
    assert near_duplicates(texts, threshold=0.9) == {2: 0, 3: 0}


def test_of_several_earlier_texts_the_earliest_is_named() -> None:
    split = [f"w{k}" for k in range(300)]
    texts = [changed(split, 150, mark) for mark in "abc"]
    assert near_duplicates(texts, threshold=0.8) == {1: 0, 2: 0}


def test_texts_without_words_are_no_duplicates() -> None:
    assert near_duplicates(["", "!!", "", "a", "a"], threshold=0.5) == {4: 3}


def test_thousands_of_equal_texts_take_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    shingles = overlap._shingles

    def counted(text: str) -> set[bytes]:
        nonlocal made
        made += 1
        return shingles(text)

    monkeypatch.setattr(overlap, "_shingles", counted)
    assert len(near_duplicates(["the same few words again"] * 3_000)) == 2_999
    assert made <= 6_000, "once each, and once the first"


@pytest.mark.parametrize("threshold", [0.0, 1.1])
def test_a_threshold_has_a_range(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        near_duplicates(["a"], threshold=threshold)


# Texts


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  panic,\n**ever**!", ["don", "t", "panic", "ever"]),
        ("snake_case 3.14", ["snake", "case", "3", "14"]),
        ("Straße ＡＢＣ ﬁn", ["strasse", "abc", "fin"]),
        ("北京是首都 ok", ["北", "京", "是", "首", "都", "ok"]),
        ("こんにちは", ["こ", "ん", "に", "ち", "は"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("?! ... ¨", []),
        ("प्रकाश की दिन", ["प्रकाश", "की", "दिन"]),  # Devanagari: vowel signs are marks
        ("शांति, दुःख।", ["शांति", "दुःख"]),
        ("தமிழ் நாடு", ["தமிழ்", "நாடு"]),
        ("كَتَبَ الوَلَدُ؟", ["كَتَبَ", "الوَلَدُ"]),  # Arabic with its vowels
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("ดีครับ ๑๒", ["ดี", "ค", "รั", "บ", "๑๒"]),  # Thai has no spaces between words
        ("ខ្ញុំ រៀន", ["ខ្", "ញុំ", "រៀ", "ន"]),
        ("ສະບາຍ", ["ສ", "ະ", "ບ", "າ", "ຍ"]),
        ("カ\u3099ｷﾞ・ー", ["ガ", "ギ", "ー"]),
        ("\u1112\u1161\u11ab 한", ["한", "한"]),  # Hangul, letter by letter
        ("cafe\u0301 CAFÉ x\u0301", ["café", "café", "x\u0301"]),
        ("\u03aa\u0301 \u0390", ["\u0390", "\u0390"]),  # folded, each is another sequence
    ],
)
def test_words_are_what_is_left_without_case_form_and_punctuation(
    text: str, expected: list[str]
) -> None:
    assert list(words(text)) == expected


def test_hindi_texts_without_a_common_word_are_no_hit() -> None:
    """Their consonants are equal, word by word."""
    prompt = "को दीन मा से ना की लो रे ता मो पी जे फा"
    assert not hits("की दिन मे सो ने का ली रा ती मु पे जो फी", prompt, n=8)
    assert hits(prompt, prompt)[0].text == prompt


@pytest.mark.parametrize(
    "hide",
    ["\u00ad", "\u200b", "\u200d", "\ufeff", "\u202e", "\u2060", "\ufe0f", "\u034f", "\U000e0061"],
)
@pytest.mark.parametrize(
    "prompt",
    [
        "name the three largest cities that lie on the coast",
        "समुद्र तट पर बसे तीन सबसे बड़े नगरों के नाम लिखो",
        "سه شهر بزرگ را که کنار دریا هستند نام ببر",
        "назови три самых больших города на берегу моря",
        "三つの大きな海辺の街を言って",
    ],
)
def test_invisible_characters_hide_no_copy(prompt: str, hide: str) -> None:
    hidden = hide.join(prompt)
    assert hits(hidden, prompt, n=8)
    assert words(hidden) == words(prompt) == words(f"{hide}{prompt}{hide}")
    assert near_duplicates([prompt, hidden]) == {1: 0}


def test_zero_width_non_joiners_are_no_part_of_a_persian_word() -> None:
    assert words("می\u200cخواهم") == words("میخواهم") == ("میخواهم",)


def test_every_known_form_of_a_benchmark_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bench.jsonl",
        {"question_id": 81, "turns": ["first one", "second one"]},
        {"key": 1000, "prompt": "asked by key"},
        {"id": "x", "instruction": "an instruction"},
        {
            "messages": [
                {"role": "system", "content": "not compared"},
                {"role": "user", "content": "hello there"},
                {"role": "assistant", "content": "not compared"},
                {"role": "user", "content": "and again"},
            ]
        },
    )
    with path.open("a") as stream:
        stream.write('{"id": "y", "instruction": "a", "input": "b", "choices": ["c"]}\n')
    found = read_benchmark(path)
    assert found.name == "bench"
    assert found.left_out == 0
    assert found.prompts == {
        "81": "first one",
        "81#2": "second one",
        "1000": "asked by key",
        "x": "an instruction",
        "4": "hello there",
        "4#2": "and again",
        "y": "a\n\nb",
    }


def test_rows_without_a_usable_prompt_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "good"}, {"text": "other column"}, {"prompt": " "}, {"prompt": 3}]
    rows += [{"prompt": "!?"}, {"turns": []}, {"messages": ["text"]}]
    found = read_benchmark(write(tmp_path / "b.jsonl", *rows))
    assert (found.name, found.prompts, found.left_out) == ("b", {"1": "good"}, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n', "got 1 without. Rename"),
        ("", "got 0 without"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 of .*JSON object"),
        ('["a"]\n', "line 1 of .*expected an object"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', "every id once"),
    ],
)
def test_a_benchmark_that_cannot_be_read_says_why(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "b.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_benchmark(tmp_path / "b.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_benchmark(tmp_path / "none.jsonl")


def test_rows_are_read_whatever_ends_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"id": 1}', "", '{"id": 2, "score": [-0.5, -1e-3]}', '{"id": 3, "score": [[1]]}']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = list(read_rows(path))
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert "score" not in rows[1], "most of a dataset's memory"


def test_a_row_in_either_form_has_the_same_texts() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    expected = {"instruction": ["three"], "response": ["four"]}
    expected["earlier turns"] = ["be kind", "one", "two"]
    assert texts_of({"messages": messages}) == expected
    assert texts_of({"messages": messages, "instruction": "three", "response": "four"}) == expected
    assert texts_of({"instruction": "a", "response": "b"}) == {
        "instruction": ["a"],
        "response": ["b"],
        "earlier turns": [],
    }
    assert texts_of({"instruction": "a", "input": "b", "output": "c"})["instruction"] == ["a\n\nb"]
    assert texts_of({"response": "b"}) == {
        "instruction": [],
        "response": ["b"],
        "earlier turns": [],
    }
    assert set(expected) == set(overlap.FIELDS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 5, "text": "x"}, "what is not read is not checked"),
        ({"id": 5, "instruction": 3}, "row 5: instruction must be text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "must be a part of type 'text'"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be text; got NoneType"),
        ({"messages": "x"}, "messages must be a non-empty list"),
        ({"instruction": "a", "context": "b"}, "the field context is not read"),
        ({"input": "a", "response": "b"}, "the field input is not read"),
    ],
)
def test_a_row_whose_texts_are_not_found_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts_of(row)
