"""The two models of a pair on disk: loading them from names or from a saved pair, and saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from codit.vocabulary import (
    PAIR_FILE,
    check_tokenizers,
    load_tokenizer,
    loading,
    stop_ids,
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
        allow_renamed: see `codit.vocabulary.check_tokenizers`.
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
