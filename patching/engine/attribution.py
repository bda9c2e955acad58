"""Attribution patching: every single place of every pair estimated from one forward and one backward.

The estimate is the first-order change of the answer's logit difference when the host's value at a place is replaced by
that of the pair's other run:

    host's logit difference + (donor's activation − host's activation) · ∂(logit difference)/∂(host's activation)

Nanda, "Attribution Patching: Activation Patching At Industrial Scale" (2023); Syed, Rager and Conmy (arXiv 2310.10348)
compare it with exact patching. It serves to choose what is then patched exactly, and cannot replace that:

- it is first order: a write of an ordinary donor is a large step, and norms, gates and the softmax bend on the way;
- where attention saturates its gradient vanishes, and effects that cancel to first order look like none (AtP*,
  Kramár et al., arXiv 2403.00745, mends both; this does not), so a small estimate is no evidence of a small effect;
- it knows neither windows of several places, frozen routes, cuts nor other metrics;
- it needs gradients, which sandboxed remote servers do not give.

The graph of all latent steps and of the answer is held in memory at once, where a sweep holds one step's activations at
a time; make `pairs_per_batch` smaller if that is too much. Gradients have the model's precision, products are fp32.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codi_tracing.analysis.statistics.effects import effect
from codi_tracing.analysis.table import empty_table
from codi_tracing.patching.engine.batch import Batch
from codi_tracing.patching.engine.partition import Sizes, batches
from codi_tracing.patching.engine.sweep import Due, Keep, nothing_kept
from codi_tracing.patching.engine.table_rows import in_order, placed, rows_of
from codi_tracing.patching.interventions.cells import Cell, make_cells
from codi_tracing.patching.interventions.sites import INSIDE, Site, single_places
from codi_tracing.patching.interventions.sources import HOSTS, RUNS, other
from codi_tracing.patching.metrics import Reading, logit_difference
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.loop.answer import Forced
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.thought import Edits, run
from codi_tracing.traces.loop.tokens import encode
from codi_tracing.traces.model.codi_model import CodiModel

METRIC = "logit_difference_estimate"
KINDS = ("latent", *INSIDE, "kv")
Kept = dict[str, list[tuple[Tensor, ...]]]  # kind -> step after step, layer by layer; an entry is keys and values


def attribute(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    kinds: Sequence[str] = KINDS,
    directions: Sequence[str] = tuple(HOSTS),
    *,
    pairs_per_batch: int = 8,
    remote: bool | str | None = None,
    keep: Keep = nothing_kept,
) -> pd.DataFrame:
    """Estimate each single place of `kinds`: one row per pair × direction × place, in the table's columns.

    `patched` is the estimated logit difference, `clean` and `corrupted` are exact; the metric is named
    `logit_difference_estimate`, so that estimates and measurements may share a table.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"site {unknown[0]!r} has no estimate; use {', '.join(KINDS)}")
    if not ready or not kinds or not directions:
        sizes = f"{len(ready)} usable pairs, {len(kinds)} kinds of site and {len(directions)} directions"
        raise ValueError(f"nothing to estimate: {sizes}")
    cells = make_cells(single_places(model, kinds), sources=(other,), directions=directions)
    divided = list(batches(ready, [()] * len(ready), pairs_per_batch))
    found = []
    for place, (batch, _) in enumerate(divided):
        due = Due(place, len(divided), len(ready), len(cells), Sizes(pairs_per_batch, 2, None))
        kept = keep(due, partial(estimated_batch, model, batch, kinds, cells, remote))
        found += [] if kept is None else [kept.rows]
    return in_order(pd.concat(found, ignore_index=True)) if found else empty_table()


def estimated_batch(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    kinds: Sequence[str],
    cells: Sequence[Cell],
    remote: bool | str | None,
) -> Batch:
    """The estimates of a batch of pairs as rows."""
    reference, changes = estimate(model, batch, kinds, remote)
    hosts = np.array([RUNS.index(cell.host) for cell in cells])
    change = [
        changes[cell.site.kind][cell.site.layer or 0, cell.site.step, cell.site.head or 0, :, host]
        for cell, host in zip(cells, hosts, strict=True)
    ]
    patched = reference[:, hosts] + np.stack(change, -1)
    runs = (np.broadcast_to(reference[:, [side]], patched.shape) for side in range(2))
    rows = placed(rows_of(batch, [()] * len(batch), cells, {METRIC: np.stack([patched, *runs])}), batch, [METRIC])
    bad = ~(np.isfinite(patched).all(1) & np.isfinite(reference).all(1))
    failed = tuple(
        (str(p.pair.pair_id), "its logit differences or their gradients are not finite")
        for p, is_bad in zip(batch, bad, strict=True)
        if is_bad
    )
    return Batch(rows[~rows["pair_id"].isin([pair for pair, _ in failed])], failed)


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
    kept: Kept = defaultdict(list)

    def measure(forced: Forced) -> dict[str, Tensor]:
        logits = forced.at_read
        clean, corrupted = logits[:, 0:1], logits[:, 1:2]
        value = logit_difference(Reading(logits, torch.arange(2), clean, corrupted, clean_token, corrupted_token))
        return {"reference": value.detach(), **first_order(model, kept, value)}

    trunk = torch.tensor([p.forced for p in batch])
    done = run(
        model, rows, trunk, edits=keeping(model, rows, kinds, kept), measure=measure, gradients=True, remote=remote
    )  # fmt: skip
    values = {name: value.double().cpu().numpy() for name, value in done.measured.items()}
    return values.pop("reference"), values


def keeping(model: CodiModel, rows: Rows, kinds: Sequence[str], kept: Kept) -> Edits:
    """Edits that change no value and keep what stands at each place, as a tensor of the graph.

    The graph begins at latent 0: nothing before it can be estimated, and the parameters require no gradient.
    """

    def block(module: Any, layer: int, step: int) -> None:
        for kind in ("head", "attn", "mlp", "resid"):
            if kind in kinds:
                kept[kind].append((model.activation(module, kind),))

    def latent(values: Tensor, step: int) -> Tensor:
        values = values.detach().requires_grad_() if step == 0 else values
        if "latent" in kinds and step < model.n_latents:
            kept["latent"].append((values,))
        return values

    def cache(stored: Any, step: int) -> None:
        start = rows.ids[0].numel() + step * rows.n_cells
        for entry in stored.layers:  # the step itself has read the cache: only a copy is read by later positions alone
            keys, values = entry.keys[:, :, start:].clone(), entry.values[:, :, start:].clone()
            entry.keys = torch.cat([entry.keys[:, :, :start], keys], 2)
            entry.values = torch.cat([entry.values[:, :, :start], values], 2)
            kept["kv"].append((keys, values))

    return Edits((block,), latent, cache if "kv" in kinds else None)


def first_order(model: CodiModel, kept: Kept, value: Tensor) -> dict[str, Tensor]:
    """(Donor − host) · gradient of `value` at every place that was kept, by kind: `[layer, step, head, pair, host]`."""
    places = [tensor for groups in kept.values() for group in groups for tensor in group]
    # What nothing reads, as the last layer's output at the last step, has gradient zero.
    gradients = iter(torch.autograd.grad(value.sum(), places, allow_unused=True, materialize_grads=True))
    changes = {}
    for kind, groups in kept.items():
        heads = model.n_heads if kind == "head" else 1
        found = [torch.stack([product(t, next(gradients), heads) for t in group]).sum(0) for group in groups]
        changes[kind] = torch.stack(found).unflatten(0, (model.n_latents, -1)).transpose(0, 1)
    return changes


def product(stands: Tensor, gradient: Tensor, heads: int) -> Tensor:
    """(Other cell's value − own) · gradient in fp32, `[head, pair, cell]`."""
    stands, gradient = stands.detach().float(), gradient.float()
    if stands.ndim == 4:  # of a cache: [pair, head, cell, width]
        stands, gradient = (tensor.transpose(1, 2).flatten(2) for tensor in (stands, gradient))
    change = (stands.flip(1) - stands) * gradient
    return change.unflatten(-1, (heads, -1)).sum(-1).permute(2, 0, 1)


def to_verify(estimates: pd.DataFrame, top: int, seed: int) -> list[Site]:
    """The `top` places of largest pooled estimated effect, either sign, and as many others drawn with the seed.

    Pooled over pairs and directions, both counted towards the clean run, for the two directions' gaps are each other's
    opposite and would cancel. Sweep them exactly: the drawn ones show what the estimate overlooks.
    """
    if top < 1:
        raise ValueError(f"top {top} chooses no place; use 1 or more")
    chosen = estimates[estimates["metric"] == METRIC]
    if chosen.empty:
        raise ValueError(f"the table has no rows of metric {METRIC!r}; make them with attribute()")
    sign = chosen["direction"].map({"denoising": 1, "noising": -1})
    sums = effect(chosen)[["numerator", "denominator"]].mul(sign, axis=0)
    fields = ("layer", "layer_last", "step", "step_last", "head")
    place = [chosen[field].astype("object").where(chosen[field].notna(), None) for field in fields]
    sites = [Site(*fields) for fields in zip(chosen["kind"], *place, strict=True)]
    by_site = sums.groupby(pd.Series(sites, chosen.index, dtype="object"), sort=False).sum()
    sizes = (by_site["numerator"] / by_site["denominator"]).abs()
    ranked = sizes.sort_values(ascending=False, kind="stable", na_position="last").index.tolist()
    rest = ranked[top:]
    return [*ranked[:top], *random.Random(seed).sample(rest, min(top, len(rest)))]
