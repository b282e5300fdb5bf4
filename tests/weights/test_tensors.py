"""Reading and writing by blocks: against safetensors and transformers themselves."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from codit.weights import tensors as tensor_files
from codit.weights.tensors import blocks, opened, resolve, staged, write
from tests import tiny


def whole(tensors: tensor_files.Tensors, name: str) -> Tensor:
    """A tensor put together from its blocks."""
    parts = [tensors.read(name, b).flatten() for b in blocks(tensors.shapes[name])]
    return torch.cat(parts).reshape(tensors.shapes[name])


@settings(deadline=None, max_examples=60)
@given(shape=st.lists(st.integers(0, 7), max_size=4), limit=st.integers(1, 60))
def test_blocks_cover_a_tensor_once_in_the_order_of_memory(shape: list[int], limit: int) -> None:
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "BLOCK", limit)
        parts = [numbers[block].flatten() for block in blocks(shape)]
    assert all(0 < len(part) <= limit for part in parts)
    covered = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    assert torch.equal(covered, numbers.flatten())


def test_a_block_holds_at_most_sixteen_megabytes_of_float64() -> None:
    for shape in ([151_936, 4096], [32, 2880, 5760], [10**8]):
        sizes = [math.prod(part.stop - part.start for part in b) * 8 for b in blocks(shape)]
        assert max(sizes) <= 16 * 2**20
        assert sum(sizes) == math.prod(shape) * 8


@pytest.mark.parametrize("shard_bytes", [300, 10**9])
def test_what_is_written_is_what_safetensors_reads(
    tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "BLOCK", 10)
    noise = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(7, 5, generator=noise).bfloat16(),
        "scalar": torch.tensor(2.5),
        "ids": torch.arange(9),
        "mask": torch.tensor([True, False, True]),
        "cube": torch.randn(3, 4, 6, generator=noise, dtype=torch.float64),
        "nothing": torch.empty(0, 3),
        "not a number": torch.tensor([math.nan, -0.0, math.inf]).half(),
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    write(opened(tmp_path / "in"), tmp_path / "out", shard_bytes=shard_bytes)
    index = json.loads((tmp_path / "out" / tensor_files.INDEX).read_text())
    found: dict[str, Tensor] = {}
    for name in set(index["weight_map"].values()):
        part = load_file(tmp_path / "out" / name)
        assert {index["weight_map"][key] for key in part} == {name}
        found |= part
    assert (len(set(index["weight_map"].values())) > 1) == (shard_bytes == 300)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        equal = found[name].reshape(-1).view(torch.uint8) == tensor.reshape(-1).view(torch.uint8)
        assert equal.all()


def test_one_file_and_many_are_read_alike(tmp_path: Path) -> None:
    model = tiny.model("llama", seed=0).bfloat16()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    one, many = opened(tmp_path / "one"), opened(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert one.shapes == many.shapes
    assert set(one.dtypes.values()) == {"BF16"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole(one, name), tensor)
        assert torch.equal(whole(many, name), tensor)


def test_what_is_read_is_what_transformers_loads(tmp_path: Path) -> None:
    """An index of an earlier save, whose shards are still there, beside a single file."""
    tiny.model("gpt2", seed=0).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.model("gpt2", seed=1).save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert (tmp_path / tensor_files.INDEX).is_file()
    found, expected = opened(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert found.shapes.keys() == expected.keys()
    assert all(torch.equal(whole(found, name), tensor) for name, tensor in expected.items())


def renamed(folder: Path, architecture: str, new: Callable[[str], str | None]) -> Path:
    """A model whose file has other names; None: not that tensor."""
    tiny.model(architecture, seed=0).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {new(name): tensor for name, tensor in load_file(file).items()}
    save_file({n: t for n, t in tensors.items() if n is not None}, file, metadata={"format": "pt"})
    return folder


def test_names_are_the_librarys_and_what_is_written_has_those_of_the_file(tmp_path: Path) -> None:
    bare = renamed(tmp_path / "in", "gpt2", lambda name: name.removeprefix("transformer."))
    found = opened(bare)
    assert found.shapes.keys() == tiny.model("gpt2", seed=0).state_dict().keys()
    write(found, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert "h.0.attn.c_attn.weight" in load_file(file)
    assert {n: t.tolist() for n, t in load_file(file).items()} == {
        n: t.tolist() for n, t in load_file(bare / "model.safetensors").items()
    }
    headless = renamed(tmp_path / "body", "gpt2", lambda n: None if "lm_head" in n else n)
    assert found.shapes.keys() - opened(headless).shapes.keys() == {"lm_head.weight"}


def test_experts_that_the_library_merges_are_told_apart_as_in_the_file(tmp_path: Path) -> None:
    found = opened(renamed(tmp_path, "qwen3_moe", lambda name: name))
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in found.shapes
    assert found.unloaded == set()


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            lambda name: f"_orig_mod.{name}",
            r"of a LlamaForCausalLM in .*; got 19 missing in the files \(model.layers.0.input",
        ),
        (
            lambda name: None if name == "model.norm.weight" else name,
            r"got 1 missing in the files \(model.norm.weight\)\. Name them as",
        ),
    ],
)
def test_weights_that_the_library_would_draw_at_random_are_refused(
    tmp_path: Path, new: Callable[[str], str | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(renamed(tmp_path, "llama", new))


def test_a_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    file = renamed(tmp_path, "llama", lambda name: name) / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"norm.weight": torch.ones(32)}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"expected every weight once in .*; got another model.nor"
    ):
        opened(tmp_path)


def test_a_tied_head_is_one_tensor_even_where_the_file_has_it_twice(tmp_path: Path) -> None:
    tied = tiny.model("llama", seed=0, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in opened(tmp_path).shapes
    weights = {name: tensor.clone() for name, tensor in tied.state_dict().items()}
    assert "lm_head.weight" in weights
    save_file(weights, tmp_path / "model.safetensors")
    assert opened(tmp_path).shapes.keys() == weights.keys() - {"lm_head.weight"}
    untied = tiny.model("llama", seed=0)
    untied.save_pretrained(tmp_path)
    assert "lm_head.weight" in opened(tmp_path).shapes


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with staged(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists()
    assert (out / "file").read_text() == "content"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_and_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_text("of a killed try")
    found = None
    with pytest.raises(ZeroDivisionError), staged(out) as folder:
        found = list(folder.iterdir()) or 1 / 0
    assert found is None
    assert not out.exists()
    assert not (tmp_path / ".out.partial").exists()
    out.mkdir()  # an empty folder is as good as none
    with staged(out) as folder:
        (folder / "file").touch()
    assert (out / "file").exists()
    with pytest.raises(ValueError, match=f"a new or an empty folder; {out} exists. Remove it"):
        staged(out).__enter__()


def test_a_name_of_the_hub_is_fetched_at_its_revision_without_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("someone/model") == resolve("someone/model@abc") == tmp_path
    assert [(name, options["revision"]) for name, options in calls] == [
        ("someone/model", None),
        ("someone/model", "abc"),
    ]
    assert "*.safetensors" in calls[0][1]["allow_patterns"]
    assert not any("bin" in pattern for pattern in calls[0][1]["allow_patterns"])


def broken(folder: Path, kind: str) -> Path:
    """A folder with one fault."""
    model = tiny.model("gpt2", seed=0)
    if kind in ("shard", "index"):
        model.save_pretrained(folder, max_shard_size="20KB")
        files = sorted(folder.glob("*.safetensors"))
        if kind == "shard":
            files[0].unlink()
        else:
            save_file({"other": torch.zeros(1)}, files[0])
        return folder
    folder.mkdir(exist_ok=True)
    name = {"adapter": "adapter_config.json", "bin": "pytorch_model.bin"}
    (folder / name.get(kind, "model.safetensors")).write_bytes(b"{}" if kind != "cut" else b"x" * 9)
    if kind == "empty":
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", r"expected model.safetensors in .*; there is none. Name a checkpoint in saf"),
        ("adapter", r"there is none. It is an adapter: merge it into its base"),
        ("bin", r"there is none. Load the model with transformers and save it again"),
        ("cut", r"expected a safetensors file at .*model.safetensors; got .*Fetch or write it"),
        ("shard", r"expected model-00001-of-\d+.safetensors in .*; there is none."),
        ("index", r"the index of .* must name the tensors of its files; \['other', "),
    ],
)
def test_a_broken_folder_is_refused_with_a_remedy(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(broken(tmp_path / "folder", kind))


def test_what_is_neither_folder_nor_model_of_the_hub_is_refused() -> None:
    for name in ("no/such/folder", "someone/missing-model"):
        message = f"expected a folder or a model of the Hub; got {name}: there is no such folder"
        with pytest.raises(ValueError, match=re.escape(message)):
            opened(name)
