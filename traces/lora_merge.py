"""Merge LoRA into the base, which saves two small matrix products at every linear layer of every forward.

W + s·B·A is one matrix, so merging changes only rounding. (On the shipped checkpoints, half precision is nearer to fp32
with LoRA merged than apart.) The change is measured, and LoRA stays apart if it is too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi

# Largest change by merging, as a share of the largest logit: about what rounding changes in a whole thought.
ALLOWED = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class MergeReport(NamedTuple):
    """Whether LoRA is merged, the largest change of a logit after a whole thought, and the limit."""

    merged: bool
    largest_change: float
    allowed: float


def merge_lora(model: CodiModel, questions: Sequence[str]) -> tuple[CodiModel, MergeReport]:
    """Merge LoRA in place; if a logit of these questions' answers changes by too much, load the checkpoint again."""
    apart = answer_logits(model, questions)
    for module in model.lm._module.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    change = float((answer_logits(model, questions) - apart).abs().max())
    allowed = ALLOWED[model.dtype] * float(apart.abs().max())
    if change <= allowed:
        return model, MergeReport(True, change, allowed)
    model = load_codi(model.folder, str(model.device), str(model.dtype).removeprefix("torch."))
    return model, MergeReport(False, change, allowed)


def answer_logits(model: CodiModel, questions: Sequence[str]) -> Tensor:
    """Logits after the answer prefix, `[question, vocab]`, fp32."""
    return record(model, questions, max_new_tokens=0).logits
