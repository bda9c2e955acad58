"""Plan a run by carrying out its recipe with an executor that counts cells, batches and forwards. No torch.

Results decide some numbers, which are bounded instead: matched donors that the model answers correctly, sites with a
large gradient, pairs that pass the filter `both_correct`, and the end of decoding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine import partition
from codi_tracing.patching.engine.model_size import ModelSize
from codi_tracing.patching.interventions.cells import Cell, check_cells, check_single_pass, make_cells, readable
from codi_tracing.patching.interventions.sites import Site, first_step, single_sites
from codi_tracing.patching.interventions.sources import RUNS, Value, other
from codi_tracing.patching.pairs.donors import Donor
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.patching.plan.cost import BatchShape, BlockShape, Cost, Measurements, job_cost
from codi_tracing.patching.plan.inputs import PlanInputs, assumed_pairs
from codi_tracing.patching.runs.recipes import RECIPES, check_shardable, estimated_at_once, most_matches

ASSUMED_MATCHES = 3 * 4  # kinds of matched donors: intermediates of chains of four steps, times the corners of a 2×2

PairsWithDonors = tuple[Sequence[TokenizedPair], Sequence[Sequence[Donor]]]


class SweepPlan(NamedTuple):
    """The counts of one sweep. `batches` are the shard's; `of_batches` the whole run's, as in its manifest."""

    name: str
    pairs: int
    cells_per_pair: int
    batches: int
    of_batches: int
    sizes: partition.Sizes
    rows: int  # of the table
    cost: Cost


class Plan(NamedTuple):
    """The sweeps of a run, the inputs they were counted on, and all assumptions."""

    config: RunConfig
    inputs: PlanInputs
    shard: tuple[int, int]
    sweeps: list[SweepPlan]
    assumptions: list[str]

    @property
    def cost(self) -> Cost:
        return Cost.total([(1, sweep.cost) for sweep in self.sweeps])

    @property
    def weight_bytes(self) -> int:
        return self.inputs.size.weight_bytes * (2 if self.config.reinitialised else 1)

    @property
    def peak_gib(self) -> float:
        """Estimated peak memory of a forward beside the weights."""
        return max(sweep.sizes.gib or 0.0 for sweep in self.sweeps)


def plan_run(config: RunConfig, inputs: PlanInputs, shard: tuple[int, int] | None = None) -> Plan:
    """Count the sweeps of a config's experiment, or shard i of n of them."""
    check_shardable(config, shard)
    assumptions, lora_apart = [*inputs.assumptions], not config.merge_lora or config.remote is not None
    executor = CountingExecutor(inputs, config, shard or (1, 1), lora_apart, assumptions)
    recipe = RECIPES[config.experiment]
    sweeps = recipe(executor)
    if config.reinitialised:
        again = recipe(executor._replace(lora_apart=True, assumptions=[]))
        sweeps += [sweep._replace(name=f"{sweep.name}, reinitialised") for sweep in again]
    return Plan(config, inputs, shard or (1, 1), sweeps, assumptions)


class CountingExecutor(NamedTuple):
    """Counts the sweeps of a recipe, and refuses what a run would refuse."""

    inputs: PlanInputs
    config: RunConfig
    shard: tuple[int, int]
    lora_apart: bool
    assumptions: list[str]

    @property
    def model(self) -> ModelSize:
        return self.inputs.size

    def sweep(
        self,
        cells: Sequence[Cell],
        matched: PairsWithDonors | None = None,
        metrics: Sequence[str] = (),
        step_metrics: Sequence[str] = (),
        protocol: str = "latent_loop",
    ) -> SweepPlan:
        """Count some cells on the chosen pairs, or on matched ones."""
        size, config = self.model, self.config
        check_cells(size, cells)
        if protocol == "single_pass":
            check_single_pass(cells, metrics, step_metrics, ())
        pairs, donors = matched or (self.inputs.ready, self.inputs.donors)
        steps, questions = partition.steps_of(size, cells), len(RUNS) - 1 + partition.draws_of(cells)
        check_length(size, pairs, steps)
        work = partition.work_of(size, pairs, cells, questions, metrics, config.max_new_tokens, size.opening)
        sizes = partition.choose(size, work, config.memory, config.cells_per_forward, config.pairs_per_batch)
        blocks = [
            BlockShape.of(size, [cells[i] for i in block], questions, steps if protocol == "latent_loop" else 0)
            for block in partition.blocks_of(size, cells, sizes.cells_per_forward)
        ]
        measured = Measurements(metrics, step_metrics, protocol, config.max_new_tokens)
        name = protocol if matched is None else "matched donors"
        return self.plan_sweep(name, cells, (pairs, donors), sizes, questions, blocks, measured)

    def plan_sweep(
        self, name: str, cells: Sequence[Cell], pairs: PairsWithDonors, sizes: partition.Sizes, questions: int,
        blocks: Sequence[BlockShape], measured: Measurements,
    ) -> SweepPlan:  # fmt: skip
        """Divide a sweep into batches and jobs as a run does, and add up their costs."""
        size, remote = self.model, self.config.remote
        jobs = partition.jobs_of(blocks, sizes.cells_per_forward, remote.cells_per_job if remote else None)
        mean_kinds = len({cell.site.kind for cell in cells if isinstance(cell.source, Value)})
        batches = list(partition.batches(*pairs, sizes.pairs_per_batch))
        own = batches[self.shard[0] - 1 :: self.shard[1]]
        shapes = Counter(BatchShape.of(size, batch, questions, measured) for batch, _ in own)
        costs = [
            (count, job_cost(size, shape, job, mean_kinds, self.lora_apart))
            for (shape, count), job in product(shapes.items(), jobs)
        ]
        donor_counts = Counter(len(of_pair) for _, of_batch in own for of_pair in of_batch)
        rows = sum(count * rows_of_pair(size, cells, donors, measured) for donors, count in donor_counts.items())
        return SweepPlan(name, len(pairs[0]), len(cells), len(own), len(batches), sizes, rows, Cost.total(costs))

    def matches(self) -> PairsWithDonors:
        """An upper bound of the matched donors."""
        most, inputs = most_matches(self.config), self.inputs
        if inputs.model is None:
            count = ASSUMED_MATCHES * most
            self.assumptions.append(f"there are {count} matched donors: {most} for each of {ASSUMED_MATCHES} kinds")
            return assumed_pairs(count, inputs.everyone[0].tokens), [[Donor("", "", 0.0)]] * count
        from codi_tracing.patching.pair_making.matched_pairs import possible_matched_pairs

        pairs, donors = possible_matched_pairs(
            inputs.model, inputs.everyone, self.config.seed, most, self.config.extra_problems
        )
        self.assumptions.append(f"the model answers all {len(pairs)} matched donors correctly; a run drops the others")
        return pairs, donors

    def estimates(self) -> SweepPlan:
        """Gradients at all single sites: one forward and one backward of each batch.

        No parameter has a gradient, so the backward pass takes as much as the forward of thought and answer.
        """
        size, config, pairs = self.model, self.config, self.inputs.ready
        cells = make_cells(single_sites(size, config.kinds), [other], config.directions)
        sizes, block = partition.Sizes(estimated_at_once(config), 2, None), BlockShape.of(size, (), 2, size.n_latents)
        measured = Measurements(["logit_difference"], (), "latent_loop", 0)
        plan = self._replace(lora_apart=False).plan_sweep(
            "gradients", cells, (pairs, [()] * len(pairs)), sizes, 2, [block], measured
        )
        cost = plan.cost
        self.assumptions.append(
            "gradients need the graph of a whole thought, whose memory is not estimated; see pairs_per_batch"
        )
        return plan._replace(cost=cost._replace(answer_flops=2 * cost.answer_flops + cost.thought_flops))

    def largest(self, estimates: SweepPlan) -> list[Site]:
        """As many sites as are verified: those that take the most steps, as an upper bound."""
        sites = sorted(single_sites(self.model, self.config.kinds), key=lambda site: first_step(self.model, site))
        self.assumptions.append("the estimates choose the sites to verify; those that take the most steps are counted")
        return sites[: 2 * self.config.top]


def rows_of_pair(size: ModelSize, cells: Sequence[Cell], donors: int, measured: Measurements) -> int:
    """Rows of a pair with so many unrelated donors; a cell whose donor is missing has none."""
    runs = [cell.donor != "unrelated" or isinstance(cell.source, Value) or cell.draw < donors for cell in cells]
    rows = len(measured.metrics) * sum(runs)
    for step in range(size.n_latents if measured.step_metrics else 0):
        rows += len(measured.step_metrics) * sum(runs[i] for i in readable(size, cells, step))
    return rows


def check_length(size: ModelSize, pairs: Sequence[TokenizedPair], steps: int) -> None:
    """Refuse pairs that exceed the model's positions, as the run will."""
    need = max(p.tokens + 1 + steps + size.opening + len(p.forced) + max(map(len, p.tails)) - 1 for p in pairs)
    if need > size.n_positions:
        raise ValueError(f"a pair needs {need} positions, the model has {size.n_positions}; take shorter questions")
