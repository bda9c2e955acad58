"""Unrelated donors: questions of equal token count from another cluster, whose values serve as the control. No torch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from codi_tracing.patching.pairs.pair import Pair

if TYPE_CHECKING:
    pass


class Donor(NamedTuple):
    """An unrelated question and what it is the answer to."""

    pair_id: str
    question: str
    answer: float


def draw_unrelated(
    pairs: Sequence[Pair], tokens: Sequence[int], seed: int, draws: int = 1,
    among: tuple[Sequence[Pair], Sequence[int]] | None = None,
) -> list[tuple[Donor, ...]]:  # fmt: skip
    """For each pair seeded donors of equal token count, another cluster and another answer; fewer where too few fit.

    Several draws are different questions; the first does not depend on how many there are. Donors come from the pairs
    themselves, or from those `among`, with their token counts.
    """
    same_length = defaultdict(list)
    for pair, count in zip(*(among or (pairs, tokens)), strict=True):
        same_length[count].append(pair)
    donors: list[tuple[Donor, ...]] = []
    for pair, count in zip(pairs, tokens, strict=True):
        answers = {pair.clean.answer, pair.corrupted.answer}
        fit = [p for p in same_length[count] if p.cluster_id != pair.cluster_id and p.clean.answer not in answers]
        rng = random.Random(f"{seed}:{pair.pair_id}")
        drawn: list[Pair] = []
        while fit and len(drawn) < draws:
            drawn.append(fit.pop(fit.index(rng.choice(fit))))
        donors.append(tuple(Donor(str(p.pair_id), p.clean.question, p.clean.answer) for p in drawn))
    return donors
