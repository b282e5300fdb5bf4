"""From a judge's recipe to a judge that answers: the world's is served here, others elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from codit import dataset_file, judge, recipes, store, world_judge
from codit.comparison import JudgedBest, LLMJudge
from codit.files import line_of, replacing, write_json
from codit.judge import Asking, Judge
from codit.judge_recipes import WorldJudge
from codit.results import responses

CACHE_TOKENS = 16_384  # of a served judge: 64 questions of the world at the same time (ours)
AT_ONCE = 64  # ours
ADDRESS = "OPENAI_BASE_URL"
REPLIES = "judgements.sqlite"  # of every judge that a recipe asks


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A judge that answers.

    Args:
        judge: whom to ask.
        asking: how; failures are counted and never end a run.
    """

    judge: Judge
    asking: Asking


@contextlib.contextmanager
def asked(recipe: WorldJudge | LLMJudge) -> Iterator[Asked]:
    """Make a judge answer, for a `with` block.

    The world's judge is made where there is none and served on this machine; it answers greedily.
    Any other is asked where OPENAI_BASE_URL says.

    Args:
        recipe: which judge.

    Yields:
        Asked: for `judge.score` and its sisters.

    Raises:
        ValueError: a served judge that does not start, or no address of another.

    Source: ours.
    """
    if isinstance(recipe, LLMJudge):
        if not os.environ.get(ADDRESS):
            raise ValueError(
                f"expected the address of a server with {recipe.model} in {ADDRESS}; it is not "
                "set. Start one (`vllm serve ...`) and set it, such as http://127.0.0.1:8000/v1."
            )
        yield Asked(judge=Judge(**asdict(recipe)), asking=Asking(max_failures=1.0))
        return
    folder = world_judge.get(recipe)
    with world_judge.serve(folder, cache_tokens=CACHE_TOKENS) as url:
        yield Asked(
            judge=Judge(
                model=folder.name,
                base_url=url,
                revision=recipes.key(recipe),
                temperature=0.0,
                max_tokens=world_judge.REPLY_TOKENS,
            ),
            asking=Asking(concurrency=AT_ONCE, max_failures=1.0),
        )


def judged_best(recipe: JudgedBest) -> Dataset:
    """Return, for each prompt, that of the first n responses which a judge scores highest.

    Args:
        recipe: the pool of responses, the judge, n; what is missing is made.

    Returns:
        Dataset: rows of the pool; of equal scores the first sample. Every reply is kept in the
        store's `judgements.sqlite` and paid for once, whichever recipe asks.

    Raises:
        ValueError: see `best_of`.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538); N and ties: ours.
    """

    def make(recipe: JudgedBest, folder: Path) -> None:
        pool = list(responses(recipe.pool))
        rows, summary = best_of(recipe, pool, cache=store.cache() / REPLIES)
        with replacing(folder / "responses.jsonl") as stream:
            stream.writelines(line_of(row).encode() for row in rows)
        write_json(folder / "summary.json", summary)

    return dataset_file.read(store.get(recipe, make) / "responses.jsonl")


def best_of(
    recipe: JudgedBest, pool: list[dict[str, Any]], *, cache: str | Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return, of the first n responses to each prompt, the one that a judge scores highest.

    Args:
        recipe: judge and n.
        pool: rows of the pool's dataset, n or more to an id.
        cache: SQLite file of every reply.

    Returns:
        tuple: the kept rows; the summary of `judge.best_of`.

    Raises:
        ValueError: fewer than n responses to an id, as `asked`, or more failed judgements than
            `Asking` allows by default: a dataset must not be chosen by accident.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538), judged by its judge; N: ours.
    """
    with asked(recipe.judge) as one:
        asking = replace(one.asking, max_failures=Asking().max_failures)
        kept = judge.best_of(pool, one.judge, cache=cache, n=recipe.n, asking=asking)
    return kept.rows, kept.summary
