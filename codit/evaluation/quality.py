"""What can be said of a dataset of responses without a judge: repetition, length, diversity.

Nothing is downloaded or tokenised. Values and choices without a source are ours.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

SHORTEST = 100  # characters; shorter texts are never called repetitive
SHARES = {2: 0.16, 3: 0.18, 4: 0.20}  # n-gram length -> share of its most frequent n-gram
LONG, LONG_COUNT = 100, 10  # one 100-gram that occurs ten times


def is_repetitive(text: str) -> bool:
    """Return whether a text repeats itself, by the CoDIT authors' rule.

    With f_n the share of the most frequent of the overlapping character n-grams:
    f_2 >= .16 or f_3 >= .18 or f_4 >= .20 or one 100-gram occurs at least 10 times. Fewer than 100
    characters without surrounding white space are never repetitive. Source: the paper's code.
    """
    if len(text.strip()) < SHORTEST:
        return False
    if any(_top(text, n) / (len(text) - n + 1) >= share for n, share in SHARES.items()):
        return True
    return _top(text, LONG) >= LONG_COUNT


def distinct(texts: Iterable[Sequence[Hashable]], *, n: int) -> float:
    """Return the share of different n-grams among all n-grams of a set of texts (of words, of ids).

    In (0, 1], NaN where no text has n words. It falls as a set grows: compare sets of equal size.
    Source: Li et al. 2016 (arXiv 1510.03055), who count it in each text.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}. Use 1, 2 or 3.")
    grams = Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))
    return len(grams) / grams.total() if grams else math.nan


def compression_ratio(texts: Iterable[str]) -> float:
    """Return how many times smaller the texts become under zlib: high means repetitive.

    About 2 to 3 for varied English, NaN without any text. zlib sees repetition within 32 kB only.
    """
    data = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data, 9)) if data else math.nan


def entropy(values: Iterable[Hashable]) -> float:
    """Return the entropy of the values' frequencies in nats; NaN without values.

    Of first tokens it shows shared noise: responses drawn with one seed for all rows begin alike.
    """
    counts = Counter(values)
    if not counts:
        return math.nan
    shares = [count / counts.total() for count in counts.values()]
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the quality measures of a dataset of responses; NaN where nothing is known.

    Rows have `response` and, where known, `is_completed` and `score` (a number per token). Returned
    are `rows`; `completion_rate`, `repetition_rate`, `empty_rate` (shares); means and medians per
    response of `characters`, `words` (split at white space), `tokens`; `distinct_1` to `_3` and
    `first_token_entropy` (nats), of words; `compression_ratio`.
    """
    rows = list(rows)
    texts = [row["response"] for row in rows]
    split = [text.split() for text in texts]
    completed = [bool(row["is_completed"]) for row in rows if row.get("is_completed") is not None]
    lengths = {
        "characters": [len(text) for text in texts],
        "words": [*map(len, split)],
        "tokens": [len(row["score"]) for row in rows if row.get("score") is not None],
    }
    mean = statistics.fmean
    return {
        "rows": len(rows),
        "completion_rate": _average(mean, completed),
        "repetition_rate": _average(mean, [is_repetitive(text) for text in texts]),
        "empty_rate": _average(mean, [not text.strip() for text in texts]),
        **{name: _average(mean, values) for name, values in lengths.items()},
        **{f"{k}_median": _average(statistics.median, values) for k, values in lengths.items()},
        **{f"distinct_{n}": distinct(split, n=n) for n in (1, 2, 3)},
        "compression_ratio": compression_ratio(texts),
        "first_token_entropy": entropy(tokens[0] for tokens in split if tokens),
    }


def _top(text: str, n: int) -> int:
    counts = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    return max(counts.values(), default=0)


def _average(how: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    return float(how(values)) if values else math.nan
