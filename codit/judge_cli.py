"""`codit judge`: flags, what it writes and prints, and its status."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from codit.judge_prompts import REFERENCE_CATEGORIES
from codit.judge_requests import Asking, Judge

if TYPE_CHECKING:
    from codit.dataset_file import Files
    from codit.judge import Judged, Tally

JudgeFlags = Annotated[Judge, tyro.conf.arg(name="")]
AskingFlags = Annotated[Asking, tyro.conf.arg(name="")]
USUAL = Asking()

# pandas and the client are imported by the command that needs them: help takes no seconds.


def judge(
    *,
    data: Path,
    out: Path,
    judge: JudgeFlags,
    against: Path | None = None,
    best_of: int | None = None,
    conversations: bool = False,
    reference_categories: tuple[str, ...] = REFERENCE_CATEGORIES,
    samples: int = 1,
    cache: Path | None = None,
    dry_run: bool = False,
    asking: AskingFlags = USUAL,
) -> int:
    """Let an LLM score the responses of a dataset from 1 to 10, or compare two datasets.

    The key is read from OPENAI_API_KEY; a server of one's own needs none. Run the same command
    again after an interruption: what was paid for is in the cache and is not asked again.

    Args:
        data: JSON lines with a prompt ("instruction" or "messages") and "response".
        out: file for the result, ending in .jsonl; its manifest lies beside it.
        judge: whom to ask.
        against: another dataset: compare the two prompt by prompt, in both orders.
        best_of: keep, of the first so many responses to each prompt, the best one; out is the
            dataset of those that were kept.
        conversations: data holds conversations of two turns, as MT-Bench's: "question_id",
            "category", "turns", "responses", and "reference" for maths, reasoning and coding.
        reference_categories: categories of conversations that are judged with their reference;
            without any name none needs one.
        samples: judgements of each response; more than 1 only with a temperature above 0.
        cache: SQLite file of all replies; several runs may share one. Default: OUT.cache.sqlite.
        dry_run: check the rows, show how many questions, tokens and what cost at most, and stop:
            nothing is asked or written.
        asking: concurrency, waits, prices.

    Returns:
        int: exit status, 1 where too many judgements have no value.

    Source: scores and their defaults: the paper's script; the rest: ours.
    """
    modes = (against is not None, best_of is not None, conversations)
    if sum(modes) > 1:
        raise ValueError("expected one of --against, --best-of and --conversations; got more.")
    if not conversations and reference_categories != REFERENCE_CATEGORIES:
        raise ValueError("--reference-categories are those of --conversations. Add it.")
    from codit import dataset_file

    files = dataset_file.Files(out)
    read = [data, *([] if against is None else [against])]
    cache = files.beside(".cache.sqlite") if cache is None else cache
    _check_files(read, files, cache)
    how: dict[str, Any] = {"cache": cache, "samples": samples, "asking": asking}
    what: dict[str, Any] = {
        "against": against,
        "best_of": best_of,
        "conversations": conversations,
        "reference_categories": reference_categories,
    }
    if dry_run:
        from codit import judge_plan

        questions = judge_plan.questions(data, **what)
        print(judge_plan.table(judge_plan.plan(questions, judge, **how)))
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)  # before anything is paid
    judged = _judged(data, judge, **what, **how)
    if judged is None:
        return 1
    asked = {name: value for name, value in what.items() if name != "against"}
    _write(files, judged, _manifest(judge, judged, read, samples=samples, **asked))
    print(f"{out}: {summary_line(judged.summary)}\n{tally_line(judged.tally)}")
    return 0


def _check_files(read: list[Path], files: Files, cache: Path) -> None:
    """Check that there is something to read, and that no file would take another's place."""
    written = [path.resolve() for path in (files.out, files.beside(".manifest.json"))]
    for path in read:
        if not path.is_file():
            raise FileNotFoundError(f"expected a file of JSON lines at {path}; there is none.")
        if path.resolve() in written:
            raise ValueError(
                f"expected an out that is none of the datasets; got {path}. Rename it."
            )
    if cache.resolve() in written:
        raise ValueError(f"expected a cache that is no file of the result; got {cache}. Rename it.")


def _judged(
    data: Path,
    judge: Judge,
    *,
    against: Path | None,
    best_of: int | None,
    conversations: bool,
    reference_categories: tuple[str, ...],
    **how: Any,
) -> Judged | None:
    """Return what the judge said; None, and why on stderr, where too much of it has no value."""
    from codit import judge as judging

    try:
        if against is not None:
            return judging.compare(data, against, judge, **how)
        if best_of is not None:
            return judging.best_of(data, judge, n=best_of, **how)
        if conversations:
            how |= {"reference_categories": reference_categories}
            return judging.conversations(data, judge, **how)
        return judging.score(data, judge, **how)
    except judging.TooManyFailures as error:
        print(tally_line(error.judged.tally))
        print(f"codit: {error}", file=sys.stderr)
        return None


def _write(files: Files, judged: Judged, manifest: dict[str, Any]) -> None:
    """Write a result and, last, its manifest."""
    from codit import store

    with store.replacing(files.out) as stream:
        stream.writelines(_lines(judged))
    store.write_json(files.beside(".manifest.json"), manifest)


def summary_line(summary: dict[str, Any]) -> str:
    """Return what a judge said in one line.

    Args:
        summary: of a `judge.Judged`.

    Returns:
        str: how many have a value, mean and interval, share of failures; of a comparison both win
        rates, raw and length-controlled, how many pairs flip with the order, and the share of
        verdicts, ties aside, for what stood first (50 % without a bias).

    Source: ours.
    """
    n, known = summary["n"], summary["n_ok"]
    if "flip_rate" in summary:
        said = (
            f"{known} of {n} pairs decided: {summary['first']} for the first, {summary['tie']} "
            f"ties, {summary['second']} for the second, {summary['left_out']} rows without a "
            f"partner; win rate {_interval(summary)}, length-controlled {_controlled(summary)}; "
            f"flip rate {_share(summary['flip_rate'])}, "
            f"first-place rate {_share(summary['first_place_rate'])}"
        )
    else:
        said = f"{known} of {n} scored, mean {_interval(summary)}"
    if "turn_1" in summary:
        said += f", turn 1 {summary['turn_1']:.2f}, turn 2 {summary['turn_2']:.2f}"
    if "first_mean" in summary:
        said += f", first responses {summary['first_mean']:.2f}, {summary['ties']} ties"
    return f"{said}; {summary['failed']:.1%} of the judgements failed"


def tally_line(tally: Tally) -> str:
    """Return what a run asked and used in one line.

    Args:
        tally: of a `judge.Judged`.

    Returns:
        str: judgements, those from the cache, calls; where there were calls, speed, tokens, cost
        and what became of the schema.

    Source: ours.
    """
    line = f"{tally.questions} judgements: {tally.cached} from the cache, {tally.calls} calls"
    if not tally.calls:
        return line
    speed = (tally.questions - tally.cached) / tally.seconds if tally.seconds else math.nan
    least = "at least " if tally.unmetered else ""
    line += (
        f" in {tally.seconds:.1f} s, {speed:.3g} judged/s, "
        f"{least}{tally.prompt_tokens} + {tally.completion_tokens} tokens"
    )
    if tally.cost is not None:
        line += f", cost {least}{tally.cost:.4g}"
    schema = ", ".join(f"{n} {name}" for name, n in sorted(tally.schema.items()))
    return f"{line}; schema: {schema or 'no reply'}"


def _share(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.1%}"


def _controlled(summary: dict[str, Any]) -> str:
    """Return the length-controlled win rate, or why there is none."""
    from codit import intervals

    if math.isnan(summary["length_controlled"]):
        return f"undefined ({summary['lc_note'].rstrip('.')})"
    value, low, high = (summary[name] for name in ("length_controlled", "lc_low", "lc_high"))
    return intervals.text(value, low, high, ".3g")


def _interval(summary: dict[str, Any]) -> str:
    from codit import intervals

    if math.isnan(summary["low"]):
        return f"{summary['mean']:.3g}"
    return intervals.text(summary["mean"], summary["low"], summary["high"], ".3g")


def _lines(judged: Judged) -> Iterable[bytes]:
    """Return the result line by line: the rows that were kept, or the table."""
    from codit.record_lines import line_of

    rows = judged.rows or judged.table.to_dict("records")
    return (line_of(_plain(row)).encode() for row in rows)


def _manifest(judge: Judge, judged: Judged, read: list[Path], **asked: Any) -> dict[str, Any]:
    """Return what made a result: judge, prompts, files by content, counts and versions."""
    import hashlib

    from codit import judge_prompts, store

    used = set(judged.judgements["template"]) if len(judged.judgements) else set()
    known = vars(judge_prompts).values()
    templates = [value for value in known if isinstance(value, judge_prompts.Template)]
    return {
        "judge": {k: v for k, v in asdict(judge).items() if k != "base_url"},
        "model": sorted(set(judged.judgements["model"]) - {""}) if used else [],
        **asked,
        "templates": {t.name: judge_prompts.template_hash(t) for t in templates if t.name in used},
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in read],
        "summary": _plain(judged.summary),
        "tally": asdict(judged.tally),
        "versions": store.versions(),
    }


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: what is missing is null, never a number."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
