"""Real English through the commands that a user of a small model types; needs `make real` once.

The amateur is the model with noise on its weights: a pair in form, so nothing is said of quality.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from codit import cli
from codit.engine.models import load_tokenizer, read_model
from codit.files import read_lines, write_lines
from codit.paper import real, store

EXPERT = store.find(real.Packaged())
pytestmark = pytest.mark.skipif(
    EXPERT is None, reason="the model of scale real is not there: make real"
)


@pytest.fixture(scope="module")
def amateur(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("amateur"), torch.Generator().manual_seed(0)
    model = read_model(str(EXPERT), dtype="auto")
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder)
    load_tokenizer(str(EXPERT)).save_pretrained(folder)
    return folder


def run(*command: str, **flags: Any) -> None:
    given = [part for k, v in flags.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    assert cli.main([*command, *given]) == 0


def test_constraints_become_a_dataset_a_student_and_a_cosine(
    amateur: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [row for _, row in read_lines(real.PROMPTS / "constraints.jsonl")]
    asked = [row for row in asked if real.kind(row) in real.KINDS[4:7]][::8]
    write_lines(tmp_path / "in.jsonl", asked)
    pair, out = {"expert": EXPERT, "amateur": amateur}, tmp_path / "out.jsonl"
    run("compare", **pair, prompt="What is the capital of France?", max_new_tokens=8)
    assert "-- direct\n" in capsys.readouterr().out
    how: dict[str, Any] = {"strength": 0.3, "max_new_tokens": 24}
    run("synthesize", **pair, **how, prompts=tmp_path / "in.jsonl", out=out)
    rows = [row for _, row in read_lines(out)]
    assert [row["instruction"] for row in rows] == [row["prompt"] for row in asked]
    text = " ".join(row["response"] for row in rows)
    assert {"the", "a", "is", "and", "of", "to"} & set(text.lower().split()), "it is English"
    assert "<|im_" not in text
    pytest.importorskip("lm_eval", reason='lm-eval is an extra: pip install -e ".[eval]"')
    for row, said in zip(asked, rows, strict=True):
        assert real.verdict(row, said["response"])[0] in (True, False)

    for row in rows:
        row["is_completed"] = True  # cut to be quick
    write_lines(tmp_path / "data.jsonl", rows)
    how = {"epochs": 1, "batch": len(rows), "max_length": 256, "save_every": 0}
    run("train", base=amateur, data=tmp_path / "data.jsonl", out=tmp_path / "student", **how)
    log = json.loads((tmp_path / "student" / "training_log.json").read_text())
    assert log["steps"] == 1
    ends = {"after": tmp_path / "student", "before": amateur, "post": EXPERT, "pre": amateur}
    capsys.readouterr()
    run("chat-vector", "cosine", **ends, out=tmp_path / "cosines.csv")
    assert "global" in capsys.readouterr().out
