"""The answer phase: EoT, what is teacher-forced after it, and greedy decoding; many cells in one forward.

What is forced may branch: the cells read both whole answers of a pair in the same forward, neither seeing the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nnsight
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from codi_tracing.traces.loop.masks import State, as_numbers, beside, set_masks
from codi_tracing.traces.loop.tokens import opening_ids
from codi_tracing.traces.model.codi_model import CodiModel


class Script(NamedTuple):
    """What is teacher-forced after EoT: a trunk, and branches of it, each the rest of a whole answer with its EOS.

    The last `shared` tokens of the trunk are what the branches' answers have in common; -1 fills a shorter branch.
    Without `start`, the logits at EoT are not computed where nothing else wants them.
    """

    trunk: Int[Tensor, "row token"]
    branches: tuple[Int[Tensor, "row token"], ...] = ()
    shared: int = 0
    start: bool = True

    def to(self, device: torch.device) -> Script:
        return self._replace(trunk=self.trunk.to(device), branches=tuple(branch.to(device) for branch in self.branches))

    @property
    def nothing(self) -> Script:
        """Nothing forced, on as many rows."""
        return Script(self.trunk[:, :0])

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

    at_start: Float[Tensor, "row cell vocab"]  # empty where the script leaves it out
    at_read: Float[Tensor, "row cell vocab"]
    said: Float[Tensor, "branch row cell"]


class Heard(NamedTuple):
    """How far greedy decoding would have said the trunk itself, and the first token that it says then."""

    accepted: Int[Tensor, "row cell"]
    token: Int[Tensor, "row cell"]


Measure = Callable[[Forced], dict[str, Tensor]]
Visit = Callable[[Any, int], Any]  # called inside a trace with each block and its layer, in forward order


def retain(kept: list[Any], found: Any) -> None:
    """Save what a function returned inside a trace, so that it comes back from wherever the model runs."""
    if found is not None:
        kept.append(nnsight.save(found))


def force_answer(
    model: CodiModel, state: State, script: Script, measure: Measure | None = None, decode: bool = False,
    visit: Visit | None = None,
) -> tuple[State, Forced | None, Heard | None, dict[str, Tensor], list[Any]]:  # fmt: skip
    """Trace EoT and the teacher-forced tokens of every cell.

    `measure` is called inside the trace with what was forced, and what it returns is saved instead of that. With
    `decode`, the state that comes back sees EoT and as much of the trunk as greedy decoding says too. Last comes what
    `visit` returned at each block.
    """
    rows, cells = state.position.shape
    device, eot = model.device, model.eot
    opening = torch.tensor(opening_ids(model), device=device)
    opened, trunk = len(opening), len(opening) + script.trunk.shape[1]
    fed = [branch[:, :-1].clamp(min=0) for branch in script.branches]
    offsets, tree = branching(trunk, [part.shape[1] for part in fed], device)
    length = len(offsets)
    seen = {layer: mask.repeat_interleave(length, 1) for layer, mask in state.seen.items()}
    masks = as_numbers(model, beside(seen, torch.block_diag(*[tree] * cells).expand(rows, -1, -1)))
    ids = torch.cat([opening.expand(rows, -1), script.trunk, *fed], 1).repeat(1, cells)
    position = (state.position[..., None] + offsets).flatten(1).clamp(max=model.n_positions - 1)  # of what fills up
    at_eot = torch.arange(cells, device=device) * length
    told = [opened - 1] * script.start + [*range(trunk - 1 - script.shared * bool(fed), length)]  # where it is read
    wanted = list(range(opened - 1, length)) if decode else told
    picked = torch.tensor([wanted.index(place) for place in told], device=device)
    keep = (at_eot[:, None] + torch.tensor(wanted, device=device)).flatten()
    measured: dict[str, Tensor] = {}
    kept: list[Any] = []
    forced, heard = None, None
    with model.lm.trace(
        input_ids=ids, attention_mask=masks[None], position_ids=position,
        past_key_values=state.cache, use_cache=True, logits_to_keep=keep,
    ):  # fmt: skip
        model.embedding.output[:, at_eot] = eot
        for layer in range(model.n_layers if len(masks) > 1 or visit is not None else 0):
            set_masks(model, masks, layer)
            if visit is not None:
                retain(kept, visit(model.blocks[layer], layer))
        logits = model.lm.lm_head.output.unflatten(1, (cells, -1))
        if decode:
            heard = nnsight.save(follow(logits[:, :, : trunk - opened + 1].argmax(-1), script.trunk))
        read = forced_of(logits[:, :, picked].float(), script)
        if measure is None:
            forced = nnsight.save(Forced(read.at_start.clone(), read.at_read.clone(), read.said))
        else:
            for name, value in measure(read).items():
                measured[name] = nnsight.save(value)
        cache = model.lm.output.past_key_values
    after = State(cache, state.seen, state.position + opened, state.latent)
    if heard is not None:
        fits = torch.arange(length, device=device) < opened + heard.accepted[..., None]
        after = State(cache, beside(state.seen, spread(fits)), after.position + heard.accepted, state.latent)
    return after, forced, heard, measured, kept


def follow(likeliest: Int[Tensor, "row cell token"], trunk: Int[Tensor, "row token"]) -> Heard:
    """How many tokens of the trunk are the likeliest ones, and what is said after them."""
    alike = (likeliest[:, :, :-1] == trunk[:, None]).cumprod(-1).sum(-1)
    return Heard(alike, likeliest.gather(-1, alike[..., None])[..., 0])


def spread(seen: Bool[Tensor, "row cell token"]) -> Bool[Tensor, "row cell key"]:
    """What each cell sees of its own tokens, with all cells' tokens side by side."""
    cells = seen.shape[1]
    own = torch.eye(cells, dtype=torch.bool, device=seen.device)
    return (own[None, :, :, None] & seen[:, :, None]).flatten(2)


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
    eot, shared = int(script.start), script.shared if script.branches else 0
    said, start = [], eot + shared + 1  # EoT, then the shared tokens' predictions, then the trunk's own
    for branch in script.branches:
        trunk = logits[:, :, eot : eot + shared + 1]
        predicting = torch.cat([trunk, logits[:, :, start : start + branch.shape[1] - 1]], 2)
        start += branch.shape[1] - 1
        told = torch.cat([script.trunk[:, script.trunk.shape[1] - shared :], branch], 1)[:, None, :, None]
        scores = predicting.log_softmax(-1).gather(-1, told.clamp(min=0).expand(-1, logits.shape[1], -1, -1))
        said.append(scores.where(told >= 0, 0.0).sum((2, 3)))
    at_start = logits[:, :, 0] if script.start else logits.new_zeros(0)
    return Forced(at_start, logits[:, :, eot + shared], torch.stack(said) if said else logits.new_zeros(0))


def decode_greedily(
    model: CodiModel, state: State, script: Script, heard: Heard, max_new_tokens: int
) -> Int[Tensor, "row cell token"]:
    """Feed back the likeliest token, one trace per token, until every cell has said EOS or the limit is reached.

    What was heard of the trunk is said already, so that decoding begins where a cell leaves it. A cell that has no
    position left says EOS, whatever else is in the batch.
    """
    rows, cells = state.position.shape
    own = torch.eye(cells, dtype=torch.bool, device=model.device).expand(rows, cells, cells)
    eos, accepted, trunk = model.tokenizer.eos_token_id, heard.accepted, script.trunk.shape[1]
    said = torch.full((rows, cells, max(trunk, max_new_tokens) + 1), eos, device=model.device)
    said[:, :, :trunk] = script.trunk[:, None].where(
        torch.arange(trunk, device=model.device) < accepted[..., None], eos
    )
    token, seen, cache, done = heard.token, state.seen, state.cache, accepted >= max_new_tokens
    for index in range(max_new_tokens):
        place, position = accepted + index, state.position + index
        said.scatter_(-1, place.clamp(max=said.shape[-1] - 1)[..., None], token.where(~done, eos)[..., None])
        done = done | (token == eos) | (position >= model.n_positions) | (place >= max_new_tokens - 1)
        if bool(done.all()):
            break
        seen = beside(seen, own)
        masks = as_numbers(model, seen)
        with model.lm.trace(
            input_ids=token, attention_mask=masks[None],
            position_ids=position.clamp(max=model.n_positions - 1), past_key_values=cache, use_cache=True,
        ):  # fmt: skip
            for layer in range(model.n_layers if len(masks) > 1 else 0):
                set_masks(model, masks, layer)
            token = model.lm.lm_head.output.argmax(-1)
            cache = model.lm.output.past_key_values
    return said[:, :, :max_new_tokens]
