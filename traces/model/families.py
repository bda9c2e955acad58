"""Model families: the names of the modules that the loop uses. A new family is one more record."""

from __future__ import annotations

from typing import Any, NamedTuple

from codi_tracing.traces.model.checkpoint import CheckpointError


class Family(NamedTuple):
    """A family's names of modules in the nnsight tree."""

    decoder: str
    embedding: str
    blocks: str
    norm: str
    attention: str  # inside a block
    heads: str  # inside the attention: the output projection, whose input are the heads side by side
    mlp: str  # inside a block
    adapted: tuple[str, ...]  # the linear layers that CODI adapts, as PEFT names them


FAMILIES = {
    "llama": Family(
        "model", "embed_tokens", "layers", "norm", "self_attn", "o_proj", "mlp",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "gpt2": Family("transformer", "wte", "h", "ln_f", "attn", "c_proj", "mlp", ("c_attn", "c_proj", "c_fc")),
}  # fmt: skip


def family_of(config: Any, base: str) -> Family:
    """The record of a base's family, by the model type in its config."""
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(f"{base}: is of family {config.model_type!r}; supported are {known}")
    return FAMILIES[config.model_type]
