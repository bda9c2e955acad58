"""GSM8K's calculator annotations, `<<16-3-4=9>>`, as expressions: parsed, evaluated with fractions, written again.

The grammar is digits, a decimal point, + - * / and parentheses; nothing is passed to Python's own `eval`.

>>> step = parse_step("16-3-4=9")
>>> evaluate_expression(step.expression), step.result
(Fraction(9, 1), Fraction(9, 1))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

ANNOTATION = re.compile(r"<<([^<>]*)>>")
TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|[-+*/()])")
MAX_STEP_LENGTH = 200  # characters; bounds the depth of the recursive parser


class ChainError(ValueError):
    """An annotation that is not an exact calculation in this grammar."""


@dataclass(frozen=True)
class Leaf:
    """A number and its text."""

    text: str

    @property
    def value(self) -> Fraction:
        return Fraction(self.text)


@dataclass(frozen=True)
class Signed:
    """A minus before an operand."""

    inner: Expression


@dataclass(frozen=True)
class Group:
    """An expression in parentheses."""

    inner: Expression


@dataclass(frozen=True)
class Operation:
    """Two operands joined by + - * or /."""

    operator: str
    left: Expression
    right: Expression


Expression = Leaf | Signed | Group | Operation


class Step(NamedTuple):
    """One annotated calculation and its exact result."""

    expression: Expression
    result: Fraction


def parse_chain(solution: str) -> list[Step]:
    """The annotated steps of a solution; raises `ChainError` where one is not an exact calculation."""
    return [parse_step(text) for text in ANNOTATION.findall(solution)]


def parse_step(text: str) -> Step:
    """One annotation, `16-3-4=9`."""
    if len(text) > MAX_STEP_LENGTH:
        raise ChainError(f"a step of {len(text)} characters is no calculation by hand")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.replace("\u2212", "-").replace("$", ""))
    calculation, equals, result = plain.partition("=")
    number = re.fullmatch(r"\s*(-?(?:\d+\.?\d*|\.\d+))\s*", result)
    if not equals or number is None:
        raise ChainError(f"{text!r} does not end in = and a number")
    step = Step(parse(calculation), Fraction(number[1]))
    if evaluate_expression(step.expression) != step.result:
        raise ChainError(f"{text!r} is rounded or wrong")
    return step


def parse(text: str) -> Expression:
    """An expression: `*` and `/` bind closer than `+` and `-`, equal ones from left to right."""
    tokens: list[str] = []
    end = 0
    while end < len(text.rstrip()):
        match = TOKEN.match(text, end)
        if match is None:
            raise ChainError(f"{text!r} has {text[end]!r} in it")
        tokens.append(match[1])
        end = match.end()
    tokens.append("")  # the end
    expression, at = _operations(tokens, 0)
    if tokens[at]:
        raise ChainError(f"{text!r} has {tokens[at]!r} in a wrong place")
    return expression


def _operations(tokens: list[str], at: int, levels: tuple[str, ...] = ("+-", "*/")) -> tuple[Expression, int]:
    """Operands joined from left to right, the weakest operators of `levels` last; and the index after them."""
    if not levels:
        return _operand(tokens, at)
    left, at = _operations(tokens, at, levels[1:])
    while tokens[at] and tokens[at] in levels[0]:
        operator = tokens[at]
        right, at = _operations(tokens, at + 1, levels[1:])
        left = Operation(operator, left, right)
    return left, at


def _operand(tokens: list[str], at: int) -> tuple[Expression, int]:
    token = tokens[at]
    if token == "-":
        inner, at = _operand(tokens, at + 1)
        return Signed(inner), at
    if token == "(":
        inner, at = _operations(tokens, at + 1)
        if tokens[at] != ")":
            raise ChainError("a parenthesis is not closed")
        return Group(inner), at + 1
    if not token or token in "+*/)":
        raise ChainError(f"found {token or 'the end'!r}, expected a number")
    return Leaf(token), at + 1


def evaluate_expression(expression: Expression) -> Fraction:
    """The exact value; raises `ChainError` for a division by zero."""
    match expression:
        case Leaf():
            return expression.value
        case Signed(inner):
            return -evaluate_expression(inner)
        case Group(inner):
            return evaluate_expression(inner)
        case Operation(operator, left, right):
            a, b = evaluate_expression(left), evaluate_expression(right)
            if operator == "/" and b == 0:
                raise ChainError("a division by zero")
            return {"+": a + b, "-": a - b, "*": a * b}[operator] if operator != "/" else a / b


def leaves(expression: Expression) -> Iterator[Leaf]:
    """The numbers of an expression, from left to right."""
    match expression:
        case Leaf():
            yield expression
        case Signed(inner) | Group(inner):
            yield from leaves(inner)
        case Operation(_, left, right):
            yield from (*leaves(left), *leaves(right))


def replace_leaves(expression: Expression, change: Callable[[Leaf], Leaf]) -> Expression:
    """The same expression with every number changed."""
    match expression:
        case Leaf():
            return change(expression)
        case Signed(inner):
            return Signed(replace_leaves(inner, change))
        case Group(inner):
            return Group(replace_leaves(inner, change))
        case Operation(operator, left, right):
            return Operation(operator, replace_leaves(left, change), replace_leaves(right, change))


def write(expression: Expression) -> str:
    """An expression as GSM8K writes it."""
    match expression:
        case Leaf(text):
            return text
        case Signed(inner):
            return f"-{write(inner)}"
        case Group(inner):
            return f"({write(inner)})"
        case Operation(operator, left, right):
            return f"{write(left)}{operator}{write(right)}"


def write_step(step: Step) -> str:
    """An annotation without its brackets: `16-3-4=9`."""
    return f"{write(step.expression)}={write_number(step.result)}"


def write_number(value: Fraction) -> str:
    """A number in digits, exactly; raises `ChainError` for one with more than 12 decimals."""
    if value.denominator == 1:
        return str(value.numerator)
    for digits in range(1, 13):
        scaled = value * 10**digits
        if scaled.denominator == 1:
            whole = f"{abs(scaled.numerator):0{digits + 1}d}"
            return f"{'-' if value < 0 else ''}{whole[:-digits]}.{whole[-digits:]}"
    raise ChainError(f"{value} has no end in decimals")
