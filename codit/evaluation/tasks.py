"""Tasks in plain English with known answers: Super-NaturalInstructions, DROP, how answers score.

A row has id, family, definition, input and outputs, any of which is right. Published files are read
from where a reader has them, or from the Hub; none is kept here. What has no source is ours.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

INSTANCES = 100  # of a task, the first ones: the evaluation of Super-NaturalInstructions
ENGLISH = ("Input_language", "Output_language", "Instruction_language")
HUB_INSTRUCTIONS = "Muennighoff/natural-instructions"
HUB_DROP = "ucinlp/drop"
READ_DROP = "Read the passage and answer the question with a number, a date or words of it."


def asked(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row's conversation: one user turn, the definition before the input."""
    return [{"role": "user", "content": f"{row['definition']}\n\n{row['input']}"}]


def exact(text: str, outputs: Iterable[str]) -> bool:
    """Tell whether an answer is one of the outputs, but for case, outer space, a last full stop."""
    return any(_bare(text) == _bare(one) for one in outputs)


def rouge_l(text: str, outputs: Iterable[str]) -> float:
    """Return the best Rouge-L of an answer over outputs: F of the common subsequence, in [0, 1].

    Words are stemmed. Source: the evaluation of Super-NaturalInstructions, which CTD uses.
    """
    score = _scorer().score
    return max(float(score(one, text)["rougeL"].fmeasure) for one in outputs)


def natural_instructions(
    source: str | Path = HUB_INSTRUCTIONS, *, instances: int = INSTANCES
) -> list[dict[str, Any]]:
    """Return the first instances of each English test task of Super-NaturalInstructions.

    Args:
        source: a checkout of its repository, with `tasks/` and `splits/default/test_tasks.txt`; or
            a copy on the Hub, whose split "test" has a row for each output of an instance.
        instances: of each task.

    Raises:
        ValueError: no such folder or columns, or no task.
    """
    folder = Path(source)
    if folder.is_dir():
        names = folder / "splits" / "default" / "test_tasks.txt"
        if not names.is_file():
            raise ValueError(
                f"expected splits/default/test_tasks.txt in {folder}, as in the repository of "
                "Super-NaturalInstructions; there is none. Give its checkout."
            )
        files = [folder / "tasks" / f"{name}.json" for name in names.read_text().split()]
        tasks = ((path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in files)
        found = [row for name, task in tasks for row in _task(name, task, instances)]
    else:
        found = _from_hub(str(source), instances)
    if not found:
        raise ValueError(f"expected English test tasks in {source}; got none. Give all of it.")
    return found


def drop(source: str | Path = HUB_DROP) -> list[dict[str, Any]]:
    """Return the questions of DROP's dev set, each with its passage and its answers.

    Args:
        source: `drop_dataset_dev.json` as published, or the Hub's, which has one answer of each
            question. An answer of several spans is these with a comma between them.

    Raises:
        ValueError: another format.
    """
    if not Path(source).is_file():
        rows = _loaded(str(source), "validation", ("passage", "question", "answers_spans"))
        return [
            _question(row["query_id"], row, [", ".join(row["answers_spans"]["spans"])])
            for row in rows
        ]
    passages = json.loads(Path(source).read_text(encoding="utf-8"))
    try:
        return [
            _question(
                asked["query_id"],
                {**asked, "passage": passage["passage"]},
                [_answer(one) for one in (asked["answer"], *asked.get("validated_answers", ()))],
            )
            for passage in passages.values()
            for asked in passage["qa_pairs"]
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected DROP's own JSON in {source}, passages with their qa_pairs; missing {error}. "
            "Give drop_dataset_dev.json."
        ) from None


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # with NLTK, only where it is asked for

    return RougeScorer(["rougeL"], use_stemmer=True)


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").lower()


def _task(name: str, task: Mapping[str, Any], instances: int) -> list[dict[str, Any]]:
    """Return the first instances of a task's file; none where it is not in English throughout."""
    if any(task[field] != ["English"] for field in ENGLISH):
        return []
    definition = task["Definition"]
    text = definition if isinstance(definition, str) else definition[0]
    told = {"task": name, "family": task["Categories"][0], "definition": text}
    return [
        {
            "id": one.get("id", f"{name}-{i}"),
            **told,
            "input": one["input"],
            "outputs": one["output"],
        }
        for i, one in enumerate(task["Instances"][:instances])
    ]


def _from_hub(name: str, instances: int) -> list[dict[str, Any]]:
    columns = ("task_name", "id", "definition", "inputs", "targets")
    tasks: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in _loaded(name, "test", columns):
        told = {"id": row["id"], "task": row["task_name"], "family": row["task_name"]}
        told |= {"definition": row["definition"], "input": row["inputs"], "outputs": []}
        tasks[row["task_name"]].setdefault(row["id"], told)["outputs"].append(row["targets"])
    return [row for rows in tasks.values() for row in islice(rows.values(), instances)]


def _loaded(name: str, split: str, columns: Sequence[str]) -> Any:
    """Return a split of a collection on the Hub, or raise ValueError where columns are missing."""
    import datasets  # takes seconds

    rows = datasets.load_dataset(name, split=split)
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(
            f"expected the columns {list(columns)} in {name}; missing {missing} among "
            f"{rows.column_names}. Is this another collection, or another version of it?"
        )
    return rows


def _question(name: str, row: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    text = f"Passage: {row['passage']}\nQuestion: {row['question']}"
    told = {"id": name, "family": "DROP", "definition": READ_DROP, "input": text}
    return {**told, "outputs": list(dict.fromkeys(one for one in outputs if one))}


def _answer(answer: Mapping[str, Any]) -> str:
    """Return a number, spans or a date as text; DROP fills one of them and leaves the others."""
    date = (answer["date"].get(part, "") for part in ("day", "month", "year"))
    return str(answer["number"]) or ", ".join(answer["spans"]) or " ".join(filter(None, date))
