"""Names of the metrics by where they are read, and the metrics of a decoded answer, which need no logits. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

WHOLE_ANSWER = ("logprob_clean", "logprob_corrupted")  # read on branches that force the rest of each answer
LENS_METRICS = ("kl_to_clean", "js_to_clean", "entropy", "top_overlap")  # of a step's logits through the LM head
# Over all positions written: the norm of (written - original), and their cosine; NaN where a question or BoT was
# exchanged, or in the single pass a thought.
EDIT_METRICS = ("edit_norm", "edit_cosine")


class Keys(NamedTuple):
    """The answers that a decoded number is compared with."""

    clean: float
    corrupted: float
    hybrid: float = math.nan  # of matched donors: the host's remaining operations on the donor's intermediate


def answer(decoded: float, keys: Keys) -> float:
    """The decoded number, NaN if there is none."""
    return decoded


def answer_is_clean(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is the clean side's key."""
    return float(decoded == keys.clean)


def answer_is_corrupted(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is the corrupted side's key."""
    return float(decoded == keys.corrupted)


def answer_is_hybrid(decoded: float, keys: Keys) -> float:
    """1 where the decoded number is the hybrid answer of matched donors."""
    return float(decoded == keys.hybrid)


ANSWER_METRICS: dict[str, Callable[[float, Keys], float]] = {
    metric.__name__: metric for metric in (answer, answer_is_clean, answer_is_corrupted, answer_is_hybrid)
}
