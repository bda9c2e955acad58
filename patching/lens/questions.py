"""Questions with their worked solutions: the numbers that a thought may be found to say. No torch.

A solution's *intermediates* are the results of all its annotated steps but the last, whose result is the answer.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from codi_tracing.patching.pair_making.chains import ANNOTATION
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.traces.gsm8k import GsmProblem

NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")


class Worked(NamedTuple):
    """A question, its answer, and how many annotated steps lead there; without annotations none are known."""

    question_id: str
    cluster_id: str
    question: str
    intermediates: tuple[float, ...]
    answer: float
    steps: int


class Sought(NamedTuple):
    """A number that is looked for in what a thought says, and whose it is."""

    owner: str
    role: str
    ordinal: int | None
    value: float


def of_pairs(pairs: Iterable[Pair]) -> list[Worked]:
    """Both questions of every pair; the two are one cluster's."""
    return [
        solved(f"{pair.pair_id} {name}", pair.cluster_id, side.question, side.chain, side.answer)
        for pair in pairs
        for name, side in (("clean", pair.clean), ("corrupted", pair.corrupted))
    ]


def of_problems(problems: Iterable[GsmProblem]) -> list[Worked]:
    """The questions of a file in GSM8K's form, each a cluster of its own, by their lines."""
    return [solved(str(p.line), str(p.line), p.question, ANNOTATION.findall(p.solution), p.answer) for p in problems]


def solved(question_id: str, cluster_id: str, question: str, steps: Sequence[str], answer: float) -> Worked:
    """A question with the results of its solution's steps: what stands behind the last `=` of each, rounded or not."""
    results = tuple(result_of(step.rpartition("=")[2]) for step in steps)
    return Worked(question_id, cluster_id, question, results[:-1], answer, len(results))


def result_of(text: str) -> float:
    """A step's result as a number: `.5`, `1,200`, `$3`, `50%` and `3/4` too; NaN where it is none, or has no end."""
    above, slash, below = text.strip().lstrip("$").rstrip("%.").replace(",", "").partition("/")
    if not NUMBER.fullmatch(above) or (slash and not NUMBER.fullmatch(below)):
        return math.nan
    value = float(above) / float(below) if slash and float(below) else float(above) if not slash else math.nan
    return value if math.isfinite(value) else math.nan


def another(worked: Sequence[Worked], seed: int = 0) -> list[tuple[float, ...]]:
    """For each question the intermediates of one drawn from other clusters with as many, the chance level; empty where
    there is none."""
    rng, alike = random.Random(seed), defaultdict(list)
    for each in worked:
        alike[len(each.intermediates)].append(each)
    drawn = []
    for each in worked:
        others = [other for other in alike[len(each.intermediates)] if other.cluster_id != each.cluster_id]
        drawn.append(rng.choice(others).intermediates if others and each.intermediates else ())
    return drawn


def look_for(worked: Sequence[Worked], seed: int = 0) -> list[list[Sought]]:
    """For each question its intermediates, its answer, and another's intermediates, which `seed` draws."""
    return [wanted(each, drawn) for each, drawn in zip(worked, another(worked, seed), strict=True)]


def wanted(each: Worked, drawn: Sequence[float]) -> list[Sought]:
    """What is looked for in one question's thought: its intermediates, its answer, another's intermediates."""
    own = [Sought("own", "intermediate", index, value) for index, value in enumerate(each.intermediates)]
    others = [Sought("another", "intermediate", index, value) for index, value in enumerate(drawn)]
    return [*own, Sought("own", "answer", None, each.answer), *others]
