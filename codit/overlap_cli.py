"""`codit decontaminate`: flags, what it prints and writes, and its status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from codit import overlap
from codit.overlap_texts import FIELDS, read_benchmark, read_rows, texts_of

Repeated = tyro.conf.UseAppendAction
COLUMNS = ("prompts", "left_out", "prompts_hit", "rows_hit", "share", *FIELDS)


def decontaminate(
    *,
    data: Path,
    benchmark: Annotated[tuple[Path, ...], Repeated],
    n: int = overlap.USUAL,
    near_duplicates: float | None = None,
    hits: Path | None = None,
    fail_on_hit: bool = False,
) -> int:
    """Say which rows of a dataset share words in a row with a benchmark's prompts.

    Instructions and responses are checked apart, without a model or a server. The dataset is not
    changed; where its card lies beside it, the card says what was found.

    Args:
        data: the dataset, ending in .jsonl: "instruction" and "response", or "messages".
        benchmark: JSON lines with "instruction", "prompt", "messages" or "turns"; may be repeated.
            It is called by the file's name.
        n: words in a row, 8 to 13. A shorter prompt matches as a whole.
        near_duplicates: also count the instructions and the responses that nearly repeat an
            earlier one: share of three-word shingles, .8 say.
        hits: write every hit to this file of JSON lines.
        fail_on_hit: status 1 where there is any hit.

    Returns:
        int: exit status.

    Raises:
        ValueError: no benchmark, one of a name twice, an empty dataset, or hits that would replace
            an input.

    Source: n-grams of 8 to 13 words: Brown et al. 2020; the rest: ours.
    """
    if not benchmark:
        raise ValueError("expected at least one --benchmark; got none. Name a file of prompts.")
    if hits is not None and hits.resolve() in {path.resolve() for path in (data, *benchmark)}:
        raise ValueError(f"hits would replace {hits}, which is read. Name another file.")
    if near_duplicates is not None:
        overlap.near_duplicates([], threshold=near_duplicates)  # a wrong one is said at once
    from tqdm.auto import tqdm

    from codit import dataset_card
    from codit.dataset_file import Files
    from codit.files import replacing

    card = Files(data).beside(".README.md")
    known = [read_benchmark(path) for path in benchmark]
    counted: Counter[str] = Counter()
    rows = _counted(tqdm(read_rows(data), "overlap", unit="row", disable=None), counted)
    found = list(overlap.contaminated(rows, known, n=n))
    if not counted["rows"]:
        raise ValueError(f"expected rows in {data}; it is empty.")
    tally = overlap.tally(found, known, rows=counted["rows"], n=n)
    if near_duplicates is not None:
        tally["near_duplicates"] = _near_duplicates(data, near_duplicates)
    print("\n".join(table(tally)))
    if hits is not None:
        _write(hits, found)
        print(hits)
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        with replacing(card) as stream:
            stream.write(dataset_card.with_decontamination(text, tally).encode())
        print(f"{card}: section Decontamination")
    return int(fail_on_hit and bool(found))


def table(tally: Mapping[str, Any]) -> list[str]:
    """Return a tally as lines of text, a benchmark each, and its sums.

    Args:
        tally: from `overlap.tally`, with `near_duplicates` where these were looked for.

    Returns:
        list[str]: lines of equal columns, then sentences.

    Source: ours.
    """
    lines = [["benchmark", *(name.replace("_", " ") for name in COLUMNS)]]
    for one in tally["benchmarks"]:
        values = [f"{one[k]:.4%}" if k == "share" else str(one[k]) for k in COLUMNS]
        lines.append([one["name"], *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [_padded(line, widths) for line in lines]
    shown.append(
        f"{tally['rows_hit']} of {tally['rows']} rows share {tally['n']} words in a row, or a "
        "whole shorter prompt, with a benchmark"
    )
    if near := tally.get("near_duplicates"):
        shown.append(
            f"near-duplicates of an earlier row, Jaccard >= {near['threshold']:g}: "
            f"{near['instruction']} of {near['instructions']} prompts, "
            f"{near['response']} of {near['responses']} responses"
        )
    return shown


def _padded(line: Sequence[str], widths: Sequence[int]) -> str:
    name, *values = line
    cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *cells])


def _counted(rows: Iterable[Any], counter: Counter[str]) -> Iterator[Any]:
    for row in rows:
        counter["rows"] += 1
        yield row


def _near_duplicates(data: Path, threshold: float) -> dict[str, Any]:
    """Return how many prompts and responses nearly repeat an earlier one."""
    asked: dict[Any, str] = {}
    answered: list[str] = []
    for number, row in enumerate(read_rows(data)):
        texts = texts_of(row)
        # Several responses to one prompt repeat it on purpose: it counts once.
        key = number if row.get("id") is None else str(row["id"])
        for text in texts["instruction"]:
            asked.setdefault(key, text)
        answered += texts["response"]
    found = {
        name: len(overlap.near_duplicates(texts, threshold=threshold))
        for name, texts in (("instruction", asked.values()), ("response", answered))
    }
    totals = {"instructions": len(asked), "responses": len(answered)}
    return {"threshold": threshold, **found, **totals}


def _write(path: Path, found: Iterable[overlap.Hit]) -> None:
    from codit.files import line_of, replacing

    with replacing(path) as stream:
        stream.writelines(line_of(asdict(hit)).encode() for hit in found)
