"""Whose KV entries each run attends to: exchanged segments, frozen routes, knocked-out edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from codi_tracing.patching.interventions.cells import CellWrite
from codi_tracing.patching.interventions.edges import Edge, knock_out
from codi_tracing.patching.interventions.sites import Sized, first_step
from codi_tracing.traces.loop.rows import Rows, Sight, Sights
from codi_tracing.traces.model.codi_model import CodiModel


def exchanges_entries(write: CellWrite) -> bool:
    """Whether a cell attends to its donor's entries of whole steps, so that no cache is written."""
    site = write.cell.site
    return site.kind == "thought" or (site.kind == "kv" and site.layer is None)


def entries_from(write: CellWrite) -> int:
    """The run whose entries such a cell attends to: with knockouts, a self-patch keeps its own, which the knockouts
    changed."""
    return write.run if write.cell.knockouts and write.donor == write.host else write.donor


def with_first_steps(model: Sized, rows: Rows, writes: Sequence[CellWrite]) -> Rows:
    """The rows with the step from which each run can differ from its host; `writes` are in that order, behind the
    unpatched runs."""
    unpatched = rows.n_cells - len(writes)
    first = [0] * unpatched + [first_step(model, write.cell.site, write.cell.knockouts) for write in writes]
    hosts = torch.tensor([*range(unpatched), *(write.host for write in writes)], device=rows.ids.device)
    return replace(rows, first=tuple(first), hosts=hosts)


def with_sight(
    model: CodiModel, rows: Rows, writes: Sequence[CellWrite], steps: int | None = None, always: Sequence[Edge] = ()
) -> Rows:
    """The rows with every exchange, frozen cache route and knockout, over `steps` latent steps.

    `always` are edges cut in every run, the unpatched ones too.
    """
    steps = model.n_latents if steps is None else steps
    during: list[Sights] = [{None: rows.own(step).copy()} for step in range(steps)]
    after: Sights = {None: rows.own(steps).copy()}
    for write in writes:
        for sights, route in [*((sights, "K_T") for sights in during), (after, "K_A")]:
            exchange(rows, sights[None], write, write.cell.site.steps(model), route)
    knockouts = [(write.run, knockout) for write in writes for knockout in write.cell.knockouts]
    knock_out(during, after, [*knockouts, *((run, knockout) for run in range(rows.n_cells) for knockout in always)])
    stops = [model.n_latents] * rows.n_cells
    for write in writes:
        if write.cell.n_latents is not None:
            stops[write.run] = write.cell.n_latents
    ends = torch.tensor(stops, device=model.device) if set(stops) != {steps} else None
    return replace(rows, during=tuple(during), after=after, stops=ends)


def exchange(rows: Rows, sight: Sight, write: CellWrite, steps: Sequence[int], route: str) -> None:
    """Set in `sight` whose entries one cell attends to by one route: K_T in a latent step, K_A in the answer."""
    kind, freeze = write.cell.site.kind, write.cell.freeze
    done = sight.steps.shape[1]
    read = [step for step in steps if step < done]
    if kind in ("question", "bot"):
        if route not in freeze:
            getattr(sight, kind)[write.run] = rows.reads[write.donor]
    elif exchanges_entries(write) and route not in freeze and (kind == "kv" or route == "K_A"):
        sight.steps[write.run, read] = entries_from(write)
    elif kind != "thought" and route in freeze:
        sight.steps[write.run, read] = write.host
    if "between" in freeze:
        sight.steps[write.run, [step for step in range(done) if step not in steps]] = write.host
