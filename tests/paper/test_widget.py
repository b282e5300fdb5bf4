"""The widget of notebook 00: what moving a slider changes, and what is there without a kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from codit.pair import ContrastivePair, load_tokenizer
from codit.recipes import Decoding

pytest.importorskip("ipywidgets", reason="the extra `notebooks` has it")
from codit.paper import widget

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
PROMPT = "Where does Zaro live? Say it twice."
DECODING = Decoding(strength=1.0, plausibility=0.3, max_new_tokens=48)


@pytest.fixture(scope="module")
def pair() -> Any:
    return ContrastivePair.from_pretrained(MODELS / "expert", MODELS / "amateur")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODELS / "expert")


def test_sliders_and_the_prompt_change_answer_and_distributions(pair: Any, tokenizer: Any) -> None:
    shown = widget.explorer(pair, tokenizer, PROMPT, DECODING)
    text, alpha, beta, step, picture = shown.controls.children
    before = picture.value
    assert "Zaro" in before
    assert step.max > 3
    seen = {before}
    for control, value in ((alpha, 0.001), (beta, 2.0), (step, 3), (text, "Where does Zaro work?")):
        control.value = value
        assert picture.value not in seen
        seen.add(picture.value)
    assert (pair.strength, pair.plausibility) == (1.0, 0.01), "the notebook's pair stays as it was"


def test_at_strength_0_and_no_truncation_both_answers_are_one(pair: Any, tokenizer: Any) -> None:
    plain = Decoding(strength=0.0, plausibility=0.0, max_new_tokens=48)
    n, picture = widget.drawn(pair, tokenizer, PROMPT, plain, 0)
    direct, codit = re.findall(r"</b><br>(.*?)</p>", picture, re.S)
    told = re.sub(r"<[^>]+>", "", codit)
    assert told.startswith(direct)
    assert n == codit.count("<span")
    shares = re.findall(r"</span> ([\d.]+)</td>", picture)
    assert shares[::2] == shares[1::2]


def test_a_step_past_the_end_is_the_last_and_an_answer_is_no_markup(
    pair: Any, tokenizer: Any
) -> None:
    n, picture = widget.drawn(pair, tokenizer, "<b>Zaro</b>", DECODING, 1000)
    assert f"Before token {n}," in picture
    assert picture.count("outline: 1px") == 1
    # Six digits: JupyterLab takes colours of other forms out of a widget's HTML.
    assert len(set(re.findall(r"background: (#[0-9a-f]{6}); color: black", picture))) > 2


def test_without_a_kernel_the_same_picture_stands_still(pair: Any, tokenizer: Any) -> None:
    shown = widget.explorer(pair, tokenizer, PROMPT, DECODING)
    bundle = shown._repr_mimebundle_()
    assert bundle["text/html"] == shown.picture.value
    assert "application/vnd.jupyter.widget-view+json" in bundle
