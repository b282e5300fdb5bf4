"""A judge of the micro world: a micro model that scores and compares responses in our JSON.

It learns from what the world's verifier says, so that a judgement through a real server means
something. A lesson is a response of some quality and what to say of it: strengths and weaknesses
name the parts of the verifier's rubric that hold and those that do not, then comes its score. Of
two responses the one that scores higher wins.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast, set_seed

from codit import decode, recipes, student, world
from codit.engine.models import load_tokenizer, read_model
from codit.evaluation import agreement, intervals, replies, rubric
from codit.evaluation.intervals import Interval
from codit.evaluation.rubric import Template
from codit.world import constraints, facts, instructions, pretraining, tasks
from codit.world.instructions import Instruction
from codit.world.recipes import Answers, Pretraining, WorldJudge, WorldPrompts
from codit.world.server import serve as serve
from codit.world.tokens import END, byte_pairs

QUALITIES = {  # how a response was written -> its share
    "ideal": 0.20,
    "careless": 0.20,  # as on the world's pages: right and heedless
    "partial": 0.18,  # right, heeds most of what was asked
    "wrong": 0.26,
    "cut": 0.06,
    "again": 0.04,  # said twice, asked or not
    "furnished": 0.03,  # shows the furniture of a page
    "empty": 0.03,
}
HEEDED = 0.6  # share of constraints that all but ideal and careless responses try to obey
EMPTY = ("", " ", "\n", "...", '""')
LABELS = {"one_word": "one word", "max_words": "few words"}  # else the constraint's kind
SHARES = {  # how a judge is asked -> its share of lessons
    rubric.SINGLE: 0.50,
    rubric.PAIRWISE: 0.32,
    rubric.SINGLE_REFERENCE: 0.06,
    rubric.SECOND_TURN: 0.06,
    rubric.SECOND_TURN_REFERENCE: 0.06,
}
SAME = 0.1  # share of comparisons of a response with itself, which is a tie
TEMPLATES = {template.name: template for template in SHARES}
REPLY_TOKENS = 96  # a reply is about 25 tokens, a comparison 60


def make(recipe: WorldJudge, folder: Path) -> None:
    """Train a judge on the verifier's words, loss on the reply alone, and leave it in `folder`."""
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
    """Train a judge's tokenizer on lessons: the fixed parts of its prompt are one token each.

    `vocabulary` counts the tokens besides the fixed parts, at least 261: bytes and markup.
    """
    templates = [rubric.PLACEHOLDER.split(template.text)[::2] for template in SHARES]
    fixed = list(dict.fromkeys(part for parts in templates for part in parts))
    # What stands between the fixed parts is the material; longer parts first, some begin alike.
    between = re.compile("|".join(map(re.escape, sorted(fixed, key=len, reverse=True))))
    texts = (text for row in rows for text in (*between.split(row["prompt"]), row["reply"]))
    return byte_pairs(texts, vocabulary, whole=fixed)


def judged(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Let a judge answer prompts here, without a server, by greedy replies.

    Args:
        folder: of the judge.
        rows: of `graded`, `compared` or `lessons`; use prompts that it was not trained on.

    Returns:
        pd.DataFrame: id, template, `said` (a score, or a verdict; None where the reply does not
        parse), `value` (what it should be), `reply`.
    """
    model = read_model(folder)
    asked = [_messages(row)[:1] for row in rows]
    how = recipes.Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=REPLY_TOKENS)
    told = decode.generate(model, load_tokenizer(str(folder)), asked, how, progress=False)
    said = [
        replies.value_in(reply.text, TEMPLATES[row["template"]])[0]
        for reply, row in zip(told, rows, strict=True)
    ]
    return pd.DataFrame([{name: row[name] for name in ("id", "template")} for row in rows]).assign(
        said=pd.Series(said, dtype="object"),
        value=pd.Series([row["value"] for row in rows], dtype="object"),
        reply=[reply.text for reply in told],
    )


def reliability(table: pd.DataFrame) -> dict[str, Interval]:
    """Return how far a judge's scores are the verifier's, for rows of `judged`.

    `parses` (share of rows with a score), `equal` (share of rows with the verifier's score; one
    without a score is not equal), `spearman` and `kappa` (of the rows that parse): intervals of
    95 % over prompts.
    """
    said, told = (
        table[["id"]].assign(score=table[name].astype("float64")) for name in ("said", "value")
    )
    both = agreement.agreement(said, told, kind="scores")
    shares = {"parses": said["score"].notna(), "equal": said["score"] == told["score"]}
    found = {name: intervals.mean_interval(held) for name, held in shares.items()}
    return {**found, "spearman": both.spearman, "kappa": both.kappa}


def lessons(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return one thing to judge for each prompt, in any of the ways that a judge is asked.

    Rows have id, template (its name), prompt, reply (our JSON), value (a score, or "first",
    "second" or "tie"). `seed` is of the ways, the qualities and the responses.
    """
    draw = random.Random(f"lessons {prompts.split} {prompts.seed} {seed}")
    first, second = (_responses(prompts, f"lessons {seed} {k}") for k in range(2))
    found: list[dict[str, Any]] = []
    before: Graded | None = None
    for one, other in zip(first, second, strict=True):
        template = draw.choices(list(SHARES), list(SHARES.values()))[0]
        rival = one if draw.random() < SAME else other
        found.append({"id": one.asked.id, **_lesson(template, one, rival, before or other)})
        before = one
    return found


def graded(prompts: WorldPrompts) -> list[dict[str, Any]]:
    """Return a response of some quality to each prompt, with what a judge should say of it.

    Rows have id, instruction, response, family, quality (a key of `QUALITIES`), score (the
    verifier's), and a lesson's template, prompt, reply and value. `evaluation.judge.score` takes
    the first three.
    """
    return [
        {
            "id": one.asked.id,
            "instruction": one.asked.text,
            "response": one.text,
            "family": one.asked.task.family,
            "quality": one.quality,
            "score": one.score,
            **_lesson(rubric.SINGLE, one, one, one),
        }
        for one in _responses(prompts, "graded 0")
    ]


def compared(prompts: WorldPrompts) -> list[dict[str, Any]]:
    """Return two responses to each prompt, and which one a judge should prefer.

    Rows have id, instruction, first, second (texts), score_first, score_second, and a lesson's
    template, prompt, reply and value (the verdict).
    """
    pairs = zip(*(_responses(prompts, f"compared 0 {k}") for k in range(2)), strict=True)
    return [
        {
            "id": one.asked.id,
            "instruction": one.asked.text,
            "first": one.text,
            "second": other.text,
            "score_first": one.score,
            "score_second": other.score,
            **_lesson(rubric.PAIRWISE, one, other, one),
        }
        for one, other in pairs
    ]


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


def _lesson(template: Template, one: Graded, other: Graded, before: Graded) -> dict[str, Any]:
    """Return a template's prompt and reply on `one`, its rival, and the turn before it."""
    values = {
        "instruction": one.asked.text,
        "response": one.text,
        "first": one.text,
        "second": other.text,
        "reference": one.asked.ideal,
        "question_1": before.asked.text,
        "answer_1": before.text,
        "reference_1": before.asked.ideal,
        "question_2": one.asked.text,
        "answer_2": one.text,
        "reference_2": one.asked.ideal,
    }
    wanted = rubric.PLACEHOLDER.findall(template.text)
    prompt = rubric.fill(template, {name: values[name] for name in wanted})
    said: tuple[Any, ...] = (one.named(is_good=True), one.named(is_good=False), one.score)
    if template is rubric.PAIRWISE:
        said = _comparison(one, other)
    reply = json.dumps(dict(zip(rubric.fields(template), said, strict=True)))
    return {"template": template.name, "prompt": prompt, "reply": reply, "value": said[-1]}


def _comparison(one: Graded, other: Graded) -> tuple[str, str]:
    """Return the reasons, each followed by its score as in single scores, and the verdict."""
    reasons = "; ".join(
        f"{place}: has {found.named(is_good=True)}, lacks {found.named(is_good=False)}, so "
        f"{found.score}"
        for place, found in (("first", one), ("second", other))
    )
    if one.score == other.score:
        return reasons, "tie"
    return reasons, "first" if one.score > other.score else "second"


def _responses(prompts: WorldPrompts, name: str) -> Iterator[Graded]:
    """Yield a response of some quality to each prompt; another name gives others."""
    draw = random.Random(f"{name} {prompts.split} {prompts.seed}")
    who = facts.residents(prompts.world, prompts.split)
    kinds, shares = list(QUALITIES), list(QUALITIES.values())
    for asked in instructions.instructions(prompts):
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
    found = world.verify(text, asked.checked)
    parts = [("correct", found.correct)]
    parts += [(LABELS.get(c.kind, c.kind), constraints.obeys(text, c)) for c in asked.constraints]
    parts += [("form", found.format), ("no repetition", not found.repeats)]
    return Graded(asked, quality, text, found.score, tuple(parts))
