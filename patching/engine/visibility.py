"""Which cache entries each run attends to: exchanged segments, frozen routes, knocked-out edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from codi_tracing.patching.interventions.cells import Write
from codi_tracing.patching.interventions.edges import Edge, knock_out
from codi_tracing.patching.interventions.sites import Sized, first_step
from codi_tracing.traces.loop.rows import Rows, Sight, Sights
from codi_tracing.traces.model.codi_model import CodiModel


def by_sight(write: Write) -> bool:
    """Whether a write exchanges whole entries of the thought by what the cell sees."""
    return write.site.kind == "thought" or (write.site.kind == "kv" and write.site.layer is None)


def beginning(model: Sized, rows: Rows, writes: Sequence[Write]) -> Rows:
    """The rows with each cell beginning where it can first differ from its host; `writes` are in that order, and the
    cells before them are unpatched."""
    unpatched = rows.n_cells - len(writes)
    first = [0] * unpatched + [first_step(model, write.site, write.knockouts) for write in writes]
    hosts = torch.tensor([*range(unpatched), *(write.host for write in writes)], device=rows.ids.device)
    return replace(rows, first=tuple(first), hosts=hosts)


def thinker(write: Write) -> int:
    """Whose entries a cell sees that exchanges them: a run with cut edges whose donor is itself sees its own, which
    carry what the cuts have done to them."""
    return write.cell if write.knockouts and write.donor == write.host else write.donor


def with_sight(
    model: CodiModel, rows: Rows, writes: Sequence[Write], steps: int | None = None, always: Sequence[Edge] = ()
) -> Rows:
    """The rows with every exchange, frozen route and cut that is a matter of what a cell sees, over so many steps.

    `always` are edges cut in every run, the unpatched ones too: another model, so to speak.
    """
    steps = model.n_latents if steps is None else steps
    during: list[Sights] = [{None: rows.own(step).copy()} for step in range(steps)]
    after: Sights = {None: rows.own(steps).copy()}
    for write in writes:
        for sights, route in [*((sights, "K_T") for sights in during), (after, "K_A")]:
            exchange(rows, sights[None], write, write.site.steps(model), route)
    knockouts = [(write.cell, knockout) for write in writes for knockout in write.knockouts]
    knock_out(during, after, [*knockouts, *((cell, knockout) for cell in range(rows.n_cells) for knockout in always)])
    stops = [model.n_latents] * rows.n_cells
    for write in writes:
        stops[write.cell] = model.n_latents if write.n_latents is None else write.n_latents
    ends = torch.tensor(stops, device=model.device) if set(stops) != {steps} else None
    return replace(rows, during=tuple(during), after=after, stops=ends)


def exchange(rows: Rows, sight: Sight, write: Write, steps: Sequence[int], route: str) -> None:
    """What one patched cell sees instead of its own, by one route, written into `sight`."""
    kind = write.site.kind
    thought_over = sight.steps.shape[1]
    seen = [step for step in steps if step < thought_over]
    if kind in ("question", "bot"):
        if route not in write.freeze:
            getattr(sight, kind)[write.cell] = rows.reads[write.donor]
    elif by_sight(write) and route not in write.freeze and (kind == "kv" or route == "K_A"):
        sight.steps[write.cell, seen] = thinker(write)
    elif kind != "thought" and route in write.freeze:
        sight.steps[write.cell, seen] = write.host
    if "between" in write.freeze:
        sight.steps[write.cell, [step for step in range(thought_over) if step not in steps]] = write.host
