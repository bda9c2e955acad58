"""What is read off a patched run: each metric maps logits to one number per cell (nats, logits) and never averages.

A metric's references are the same function of the pair's two unpatched runs, so every row of the table carries
`patched`, `clean` and `corrupted`. Logit metrics are read at the first answer token where the two answers differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Reading(NamedTuple):
    """Logits (fp32) at the read position, and the token of each answer there."""

    patched: Float[Tensor, "pair cell vocab"]
    host: Float[Tensor, "pair cell vocab"]  # the unpatched run that each cell writes into
    clean: Float[Tensor, "pair 1 vocab"]
    corrupted: Float[Tensor, "pair 1 vocab"]
    clean_token: Int[Tensor, "pair 1 1"]
    corrupted_token: Int[Tensor, "pair 1 1"]


Metric = Callable[[Reading], Float[Tensor, "pair cell"]]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of two sets of logits over the vocabulary; 0 where they agree, never negative but for rounding."""
    return F.kl_div(F.log_softmax(q, -1), F.log_softmax(p, -1), log_target=True, reduction="none").sum(-1)


def logit_difference(r: Reading) -> Tensor:
    """Logit of the clean answer's token minus that of the corrupted answer's: above 0 the clean answer is likelier."""
    clean = r.patched.gather(-1, r.clean_token.expand(*r.patched.shape[:-1], 1))
    corrupted = r.patched.gather(-1, r.corrupted_token.expand(*r.patched.shape[:-1], 1))
    return (clean - corrupted)[..., 0]


def kl_from_corrupted(r: Reading) -> Tensor:
    """KL(patched ‖ corrupted) in nats: a disturbance, not a recovery. The original experiment's metric."""
    return _kl(r.patched, r.corrupted.expand_as(r.patched))


def kl_to_clean(r: Reading) -> Tensor:
    """KL(clean ‖ patched) in nats: 0 where the clean run's distribution is restored."""
    return _kl(r.clean.expand_as(r.patched), r.patched)


def rms_logit_difference(r: Reading) -> Tensor:
    """Root mean square over the vocabulary of the logits' difference to the corrupted run (the original's "L2")."""
    return (r.patched - r.corrupted).pow(2).mean(-1).sqrt()


def prediction_change(r: Reading) -> Tensor:
    """1 where the likeliest token is not the host's, else 0."""
    return (r.patched.argmax(-1) != r.host.argmax(-1)).float()


def max_logit_change(r: Reading) -> Tensor:
    """Largest absolute change of any logit against the host: the yardstick of "changes nothing"."""
    return (r.patched - r.host).abs().amax(-1)


LOGIT_METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        kl_from_corrupted,
        kl_to_clean,
        logit_difference,
        rms_logit_difference,
        prediction_change,
        max_logit_change,
    )
}


def answer(said: float, clean: float, corrupted: float) -> float:
    """The decoded number, NaN if there is none."""
    return said


def answer_is_clean(said: float, clean: float, corrupted: float) -> float:
    """1 where the decoded number is the clean side's key."""
    return float(said == clean)


def answer_is_corrupted(said: float, clean: float, corrupted: float) -> float:
    """1 where the decoded number is the corrupted side's key."""
    return float(said == corrupted)


ANSWER_METRICS: dict[str, Callable[[float, float, float], float]] = {
    metric.__name__: metric for metric in (answer, answer_is_clean, answer_is_corrupted)
}
METRICS = (*LOGIT_METRICS, *ANSWER_METRICS)
DEFAULT_METRICS = tuple(name for name in METRICS if name != "max_logit_change")


def read_all(metrics: dict[str, Metric], reading: Reading) -> dict[str, Float[Tensor, "3 pair cell"]]:
    """Each metric of the patched runs and, as references, of the clean and the corrupted run in their place."""
    import torch

    runs = [reading.patched, reading.clean.expand_as(reading.patched), reading.corrupted.expand_as(reading.patched)]
    return {
        name: torch.stack([metric(reading._replace(patched=run)) for run in runs]) for name, metric in metrics.items()
    }
