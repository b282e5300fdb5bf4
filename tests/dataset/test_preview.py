"""What a run would do and need, before it is paid for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from codit import decode
from codit.dataset import preview, teacher
from codit.recipes import Decoding, Model, Pair, Synthesis
from codit.world.recipes import Pretraining, WorldPrompts
from tests import tiny

ROWS = [{"id": str(n), "instruction": "the cat" + " sat" * n} for n in range(3)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    decoding = Decoding(max_new_tokens=5)
    return tiny.synthesis(tmp_path_factory.mktemp("pair"), decoding=decoding, n_samples=2)


def test_a_dry_run_counts_rows_tokens_memory_and_operations(
    recipe: Synthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "TOKENS", 4)
    needs = preview.dry_run(recipe, [*ROWS, {"id": "bad"}], batch_size=2)
    tokenizer = tiny.tokenizer()
    chats = [[{"role": "user", "content": row["instruction"]}] for row in ROWS]
    lengths = [len(decode.prompt_ids(tokenizer, chat)) for chat in chats]
    models = [AutoModelForCausalLM.from_pretrained(m.name) for m in teacher.named_models(recipe)]
    weights = sum(parameter.numel() for model in models for parameter in model.parameters())
    assert (needs["rows"], needs["bad_rows"], needs["responses"]) == (3, 1, 6)
    assert needs["prompt_tokens"] == sum(lengths)
    assert (needs["response_tokens"], needs["response_tokens_most"]) == (24, 30)
    assert needs["weight_bytes"] == 4 * weights
    # keys and values * layers * key-value heads * head width * bytes, of both models
    per_token = 2 * (2 * 2 * 2 * 8 * 4)
    assert needs["cache_bytes"] == per_token * 2 * (max(lengths) + 5)
    assert needs["operations"] == 2 * weights * (2 * sum(lengths) + 24)
    assert needs["hours"] == pytest.approx(needs["operations"] / 1e14 / 3600)


def test_responses_are_never_assumed_longer_than_allowed(recipe: Synthesis) -> None:
    needs = preview.dry_run(recipe, ROWS)
    assert needs["response_tokens"] == needs["response_tokens_most"] == 30


def test_the_expert_alone_needs_half(recipe: Synthesis) -> None:
    direct = replace(recipe, decoding=replace(recipe.decoding, strength=0.0))
    both, one = preview.dry_run(recipe, ROWS), preview.dry_run(direct, ROWS)
    assert one["weight_bytes"] * 2 == both["weight_bytes"]
    assert one["cache_bytes"] * 2 == both["cache_bytes"]


def test_half_the_bytes_are_half_the_memory(recipe: Synthesis) -> None:
    pair = Pair(
        expert=replace(recipe.pair.expert, dtype="bfloat16"),
        amateur=replace(recipe.pair.amateur, dtype="bfloat16"),
    )
    both, half = (preview.dry_run(r, ROWS) for r in (recipe, replace(recipe, pair=pair)))
    assert half["weight_bytes"] * 2 == both["weight_bytes"]


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen3_moe", "gemma3_text"])
def test_every_architecture_can_be_counted(architecture: str, tmp_path: Any) -> None:
    expert, amateur = tiny.save_pair(tmp_path, architecture)
    pair = Pair(expert=Model(name=str(expert)), amateur=Model(name=str(amateur)))
    needs = preview.dry_run(Synthesis(pair=pair, prompts=WorldPrompts()), ROWS)
    loaded = AutoModelForCausalLM.from_pretrained(str(expert))
    expected = sum(parameter.numel() for parameter in loaded.parameters())
    assert needs["weight_bytes"] == 2 * 4 * expected


def test_a_dry_run_loads_no_weights(recipe: Synthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = lambda *args, **kwargs: pytest.fail("loaded")  # noqa: E731
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loading)
    assert preview.dry_run(recipe, ROWS)["rows"] == 3


def test_models_made_here_cannot_be_counted_by_name(recipe: Synthesis) -> None:
    made = replace(recipe, pair=replace(recipe.pair, amateur=Pretraining()))
    with pytest.raises(ValueError, match="got Model and Pretraining"):
        preview.dry_run(made, ROWS)


def test_the_table_names_every_assumption(recipe: Synthesis) -> None:
    table = preview.table(preview.dry_run(recipe, [*ROWS, {"id": "bad"}]))
    rows = dict(line.split(maxsplit=1) for line in table.split("\n"))
    assert rows["rows"] == "3 (1 more are bad)"
    assert rows["cost"].endswith("GPU hours (assumed: 1e+14 operations/s)")
    assert "(assumed: 5 a response), at most 30" in table
    assert "GB weights" in rows["memory"]


def test_both_answers_stand_side_by_side(recipe: Synthesis) -> None:
    long = {"id": "long", "instruction": "word " * 600}
    rows = preview.compare(recipe, [*ROWS, long, {"id": "bad"}, {}], progress=False)
    assert [row["id"] for row in rows] == ["0", "1", "2", "long", "bad", "line 6"]
    model, tokenizer = teacher.ready(recipe)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in ROWS]
    plain = replace(recipe.decoding, strength=0.0, plausibility=0.0)
    for column, decoding in (("direct", plain), ("codit", recipe.decoding)):
        drawn = decode.generate(
            model, tokenizer, chats, decoding, ids=["0", "1", "2"], progress=False
        )
        assert [row[column] for row in rows[:3]] == [response.text for response in drawn]
    assert "prompt is too long" in rows[3]["direct"]
    assert "expected `instruction`" in rows[4]["codit"]


def test_a_limit_takes_the_first_rows(recipe: Synthesis) -> None:
    assert len(preview.compare(recipe, ROWS, limit=1, progress=False)) == 1
