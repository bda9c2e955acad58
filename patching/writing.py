"""How cells are written: copies between the cells of one forward, computed values, and what each sees of the cache.

Hosts and donors run beside the patched cells, so a patch is a copy from one cell to another, at the latent, inside a
block or in the cache; whole segments, whole entries and frozen cache routes are changes of sight alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patching.means import Means
from patching.sites import INSIDE, Site
from patching.sources import Value, Values
from traces.model import CodiModel
from traces.rows import Rows, Sight
from traces.thought import Edits


class Write(NamedTuple):
    """One patched cell: its index, its host's and its donor's cell, what is written, and which routes are held.

    With a `value` it is computed, and the donor is the pair's other run, which the value may look at.
    """

    cell: int
    host: int
    donor: int
    site: Site
    freeze: tuple[str, ...] = ()
    value: Value | None = None


class Given(NamedTuple):
    """What computed values need beside the forward itself: means by kind of site, and a seed for each row."""

    means: Means
    seeds: tuple[str, ...]


Place = tuple[str, int, int, int | None]  # kind, layer, step, head


class Plan(NamedTuple):
    """What is written at one place: copies from cell to cell, then computed values."""

    into: Tensor
    donor: Tensor
    computed: tuple[Write, ...]


def edits_of(model: CodiModel, rows: Rows, writes: Sequence[Write], given: Given | None = None) -> Edits:
    """What is written while the cells think."""
    inside = plans(model, writes, INSIDE)
    latents = plans(model, writes, ("latent",))
    entries = plans(model, [w for w in writes if w.site.layer is not None], ("kv",))
    held = held_latents(model, writes)

    def latent(values: Tensor, step: int) -> Tensor:
        values = values.clone()
        if step in held:
            into, host = held[step]
            values[:, into] = values[:, host]
        place = ("latent", 0, step, None)
        if place in latents:
            write_values(values, latents[place], place, given)
        return values

    def cache(stored: Any, step: int) -> None:
        for (_, layer, at, _), plan in entries.items():
            if at == step:
                entry = stored.layers[layer]
                into, donor = rows.column(plan.into, step), rows.column(plan.donor, step)
                entry.keys[:, :, into] = entry.keys[:, :, donor]
                entry.values[:, :, into] = entry.values[:, :, donor]

    blocks = (block_writer(model, inside, given),) if inside else ()
    return Edits(blocks, latent if held or latents else None, cache if entries else None)


def plans(model: CodiModel, writes: Sequence[Write], kinds: Sequence[str]) -> dict[Place, Plan]:
    """Which cells are written from what, by place."""
    found: dict[Place, list[Write]] = defaultdict(list)
    for write in writes:
        if write.site.kind in kinds:
            places = write.site.places(model)
            for layer, step in {(0, s) for _, s in places} if write.site.kind == "latent" else places:
                found[write.site.kind, layer, step, write.site.head].append(write)
    return {place: plan_of(model, members) for place, members in found.items()}


def plan_of(model: CodiModel, writes: Sequence[Write]) -> Plan:
    copied = [write for write in writes if write.value is None]
    into, donor = pair_up(model, [(write.cell, write.donor) for write in copied])
    return Plan(into, donor, tuple(write for write in writes if write.value is not None))


def pair_up(model: CodiModel, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    into, donor = torch.tensor(sorted(pairs), dtype=torch.long, device=model.device).reshape(-1, 2).T
    return into, donor


def write_values(stands: Tensor, plan: Plan, place: Place, given: Given | None, part: slice = slice(None)) -> None:
    """Write one place, `[pair, cell, width]`, in place; `part` is a head's share of the width."""
    stands[:, plan.into, part] = stands[:, plan.donor, part]
    for write in plan.computed:
        assert write.value is not None
        assert given is not None
        kind, layer, step, _ = place
        own, host, other = (stands[:, cell, part] for cell in (write.cell, write.host, write.donor))
        means = given.means[kind][layer][:, part].to(own)
        noise = normal(given.seeds, place, own.shape[-1]).to(own)
        stands[:, write.cell, part] = write.value.write(
            Values(own, host, other, means.mean(0), means[step], noise)
        )  # fmt: skip


def normal(seeds: Sequence[str], place: Place, width: int) -> Tensor:
    """Standard normal values, `[pair, width]`, that depend on the pair's seed and the place alone."""
    drawn = []
    for seed in seeds:
        number = int.from_bytes(hashlib.sha256(f"{seed}:{place}".encode()).digest()[:8], "big")
        drawn.append(torch.randn(width, generator=torch.Generator().manual_seed(number % 2**63)))
    return torch.stack(drawn)


def held_latents(model: CodiModel, writes: Sequence[Write]) -> dict[int, tuple[Tensor, Tensor]]:
    """Where R is frozen: the latent after each written step is the host's."""
    plan: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for write in writes:
        if "R" in write.freeze:
            for step in write.site.steps(model):
                plan[step + 1].append((write.cell, write.host))
    return {step: pair_up(model, pairs) for step, pairs in plan.items()}


def block_writer(model: CodiModel, inside: dict[Place, Plan], given: Given | None) -> Callable[[Any, int, int], None]:
    """The edit that writes within a block, in forward order: heads, attention, MLP, residual stream."""
    heads = sorted({head for kind, _, _, head in inside if kind == "head" and head is not None})
    width = model.head_width

    def write(block: Any, layer: int, step: int) -> None:
        for head in heads:
            place: Place = ("head", layer, step, head)
            if place in inside:
                part = slice(head * width, (head + 1) * width)
                write_values(model.heads(block).input, inside[place], place, given, part)
        place = ("attn", layer, step, None)
        if place in inside:
            write_values(model.attention(block).output[0], inside[place], place, given)
        place = ("mlp", layer, step, None)
        if place in inside:
            write_values(model.mlp(block).output, inside[place], place, given)
        place = ("resid", layer, step, None)
        if place in inside:
            write_values(block.output, inside[place], place, given)

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
            elif ((kind == "thought" and route == "K_A") or whole) and route not in write.freeze:
                sight.steps[write.cell, seen] = write.donor
            elif kind not in ("question", "bot", "thought") and route in write.freeze:
                sight.steps[write.cell, seen] = write.host
    return replace(rows, during=tuple(during), after=after)


def fresh(sight: Sight) -> Sight:
    """A sight of its own, to be changed."""
    return Sight(*(tensor.clone() for tensor in sight))
