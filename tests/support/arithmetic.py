"""Independent evaluations of expressions and of word problems, to compare the product's with."""

import ast
import operator
import re
from fractions import Fraction

from codi_tracing.traces.training.word_problems import DAYS

SIGN = {"bought": 1, "found": 1, "lost": -1, "sold": -1}
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def pythons(text: str) -> Fraction:
    """The value of an expression, in fractions, by Python's own parser."""

    def value(node):
        match node:
            case ast.Constant():
                return Fraction(ast.get_source_segment(text, node))
            case ast.UnaryOp():
                return -value(node.operand)
            case ast.BinOp():
                return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise AssertionError(ast.dump(node))

    return value(ast.parse(text, mode="eval").body)


def read_back(question: str) -> list[int]:
    """The running values, computed from the English text alone: sort its sentences by day and add up."""
    by_day = {}
    for sentence in question.split(". ")[:-1]:
        day = next(day for day in DAYS if day in sentence)
        sign = next((s for verb, s in SIGN.items() if verb in sentence), 1)
        by_day[DAYS.index(day)] = sign * int(re.search(r"\d+", sentence)[0])
    changes = [by_day[i] for i in range(len(by_day))]
    return [sum(changes[: i + 1]) for i in range(len(changes))]
