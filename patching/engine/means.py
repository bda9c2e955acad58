"""Mean activations over the unpatched runs of all usable pairs, for mean ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codi_tracing.patching.engine.visibility import with_sight
from codi_tracing.patching.interventions.edges import Edge
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import encode
from codi_tracing.traces.model.codi_model import CodiModel

Means = dict[str, Tensor]  # kind of site -> [layer, step, width]; `latent` has one layer


def record_means(
    model: CodiModel, pairs: Sequence[Pair], kinds: Sequence[str], batch: int = 16, always: Sequence[Edge] = ()
) -> Means:
    """The mean of each kind of site, `[layer, step, width]`, over the clean and corrupted runs of `pairs`."""
    sums: dict[str, Tensor] = {}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        for kind, total in _sums(model, part, kinds, always).items():
            sums[kind] = sums.get(kind, 0) + total
    return {kind: (total / (2 * len(pairs))).to(model.dtype) for kind, total in sums.items()}


def _sums(model: CodiModel, pairs: Sequence[Pair], kinds: Sequence[str], always: Sequence[Edge]) -> Means:
    """Sums over the runs of some pairs, in fp32."""
    rows = encode(model, [[pair.clean.question, pair.corrupted.question] for pair in pairs], [0, 1])
    rows = with_sight(model, rows, (), always=always)

    def block(block: Any, layer: int, step: int) -> dict[str, Tensor]:
        found = {"latent": model.decoder.inputs[1]["inputs_embeds"]} if layer == 0 and "latent" in kinds else {}
        for kind in ("head", "attn", "mlp", "resid"):
            if kind in kinds:
                found[kind] = model.activation(block, kind)
        return {kind: values.float().sum((0, 1)) for kind, values in found.items()}

    done = run(model, rows, torch.zeros(len(pairs), 0, dtype=torch.long), edits=(block,))
    sums = {kind: [found[kind] for found in done.saved.steps if kind in found] for kind in kinds}
    by_place = {kind: torch.stack(values) for kind, values in sums.items() if values}  # step after step, layer by layer
    return {kind: values.unflatten(0, (model.n_latents, -1)).transpose(0, 1) for kind, values in by_place.items()}
