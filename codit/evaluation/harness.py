"""The pair as a model of lm-eval, with all its tasks.

`python -m codit.evaluation.harness --model codit ...` is lm-eval's own command, to which nothing
else can add a model. A student, or any other single model, needs none of this: `--model hf`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import GenerationConfig

from codit.contrast import contrast
from codit.pair import ContrastivePair, load_tokenizer

IMPLAUSIBLE = -100.0  # nats: what an implausible token of a given text costs
HARNESS = frozenset(
    "batch_size max_batch_size max_length add_bos_token prefix_token_id truncation logits_cache "
    "softmax_dtype enable_thinking think_end_token chat_template_args".split()
)


@register_model("codit")
class PairLM(HFLM):
    """A pair in lm-eval. Whatever `HARNESS` does not name is for `ContrastivePair.from_pretrained`.

    Generation is greedy unless the task says otherwise, and without thinking.

    A given text's log-likelihood must stay finite where log q is -inf, or all choices of a question
    may tie. There a token counts log p_E - 100: q with e^-100 of the expert mixed in. So among
    choices the fewest implausible tokens come first, then log q; what is greedy is what the pair
    would say. A perplexity is then a count of implausible tokens: compare it with nothing.
    """

    def __init__(
        self, expert: str, amateur: str | None = None, *, device: str | None = None, **given: Any
    ) -> None:
        own = {"enable_thinking": False} | {name: given.pop(name) for name in HARNESS & {*given}}
        if device or torch.cuda.is_available():
            given.setdefault("device_map", device or "cuda")
        pair = ContrastivePair.from_pretrained(expert, amateur, **given)
        stops = pair.generation_config.eos_token_id
        pair.generation_config = GenerationConfig(do_sample=False, eos_token_id=stops)
        parts = (part.config.get_text_config() for part in (pair.expert, pair.amateur))
        reach = (getattr(config, "max_position_embeddings", None) for config in parts)
        own.setdefault("max_length", min(filter(None, reach), default=None))
        tokenizer = load_tokenizer(
            expert,
            revision=given.get("expert_revision"),
            trust_remote_code=given.get("trust_remote_code", False),
        )
        super().__init__(pretrained=pair, tokenizer=tokenizer, backend="causal", **own)

    def _model_call(self, inps: Tensor, attn_mask: None = None, labels: None = None) -> Tensor:
        expert, amateur = self.model.both_logits(inps)
        values = {"strength": self.model.strength, "plausibility": self.model.plausibility}
        logq = contrast(expert, amateur, **values)
        return torch.where(logq.isneginf(), expert.log_softmax(-1) + IMPLAUSIBLE, logq)


def punkt(folder: str | Path, texts: Iterable[str]) -> None:
    """Train a stand-in for NLTK's sentence model, which IFEval needs, where none can be fetched.

    It learns from English prose, and counts sentences a little otherwise: its numbers compare with
    nothing published. Other processes find it by NLTK_DATA=folder, this one too.
    """
    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    root = Path(folder).resolve()
    target = root / "tokenizers" / "punkt_tab" / "english"
    target.mkdir(mode=0o700, parents=True)
    nltk.data.path.insert(0, str(root))  # NLTK writes where it looks only
    save_punkt_params(PunktTrainer("\n".join(texts)).get_params(), dir=str(target))


if __name__ == "__main__":
    cli_evaluate()
