"""`codit judge`, and `codit judge-agreement` of two files that it wrote: flags, files, lines."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from codit.evaluation.client import Asking, Judge, Tally
from codit.evaluation.rubric import REFERENCE_CATEGORIES

if TYPE_CHECKING:
    import pandas as pd

    from codit.evaluation.agreement import Agreement, Kind
    from codit.evaluation.judge import Judged, Plan

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
        data: JSON lines with a prompt and a response: "instruction" and "response", "messages", ...
            Empty responses are counted, not judged.
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
        asking: concurrency, prices.

    Returns:
        int: exit status, 1 where too many judgements have no value.
    """
    if (against is not None) + (best_of is not None) + conversations > 1:
        raise ValueError("expected one of --against, --best-of and --conversations; got more.")
    if not conversations and reference_categories != REFERENCE_CATEGORIES:
        raise ValueError("--reference-categories are those of --conversations. Add it.")
    from codit.dataset.output import Files
    from codit.evaluation import judge as judging
    from codit.files import check_apart, write_json, write_lines

    files = Files(out)
    manifest = files.beside(".manifest.json")
    read = [data, *([] if against is None else [against])]
    cache = files.beside(".cache.sqlite") if cache is None else cache
    check_apart([out, manifest], [*read, cache])
    how: dict[str, Any] = {"cache": cache, "samples": samples, "asking": asking}
    what: dict[str, Any] = {
        "best_of": best_of,
        "conversations": conversations,
        "reference_categories": reference_categories,
    }
    if dry_run:
        asked = judging.questions(data, against=against, **what)
        print(plan_lines(judging.plan(asked, judge, **how), asking.attempts))
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)  # before anything is paid
    try:
        if against is not None:
            judged = judging.compare(data, against, judge, **how)
            judged.summary.update(judging.length_controlled(judged.table))
        elif best_of is not None:
            judged = judging.best_of(data, judge, n=best_of, **how)
        elif conversations:
            how["reference_categories"] = reference_categories
            judged = judging.conversations(data, judge, **how)
        else:
            judged = judging.score(data, judge, **how)
    except judging.TooManyFailures as error:
        print(tally_line(error.judged.tally))
        print(f"codit: {error}", file=sys.stderr)
        return 1
    rows = judged.rows or judged.table.to_dict("records")
    write_lines(out, map(_plain, rows))
    write_json(manifest, _manifest(judge, judged, read, samples=samples, **what))
    print(f"{out}: {summary_line(judged.summary)}\n{tally_line(judged.tally)}")
    return 0


def judge_agreement(*, first: Path, second: Path) -> int:
    """Say how far two judges agree: two files that `codit judge` wrote about the same data.

    Both hold scores (of responses, or of both turns of conversations), or both comparisons
    (--against) of the same two datasets in the same order. What either judge could not judge is
    left out and counted.

    Args:
        first: a judge's file.
        second: the other's.

    Returns:
        int: exit status.
    """
    from codit.evaluation.agreement import agreement

    (one, kind), (other, another) = _said(first), _said(second)
    if kind != another:
        raise ValueError(
            f"expected two files of one kind; {first} holds {kind}, {second} {another}. "
            "Judge both in the same way."
        )
    print(agreement_lines(agreement(one, other, kind=kind), kind))
    return 0


def plan_lines(found: Plan, attempts: int) -> str:
    """Return what a run would ask, and what it would use at most, as lines for people."""
    lines = {
        "judgements": f"{found.questions:,}",
        "to ask": f"{found.to_ask:,} (what is equal or in the cache is asked once)",
        "prompts": f"about {found.prompt_tokens:,} tokens (estimate: 4 characters a token)",
        "replies": f"at most {found.reply_tokens:,} tokens",
    }
    if found.cost is not None:
        lines["cost"] = f"at most {found.cost:.4g} with one reply each"
    if attempts > 1:
        lines["failures"] = f"at most {attempts} times that, where all but the last reply fail"
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())


def summary_line(summary: dict[str, Any]) -> str:
    """Return a judge's summary in one line; where there is no length-controlled rate, why."""
    n, known, said = summary["n"], summary["n_ok"], _interval(summary, "mean", "low", "high")
    if "flip_rate" in summary:
        controlled = f"undefined ({summary['lc_note'].rstrip('.')})"
        if not math.isnan(summary["length_controlled"]):
            controlled = _interval(summary, "length_controlled", "lc_low", "lc_high")
        flips, places = (
            "undefined" if math.isnan(share) else f"{share:.1%}"
            for share in (summary["flip_rate"], summary["first_place_rate"])
        )
        said = (
            f"{known} of {n} pairs decided: {summary['first']} for the first, {summary['tie']} "
            f"ties, {summary['second']} for the second, {summary['left_out']} rows without a "
            f"partner; win rate {said}, length-controlled {controlled}; "
            f"flip rate {flips}, first-place rate {places}"
        )
    else:
        said = f"{known} of {n} scored, mean {said}"
    if "turn_1" in summary:
        said += f", turn 1 {summary['turn_1']:.2f}, turn 2 {summary['turn_2']:.2f}"
    if "first_mean" in summary:
        said += f", first responses {summary['first_mean']:.2f}, {summary['ties']} ties"
    if empty := summary.get("empty"):
        said += f", {empty} left out for an empty response"
    return f"{said}; {summary['failed']:.1%} of the judgements failed"


def tally_line(tally: Tally) -> str:
    """Return what a run asked and used in one line."""
    line = f"{tally.questions} judgements: {tally.cached} from the cache, {tally.calls} calls"
    if not tally.calls:
        return line
    speed = (tally.questions - tally.cached) / tally.seconds if tally.seconds else math.nan
    least = "at least " if tally.unmetered else ""
    cost = "" if tally.cost is None else f", cost {least}{tally.cost:.4g}"
    schema = ", ".join(f"{n} {name}" for name, n in sorted(tally.schema.items()))
    return (
        f"{line} in {tally.seconds:.1f} s, {speed:.3g} judged/s, {least}{tally.prompt_tokens} + "
        f"{tally.completion_tokens} tokens{cost}; schema: {schema or 'no reply'}"
    )


def agreement_lines(found: Agreement, kind: Kind) -> str:
    """Return an agreement as lines for people."""
    from codit.evaluation import intervals

    equal = "the same score" if kind == "scores" else "the same winner, or a tie for both"
    spearman, plain, weighted = (
        "undefined: a judge says the same of every row"
        if math.isnan(value.estimate)
        else intervals.text(value.estimate, value.low, value.high, ".3f")
        for value in (found.spearman, found.plain_kappa, found.weighted_kappa)
    )
    lines = {
        "rows": f"{found.n_both:,} judged by both, {found.n_first:,} by the first alone, "
        f"{found.n_second:,} by the second alone, {found.n_neither:,} by neither",
        "Spearman": spearman,
        "kappa": plain,
        "weighted": f"{weighted} (kappa, by squared distance)",
        "equal": f"{found.equal:.1%}: {equal}",
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def _interval(summary: dict[str, Any], *names: str) -> str:
    from codit.evaluation import intervals

    value, low, high = (summary[name] for name in names)
    return f"{value:.3g}" if math.isnan(low) else intervals.text(value, low, high, ".3g")


def _manifest(judge: Judge, judged: Judged, read: list[Path], **asked: Any) -> dict[str, Any]:
    """Return what made a result: judge, prompts, files by content, counts and versions."""
    import hashlib

    from codit.evaluation.rubric import TEMPLATES, template_hash
    from codit.files import versions

    said = judged.judgements
    used = {name: set(said[name]) if len(said) else set() for name in ("model", "template")}
    return {
        "judge": {k: v for k, v in asdict(judge).items() if k != "base_url"},
        "model": sorted(used["model"] - {""}),
        **asked,
        "templates": {t.name: template_hash(t) for t in TEMPLATES if t.name in used["template"]},
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in read],
        "summary": _plain(judged.summary),
        "tally": asdict(judged.tally),
        "versions": versions(),
    }


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: what is missing is null, never a number."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _said(path: Path) -> tuple[pd.DataFrame, Kind]:
    """Return what a judge said, from the file that `codit judge` wrote: its rows and their kind.

    A turn's number is its row's `sample`.
    """
    import pandas as pd

    from codit.evaluation import judged_rows

    rows = judged_rows.read(path)
    kinds = {("score" in row, "preference" in row) for row in rows}
    if kinds not in ({(True, False)}, {(False, True)}) or not all("id" in row for row in rows):
        raise ValueError(
            f"expected `id` and one of `score` and `preference` in every row of {path}; got others."
            " Name a file that `codit judge` wrote, not --best-of's dataset."
        )
    column = "score" if "score" in rows[0] else "preference"
    values = [row[column] for row in rows]
    if not all(value is None or type(value) in (int, float) for value in values):
        raise ValueError(
            f"expected numbers or null in `{column}` of {path}; got others. Name a file that "
            "`codit judge` wrote, not --best-of's dataset."
        )
    # Not as pandas reads JSON: it would take ids for numbers or dates.
    found = pd.DataFrame({"id": [str(row["id"]) for row in rows]})
    for name in ("sample", "turn"):
        if all(name in row for row in rows):
            found["sample"] = [row[name] for row in rows]
    found[column] = pd.Series(values, dtype="float64")
    return found, "scores" if column == "score" else "preferences"
