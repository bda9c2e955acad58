"""Attribution patching: estimate the effect of every single site of every pair by one forward and one backward pass.

The estimate is the first-order change of the answer's logit difference when the host's activation at a site is replaced
by that of the pair's other run:

    host's logit difference + (donor's activation − host's activation) · ∂(logit difference)/∂(host's activation)

Nanda, "Attribution Patching: Activation Patching At Industrial Scale" (2023); Syed, Rager and Conmy (arXiv 2310.10348)
compare it with exact patching. It selects the sites to patch exactly and does not replace exact patching:

- An ordinary donor is a large step, along which norms, gates and the softmax are not linear.
- Where attention saturates, its gradient vanishes, and effects can cancel to first order (AtP*, Kramár et al., arXiv
  2403.00745, corrects both; this does not), so a small estimate is no evidence of a small effect.
- It has no windows of several sites, frozen routes, knockouts or other metrics.
- It needs gradients, which sandboxed remote servers do not compute.

The graph of all latent steps and of the answer is in memory at once; if that is too much, use a smaller
`pairs_per_batch`. Gradients have the model's precision, products are fp32.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codi_tracing.analysis.statistics.effects import effect
from codi_tracing.analysis.table import empty_table
from codi_tracing.configs.vocabulary import DIRECTIONS, GRID_KINDS
from codi_tracing.patching.engine.batch_store import BatchResult, BatchSpec, BatchStore, MemoryStore, run_batches
from codi_tracing.patching.engine.partition import Sizes, batches
from codi_tracing.patching.engine.table_rows import in_order, rows_of, with_order
from codi_tracing.patching.interventions.cells import Cell, make_cells
from codi_tracing.patching.interventions.sites import Site, single_sites
from codi_tracing.patching.interventions.sources import RUNS, other
from codi_tracing.patching.metrics import Reading, logit_difference
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.loop.answer import Forced
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.thought import Edits, run
from codi_tracing.traces.loop.tokens import encode
from codi_tracing.traces.model.codi_model import CodiModel

ESTIMATED = "logit_difference_estimate"
Activations = dict[str, list[tuple[Tensor, ...]]]  # kind -> by step, then layer; a cache entry is (keys, values)


def attribute(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    kinds: Sequence[str] = GRID_KINDS,
    directions: Sequence[str] = tuple(DIRECTIONS),
    *,
    pairs_per_batch: int = 8,
    remote: bool | str | None = None,
    store: BatchStore | None = None,
) -> pd.DataFrame:
    """Estimate each single site of `kinds`: one row per pair × direction × site, in the table's columns.

    `patched` is the estimated logit difference, `clean` and `corrupted` are exact; the metric is named
    `logit_difference_estimate`, so that estimates and measurements can share a table.
    """
    if unknown := [kind for kind in kinds if kind not in GRID_KINDS]:
        raise ValueError(f"site {unknown[0]!r} has no estimate; use {', '.join(GRID_KINDS)}")
    if not ready or not kinds or not directions:
        counts = f"{len(ready)} usable pairs, {len(kinds)} kinds of site and {len(directions)} directions"
        raise ValueError(f"nothing to estimate: {counts}")
    cells = make_cells(single_sites(model, kinds), sources=(other,), directions=directions)
    divided = [batch for batch, _ in batches(ready, [()] * len(ready), pairs_per_batch)]
    sizes = Sizes(pairs_per_batch, 2, None)
    specs = [BatchSpec(index, len(divided), len(ready), len(cells), sizes) for index in range(len(divided))]

    def run(missing: Sequence[BatchSpec]) -> BatchResult:
        return estimated_batch(model, divided[missing[0].index], kinds, cells, remote)

    results = [result.rows for _, result in run_batches(specs, store or MemoryStore(), run)]
    return in_order(pd.concat(results, ignore_index=True)) if results else empty_table()


def estimated_batch(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    kinds: Sequence[str],
    cells: Sequence[Cell],
    remote: bool | str | None,
) -> BatchResult:
    """The estimates of a batch of pairs as rows."""
    reference, changes = estimate(model, batch, kinds, remote)
    hosts = np.array([RUNS.index(cell.host) for cell in cells])
    change = [
        changes[cell.site.kind][cell.site.layer or 0, cell.site.step, cell.site.head or 0, :, host]
        for cell, host in zip(cells, hosts, strict=True)
    ]
    patched = reference[:, hosts] + np.stack(change, -1)
    runs = (np.broadcast_to(reference[:, [side]], patched.shape) for side in range(2))
    rows = with_order(
        rows_of(batch, [()] * len(batch), cells, {ESTIMATED: np.stack([patched, *runs])}),
        batch,
        [ESTIMATED],
    )
    bad = ~(np.isfinite(patched).all(1) & np.isfinite(reference).all(1))
    failed = tuple(
        (str(p.pair.pair_id), "its logit differences or their gradients are not finite")
        for p, is_bad in zip(batch, bad, strict=True)
        if is_bad
    )
    return BatchResult(rows[~rows["pair_id"].isin([pair for pair, _ in failed])], failed)


def estimate(
    model: CodiModel, batch: Sequence[TokenizedPair], kinds: Sequence[str], remote: bool | str | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The logit differences `[pair, run]`, and their estimated changes by kind, `[layer, step, head, pair, host]`.

    A row's two cells are the clean and the corrupted run, and each is the other's donor. As no cell sees another, the
    gradient of the sum over all cells is each cell's own.
    """
    rows = encode(model, [[p.pair.clean.question, p.pair.corrupted.question] for p in batch], [0, 1])
    clean_token = torch.tensor([[[p.clean_token]] for p in batch], device=model.device)
    corrupted_token = torch.tensor([[[p.corrupted_token]] for p in batch], device=model.device)
    activations: Activations = defaultdict(list)

    def measure(forced: Forced) -> dict[str, Tensor]:
        logits = forced.at_read
        clean, corrupted = logits[:, 0:1], logits[:, 1:2]
        value = logit_difference(Reading(logits, torch.arange(2), clean, corrupted, clean_token, corrupted_token))
        return {"reference": value.detach(), **first_order(model, activations, value)}

    trunk, edits = torch.tensor([p.forced for p in batch]), recording(model, rows, kinds, activations)
    done = run(model, rows, trunk, edits=edits, measure=measure, gradients=True, remote=remote)
    values = {name: value.double().cpu().numpy() for name, value in done.measured.items()}
    return values.pop("reference"), values


def recording(model: CodiModel, rows: Rows, kinds: Sequence[str], activations: Activations) -> Edits:
    """Edits that change no value and record the activation at each site, as a tensor of the graph.

    The graph begins at latent 0, since no earlier activation is estimated and parameters require no gradient.
    """

    def block(module: Any, layer: int, step: int) -> None:
        for kind in ("head", "attn", "mlp", "resid"):
            if kind in kinds:
                activations[kind].append((model.activation(module, kind),))

    def latent(values: Tensor, step: int) -> Tensor:
        values = values.detach().requires_grad_() if step == 0 else values
        if "latent" in kinds and step < model.n_latents:
            activations["latent"].append((values,))
        return values

    def cache(stored: Any, step: int) -> None:
        start = rows.ids[0].numel() + step * rows.n_cells
        for entry in stored.layers:  # the step has read the cache already; only later positions read the copy
            keys, values = entry.keys[:, :, start:].clone(), entry.values[:, :, start:].clone()
            entry.keys = torch.cat([entry.keys[:, :, :start], keys], 2)
            entry.values = torch.cat([entry.values[:, :, :start], values], 2)
            activations["kv"].append((keys, values))

    return Edits((block,), latent, cache if "kv" in kinds else None)


def first_order(model: CodiModel, activations: Activations, value: Tensor) -> dict[str, Tensor]:
    """(Donor − host) · gradient of `value` at every recorded site, by kind: `[layer, step, head, pair, host]`."""
    tensors = [tensor for sites in activations.values() for site in sites for tensor in site]
    # The last layer's output at the last step is never read: its gradient is zero.
    gradients = iter(torch.autograd.grad(value.sum(), tensors, allow_unused=True, materialize_grads=True))
    changes = {}
    for kind, sites in activations.items():
        heads = model.n_heads if kind == "head" else 1
        products = [torch.stack([product(t, next(gradients), heads) for t in site]).sum(0) for site in sites]
        changes[kind] = torch.stack(products).unflatten(0, (model.n_latents, -1)).transpose(0, 1)
    return changes


def product(values: Tensor, gradient: Tensor, heads: int) -> Tensor:
    """(Other run's value − own) · gradient in fp32, `[head, pair, run]`."""
    values, gradient = values.detach().float(), gradient.float()
    if values.ndim == 4:  # of a cache: [pair, head, run, width]
        values, gradient = (tensor.transpose(1, 2).flatten(2) for tensor in (values, gradient))
    change = (values.flip(1) - values) * gradient
    return change.unflatten(-1, (heads, -1)).sum(-1).permute(2, 0, 1)


def to_verify(estimates: pd.DataFrame, top: int, seed: int) -> list[Site]:
    """The `top` sites of largest pooled estimated effect, either sign, and as many random others.

    Pooled over pairs and directions, both counted towards the clean run, since the two directions' gaps have opposite
    signs and would cancel. The random sites show which effects the estimate misses.
    """
    if top < 1:
        raise ValueError(f"top {top} chooses no site; use 1 or more")
    chosen = estimates[estimates["metric"] == ESTIMATED]
    if chosen.empty:
        raise ValueError(f"the table has no rows of metric {ESTIMATED!r}; make them with attribute()")
    sign = chosen["direction"].map({"denoising": 1, "noising": -1})
    sums = effect(chosen)[["numerator", "denominator"]].mul(sign, axis=0)
    fields = ("layer", "layer_last", "step", "step_last", "head")
    columns = [chosen[field].astype("object").where(chosen[field].notna(), None) for field in fields]
    sites = [Site(*fields) for fields in zip(chosen["kind"], *columns, strict=True)]
    by_site = sums.groupby(pd.Series(sites, chosen.index, dtype="object"), sort=False).sum()
    sizes = (by_site["numerator"] / by_site["denominator"]).abs()
    ranked = sizes.sort_values(ascending=False, kind="stable", na_position="last").index.tolist()
    rest = ranked[top:]
    return [*ranked[:top], *random.Random(seed).sample(rest, min(top, len(rest)))]
