"""The two models of a pair on disk: loading them from names or from a saved pair, and saving.

The tokenizer of a pair: loading it, agreement of two, ids that stop and ids that are special.

From a conversation to the token ids of its prompt, and from an answer's ids to text.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def read_pair(
    expert: str | Path,
    amateur: str | Path | None,
    *,
    revisions: tuple[str | None, str | None] = (None, None),
    allow_renamed: bool = False,
    **load: Any,
) -> tuple[PreTrainedModel, PreTrainedModel, dict[str, Any]]:
    """Load expert and amateur, after comparing their tokenizers.

    Args:
        expert: Hub name or folder; or, without `amateur`, the folder of a saved pair.
        amateur: Hub name or folder.
        revisions: the expert's and the amateur's commit, tag or branch.
        allow_renamed: see `codit.engine.models.check_tokenizers`.
        **load: handed to both models' `from_pretrained`; trust_remote_code is False by default.

    Returns:
        (PreTrainedModel, PreTrainedModel, dict): the models, and what else the pair is made with:
        the saved pair's values, or vocab_size of the expert's tokenizer. The expert's generation
        config stops at its tokenizer's stop token too.

    Raises:
        ValueError: one revision for two models, no saved pair, tokenizers that disagree, or a model
            that cannot be loaded.

    Source: the authors' pairs share a tokenizer; the checks: ours.
    """
    if "revision" in load:
        raise ValueError(
            "two models have two revisions; got one `revision`. Use expert_revision and "
            "amateur_revision."
        )
    trust = load.setdefault("trust_remote_code", False)
    if amateur is None:
        values = _saved_values(expert)
        expert, amateur, tokenizer = Path(expert) / "expert", Path(expert) / "amateur", None
    else:
        tokenizer, other = (
            load_tokenizer(name, revision=revision, trust_remote_code=trust)
            for name, revision in zip((expert, amateur), revisions, strict=True)
        )
        check_tokenizers(tokenizer, other, allow_renamed=allow_renamed)
        values = {"vocab_size": len(tokenizer)}
    models = [
        read_model(name, revision=revision, **load)
        for name, revision in zip((expert, amateur), revisions, strict=True)
    ]
    if tokenizer is not None:
        # Some tokenizers name an added token more than their text model has logits (Gemma 3 1B).
        width = min(m.config.get_text_config(decoder=True).vocab_size for m in models)
        if set(range(width, len(tokenizer))) <= set(tokenizer.added_tokens_decoder):
            values["vocab_size"] = min(len(tokenizer), width)
        config = models[0].generation_config
        config.eos_token_id, config.pad_token_id = (
            stop_ids(tokenizer, config),
            tokenizer.pad_token_id,
        )
    return models[0], models[1], values


def read_model(name: str | Path, *, revision: str | None = None, **load: Any) -> PreTrainedModel:
    """Load one causal language model.

    Args:
        name: Hub name or folder.
        revision: commit, tag or branch.
        **load: handed to `from_pretrained`.

    Returns:
        PreTrainedModel: as transformers loads it.

    Raises:
        ValueError: there is no such model, or its files are not whole.

    Source: ours.
    """
    with loading("weights", name):
        return AutoModelForCausalLM.from_pretrained(name, revision=revision, **load)


def write_pair(
    folder: str | Path,
    models: tuple[PreTrainedModel, PreTrainedModel],
    values: dict[str, Any],
    *,
    generation_config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **save: Any,
) -> None:
    """Write folder/expert, folder/amateur (safetensors) and, last, folder/pair.json.

    Args:
        folder: made if missing.
        models: expert and amateur.
        values: what `ContrastivePair` is made with besides, as JSON can hold it.
        generation_config: the pair's, saved as the expert's.
        tokenizer: the expert's, saved beside both models. None: models only.
        **save: handed to both models' `save_pretrained`.

    Source: ours.
    """
    folder = Path(folder)
    for name, model in zip(("expert", "amateur"), models, strict=True):
        model.save_pretrained(folder / name, **save)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    generation_config.save_pretrained(folder / "expert")
    (folder / PAIR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _saved_values(folder: str | Path) -> dict[str, Any]:
    """Return what the file of a saved pair says."""
    file = Path(folder) / PAIR_FILE
    if not file.is_file():
        raise ValueError(
            f"one name loads a saved pair, a folder with {PAIR_FILE}; got {folder}. Name the "
            "amateur too, or make the folder with ContrastivePair.save_pretrained."
        )
    return json.loads(file.read_text(encoding="utf-8"))


PAIR_FILE = "pair.json"
"""Its presence marks the folder of a saved pair."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def loading(part: str, name: str | Path) -> Iterator[None]:
    """Say what could not be loaded from where, in place of what the libraries say.

    Args:
        part: "tokenizer" or "weights".
        name: Hub name or folder.

    Raises:
        ValueError: in place of whatever a missing or broken file makes the libraries raise.

    Source: ours.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"cannot load the {part} of {name}: {_reason(part, name, error)}. Give the folder or "
            "the Hub name of a causal language model with its tokenizer."
        ) from error


def _reason(part: str, name: str | Path, error: Exception) -> str:
    """Return why something cannot be loaded, in fewer words than the libraries' where we know."""
    is_path = str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1
    if is_path and not Path(name).exists():
        return "there is no such folder"
    needed = "tokenizer*" if part == "tokenizer" else "config.json"
    if Path(name).is_dir() and not any(Path(name).glob(needed)):
        return f"the folder holds no {needed}"
    return " ".join(str(error).split()).rstrip(".")


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left, as generation in batches needs it.

    Args:
        name: Hub name, folder, or folder of a saved pair (then the expert's).
        revision: commit, tag or branch.
        trust_remote_code: run code that the repository brings.

    Returns:
        PreTrainedTokenizerBase: with a padding token; the stop token where it had none.

    Raises:
        ValueError: it cannot be loaded.

    Source: ours. The side is given to `from_pretrained`, because a side that is set later is lost
    when the tokenizer is saved.
    """
    if (Path(name) / PAIR_FILE).is_file():
        name = Path(name) / "expert"
    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, padding_side="left", trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizers(
    expert_tokenizer: PreTrainedTokenizerBase,
    amateur_tokenizer: PreTrainedTokenizerBase,
    *,
    allow_renamed: bool = False,
) -> list[tuple[int, str | None, str | None]]:
    """Refuse two tokenizers whose ids do not mean the same.

    Only the expert's tokenizer is used, so its ids are what the amateur reads.

    Args:
        expert_tokenizer: the one that encodes and decodes.
        amateur_tokenizer: the one the amateur was trained with.
        allow_renamed: accept added tokens whose names differ at one id, or that one side lacks: a
            chat model often names what its base model keeps in reserve.

    Returns:
        list: the accepted differences (id, expert's name, amateur's name; None where there is
        no such id), also logged as a warning.

    Raises:
        ValueError: an ordinary token differs, or an added one does and `allow_renamed` is False.

    Source: the authors do not check. (ours)
    """
    names = [_names_by_id(tokenizer) for tokenizer in (expert_tokenizer, amateur_tokenizer)]
    ids = sorted(set(names[0]) | set(names[1]))
    differences = [(i, names[0].get(i), names[1].get(i)) for i in ids]
    differences = [(i, ours, theirs) for i, ours, theirs in differences if ours != theirs]
    added = [set(t.added_tokens_decoder) for t in (expert_tokenizer, amateur_tokenizer)]
    ordinary = [
        (i, *pair)
        for i, *pair in differences
        if any(name is not None and i not in a for name, a in zip(pair, added, strict=True))
    ]
    if ordinary:
        raise ValueError(
            f"the tokenizers' ordinary vocabularies must be equal; {len(ordinary)} ids differ, "
            f"(id, expert, amateur): {ordinary[:3]}. Take the model that the "
            "expert was trained from."
        )
    if differences and not allow_renamed:
        raise ValueError(
            f"the tokenizers' added tokens must be equal; {len(differences)} ids differ, "
            f"(id, expert, amateur): {differences[:3]}. If these are only names, pass "
            "allow_renamed=True."
        )
    if differences:
        log.warning("added tokens that differ (id, expert, amateur): %s", differences)
    return differences


def stop_ids(
    tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None
) -> list[int]:
    """Return the ids that end a response: the tokenizer's stop token and the config's, united.

    Args:
        tokenizer: the expert's.
        generation_config: the expert's. None: the tokenizer's stop token alone.

    Returns:
        list[int]: sorted; empty if neither names one.

    Source: ours. A base model's config often lacks the id that ends a chat turn, and two models
    that stop on their own ids would part.
    """
    listed = getattr(generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list) else [listed]
    return sorted({i for i in (*listed, tokenizer.eos_token_id) if i is not None})


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a tokenizer's special tokens, those that end and begin turns included.

    Args:
        tokenizer: any.

    Returns:
        list[int]: sorted ids.

    Source: ours.
    """
    flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(flagged | set(tokenizer.all_special_ids))


def _names_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the token of every id."""
    return {i: token for token, i in tokenizer.get_vocab().items()}


Conversation = Sequence[Mapping[str, str]]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the token ids of a templated conversation, ready for an answer.

    Ids, never text, go on to the model: text would be tokenised again, with a second BOS. Special
    tokens written in a message are encoded as ordinary text, so no message can end a turn.

    Args:
        tokenizer: the expert's. Thinking mode is switched off where its template knows it.
        conversation: {"role", "content"} of each message.

    Returns:
        list[int]: the generation prompt last; exactly one BOS first where the template writes
        one or the tokenizer adds one to texts.

    Raises:
        ValueError: no conversation, or a template that begins with two BOS. Templates raise
            errors of their own for roles they do not know.

    Source: the authors' scripts pass enable_thinking=False; one BOS and literal text: ours.
    """
    if not conversation or not all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in conversation
    ):
        raise ValueError(
            'expected at least one message {"role": text, "content": text}; '
            f"got {conversation!r}. Give every message both."
        )
    ids: list[int] = tokenizer.apply_chat_template(
        [dict(message) for message in conversation],
        add_generation_prompt=True,
        enable_thinking=False,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("").input_ids[:1] == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError(
            f"expected exactly one BOS token ({tokenizer.bos_token!r}) at the start of the prompt; "
            "got two. Remove one from the chat template."
        )
    return ids


def prompt_or_error(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    context: int | None,
    max_new_tokens: int,
) -> list[int] | str:
    """Return a conversation's `prompt_ids`, or the text that says why it has none.

    Args:
        tokenizer: the expert's.
        conversation: {"role", "content"} of each message.
        context: tokens a model can read. None: no limit.
        max_new_tokens: tokens of the context that are kept for the answer.

    Returns:
        list[int] | str: the ids; or what was expected, what came, and what to do.

    Source: ours.
    """
    try:
        ids = prompt_ids(tokenizer, conversation)
    except (jinja2.TemplateError, AttributeError, KeyError, TypeError, ValueError) as error:
        # What templates raise for a conversation they do not know: any of these.
        return f"no prompt could be made: {type(error).__name__}: {error}"
    if context is not None and len(ids) > context - max_new_tokens:
        return (
            f"the prompt is too long: expected at most {max(context - max_new_tokens, 0)} tokens "
            f"(the model's {context} less max_new_tokens={max_new_tokens}); got {len(ids)}. "
            "Shorten the prompt or lower max_new_tokens."
        )
    return ids


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str | Sequence[int]) -> list[int]:
    """Return the token ids of an answer given as text, which gets no stop token, or as ids.

    Raises:
        ValueError: no token at all.
    """
    if isinstance(answer, str):
        ids = tokenizer(answer, add_special_tokens=False).input_ids
    else:
        ids = [int(token) for token in answer]
    if not ids:
        raise ValueError(
            f"expected an answer of at least one token; got {answer!r}. Give a Response without "
            "an error, token ids or a text."
        )
    return ids


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of token ids, special tokens left out and spaces as they were drawn."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a `with` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
