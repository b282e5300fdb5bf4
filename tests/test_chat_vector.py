"""Chat vectors: extraction, addition and cosines, against the identities that define them."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from codit.chat_vector import (
    ADDITION,
    COLUMNS,
    add,
    chance,
    cosines,
    difference,
    permuted,
    table,
)
from codit.weights import tensors as tensor_files
from codit.weights.vector import INFO
from tests import tiny

IDS = torch.tensor([[5, 70, 255, 260, 30, 111]])
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an expert and its amateur, float32."""
    return tiny.save_pair(tmp_path_factory.mktemp("pair"), "llama")


@pytest.fixture(scope="module")
def tau(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the pair's chat vector."""
    return difference(*pair, tmp_path_factory.mktemp("tau") / "tau")


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by safetensors' own reader."""
    files = list(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(seed: int) -> dict[str, Tensor]:
    """A state dict difference with layers, embedding, head and norms."""
    names = tiny.model("llama", seed=0).state_dict()
    return {n: noise(seed + k, *t.shape) for k, (n, t) in enumerate(names.items())}


def whole(table: pd.DataFrame, name: str = "all") -> float:
    rows = table[(table["group"] == "global") & (table["name"] == name)]
    return float(rows["cosine"].item())


def by_tensor(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["group"] == "tensor"].set_index("name")


def report(folder: Path, name: str = ADDITION) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


# Extraction


def test_a_vector_is_the_experts_weights_minus_the_amateurs(
    pair: tuple[Path, Path], tau: Path
) -> None:
    post, pre, found = (weights(folder) for folder in (*pair, tau))
    assert found.keys() == post.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, (post[name].double() - pre[name].double()).float())
    assert (tau / tensor_files.INDEX).is_file()
    info = report(tau, INFO)
    assert info["numbers"] == sum(t.numel() for t in post.values())
    equal = sum(int((post[n] == pre[n]).sum()) for n in post)
    assert equal > 0
    assert info["zeros"] == equal / info["numbers"]
    assert info["chat"]["chat_template"] == tiny.CHAT_TEMPLATE


def test_amateur_plus_vector_is_the_expert_within_float32(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    made, post = weights(add(pair[1], tau, tmp_path / "sum")), weights(pair[0])
    assert made.keys() == post.keys()
    for name, tensor in post.items():
        assert (made[name] - tensor).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amateur_plus_vector_is_the_expert_bit_for_bit_in_half_precision(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    for seed, name in enumerate(("post", "pre")):
        tiny.model("llama", seed=seed).to(dtype).save_pretrained(tmp_path / name)
    vector = difference(tmp_path / "post", tmp_path / "pre", tmp_path / "tau")
    assert report(vector, INFO)["restored"] == 1.0
    made = weights(add(tmp_path / "pre", vector, tmp_path / "sum"))
    for name, tensor in weights(tmp_path / "post").items():
        assert made[name].dtype == dtype
        assert torch.equal(made[name], tensor)


def test_numbers_that_float32_does_not_give_back_are_counted(tmp_path: Path) -> None:
    for name, value in (("post", 1e-6), ("pre", 1.0)):
        (tmp_path / name).mkdir()
        tensors = {"a": torch.tensor([value, 0.5]).bfloat16()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    vector = difference(tmp_path / "post", tmp_path / "pre", tmp_path / "tau")
    assert report(vector, INFO)["restored"] == 0.5


def test_rows_beyond_the_tokenizer_are_left_out_of_a_vector(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    cut = difference(*pair, tmp_path / "tau", rows=270)
    for name, tensor in weights(tau).items():
        assert torch.equal(weights(cut)[name], tensor[:270])
    assert report(cut, INFO)["cut"] == [[HEAD, 280, 280, 270], [EMBED, 280, 280, 270]]


def test_a_vector_is_subtracted_before_it_is_rounded_to_float32(tmp_path: Path) -> None:
    near = {"a": torch.tensor([1 + 1e-9], dtype=torch.float64)}
    made = weights(difference(near, {"a": torch.ones(1)}, tmp_path / "tau"))
    assert made["a"].item() == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_model_with_the_vector_added_speaks_as_the_expert(
    architecture: str, tmp_path: Path
) -> None:
    expert, amateur = tiny.save_pair(tmp_path, architecture)
    folder = add(amateur, difference(expert, amateur, tmp_path / "tau"), tmp_path / "sum")
    made, post, pre = (
        AutoModelForCausalLM.from_pretrained(f)(IDS).logits for f in (folder, expert, amateur)
    )
    assert (made - post).abs().max() < 1e-4
    assert (pre - post).abs().max() > 1
    again = AutoTokenizer.from_pretrained(folder)
    assert (again.eos_token, again.chat_template) == (tiny.END, tiny.CHAT_TEMPLATE)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [0, 4]


# Addition


def test_scale_zero_gives_the_target_byte_for_byte(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    folder = add(pair[1], tau, tmp_path / "sum", scale=0)
    made = weights(folder)
    for name, tensor in weights(pair[1]).items():
        assert torch.equal(made[name].view(torch.int32), tensor.view(torch.int32))
    for name in ("generation_config.json", "tokenizer_config.json", "config.json"):
        assert (folder / name).read_bytes() == (pair[1] / name).read_bytes()


def test_addition_is_linear_in_scale(pair: tuple[Path, Path], tau: Path, tmp_path: Path) -> None:
    pre, vector = weights(pair[1]), weights(tau)
    for scale in (-2.0, 0.25, 3.0):
        made = weights(add(pair[1], tau, tmp_path / f"sum{scale}", scale=scale))
        for name, tensor in pre.items():
            expected = (tensor.double() + scale * vector[name].double()).float()
            assert torch.equal(made[name], expected)


def test_several_vectors_are_summed_each_with_its_scale(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    halves = add(pair[1], [(tau, 0.5), (pair, 0.25)], tmp_path / "sum", scale=2)
    made, expected = weights(halves), weights(add(pair[1], tau, tmp_path / "one", scale=1.5))
    for name, tensor in expected.items():
        assert torch.allclose(made[name], tensor, atol=1e-6)
    assert [part["scale"] for part in report(halves)["vectors"]] == [1.0, 0.5]


def test_taking_away_what_was_added_restores_the_target(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    there = add(pair[1], tau, tmp_path / "there", scale=0.7)
    back = weights(add(there, tau, tmp_path / "back", scale=-0.7))
    for name, tensor in weights(pair[1]).items():
        assert (back[name] - tensor).abs().max() <= 1e-6


def test_an_untouched_embedding_keeps_its_bytes_and_the_rest_moves(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    made = weights(add(pair[1], tau, tmp_path / "sum", skip_embed=True))
    pre, post = weights(pair[1]), weights(pair[0])
    for name, tensor in pre.items():
        expected = tensor if name in (EMBED, HEAD) else post[name]
        assert torch.allclose(made[name], expected, atol=1e-6)
        if name in (EMBED, HEAD):
            assert torch.equal(made[name].view(torch.int32), tensor.view(torch.int32))


def test_another_vocabulary_needs_no_common_rows_where_the_embedding_is_skipped(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    larger = tiny.model("llama", seed=9, vocab_size=300)
    larger.save_pretrained(tmp_path / "larger")
    before = weights(tmp_path / "larger")
    made = weights(add(tmp_path / "larger", tau, tmp_path / "sum", skip_embed=True))
    assert torch.equal(made[EMBED], before[EMBED])
    both = add(tmp_path / "larger", tau, tmp_path / "rows")
    assert report(both)["vectors"][0]["cut"] == [[HEAD, 280, 300, 280], [EMBED, 280, 300, 280]]
    assert torch.equal(weights(both)[EMBED][280:], before[EMBED][280:])
    moved = before[EMBED][:280] + weights(tau)[EMBED]
    assert torch.allclose(weights(both)[EMBED][:280], moved, atol=1e-6)


def test_a_vector_that_is_taken_away_brings_no_chat_template(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    folder = add(pair[1], tau, tmp_path / "less", scale=-1)
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (pair[1] / name).read_bytes()


def test_a_tied_head_is_moved_once_and_is_not_missing(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("post", "pre")]
    for seed, folder in enumerate(folders):
        tiny.model("llama", seed=seed, tie_word_embeddings=True).save_pretrained(folder)
    made = add(folders[1], difference(*folders, tmp_path / "tau"), tmp_path / "sum")
    assert report(made)["vectors"][0]["missing"] == []
    assert HEAD not in weights(made)
    logits = [AutoModelForCausalLM.from_pretrained(f)(IDS).logits for f in (made, folders[0])]
    assert (logits[0] - logits[1]).abs().max() < 1e-4


def test_an_untied_head_that_the_vector_lacks_is_reported_and_unchanged(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / name for name in ("post", "pre")]
    for seed, folder in enumerate(folders):
        tiny.model("llama", seed=seed, tie_word_embeddings=True).save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        made = add(pair[1], tuple(folders), tmp_path / "sum")
    assert report(made)["vectors"][0]["missing"] == [HEAD]
    assert "not all tensors were matched: 1 missing, ['lm_head.weight']" in caplog.text
    assert torch.equal(weights(made)[HEAD], weights(pair[1])[HEAD])


OLD = {  # what old files hold, and transformers no longer loads
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"],
    "gpt_neox": [
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ],
}


@pytest.mark.parametrize("architecture", OLD)
def test_buffers_of_old_files_and_a_missing_prefix_change_no_vector(
    architecture: str, tmp_path: Path
) -> None:
    expert, amateur = tiny.save_pair(tmp_path, architecture)
    prefix = OLD[architecture][0].partition(".")[0] + "."
    old = shutil.copytree(amateur, tmp_path / "old")
    buffers = {name: noise(3, 4).float() for name in OLD[architecture]}
    bare = {n.removeprefix(prefix): t for n, t in (weights(amateur) | buffers).items()}
    save_file(bare, old / "model.safetensors", metadata={"format": "pt"})
    tau = difference(expert, amateur, tmp_path / "tau")
    again = difference(expert, old, tmp_path / "again")
    assert weights(again).keys() == weights(tau).keys()
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(tau).items())
    unloaded = [name.removeprefix(prefix) for name in OLD[architecture]]
    assert report(again, INFO)["unloaded"] == unloaded
    folder = add(old, tau, tmp_path / "sum")
    assert weights(folder).keys() == bare.keys()
    assert all(torch.equal(weights(folder)[name], bare[name]) for name in unloaded)
    assert report(folder)["vectors"][0]["unloaded"] == unloaded
    made, post = (AutoModelForCausalLM.from_pretrained(f)(IDS).logits for f in (folder, expert))
    assert (made - post).abs().max() < 1e-4


def test_changes_that_the_targets_dtype_rounds_away_are_counted(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    target = {"a": torch.tensor([1.0, 1.0, 1.0, -0.0]).bfloat16()}
    save_file(target, tmp_path / "target" / "model.safetensors")
    tau = {"a": torch.tensor([1e-4, 1.0, 0.0, 0.0])}
    made = add(tmp_path / "target", tau, tmp_path / "sum")
    assert (report(made)["changes"], report(made)["lost"]) == (2, 0.5)
    assert weights(made)["a"].float().tolist() == [1.0, 2.0, 1.0, 0.0]
    assert math.copysign(1, weights(made)["a"][3].item()) == -1


def test_tensors_that_are_no_floats_are_copied(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    target = {"a": torch.ones(3), "mask": torch.tensor([True, False]), "ids": torch.arange(4)}
    save_file(target, tmp_path / "target" / "model.safetensors")
    made = weights(add(tmp_path / "target", {"a": torch.ones(3)}, tmp_path / "sum"))
    assert made["mask"].tolist() == [True, False]
    assert made["ids"].tolist() == [0, 1, 2, 3]
    assert made["a"].tolist() == [2, 2, 2]


# Cosines


def test_a_multiple_of_the_vector_has_the_cosine_of_its_sign() -> None:
    tau = state(0)
    for c in (2.5, -0.01):
        table = cosines({name: c * tensor for name, tensor in tau.items()}, tau)
        assert table["cosine"].tolist() == pytest.approx([math.copysign(1, c)] * len(table))
        ratio = table["norm_update"] / table["norm_vector"]
        assert ratio.tolist() == pytest.approx([abs(c)] * len(table))


def test_an_orthogonal_update_has_cosine_zero() -> None:
    tau = state(0)
    update = {}
    for name, tensor in tau.items():
        other = noise(1000, *tensor.shape)
        update[name] = other - (other * tensor).sum() / (tensor * tensor).sum() * tensor
    assert cosines(update, tau)["cosine"].abs().max() < 1e-12


def test_cosines_are_those_of_torch_over_whole_tensors() -> None:
    u, tau = state(0), state(100)
    table = cosines(u, tau)
    found = by_tensor(table)
    for name in tau:
        expected = torch.cosine_similarity(u[name].flatten(), tau[name].flatten(), dim=0)
        assert found.loc[name, "cosine"] == pytest.approx(float(expected), abs=1e-12)
    body = [n for n in tau if "norm" not in n and n not in (EMBED, HEAD)]
    for group, names in (("all", list(tau)), ("body", body)):
        a, b = (torch.cat([part[n].flatten() for n in names]) for part in (u, tau))
        expected = torch.cosine_similarity(a, b, dim=0)
        assert whole(table, group) == pytest.approx(float(expected), abs=1e-12)
    assert abs(whole(table, "all") - whole(table, "body")) > 0.001


def test_the_whole_is_the_weighted_sum_of_its_parts_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    u, tau = state(0), state(100)
    once = cosines(u, tau)
    monkeypatch.setattr(tensor_files, "BLOCK", 50)
    table = cosines(u, tau)
    assert table["cosine"].tolist() == pytest.approx(once["cosine"].tolist(), abs=1e-12)
    for group in ("tensor", "module"):
        rows = table[table["group"] == group]
        assert (rows["weight"] * rows["cosine"]).sum() == pytest.approx(whole(table), abs=1e-9)


def test_order_sharding_and_form_of_the_weights_do_not_matter(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path
) -> None:
    student = tiny.model("llama", seed=5)
    student.save_pretrained(tmp_path / "one")
    student.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    update = (tmp_path / "one", pair[1])
    expected = cosines(update, pair)
    assert expected.equals(cosines((tmp_path / "many", pair[1]), pair))
    turned = dict(reversed(weights(tmp_path / "one").items()))
    assert expected.equals(cosines((turned, pair[1]), pair))
    written = cosines(difference(*update, tmp_path / "u"), tau)
    assert (written["cosine"] - expected["cosine"]).abs().max() < 1e-6
    assert 0.1 < whole(expected) < 0.9  # the amateur is in both


def test_a_bfloat16_checkpoint_is_compared_in_float64(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        tiny.model("qwen3", seed=seed).bfloat16().save_pretrained(tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    found = by_tensor(cosines((tmp_path / "a", tmp_path / "b"), (tmp_path / "c", tmp_path / "b")))
    for name in a:
        u, tau = ((x[name].double() - b[name].double()).flatten() for x in (a, c))
        expected = float(u @ tau / (u.norm() * tau.norm()))
        assert found.loc[name, "cosine"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_random_directions_have_the_spread_of_chance() -> None:
    # Windows of one long noise are as good as independent draws, and are made once.
    n, draws = 10**6, 600
    long = torch.from_numpy(np.random.default_rng(0).standard_normal(3 * n, dtype=np.float32))
    fixed = torch.from_numpy(np.random.default_rng(1).standard_normal(n, dtype=np.float32))
    windows = {f"t{k}": long[2000 * k : 2000 * k + n] for k in range(draws)}
    found = by_tensor(cosines(windows, dict.fromkeys(windows, fixed)))["cosine"]
    assert len(found) == draws
    assert found.std() == pytest.approx(chance(n), rel=0.05)
    assert abs(found.mean()) < 4 * chance(n) / draws**0.5
    assert chance(n) == 1e-3


def test_what_is_missing_extra_or_of_another_shape_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    u, tau = state(0), state(100)
    gone, more, other = list(tau)[3], "model.layers.9.new", list(tau)[5]
    del u[gone]
    u |= {more: torch.ones(3), other: torch.ones(2, 2)}
    with pytest.raises(ValueError, match=f"got 2 tensors .* and 1 of .*, such as {gone}"):
        cosines(u, tau)
    with caplog.at_level(logging.WARNING):
        table = cosines(u, tau, partial=True)
    assert table.attrs["missing"] == [gone]
    assert table.attrs["extra"] == [more]
    sizes = ("F32 [2, 2]", f"F64 {list(tau[other].shape)}")
    assert table.attrs["mismatched"] == [(other, *sizes)]
    assert table.attrs["matched"] == len(tau) - 2 == len(by_tensor(table))
    assert f"1 missing, ['{gone}']; 1 extra" in caplog.text


def test_a_resized_vocabulary_is_compared_in_the_rows_of_the_tokenizer(tmp_path: Path) -> None:
    u, tau = state(0), state(100)
    padded = {**u, EMBED: torch.cat([u[EMBED], 100 * torch.ones(24, 32, dtype=torch.float64)])}
    plain = cosines(u, tau)
    table = cosines(padded, tau)
    assert table.equals(plain)
    assert table.attrs["cut"] == [(EMBED, 304, 280, 280)]
    assert plain.attrs["cut"] == []
    cut = cosines(padded, tau, rows=250)
    expected = {**u, EMBED: u[EMBED][:250], HEAD: u[HEAD][:250]}
    assert cut.equals(cosines(expected, tau))
    assert cut.attrs["cut"] == [(HEAD, 280, 280, 250), (EMBED, 304, 280, 250)]


def test_a_pair_of_other_vocabularies_tells_what_it_left_out(tmp_path: Path) -> None:
    after, before = state(0), state(1)
    before[EMBED] = before[EMBED][:200]
    del before[HEAD]
    table = cosines((after, before), state(100))
    assert table.attrs["update"]["extra"] == [HEAD]
    assert table.attrs["update"]["cut"] == [(EMBED, 280, 200, 200)]
    assert table.attrs["missing"] == [HEAD]
    assert by_tensor(table).loc[EMBED, "n"] == 200 * 32
    fewer = cosines((after, before), state(100), rows=150)
    assert fewer.attrs["update"]["cut"] == [(EMBED, 280, 200, 150)]
    assert by_tensor(fewer).loc[EMBED, "n"] == 150 * 32


def test_a_tensor_that_did_not_move_has_no_cosine_and_is_named() -> None:
    u, tau = state(0), state(100)
    still = list(tau)[4]
    u[still] = torch.zeros_like(u[still])
    table = cosines(u, tau)
    assert table.attrs["zero_norm"] == [still]
    assert by_tensor(table)["cosine"].isna().sum() == 1
    assert not math.isnan(whole(table))
    numbers = sum(t.numel() for t in tau.values())
    assert table.attrs["zeros_update"] == u[still].numel() / numbers
    assert table.attrs["zeros_vector"] == 0


# From sums to cosines

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.experts.0.up_proj.weight",
    "model.layers.0.mlp.experts.0.down_proj.weight",
    "model.layers.0.mlp.experts.1.up_proj.weight",
    "model.layers.10.self_attn.q_proj.weight",
    "model.layers.2.self_attn.q_proj.weight",
    "lm_head.weight",
)
GROUPS = {
    ("layer", "0"): NAMES[1:6],
    ("layer", "2"): NAMES[7:8],
    ("layer", "10"): NAMES[6:7],
    ("module", "embed"): NAMES[:1],
    ("module", "experts"): NAMES[3:6],
    ("module", "head"): NAMES[8:],
    ("module", "norms"): NAMES[2:3],
    ("module", "q"): (NAMES[1], NAMES[6], NAMES[7]),
    ("expert", "0.0"): NAMES[3:5],
    ("expert", "0.1"): NAMES[5:6],
    ("global", "all"): NAMES,
    ("global", "body"): (NAMES[1], *NAMES[3:8]),
}


def vectors(seed: int) -> dict[str, np.ndarray]:
    """Two rows for each name: the update and the vector."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, rng.integers(1, 9))) for name in NAMES}


def some(*numbers: float) -> np.ndarray:
    return np.array([*numbers, 0, 0], dtype=np.float64)


def sums(pair: np.ndarray) -> np.ndarray:
    u, tau = pair
    return some(u @ tau, u @ u, tau @ tau, len(u))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_group_is_its_tensors_laid_end_to_end(seed: int) -> None:
    parts = vectors(seed)
    found = table({name: sums(pair) for name, pair in parts.items()}).set_index(["group", "name"])
    groups = {**GROUPS, **{("tensor", name): (name,) for name in NAMES}}
    assert set(found.index) == set(groups)
    whole = np.concatenate(list(parts.values()), axis=1)
    norms = np.linalg.norm(whole[0]) * np.linalg.norm(whole[1])
    for group, names in groups.items():
        u, tau = np.concatenate([parts[name] for name in names], axis=1)
        row = found.loc[group]
        sizes = np.linalg.norm(u), np.linalg.norm(tau)
        assert row["cosine"] == pytest.approx(u @ tau / (sizes[0] * sizes[1]), abs=1e-12)
        assert (row["norm_update"], row["norm_vector"]) == pytest.approx(sizes)
        assert (row["n"], row["weight"]) == (len(u), pytest.approx(sizes[0] * sizes[1] / norms))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_whole_is_the_weighted_sum_over_tensors_and_over_modules(seed: int) -> None:
    found = table({name: sums(pair) for name, pair in vectors(seed).items()})
    whole = found.loc[(found["group"] == "global") & (found["name"] == "all"), "cosine"].item()
    for group in ("tensor", "module"):
        rows = found[found["group"] == group]
        assert (rows["weight"] * rows["cosine"]).sum() == pytest.approx(whole, abs=1e-9)


def test_rows_come_in_a_fixed_order_whatever_that_of_the_tensors() -> None:
    given = {name: sums(pair) for name, pair in vectors(0).items()}
    found = table(given)
    assert found.equals(table(dict(reversed(given.items()))))
    assert tuple(found.columns) == COLUMNS
    order = [tuple(key) for key in found[["group", "name"]].itertuples(index=False)]
    assert order[len(NAMES) :] == list(GROUPS)
    assert order[len(NAMES) - 2 : len(NAMES)] == [("tensor", NAMES[7]), ("tensor", NAMES[6])]


def test_a_norm_of_zero_has_no_cosine_and_no_weight() -> None:
    found = table({"a.q_proj.weight": some(0, 0, 4, 3), "b.k_proj.weight": some(2, 1, 4, 3)})
    rows = found[found["group"] == "module"].set_index("name")
    assert math.isnan(rows.loc["q", "cosine"])
    assert rows["weight"].to_dict() == {"k": pytest.approx(2 / 8**0.5), "q": 0.0}
    assert found["cosine"].iloc[-1] == pytest.approx(2 / 8**0.5)
    nothing = table({"a": some(0, 0, 0, 3)})
    assert nothing["cosine"].isna().all()
    assert nothing["weight"].isna().all()


def test_rounding_never_takes_a_cosine_out_of_range() -> None:
    for sign in (1, -1):
        assert table({"a": some(sign * 3.0000000000000004, 3, 3, 1)})["cosine"].eq(sign).all()


# Nulls


def test_a_permuted_vector_keeps_each_tensors_numbers_and_loses_the_direction() -> None:
    tau = state(0)
    null = permuted(tau, seed=3)
    for name, tensor in tau.items():
        read = torch.cat([null.read(name, b).flatten() for b in tensor_files.blocks(tensor.shape)])
        assert torch.equal(read.sort().values, tensor.float().flatten().sort().values)
        assert tensor.numel() < 100 or not torch.equal(read, tensor.float().flatten())
    table, plain = cosines(tau, null), cosines(tau, tau)
    assert (table["norm_vector"] - plain["norm_vector"]).abs().max() < 1e-4
    assert abs(whole(table)) < 5 * chance(33_440)
    assert table.equals(cosines(tau, permuted(dict(reversed(tau.items())), seed=3)))
    assert not table.equals(cosines(tau, permuted(tau, seed=4)))


def test_equal_tensors_of_a_vector_are_permuted_each_in_its_own_way() -> None:
    null = permuted(dict.fromkeys("ab", noise(0, 100)), seed=0)
    a, b = (null.read(name, (slice(0, 100),)) for name in "ab")
    assert not torch.equal(a, b)


def test_a_permuted_vector_is_read_in_blocks_like_any_other(
    tau: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cosines(tau, permuted(tau, seed=0))
    monkeypatch.setattr(tensor_files, "BLOCK", 100)
    found = cosines(tau, permuted(tau, seed=0))
    assert (found["cosine"] - expected["cosine"]).abs().max() < 1e-12


def test_chance_is_the_paper_scale_number_too() -> None:
    assert chance(8_200_000_000) == pytest.approx(1.1e-5, rel=0.01)


# Refusals and interruption


def test_a_vector_is_not_added_to_an_architecture_that_shares_most_names(tmp_path: Path) -> None:
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_norm.weight")
    qwen = {name: torch.ones(2, 2) for name in names}
    for kind, tensors in (("post", qwen), ("pre", qwen), ("llama", {names[0]: qwen[names[0]]})):
        (tmp_path / kind).mkdir()
        save_file(tensors, tmp_path / kind / "model.safetensors")
        (tmp_path / kind / "config.json").write_text("{}")
    vector = (tmp_path / "post", tmp_path / "pre")
    with pytest.raises(ValueError, match=r"q_norm.weight. A chat vector can be added within one"):
        add(tmp_path / "llama", vector, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_extraction_or_addition_leaves_no_folder(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "blocks", stop)
    for call in (
        lambda: difference(*pair, tmp_path / "out"),
        lambda: add(pair[1], tau, tmp_path / "out"),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / ".out.partial").exists()


Refused = Callable[[tuple[Path, Path], Path, Path], object]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, t, out: difference(*p, t), r"out must be a new or an empty folder; .*tau exist"),
        (lambda p, t, out: add(p[1], t, p[0]), r"out must be a new or an empty folder; .*expert"),
        (lambda p, t, out: cosines(p[0], t), r"a folder made by chat_vector.difference, with chat"),
        (lambda p, t, out: cosines(t, p[1]), r"For two models give the pair \(post, pre\)\."),
        (lambda p, t, out: cosines({"a": noise(0, 2)}, t), r"share tensors of one name and shape"),
        (lambda p, t, out: cosines(t, t, rows=0), r"rows must be at least 1; got 0\."),
        (
            lambda p, t, out: add(p[1], {"model.norm.weight": noise(0, 3)}, out),
            r"must share tensor",
        ),
        (
            lambda p, t, out: add(
                p[1], {"model.norm.weight": noise(0, 3), EMBED: noise(0, 280, 32)}, out
            ),
            r"expected F32 \[32\] of model.norm.weight, as .* has it; got F64 \[3\]",
        ),
        (lambda p, t, out: add(p[1], t, out, scale=math.inf), r"expected a finite scale"),
        (lambda p, t, out: add(p[1], t, out, scale=math.nan), r"expected a finite scale"),
        (
            lambda p, t, out: add(p[1], t, out, scale=1e300),
            r"expected finite numbers in .*overflow",
        ),
        (
            lambda p, t, out: difference({"a": torch.tensor([math.nan])}, {"a": noise(0, 1)}, out),
            r"expected finite numbers in a; got NaN",
        ),
        (
            lambda p, t, out: cosines({"a": torch.tensor([math.inf])}, {"a": noise(0, 1)}),
            r"expected finite numbers in a; got NaN, infinity",
        ),
        (lambda p, t, out: chance(0), r"n must be at least 1; got 0\."),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(
    pair: tuple[Path, Path], tau: Path, tmp_path: Path, call: Refused, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(pair, tau, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_name_of_a_tensor_that_does_not_fit_is_told(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = shutil.copytree(pair[0], tmp_path / "wide")
    tensors = load_file(wide / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(50, 32)
    save_file(tensors, wide / "model.safetensors")
    table = cosines((wide, pair[1]), pair, partial=True)
    expected = ["model.layers.1.mlp.up_proj.weight", "F32 [50, 32]", "F32 [48, 32]"]
    assert list(table.attrs["update"]["mismatched"][0]) == expected
    full = {**state(0), "model.layers.1.mlp.up_proj.weight": torch.ones(50, 32)}
    with pytest.raises(ValueError, match=re.escape("got F32 [50, 32], and 1 tensors of another")):
        add(pair[1], full, tmp_path / "out")
