"""The config of a training, of a base or of a CODI model over one: its keys and rules."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from codi_tracing.configs.schema import ConfigPath, Count, Positive, Record, Seed, Share, rule

Width = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Depth = Annotated[int, Field(strict=True, ge=1, le=1_024)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class Architecture(Record):
    """A small Llama, and how much of its chain of thought is written out."""

    d_model: Width = 64
    d_mlp: Width = 192
    layers: Depth = 4
    heads: Depth = 4
    kv_heads: Depth = 2
    terse: Share = 0.0

    @model_validator(mode="after")
    def heads_divide_evenly(self) -> Self:
        if self.d_model % (unit := 2 * self.heads):
            text = "d_model is {d_model} with {heads} heads, expected a multiple of {unit}, as rotary positions need"
            raise rule(text, d_model=self.d_model, heads=self.heads, unit=unit)
        if self.heads % self.kv_heads:
            text = "heads is {heads}, expected a multiple of kv_heads, which is {kv_heads}"
            raise rule(text, heads=self.heads, kv_heads=self.kv_heads)
        return self


class Optimiser(Record):
    """AdamW with warm-up and cosine decay."""

    steps: Count
    batch: Width
    lr: Positive


class Codi(Record):
    """CODI's self-distillation over a frozen base; what departs from the plain recipe is 0 by default."""

    n_latents: Depth = 6
    rank: Width = 32
    alpha: Count = 32
    prj_dim: Width = 128
    distill_weight: Weight = 3.0
    hide_question: Share = 0.0
    decode_weight: Weight = 0.0
    decode_until: Share = 0.6
    curriculum: Share = 0.0
    start: ConfigPath | None = None


class TrainConfig(Record):
    """A training: of a base ([architecture]), or of a CODI model over one (`base` and [codi])."""

    command: ClassVar = "codi train"

    out: ConfigPath
    base: ConfigPath | None = None
    seed: Seed = 0
    threads: Count | None = None
    notes: str = ""
    optimiser: Optimiser
    architecture: Architecture | None = None
    codi: Codi | None = None

    @model_validator(mode="after")
    def a_base_or_a_codi_model_over_one(self) -> Self:
        if (self.architecture is None) == (self.codi is None):
            text = "{what} of [architecture] and [codi], expected [architecture] to train a base or [codi] over one"
            raise rule(text, what="found neither" if self.codi is None else "found both")
        if self.codi is not None and self.base is None:
            raise rule("[codi] needs a base to train over; set base to its folder")
        if self.architecture is not None and self.base is not None:
            raise rule("[architecture] trains a new base, so base has no meaning; remove one")
        return self
