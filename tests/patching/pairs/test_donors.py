"""Unrelated donors: equal length, another cluster, another answer; seeded, and independent of the number of draws."""

import pytest

from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.tokenized import tokenize_pairs


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
