"""What a block reads off its forward, inside the trace: the logits of its cells put side by side as metrics want them.

Kept apart from the sweep, since it travels with the trace where that runs elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from codi_tracing.patching.answer_metrics import EDIT_METRICS
from codi_tracing.patching.engine.writes import Sizes
from codi_tracing.patching.metrics import Metric, Reading, StepReading, read_all, read_steps
from codi_tracing.traces.loop.answer import Forced

FINITE = "finite"


class Readout(NamedTuple):
    """Which metrics are read where, which cell is whose host, and the tokens of both answers.

    The first `unpatched` cells are the unpatched runs, clean and corrupted first.
    """

    unpatched: int
    hosts: Tensor  # [cell], of the patched ones
    clean_token: Tensor  # [pair, 1, 1]
    corrupted_token: Tensor
    on_logits: dict[str, Metric]
    at_eot: dict[str, Metric]
    at_steps: dict[str, Callable]
    of_edits: tuple[str, ...]


def reading(about: Readout, logits: Tensor, said: Tensor | None = None) -> Reading:
    """Logits `[pair, cell, vocab]`, and the whole answers' log-probabilities `[branch, pair, cell]`, as metrics want
    them."""
    first, clean, corrupted = about.unpatched, logits[:, 0:1], logits[:, 1:2]
    patched = logits[:, first:]
    hosts = about.hosts[: patched.shape[1]]  # at a latent step, the last cells may not have begun
    found = Reading(patched, hosts, clean, corrupted, about.clean_token, about.corrupted_token)
    if said is None or said.ndim < 3:
        return found
    scores = said.permute(1, 2, 0)
    return replace(
        found,
        answer_logprobs=scores[:, first:],
        clean_answer_logprobs=scores[:, 0:1],
        corrupted_answer_logprobs=scores[:, 1:2],
    )


def read_answer(about: Readout, forced: Forced, sizes: Sizes | None) -> dict[str, Tensor]:
    """Every metric of the answer, and of the edits that led to it: `[3, pair, cell]`, patched, clean, corrupted.

    And whether a run's logits are finite, `[pair, run]`, under the name `FINITE`.
    """
    found = read_all(about.on_logits, reading(about, forced.at_read, forced.said))
    if about.at_eot:
        found |= read_all(about.at_eot, reading(about, forced.at_start))
    found[FINITE] = forced.at_read.sum(-1).isfinite()  # what is not finite makes the sum so too
    return found if sizes is None else found | read_sizes(about, sizes)


def read_step(about: Readout, hidden: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """The same at a latent step, from the final hidden states and their lens."""
    state = StepReading(hidden[:, about.unpatched :], hidden[:, 0:1], hidden[:, 1:2])
    return read_steps(about.at_steps, state, reading(about, logits))


def read_sizes(about: Readout, sizes: Sizes) -> dict[str, Tensor]:
    """Norm and cosine of the edits, with those of no edit as references (0 and 1); NaN where nothing was counted."""
    counted, length = sizes.stood > 0, (sizes.written * sizes.stood).sqrt()
    values = (
        sizes.change.sqrt().where(counted, torch.nan),
        (sizes.product / length).where(counted & (length > 0), torch.nan),  # what is 0 has no direction
    )
    found = {}
    for name, value, none in zip(EDIT_METRICS, values, (0.0, 1.0), strict=True):
        if name in about.of_edits:
            patched = value[:, about.unpatched :]
            found[name] = torch.stack([patched, *[torch.full_like(patched, none)] * 2])
    return found
