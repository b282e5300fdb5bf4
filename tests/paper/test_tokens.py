"""Classes of tokens, batched evidence that equals one answer's, tables that add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from codit import decode, world
from codit.engine.chat import prompt_ids
from codit.evaluation import quality
from codit.pair import load_tokenizer
from codit.paper import arms, make, plots, store, tables, tokens
from codit.paper.arms import Arm
from codit.paper.scales import Scale
from codit.paper.tokens import CLASSES, id_classes, step_table, teacher_forced
from codit.recipes import Decoding, HubPrompts
from codit.world.recipes import WorldPrompts
from tests import tiny

CHATS = [[{"role": "user", "content": text}] for text in ("the cat", "is it in the house? " * 3)]
SAME = ["logp_expert", "logp_amateur", "logq"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(store.repository() / "data" / "models" / "expert")


def spelled(tokenizer: Any, asked: dict[str, Any], text: str) -> list[tuple[str, str]]:
    """The tokens of a text with their classes."""
    classes = id_classes(tokenizer, asked, [tokenizer.eos_token_id])
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return [(tokenizer.decode([i]), CLASSES[classes[i]]) for i in ids]


def prompt(*constraints: str, **changes: Any) -> dict[str, Any]:
    """A question for a fact; constraints such as "begins lamp"."""
    told = [dict(zip(("kind", "value"), (*c.split(), ""), strict=False)) for c in constraints]
    row = {"instruction": "Which pet does Gumo have?", "references": ["cat"], "constraints": told}
    return {**row, "rivals": ["dog", "horse", "goat"], **changes}


# -- classes -------------------------------------------------------------------------------------


def test_a_token_is_right_wrong_filler_end_or_other(tokenizer: Any) -> None:
    found = dict(
        spelled(tokenizer, prompt(), " Gumo has a cat. A dog likes soup. I hope it helps.")
    )
    assert {t: found[t] for t in (" cat", " dog", " soup", " hope", " a", ".")} == {
        " cat": "right", " dog": "wrong", " soup": "filler", " hope": "filler",
        " a": "other", ".": "other",
    }  # fmt: skip
    assert found[tokenizer.eos_token] == "end"


def test_what_a_constraint_asks_for_is_format(tokenizer: Any) -> None:
    asked = prompt("begins lamp", "numbered 2", "quoted")
    found = dict(spelled(tokenizer, asked, '"1. Lamp, a cat.\n2. That is all."'))
    expected = {"1": "format", "\n": "format", "2": "format", " That": "format", " cat": "right"}
    assert {t: found[t] for t in expected} == expected
    unasked = dict(spelled(tokenizer, prompt(), '"1. Lamp, a cat.\n2. That is all."'))
    assert {unasked[t] for t in ("1", "\n", "2")} == {"other"}
    assert unasked[" That"] == "filler"


def test_capitals_are_format_where_they_are_asked_for(tokenizer: Any) -> None:
    text = "A CAT. a cat"
    shouted = spelled(tokenizer, prompt("capitals"), text)
    assert all(kind == "format" for token, kind in shouted if token.strip().isupper())
    assert (" cat", "right") in shouted
    assert "format" not in {kind for _, kind in spelled(tokenizer, prompt(), text)}


def test_json_asks_for_its_marks_and_its_key(tokenizer: Any) -> None:
    found = spelled(tokenizer, prompt("json"), '{"answer": "cat"}')
    kinds = {token: kind for token, kind in found if set(token) & set('{}":') or token == "answer"}
    assert kinds
    assert set(kinds.values()) == {"format"}


def test_a_piece_of_right_and_wrong_words_decides_nothing(tokenizer: Any) -> None:
    asked = prompt(references=["baker"], rivals=["brewer"], instruction="What work does Gumo do?")
    found = spelled(tokenizer, asked, "Baker")
    assert found[0] == ("B", "other")
    assert found[1][1] == "right"


# -- evidence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_a_batch_gives_each_answer_the_evidence_of_its_own_token_table(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, vocabulary = tiny.pair(architecture, strength=1.5, plausibility=0.02), tiny.tokenizer()
    monkeypatch.setattr("codit.paper.tokens.ROWS", 3)
    texts = ("the mat.", "on the house? on the mat. " * 2, "x", "ten")
    chats = [CHATS[k % 2] for k in range(len(texts))]
    answers = [vocabulary(text).input_ids for text in texts]
    prompts = [prompt_ids(vocabulary, chat) for chat in chats]
    classes = np.arange(len(vocabulary)) % len(CLASSES)
    numbers = {"strength": pair.strength, "plausibility": pair.plausibility}
    both = list(teacher_forced(pair, prompts, answers))
    assert len(both) == len(texts)
    for chat, answer, logits in zip(chats, answers, both, strict=True):
        alone = decode.token_table(pair, vocabulary, chat, answer)
        table = step_table(*logits, answer, classes=classes, **numbers)
        np.testing.assert_allclose(table[SAME], alone[SAME], atol=1e-5, rtol=1e-5)
        assert table["n_plausible"].tolist() == alone["n_plausible"].tolist()
        assert table["changed"].tolist() == alone["argmax_changed"].tolist()


def test_masses_and_ranks_are_those_of_the_distributions() -> None:
    expert, amateur = torch.tensor([[3.0, 2.0, 0.0, 2.5]]), torch.tensor([[3.5, 0.0, 0.5, 2.5]])
    classes = np.array([CLASSES.index(name) for name in ("right", "format", "other", "end")])
    (row,) = step_table(
        expert, amateur, [1], strength=1.0, plausibility=0.2, classes=classes
    ).to_dict("records")
    before = torch.tensor([3.0, 2.0, 2.5]).softmax(0)
    after = torch.tensor([-0.5, 2.0, 0.0]).softmax(0)
    names = ("right", "format", "end")
    assert [row[f"before_{n}"] for n in names] == pytest.approx(before.tolist())
    assert [row[f"after_{n}"] for n in names] == pytest.approx(after.tolist())
    assert (row["before_other"], row["after_other"], row["n_plausible"]) == (0, 0, 3)
    assert (row["drawn"], row["best_before"], row["best_after"]) == ("format", "right", "format")
    assert (row["changed"], row["end_rank_before"], row["end_rank_after"]) == (True, 2, 2)


# -- the study -----------------------------------------------------------------------------------


@pytest.fixture
def chosen(micro: Scale) -> Scale:
    prompts = replace(micro.prompts, n=40)
    return replace(micro, prompts=prompts, strengths=(0.0, 1.0), seeds=(0, 1))


def test_every_arm_is_read_under_its_own_contrast_and_direct_under_every(
    chosen: Scale, idle: Any
) -> None:
    recipe = replace(tokens.recipe(chosen), n=3, repeats=1)
    steps = tokens.study(recipe)
    read = steps.groupby(["read", "role"])["id"].nunique()
    assert set(read.index) == {
        ("own", "direct"), ("own", "truncated"), ("own", "codit"),
        ("direct", "truncated"), ("direct", "codit"),
    }  # fmt: skip
    assert (steps["family"] == "fact").groupby(steps["id"]).first().sum() == 3
    assert steps["id"].nunique() == 6
    assert set(steps["seed"]) == {0}
    for name in ("before_", "after_"):
        masses = steps[[c for c in steps if c.startswith(name)]].sum(axis=1)
        np.testing.assert_allclose(masses, 1, atol=0.01)
    own = steps[(steps["read"] == "own") & (steps["role"] == "direct")]
    other = steps[(steps["read"] == "direct") & (steps["role"] == "codit")]
    assert own[["id", "step", "drawn"]].to_numpy().tolist() == (
        other[["id", "step", "drawn"]].to_numpy().tolist()
    )
    assert not own["changed"].any()
    assert other["changed"].any()
    idle()
    pd.testing.assert_frame_equal(tokens.study(recipe), steps)


def test_steps_agree_with_the_token_table_of_the_response(chosen: Scale) -> None:
    recipe = replace(tokens.recipe(chosen), n=2, repeats=1)
    steps = tokens.study(recipe)
    arm = recipe.responses.arms[-1]
    pair, vocabulary = tokens._teacher(recipe.responses.pair)
    rows = {r["id"]: r for r in make.dataset(arms.data(recipe.responses, arm, 0))}
    mine = steps[(steps["read"] == "own") & (steps["role"] == "codit")]
    for id_, own in mine.groupby("id"):
        ids = tokens._answer(vocabulary, rows[id_])
        with pair.override(strength=1.0, plausibility=recipe.responses.decoding.plausibility):
            alone = decode.token_table(pair, vocabulary, rows[id_]["messages"][:-1], ids)
        gain = alone["logp_expert"] - alone["logp_amateur"]
        np.testing.assert_allclose(own["gain"], gain, rtol=2e-3, atol=1e-3)
        assert own["changed"].tolist() == alone["argmax_changed"].tolist()


def test_whole_texts_are_summarised_for_every_seed(chosen: Scale) -> None:
    recipe = replace(tokens.recipe(chosen), n=2, repeats=1)
    table = tokens.summaries(recipe)
    assert table["seed"].tolist() == [0, 1] * 3
    data = make.dataset(arms.data(recipe.responses, recipe.responses.arms[0], 1))
    assert table["distinct_2"][1] == quality.summarise(data)["distinct_2"]


def test_what_cannot_be_classified_is_refused(chosen: Scale) -> None:
    recipe = tokens.recipe(chosen)
    for change in ({"prompts": HubPrompts(n=4)}, {"arms": recipe.responses.arms[1:]}):
        with pytest.raises(ValueError, match="with the arm 'direct'; got"):
            tokens.study(replace(recipe, responses=replace(recipe.responses, **change)))


# -- tables --------------------------------------------------------------------------------------


def test_shifts_are_means_per_response_and_sum_to_nothing() -> None:
    masses = {f"{name}_{one}": [0.0, 0.0] for name in ("before", "after") for one in CLASSES}
    masses |= {"before_right": [1.0, 0.5], "before_other": [0.0, 0.5]}
    masses |= {"after_right": [1.0, 0.0], "after_other": [0.0, 1.0]}
    told = {"read": "own", "role": "codit", "strength": 1.0, "seed": 0, "family": "fact"}
    steps = pd.DataFrame({"id": ["a", "a"], **told, **masses})
    table = tokens.mass_shifts(steps, open_from=0).set_index("class")
    assert len(table) == len(CLASSES)
    assert table["shift"].to_dict() == dict.fromkeys(CLASSES, 0) | {"right": -0.25, "other": 0.25}
    assert table.loc["right", ["before", "after"]].tolist() == [0.75, 0.5]
    where_open = tokens.mass_shifts(steps).set_index("class")
    assert where_open["shift"].to_dict() == {"right": -0.5, "other": 0.5}
    assert where_open["steps"].tolist() == [1, 1]


def test_a_prompt_counts_once_however_many_rows_it_has() -> None:
    table = pd.DataFrame(
        {
            "id": ["a", "a", "a", "b", "c", "a"],
            "x": [1.0, 1.0, 1.0, 0.0, np.nan, 5.0],
            "arm": [*"ppppp", "q"],
        }
    )
    (row,) = tokens.prompt_means(table, "x", ["arm"]).to_dict("records")
    assert (row["arm"], row["value"], row["prompts"]) == ("p", 0.5, 2)
    assert row["low"] < 0.5 < row["high"]


def test_strengths_are_told_apart_at_one_plausibility() -> None:
    nan = float("nan")
    rows = [("direct", nan, nan), ("truncated", 0.3, nan), ("codit", 0.3, 1.0)]
    rows += [("greedy", nan, nan), ("truncated", 0.1, nan), ("codit", 0.1, 1.0)]
    table = pd.DataFrame(rows, columns=["role", "plausibility", "strength"])
    kept = tokens.along_strength(table, 0.3)
    assert kept["at"].tolist() == ["direct", "0", "1"]
    assert kept["strength"].tolist()[1:] == [0, 1]


def test_knowledge_and_reading_are_told_apart_and_means_leave_out_the_other() -> None:
    asked = world.prompts(WorldPrompts(n=120))
    ids = [row["id"] for row in asked]
    verdicts = pd.DataFrame({"id": ids * 2, "seed": [0] * 120 + [1] * 120, "role": "codit"})
    verdicts["correct"] = [row["family"] == "fact" for row in asked] * 2
    verdicts["obeyed"] = [1] * 240
    table = tokens.with_measures(verdicts, asked)
    assert set(table.loc[table["knowledge"].notna(), "family"]) == {"fact"}
    assert not {"fact", "analogy"} & set(table.loc[table["reading"].notna(), "family"])
    assert table["held"][0] == 1 / len(asked[0]["constraints"])
    bars = tables.bar_table(table, ["knowledge", "reading"]).set_index("measure")
    assert bars["value"].to_dict() == {"knowledge": 1, "reading": 0}
    assert bars.loc["knowledge", "prompts"] == sum(row["family"] == "fact" for row in asked)


def test_a_class_is_named_by_what_its_prompt_asks_for() -> None:
    found = tokens.kinds(
        pd.Series(["right", "right", "wrong", "end"]), pd.Series(["fact", "title", "fact", "fact"])
    )
    assert found.tolist() == ["right fact", "read", "wrong fact", "end"]


def test_the_study_is_of_direct_and_every_strength(chosen: Scale) -> None:
    made = tokens.recipe(chosen).responses
    assert made.arms[0] == Arm(role="direct")
    assert [arm.strength for arm in made.arms[1:]] == [None, 1.0]
    assert isinstance(made.decoding, Decoding)


def test_places_are_middles_of_equal_parts_of_a_response() -> None:
    steps = pd.DataFrame({"step": range(10), "length": 10})
    assert tokens.places(steps).tolist() == pytest.approx(
        [0.1] * 2 + [0.3] * 2 + [0.5] * 2 + [0.7] * 2 + [0.9] * 2
    )
    assert tokens.places(pd.DataFrame({"step": [0], "length": [1]})).tolist() == [0.5]


# -- pictures ------------------------------------------------------------------------------------


@pytest.fixture
def axes() -> Any:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def lines(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({**columns, "value": 0.5, "low": 0.4, "high": 0.6})


def test_lines_join_strengths_and_leave_direct_apart_at_the_left(axes: Any) -> None:
    table = lines(key=["end"] * 3, strength=[1.0, 0.0, float("nan")])
    plots.strength_lines(axes, table, by="key", keys=["end"])
    line, direct = (bar.lines[0] for bar in axes.containers)
    assert line.get_xdata().tolist() == [0, 1]
    assert direct.get_xdata()[0] < 0
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["direct", "0", "1"]
    assert axes.get_legend_handles_labels()[1] == ["end of turn"]


def test_a_key_without_a_style_is_refused_and_one_without_rows_left_out(axes: Any) -> None:
    table = lines(key=["end", "odd"], strength=[0.0, 0.0])
    with pytest.raises(ValueError, match="expected keys that have a style.*got odd"):
        plots.strength_lines(axes, table, by="key", keys=["odd"])
    plots.strength_lines(axes, table, by="key", keys=["end", "filler"])
    assert axes.get_legend_handles_labels()[1] == ["end of turn"]


def test_a_line_over_places_is_darker_where_the_contrast_is_stronger(axes: Any) -> None:
    table = lines(strength=[1.0, 1.0, 2.0, 2.0], place=[0.25, 0.75] * 2)
    plots.place_lines(axes, table)
    weak, strong = (sum(to_rgb(bar.lines[0].get_color())) for bar in axes.containers)
    assert strong < weak
    plots.legend_beside(axes, "whiskers")
    assert axes.get_legend().get_title().get_text() == "whiskers"
