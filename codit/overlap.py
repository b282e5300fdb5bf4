"""What a dataset shares with benchmarks, and its rows with each other; no model, no server."""

from __future__ import annotations

import functools
import hashlib
import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codit.overlap_texts import FIELDS, Benchmark, texts_of, words

LEAST, USUAL = 8, 13  # words in a run: the range and the default
SHINGLE = 3  # ours: words in a shingle, of which near-duplicates share most
PERMUTATIONS = 128  # ours: a MinHash's standard error is then at most .044
WEIGHTS = (0.05, 0.95)  # ours: a pair proposed in vain costs little, one missed is missed
EXACT = 300  # ours: up to so many texts all pairs are compared
KEPT = 1_000  # ours: sets of shingles kept in memory

Words = tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """One text of the dataset that shares a run of words with a benchmark.

    Args:
        line: number of the row, from 1.
        row: the row's id, or its number where it has none.
        field: "instruction", "response" or "earlier turns".
        benchmark: its name.
        prompt: id of the prompt that shares the longest run; of equals the first.
        prompts: how many of the benchmark's prompts share a run with the text.
        n_words: length of the longest run, in words.
        text: its words.
    """

    line: int
    row: str
    field: str
    benchmark: str
    prompt: str
    prompts: int
    n_words: int
    text: str


@dataclass(frozen=True)
class Duplicate:
    """A text that nearly repeats an earlier one.

    Args:
        index: place of the text.
        of: place of the earliest text found that it repeats.
        jaccard: shared shingles over all shingles of both, exact.
    """

    index: int
    of: int
    jaccard: float


@dataclass
class _Index:
    """What is looked for in a text.

    `runs`: where each run of words stands, by prompt and place; `pairs`: the word pairs in them;
    `lengths`: theirs, from the shortest; `whole`: the prompts that are too short for a run.
    """

    runs: dict[Words, list[tuple[int, int]]] = field(default_factory=dict)
    pairs: set[Words] = field(default_factory=set)
    lengths: list[int] = field(default_factory=list)
    whole: dict[Words, list[int]] = field(default_factory=dict)


def contaminated(
    rows: Iterable[Mapping[str, Any]], benchmarks: Sequence[Benchmark], *, n: int = USUAL
) -> Iterator[Hit]:
    """Yield the texts that share n words in a row with a benchmark's prompt.

    Every n-gram of every prompt is in a hash table. A window moves over a text and jumps past any
    pair of neighbouring words that no n-gram holds, so most words are looked at once: time is
    linear in the texts. Benchmarks' answers are not known here; a response is checked for prompts.
    Paraphrases and translations share no n-gram and are not found.

    Args:
        rows: see `overlap_texts.texts_of`; read once, in order.
        benchmarks: what must not be in the dataset.
        n: words in a run, 8 to 13. Less finds phrases that everybody uses. A prompt of fewer than
            n but at least 8 words matches where all of it stands in a text; one of fewer than 8
            only where it is all of the text (ours).

    Yields:
        Hit: at most one for each text and benchmark; instructions and responses apart.

    Raises:
        ValueError: n outside its range, benchmarks of one name, or a row without a text.

    Source: n-grams of 8 to 13 words: Brown et al. 2020 (arXiv 2005.14165), Appendix C; rest: ours.
    """
    if not LEAST <= n <= USUAL:
        raise ValueError(f"n must lie in [{LEAST}, {USUAL}]; got {n}. Usual is {USUAL}.")
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"expected benchmarks of different names; got {names}. Rename a file.")
    keys = [(one.name, key) for one in benchmarks for key in one.prompts]
    prompts = [tuple(words(text)) for one in benchmarks for text in one.prompts.values()]
    index = _indexed(prompts, n)
    for line, row in enumerate(rows, start=1):
        name = str(line) if row.get("id") is None else str(row["id"])
        for where, texts in texts_of(row).items():
            best: dict[str, dict[int, Words]] = defaultdict(dict)
            for text in texts:
                for prompt, run in _shared(tuple(words(text)), prompts, index):
                    found = best[keys[prompt][0]]
                    if len(run) > len(found.get(prompt, ())):
                        found[prompt] = run
            for benchmark, found in best.items():
                first = min(found, key=lambda prompt: (-len(found[prompt]), prompt))
                run = found[first]
                shared = (keys[first][1], len(found), len(run), " ".join(run))
                yield Hit(line, name, where, benchmark, *shared)


def tally(
    hits: Iterable[Hit], benchmarks: Sequence[Benchmark], *, rows: int, n: int
) -> dict[str, Any]:
    """Return what a card says of the overlap with benchmarks.

    Args:
        hits: from `contaminated`.
        benchmarks: those it was given, with or without hits.
        rows: of the dataset.
        n: words in a run.

    Returns:
        dict: `rows`, `n`, `rows_hit`, `share` (of rows with any hit) and `benchmarks`, for each
        `name`, `prompts`, `left_out`, `prompts_hit` (ids named in hits), `rows_hit`, `share`, and
        hits by field: `instruction`, `response`, `earlier turns`. JSON values.

    Source: ours.
    """
    hits = list(hits)
    tables = []
    for one in benchmarks:
        own = [hit for hit in hits if hit.benchmark == one.name]
        lines = {hit.line for hit in own}
        table = {"name": one.name, "prompts": len(one.prompts), "left_out": one.left_out}
        table |= {"prompts_hit": len({hit.prompt for hit in own}), "rows_hit": len(lines)}
        table["share"] = len(lines) / rows if rows else 0.0
        tables.append(table | {where: sum(hit.field == where for hit in own) for where in FIELDS})
    total = len({hit.line for hit in hits})
    share = total / rows if rows else 0.0
    return {"rows": rows, "n": n, "rows_hit": total, "share": share, "benchmarks": tables}


def near_duplicates(
    texts: Iterable[str], *, threshold: float = 0.8, seed: int = 1, exact: bool | None = None
) -> list[Duplicate]:
    """Return the texts that nearly repeat an earlier one.

    Jaccard J(A, B) = |A and B| / |A or B| of the sets of three-word shingles. MinHash proposes
    pairs, and every pair is verified: what is reported has J >= threshold. Equal sets are never
    missed; of pairs just at a threshold of .8 one in twenty is, of those at .85 one in 150.

    Args:
        texts: any texts; one of fewer than three words is one shingle. Texts without any word are
            never duplicates.
        threshold: least J, in (0, 1]; 1: equal sets.
        seed: of the hash functions.
        exact: compare all pairs, which misses none. Default: up to 300 texts.

    Returns:
        list[Duplicate]: in the order of the texts; a text is reported once, with the earliest text
        that it repeats.

    Raises:
        ValueError: threshold outside its range.

    Source: Broder 1997; computed by datasketch; shingles, permutations, weights: ours.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1]; got {threshold}. Usual is .8.")
    texts = list(texts)
    exact = len(texts) <= EXACT if exact is None else exact
    earlier = _Everything() if exact else _Similar(threshold, seed)
    # All sets of a large dataset at once would not fit into memory.
    kept = functools.lru_cache(None if exact else KEPT)(lambda of: _shingles(texts[of]))
    first: dict[bytes, int] = {}
    found = []
    for index, text in enumerate(texts):
        shingles = _shingles(text)
        if not shingles:
            continue
        digest = hashlib.blake2b("\n".join(sorted(shingles)).encode("utf-8", "surrogatepass"))
        of = first.setdefault(digest.digest(), index)
        if of != index:
            found.append(Duplicate(index, of, 1.0))
            continue
        for of in earlier.proposed(index, shingles):
            other = kept(of)
            jaccard = len(shingles & other) / len(shingles | other)
            if jaccard >= threshold:
                found.append(Duplicate(index, of, jaccard))
                break
    return found


class _Everything:
    """Proposes all texts before this one."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def proposed(self, index: int, shingles: set[str]) -> list[int]:
        before = list(self.seen)
        self.seen.append(index)
        return before


class _Similar:
    """Proposes earlier texts whose MinHash shares a band with this one's."""

    def __init__(self, threshold: float, seed: int) -> None:
        import datasketch

        # Above .9 one band would be left, which misses more than it saves.
        at = min(threshold, 0.9)
        self.lsh = datasketch.MinHashLSH(at, num_perm=PERMUTATIONS, weights=WEIGHTS)
        self.empty = datasketch.MinHash(num_perm=PERMUTATIONS, seed=seed, hashfunc=zlib.crc32)

    def proposed(self, index: int, shingles: set[str]) -> list[int]:
        minhash = self.empty.copy()
        minhash.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
        before = sorted(self.lsh.query(minhash))
        self.lsh.insert(index, minhash, check_duplication=False)
        return before


def _shingles(text: str) -> set[str]:
    split = words(text)
    starts = range(max(1, len(split) - SHINGLE + 1)) if split else ()
    return {" ".join(split[start : start + SHINGLE]) for start in starts}


def _indexed(prompts: Sequence[Words], n: int) -> _Index:
    """Return what is looked for."""
    index = _Index()
    for number, prompt in enumerate(prompts):
        length = min(n, len(prompt))
        if length < LEAST:
            index.whole.setdefault(prompt, []).append(number)
            continue
        index.lengths = sorted({*index.lengths, length})
        for start in range(len(prompt) - length + 1):
            run = prompt[start : start + length]
            index.runs.setdefault(run, []).append((number, start))
        index.pairs.update(itertools.pairwise(prompt))
    return index


def _shared(text: Words, prompts: Sequence[Words], index: _Index) -> Iterator[tuple[int, Words]]:
    """Yield prompts and the runs, as long as they go, that the text shares with them."""
    yield from ((number, text) for number in index.whole.get(text, ()))
    if not index.lengths:
        return
    ends: dict[tuple[int, int], int] = {}  # by prompt and shift: where the last run ended
    for start in _starts(text, index.pairs, index.lengths[0]):
        for length in index.lengths:
            for number, place in index.runs.get(text[start : start + length], ()):
                end, prompt, shift = start + length, prompts[number], place - start
                if start < ends.get((number, shift), 0):
                    continue  # inside a run that was yielded
                while text[end : end + 1] == prompt[end + shift : end + shift + 1] != ():
                    end += 1
                ends[number, shift] = end
                yield number, text[start:end]


def _starts(text: Words, pairs: set[Words], length: int) -> Iterator[int]:
    """Yield where runs of a length begin whose neighbouring words are all known pairs."""
    start = 0
    while start + length <= len(text):
        at = start + length - 2
        while at >= start and text[at : at + 2] in pairs:
            at -= 1
        if at < start:
            yield start
        start = max(at, start) + 1
