"""What a run will take, told before it runs: the config's own recipe, its sweeps counted instead of run. No torch.

What depends on results is bounded: which matched donors a model answers rightly, which places a gradient finds large,
which pairs pass the filter `both_correct`, and when decoding ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.model_size import Anatomy
from codi_tracing.patching.engine.partition import (
    Sizes,
    batches,
    blocks_of,
    choose,
    draws_of,
    jobs_of,
    steps_of,
    work_of,
)
from codi_tracing.patching.interventions.cells import Cell, check_cells, check_single_pass, make_cells, readable
from codi_tracing.patching.interventions.sites import Site, first_step, single_places
from codi_tracing.patching.interventions.sources import RUNS, Value, other
from codi_tracing.patching.pairs.donors import Donor
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.patching.plan.cost import (
    NUMBER,
    Block,
    Products,
    Reads,
    block_of,
    bytes_returned,
    bytes_sent,
    forwards_of,
    gradient_products,
    layout_of,
    products_of,
)
from codi_tracing.patching.plan.inputs import AtHand, stand_in
from codi_tracing.patching.runs.recipes import RECIPES, check_slices, estimated_at_once, most_matches

INTERMEDIATES, CORNERS = 3, 4  # of stand-in questions: chains of four steps; matched donors' 2×2


class Bytes(NamedTuple):
    """Of requests or results: the largest, and all."""

    largest: int = 0
    all: int = 0

    def plus(self, size: int, count: int) -> Bytes:
        return Bytes(max(self.largest, size), self.all + count * size)


class Planned(NamedTuple):
    """One sweep, as a run would record it under `forwards`, and what it takes."""

    name: str
    pairs: int
    cells_per_pair: int
    batches: int  # of the slice that is planned
    of_batches: int  # of the whole run
    sizes: Sizes
    forwards: int
    decoding_forwards: int  # at most
    products: Products
    rows: int  # of the table
    jobs: int  # on NDIF
    sent: Bytes
    returned: Bytes


class Candidates(NamedTuple):
    """Pairs that a sweep may run on, at most, with their donors."""

    ready: Sequence[TokenizedPair]
    donors: Sequence[Sequence[Donor]]


class Counting(NamedTuple):
    """Carries out a recipe by counting; see `codi_tracing.patching.runs.recipes.Doer`."""

    known: AtHand
    config: RunConfig
    part: tuple[int, int]
    lora_apart: bool
    said: list[str]

    @property
    def model(self) -> Anatomy:
        return self.known.model

    def sweep(
        self,
        cells: Sequence[Cell],
        found: Candidates | None = None,
        metrics: Sequence[str] = (),
        step_metrics: Sequence[str] = (),
        protocol: str = "latent_loop",
    ) -> Planned:
        """What some cells on the chosen pairs, or on matched ones, take. Refuses what a run would refuse."""
        model, config = self.model, self.config
        check_cells(model, cells)
        if protocol == "single_pass":
            check_single_pass(cells, metrics, step_metrics, ())
        ready, donors = found or Candidates(self.known.ready, self.known.donors)
        check_length(model, ready, steps_of(model, cells))
        unpatched = len(RUNS) - 1 + draws_of(cells)
        work = work_of(model, ready, cells, unpatched, metrics, config.max_new_tokens, model.opening)
        sizes = choose(model.budgeted, work, config.memory, config.cells_per_forward, config.pairs_per_batch)
        reads = Reads(tuple(metrics), tuple(step_metrics), protocol, config.max_new_tokens)
        jobs = self.jobs(cells, sizes, unpatched)
        means = sorted({cell.site.kind for cell in cells if isinstance(cell.source, Value)})
        divided = list(batches(ready, donors, sizes.pairs_per_batch))
        mine = divided[self.part[0] - 1 :: self.part[1]]
        alike = Counter(layout_of(batch, unpatched, reads, model.opening) for batch, _ in mine)
        found_donors = Counter(len(drawn) for _, of_batch in mine for drawn in of_batch)
        rows = sum(count * rows_of(model, cells, had, reads) for had, count in found_donors.items())
        products, forwards, decoding = Products(), 0, 0
        sent, returned = Bytes(), Bytes()
        for (layout, count), blocks in product(alike.items(), jobs):
            products = products.plus(products_of(model, layout, blocks, reads, self.lora_apart).times(count))
            once, more = forwards_of(blocks, reads)
            forwards, decoding = forwards + count * once, decoding + count * more
            sent = sent.plus(bytes_sent(model, layout, blocks, means), count)
            returned = returned.plus(bytes_returned(layout, blocks, reads), count)
        return Planned(
            protocol if found is None else "matched donors", len(ready), len(cells), len(mine), len(divided), sizes,
            forwards, decoding, products, rows, len(mine) * len(jobs), sent, returned,
        )  # fmt: skip

    def jobs(self, cells: Sequence[Cell], sizes: Sizes, unpatched: int) -> list[Sequence[Block]]:
        """The jobs of a batch, each the blocks of cells that it runs; locally the whole batch is one."""
        model, steps, remote = self.model, steps_of(self.model, cells), self.config.remote
        parts = blocks_of(model, cells, sizes.cells_per_forward)
        blocks = [block_of(model, [cells[i] for i in part], unpatched, steps) for part in parts]
        return jobs_of(blocks, sizes.cells_per_forward, remote.cells_per_job if remote else None)

    def matches(self) -> Candidates:
        """The most matched donors that there can be."""
        most, known = most_matches(self.config), self.known
        if known.files is None:
            count = INTERMEDIATES * CORNERS * most
            self.said.append(
                f"matched donors are bounded by {most} for each of {INTERMEDIATES} intermediates (chains of "
                f"{INTERMEDIATES + 1} steps, assumed) and {CORNERS} corners: {count}"
            )
            first = known.everyone[0]
            ready = [stand_in(rank, first.tokens, len(first.forced)) for rank in range(count)]
            return Candidates(ready, [[Donor("", "", 0.0)]] * count)
        from codi_tracing.patching.pair_making.matched_pairs import possible_matched_pairs

        ready, donors = possible_matched_pairs(
            known.files, known.everyone, self.config.seed, most, self.config.extra_problems
        )
        self.said.append(
            f"{len(ready)} matched donors are there under this tokenizer; those that the model answers wrongly drop out"
        )
        return Candidates(ready, donors)

    def estimates(self) -> Planned:
        """Gradients of every single place: one forward and one backward of a batch."""
        model, config, known = self.model, self.config, self.known
        cells = make_cells(single_places(model, config.kinds), [other], config.directions)
        divided = list(batches(known.ready, [()] * len(known.ready), estimated_at_once(config)))
        reads, both, products = Reads((), (), "latent_loop", 0), Block(0, (2,) * model.n_latents), Products()
        sent, returned = Bytes(), Bytes()
        for batch, _ in divided:
            layout = layout_of(batch, 2, reads, model.opening)
            layout = layout._replace(told=layout.told._replace(read=2))
            products = products.plus(gradient_products(model, layout, model.n_latents))
            sent = sent.plus(bytes_sent(model, layout, [both], ()), 1)
            returned = returned.plus(NUMBER * len(batch) * (2 * len(cells) + 2), 1)
        self.said.append(
            "gradients need the graph of a whole thought, whose memory is not estimated; see pairs_per_batch"
        )
        sizes = Sizes(estimated_at_once(config), 2, None)
        count, forwards, rows = len(divided), len(divided) * (2 + model.n_latents), len(known.ready) * len(cells)
        return Planned(
            "gradients", len(known.ready), len(cells), count, count, sizes, forwards, 0, products, rows, count, sent,
            returned,
        )  # fmt: skip

    def largest(self, estimates: Planned) -> list[Site]:
        """As many places as are verified, those that take the most steps."""
        places = sorted(single_places(self.model, self.config.kinds), key=lambda site: first_step(self.model, site))
        self.said.append(
            "which places are verified depends on the estimates; those that take the most steps are counted"
        )
        return places[: 2 * self.config.top]


class Plan(NamedTuple):
    """All sweeps of a run, what they were counted on, and what had to be assumed."""

    config: RunConfig
    known: AtHand
    part: tuple[int, int]
    sweeps: list[Planned]
    said: list[str]

    @property
    def products(self) -> Products:
        return Products(*map(sum, zip(*(sweep.products for sweep in self.sweeps), strict=True)))

    @property
    def weight_bytes(self) -> int:
        return self.known.model.weight_bytes * (2 if self.config.reinitialised else 1)

    @property
    def peak_gib(self) -> float:
        """The most that a forward is estimated to take beside the weights."""
        return max(sweep.sizes.gib or 0.0 for sweep in self.sweeps)


def plan_run(config: RunConfig, known: AtHand, part: tuple[int, int] | None = None) -> Plan:
    """Count the sweeps of a config's experiment, or of one slice (i, n) of it."""
    check_slices(config, part)
    said = [*known.said]
    counting = Counting(known, config, part or (1, 1), not config.merge_lora or config.remote is not None, said)
    sweeps = RECIPES[config.experiment](counting)
    if config.reinitialised:
        blank = counting._replace(lora_apart=True, said=[])
        sweeps += [sweep._replace(name=f"{sweep.name}, reinitialised") for sweep in RECIPES[config.experiment](blank)]
    return Plan(config, known, part or (1, 1), sweeps, said)


def rows_of(model: Anatomy, cells: Sequence[Cell], donors: int, reads: Reads) -> int:
    """Rows of the table that a pair gives; cells of an unrelated donor that it has not give none."""
    had = [cell.donor != "unrelated" or isinstance(cell.source, Value) or cell.draw < donors for cell in cells]
    rows = len(reads.metrics) * sum(had)
    for step in range(model.n_latents if reads.step_metrics else 0):
        rows += len(reads.step_metrics) * sum(had[i] for i in readable(model, cells, step))
    return rows


def check_length(model: Anatomy, ready: Sequence[TokenizedPair], steps: int) -> None:
    """Refuse pairs that have no room, as the run will."""
    need = max(p.tokens + 1 + steps + model.opening + len(p.forced) + max(map(len, p.tails)) - 1 for p in ready)
    if need > model.n_positions:
        raise ValueError(f"a pair needs {need} positions, the model has {model.n_positions}; take shorter questions")
