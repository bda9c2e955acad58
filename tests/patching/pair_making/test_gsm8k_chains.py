"""Annotated chains are read, computed and written exactly; an independent evaluator agrees."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_tracing.patching.pair_making.gsm8k_chains import (
    ChainError,
    Leaf,
    Operation,
    evaluate_expression,
    parse,
    parse_chain,
    parse_step,
    write,
    write_number,
)
from tests.support.arithmetic import pythons

numbers = st.one_of(st.integers(1, 999).map(str), st.decimals(0, 99, places=2).map(str).filter(lambda t: "E" not in t))
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"(-{text})"),
    ),
    max_leaves=8,
)


@given(expressions)
def test_the_value_is_pythons_own_in_fractions_and_the_text_comes_back(text):
    try:
        expected = pythons(text)
    except ZeroDivisionError:
        with pytest.raises(ChainError, match="a division by zero"):
            evaluate_expression(parse(text))
        return
    assert evaluate_expression(parse(text)) == expected
    assert write(parse(text)) == text


def test_a_chain_is_the_annotations_of_a_solution():
    chain = parse_chain("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes $<<9*2=18>>18.\n#### 18")
    assert [step.result for step in chain] == [9, 18]
    assert chain[1].expression == Operation("*", Leaf("9"), Leaf("2"))
    assert parse_chain("no annotation") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10/3=3.33", "is rounded or wrong"),
        ("2+2=5", "is rounded or wrong"),
        ("2+2", "does not end in = and a number"),
        ("2+x=3", "has 'x' in it"),
        ("2+=3", "found 'the end', expected a number"),
        ("(2+1=3", "a parenthesis is not closed"),
        ("2 3=5", "has '3' in a wrong place"),
        ("2/0=1", "a division by zero"),
        ("(" * 99 + "1" + ")" * 99 + "+1" * 10 + "=11", "a step of 222 characters is no calculation by hand"),
        ("2**3=8", "found '*', expected a number"),
    ],
)
def test_an_inexact_calculation_is_refused(text, sentence):
    with pytest.raises(ChainError) as error:
        parse_step(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"), [(18, "18"), (-3, "-3"), ("1/2", "0.5"), ("-1/8", "-0.125"), ("301/20", "15.05")]
)
def test_numbers_are_written_exactly(value, text):
    assert write_number(Fraction(value)) == text


def test_a_number_without_end_cannot_be_written():
    with pytest.raises(ChainError, match="1/3 has no end in decimals"):
        write_number(Fraction(1, 3))


@pytest.mark.parametrize("text", ["1,200\u2212$200=1,000", "$1,200-200=$1000", "1200 \u2212 200 = 1000"])
def test_a_step_may_have_separators_currency_and_the_typographic_minus(text):
    step = parse_step(text)
    assert (write(step.expression), step.result) == ("1200-200", 1000)
