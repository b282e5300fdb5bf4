"""Flags that several commands share, and what is made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from codit import recipes

FLAT = tyro.conf.arg(name="")  # flags are called by their fields; a wrong value is our one line


@dataclass(frozen=True, kw_only=True)
class Models:
    """Which pair answers.

    Args:
        expert: Hub name or folder of the post-trained model.
        amateur: Hub name or folder of its own pre-trained counterpart; CoDIT needs one.
        expert_revision: commit, tag or branch of the expert.
        amateur_revision: commit, tag or branch of the amateur.
        dtype: of both models' weights: auto, float32, bfloat16, ...
        allow_renamed: accept added tokens whose names differ between the two tokenizers.
    """

    expert: str
    amateur: str | None = None
    expert_revision: str | None = None
    amateur_revision: str | None = None
    dtype: str = recipes.Model.dtype
    allow_renamed: bool = False

    def recipe(
        self, decoding: recipes.Decoding, *, view: Any = None, **more: Any
    ) -> recipes.Synthesis:
        """Return what answers; without `prompts`, those that the command itself holds.

        `view`: what makes a second view of the expert, which then stands in the amateur's place.
        """
        expert = recipes.Model(name=self.expert, revision=self.expert_revision, dtype=self.dtype)
        amateur: recipes.Recipe
        if view is not None:
            if self.amateur is not None:
                raise ValueError(
                    "expected no amateur: the expert is contrasted with itself; got "
                    f"{self.amateur}. Leave --amateur out."
                )
            amateur = view(expert)
        elif self.amateur is not None:
            revision = self.amateur_revision
            amateur = recipes.Model(name=self.amateur, revision=revision, dtype=self.dtype)
        else:
            raise ValueError(
                "expected an amateur; got none. Add --amateur, the expert's pre-trained self."
            )
        pair = recipes.Pair(expert=expert, amateur=amateur, allow_renamed=self.allow_renamed)
        return recipes.Synthesis(pair=pair, decoding=decoding, **{"prompts": None, **more})


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Where weights go, and what computes with them.

    Args:
        device_map: where weights go: cpu, cuda:1, auto, ... Default: a GPU if there is one.
        attn_implementation: of all models: sdpa, eager, flash_attention_2, ... Default: the
            library's choice.
    """

    device_map: str | None = None
    attn_implementation: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the load options that the user named."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def here(self) -> dict[str, Any]:
        """Return the load options of this process: a GPU where nothing else is said."""
        import torch

        return ({"device_map": "cuda"} if torch.cuda.is_available() else {}) | self.given()


ModelFlags = Annotated[Models, FLAT]
PlacingFlags = Annotated[Placing, FLAT]
DecodingFlags = Annotated[recipes.Decoding, FLAT]  # a field of the recipe is a flag by itself
ANYWHERE = Placing()
Repeated = tyro.conf.UseAppendAction
