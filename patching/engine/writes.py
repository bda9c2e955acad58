"""How cells are written: copies between the cells of one forward, computed values, and what each sees of the cache.

Hosts and donors run beside the patched cells, so a patch is a copy from one cell to another, at the latent, inside a
block or in the cache; whole segments, whole entries and frozen cache routes are changes of sight alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from codi_tracing.patching.engine.visibility import by_sight, thinker
from codi_tracing.patching.interventions.cells import Write
from codi_tracing.patching.interventions.sites import INSIDE, first_step
from codi_tracing.patching.interventions.sources import Values
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.single_pass import step_view
from codi_tracing.traces.loop.thought import Edits
from codi_tracing.traces.model.codi_model import CodiModel

if TYPE_CHECKING:
    from codi_tracing.patching.engine.means import Means


class Given(NamedTuple):
    """What computed values need beside the forward itself: means by kind of site, and a seed for each row."""

    means: Means
    seeds: tuple[str, ...]


class Sizes(NamedTuple):
    """Running sums of what was written into each cell, over all its places, in fp32."""

    change: Tensor  # squared norm of written - stood, [row, cell]
    product: Tensor  # their inner product
    written: Tensor  # their squared norms
    stood: Tensor

    def add(self, cells: Tensor | Sequence[int], stood: Tensor, written: Tensor) -> None:
        """Count what is written at one place, `[row, n, width]`, into `cells`."""
        stood, written = stood.float(), written.float()
        self.change[:, cells] += (written - stood).pow(2).sum(-1)
        self.product[:, cells] += (written * stood).sum(-1)
        self.written[:, cells] += written.pow(2).sum(-1)
        self.stood[:, cells] += stood.pow(2).sum(-1)


def no_sizes(rows: Rows) -> Sizes:
    """Sums to begin with."""
    shape = len(rows.ids), rows.n_cells
    return Sizes(*(torch.zeros(shape, device=rows.ids.device) for _ in Sizes._fields))


Place = tuple[str, int, int, int | None]  # kind, layer, step, head


class Plan(NamedTuple):
    """What is written at one place: copies from cell to cell, then computed values."""

    into: Tensor
    donor: Tensor
    computed: tuple[Write, ...]


def edits_of(
    model: CodiModel, rows: Rows, writes: Sequence[Write], given: Given | None = None, sizes: Sizes | None = None
) -> Edits:
    """What is written while the cells think; `sizes` is told of every edit but exchanged questions and BoTs."""
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
            write_values(values, latents[place], place, given, sizes)
        return values

    def cache(stored: Any, step: int) -> None:
        for (_, layer, at, _), plan in entries.items():
            if at == step:
                entry = stored.layers[layer]
                into, donor = rows.column(plan.into, step), rows.column(plan.donor, step)
                if sizes is not None:
                    sizes.add(plan.into, flat_entries(entry, into), flat_entries(entry, donor))
                entry.keys[:, :, into] = entry.keys[:, :, donor]
                entry.values[:, :, into] = entry.values[:, :, donor]
        if sizes is not None:
            for write in writes:  # whole entries are exchanged by sight
                if by_sight(write) and step in write.site.steps(model):
                    both = (rows.thinker(cell, step) for cell in (write.cell, thinker(write)))
                    own, donor = (rows.column(torch.tensor([cell]), step) for cell in both)
                    for entry in stored.layers:
                        sizes.add([write.cell], flat_entries(entry, own), flat_entries(entry, donor))

    blocks = (block_writer(model, inside, given, sizes),) if inside else ()
    return Edits(blocks, latent if held or latents else None, cache if entries or sizes is not None else None)


def flat_entries(entry: Any, columns: Tensor) -> Tensor:
    """Keys and values of some columns of a layer's cache side by side, `[row, column, width]`."""
    both = torch.cat([entry.keys[:, :, columns], entry.values[:, :, columns]], -1)
    return both.transpose(1, 2).flatten(2)


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


def write_values(
    stands: Tensor, plan: Plan, place: Place, given: Given | None, sizes: Sizes | None = None, part: slice = slice(None)
) -> None:
    """Write one place, `[pair, cell, width]`, in place; `part` is a head's share of the width."""
    copied = stands[:, plan.donor, part]
    if sizes is not None:
        sizes.add(plan.into, stands[:, plan.into, part], copied)
    stands[:, plan.into, part] = copied
    for write in plan.computed:
        assert write.value is not None
        assert given is not None
        kind, layer, step, _ = place
        own, host, other = (stands[:, cell, part] for cell in (write.cell, write.host, write.donor))
        means = given.means[kind][layer][:, part].to(own)
        noise = normal(given.seeds, place, own.shape[-1], write.draw).to(own)
        value = write.value.write(Values(own, host, other, means.mean(0), means[step], noise))
        if sizes is not None:
            sizes.add([write.cell], own[:, None], value[:, None])
        stands[:, write.cell, part] = value


def normal(seeds: Sequence[str], place: Place, width: int, draw: int = 0) -> Tensor:
    """Standard normal values, `[pair, width]`, that depend on the pair's seed, the place and the draw alone."""
    drawn = []
    for seed in seeds:
        name = f"{seed}:{place}" + (f":{draw}" if draw else "")
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        drawn.append(torch.randn(width, generator=torch.Generator().manual_seed(number % 2**63)))
    return torch.stack(drawn)


def held_latents(model: CodiModel, writes: Sequence[Write]) -> dict[int, tuple[Tensor, Tensor]]:
    """Which latents are the host's: after each written step where R is frozen; all but those, where only the direct
    way is open."""
    plan: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for write in writes:
        steps = write.site.steps(model)
        for step in range(max(model.n_latents, write.n_latents or 0)):
            after = step - 1 in steps
            if step < first_step(model, write.site, write.knockouts):
                continue
            if ("R" in write.freeze and after) or ("between" in write.freeze and not after and step not in steps):
                plan[step].add((write.cell, write.host))
    return {step: pair_up(model, list(pairs)) for step, pairs in plan.items()}


Viewed = Callable[[Tensor, int], Tensor]


def block_writer(
    model: CodiModel,
    inside: dict[Place, Plan],
    given: Given | None,
    sizes: Sizes | None = None,
    view: Viewed = lambda stands, step: stands,
    together: Sequence[int] = (),
) -> Callable[[Any, int, int], None]:
    """The edit that writes within a block, in forward order: heads, attention, MLP, residual stream.

    Where one forward holds several steps, they are `together`, and `view(tensor, step)` is one step's part of it.
    """
    heads = sorted({head for kind, _, _, head in inside if kind == "head" and head is not None})
    width = model.head_width

    def write(block: Any, layer: int, step: int) -> None:
        steps = together or (step,)

        def planned(kind: str, head: int | None = None) -> list[Place]:
            return [(kind, layer, at, head) for at in steps if (kind, layer, at, head) in inside]

        def put(stands: Tensor, places: list[Place], part: slice = slice(None)) -> None:
            for place in places:
                write_values(view(stands, place[2]), inside[place], place, given, sizes, part)

        for head in heads:
            if places := planned("head", head):
                put(model.activation(block, "head"), places, slice(head * width, (head + 1) * width))
        for kind in ("attn", "mlp", "resid"):
            if places := planned(kind):
                put(model.activation(block, kind), places)

    return write


def single_pass_edits(
    model: CodiModel, rows: Rows, writes: Sequence[Write], given: Given | None, sizes: Sizes | None, length: int
) -> Edits:
    """The same for the single pass over placeholders, each cell of `length` tokens, the first of them the pads."""
    view, together = step_view(rows.n_cells, length), range(model.n_latents)
    inside = plans(model, writes, INSIDE)
    return Edits((block_writer(model, inside, given, sizes, view, together),) if inside else ())
