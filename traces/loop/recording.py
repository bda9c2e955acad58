"""Record a thought: run questions once, under the user's edits if any, and return activations, latents and answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from codi_tracing.traces.loop.thought import BlockEdit, run
from codi_tracing.traces.loop.tokens import answer_ids, encode, texts
from codi_tracing.traces.model.codi_model import CodiModel


class Thought(NamedTuple):
    """A recorded thought. `logits` are those after the answer prefix, `answers` the greedy texts."""

    resid: Float[Tensor, "pair layer step d_model"]
    latents: Float[Tensor, "pair step d_model"]
    logits: Float[Tensor, "pair vocab"]
    answers: list[str]


def record(
    model: CodiModel, questions: Sequence[str], *, edits: Sequence[BlockEdit] = (), max_new_tokens: int = 12,
    remote: bool | str | None = None,
) -> Thought:  # fmt: skip
    """Run each question once. There is one cell per row, so an edit writes `block.output[:, 0]`, `[pair, d_model]`."""
    rows = encode(model, [[question] for question in questions])

    def latent(block: Any, layer: int, step: int) -> Tensor | None:  # what is fed, before GPT-2 adds its positions
        return model.decoder.inputs[1]["inputs_embeds"][:, 0].clone() if layer == 0 else None

    def resid(block: Any, layer: int, step: int) -> Tensor:
        return model.activation(block, "resid")[:, 0].clone()

    prefix = torch.tensor([answer_ids(model)] * len(questions))
    order: tuple[BlockEdit, ...] = (latent, *(partial(without_result, edit) for edit in edits), resid)
    done = run(model, rows, prefix, edits=order, max_new_tokens=max_new_tokens, remote=remote)
    recorded = torch.stack(done.saved.steps, 1).unflatten(1, (model.n_latents, 1 + model.n_layers))
    answers = texts(model, done.tokens)[0] if done.tokens is not None else []
    assert done.forced is not None
    return Thought(recorded[:, :, 1:].transpose(1, 2), recorded[:, :, 0], done.forced.at_read[:, 0], answers)


def without_result(edit: BlockEdit, block: Any, layer: int, step: int) -> None:
    """Call an edit, and ignore what it returns."""
    edit(block, layer, step)
