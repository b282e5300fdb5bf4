"""Models and tokenizers around the arithmetic: loaded, compared, saved, and asked in token ids.

A pair on disk and its two models; do two tokenizers agree, which ids stop; from a conversation to
the ids of its prompt, and from an answer's ids to text. What has no source is ours.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from codit.engine.cache import shared_width

logger = logging.getLogger(__name__)

Conversation = Sequence[Mapping[str, str]]
NOW = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
THOUGHT = re.compile("</?think>")
# What templates raise for a conversation they do not know: any of these.
TEMPLATE_ERRORS = (jinja2.TemplateError, AttributeError, KeyError, TypeError, ValueError)
PAIR_FILE = "pair.json"  # its presence marks the folder of a saved pair


def read_pair(
    expert: str | Path,
    amateur: str | Path | None,
    *,
    revisions: tuple[str | None, str | None] = (None, None),
    allow_renamed: bool = False,
    **load: Any,
) -> tuple[PreTrainedModel, PreTrainedModel, dict[str, Any]]:
    """Load expert and amateur, or without an amateur a saved pair: see `pair.from_pretrained`.

    Returns:
        (PreTrainedModel, PreTrainedModel, dict): the models, and what else the pair is made with:
        the saved pair's values, or `drawable` of the expert's tokenizer. The expert's generation
        config stops at its tokenizer's stop token too.
    """
    if "revision" in load:
        raise ValueError(
            "two models have two revisions; got one `revision`. Use expert_revision and "
            "amateur_revision."
        )
    trust = load.setdefault("trust_remote_code", False)
    if amateur is None:
        file, tokenizer = Path(expert) / PAIR_FILE, None
        if not file.is_file():
            raise ValueError(
                f"one name loads a saved pair, a folder with {PAIR_FILE}; got {expert}. Name the "
                "amateur too, or make the folder with ContrastivePair.save_pretrained."
            )
        values = json.loads(file.read_text(encoding="utf-8"))
        expert, amateur = file.with_name("expert"), file.with_name("amateur")
    else:
        tokenizer, other = (
            load_tokenizer(name, revision=revision, trust_remote_code=trust)
            for name, revision in zip((expert, amateur), revisions, strict=True)
        )
        check_tokenizers(tokenizer, other, allow_renamed=allow_renamed)
    models = [
        read_model(name, revision=revision, **load)
        for name, revision in zip((expert, amateur), revisions, strict=True)
    ]
    if tokenizer is not None:
        check_embedded(tokenizer, *(len(m.get_input_embeddings().weight) for m in models))
        width = shared_width(*(m.config for m in models))
        values = dict(zip(("vocab_size", "unused"), drawable(tokenizer, width), strict=True))
        config = models[0].generation_config
        config.eos_token_id = stop_ids(tokenizer, config)
        config.pad_token_id = tokenizer.pad_token_id
    return models[0], models[1], values


def read_model(name: str | Path, *, revision: str | None = None, **load: Any) -> PreTrainedModel:
    """Load one causal language model by Hub name or folder, every weight of it from the files.

    What the files hold besides is named in the model's `unread_weights` and logged once: heads of
    another task, say. `device_map="meta"` checks without reading numbers.

    ValueError: it cannot be loaded; weights are missing (the library would draw them at random) or
    of another shape; or layers of the model's own kind are left over in the files.
    """
    how = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # we say which
    with loading("weights", name):
        model, told = AutoModelForCausalLM.from_pretrained(name, revision=revision, **load, **how)
    model.unread_weights = sorted(told["unexpected_keys"])
    known = {_kind(weight) for weight in model.state_dict()}
    faults = {
        "missing in the files": sorted(told["missing_keys"]),
        "of another shape there": sorted(weight for weight, *_ in told["mismatched_keys"]),
        "of further layers than its config has": [
            weight for weight in model.unread_weights if _kind(weight) in known
        ],
    }
    if said := [f"{len(some)} {what} ({_some(some)})" for what, some in faults.items() if some]:
        if model.unread_weights:
            said += [f"{len(model.unread_weights)} not read ({_some(model.unread_weights)})"]
        raise ValueError(
            f"expected all weights of a {type(model).__name__} in {name}; got {', '.join(said)}. "
            "Name them as `save_pretrained` would, or give the config that belongs to them."
        )
    if model.unread_weights:
        logger.warning("%s: weights that were not read: %s", name, _some(model.unread_weights))
    return model


def _is_no_report(record: logging.LogRecord) -> bool:
    """Leave out the library's table of weights: what it says is an error or one line of ours."""
    return "LOAD REPORT" not in record.getMessage()


logging.getLogger("transformers.modeling_utils").addFilter(_is_no_report)


def _kind(weight: str) -> str:
    """Return a weight's name without the numbers of layers and experts."""
    return re.sub(r"\.\d+\.", ".*.", weight)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *["..."] * (len(names) > 3)])


def write_pair(
    folder: str | Path, pair: Any, values: dict[str, Any], *, tokenizer: Any = None, **save: Any
) -> None:
    """Write folder/expert, folder/amateur (safetensors) and, last, folder/pair.json with values."""
    folder = Path(folder)
    for name in ("expert", "amateur"):
        getattr(pair, name).save_pretrained(folder / name, **save)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    pair.generation_config.save_pretrained(folder / "expert")
    (folder / PAIR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def loading(part: str, name: str | Path) -> Iterator[None]:
    """Say that the "tokenizer" or "weights" of a name could not be loaded, and why: ValueError."""
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
) -> Tokenizer:
    """Load a tokenizer that pads on the left, as generation in batches needs it.

    Args:
        name: Hub name, folder, or folder of a saved pair (then the expert's).
        revision: commit, tag or branch.
        trust_remote_code: run code that the repository brings.

    Returns:
        Tokenizer: with a padding token; the stop token where it had none.

    Raises:
        ValueError: it cannot be loaded.
    """
    if (Path(name) / PAIR_FILE).is_file():
        name = Path(name) / "expert"
    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=revision,
            padding_side="left",  # set later it would be lost when the tokenizer is saved
            trust_remote_code=trust_remote_code,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizers(
    expert_tokenizer: Tokenizer, amateur_tokenizer: Tokenizer, *, allow_renamed: bool = False
) -> list[tuple[int, str | None, str | None]]:
    """Refuse two tokenizers whose ids do not mean the same: the amateur reads the expert's ids.

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
    """
    both = (expert_tokenizer, amateur_tokenizer)
    names = [{i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in both]
    added = [tokenizer.added_tokens_decoder.keys() for tokenizer in both]
    rows = [(i, names[0].get(i), names[1].get(i)) for i in sorted({*names[0], *names[1]})]
    differences = [row for row in rows if row[1] != row[2]]
    ordinary = [
        row
        for row in differences
        if any(name and row[0] not in ids for name, ids in zip(row[1:], added, strict=True))
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
        logger.warning("added tokens that differ (id, expert, amateur): %s", differences)
    return differences


@functools.lru_cache(maxsize=8)
def _known(tokenizer: Tokenizer, length: int) -> frozenset[int]:
    return frozenset(tokenizer.get_vocab().values())


def known_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids that are tokens; some published vocabularies have holes."""
    return _known(tokenizer, len(tokenizer))


def drawable(tokenizer: Tokenizer, width: int) -> tuple[int, list[int]]:
    """Return how many ids a pair scores, the highest id + 1, and those of them that are no token.

    Some tokenizers name an added token more than their text model has logits (Gemma 3 1B): these
    are left out. Ordinary tokens beyond the logits are left in, for the pair to refuse.
    """
    known = known_ids(tokenizer)
    beyond = {i for i in known if i >= width}
    n = width if beyond and beyond <= {*tokenizer.added_tokens_decoder} else max(known) + 1
    return n, sorted({*range(n)} - known)


def check_embedded(tokenizer: Tokenizer, *widths: int) -> None:
    """Refuse a tokenizer whose prompts hold ids that a model has no row for, of `widths` in all.

    Padding may be such an id: `decode.generate` then pads with a stop token.
    """
    user, system, answer = (
        {"role": role, "content": "a"} for role in ("user", "system", "assistant")
    )
    ids: set[int] = set()
    for chat in ([user], [system, user], [user, answer, user]):
        with contextlib.suppress(*TEMPLATE_ERRORS):
            ids.update(prompt_ids(tokenizer, chat))
    if missing := sorted(i for i in ids if i >= min(widths)):
        names = ", ".join(tokenizer.convert_ids_to_tokens(missing[:3]))
        raise ValueError(
            "expected embeddings with a row for every id of a prompt; got "
            f"{min(widths)} rows, and the ids {missing[:3]} ({names}). Take the model that the "
            "expert was trained from, or give it rows by resize_token_embeddings and save it."
        )


def stop_ids(tokenizer: Tokenizer | None, generation_config: GenerationConfig | None) -> list[int]:
    """Return the ids that end a response, sorted: the tokenizer's stop token and the config's.

    A base model's config often lacks the id that ends a chat turn, and two models that stop on
    their own ids would part. Empty if neither names one.
    """
    listed = getattr(generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list) else [listed]
    own = None if tokenizer is None else tokenizer.eos_token_id
    return sorted({i for i in (*listed, own) if i is not None})


def check_stops(stops: Sequence[int], vocab_size: int, unused: Sequence[int] = ()) -> None:
    """Refuse stop ids that no engine could draw: responses would run on to the limit."""
    if bad := [i for i in stops if i >= vocab_size or i in unused]:
        raise ValueError(
            f"expected stop ids below {vocab_size} that are tokens; got {bad}. Name those of the "
            "tokenizer in the expert's generation config, or load both models with their tokenizer."
        )


def special_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the sorted ids of special tokens, those that end and begin turns included."""
    flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(flagged | set(tokenizer.all_special_ids))


def prompt_ids(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
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
        ValueError: no conversation, or a template that begins with two BOS. Others: as `templated`.

    Source: enable_thinking=False: the authors' scripts.
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
    ids = templated(tokenizer, conversation, add_generation_prompt=True)
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("").input_ids[:1] == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError(
            f"expected exactly one BOS token ({tokenizer.bos_token!r}) at the start of the prompt; "
            "got two. Remove one from the chat template."
        )
    return ids


def writes_date(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer's chat template writes the time at which it is used."""
    return tokenizer.chat_template is not None and bool(
        re.search(r"strftime_now\s*\(", tokenizer.get_chat_template())
    )


def dated(tokenizer: Tokenizer, moment: str) -> Tokenizer:
    """Return a tokenizer whose chat template writes a moment (ISO 8601) in place of each new now.

    ValueError: the template makes the format of its date while it is used.
    """
    if not writes_date(tokenizer):
        return tokenizer
    when, copied = datetime.fromisoformat(moment), copy.copy(tokenizer)
    template = NOW.sub(lambda now: repr(when.strftime(now[2])), tokenizer.get_chat_template())
    copied.chat_template = template
    if writes_date(copied):
        raise ValueError(
            "expected a chat template that writes the date in a fixed format, strftime_now('...'); "
            "got another. Rows of one dataset would have other dates: give a template without."
        )
    return copied


def templated(
    tokenizer: Tokenizer, conversation: Conversation, *, add_generation_prompt: bool = False
) -> list[int]:
    """Return the ids of a conversation as the chat template writes it, and check that it is whole.

    Each message's content, stripped, must stand in the text, in order; the system turn anywhere,
    for some templates write it into a later turn. Of an earlier assistant's turn what follows its
    thoughts will do (Qwen3's template leaves the thoughts out), and the white space around a
    thought is the template's own.

    ValueError: a message is left out or cut. Templates raise errors of their own for roles that
    they do not know.
    """
    messages = [dict(message) for message in conversation]
    how: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "enable_thinking": False}
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    place = 0
    for number, message in enumerate(messages):
        is_system = message["role"] == "system"
        for part in _parts(message, is_last=message is messages[-1]):
            found = text.find(part, 0 if is_system else place)
            if found < 0:
                raise ValueError(
                    f"the chat template does not write all of messages[{number}] "
                    f"({message['role']}), {part!r:.60}. Use another template, or leave it out"
                )
            place = place if is_system else found + len(part)
    ids: list[int] = tokenizer.apply_chat_template(
        messages, sanitize_control_tokens=True, return_dict=False, **how
    )
    return ids


def _parts(message: Mapping[str, str], *, is_last: bool) -> list[str]:
    """Return what must stand in the text of a message."""
    if message["role"] != "assistant":
        return [message["content"].strip()]
    parts = [part.strip() for part in THOUGHT.split(message["content"])]
    return parts if is_last else parts[-1:]


def prompt_or_error(
    tokenizer: Tokenizer, conversation: Conversation, context: int | None, max_new_tokens: int
) -> list[int] | str:
    """Return a conversation's `prompt_ids`, or the text that says why it has none.

    `max_new_tokens` of the `context` (tokens a model can read; None: no limit) are kept for the
    answer.
    """
    try:
        ids = prompt_ids(tokenizer, conversation)
    except TEMPLATE_ERRORS as error:
        return f"no prompt could be made: {type(error).__name__}: {error}"
    if context is not None and len(ids) > context - max_new_tokens:
        return (
            f"the prompt is too long: expected at most {max(context - max_new_tokens, 0)} tokens "
            f"(the model's {context} less max_new_tokens={max_new_tokens}); got {len(ids)}. "
            "Shorten the prompt or lower max_new_tokens."
        )
    return ids


def answer_ids(tokenizer: Tokenizer, answer: str | Sequence[int]) -> list[int]:
    """Return the ids, at least one, of an answer given as ids or as text (without a stop token)."""
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


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
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
