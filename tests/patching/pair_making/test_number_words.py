"""Numbers that a question's words imply."""

from fractions import Fraction

from codi_tracing.patching.pair_making.number_words import implied_values


def test_words_imply_numbers():
    assert {Fraction(7), Fraction(12), Fraction(1, 2), Fraction(2)} <= implied_values("a week, a dozen, half")
    assert Fraction(45) in implied_values("forty-five nuts")
    assert Fraction(3, 4) in implied_values("3/4 of them")
    assert Fraction(9) not in implied_values("a few")
