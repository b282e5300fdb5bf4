"""What needs no vLLM: settings, the overrides that vLLM is given, and what is said without it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codit import cli, decode
from codit.engine.vllm import engine
from codit.engine.vllm.plugin import ARCHITECTURE, Settings, register
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from tests import tiny

without_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here"
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    return str(expert), str(amateur)


def test_settings_pass_through_json_unchanged() -> None:
    settings = Settings(amateur="a", strength=0.5, vocab_size=280)
    assert Settings.of(json.loads(json.dumps(settings.as_dict()))) == settings
    assert Settings.of({"amateur": "a"}) == Settings(amateur="a", strength=1.0, plausibility=0.01)
    assert Settings.of({"strength": 0.0}).as_dict() == {"strength": 0.0, "plausibility": 0.01}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, 'expected hf_overrides with {"codit": {"amateur": ...}}; got None'),
        (["x"], r"got \['x'\]"),
        ({"amateur": "x", "alpha": 1}, "expected amateur, .*; got alpha"),
        ({}, r"expected the name of an amateur at strength 1\.0"),
        (
            {"amateur": "x", "strength": -1.0},
            r"strength must be a finite number .*; got -1\.0",
        ),
        (
            {"amateur": "x", "strength": float("nan")},
            "strength must be a finite number .*; got nan",
        ),
        ({"amateur": "x", "plausibility": 1.5}, r"plausibility must lie in \[0, 1\]; got 1\.5"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(values, words) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.of(values)


def test_overrides_are_what_vllm_needs(folders) -> None:
    made = engine.overrides(*folders, strength=0.5, plausibility=0.2)
    assert json.loads(json.dumps(made)) == made
    assert made == {
        "architectures": [ARCHITECTURE],
        "head_dtype": "float32",
        "codit": {
            "amateur": folders[1], "strength": 0.5, "plausibility": 0.2,
            "vocab_size": len(tiny.tokenizer()),
        },
    }  # fmt: skip


def test_weights_that_are_left_over_are_named_by_role(folders) -> None:
    assert engine.checked(*folders)[1] == {}
    file = Path(folders[1]) / "model.safetensors"
    save_file(load_file(file) | {"value_head.weight": torch.zeros(1)}, file, {"format": "pt"})
    assert engine.checked(*folders)[1] == {"amateur": ["value_head.weight"]}


def test_no_amateur_is_looked_at_without_strength(folders) -> None:
    made = engine.overrides(folders[0], "nowhere", strength=0.0)
    assert made["codit"]["strength"] == 0.0
    assert engine.context(folders[0], "nowhere", made) == 512


def test_the_shorter_context_of_both_counts(folders, tmp_path) -> None:
    config = json.loads((Path(folders[1]) / "config.json").read_text())
    (Path(folders[1]) / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 100})
    )
    assert engine.context(*folders, engine.overrides(*folders)) == 100


def test_a_sampling_rule_that_vllm_has_not_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wider(Decoding):
        top_n_sigma: float = 0.0

    pair = object.__new__(engine.VllmPair)
    pair.held = {"strength": 1.0, "plausibility": 0.01}
    with pair.deciding(Wider(temperature=0.5, top_k=3, seed=1)) as ready:
        assert ready is pair
    asked = pair.deciding(Wider(top_n_sigma=1.0))
    with pytest.raises(ValueError, match=r"got top_n_sigma=1\.0, which it has not\."), asked:
        pass


def test_a_pair_that_does_not_fit_is_refused(folders, tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        engine.overrides(folders[0], str(tmp_path / "nothing"))
    other, _ = tiny.save_pair(tmp_path / "other", "qwen3")
    with pytest.raises(ValueError, match="expert and amateur must have one architecture"):
        engine.overrides(folders[0], str(other))
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    tokenizer.save_pretrained(folders[1])
    with pytest.raises(ValueError, match="the tokenizers' added tokens must be equal"):
        engine.overrides(*folders)


def test_a_pair_of_the_library_is_not_decoded_by_vllm() -> None:
    pair = tiny.pair("llama")
    assert isinstance(pair, ContrastivePair)
    with pytest.raises(ValueError, match="a ContrastivePair decodes with engine auto, static, "):
        decode.generate(pair, tiny.tokenizer(), [], Decoding(), engine="vllm")


@without_vllm
def test_without_vllm_one_is_told_what_to_install(folders) -> None:
    with pytest.raises(ValueError, match=r"it is not installed here\. `pip install -e "):
        engine.VllmPair(*folders, Decoding())
    with pytest.raises(ImportError):
        register()


def test_serve_prints_the_command_and_listens_on_loopback(folders, capsys) -> None:
    arguments = ["serve", "--expert", folders[0], "--amateur", folders[1], "--plausibility", ".2"]
    more = ["--dry-run", "--name", "pair", "--engine-args=--max-num-seqs 16"]
    assert cli.main([*arguments, *more]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["vllm", "serve", folders[0]]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--host"] == "127.0.0.1"
    assert given["--max-model-len"] == "512"
    assert given["--max-num-seqs"] == "16"
    assert json.loads(given["--hf-overrides"])["codit"]["plausibility"] == 0.2
    assert json.loads(given["--override-generation-config"])["temperature"] == 1.0


@without_vllm
def test_serve_without_vllm_says_so(folders, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert cli.main(["serve", "--expert", folders[0], "--amateur", folders[1]]) == 2
    assert "expected the program vllm; got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tensor-parallel-size", "2"], 'are read by vLLM; got engine "auto"'),
        (["--engine-args", "{}"], 'are read by vLLM; got engine "auto"'),
        (["--engine", "vllm", "--engine-args", "[1]"], "engine_args must be a JSON object"),
        (["--engine", "vllm", "--engine-args", "{a"], "engine_args must be a JSON object"),
        (
            ["--engine", "vllm", "--data-parallel-size", "2", "--workers", "3"],
            "data_parallel_size is the number of workers; got 2 and 3",
        ),
    ],
)
def test_flags_of_vllm_are_checked(folders, tmp_path, capsys, more, words) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"instruction": "a"}\n')
    files = ["--prompts", str(prompts), "--out", str(tmp_path / "data.jsonl")]
    assert (
        cli.main(["synthesize", "--expert", folders[0], "--amateur", folders[1], *files, *more])
        == 2
    )
    assert words in capsys.readouterr().err
