"""MT-Bench's 80 questions and IFEval's 541 prompts end to end, with a million parameters.

`python -m tests.benchmarks.bench_real_prompts --prompts-dir DIR [--commit]` wants a folder with
`mt_bench_question.jsonl` and `ifeval_input_data.jsonl`, which are not shipped. Both turns of
MT-Bench are answered by the embedded expert and by the pair, and scored by the world's judge over
HTTP, twice; IFEval goes through lm-eval. Numbers compare with nothing: the way is what is tested.
`--commit` writes `tests/tables/real_prompts.md`.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro
from transformers import AutoModelForCausalLM

from codit import ifeval, ifeval_cli, ifeval_data, judge, judging, mt_bench, recipes, store
from codit.files import replacing
from codit.judge_recipes import JUDGES
from codit.pair import ContrastivePair
from codit.vocabulary import load_tokenizer

TABLE = Path(__file__).parents[1] / "tables" / "real_prompts.md"
MODELS = store.repository() / "data" / "models"
PLAUSIBILITY = 0.03
TOKENS = {"mt_bench": 96, "ifeval": 64}


def models() -> dict[str, tuple[Any, recipes.Decoding]]:
    """Return who answers: the pair, its expert alone as a student, and how each decodes."""
    expert, amateur = MODELS / "expert", MODELS / "amateur"
    pair = ContrastivePair.from_pretrained(str(expert), str(amateur), plausibility=PLAUSIBILITY)
    student = AutoModelForCausalLM.from_pretrained(expert).eval()
    length = {"max_new_tokens": TOKENS["mt_bench"]}
    alone = recipes.Decoding(strength=0.0, plausibility=0.0, **length)
    return {
        "pair": (pair, recipes.Decoding(plausibility=PLAUSIBILITY, **length)),
        "expert alone": (student, alone),
    }


def judged(questions: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Answer both turns and let the judge score them, twice."""
    tokenizer = load_tokenizer(str(MODELS / "expert"))
    # One of coding's questions has no reference: its category is judged without.
    lacking = {row["category"] for row in questions if "reference" not in row}
    categories = sorted(set(judge.REFERENCE_CATEGORIES) - lacking)
    found: dict[str, Any] = {"categories": categories, "models": {}}
    with judging.asked(JUDGES[0]) as whom:
        for name, (model, decoding) in models().items():
            start = time.monotonic()
            rows, errors = mt_bench.answer(model, tokenizer, questions, decoding, progress=False)
            seconds = time.monotonic() - start
            runs = [
                judge.conversations(
                    rows,
                    whom.judge,
                    cache=folder / "replies.sqlite",
                    reference_categories=categories,
                    asking=whom.asking,
                )
                for _ in range(2)
            ]
            found["models"][name] = {
                "answered": len(rows),
                "errors": len(errors),
                "cut": sum(not done for row in rows for done in row["is_completed"]),
                "seconds": seconds,
                "summary": runs[0].summary,
                "tallies": [asdict(run.tally) for run in runs],
            }
            assert runs[1].tally.calls == 0, "the second run asks nothing"
    return found


def obeyed(prompts: Path, folder: Path) -> tuple[dict[str, ifeval.Scores], dict[str, float]]:
    """Let lm-eval ask IFEval's prompts; the sentence model is learned from their own text."""
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    ifeval_data.punkt(folder / "nltk", texts)
    amateur = AutoModelForCausalLM.from_pretrained(MODELS / "amateur").eval()
    asked = {name: model for name, (model, _) in models().items()} | {"amateur alone": amateur}
    tokenizer = load_tokenizer(str(MODELS / "expert"))
    found, seconds = {}, {}
    for name, model in asked.items():
        start = time.monotonic()
        found[name] = ifeval.evaluate(model, tokenizer, prompts, max_new_tokens=TOKENS["ifeval"])
        seconds[name] = time.monotonic() - start
    return found, seconds


def mt_bench_lines(found: dict[str, Any], n: int) -> list[str]:
    """Return MT-Bench's part of the table."""
    lines = [
        f"## MT-Bench: {n} questions, both turns",
        "",
        f"At most {TOKENS['mt_bench']} new tokens, temperatures by category. Judged over HTTP by "
        f"the world's judge, with references in {', '.join(found['categories'])}. States of "
        "judgements; mean scores of the judged.",
        "",
        "| who | conversations | answers cut | states | turn 1 | turn 2 | schema | run 1 | run 2 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found["models"].items():
        first, second = one["tallies"]
        states, schema = (
            ", ".join(f"{count} {state}" for state, count in sorted(first[kind].items()))
            for kind in ("states", "schema")
        )
        turns = " | ".join(f"{one['summary'][f'turn_{k}']:.2f}" for k in (1, 2))
        lines.append(
            f"| {name} | {one['answered']} in {one['seconds']:.0f} s, {one['errors']} errors | "
            f"{one['cut']} | {states} | {turns} | {schema} | {first['calls']} calls, "
            f"{first['seconds']:.0f} s | {second['calls']} calls, {second['cached']} cached |"
        )
    return lines


def written(found: dict[str, Any], n: int, scores: dict[str, Any], seconds: Any) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Real prompts",
        "",
        "Benchmark prompts in English, asked of models that have only ever read an artificial "
        "language, in answers cut short, scored by a judge that knows that language alone. **These "
        "numbers compare with nothing**: they show that the way from a file of prompts to a rate "
        "is whole. `python -m tests.benchmarks.bench_real_prompts --prompts-dir DIR --commit` "
        f"writes this file; two shared cores, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        *mt_bench_lines(found, n),
        "",
        f"## IFEval through lm-eval: at most {TOKENS['ifeval']} new tokens, greedy",
        "",
        "```",
        *ifeval_cli.table(scores),
        "```",
        "",
        "Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()) + ".",
        "",
    ]
    return "\n".join(lines)


def main(*, prompts_dir: Path, commit: bool = False) -> None:
    """Ask, judge and print."""
    questions = mt_bench.read(prompts_dir / "mt_bench_question.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        found = judged(questions, Path(folder))
        scores, seconds = obeyed(prompts_dir / "ifeval_input_data.jsonl", Path(folder))
    text = written(found, len(questions), scores, seconds)
    print(text)
    if commit:
        with replacing(TABLE) as stream:
            stream.write(text.encode())


if __name__ == "__main__":
    tyro.cli(main)
