"""A pair behind vLLM's engine: checked, started, and fed token ids; nothing but ids comes back.

`overrides` needs no vLLM: it writes what `vllm serve --hf-overrides` takes. `VllmPair` starts the
engine in this process and is what `decode.generate(..., engine="vllm")` decodes with. What has no
source is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from codit.engine.cache import joint_config, reach, shared_width
from codit.engine.chat import check_embedded, check_tokenizers, drawable
from codit.engine.models import load_tokenizer, loading, read_model
from codit.engine.sampling import GREEDY, Batch, Drawn
from codit.engine.vllm.plugin import ARCHITECTURE, Settings
from codit.recipes import Decoding

HELD = ("strength", "plausibility")  # of a `Decoding`: an engine is started with them
ASKED = ("temperature", "top_k", "top_p", "max_new_tokens", "seed", "sample")  # by each request


def overrides(expert: str, amateur: str, **how: Any) -> dict[str, Any]:
    """Return the `hf_overrides` that make vLLM load a pair; arguments and errors of `checked`."""
    return checked(expert, amateur, **how)[0]


def checked(
    expert: str,
    amateur: str,
    *,
    strength: float = 1.0,
    plausibility: float = 0.01,
    expert_revision: str | None = None,
    amateur_revision: str | None = None,
    allow_renamed: bool = False,
    trust_remote_code: bool = False,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the `hf_overrides` that make vLLM load a pair, and, by role, weights left unread.

    The arguments are those of `ContrastivePair.from_pretrained`; an amateur that no strength reads
    is not looked at. Logits are float32, because the difference of two bfloat16 logits keeps one
    digit.

    Raises:
        ValueError: tokenizers, vocabularies or configs that do not fit, a number out of range, or
            a model that cannot be loaded.
    """
    settings = Settings(
        amateur=str(amateur),
        amateur_revision=amateur_revision,
        strength=strength,
        plausibility=plausibility,
    )
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(expert, revision=expert_revision, **trust)
    configs = [_config(expert, revision=expert_revision, **trust)]
    if settings.needs_amateur:
        other = load_tokenizer(amateur, revision=amateur_revision, **trust)
        check_tokenizers(tokenizer, other, allow_renamed=allow_renamed)
        configs.append(_config(amateur, revision=amateur_revision, **trust))
    unread: dict[str, list[str]] = {}
    revisions = {"expert": expert_revision, "amateur": amateur_revision}
    for config, (role, revision) in zip(configs, revisions.items(), strict=False):
        if not hasattr(config, "quantization_config"):  # vLLM's own formats are its own to check
            name = config.name_or_path
            read = read_model(name, revision=revision, device_map="meta", **trust)
            unread |= {role: read.unread_weights} if read.unread_weights else {}
    width = shared_width(*configs)
    check_embedded(tokenizer, width)
    vocab_size, unused = drawable(tokenizer, width)
    joint_config(configs[0], configs[-1], vocab_size=vocab_size)
    made = settings.as_dict() | {"vocab_size": vocab_size} | ({"unused": unused} if unused else {})
    return {"architectures": [ARCHITECTURE], "head_dtype": "float32", "codit": made}, unread


def context(
    expert: str,
    amateur: str,
    made: Mapping[str, Any],
    *,
    revisions: tuple[str | None, str | None] = (None, None),
    trust_remote_code: bool = False,
) -> int | None:
    """Return how many tokens both models can read; vLLM looks at the expert alone.

    `made` by `overrides` tells whether the amateur counts. None: no config names a limit.
    """
    names = (expert, amateur) if Settings.of(made["codit"]).needs_amateur else (expert,)
    configs = [
        _config(name, revision=revision, trust_remote_code=trust_remote_code)
        for name, revision in zip(names, revisions, strict=False)
    ]
    return reach(*configs)


class VllmPair:
    """A pair in vLLM's engine, with what `decode.generate` has to know of it.

    Args:
        expert, amateur, ...: see `ContrastivePair.from_pretrained`.
        decoding: strength and plausibility are the engine's from here on.
        **engine: arguments of vLLM's engine: dtype, tensor_parallel_size, max_model_len,
            gpu_memory_utilization, max_num_seqs, enforce_eager, ...

    Raises:
        ValueError: see `overrides`; also where vLLM is not installed.
    """

    is_contrast = True
    engines = ("vllm",)

    def __init__(
        self,
        expert: str,
        amateur: str,
        decoding: Decoding,
        *,
        expert_revision: str | None = None,
        amateur_revision: str | None = None,
        allow_renamed: bool = False,
        trust_remote_code: bool = False,
        **engine: Any,
    ) -> None:
        self.held = {name: getattr(decoding, name) for name in HELD}
        trust = {"trust_remote_code": trust_remote_code}
        how: dict[str, Any] = trust | self.held | {"allow_renamed": allow_renamed}
        how |= {"expert_revision": expert_revision, "amateur_revision": amateur_revision}
        made, self.unread = checked(expert, amateur, **how)
        revisions = (expert_revision, amateur_revision)
        longest = context(expert, amateur, made, revisions=revisions, **trust)
        self.name_or_path = str(expert)
        self.generation_config = _generation_config(expert, revision=expert_revision, **trust)
        engine = {"max_model_len": longest, "generation_config": "vllm"} | engine
        self.engine = _started(
            model=str(expert),
            revision=expert_revision,
            tokenizer_revision=expert_revision,
            hf_overrides=made,
            **trust,
            **{name: value for name, value in engine.items() if value is not None},
        )
        self.vocab_size = int(made["codit"]["vocab_size"])
        # What the engine settled on, not what was asked for: it may have less memory.
        self.context = int(self.engine.model_config.max_model_len)
        self.numbers = itertools.count()

    @contextmanager
    def deciding(self, decoding: Decoding) -> Iterator[VllmPair]:
        """Yield the pair, or refuse a decoding that this engine cannot follow."""
        asked = {name: getattr(decoding, name) for name in HELD}
        if asked != self.held:
            raise ValueError(
                f"an engine contrasts as it was started, with {self.held}; got {asked}. Start "
                "another VllmPair, or decode with these."
            )
        known = {*HELD, *ASKED}
        if unknown := ", ".join(
            f"{field.name}={getattr(decoding, field.name)!r}"
            for field in fields(decoding)
            if field.name not in known and getattr(decoding, field.name) != field.default
        ):
            raise ValueError(
                f"vLLM samples by its own rules; got {unknown}, which it has not. Leave it out, or "
                "use another engine."
            )
        yield self

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        self.engine.llm_engine.engine_core.shutdown()


def vllm_batches(model: VllmPair, batch: Batch) -> Drawn:
    """Yield what vLLM draws for each row, as rows end; RuntimeError if it loses a request.

    The engine schedules all rows itself: its `max_num_seqs` stands in place of the batch's size.
    Each request gets a seed of its own from the rows' keys.
    """
    from vllm import TokensPrompt

    engine = model.engine.llm_engine
    mark = next(model.numbers)
    open_rows = {f"{mark}-{row}": row for row in batch.rows}
    internal = {}
    try:
        for name, row in open_rows.items():
            prompt = TokensPrompt(prompt_token_ids=batch.rows[row])
            asked = _sampling(batch.step.decoding, batch.keys[row], batch.stops)
            internal[name] = engine.add_request(name, prompt, asked)
        while open_rows and engine.has_unfinished_requests():
            batch.meter.show(f"{len(open_rows)} rows in the engine")
            for output in engine.step():
                if output.finished and output.request_id in open_rows:
                    made = output.outputs[0]
                    tokens = list(made.token_ids)
                    logprobs = [
                        float(at[token].logprob)
                        for token, at in zip(tokens, made.logprobs or (), strict=True)
                    ]
                    yield open_rows.pop(output.request_id), tokens, logprobs
        if open_rows:
            raise RuntimeError(
                f"the engine stopped before all rows were answered; {len(open_rows)} are left."
            )
    finally:
        if open_rows:  # whoever reads this has stopped: the engine must not go on for nobody
            engine.abort_request([internal.get(name, name) for name in open_rows])


def _sampling(how: Decoding, key: int, stops: Sequence[int]) -> Any:
    """Return vLLM's parameters of one request."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0 if how.temperature < GREEDY else how.temperature,
        top_k=int(how.top_k or 0),
        top_p=how.top_p,
        seed=key & (2**63 - 1),
        max_tokens=int(how.max_new_tokens),
        logprobs=0,  # of the token drawn, before temperature: log q
        ignore_eos=True,  # the stop set is the expert's, and named here
        stop_token_ids=list(stops),
        detokenize=False,
    )


def _started(**arguments: Any) -> Any:
    try:
        from vllm import LLM, EngineArgs
    except ImportError as error:
        raise ValueError(
            'the engine "vllm" needs vLLM; it is not installed here. '
            '`pip install -e ".[vllm]"` in an environment of its own: it pins torch.'
        ) from error
    known = {field.name for field in fields(EngineArgs)}
    if unknown := ", ".join(sorted(set(arguments) - known)):
        raise ValueError(
            f"expected arguments of vLLM's engine; got {unknown}. Those of other engines, such as "
            "device_map, are not read by this one: see vllm serve --help."
        )
    return LLM(**arguments)


def _config(name: str, **load: Any) -> PreTrainedConfig:
    with loading("weights", name):
        return AutoConfig.from_pretrained(name, **load)


def _generation_config(name: str, **load: Any) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(name, **load)
    except OSError:  # there is none: the model's config names the stop ids
        return GenerationConfig.from_model_config(_config(name, **load))
