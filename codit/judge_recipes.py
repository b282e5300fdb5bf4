"""What names a judge and what it decides: recipes, as those of `codit.recipes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from codit.recipes import Synthesis, WorldPrompts

LESSONS = WorldPrompts(n=32_000, seed=4)


@dataclass(frozen=True, kw_only=True)
class WorldJudge:
    """A judge of the micro world, trained from nothing on graded responses. All values ours.

    Args:
        prompts: of the split "train": what held-out judgements are compared on was never read.
        architecture: as in `recipes.Pretraining`; not Qwen's, see `model_server.serve`.
        vocabulary: tokens of its own tokenizer, the fixed parts of the prompt not counted.
        epochs: passes over the lessons, one for each prompt.
        batch: rows in a step.
    """

    prompts: WorldPrompts = LESSONS
    architecture: str = "llama"
    hidden_size: int = 128
    layers: int = 4
    vocabulary: int = 1024
    learning_rate: float = 4e-3
    epochs: float = 2.0
    batch: int = 32
    seed: int = 0
    version: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class LLMJudge:
    """A judge behind a server of one's own: what may change what it says, and not where it is.

    The address is read from OPENAI_BASE_URL, the key from OPENAI_API_KEY.

    Args:
        model: as the server calls it.
        revision: of its weights, in words of one's own; None where the name says all.
        temperature: at least 0. 1: the paper's script.
        max_tokens: budget of a reply, thoughts included. 8192: the paper's script.
        reasoning_effort: low, medium, high; None: not sent.
        seed: base of the seeds of all questions.
    """

    model: str
    revision: str | None = None
    temperature: float = 1.0
    max_tokens: int = 8192
    reasoning_effort: str | None = None
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class JudgedBest:
    """Of the first `n` responses to each prompt, the one a judge scores highest; ties: the first.

    A response without a score is never kept where another has one; where none has, the first is.
    """

    pool: Synthesis
    judge: WorldJudge | LLMJudge
    n: int = 4
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class JudgedArm:
    """Best-of-N as the paper has it, chosen by a judge; beside `comparison.Arm`.

    Args:
        judge: who chooses.
        n: how many direct responses compete; the paper's N was not found.
    """

    judge: WorldJudge | LLMJudge
    n: int = 4
    version: ClassVar[int] = 1
    role: ClassVar[str] = "best-of-n-judged"

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"Best of {self.n}, {judge_label(self.judge)}"


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges at a scale, and how much is asked. All values ours but the paper's judge.

    Args:
        judges: who; none where nothing is judged.
        n_prompts: prompts whose responses are scored; arms are compared on half of them.
        budgets: limits of a reply in tokens, at which failures are counted.
        seeds: of the students of judged Best-of-N.
    """

    judges: tuple[WorldJudge | LLMJudge, ...] = ()
    n_prompts: int = 200
    budgets: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)


NOBODY = Judging()
JUDGES = (WorldJudge(), WorldJudge(architecture="gpt_neox", hidden_size=64, seed=1))


def judged_by(judging: Judging, models: str | Sequence[str]) -> Judging:
    """Return what a scale asks, of other judges: models at OPENAI_BASE_URL.

    Args:
        judging: the scale's.
        models: as the server calls them, one or more; one text holds names between commas.

    Returns:
        Judging: without budgets, which are made for the judges that it had.

    Raises:
        ValueError: no name, or one that is no text.

    Source: ours.
    """
    models = [name.strip() for name in models.split(",")] if isinstance(models, str) else models
    if not models or not all(isinstance(name, str) and name for name in models):
        raise ValueError(f"expected names of models that judge; got {models!r}. Name one or more.")
    return replace(judging, judges=tuple(LLMJudge(model=name) for name in models), budgets=())


def check_names(judges: Sequence[WorldJudge | LLMJudge]) -> None:
    """Raise where tables would take two judges for one.

    Args:
        judges: of one study.

    Raises:
        ValueError: two have the same name.

    Source: ours.
    """
    labels = [judge_label(one) for one in judges]
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"expected judges of different names; got {labels}. Give each a study of its own."
        )


def judge_label(judge: WorldJudge | LLMJudge) -> str:
    """Return a judge's short name.

    Args:
        judge: any.

    Returns:
        str: "llama judge", or the model's name.

    Source: ours.
    """
    if isinstance(judge, LLMJudge):
        return judge.model
    return f"{judge.architecture} judge"
