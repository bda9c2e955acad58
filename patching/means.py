"""Mean values of every place over all usable pairs, for ablations: one pass, both questions of each pair unpatched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nnsight
import torch
from torch import Tensor

from patching.edges import Edge, cut_edges
from patching.pairs import Pair
from traces.model import CodiModel
from traces.rows import Sights
from traces.thought import Edits, encode, run

Means = dict[str, Tensor]  # kind of site -> [layer, step, width]; `latent` has one layer


def record_means(
    model: CodiModel, pairs: Sequence[Pair], kinds: Sequence[str], always: Sequence[Edge] = (), batch: int = 16
) -> Means:
    """The mean of each kind of place, `[layer, step, width]`, over the clean and the corrupted runs of `pairs`.

    `always` are edges cut in every run, as in the sweep's own.
    """
    sums: dict[str, Tensor] = {}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        for kind, total in _sums(model, part, kinds, always).items():
            sums[kind] = sums.get(kind, 0) + total
    return {kind: (total / (2 * len(pairs))).to(model.dtype) for kind, total in sums.items()}


def _sums(model: CodiModel, pairs: Sequence[Pair], kinds: Sequence[str], always: Sequence[Edge]) -> Means:
    """Sums over the runs of some pairs, in fp32."""
    rows = encode(model, [[pair.clean.question, pair.corrupted.question] for pair in pairs], [0, 1])
    during: list[Sights] = [{None: rows.own(step).copy()} for step in range(model.n_latents)]
    after: Sights = {None: rows.own(model.n_latents).copy()}
    cut_edges(during, after, [(cell, cut) for cell in range(rows.n_cells) for cut in always])
    rows = replace(rows, during=tuple(during), after=after)
    kept: dict[str, list[Tensor]] = defaultdict(list)

    def keep(kind: str, values: Tensor) -> None:
        if kind in kinds:
            kept[kind].append(nnsight.save(values.float().sum((0, 1))))

    def block(block: Any, layer: int, step: int) -> None:
        if "head" in kinds:
            keep("head", model.heads(block).input)
        if "attn" in kinds:
            keep("attn", model.attention(block).output[0])
        if "mlp" in kinds:
            keep("mlp", model.mlp(block).output)
        if "resid" in kinds:
            keep("resid", block.output)

    def latent(values: Tensor, step: int) -> Tensor:
        if step < model.n_latents:
            keep("latent", values)
        return values

    run(model, rows, torch.zeros(len(pairs), 0, dtype=torch.long), edits=Edits((block,), latent))
    by_place = {kind: torch.stack(list(values)) for kind, values in kept.items()}  # step after step, layer by layer
    return {kind: values.unflatten(0, (model.n_latents, -1)).transpose(0, 1) for kind, values in by_place.items()}
