"""Each architecture answers inside vLLM as the library's engine does, token for token."""

from __future__ import annotations

import pytest
import torch

from codit import decode
from codit.pair import ContrastivePair
from codit.recipes import Decoding
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_and_their_logprobs_are_the_librarys(architecture, saved, oracles, capsys):
    with started(*saved(architecture), GREEDY) as pair:
        made = decode.generate(pair, tiny.tokenizer(), CHATS, GREEDY, progress=False)
    expected = oracles[architecture]
    assert len({tuple(one.token_ids) for one in expected}) > 1, "the texts differ"
    assert [one.token_ids for one in made] == [one.token_ids for one in expected]
    assert [one.is_completed for one in made] == [one.is_completed for one in expected]
    apart = 0.0
    for one, other in zip(made, expected, strict=True):
        assert one.text == other.text
        pairs = zip(one.logprobs, other.logprobs, strict=True)
        apart = max(apart, *(abs(a - b) for a, b in pairs))
    with capsys.disabled():
        tokens = sum(len(one.token_ids) for one in made)
        print(f"\n{architecture}: {tokens} tokens equal, log q within {apart:.1e} nats")
    assert apart <= 1e-4
