"""Conversations as what a student trains on: token ids and labels, with every row checked.

Real chat data fails in silence: answers cut in the middle, an end of turn outside the loss (the
student never stops), rows without any label. Here each of these is an error that names the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import decode, recipes
from codit.dataset.prompts import conversation_of, name_of
from codit.engine.chat import TEMPLATE_ERRORS, THOUGHT, dated, templated
from codit.engine.models import load_tokenizer
from codit.files import read_lines
from codit.training.loop import claim, date_of

Source = str | Path | Iterable[Mapping[str, Any]]
MASKED = -100
UNLIKE_ALLOWED = 0.01


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Conversations that may be trained on, and how many rows may not.

    Args:
        talks: where each row stands, for messages, and its turns, the answer last.
        incomplete: rows with `is_completed` False.
        empty: other rows whose answer has no text.
    """

    talks: list[tuple[str, list[dict[str, str]]]]
    incomplete: int
    empty: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a student trains on.

    Args:
        ids: token ids of each row.
        labels: the id where the token is in the loss, else -100.
        stop: the token that ends every answer.
        unlike: number of rows whose prompt is tokenised unlike at decoding.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    stop: int
    unlike: int


@dataclass(frozen=True, kw_only=True)
class Course:
    """What one training reads, in order, and what is told of it.

    Args:
        data: `input_ids` and `labels` of every row of every epoch.
        stop: the token that ends every answer.
        longest: tokens of the longest row.
        log: what the log says about the data.
    """

    data: Dataset
    stop: int
    longest: int
    log: dict[str, int]


def base_of(recipe: recipes.Training | recipes.Tuning, base: str | Path | None) -> recipes.Model:
    """Return what is trained: the recipe's base, or that of the name given in its place.

    ValueError: neither has a name.
    """
    named = recipe.base if isinstance(recipe.base, recipes.Model) else recipes.Model(name="")
    name = str(base or named.name)
    if not name:
        raise ValueError(
            f"expected a base model; got a recipe whose base is a {type(recipe.base).__name__} and "
            f"base={base!r}. Pass the folder of that model as `base`."
        )
    return replace(named, name=name, revision=named.revision if named.name == name else None)


def course(
    recipe: recipes.Training | recipes.Tuning,
    read: Answered,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    base: str,
    kept: int = 0,
) -> Course | None:
    """Claim `out` for a training, and return what it reads; None where it is finished there.

    `kept` of the model's positions are not for rows. A template that writes the date writes one in
    every row: that of the day on which the training began.
    """
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", recipe.max_length)
    writer, date = dated(tokenizer, date_of(out, recipe))
    rows = tokenised(read.talks, writer, max_length=min(recipe.max_length, reach - kept))
    if claim(out, recipe, repr((rows.ids, rows.labels)).encode(), base=base, date=date):
        return None
    order = arranged([len(ids) for ids in rows.ids], recipe)
    data = Dataset.from_dict({"input_ids": rows.ids, "labels": rows.labels}).select(order)
    log = summary(rows, order, read)
    return Course(data=data, stop=rows.stop, longest=max(map(len, rows.ids)), log=log)


def answered(source: Source, tokenizer: PreTrainedTokenizerBase) -> Answered:
    """Read what may be trained on: all rows but the incomplete and the empty, in any arm alike.

    ValueError: a row is not a conversation as `codit.dataset.prompts` reads them, or does not end
    with an answer; no row is left.
    """
    is_file = isinstance(source, (str, Path))
    numbered = read_lines(source) if isinstance(source, (str, Path)) else enumerate(source, start=1)
    talks: list[tuple[str, list[dict[str, str]]]] = []
    count = Counter[str]()
    for number, row in numbered:
        name, place = name_of(row), f"line {number}" if is_file else f"row {number}"
        where = place if name is None else f"row {name!r} ({place})"
        try:
            if not isinstance(done := _field(row, "is_completed", True), bool):
                raise ValueError(f"is_completed must be true or false; got {done!r:.60}")
            if done:
                messages = conversation_of(row)
                _check_answer(messages)
        except ValueError as error:
            raise ValueError(f"{where}: {error}. Mend the row or leave it out.") from None
        if done and messages[-1]["content"].strip():
            talks.append((where, messages))
        else:
            count["empty" if done else "incomplete"] += 1
    if not talks:
        raise ValueError(
            f"expected at least one row with a complete answer; got {count['incomplete']} "
            f"incomplete and {count['empty']} empty. "
            + (_advice(tokenizer) if count["incomplete"] else "Check how the responses were made.")
        )
    return Answered(talks=talks, incomplete=count["incomplete"], empty=count["empty"])


def _field(row: Any, name: str, missing: Any) -> Any:
    value = row.get(name) if isinstance(row, Mapping) else None
    return missing if value is None else value


def _check_answer(messages: Sequence[Mapping[str, str]]) -> None:
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(
            "expected a conversation that ends with an assistant turn; got roles "
            f"{[message['role'] for message in messages]}"
        )


def _advice(tokenizer: PreTrainedTokenizerBase) -> str:
    """Say how responses become complete: by more tokens, or by the template's own stop token."""
    said = "Raise max_new_tokens, or check how the responses were made"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        stop = final(encode(talk, tokenizer)[1], tokenizer)
    except TEMPLATE_ERRORS:
        return f"{said}."
    return (
        f"{said}: where they run on past their end, {tokenizer.decode([stop])!r}, which ends this "
        "template's turns, is missing among the expert's stop tokens (eos_token_id in its "
        "generation_config.json)."
    )


def adopt_template(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: recipes.Model | recipes.File,
) -> None:
    """Give a base model another's chat template, EOS and missing added tokens, in place.

    Unlike `trl.clone_chat_template`, embeddings only ever grow, and only where a token has no row:
    a student whose matrices keep the base's shape can be compared with it weight by weight. Of a
    Jinja file only the template is taken.
    """
    if isinstance(template, recipes.File):
        tokenizer.chat_template = Path(template.path).read_text(encoding="utf-8")
        return
    source = load_tokenizer(template.name, revision=template.revision)
    if source.chat_template is None:
        raise ValueError(
            f"expected a tokenizer with a chat template; {template.name} has none. Name an "
            "instruction-tuned model or a Jinja file."
        )
    tokenizer.chat_template = source.get_chat_template()
    known = tokenizer.get_vocab()
    added = source.added_tokens_decoder.values()
    tokenizer.add_tokens([token for token in added if token.content not in known])
    tokenizer.eos_token = source.eos_token
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))


def tokenised(
    talks: Sequence[tuple[str, Sequence[Mapping[str, str]]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> Rows:
    """Return token ids and labels of conversations; nothing is ever cut.

    labels_t = ids_t if t belongs to the last assistant turn, end of turn included, else -100. The
    turn begins where `decode.prompt_ids` ends, so the loss is on exactly what a student is asked
    for; a template's generation markers mark the same tokens but are not needed. Special tokens
    written in a message are ordinary text, as at decoding.

    ValueErrors name rows as `talks` does: a row that the template refuses or does not write whole,
    is too long, or has no label, not all of its answer or no end of turn in the loss. Others: no
    chat template, rows that end differently, more than 1 % of prompts tokenised unlike at decoding.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "expected a base model with a chat template; its tokenizer has none. Name one in the "
            "recipe's `template` (--template): the teacher's tokenizer, or a Jinja file."
        )
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    stops: dict[int, Any] = {}
    unlike = 0
    for name, messages in tqdm(talks, "tokenising"):
        try:
            row, label, alike = encode(messages, tokenizer)
            stops.setdefault(final(label, tokenizer), name)
        except jinja2.TemplateError as error:
            raise ValueError(
                f"{name}: the chat template refuses it: {error}. Use another template or leave "
                "the row out."
            ) from None
        except TEMPLATE_ERRORS as error:
            raise ValueError(f"{name}: {error}") from None
        if len(row) > max_length:
            raise ValueError(
                f"{name}: expected at most {max_length} tokens; got {len(row)}. Raise "
                "max_length (up to the model's context) or drop the row: answers are never cut."
            )
        ids.append(row)
        labels.append(label)
        unlike += not alike
    if len(stops) > 1:
        found = {tokenizer.decode([token]): name for token, name in stops.items()}
        raise ValueError(
            f"expected one token that ends every answer; got, each with a row: {found}. "
            "Use a chat template that ends every assistant turn alike."
        )
    if unlike > UNLIKE_ALLOWED * len(ids):
        raise ValueError(
            f"{unlike} of {len(ids)} prompts are tokenised in training unlike at decoding. Use a "
            "chat template that renders a prompt with add_generation_prompt as it renders it "
            "before an answer."
        )
    return Rows(ids=ids, labels=labels, stop=next(iter(stops)), unlike=unlike)


def encode(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int], bool]:
    """Return a conversation's ids, its labels, and whether its prompt is the one of decoding."""
    prompt = decode.prompt_ids(tokenizer, messages[:-1])
    ids = templated(tokenizer, messages)
    if prompt[0] == tokenizer.bos_token_id != ids[0]:  # `prompt_ids` puts a BOS before the template
        ids = [prompt[0], *ids]
    pairs = enumerate(zip(prompt, ids, strict=False))
    shared = next((k for k, (asked, told) in pairs if asked != told), min(len(prompt), len(ids)))
    end = len(ids)
    # Some templates write a line break after the end of turn; no model is asked for it.
    while end > shared and not tokenizer.decode([ids[end - 1]]).strip():
        end -= 1
    _check_whole(messages[-1]["content"], ids[shared:end], tokenizer)
    labels = [MASKED] * shared + ids[shared:end] + [MASKED] * (len(ids) - end)
    return ids, labels, shared == len(prompt)


def _check_whole(answer: str, learnt: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the tokens in the loss hold an answer whole, white space aside.

    What a tokenizer itself changes in a text, its forms and cases, it changes in both.
    """

    def bare(ids: list[int]) -> str:
        return "".join(tokenizer.decode(ids, clean_up_tokenization_spaces=False).split())

    text, place = bare(learnt), 0
    for part in THOUGHT.split(answer):
        wanted = bare(tokenizer(part.strip(), add_special_tokens=False).input_ids)
        found = text.find(wanted, place)
        if learnt and found < 0:
            raise ValueError(
                f"not all of its answer is in the loss: {part.strip()!r:.60} is missing. Use a "
                "chat template that writes answers whole."
            )
        place = found + len(wanted)


def final(labels: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the end of turn, which must be a row's last token in the loss."""
    stop = next((label for label in reversed(labels) if label != MASKED), None)
    if stop is None:
        raise ValueError(
            "no token of its answer is in the loss. Check that the chat template "
            "writes the answer and ends its turn."
        )
    if stop not in tokenizer.added_tokens_decoder:
        raise ValueError(
            "expected the end of turn, a special token, as the last token in the "
            f"loss; got {tokenizer.decode([stop])!r}. A student trained so never stops: use a "
            "chat template that ends every assistant turn with one."
        )
    return stop


def arranged(lengths: Sequence[int], recipe: recipes.Training | recipes.Tuning) -> list[int]:
    """Return the order of rows over the whole training: one permutation after another.

    round(rows * epochs) row numbers, at least one. The rows of each step are sorted by length,
    longest first: passes of equal length need less padding, and which rows make a step is left to
    chance.
    """
    total = max(1, round(len(lengths) * recipe.epochs))
    noise = np.random.default_rng(recipe.seed)
    order: list[int] = []
    while len(order) < total:
        order += noise.permutation(len(lengths)).tolist()
    steps = [order[k : min(k + recipe.batch, total)] for k in range(0, total, recipe.batch)]
    return [row for step in steps for row in sorted(step, key=lambda i: -lengths[i])]


def summary(rows: Rows, order: Sequence[int], read: Answered) -> dict[str, int]:
    """Return what the log says about the data: rows, and tokens over all epochs."""
    return {
        "rows_used": len(rows.ids),
        "rows_dropped": read.incomplete + read.empty,
        "rows_empty": read.empty,
        "rows_with_unlike_prompt": rows.unlike,
        "tokens": sum(len(rows.ids[i]) for i in order),
        "answer_tokens": sum(len(rows.labels[i]) - rows.labels[i].count(MASKED) for i in order),
    }
