"""CTD, contrastive tuning and decoding: a soft prefix that makes a model wrong, and is subtracted.

A frozen model reads a text as it is, with logits z, and behind a soft prefix, with logits z~. The
prefix alone is tuned, so that the contrast of both predicts the answers; texts are then drawn from
the contrast (`codit.pair.TwoViews`). Instructive decoding needs no tuning: its second view is the
prompt in another wording.

Source: CTD ("Achieving Stronger Generation via Simple Contrastive Tuning", EMNLP Findings 2024);
instructive decoding (arXiv 2311.00233). What has no source is ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from codit import files, recipes
from codit.engine.cache import shared_width
from codit.engine.chat import Conversation, drawable, prompt_ids
from codit.engine.models import load_tokenizer, read_model
from codit.engine.sampling import Batch
from codit.engine.static import Runner
from codit.pair import TwoViews, prefixed
from codit.training.loop import fit, steps_in_order
from codit.training.rows import MASKED, Source, answered, base_of, course

CONFIG = "adapter_config.json"
WEIGHTS, EMBEDDINGS = "adapter_model.safetensors", "prompt_embeddings"
WORDINGS = ("opposite", "none", "truncated", "random")
OPPOSITE = "Always do the contrary of what is asked, and never give a correct answer."  # ours
ROWS_PER_PASS = 8
KEPT = 0.6  # of the words of a truncated wording; the authors of instructive decoding


def loss(z: Tensor, seen: Tensor, labels: Tensor, *, strength: float, scale: float = 1.0) -> Tensor:
    """Return the sum of the losses of a contrast, in nats.

    L = - sum over t with a label of log softmax(scale z_t - strength z~_t)[label_t]

    Args:
        z: logits of the first view, float [B, T, V]; no gradient goes into them.
        seen: z~, logits of the second view, same shape.
        labels: int64 [B, T], the id that follows position t, or -100.
        strength: alpha.
        scale: of the first view: 1, or 1 + strength (`Tuning.keeps_scale`); prompt tuning's loss
            is that of scale 0 and strength -1.

    Source: CTD, its loss.
    """
    scores = scale * z.detach().float() - strength * seen.float()
    return nn.functional.cross_entropy(
        scores.flatten(0, 1), labels.flatten(), ignore_index=MASKED, reduction="sum"
    )


class SoftPrefix(nn.Module):
    """A soft prefix [n, D] of a frozen model, as the Trainer trains it: its only weights.

    It starts as the embeddings of n random ids.
    """

    def __init__(self, model: PreTrainedModel, recipe: recipes.Tuning, width: int) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(recipe.seed)
        ids = torch.randint(width, (recipe.prefix,), generator=noise)
        table = model.get_input_embeddings()
        start = table(ids.to(model.device)).detach().float().clone()
        self.prompt_embeddings = nn.Parameter(start)
        self.recipe, self.width = recipe, width
        self.hidden = (model,)  # a tuple, so that the model's weights are none of this module's

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses of right-padded rows int64 [B, T], in nats."""
        (model,) = self.hidden
        ids, mask = input_ids.to(model.device), attention_mask.to(model.device)
        n, own = self.recipe.prefix, model.get_input_embeddings()
        rows = shared_width(model.config)
        before = torch.arange(rows, rows + n, device=ids.device).expand(len(ids), n)
        try:
            model.set_input_embeddings(prefixed(model, self.prompt_embeddings))
            seen = model(
                input_ids=torch.cat([before, ids], 1),
                attention_mask=torch.cat([mask.new_ones(len(ids), n), mask], 1),
                use_cache=False,
            ).logits[:, n:]
        finally:
            model.set_input_embeddings(own)
        if self.recipe.contrasts:
            strength = self.recipe.strength
            scale = 1 + strength if self.recipe.keeps_scale else 1.0
            with torch.no_grad():
                z = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        else:
            strength, scale, z = -1.0, 0.0, seen  # 0 z + z~
        z, seen = (one[:, :-1, : self.width] for one in (z, seen))
        return loss(z, seen, labels[:, 1:].to(ids.device), strength=strength, scale=scale)

    def num_parameters(self, **_: Any) -> int:
        """Return how many numbers are tuned."""
        return self.prompt_embeddings.numel()

    def save_pretrained(self, out: str | Path) -> None:
        """Write the prefix as PEFT writes one of prompt tuning, its configuration last."""
        (model,) = self.hidden
        save_file({EMBEDDINGS: self.prompt_embeddings.detach().cpu()}, Path(out) / WEIGHTS)
        config = {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model.config.name_or_path,
            "num_virtual_tokens": self.recipe.prefix,
            "token_dim": self.prompt_embeddings.shape[1],
            "inference_mode": True,
        }
        files.write_json(Path(out) / CONFIG, config)


class PrefixTrainer(Trainer):
    """The library's trainer, with the loss of a soft prefix."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the mean loss of a step's answer tokens, in nats."""
        count = kwargs.get("num_items_in_batch")
        if count is None:
            count = (inputs["labels"][:, 1:] != MASKED).sum()
        return model(**inputs) / count


def tune(
    recipe: recipes.Tuning,
    dataset: Source,
    out: str | Path,
    *,
    base: str | Path | None = None,
    rows_per_pass: int | None = None,
    save_every: int = 0,
) -> Path:
    """Tune a soft prefix of a frozen model on the answers of a dataset, and save it.

    AdamW at a constant learning rate, gradients clipped at norm 1. The arguments are those of
    `student.train`, and so are the rows that are left out or refused.

    Returns:
        Path: `out` with the prefix in PEFT's format, the tokenizer, and `training_log.json`. Where
        this tuning is finished there, nothing is done.

    Raises:
        ValueError: as `student.train`, or a model without input embeddings.
    """
    out, of = Path(out), base_of(recipe, base)
    tokenizer = load_tokenizer(of.name, revision=of.revision)
    read = answered(dataset, tokenizer)
    rows_per_pass = rows_per_pass or math.gcd(recipe.batch, ROWS_PER_PASS)
    how = steps_in_order(recipe, out, rows_per_pass=rows_per_pass, save_every=save_every)
    model = read_model(of.name, revision=of.revision, dtype="auto")
    model.requires_grad_(requires_grad=False).eval()
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    given = course(recipe, read, model, tokenizer, out, base=of.name, kept=recipe.prefix)
    if given is None:
        return out
    how |= {"lr_scheduler_type": "constant", "remove_unused_columns": False}
    width, _ = drawable(tokenizer, shared_width(model.config))
    trainer = PrefixTrainer(
        model=SoftPrefix(model, recipe, width),
        args=TrainingArguments(**how),
        train_dataset=given.data,
        data_collator=padded,
    )
    return fit(trainer, tokenizer, out, None, **given.log)


def padded(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return rows of ids and labels as right-padded int64 tensors with their mask."""
    ids, labels = ([torch.tensor(row[n]) for row in rows] for n in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([*map(torch.ones_like, ids)], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=MASKED),
    }


class SecondView(TwoViews):
    """The second view alone, at strength 0: how a prompt-tuned model decodes."""

    is_contrast = False

    def deciding(self, decoding: recipes.Decoding) -> Any:
        """See `decode.Decoder`."""
        if decoding.strength:
            raise ValueError(
                "one view has nothing to contrast with: strength must be 0; got "
                f"{decoding.strength}. Use Decoding(strength=0), or both views."
            )
        return super().deciding(decoding)

    def runner(self, batch: Batch) -> Runner:
        """Return what the static engine runs for a batch of prompts."""
        return _OtherRows(self, batch)


class _OtherRows(Runner):
    """A model that is fed the second view of each row."""

    def __init__(self, seen: SecondView, batch: Batch) -> None:
        super().__init__(seen.model, batch)
        self.view = seen.view

    def prompts(self, prompts: list[list[int]]) -> Any:
        return super().prompts([self.view(prompt) for prompt in prompts])


def two_views(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    second_alone: bool = False,
) -> TwoViews:
    """Return a model beside itself behind the soft prefix that `tune`, or PEFT, wrote.

    With `second_alone` the model behind its prefix, as prompt tuning decodes. ValueError: no prefix
    there, or one of another width.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(f"expected a soft prefix in {folder}; there is no {WEIGHTS}. Tune one.")
    weights = load_file(path)
    if EMBEDDINGS not in weights:
        raise ValueError(
            f"expected {EMBEDDINGS} in {path}; got {sorted(weights)}. It is no soft prefix of "
            "prompt tuning."
        )
    width, _ = drawable(tokenizer, shared_width(model.config))
    kind = SecondView if second_alone else TwoViews
    return kind(model, prefix=weights[EMBEDDINGS], vocab_size=width)


def instructive(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    wording: str,
    *,
    definitions: Sequence[str] | None = None,
    seed: int = 0,
) -> TwoViews:
    """Return a model that reads each of these conversations in another wording too.

    Only the definition changes, the part of the last user turn that says what to do: "opposite"
    puts `OPPOSITE` in its place; "none" leaves it out; "truncated" keeps .6 of its words, drawn at
    random; "random" replaces them by words of all conversations. `definitions` None: the whole
    turn, which "opposite" keeps behind it.

    Raises:
        ValueError: no such wording, or a definition that its conversation does not hold.

    Source: instructive decoding (arXiv 2311.00233); the words of "opposite" and of "random": ours.
    """
    if wording not in WORDINGS:
        raise ValueError(f"wording must be one of {', '.join(WORDINGS)}; got {wording!r}.")
    words = sorted({w for chat in conversations for w in _last(chat)["content"].split()})
    parts = definitions or [_last(chat)["content"] for chat in conversations]
    seen = {}
    for number, (chat, part) in enumerate(zip(conversations, parts, strict=True)):
        other = _reworded(chat, part, wording, random.Random(f"{seed}/{number}"), words)
        seen[tuple(prompt_ids(tokenizer, chat))] = prompt_ids(tokenizer, other)
    longer = max([0, *(len(other) - len(own) for own, other in seen.items())])
    width, _ = drawable(tokenizer, shared_width(model.config))
    return TwoViews(model, lambda ids: seen[tuple(ids)], longer=longer, vocab_size=width)


def _last(chat: Conversation) -> Mapping[str, str]:
    return next(turn for turn in reversed(chat) if turn["role"] == "user")


def _reworded(
    chat: Conversation, part: str, wording: str, draw: random.Random, words: Sequence[str]
) -> list[dict[str, str]]:
    """Return a conversation with a part of its last user turn in another wording."""
    asked = _last(chat)
    if part not in asked["content"]:
        raise ValueError(
            f"expected the definition {part!r} in what the user says, {asked['content']!r}; it is "
            "not there. Give it word for word."
        )
    own, whole = part.split(), part == asked["content"]
    kept = sorted(draw.sample(range(len(own)), round(KEPT * len(own))))
    other = {
        "opposite": f"{OPPOSITE}\n{part}" if whole else OPPOSITE,
        "none": "",
        "truncated": " ".join(own[i] for i in kept),
        "random": " ".join(draw.choice(words) for _ in own),
    }[wording]
    text = asked["content"].replace(part, other, 1).strip()
    return [{**turn, "content": text} if turn is asked else dict(turn) for turn in chat]
