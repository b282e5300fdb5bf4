"""One model under two views decodes as an independent decoder says, and refuses what it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from codit import decode
from codit.pair import Prefixed, TwoViews, prefixed
from codit.recipes import Decoding
from tests import tiny

GREEDY = Decoding(strength=0.3, plausibility=0.0, temperature=0.0, max_new_tokens=12)
ASKED = ["the cat", "is it in the house?", "ten of them and then there were", "a", "mat. the"]
CHATS = [[{"role": "user", "content": text}] for text in ASKED]


def soft(model: Any, n: int = 5, seed: int = 0) -> torch.Tensor:
    width = model.get_input_embeddings().embedding_dim
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def other(ids: list[int]) -> list[int]:
    return [*ids[:2], *reversed(ids[2:-1]), *ids[-1:], ids[0]]


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, chat: Any, how: Decoding, **second: Any) -> list[int]:
    """Greedy on z - beta z~ by whole passes of embeddings: no cache, no batch, no padding."""
    prompt, drawn = decode.prompt_ids(tokenizer, chat), list[int]()
    embed = model.get_input_embeddings()
    stops = {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    for _ in range(how.max_new_tokens):
        one = embed(torch.tensor([prompt + drawn]))
        if "prefix" in second:
            two = torch.cat([second["prefix"][None].to(one), one], 1)
        else:
            two = embed(torch.tensor([second["view"](prompt) + drawn]))
        z, seen = (model(inputs_embeds=e).logits[0, -1, : len(tokenizer)] for e in (one, two))
        drawn.append(int((z - how.strength * seen).argmax()))
        if drawn[-1] in stops:
            break
    return drawn


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize("kind", ["prefix", "view"])
def test_texts_are_those_of_an_independent_decoder(architecture: str, kind: str) -> None:
    model, tokenizer = tiny.model(architecture, seed=1), tiny.tokenizer()
    second: dict[str, Any] = {"prefix": soft(model)} if kind == "prefix" else {"view": other}
    longer = 0 if kind == "prefix" else 1
    two = TwoViews(model, **second, vocab_size=len(tokenizer), longer=longer)
    for size in (1, 2, 5):
        found = decode.generate(two, tokenizer, CHATS, GREEDY, batch_size=size, progress=False)
        for chat, one in zip(CHATS, found, strict=True):
            assert one.token_ids == by_hand(model, tokenizer, chat, GREEDY, **second), size
    assert not isinstance(model.get_input_embeddings(), Prefixed), "the model is left as it was"


def test_strength_0_is_plain_decoding_and_the_second_view_matters() -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    two = TwoViews(model, prefix=soft(model), vocab_size=len(tokenizer))
    plain = Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=12)
    texts = [
        [one.token_ids for one in decode.generate(m, tokenizer, CHATS, how, progress=False)]
        for m, how in ((two, plain), (model, plain), (two, GREEDY))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_equal_views_sharpen_and_are_refused_at_strength_1() -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    two = TwoViews(model, list, vocab_size=len(tokenizer))
    plain = Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=12)
    half = Decoding(strength=0.5, plausibility=0, temperature=0, max_new_tokens=12)
    sharp, own = (
        decode.generate(m, tokenizer, CHATS, how, progress=False)
        for m, how in ((two, half), (model, plain))
    )
    assert [one.token_ids for one in sharp] == [one.token_ids for one in own]
    with pytest.raises(ValueError, match="expected a strength below 1 where both views are equal"):
        decode.generate(two, tokenizer, CHATS, replace(half, strength=1.0), progress=False)


def test_a_view_leaves_less_room_and_only_the_row_without_it_fails() -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    limit = model.config.max_position_embeddings
    two = TwoViews(model, prefix=soft(model, 20), vocab_size=len(tokenizer))
    assert two.context == limit - 20
    long = [{"role": "user", "content": "the " * limit}]
    fine, bad = decode.generate(two, tokenizer, [CHATS[0], long], GREEDY, progress=False)
    assert fine.token_ids
    assert bad.error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected a view or a soft prefix; got both or neither"),
        ({"view": list, "prefix": torch.zeros(2, 4)}, "got both or neither"),
        (
            {"prefix": torch.zeros(2, 4)},
            r"expected a soft prefix \[n, \d+\], .*; got \[2, 4\]",
        ),
        ({"view": list, "longer": 10**6}, "expected a view that fits into the model's context"),
    ],
)
def test_what_cannot_be_two_views_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoViews(tiny.model("llama", seed=1), **given)


def test_only_the_prefix_gets_gradients_of_a_frozen_model() -> None:
    model = tiny.model("llama", seed=1).requires_grad_(requires_grad=False)
    prefix = nn.Parameter(soft(model))
    module = prefixed(model, prefix)
    module(torch.tensor([[1, module.rows, module.rows + 4]])).sum().backward()
    assert prefix.grad is not None
    assert prefix.grad.sum(-1).nonzero().flatten().tolist() == [0, 4]
