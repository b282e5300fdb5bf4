"""`codit instruction-vector extract` and `apply`: flags and what they print.

The method is `codit.instruction_vector`; which heads are kept and where a vector is added is ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from codit.cli.flags import ANYWHERE, Placing, PlacingFlags
from codit.cli.synthesis import ALONE

FIELDS = ("task", "instruction", "answer")


def extract(
    *,
    model: str,
    data: Path,
    out: Path,
    top: int = 10,
    how: Literal["replace", "add"] = "replace",
    corruption: Literal["removed", "mismatched"] = "removed",
    measure: Literal["first", "answer"] = "first",
    placing: PlacingFlags = ANYWHERE,
) -> int:
    """Find the heads of a model that carry an instruction, and write the sum of what they add.

    Args:
        model: folder or Hub name.
        data: JSON lines with "task", "instruction" and "answer"; the prompt is the task, a space
            and the instruction. Rows whose answer the model does not begin with are left out.
        out: a file name ending in .safetensors.
        top: heads that are kept. 10: function vectors, of the models of seven billion parameters.
        how: what is done to a head: its mean replaces its output, or is added to it.
        corruption: the instruction is removed, or is that of the next row with another.
        measure: what comes back: the first token's probability, or the whole answer's
            log-probability.
        placing: where the weights go.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"out must be a file name ending in .safetensors; got {out}.")
    asked = _read(data)
    from codit import decode
    from codit import instruction_vector as iv
    from codit.engine.chat import prompt_ids

    lm, tokenizer = _load(model, placing)
    prompts = [prompt_ids(tokenizer, one.chat()) for one in asked]
    answers = [
        [*tokenizer(one.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for one in asked
    ]
    bare = [prompt_ids(tokenizer, chat) for chat in iv.corrupted(asked, corruption)]
    begun = decode.generate(
        lm,
        tokenizer,
        [one.chat() for one in asked],
        replace(ALONE, max_new_tokens=1),
        engine="static",
        progress=False,
    )
    right = [n for n, one in enumerate(begun) if one.token_ids[:1] == answers[n][:1]]
    mine, without, told = ([rows[n] for n in right] for rows in (prompts, bare, answers))
    means = iv.head_outputs(lm, mine).mean(0)
    found = iv.indirect_effects(lm, without, told, means, how=how)
    heads = iv.top(getattr(found, measure), top)
    iv.save(iv.vector(lm, means, heads), out)
    print(f"{out}: {len(right)} of {len(asked)} rows begun as told; heads by indirect effect:")
    for head in heads:
        print(f"  layer {head.layer} head {head.head}  {head.effect:+.4f}")
    return 0


def apply(
    *,
    model: str,
    vector: Path,
    prompt: str,
    layer: int,
    gamma: float = 1.0,
    max_new_tokens: int = 256,
    placing: PlacingFlags = ANYWHERE,
) -> int:
    """Answer one prompt without and with a vector added, the most likely token at every step.

    Args:
        model: folder or Hub name, of the kind that the vector was extracted from.
        vector: a file made by extract.
        prompt: what is asked, without the instruction.
        layer: the block behind which the vector is added, from 0. Try about .3 of a model's depth,
            or .6 where query heads share their keys.
        gamma: how much of the vector.
        max_new_tokens: limit of each answer.
        placing: where the weights go.
    """
    from codit import decode
    from codit import instruction_vector as iv

    theta, how = iv.load(vector), replace(ALONE, max_new_tokens=max_new_tokens)
    lm, tokenizer = _load(model, placing)
    for name, amount in (("without", 0.0), (f"with {gamma:g} x {vector.name}", gamma)):
        with iv.intervene(lm, theta, layer=layer, gamma=amount):
            chats = [[{"role": "user", "content": prompt}]]
            (answer,) = decode.generate(lm, tokenizer, chats, how, progress=False)
        if answer.error is not None:
            raise ValueError(answer.error)
        print(f"-- {name}\n{answer.text}")
    return 0


Action = (
    Annotated[int, tyro.conf.subcommand("extract", constructor=extract)]
    | Annotated[int, tyro.conf.subcommand("apply", constructor=apply)]
)


def command(action: Annotated[Action, tyro.conf.arg(name="")]) -> int:
    """Extract what carries an instruction from a model's heads, or answer with it added.

    Args:
        action: what to do.
    """
    return action


def _load(name: str, placing: Placing) -> tuple[Any, Any]:
    from codit.engine.models import load_tokenizer, read_model

    return read_model(name, dtype="auto", **placing.here()), load_tokenizer(name)


def _read(path: Path) -> list[Any]:
    """Return the rows of a file as `instruction_vector.Asked`."""
    from codit.files import read_lines

    rows = [*read_lines(path)]
    if not rows:
        raise ValueError(f"expected rows with {', '.join(FIELDS)} in {path}; got none. Add some.")
    for number, row in rows:
        if bad := [f for f in FIELDS if not (isinstance(row.get(f), str) and row[f].strip())]:
            raise ValueError(
                f"line {number}: expected text in {', '.join(FIELDS)}; got none in "
                f"{', '.join(bad)}. Mend the row or leave it out."
            )
    from codit import instruction_vector as iv

    return [iv.Asked(**{field: row[field] for field in FIELDS}) for _, row in rows]
