"""Pairs with unrelated donors, and one metric of many cells on them."""

from typing import NamedTuple

import numpy as np
import torch

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs


class Contrasts(NamedTuple):
    """Pairs that have an unrelated donor, their donors, and all pairs over which means are taken."""

    ready: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    everyone: list[TokenizedPair]


def contrasts_of(model, pairs) -> Contrasts:
    """The first two pairs that have an unrelated donor under a model's tokenizer."""
    everyone = tokenize_pairs(model, pairs)[0]
    drawn = draw_unrelated(everyone, 0)
    chosen = [(ready, donors) for ready, donors in zip(everyone, drawn, strict=True) if donors][:2]
    return Contrasts([ready for ready, _ in chosen], [donors for _, donors in chosen], everyone)


def measure(model, contrasts, cells, metric=max_logit_change, always=()) -> np.ndarray:
    """One metric of every cell, `[pair, cell]`; the edges in `always` are cut in every run."""
    table = sweep_cells(
        model, contrasts.ready, cells, metrics=[metric], donors=contrasts.donors, everyone=contrasts.everyone,
        always=always, cells_per_forward=128,
    )  # fmt: skip
    return table["patched"].to_numpy().reshape(len(contrasts.ready), len(cells))


def projected(reading):
    """A metric: the change of all logits along one fixed random direction. Two runs that agree in it agree in all."""
    change = reading.patched - reading.host
    direction = torch.randn(change.shape[-1], generator=torch.Generator().manual_seed(0))
    return change @ (direction / direction.norm())
