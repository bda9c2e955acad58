"""Unrelated donors: equal length, another cluster, another answer; seeded, and independent of the number of draws."""

import random
from collections import Counter

import pytest

from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.pair import Pair, Side, in_clusters
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs


@pytest.fixture(scope="module")
def tokenized(thought, shipped):
    return tokenize_pairs(thought, shipped)[0]


def test_a_donor_has_the_pairs_length_another_cluster_and_another_answer(tokenized):
    by_id = {str(p.pair.pair_id): p for p in tokenized}
    drawn = draw_unrelated(tokenized, seed=0, draws=3)
    assert any(len(donors) == 3 for donors in drawn)
    for p, donors in zip(tokenized, drawn, strict=True):
        assert len({donor.question for donor in donors}) == len(donors)
        for donor in donors:
            source = by_id[donor.pair_id]
            assert (source.tokens, source.pair.clean.question) == (p.tokens, donor.question)
            assert source.pair.cluster_id != p.pair.cluster_id
            assert donor.answer == source.pair.clean.answer
            assert donor.answer not in (p.pair.clean.answer, p.pair.corrupted.answer)


def test_the_first_donor_does_not_depend_on_the_draws_nor_on_which_pairs_are_patched(tokenized):
    one, three = draw_unrelated(tokenized, 0), draw_unrelated(tokenized, 0, draws=3)
    assert one == [donors[:1] for donors in three]
    assert draw_unrelated(tokenized[:5], 0, among=tokenized) == one[:5]
    assert draw_unrelated(tokenized, 1) != one


def pool(answers, clusters) -> list[TokenizedPair]:
    """Pairs of equal length with these answers; corrupted questions answer 1000 and up."""
    sides = [(Side(f"clean {i}", answer), Side(f"corrupted {i}", 1000.0 + i)) for i, answer in enumerate(answers)]
    pairs = [Pair(i, str(cluster), *side) for i, (side, cluster) in enumerate(zip(sides, clusters, strict=True))]
    return [TokenizedPair(i, pair, 7, (), ((), ()), 0) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("seed", range(20))
def test_no_donor_serves_more_pairs_than_it_must(seed):
    rng = random.Random(seed)
    count = rng.randrange(8, 40)
    pairs = pool([float(rng.randrange(50)) for _ in range(count)], [rng.randrange(12) for _ in range(count)])
    drawn = draw_unrelated(pairs, seed, draws=2)
    for draw in range(2):
        used = Counter(donors[draw].pair_id for donors in drawn if len(donors) > draw)
        assert max(used.values()) == 1  # as many donors as pairs
    few = draw_unrelated(pairs, seed, among=pairs[: count // 3])
    most = -(-count // (count // 3))
    assert max(Counter(donors[0].pair_id for donors in few if donors).values()) <= most


def test_a_pair_that_would_have_no_donor_else_shares_one():
    pairs = pool([1.0, 1.0, 1.0, 2.0], range(4))  # the answer 2 is the only other one
    drawn = draw_unrelated(pairs, 0)
    assert [donors[0].pair_id for donors in drawn[:3]] == ["3", "3", "3"]
    assert drawn[3][0].pair_id in "012"


def test_no_donor_is_of_the_pairs_cluster_even_if_only_a_question_joins_them():
    same = "Ann had 7 pens. How many pens has Ann?"
    pairs = in_clusters(
        [
            Pair(0, "a", Side(same, 7.0), Side("Ann had 8 pens.", 8.0)),
            Pair(1, "b", Side("Ann had 9 pens.", 9.0), Side(f" {same}  ", 7.0)),
            Pair(2, "c", Side("Ann had 5 pens.", 5.0), Side("Ann had 6 pens.", 6.0)),
        ]
    )
    ready = [TokenizedPair(i, pair, 7, (), ((), ()), 0) for i, pair in enumerate(pairs)]
    assert [[donor.pair_id for donor in donors] for donors in draw_unrelated(ready, 0)[:2]] == [["2"], ["2"]]
