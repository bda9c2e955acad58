"""Which metrics are read where, by name, and those of a decoded answer, which need no logits. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

WHOLE_ANSWER = ("logprob_clean", "logprob_corrupted")  # read on branches that force the rest of each answer
LENS_METRICS = ("kl_to_clean", "js_to_clean", "entropy", "top_overlap")  # of a step's logits through the LM head
# Of what was written, over all its places: the norm of written - stood, and the cosine of the two; NaN where a question
# or a BoT was exchanged, or in the single pass a thought.
EDIT_METRICS = ("edit_norm", "edit_cosine")


class Keys(NamedTuple):
    """The answers that a decoded number is compared with."""

    clean: float
    corrupted: float
    hybrid: float = math.nan  # the host's remaining operations on the donor's intermediate, where that is known


def answer(said: float, keys: Keys) -> float:
    """The decoded number, NaN if there is none."""
    return said


def answer_is_clean(said: float, keys: Keys) -> float:
    """1 where the decoded number is the clean side's key."""
    return float(said == keys.clean)


def answer_is_corrupted(said: float, keys: Keys) -> float:
    """1 where the decoded number is the corrupted side's key."""
    return float(said == keys.corrupted)


def answer_is_hybrid(said: float, keys: Keys) -> float:
    """1 where the decoded number is the hybrid answer of matched donors."""
    return float(said == keys.hybrid)


ANSWER_METRICS: dict[str, Callable[[float, Keys], float]] = {
    metric.__name__: metric for metric in (answer, answer_is_clean, answer_is_corrupted, answer_is_hybrid)
}
