"""The tokenizer of a pair: loading it, agreement of two, ids that stop and ids that are special."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

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
