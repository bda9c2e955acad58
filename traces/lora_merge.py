"""LoRA merged into the base, which saves two small matrix products at every linear layer of every forward.

W + s·B·A is one matrix, so that merging changes nothing but rounding. (On the shipped checkpoints, half precision with
LoRA merged is nearer to fp32 than with LoRA apart, whose two small products round as well.) The change is measured, and
LoRA stays apart where it is too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import answer_ids, encode
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi

# What merging may change, as a share of the largest logit: about what rounding changes in a whole thought anyway.
ALLOWED = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Merge(NamedTuple):
    """Whether LoRA is merged, and by how much that changes a logit after a whole thought, beside what is allowed."""

    merged: bool
    largest_change: float
    allowed: float


def merge_lora(model: CodiModel, questions: Sequence[str]) -> tuple[CodiModel, Merge]:
    """The model with LoRA merged, in place, where no logit of these questions' answers changes by too much.

    Else the same checkpoint loaded anew.
    """
    apart = answer_logits(model, questions)
    for module in model.lm._module.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    change = float((answer_logits(model, questions) - apart).abs().max())
    allowed = ALLOWED[model.dtype] * float(apart.abs().max())
    if change <= allowed:
        return model, Merge(True, change, allowed)
    model = load_codi(model.folder, str(model.device), str(model.dtype).removeprefix("torch."))
    return model, Merge(False, change, allowed)


@torch.no_grad()
def answer_logits(model: CodiModel, questions: Sequence[str]) -> Tensor:
    """Logits after the answer prefix, `[question, vocab]`, fp32."""
    prefix = torch.tensor([answer_ids(model)] * len(questions))
    done = run(model, encode(model, [[question] for question in questions]), prefix)
    assert done.forced is not None
    return done.forced.at_read[:, 0]
