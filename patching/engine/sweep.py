"""The sweep: pairs × directions × sources × sites -> the table. The only loop over pairs.

A batch of pairs reads its questions once; all cells run over them, uncopied, in blocks of bounded size (see
`codi_tracing.traces.loop.thought`). The first cells of every block are the unpatched clean, corrupted and unrelated runs: hosts, donors
and references at once, so a patch is a copy between cells of the same forward, and a cell is compared with unpatched
runs of its own block. A cell begins at the step at which it is first written, and is its host until then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from codi_tracing.analysis.table import empty_table
from codi_tracing.configs.schema import Remote
from codi_tracing.configs.vocabulary import DEFAULT_METRICS
from codi_tracing.patching.answer_metrics import LENS_METRICS
from codi_tracing.patching.engine.batch import Batch, Pace, Plan, Running, run_batch, start_cells
from codi_tracing.patching.engine.means import record_means
from codi_tracing.patching.engine.partition import MEMORY, Sizes, batches, choose, draws_of, shape_of, steps_of, work_of
from codi_tracing.patching.engine.table_rows import in_order
from codi_tracing.patching.interventions.cells import (
    PROTOCOLS,
    Cell,
    check_cells,
    check_single_pass,
    make_cells,
    readable,
)
from codi_tracing.patching.interventions.edges import Edge, check_edge
from codi_tracing.patching.interventions.sites import Site, layerwise
from codi_tracing.patching.interventions.sources import HOSTS, Value, other, unrelated
from codi_tracing.patching.metrics import LOGIT_METRICS, METRIC_NAMES, STEP_METRICS
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.traces.loop.tokens import opening_ids, positions_needed
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.session import LOCAL, place_of


class Due(NamedTuple):
    """A batch that is to be run: its place among how many, of how many pairs and cells in all, in what sizes."""

    place: int
    of: int
    pairs: int
    cells: int
    sizes: Sizes


# Called for each batch with what is due and what computes it: saves what is new, gives back what was saved, and `None`
# where a batch is somebody else's. Where it has a function `wants`, that says whether a batch would be computed.
Keep = Callable[[Due, Callable[[], Batch]], Batch | None]


def wanted(due: Due) -> bool:
    """Every batch is computed."""
    return True


def nothing_kept(due: Due, compute: Callable[[], Batch]) -> Batch | None:
    """Compute every batch, save none, and warn of pairs that failed."""
    found = compute()
    for pair, reason in found.failed:
        warnings.warn(f"pair {pair} has no rows: {reason}", stacklevel=3)
    return found


def sweep(
    model: CodiModel,
    pairs: Sequence[Pair],
    sites: Sequence[Site] | None = None,
    sources: Sequence[Callable[[str], str] | Value] = (other, unrelated),
    directions: Sequence[str] = tuple(HOSTS),
    metrics: Sequence[Any] = DEFAULT_METRICS,
    freeze: Sequence[str] = (),
    draws: int = 1,
    knockouts: Sequence[Edge] = (),
    pool: Sequence[Pair] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Patch every site from every source in every direction: one row per pair × cell × metric.

    `sites` defaults to the original experiment's, one layer at all steps; `freeze` holds routes at the host's values
    (R, K_T, K_A), `cuts` are edges knocked out of the patched runs, a drawn source has so many `draws`. Unrelated
    donors and means come from `pairs`, or from a larger `pool`, of which what is no contrast is left out: few pairs
    have few donors of their length. `options` are those of `sweep_cells`. Raises ValueError for a pair that is no
    contrast under the model's tokenizer, all of them named.
    """
    ready, excluded = tokenize_pairs(model, pairs)
    if excluded:
        raise ValueError("; ".join(reason for _, reason in excluded))
    cells = make_cells(layerwise(model) if sites is None else sites, sources, directions, freeze, draws, knockouts)
    everyone = None if pool is None else tokenize_pairs(model, pool)[0]
    return sweep_cells(model, ready, cells, metrics=metrics, everyone=everyone, **options)


def sweep_cells(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    cells: Sequence[Cell],
    *,
    metrics: Sequence[Any] = DEFAULT_METRICS,
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
    keep: Keep = nothing_kept,
) -> pd.DataFrame:
    """Run `cells` on prepared pairs; metrics are names or functions. Pairs without unrelated donor lack those rows.

    `step_metrics` are read at every latent step after the last one that a cell writes, and stand in rows with a
    `read_step`. Means are taken over `everyone`, which may be more pairs than those patched, and unrelated donors drawn
    from them where `donors` are not given. `always` are edges cut in
    every run, the unpatched ones too. `protocol` `single_pass` is the original experiment's single pass. `keep` saves
    batch after batch, so that a sweep that was cut short goes on where it stopped. How many cells run at once, and how
    many pairs make a batch, is chosen so that a forward is estimated to take at most `memory` GiB beside the weights;
    where memory runs out all the same, fewer cells run. A pair of which a run's logits are not finite has no rows.
    """
    if not ready or not cells:
        raise ValueError(f"nothing to sweep: {len(ready)} usable pairs and {len(cells)} cells")
    check_cells(model, cells)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; use {' or '.join(PROTOCOLS)}")
    if protocol == "single_pass":
        check_single_pass(cells, metrics, step_metrics, always)
    if not metrics and not any(readable(model, cells, step) for step in range(model.n_latents if step_metrics else 0)):
        raise ValueError("nothing to measure: no metrics, and no latent step is read after what the cells write")
    for knockout in always:
        check_edge(model, knockout)
    check_sendable(place_of(model, remote), [*always, *(knockout for cell in cells for knockout in cell.knockouts)])
    check_room(model, ready, steps_of(model, cells))
    computed = sorted({cell.site.kind for cell in cells if isinstance(cell.source, Value)})
    everyone = everyone or ready
    averaged = [p.pair for p in everyone]
    draws = draws_of(cells)
    plan = Plan(
        metrics=known_metrics(metrics),
        step_metrics=known_step_metrics(step_metrics),
        draws=draws,
        means=record_means(model, averaged, computed, always=always) if computed else {},
        seed=seed,
        max_new_tokens=max_new_tokens,
        always=tuple(always),
        protocol=protocol,
        remote=remote,
    )
    sizes = sizes_for(
        model, ready, cells, plan, memory, cells_per_forward=cells_per_forward, pairs_per_batch=pairs_per_batch
    )
    pace = Pace(sizes.cells_per_forward)
    donors = donors or draw_unrelated(ready, seed, max(1, draws), everyone)
    divided = list(batches(ready, donors, sizes.pairs_per_batch))
    due = [Due(place, len(divided), len(ready), len(cells), sizes) for place in range(len(divided))]
    place, begun, found = place_of(model, remote), dict[int, Running](), list[Batch]()
    ahead = 0 if place is None or place.host == LOCAL or model.ledger is not None else place.jobs
    with tqdm(total=len(ready), unit="pair", desc=f"{len(cells)} cells a pair", disable=not progress) as bar:
        for now, (batch, drawn) in enumerate(divided):
            for later in range(now, min(now + ahead, len(divided))):
                if later not in begun and getattr(keep, "wants", wanted)(due[later]):
                    begun[later] = start_cells(model, *divided[later], cells, plan, pace.cells)
            compute = partial(
                run_batch, model, batch, drawn, cells, plan, pace, begun.pop(now, None), bar.set_postfix_str
            )
            kept = keep(due[now], compute)
            found += [] if kept is None else [kept]
            bar.update(len(batch))
    failed = [failure for batch in found for failure in batch.failed]
    if len(failed) == len(ready):
        raise ValueError(f"every pair failed, so there is no table; the first is pair {failed[0][0]}: {failed[0][1]}")
    return in_order(pd.concat([batch.rows for batch in found], ignore_index=True)) if found else empty_table()


def sizes_for(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    cells: Sequence[Cell],
    plan: Plan,
    memory: float,
    **given: int | None,
) -> Sizes:
    """How many cells of how many pairs run at once: by what the pairs and the cells are, not by the machine."""
    opening = len(opening_ids(model))
    work = work_of(model, ready, cells, plan.unpatched, [*plan.metrics], plan.max_new_tokens, opening)
    return choose(shape_of(model.lm.config, model.dtype.itemsize), work, memory, **given)


def check_sendable(place: Remote | None, knockouts: Sequence[Edge]) -> None:
    """Refuse what a deployment's sandbox would do wrongly: a layer's own mask comes back with a copy of its cache."""
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
    """Refuse, before anything runs, a pair that has no room for so many steps."""
    for p in ready:
        answer = len(p.forced) + max(map(len, p.tails)) - 1  # its EOS is scored, not fed
        need = positions_needed(model, p.tokens, answer, steps)
        if need > model.n_positions:
            raise ValueError(
                f"pair {p.pair.pair_id}: with {steps} latent steps it needs {need} positions, the model has "
                f"{model.n_positions}; take fewer steps or drop the pair"
            )


def known_metrics(metrics: Sequence[Any]) -> dict[str, Any]:
    """Metrics by name; ValueError for a name that is none."""
    chosen = {metric if isinstance(metric, str) else metric.__name__: metric for metric in metrics}
    if missing := [name for name, metric in chosen.items() if isinstance(metric, str) and name not in METRIC_NAMES]:
        raise ValueError(f"metric {missing[0]!r} is unknown; use {', '.join(METRIC_NAMES)} or a function")
    return chosen


def known_step_metrics(names: Sequence[str]) -> dict[str, Callable]:
    """The same of what is read at a latent step."""
    known = STEP_METRICS | {name: LOGIT_METRICS[name] for name in LENS_METRICS}
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"metric {missing[0]!r} cannot be read at a latent step; use {', '.join(known)}")
    return {name: known[name] for name in names}
