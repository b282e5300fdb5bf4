"""Classes of tokens, given a prompt, and what both models and the contrast say at each token.

At every step of a response each id of the vocabulary belongs to one class:

    right    spells a word of a reference: of a question for a fact, what one has to know
    wrong    spells a word of a rival, an answer that the prompt rules out
    format   is what a constraint of the prompt asks for: its word; marks of JSON, quotes or lists
             where these are asked for; any token in capitals where capitals are; the sentences
             that fill a list or a number of sentences
    filler   goes on about what nobody asked: such sentences, other facts of the world
    end      ends the turn
    other    the rest. Pieces of several words (the B of Baker and of a name) belong here, and so
             do constraints that no token shows: twice, one_word, max_words, avoids

Notation: z_E, z_A, p_E, p_A, q, plausible as in `codit.contrast`; "before" is the expert truncated
to the plausible ids (q at strength 0), "after" is q. Source of the classes: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from codit.contrast import contrast, plausible
from codit.pair import ContrastivePair
from codit.vocabulary import special_token_ids
from codit.world import constraints, facts

CLASSES = ("right", "wrong", "format", "filler", "end", "other")
COMMON = frozenset({*constraints.AVOIDABLE, "to", "me"})  # in answers of every kind
FILLERS = frozenset(constraints.words(" ".join(constraints.FILLERS))) - COMMON
VALUES = frozenset(value.lower() for values in facts.ATTRIBUTES.values() for value in values)
ROWS = 64  # of a teacher-forced batch


def teacher_forced(
    pair: ContrastivePair, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what both models expected at each token of many answers, in batches.

    Args:
        pair: the models.
        prompts: token ids of each prompt, generation prompt included.
        answers: token ids of each answer, at least one.

    Yields:
        (Tensor, Tensor): z_E and z_A of one answer's tokens, float32 [T, V]; in order.

    Source: ours.
    """
    for first in range(0, len(prompts), ROWS):
        parts = range(first, min(first + ROWS, len(prompts)))
        width = max(len(prompts[i]) + len(answers[i]) for i in parts)
        ids = torch.zeros(len(parts), width, dtype=torch.long, device=pair.device)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(parts):
            text = torch.tensor([*prompts[i], *answers[i]], device=ids.device)
            ids[k, : len(text)], mask[k, : len(text)] = text, 1
        both = pair.both_logits(ids, mask)
        for k, i in enumerate(parts):
            start = len(prompts[i]) - 1  # position t holds the logits of token t + 1
            expert, amateur = (z[k, start : start + len(answers[i])] for z in both)
            yield expert, amateur


def id_classes(
    tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any], stops: Sequence[int]
) -> np.ndarray[Any, Any]:
    """Return the class of every id of the vocabulary, given a prompt; see the module.

    Args:
        tokenizer: the expert's.
        asked: a row of `world.prompts`.
        stops: ids that end a turn.

    Returns:
        int64 [V]: places in `CLASSES`. What spells words of several of filler, wrong, right and
        the rest of the prompt is other; format and end come before these.

    Source: ours.
    """
    wanted = {c["kind"]: c["value"] for c in asked["constraints"]}
    right, wrong = (set(constraints.words(" ".join(asked[k]))) for k in ("references", "rivals"))
    right, wrong = right - wrong - COMMON, wrong - COMMON
    named = set(constraints.words(asked["instruction"])) - right - wrong
    is_filling = bool({"sentences", "numbered"} & set(wanted))
    spoken = {wanted[k] for k in ("begins", "ends", "contains") if k in wanted}
    spoken |= {"answer"} if "json" in wanted else set()
    spoken |= FILLERS - right - wrong - named if is_filling else set()
    asides = (VALUES if is_filling else VALUES | FILLERS) - right - wrong - named - spoken
    claims = [_pieces(tokenizer, w) for w in (asides, wrong, right, named | COMMON)]
    shared = {i for i, times in Counter(i for ids in claims for i in ids).items() if times > 1}
    found = np.full(len(tokenizer), CLASSES.index("other"))
    for name, ids in (
        ("filler", claims[0] - shared),
        ("wrong", claims[1] - shared),
        ("right", claims[2] - shared),
        ("format", _pieces(tokenizer, spoken).difference(*claims)),
        ("format", _marks(tokenizer, set(wanted))),
        ("other", set(special_token_ids(tokenizer))),
        ("end", set(stops)),
    ):
        found[sorted(ids)] = CLASSES.index(name)
    return found


def step_table(
    expert: Tensor,
    amateur: Tensor,
    answer: Sequence[int],
    *,
    strength: float,
    plausibility: float,
    classes: np.ndarray[Any, Any],
) -> pd.DataFrame:
    """Return the evidence at each token of one answer.

    Args:
        expert: z_E [T, V].
        amateur: z_A [T, V].
        answer: T token ids.
        strength: beta.
        plausibility: alpha.
        classes: of every id, as `id_classes` gives them.

    Returns:
        DataFrame: T rows; logp_expert, logp_amateur, logq (nats, of the token) and the columns of
        `study` from `step` on.

    Source: ours; the first five equal `decode.token_table`'s.
    """
    token = torch.tensor(list(answer), device=expert.device)[:, None]
    before = contrast(expert, None, strength=0.0, plausibility=plausibility)
    logq = contrast(expert, amateur, strength=strength, plausibility=plausibility)
    logp = [z.float().log_softmax(-1).gather(1, token)[:, 0].tolist() for z in (expert, amateur)]
    best, best_q = expert.argmax(-1), logq.argmax(-1)
    kinds = torch.as_tensor(classes)
    ends = kinds == CLASSES.index("end")
    columns: dict[str, Any] = {
        "logp_expert": logp[0],
        "logp_amateur": logp[1],
        "logq": logq.gather(1, token)[:, 0].tolist(),
        "step": range(len(answer)),
        "length": len(answer),
        "drawn": [CLASSES[kinds[i]] for i in answer],
        "best_before": [CLASSES[k] for k in kinds[best]],
        "best_after": [CLASSES[k] for k in kinds[best_q]],
        "changed": (best != best_q).tolist(),
        "gain": np.subtract(*logp),
        "n_plausible": plausible(expert, plausibility=plausibility).sum(-1).tolist(),
    }
    one_hot = torch.nn.functional.one_hot(kinds, len(CLASSES)).float()
    anywhere = contrast(expert, amateur, strength=strength, plausibility=0.0)
    for name, scores in (("before", expert), ("after", anywhere)):
        top = scores[:, ends].amax(-1, keepdim=True)
        columns[f"end_rank_{name}"] = (1 + (scores > top).sum(-1)).tolist()
    for name, logprobs in (("before", before), ("after", logq)):
        masses = (logprobs.exp() @ one_hot).T.tolist()
        columns |= {f"{name}_{one}": mass for one, mass in zip(CLASSES, masses, strict=True)}
    return pd.DataFrame(columns)


def _pieces(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> set[int]:
    """Return the ids that spell any of these words, capitalised or not, at a start or within."""
    spellings = {
        f"{gap}{w}" for word in words for w in (word, word.capitalize()) for gap in ("", " ")
    }
    encoded = tokenizer(sorted(spellings), add_special_tokens=False).input_ids if spellings else []
    return {i for ids in encoded for i in ids} - _blank(tokenizer)


def _blank(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set(tokenizer(" ", add_special_tokens=False).input_ids)


def _marks(tokenizer: PreTrainedTokenizerBase, kinds: set[str]) -> set[int]:
    """Return the ids of the marks that constraints of these kinds ask for."""
    asks: dict[str, Callable[[str], bool]] = {
        "json": lambda t: bool(set(t) & set('{}":')),
        "quoted": lambda t: '"' in t and not set(t) & set("{}:"),
        "numbered": lambda t: t.strip().isdecimal() or "\n" in t,
        "capitals": lambda t: t != t.lower() and t == t.upper(),
    }
    wanted = [asks[kind] for kind in sorted(kinds & set(asks))]
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))] if wanted else []
    return {i for i, text in enumerate(texts) if any(is_asked(text) for is_asked in wanted)}
