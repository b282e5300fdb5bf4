"""IV, the Instruction Vector: heads that carry an instruction, and the sum of what they write.

Which heads: put a head's mean output under the instruction into a run without it, and see how much
of the lost answer comes back. The best heads' means, sent through their output projections, add up
to the vector; it is added to the residual stream, or guides a training that forgets less. Plain
forward hooks do all of it: the libraries for such interventions wrap a model in one of their own,
which our engines and trainers would not know.

Notation: L layers, H query heads, d_h width of a head, D of the residual stream. a_{l,k} [d_h] is
what head k of layer l hands to its layer's output projection W_O at the last prompt token, also
where several query heads share keys; theta_c = sum over heads of W_O[:, k d_h : (k+1) d_h] a_{l,k}.

Source: "Refine Large Language Model Fine-tuning via Instruction Vector" (arXiv 2406.12227), of
which we had a summary; [FV] function vectors (Todd et al. 2023), on which it builds; [FVG] its
authors' later work (arXiv 2502.11019). What names none of them is ours.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from codit import files
from codit.engine.models import evaluating
from codit.recipes import Guidance
from codit.training.rows import MASKED

logger = logging.getLogger(__name__)

Means: TypeAlias = Annotated[Tensor, "outputs of heads, float32 [L, H, d_h]"]
Ids: TypeAlias = Sequence[Sequence[int]]

# Of a model type: its blocks, and in each block the output projection of its attention.
PATHS = {
    "llama": ("model.layers", "self_attn.o_proj"),
    "qwen3": ("model.layers", "self_attn.o_proj"),
    "gemma3_text": ("model.layers", "self_attn.o_proj"),
    "olmo3": ("model.layers", "self_attn.o_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense"),
    "gpt2": ("transformer.h", "attn.c_proj"),
}
POST_NORM = ("gemma3_text", "olmo3")  # they normalise what the projection gives
ROWS = 64  # of a forward pass: one row a head, or one a prompt
HOW = ("replace", "add")
CORRUPTIONS = ("removed", "mismatched", "shuffled")


class Head(NamedTuple):
    """A query head, and the indirect effect it was chosen by."""

    layer: int
    head: int
    effect: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A task x, an instruction c, and the answer y_c to both; demonstrations are (x, y_c) pairs."""

    task: str
    instruction: str
    answer: str = ""
    demonstrations: tuple[tuple[str, str], ...] = ()

    def chat(self, instruction: str | None = None) -> list[dict[str, str]]:
        """Return the conversation that asks for it, under another instruction where one is told."""
        told = self.instruction if instruction is None else instruction
        turns = [turn for x, y in self.demonstrations for turn in ((x, "user"), (y, "assistant"))]
        turns = [(f"{t} {told}".strip() if role == "user" else t, role) for t, role in turns]
        asked = (f"{self.task} {told}".strip(), "user")
        return [{"role": role, "content": text} for text, role in (*turns, asked)]


class Anatomy:
    """Where the heads of a model are.

    Its blocks and output projections by layer, n_heads H, width d_h (`config.head_dim`, or D / H).
    ValueError: a model whose parts are not known by name.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        if config.model_type not in PATHS:
            raise ValueError(
                f"expected a model whose heads are known, {', '.join(PATHS)}; got a "
                f"{config.model_type}. Give it a row in codit.instruction_vector.PATHS."
            )
        blocks, projection = PATHS[config.model_type]
        self.blocks = [*model.get_submodule(blocks)]
        self.projections = [block.get_submodule(projection) for block in self.blocks]
        self.n_layers, self.n_heads = len(self.blocks), config.num_attention_heads
        own = getattr(config, "head_dim", None)
        self.width: int = own or config.hidden_size // self.n_heads
        self.is_post_norm = config.model_type in POST_NORM
        self.told = (
            f"{config.model_type}, {self.n_layers} layers of {self.n_heads} heads, width "
            f"{config.hidden_size}"
        )

    def slice_of(self, layer: int, head: int) -> Tensor:
        """Return a head's part of its layer's output projection, float [D, d_h]."""
        module = self.projections[layer]
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.T  # Conv1D
        return weight[:, head * self.width : (head + 1) * self.width].detach()

    def check(self, heads: Sequence[tuple[int, int] | Head]) -> None:
        """Raise ValueError for a head that the model has not."""
        if bad := [h[:2] for h in heads if not (0 <= h[0] < self.n_layers and self._has(h[1]))]:
            raise ValueError(
                f"expected heads (layer, head) below ({self.n_layers}, {self.n_heads}); got "
                f"{', '.join(map(str, bad[:3]))}. Name heads of this model."
            )

    def _has(self, head: int) -> bool:
        return 0 <= head < self.n_heads


# ---- reading heads, writing into them


@contextmanager
def hooked(*places: tuple[nn.Module, Callable[..., Any], bool]) -> Iterator[None]:
    """Hang (module, hook, whether it sees the input) into a model, for a `with` block."""
    with ExitStack() as stack:
        for module, hook, is_before in places:
            if is_before:
                stack.callback(module.register_forward_pre_hook(hook).remove)
            else:
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@torch.no_grad()
def head_outputs(model: PreTrainedModel, prompts: Ids, *, rows: int = ROWS) -> Tensor:
    """Return a_{l,k} of each prompt, float32 [N, L, H, d_h].

    ValueError: no prompts to average over, as where the model answers none of them correctly.
    """
    if not prompts or not all(map(len, prompts)):
        raise ValueError(
            "expected at least one prompt that the model answers correctly, and tokens in each; "
            "got none. Ask for more prompts, or take a model that follows this instruction."
        )
    anatomy, parts = Anatomy(model), []
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        with reading(anatomy, last := torch.tensor([len(row) - 1 for row in some])) as seen:
            _forward(model, some)
        own = torch.stack([seen[layer] for layer in range(anatomy.n_layers)], 1)
        parts.append(own.view(len(last), anatomy.n_layers, anatomy.n_heads, anatomy.width))
    return torch.cat(parts).float()


@contextmanager
def reading(anatomy: Anatomy, at: Tensor) -> Iterator[dict[int, Tensor]]:
    """Collect what a forward pass hands to each layer's projection at positions int64 [B]."""
    seen: dict[int, Tensor] = {}

    def hook(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[layer] = args[0][torch.arange(len(at)), at]

    layers = enumerate(anatomy.projections)
    with hooked(*((one, functools.partial(hook, layer), True) for layer, one in layers)):
        yield seen


@contextmanager
def writing(
    anatomy: Anatomy,
    means: Means,
    chosen: Tensor,
    at: Tensor,
    *,
    how: str = "replace",
    scale: float = 1.0,
) -> Iterator[None]:
    """Replace outputs of heads by scale x mean, or add that to them, for a `with` block.

    Args:
        anatomy: the model's.
        means: what is written.
        chosen: bool [B, L, H]: into which heads, for each row of the forward passes.
        at: int64 [B]: at which position of each row.
        how: "replace" [FV] or "add" [FVG].
        scale: of the means.

    Raises:
        ValueError: an unknown `how`, or means of another model.
    """
    if how not in HOW:
        raise ValueError(f"how must be one of {', '.join(HOW)}; got {how!r}.")
    shape = (anatomy.n_layers, anatomy.n_heads, anatomy.width)
    if tuple(means.shape) != shape:
        raise ValueError(
            f"expected means of {shape} layers, heads and width; got {tuple(means.shape)}. Take "
            "those of this model."
        )

    def hook(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].clone()
        rows = torch.arange(len(at))
        own = hidden[rows, at].unflatten(-1, (anatomy.n_heads, anatomy.width))
        told = scale * means[layer].to(own)
        new = told.expand_as(own) if how == "replace" else own + told
        hidden[rows, at] = torch.where(chosen[:, layer, :, None].to(own.device), new, own).flatten(
            1
        )
        return (hidden, *args[1:])

    used = chosen.any(-1).any(0).tolist()  # layers without a chosen head stay alone
    places = [
        (one, functools.partial(hook, layer), True)
        for layer, one in enumerate(anatomy.projections)
        if used[layer]
    ]
    with hooked(*places):
        yield


def _forward(model: PreTrainedModel, rows: Ids, **more: Any) -> Any:
    """Run a model over rows padded at their right, which no position of a causal model sees."""
    ids = pad_sequence([torch.tensor([*row]) for row in rows], batch_first=True)
    with evaluating(model):
        return model(input_ids=ids.to(model.device), use_cache=False, **more)


# ---- which heads


def corrupted(asked: Sequence[Asked], how: str, *, seed: int = 0) -> list[list[dict[str, str]]]:
    """Return the conversations without what tells the instruction.

    "removed": the task alone. "mismatched": the task with the instruction of the next that has
    another. "shuffled": the instruction, answers dealt out anew among the demonstrations [FV].
    ValueError: another word; nothing to mismatch; no demonstrations.
    """
    if how == "removed":
        return [one.chat("") for one in asked]
    if how == "mismatched":
        told = [one.instruction for one in asked]
        if len(set(told)) < 2:
            raise ValueError("expected two instructions or more to mismatch; got one. Add rows.")
        turned = [told[n:] + told[:n] for n in range(len(told))]
        others = [next(t for t in turn if t != turn[0]) for turn in turned]
        return [one.chat(other) for one, other in zip(asked, others, strict=True)]
    if how != "shuffled":
        raise ValueError(f"how must be one of {', '.join(CORRUPTIONS)}; got {how!r}.")
    if not all(len(one.demonstrations) > 1 for one in asked):
        raise ValueError("expected two demonstrations or more in each row to shuffle; got fewer.")
    draw, found = torch.Generator().manual_seed(seed), []
    for one in asked:
        tasks, answers = zip(*one.demonstrations, strict=True)
        dealt = [answers[i] for i in torch.randperm(len(answers), generator=draw)]
        new = tuple(zip(tasks, dealt, strict=True))
        found.append(Asked(**{**vars(one), "demonstrations": new}).chat())
    return found


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel, prompts: Ids, answers: Ids, *, rows: int = ROWS
) -> list[Tensor]:
    """Return log p(y_t | prompt, y_<t) of every token of each answer, in nats.

    Summed, the log of the paper's instruction probability P(y_c | c, x); with a task's own prompt
    and answer, of its knowledge probability P(y | x).
    """
    found = []
    for start in range(0, len(prompts), rows):
        some = [*zip(prompts[start : start + rows], answers[start : start + rows], strict=True)]
        logits = _forward(model, [[*x, *y] for x, y in some]).logits
        for z, (x, y) in zip(logits, some, strict=True):
            logp = z[len(x) - 1 : len(x) + len(y) - 1].float().log_softmax(-1)
            found.append(logp.gather(1, torch.tensor([*y], device=z.device)[:, None])[:, 0].cpu())
    return found


class Effects(NamedTuple):
    """Indirect effects float32 [N prompts, sets], or [N, L, H], by two measures.

    first: p(y_1 | written) - p(y_1 | corrupted) [FV]. answer: the same of log p per token of the
    whole answer, in nats, that is -(NLL - NLL) [FVG].
    """

    first: Tensor
    answer: Tensor


@torch.no_grad()
def effects(
    model: PreTrainedModel,
    prompts: Ids,
    answers: Ids,
    means: Means,
    sets: Sequence[Sequence[tuple[int, int] | Head]],
    *,
    how: str = "replace",
    rows: int = ROWS,
) -> Effects:
    """Return the indirect effects of writing into sets of heads together.

    Heads are written into at the last prompt token. Each set is a row of one batch, beside a row
    that nothing is written into.

    Args:
        model: any of `PATHS`.
        prompts: corrupted, as token ids.
        answers: token ids of y_c, the end of turn included.
        means: of the model's heads under the instruction.
        sets: heads that are written into together.
        how: as in `writing`.
        rows: most rows of a forward pass.

    Raises:
        ValueError: a head out of range, an answer without tokens, means of another model.
    """
    if not all(map(len, answers)):
        raise ValueError("expected an answer of at least one token to each prompt; got none.")
    anatomy = Anatomy(model)
    anatomy.check([head for one in sets for head in one])
    chosen = torch.zeros(len(sets), anatomy.n_layers, anatomy.n_heads, dtype=torch.bool)
    for number, one in enumerate(sets):
        for layer, head, *_ in one:
            chosen[number, layer, head] = True
    found = torch.zeros(2, len(prompts), len(sets))
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        row, wanted = [*prompt, *answer[:-1]], torch.tensor([*answer], device=model.device)
        for start in range(0, len(sets), rows - 1):
            some = chosen[start : start + rows - 1]
            some = torch.cat([torch.zeros_like(some[:1]), some])
            at = torch.full((len(some),), len(prompt) - 1)
            with writing(anatomy, means, some, at, how=how):
                z = _forward(model, [row] * len(some), logits_to_keep=len(answer)).logits
            logp = z.float().log_softmax(-1)[:, torch.arange(len(answer)), wanted]
            score = torch.stack([logp[:, 0].exp(), logp.mean(1)]).cpu()
            found[:, number, start : start + rows - 1] = score[:, 1:] - score[:, :1]
    return Effects(*found)


def indirect_effects(
    model: PreTrainedModel, prompts: Ids, answers: Ids, means: Means, **how: Any
) -> Effects:
    """Return the indirect effects of every head alone; arguments as of `effects`."""
    n_layers, n_heads, _ = means.shape
    alone = [[(layer, head)] for layer in range(n_layers) for head in range(n_heads)]
    found = effects(model, prompts, answers, means, alone, **how)
    return Effects(*(part.unflatten(1, (n_layers, n_heads)) for part in found))


def top(effects: Tensor, n: int) -> list[Head]:
    """Return the n heads of the largest effect, of [L, H] or of the mean of [N, L, H]."""
    table = effects.mean(0) if effects.ndim == 3 else effects
    if not 1 <= n <= table.numel():
        raise ValueError(f"expected between 1 and {table.numel()} heads; got {n}.")
    best = table.flatten().sort(descending=True, stable=True).indices[:n]  # ties: the first
    places = [divmod(int(i), table.shape[1]) for i in best]
    return [Head(i, k, float(table[i, k])) for i, k in places]


# ---- the vector


@dataclass(frozen=True, eq=False, kw_only=True)
class InstructionVector:
    """theta_c, float32 [D]; the heads it is the sum of; the kind of model it was taken from."""

    theta: Tensor
    heads: tuple[Head, ...]
    told: str


def vector(
    model: PreTrainedModel, means: Means, heads: Sequence[tuple[int, int] | Head]
) -> InstructionVector:
    """Return theta_c of some heads: their means through their projections, biases left out [FV].

    Where a model normalises what the projection gives, theta_c is not what the heads add to the
    residual stream; a warning says so. ValueError: no heads, or heads out of range.
    """
    anatomy = Anatomy(model)
    if not heads:
        raise ValueError("expected at least one head; got none. Name heads, or take the top ones.")
    anatomy.check(heads)
    if anatomy.is_post_norm:
        logger.warning(
            "a %s normalises after its output projection: theta_c is a direction, not what the "
            "heads add to the residual stream",
            model.config.model_type,
        )
    theta = torch.zeros(model.config.hidden_size)
    for layer, head, *_ in heads:
        theta += anatomy.slice_of(layer, head).float().cpu() @ means[layer, head]
    kept = tuple(h if isinstance(h, Head) else Head(h[0], h[1]) for h in heads)
    return InstructionVector(theta=theta, heads=kept, told=anatomy.told)


def save(vector: InstructionVector, out: str | Path) -> Path:
    """Write a vector as one safetensors file, heads and model in its metadata."""
    heads = " ".join(f"{h.layer},{h.head},{h.effect:.6g}" for h in vector.heads)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    told = {"heads": heads, "model": vector.told}
    with files.replacing(out) as stream:
        stream.write(safetensors.torch.save({"theta": vector.theta}, told))
    return Path(out)


def load(path: str | Path) -> InstructionVector:
    """Read what `save` wrote. ValueError: no such file, or another kind of file."""
    if not Path(path).is_file():
        raise ValueError(f"expected an instruction vector at {path}; there is none. Extract one.")
    try:
        with safe_open(path, framework="pt") as stream:
            told, theta = stream.metadata() or {}, stream.get_tensor("theta")
        heads = [one.split(",") for one in told["heads"].split()]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no instruction vector: {error}. Extract one.") from error
    kept = tuple(Head(int(layer), int(head), float(effect)) for layer, head, effect in heads)
    return InstructionVector(theta=theta, heads=kept, told=told["model"])


@contextmanager
def intervene(
    model: PreTrainedModel,
    theta: InstructionVector | Tensor,
    *,
    layer: int,
    gamma: float = 1.0,
    at: Tensor | None = None,
) -> Iterator[PreTrainedModel]:
    """Add gamma theta_c to what a block hands on, for the length of a `with` block [FV].

    h[last] += gamma theta_c, at every step of `decode.generate`, whose "auto" is then the static
    engine; the continuous one, which has no last position a row, is refused.

    Args:
        model: what is changed, and changed back.
        theta: a vector, or float [D].
        layer: the block, from 0.
        gamma: 0 changes nothing; 1: [FV].
        at: int64 [B], positions in a forward pass of rows padded at their right. None: the last.

    Raises:
        ValueError: no such layer; a vector of another width or another kind of model.
    """
    anatomy = Anatomy(model)
    if not 0 <= layer < anatomy.n_layers:
        raise ValueError(f"expected a layer below {anatomy.n_layers}; got {layer}. Name a block.")
    if isinstance(theta, InstructionVector) and theta.told != anatomy.told:
        raise ValueError(
            f"expected a vector of this kind of model ({anatomy.told}); got one of {theta.told}. "
            "Extract one from this model."
        )
    added = theta.theta if isinstance(theta, InstructionVector) else theta
    if added.shape != (model.config.hidden_size,):
        raise ValueError(
            f"expected a vector of width {model.config.hidden_size}; got {list(added.shape)}. "
            "Extract one from this model."
        )

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if any(isinstance(value, PagedAttentionCache) for value in kwargs.values()):
            raise ValueError("an intervention needs the static engine; got a paged cache.")
        hidden = (output if isinstance(output, Tensor) else output[0]).clone()
        place = hidden.new_full((len(hidden),), hidden.shape[1] - 1).long() if at is None else at
        hidden[torch.arange(len(hidden)), place] += gamma * added.to(hidden)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    before = getattr(model, "reads_whole", False)
    with hooked((anatomy.blocks[layer], hook, False)):
        model.reads_whole = True  # see `decode.Single` and the static engine
        try:
            yield model
        finally:
            model.reads_whole = before


# ---- training that forgets less


def subtracted(step: int, steps: int) -> float:
    """Return how much of the vector is taken away at a step: all, then less by tenths, then none.

    1 before a quarter of the training, 1 - ceil(20 (t/T - 1/4)) / 10 until three quarters, 0 after.
    Source: constants read from compiled files of [FVG]'s repository; their use in IV is not known.
    """
    twentieths = -(-(20 * step - 5 * steps) // steps)  # ceil(20 (t/T - 1/4)), in whole numbers
    return min(10, max(0, 10 - twentieths)) / 10


def added(step: int, steps: int, *, until: float = 0.5) -> float:
    """Return how much of the vector is added at a step: 1 - t / (until T), and 0 from there on."""
    return max(0.0, 1.0 - step / (until * steps))


def divergence(student: Tensor, reference: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Return KL(softmax(student / T) || softmax(reference / T)) of logits [..., V], in nats.

    The student comes first; there is no factor T^2; no gradient goes into the reference [FVG].
    """
    p, q = ((z.float() / temperature).log_softmax(-1) for z in (student, reference.detach()))
    return (p.exp() * (p - q)).sum(-1)


def gated(term: Tensor, threshold: float) -> Tensor:
    """Return a term of the loss where it is above its threshold, else 0 with no gradient [FVG]."""
    return term if term.item() > threshold else torch.zeros_like(term)


def penalty(student: Tensor, reference: Tensor, labels: Tensor, recipe: Guidance) -> Tensor:
    """Return what guided training adds to its loss for two models' logits of the same rows.

    a_1 1[k_1 > .1] k_1 + a_2 1[k_2 > .1] k_2, k_1 the mean over rows of the divergence at the last
    prompt position, k_2 the sum over the positions of `recipe.reach` divided by the rows [FVG].

    Args:
        student: logits, float [B, T, V].
        reference: the same of the model before the training.
        labels: int64 [B, T], ids of the answer, elsewhere -100.
        recipe: coefficients, temperature, thresholds, reach.
    """
    k = divergence(student, reference, temperature=recipe.temperature)
    last = last_prompt(labels)
    k_1 = k[torch.arange(len(k)), last].mean()
    if recipe.reach == "answer":
        k = k[:, :-1] * (labels[:, 1:] != MASKED)
    k_2 = k.sum() / len(k)
    return recipe.last * gated(k_1, recipe.gate) + recipe.all * gated(k_2, recipe.gate)


def last_prompt(labels: Tensor) -> Tensor:
    """Return the position before each row's first label, int64 [B]."""
    return (labels != MASKED).int().argmax(-1) - 1


def head_drift(student: Tensor, reference: Tensor, threshold: float = 0.01) -> Tensor:
    """Return the mean squares by which outputs [B, heads, d_h] changed, gated, summed [FVG]."""
    drift = (student - reference.detach()).square().mean((0, 2))
    return (drift * (drift.detach() > threshold)).sum()
