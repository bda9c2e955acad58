"""Clean/corrupted pairs from GSM8K: one number or one word of a question changed, both answers computed.

GSM8K annotates each solution with its calculations. Every operand is traced to where it comes from: a number of the
question, an earlier result, a percentage, or a constant that a word implies ("a week" is 7). One number is changed,
what follows from it is computed again in fractions, and the pair is kept only where that is unambiguous and the new
problem is as well-posed as the old one.

>>> problem = GsmProblem(1, "Ann has 16 eggs. She eats 3. How many are left?", "<<16-3=13>>13\n#### 13", 13.0)
>>> next(iter(edits(problem).edits)).kind
'first_operand'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

from codi_tracing.patching.pair_making.chains import (
    ChainError,
    Expression,
    Leaf,
    Step,
    evaluate,
    leaves,
    parse_chain,
    replace_leaves,
    write_number,
)
from codi_tracing.patching.pair_making.number_words import implied_values, may_derive
from codi_tracing.traces.gsm8k import GsmProblem

KINDS = ("first_operand", "later_operand", "operator_word")
# Why a question yields no pair, in the order of the funnel.
REASONS = (
    "no annotated chain", "a step is not exact arithmetic", "the chain does not end in the answer",
    "an operand comes from nowhere", "nothing can be changed", "no change is well-posed",
    "no change keeps the token count",
)  # fmt: skip
NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
# What may not touch a number that is changed: parts of fractions, times, ordinals, names, decimals.
BEFORE, AFTER = re.compile(r"[\w./:#,-]$"), re.compile(r"^(?:\w|[/:]|[.,]\d|-(?!\w*[a-z]))")
MOST_NUMERALS, MOST_DIGITS = 60, 15  # of a question that anybody would ask
HARMLESS = {Fraction(n) for n in (1, 100)}


class Numeral(NamedTuple):
    """A number of the question: its place among the numbers, its span, and its value."""

    place: int
    start: int
    end: int
    value: Fraction
    percent: bool


class Edit(NamedTuple):
    """One way to change a question, with the chain that answers the changed one."""

    kind: str
    place: int | None  # of the numeral among the question's numerals; None for a word
    start: int
    end: int
    clean: str
    corrupted: str
    step: int  # the first step of the chain that it changes
    question: str
    chain: tuple[Step, ...]


class Refused(ValueError):
    """A question without edits; the message is its line of the funnel."""


@dataclass(frozen=True)
class Traced:
    """A question and its chain, with everything that an operand may come from."""

    question: str
    chain: tuple[Step, ...]
    numerals: tuple[Numeral, ...]
    implied: frozenset[Fraction] = field(default_factory=frozenset)


def clean_question(text: str) -> str:
    """Stripped, runs of blanks collapsed to one: spans are counted in this."""
    return re.sub(r"[ \t\u00a0]+", " ", text.strip())


def trace(problem: GsmProblem) -> Traced:
    """Parse a problem's chain and find where its operands come from; raises `Refused` where that cannot be done."""
    try:
        chain = tuple(parse_chain(problem.solution))
    except ChainError as error:
        raise Refused(REASONS[1]) from error
    if not chain:
        raise Refused(REASONS[0])
    if chain[-1].result != Fraction(str(problem.answer)):
        raise Refused(REASONS[2])
    question = clean_question(problem.question)
    matches = list(NUMERAL.finditer(question))
    if len(matches) > MOST_NUMERALS or any(len(match[0]) > MOST_DIGITS for match in matches):
        raise Refused(REASONS[4])
    found = []
    for place, match in enumerate(matches):
        percent = re.match(r" ?(?:%|percent)", question[match.end() :]) is not None
        found.append(Numeral(place, *match.span(), Fraction(match[0].replace(",", "")), percent))
    traced = Traced(question, chain, tuple(found), frozenset(implied_values(question)))
    for index, step in enumerate(chain):
        for leaf in leaves(step.expression):
            if not origins(traced, index, leaf.value):
                raise Refused(REASONS[3])
    return traced


def origins(traced: Traced, index: int, value: Fraction) -> bool:
    """Whether an operand of step `index` is a number of the question, an earlier result or a known constant."""
    numbers = {n.value for n in traced.numerals} | {n.value / 100 for n in traced.numerals if n.percent}
    results = {step.result for step in traced.chain[:index]}
    return value in numbers | results | traced.implied | HARMLESS


def recompute(
    traced: Traced,
    numeral: Numeral | None,
    new: Fraction,
    rewrite: Callable[[int, Expression], Expression] | None = None,
) -> tuple[Step, ...]:
    """The chain after a number has become `new`, or a step been rewritten; raises `Refused` where it is ambiguous."""
    done: list[Step] = []
    for index, step in enumerate(traced.chain):

        def carry(leaf: Leaf, index: int = index) -> Leaf:
            wanted = images(traced, index, leaf.value, numeral, new, done)
            if len(wanted) > 1:
                raise Refused("an operand may come from two places")
            (value,) = wanted
            return leaf if value == leaf.value else Leaf(write_number(value))

        expression = replace_leaves(step.expression, carry)
        if rewrite is not None:
            expression = rewrite(index, expression)
        done.append(Step(expression, evaluate(expression)))
    return tuple(done)


def images(
    traced: Traced, index: int, value: Fraction, numeral: Numeral | None, new: Fraction, done: Sequence[Step]
) -> set[Fraction]:
    """What an operand of step `index` may become: one value, unless it may come from two places that differ."""
    wanted = {after.result for before, after in zip(traced.chain, done, strict=False) if before.result == value}
    for number in traced.numerals:
        changed = new if number is numeral else number.value
        if number.value == value:
            wanted.add(changed)
        if number.percent and number.value / 100 == value:
            wanted.add(changed / 100)
    if value in traced.implied | HARMLESS and not (wanted and value == 1):
        wanted.add(value)
    if (
        numeral is not None
        and wanted == {value}
        and not known(traced, index, value)
        and may_derive(value, numeral.value)
    ):
        raise Refused("a constant may follow from the number")
    return wanted


def known(traced: Traced, index: int, value: Fraction) -> bool:
    """Whether an operand is written in the question or an earlier result, and so no constant of the solution's own."""
    return value in {n.value for n in traced.numerals} or value in {step.result for step in traced.chain[:index]}


def editable(traced: Traced) -> list[tuple[Numeral, int]]:
    """The numbers that may be changed, each with the step of the chain at which it enters."""
    found = []
    values = Counter(n.value for n in traced.numerals)
    intermediate = {step.result for step in traced.chain}
    for numeral in traced.numerals:
        text = traced.question[numeral.start : numeral.end]
        lone = not BEFORE.search(traced.question[: numeral.start]) and not AFTER.match(traced.question[numeral.end :])
        fit = numeral.value.denominator == 1 and "." not in text and numeral.value > 1
        if not (lone and fit and values[numeral.value] == 1 and numeral.value not in intermediate):
            continue
        if redundant(traced, numeral):
            continue
        wanted = {numeral.value} | ({numeral.value / 100} if numeral.percent else set())
        uses = [i for i, step in enumerate(traced.chain) if wanted & {leaf.value for leaf in leaves(step.expression)}]
        if uses:
            found.append((numeral, uses[0]))
    return found


def redundant(traced: Traced, numeral: Numeral) -> bool:
    """Whether the question says the number twice, as in "a family of 6 (2 adults and 4 kids)"."""
    used = {leaf.value for step in traced.chain for leaf in leaves(step.expression)}
    others = [n.value for n in traced.numerals if n is not numeral]
    for a, b in combinations(others, 2):
        if numeral.value in (a + b, abs(a - b)) and not {a, b} <= used:
            return True
    return numeral.percent and 100 - numeral.value in others


def well_posed(traced: Traced, chain: Sequence[Step]) -> bool:
    """Whether every result is whole, not negative and not zero wherever the original was, and the answer another.

    A result that changes has to be used: where a solution works something out and goes on without it, its chain may be
    wrong.
    """
    for index, (before, after) in enumerate(zip(traced.chain, chain, strict=True)):
        later = {leaf.value for step in traced.chain[index + 1 :] for leaf in leaves(step.expression)}
        if before.result != after.result and index < len(chain) - 1 and before.result not in later:
            return False
        if before.result.denominator == 1 and after.result.denominator != 1:
            return False
        if abs(after.result) >= 10**MOST_DIGITS:
            return False
        if (before.result >= 0 and after.result < 0) or (before.result != 0 and after.result == 0):
            return False
    return chain[-1].result != traced.chain[-1].result


def new_values(old: int, deltas: Sequence[int] = (), most: int = 250) -> list[int]:
    """Other numbers of the same digit count: those as round, and others evenly spread, at most so many of each.

    With `deltas`, the numbers that differ by so much.
    """
    digits = len(str(old))
    lowest, beyond = max(2, 10 ** (digits - 1)), 10**digits
    if deltas:
        return [old + delta for delta in deltas if lowest <= old + delta < beyond]
    found: set[int] = set()
    for unit in {roundness(old), 1}:
        found |= set(range(-(-lowest // unit) * unit, beyond, unit * -(-(beyond - lowest) // (unit * most))))
    return sorted(found - {old})


def roundness(number: int) -> int:
    """The power of ten that a number is a multiple of."""
    return 10 ** (len(str(number)) - len(str(number).rstrip("0")))


def changes_of(traced: Traced, numeral: Numeral, step: int, values: Iterable[int]) -> Iterator[Edit]:
    """The well-posed changes of one number, which enters at `step`, to these values, in their order."""
    taken = {n.value for n in traced.numerals} | {done.result for done in traced.chain}
    text = traced.question[numeral.start : numeral.end]
    kind = KINDS[0] if step == 0 else KINDS[1]
    for new in values:
        if Fraction(new) in taken or (numeral.percent and numeral.value <= 100 < new):
            continue
        try:
            chain = recompute(traced, numeral, Fraction(new))
        except (Refused, ChainError):
            continue
        if well_posed(traced, chain):
            written = f"{new:,}" if "," in text else str(new)
            question = traced.question[: numeral.start] + written + traced.question[numeral.end :]
            yield Edit(kind, numeral.place, numeral.start, numeral.end, text, written, step, question, chain)
