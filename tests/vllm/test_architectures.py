"""Each architecture answers inside vLLM as the library's engine does, token for token."""

from __future__ import annotations

import pytest
import torch

from codit import decode, world
from codit.pair import ContrastivePair, load_tokenizer
from codit.paper import store
from codit.recipes import Decoding
from codit.world.recipes import WorldPrompts
from tests import tiny
from tests.vllm.conftest import started
from tests.vllm.vllm_pairs import ARCHITECTURES

TEXTS = [
    "the cat",
    "is it in",
    "ten of them. and then there were",
    "a",
    "house?" * 9,
    "on the mat.",
]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
GREEDY = Decoding(temperature=0.0, max_new_tokens=24, plausibility=0.1)


@pytest.fixture(scope="session")
def oracles(saved):
    """Answers of the library's engine; before any engine: vLLM changes OLMo 3's class in place."""
    made = {}
    for architecture in ARCHITECTURES:
        pair = ContrastivePair.from_pretrained(*saved(architecture), dtype=torch.float32)
        made[architecture] = decode.generate(
            pair, tiny.tokenizer(), CHATS, GREEDY, engine="static", progress=False
        )
    return made


def test_the_halves_share_no_compiled_code(saved):
    """Their names of layers are compiled in: one file for both would mix up their caches."""
    with started(*saved("llama"), GREEDY) as pair:
        (hashes,) = pair.engine.apply_model(
            lambda model: [
                half.model.vllm_config.compute_hash() for half in (model.expert, model.amateur)
            ]
        )
    assert hashes[0] != hashes[1]


def apart(made, expected):
    """Largest difference of log q, in nats, of answers that are otherwise the same."""
    assert [one.token_ids for one in made] == [one.token_ids for one in expected]
    assert [one.text for one in made] == [one.text for one in expected]
    assert [one.is_completed for one in made] == [one.is_completed for one in expected]
    pairs = zip(made, expected, strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x.logprobs, y.logprobs, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_and_their_logprobs_are_the_librarys(architecture, saved, oracles, capsys):
    with started(*saved(architecture), GREEDY) as pair:
        made = decode.generate(pair, tiny.tokenizer(), CHATS, GREEDY, progress=False)
    expected = oracles[architecture]
    assert len({tuple(one.token_ids) for one in expected}) > 1, "the texts differ"
    found = apart(made, expected)
    with capsys.disabled():
        tokens = sum(len(one.token_ids) for one in made)
        print(f"\n{architecture}: {tokens} tokens equal, log q within {found:.1e} nats")
    assert found <= 1e-4


def test_the_embedded_pairs_greedy_answers_are_the_same_in_all_three_engines():
    names = [str(store.repository() / "data" / "models" / role) for role in ("expert", "amateur")]
    asked = world.prompts(WorldPrompts(split="test", n=24))
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    tokenizer, made = load_tokenizer(names[0]), {}
    library = ContrastivePair.from_pretrained(*names, dtype=torch.float32)
    for engine in ("static", "continuous"):
        how = {"engine": engine, "progress": False}
        made[engine] = decode.generate(library, tokenizer, chats, GREEDY, **how)
    with started(*names, GREEDY) as pair:
        made["vllm"] = decode.generate(pair, tokenizer, chats, GREEDY, progress=False)
    assert len({one.text for one in made["static"]}) > 12
    assert apart(made["continuous"], made["static"]) <= 1e-4
    assert apart(made["vllm"], made["static"]) <= 1e-4
