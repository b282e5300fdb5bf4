"""The chat vector: expert weights minus amateur weights, written, added and compared.

Notation
    theta   weights of a model, one tensor per name
    tau     theta_post - theta_pre, the chat vector
    u       phi_after - phi_before, the update of a student
    r       scale, how much of a vector is added
    d       how many numbers a vector has
Tensors are matched by name and streamed a block at a time, in float64. What cannot be matched is
reported, never left out in silence: in `DataFrame.attrs`, in a JSON file beside written weights,
and as a warning of the log. Rows of a vocabulary are matched by id: that two tokenizers agree is
what `codit.vocabulary.check_tokenizers` tells.
"""

from __future__ import annotations

import functools
import logging
import math
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from codit import addition, chat_files, cosine_table, tensor_files, vector_files
from codit.files import write_json
from codit.tensor_files import Block, Tensors
from codit.tensor_match import Match, check_finite, matched
from codit.vector_files import INFO, Vector, Weights

ADDITION = "addition.json"
"""What is known of a model that a vector was added to."""

log = logging.getLogger(__name__)


def difference(post: Weights, pre: Weights, out: str | Path, *, rows: int | None = None) -> Path:
    """Write the chat vector of a pair: a sharded safetensors folder in float32.

    tau = theta_post - theta_pre, subtracted in float64

    Args:
        post: theta_post, the expert.
        pre: theta_pre, the amateur.
        out: the folder to write, missing or empty. Beside the weights `chat_vector.json`: the
            expert's chat template and stop tokens, for `add`; the share of exact zeros (most small
            differences vanish in bfloat16), the share of numbers that theta_pre + tau gives back
            exactly, and what was not matched.
        rows: ids of the vocabulary; rows of embedding and head beyond are left out. None: those
            that both models have.

    Returns:
        Path: `out`.

    Raises:
        ValueError: models without a tensor in common, numbers that are not finite, or an `out`
            that is not empty.

    Source: Huang et al. 2023, Chat Vector: tau in float32; matching by name, and the rest: ours.
    """
    with tensor_files.staged(out) as folder:
        first, second = tensor_files.opened(post), tensor_files.opened(pre)
        match = matched(first, second, rows=rows)
        count: Counter[str] = Counter()

        def read(name: str, block: Block) -> Tensor:
            after, before = first.read(name, block), second.read(name, block).double()
            tau = (after.double() - before).float()
            check_finite(tau, name)
            count["numbers"] += tau.numel()
            count["zeros"] += int((tau == 0).sum())
            count["restored"] += int(((before + tau).to(after.dtype) == after).sum())
            return tau

        made = Tensors("tau", match.shapes, dict.fromkeys(match.shapes, "F32"), read)
        tensor_files.write(made, folder)
        chat = vector_files.chat_of(post)
        shares = {name: count[name] / count["numbers"] for name in ("zeros", "restored")}
        info = {"post": first.label, "pre": second.label, "numbers": count["numbers"], **shares}
        write_json(folder / INFO, info | _reported(match, "the vector") | {"chat": chat})
    return Path(out)


def add(
    target: str | Path,
    vector: Vector | list[tuple[Vector, float]],
    out: str | Path,
    *,
    scale: float = 1.0,
    skip_embed: bool = False,
) -> Path:
    """Write a model whose weights are a target's plus a chat vector.

    theta' = theta_target + scale * sum_i r_i tau_i, summed in float64, in the target's dtypes

    Args:
        target: folder or Hub name. Its config, generation config and tokenizer are copied; chat
            template and stop tokens are those of the last vector of positive scale that has them.
        vector: one, or a list of (vector, r_i).
        out: the folder to write, missing or empty; `addition.json` beside the weights tells what
            was not matched and the share of changes that the target's dtype rounded away.
        scale: r, any finite number. 0 gives the target, 1 the paper's, -1 takes a vector away;
            lower it where the target's own abilities suffer.
        skip_embed: leave embedding and head as they are, for a target with a vocabulary of its
            own.

    Returns:
        Path: `out`.

    Raises:
        ValueError: another architecture, a scale or results that are not finite, or an `out` that
            is not empty.

    Source: Huang et al. 2023, Chat Vector, and its code: scale, skip_embed.
    """
    several = vector if isinstance(vector, list) else [(vector, 1.0)]
    terms = [(part, scale * r) for part, r in several if scale * r]
    if not all(math.isfinite(r) for _, r in terms):
        raise ValueError(f"expected a finite scale; got {scale}. Usual is 1.")
    with tensor_files.staged(out) as folder:
        base = tensor_files.opened(target)
        parts = [(vector_files.opened(part), r) for part, r in terms]
        made = addition.plus(base, parts, skip_embed=skip_embed)
        tensor_files.write(made.tensors, folder)
        source = tensor_files.resolve(target)
        chat_files.copy(source, folder)
        chats = [part.chat for part, r in parts if r > 0 and part.chat]
        unknown = chat_files.write(folder, chats[-1] if chats else {})
        reports = [
            {"vector": p.tensors.label, "scale": r, **_reported(m, "the target"), "info": p.info}
            for (p, r), m in zip(parts, made.matches, strict=True)
        ]
        info = {"target": str(target), "skip_embed": skip_embed, "vectors": reports}
        changes = made.count["changes"]
        info |= {"changes": changes, "lost": made.count["lost"] / max(1, changes)}
        info["unknown_stop_tokens"] = unknown
        write_json(folder / ADDITION, info)
    return Path(out)


def cosines(update: Vector, vector: Vector, *, rows: int | None = None) -> pd.DataFrame:
    """Compare a student's update with a chat vector, tensor by tensor and pooled.

    cos = <u, tau> / (|u| |tau|), accumulated in float64

    Args:
        update: u. For (after, before) the difference is never written; so for tau.
        vector: tau.
        rows: ids of the vocabulary; rows of embedding and head beyond are left out. None: those
            that all have.

    Returns:
        DataFrame: as `codit.cosine_table.table`: group, name, cosine, norm_update, norm_vector, n,
        weight. Its `attrs`: `missing` (tensors of the vector that the update lacks), `extra`
        (the reverse), `mismatched` (name, update's, vector's dtype and shape), `cut` (name,
        update's rows, vector's rows, rows used), `matched` (tensors), `zero_norm` (tensors whose
        cosine is NaN), `zeros_update` and `zeros_vector` (share of exact zeros), `update` and
        `vector` (what is known of each, such as what a pair did not match).

    Raises:
        ValueError: nothing in common, numbers that are not finite, a model where a vector is
            expected.

    Source: the paper's Figs 3 and 7 plot the cosine between students' updates and the chat vector;
    granularity and the body without embeddings: ours. LoRA students: merge the adapter first.
    """
    u, tau = (vector_files.opened(source, rows=rows) for source in (update, vector))
    match = matched(u.tensors, tau.tensors, rows=rows)
    sums = {}
    for name, shape in tqdm(match.shapes.items(), "cosines", unit="tensor", disable=None):
        parts = (_sums(u.tensors, tau.tensors, name, b) for b in tensor_files.blocks(shape))
        sums[name] = sum(parts, cosine_table.Sums())
    table = cosine_table.table(sums)
    whole = sum(sums.values(), cosine_table.Sums())
    table.attrs.update(_reported(match, "the update"))
    table.attrs["zero_norm"] = [n for n, s in sums.items() if math.isnan(cosine_table.cosine(s))]
    table.attrs["zeros_update"] = whole.zeros_update / max(1, whole.n)
    table.attrs["zeros_vector"] = whole.zeros_vector / max(1, whole.n)
    table.attrs |= {"update": u.info, "vector": tau.info}
    return table


def permuted(vector: Vector, *, seed: int) -> Tensors:
    """Return a null for `cosines`: the vector with the numbers of each tensor in random order.

    Norms and distributions of every tensor stay; what remains of a cosine is no direction.

    Args:
        vector: tau.
        seed: of the orders; a tensor's depends on its name too, and on no other tensor.

    Returns:
        Tensors: float32, to be handed to `cosines` as the vector. One tensor at a time is held in
        memory.

    Source: ours.
    """
    tau = vector_files.opened(vector).tensors

    @functools.lru_cache(maxsize=1)
    def shuffled(name: str) -> Tensor:
        parts = (tau.read(name, b).float().flatten() for b in tensor_files.blocks(tau.shapes[name]))
        numbers = np.empty(math.prod(tau.shapes[name]), dtype=np.float32)
        start = 0
        for part in parts:
            numbers[start : start + len(part)] = part.numpy()
            start += len(part)
        np.random.default_rng([seed, zlib.crc32(name.encode())]).shuffle(numbers)
        return torch.from_numpy(numbers).reshape(tau.shapes[name])

    return replace(
        tau,
        label=f"{tau.label}, permuted",
        dtypes={n: "F32" if d in tensor_files.FLOATS else d for n, d in tau.dtypes.items()},
        read=lambda name, block: shuffled(name)[block],
    )


def chance(n: int) -> float:
    """Return the standard deviation of the cosine of two independent random directions.

    sd = 1 / sqrt(d), mean 0

    Args:
        n: d, how many numbers a direction has, at least 1.

    Returns:
        float: 1.1e-5 for 8.2e9 numbers. Weak evidence: any two updates of one model share
        structure, so compare with `permuted` and with other students too.

    Raises:
        ValueError: n below 1.

    Source: isotropic directions; ours.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}. Give the column n of `cosines`.")
    return 1.0 / math.sqrt(n)


def _sums(u: Tensors, tau: Tensors, name: str, block: Block) -> cosine_table.Sums:
    """Return what a block adds to the sums of its tensor."""
    a, b = (part.read(name, block).double().flatten() for part in (u, tau))
    found = (float(a @ b), float(a @ a), float(b @ b))
    if not all(map(math.isfinite, found)):
        check_finite(torch.tensor(found), name)
    n = a.numel()
    return cosine_table.Sums(*found, n, n - int(a.count_nonzero()), n - int(b.count_nonzero()))


def _reported(match: Match, what: str) -> dict[str, Any]:
    """Return what was not matched, and say it as a warning."""
    report = match.report()
    left_out = {k: v for k, v in report.items() if k != "matched" and v}
    if left_out:
        shown = "; ".join(f"{len(v)} {k}, {v[:3]}" for k, v in left_out.items())
        log.warning("%s: not all tensors were matched: %s", what, shown)
    return report
