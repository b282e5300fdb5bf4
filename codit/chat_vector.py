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
what `codit.engine.chat.check_tokenizers` tells. The method is Huang et al.'s Chat Vector (2023);
cosines of updates: the paper's Figs 3 and 7. Values and choices without a source are ours.
"""

from __future__ import annotations

import functools
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from codit.files import write_json
from codit.weights import tensors
from codit.weights import vector as vector_files
from codit.weights.names import OUTSIDE_BODY, VOCABULARY, expert_of, layer_of, module_of, natural
from codit.weights.tensors import FLOATS, Block, Shape, Tensors
from codit.weights.vector import INFO, Match, Opened, Vector, Weights, check_finite, matched

Sums: TypeAlias = Annotated[
    np.ndarray[Any, Any],
    "<u, tau>, |u|^2, |tau|^2, how many numbers, how many of u and of tau are 0: float64 [6]",
]

COLUMNS = ("group", "name", "cosine", "norm_update", "norm_vector", "n", "weight")
ADDITION = "addition.json"
"""What is known of a model that a vector was added to."""

log = logging.getLogger(__name__)


def difference(
    post: Weights,
    pre: Weights,
    out: str | Path,
    *,
    rows: int | None = None,
    partial: bool = False,
) -> Path:
    """Write the chat vector of a pair, and return `out`: a sharded safetensors folder in float32.

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
        partial: leave out tensors of the body that only one has or that differ in shape.

    Raises:
        ValueError: no tensor in common, without `partial` not all of the body, numbers that are not
            finite, or `out` is not empty.
    """
    with tensors.staged(out) as folder:
        first, second = tensors.opened(post), tensors.opened(pre)
        match = matched(first, second, rows=rows, partial=partial)
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
        tensors.write(made, folder)
        chat = vector_files.read_chat(post)
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
    """Write a model whose weights are a target's plus a chat vector, and return `out`.

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

    Raises:
        ValueError: another architecture, a scale or results that are not finite, or `out` is not
            empty.
    """
    several = vector if isinstance(vector, list) else [(vector, 1.0)]
    terms = [(part, scale * r) for part, r in several if scale * r]
    if not all(math.isfinite(r) for _, r in terms):
        raise ValueError(f"expected a finite scale; got {scale}. Usual is 1.")
    with tensors.staged(out) as folder:
        base = tensors.opened(target)
        opened = [(vector_files.opened(part), r) for part, r in terms]
        parts = [(part, r, _addable(part.tensors, base, skip_embed)) for part, r in opened]
        count: Counter[str] = Counter()
        tensors.write(_sum(base, parts, count), folder)
        vector_files.copy_files(tensors.resolve(target), folder)
        chats = [part.chat for part, r, _ in parts if r > 0 and part.chat]
        unknown = vector_files.write_chat(folder, chats[-1] if chats else {})
        reports = [
            {"vector": p.tensors.label, "scale": r, **_reported(m, "the target"), "info": p.info}
            for p, r, m in parts
        ]
        info = {"target": str(target), "skip_embed": skip_embed, "vectors": reports}
        info |= {"changes": count["changes"], "lost": count["lost"] / max(1, count["changes"])}
        write_json(folder / ADDITION, info | {"unknown_stop_tokens": unknown})
    return Path(out)


def cosines(
    update: Vector, vector: Vector, *, rows: int | None = None, partial: bool = False
) -> pd.DataFrame:
    """Compare a student's update with a chat vector, tensor by tensor and pooled.

    cos = <u, tau> / (|u| |tau|), accumulated in float64

    Args:
        update: u. For (after, before) the difference is never written; so for tau. LoRA students:
            merge the adapter first.
        vector: tau.
        rows: ids of the vocabulary; rows of embedding and head beyond are left out. None: those
            that all have.
        partial: leave out tensors of the body that not all have, or not in one shape.

    Returns:
        DataFrame: as `table` returns it. Its `attrs`: `missing` (tensors of the vector that the
        update lacks), `extra` (the reverse), `mismatched` (name, update's, vector's dtype and
        shape), `cut` (name, update's rows, vector's rows, rows used), `unloaded` (tensors that
        transformers leaves in the files), `matched` (tensors),
        `zero_norm` (tensors whose cosine is NaN), `zeros_update` and `zeros_vector` (share of exact
        zeros), `update` and `vector` (what is known of each, such as what a pair did not match).

    Raises:
        ValueError: nothing in common, without `partial` not all of the body, numbers that are not
            finite, a model in place of a vector.
    """
    u, tau = (vector_files.opened(v, rows=rows, partial=partial) for v in (update, vector))
    match = matched(u.tensors, tau.tensors, rows=rows, partial=partial)
    sums = {}
    for name, shape in tqdm(match.shapes.items(), "cosines", unit="tensor", disable=None):
        parts = (_sums(u.tensors, tau.tensors, name, b) for b in tensors.blocks(shape))
        sums[name] = sum(parts, np.zeros(6))
    found = table(sums)
    _, _, _, n, zeros_update, zeros_vector = sum(sums.values(), np.zeros(6))
    found.attrs.update(_reported(match, "the update"))
    found.attrs["zero_norm"] = [n for n, s in sums.items() if math.isnan(_cosine(s))]
    found.attrs["zeros_update"] = float(zeros_update / max(1, n))
    found.attrs["zeros_vector"] = float(zeros_vector / max(1, n))
    found.attrs |= {"update": u.info, "vector": tau.info}
    return found


def table(sums: Mapping[str, Sums]) -> pd.DataFrame:
    """Return cosines, norms and weights of every group of tensors, given the sums of each tensor.

    cos_m = <u_m, tau_m> / (|u_m| |tau_m|),  w_m = |u_m| |tau_m| / (|u| |tau|),
    cos = sum_m w_m cos_m over any partition m: tensors, or modules

    Returns:
        DataFrame: columns `COLUMNS`, cosine NaN where a norm is zero. `group` is "tensor",
        "layer" (`name` its index; tensors outside layers are in no layer), "module", "expert"
        (`name` "layer.expert"), or "global" (`name` "all", or "body": without embedding, head and
        norms). The paper does not tell its granularity.
    """
    groups: dict[tuple[str, str], Sums] = {}
    for name in sorted(sums, key=natural):  # an order of their own: files do not change the sums
        for group in _groups(name):
            groups[group] = groups.get(group, np.zeros(6)) + sums[name]
    whole = groups["global", "all"]
    order = {"tensor": 0, "layer": 1, "module": 2, "expert": 3, "global": 4}
    keys = sorted(groups, key=lambda key: (order[key[0]], natural(key[1])))
    rows = [(*key, *_row(groups[key], whole)) for key in keys]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def permuted(vector: Vector, *, seed: int) -> Tensors:
    """Return a null for `cosines`: the vector with the numbers of each tensor in random order.

    Norms and distributions of every tensor stay; what remains of a cosine is no direction. In
    float32, one tensor at a time in memory. An order depends on `seed` and the tensor's name.
    """
    tau = vector_files.opened(vector).tensors

    @functools.lru_cache(maxsize=1)
    def shuffled(name: str) -> Tensor:
        parts = (tau.read(name, b).float().flatten() for b in tensors.blocks(tau.shapes[name]))
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
        dtypes={n: "F32" if d in FLOATS else d for n, d in tau.dtypes.items()},
        read=lambda name, block: shuffled(name)[block],
    )


def chance(n: int) -> float:
    """Return the standard deviation of the cosine of two independent directions of n numbers.

    sd = 1 / sqrt(d), mean 0: 1.1e-5 for 8.2e9 numbers. Weak evidence: any two updates of one model
    share structure, so compare with `permuted` and with other students too.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}. Give the column n of `cosines`.")
    return 1.0 / math.sqrt(n)


def _sum(base: Tensors, parts: list[tuple[Opened, float, Match]], count: Counter[str]) -> Tensors:
    """Return theta' = theta + sum_i r_i tau_i in the dtypes of theta, computed when it is read.

    What no vector touches keeps its bytes, and so does a number where the change is zero. Counted:
    "changes", numbers that a vector moves; "lost", those that the dtype rounds back.
    """

    def read(name: str, block: Block) -> Tensor:
        old = base.read(name, block)
        used = [part for part in parts if name in part[2].shapes]
        if not used:
            return old
        change = torch.zeros(old.shape, dtype=torch.float64)
        for part, r, match in used:
            _accumulate(change, part.tensors, name, block, match.shapes[name], r)
        new = torch.where(change == 0, old, (old.double() + change).to(old.dtype))
        check_finite(new, name)
        count["changes"] += int((change != 0).sum())
        count["lost"] += int(((change != 0) & (new == old)).sum())
        return new

    return replace(base, read=read)


def _addable(tau: Tensors, base: Tensors, skip_embed: bool) -> Match:
    """Match a vector with what it is added to; a part of an architecture is not enough."""
    if skip_embed:
        tau, base = (
            replace(t, shapes={n: s for n, s in t.shapes.items() if module_of(n) not in VOCABULARY})
            for t in (tau, base)
        )
    match = matched(tau, base, partial=True)
    if match.mismatched:
        name, got, expected = match.mismatched[0]
        raise ValueError(
            f"expected {expected} of {name}, as {base.label} has it; got {got}, and "
            f"{len(match.mismatched)} tensors of another shape or dtype. A chat vector fits its "
            "own architecture only; for another vocabulary pass skip_embed=True."
        )
    if match.lost:
        raise ValueError(
            f"expected {base.label} to have the tensors of {tau.label}; got {len(match.lost)} that "
            f"only one of them has, such as {match.lost[0]}. A chat vector can be added within one "
            "architecture only."
        )
    return match


def _accumulate(
    change: Tensor, tau: Tensors, name: str, block: Block, shape: Shape, r: float
) -> None:
    """Add r times the vector's part of a block, whose last rows the vector may lack."""
    common = tuple(slice(b.start, min(b.stop, n)) for b, n in zip(block, shape, strict=True))
    if all(part.start < part.stop for part in common):
        inside = tuple(slice(0, part.stop - part.start) for part in common)
        change[inside] += r * tau.read(name, common).double()


def _groups(name: str) -> Iterator[tuple[str, str]]:
    """Yield every group that a tensor belongs to."""
    module, layer, expert = module_of(name), layer_of(name), expert_of(name)
    yield "tensor", name
    yield "module", module
    yield "global", "all"
    if layer is not None:
        yield "layer", str(layer)
    if expert is not None:
        yield "expert", expert
    if module not in OUTSIDE_BODY:
        yield "global", "body"


def _cosine(sums: Sums) -> float:
    """Return <u, tau> / (|u| |tau|), in [-1, 1]; NaN where a norm is zero."""
    norms = math.sqrt(sums[1]) * math.sqrt(sums[2])
    return min(1.0, max(-1.0, float(sums[0]) / norms)) if norms else math.nan


def _row(sums: Sums, whole: Sums) -> tuple[float, float, float, int, float]:
    """Return the numbers of one row of the table."""
    update, vector = math.sqrt(sums[1]), math.sqrt(sums[2])
    norms = math.sqrt(whole[1]) * math.sqrt(whole[2])
    weight = update * vector / norms if norms else math.nan
    return _cosine(sums), update, vector, int(sums[3]), weight


def _sums(u: Tensors, tau: Tensors, name: str, block: Block) -> Sums:
    """Return what a block adds to the sums of its tensor."""
    a, b = (part.read(name, block).double().flatten() for part in (u, tau))
    found = (float(a @ b), float(a @ a), float(b @ b))
    if not all(map(math.isfinite, found)):
        check_finite(torch.tensor(found), name)
    n = a.numel()
    return np.array([*found, n, n - int(a.count_nonzero()), n - int(b.count_nonzero())])


def _reported(match: Match, what: str) -> dict[str, Any]:
    """Return what was not matched, and say it as a warning."""
    report = match.report()
    left_out = {k: v for k, v in report.items() if k != "matched" and v}
    if left_out:
        shown = "; ".join(f"{len(v)} {k}, {v[:3]}" for k, v in left_out.items())
        log.warning("%s: not all tensors were matched: %s", what, shown)
    return report
