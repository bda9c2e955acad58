"""The ready-made experiments: what each patches and measures. Each is one function from a model and its pairs to rows.

- `sweep`: the grid that a config names. By default the original experiment: each layer's residual at all steps.
- `early_stop`: the answer after k of n steps and beyond n, beside steps from k on resampled, each with and without the
  answer seeing the question (arXiv 2602.08783 stops early).
- `influence`: one step written, every later step measured; in all, and directly (arXiv 2602.08783).
- `iterative`: steps 0 to k written and the rest running free, beside the same with the next latent held.
- `matched`: donors that share, or do not share, an intermediate or the answer (interchange interventions, Geiger et al.
  2022): see `patching.matched`.
- `placeholder`: the original experiment's single pass beside the loop: see `traces.placeholder`.
- `attribution`: gradient-based estimates, the largest and random ones verified: see `patching.attribution`.
- `shapley`: every subset of the steps' caches (Shapley 1953; interactions: Grabisch and Roubens 1999).

The corners (whole thoughts exchanged) and what changes nothing run beside every experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from configs.schema import RunConfig
from patching.attribution import attribute, to_verify
from patching.cells import Cell, grid, knockouts
from patching.edges import Edge, edge
from patching.engine import Keep, nothing_kept, sweep_cells
from patching.interchange import Matched, matched_pairs
from patching.selection import Selection
from patching.sites import THOUGHT, Site, expand, layerwise, prefixes, subsets
from patching.sources import SOURCES, itself, other, unrelated
from traces.model import CodiModel

UNSEEN = Edge(None, "question")
ANSWERS = ("logit_difference", "prediction_change", "answer", "answer_is_clean", "answer_is_corrupted")
AT_STEPS = ("projection", "distance_to_clean", "kl_to_clean")
BOTH_READS = ("kl_from_corrupted", "logit_difference", "kl_from_corrupted_at_eot", "logit_difference_at_eot")


class Job(NamedTuple):
    """A model, the pairs to patch, the config, what keeps each sweep's batches, and what there is to tell."""

    model: CodiModel
    chosen: Selection
    config: RunConfig
    stage: Callable[[], Keep]
    progress: bool
    notes: dict[str, Any]  # what an experiment has to tell beside its rows; kept in the manifest

    def sweep(self, cells: Sequence[Cell], found: Matched | None = None, **options: Any) -> pd.DataFrame:
        """The rows of some cells on the chosen pairs, or on matched ones."""
        config, chosen = self.config, self.chosen
        ready, donors = (chosen.ready, chosen.donors) if found is None else (found.ready, found.donors)
        return sweep_cells(
            self.model, ready, cells, donors=donors, everyone=chosen.everyone, seed=config.seed,
            cells_per_forward=config.cells_per_forward, pairs_per_batch=config.pairs_per_batch, memory=config.memory,
            max_new_tokens=config.max_new_tokens, progress=self.progress, keep=self.stage(), **options,
        )  # fmt: skip


def job(
    model: CodiModel,
    chosen: Selection,
    config: RunConfig,
    stage: Callable[[], Keep] = lambda: nothing_kept,
    progress: bool = False,
) -> Job:
    """Put together what every experiment needs."""
    return Job(model, chosen, config, stage, progress, {})


def run_recipe(job: Job) -> pd.DataFrame:
    """The rows of the config's experiment, the corners among them."""
    return RECIPES[job.config.experiment](job)


def corner_cells(config: RunConfig) -> list[Cell]:
    """Whole thoughts exchanged, and a run's own written into itself, which changes nothing."""
    return grid([THOUGHT], [other, unrelated, itself], config.directions)


def sweep(job: Job) -> pd.DataFrame:
    config = job.config
    sites = expand(job.model, config.sites, config.kinds)
    sources = [SOURCES[name] for name in config.sources]
    cells = grid(sites, sources, config.directions, config.freeze, config.draws)
    cells += grid(sites, sources, config.directions, draws=config.draws) if config.unheld else []
    cells += knockouts([edge(text) for text in config.cuts], config.directions)
    return job.sweep([*cells, *corner_cells(config)], metrics=config.metrics, protocol=config.protocol)


def early_stop(job: Job) -> pd.DataFrame:
    n, config = job.model.n_latents, job.config
    cells = []
    for cuts in ((), (UNSEEN,)):
        for direction in config.directions:
            stops = range(n + config.beyond + 1)
            cells += [Cell(direction, itself, THOUGHT, cuts=cuts, n_latents=k) for k in stops]
        rest = [Site("kv", step=k, step_last=n - 1) for k in range(n)]
        cells += grid(rest, [unrelated], config.directions, draws=config.draws, cuts=cuts)
    return job.sweep([*cells, *corner_cells(config)], metrics=ANSWERS)


def influence(job: Job) -> pd.DataFrame:
    config = job.config
    sites = [site for kind in config.kinds for site in expand(job.model, ["stepwise"], [kind])]
    cells = [
        cell for held in ((), ("between",)) for cell in grid(sites, [other, unrelated], config.directions, held)
    ]  # fmt: skip
    return job.sweep([*cells, *corner_cells(config)], metrics=ANSWERS, step_metrics=AT_STEPS)


def iterative(job: Job) -> pd.DataFrame:
    config = job.config
    sites = [site for kind in config.kinds for site in prefixes(job.model, kind)]
    cells = [
        cell for held in ((), ("R",)) for cell in grid(sites, [other, unrelated], config.directions, held)
    ]  # fmt: skip
    return job.sweep([*cells, *corner_cells(config)], metrics=ANSWERS, step_metrics=AT_STEPS)


def matched(job: Job) -> pd.DataFrame:
    config = job.config
    most = min(config.matches, config.pairs.limit or config.matches)
    found = matched_pairs(job.model, job.chosen.everyone, config.seed, most, config.fresh, config.max_new_tokens)
    job.notes["matches"] = found.counts
    sites = expand(job.model, ["stepwise", "prefixes"], config.kinds)
    cells = grid(sites, [other, unrelated], ["denoising"])
    metrics = ("answer", "answer_is_clean", "answer_is_corrupted", "answer_is_hybrid")
    return joined([job.sweep(corner_cells(config), metrics=ANSWERS), job.sweep(cells, found, metrics=metrics)])


def placeholder(job: Job) -> pd.DataFrame:
    cells = [*grid(layerwise(job.model), [other, unrelated], job.config.directions), *corner_cells(job.config)]
    metrics = list(dict.fromkeys((*BOTH_READS, *ANSWERS)))
    return joined(job.sweep(cells, metrics=metrics, protocol=name) for name in ("latent_loop", "placeholder"))


def attribution(job: Job) -> pd.DataFrame:
    config = job.config
    estimates = attribute(
        job.model,
        job.chosen.ready,
        config.kinds,
        config.directions,
        pairs_per_batch=config.pairs_per_batch or 8,
        keep=job.stage(),
    )
    cells = grid(to_verify(estimates, config.top, config.seed), [other], config.directions)
    exact = job.sweep(cells, metrics=("logit_difference",))
    return joined([estimates, exact, job.sweep(corner_cells(config), metrics=ANSWERS)])


def shapley(job: Job) -> pd.DataFrame:
    directions = job.config.directions
    cells = [
        cell for held in ((), ("K_T",)) for cell in grid(subsets(job.model), [other], directions, held)
    ]  # fmt: skip
    games = job.sweep(cells, metrics=("logit_difference",))
    return joined([games, job.sweep(corner_cells(job.config), metrics=ANSWERS)])


def joined(tables: Any) -> pd.DataFrame:
    """Several sweeps' rows in one table."""
    return pd.concat(list(tables), ignore_index=True)


RECIPES: dict[str, Callable[[Job], pd.DataFrame]] = {
    recipe.__name__: recipe
    for recipe in (sweep, early_stop, influence, iterative, matched, placeholder, attribution, shapley)
}
