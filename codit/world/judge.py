"""The world's judge: a micro model that scores and compares responses in our JSON.

It learns from what the world's verifier says, so that a judgement through a real server means
something. What it is taught: `codit.world.judge`.

What the world's judge is taught: responses of every quality, and what to say of them.

A score is the verifier's rubric, 1 to 10, of the response as it reads:

1 + 3 if it is correct + 4 times the share of constraints that hold + 1 for form + 1 for not
repeating itself, rounded; 1 for an empty response. Strengths and weaknesses name these parts. Of
two responses the one that scores higher wins.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, set_seed

from codit import decode, recipes, student, world
from codit.engine.models import load_tokenizer
from codit.evaluation import agreement, intervals, rubric
from codit.evaluation import replies as judge_replies
from codit.evaluation.intervals import Interval
from codit.evaluation.rubric import Template
from codit.world import constraints, facts, instructions, pretraining, tasks
from codit.world.instructions import Instruction
from codit.world.recipes import Answers, Pretraining, WorldPrompts
from codit.world.recipes import WorldJudge as WorldJudge
from codit.world.server import serve as serve
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
SHARES = {  # how a judge is asked -> its share of lessons (ours)
    rubric.SINGLE: 0.50,
    rubric.PAIRWISE: 0.32,
    rubric.SINGLE_REFERENCE: 0.06,
    rubric.SECOND_TURN: 0.06,
    rubric.SECOND_TURN_REFERENCE: 0.06,
}
SAME = 0.1  # share of comparisons of a response with itself, which is a tie (ours)


@dataclass(frozen=True)
class Graded:
    """A response to an instruction, and the parts of it that hold."""

    asked: Instruction
    quality: str
    text: str
    score: int
    parts: tuple[tuple[str, bool], ...]

    def named(self, *, is_good: bool) -> str:
        """What holds, or what does not."""
        return ", ".join(name for name, holds in self.parts if holds is is_good) or "none"


def graded(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a response of some quality to each prompt, with what a judge should say of it.

    Args:
        prompts: instructions of the world.
        seed: of the qualities and of the responses.

    Returns:
        list[dict]: rows of id, instruction, response, family, quality (a key of `QUALITIES`),
        score (the verifier's), template, prompt (ours), reply (our JSON); `judge.score` takes
        them so.

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    found = []
    for number, one in enumerate(_responses(prompts, f"graded {seed}")):
        values = {"instruction": one.asked.text, "response": one.text}
        labels = {"family": one.asked.task.family, "quality": one.quality, "score": one.score}
        name = f"{prompts.split}-{prompts.seed}-{number:05d}"
        found.append({"id": name, **values, **labels, **_single(one, rubric.SINGLE, values)})
    return found


def lessons(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return one thing to judge for each prompt, in any of the ways that a judge is asked.

    Args:
        prompts: instructions of the world.
        seed: of the ways, the qualities and the responses.

    Returns:
        list[dict]: rows of id, template (its name), prompt, reply (our JSON), value (a score, or
        "first", "second" or "tie").

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    draw = random.Random(f"lessons {prompts.split} {prompts.seed} {seed}")
    first, second = (_responses(prompts, f"lessons {seed} {k}") for k in range(2))
    found: list[dict[str, Any]] = []
    before: Graded | None = None
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        template = draw.choices(list(SHARES), list(SHARES.values()))[0]
        rival = one if draw.random() < SAME else other
        name = f"{prompts.split}-{prompts.seed}-{number:05d}"
        found.append({"id": name, **_lesson(template, before or other, one, rival)})
        before = one
    return found


def compared(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return two responses to each prompt, and which one a judge should prefer.

    Args:
        prompts: instructions of the world.
        seed: of the qualities and of the responses.

    Returns:
        list[dict]: rows of id, instruction, first, second (texts), score_first, score_second,
        template, prompt, reply, value (the verdict).

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    pairs = zip(*(_responses(prompts, f"compared {seed} {k}") for k in range(2)), strict=True)
    return [
        {
            "id": f"{prompts.split}-{prompts.seed}-{number:05d}",
            "instruction": one.asked.text,
            "first": one.text,
            "second": other.text,
            "score_first": one.score,
            "score_second": other.score,
            **_lesson(rubric.PAIRWISE, one, one, other),
        }
        for number, (one, other) in enumerate(pairs)
    ]


def _lesson(template: Template, before: Graded, one: Graded, other: Graded) -> dict[str, Any]:
    """Return a prompt of a template and its reply; `before` is the turn before `one`."""
    if template is rubric.PAIRWISE:
        return _pairwise(one, other)
    known = {
        "instruction": one.asked.text,
        "response": one.text,
        "reference": one.asked.ideal,
        "question_1": before.asked.text,
        "answer_1": before.text,
        "reference_1": before.asked.ideal,
        "question_2": one.asked.text,
        "answer_2": one.text,
        "reference_2": one.asked.ideal,
    }
    wanted = rubric.PLACEHOLDER.findall(template.text)
    return _single(one, template, {name: known[name] for name in wanted})


def _single(one: Graded, template: Template, values: dict[str, str]) -> dict[str, Any]:
    said = (one.named(is_good=True), one.named(is_good=False), one.score)
    return _asked(template, values, said)


def _pairwise(one: Graded, other: Graded) -> dict[str, Any]:
    verdict = "tie"
    if one.score != other.score:
        verdict = "first" if one.score > other.score else "second"
    said = "; ".join(
        f"{place}: has {found.named(is_good=True)}, lacks {found.named(is_good=False)}, so "
        f"{found.score}"  # after its reasons, as in single scores
        for place, found in (("first", one), ("second", other))
    )
    values = {"instruction": one.asked.text, "first": one.text, "second": other.text}
    return _asked(rubric.PAIRWISE, values, (said, verdict))


def _asked(template: Template, values: dict[str, str], said: Sequence[Any]) -> dict[str, Any]:
    reply = dict(zip(rubric.fields(template), said, strict=True))
    prompt = rubric.fill(template, values)
    names = {"template": template.name, "prompt": prompt}
    return {**names, "reply": json.dumps(reply), "value": said[-1]}


def _responses(prompts: WorldPrompts, name: str) -> Iterator[Graded]:
    """Yield a response of some quality to each prompt; another name gives others."""
    draw = random.Random(f"{name} {prompts.split} {prompts.seed}")
    who = facts.residents(prompts.world, prompts.split)
    kinds, shares = list(QUALITIES), list(QUALITIES.values())
    for asked in itertools.islice(instructions.instructions(prompts), prompts.n):
        quality = draw.choices(kinds, shares)[0]
        yield _grade(asked, quality, _respond(asked, quality, draw, who))


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


def _grade(asked: Instruction, quality: str, text: str) -> Graded:
    """Let the verifier say what holds of a response."""
    task, wanted = asked.task, asked.constraints
    row = {
        "constraints": [asdict(c) for c in wanted],
        "references": list(task.required),
        "rivals": list(task.rivals),
    }
    found = world.verify(text, row)
    parts = [("correct", found.correct)]
    parts += [(LABELS.get(c.kind, c.kind), constraints.obeys(text, c)) for c in wanted]
    parts += [("form", found.format), ("no repetition", not found.repeats)]
    return Graded(asked, quality, text, found.score, tuple(parts))


REPLY_TOKENS = 96  # a reply is about 25 tokens, a comparison 60
TEMPLATES = {template.name: template for template in SHARES}


def make(recipe: WorldJudge, folder: Path) -> None:
    """Train a judge on the verifier's words, loss on the reply alone.

    Args:
        recipe: which judge.
        folder: where it goes.

    Raises:
        ValueError: see `world_lessons.lessons`, `pretraining.build` and `student.train`.

    Source: ours.
    """
    rows = lessons(recipe.prompts, seed=recipe.seed)
    words = tokenizer(rows, vocabulary=recipe.vocabulary)
    shape = Pretraining(
        architecture=recipe.architecture, hidden_size=recipe.hidden_size, layers=recipe.layers
    )
    set_seed(recipe.seed)
    base = folder / "base"
    pretraining.build(shape, words).save_pretrained(base)
    words.save_pretrained(base)
    training = recipes.Training(
        base=recipes.Model(name=str(base)),
        data=Answers(prompts=recipe.prompts),  # named only: `rows` is what is trained on
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


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    turns = (("user", row["prompt"]), ("assistant", row["reply"]))
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer(rows: Sequence[Mapping[str, Any]], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a judge's tokenizer: the fixed parts of its prompt are one token each.

    Args:
        rows: of `world_lessons.lessons`.
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
    fixed = {
        part: None
        for template in TEMPLATES.values()
        for part in rubric.PLACEHOLDER.split(template.text)[::2]
    }
    # What stands between the fixed parts is the material; longer parts first, some begin alike.
    parts = re.compile("|".join(map(re.escape, sorted(fixed, key=len, reverse=True))))
    backend.train_from_iterator(
        (text for row in rows for text in (*parts.split(row["prompt"]), row["reply"])), trainer
    )
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
    """Let a judge answer prompts here, without a server, by greedy replies.

    Args:
        folder: of the judge.
        rows: of `world_lessons`; use prompts that it was not trained on.

    Returns:
        pd.DataFrame: id, template, `said` (a score, or a verdict; None where the reply does not
        parse), `value` (what it should be), `reply`.

    Source: ours.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = [_messages(row)[:1] for row in rows]
    greedy = recipes.Decoding(
        strength=0, plausibility=0, temperature=0, max_new_tokens=REPLY_TOKENS
    )
    replies = decode.generate(model, load_tokenizer(str(folder)), asked, greedy, progress=False)
    said = [
        judge_replies.value_in(reply.text, TEMPLATES[row["template"]])[0]
        for reply, row in zip(replies, rows, strict=True)
    ]
    return pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "template": [row["template"] for row in rows],
            "said": np.array(said, dtype="object"),
            "value": np.array([row["value"] for row in rows], dtype="object"),
            "reply": [reply.text for reply in replies],
        }
    )


def reliability(table: pd.DataFrame) -> dict[str, Interval]:
    """Return how far a judge's scores are the verifier's.

    Args:
        table: with `id`, `said` (a score; None or NaN without one) and `value`.

    Returns:
        dict: `parses` (share of rows with a score), `equal` (share of rows with the verifier's
        score; one without a score is not equal), `spearman` and `kappa` (of the rows that parse);
        intervals of 95 % over prompts.

    Raises:
        ValueError: see `judge_agreement.agreement`.

    Source: ours.
    """
    said = table[["id"]].assign(score=table["said"].astype("float64"))
    told = table[["id"]].assign(score=table["value"].astype("float64"))
    both = agreement.agreement(said, told, kind="scores")
    return {
        "parses": intervals.mean_interval(said["score"].notna().to_numpy(dtype="float64")),
        "equal": intervals.mean_interval(
            (said["score"] == told["score"]).to_numpy(dtype="float64")
        ),
        "spearman": both.spearman,
        "kappa": both.kappa,
    }
