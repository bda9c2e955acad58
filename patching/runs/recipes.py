"""The experiments' recipes: the cells that each sweeps, and the metrics that it reads. No torch.

Each is a function of an `Executor`: `RunExecutor` runs its sweeps, `codi_tracing.patching.plan.count` counts them. It
returns one result a sweep, rows or sizes:

- `sweep`: the grid that a config names; the default is the original experiment's, each layer's residual at all steps.
- `early_stop`: the answer after k of n steps and beyond n; also steps from k on resampled; each with and without the
  answer attending to the question (arXiv 2602.08783 stops early).
- `influence`: one step is patched, every later step measured; in total, and directly (arXiv 2602.08783).
- `iterative`: steps 0 to k are patched and the rest runs free; also with the next latent frozen.
- `matched`: donors that share, or do not share, an intermediate or the answer (interchange interventions, Geiger et al.
  2022): see `codi_tracing.patching.pair_making.matching`.
- `original`: the original experiment's single pass beside the loop: see `codi_tracing.traces.loop.single_pass`.
- `attribution`: gradient estimates; the largest and random ones are verified: see
  `codi_tracing.patching.engine.attribution`.
- `shapley`: every subset of the steps' caches (Shapley 1953; interactions: Grabisch and Roubens 1999).

Every experiment also runs the four corners (whole thoughts exchanged) and the self-patch, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.answer_metrics import metrics_of_protocol
from codi_tracing.patching.engine.batch_store import BatchStore, MemoryStore
from codi_tracing.patching.interventions.cells import Cell, knockout_cells, make_cells
from codi_tracing.patching.interventions.edges import Edge, edge
from codi_tracing.patching.interventions.sites import THOUGHT, Site, Sized, expand, layerwise, prefixes, subsets
from codi_tracing.patching.interventions.sources import NAMED_SOURCES, itself, other, unrelated

if TYPE_CHECKING:
    import pandas as pd

    from codi_tracing.patching.pair_making.matched_pairs import MatchedPairs
    from codi_tracing.patching.pairs.selection import Selection
    from codi_tracing.traces.model.codi_model import CodiModel

UNSEEN = Edge(None, "question")
TRANSFERRED = ("logit_difference", "probability_clean", "probability_corrupted")
GIVEN = ("answer", "answer_is_clean", "answer_is_corrupted", "gives_clean", "gives_corrupted")
ANSWERS = (*TRANSFERRED, "prediction_change", *GIVEN)
AT_STEPS = ("projection", "distance_to_clean", "kl_to_clean")
BOTH_READS = ("kl_from_corrupted", "logit_difference", "kl_from_corrupted_at_eot", "logit_difference_at_eot")

SweepResult = TypeVar("SweepResult")  # rows, or the sizes of a planned sweep
Donors = TypeVar("Donors")  # matched pairs, or those that there can be


class Executor(Protocol[SweepResult, Donors]):
    """Carries out a recipe: `RunExecutor` runs its sweeps, a plan counts them."""

    @property
    def model(self) -> Sized: ...
    @property
    def config(self) -> RunConfig: ...
    def sweep(self, cells: Sequence[Cell], matched: Donors | None = None, **options: Any) -> SweepResult: ...
    def matches(self) -> Donors: ...
    def estimates(self) -> SweepResult: ...
    def largest(self, estimates: SweepResult) -> list[Site]: ...


@dataclass
class RunExecutor:
    """Runs sweeps on a model and its chosen pairs; `next_store` gives the store of each sweep."""

    model: CodiModel
    chosen: Selection
    config: RunConfig
    next_store: Callable[[], BatchStore] = MemoryStore
    progress: bool = False
    notes: dict[str, Any] = field(default_factory=dict)  # for the manifest

    def sweep(self, cells: Sequence[Cell], matched: MatchedPairs | None = None, **options: Any) -> pd.DataFrame:
        """The rows of some cells on the chosen pairs, or on matched ones."""
        from codi_tracing.patching.engine.sweep import sweep_cells

        config, chosen = self.config, self.chosen
        ready, donors = (chosen.ready, chosen.donors) if matched is None else (matched.ready, matched.donors)
        return sweep_cells(
            self.model, ready, cells, donors=donors, everyone=chosen.everyone, seed=config.seed,
            cells_per_forward=config.cells_per_forward, pairs_per_batch=config.pairs_per_batch, memory=config.memory,
            max_new_tokens=config.max_new_tokens, progress=self.progress, store=self.next_store(), **options,
        )  # fmt: skip

    def matches(self) -> MatchedPairs:
        """Matched donors among the questions of all usable pairs."""
        from codi_tracing.patching.pair_making.matched_pairs import matched_pairs

        config, everyone = self.config, self.chosen.everyone
        matched = matched_pairs(
            self.model, everyone, config.seed, most_matches(config), config.extra_problems, config.max_new_tokens
        )
        self.notes["matches"] = matched.counts
        return matched

    def estimates(self) -> pd.DataFrame:
        """A gradient's estimate of every single site."""
        from codi_tracing.patching.engine.attribution import attribute

        config, size = self.config, estimated_at_once(self.config)
        return attribute(
            self.model, self.chosen.ready, config.kinds, config.directions, pairs_per_batch=size,
            store=self.next_store(),
        )  # fmt: skip

    def largest(self, estimates: pd.DataFrame) -> list[Site]:
        """The sites to verify: the largest estimates and random ones."""
        from codi_tracing.patching.engine.attribution import to_verify

        return to_verify(estimates, self.config.top, self.config.seed)


def run_recipe(executor: RunExecutor) -> pd.DataFrame:
    """The rows of the config's experiment, with the corners."""
    import pandas as pd

    return pd.concat(RECIPES[executor.config.experiment](executor), ignore_index=True)


def check_shardable(config: RunConfig, shard: tuple[int, int] | None) -> None:
    """Refuse to shard an experiment that needs all pairs' results first."""
    if shard is not None and config.experiment == "attribution":
        raise ValueError(
            "the experiment 'attribution' chooses what to verify by all pairs' estimates: it cannot be run in shards"
        )


def most_matches(config: RunConfig) -> int:
    """At most so many matched donors for each intermediate and corner."""
    return min(config.matches, config.pairs.limit or config.matches)


def estimated_at_once(config: RunConfig) -> int:
    """Pairs in a batch of gradients."""
    return config.pairs_per_batch or 8


def corner_cells(config: RunConfig) -> list[Cell]:
    """The four corners (whole thoughts exchanged) and the self-patch, which changes nothing."""
    return make_cells([THOUGHT], [other, unrelated, itself], config.directions)


def sweep(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    config = executor.config
    sites = expand(executor.model, config.grid, config.kinds)
    sources = [NAMED_SOURCES[name] for name in config.sources]
    cells = make_cells(sites, sources, config.directions, config.freeze, config.draws)
    cells += make_cells(sites, sources, config.directions, draws=config.draws) if config.also_unfrozen else []
    cells += knockout_cells([edge(text) for text in config.knockouts], config.directions)
    metrics: Sequence[str] = config.metrics  # a metric that was asked for is refused where it cannot be read
    if "metrics" not in config.model_fields_set:
        metrics = metrics_of_protocol(metrics, config.protocol)
    return [executor.sweep([*cells, *corner_cells(config)], metrics=metrics, protocol=config.protocol)]


def early_stop(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    n, config = executor.model.n_latents, executor.config
    cells = []
    for knockouts in ((), (UNSEEN,)):
        for direction in config.directions:
            stops = range(n + config.beyond + 1)
            cells += [Cell(direction, itself, THOUGHT, knockouts=knockouts, n_latents=k) for k in stops]
        rest = [Site("kv", step=k, step_last=n - 1) for k in range(n)]
        cells += make_cells(rest, [unrelated], config.directions, draws=config.draws, knockouts=knockouts)
    return [executor.sweep([*cells, *corner_cells(config)], metrics=ANSWERS)]


def influence(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    config = executor.config
    sites = [site for kind in config.kinds for site in expand(executor.model, ["stepwise"], [kind])]
    cells = [
        cell
        for routes in ((), ("between",))
        for cell in make_cells(sites, [other, unrelated], config.directions, routes)
    ]
    return [executor.sweep([*cells, *corner_cells(config)], metrics=ANSWERS, step_metrics=AT_STEPS)]


def iterative(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    config = executor.config
    sites = [site for kind in config.kinds for site in prefixes(executor.model, kind)]
    cells = [
        cell for routes in ((), ("R",)) for cell in make_cells(sites, [other, unrelated], config.directions, routes)
    ]
    return [executor.sweep([*cells, *corner_cells(config)], metrics=ANSWERS, step_metrics=AT_STEPS)]


def matched(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    config = executor.config
    donors = executor.matches()
    sites = expand(executor.model, ["stepwise", "prefixes"], config.kinds)
    cells = make_cells(sites, [other, unrelated], ["denoising"])
    # With the question hidden from the answer, only later steps can compute on what is written.
    cells += make_cells(sites, [other], ["denoising"], knockouts=(UNSEEN,))
    cells += knockout_cells([UNSEEN], ["denoising"])
    metrics = (*GIVEN, "answer_is_hybrid")
    return [executor.sweep(corner_cells(config), metrics=ANSWERS), executor.sweep(cells, donors, metrics=metrics)]


def original(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    cells = [
        *make_cells(layerwise(executor.model), [other, unrelated], executor.config.directions),
        *corner_cells(executor.config),
    ]
    metrics = list(dict.fromkeys((*BOTH_READS, *ANSWERS)))
    return [
        executor.sweep(cells, metrics=metrics_of_protocol(metrics, name), protocol=name)
        for name in ("latent_loop", "single_pass")
    ]


def attribution(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    config = executor.config
    estimates = executor.estimates()
    cells = make_cells(executor.largest(estimates), [other], config.directions)
    exact = executor.sweep(cells, metrics=TRANSFERRED)
    return [estimates, exact, executor.sweep(corner_cells(config), metrics=ANSWERS)]


def shapley(executor: Executor[SweepResult, Donors]) -> list[SweepResult]:
    directions = executor.config.directions
    cells = [
        cell for routes in ((), ("K_T",)) for cell in make_cells(subsets(executor.model), [other], directions, routes)
    ]
    games = executor.sweep(cells, metrics=(*TRANSFERRED, *GIVEN))
    return [games, executor.sweep(corner_cells(executor.config), metrics=ANSWERS)]


RECIPES: dict[str, Callable[[Any], list[Any]]] = {
    recipe.__name__: recipe
    for recipe in (sweep, early_stop, influence, iterative, matched, original, attribution, shapley)
}
