"""CTD and its rivals on the micro world: ways in which one model answers, and what they change.

A way answers greedily: the model alone, or against a second view of itself. Source of the methods:
CTD ("Achieving Stronger Generation via Simple Contrastive Tuning") and instructive decoding
(arXiv 2311.00233). Values and choices without a source are ours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch

from codit import decode, world
from codit.contrastive_tuning import WORDINGS
from codit.evaluation import tasks
from codit.paper import make, store
from codit.paper.arms import greedy_decoding
from codit.paper.scales import Scale
from codit.recipes import Evaluation, Recipe, Tuning, View
from codit.world.constraints import words
from codit.world.recipes import Answers, WorldPrompts

STRENGTHS = (0.1, 0.3, 0.5, 0.7)  # beta; which one gave the paper's Table 1 is not known
RATES = (9e-4, 1e-2, 5e-2)  # the paper's, which hardly moves a prefix of 128 numbers, and larger
INSTRUCTIVE = 0.3  # epsilon; the authors of instructive decoding
SEEDS = 3  # of the scale's, the first ones: what is tuned costs most
KEPT = "CTD kept scale 0.5"
TEXTS = 10  # prompts of a split whose answers a table keeps, of the first seed


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which a model answers.

    Args:
        name: what tables call it.
        view: what it reads a second time; None: nothing, plain greedy decoding.
        strength: of the second view, beta.
    """

    name: str
    view: View | None = None
    strength: float = 0.0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class ViewStudy:
    """Verdicts on a model's answers: every way, held-out set and seed.

    A seed moves the start of a prefix, the order of its rows, and the words that a wording draws.
    """

    model: Recipe
    ways: tuple[Way, ...]
    tests: tuple[tuple[str, WorldPrompts], ...]
    seeds: tuple[int, ...] = (0,)
    max_new_tokens: int = 96
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class TokenStudy:
    """Every token of the answers of a study's ways to its last held-out set."""

    study: ViewStudy
    version: ClassVar[int] = 1


def tuning(chosen: Scale, model: Recipe, *, ideal: float | None = None, **changes: Any) -> Tuning:
    """Return how a prefix of a teacher's expert is tuned: on rows of its own post-training data.

    `ideal`: their share of ideal answers; None: the expert's own mixture. `changes`: other fields
    of `Tuning`, or `n`, the number of rows.
    """
    values = dict(chosen.tuning) | changes
    values.pop("prompts")
    own = replace(model.data, prompts=replace(model.data.prompts, n=values.pop("n")))
    data: Answers = own if ideal is None else replace(own, ideal_share=ideal)
    return Tuning(base=model, data=data, **values)


def ways(chosen: Scale, teacher: str = "A") -> tuple[Way, ...]:
    """Return the ways that the results table compares, for one teacher's expert."""
    model = chosen.teachers[teacher].expert
    tuned = functools.partial(tuning, chosen, model)
    ctd, kept = View(base=model, prefix=tuned()), View(base=model, prefix=tuned(keeps_scale=True))
    ideal = View(base=model, prefix=tuned(ideal=1.0))
    prompt = [tuned(contrasts=False), tuned(contrasts=False, ideal=1.0)]
    own, best = (View(base=model, prefix=one, alone=True) for one in prompt)
    return (
        Way(name="OD"),
        *(
            Way(name=f"ID {w}", view=View(base=model, wording=w), strength=INSTRUCTIVE)
            for w in WORDINGS
        ),
        Way(name="PT", view=own),
        Way(name="PT ideal", view=best),
        *(Way(name=f"CTD {b:g}", view=ctd, strength=b) for b in STRENGTHS),
        Way(name="CTD ideal 0.3", view=ideal, strength=0.3),
        *(Way(name=f"CTD kept scale {b:g}", view=kept, strength=b) for b in (0.3, 0.5)),
        Way(name="second view", view=replace(ctd, alone=True)),
        Way(name="second view, kept scale", view=replace(kept, alone=True)),
    )


def results(chosen: Scale, teacher: str = "A") -> ViewStudy:
    """Return the study of notebooks 31 and 33. Source: CTD, Tables 1 and 5, Figures 3, 4, 11."""
    return _study(chosen, teacher, ways(chosen, teacher))


def training(chosen: Scale) -> ViewStudy:
    """Return the study of notebook 32: other data, fewer rows and epochs, all at strength .3.

    Source: CTD, Figures 5, 8, 9 and 10.
    """
    model = chosen.pair.expert
    tuned = functools.partial(tuning, chosen, model)
    n, epochs = chosen.tuning["n"], chosen.tuning["epochs"]
    prefixes = {f"epochs {k:g}": tuned(epochs=k) for k in (epochs / 2, epochs, 2 * epochs)}
    prefixes |= {f"rows {rows}": tuned(n=rows) for rows in (n // 10, n // 3, n)}
    prefixes |= {"careless": tuned(ideal=0.0), "ideal": tuned(ideal=1.0)}
    shown = [
        Way(name=f"{method} {name}", view=View(base=model, prefix=one, alone=alone), strength=b)
        for name, prefix in prefixes.items()
        for method, alone, b, one in (
            ("CTD", False, 0.3, prefix),
            ("PT", True, 0.0, replace(prefix, contrasts=False)),
        )
        if method == "CTD" or name.startswith("rows")
    ]
    return _study(chosen, "A", (Way(name="OD"), *shown))


def rates(chosen: Scale) -> ViewStudy:
    """Return the study that chooses the learning rate: dev prompts, the first seed, teacher A."""
    model = chosen.pair.expert
    prefixes = {rate: tuning(chosen, model, learning_rate=rate) for rate in RATES}
    shown = [
        Way(name=f"CTD rate {rate:g}", view=View(base=model, prefix=prefix), strength=0.3)
        for rate, prefix in prefixes.items()
    ]
    assert chosen.dev is not None
    study = _study(replace(chosen, tests=(("dev", chosen.dev),)), "A", (Way(name="OD"), *shown))
    return replace(study, seeds=chosen.seeds[:1])


def tokens(chosen: Scale) -> TokenStudy:
    """Return the study of notebook 34. Source: CTD, Figures 6 and 7."""
    study, names = results(chosen), ("OD", "ID opposite", "ID none", "CTD 0.3", KEPT)
    return TokenStudy(study=replace(study, ways=tuple(w for w in study.ways if w.name in names)))


def _study(chosen: Scale, teacher: str, ways: tuple[Way, ...]) -> ViewStudy:
    return ViewStudy(
        model=chosen.teachers[teacher].expert,
        ways=ways,
        tests=tuple((k, replace(p, n=min(p.n, chosen.tuning["prompts"]))) for k, p in chosen.tests),
        seeds=chosen.seeds[:SEEDS],
        max_new_tokens=chosen.decoding.max_new_tokens,
    )


def evaluations(study: ViewStudy) -> Iterator[tuple[dict[str, Any], Evaluation]]:
    """Yield every evaluation of a study with what tells it from the others: way, seed, split.

    A way that no seed moves is answered once, and stands once per seed.
    """
    for way in study.ways:
        for seed in study.seeds:
            model = study.model if way.view is None else _seeded(way.view, seed)
            greedy = replace(greedy_decoding(study.max_new_tokens), strength=way.strength)
            for split, prompts in study.tests:
                told = {"way": way.name, "strength": way.strength, "seed": seed, "split": split}
                yield told, Evaluation(model=model, prompts=prompts, decoding=greedy)


def _seeded(view: View, seed: int) -> View:
    if view.prefix is not None:
        return replace(view, prefix=replace(view.prefix, seed=seed))
    return replace(view, seed=seed if view.wording in ("truncated", "random") else 0)


def verdicts(study: ViewStudy) -> pd.DataFrame:
    """Return every verdict of a study, one row an answer.

    Columns: arm (the way), role, strength, plausibility (NaN), seed, split, id, family, rouge
    (Rouge-L F against the ideal answer, with stems), exact (the ideal answer but for case and
    marks), response (of the first `TEXTS` prompts of the first seed, else empty) and those of
    `make.study`.
    """
    table = make.readable(store.table(study, _verdicts, "verdicts"))
    return table.rename(columns={"way": "arm"}).assign(
        role=table["way"].map(role), plausibility=float("nan")
    )


def role(way: str) -> str:
    """Return whose colour, of `figures.COLOURS`, a way has."""
    if "kept scale" in way:
        return "kept-scale"
    names = {"OD": "greedy", "ID": "instructive", "PT": "prompt-tuning"}
    return names.get(way.split()[0], "ctd")


def _verdicts(study: ViewStudy) -> pd.DataFrame:
    def parts() -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        for told, evaluation in evaluations(study):
            asked = world.prompts(evaluation.prompts)
            table = make.answers(evaluation)
            ideal = [row["ideal"] for row in asked]
            said = table["response"].fillna("")
            pairs = list(zip(ideal, said, strict=True))
            kept = table[["id", "family", *make.KEPT]].assign(
                rouge=[tasks.rouge_l(other, [one]) for one, other in pairs],
                exact=[words(one) == words(other) for one, other in pairs],
                response=said.where((table.index < TEXTS) & (told["seed"] == study.seeds[0]), ""),
            )
            yield told, kept.astype({"rouge": "float16"})

    return make.compact(parts())


def steps(recipe: TokenStudy) -> pd.DataFrame:
    """Return every token that the ways drew, one row a token.

    Columns: way, seed, id, step, top (the model's own largest probability there), changed (the
    token is not the model's own most likely one), before (that one), after (the token).
    """
    return store.table(recipe, _steps, "tokens")


def _steps(recipe: TokenStudy) -> pd.DataFrame:
    study = replace(recipe.study, tests=recipe.study.tests[-1:])
    model, tokenizer = make.load_model(study.model)
    parts = []
    for told, evaluation in evaluations(study):
        asked = world.prompts(evaluation.prompts)
        chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
        view = evaluation.model
        decoder = make.views_of(view, asked)[0] if isinstance(view, View) else model
        answers = decode.generate(
            decoder, tokenizer, chats, evaluation.decoding, progress=False, engine="static"
        )
        for row, chat, answer in zip(asked, chats, answers, strict=True):
            before = decode.prompt_ids(tokenizer, chat)
            ids = torch.tensor([before + answer.token_ids])
            with torch.no_grad():
                own = model(input_ids=ids).logits[0, len(before) - 1 : -1].float()
            best = own[:, : len(tokenizer)].softmax(-1).max(-1)
            parts.append(
                pd.DataFrame(
                    {
                        **{name: told[name] for name in ("way", "seed")},
                        "id": row["id"],
                        "step": range(len(answer.token_ids)),
                        "top": best.values,
                        "before": tokenizer.convert_ids_to_tokens(best.indices.tolist()),
                        "after": tokenizer.convert_ids_to_tokens(answer.token_ids),
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    table["changed"] = table["before"] != table["after"]
    return table.astype({"top": "float16", "step": "int16", "seed": "int16"})


def won(table: pd.DataFrame, ways: Sequence[str], base: str, *, measure: str) -> pd.DataFrame:
    """Return on how many families each way is above, equal to and below another, in a mean.

    Columns: arm, won, tied, lost: shares of families. Source: CTD, Figure 3; ties apart: ours.
    """
    means = table.groupby(["arm", "family"], sort=False)[measure].mean().unstack()
    rows = []
    for way in ways:
        apart = (means.loc[way] - means.loc[base]).round(6)
        shares = {"won": (apart > 0).mean(), "tied": (apart == 0).mean()}
        rows.append({"arm": way, **shares, "lost": (apart < 0).mean()})
    return pd.DataFrame(rows)
