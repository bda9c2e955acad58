"""The latent loop under nnsight: one session, one trace per forward.

The question is encoded up to BoT; the final hidden state there, projected, is latent 0; each latent is fed through
`inputs_embeds` and the final hidden state after it, projected, is the next; then EoT and the answer.

Many *cells* (runs) share one forward. The questions of a pair stand side by side in one row of the batch, and every
cell is one query position of that row: a 4-D mask lets it see the question that it reads and its own thought, and
explicit position ids make it believe that it is alone. Nothing is copied per cell, and since a cell sees only what the
mask shows it, no result depends on what else is in the batch. (Tree attention does the same in speculative decoding.)

A function of yours can run inside every latent step's trace: `edit(block, layer, step)` is called at each block in
forward order and may read and write there, for instance `block.output[:, cell] = vector`.
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

from codi_tracing.traces.loop.answer import Forced, Measure, Script, Visit, decode_greedily, force_answer, retain
from codi_tracing.traces.loop.masks import State, as_numbers, beside, seen_by, set_masks
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.tokens import answer_ids, encode, positions_needed, texts
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.session import Started, start

Edit = Callable[[Any, int, int], Any]
CPU = torch.device("cpu")  # what is sent to where a session runs is read on any machine


@dataclass(frozen=True)
class Edits:
    """What is rewritten, or read, while a model thinks; each function runs inside the trace.

    `blocks` are called at every block of every latent step in forward order; `latent(latents, step)` gives the latents
    that are fed at a step; `cache(cache, step)` may write the entries that a step has just left, which later positions
    see; `read(hidden, logits, step)` measures a step by its final hidden state (after the final norm) and its lens;
    `question(block, layer)` and `answer(block, layer)` are called at every block where the questions are read and where
    the answer is forced. What `blocks`, `question` and `answer` return, and is not None, comes back as `Kept`.
    """

    blocks: tuple[Edit, ...] = ()
    latent: Callable[[Tensor, int], Tensor] | None = None
    cache: Callable[[Any, int], None] | None = None
    read: Callable[[Tensor, Tensor, int], dict[str, Tensor]] | None = None
    question: Visit | None = None
    answer: Visit | None = None


class Kept(NamedTuple):
    """What edits returned, in the order in which they were called: wherever the model ran, it comes back."""

    question: tuple[Any, ...] = ()
    steps: tuple[Any, ...] = ()
    answer: tuple[Any, ...] = ()


class Thought(NamedTuple):
    """A recorded thought."""

    resid: Float[Tensor, "pair layer step d_model"]
    latents: Float[Tensor, "pair step d_model"]
    logits: Float[Tensor, "pair vocab"]
    answers: list[str]


class Question(NamedTuple):
    """What reading the questions of the rows leaves: a cache, and the latent that each of them ends in."""

    cache: Any
    latents: Float[Tensor, "row segment d_model"]
    kept: list[Any]


def read_question(model: CodiModel, rows: Rows, visit: Visit | None = None) -> Question:
    """Trace the questions; BoT is a vector written over its placeholder. Call inside a session."""
    column, bot, project = rows.bot_column, model.bot, model.latent_after
    masks = as_numbers(model, {None: rows.question_mask()})
    kept: list[Any] = []
    with model.lm.trace(
        input_ids=rows.ids.flatten(1), attention_mask=masks[None], position_ids=rows.positions, use_cache=True,
        logits_to_keep=no_logits(model),
    ):  # fmt: skip
        model.embedding.output[:, column] = bot
        if visit is not None:
            for layer, block in enumerate(model.blocks):
                retain(kept, visit(block, layer))
        latents = project(model.norm.output[:, column])
        cache = model.lm.output.past_key_values
    return Question(cache, latents, kept)


def no_logits(model: CodiModel) -> Int[Tensor, 0]:
    """The positions whose logits are wanted where none are."""
    return torch.empty(0, dtype=torch.long, device=model.device)


def begin(rows: Rows, question: Question, edits: Edits) -> State:
    """The state before the first latent step: the question's cache is not copied, and goes on in one of its own."""
    cache = copy(question.cache)
    cache.layers = [copy(layer) for layer in question.cache.layers]
    latent = question.latents[:, rows.reads[: rows.begun(0)]]
    if edits.latent is not None:
        latent = edits.latent(latent, 0)
    position = rows.bot_position[:, rows.reads] + 1
    return State(cache, seen_by(rows, {None: rows.own(0)}, 0), position, latent)


def latent_step(
    model: CodiModel, rows: Rows, state: State, step: int, edits: Edits, last: bool
) -> tuple[State, dict[str, Tensor], list[Any]]:
    """Trace one latent step of every cell that has begun, with the edits inside; what they measure, and what they keep.

    But at the last step, the cells that begin at the next one take their hosts' latents.
    """
    cells = rows.begun(step)
    own = torch.eye(cells, dtype=torch.bool, device=model.device).expand(len(rows.ids), cells, cells)
    seen = {layer: mask[:, :cells] for layer, mask in seen_by(rows, rows.at_step(step), step).items()}
    masks, project = as_numbers(model, beside(seen, own)), model.latent_after
    joined = None if last or rows.begun(step + 1) == cells else rows.joined(step + 1)
    visited = model.blocks if edits.blocks or len(masks) > 1 else ()
    measured: dict[str, Tensor] = {}
    kept: list[Any] = []
    with model.lm.trace(
        inputs_embeds=state.latent, attention_mask=masks[None], position_ids=state.position[:, :cells],
        past_key_values=state.cache, use_cache=True, logits_to_keep=no_logits(model) if edits.read is None else 0,
    ):  # fmt: skip
        for layer, block in enumerate(visited):
            set_masks(model, masks, layer)
            for edit in edits.blocks:
                retain(kept, edit(block, layer, step))
        hidden = model.norm.output
        latent = project(hidden)
        if joined is not None:
            latent = latent[:, joined]
        if edits.latent is not None:
            latent = edits.latent(latent, step + 1)
        if edits.read is not None:
            for name, value in edits.read(hidden.float(), model.lm.lm_head.output.float(), step).items():
                measured[name] = nnsight.save(value)
        cache = model.lm.output.past_key_values  # the one that went in, or where that was sent, a copy that has grown
        if edits.cache is not None:
            edits.cache(cache, step)
    return State(cache, state.seen, state.position + 1, latent), measured, kept


def see_thought(rows: Rows, state: State, steps: int) -> State:
    """From here on, each cell sees what `rows.after` names, and stands behind the steps that it took."""
    position = state.position if rows.stops is None else state.position + rows.stops - steps
    return State(state.cache, seen_by(rows, rows.at_answer(steps), steps), position, state.latent)


class Run(NamedTuple):
    """What a block brings back: logits where nothing was measured, else the numbers, and greedy tokens if wanted."""

    forced: Forced | None
    measured: dict[str, Tensor]
    tokens: Int[Tensor, "row cell token"] | None
    at_steps: tuple[dict[str, Tensor], ...]  # what `Edits.read` measured at each step
    kept: Kept = Kept()


class Block(NamedTuple):
    """Cells that run together: how they stand in their rows, what is forced on them, rewritten in them and measured."""

    rows: Rows
    script: Script
    edits: Edits = Edits()
    measure: Measure | None = None


Maker = Callable[[Rows], Block]  # makes a block of the rows' questions, where the model is and with its tensors there


def run(
    model: CodiModel,
    rows: Rows,
    forced: Int[Tensor, "row token"] | Script,
    *,
    edits: Edits | Sequence[Edit] = (),
    measure: Measure | None = None,
    **options: Any,
) -> Run:
    """Read the questions, think, answer: every cell of every row. `options` are those of `start_blocks`.

    Raises ValueError where even the forced tokens have no room.
    """
    edits = edits if isinstance(edits, Edits) else Edits(tuple(edits))
    script = forced if isinstance(forced, Script) else Script(forced)
    wanted = options.get("n_latents")
    steps = model.n_latents if wanted is None else wanted
    longest = positions_needed(model, int((rows.bot_position.cpu().amax(1) + script.lengths.cpu()).max()), 0, steps)
    if longest > model.n_positions:
        have = f"the model has {model.n_positions}"
        raise ValueError(f"question, thought and answer need {longest} positions, {have}; shorten them")
    (done,) = runs_of(start_blocks(model, rows, [partial(as_block, script, edits, measure)], **options).result())
    return done


def as_block(script: Script, edits: Edits, measure: Measure | None, rows: Rows) -> Block:
    """A block of what is known before its rows are where the model is."""
    return Block(rows, script.to(rows.ids.device), edits, measure)


def start_blocks(
    model: CodiModel,
    rows: Rows,
    makers: Sequence[Maker],
    *,
    max_new_tokens: int = 0,
    n_latents: int | None = None,
    gradients: bool = False,
    remote: bool | str | None = None,
) -> Started:
    """Run blocks of cells over the same questions, which are read once, in one session; `runs_of` reads its result.

    Blocks are made inside the session, so that little is sent where that is elsewhere. `n_latents` stops early or goes
    on; a cell's decoding ends with the model's last position. With `gradients`, `measure` may differentiate by what the
    edits made require one.
    """
    steps = model.n_latents if n_latents is None else n_latents
    body = partial(think_blocks, model, rows.to(CPU), tuple(makers), steps, max_new_tokens)
    return start(model, body, gradients=gradients, remote=remote)


def think_blocks(
    model: CodiModel, rows: Rows, makers: Sequence[Maker], steps: int, max_new_tokens: int
) -> list[tuple[Any, ...]]:
    """Read the questions, and run block after block over them. Call inside a session."""
    rows = rows.to(model.device)
    blocks = [make(rows) for make in makers]
    question = read_question(model, rows, blocks[0].edits.question)
    return [plain(think_and_answer(model, block, question, steps, max_new_tokens)) for block in blocks]


def plain(done: Run) -> tuple[Any, ...]:
    """A run without a class of ours in it, which could not come back from where our code is not installed."""
    forced = None if done.forced is None else tuple(done.forced)
    return (forced, done.measured, done.tokens, done.at_steps, tuple(done.kept))


def runs_of(plain_runs: Sequence[tuple[Any, ...]]) -> list[Run]:
    """The runs that a session of blocks brought back."""
    return [
        Run(None if forced is None else Forced(*forced), measured, tokens, at_steps, Kept(*kept))
        for forced, measured, tokens, at_steps, kept in plain_runs
    ]


def think_and_answer(model: CodiModel, block: Block, question: Question, steps: int, max_new_tokens: int) -> Run:
    """One block of cells: their latent steps, what is forced, and greedy decoding. Call inside a session."""
    rows, edits = block.rows, block.edits
    state, at_steps, of_steps = begin(rows, question, edits), [], []
    for step in range(steps):
        state, found, kept = latent_step(model, rows, state, step, edits, step == steps - 1)
        at_steps.append(found)
        of_steps += kept
    state = see_thought(rows, state, steps)
    state, forced, heard, measured, of_answer = force_answer(
        model, state, block.script, block.measure, max_new_tokens > 0, edits.answer
    )
    tokens = decode_greedily(model, state, block.script, heard, max_new_tokens) if heard is not None else None
    everything = Kept(tuple(question.kept), tuple(of_steps), tuple(of_answer))
    return Run(forced if block.measure is None else None, measured, tokens, tuple(at_steps), everything)


def record(
    model: CodiModel, questions: Sequence[str], *, edits: Sequence[Edit] = (), max_new_tokens: int = 12,
    remote: bool | str | None = None,
) -> Thought:  # fmt: skip
    """Run each question once, under the user's edits if any, and keep its thought.

    There is one cell per row, so an edit writes `block.output[:, 0]`, `[pair, d_model]`. `logits` are those after the
    answer prefix, `answers` the greedy texts.
    """
    rows = encode(model, [[question] for question in questions])

    def latent(block: Any, layer: int, step: int) -> Tensor | None:  # what is fed, before GPT-2 adds its positions
        return model.decoder.inputs[1]["inputs_embeds"][:, 0].clone() if layer == 0 else None

    def resid(block: Any, layer: int, step: int) -> Tensor:
        return block.output[:, 0].clone()

    def unkept(edit: Edit) -> Edit:
        def alone(block: Any, layer: int, step: int) -> None:
            edit(block, layer, step)

        return alone

    prefix = torch.tensor([answer_ids(model)] * len(questions))
    order = (latent, *map(unkept, edits), resid)
    done = run(model, rows, prefix, edits=order, max_new_tokens=max_new_tokens, remote=remote)
    found = torch.stack(done.kept.steps, 1).unflatten(1, (model.n_latents, 1 + model.n_layers))
    answers = texts(model, done.tokens)[0] if done.tokens is not None else []
    assert done.forced is not None
    return Thought(found[:, :, 1:].transpose(1, 2), found[:, :, 0], done.forced.at_read[:, 0], answers)
