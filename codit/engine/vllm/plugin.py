"""What vLLM runs in each of its processes, and what it reads there; it imports no library.

`register` names the pair to vLLM; `Settings` is the field `codit` of the expert's config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

ARCHITECTURE = "ContrastivePairForCausalLM"  # what `architectures` of `--hf-overrides` names


def register() -> None:
    """Enter the pair into vLLM's registry of models, by name: vLLM's `vllm.general_plugins`."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"codit.engine.vllm.model:{ARCHITECTURE}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers and names that the expert's own config does not hold.

    Args:
        amateur: Hub name or folder of the expert's pre-trained counterpart. Empty is allowed where
            no strength reads it.
        amateur_revision: its commit, tag or branch.
        strength: beta, at least 0.
        plausibility: alpha in [0, 1].
        vocab_size: the tokenizer's highest id + 1. None: as many as the narrower model has logits.
        unused: ids below it that are no token.

    Raises:
        ValueError: a number out of range, or no amateur where one is read.
    """

    amateur: str = ""
    amateur_revision: str | None = None
    strength: float = 1.0
    plausibility: float = 0.01
    vocab_size: int | None = None
    unused: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ValueError(
                f"strength must be a finite number of at least 0; got {self.strength}. 0 leaves "
                "it out."
            )
        if not 0 <= self.plausibility <= 1:
            raise ValueError(f"plausibility must lie in [0, 1]; got {self.plausibility}.")
        if self.needs_amateur and not self.amateur:
            raise ValueError(
                f'expected the name of an amateur at strength {self.strength}; got "". Name the '
                "expert's pre-trained counterpart, or take strength 0."
            )

    @property
    def needs_amateur(self) -> bool:
        """Whether the strength reads the amateur at all."""
        return self.strength != 0

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Settings:
        """Read the field `codit` of a config; ValueError for none, or what cannot be used."""
        if not isinstance(values, Mapping):
            raise ValueError(
                'expected hf_overrides with {"codit": {"amateur": ...}}; got '
                f"{values!r}. codit.engine.vllm.engine.overrides writes them."
            )
        names = [field.name for field in fields(cls)]
        if unknown := ", ".join(sorted(set(values) - set(names))):
            raise ValueError(
                f"expected {', '.join(names)} in hf_overrides' codit; got {unknown}. Name these "
                "only."
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return the values that say something, as JSON can hold them."""
        return {
            name: value for name, value in asdict(self).items() if value not in ("", None, [], ())
        }
