"""Clusters, the unit of all statistics: pairs that share a question text or a declared cluster are not independent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def joined_clusters(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Each pair's cluster, of pairs given by declared cluster and questions: that of its component's first pair.

    Two pairs are connected if they share a declared cluster or a question, on either side and whatever the white space:
    copies under new ids, and a pair listed both ways round, are one cluster.
    """
    parent = list(range(len(pairs)))

    def root(pair: int) -> int:
        while parent[pair] != pair:
            parent[pair] = parent[parent[pair]]
            pair = parent[pair]
        return pair

    first_with: dict[Hashable, int] = {}
    for index, (cluster, questions) in enumerate(pairs):
        for key in (("cluster", cluster), *map(plain_text, questions)):
            a, b = root(first_with.setdefault(key, index)), root(index)
            parent[max(a, b)] = min(a, b)
    return [pairs[root(index)][0] for index in range(len(pairs))]


def plain_text(question: str) -> str:
    """The question with single spaces."""
    return " ".join(question.split())
