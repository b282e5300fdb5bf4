"""`codit ifeval`: flags, what it prints, and its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codit import recipes
from codit.statistics import Interval

if TYPE_CHECKING:
    from codit.ifeval import Scores

# Models, and with them torch, are imported by the command that needs them: help takes no seconds.


def ifeval(
    *,
    expert: str,
    amateur: str,
    prompts: Path,
    student: str | None = None,
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
    """Let lm-eval ask a pair, and a student, IFEval's prompts and check the answers.

    Needs codit[eval] and NLTK's punkt_tab. Answers are greedy. With shorter answers or fewer
    prompts than the published task's the rates compare with nothing but each other.

    Args:
        expert: Hub name or folder of the post-trained model.
        amateur: Hub name or folder of its own pre-trained counterpart.
        prompts: IFEval's file: JSON lines with key, prompt, instruction_id_list and kwargs.
        student: Hub name or folder of a model to ask as well.
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
    from codit.pair import ContrastivePair
    from codit.vocabulary import load_tokenizer

    ifeval_data.read(prompts, limit=limit)  # a broken file is said before models are loaded
    if device_map is None and torch.cuda.is_available():
        device_map = "cuda"
    load: dict[str, Any] = {"dtype": dtype}
    load |= {} if device_map is None else {"device_map": device_map}
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    how |= {"limit": limit}
    pair = ContrastivePair.from_pretrained(
        expert,
        amateur,
        strength=strength,
        plausibility=plausibility,
        expert_revision=expert_revision,
        amateur_revision=amateur_revision,
        allow_renamed=allow_renamed,
        **load,
    )
    tokenizer = load_tokenizer(expert, revision=expert_revision)
    found = {"pair": harness.evaluate(pair, tokenizer, prompts, **how)}
    if student is not None:
        del pair  # both models' memory is free for the student
        model, tokenizer = _student(student, student_revision, load)
        found["student"] = harness.evaluate(model, tokenizer, prompts, **how)
    print("\n".join(table(found)))
    return 0


def table(found: Mapping[str, Scores]) -> list[str]:
    """Return rates as lines of text, a model each.

    Args:
        found: scores by what to call the model; all of the same prompts.

    Returns:
        list[str]: a line of what was asked, lines of equal columns in percent with their
        intervals, and a model's note where it has one.

    Source: ours.
    """
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


def _student(name: str, revision: str | None, load: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from codit.vocabulary import load_tokenizer, loading

    with loading("weights", name):
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, **load)
    return model, load_tokenizer(name, revision=revision)
