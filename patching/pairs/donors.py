"""Unrelated donors, the control: questions of equal token count from another cluster. No torch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from codi_tracing.patching.pairs.tokenized import TokenizedPair


class Donor(NamedTuple):
    """An unrelated question and its answer."""

    pair_id: str
    question: str
    answer: float


ByLength = Mapping[int, Sequence[tuple[str, Donor]]]  # token count → clusters and questions


def draw_unrelated(
    pairs: Sequence[TokenizedPair], seed: int, draws: int = 1, among: Sequence[TokenizedPair] | None = None
) -> list[tuple[Donor, ...]]:
    """For each pair `draws` clean questions of the pairs `among` (default: of `pairs`); fewer where too few fit.

    The draws of a pair are different questions; the first does not depend on how many there are.
    """
    by_length = defaultdict(list)
    for p in among or pairs:
        donor = Donor(str(p.pair.pair_id), p.pair.clean.question, p.pair.clean.answer)
        by_length[p.tokens].append((p.pair.cluster_id, donor))
    return [draw_donors(by_length, p, (p.pair.clean.answer, p.pair.corrupted.answer), seed, draws) for p in pairs]


def draw_donors(
    by_length: ByLength, pair: TokenizedPair, answers: Collection[float], seed: int, draws: int = 1
) -> tuple[Donor, ...]:
    """Seeded donors of the pair's token count, of another cluster, whose answer is none of `answers`."""
    cluster = pair.pair.cluster_id
    fit = [donor for other, donor in by_length.get(pair.tokens, ()) if other != cluster and donor.answer not in answers]
    rng = random.Random(f"{seed}:{pair.pair.pair_id}")
    return tuple(fit.pop(rng.randrange(len(fit))) for _ in range(min(draws, len(fit))))
