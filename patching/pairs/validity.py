"""Text faults of a pair, and where its two questions differ. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from math import isfinite

from codi_tracing.analysis.io.text import shorten
from codi_tracing.patching.pairs.pair import Pair, format_number, plain_number
from codi_tracing.traces.text import clean_text, last_number

_NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Difference:
    """One stretch in which the questions differ. `start` and `end` are characters of the clean question."""

    start: int
    end: int
    clean: str
    corrupted: str
    numeral: int | None = None  # its index among the question's numerals; None where words differ
    difference: int | float | None = None  # corrupted minus clean


def question_differences(clean: str, corrupted: str) -> tuple[Difference, ...]:
    """Every stretch that differs: numerals where nothing else does, else words. White space does not count."""
    if _without_numerals(clean) == _without_numerals(corrupted):
        numerals = zip(_NUMERAL.finditer(clean), _NUMERAL.finditer(corrupted), strict=True)
        return tuple(
            Difference(a.start(), a.end(), a[0], b[0], index, _difference(a[0], b[0]))
            for index, (a, b) in enumerate(numerals)
            if a[0] != b[0]
        )
    here, there = list(_WORD.finditer(clean)), list(_WORD.finditer(corrupted))
    matcher = SequenceMatcher(None, [word[0] for word in here], [word[0] for word in there], autojunk=False)
    differences = []
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            start = here[i].start() if i < len(here) else len(clean)
            end = here[j - 1].end() if j > i else start
            differences.append(Difference(start, end, clean[start:end], " ".join(word[0] for word in there[k:m])))
    return tuple(differences)


def numbers_in(question: str) -> set[float]:
    """The numbers that a question writes in digits."""
    return {float(_decimal(numeral)) for numeral in _NUMERAL.findall(question)}


def _without_numerals(text: str) -> str:
    """A text without its numbers and without the amount of its white space."""
    return _NUMERAL.sub("\0", " ".join(text.split()))


def _difference(clean: str, corrupted: str) -> int | float | None:
    """How much a number changes; None where that is no finite number."""
    change = float(_decimal(corrupted) - _decimal(clean))
    return plain_number(change) if isfinite(change) else None


def _decimal(numeral: str) -> Decimal:
    return Decimal(numeral.replace(",", ""))


def split_usable(pairs: Iterable[Pair]) -> tuple[list[Pair], list[tuple[Pair, str]]]:
    """The pairs without a text fault, and the others, each with its reason."""
    usable, excluded = [], []
    for pair in pairs:
        if faults := text_faults(pair):
            excluded.append((pair, f"pair {pair.pair_id}: {faults[0]}"))
        else:
            usable.append(pair)
    return usable, excluded


def text_faults(pair: Pair) -> list[str]:
    """Why two sides cannot be compared in any model."""
    faults = []
    if pair.clean.answer == pair.corrupted.answer:
        answer = shorten(format_number(pair.clean.answer), 50)
        faults.append(f"both answers are {answer}, so their logit difference is always 0; drop the pair")
    faults += [
        f"its {variant} answer {shorten(format_number(side.answer), 20)} is too large to be read; drop the pair"
        for variant, side in pair.sides.items()
        if last_number(format_number(side.answer)) != side.answer
    ]
    if is_same_question(pair):
        faults.append("both questions are the same, so there is nothing to exchange; drop the pair")
    return faults


def is_same_question(pair: Pair) -> bool:
    """Whether a model reads the same text on both sides."""
    return clean_text(pair.clean.question) == clean_text(pair.corrupted.question)
