"""The original experiment's single pass: pad tokens in place of the thought, one forward, no loop.

As many pad tokens as the model has latent steps stand between BoT and EoT; pads, EoT and forced tokens run in one
forward. No latent is fed, so a write at the pads is no write into a thought, and a write at the last layer has an
effect of exactly 0 (up to rounding): nothing reads it. Kept to compare both protocols (GusSand/CoT_Exploration,
layer-wise patching, 2025-10-30). Do not use it to study a thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import nnsight
import torch
from jaxtyping import Bool
from torch import Tensor

from codi_tracing.traces.loop.answer import AcceptedPrefix, Forced, Measure, Script, decode_greedily, forced_of
from codi_tracing.traces.loop.masks import LoopState, additive_masks
from codi_tracing.traces.loop.rows import Rows, one_hot
from codi_tracing.traces.loop.thought import (
    CPU,
    BlockMaker,
    CellBlock,
    Edits,
    QuestionCache,
    Run,
    begin_thought,
    plain_run,
    read_question,
)
from codi_tracing.traces.loop.tokens import opening_ids
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.session import PendingResult, start


def single_pass_length(model: CodiModel, script: Script) -> int:
    """Tokens of a cell: pads, EoT (and EOS) and forced tokens."""
    return model.n_latents + len(opening_ids(model)) + script.trunk.shape[1]


def start_single_passes(
    model: CodiModel, rows: Rows, makers: Sequence[BlockMaker], *, max_new_tokens: int = 0,
    remote: bool | str | None = None,
) -> PendingResult:  # fmt: skip
    """Read the questions, then run pads, EoT and forced tokens of every cell in one forward with edits.

    `runs_of` reads the result. `rows.after` names the cell whose pads an answer reads. A script's branches are ignored.
    """
    return start(model, partial(pass_blocks, model, rows.to(CPU), tuple(makers), max_new_tokens), remote=remote)


def pass_blocks(
    model: CodiModel, rows: Rows, makers: Sequence[BlockMaker], max_new_tokens: int
) -> list[tuple[Any, ...]]:
    """The single passes of all blocks. Call inside a session."""
    rows = rows.to(model.device)
    question = read_question(model, rows)
    return [plain_run(single_pass(model, make(rows), question, max_new_tokens)) for make in makers]


def single_pass(model: CodiModel, block: CellBlock, question: QuestionCache, max_new_tokens: int) -> Run:
    """The single pass of one block, and greedy decoding after it. Call inside a session."""
    rows, script = block.rows, block.script
    state = begin_thought(rows, question, Edits())
    state, forced, measured = pass_over_pads(model, rows, state, script, block.edits, block.measure)
    tokens, token = None, forced.at_start.argmax(-1)
    if max_new_tokens:
        tokens = decode_greedily(model, state, script.nothing, AcceptedPrefix(0 * token, token), max_new_tokens)
    return Run(forced if block.measure is None else None, measured, tokens, ())


def pass_over_pads(
    model: CodiModel, rows: Rows, state: LoopState, script: Script, edits: Edits, measure: Measure | None
) -> tuple[LoopState, Forced, dict[str, Tensor]]:
    """Trace pads, EoT and the forced tokens of every cell; the returned state sees no forced token."""
    device, eot, cells, count = model.device, model.eot, rows.n_cells, len(rows.ids)
    n, opening = model.n_latents, torch.tensor(opening_ids(model), device=device)
    length, pad = single_pass_length(model, script), model.tokenizer.pad_token_id
    filler = torch.full((n,), model.tokenizer.eos_token_id if pad is None else pad, device=device)
    ids = torch.cat([torch.cat([filler, opening]).expand(count, -1), script.trunk], 1).repeat(1, cells)
    own, seen = single_pass_mask(rows, n, length), state.seen[None]
    at_eot = torch.arange(cells, device=device) * length + n
    keep = (at_eot[:, None] + torch.tensor([len(opening) - 1, length - n - 1], device=device)).flatten()
    mask = torch.cat([seen.repeat_interleave(length, 1), own.expand(count, -1, -1)], -1)
    masks = additive_masks(model, {None: mask})
    position = (state.position[..., None] + torch.arange(length, device=device)).flatten(1)
    measured: dict[str, Tensor] = {}
    with model.lm.trace(
        input_ids=ids, attention_mask=masks[None], position_ids=position,
        past_key_values=state.cache, use_cache=True, logits_to_keep=keep,
    ):  # fmt: skip
        model.embedding.output[:, at_eot] = eot
        for layer, block in enumerate(model.blocks if edits.blocks else ()):
            for edit in edits.blocks:
                edit(block, layer, 0)
        logits = model.lm.lm_head.output.float().unflatten(1, (cells, -1))
        forced = forced_of(logits, Script(script.trunk))
        if measure is not None:
            for name, value in measure(forced).items():
                measured[name] = nnsight.save(value)
        cache = model.lm.output.past_key_values
    opened = n + len(opening)
    at_opening = own[opened - 1 :: length] & (torch.arange(length, device=device) < opened).repeat(cells)
    visible = torch.cat([seen, at_opening.expand(count, -1, -1)], -1)
    return LoopState(cache, {None: visible}, state.position + opened, state.latent), forced, measured


def single_pass_mask(rows: Rows, steps: int, length: int) -> Bool[Tensor, "query key"]:
    """The mask within the forward: a token sees its own cell; after the pads, only those that `rows.after` names."""
    cells, device = rows.n_cells, rows.ids.device
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = torch.block_diag(*[causal] * cells).unflatten(0, (cells, length)).unflatten(2, (cells, length)).clone()
    sight = rows.at_answer(steps)[None]
    for step in range(steps):
        own[:, steps:, :, step] = one_hot(sight.steps[:, step], cells)[:, None]
    return own.flatten(2).flatten(0, 1)


def step_view(cells: int, length: int) -> Any:
    """A function from a tensor `[row, cell × token, width]` and a step to that pad's view `[row, cell, width]`."""
    return lambda values, step: values.unflatten(1, (cells, length))[:, :, step]
