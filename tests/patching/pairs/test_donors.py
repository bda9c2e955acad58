"""Unrelated donors: equal length, another cluster, another answer; seeded, and independent of the number of draws."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_tracing.patching.pairs import donors as drawing
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


@pytest.fixture(params=[0, drawing.MOST_COMPARED], ids=["some compared", "all compared"])
def most_compared(request, monkeypatch):
    """Draw as among many pairs, and as among few."""
    monkeypatch.setattr(drawing, "MOST_COMPARED", request.param)


@pytest.mark.parametrize("seed", range(20))
def test_no_donor_serves_more_pairs_than_it_must(seed, most_compared):
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


def test_a_pair_that_would_have_no_donor_else_shares_one(most_compared):
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


def unfit(pairs, index):
    """Ranks of the pairs that cannot be a pair's donor, by comparing all."""
    p = pairs[index].pair
    answers = (p.clean.answer, p.corrupted.answer)
    return {q.rank for q in pairs if q.pair.cluster_id == p.cluster_id or q.pair.clean.answer in answers}


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40),
    st.integers(0, 99),
    st.sampled_from([0, 100, drawing.MOST_COMPARED]),
)
def test_every_donor_fits_and_every_pair_has_as_many_as_fit_however_many_are_compared(kinds, seed, most_compared):
    pairs = pool([float(answer) for _, answer in kinds], [cluster for cluster, _ in kinds])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "MOST_COMPARED", most_compared)
        drawn = draw_unrelated(pairs, seed, draws=3)
        assert draw_unrelated(pairs, seed, draws=3) == drawn
        assert draw_unrelated(pairs, seed) == [donors[:1] for donors in drawn]
        assert draw_unrelated(pairs[:2], seed, draws=3, among=pairs) == drawn[:2]
    for index, donors in enumerate(drawn):
        ranks, excluded = {int(donor.pair_id) for donor in donors}, unfit(pairs, index)
        assert not ranks & excluded
        assert len(ranks) == len(donors) == min(3, len(pairs) - len(excluded))


def many(count: int, kind: str) -> list[TokenizedPair]:
    """Pairs of one token count, of which most share nothing, a cluster, an answer, or any donor with another."""
    rng = random.Random(0)
    answers = [float(rng.randrange(50)) for _ in range(count)]
    clusters: list[int] = list(range(count))
    most = [rng.random() < 0.9 for _ in range(count)]
    if kind == "cluster":
        clusters = [-1 if m else c for m, c in zip(most, clusters, strict=True)]
    if kind == "answer":
        answers = [-1.0 if m else a for m, a in zip(most, answers, strict=True)]
    if kind == "no donor":
        clusters = [-1] * count
    return pool(answers, clusters)


@pytest.mark.parametrize("kind", ["nothing", "cluster", "answer", "no donor"])
def test_the_comparisons_of_pairs_with_donors_grow_with_the_number_of_pairs(kind, monkeypatch):
    compared: Counter[int] = Counter()
    fits = drawing._Group.fits

    def counting(group, pairs, donors):
        compared[len(group.cluster)] += np.broadcast(pairs, donors).size
        return fits(group, pairs, donors)

    monkeypatch.setattr(drawing._Group, "fits", counting)
    monkeypatch.setattr(drawing, "MOST_COMPARED", 10_000)
    for count in (1_000, 4_000):
        drawn = draw_unrelated(many(count, kind), 0, draws=2)
        assert all(len(donors) == (0 if kind == "no donor" else 2) for donors in drawn)
    assert compared[4_000] <= 4.5 * compared[1_000] + 2 * 10_000
    assert compared[4_000] < 200 * 4_000  # 32 million are all


@pytest.mark.parametrize(("kind", "most"), [("nothing", 1), ("cluster", 13), ("answer", 13)])
def test_among_many_pairs_donors_serve_about_equally_many(kind, most, monkeypatch):
    """Where nine tenths share a cluster or an answer, the donors of the other tenth serve nine each at the least."""
    monkeypatch.setattr(drawing, "MOST_COMPARED", 10_000)
    drawn = draw_unrelated(many(3_000, kind), 0)
    assert max(Counter(donors[0].pair_id for donors in drawn).values()) <= most
