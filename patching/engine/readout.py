"""Metrics of a block, computed inside its trace, so that a remote job returns numbers and not logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from codi_tracing.patching.answer_metrics import EDIT_METRICS
from codi_tracing.patching.engine.writes import EditNorms
from codi_tracing.patching.metrics import Metric, Reading, StepReading, read_all, read_steps
from codi_tracing.traces.loop.answer import Forced

FINITE = "finite"


class Readout(NamedTuple):
    """Which metrics are read where, each cell's host, and the tokens of both answers.

    The first `unpatched` runs are unpatched, clean and corrupted first.
    """

    unpatched: int
    hosts: Tensor  # [cell]
    clean_token: Tensor  # [pair, 1, 1]
    corrupted_token: Tensor
    on_logits: dict[str, Metric]
    at_eot: dict[str, Metric]
    at_steps: dict[str, Callable]
    of_edits: tuple[str, ...]


def reading(readout: Readout, logits: Tensor, scores: Tensor | None = None) -> Reading:
    """What metrics get: logits `[pair, run, vocab]`, and log-probabilities of whole answers `[branch, pair, run]`."""
    first, clean, corrupted = readout.unpatched, logits[:, 0:1], logits[:, 1:2]
    patched = logits[:, first:]
    hosts = readout.hosts[: patched.shape[1]]  # at a latent step, the last cells may not have begun
    both = Reading(patched, hosts, clean, corrupted, readout.clean_token, readout.corrupted_token)
    if scores is None or scores.ndim < 3:
        return both
    scores = scores.permute(1, 2, 0)
    return replace(
        both,
        answer_logprobs=scores[:, first:],
        clean_answer_logprobs=scores[:, 0:1],
        corrupted_answer_logprobs=scores[:, 1:2],
    )


def read_answer(readout: Readout, forced: Forced, norms: EditNorms | None) -> dict[str, Tensor]:
    """Every metric of the answer and of the edits, `[3, pair, cell]`: patched, clean, corrupted.

    Under `FINITE`: whether a run's logits are finite, `[pair, run]`.
    """
    values = read_all(readout.on_logits, reading(readout, forced.at_read, forced.logprobs))
    if readout.at_eot:
        values |= read_all(readout.at_eot, reading(readout, forced.at_start))
    values[FINITE] = forced.at_read.sum(-1).isfinite()  # a value that is not finite makes the sum so too
    return values if norms is None else values | read_norms(readout, norms)


def read_step(readout: Readout, hidden: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """The metrics of a latent step, from final hidden states and their lens."""
    state = StepReading(hidden[:, readout.unpatched :], hidden[:, 0:1], hidden[:, 1:2])
    return read_steps(readout.at_steps, state, reading(readout, logits))


def read_norms(readout: Readout, norms: EditNorms) -> dict[str, Tensor]:
    """Norm and cosine of the edits, with those of no edit as references (0 and 1); NaN where nothing was written."""
    counted, length = norms.replaced > 0, (norms.written * norms.replaced).sqrt()
    values = (
        norms.change.sqrt().where(counted, torch.nan),
        (norms.product / length).where(counted & (length > 0), torch.nan),  # a zero vector has no direction
    )
    found = {}
    for name, value, reference in zip(EDIT_METRICS, values, (0.0, 1.0), strict=True):
        if name in readout.of_edits:
            patched = value[:, readout.unpatched :]
            found[name] = torch.stack([patched, *[torch.full_like(patched, reference)] * 2])
    return found
