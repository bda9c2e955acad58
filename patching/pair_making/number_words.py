"""Numbers that a question's words imply without digits: "three", "half", "a week"."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth".split()

# A word, or its plural -> the constants that a solution may use for it.
IMPLIED: dict[str, tuple[str, ...]] = {
    **{word: (str(number),) for number, word in enumerate(_SMALL)},
    **{word: (str(10 * number),) for number, word in enumerate(_TENS, start=2)},
    **{word: (str(number), f"1/{number}") for number, word in enumerate(_ORDINALS, start=3)},
    "a": ("1",), "an": ("1",), "single": ("1",), "once": ("1",), "first": ("1",), "second": ("2", "60"),
    "hundred": ("100",), "thousand": ("1000",), "million": ("1000000",),
    "twice": ("2",), "double": ("2",), "doubled": ("2",), "doubling": ("2",), "both": ("2",), "pair": ("2",),
    "couple": ("2",), "twin": ("2",), "either": ("2",), "half": ("2", "1/2", "50"), "halve": ("2", "1/2"),
    "halfway": ("2", "1/2"), "halved": ("2", "1/2"), "halves": ("2", "1/2"), "round": ("2",), "back": ("2",),
    "thrice": ("3",), "triple": ("3",), "tripled": ("3",), "triplet": ("3",), "quadruple": ("4",), "quadrupled": ("4",),
    "quarter": ("4", "1/4", "25", "3/4", "15"), "dozen": ("12",), "score": ("20",), "decade": ("10",),
    "century": ("100",), "average": ("2",), "square": ("2", "4"), "rectangle": ("2",), "rectangular": ("2",),
    "triangle": ("3", "2"), "%": ("100", "1/100"), "percent": ("100", "1/100"), "percentage": ("100",),
    "second's": ("60",), "minute": ("60",), "hour": ("60", "24", "3600"), "day": ("24", "7", "30", "365"),
    "daily": ("7", "30", "365"), "week": ("7", "52", "4", "5"), "weekly": ("7", "52", "4"), "weekday": ("5",),
    "weekend": ("2",), "month": ("12", "30", "4", "31"), "monthly": ("12", "30"), "year": ("12", "52", "365"),
    "annual": ("12",), "annually": ("12",), "yearly": ("12",), "am": ("12",), "pm": ("12",), "noon": ("12",),
    "midnight": ("12", "24"), "cent": ("100", "1/100"), "dollar": ("100",), "$": ("100",),
    "dime": ("10", "1/10"), "nickel": ("5", "1/20"), "penny": ("1", "1/100"), "pennies": ("1", "1/100"),
    "foot": ("12",), "feet": ("12",), "inch": ("12",), "inches": ("12",), "yard": ("3", "36"), "mile": ("5280",),
    "kilometer": ("1000",), "km": ("1000",), "meter": ("100", "1000"), "cm": ("100",), "centimeter": ("100",),
    "kilogram": ("1000",), "kg": ("1000",), "gram": ("1000",), "liter": ("1000",), "ml": ("1000",), "pound": ("16",),
    "ounce": ("16",), "ton": ("2000",), "gallon": ("4", "16"), "quart": ("4",), "pint": ("2",), "cup": ("16",),
}  # fmt: skip
_WORD = re.compile(r"[a-z]+|[%$]")
_FRACTION = re.compile(r"(\d+)/(\d+)")


def implied_values(question: str) -> set[Fraction]:
    """The constants that the question's words, signs and written fractions may stand for."""
    values = {Fraction(1)}
    for word in _WORD.findall(question.lower()):
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            values |= {Fraction(value) for value in IMPLIED.get(form, ())}
    for above, below in _FRACTION.findall(question):
        if int(below):
            values.add(Fraction(int(above), int(below)))
    for word in re.findall(r"(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)[- ][a-z]+", question.lower()):
        ten, _, one = word.replace("-", " ").partition(" ")
        if one in _SMALL[1:10]:
            values.add(Fraction(IMPLIED[ten][0]) + _SMALL.index(one))
    return values


def may_derive(constant: Fraction, number: Fraction) -> bool:
    """Whether a solution may have computed a constant from a number of the question without showing it."""
    part = number / 100
    near = {number - 1, number + 1, 2 * number, number / 2, 10 * number, number / 10, number * number, 3 * number}
    shares = {part, 1 - part, 1 + part, 100 - number, 100 + number}
    units = {number * unit for unit in (7, 12, 24, 30, 52, 60, 365)} | {number / unit for unit in (7, 12, 24, 30, 60)}
    return constant in near | shares | units
