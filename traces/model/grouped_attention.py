"""Attention of many cells: masks that are made once a forward, and heads that share keys attended together.

transformers copies keys and values for every head that shares them and PyTorch turns a boolean mask into numbers anew
in every layer. Here the queries of the heads that share keys stand side by side instead, in one attention with those
keys, and the mask is additive from the beginning, as long as these queries. Nothing else changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped_sdpa"
ALIGNED = 16  # a mask's rows begin at multiples of so many numbers, or a GPU copies it in every layer


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend, `query` being `[row, head, token, d_head]`, `key` and `value` `[row, kv head, entry, d_head]`.

    A mask of `additive` with a group is as long as the queries of all heads that share keys; any other goes the
    ordinary way.
    """
    rows, heads, tokens, width = query.shape
    shared = key.shape[1]
    if attention_mask is None or attention_mask.shape[2] == tokens:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    together = query.reshape(rows, shared, -1, width)
    found = nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return found.view(rows, heads, tokens, width).transpose(1, 2), None


def additive(seen: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The mask of what is seen, `[row, query, key]`, as numbers to add, `[row, 1, group × query, key]`.

    No query may see nothing.
    """
    rows, queries, keys = seen.shape
    room = -(-keys // ALIGNED) * ALIGNED
    mask = torch.zeros(rows, 1, group, queries, room, dtype=dtype, device=seen.device)
    mask[..., :keys].masked_fill_(~seen[:, None, None], float("-inf"))
    return mask.flatten(2, 3)[..., :keys]


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # where no mask is given, the ordinary one is made
