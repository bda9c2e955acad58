"""The ready-made experiments: what each patches and measures. No torch.

Each is one function from whoever carries it out (a `Job` runs its sweeps, `codi_tracing.patching.plan.count` counts them) to what came of
each sweep, rows or sizes:

- `sweep`: the grid that a config names. By default the original experiment: each layer's residual at all steps.
- `early_stop`: the answer after k of n steps and beyond n, beside steps from k on resampled, each with and without the
  answer seeing the question (arXiv 2602.08783 stops early).
- `influence`: one step written, every later step measured; in all, and directly (arXiv 2602.08783).
- `iterative`: steps 0 to k written and the rest running free, beside the same with the next latent held.
- `matched`: donors that share, or do not share, an intermediate or the answer (interchange interventions, Geiger et al.
  2022): see `codi_tracing.patching.pair_making.matching`.
- `original`: the original experiment's single pass beside the loop: see `codi_tracing.traces.loop.single_pass`.
- `attribution`: gradient-based estimates, the largest and random ones verified: see `codi_tracing.patching.engine.attribution`.
- `shapley`: every subset of the steps' caches (Shapley 1953; interactions: Grabisch and Roubens 1999).

The corners (whole thoughts exchanged) and what changes nothing run beside every experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.interventions.cells import Cell, knockout_cells, make_cells
from codi_tracing.patching.interventions.edges import Edge, edge
from codi_tracing.patching.interventions.sites import THOUGHT, Site, Sized, expand, layerwise, prefixes, subsets
from codi_tracing.patching.interventions.sources import SOURCES, itself, other, unrelated

if TYPE_CHECKING:
    import pandas as pd

    from codi_tracing.patching.engine.sweep import Keep
    from codi_tracing.patching.pair_making.matched_pairs import MatchedPairs
    from codi_tracing.patching.pairs.selection import Selection
    from codi_tracing.traces.model.codi_model import CodiModel

UNSEEN = Edge(None, "question")
ANSWERS = ("logit_difference", "prediction_change", "answer", "answer_is_clean", "answer_is_corrupted")
AT_STEPS = ("projection", "distance_to_clean", "kl_to_clean")
BOTH_READS = ("kl_from_corrupted", "logit_difference", "kl_from_corrupted_at_eot", "logit_difference_at_eot")

Swept = TypeVar("Swept")  # what comes of a sweep: rows where it is run, its size where it is planned
Pairs = TypeVar("Pairs")  # matched pairs, or how many there can be


class Doer(Protocol[Swept, Pairs]):
    """Who carries out a recipe: a `Job` runs its sweeps, a plan counts them."""

    @property
    def model(self) -> Sized: ...
    @property
    def config(self) -> RunConfig: ...
    def sweep(self, cells: Sequence[Cell], found: Pairs | None = None, **options: Any) -> Swept: ...
    def matches(self) -> Pairs: ...
    def estimates(self) -> Swept: ...
    def largest(self, estimates: Swept) -> list[Site]: ...


class Job(NamedTuple):
    """A model, the pairs to patch, the config, what keeps each sweep's batches, and what there is to tell."""

    model: CodiModel
    chosen: Selection
    config: RunConfig
    stage: Callable[[], Keep]
    progress: bool
    notes: dict[str, Any]  # what an experiment has to tell beside its rows; kept in the manifest

    def sweep(self, cells: Sequence[Cell], found: MatchedPairs | None = None, **options: Any) -> pd.DataFrame:
        """The rows of some cells on the chosen pairs, or on matched ones."""
        from codi_tracing.patching.engine.sweep import sweep_cells

        config, chosen = self.config, self.chosen
        ready, donors = (chosen.ready, chosen.donors) if found is None else (found.ready, found.donors)
        return sweep_cells(
            self.model, ready, cells, donors=donors, everyone=chosen.everyone, seed=config.seed,
            cells_per_forward=config.cells_per_forward, pairs_per_batch=config.pairs_per_batch, memory=config.memory,
            max_new_tokens=config.max_new_tokens, progress=self.progress, keep=self.stage(), **options,
        )  # fmt: skip

    def matches(self) -> MatchedPairs:
        """Matched donors among the questions of all usable pairs."""
        from codi_tracing.patching.pair_making.matched_pairs import matched_pairs

        config, everyone = self.config, self.chosen.everyone
        found = matched_pairs(
            self.model, everyone, config.seed, most_matches(config), config.extra_problems, config.max_new_tokens
        )
        self.notes["matches"] = found.counts
        return found

    def estimates(self) -> pd.DataFrame:
        """A gradient's estimate of every single place."""
        from codi_tracing.patching.engine.attribution import attribute

        config, size = self.config, estimated_at_once(self.config)
        return attribute(
            self.model, self.chosen.ready, config.kinds, config.directions, pairs_per_batch=size, keep=self.stage()
        )

    def largest(self, estimates: pd.DataFrame) -> list[Site]:
        """The places to verify: the largest estimates and random ones."""
        from codi_tracing.patching.engine.attribution import to_verify

        return to_verify(estimates, self.config.top, self.config.seed)


def job(
    model: CodiModel,
    chosen: Selection,
    config: RunConfig,
    stage: Callable[[], Keep] | None = None,
    progress: bool = False,
) -> Job:
    """Put together what every experiment needs."""
    if stage is None:
        from codi_tracing.patching.engine.sweep import nothing_kept

        return Job(model, chosen, config, lambda: nothing_kept, progress, {})
    return Job(model, chosen, config, stage, progress, {})


def run_recipe(job: Job) -> pd.DataFrame:
    """The rows of the config's experiment, the corners among them."""
    import pandas as pd

    return pd.concat(RECIPES[job.config.experiment](job), ignore_index=True)


def check_slices(config: RunConfig, part: tuple[int, int] | None) -> None:
    """Refuse slices of an experiment that cannot be cut."""
    if part is not None and config.experiment == "attribution":
        raise ValueError(
            "the experiment 'attribution' chooses what to verify by all pairs' estimates: it cannot be run in slices"
        )


def most_matches(config: RunConfig) -> int:
    """At most so many matched donors for each intermediate and corner."""
    return min(config.matches, config.pairs.limit or config.matches)


def estimated_at_once(config: RunConfig) -> int:
    """Pairs in a batch of gradients."""
    return config.pairs_per_batch or 8


def corner_cells(config: RunConfig) -> list[Cell]:
    """Whole thoughts exchanged, and a run's own written into itself, which changes nothing."""
    return make_cells([THOUGHT], [other, unrelated, itself], config.directions)


def sweep(job: Doer[Swept, Pairs]) -> list[Swept]:
    config = job.config
    sites = expand(job.model, config.grid, config.kinds)
    sources = [SOURCES[name] for name in config.sources]
    cells = make_cells(sites, sources, config.directions, config.freeze, config.draws)
    cells += make_cells(sites, sources, config.directions, draws=config.draws) if config.also_unfrozen else []
    cells += knockout_cells([edge(text) for text in config.knockouts], config.directions)
    return [job.sweep([*cells, *corner_cells(config)], metrics=config.metrics, protocol=config.protocol)]


def early_stop(job: Doer[Swept, Pairs]) -> list[Swept]:
    n, config = job.model.n_latents, job.config
    cells = []
    for knockouts in ((), (UNSEEN,)):
        for direction in config.directions:
            stops = range(n + config.beyond + 1)
            cells += [Cell(direction, itself, THOUGHT, knockouts=knockouts, n_latents=k) for k in stops]
        rest = [Site("kv", step=k, step_last=n - 1) for k in range(n)]
        cells += make_cells(rest, [unrelated], config.directions, draws=config.draws, knockouts=knockouts)
    return [job.sweep([*cells, *corner_cells(config)], metrics=ANSWERS)]


def influence(job: Doer[Swept, Pairs]) -> list[Swept]:
    config = job.config
    sites = [site for kind in config.kinds for site in expand(job.model, ["stepwise"], [kind])]
    cells = [
        cell for held in ((), ("between",)) for cell in make_cells(sites, [other, unrelated], config.directions, held)
    ]  # fmt: skip
    return [job.sweep([*cells, *corner_cells(config)], metrics=ANSWERS, step_metrics=AT_STEPS)]


def iterative(job: Doer[Swept, Pairs]) -> list[Swept]:
    config = job.config
    sites = [site for kind in config.kinds for site in prefixes(job.model, kind)]
    cells = [
        cell for held in ((), ("R",)) for cell in make_cells(sites, [other, unrelated], config.directions, held)
    ]  # fmt: skip
    return [job.sweep([*cells, *corner_cells(config)], metrics=ANSWERS, step_metrics=AT_STEPS)]


def matched(job: Doer[Swept, Pairs]) -> list[Swept]:
    config = job.config
    found = job.matches()
    sites = expand(job.model, ["stepwise", "prefixes"], config.kinds)
    cells = make_cells(sites, [other, unrelated], ["denoising"])
    metrics = ("answer", "answer_is_clean", "answer_is_corrupted", "answer_is_hybrid")
    return [job.sweep(corner_cells(config), metrics=ANSWERS), job.sweep(cells, found, metrics=metrics)]


def original(job: Doer[Swept, Pairs]) -> list[Swept]:
    cells = [*make_cells(layerwise(job.model), [other, unrelated], job.config.directions), *corner_cells(job.config)]
    metrics = list(dict.fromkeys((*BOTH_READS, *ANSWERS)))
    return [job.sweep(cells, metrics=metrics, protocol=name) for name in ("latent_loop", "single_pass")]


def attribution(job: Doer[Swept, Pairs]) -> list[Swept]:
    config = job.config
    estimates = job.estimates()
    cells = make_cells(job.largest(estimates), [other], config.directions)
    exact = job.sweep(cells, metrics=("logit_difference",))
    return [estimates, exact, job.sweep(corner_cells(config), metrics=ANSWERS)]


def shapley(job: Doer[Swept, Pairs]) -> list[Swept]:
    directions = job.config.directions
    cells = [
        cell for held in ((), ("K_T",)) for cell in make_cells(subsets(job.model), [other], directions, held)
    ]  # fmt: skip
    games = job.sweep(cells, metrics=("logit_difference",))
    return [games, job.sweep(corner_cells(job.config), metrics=ANSWERS)]


RECIPES: dict[str, Callable[[Any], list[Any]]] = {
    recipe.__name__: recipe
    for recipe in (sweep, early_stop, influence, iterative, matched, original, attribution, shapley)
}
