"""Questions with solutions, and the numbers that the lens looks for in their thoughts. No torch.

A solution's *intermediates* are the results of all its annotated steps but the last, whose result is the answer.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from codi_tracing.patching.pair_making.gsm8k_chains import ANNOTATION
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.traces.gsm8k import GsmProblem
from codi_tracing.traces.text import read_number


class SolvedQuestion(NamedTuple):
    """A question, its intermediates and answer, and the number of annotated steps; 0 without annotations."""

    question_id: str
    cluster_id: str
    question: str
    intermediates: tuple[float, ...]
    answer: float
    steps: int


class TargetNumber(NamedTuple):
    """A number to look for in a question's thought; its owner is the question itself (`own`) or `another`."""

    owner: str
    role: str  # intermediate, answer
    ordinal: int | None
    value: float


def questions_from_pairs(pairs: Iterable[Pair]) -> list[SolvedQuestion]:
    """Both questions of every pair; the two are one cluster's."""
    return [
        solved_question(f"{pair.pair_id} {variant}", pair.cluster_id, side.question, side.chain, side.answer)
        for pair in pairs
        for variant, side in pair.sides.items()
    ]


def questions_from_problems(problems: Iterable[GsmProblem]) -> list[SolvedQuestion]:
    """The questions of a file in GSM8K's form, named by line, each a cluster of its own."""
    return [
        solved_question(str(p.line), str(p.line), p.question, ANNOTATION.findall(p.solution), p.answer)
        for p in problems
    ]


def solved_question(
    question_id: str, cluster_id: str, question: str, steps: Sequence[str], answer: float
) -> SolvedQuestion:
    """A question with the results of its solution's steps: what follows the last `=` of each, rounded or not."""
    results = tuple(step_result(step.rpartition("=")[2]) for step in steps)
    return SolvedQuestion(question_id, cluster_id, question, results[:-1], answer, len(results))


def step_result(text: str) -> float:
    """A step's result, written as any answer key; NaN for anything else."""
    try:
        return read_number(text)
    except ValueError:
        return math.nan


def target_numbers(questions: Sequence[SolvedQuestion], seed: int = 0) -> list[list[TargetNumber]]:
    """For each question its intermediates, its answer, and as chance level the intermediates of another question.

    The other question is drawn with `seed` from other clusters and has as many intermediates; it may be missing.
    """
    rng, by_count = random.Random(seed), defaultdict(list)
    for question in questions:
        by_count[len(question.intermediates)].append(question)
    targets = []
    for question in questions:
        own = question.intermediates
        others = [other for other in by_count[len(own)] if other.cluster_id != question.cluster_id]
        another = rng.choice(others).intermediates if others and own else ()
        targets.append(
            [
                *(TargetNumber("own", "intermediate", index, value) for index, value in enumerate(own)),
                TargetNumber("own", "answer", None, question.answer),
                *(TargetNumber("another", "intermediate", index, value) for index, value in enumerate(another)),
            ]
        )
    return targets
