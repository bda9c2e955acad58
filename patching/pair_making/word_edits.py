"""Replace an operator word of a question: "5 more than" by "5 fewer than", "twice as many" by "half as many"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial

from codi_tracing.patching.pair_making.gsm8k_chains import ChainError, Expression, Leaf, Operation, leaves
from codi_tracing.patching.pair_making.number_edits import (
    EditError,
    QuestionEdit,
    TracedQuestion,
    is_well_posed,
    recompute,
)

# In each pattern the group "word" is the operator word.
MORE = re.compile(
    r"(?<!need )(?<!needs )(?<!needed )(?P<sign>\$?)\b(?P<number>\d[\d,]*) (?P<noun>(?!times|percent|better)[a-z]+ )?"
    r"(?P<word>more|fewer|less) (?P<things>(?:[a-z]+ ){0,3})than\b"
)
MEASURE_NOUNS = (
    "feet inches yards miles meters kilometers pounds ounces grams kilograms dollars cents hours minutes".split()
)
# A reversed comparison may contradict such a word.
RANKED = re.compile(r"\b(?:\w+est|most|least|younger|older|elder|smaller|bigger|larger|taller|shorter|cheaper)\b", re.I)
TWICE = re.compile(r"\b(?P<word>twice|half) as (?:many|much|long|tall|far|fast|big|large|heavy|expensive)\b")
DOUBLED = re.compile(r"\b(?P<word>doubled|tripled|double|triple|doubles|triples)\b")
FACTOR_WORDS = re.compile(r"\b(?:twice|half|doubl\w+|tripl\w+|thrice|pairs?|couple|both|quarter\w*|third\w*)\b", re.I)
FACTORS = {"doubled": 2, "double": 2, "doubles": 2, "tripled": 3, "triple": 3, "triples": 3}
SWAPPED = {"doubled": "tripled", "double": "triple", "doubles": "triples"}
SWAPPED |= {new: old for old, new in SWAPPED.items()}


def word_edits(traced: TracedQuestion) -> Iterator[QuestionEdit]:
    """Every replacement of one operator word that refers to exactly one operand of the chain."""
    if RANKED.search(traced.question):
        return
    for match in MORE.finditer(traced.question):
        number = Fraction(match["number"].replace(",", ""))
        if number not in traced.implied and [n.value for n in traced.numerals].count(number) == 1:
            yield from replace_word(traced, match, opposite(match), partial(flip_sign, number=number), number)
    if len(FACTOR_WORDS.findall(traced.question)) != 1:
        return
    for match in TWICE.finditer(traced.question):
        new, change = ("half", twice_to_half) if match["word"] == "twice" else ("twice", half_to_twice)
        yield from replace_word(traced, match, new, change, Fraction(2))
    for match in DOUBLED.finditer(traced.question):
        old, new = match["word"], SWAPPED[match["word"]]
        tripled = partial(change_factor, old=FACTORS[old], new=FACTORS[new])
        yield from replace_word(traced, match, new, tripled, Fraction(FACTORS[old]))


def opposite(match: re.Match[str]) -> str:
    """`more` for `fewer` and `less`; for `more`, `fewer` of countable things and `less` of measures."""
    if match["word"] != "more":
        return "more"
    noun = str(match["things"] or match["noun"] or " ").split(" ")[-2]  # both end in a blank
    return "fewer" if noun.endswith("s") and noun not in MEASURE_NOUNS and not match["sign"] else "less"


def replace_word(
    traced: TracedQuestion,
    match: re.Match[str],
    word: str,
    change: Callable[[Expression], Expression],
    operand: Fraction,
) -> Iterator[QuestionEdit]:
    """The edit that writes `word` in the match's place and applies `change` to the only step with the operand."""
    changed = [i for i, step in enumerate(traced.chain) if change(step.expression) != step.expression]
    uses = sum(leaf.value == operand for step in traced.chain for leaf in leaves(step.expression))
    factor = "number" not in match.re.groupindex
    elsewhere = factor and operand in {n.value for n in traced.numerals}
    if len(changed) != 1 or uses > 1 or elsewhere or operand in {step.result for step in traced.chain}:
        return
    (where,) = changed
    try:
        chain = recompute(traced, None, Fraction(0), lambda i, e: change(e) if i == where else e)
    except (EditError, ChainError):
        return
    if is_well_posed(traced, chain):
        start, end = match.span("word")
        question = traced.question[:start] + word + traced.question[end:]
        yield QuestionEdit("operator_word", None, start, end, match["word"], word, where, question, chain)


def flip_sign(expression: Expression, number: Fraction) -> Expression:
    """`x+n` becomes `x-n` and `x-n` becomes `x+n`, for the term `n` of a sum; anything else stays."""
    if not isinstance(expression, Operation) or expression.operator not in "+-":
        return expression
    left, right = expression.left, expression.right
    if isinstance(right, Leaf) and right.value == number:
        return Operation("-" if expression.operator == "+" else "+", left, right)
    if isinstance(left, Leaf) and left.value == number and expression.operator == "+":
        return Operation("-", right, left)
    return Operation(expression.operator, flip_sign(left, number), right)


def twice_to_half(expression: Expression) -> Expression:
    """`x*2` or `2*x`, the only product of a step, becomes `x/2`."""
    match expression:
        case Operation("*", left, Leaf("2")) if not isinstance(left, Operation):
            return Operation("/", left, Leaf("2"))
        case Operation("*", Leaf("2"), right):
            return Operation("/", right, Leaf("2"))
    return expression


def half_to_twice(expression: Expression) -> Expression:
    """`x/2` or `x*.5`, all of a step, becomes `x*2`."""
    match expression:
        case Operation("/", left, Leaf("2")) if not isinstance(left, Operation):
            return Operation("*", left, Leaf("2"))
        case Operation("*", left, Leaf(".5" | "0.5")) | Operation("*", Leaf(".5" | "0.5"), left):
            return Operation("*", left, Leaf("2"))
    return expression


def change_factor(expression: Expression, old: int, new: int) -> Expression:
    """`x*2` or `2*x`, all of a step, becomes `x*3` or `3*x`."""
    match expression:
        case Operation("*", left, Leaf(text)) if text == str(old):
            return Operation("*", left, Leaf(str(new)))
        case Operation("*", Leaf(text), right) if text == str(old):
            return Operation("*", Leaf(str(new)), right)
    return expression
