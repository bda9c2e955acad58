"""Names of the metrics by where they are read, and the metrics of a decoded answer, which need no logits. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Read on branches that force the rest of each answer.
WHOLE_ANSWER = ("logprob_clean", "logprob_corrupted", "probability_clean", "probability_corrupted")
LENS_METRICS = ("kl_to_clean", "js_to_clean", "entropy", "top_overlap")  # of a step's logits through the LM head
# Over all positions written: the norm of (written - original), and their cosine; NaN where a question or BoT was
# exchanged, or in the single pass a thought.
EDIT_METRICS = ("edit_norm", "edit_cosine")


class Keys(NamedTuple):
    """The numbers that a decoded number is compared with: the keys, and what the unpatched runs decode."""

    clean: float
    corrupted: float
    hybrid: float = math.nan  # of matched donors: the host's remaining operations on the donor's intermediate
    own_clean: float = math.nan  # decoded by the unpatched clean run
    own_corrupted: float = math.nan


def answer(decoded: float, keys: Keys) -> float:
    """The decoded number, NaN if there is none."""
    return decoded


def answer_is_clean(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is the clean side's key."""
    return float(decoded == keys.clean)


def answer_is_corrupted(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is the corrupted side's key."""
    return float(decoded == keys.corrupted)


def gives_clean(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is what the unpatched clean run decodes; NaN where that run decodes none."""
    return math.nan if math.isnan(keys.own_clean) else float(decoded == keys.own_clean)


def gives_corrupted(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is what the unpatched corrupted run decodes; NaN where that run decodes none."""
    return math.nan if math.isnan(keys.own_corrupted) else float(decoded == keys.own_corrupted)


def answer_is_hybrid(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is the hybrid answer of matched donors."""
    return float(decoded == keys.hybrid)


ANSWER_METRICS: dict[str, Callable[[float, Keys], float]] = {
    metric.__name__: metric
    for metric in (answer, answer_is_clean, answer_is_corrupted, gives_clean, gives_corrupted, answer_is_hybrid)
}


def metrics_of_protocol(metrics: Sequence[Any], protocol: str) -> list[Any]:
    """The metrics that a protocol can read: the single pass scores no whole answers."""
    return [metric for metric in metrics if protocol != "single_pass" or metric not in WHOLE_ANSWER]
