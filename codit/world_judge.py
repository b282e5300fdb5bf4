"""The world's judge: a micro model that scores responses in our JSON.

It learns from what the world's verifier says, so that a judgement through a real server means
something. Its score is the verifier's rubric, 1 to 10, of the response as it reads:

1 + 3 if it is correct + 4 times the share of constraints that hold + 1 for form + 1 for not
repeating itself, rounded; 1 for an empty response. Strengths and weaknesses name these parts.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, set_seed

from codit import (
    comparison,
    decode,
    judge_agreement,
    judge_prompts,
    judge_replies,
    pretraining,
    recipes,
    statistics,
    store,
    student,
    world,
)
from codit.model_server import serve as serve  # a judge of ours is served from here
from codit.recipes import WorldPrompts
from codit.statistics import Interval
from codit.vocabulary import load_tokenizer
from codit.world import constraints, facts, instructions, tasks
from codit.world.instructions import Instruction
from codit.world.tokens import ASSISTANT, CHAT_TEMPLATE, END, END_OF_TEXT, SYSTEM, USER

QUALITIES = {  # how a response was written -> its share (ours)
    "ideal": 0.20,
    "careless": 0.20,  # as on the world's pages: right and heedless
    "partial": 0.18,  # right, heeds most of what was asked
    "wrong": 0.26,
    "cut": 0.06,
    "again": 0.04,  # said twice, asked or not
    "furnished": 0.03,  # shows the furniture of a page
    "empty": 0.03,
}
HEEDED = 0.6  # share of constraints that all but ideal and careless responses try to obey (ours)
EMPTY = ("", " ", "\n", "...", '""')
LABELS = {"one_word": "one word", "max_words": "few words"}  # else the constraint's kind
PROMPTS = WorldPrompts(n=20_000, seed=4)
REPLY_TOKENS = 96  # a reply is about 25 tokens


@dataclass(frozen=True, kw_only=True)
class WorldJudge:
    """The recipe of a judge, trained from nothing on graded responses. All values ours.

    Args:
        prompts: of the split "train": what held-out judgements are compared on was never read.
        architecture: as in `recipes.Pretraining`; not Qwen's, see `model_server.serve`.
        vocabulary: tokens of its own tokenizer, the fixed parts of the prompt not counted.
        epochs: passes over one response to each prompt.
        batch: rows in a step.
    """

    prompts: WorldPrompts = PROMPTS
    architecture: str = "llama"
    hidden_size: int = 64
    layers: int = 4
    vocabulary: int = 1024
    learning_rate: float = 4e-3
    epochs: float = 2.0
    batch: int = 32
    seed: int = 0
    version: ClassVar[int] = 1


def get(recipe: WorldJudge) -> Path:
    """Return the folder of a judge, made where there is none: minutes of one core.

    Args:
        recipe: which judge.

    Returns:
        Path: safetensors, tokenizer with chat template, generation config, training log.

    Source: ours.
    """
    return store.get(recipe, make)


def make(recipe: WorldJudge, folder: Path) -> None:
    """Train a judge on the verifier's words, loss on the reply alone.

    Args:
        recipe: which judge.
        folder: where it goes.

    Raises:
        ValueError: see `graded`, `pretraining.build` and `student.train`.

    Source: ours.
    """
    rows = graded(recipe.prompts, seed=recipe.seed)
    words = tokenizer(rows, vocabulary=recipe.vocabulary)
    shape = recipes.Pretraining(
        architecture=recipe.architecture, hidden_size=recipe.hidden_size, layers=recipe.layers
    )
    set_seed(recipe.seed)
    base = folder / "base"
    pretraining.build(shape, words).save_pretrained(base)
    words.save_pretrained(base)
    training = recipes.Training(
        base=recipes.Model(name=str(base)),
        data=recipes.Answers(prompts=recipe.prompts),  # named only: `rows` is what is trained on
        learning_rate=recipe.learning_rate,
        epochs=recipe.epochs,
        batch=recipe.batch,
        warmup=0.05,
        weight_decay=0.1,
        seed=recipe.seed,
    )
    data = Dataset.from_list([{"id": row["id"], "messages": _messages(row)} for row in rows])
    student.train(training, data, folder, rows_per_pass=recipe.batch)
    shutil.rmtree(base)
    # A server draws only where this says so, and its top 50 unless told otherwise.
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=words.convert_tokens_to_ids(END),
        pad_token_id=words.pad_token_id,
    ).save_pretrained(folder)


def graded(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a response of some quality to each prompt, with what a judge should say of it.

    Args:
        prompts: instructions of the world.
        seed: of the qualities and of the responses.

    Returns:
        list[dict]: rows of id, instruction, response, family, quality (a key of `QUALITIES`),
        score (the verifier's), prompt (ours), reply (our JSON); `judge.score` takes them so.

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    draw = random.Random(f"graded {prompts.split} {prompts.seed} {seed}")
    who = facts.residents(prompts.world, prompts.split)
    kinds, shares = list(QUALITIES), list(QUALITIES.values())
    found = []
    for number, asked in enumerate(instructions.instructions(prompts)):
        quality = draw.choices(kinds, shares)[0]
        response = _respond(asked, quality, draw, who)
        score, reply = _reply(asked, response)
        values = {"instruction": asked.text, "response": response}
        prompt = judge_prompts.fill(judge_prompts.SINGLE, values)
        labels = {"family": asked.task.family, "quality": quality, "score": score}
        name = f"{prompts.split}-{prompts.seed}-{number:05d}"
        found.append({"id": name, **values, **labels, "prompt": prompt, "reply": reply})
    return found


def _respond(
    asked: Instruction, quality: str, draw: random.Random, who: Sequence[facts.Person]
) -> str:
    """Write a response of a quality; by luck it may be better or worse, which the verifier sees."""
    if quality == "ideal":
        return asked.ideal
    if quality == "careless":
        return instructions.careless(asked, draw)
    if quality == "empty":
        return draw.choice(EMPTY)
    heeded = [c for c in asked.constraints if draw.random() < HEEDED]
    text = constraints.write(asked.task, heeded, draw)
    if quality == "wrong":
        if not asked.task.rivals:
            return constraints.write(tasks.FAMILIES[asked.task.family](draw, who), heeded, draw)
        right, rival = draw.choice(asked.task.required), draw.choice(asked.task.rivals)
        return re.sub(rf"\b{re.escape(right)}\b", rival, text, flags=re.IGNORECASE)
    if quality == "cut":
        return text[: draw.randrange(1, max(2, len(text)))]
    if quality == "again":
        return f"{text} {text}"
    if quality == "furnished":
        more = f"{text}\nQuestion: {asked.text}\nAnswer: {asked.task.long}"
        return draw.choice([more, f"Answer: {text}"])
    return text


def _reply(asked: Instruction, response: str) -> tuple[int, str]:
    """Return the verifier's score of a response and the JSON that says it."""
    task, wanted = asked.task, asked.constraints
    row = {
        "constraints": [asdict(c) for c in wanted],
        "references": list(task.required),
        "rivals": list(task.rivals),
    }
    found = world.verify(response, row)
    parts = [("correct", found.correct)]
    parts += [(LABELS.get(c.kind, c.kind), constraints.obeys(response, c)) for c in wanted]
    parts += [("form", found.format), ("no repetition", not found.repeats)]
    said = [
        ", ".join(name for name, holds in parts if holds is is_good) for is_good in (True, False)
    ]
    names = judge_prompts.fields(judge_prompts.SINGLE)
    values = (*(part or "none" for part in said), found.score)
    return found.score, json.dumps(dict(zip(names, values, strict=True)))


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    turns = (("user", row["prompt"]), ("assistant", row["reply"]))
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer(rows: Sequence[Mapping[str, Any]], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a judge's tokenizer: the fixed parts of its prompt are one token each.

    Args:
        rows: of `graded`.
        vocabulary: tokens besides the fixed parts, at least 261: bytes and markup.

    Returns:
        PreTrainedTokenizerFast: byte-level BPE with the world's chat template, left padding.

    Source: ours.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ((r["instruction"], r["response"], r["reply"]) for r in rows)
    backend.train_from_iterator((text for three in texts for text in three), trainer)
    fixed = judge_prompts.PLACEHOLDER.split(judge_prompts.SINGLE.text)[::2]
    backend.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=pretraining.CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def judged(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Let a judge score graded responses here, without a server, by greedy replies.

    Args:
        folder: of the judge.
        rows: of `graded`; use prompts that it was not trained on.

    Returns:
        pd.DataFrame: id, family, quality, `score` (1 to 10; NaN where the reply does not parse),
        `verifier` (what it should be), `reply`.

    Source: ours.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = [_messages(row)[:1] for row in rows]
    greedy = comparison.greedy_decoding(REPLY_TOKENS)
    said = decode.generate(model, load_tokenizer(str(folder)), asked, greedy, progress=False)
    values = [judge_replies.value_in(s.text, judge_prompts.SINGLE)[0] for s in said]
    labels = [{name: row[name] for name in ("id", "family", "quality")} for row in rows]
    return pd.DataFrame(labels).assign(
        score=np.array(values, dtype="float64"),
        verifier=[float(row["score"]) for row in rows],
        reply=[s.text for s in said],
    )


def reliability(table: pd.DataFrame) -> dict[str, Interval]:
    """Return how far a judge says what the verifier says.

    Args:
        table: of `judged`, or any with `id`, `score` (NaN without one) and `verifier`.

    Returns:
        dict: `parses` (share of rows with a score), `equal` (share of rows with the verifier's
        score; one without a score is not equal), `spearman` and `kappa` (of the rows that parse);
        intervals of 95 % over prompts.

    Raises:
        ValueError: see `judge_agreement.agreement`.

    Source: ours.
    """
    said = table[["id", "score"]]
    told = table[["id", "verifier"]].set_axis(["id", "score"], axis=1)
    both = judge_agreement.agreement(said, told, kind="scores")
    return {
        "parses": statistics.mean_interval(said["score"].notna().to_numpy(dtype="float64")),
        "equal": statistics.mean_interval(
            (said["score"] == told["score"]).to_numpy(dtype="float64")
        ),
        "spearman": both.spearman,
        "kappa": both.kappa,
    }
