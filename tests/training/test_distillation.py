"""A pair as a teacher of TRL's distillation trainers: their losses, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from codit.pair import ContrastivePair
from codit.training.distillation import JointTeacher
from tests import tiny

TEXTS = ("the cat", "the house is in the mat", "ten of them")
# The trainers and the libraries below them differ over names that go with their next versions.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 3,
    "learning_rate": 1e-3,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "activation_checkpointing": False,
}


def pair(**numbers: float) -> ContrastivePair:
    expert, amateur = (tiny.model("llama", seed=seed, scale=3.0) for seed in (1, 2))
    return ContrastivePair(expert, amateur, **numbers)


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return JSD_beta(teacher | student) of log-probabilities [..., V], in nats, by definition."""
    p, q = teacher.double().exp(), student.double().exp()
    mixture = beta * p + (1 - beta) * q

    def kl(left: Tensor, right: Tensor) -> Tensor:
        terms = left * (left.log() - right.log())
        return terms.where(left > 0, 0.0).sum(-1)

    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@torch.no_grad()
def by_hand(teacher: ContrastivePair, student: Any, *inputs: Tensor) -> float:
    """Return the mean divergence at the positions whose next token is kept, each row alone."""
    found = []
    ids, mask, kept = inputs
    for row, seen, counted in zip(ids, mask.bool(), kept, strict=True):
        expert, amateur = teacher.both_logits(row[seen][None])
        scores = expert.log_softmax(-1) - teacher.strength * amateur.log_softmax(-1)
        if teacher.plausibility:
            p = expert.softmax(-1)
            low = p < teacher.plausibility * p.amax(-1, keepdim=True)
            scores = scores.masked_fill(low, -torch.inf)
        own = student(input_ids=row[seen][None]).logits.log_softmax(-1)
        each = divergence(own, scores.log_softmax(-1), beta=0.5)[0, :-1]
        found.append(each[counted[seen][1:].bool()])
    return float(torch.cat(found).mean())


def check_two_steps(trainer: Any, losses: list[tuple[float, float]]) -> None:
    """Train, and compare the loss of each step with that computed by hand."""
    trainer.train()
    assert len(losses) == 2
    for loss, expected in losses:
        assert loss == pytest.approx(expected, rel=1e-4)
        assert loss > 0.01


def test_gkd_learns_from_a_pair_with_a_floor_by_the_loss_of_the_definition(tmp_path: Any) -> None:
    teacher = pair(strength=1.0, plausibility=0.1)
    teacher.floor = -1e4
    losses = []

    class Watched(GKDTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            kept = inputs["labels"] != -100
            how = inputs["input_ids"], inputs["attention_mask"], kept
            losses.append((float(loss.detach()), by_hand(teacher, model, *how)))
            return loss

    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
        for text in TEXTS
    ]
    trainer = Watched(
        model=tiny.model("llama", seed=3, scale=3.0),
        teacher_model=teacher,
        args=GKDConfig(output_dir=str(tmp_path), lmbda=0.0, beta=0.5, temperature=1.0, **SETTINGS),
        train_dataset=Dataset.from_dict({"messages": chats}),
        processing_class=tiny.tokenizer(),
    )
    check_two_steps(trainer, losses)


def test_the_stable_trainer_learns_from_joined_states_by_the_loss_of_the_definition(
    tmp_path: Any,
) -> None:
    teacher = pair(strength=0.5, plausibility=0.0)
    losses = []

    class Watched(DistillationTrainer):
        def _compute_loss(self, student: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found = super()._compute_loss(student, inputs, *args, **kwargs)
            ids, mask = (
                torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1)
                for name in ("ids", "mask")
            )
            kept = mask.clone()
            kept[:, : inputs["prompt_ids"].shape[1]] = 0
            losses.append((float(found[0].detach()), by_hand(teacher, student, ids, mask, kept)))
            return found

    trainer = Watched(
        model=tiny.model("llama", seed=3, scale=3.0),
        teacher_model=JointTeacher(teacher),
        args=DistillationConfig(
            output_dir=str(tmp_path), max_completion_length=6, beta=0.5, temperature=1.0, **SETTINGS
        ),
        train_dataset=Dataset.from_dict({"prompt": list(TEXTS)}),
        processing_class=tiny.tokenizer(),
    )
    check_two_steps(trainer, losses)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen3"])
@torch.no_grad()
def test_the_joined_head_gives_the_pairs_distribution(architecture: str) -> None:
    whole = tiny.pair(architecture, strength=0.7, plausibility=0.0)
    joint = JointTeacher(whole)
    ids, mask = torch.tensor([[0, 0, 7, 30], [9, 9, 30, 8]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    logits = joint.get_output_embeddings()(joint.base_model(ids, mask).last_hidden_state)
    q = whole(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)).logits
    assert torch.allclose(logits.softmax(-1)[mask == 1], q.exp()[mask == 1], atol=1e-5)


def test_what_a_linear_head_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected plausibility 0; got 0\.1\. Set it to 0, or"):
        JointTeacher(pair(plausibility=0.1))
    halves = (tiny.model("gemma3_text", seed=n, final_logit_softcapping=1.0) for n in (1, 2))
    with pytest.raises(ValueError, match="those of a Gemma3ForCausalLM are more"):
        JointTeacher(ContrastivePair(*halves, plausibility=0.0))
    with pytest.raises(ValueError, match="JointTeacher"):
        pair()(input_ids=torch.tensor([[1, 2]])).last_hidden_state  # noqa: B018
