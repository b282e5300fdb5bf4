"""A recipe becomes models that are loaded once, and rows that have names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codit import decode
from codit.dataset import teacher
from codit.pair import ContrastivePair
from codit.recipes import Decoding, Model, Pair, Synthesis
from codit.world.recipes import Pretraining, WorldPrompts
from tests import tiny


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    expert, amateur = tiny.save_pair(tmp_path_factory.mktemp("pair"), "qwen3")
    pair = Pair(expert=Model(name=str(expert)), amateur=Model(name=str(amateur)))
    return Synthesis(pair=pair, prompts=WorldPrompts())


def test_a_recipe_of_names_is_loaded_as_a_pair(recipe: Synthesis) -> None:
    model, tokenizer = teacher.ready(recipe)
    assert isinstance(model, ContrastivePair)
    assert tokenizer.eos_token == tiny.END, "the expert's tokenizer"
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("decoding", "names_amateur"),
    [
        (Decoding(), True),
        (Decoding(strength=0.0), False),
    ],
)
def test_the_amateur_is_named_where_it_is_needed(
    recipe: Synthesis, decoding: Decoding, names_amateur: bool
) -> None:
    expert, amateur = teacher.named_models(replace(recipe, decoding=decoding))
    assert expert == recipe.pair.expert
    assert (amateur is not None) is names_amateur


def test_load_options_reach_the_models(recipe: Synthesis) -> None:
    model, _ = teacher.ready(recipe, dtype="bfloat16")
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.bfloat16"}
    named = replace(recipe.pair, expert=replace(recipe.pair.expert, dtype="bfloat16"))
    plain = replace(recipe, pair=named, decoding=Decoding(strength=0.0))
    model, _ = teacher.ready(plain)
    assert str(model.dtype) == "torch.bfloat16"


def test_what_is_ready_is_used_as_it_is(recipe: Synthesis) -> None:
    model, tokenizer = object(), object()
    assert teacher.ready(recipe, model, tokenizer) == (model, tokenizer)


def test_a_loaded_model_knows_its_tokenizer(recipe: Synthesis) -> None:
    model, _ = teacher.ready(recipe)
    _, tokenizer = teacher.ready(recipe, model)
    assert Path(tokenizer.name_or_path) == Path(recipe.pair.expert.name)


def test_a_model_in_memory_needs_its_tokenizer_beside_it(recipe: Synthesis) -> None:
    with pytest.raises(ValueError, match=r"this one was made in memory\. Pass its tokenizer too"):
        teacher.ready(recipe, tiny.model("llama", seed=0))


def test_models_made_here_have_no_name_to_load(recipe: Synthesis) -> None:
    made = replace(recipe, pair=replace(recipe.pair, amateur=Pretraining()))
    with pytest.raises(ValueError, match=r"got Model and Pretraining\. Make them, and pass model="):
        teacher.ready(made)


def test_own_ids_are_kept_and_others_are_made_of_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    chats = {
        name: [{"role": "user", "content": text}] for name, text in zip("xyz", "aba", strict=True)
    }
    rows = [{"id": "x" if name == "y" else None, "messages": chats[name]} for name in chats]
    ids = [row["id"] for row in teacher.named(rows, tokenizer)]
    first, second = decode.default_ids([decode.prompt_ids(tokenizer, chats["x"])] * 2)
    assert ids == [first, "x", second]


def test_a_made_id_that_is_taken_is_named() -> None:
    tokenizer = tiny.tokenizer()
    chat = [{"role": "user", "content": "a"}]
    taken = decode.default_ids([decode.prompt_ids(tokenizer, chat)])[0]
    rows = [{"id": taken, "messages": chat}, {"id": None, "messages": chat}]
    with pytest.raises(ValueError, match=f"1 occur more than once: {taken}"):
        teacher.named(rows, tokenizer)


def test_a_conversation_that_the_template_refuses_has_no_ids() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    assert teacher.prompt_ids(tokenizer, [{"role": "user", "content": "a"}]) == []
