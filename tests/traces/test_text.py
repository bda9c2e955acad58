"""A question's text is cleaned, and the number of an answer is read, as upstream does."""

import pytest

from codi_tracing.traces.text import clean_text, last_number


def test_text_is_stripped_and_double_spaces_collapse():
    assert clean_text("  Ann has  2 pens. ") == "Ann has 2 pens."


@pytest.mark.parametrize(
    ("text", "number"), [("The answer is: 18", 18), ("12, then 1,234", 1234), ("-3.5", -3.5), ("5 apples.", 5)]
)
def test_the_answer_is_the_last_number_of_the_text(text, number):
    assert last_number(text) == number


def test_a_text_without_a_number_has_no_answer():
    assert last_number("none") != last_number("none")
