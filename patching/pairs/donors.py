"""Unrelated donors, the control: questions of equal token count from another cluster. No torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

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

    A pair that is among them has the same donors whichever others are patched.
    """
    by_length = defaultdict(list)
    for p in among or pairs:
        donor = Donor(str(p.pair.pair_id), p.pair.clean.question, p.pair.clean.answer)
        by_length[p.tokens].append((p.pair.cluster_id, donor))
    served = {p.pair: p for p in [*(among or ()), *pairs]}
    answers = [(pair.clean.answer, pair.corrupted.answer) for pair in served]
    drawn = dict(zip(served, assign_donors([*served.values()], by_length, answers, seed, draws), strict=True))
    return [drawn[p.pair] for p in pairs]


def assign_donors(
    pairs: Sequence[TokenizedPair],
    by_length: ByLength,
    answers: Sequence[Collection[float]],
    seed: int,
    draws: int = 1,
) -> list[tuple[Donor, ...]]:
    """Seeded donors of each pair's token count, of another cluster, whose answer is none of the pair's `answers`.

    In one draw a donor serves at most ⌈pairs / donors⌉ of the pairs of its token count; only a pair that would have no
    donor else exceeds that. The draws of a pair are different questions, the first whatever their number.
    """
    drawn: list[tuple[Donor, ...]] = [() for _ in pairs]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, p in enumerate(pairs):
        groups[p.tokens].append(index)
    for tokens, members in groups.items():
        donors = by_length.get(tokens, ())
        fits = np.array(
            [
                [cluster != pairs[i].pair.cluster_id and donor.answer not in answers[i] for cluster, donor in donors]
                for i in members
            ],
            dtype=bool,
        ).reshape(len(members), len(donors))
        rng = np.random.default_rng([seed, tokens])
        for _ in range(draws if donors else 0):
            for row, donor in _assignment(fits, rng):
                fits[row, donor] = False
                drawn[members[row]] += (donors[donor][1],)
    return drawn


def _assignment(fits: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Rows and their columns among those that fit, each at most ⌈rows / columns⌉ times where that is possible."""
    rows, columns = fits.shape
    most = -(-rows // columns)
    order, places = rng.permutation(rows), rng.permutation(columns * most)
    graph = csr_matrix(np.repeat(fits, most, axis=1)[order][:, places])
    matched = maximum_bipartite_matching(graph, perm_type="column")
    found = {int(order[i]): int(places[at]) // most for i, at in enumerate(matched) if at >= 0}
    used = Counter(found.values())
    for row in map(int, order):
        if row not in found and len(free := np.flatnonzero(fits[row])):
            found[row] = min(map(int, free), key=lambda column: used[column])
            used[found[row]] += 1
    return sorted(found.items())
