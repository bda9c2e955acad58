"""How cells are patched: copies between the runs of one forward, and computed values.

Hosts and donors run beside the patched cells, so a patch copies from one run to another: at the latent, inside a block
or in the cache. Segments, whole entries and frozen cache routes are changes of visibility alone (`visibility`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from codi_tracing.configs.vocabulary import BLOCK_KINDS
from codi_tracing.patching.engine.visibility import entries_from, exchanges_entries
from codi_tracing.patching.interventions.cells import CellWrite
from codi_tracing.patching.interventions.sites import first_step
from codi_tracing.patching.interventions.sources import Values
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.single_pass import step_view
from codi_tracing.traces.loop.thought import Edits
from codi_tracing.traces.model.codi_model import CodiModel

if TYPE_CHECKING:
    from codi_tracing.patching.engine.means import Means


class ValueInputs(NamedTuple):
    """What computed values need beside the forward: means by kind of site, and a seed for each row."""

    means: Means
    seeds: tuple[str, ...]


class EditNorms(NamedTuple):
    """Running sums over all written sites of each run, `[row, run]` in fp32."""

    change: Tensor  # squared norm of written - replaced values
    product: Tensor  # their inner product
    written: Tensor  # their squared norms
    replaced: Tensor

    @classmethod
    def zeros(cls, rows: Rows) -> EditNorms:
        shape = len(rows.ids), rows.n_cells
        return cls(*(torch.zeros(shape, device=rows.ids.device) for _ in cls._fields))

    def add(self, runs: Tensor | Sequence[int], replaced: Tensor, written: Tensor) -> None:
        """Add what is written at one site into `runs`, `[row, run, width]`."""
        replaced, written = replaced.float(), written.float()
        self.change[:, runs] += (written - replaced).pow(2).sum(-1)
        self.product[:, runs] += (written * replaced).sum(-1)
        self.written[:, runs] += written.pow(2).sum(-1)
        self.replaced[:, runs] += replaced.pow(2).sum(-1)


WriteSite = tuple[str, int, int, int | None]  # kind, layer, step, head


class SiteWrites(NamedTuple):
    """What is written at one site: copies from run to run, then computed values."""

    into: Tensor
    donor: Tensor
    computed: tuple[CellWrite, ...]


def edits_of(
    model: CodiModel,
    rows: Rows,
    writes: Sequence[CellWrite],
    inputs: ValueInputs | None = None,
    norms: EditNorms | None = None,
) -> Edits:
    """What is written during the latent steps; `norms` counts every edit but exchanged questions and BoTs."""
    inside = writes_by_site(model, writes, BLOCK_KINDS)
    latents = writes_by_site(model, writes, ("latent",))
    entries = writes_by_site(model, [w for w in writes if w.cell.site.layer is not None], ("kv",))
    frozen = frozen_latents(model, writes)

    def latent(values: Tensor, step: int) -> Tensor:
        values = values.clone()
        if step in frozen:
            into, host = frozen[step]
            values[:, into] = values[:, host]
        site = ("latent", 0, step, None)
        if site in latents:
            write_values(values, latents[site], site, inputs, norms)
        return values

    def cache(stored: Any, step: int) -> None:
        for (_, layer, at, _), copies in entries.items():
            if at == step:
                entry = stored.layers[layer]
                into, donor = rows.column(copies.into, step), rows.column(copies.donor, step)
                if norms is not None:
                    norms.add(copies.into, flat_entries(entry, into), flat_entries(entry, donor))
                entry.keys[:, :, into] = entry.keys[:, :, donor]
                entry.values[:, :, into] = entry.values[:, :, donor]
        if norms is not None:
            for write in writes:  # whole entries are exchanged by what a run attends to
                if exchanges_entries(write) and step in write.cell.site.steps(model):
                    both = (rows.thinker(cell, step) for cell in (write.run, entries_from(write)))
                    own, donor = (rows.column(torch.tensor([cell]), step) for cell in both)
                    for entry in stored.layers:
                        norms.add([write.run], flat_entries(entry, own), flat_entries(entry, donor))

    blocks = (block_writer(model, inside, inputs, norms),) if inside else ()
    return Edits(blocks, latent if frozen or latents else None, cache if entries or norms is not None else None)


def flat_entries(entry: Any, columns: Tensor) -> Tensor:
    """Keys and values of some columns of a layer's cache side by side, `[row, column, width]`."""
    both = torch.cat([entry.keys[:, :, columns], entry.values[:, :, columns]], -1)
    return both.transpose(1, 2).flatten(2)


def writes_by_site(model: CodiModel, writes: Sequence[CellWrite], kinds: Sequence[str]) -> dict[WriteSite, SiteWrites]:
    """The writes at each single site."""
    members: dict[WriteSite, list[CellWrite]] = defaultdict(list)
    for write in writes:
        kind, head = write.cell.site.kind, write.cell.site.head
        if kind in kinds:
            for layer, step in write.cell.site.places(model):
                if kind != "latent" or layer == 0:
                    members[kind, layer, step, head].append(write)
    found = {}
    for site, at_site in members.items():
        into, donor = as_tensors(model, [(write.run, write.donor) for write in at_site if write.cell.value is None])
        found[site] = SiteWrites(into, donor, tuple(write for write in at_site if write.cell.value is not None))
    return found


def as_tensors(model: CodiModel, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    into, donor = torch.tensor(sorted(pairs), dtype=torch.long, device=model.device).reshape(-1, 2).T
    return into, donor


def write_values(
    current: Tensor,
    writes: SiteWrites,
    site: WriteSite,
    inputs: ValueInputs | None,
    norms: EditNorms | None = None,
    part: slice = slice(None),
) -> None:
    """Write one site in place, `[pair, run, width]`; `part` is a head's slice of the width."""
    copied = current[:, writes.donor, part]
    if norms is not None:
        norms.add(writes.into, current[:, writes.into, part], copied)
    current[:, writes.into, part] = copied
    kind, layer, step, _ = site
    for write in writes.computed:
        assert write.cell.value is not None
        assert inputs is not None
        own, host, other = (current[:, run, part] for run in (write.run, write.host, write.donor))
        means = inputs.means[kind][layer][:, part].to(own)
        noise = normal(inputs.seeds, site, own.shape[-1], write.cell.draw).to(own)
        value = write.cell.value.write(Values(own, host, other, means.mean(0), means[step], noise))
        if norms is not None:
            norms.add([write.run], own[:, None], value[:, None])
        current[:, write.run, part] = value


def normal(seeds: Sequence[str], site: WriteSite, width: int, draw: int = 0) -> Tensor:
    """Standard normal values, `[pair, width]`, that depend only on the pair's seed, the site and the draw."""
    values = []
    for seed in seeds:
        name = f"{seed}:{site}" + (f":{draw}" if draw else "")
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        values.append(torch.randn(width, generator=torch.Generator().manual_seed(number % 2**63)))
    return torch.stack(values)


def frozen_latents(model: CodiModel, writes: Sequence[CellWrite]) -> dict[int, tuple[Tensor, Tensor]]:
    """By step, the runs that get their host's latent: after a written step if R is frozen; if `between` is, at every
    step but the written ones and those right after them."""
    frozen: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for write in writes:
        cell, steps = write.cell, write.cell.site.steps(model)
        for step in range(first_step(model, cell.site, cell.knockouts), max(model.n_latents, cell.n_latents or 0)):
            after = step - 1 in steps
            if ("R" in cell.freeze and after) or ("between" in cell.freeze and not after and step not in steps):
                frozen[step].add((write.run, write.host))
    return {step: as_tensors(model, list(pairs)) for step, pairs in frozen.items()}


def block_writer(
    model: CodiModel,
    inside: dict[WriteSite, SiteWrites],
    inputs: ValueInputs | None,
    norms: EditNorms | None = None,
    view: Callable[[Tensor, int], Tensor] = lambda current, step: current,
    together: Sequence[int] = (),
) -> Callable[[Any, int, int], None]:
    """The edit that writes within a block, in forward order: heads, attention, MLP, residual stream.

    If one forward computes several steps, they are `together`, and `view(tensor, step)` is one step's part of it.
    """
    heads = sorted({head for kind, _, _, head in inside if kind == "head" and head is not None})
    width = model.head_width

    def write(block: Any, layer: int, step: int) -> None:
        steps = together or (step,)

        def planned(kind: str, head: int | None = None) -> list[WriteSite]:
            return [(kind, layer, at, head) for at in steps if (kind, layer, at, head) in inside]

        def put(stands: Tensor, places: list[WriteSite], part: slice = slice(None)) -> None:
            for place in places:
                write_values(view(stands, place[2]), inside[place], place, inputs, norms, part)

        for head in heads:
            if places := planned("head", head):
                put(model.activation(block, "head"), places, slice(head * width, (head + 1) * width))
        for kind in ("attn", "mlp", "resid"):
            if places := planned(kind):
                put(model.activation(block, kind), places)

    return write


def single_pass_edits(
    model: CodiModel,
    rows: Rows,
    writes: Sequence[CellWrite],
    inputs: ValueInputs | None,
    norms: EditNorms | None,
    length: int,
) -> Edits:
    """The same for the single pass, each run of `length` tokens, the first of them pads in place of the thought."""
    view, together = step_view(rows.n_cells, length), range(model.n_latents)
    inside = writes_by_site(model, writes, BLOCK_KINDS)
    return Edits((block_writer(model, inside, inputs, norms, view, together),) if inside else ())
