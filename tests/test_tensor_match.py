"""What two collections of tensors share, and that nothing else is passed over in silence."""

from __future__ import annotations

import re

import pytest
import torch

from codit.tensor_files import opened
from codit.tensor_match import check_finite, matched, subtract

FIRST = {
    "model.embed_tokens.weight": torch.ones(7, 2),
    "lm_head.weight": torch.ones(7, 3),
    "same": torch.ones(2, 2),
    "turned": torch.ones(2, 3),
    "kind": torch.ones(2),
    "only here": torch.ones(1),
}
SECOND = {
    "model.embed_tokens.weight": torch.ones(5, 2).bfloat16(),
    "lm_head.weight": torch.ones(7, 4),
    "same": torch.ones(2, 2).half(),
    "turned": torch.ones(3, 2),
    "kind": torch.ones(2, dtype=torch.int8),
    "only there": torch.ones(1),
}


def test_names_shapes_and_dtypes_decide_and_the_rest_is_reported() -> None:
    match = matched(opened(FIRST), opened(SECOND))
    assert match.shapes == {"model.embed_tokens.weight": (5, 2), "same": (2, 2)}
    assert match.missing == ["only there"]
    assert match.extra == ["only here"]
    assert match.mismatched == [
        ("kind", "F32 [2]", "torch.int8 [2]"),
        ("lm_head.weight", "F32 [7, 3]", "F32 [7, 4]"),
        ("turned", "F32 [2, 3]", "F32 [3, 2]"),
    ]
    assert match.cut == [("model.embed_tokens.weight", 7, 5, 5)]
    assert match.report()["matched"] == 2


def test_rows_cut_the_vocabulary_and_nothing_else() -> None:
    both = {"model.embed_tokens.weight": torch.ones(9, 2), "x.up_proj.weight": torch.ones(9, 2)}
    match = matched(opened(both), opened(both), rows=4)
    assert match.shapes == {"model.embed_tokens.weight": (4, 2), "x.up_proj.weight": (9, 2)}
    assert match.cut == [("model.embed_tokens.weight", 9, 9, 4)]
    assert matched(opened(both), opened(both), rows=100).cut == []


def test_a_difference_is_exact_where_float32_is_not() -> None:
    first, second = {"a": torch.tensor([1.0])}, {"a": torch.tensor([1e-9])}
    match = matched(opened(first), opened(second))
    tau = subtract(opened(first), opened(second), match)
    expected = first["a"].double() - second["a"].double()
    assert torch.equal(tau.read("a", (slice(0, 1),)), expected)
    assert expected.float().double() != expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: matched(opened({"a": torch.ones(1)}), opened({"b": torch.ones(1)})),
            "must share tensors of one name and shape; got 1 missing, 1 extra, 0 of another shape",
        ),
        (
            lambda: matched(opened(FIRST), opened(FIRST), rows=0),
            "rows must be at least 1; got 0. Give len(tokenizer).",
        ),
        (
            lambda: check_finite(torch.tensor([1.0, float("inf")]), "layer.weight"),
            "expected finite numbers in layer.weight; got NaN, infinity or an overflow.",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
