"""One prompt looked at closely: several answers, and what the contrast does at one step.

Source of all tables: ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from codit import decode
from codit.chat import Conversation
from codit.contrast import contrast
from codit.decode import Response
from codit.experiments import arm
from codit.pair import ContrastivePair
from codit.recipes import Decoding


def samples(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    chat: Conversation,
    decoding: Decoding,
    *,
    n: int,
) -> pd.DataFrame:
    """Return several answers to one prompt, direct beside CoDIT, with the same noise.

    Args:
        pair: the teacher.
        tokenizer: the expert's.
        chat: the conversation that asks.
        decoding: CoDIT's.
        n: answers per arm; answer k is drawn with sample number k.

    Returns:
        DataFrame: sample, direct, codit; texts.

    Raises:
        ValueError: see `decode.generate`.
    """
    columns: dict[str, list[str]] = {"direct": [], "codit": []}
    for name, texts in columns.items():
        for number in range(n):
            drawn = replace(arm(name, decoding), sample=number)
            (one,) = decode.generate(pair, tokenizer, [chat], drawn, ids=["0"], progress=False)
            texts.append(one.text)
    return pd.DataFrame(columns).rename_axis("sample").reset_index()


def disagreement(tokens: pd.DataFrame) -> int:
    """Return the step at which the contrast has most to choose.

    Among steps with more than one plausible token, the one of the largest
    |log p_expert - log p_amateur|; without such a step, the first.

    Args:
        tokens: a `decode.token_table`.

    Returns:
        int: the step, 0 for the first token.
    """
    gain = (tokens["logp_expert"] - tokens["logp_amateur"]).abs()
    open_ = gain[tokens["n_plausible"] > 1]
    return int(open_.idxmax()) if len(open_) else 0


@torch.no_grad()
def step_table(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    chat: Conversation,
    response: Response,
    step: int,
    *,
    n: int = 8,
) -> pd.DataFrame:
    """Return the next-token probabilities of expert, amateur and contrast at one step.

    Args:
        pair: the teacher.
        tokenizer: the expert's.
        chat: the conversation that asks.
        response: whose first `step` tokens stand before the step.
        step: 0 is the first token.
        n: tokens shown, by the expert's probability; at most the vocabulary.

    Returns:
        DataFrame: token, p_expert, p_amateur, q (0 outside the plausible set); most likely first.

    Source: ours; q as in `contrast.contrast`.
    """
    ids = decode.prompt_ids(tokenizer, chat) + response.token_ids[:step]
    expert, amateur = pair.both_logits(torch.tensor([ids]))
    expert, amateur = expert[:, -1].float(), amateur[:, -1].float()
    logq = contrast(expert, amateur, strength=pair.strength, plausibility=pair.plausibility)
    best = expert[0].topk(n).indices
    columns: dict[str, Any] = {"token": [tokenizer.decode([int(i)]) for i in best]}
    for name, logprobs in (("p_expert", expert), ("p_amateur", amateur), ("q", logq)):
        columns[name] = logprobs[0].softmax(-1)[best].tolist()
    return pd.DataFrame(columns)
