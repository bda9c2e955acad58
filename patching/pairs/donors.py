"""Unrelated donors, the control: questions of equal token count from another cluster. No torch."""

from __future__ import annotations

from collections import defaultdict
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


MOST_COMPARED = 250_000  # pairs × places of one token count up to which every pair is compared with every donor
CANDIDATES = 8  # donors with which a pair is compared above that: so many of other clusters, so many of other answers

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
    donor else exceeds that. The draws of a pair are different questions, the first whatever their number. Among many
    pairs (`MOST_COMPARED`) each is compared with some random donors, so that the work grows with the number of pairs.
    """
    drawn: list[tuple[Donor, ...]] = [() for _ in pairs]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, p in enumerate(pairs):
        groups[p.tokens].append(index)
    for tokens, members in groups.items():
        if donors := by_length.get(tokens, ()):
            group = _group([pairs[i].pair.cluster_id for i in members], [answers[i] for i in members], donors)
            rng = np.random.default_rng([seed, tokens])
            for _ in range(draws):
                chosen = _assign(group, rng)
                for index, donor in zip(members, chosen.tolist(), strict=True):
                    drawn[index] += (donors[donor][1],) if donor >= 0 else ()
                group = group._replace(taken=np.column_stack([group.taken, chosen]))
    return drawn


class _Group(NamedTuple):
    """The pairs and donors of one token count; clusters and answers are numbered."""

    cluster: np.ndarray  # [pair]
    answers: np.ndarray  # [pair answer]: those that a donor has, ascending; then the count of all answers
    donor_cluster: np.ndarray  # [donor]
    donor_answer: np.ndarray  # [donor]
    taken: np.ndarray  # [pair draw]: donors of the earlier draws; -1 is none

    def fits(self, pairs: np.ndarray, donors: np.ndarray) -> np.ndarray:
        """Whether each donor fits the pair: of another cluster, with another answer, and not drawn before."""
        used = (self.donor_answer[donors][..., None] == self.answers[pairs]).any(-1)
        used |= (donors[..., None] == self.taken[pairs]).any(-1)
        return (self.donor_cluster[donors] != self.cluster[pairs]) & ~used

    def fitting(self) -> np.ndarray:
        """How many donors fit each pair, counted without a comparison of pairs with donors."""
        base = 1 + self.donor_answer.max()
        both = _count(self.donor_cluster * base + self.donor_answer, self.cluster[:, None] * base + self.answers)
        both[self.answers == base] = 0
        excluded = _count(self.donor_cluster, self.cluster) + (_count(self.donor_answer, self.answers) - both).sum(1)
        return len(self.donor_cluster) - excluded - (self.taken >= 0).sum(1)

    def candidates(self, most: int, rng: np.random.Generator) -> np.ndarray:
        """Random places for each pair, `CANDIDATES` outside its cluster and `CANDIDATES` outside its answers.

        A donor has `most` places. The pairs go round the places in random order, at random distances, so that every
        place is a candidate of about equally many pairs.
        """
        ours, places = len(self.cluster), len(self.donor_cluster) * most
        found = []
        for excluded, keys in ((self.cluster[:, None], self.donor_cluster), (self.answers, self.donor_answer)):
            order = np.lexsort((rng.permutation(len(keys)), keys))  # equal keys side by side
            low, high = (most * np.searchsorted(keys[order], excluded, side) for side in ("left", "right"))
            distances = (np.arange(CANDIDATES) + rng.random(CANDIDATES)) / CANDIDATES
            turns = (rng.permutation(ours)[:, None] / ours + distances) % 1
            at = (turns * (places - (high - low).sum(1, keepdims=True))).astype(int)
            for start, end in zip(low.T[..., None], high.T[..., None], strict=True):
                at += (at >= start) * (end - start)
            at = np.minimum(at, places - 1)  # where nothing is outside
            found.append(order[at // most] * most + at % most)
        return np.hstack(found)


def _count(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How often each value is among the keys."""
    ordered = np.sort(keys)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values)


def _group(clusters: list[str], answers: list[Collection[float]], donors: Sequence[tuple[str, Donor]]) -> _Group:
    """Number the clusters and the donors' answers."""
    cluster = {name: number for number, name in enumerate(dict.fromkeys([*clusters, *(name for name, _ in donors)]))}
    answer = {value: number for number, value in enumerate(sorted({donor.answer for _, donor in donors}))}
    excluded = [sorted({answer[value] for value in values if value in answer}) for values in answers]
    width = max(map(len, excluded))
    return _Group(
        np.array([cluster[name] for name in clusters]),
        np.array([row + [len(answer)] * (width - len(row)) for row in excluded], dtype=int).reshape(-1, width),
        np.array([cluster[name] for name, _ in donors]),
        np.array([answer[donor.answer] for _, donor in donors]),
        np.empty((len(clusters), 0), dtype=int),
    )


def _assign(group: _Group, rng: np.random.Generator) -> np.ndarray:
    """Each pair's donor or -1, each serving at most ⌈pairs / donors⌉ pairs where that is possible."""
    pairs, donors = np.arange(len(group.cluster)), np.arange(len(group.donor_cluster))
    most = -(-len(pairs) // len(donors))
    order, places = rng.permutation(len(pairs)), rng.permutation(len(donors) * most)
    near = None  # each pair's candidates, where it is not compared with every donor
    if len(pairs) * len(places) <= MOST_COMPARED:
        graph = csr_matrix(np.repeat(group.fits(pairs[:, None], donors), most, axis=1)[order][:, places])
    else:
        places, candidates = np.arange(len(places)), group.candidates(most, rng)
        near = candidates // most
        rows, columns = np.nonzero(group.fits(pairs[:, None], near)[order])
        ones = np.ones(len(rows), dtype=bool)
        graph = csr_matrix((ones, (rows, candidates[order[rows], columns])), shape=(len(pairs), len(places)))
    matched = maximum_bipartite_matching(graph, perm_type="column")
    chosen = np.full(len(pairs), -1)
    chosen[order] = np.where(matched >= 0, places[matched] // most, -1)

    rest = order[(chosen < 0)[order] & (group.fitting() > 0)[order]]
    if len(rest) * len(donors) <= MOST_COMPARED:
        near = None
    used = np.bincount(chosen[chosen >= 0], minlength=len(donors))
    for pair in rest:  # takes the least used donor that fits
        free = donors[:0] if near is None else near[pair][group.fits(pair, near[pair])]
        if not len(free):
            free = donors[group.fits(pair, donors)]
        chosen[pair] = free[used[free].argmin()]
        used[chosen[pair]] += 1
    return chosen
