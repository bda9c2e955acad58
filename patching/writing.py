"""How cells are written: copies between the cells of one forward, and what each cell sees of the cache.

Hosts and donors run beside the patched cells, so a patch is a copy from one cell to another, at the latent, inside a
block or in the cache; whole segments, whole entries and frozen cache routes are changes of sight alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patching.sites import INSIDE, Site
from traces.model import CodiModel
from traces.thought import Edits, Rows, Sight


class Write(NamedTuple):
    """One patched cell: its index, its host's and its donor's cell, what is written, and which routes are held."""

    cell: int
    host: int
    donor: int
    site: Site
    freeze: tuple[str, ...] = ()


Place = tuple[str, int, int, int | None]  # kind, layer, step, head
Copies = dict[Place, tuple[Tensor, Tensor]]


def edits_of(model: CodiModel, rows: Rows, writes: Sequence[Write]) -> Edits:
    """What is copied while the cells think."""
    inside = copies(model, writes, INSIDE)
    latents = copies(model, writes, ("latent",))
    entries = copies(model, [w for w in writes if w.site.layer is not None], ("kv",))
    held = held_latents(model, writes)

    def latent(values: Tensor, step: int) -> Tensor:
        for cells in (held.get(step), latents.get(("latent", 0, step, None))):
            if cells is not None:
                into, donor = cells
                values = values.index_copy(1, into, values[:, donor])
        return values

    def cache(stored: Any, step: int) -> None:
        for (_, layer, at, _), (into, donor) in entries.items():
            if at == step:
                held_by = stored.layers[layer]
                held_by.keys[:, :, rows.column(into, step)] = held_by.keys[:, :, rows.column(donor, step)]
                held_by.values[:, :, rows.column(into, step)] = held_by.values[:, :, rows.column(donor, step)]

    blocks = (block_writer(model, inside),) if inside else ()
    return Edits(blocks, latent if held or latents else None, cache if entries else None)


def copies(model: CodiModel, writes: Sequence[Write], kinds: Sequence[str]) -> Copies:
    """Which cells are written from which, by place."""
    plan: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    for write in writes:
        if write.site.kind in kinds:
            places = write.site.places(model)
            for layer, step in {(0, s) for _, s in places} if write.site.kind == "latent" else places:
                plan[write.site.kind, layer, step, write.site.head].append((write.cell, write.donor))
    return {place: pair_up(model, pairs) for place, pairs in plan.items()}


def pair_up(model: CodiModel, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    into, donor = torch.tensor(sorted(pairs), device=model.device).T
    return into, donor


def held_latents(model: CodiModel, writes: Sequence[Write]) -> dict[int, tuple[Tensor, Tensor]]:
    """Where R is frozen: the latent after each written step is the host's."""
    plan: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for write in writes:
        if "R" in write.freeze:
            for step in write.site.steps(model):
                plan[step + 1].append((write.cell, write.host))
    return {step: pair_up(model, pairs) for step, pairs in plan.items()}


def block_writer(model: CodiModel, inside: Copies) -> Callable[[Any, int, int], None]:
    """The edit that copies within a block, in forward order: heads, attention, MLP, residual stream."""
    heads = sorted({head for kind, _, _, head in inside if kind == "head" and head is not None})
    width = model.head_width

    def write(block: Any, layer: int, step: int) -> None:
        for head in heads:
            if ("head", layer, step, head) in inside:
                into, donor = inside["head", layer, step, head]
                part = slice(head * width, (head + 1) * width)
                model.heads(block).input[:, into, part] = model.heads(block).input[:, donor, part]
        if ("attn", layer, step, None) in inside:
            into, donor = inside["attn", layer, step, None]
            model.attention(block).output[0][:, into] = model.attention(block).output[0][:, donor]
        if ("mlp", layer, step, None) in inside:
            into, donor = inside["mlp", layer, step, None]
            model.mlp(block).output[:, into] = model.mlp(block).output[:, donor]
        if ("resid", layer, step, None) in inside:
            into, donor = inside["resid", layer, step, None]
            block.output[:, into] = block.output[:, donor]

    return write


def with_sight(model: CodiModel, rows: Rows, writes: Sequence[Write]) -> Rows:
    """The rows with every exchange and frozen route that is a matter of what a cell sees."""
    during = [fresh(rows.own(step)) for step in range(model.n_latents)]
    after = fresh(rows.own(model.n_latents))
    for write in writes:
        kind = write.site.kind
        steps = write.site.steps(model)
        for sight, route in [*((sight, "K_T") for sight in during), (after, "K_A")]:
            seen = [step for step in steps if step < sight.steps.shape[1]]
            whole = kind == "kv" and write.site.layer is None
            if kind in ("question", "bot") and route not in write.freeze:
                getattr(sight, kind)[write.cell] = rows.reads[write.donor]
            elif (kind == "thought" and route == "K_A") or (whole and route not in write.freeze):
                sight.steps[write.cell, seen] = write.donor
            elif kind not in ("question", "bot", "thought") and route in write.freeze:
                sight.steps[write.cell, seen] = write.host
    return replace(rows, during=tuple(during), after=after)


def fresh(sight: Sight) -> Sight:
    """A sight of its own, to be changed."""
    return Sight(*(tensor.clone() for tensor in sight))
