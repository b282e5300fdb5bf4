"""Models and tokenizers, loaded and saved: a pair on disk, and every weight of its two models.

What has no source is ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from codit.engine.cache import shared_width
from codit.engine.chat import check_embedded, check_tokenizers, drawable, stop_ids

logger = logging.getLogger(__name__)

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
    if any(faults.values()):
        raise incomplete(model, name, faults | {"not read": model.unread_weights})
    if model.unread_weights:
        logger.warning("%s: weights that were not read: %s", name, _some(model.unread_weights))
    return model


def incomplete(
    model: PreTrainedModel, name: str | Path, faults: Mapping[str, Sequence[str]]
) -> ValueError:
    """Return the error that names weights which the files do not give, by what is wrong."""
    said = [f"{len(some)} {what} ({_some(some)})" for what, some in faults.items() if some]
    return ValueError(
        f"expected all weights of a {type(model).__name__} in {name}; got {', '.join(said)}. "
        "Name them as `save_pretrained` would, or give the config that belongs to them."
    )


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


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a `with` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
