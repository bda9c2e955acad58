"""A question's text is cleaned, and the number of an answer is read, as upstream does; keys are read as written."""

import math

import pytest

from codi_tracing.traces.text import clean_text, last_number, read_number


def test_text_is_stripped_and_double_spaces_collapse():
    assert clean_text("  Ann has  2 pens. ") == "Ann has 2 pens."


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is: 18", 18),
        ("12, then 1,234", 1234),
        ("-3.5", -3.5),
        ("5 apples.", 5),
        ("\u22127", -7),
        ("so -$18.50", -18.5),
        ("$-18", -18),
        ("7\u22129", -9),
        ("9" * 37, 1e37),
    ],
)
def test_the_answer_is_the_last_number_of_the_text(text, number):
    assert last_number(text) == number


def test_a_text_without_a_number_has_no_answer():
    assert last_number("none") != last_number("none")


@pytest.mark.parametrize("digits", [39, 309, 5_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_too_large_for_the_tables_counts_as_none(digits, sign):
    assert math.isnan(last_number(f"The answer is: {sign}{'9' * digits}"))
    assert math.isnan(last_number(f"18 or {sign}{'9' * digits}.5"))


@pytest.mark.parametrize(
    ("written", "key"),
    [
        (18, 18), (-9.5, -9.5), (2.0107e-06, 2.0107e-06), ("2.0107e-06", 2.0107e-06), (1e16, 1e16), ("1e16", 1e16),
        (0.1234567890123456, 0.1234567890123456), (12345678901234567.0, 12345678901234567.0), ("1.0", 1),
        ("1,200", 1200), ("1,00,000", 100_000), ("1\u202f200", 1200), ("1,200,000.50", 1200000.5), ("18.", 18),
        (".5", 0.5), ("50%", 50), ("50 %", 50), ("-$18", -18), ("$-18", -18), ("$ 18", 18), ("\u20ac5", 5),
        ("+5", 5), ("\u22125", -5),
        ("\u2212$1,200", -1200), ("1/2", 0.5), ("-3/4", -0.75), (" 7\n", 7), (10**15, 1e15), (2**53, 2.0**53),
    ],
)  # fmt: skip
def test_a_key_is_read_as_people_write_it(written, key):
    assert read_number(written) == key


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("none", "is no number"), ("", "is no number"), ("18 or 19", "is no number"), ("1,5", "is no number"),
        ("--5", "is no number"), ("-$-5", "is no number"), ("0x10", "is no number"), ("nan", "is no number"),
        (True, "is no number"), (None, "is no number"), ([1], "is no number"), (float("nan"), "is no number"),
        ("1/0", "is a division by zero"), ("1e999", "is too large"), (float("inf"), "is too large"),
        (10**400, "is too large"), (10**16 + 1, "has more digits than a number holds"),
        ("1234567890123456789", "has more digits than a number holds"),
    ],
)  # fmt: skip
def test_what_is_no_number_or_no_exact_one_is_refused_with_the_reason(written, reason):
    with pytest.raises(ValueError, match=reason):
        read_number(written)
