"""The original experiment's old single pass: placeholders in the place of the thought, one forward, no loop.

Between BoT and EoT stand as many pad tokens as the model has latent steps; they, EoT and the forced tokens run in one
forward. No latent is ever fed, so what is written at the pads is no thought, and what the last layer writes there is
read by nothing: an effect of exactly 0, by structure (up to rounding, since the host is another cell). Kept so that
anyone can see both procedures side by side (GusSand/CoT_Exploration, layer-wise patching, 2025-10-30). Never use it to
learn about a thought.
"""

from __future__ import annotations

from typing import Any

import nnsight
import torch
from jaxtyping import Bool
from torch import Tensor

from traces.answer import Forced, Heard, Measure, Script, decode_greedily, forced_of
from traces.model import CodiModel
from traces.rows import Rows, chosen
from traces.state import State, as_numbers
from traces.thought import Edits, Run, begin, read_question
from traces.tokens import opening_ids, positions_needed


def single_pass_length(model: CodiModel, script: Script) -> int:
    """Tokens of a cell: the placeholders, EoT (and EOS), and what is forced."""
    return model.n_latents + len(opening_ids(model)) + script.trunk.shape[1]


@torch.no_grad()
def run_single_pass(
    model: CodiModel,
    rows: Rows,
    script: Script,
    *,
    edits: Edits,
    measure: Measure | None = None,
    max_new_tokens: int = 0,
    remote: bool | str = False,
) -> Run:
    """Read the questions, then pads, EoT and forced tokens of every cell in one forward, blocks edited inside.

    `rows.after` says whose pads a cell's answer reads. Whole answers are not scored: the script's branches are ignored.
    """
    script = script.to(model.device)
    longest = positions_needed(model, int(rows.bot_position.max()), script.trunk.shape[1])
    if longest > model.n_positions:
        have = f"the model has {model.n_positions}"
        raise ValueError(f"question, placeholders and answer need {longest} positions, {have}; shorten them")
    with model.lm.session(remote=remote):
        state = begin(rows, read_question(model, rows), Edits())
        state, forced, measured = pass_over_pads(model, rows, state, script, edits, measure)
        tokens, token = None, forced.at_start.argmax(-1)
        if max_new_tokens:
            tokens = decode_greedily(model, state, script.nothing, Heard(0 * token, token), max_new_tokens)
        result = nnsight.save(Run(forced if measure is None else None, measured, tokens, ()))
    return result


def pass_over_pads(
    model: CodiModel, rows: Rows, state: State, script: Script, edits: Edits, measure: Measure | None
) -> tuple[State, Forced, dict[str, Tensor]]:
    """Trace pads, EoT and the forced tokens of every cell; the state that comes back sees no forced token."""
    device, eot, cells, count = model.device, model.eot, rows.n_cells, len(rows.ids)
    n, opening = model.n_latents, torch.tensor(opening_ids(model), device=device)
    length, pad = single_pass_length(model, script), model.tokenizer.pad_token_id
    filler = torch.full((n,), model.tokenizer.eos_token_id if pad is None else pad, device=device)
    ids = torch.cat([torch.cat([filler, opening]).expand(count, -1), script.trunk], 1).repeat(1, cells)
    own, seen = single_pass_mask(rows, n, length), state.seen[None]
    at_eot = torch.arange(cells, device=device) * length + n
    keep = (at_eot[:, None] + torch.tensor([len(opening) - 1, length - n - 1], device=device)).flatten()
    mask = torch.cat([seen.repeat_interleave(length, 1), own.expand(count, -1, -1)], -1)
    masks = as_numbers(model, {None: mask})
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
    opened = n + len(opening)
    at_opening = own[opened - 1 :: length] & (torch.arange(length, device=device) < opened).repeat(cells)
    visible = torch.cat([seen, at_opening.expand(count, -1, -1)], -1)
    return State(state.cache, {None: visible}, state.position + opened, state.latent), forced, measured


def single_pass_mask(rows: Rows, steps: int, length: int) -> Bool[Tensor, "query key"]:
    """What the tokens of the forward see of each other: their own, and of the pads those that `rows.after` names."""
    cells, device = rows.n_cells, rows.ids.device
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = torch.block_diag(*[causal] * cells).unflatten(0, (cells, length)).unflatten(2, (cells, length)).clone()
    sight = rows.at_answer(steps)[None]
    for step in range(steps):
        own[:, steps:, :, step] = chosen(sight.steps[:, step], cells)[:, None]
    return own.flatten(2).flatten(0, 1)


def step_view(cells: int, length: int) -> Any:
    """Of a tensor `[row, cell × token, width]`, one placeholder's part `[row, cell, width]`: writable in place."""
    return lambda stands, step: stands.unflatten(1, (cells, length))[:, :, step]
