"""Model families: where each keeps the modules that the loop uses."""

from __future__ import annotations

from typing import Any, NamedTuple

from codi_tracing.traces.model.checkpoint import CheckpointError


class Family(NamedTuple):
    """Where a model family keeps the modules that the loop touches: names in the nnsight tree."""

    decoder: str
    embedding: str
    blocks: str
    norm: str
    attention: str  # these three: inside a block
    heads: str  # inside the attention: the output projection, whose input are the heads side by side
    mlp: str
    adapted: tuple[str, ...]  # PEFT's names of the linear layers that CODI adapts


FAMILIES = {
    "llama": Family(
        "model", "embed_tokens", "layers", "norm", "self_attn", "o_proj", "mlp",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "gpt2": Family("transformer", "wte", "h", "ln_f", "attn", "c_proj", "mlp", ("c_attn", "c_proj", "c_fc")),
}  # fmt: skip


def family_of(config: Any, base: str) -> Family:
    """The record of a base's family, by its config's model type."""
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(f"{base}: is of family {config.model_type!r}; supported are {known}")
    return FAMILIES[config.model_type]
