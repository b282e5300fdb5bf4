"""From sums to cosines: every group against the same numbers laid end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit.cosine_table import COLUMNS, Sums, cosine, table

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.experts.0.up_proj.weight",
    "model.layers.0.mlp.experts.0.down_proj.weight",
    "model.layers.0.mlp.experts.1.up_proj.weight",
    "model.layers.10.self_attn.q_proj.weight",
    "model.layers.2.self_attn.q_proj.weight",
    "lm_head.weight",
)
GROUPS = {
    ("layer", "0"): NAMES[1:6],
    ("layer", "2"): NAMES[7:8],
    ("layer", "10"): NAMES[6:7],
    ("module", "embed"): NAMES[:1],
    ("module", "experts"): NAMES[3:6],
    ("module", "head"): NAMES[8:],
    ("module", "norms"): NAMES[2:3],
    ("module", "q"): (NAMES[1], NAMES[6], NAMES[7]),
    ("expert", "0.0"): NAMES[3:5],
    ("expert", "0.1"): NAMES[5:6],
    ("global", "all"): NAMES,
    ("global", "body"): (NAMES[1], *NAMES[3:8]),
}


def vectors(seed: int) -> dict[str, np.ndarray]:
    """Two rows for each name: the update and the vector."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, rng.integers(1, 9))) for name in NAMES}


def sums(pair: np.ndarray) -> Sums:
    u, tau = pair
    return Sums(float(u @ tau), float(u @ u), float(tau @ tau), len(u))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_group_is_its_tensors_laid_end_to_end(seed: int) -> None:
    parts = vectors(seed)
    found = table({name: sums(pair) for name, pair in parts.items()}).set_index(["group", "name"])
    groups = {**GROUPS, **{("tensor", name): (name,) for name in NAMES}}
    assert set(found.index) == set(groups)
    whole = np.concatenate(list(parts.values()), axis=1)
    norms = np.linalg.norm(whole[0]) * np.linalg.norm(whole[1])
    for group, names in groups.items():
        u, tau = np.concatenate([parts[name] for name in names], axis=1)
        row = found.loc[group]
        sizes = np.linalg.norm(u), np.linalg.norm(tau)
        assert row["cosine"] == pytest.approx(u @ tau / (sizes[0] * sizes[1]), abs=1e-12)
        assert (row["norm_update"], row["norm_vector"]) == pytest.approx(sizes)
        assert (row["n"], row["weight"]) == (len(u), pytest.approx(sizes[0] * sizes[1] / norms))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_whole_is_the_weighted_sum_over_tensors_and_over_modules(seed: int) -> None:
    found = table({name: sums(pair) for name, pair in vectors(seed).items()})
    whole = found.loc[(found["group"] == "global") & (found["name"] == "all"), "cosine"].item()
    for group in ("tensor", "module"):
        rows = found[found["group"] == group]
        assert (rows["weight"] * rows["cosine"]).sum() == pytest.approx(whole, abs=1e-9)


def test_rows_come_in_a_fixed_order_whatever_that_of_the_tensors() -> None:
    given = {name: sums(pair) for name, pair in vectors(0).items()}
    found = table(given)
    assert found.equals(table(dict(reversed(given.items()))))
    assert tuple(found.columns) == COLUMNS
    order = [tuple(key) for key in found[["group", "name"]].itertuples(index=False)]
    assert order[len(NAMES) :] == list(GROUPS)
    assert order[len(NAMES) - 2 : len(NAMES)] == [("tensor", NAMES[7]), ("tensor", NAMES[6])]


def test_a_norm_of_zero_has_no_cosine_and_no_weight() -> None:
    found = table({"a.q_proj.weight": Sums(0.0, 0.0, 4.0, 3), "b.k_proj.weight": Sums(2, 1, 4, 3)})
    rows = found[found["group"] == "module"].set_index("name")
    assert math.isnan(rows.loc["q", "cosine"])
    assert rows["weight"].to_dict() == {"k": pytest.approx(2 / 8**0.5), "q": 0.0}
    assert found["cosine"].iloc[-1] == pytest.approx(2 / 8**0.5)
    nothing = table({"a": Sums(n=3)})
    assert nothing["cosine"].isna().all()
    assert nothing["weight"].isna().all()


def test_rounding_never_takes_a_cosine_out_of_range() -> None:
    assert cosine(Sums(3.0000000000000004, 3.0, 3.0, 1)) == 1.0
    assert cosine(Sums(-3.0000000000000004, 3.0, 3.0, 1)) == -1.0
