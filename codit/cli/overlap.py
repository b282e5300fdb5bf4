"""`codit decontaminate`: flags, what it prints and writes, and its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from codit.cli.flags import Repeated
from codit.evaluation import overlap


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
        data: the dataset, ending in .jsonl: "instruction" and "response", "messages" or another
            layout that `codit synthesize` writes or reads.
        benchmark: JSON lines with "instruction", "prompt", "messages" or "turns"; may be repeated.
            It is called by the file's name.
        n: words in a row, 8 to 13. A shorter prompt matches as a whole.
        near_duplicates: also count the instructions and the responses that nearly repeat an
            earlier one: share of three-word shingles, .8 say.
        hits: write every hit to this file of JSON lines.
        fail_on_hit: status 1 where there is any hit.
    """
    if not benchmark:
        raise ValueError("expected at least one --benchmark; got none. Name a file of prompts.")
    if near_duplicates is not None:
        overlap.near_duplicates([], threshold=near_duplicates)  # a wrong one is said at once
    from tqdm.auto import tqdm

    from codit.dataset import card as dataset_card
    from codit.dataset.output import Files
    from codit.files import check_apart, replacing, write_lines

    check_apart([] if hits is None else [hits], [data, *benchmark])
    card = Files(data).beside(".README.md")
    known = [overlap.read_benchmark(path) for path in benchmark]
    rows = list(overlap.read_rows(data))
    if not rows:
        raise ValueError(f"expected rows in {data}; it is empty.")
    found = list(overlap.contaminated(tqdm(rows, "overlap", unit="row", disable=None), known, n=n))
    tally = overlap.tally(found, known, rows=len(rows), n=n)
    if near_duplicates is not None:
        tally["near_duplicates"] = _near_duplicates(rows, near_duplicates)
    print("\n".join(table(tally)))
    if hits is not None:
        print(write_lines(hits, map(asdict, found)))
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        with replacing(card) as stream:
            stream.write(dataset_card.with_decontamination(text, tally).encode())
        print(f"{card}: section Decontamination")
    return int(fail_on_hit and bool(found))


def table(tally: Mapping[str, Any]) -> list[str]:
    """Return a tally of `overlap.tally` as lines of text, a benchmark each, and its sums."""
    import pandas as pd

    columns = ("name", "prompts", "left_out", "prompts_hit", "rows_hit", "share", *overlap.FIELDS)
    frame = pd.DataFrame(tally["benchmarks"], columns=columns)
    frame["share"] = frame["share"].map("{:.4%}".format)
    frame = frame.rename(columns=lambda name: name.replace("_", " "))
    lines = frame.to_string(index=False).splitlines()
    lines.append(
        f"{tally['rows_hit']} of {tally['rows']} rows share {tally['n']} words in a row, or a "
        "whole shorter prompt, with a benchmark"
    )
    if near := tally.get("near_duplicates"):
        lines.append(
            f"near-duplicates of an earlier row, Jaccard >= {near['threshold']:g}: "
            f"{near['instruction']} of {near['instructions']} prompts, "
            f"{near['response']} of {near['responses']} responses"
        )
    return lines


def _near_duplicates(rows: Sequence[Mapping[str, Any]], threshold: float) -> dict[str, Any]:
    """Return how many prompts and responses nearly repeat an earlier one."""
    texts = [overlap.texts_of(row) for row in rows]
    names = [number if row.get("id") is None else str(row["id"]) for number, row in enumerate(rows)]
    # Several responses to one prompt repeat it on purpose: it counts once.
    asked = dict(zip(names, (one["instruction"] for one in texts), strict=True)).values()
    given = {"instruction": [text for one in asked for text in one]}
    given["response"] = [text for one in texts for text in one["response"]]
    found = {name: len(overlap.near_duplicates(given[name], threshold=threshold)) for name in given}
    return {"threshold": threshold, **found, **{f"{name}s": len(given[name]) for name in given}}
