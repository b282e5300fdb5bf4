"""`codit ifeval`: flags, what it prints, and its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codit import recipes

if TYPE_CHECKING:
    from codit.dataset_file import Files
    from codit.ifeval import Scores
    from codit.intervals import Interval

# Models, and with them torch, are imported by the command that needs them: help takes no seconds.


def ifeval(
    *,
    prompts: Path,
    expert: str | None = None,
    amateur: str | None = None,
    student: str | None = None,
    out: Path | None = None,
    strength: float = recipes.Decoding.strength,
    plausibility: float = recipes.Decoding.plausibility,
    max_new_tokens: int = 1280,
    batch_size: int = 16,
    limit: int | None = None,
    expert_revision: str | None = None,
    amateur_revision: str | None = None,
    student_revision: str | None = None,
    dtype: str = recipes.Model.dtype,
    device_map: str | None = None,
    allow_renamed: bool = False,
) -> int:
    """Let lm-eval ask a pair, a student, or both IFEval's prompts and check the answers.

    Needs the extra `eval` and NLTK's punkt_tab. Answers are greedy. With shorter answers or fewer
    prompts than the published task's the rates compare with nothing but each other.

    Args:
        prompts: IFEval's file: JSON lines with key, prompt, instruction_id_list and kwargs.
        expert: Hub name or folder of a pair's post-trained model.
        amateur: Hub name or folder of its own pre-trained counterpart.
        student: Hub name or folder of a model to ask, beside a pair or alone.
        out: file for every answer with its verdicts, ending in .jsonl; rates and settings lie
            beside it in the manifest.
        strength: beta, at least 0.
        plausibility: alpha in [0, 1].
        max_new_tokens: longest answer in tokens; 1280 is the task's own.
        batch_size: prompts answered at once.
        limit: only the first so many prompts.
        expert_revision: commit, tag or branch of the expert.
        amateur_revision: commit, tag or branch of the amateur.
        student_revision: commit, tag or branch of the student.
        dtype: of all weights: auto, float32, bfloat16, ...
        device_map: where weights go: cpu, cuda:1, auto, ... Default: a GPU if there is one.
        allow_renamed: accept added tokens whose names differ between the two tokenizers.

    Returns:
        int: exit status.

    Raises:
        ValueError: as `ifeval.evaluate`, or a model that cannot be loaded.
        FileNotFoundError: there is no such file of prompts.

    Source: Zhou et al. 2023, in lm-eval's implementation; intervals: ours.
    """
    import torch

    from codit import ifeval as harness
    from codit import ifeval_data

    if (expert is None) != (amateur is None) or (expert is None and student is None):
        raise ValueError("expected --expert and --amateur, or --student, or all three; got less.")
    files = None if out is None else dataset_files(out, prompts)
    ifeval_data.read(prompts, limit=limit)  # a broken file is said before models are loaded
    if device_map is None and torch.cuda.is_available():
        device_map = "cuda"
    load: dict[str, Any] = {"dtype": dtype}
    load |= {} if device_map is None else {"device_map": device_map}
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    how |= {"limit": limit}
    values: dict[str, Any] = {"strength": strength, "plausibility": plausibility}
    values |= {"expert_revision": expert_revision, "amateur_revision": amateur_revision}
    values |= {"allow_renamed": allow_renamed}
    found = {}
    if expert is not None and amateur is not None:
        found["pair"] = harness.evaluate(*_pair(expert, amateur, values | load), prompts, **how)
    if student is not None:  # a pair's memory is free by now
        model, tokenizer = _student(student, student_revision, load)
        found["student"] = harness.evaluate(model, tokenizer, prompts, **how)
    if files is not None:
        named = {"expert": expert, "amateur": amateur, "student": student}
        _write(files, found, {**named, "student_revision": student_revision, **values, **load})
    print("\n".join(table(found)))
    return 0


def dataset_files(out: Path, prompts: Path) -> Files:
    """Return the files of a result, its folder made; none may be the prompts'.

    Args:
        out: ending in .jsonl.
        prompts: the file that is read.

    Returns:
        Files: the result and what lies beside it.

    Raises:
        ValueError: another ending, or a file that would take the prompts' place.

    Source: ours.
    """
    from codit import dataset_file

    files = dataset_file.Files(out)
    if prompts.resolve() in (out.resolve(), files.beside(".manifest.json").resolve()):
        raise ValueError(f"expected out to be another file than the prompts; got {out}. Rename it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    return files


def _write(files: Files, found: Mapping[str, Scores], settings: dict[str, Any]) -> None:
    """Write every answer with its verdicts, then the rates and what they were made with."""
    from codit import store
    from codit.record_lines import line_of

    with store.replacing(files.out) as stream:
        for who, scores in found.items():
            rows = ({"model": who, **asdict(answer)} for answer in scores.answers)
            stream.writelines(line_of(row).encode() for row in rows)
    rates = {
        who: {k: v for k, v in asdict(s).items() if k != "answers"} for who, s in found.items()
    }
    versions = store.versions() | {"lm_eval": metadata.version("lm_eval")}
    told = {**settings, "rates": rates, "versions": versions}
    store.write_json(files.beside(".manifest.json"), told)


def table(found: Mapping[str, Scores]) -> list[str]:
    """Return rates as lines of text, a model each.

    Args:
        found: scores by what to call the model; all of the same prompts.

    Returns:
        list[str]: a line of what was asked, lines of equal columns in percent with their
        intervals, and a model's note where it has one.

    Source: ours.
    """
    from codit.intervals import Interval

    first = next(iter(found.values()))
    names = [f.name for f in fields(first) if isinstance(getattr(first, f.name), Interval)]
    lines = [["", *(f"{name.replace('_', ' ')} %" for name in names)]]
    lines += [[who, *(_shown(getattr(s, name)) for name in names)] for who, s in found.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    asked = f"{first.n} prompts, {first.n_instructions} instructions; 95 % intervals over prompts"
    return [asked, *shown, *(f"{who}: {s.note}" for who, s in found.items() if s.note)]


def _shown(rate: Interval) -> str:
    return f"{rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}]".replace("%", "")


def _pair(expert: str, amateur: str, values: dict[str, Any]) -> tuple[Any, Any]:
    from codit.pair import ContrastivePair, load_tokenizer

    pair = ContrastivePair.from_pretrained(expert, amateur, **values)
    return pair, load_tokenizer(expert, revision=values["expert_revision"])


def _student(name: str, revision: str | None, load: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from codit.vocabulary import load_tokenizer, loading

    with loading("weights", name):
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, **load)
    return model, load_tokenizer(name, revision=revision)
