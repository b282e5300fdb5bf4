"""What ships with the repository: models, tables of results, and what pages say of the figures.

`python -m codit.paper.shipped models` trains the embedded checkpoints again (about 20 minutes of
one CPU core each) into `data/models/`; `tables` makes what is missing of the tables of scale `full`
(hours the first time; killed, it goes on) into `data/results/`: the store finds both by their
recipes' keys. `claims` writes the README's table of figures and `figures/README.md` from what
stands beside the committed figures: nobody types a verdict, and a test compares them. Values
without a source are ours.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import tyro
from huggingface_hub import ModelCard, ModelCardData

from codit import student, world
from codit.dataset import workers
from codit.engine.models import load_tokenizer, read_model
from codit.files import replacing, write_json
from codit.paper import (
    arms,
    cosines,
    ctd,
    figures,
    heads,
    judges,
    real,
    scales,
    store,
    tokens,
    transfer,
)
from codit.paper import make as makers
from codit.paper import tables as paper_tables
from codit.paper.scales import Scale
from codit.recipes import Model, Training
from codit.world import judge
from codit.world.pretraining import encoded
from codit.world.recipes import JUDGES, Pretraining, WorldJudge, WorldPrompts

HELD_OUT_TEXT = 1_000_000  # seed of documents that no recipe trains on
DOCUMENTS = 100
PROMPTS = 100
GREEDY_TOKENS = 96
JUDGED = 200
TOO_LARGE = 3_000_000  # bytes of one table; a clone should stay quick
WORDS = figures.WORDS
MARKS = (
    "<!-- figures: written by `python -m codit.paper.shipped claims` -->",
    "<!-- end of figures -->",
)
# What the paper says, the figure that holds our claims of it, how their statements begin.
PAPER = (
    (
        "Contrastive responses score higher (Figures 2, 4)",
        "01_score_distribution",
        "At every plausibility they score higher than direct",
    ),
    (
        "Students gain at every α (Figures 5, 6)",
        "02_alpha_tuning",
        "Students answer more prompts in full than those of direct sampling, at every",
    ),
    (
        "Students follow instructions better (results table)",
        "03_student_sft",
        "CoDIT's students answer more prompts in full",
    ),
    (
        "Students move along the chat vector τ (Figures 3, 7)",
        "04_chat_vector_cosine",
        "CoDIT's students move along τ more than direct",
    ),
    (
        "Contrast suppresses shared knowledge and amplifies instruction-following (its reason)",
        "05_knowledge_or_instruction",
        "Contrast ",
    ),
    (
        "So τ is distilled from weights into text (Equations 1–6)",
        "06_first_order",
        "Contrastive text points further along τ than direct",
    ),
)
CLAIMS = """\
# Figures and claims

Every statement that a notebook evaluates, the paper's and ours, on the committed results of scale
`full`. *holds*: our numbers support it; *does not*: they speak against it; *undecided*: the
numbers do not decide. Beside each PNG lie the same picture as PDF, the plotted numbers as CSV, and
as JSON what they were made from. `python -m codit.paper.shipped claims` writes this page.

| figure | claim | source | found | verdict |
| --- | --- | --- | --- | --- |
"""

Recipe: TypeAlias = Pretraining | Training | WorldJudge
Made: TypeAlias = tuple[Any, Callable[[Any], object]]  # a recipe and what makes its table
Names: TypeAlias = Annotated[tuple[str, ...], tyro.conf.Positional]


def models() -> dict[str, Recipe]:
    """Return the recipe of every embedded model by its folder's name, bases first."""
    bases = scales.bases()
    base = bases["amateur"]
    experts = {"expert": scales.expert(base), "expert-b": scales.second_expert(base)}
    return {**bases, **experts, **dict(zip(("judge", "judge-b"), JUDGES, strict=True))}


def folder(name: str) -> Path:
    """Return where a model or a table lies, whether it has been made or not."""
    kind = "models" if name in models() else "results"
    return store.repository() / "data" / kind / name


def embed(name: str, *, fresh: bool = False) -> Path:
    """Make an embedded model, evaluate it, put it into `data/models/`, and return its folder.

    There are then model, tokenizer, training log, `evaluation.json`, model card, manifest. `fresh`
    trains it even where a result of its recipe exists. An unknown name is a ValueError.
    """
    _check([name], models())
    recipe, target = models()[name], folder(name)
    make: dict[type, Any] = {
        Pretraining: makers.make_base,
        Training: makers.make_student,
        WorldJudge: judge.make,
    }
    made = store.get(recipe, make[type(recipe)], fresh=fresh)
    if made == target:
        return target
    staged = _staged(made, target, store.MANIFEST)
    write_json(staged / "evaluation.json", evaluate(staged, recipe))
    card(name, recipe, staged).save(staged / "README.md")
    store.write_manifest(staged, recipe, seconds=store.read_manifest(made).get("seconds"))
    return store.place(staged, target)


def evaluate(folder: Path, recipe: Recipe) -> dict[str, float]:
    """Return what is recorded of an embedded model, so that a test can tell that it is the same.

    Of every speaker `text_loss` (nats per token of held-out documents); of a fine-tuned one
    `strict`, `correct` and `is_completed` of greedy answers to dev prompts (shares) too. Of a judge
    `equal` (share of scores that are the verifier's), `spearman`, `verdicts` (share of pairs on
    which it says what the verifier's scores say), `parses` (share of all replies).
    """
    if isinstance(recipe, WorldJudge):
        return _judged(folder, recipe)
    base = recipe.base if isinstance(recipe, Training) else recipe
    assert isinstance(base, Pretraining)
    found = {"text_loss": round(text_loss(folder, base), 5)}
    if isinstance(recipe, Training):
        prompts = WorldPrompts(world=base.world, split="dev", n=PROMPTS)
        model, tokenizer = makers.load_model(Model(name=str(folder)))
        greedy = arms.greedy_decoding(GREEDY_TOKENS)
        asked = world.prompts(prompts)
        table = student.evaluate(model, tokenizer, asked, makers.verdict, greedy)
        found |= {m: float(table[m].mean()) for m in ("strict", "correct", "is_completed")}
    return found


def _judged(folder: Path, recipe: WorldJudge) -> dict[str, float]:
    prompts = WorldPrompts(world=recipe.prompts.world, split="dev", n=JUDGED)
    scores = judge.judged(folder, judge.graded(prompts))
    pairs = judge.judged(folder, judge.compared(prompts))
    found = judge.reliability(scores)
    replies = [*scores["said"], *pairs["said"]]
    return {
        "equal": found["equal"].estimate,
        "spearman": round(found["spearman"].estimate, 4),
        "verdicts": float((pairs["said"] == pairs["value"]).mean()),
        "parses": sum(value is not None for value in replies) / len(replies),
    }


@torch.no_grad()
def text_loss(folder: Path, recipe: Pretraining) -> float:
    """Return a model's mean loss on held-out documents of its world, in nats per token.

    Over the tokens of 100 documents, each read alone.
    """
    model = read_model(folder, dtype=torch.float32)
    tokenizer = load_tokenizer(str(folder))
    total, count = 0.0, 0
    for text in itertools.islice(world.documents(recipe.world, HELD_OUT_TEXT), DOCUMENTS):
        (ids,) = encoded([text], tokenizer)
        rows = torch.tensor([ids])
        total += model(input_ids=rows, labels=rows).loss.item() * (len(ids) - 1)
        count += len(ids) - 1
    return total / count


def card(name: str, recipe: Recipe, folder: Path) -> ModelCard:
    """Return the model card of a folder that holds `training_log.json` and `evaluation.json`."""
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    data = ModelCardData(language="en", license="apache-2.0", pipeline_tag="text-generation")
    measures = "\n".join(f"| {measure} | {value:g} |" for measure, value in found.items())
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# codit micro world: {name}\n\n"
        "An embedded checkpoint of the codit repository: an instrument for measuring contrastive\n"
        "decoding offline, of no use outside its artificial world (`data/README.md`).\n\n"
        f"- recipe: `{paper_tables.recipe_text(recipe)}`\n"
        f"- parameters: {log.get('parameters', 0):,}, float32\n"
        "- trained on: text made by `codit/world/`; nothing else\n"
        "- licence: Apache-2.0\n\n"
        "| held-out measure | value |\n| --- | --- |\n" + measures + "\n"
    )


def tables(chosen: Scale) -> dict[str, Made]:
    """Return every table that the notebooks of a scale with the verifier read.

    By its folder's name in `data/results/`: its recipe and its maker.
    """
    named: dict[str, Made] = {k: (r, makers.study) for k, r in scales.plan(chosen).items()}
    named["alignment"] = (cosines.recipe(chosen), cosines.study)
    named["tokens"] = (tokens.recipe(chosen), tokens.study)
    named["transfer"] = (transfer.recipe(chosen), transfer.study)
    if chosen.kinds:
        named["heads"] = (heads.recipe(chosen), heads.study)
        named["intervention"] = (heads.intervention_recipe(chosen), heads.intervention)
    for teacher in chosen.teachers:
        named[f"ctd-{teacher.lower()}"] = (ctd.results(chosen, teacher), ctd.verdicts)
    named["ctd-training"] = (ctd.training(chosen), ctd.verdicts)
    named["ctd-rates"] = (ctd.rates(chosen), ctd.verdicts)
    named["ctd-tokens"] = (ctd.tokens(chosen), ctd.steps)
    if chosen.judging.judges:
        for name, recipe in judges.studies(chosen).items():
            named[f"judged-{name}"] = (recipe, judges.study)
        named["judged-students"] = (judges.students_recipe(chosen), judges.students)
        named["judged-answers"] = (judges.judged_recipe(chosen), judges.study)
    named["ctd-real"] = (real.recipe(), real.study)  # the same at every scale
    return named


def commit(name: str, made: Made) -> Path:
    """Make a table where it is missing, put it into `data/results/`, and return its folder.

    One that is too large to be committed is a ValueError.
    """
    recipe, make = made
    target = folder(name)
    make(recipe)
    found = store.find(recipe)
    assert found is not None, "a maker goes through the store"
    if found == target:
        return target
    size = sum(path.stat().st_size for path in found.rglob("*"))
    if size > TOO_LARGE:
        raise ValueError(
            f"expected at most {TOO_LARGE:,} bytes of {name}; got {size:,}. Keep fewer columns or "
            "rows."
        )
    return store.place(_staged(found, target), target)


def _staged(made: Path, target: Path, *left_out: str) -> Path:
    """Return a copy of a result beside the folder that it will replace."""
    staged = target.with_name(f".{target.name}.new")
    shutil.rmtree(staged, ignore_errors=True)  # of a killed try
    shutil.copytree(made, staged, ignore=shutil.ignore_patterns(*left_out))
    return staged


def _check(names: Collection[str], known: Collection[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"expected names among {list(known)}; got {unknown}. Name one of them.")


def sidecars() -> dict[str, dict[str, Any]]:
    """Return the provenance of every committed figure by its name, in order."""
    files = sorted(figures.folder().glob("[0-9][0-9]*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def answer(name: str, begins: str = "") -> tuple[str, list[list[str]]]:
    """Return what a committed figure's claims say, of those whose statement begins with a text.

    Their verdicts, counted ("**holds** 2 of 3, **undecided** 1 of 3"), and each as the cells
    statement, source, found, verdict. ValueError: none begins so.
    """
    claims = json.loads((figures.folder() / f"{name}.json").read_text(encoding="utf-8"))["claims"]
    chosen = [claim for claim in claims if claim["statement"].startswith(begins)]
    if not chosen:
        raise ValueError(
            f"expected a claim of {name} that begins with {begins!r}; there is none. Change what "
            "is looked for (PAPER, or the book's QUESTIONS) as the notebook has been changed."
        )
    counts = Counter(WORDS[claim["holds"]] for claim in chosen)
    words = [f"**{w}** {counts[w]} of {len(chosen)}" for w in WORDS.values() if counts[w]]
    return ", ".join(words), list(map(_cells, chosen))


def figure_table() -> str:
    """Return the README's table: what the paper says, what we find, and where."""
    lines = ["| the paper says | we find | where |", "| --- " * 3 + "|"]
    for said, name, begins in PAPER:
        words, cells = answer(name, begins)
        (path,) = (store.repository() / "notebooks").glob(f"{name[:2]}_*.ipynb")
        found = "<br>".join(cell[2] for cell in cells)
        where = f"[{path.stem}](notebooks/{path.name}), [figure](figures/{name}.png)"
        lines.append(f"| {said} | {words}<br>{found} | {where} |")
    return "\n".join(lines)


def readme(text: str) -> str:
    """Return the README with its table of figures as it should be; ValueError without its marks."""
    begin, end = MARKS
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"expected `{begin}` and `{end}` in the README. Put them back.")
    return f"{before}{begin}\n{figure_table()}\n{end}{after}"


def claims_page() -> str:
    """Return `figures/README.md`: every claim that the notebooks evaluate, with its verdict."""
    rows = [
        " | ".join([f"| [{name[:2]}]({name}.png)", *_cells(claim)]) + " |\n"
        for name, record in sidecars().items()
        for claim in record["claims"]
    ]
    return CLAIMS + "".join(rows)


def _cells(claim: dict[str, Any]) -> list[str]:
    """Return statement, source, what was found and verdict as cells of a table."""
    cells = (claim["statement"], claim["source"], claim["ours"], f"**{WORDS[claim['holds']]}**")
    return [cell.replace("|", "∣") for cell in cells]


def make_models(only: Names = (), *, fresh: bool = False) -> None:
    """Train the embedded models.

    Args:
        only: names; none means all.
        fresh: train them even where a result of the same recipe exists.
    """
    _check(only, models())
    for name in only or models():
        print(f"{name}: {embed(name, fresh=fresh)}", flush=True)


def make_tables(only: Names = (), *, scale: str = "full") -> None:
    """Make the committed tables.

    Args:
        only: names; none means all.
        scale: whose tables.
    """
    known = tables(scales.scale(scale))
    _check(only, known)
    for name in only or known:
        print(f"{name}: {commit(name, known[name])}", flush=True)


def write_claims() -> None:
    """Write the README's table of figures, and the page of all claims beside the figures."""
    path, page = store.repository() / "README.md", figures.folder() / "README.md"
    for target, text in {
        path: readme(path.read_text(encoding="utf-8")),
        page: claims_page(),
    }.items():
        with replacing(target) as stream:
            stream.write(text.encode())
        print(f"{target}: written")


if __name__ == "__main__":
    commands = {"claims": write_claims, "models": make_models, "tables": make_tables}
    with workers.stoppable():
        tyro.extras.subcommand_cli_from_dict(commands)
