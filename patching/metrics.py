"""Metrics of a patched run: each maps logits to one number per cell (nats, logits) and never averages.

A metric's references are the same function of the pair's two unpatched runs, so every row of the table has `patched`,
`clean` and `corrupted`. Logit metrics are read at the first answer token where the two answers differ. Those whose
names end in `_at_eot` are read at EoT, as in the original experiment: it predicts the answer's first word, never its
number. Zhang and Nanda (2309.16042) compare logit difference, probability and KL as metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from codi_tracing.patching.answer_metrics import ANSWER_METRICS, EDIT_METRICS, LENS_METRICS


@dataclass(frozen=True)
class Reading:
    """Logits (fp32) at the read position, and the token of each answer there."""

    patched: Float[Tensor, "pair cell vocab"]
    hosts: Int[Tensor, " cell"]  # the unpatched run that each cell writes into: 0 the clean, 1 the corrupted one
    clean: Float[Tensor, "pair 1 vocab"]
    corrupted: Float[Tensor, "pair 1 vocab"]
    clean_token: Int[Tensor, "pair 1 1"]
    corrupted_token: Int[Tensor, "pair 1 1"]
    # Log-probabilities of the two whole answers, clean then corrupted: of the patched, the clean, the corrupted run.
    answer_logprobs: Float[Tensor, "pair cell answer"] | None = None
    clean_answer_logprobs: Float[Tensor, "pair 1 answer"] | None = None
    corrupted_answer_logprobs: Float[Tensor, "pair 1 answer"] | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of_host(self, read: Callable[[Tensor], Tensor]) -> Tensor:
        """`read` of the logits of each cell's host, computed once for each of the two."""
        return read(torch.cat([self.clean, self.corrupted], 1))[:, self.hosts]

    @property
    def host(self) -> Float[Tensor, "pair cell vocab"]:
        """The logits of each cell's host, copied: as large as `patched`."""
        return self.of_host(lambda logits: logits)

    # Each is computed once. (A cached_property holds a lock, which cannot be serialised for a remote run.)
    @property
    def log_probs(self) -> Float[Tensor, "pair cell vocab"]:
        return self._once("patched")

    @property
    def clean_log_probs(self) -> Float[Tensor, "pair 1 vocab"]:
        return self._once("clean")

    @property
    def corrupted_log_probs(self) -> Float[Tensor, "pair 1 vocab"]:
        return self._once("corrupted")

    def _once(self, run: str) -> Tensor:
        if run not in self._cache:
            self._cache[run] = F.log_softmax(getattr(self, run), -1)
        return self._cache[run]


class StepReading(NamedTuple):
    """The final hidden state (fp32, after the norm) at a latent step, of the patched run and of the pair's two."""

    patched: Float[Tensor, "pair cell d_model"]
    clean: Float[Tensor, "pair 1 d_model"]
    corrupted: Float[Tensor, "pair 1 d_model"]


TOP_TOKENS = 10  # tokens of `top_overlap`
Metric = Callable[[Reading], Float[Tensor, "pair cell"]]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities over the vocabulary; 0 where they agree, never negative but for rounding."""
    return (p.exp() * (p - q)).sum(-1)


def logit_difference(r: Reading) -> Tensor:
    """Logit of the clean answer's token minus that of the corrupted answer's: above 0 the clean answer is likelier."""
    clean = r.patched.gather(-1, r.clean_token.expand(*r.patched.shape[:-1], 1))
    corrupted = r.patched.gather(-1, r.corrupted_token.expand(*r.patched.shape[:-1], 1))
    return (clean - corrupted)[..., 0]


def kl_from_corrupted(r: Reading) -> Tensor:
    """KL(patched ‖ corrupted) in nats: a disturbance, not a recovery. The original experiment's metric."""
    return _kl(r.log_probs, r.corrupted_log_probs)


def kl_to_clean(r: Reading) -> Tensor:
    """KL(clean ‖ patched) in nats: 0 where the clean run's distribution is restored."""
    return _kl(r.clean_log_probs, r.log_probs)


def rms_logit_difference(r: Reading) -> Tensor:
    """Root mean square over the vocabulary of the logits' difference to the corrupted run (the original's "L2")."""
    return (r.patched - r.corrupted).pow(2).mean(-1).sqrt()


def js_to_clean(r: Reading) -> Tensor:
    """Jensen–Shannon divergence to the clean run in nats: symmetric, from 0 to log 2 (Lin, 1991)."""
    p, q = r.log_probs, r.clean_log_probs
    middle = p.logaddexp(q) - math.log(2)
    return (_kl(p, middle) + _kl(q, middle)) / 2


def entropy(r: Reading) -> Tensor:
    """Entropy of the next token in nats: 0 where one is certain, log(vocabulary) where all are alike."""
    return -(r.log_probs.exp() * r.log_probs).sum(-1)


def top_overlap(r: Reading) -> Tensor:
    """Share of the clean run's ten likeliest tokens that are among the patched run's ten: 0 to 1."""
    top = min(TOP_TOKENS, r.patched.shape[-1])
    mine, clean = r.patched.topk(top).indices, r.clean.topk(top).indices.expand(*r.patched.shape[:-1], top)
    return (mine[..., :, None] == clean[..., None, :]).any(-1).float().mean(-1)


def logprob_clean(r: Reading) -> Tensor:
    """Log-probability in nats of the whole clean answer, EOS included, after the answer prefix."""
    assert r.answer_logprobs is not None
    return r.answer_logprobs[..., 0]


def logprob_corrupted(r: Reading) -> Tensor:
    """Log-probability in nats of the whole corrupted answer, EOS included, after the answer prefix."""
    assert r.answer_logprobs is not None
    return r.answer_logprobs[..., 1]


def probability_clean(r: Reading) -> Tensor:
    """Probability of the whole clean answer, EOS included, after the answer prefix."""
    return logprob_clean(r).exp()


def probability_corrupted(r: Reading) -> Tensor:
    """Probability of the whole corrupted answer, EOS included, after the answer prefix."""
    return logprob_corrupted(r).exp()


def prediction_change(r: Reading) -> Tensor:
    """1 where the likeliest token is not the host's, else 0."""
    return (r.patched.argmax(-1) != r.of_host(lambda logits: logits.argmax(-1))).float()


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
        js_to_clean,
        entropy,
        top_overlap,
        logprob_clean,
        logprob_corrupted,
        probability_clean,
        probability_corrupted,
    )
}
EOT_METRICS: dict[str, Metric] = {
    f"{metric.__name__}_at_eot": metric
    for metric in (kl_from_corrupted, kl_to_clean, logit_difference, rms_logit_difference, prediction_change)
}


def projection(r: StepReading) -> Tensor:
    """How far the state lies from the corrupted run's towards the clean run's, in units of the state.

    0 is the corrupted run, the distance of the two runs the clean one; NaN where they agree. Not divided by that
    distance, so that pairs pool by it: where two runs hardly differ, any write would be many times their difference.
    """
    axis = r.clean - r.corrupted
    length = axis.norm(dim=-1)
    return ((r.patched - r.corrupted) * axis).sum(-1) / length.where(length > 0, math.nan)


def distance_to_clean(r: StepReading) -> Tensor:
    """Euclidean distance to the clean run's state at this step: 0 where it is restored."""
    return (r.patched - r.clean).norm(dim=-1)


STEP_METRICS: dict[str, Callable[[StepReading], Tensor]] = {
    metric.__name__: metric for metric in (projection, distance_to_clean)
}


METRIC_NAMES = (*LOGIT_METRICS, *EOT_METRICS, *ANSWER_METRICS, *EDIT_METRICS)


def read_all(metrics: dict[str, Metric], reading: Reading) -> dict[str, Float[Tensor, "3 pair cell"]]:
    """Each metric of the patched runs and, as references, of the clean and the corrupted run in their place."""
    references = references_of(reading)
    return {
        name: torch.stack([metric(reading), *(metric(run)[:, reading.hosts] for run in references)])
        for name, metric in metrics.items()
    }


def references_of(reading: Reading) -> list[Reading]:
    """Each unpatched run as if it were the patched one: two cells, one for either host."""
    both = torch.arange(2, device=reading.hosts.device)
    runs = (
        (reading.clean, reading.clean_answer_logprobs),
        (reading.corrupted, reading.corrupted_answer_logprobs),
    )
    return [
        replace(
            reading,
            patched=logits.expand(-1, 2, -1),
            hosts=both,
            answer_logprobs=None if logprobs is None else logprobs.expand(-1, 2, -1),
        )
        for logits, logprobs in runs
    ]


def read_steps(metrics: dict[str, Callable], hidden: StepReading, lens: Reading) -> dict[str, Tensor]:
    """The same at a latent step: metrics of the hidden state, and of its logits through the LM head."""
    of_lens = read_all({name: metric for name, metric in metrics.items() if name in LENS_METRICS}, lens)
    runs = [hidden.patched, hidden.clean.expand_as(hidden.patched), hidden.corrupted.expand_as(hidden.patched)]
    states = {name: metric for name, metric in metrics.items() if name in STEP_METRICS}
    return of_lens | {
        name: torch.stack([metric(hidden._replace(patched=run)) for run in runs]) for name, metric in states.items()
    }
