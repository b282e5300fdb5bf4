"""From sums over single tensors to cosines of tensors, layers, modules, experts and the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from codit.tensor_names import OUTSIDE_BODY, expert_of, layer_of, module_of, natural

COLUMNS = ("group", "name", "cosine", "norm_update", "norm_vector", "n", "weight")


@dataclass(frozen=True)
class Sums:
    """<u, tau>, |u|^2, |tau|^2, how many numbers, and how many of each are exactly zero."""

    dot: float = 0.0
    update: float = 0.0
    vector: float = 0.0
    n: int = 0
    zeros_update: int = 0
    zeros_vector: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.dot + other.dot,
            self.update + other.update,
            self.vector + other.vector,
            self.n + other.n,
            self.zeros_update + other.zeros_update,
            self.zeros_vector + other.zeros_vector,
        )


def table(sums: Mapping[str, Sums]) -> pd.DataFrame:
    """Return cosines, norms and weights of every group of tensors.

    cos_m = <u_m, tau_m> / (|u_m| |tau_m|),  w_m = |u_m| |tau_m| / (|u| |tau|),
    cos = sum_m w_m cos_m over any partition m: tensors, or modules

    Args:
        sums: of every tensor, by name.

    Returns:
        DataFrame: columns `COLUMNS`, cosine NaN where a norm is zero. `group` is "tensor",
        "layer" (`name` its index; tensors outside layers are in no layer), "module", "expert"
        (`name` "layer.expert"), or "global" (`name` "all", or "body": without embedding, head and
        norms).

    Source: SPEC of this repository; the paper's granularity was not found. (ours)
    """
    groups: dict[tuple[str, str], Sums] = {}
    for name in sorted(sums, key=natural):  # an order of their own: files do not change the sums
        for group in _groups(name):
            groups[group] = groups.get(group, Sums()) + sums[name]
    whole = groups["global", "all"]
    order = {"tensor": 0, "layer": 1, "module": 2, "expert": 3, "global": 4}
    keys = sorted(groups, key=lambda key: (order[key[0]], natural(key[1])))
    rows = [(*key, *_row(groups[key], whole)) for key in keys]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def cosine(sums: Sums) -> float:
    """Return <u, tau> / (|u| |tau|).

    Args:
        sums: of a group.

    Returns:
        float: in [-1, 1]; NaN where a norm is zero.

    Source: ours.
    """
    norms = math.sqrt(sums.update) * math.sqrt(sums.vector)
    return min(1.0, max(-1.0, sums.dot / norms)) if norms else math.nan


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


def _row(sums: Sums, whole: Sums) -> tuple[float, float, float, int, float]:
    """Return the numbers of one row of the table."""
    update, vector = math.sqrt(sums.update), math.sqrt(sums.vector)
    norms = math.sqrt(whole.update) * math.sqrt(whole.vector)
    weight = update * vector / norms if norms else math.nan
    return cosine(sums), update, vector, sums.n, weight
