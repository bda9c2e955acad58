"""Clean a question and read the number of an answer, as upstream's evaluation does. No torch."""

from __future__ import annotations

import re


def clean_text(text: str) -> str:
    """Text as upstream's evaluation feeds it: stripped, double spaces replaced by single ones."""
    return text.strip().replace("  ", " ")


def last_number(text: str) -> float:
    """The answer as upstream reads it: the last number of the text, NaN where there is none."""
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(numbers[-1]) if numbers else float("nan")
