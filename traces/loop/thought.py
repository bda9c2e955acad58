"""The latent loop under nnsight: one session, one trace per forward.

The question is read up to BoT; the final hidden state there, projected, is latent 0. Each latent is fed through
`inputs_embeds`, and the final hidden state after it, projected, is the next latent. EoT and the answer follow.

Many *cells* (runs) share one forward. The questions of a pair stand side by side in one row of the batch, and each cell
is one query position of that row: a 4-D mask shows it its own question and its own thought, and position ids number
them as if it ran alone. Nothing is copied per cell, and no result depends on the rest of the batch. (Tree attention
does the same in speculative decoding.)

An edit runs inside the trace of every latent step: `edit(block, layer, step)` is called at each block in forward order,
and may read and write there, for instance `block.output[:, cell] = vector`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from codi_tracing.traces.loop.answer import Forced, Measure, Script, Visit, decode_greedily, force_answer, save_into
from codi_tracing.traces.loop.masks import LoopState, additive_masks, append_keys, seen_by, set_masks
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.tokens import positions_needed
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.ndif import DeploymentError
from codi_tracing.traces.remote.session import PendingResult, start

BlockEdit = Callable[[Any, int, int], Any]
CPU = torch.device("cpu")  # tensors travel on the CPU, which any machine can read


@dataclass(frozen=True)
class Edits:
    """Functions that read or rewrite a model while it thinks; each runs inside the trace.

    `blocks` are called at every block of every latent step, in forward order. `latent(latents, step)` returns the
    latents to feed at a step. `cache(cache, step)` may write the entries of a step after its forward: later positions
    see them. `read(hidden, logits, step)` measures a step by its final hidden state (after the final norm) and its
    logits. `question(block, layer)` and `answer(block, layer)` are called at every block of the forward over the
    questions and of the answer phase. Values that `blocks`, `question` and `answer` return come back as `Saved`.
    """

    blocks: tuple[BlockEdit, ...] = ()
    latent: Callable[[Tensor, int], Tensor] | None = None
    cache: Callable[[Any, int], None] | None = None
    read: Callable[[Tensor, Tensor, int], dict[str, Tensor]] | None = None
    question: Visit | None = None
    answer: Visit | None = None


class Saved(NamedTuple):
    """The values that edits returned, in the order of the calls."""

    question: tuple[Any, ...] = ()
    steps: tuple[Any, ...] = ()
    answer: tuple[Any, ...] = ()


class QuestionCache(NamedTuple):
    """The cache after the questions, and the latent that follows each of them."""

    cache: Any
    latents: Float[Tensor, "row segment d_model"]
    saved: list[Any]


def read_question(model: CodiModel, rows: Rows, visit: Visit | None = None) -> QuestionCache:
    """Trace the questions, with BoT written over its placeholder. Call inside a session."""
    column, bot, project = rows.bot_column, model.bot, model.latent_after
    masks = additive_masks(model, {None: rows.question_mask()})
    saved: list[Any] = []
    with model.lm.trace(
        input_ids=rows.ids.flatten(1), attention_mask=masks[None], position_ids=rows.positions, use_cache=True,
        logits_to_keep=no_logits(model),
    ):  # fmt: skip
        model.embedding.output[:, column] = bot
        if visit is not None:
            for layer, block in enumerate(model.blocks):
                save_into(saved, visit(block, layer))
        latents = project(model.norm.output[:, column])
        cache = model.lm.output.past_key_values
    return QuestionCache(cache, latents, saved)


def no_logits(model: CodiModel) -> Int[Tensor, 0]:
    """`logits_to_keep` of a forward that needs no logits."""
    return torch.empty(0, dtype=torch.long, device=model.device)


def begin_thought(rows: Rows, question: QuestionCache, edits: Edits) -> LoopState:
    """The state before the first latent step; its cache shares the question's tensors and grows apart from them."""
    cache = copy(question.cache)
    cache.layers = [copy(layer) for layer in question.cache.layers]
    latent = question.latents[:, rows.reads[: rows.begun(0)]]
    if edits.latent is not None:
        latent = edits.latent(latent, 0)
    position = rows.bot_position[:, rows.reads] + 1
    return LoopState(cache, seen_by(rows, {None: rows.own(0)}, 0), position, latent)


def latent_step(
    model: CodiModel, rows: Rows, state: LoopState, step: int, edits: Edits, last: bool
) -> tuple[LoopState, dict[str, Tensor], list[Any]]:
    """Trace one latent step of every cell that has begun; returns the state, measurements and saved values.

    Except at the last step, the cells that begin at the next one take their hosts' latents.
    """
    cells = rows.begun(step)
    own = torch.eye(cells, dtype=torch.bool, device=model.device).expand(len(rows.ids), cells, cells)
    seen = {layer: mask[:, :cells] for layer, mask in seen_by(rows, rows.at_step(step), step).items()}
    masks, project = additive_masks(model, append_keys(seen, own)), model.latent_after
    joined = None if last or rows.begun(step + 1) == cells else rows.joined(step + 1)
    visited = model.blocks if edits.blocks or len(masks) > 1 else ()
    measured: dict[str, Tensor] = {}
    saved: list[Any] = []
    with model.lm.trace(
        inputs_embeds=state.latent, attention_mask=masks[None], position_ids=state.position[:, :cells],
        past_key_values=state.cache, use_cache=True, logits_to_keep=no_logits(model) if edits.read is None else 0,
    ):  # fmt: skip
        for layer, block in enumerate(visited):
            set_masks(model, masks, layer)
            for edit in edits.blocks:
                save_into(saved, edit(block, layer, step))
        hidden = model.norm.output
        latent = project(hidden)
        if joined is not None:
            latent = latent[:, joined]
        if edits.latent is not None:
            latent = edits.latent(latent, step + 1)
        if edits.read is not None:
            for name, value in edits.read(hidden.float(), model.lm.lm_head.output.float(), step).items():
                measured[name] = nnsight.save(value)
        cache = model.lm.output.past_key_values  # the same object, or on a deployment its grown copy
        if edits.cache is not None:
            edits.cache(cache, step)
    return LoopState(cache, state.seen, state.position + 1, latent), measured, saved


def see_thought(rows: Rows, state: LoopState, steps: int) -> LoopState:
    """The state at EoT: each cell sees the entries that `rows.after` names, and follows the last step that it took."""
    position = state.position if rows.stops is None else state.position + rows.stops - steps
    return LoopState(state.cache, seen_by(rows, rows.at_answer(steps), steps), position, state.latent)


class Run(NamedTuple):
    """The result of a block: logits if nothing was measured, else the measurements; greedy tokens if any."""

    forced: Forced | None
    measured: dict[str, Tensor]
    tokens: Int[Tensor, "row cell token"] | None
    at_steps: tuple[dict[str, Tensor], ...]  # measurements of `Edits.read` at each step
    saved: Saved = Saved()


class CellBlock(NamedTuple):
    """Cells that run together: their rows, their forced tokens, their edits and what is measured."""

    rows: Rows
    script: Script
    edits: Edits = Edits()
    measure: Measure | None = None


BlockMaker = Callable[[Rows], CellBlock]  # called inside the session, with the rows on the model's device


def run(
    model: CodiModel,
    rows: Rows,
    forced: Int[Tensor, "row token"] | Script,
    *,
    edits: Edits | Sequence[BlockEdit] = (),
    measure: Measure | None = None,
    **options: Any,
) -> Run:
    """Read the questions, think, answer: every cell of every row. `options` are those of `start_blocks`.

    Raises ValueError if even the forced tokens do not fit into the model's positions.
    """
    edits = edits if isinstance(edits, Edits) else Edits(tuple(edits))
    script = forced if isinstance(forced, Script) else Script(forced)
    n_latents = options.get("n_latents")
    steps = model.n_latents if n_latents is None else n_latents
    longest = positions_needed(model, int((rows.bot_position.cpu().amax(1) + script.lengths.cpu()).max()), 0, steps)
    if longest > model.n_positions:
        limit = f"the model has {model.n_positions}"
        raise ValueError(f"question, thought and answer need {longest} positions, {limit}; shorten them")
    (done,) = runs_of(start_blocks(model, rows, [partial(as_block, script, edits, measure)], **options).result())
    return done


def as_block(script: Script, edits: Edits, measure: Measure | None, rows: Rows) -> CellBlock:
    """A `BlockMaker` of a script, edits and a measure that do not depend on the rows."""
    return CellBlock(rows, script.to(rows.ids.device), edits, measure)


def start_blocks(
    model: CodiModel,
    rows: Rows,
    makers: Sequence[BlockMaker],
    *,
    max_new_tokens: int = 0,
    n_latents: int | None = None,
    gradients: bool = False,
    remote: bool | str | None = None,
) -> PendingResult:
    """Run blocks of cells over the same questions, which are read once, in one session; `runs_of` reads its result.

    Blocks are made inside the session, so that a job sends little. `n_latents` stops the thought early or extends it; a
    cell's decoding ends at the model's last position. With `gradients`, `measure` may differentiate with respect to
    tensors for which an edit called `requires_grad_`.
    """
    steps = model.n_latents if n_latents is None else n_latents
    body = partial(think_blocks, model, rows.to(CPU), tuple(makers), steps, max_new_tokens)
    return start(model, body, gradients=gradients, remote=remote)


def think_blocks(
    model: CodiModel, rows: Rows, makers: Sequence[BlockMaker], steps: int, max_new_tokens: int
) -> list[tuple[Any, ...]]:
    """Read the questions, and run block after block over them. Call inside a session."""
    rows = rows.to(model.device)
    blocks = [make(rows) for make in makers]
    question = read_question(model, rows, blocks[0].edits.question)
    return [plain_run(think_and_answer(model, block, question, steps, max_new_tokens)) for block in blocks]


def plain_run(done: Run) -> tuple[Any, ...]:
    """A run as plain tuples: a deployment, which lacks this package, can return none of its classes."""
    forced = None if done.forced is None else tuple(done.forced)
    return (forced, done.measured, done.tokens, done.at_steps, tuple(done.saved))


def runs_of(plain_runs: Sequence[tuple[Any, ...]]) -> list[Run]:
    """The runs of a session's blocks."""
    try:
        return [
            Run(None if forced is None else Forced(*forced), measured, tokens, at_steps, Saved(*saved))
            for forced, measured, tokens, at_steps, saved in plain_runs
        ]
    except (TypeError, ValueError):  # only a deployment can return anything else
        raise DeploymentError("the deployment returned values of another form than asked for") from None


def think_and_answer(
    model: CodiModel, block: CellBlock, question: QuestionCache, steps: int, max_new_tokens: int
) -> Run:
    """One block of cells: latent steps, forced tokens, greedy decoding. Call inside a session."""
    rows, edits = block.rows, block.edits
    state, at_steps, of_steps = begin_thought(rows, question, edits), [], []
    for step in range(steps):
        state, measured, saved = latent_step(model, rows, state, step, edits, step == steps - 1)
        at_steps.append(measured)
        of_steps += saved
    state = see_thought(rows, state, steps)
    state, forced, accepted, measured, of_answer = force_answer(
        model, state, block.script, block.measure, max_new_tokens > 0, edits.answer
    )
    tokens = None if accepted is None else decode_greedily(model, state, block.script, accepted, max_new_tokens)
    everything = Saved(tuple(question.saved), tuple(of_steps), tuple(of_answer))
    return Run(forced, measured, tokens, tuple(at_steps), everything)
