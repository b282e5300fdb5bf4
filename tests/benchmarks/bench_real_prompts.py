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

import lm_eval.tasks
import torch
import tyro
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import make_table
from transformers import AutoModelForCausalLM

from codit import recipes
from codit.engine.models import load_tokenizer
from codit.evaluation import harness, judge, mt_bench
from codit.files import replacing
from codit.pair import ContrastivePair
from codit.paper import judges, store
from codit.world.recipes import JUDGES

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
    with judges.asked(JUDGES[0]) as whom:
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


def obeyed(prompts: Path, folder: Path) -> list[str]:
    """Let lm-eval ask IFEval's prompts; the sentence model is learned from their own text."""
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    harness.punkt(folder / "nltk", texts)
    published = Path(lm_eval.tasks.__file__).parent / "ifeval" / "ifeval.yaml"
    task = {"include": str(published), "task": "ifeval_local", "dataset_path": "json"}
    task |= {"dataset_kwargs": {"data_files": {"train": str(prompts.resolve())}}}
    task |= {"generation_kwargs": {"until": [], "max_gen_toks": TOKENS["ifeval"]}}
    (folder / "ifeval_local.yaml").write_text(json.dumps(task))
    local = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    expert, amateur = str(MODELS / "expert"), str(MODELS / "amateur")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = {"batch_size": 16, "device": device}
    asked = {
        "pair": lambda: harness.PairLM(expert, amateur, plausibility=PLAUSIBILITY, **how),
        "expert alone": lambda: HFLM(expert, **how),
        "amateur alone": lambda: HFLM(amateur, tokenizer=expert, **how),
    }
    lines = []
    for name, load in asked.items():
        found = evaluate(load(), local.load(["ifeval_local"]), apply_chat_template=True)
        lines += [f"{name}:", "", make_table(found)]
    return lines


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


def written(found: dict[str, Any], n: int, rates: list[str]) -> str:
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
        *rates,
    ]
    return "\n".join(lines)


def main(*, prompts_dir: Path, commit: bool = False) -> None:
    """Ask, judge and print."""
    questions = mt_bench.read(prompts_dir / "mt_bench_question.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        found = judged(questions, Path(folder))
        rates = obeyed(prompts_dir / "ifeval_input_data.jsonl", Path(folder))
    text = written(found, len(questions), rates)
    print(text)
    if commit:
        with replacing(TABLE) as stream:
            stream.write(text.encode())


if __name__ == "__main__":
    tyro.cli(main)
