"""Packing, architectures, and a training that is killed and goes on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from codit.training import loop
from codit.world import pretraining
from codit.world.recipes import Pretraining
from tests import tiny


def recipe(**changes: Any) -> Pretraining:
    values: dict[str, Any] = {
        "hidden_size": 64,
        "layers": 2,
        "tokens": 12 * 4 * 16,
        "block": 16,
        "batch": 4,
        "learning_rate": 1e-2,
    }
    return Pretraining(**(values | changes))


def documents() -> Iterator[str]:
    for i in count():
        yield f"the cat sat on mat {i % 7}."


def log(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "training_log.json").read_text())
    return loaded


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_rows_are_the_documents_one_after_another_with_ends_between(texts: list[str]) -> None:
    tokenizer = tiny.tokenizer()
    end = tokenizer.convert_tokens_to_ids(tiny.EOS)
    stream = [t for text in texts * 40 for t in (*tokenizer(text).input_ids, end)]
    of = recipe(tokens=len(stream), block=4, batch=2)
    rows = pretraining.pack(texts * 40, tokenizer, of)
    assert rows.shape == (len(stream) // 8 * 2, 4)
    assert rows.flatten().tolist() == stream[: rows.numel()]


def test_a_tokenizer_with_a_bos_of_its_own_starts_every_document_with_it() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "<|system|>"
    rows = pretraining.pack(["a", "b"] * 9, tokenizer, recipe(tokens=6, block=3, batch=2))
    a, b = tokenizer("a").input_ids[0], tokenizer("b").input_ids[0]
    bos, end = tokenizer.convert_tokens_to_ids(["<|system|>", tiny.EOS])
    assert rows.tolist() == [[bos, a, end], [bos, b, end]]


def test_no_more_text_is_read_than_is_needed() -> None:
    texts = documents()
    pretraining.pack(texts, tiny.tokenizer(), recipe(tokens=64))
    assert next(texts) == f"the cat sat on mat {2000 % 7}."


def test_documents_end_with_the_document_end_even_if_the_stop_token_ends_turns() -> None:
    tokenizer = tiny.tokenizer(eos_token=tiny.END)
    assert pretraining.document_end(tokenizer) == tokenizer.convert_tokens_to_ids(tiny.EOS)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt_neox", "olmo3", "gemma3_text"])
def test_every_architecture_gets_the_size_the_context_and_the_tokens(architecture: str) -> None:
    tokenizer = tiny.tokenizer()
    model = pretraining.build(recipe(architecture=architecture), tokenizer)
    config = model.config
    assert (config.model_type, config.vocab_size) == (architecture, len(tokenizer))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 2)
    assert getattr(config, "num_key_value_heads", 1) == 1
    assert getattr(config, "head_dim", 32) == 32
    assert config.max_position_embeddings == 8192
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert config.eos_token_id == config.pad_token_id == tokenizer.convert_tokens_to_ids(tiny.EOS)
    assert model.dtype == torch.float32
    assert model(torch.randint(5, 280, (1, 40))).logits.isfinite().all()


def test_a_model_with_learned_positions_has_as_many_as_a_block() -> None:
    model = pretraining.build(recipe(architecture="gpt2", block=48), tiny.tokenizer())
    assert model.config.n_positions == 48
    assert model.config.resid_pdrop == model.config.attn_pdrop == model.config.embd_pdrop == 0.0


def by_hand(of: Pretraining) -> list[float]:
    """Losses of a loop written from the docstring, on the rows in the Trainer's order."""
    rows = pretraining.pack(documents(), tiny.tokenizer(), of).long()
    torch.manual_seed(of.seed)
    model = pretraining.build(of, tiny.tokenizer()).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=of.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(of.seed))
    losses, steps = [], len(rows) // of.batch
    for step, taken in enumerate(order.split(of.batch)):
        ids = rows[taken]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids).logits
        loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = of.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_losses_are_those_of_the_written_out_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "LOG_EVERY", 1)
    made = pretraining.pretrain(recipe(), documents(), tiny.tokenizer(), tmp_path)
    losses = [row["loss"] for row in log(made)["losses"]]
    assert losses == pytest.approx(by_hand(recipe()), rel=0.02)
    assert losses[-1] < losses[0] - 1


def test_a_base_model_is_saved_with_its_tokenizer_and_its_log(tmp_path: Path) -> None:
    made = pretraining.pretrain(recipe(), documents(), tiny.tokenizer(), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert model.dtype == torch.float32
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(tiny.EOS)
    assert (log(made)["tokens"], log(made)["steps"]) == (12 * 64, 12)
    assert log(made)["parameters"] == model.num_parameters()
    assert not list(made.glob("checkpoint-*"))
    assert not (made / "unfinished.json").exists()


def test_a_killed_training_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "SAVE_EVERY", 4)
    monkeypatch.setattr(pretraining, "LOG_EVERY", 2)
    whole = pretraining.pretrain(recipe(), documents(), tiny.tokenizer(), tmp_path / "whole")
    again = pretraining.pretrain(recipe(), documents(), tiny.tokenizer(), tmp_path / "again")
    out = tmp_path / "killed"

    def kill(bar: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Bar, "on_step_end", kill)
        with pytest.raises(KeyboardInterrupt):
            pretraining.pretrain(recipe(), documents(), tiny.tokenizer(), out)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    pretraining.pretrain(recipe(), documents(), tiny.tokenizer(), out)
    weights = [(f / "model.safetensors").read_bytes() for f in (whole, again, out)]
    assert weights[0] == weights[1]
    assert weights[0] == weights[2]
    assert log(out) == log(whole)


def without_ends() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.get_vocab = dict
    tokenizer.eos_token = None
    return tokenizer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pretraining.pack(["a"], tiny.tokenizer(), recipe(tokens=63)),
            "expected at least one step of 16 x 4 = 64 tokens; got tokens=63.",
        ),
        (
            lambda: pretraining.pack(["a"], tiny.tokenizer(), recipe(tokens=64)),
            "the texts end too soon: expected 64 tokens, got 2. Give more texts",
        ),
        (
            lambda: pretraining.build(recipe(hidden_size=96), tiny.tokenizer()),
            "hidden_size must be a multiple of 64 (heads of 32, two to a key-value head); got 96.",
        ),
        (
            lambda: pretraining.build(recipe(architecture="qwen33"), tiny.tokenizer()),
            "architecture must be a transformers model type such as 'qwen3', 'llama'",
        ),
        (
            lambda: pretraining.document_end(without_ends()),
            "expected a tokenizer with a <|endoftext|> or an EOS token; got neither.",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
