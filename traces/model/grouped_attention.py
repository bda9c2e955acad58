"""Attention for many cells: masks are made once a forward, and heads that share keys attend together.

transformers copies keys and values for every head that shares them, and PyTorch converts a boolean mask in every
layer. Here the queries of the heads that share keys form one longer attention over those keys, and the mask is additive
from the start. The results are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped_sdpa"
ALIGNED = 16  # rows of a mask start at multiples of this, else a GPU copies it in every layer


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of `query [row, head, token, d_head]` over `key` and `value` `[row, kv head, entry, d_head]`.

    A mask from `additive` has a row per query and head of a group; with any other mask, transformers' attention runs.
    """
    rows, heads, tokens, width = query.shape
    shared = key.shape[1]
    if attention_mask is None or attention_mask.shape[2] == tokens:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    together = query.reshape(rows, shared, -1, width)
    attended = nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return attended.view(rows, heads, tokens, width).transpose(1, 2), None


def additive(seen: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """A boolean mask `[row, query, key]` as numbers to add, `[row, 1, group × query, key]`.

    Every query must see at least one key.
    """
    rows, queries, keys = seen.shape
    room = -(-keys // ALIGNED) * ALIGNED
    mask = torch.zeros(rows, 1, group, queries, room, dtype=dtype, device=seen.device)
    mask[..., :keys].masked_fill_(~seen[:, None, None], float("-inf"))
    return mask.flatten(2, 3)[..., :keys]


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # used where no mask is given
