"""From a recipe to what answers: the pair, ready to decode, its tokenizer, and rows with names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import decode, recipes
from codit.dataset.prompts import check_unique
from codit.engine.chat import TEMPLATE_ERRORS
from codit.engine.models import load_tokenizer, read_model
from codit.engine.vllm.engine import VllmPair
from codit.pair import ContrastivePair

Answering: TypeAlias = PreTrainedModel | VllmPair
"""A pair or, with strength 0, the expert alone."""


def ready(
    recipe: recipes.Synthesis,
    model: Answering | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    engine: str = "auto",
    **load_options: Any,
) -> tuple[Answering, PreTrainedTokenizerBase]:
    """Return the model that a recipe decodes with, and the expert's tokenizer; load what is None.

    Args:
        recipe: pair and decoding; with strength 0 the amateur is not loaded.
        model: None: loaded as the recipe says.
        tokenizer: None: loaded from where the expert was loaded.
        engine: "vllm": both models are loaded into vLLM's engine.
        **load_options: for `from_pretrained` of both models, or for vLLM's engine.

    Raises:
        ValueError: a model made here, which only its maker can load, one that does not know
            where it was loaded, or one that cannot be loaded.
    """
    if model is not None:
        return model, tokenizer or _tokenizer_of(model)
    expert, amateur = named_models(recipe)
    how: dict[str, Any] = {"dtype": expert.dtype, **load_options}
    if amateur is None and engine != "vllm":
        model = read_model(expert.name, revision=expert.revision, **how)
    else:
        amateur = amateur or recipes.Model(name="")
        load: Callable[..., Answering] = ContrastivePair.from_pretrained
        if engine == "vllm":
            load, how = VllmPair, {"decoding": recipe.decoding, **how}
        model = load(
            expert.name,
            amateur.name,
            expert_revision=expert.revision,
            amateur_revision=amateur.revision,
            allow_renamed=recipe.pair.allow_renamed,
            **how,
        )
    return model, tokenizer or expert_tokenizer(recipe, **load_options)


def expert_tokenizer(recipe: recipes.Synthesis, **load_options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a recipe's expert; of the options `trust_remote_code` counts."""
    expert, _ = named_models(recipe)
    trust = load_options.get("trust_remote_code", False)
    return load_tokenizer(expert.name, revision=expert.revision, trust_remote_code=trust)


def check_samples(recipe: recipes.Synthesis) -> None:
    """Raise ValueError for a number of samples that cannot be drawn, or would all be equal."""
    n, temperature = recipe.n_samples, recipe.decoding.temperature
    if n < 1:
        raise ValueError(f"n_samples must be at least 1; got {n}.")
    if n > 1 and temperature == 0:
        raise ValueError(
            f"n_samples must be 1 where the temperature is 0, as all would be equal; got {n}. "
            "Raise the temperature."
        )


def named_models(recipe: recipes.Synthesis) -> tuple[recipes.Model, recipes.Model | None]:
    """Return the expert and, unless the strength is 0, the amateur.

    ValueError: a model is made here; its name is not known to this layer.
    """
    expert, amateur = recipe.pair.expert, recipe.pair.amateur
    if not isinstance(expert, recipes.Model) or not isinstance(amateur, recipes.Model):
        raise ValueError(
            f"expected models that can be loaded by name; got {type(expert).__name__} and "
            f"{type(amateur).__name__}. Make them, and pass model=."
        )
    return expert, amateur if recipe.decoding.strength else None


def named(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Return rows of `prompts.load` with an id each: their own, or `decode.default_ids`.

    ValueError: ids that are not unique.
    """
    nameless = [place for place, row in enumerate(rows) if row["id"] is None]
    token_ids = [prompt_ids(tokenizer, rows[place]["messages"]) for place in nameless]
    ids = dict(zip(nameless, decode.default_ids(token_ids), strict=True))
    complete = [{**row, "id": ids.get(place, row["id"])} for place, row in enumerate(rows)]
    check_unique(row["id"] for row in complete)
    return complete


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Return `decode.prompt_ids`, or nothing for a conversation that the template refuses."""
    try:
        return decode.prompt_ids(tokenizer, messages)
    except TEMPLATE_ERRORS:
        return []  # decoding records the row with the reason


def _tokenizer_of(model: Answering) -> PreTrainedTokenizerBase:
    """Load the tokenizer from where a ready model's expert was loaded."""
    name = getattr(model, "expert", model).name_or_path
    if not name:
        raise ValueError(
            "expected a model that was loaded from a name or folder; this one was made in memory. "
            "Pass its tokenizer too."
        )
    return load_tokenizer(name)
