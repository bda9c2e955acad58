"""Clean a question; read the number of an answer's text, as upstream's evaluation does, and of a key. No torch."""

from __future__ import annotations

import math
import re
from decimal import Decimal

LARGEST = 1e38  # a number from here on counts as none: tables hold 32-bit numbers
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d{1,3}(?:[\u00a0\u202f]\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_KEY = re.compile(rf"([-+]?) ?[$€£]? ?([-+]?)({_DIGITS})(?: ?/ ?({_DIGITS}))? ?%?\.?", re.ASCII)


def clean_text(text: str) -> str:
    """Text as upstream's evaluation feeds it: stripped, double spaces replaced by single ones."""
    return text.strip().replace("  ", " ")


def last_number(text: str) -> float:
    """The answer as upstream reads it: the last number of the text, NaN where there is none, or none below `LARGEST`.

    Unlike upstream, U+2212 is a minus, and so is the minus of -$18.
    """
    plain = text.replace("\u2212", "-").replace("-$", "-").replace(",", "")
    numbers = re.findall(r"-?\d+\.?\d*", plain)
    value = float(numbers[-1]) if numbers else math.nan
    return value if abs(value) < LARGEST else math.nan


def read_number(value: object) -> float:
    """An answer key as people write it: 18, 2.0107e-06, "1,200", "-$18", "+5", "50%", "1/2", "18."; U+2212 is a minus.

    ValueError, in words that follow the value, where it is none or has more digits than a number holds.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is no number")
    if not isinstance(value, str) and abs(value) > 1e300:
        raise ValueError("is too large")
    match = _KEY.fullmatch(str(value).strip().replace("\u2212", "-"))
    if match is None or (match[1] and match[2]):
        raise ValueError("is no number")
    above, below = (re.sub(r"[,\u00a0\u202f]", "", part or "1") for part in match.group(3, 4))
    if float(below) == 0:
        raise ValueError("is a division by zero")
    number = float(above) / float(below)
    if not math.isfinite(number):
        raise ValueError("is too large")
    # From here on numbers are further apart than 1, and a whole one may be another than what was written.
    if number >= 2**53 and not match[4] and Decimal(above) != Decimal(repr(number)):
        raise ValueError("has more digits than a number holds, about 16")
    return -number if "-" in (match[1], match[2]) else number
