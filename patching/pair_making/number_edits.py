"""Change one number of a GSM8K question and compute the new answer.

GSM8K annotates each solution with its calculations. Every operand is traced to its origin: a number of the question,
an earlier result, a percentage, or a constant that a word implies ("a week" is 7). One number is changed and all that
depends on it is computed again in fractions. The edit is kept only where the dependence is unambiguous and the new
problem is as well-posed as the old one.

>>> traced = trace_operands(GsmProblem(1, "Ann has 16 eggs. She eats 3. How many are left?", "<<16-3=13>>", 13.0))
>>> numeral, step = editable_numerals(traced)[0]
>>> next(number_edits(traced, numeral, step, [20])).question
'Ann has 20 eggs. She eats 3. How many are left?'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

from codi_tracing.patching.pair_making.gsm8k_chains import (
    ChainError,
    Expression,
    Leaf,
    Step,
    evaluate_expression,
    leaves,
    parse_chain,
    replace_leaves,
    write_number,
)
from codi_tracing.patching.pair_making.number_words import implied_values, may_derive
from codi_tracing.traces.gsm8k import GsmProblem

EDITS = ("first_operand", "later_operand", "operator_word")
# Why a question yields no pair, in the order of the funnel.
REASONS = (
    "no annotated chain", "a step is not exact arithmetic", "the chain does not end in the answer",
    "an operand comes from nowhere", "nothing can be changed", "no change is well-posed",
    "no change keeps the token count",
)  # fmt: skip
_NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
# What a changed number must not touch: it would be part of a fraction, time, ordinal, name or decimal.
BEFORE, AFTER = re.compile(r"[\w./:#,-]$"), re.compile(r"^(?:\w|[/:]|[.,]\d|-(?!\w*[a-z]))")
MAX_NUMERALS, MAX_DIGITS = 60, 15  # of a question
COMMON_CONSTANTS = {Fraction(1), Fraction(100)}  # a solution may use them without a word for them


class Numeral(NamedTuple):
    """A number of the question: its ordinal among the numbers from 0, its span, and its value."""

    ordinal: int
    start: int
    end: int
    value: Fraction
    percent: bool


class QuestionEdit(NamedTuple):
    """One changed number or word of a question, and the chain that answers the changed question."""

    name: str  # one of EDITS
    numeral: int | None  # its index among the question's numerals; None for a word
    start: int
    end: int
    clean: str
    corrupted: str
    step: int  # the first step of the chain that it changes
    question: str
    chain: tuple[Step, ...]


class EditError(ValueError):
    """A question that cannot be edited; the message is one of REASONS."""


@dataclass(frozen=True)
class TracedQuestion:
    """A question and its chain, with every origin that an operand may have."""

    question: str
    chain: tuple[Step, ...]
    numerals: tuple[Numeral, ...]
    implied: frozenset[Fraction]  # by the question's words

    @cached_property
    def values(self) -> set[Fraction]:
        """The question's numbers, and the hundredths of its percentages."""
        return {n.value for n in self.numerals} | {n.value / 100 for n in self.numerals if n.percent}

    @cached_property
    def constants(self) -> frozenset[Fraction]:
        return self.implied | COMMON_CONSTANTS


def trace_operands(problem: GsmProblem) -> TracedQuestion:
    """Parse a problem's chain and find the origin of every operand; raises `EditError` where that fails."""
    try:
        chain = tuple(parse_chain(problem.solution))
    except ChainError as error:
        raise EditError(REASONS[1]) from error
    if not chain:
        raise EditError(REASONS[0])
    if chain[-1].result != Fraction(str(problem.answer)):
        raise EditError(REASONS[2])
    question = re.sub(r"[ \t\u00a0]+", " ", problem.question.strip())  # spans are counted in this
    matches = list(_NUMERAL.finditer(question))
    if len(matches) > MAX_NUMERALS or any(len(match[0]) > MAX_DIGITS for match in matches):
        raise EditError(REASONS[4])
    numerals = []
    for index, match in enumerate(matches):
        percent = re.match(r" ?(?:%|percent)", question[match.end() :]) is not None
        numerals.append(Numeral(index, *match.span(), Fraction(match[0].replace(",", "")), percent))
    traced = TracedQuestion(question, chain, tuple(numerals), frozenset(implied_values(question)))
    origins = traced.values | traced.constants
    for step in chain:
        if any(leaf.value not in origins for leaf in leaves(step.expression)):
            raise EditError(REASONS[3])
        origins.add(step.result)
    return traced


def recompute(
    traced: TracedQuestion,
    numeral: Numeral | None,
    new: Fraction,
    rewrite: Callable[[int, Expression], Expression] = lambda index, expression: expression,
) -> tuple[Step, ...]:
    """The chain after `numeral` has become `new`, or a step was rewritten; raises `EditError` where it is ambiguous."""
    done: list[Step] = []

    def update(leaf: Leaf) -> Leaf:
        values = new_operands(traced, leaf.value, numeral, new, done)
        if len(values) > 1:
            raise EditError("an operand may come from two places")
        (value,) = values
        return leaf if value == leaf.value else Leaf(write_number(value))

    for index, step in enumerate(traced.chain):
        expression = rewrite(index, replace_leaves(step.expression, update))
        done.append(Step(expression, evaluate_expression(expression)))
    return tuple(done)


def new_operands(
    traced: TracedQuestion, value: Fraction, numeral: Numeral | None, new: Fraction, done: Sequence[Step]
) -> set[Fraction]:
    """What an operand of the step after `done` may become: more than one value where its possible origins disagree."""
    earlier = traced.chain[: len(done)]
    values = {after.result for before, after in zip(earlier, done, strict=True) if before.result == value}
    for number in traced.numerals:
        changed = new if number is numeral else number.value
        if number.value == value:
            values.add(changed)
        if number.percent and number.value / 100 == value:
            values.add(changed / 100)
    if value in traced.constants and not (values and value == 1):
        values.add(value)
    written = value in {n.value for n in traced.numerals} | {step.result for step in earlier}
    if numeral is not None and values == {value} and not written and may_derive(value, numeral.value):
        raise EditError("a constant may follow from the number")
    return values


def editable_numerals(traced: TracedQuestion) -> list[tuple[Numeral, int]]:
    """The numbers that may be changed, each with the index of the first step that uses it."""
    editable = []
    counts = Counter(n.value for n in traced.numerals)
    results = {step.result for step in traced.chain}
    for numeral in traced.numerals:
        text = traced.question[numeral.start : numeral.end]
        isolated = not BEFORE.search(traced.question[: numeral.start]) and not AFTER.match(
            traced.question[numeral.end :]
        )
        whole = numeral.value.denominator == 1 and "." not in text and numeral.value > 1
        if not (isolated and whole and counts[numeral.value] == 1 and numeral.value not in results):
            continue
        if is_redundant(traced, numeral):
            continue
        values = {numeral.value} | ({numeral.value / 100} if numeral.percent else set())
        uses = [i for i, step in enumerate(traced.chain) if values & {leaf.value for leaf in leaves(step.expression)}]
        if uses:
            editable.append((numeral, uses[0]))
    return editable


def is_redundant(traced: TracedQuestion, numeral: Numeral) -> bool:
    """Whether the question gives the number twice, as in "a family of 6 (2 adults and 4 kids)"."""
    used = {leaf.value for step in traced.chain for leaf in leaves(step.expression)}
    others = [n.value for n in traced.numerals if n is not numeral]
    for a, b in combinations(others, 2):
        if numeral.value in (a + b, abs(a - b)) and not {a, b} <= used:
            return True
    return numeral.percent and 100 - numeral.value in others


def is_well_posed(traced: TracedQuestion, chain: Sequence[Step]) -> bool:
    """Whether every result stays whole, non-negative and non-zero where the original was, and the answer changes.

    A changed result must be used later: where a solution computes something without use, its chain may be wrong.
    """
    for index, (before, after) in enumerate(zip(traced.chain, chain, strict=True)):
        later = {leaf.value for step in traced.chain[index + 1 :] for leaf in leaves(step.expression)}
        if before.result != after.result and index < len(chain) - 1 and before.result not in later:
            return False
        if before.result.denominator == 1 and after.result.denominator != 1:
            return False
        if abs(after.result) >= 10**MAX_DIGITS:
            return False
        if (before.result >= 0 and after.result < 0) or (before.result != 0 and after.result == 0):
            return False
    return chain[-1].result != traced.chain[-1].result


def new_values(old: int, deltas: Sequence[int] = (), most: int = 250) -> list[int]:
    """Other numbers of the same digit count: evenly spread, at most `most` as round as the old one and `most` others.

    With `deltas`, the numbers that differ by exactly one of them.
    """
    digits = len(str(old))
    lowest, beyond = max(2, 10 ** (digits - 1)), 10**digits
    if deltas:
        return [old + delta for delta in deltas if lowest <= old + delta < beyond]
    values: set[int] = set()
    for unit in {roundness(old), 1}:
        values |= set(range(-(-lowest // unit) * unit, beyond, unit * -(-(beyond - lowest) // (unit * most))))
    return sorted(values - {old})


def roundness(number: int) -> int:
    """The largest power of ten that divides a number."""
    return 10 ** (len(str(number)) - len(str(number).rstrip("0")))


def number_edits(traced: TracedQuestion, numeral: Numeral, step: int, values: Iterable[int]) -> Iterator[QuestionEdit]:
    """The well-posed changes of one number, first used at `step`, to each of these values."""
    taken = {n.value for n in traced.numerals} | {done.result for done in traced.chain}
    text = traced.question[numeral.start : numeral.end]
    for new in values:
        if Fraction(new) in taken or (numeral.percent and numeral.value <= 100 < new):
            continue
        try:
            chain = recompute(traced, numeral, Fraction(new))
        except (EditError, ChainError):
            continue
        if is_well_posed(traced, chain):
            written = f"{new:,}" if "," in text else str(new)
            question = traced.question[: numeral.start] + written + traced.question[numeral.end :]
            yield QuestionEdit(
                EDITS[min(step, 1)], numeral.ordinal, numeral.start, numeral.end, text, written, step, question, chain
            )
