"""What a dataset shares with benchmarks, and its rows with each other; no model, no server.

A text is compared by its words: Unicode compatibility forms, case folded, invisible characters and
punctuation left out. A mark belongs to the letter before it. Where a script puts no spaces between
words, each letter with its marks is a word: Chinese, Japanese, Thai, Lao, Khmer, Burmese. Values
and choices without a source are ours.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codit.dataset.prompts import TEXTS, TURNS, check_read, conversation_of, turns_of
from codit.files import read_lines

LEAST, USUAL = 8, 13  # words in a run: the range and the default
SHINGLE = 3  # words in a shingle, of which near-duplicates share most
PERMUTATIONS = 128  # a MinHash's standard error is then at most .044
WEIGHTS = (0.05, 0.95)  # a pair proposed in vain costs little, one missed is missed
IDS = ("id", "question_id", "key")  # of benchmarks' rows
FIELDS = ("instruction", "response", "earlier turns")
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED += r"\p{Line_Break=Complex_Context}"  # Unicode's class of South East Asian letters
WORD = rf"[\p{{L}}\p{{N}}--[{UNSPACED}]][\p{{L}}\p{{N}}\p{{M}}--[{UNSPACED}]]*"
WORD += r"|[\p{L}\p{N}]\p{M}*"
UNSEEN = r"[\p{Cf}\p{Default_Ignorable_Code_Point}]+"  # joiners, soft hyphens, ...

Words = tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's prompts, text by id, and how many rows or turns had no usable one."""

    name: str
    prompts: Mapping[str, str]
    left_out: int = 0


@dataclass(frozen=True)
class Hit:
    """One text of the dataset that shares a run of words with a benchmark."""

    line: int  # number of the row, from 1
    row: str  # the row's id, or its number where it has none
    field: str  # one of `FIELDS`
    benchmark: str
    prompt: str  # whose run stands first in the text; of equals the first
    text: str  # the words they share


def contaminated(
    rows: Iterable[Mapping[str, Any]], benchmarks: Sequence[Benchmark], *, n: int = USUAL
) -> Iterator[Hit]:
    """Yield the texts that share n words in a row with a benchmark's prompt, once a benchmark.

    Benchmarks' answers are not known here; a response is checked for prompts. Paraphrases and
    translations share no n-gram and are not found. n is 8 to 13: less finds phrases that everybody
    uses. A prompt of fewer than n but at least 8 words matches where all of it stands in a text;
    one of fewer than 8 only where it is all of the text. ValueError: n outside its range,
    benchmarks of one name, or a row without a text.

    Source: n-grams of 8 to 13 words: Brown et al. 2020 (arXiv 2005.14165), Appendix C.
    """
    if not LEAST <= n <= USUAL:
        raise ValueError(f"n must lie in [{LEAST}, {USUAL}]; got {n}. Usual is {USUAL}.")
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"expected benchmarks of different names; got {names}. Rename a file.")
    runs = _runs(benchmarks, n)
    for line, row in enumerate(rows, start=1):
        name = str(line) if row.get("id") is None else str(row["id"])
        for where, texts in texts_of(row).items():
            found: dict[str, tuple[str, str]] = {}
            for split in map(words, texts):
                for start in range(max(1, len(split) - LEAST + 1)):
                    for run, (benchmark, prompt) in runs.get(split[start : start + LEAST], ()):
                        if split[start : start + len(run)] == run:
                            found.setdefault(benchmark, (prompt, " ".join(run)))
            yield from (Hit(line, name, where, one, *shared) for one, shared in found.items())


def tally(
    hits: Iterable[Hit], benchmarks: Sequence[Benchmark], *, rows: int, n: int
) -> dict[str, Any]:
    """Return what a card says of the overlap with benchmarks, hit or not, as JSON values."""
    hits = list(hits)

    def shared(some: Sequence[Hit]) -> dict[str, Any]:
        n_rows = len({hit.line for hit in some})
        return {"rows_hit": n_rows, "share": n_rows / rows if rows else 0.0}

    def about(one: Benchmark) -> dict[str, Any]:
        own = [hit for hit in hits if hit.benchmark == one.name]
        counts = Counter(hit.field for hit in own)
        return {
            "name": one.name,
            "prompts": len(one.prompts),
            "left_out": one.left_out,
            "prompts_hit": len({hit.prompt for hit in own}),
            **shared(own),
            **{where: counts[where] for where in FIELDS},
        }

    return {"rows": rows, "n": n, **shared(hits), "benchmarks": [*map(about, benchmarks)]}


def near_duplicates(texts: Iterable[str], *, threshold: float = 0.8) -> dict[int, int]:
    """Return the texts that nearly repeat an earlier one: their places, and the earlier one's.

    J(A, B) = |A and B| / |A or B| of the sets of three-word shingles. MinHash (Broder 1997)
    proposes, and what is reported has J >= threshold. A text is compared with those that repeat
    none. Equal sets are never missed; of pairs just at .8 one in twenty is, of those at .85 one in
    150. A text of fewer than three words is one shingle; one without words repeats nothing.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1]; got {threshold}. Usual is .8.")
    import datasketch

    texts = list(texts)
    at = min(threshold, 0.9)  # above, one band would be left, which misses more than it saves
    lsh = datasketch.MinHashLSH(at, num_perm=PERMUTATIONS, weights=WEIGHTS)
    empty = datasketch.MinHash(num_perm=PERMUTATIONS)
    found = {}
    for index, shingles in enumerate(map(_shingles, texts)):
        minhash = empty.copy()
        minhash.update_batch(shingles)
        for of in sorted(lsh.query(minhash)):
            other = _shingles(texts[of])
            if len(shingles & other) >= threshold * len(shingles | other):
                found[index] = of
                break
        else:
            if shingles:
                lsh.insert(index, minhash)
    return found


def words(text: str) -> Words:
    """Return a text's words as they are compared: letters and digits with their marks only."""
    import regex  # here: every command would wait for it

    folded = unicodedata.normalize("NFKC", regex.sub(UNSEEN, "", text)).casefold()
    whole = unicodedata.normalize("NFKC", folded)  # folding takes some letters apart
    return tuple(regex.findall(WORD, whole, regex.VERSION1))


def read_benchmark(path: str | Path) -> Benchmark:
    """Read a benchmark's prompts from JSON lines; its name is the file's without the ending.

    Rows have a prompt in a layout of `codit.dataset.prompts` (the user's turns count) or `turns`
    (texts), and perhaps `id`, `question_id` or `key`. The turns after the first are named
    ID#2, ID#3, ... ValueError: a line is no JSON object, ids repeat, or no row has a usable prompt.
    """
    asked: list[tuple[str, Any]] = []
    for number, row in enumerate(read_rows(path), start=1):
        own = next((str(row[key]) for key in IDS if row.get(key) is not None), str(number))
        turns = _turns(row) or [None]  # a row without a prompt is one that cannot be used
        asked += [(own + f"#{place}" * (place > 1), turn) for place, turn in enumerate(turns, 1)]
    texts = {key: turn for key, turn in asked if isinstance(turn, str) and words(turn)}
    if not texts:
        raise ValueError(
            f"expected rows with instruction, prompt, messages or turns in {path}; got "
            f"{len(asked)} without. Rename the column."
        )
    if len(dict(asked)) < len(asked):
        raise ValueError(f"expected every id once in {path}; got some again. Number the rows.")
    return Benchmark(Path(path).stem, texts, len(asked) - len(texts))


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, without `score`, most of a dataset's memory."""
    for _, row in read_lines(path):
        row.pop("score", None)
        yield row


def texts_of(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the texts of a dataset's row by field: instruction, response, earlier turns.

    The row is in a layout of `codit.dataset.prompts`: its last user turn is the instruction, what
    follows is the response; it may be a `response` alone. ValueError: it cannot be read.
    """
    alone = not any(row.get(name) for name in (*TURNS, *TEXTS)) and row.get("response") is not None
    try:
        if alone:
            check_read(row, ("response",))
        turns = conversation_of({**row, "instruction": "-"} if alone else row)
    except ValueError as error:
        raise ValueError(
            f"row {row.get('id')!r:.60}: {error}; what is not read is not checked."
        ) from None
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns))
    said = [turn["content"] for turn in turns]
    return {
        "instruction": [] if alone else said[last : last + 1],
        "response": said[last + 1 :],
        "earlier turns": said[:last],
    }


def _runs(
    benchmarks: Sequence[Benchmark], n: int
) -> dict[Words, list[tuple[Words, tuple[str, str]]]]:
    """Return all runs, each once a benchmark with its first prompt, by their first words."""
    first: dict[tuple[Words, str], str] = {}
    for benchmark in benchmarks:
        for key, text in benchmark.prompts.items():
            split = words(text)
            for start in range(max(1, len(split) - n + 1)):
                first.setdefault((split[start : start + n], benchmark.name), key)
    runs = defaultdict(list)
    for (run, name), key in first.items():
        runs[run[:LEAST]].append((run, (name, key)))
    return runs


def _shingles(text: str) -> set[bytes]:
    split = words(text)
    starts = range(max(1, len(split) - SHINGLE + 1)) if split else ()
    joined = (" ".join(split[start : start + SHINGLE]) for start in starts)
    return {shingle.encode("utf-8", "surrogatepass") for shingle in joined}


def _turns(row: Mapping[str, Any]) -> list[Any]:
    """Return the prompts of a benchmark's row, unchecked."""
    if isinstance(row.get("turns"), list):
        return list(row["turns"])
    try:
        turns = turns_of(row)
    except ValueError:
        return []
    return [turn["content"] for turn in turns if turn["role"] == "user"]
