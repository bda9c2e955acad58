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
from dataclasses import dataclass
from typing import Any, NamedTuple

import nnsight
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from traces.model import CodiModel
from traces.rows import Rows, Sights
from traces.text import clean_text, last_number

Edit = Callable[[Any, int, int], None]


@dataclass(frozen=True)
class Edits:
    """What is rewritten, or read, while a model thinks; each function runs inside the trace.

    `blocks` are called at every block in forward order; `latent(latents, step)` gives the latents that are fed at a
    step; `cache(cache, step)` may write the entries that a step has just left, which later positions see;
    `read(hidden, logits, step)` measures a step by its final hidden state (after the final norm) and its lens.
    """

    blocks: tuple[Edit, ...] = ()
    latent: Callable[[Tensor, int], Tensor] | None = None
    cache: Callable[[Any, int], None] | None = None
    read: Callable[[Tensor, Tensor, int], dict[str, Tensor]] | None = None


class Script(NamedTuple):
    """What is teacher-forced after EoT: a trunk, and branches of it, each the rest of a whole answer with its EOS.

    The last `shared` tokens of the trunk are what the branches' answers have in common; -1 fills a shorter branch.
    """

    trunk: Int[Tensor, "row token"]
    branches: tuple[Int[Tensor, "row token"], ...] = ()
    shared: int = 0

    def to(self, device: torch.device) -> Script:
        return Script(self.trunk.to(device), tuple(branch.to(device) for branch in self.branches), self.shared)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """The longest that is forced in each row: the last token of a branch is scored, not fed."""
        fed = [(branch >= 0).sum(1) - 1 for branch in self.branches]
        return self.trunk.shape[1] + torch.stack([self.trunk.new_zeros(len(self.trunk)), *fed]).amax(0)


class Forced(NamedTuple):
    """The teacher-forced phase: logits where the answer starts (at EoT, or EOS after it) and at the read position.

    The read position is after the last token of the trunk. `said[branch]` is the log-probability (nats) of a whole
    answer.
    """

    at_start: Float[Tensor, "row cell vocab"]
    at_read: Float[Tensor, "row cell vocab"]
    said: Float[Tensor, "branch row cell"]


Measure = Callable[[Forced], dict[str, Tensor]]


class Thought(NamedTuple):
    """A recorded thought."""

    resid: Float[Tensor, "pair layer step d_model"]
    latents: Float[Tensor, "pair step d_model"]
    logits: Float[Tensor, "pair vocab"]
    answers: list[str]


class Asked(NamedTuple):
    """The answer to one question, and the tokens nearest to what each latent step computed."""

    answer_text: str
    answer: float
    steps: list[list[str]]


def question_ids(model: CodiModel, question: str) -> list[int]:
    """Token ids of a question with the tokenizer's own special tokens, and EOS where the checkpoint wants it."""
    ids = model.tokenizer(clean_text(question))["input_ids"]
    return ids if model.card.remove_eos else [*ids, model.tokenizer.eos_token_id]


def opening_ids(model: CodiModel) -> list[int]:
    """What ends a thought: a placeholder for EoT, and EOS where the checkpoint's questions end in EOS too."""
    return [0] if model.card.remove_eos else [0, model.tokenizer.eos_token_id]


def answer_ids(model: CodiModel, text: str = "") -> list[int]:
    """Token ids of the answer prefix with `text` after it, no special tokens."""
    return model.tokenizer(f"{model.card.answer_prefix}{text}", add_special_tokens=False)["input_ids"]


def positions_needed(model: CodiModel, question: int, answer: int, n_latents: int | None = None) -> int:
    """How many positions a run takes: so many question tokens, BoT, the thought, EoT, and so many answer tokens."""
    steps = model.n_latents if n_latents is None else n_latents
    return question + 1 + steps + len(opening_ids(model)) + answer


def encode(model: CodiModel, rows: Sequence[Sequence[str]], reads: Sequence[int] = (0,)) -> Rows:
    """Tokenise `rows[row][segment]`, pad on the left and put a placeholder for BoT last."""
    ids = [[[*question_ids(model, question), 0] for question in row] for row in rows]
    width = max(len(question) for row in ids for question in row)
    padded = [[[0] * (width - len(q)) + q for q in row] for row in ids]
    lengths = torch.tensor([[len(q) for q in row] for row in ids])
    valid = torch.arange(width) >= width - lengths[..., None]
    tokens, read = torch.tensor(padded), torch.tensor(list(reads))
    return Rows(tokens.to(model.device), valid.to(model.device), read.to(model.device))


@dataclass
class State:
    """What passes from trace to trace: the cache, what each cell sees of it next, and the latent to feed next."""

    cache: Any
    seen: Masks
    position: Int[Tensor, "row cell"]
    latent: Float[Tensor, "row cell d_model"]


Masks = dict[int | None, Bool[Tensor, "row query key"]]  # by layer, as `Sights`


def seen_by(rows: Rows, sights: Sights, steps: int) -> Masks:
    """What each cell sees of the cache, layer by layer where layers differ."""
    return {layer: rows.seen(sight, steps) for layer, sight in sights.items()}


def beside(masks: Masks, own: Bool[Tensor, "row query key"]) -> Masks:
    """The masks with the keys of the present forward behind those of the cache."""
    return {layer: torch.cat([mask, own], -1) for layer, mask in masks.items()}


def set_masks(model: CodiModel, masks: Masks, layer: int) -> None:
    """Give one layer its own mask; call inside a trace, before anything else of that layer."""
    if layer in masks:
        attention = model.attention(model.blocks[layer])
        args, kwargs = attention.inputs
        attention.inputs = (args, {**kwargs, "attention_mask": masks[layer][:, None]})


def read_question(model: CodiModel, rows: Rows, edits: Edits) -> State:
    """Trace the questions; BoT is a vector written over its placeholder. Call inside a session."""
    column, reads, bot, project = rows.bot_column, rows.reads, model.bot, model.project
    mask, position = rows.question_mask(), rows.bot_position[:, reads] + 1
    with model.lm.trace(
        input_ids=rows.ids.flatten(1), attention_mask=mask, position_ids=rows.positions, use_cache=True,
        logits_to_keep=1,
    ):  # fmt: skip
        model.embedding.output[:, column] = bot
        latent = project(model.norm.output[:, column])[:, reads]
        if edits.latent is not None:
            latent = edits.latent(latent, 0)
        cache = model.lm.output.past_key_values
    return State(cache, seen_by(rows, {None: rows.own(0)}, 0), position, latent)


def latent_step(model: CodiModel, rows: Rows, state: State, step: int, edits: Edits) -> tuple[State, dict[str, Tensor]]:
    """Trace one latent step of every cell, with the edits inside, block by block, and what they measure."""
    cells = rows.n_cells
    own = torch.eye(cells, dtype=torch.bool, device=model.device).expand(len(rows.ids), cells, cells)
    masks, project = beside(seen_by(rows, rows.at_step(step), step), own), model.project
    visited = model.blocks if edits.blocks or len(masks) > 1 else ()
    measured: dict[str, Tensor] = {}
    with model.lm.trace(
        inputs_embeds=state.latent, attention_mask=masks[None][:, None], position_ids=state.position,
        past_key_values=state.cache, use_cache=True, logits_to_keep=1 if edits.read is None else 0,
    ):  # fmt: skip
        for layer, block in enumerate(visited):
            set_masks(model, masks, layer)
            for edit in edits.blocks:
                edit(block, layer, step)
        hidden = model.norm.output
        latent = project(hidden)
        if edits.latent is not None:
            latent = edits.latent(latent, step + 1)
        if edits.read is not None:
            for name, value in edits.read(hidden.float(), model.lm.lm_head.output.float(), step).items():
                measured[name] = nnsight.save(value)
        if edits.cache is not None:
            edits.cache(model.lm.output.past_key_values, step)
    return State(state.cache, state.seen, state.position + 1, latent), measured


def see_thought(rows: Rows, state: State, steps: int) -> State:
    """From here on, each cell sees what `rows.after` names, and stands behind the steps that it took."""
    position = state.position if rows.stops is None else state.position + rows.stops - steps
    return State(state.cache, seen_by(rows, rows.at_answer(steps), steps), position, state.latent)


def force_answer(
    model: CodiModel, state: State, script: Script, measure: Measure | None = None
) -> tuple[State, Forced, dict[str, Tensor]]:
    """Trace EoT and the teacher-forced tokens of every cell.

    `measure` is called inside the trace with what was forced, and what it returns is saved. The state that comes back
    sees EoT but none of the forced tokens: greedy decoding goes on from there.
    """
    rows, cells = state.position.shape
    device, eot = model.device, model.eot
    opening = torch.tensor(opening_ids(model), device=device)
    opened, trunk = len(opening), len(opening) + script.trunk.shape[1]
    fed = [branch[:, :-1].clamp(min=0) for branch in script.branches]
    offsets, tree = branching(trunk, [part.shape[1] for part in fed], device)
    length = len(offsets)
    masks = beside(
        {layer: seen.repeat_interleave(length, 1) for layer, seen in state.seen.items()},
        torch.block_diag(*[tree] * cells).expand(rows, -1, -1),
    )
    ids = torch.cat([opening.expand(rows, -1), script.trunk, *fed], 1).repeat(1, cells)
    position = (state.position[..., None] + offsets).flatten(1).clamp(max=model.n_positions - 1)  # of what fills up
    at_eot = torch.arange(cells, device=device) * length
    wanted = torch.tensor([opened - 1, *range(trunk - 1 - script.shared * bool(fed), length)], device=device)
    keep = (at_eot[:, None] + wanted).flatten()
    measured: dict[str, Tensor] = {}
    with model.lm.trace(
        input_ids=ids, attention_mask=masks[None][:, None], position_ids=position,
        past_key_values=state.cache, use_cache=True, logits_to_keep=keep,
    ):  # fmt: skip
        model.embedding.output[:, at_eot] = eot
        for layer in range(model.n_layers if len(masks) > 1 else 0):
            set_masks(model, masks, layer)
        logits = model.lm.lm_head.output.float().unflatten(1, (cells, -1))
        forced = forced_of(logits, script)
        first, last = nnsight.save(forced.at_start.clone()), nnsight.save(forced.at_read.clone())
        said = nnsight.save(forced.said)
        if measure is not None:
            for name, value in measure(forced).items():
                measured[name] = nnsight.save(value)
    only_opening = torch.block_diag(*[(torch.arange(length, device=device) < opened)[None]] * cells)
    seen = beside(state.seen, only_opening.expand(rows, -1, -1))
    return State(state.cache, seen, state.position + opened, state.latent), Forced(first, last, said), measured


def branching(
    trunk: int, branches: Sequence[int], device: torch.device
) -> tuple[Int[Tensor, " token"], Bool[Tensor, "token token"]]:
    """Positions and mask of a trunk and of branches that all go on from its end, none seeing another."""
    offsets = [*range(trunk), *(trunk + i for size in branches for i in range(size))]
    branch = torch.tensor([-1] * trunk + [i for i, size in enumerate(branches) for _ in range(size)], device=device)
    causal = torch.ones(len(offsets), len(offsets), dtype=torch.bool, device=device).tril()
    return torch.tensor(offsets, device=device), causal & ((branch == -1) | (branch[:, None] == branch))


def forced_of(logits: Float[Tensor, "row cell token vocab"], script: Script) -> Forced:
    """What was forced, from the logits at EoT, then from those that predict the shared end of the trunk onwards."""
    shared = script.shared if script.branches else 0
    said, start = [], shared + 2  # EoT, then the shared tokens' predictions, then the trunk's own
    for branch in script.branches:
        predicting = torch.cat([logits[:, :, 1 : shared + 2], logits[:, :, start : start + branch.shape[1] - 1]], 2)
        start += branch.shape[1] - 1
        told = torch.cat([script.trunk[:, script.trunk.shape[1] - shared :], branch], 1)[:, None, :, None]
        scores = predicting.log_softmax(-1).gather(-1, told.clamp(min=0).expand(-1, logits.shape[1], -1, -1))
        said.append(scores.where(told >= 0, 0.0).sum((2, 3)))
    return Forced(logits[:, :, 0], logits[:, :, shared + 1], torch.stack(said) if said else logits.new_zeros(0))


def decode_greedily(
    model: CodiModel, state: State, at_start: Float[Tensor, "row cell vocab"], max_new_tokens: int
) -> Int[Tensor, "row cell token"]:
    """Feed back the likeliest token, one trace per token, until every cell has said EOS or the limit is reached.

    A cell that has no position left says EOS, whatever else is in the batch.
    """
    rows, cells = state.position.shape
    own = torch.eye(cells, dtype=torch.bool, device=model.device).expand(rows, cells, cells)
    token, seen, said, eos = at_start.argmax(-1), state.seen, [], model.tokenizer.eos_token_id
    done = torch.zeros_like(token, dtype=torch.bool)
    for index in range(max_new_tokens):
        said.append(token)
        position = state.position + index
        done = done | (token == eos) | (position >= model.n_positions)
        if index == max_new_tokens - 1 or bool(done.all()):
            break
        seen = beside(seen, own)
        with model.lm.trace(
            input_ids=token, attention_mask=seen[None][:, None],
            position_ids=position.clamp(max=model.n_positions - 1), past_key_values=state.cache, use_cache=True,
        ):  # fmt: skip
            for layer in range(model.n_layers if len(seen) > 1 else 0):
                set_masks(model, seen, layer)
            token = model.lm.lm_head.output.argmax(-1)
        token = torch.where(position < model.n_positions, token, eos)
    return torch.stack(said, -1)


class Run(NamedTuple):
    """What one session brings back: logits, measured numbers, and greedy tokens (`None` where not asked for)."""

    forced: Forced
    measured: dict[str, Tensor]
    tokens: Int[Tensor, "row cell token"] | None
    at_steps: tuple[dict[str, Tensor], ...]  # what `Edits.read` measured at each step


def run(
    model: CodiModel,
    rows: Rows,
    forced: Int[Tensor, "row token"] | Script,
    *,
    edits: Edits | Sequence[Edit] = (),
    measure: Measure | None = None,
    max_new_tokens: int = 0,
    n_latents: int | None = None,
    gradients: bool = False,
    remote: bool | str = False,
) -> Run:
    """Read the questions, think, answer: every cell of every row in one session.

    `n_latents` stops early or goes on; a cell's decoding ends with the model's last position. With `gradients`,
    `measure` may differentiate by what the edits made require one. Raises ValueError where even the forced tokens have
    no room.
    """
    steps = model.n_latents if n_latents is None else n_latents
    edits = edits if isinstance(edits, Edits) else Edits(tuple(edits))
    script = (forced if isinstance(forced, Script) else Script(forced)).to(model.device)
    longest = positions_needed(model, int((rows.bot_position.amax(1) + script.lengths).max()), 0, steps)
    if longest > model.n_positions:
        have = f"the model has {model.n_positions}"
        raise ValueError(f"question, thought and answer need {longest} positions, {have}; shorten them")
    at_steps: list[dict[str, Tensor]] = []
    with torch.set_grad_enabled(gradients), model.lm.session(remote=remote):
        state = read_question(model, rows, edits)
        for step in range(steps):
            state, found = latent_step(model, rows, state, step, edits)
            at_steps.append(found)
        state = see_thought(rows, state, steps)
        state, answer, measured = force_answer(model, state, script, measure)
        tokens = decode_greedily(model, state, answer.at_start, max_new_tokens) if max_new_tokens else None
        result = nnsight.save(Run(answer, measured, tokens, tuple(at_steps)))
    return result


def record(
    model: CodiModel, questions: Sequence[str], *, edits: Sequence[Edit] = (), max_new_tokens: int = 12,
    remote: bool | str = False,
) -> Thought:  # fmt: skip
    """Run each question once, under the user's edits if any, and keep its thought.

    There is one cell per row, so an edit writes `block.output[:, 0]`, `[pair, d_model]`. `logits` are those after the
    answer prefix, `answers` the greedy texts.
    """
    rows = encode(model, [[question] for question in questions])
    resid: list[Tensor] = []
    latents: list[Tensor] = []

    def keep_latent(block: Any, layer: int, step: int) -> None:
        if layer == 0:  # what was fed, before GPT-2 adds its positions
            latents.append(model.decoder.inputs[1]["inputs_embeds"][:, 0].clone().save())

    def keep_resid(block: Any, layer: int, step: int) -> None:
        resid.append(block.output[:, 0].clone().save())

    prefix = torch.tensor([answer_ids(model)] * len(questions))
    order = (keep_latent, *edits, keep_resid)
    done = run(model, rows, prefix, edits=order, max_new_tokens=max_new_tokens, remote=remote)
    by_step = torch.stack(resid, 1).unflatten(1, (model.n_latents, model.n_layers))
    answers = texts(model, done.tokens)[0] if done.tokens is not None else []
    return Thought(by_step.transpose(1, 2), torch.stack(latents, 1), done.forced.at_read[:, 0], answers)


def texts(model: CodiModel, tokens: Int[Tensor, "row cell token"]) -> list[list[str]]:
    """Decoded text of each cell of each row, up to EOS: `texts[cell][row]`."""
    eos = model.tokenizer.eos_token_id
    cut = [[said[: said.index(eos)] if eos in said else said for said in cells] for cells in tokens.tolist()]
    decoded = [model.tokenizer.batch_decode(cells, skip_special_tokens=True) for cells in cut]
    return [list(column) for column in zip(*decoded, strict=True)]


@torch.no_grad()
def ask(model: CodiModel, question: str, top: int = 5) -> Asked:
    """Answer one question and read each step's final hidden state through the LM head."""
    ids = question_ids(model, question)
    unknown = model.tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        words = [w for w in model.tokenizer.tokenize(clean_text(question)) if w == model.tokenizer.unk_token]
        known = "use the words and the numbers that its tokenizer knows"
        raise ValueError(f"{len(words)} word(s) of the question are unknown to this checkpoint; {known}")
    thought = record(model, [question])
    final = model.norm._module(thought.resid[0, -1])
    nearest = model.lm.lm_head._module(final).topk(top).indices
    steps = [[model.tokenizer.decode([token]).strip() for token in step] for step in nearest.tolist()]
    return Asked(thought.answers[0], last_number(thought.answers[0]), steps)
