"""The answer phase: EoT, teacher-forced tokens after it, and greedy decoding; many cells in one forward.

The forced tokens may branch: a cell scores both whole answers of a pair in the same forward, neither seeing the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nnsight
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from codi_tracing.traces.loop.masks import LoopState, additive_masks, append_keys, set_masks
from codi_tracing.traces.loop.tokens import opening_ids
from codi_tracing.traces.model.codi_model import CodiModel


class Script(NamedTuple):
    """The tokens to force after EoT: a trunk, and branches of it, each the rest of a whole answer with its EOS.

    The last `shared` tokens of the trunk belong to every branch's answer; -1 fills a shorter branch. Without `start`,
    logits at EoT are computed only for decoding.
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
        """Most tokens fed in each row; the last token of a branch is scored, not fed."""
        fed = [(branch >= 0).sum(1) - 1 for branch in self.branches]
        return self.trunk.shape[1] + torch.stack([self.trunk.new_zeros(len(self.trunk)), *fed]).amax(0)


class Forced(NamedTuple):
    """Logits where the answer starts (at EoT, or EOS after it) and at the read position, the trunk's last token.

    `logprobs[branch]` is the log-probability (nats) of a whole answer.
    """

    at_start: Float[Tensor, "row cell vocab"]  # empty without `Script.start`
    at_read: Float[Tensor, "row cell vocab"]
    logprobs: Float[Tensor, "branch row cell"]


class AcceptedPrefix(NamedTuple):
    """Length of the trunk's prefix that greedy decoding reproduces, and the token that it decodes next."""

    length: Int[Tensor, "row cell"]
    token: Int[Tensor, "row cell"]


Measure = Callable[[Forced], dict[str, Tensor]]
Visit = Callable[[Any, int], Any]  # called inside a trace with each block and its layer, in forward order


def save_into(saved: list[Any], value: Any) -> None:
    """Save a value inside a trace, unless it is None, so that it comes back from a deployment too."""
    if value is not None:
        saved.append(nnsight.save(value))


def force_answer(
    model: CodiModel, state: LoopState, script: Script, measure: Measure | None = None, decode: bool = False,
    visit: Visit | None = None,
) -> tuple[LoopState, Forced | None, AcceptedPrefix | None, dict[str, Tensor], list[Any]]:  # fmt: skip
    """Trace EoT and the teacher-forced tokens of every cell.

    With `measure`, which is called inside the trace, its results come back instead of the logits. With `decode`, the
    returned state sees EoT and the prefix of the trunk that greedy decoding reproduces. The last element are the values
    that `visit` returned at each block.
    """
    rows, cells = state.position.shape
    device, eot = model.device, model.eot
    opening = torch.tensor(opening_ids(model), device=device)
    opened, trunk = len(opening), len(opening) + script.trunk.shape[1]
    fed = [branch[:, :-1].clamp(min=0) for branch in script.branches]
    offsets, tree = branching(trunk, [part.shape[1] for part in fed], device)
    length = len(offsets)
    seen = {layer: mask.repeat_interleave(length, 1) for layer, mask in state.seen.items()}
    masks = additive_masks(model, append_keys(seen, torch.block_diag(*[tree] * cells).expand(rows, -1, -1)))
    ids = torch.cat([opening.expand(rows, -1), script.trunk, *fed], 1).repeat(1, cells)
    position = (
        (state.position[..., None] + offsets).flatten(1).clamp(max=model.n_positions - 1)
    )  # padding of a branch may exceed it
    at_eot = torch.arange(cells, device=device) * length
    read = [opened - 1] * script.start + [*range(trunk - 1 - script.shared * bool(fed), length)]
    kept = list(range(opened - 1, length)) if decode else read  # of which logits are computed
    picked = torch.tensor([kept.index(index) for index in read], device=device)
    keep = (at_eot[:, None] + torch.tensor(kept, device=device)).flatten()
    measured: dict[str, Tensor] = {}
    saved: list[Any] = []
    forced, accepted = None, None
    with model.lm.trace(
        input_ids=ids, attention_mask=masks[None], position_ids=position,
        past_key_values=state.cache, use_cache=True, logits_to_keep=keep,
    ):  # fmt: skip
        model.embedding.output[:, at_eot] = eot
        for layer in range(model.n_layers if len(masks) > 1 or visit is not None else 0):
            set_masks(model, masks, layer)
            if visit is not None:
                save_into(saved, visit(model.blocks[layer], layer))
        logits = model.lm.lm_head.output.unflatten(1, (cells, -1))
        if decode:
            accepted = nnsight.save(accepted_prefix(logits[:, :, : trunk - opened + 1].argmax(-1), script.trunk))
        read_out = forced_of(logits[:, :, picked].float(), script)
        if measure is None:
            forced = nnsight.save(Forced(read_out.at_start.clone(), read_out.at_read.clone(), read_out.logprobs))
        else:
            for name, value in measure(read_out).items():
                measured[name] = nnsight.save(value)
        cache = model.lm.output.past_key_values
    after = LoopState(cache, state.seen, state.position + opened, state.latent)
    if accepted is not None:
        seen_tokens = torch.arange(length, device=device) < opened + accepted.length[..., None]
        masks_after = append_keys(state.seen, own_tokens_mask(seen_tokens))
        after = LoopState(cache, masks_after, after.position + accepted.length, state.latent)
    return after, forced, accepted, measured, saved


def accepted_prefix(likeliest: Int[Tensor, "row cell token"], trunk: Int[Tensor, "row token"]) -> AcceptedPrefix:
    """Compare the trunk with the likeliest token at each of its positions and after it."""
    length = (likeliest[:, :, :-1] == trunk[:, None]).cumprod(-1).sum(-1)
    return AcceptedPrefix(length, likeliest.gather(-1, length[..., None])[..., 0])


def own_tokens_mask(seen: Bool[Tensor, "row cell token"]) -> Bool[Tensor, "row cell key"]:
    """The mask over all cells' tokens side by side, of which each cell sees some of its own."""
    cells = seen.shape[1]
    own = torch.eye(cells, dtype=torch.bool, device=seen.device)
    return (own[None, :, :, None] & seen[:, :, None]).flatten(2)


def branching(
    trunk: int, branches: Sequence[int], device: torch.device
) -> tuple[Int[Tensor, " token"], Bool[Tensor, "token token"]]:
    """Positions and mask of a trunk and of branches that each continue it and do not see one another."""
    offsets = [*range(trunk), *(trunk + i for size in branches for i in range(size))]
    branch = torch.tensor([-1] * trunk + [i for i, size in enumerate(branches) for _ in range(size)], device=device)
    causal = torch.ones(len(offsets), len(offsets), dtype=torch.bool, device=device).tril()
    return torch.tensor(offsets, device=device), causal & ((branch == -1) | (branch[:, None] == branch))


def forced_of(logits: Float[Tensor, "row cell token vocab"], script: Script) -> Forced:
    """`Forced` from logits at EoT (with `Script.start`) and those that predict the trunk's shared end onwards."""
    eot, shared = int(script.start), script.shared if script.branches else 0
    logprobs, start = [], eot + shared + 1  # after EoT, the shared tokens' predictions and the trunk's last
    for branch in script.branches:
        trunk = logits[:, :, eot : eot + shared + 1]
        predicting = torch.cat([trunk, logits[:, :, start : start + branch.shape[1] - 1]], 2)
        start += branch.shape[1] - 1
        answer = torch.cat([script.trunk[:, script.trunk.shape[1] - shared :], branch], 1)[:, None, :, None]
        scores = predicting.log_softmax(-1).gather(-1, answer.clamp(min=0).expand(-1, logits.shape[1], -1, -1))
        logprobs.append(scores.where(answer >= 0, 0.0).sum((2, 3)))
    at_start = logits[:, :, 0] if script.start else logits.new_zeros(0)
    return Forced(at_start, logits[:, :, eot + shared], torch.stack(logprobs) if logprobs else logits.new_zeros(0))


def decode_greedily(
    model: CodiModel, state: LoopState, script: Script, prefix: AcceptedPrefix, max_new_tokens: int
) -> Int[Tensor, "row cell token"]:
    """Feed back the likeliest token, one trace per token, until every cell decodes EOS or the limit is reached.

    Decoding starts after the accepted prefix of the trunk. A cell without a position left decodes EOS.
    """
    rows, cells = state.position.shape
    own = torch.eye(cells, dtype=torch.bool, device=model.device).expand(rows, cells, cells)
    eos, accepted, trunk = model.tokenizer.eos_token_id, prefix.length, script.trunk.shape[1]
    tokens = torch.full((rows, cells, max(trunk, max_new_tokens) + 1), eos, device=model.device)
    tokens[:, :, :trunk] = script.trunk[:, None].where(
        torch.arange(trunk, device=model.device) < accepted[..., None], eos
    )
    token, seen, cache, done = prefix.token, state.seen, state.cache, accepted >= max_new_tokens
    for index in range(max_new_tokens):
        at, position = accepted + index, state.position + index
        tokens.scatter_(-1, at.clamp(max=tokens.shape[-1] - 1)[..., None], token.where(~done, eos)[..., None])
        done = done | (token == eos) | (position >= model.n_positions) | (at >= max_new_tokens - 1)
        if bool(done.all()):
            break
        seen = append_keys(seen, own)
        masks = additive_masks(model, seen)
        with model.lm.trace(
            input_ids=token, attention_mask=masks[None],
            position_ids=position.clamp(max=model.n_positions - 1), past_key_values=cache, use_cache=True,
        ):  # fmt: skip
            for layer in range(model.n_layers if len(masks) > 1 else 0):
                set_masks(model, masks, layer)
            token = model.lm.lm_head.output.argmax(-1)
            cache = model.lm.output.past_key_values
    return tokens[:, :, :max_new_tokens]
