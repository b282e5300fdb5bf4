"""The world's judge: a micro model that scores and compares responses in our JSON.

It learns from what the world's verifier says, so that a judgement through a real server means
something. What it is taught: `codit.world_lessons`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, set_seed

from codit import (
    comparison,
    decode,
    intervals,
    judge_agreement,
    judge_prompts,
    judge_replies,
    pretraining,
    recipes,
    store,
    student,
    world_lessons,
)
from codit.intervals import Interval
from codit.model_server import serve as serve  # a judge of ours is served from here
from codit.vocabulary import load_tokenizer
from codit.world.recipes import Answers, Pretraining
from codit.world.recipes import WorldJudge as WorldJudge
from codit.world.tokens import ASSISTANT, CHAT_TEMPLATE, END, END_OF_TEXT, SYSTEM, USER

REPLY_TOKENS = 96  # a reply is about 25 tokens, a comparison 60
TEMPLATES = {template.name: template for template in world_lessons.SHARES}


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
        ValueError: see `world_lessons.lessons`, `pretraining.build` and `student.train`.

    Source: ours.
    """
    rows = world_lessons.lessons(recipe.prompts, seed=recipe.seed)
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
        for part in judge_prompts.PLACEHOLDER.split(template.text)[::2]
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
    greedy = comparison.greedy_decoding(REPLY_TOKENS)
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
    both = judge_agreement.agreement(said, told, kind="scores")
    return {
        "parses": intervals.mean_interval(said["score"].notna().to_numpy(dtype="float64")),
        "equal": intervals.mean_interval(
            (said["score"] == told["score"]).to_numpy(dtype="float64")
        ),
        "spearman": both.spearman,
        "kappa": both.kappa,
    }
