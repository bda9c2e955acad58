"""The state between the traces of the loop, and the masks of what each cell sees."""

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
Additive = dict[int | None, Float[Tensor, "row 1 query key"]]  # numbers that attention adds


@dataclass
class LoopState:
    """The state between traces: the cache, what each cell sees of it next, next positions and the latent to feed."""

    cache: Any
    seen: Masks
    position: Int[Tensor, "row cell"]
    latent: Float[Tensor, "row cell d_model"]


def seen_by(rows: Rows, sights: Sights, steps: int) -> Masks:
    """The mask of each cell over the cache, by layer where layers differ."""
    return {layer: rows.seen(sight, steps) for layer, sight in sights.items()}


def append_keys(masks: Masks, own: Bool[Tensor, "row query key"]) -> Masks:
    """The masks over the cache, followed by the keys of the current forward."""
    return {layer: torch.cat([mask, own], -1) for layer, mask in masks.items()}


def additive_masks(model: CodiModel, masks: Masks) -> Additive:
    """The masks in the form that the model's attention adds."""
    return {layer: additive(mask, model.group, model.dtype) for layer, mask in masks.items()}


def set_masks(model: CodiModel, masks: Additive, layer: int) -> None:
    """Give one layer its own mask; call inside a trace, before any other access to that layer."""
    if layer in masks:
        attention = model.attention(model.blocks[layer])
        args, kwargs = attention.inputs
        attention.inputs = (args, {**kwargs, "attention_mask": masks[layer]})
