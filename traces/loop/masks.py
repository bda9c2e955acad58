"""What passes from trace to trace of the loop, and the masks that say what each cell sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from codi_tracing.traces.loop.rows import Rows, Sights
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.grouped_attention import additive

Masks = dict[int | None, Bool[Tensor, "row query key"]]  # by layer, as `Sights`
Additive = dict[int | None, Float[Tensor, "row 1 query key"]]  # the same as numbers that attention adds


@dataclass
class State:
    """What passes from trace to trace: the cache, what each cell sees of it next, and the latent to feed next."""

    cache: Any
    seen: Masks
    position: Int[Tensor, "row cell"]
    latent: Float[Tensor, "row cell d_model"]


def seen_by(rows: Rows, sights: Sights, steps: int) -> Masks:
    """What each cell sees of the cache, layer by layer where layers differ."""
    return {layer: rows.seen(sight, steps) for layer, sight in sights.items()}


def beside(masks: Masks, own: Bool[Tensor, "row query key"]) -> Masks:
    """The masks with the keys of the present forward behind those of the cache."""
    return {layer: torch.cat([mask, own], -1) for layer, mask in masks.items()}


def as_numbers(model: CodiModel, masks: Masks) -> Additive:
    """The masks as the model's attention wants them."""
    return {layer: additive(mask, model.group, model.dtype) for layer, mask in masks.items()}


def set_masks(model: CodiModel, masks: Additive, layer: int) -> None:
    """Give one layer its own mask; call inside a trace, before anything else of that layer."""
    if layer in masks:
        attention = model.attention(model.blocks[layer])
        args, kwargs = attention.inputs
        attention.inputs = (args, {**kwargs, "attention_mask": masks[layer]})
