"""One prompt to play with: move plausibility and strength, and see the answer change.

A picture in HTML, and sliders around it where a kernel runs. Where none runs, in the book or on a
page of a repository, the same picture stands still. Choices here are ours.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets
import pandas as pd
from transformers import PreTrainedTokenizerBase

from codit import decode
from codit.pair import ContrastivePair
from codit.paper.figures import COLOURS
from codit.paper.tables import step_table
from codit.recipes import Decoding

STRONGEST = 3.0  # nats of gain at which a token's colour is full
SHOWN = 6  # candidates of a step
SIDES = ((179, 88, 6), (84, 39, 136))  # the amateur wants the token more; the expert does


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """What a notebook shows: controls where a kernel runs, else the picture they begin with."""

    controls: Any
    picture: Any

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Offer both; what displays the notebook takes the richest that it can draw."""
        live: dict[str, Any] = self.controls._repr_mimebundle_()
        return {**live, "text/html": self.picture.value}


def explorer(
    pair: ContrastivePair, tokenizer: PreTrainedTokenizerBase, prompt: str, decoding: Decoding
) -> Explorer:
    """Return sliders for a prompt's answer: direct beside CoDIT, and both distributions at a step.

    The noise is that of `decoding` throughout, so what changes is the contrast's doing.
    """
    text = ipywidgets.Text(prompt, description="prompt", continuous_update=False)
    text.layout.width = "100%"
    alpha = ipywidgets.FloatLogSlider(
        decoding.plausibility, min=-3, max=0, step=0.05, description="plausibility"
    )
    beta = ipywidgets.FloatSlider(
        decoding.strength, min=0, max=2, step=0.05, description="strength"
    )
    step = ipywidgets.IntSlider(1, min=1, max=1, description="token")
    alpha.continuous_update = beta.continuous_update = False
    picture = ipywidgets.HTML()

    def draw(_change: Any = None) -> None:
        asked = replace(decoding, plausibility=alpha.value, strength=beta.value)
        step.max, picture.value = drawn(pair, tokenizer, text.value, asked, step.value - 1)

    draw()
    for control in (text, alpha, beta, step):
        control.observe(draw, "value")
    return Explorer(controls=ipywidgets.VBox([text, alpha, beta, step, picture]), picture=picture)


def drawn(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    decoding: Decoding,
    step: int,
) -> tuple[int, str]:
    """Return how many tokens CoDIT's answer has, and the picture of it as HTML.

    `step`: the token, from 0, whose two distributions are shown; past the end it is the last.
    """
    chat = [{"role": "user", "content": prompt}]
    plain = replace(decoding, strength=0.0, plausibility=0.0)
    with pair.override(strength=decoding.strength, plausibility=decoding.plausibility):
        direct, codit = (
            decode.generate(pair, tokenizer, [chat], arm, ids=["0"], progress=False)[0]
            for arm in (plain, decoding)
        )
        if not codit.token_ids:
            return 1, "<p>No answer: type a prompt.</p>"
        step = min(step, len(codit.token_ids) - 1)
        tokens = decode.token_table(pair, tokenizer, chat, codit)
        candidates = step_table(pair, tokenizer, chat, codit, step, n=SHOWN)
    answers = (
        f"<p><b>Direct</b><br>{html.escape(direct.text)}</p>"
        f"<p><b>CoDIT</b><br>{_coloured(tokens, step)}</p>"
        "<p>Purple: the expert wants the token more than the amateur does; orange: less. "
        f"Before token {step + 1}, framed:</p>"
    )
    return len(tokens), answers + _bars(candidates)


def _coloured(tokens: pd.DataFrame, step: int) -> str:
    spans = []
    for index, row in enumerate(tokens.itertuples()):
        gain = row.logp_expert - row.logp_amateur
        shade = 0.6 * min(abs(gain) / STRONGEST, 1.0)  # pale: black can be read on it
        colour = "#" + bytes(round(255 - shade * (255 - part)) for part in SIDES[gain > 0]).hex()
        frame = "outline: 1px solid" if index == step else ""
        spans.append(
            f'<span title="gain {gain:+.2f} nats" style="background: {colour}; '
            f'color: black; {frame}; white-space: pre-wrap">{html.escape(row.token)}</span>'
        )
    return "".join(spans)


def _bars(candidates: pd.DataFrame) -> str:
    rows = []
    for row in candidates.itertuples():
        cells = "".join(
            f'<td style="min-width: 8em; text-align: left"><span style="display: inline-block; '
            f'width: {6 * share:.2f}em; height: .7em; background: {COLOURS[role]}"></span> '
            f"{share:.3f}</td>"
            for role, share in (("expert", row.p_expert), ("codit", row.q))
        )
        rows.append(f"<tr><td><code>{html.escape(row.token)}</code></td>{cells}</tr>")
    head = "<tr><th>token</th><th>expert (direct)</th><th>q (CoDIT)</th></tr>"
    return f'<table class="dataframe">{head}{"".join(rows)}</table>'
