"""A pair split over two processes gives the same texts."""

from __future__ import annotations

import pytest
import torch

from codit import decode
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from tests import tiny
from tests.vllm.conftest import started

GREEDY = Decoding(temperature=0.0, max_new_tokens=24, plausibility=0.1)
CHATS = [[{"role": "user", "content": text}] for text in ("the cat", "is it in", "house?" * 9)]


def test_two_ranks_answer_as_one(saved):
    library = ContrastivePair.from_pretrained(*saved("llama"), dtype=torch.float32)
    how = {"engine": "static", "progress": False}
    expected = decode.generate(library, tiny.tokenizer(), CHATS, GREEDY, **how)
    with started(*saved("llama"), GREEDY, tensor_parallel_size=2) as pair:
        made = decode.generate(pair, tiny.tokenizer(), CHATS, GREEDY, progress=False)
    assert [one.token_ids for one in made] == [one.token_ids for one in expected]
    for one, other in zip(made, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
