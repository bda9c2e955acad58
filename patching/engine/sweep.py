"""The sweep: pairs × directions × sources × sites → the table, batch of pairs by batch of pairs.

The questions of a batch are encoded once; all cells run over them, in blocks of bounded size (see
`codi_tracing.traces.loop.thought`). The first runs of every block are the unpatched clean, corrupted and unrelated
runs: hosts, donors and references at once, so a patch is a copy between runs of the same forward, and a cell is
compared with unpatched runs of its own block. A cell begins at the step at which it is first written; until then it
equals its host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from codi_tracing.analysis.table import empty_table
from codi_tracing.configs.schema import Remote
from codi_tracing.configs.vocabulary import DEFAULT_METRICS, DIRECTIONS, PROTOCOLS
from codi_tracing.patching.answer_metrics import LENS_METRICS, metrics_of_protocol
from codi_tracing.patching.engine.batch import ForwardSize, StartedBatch, SweepSettings, run_batch, start_cells
from codi_tracing.patching.engine.batch_store import BatchResult, BatchSpec, BatchStore, MemoryStore, run_batches
from codi_tracing.patching.engine.means import record_means
from codi_tracing.patching.engine.model_size import size_of_model
from codi_tracing.patching.engine.partition import MEMORY, Sizes, batches, choose, draws_of, steps_of, work_of
from codi_tracing.patching.engine.table_rows import in_order
from codi_tracing.patching.interventions.cells import Cell, check_cells, check_single_pass, make_cells, readable
from codi_tracing.patching.interventions.edges import Edge, check_edge
from codi_tracing.patching.interventions.sites import Site, layerwise
from codi_tracing.patching.interventions.sources import Value, other, unrelated
from codi_tracing.patching.metrics import LOGIT_METRICS, METRIC_NAMES, STEP_METRICS
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair, in_clusters
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.traces.loop.tokens import opening_ids, positions_needed
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.session import LOCAL, deployment_of


def sweep(
    model: CodiModel,
    pairs: Sequence[Pair],
    sites: Sequence[Site] | None = None,
    sources: Sequence[Callable[[str], str] | Value] = (other, unrelated),
    directions: Sequence[str] = tuple(DIRECTIONS),
    metrics: Sequence[Any] | None = None,
    freeze: Sequence[str] = (),
    draws: int = 1,
    knockouts: Sequence[Edge] = (),
    pool: Sequence[Pair] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Patch every site from every source in every direction: one row per pair × cell × metric.

    `sites` defaults to the original experiment's, one layer at all steps. `freeze` holds routes at the host's values,
    `knockouts` are edges cut in the patched runs, random sources are drawn `draws` times. Unrelated donors and means
    come from `pairs`, or from a larger `pool`, whose invalid pairs are left out. `options` are those of `sweep_cells`.
    Raises ValueError that names every pair which is no contrast under the model's tokenizer.
    """
    together = in_clusters([*pairs, *(pool or [])])  # a pair and a question of the pool may be one cluster
    ready, excluded = tokenize_pairs(model, together[: len(pairs)])
    if excluded:
        raise ValueError("; ".join(reason for _, reason in excluded))
    cells = make_cells(layerwise(model) if sites is None else sites, sources, directions, freeze, draws, knockouts)
    everyone = None if pool is None else tokenize_pairs(model, together[len(pairs) :])[0]
    return sweep_cells(model, ready, cells, metrics=metrics, everyone=everyone, **options)


def sweep_cells(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    cells: Sequence[Cell],
    *,
    metrics: Sequence[Any] | None = None,
    step_metrics: Sequence[str] = (),
    donors: Sequence[Sequence[Donor]] | None = None,
    everyone: Sequence[TokenizedPair] | None = None,
    seed: int = 0,
    always: Sequence[Edge] = (),
    protocol: str = "latent_loop",
    cells_per_forward: int | None = None,
    pairs_per_batch: int | None = None,
    memory: float = MEMORY,
    max_new_tokens: int = 12,
    progress: bool = False,
    remote: bool | str | None = None,
    store: BatchStore | None = None,
) -> pd.DataFrame:
    """Run `cells` on tokenized pairs; metrics are names or functions. Pairs without unrelated donor lack those rows.

    `step_metrics` are read at every latent step after the last one that a cell writes, in rows with a `read_step`.
    Means are taken over `everyone`, which may be more pairs than are patched; unrelated donors are drawn from them
    unless `donors` are given. `always` are edges cut in every run, the unpatched ones too. `protocol` `single_pass` is
    the original experiment's. `store` saves every batch, so that an interrupted sweep resumes. Cells per forward and
    pairs per batch are chosen so that a forward is estimated to take at most `memory` GiB beside the weights; if memory
    still runs out, fewer cells run at once. A pair with logits that are not finite has no rows.
    """
    if not ready or not cells:
        raise ValueError(f"nothing to sweep: {len(ready)} usable pairs and {len(cells)} cells")
    metrics = metrics_of_protocol(DEFAULT_METRICS, protocol) if metrics is None else metrics
    check_sweep(model, cells, metrics, step_metrics, always, protocol)
    check_sendable(
        deployment_of(model, remote), [*always, *(knockout for cell in cells for knockout in cell.knockouts)]
    )
    check_room(model, ready, steps_of(model, cells))
    everyone = everyone or ready
    averaged = [p.pair for p in everyone]
    computed = sorted({cell.site.kind for cell in cells if isinstance(cell.source, Value)})
    settings = SweepSettings(
        metrics=known_metrics(metrics),
        step_metrics=known_step_metrics(step_metrics),
        draws=draws_of(cells),
        means=record_means(model, averaged, computed, always=always) if computed else {},
        seed=seed,
        max_new_tokens=max_new_tokens,
        always=tuple(always),
        protocol=protocol,
        remote=remote,
    )
    sizes = sizes_for(
        model, ready, cells, settings, memory, cells_per_forward=cells_per_forward, pairs_per_batch=pairs_per_batch
    )
    donors = donors or draw_unrelated(ready, seed, max(1, settings.draws), everyone)
    results = run_sweep(model, ready, donors, cells, settings, sizes, store or MemoryStore(), progress)
    failed = [failure for result in results for failure in result.failed]
    if len(failed) == len(ready):
        raise ValueError(f"every pair failed, so there is no table; the first is pair {failed[0][0]}: {failed[0][1]}")
    return in_order(pd.concat([result.rows for result in results], ignore_index=True)) if results else empty_table()


def run_sweep(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    settings: SweepSettings,
    sizes: Sizes,
    store: BatchStore,
    progress: bool,
) -> list[BatchResult]:
    """The results of all batches that `store` assigns to this process."""
    divided = list(batches(ready, donors, sizes.pairs_per_batch))
    specs = [BatchSpec(index, len(divided), len(ready), len(cells), sizes) for index in range(len(divided))]
    forward, started, results = ForwardSize(sizes.cells_per_forward), dict[int, StartedBatch](), list[BatchResult]()
    place = deployment_of(model, settings.remote)
    ahead = 0 if place is None or place.host == LOCAL or model.ledger is not None else place.jobs

    def run(missing: Sequence[BatchSpec]) -> BatchResult:
        for later in missing[:ahead]:
            if later.index not in started:
                started[later.index] = start_cells(model, *divided[later.index], cells, settings, forward.cells)
        now = missing[0].index
        return run_batch(
            model, *divided[now], cells, settings, forward, started.pop(now, None), bar.set_postfix_str
        )  # fmt: skip

    shard, shards = store.shard
    pairs = sum(len(batch) for batch, _ in divided[shard - 1 :: shards])
    with tqdm(total=pairs, unit="pair", desc=f"{len(cells)} cells a pair", disable=not progress) as bar:
        for spec, result in run_batches(specs, store, run):
            results.append(result)
            bar.update(len(divided[spec.index][0]))
    return results


def check_sweep(
    model: CodiModel,
    cells: Sequence[Cell],
    metrics: Sequence[Any],
    step_metrics: Sequence[str],
    always: Sequence[Edge],
    protocol: str,
) -> None:
    """Refuse, before anything runs, cells, metrics and edges that do not exist or do not go together."""
    check_cells(model, cells)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; use {' or '.join(PROTOCOLS)}")
    if protocol == "single_pass":
        check_single_pass(cells, metrics, step_metrics, always)
    if not metrics and not any(readable(model, cells, step) for step in range(model.n_latents if step_metrics else 0)):
        raise ValueError("nothing to measure: no metrics, and no latent step is read after what the cells write")
    for knockout in always:
        check_edge(model, knockout)


def sizes_for(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    cells: Sequence[Cell],
    settings: SweepSettings,
    memory: float,
    **given: int | None,
) -> Sizes:
    """How many cells of how many pairs run at once; depends on pairs and cells, not on the machine."""
    opening = len(opening_ids(model))
    work = work_of(model, ready, cells, settings.unpatched, [*settings.metrics], settings.max_new_tokens, opening)
    return choose(size_of_model(model), work, memory, **given)


def check_sendable(place: Remote | None, knockouts: Sequence[Edge]) -> None:
    """Refuse edges of one layer on a deployment, whose sandbox copies the cache with a layer's own mask."""
    if (
        place is not None
        and place.host != LOCAL
        and (single := [knockout for knockout in knockouts if knockout.layer is not None])
    ):
        whole = str(single[0]._replace(layer=None))
        raise ValueError(
            f"the edge {single[0]} is cut in one layer alone, which cannot be done on a deployment; cut it in all "
            f"layers ({whole}), or load the model here"
        )


def check_room(model: CodiModel, ready: Sequence[TokenizedPair], steps: int) -> None:
    """Refuse, before anything runs, a pair that does not fit the model's positions with so many steps."""
    for p in ready:
        answer = len(p.forced) + max(map(len, p.tails)) - 1  # its EOS is scored, not fed
        need = positions_needed(model, p.tokens, answer, steps)
        if need > model.n_positions:
            raise ValueError(
                f"pair {p.pair.pair_id}: with {steps} latent steps it needs {need} positions, the model has "
                f"{model.n_positions}; take fewer steps or drop the pair"
            )


def known_metrics(metrics: Sequence[Any]) -> dict[str, Any]:
    """Metrics by name; ValueError for an unknown name."""
    chosen = {metric if isinstance(metric, str) else metric.__name__: metric for metric in metrics}
    if missing := [name for name, metric in chosen.items() if isinstance(metric, str) and name not in METRIC_NAMES]:
        raise ValueError(f"metric {missing[0]!r} is unknown; use {', '.join(METRIC_NAMES)} or a function")
    return chosen


def known_step_metrics(names: Sequence[str]) -> dict[str, Callable]:
    """Metrics of a latent step by name; ValueError for an unknown name."""
    known = STEP_METRICS | {name: LOGIT_METRICS[name] for name in LENS_METRICS}
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"metric {missing[0]!r} cannot be read at a latent step; use {', '.join(known)}")
    return {name: known[name] for name in names}
