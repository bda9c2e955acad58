"""Cells: one patched run of every pair, by site, source, host, frozen routes and knockouts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from codi_tracing.configs.vocabulary import BLOCK_KINDS, DIRECTIONS, FREEZABLE, SEGMENTS
from codi_tracing.patching.answer_metrics import WHOLE_ANSWER
from codi_tracing.patching.interventions.edges import Edge, check_edge
from codi_tracing.patching.interventions.sites import THOUGHT, Site, Sized, check_freeze
from codi_tracing.patching.interventions.sources import (
    RUNS,
    Value,
    itself,
    mean,
    other,
    source_name,
    step_mean,
    unrelated,
)

Source = Callable[[str], str] | Value


class Cell(NamedTuple):
    """One patched run of every pair.

    `draw` counts from 0 if the source is random; `n_latents` is its number of latent steps, `None` for the model's own.
    """

    direction: str
    source: Source
    site: Site
    freeze: tuple[str, ...] = ()
    draw: int = 0
    knockouts: tuple[Edge, ...] = ()
    n_latents: int | None = None

    @property
    def host(self) -> str:
        return DIRECTIONS[self.direction].host

    @property
    def value(self) -> Value | None:
        """The source, if it is computed."""
        return self.source if isinstance(self.source, Value) else None

    @property
    def donor(self) -> str:
        """The run that is copied; for a computed value, the pair's other run, which the value may use."""
        return other(self.host) if isinstance(self.source, Value) else self.source(self.host)

    @property
    def donor_run(self) -> int:
        """The donor's index among the runs of a row, and among its questions; further draws stand behind the first."""
        return RUNS.index(self.donor) + (self.draw if self.donor == "unrelated" else 0)

    @property
    def drawn(self) -> bool:
        """Whether the source is random."""
        return self.source.drawn if isinstance(self.source, Value) else self.donor == "unrelated"


class CellWrite(NamedTuple):
    """A cell in a row of runs: the indices of its own run, of its host's and of its donor's."""

    run: int
    host: int
    donor: int
    cell: Cell


def make_cells(
    sites: Sequence[Site],
    sources: Sequence[Source] = (other, unrelated),
    directions: Sequence[str] = tuple(DIRECTIONS),
    freeze: Sequence[str] = (),
    draws: int = 1,
    knockouts: Sequence[Edge] = (),
) -> list[Cell]:
    """Every direction × source × draw × site, with the same frozen routes and knockouts."""
    for direction in directions:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is unknown; use {' or '.join(DIRECTIONS)}")
    check_freeze(freeze)
    frozen = tuple(route for route in FREEZABLE if route in freeze)
    return [
        Cell(direction, source, site, frozen, draw, tuple(knockouts))
        for direction in directions
        for source in sources
        for draw in range(draws if Cell(direction, source, THOUGHT).drawn else 1)
        for site in sites
    ]


def knockout_cells(knockouts: Sequence[Edge], directions: Sequence[str] = tuple(DIRECTIONS)) -> list[Cell]:
    """Runs with one edge cut and nothing patched."""
    return [
        Cell(direction, itself, THOUGHT, knockouts=(knockout,)) for direction in directions for knockout in knockouts
    ]


def check_cells(model: Sized, cells: Sequence[Cell]) -> None:
    """Refuse, before anything runs, sites and edges that do not exist, and combinations without meaning."""
    seen: set[Cell] = set()
    for cell in cells:
        if cell in seen:
            raise ValueError(f"{cell.direction} of {cell.site} occurs twice in the sweep; name each site once")
        seen.add(cell)
        cell.site.places(model)
        for knockout in cell.knockouts:
            check_edge(model, knockout)
        if cell.n_latents is not None and cell.n_latents < 0:
            raise ValueError(f"n_latents {cell.n_latents} is no number of steps; use 0 or more")
        kind = cell.site.kind
        if isinstance(cell.source, Value) and kind not in (*BLOCK_KINDS, "latent"):
            kinds = ", ".join(("latent", *BLOCK_KINDS))
            raise ValueError(f"source {cell.source.name!r} cannot be written at {kind!r}; use it at {kinds}")
        allowed = () if kind == "thought" else ("K_T", "K_A") if kind in SEGMENTS else FREEZABLE
        if lost := [route for route in cell.freeze if route not in allowed]:
            offer = f"freeze {' and '.join(allowed)}" if allowed else "nothing can be frozen there"
            raise ValueError(f"freeze {lost[0]!r} means nothing for site {kind!r}; {offer}")


def check_single_pass(
    cells: Sequence[Cell], metrics: Sequence[Any], step_metrics: Sequence[str], always: Sequence[Edge]
) -> None:
    """Refuse everything that needs the latent loop, which the single pass does not run."""
    if always or step_metrics:
        raise ValueError("protocol 'single_pass' runs no loop: edges cut always and step metrics have no meaning in it")
    if whole := [name for name in WHOLE_ANSWER if name in metrics]:
        raise ValueError(f"protocol 'single_pass' scores no whole answers; drop the metric {whole[0]!r}")
    for cell in cells:
        if cell.source in (mean, step_mean):
            raise ValueError("protocol 'single_pass' has no means, which are those of the loop; use another source")
        if cell.site.kind not in (*BLOCK_KINDS, "thought"):
            raise ValueError(
                f"protocol 'single_pass' has no site {cell.site.kind!r}; use {', '.join((*BLOCK_KINDS, 'thought'))}"
            )
        if cell.freeze or cell.knockouts or cell.n_latents is not None:
            raise ValueError(
                "protocol 'single_pass' runs no loop: freeze, cut edges and n_latents have no meaning in it"
            )


def readable(model: Sized, cells: Sequence[Cell], step: int) -> list[int]:
    """Indices of the cells that are measured at a latent step: they take it, and all their writes are earlier."""

    def is_measured(cell: Cell) -> bool:
        last = -1 if cell.site.kind in SEGMENTS else cell.site.steps(model)[-1]
        taken = model.n_latents if cell.n_latents is None else min(cell.n_latents, model.n_latents)
        return last < step < taken and cell.site.kind != "thought"

    return [index for index, cell in enumerate(cells) if is_measured(cell)]


def columns_of(cell: Cell) -> dict[str, object]:
    """A cell's columns of the table."""
    site = cell.site
    return {
        "direction": cell.direction,
        "source": source_name(cell.source, cell.host),
        "draw": cell.draw if cell.drawn else None,
        "kind": site.kind,
        "layer": site.layer,
        "layer_last": site.layer if site.layer_last is None else site.layer_last,
        "step": site.step,
        "step_last": site.step if site.step_last is None else site.step_last,
        "step_set": "+".join(map(str, site.step_set)) or None,
        "head": site.head,
        "freeze": "+".join(cell.freeze) or None,
        "knockout": " ".join(map(str, cell.knockouts)) or None,
        "n_latents": cell.n_latents,
    }
