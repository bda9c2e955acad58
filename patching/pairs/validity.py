"""Where the two questions of a pair differ, and by how much. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher

from codi_tracing.patching.pairs.pair import Pair, format_number, plain_number
from codi_tracing.traces.text import clean_text

NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Change:
    """One stretch that differs: a numeral, or words. `start` and `end` are characters of the clean question."""

    start: int
    end: int
    clean: str
    corrupted: str
    place: int | None = None  # among the question's numerals, 0 the first; None where words differ
    difference: int | float | None = None  # corrupted minus clean


def changes(clean: str, corrupted: str) -> tuple[Change, ...]:
    """Every stretch that differs: numerals where nothing else does, else words. White space does not count."""
    if _frame(clean) == _frame(corrupted):
        numerals = zip(NUMERAL.finditer(clean), NUMERAL.finditer(corrupted), strict=True)
        return tuple(
            Change(a.start(), a.end(), a[0], b[0], place, _difference(a[0], b[0]))
            for place, (a, b) in enumerate(numerals)
            if a[0] != b[0]
        )
    here, there = list(WORD.finditer(clean)), list(WORD.finditer(corrupted))
    matcher = SequenceMatcher(None, [word[0] for word in here], [word[0] for word in there], autojunk=False)
    found = []
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            start = here[i].start() if i < len(here) else len(clean)
            end = here[j - 1].end() if j > i else start
            found.append(Change(start, end, clean[start:end], " ".join(word[0] for word in there[k:m])))
    return tuple(found)


def _frame(text: str) -> str:
    """A text without its numbers and without the amount of its white space."""
    return NUMERAL.sub("\0", " ".join(text.split()))


def _difference(clean: str, corrupted: str) -> int | float:
    a, b = (Decimal(numeral.replace(",", "")) for numeral in (clean, corrupted))
    return plain_number(float(b - a))


def split_usable(pairs: Iterable[Pair]) -> tuple[list[Pair], list[tuple[Pair, str]]]:
    """The pairs that are a contrast, and the others, each with its reason."""
    usable, excluded = [], []
    for pair in pairs:
        if faults := text_faults(pair):
            excluded.append((pair, f"pair {pair.pair_id}: {faults[0]}"))
        else:
            usable.append(pair)
    return usable, excluded


def text_faults(pair: Pair) -> list[str]:
    """Why two sides are no contrast in any model."""
    faults = []
    if pair.clean.answer == pair.corrupted.answer:
        answer = format_number(pair.clean.answer)
        faults.append(f"both answers are {answer}, so their logit difference is always 0; drop the pair")
    if is_one_question(pair):
        faults.append("both questions are the same, so there is nothing to exchange; drop the pair")
    return faults


def is_one_question(pair: Pair) -> bool:
    """Whether a model reads the same text on both sides."""
    return clean_text(pair.clean.question) == clean_text(pair.corrupted.question)
