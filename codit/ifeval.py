"""IFEval through lm-eval: how often a model obeys instructions that a program can check.

The task, its checkers and the sums are lm-eval's own; prompts come from a local file, so nothing is
fetched. A pair is a causal LM and goes through the harness as a student does, greedily. Answers
that were cut short, or part of the prompts, give numbers that compare with nothing but each other.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from codit import ifeval_data, intervals
from codit.intervals import Interval
from codit.pair import ContrastivePair
from codit.vocabulary import stop_ids

OFFICIAL_TOKENS = 1280  # the task's own limit
METRICS = {
    "prompt_strict": "prompt_level_strict_acc",
    "instruction_strict": "inst_level_strict_acc",
    "prompt_loose": "prompt_level_loose_acc",
    "instruction_loose": "inst_level_loose_acc",
}


@dataclass(frozen=True)
class Answer:
    """An answer and, for each instruction of its prompt, whether it was obeyed."""

    key: int
    response: str
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """IFEval's four rates, each a share with its 95 % interval over prompts.

    Args:
        prompt_strict: of prompts all of whose instructions the answer obeys.
        instruction_strict: of instructions that are obeyed.
        prompt_loose: as strict, where the answer less its first line, its last or its asterisks
            may obey in its place.
        instruction_loose: likewise.
        n: prompts.
        n_instructions: in all of them.
        n_cut: prompts whose beginning the harness left out because they were too long.
        max_new_tokens: longest answer, in tokens.
        answers: in the order of the file.
        note: why the rates compare with nothing; empty where they were made as published ones.
    """

    prompt_strict: Interval
    instruction_strict: Interval
    prompt_loose: Interval
    instruction_loose: Interval
    n: int
    n_instructions: int
    n_cut: int
    max_new_tokens: int
    answers: tuple[Answer, ...]
    note: str


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Path,
    *,
    max_new_tokens: int = OFFICIAL_TOKENS,
    batch_size: int = 16,
    limit: int | None = None,
) -> Scores:
    """Let lm-eval ask a model IFEval's prompts and check the answers.

    The most probable token at every step, whatever the model's own generation config says. The
    sentence count of some instructions depends on NLTK's punkt_tab: published numbers use its own.

    Args:
        model: a pair, with its own strength and plausibility, or any causal LM.
        tokenizer: the model's, with its chat template; thinking mode is switched off.
        prompts: file of JSON lines as published: key, prompt, instruction_id_list, kwargs.
        max_new_tokens: longest answer. The task's own is 1280.
        batch_size: prompts answered at once; changes answers by rounding only.
        limit: only the first so many prompts, at least 2. None: all.

    Returns:
        Scores: shares in [0, 1]; prompts are the units of the intervals.

    Raises:
        ValueError: lm-eval or NLTK's data is missing, a row that is none of IFEval's, fewer than
            two rows, no chat template, a number out of range or beyond the model's context.
        FileNotFoundError: there is no such file.

    Source: Zhou et al. 2023 (arXiv 2311.07911), in lm-eval's implementation; intervals: ours.
    """
    rows = ifeval_data.read(prompts, limit=limit)
    if min(max_new_tokens, batch_size) < 1:
        raise ValueError(
            f"expected max_new_tokens and batch_size >= 1; got {max_new_tokens}, {batch_size}."
        )
    if not tokenizer.chat_template:
        raise ValueError("expected a tokenizer with a chat template; got none. Take the expert's.")
    from lm_eval.evaluator import evaluate as run
    from lm_eval.models.huggingface import HFLM

    parts = [model.expert, model.amateur] if isinstance(model, ContrastivePair) else [model]
    reach = [getattr(p.config.get_text_config(), "max_position_embeddings", 0) for p in parts]
    with _alone(model, tokenizer):
        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=min(filter(None, reach), default=None),
            enable_thinking=False,
        )
        room = lm.max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_new_tokens must be below the model's {lm.max_length} tokens, which hold the "
                f"prompt too; got {max_new_tokens}. Lower it."
            )
        asked = (lm.apply_chat_template([{"role": "user", "content": r["prompt"]}]) for r in rows)
        n_cut = sum(len(lm.tok_encode(text)) > room for text in asked)
        task = _task(rows, max_new_tokens)
        found = run(lm, {"ifeval": task}, apply_chat_template=True, bootstrap_iters=0)
    return _scores(found, n_cut=n_cut, max_new_tokens=max_new_tokens, limit=limit)


def _task(rows: Sequence[Mapping[str, Any]], max_new_tokens: int) -> Any:
    """Return lm-eval's task as its own file describes it, of these rows and no download."""
    import lm_eval.tasks
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml  # indexing all tasks takes seconds

    described = load_yaml(Path(lm_eval.tasks.__file__).parent / "ifeval" / "ifeval.yaml")
    described["generation_kwargs"] |= {"max_gen_toks": max_new_tokens}
    local = {described["test_split"]: Dataset.from_list([dict(row) for row in rows])}
    return ConfigurableTask(config={**described, "custom_dataset": lambda **_: local})


def _scores(
    found: Mapping[str, Any], *, n_cut: int, max_new_tokens: int, limit: int | None
) -> Scores:
    """Return the harness's rates and, from its verdicts on each prompt, their intervals."""
    samples = sorted(found["samples"]["ifeval"], key=lambda sample: sample["doc_id"])
    sizes = np.asarray([len(s["doc"]["instruction_id_list"]) for s in samples])
    rates: dict[str, Interval] = {}
    for name, metric in METRICS.items():
        rate = float(found["results"]["ifeval"][f"{metric},none"])
        obeyed = np.asarray([float(np.sum(sample[metric])) for sample in samples])
        if name.startswith("prompt"):
            rates[name] = replace(intervals.mean_interval(obeyed), estimate=rate)
        else:
            rates[name] = intervals.statistic_interval(
                partial(_share, obeyed, sizes),
                range(len(sizes)),  # instructions of one prompt are drawn together
                estimate=rate,
            )
    strict, loose = METRICS["instruction_strict"], METRICS["instruction_loose"]
    answers = tuple(
        Answer(s["doc"]["key"], s["filtered_resps"][0], tuple(s[strict]), tuple(s[loose]))
        for s in samples
    )
    reasons = [f"answers of at most {max_new_tokens} tokens"] * (max_new_tokens < OFFICIAL_TOKENS)
    reasons += [f"the first {len(samples)} prompts alone"] * (limit is not None)
    reasons += [f"{n_cut} prompts without their beginning"] * (n_cut > 0)
    note = f"compares with no published number: {', '.join(reasons)}" if reasons else ""
    return Scores(
        prompt_strict=rates["prompt_strict"],
        instruction_strict=rates["instruction_strict"],
        prompt_loose=rates["prompt_loose"],
        instruction_loose=rates["instruction_loose"],
        n=len(samples),
        n_instructions=int(sizes.sum()),
        n_cut=n_cut,
        max_new_tokens=max_new_tokens,
        answers=answers,
        note=note,
    )


def _share(obeyed: np.ndarray, sizes: np.ndarray, drawn: np.ndarray) -> float:
    return float(obeyed[drawn].sum() / sizes[drawn].sum())


@contextmanager
def _alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Make the harness quiet, greedy and the same every time, for a `with` block."""
    from lm_eval.tasks.ifeval.instructions import langdetect

    log, noise = logging.getLogger("lm_eval"), langdetect.DetectorFactory
    before = (model.generation_config, model.training, log.level, noise.seed, random.getstate())
    # A checkpoint's own config may hold penalties, which `generate` would mix in.
    stops = stop_ids(tokenizer, model.generation_config) or None
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=stops)
    log.setLevel(logging.CRITICAL)  # it remarks on models that are loaded already
    noise.seed = 0  # languages are detected by sampling
    random.setstate(random.Random(0).getstate())  # what kwargs leave out is drawn
    try:
        yield
    finally:
        model.generation_config, was_training, level, noise.seed, state = before
        model.train(was_training)
        log.setLevel(level)
        random.setstate(state)
