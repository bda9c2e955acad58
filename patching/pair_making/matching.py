"""Find matched donors: for each intermediate of a question, others with or without the same value and answer. No torch.

The j-th intermediate is the result of a chain's j-th step; the last result is the answer. A state that holds only the
intermediate makes the host give the *hybrid*: its own remaining operations on the donor's value. A state that holds the
answer makes it give the donor's. Where the intermediates differ, the hybrid differs from the host's and the donor's
answer, so the three can be told apart (interchange interventions, Geiger et al. 2022).

>>> host = Side("Ann has 9 pens. She finds 4. She loses 2.", 11.0, chain=("9+4=13", "13-2=11"))
>>> donor = Side("Ben has 8 nuts. He finds 9. He eats 3.", 14.0, chain=("8+9=17", "17-3=14"))
>>> third = Side("Eva has 5 cups. She sells 3. She buys 19.", 21.0, chain=("5-3=2", "2+19=21"))
>>> [match, *_] = find_matches([("a", host), ("b", donor), ("c", third)], [12, 12, 13], seed=0)
>>> match.pair_id, match.j, match.hybrid
('0-0-1', 0, 15.0)
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from codi_tracing.patching.pair_making.gsm8k_chains import ChainError, Leaf, evaluate_expression, leaves, replace_leaves
from codi_tracing.patching.pair_making.number_edits import EditError, TracedQuestion, trace_operands
from codi_tracing.patching.pairs.pair import Side
from codi_tracing.traces.gsm8k import GsmProblem

Corner = tuple[bool, bool]  # same intermediate, same answer
MATCH_CORNERS: tuple[Corner, ...] = ((True, True), (True, False), (False, True), (False, False))


class Match(NamedTuple):
    """A host and a donor of equal token count and step count, and the host's answer from the donor's j-th value."""

    host: Side
    donor: Side
    cluster: str  # of the host
    pair_id: str  # the host's index among the questions, j, and the donor's index
    j: int
    same_intermediate: bool
    same_answer: bool
    hybrid: float  # the host's own answer where the intermediate is the same


class Candidate(NamedTuple):
    """A question whose chain is usable as a host's and a donor's."""

    ordinal: int  # among the given questions, from 0
    cluster: str
    side: Side
    tokens: int
    traced: TracedQuestion
    results: tuple[Fraction, ...]


class CandidateIndex:
    """The usable questions by token count, number of steps, and value of a step; and the range of values."""

    def __init__(self, questions: Sequence[Candidate]) -> None:
        self.questions = questions
        self.groups: dict[tuple, list[Candidate]] = defaultdict(list)
        for question in questions:
            size = (question.tokens, len(question.results))
            self.groups[size].append(question)
            for step, value in enumerate(question.results):
                self.groups[*size, step, value].append(question)
        answers = {question.results[-1] for question in questions}
        intermediates = {value for question in questions for value in question.results[:-1]}
        self.ranges = [(min(values), max(values)) for values in (intermediates, answers) if values]

    def donors(self, host: Candidate, j: int, corner: Corner) -> Sequence[Candidate]:
        """A small group of questions that contains all of a corner's donors."""
        same_intermediate, same_answer = corner
        size = (host.tokens, len(host.results))
        if same_intermediate:
            return self.groups[*size, j, host.results[j]]
        if same_answer:
            return self.groups[*size, len(host.results) - 1, host.results[-1]]
        return self.groups[size]

    def hybrid(self, host: Candidate, j: int, value: Fraction) -> Fraction | None:
        """The host's remaining operations on another j-th value; `None` where a result is implausible.

        Each result must stay whole, or stay a fraction, and lie in the range of all questions' intermediates, or for
        the last one of their answers.
        """
        try:
            changed = results_after(host.traced, j, value)
        except ChainError:
            return None
        ranges = [*[self.ranges[0]] * (len(changed) - 1), self.ranges[-1]]
        for before, after, (low, high) in zip(host.results[j:], changed, ranges, strict=True):
            if (before.denominator == 1) != (after.denominator == 1) or not low <= after <= high:
                return None
        return changed[-1]


def find_matches(
    sides: Sequence[tuple[str, Side]], tokens: Sequence[int], seed: int, per_corner: int = 1
) -> list[Match]:
    """For each question, intermediate and corner of the 2×2 at most `per_corner` seeded donors of another cluster.

    `sides` are clusters and questions, `tokens` the questions' token counts. A repeated question counts once.
    """
    index = CandidateIndex(list(usable_candidates(sides, tokens)))
    return [
        match
        for host in index.questions
        for j in range(len(host.results) - 1)
        if is_traceable(host.traced, j)
        for corner in MATCH_CORNERS
        for match in draw_matches(index, host, j, corner, seed, per_corner)
    ]


def coverage(matches: Iterable[Match]) -> dict[tuple[int, bool, bool], int]:
    """Number of matches by j, same intermediate and same answer."""
    counts = Counter((match.j, match.same_intermediate, match.same_answer) for match in matches)
    steps = range(max((j for j, *_ in counts), default=-1) + 1)
    return {(j, *corner): counts[j, *corner] for j in steps for corner in MATCH_CORNERS}


def usable_candidates(sides: Sequence[tuple[str, Side]], tokens: Sequence[int]) -> Iterator[Candidate]:
    """The questions whose chains can be traced, end in the answer, and use each result in a later step."""
    seen = set[str]()
    for index, ((cluster, side), count) in enumerate(zip(sides, tokens, strict=True)):
        solution = "".join(f"<<{step}>>" for step in side.chain)
        try:
            traced = trace_operands(GsmProblem(index, side.question, solution, side.answer))
        except EditError:
            continue
        results = tuple(step.result for step in traced.chain)
        operands = [{leaf.value for leaf in leaves(step.expression)} for step in traced.chain]
        all_used = all(any(value in later for later in operands[i + 1 :]) for i, value in enumerate(results[:-1]))
        if all_used and side.question not in seen:
            seen.add(side.question)
            yield Candidate(index, cluster, side, count, traced, results)


def is_traceable(traced: TracedQuestion, j: int) -> bool:
    """Whether every later use of the j-th result, and of results that depend on it, has no other possible origin."""
    others = traced.values | (traced.constants - {1})
    dependent = {j}
    for index, step in enumerate(traced.chain):
        for leaf in leaves(step.expression):
            origins = {k for k in range(index) if traced.chain[k].result == leaf.value}
            if origins & dependent:
                if len(origins) > 1 or leaf.value in others:
                    return False
                dependent.add(index)
    return True


def results_after(traced: TracedQuestion, j: int, value: Fraction) -> list[Fraction]:
    """The results from the j-th on after it has become `value`; raises `ChainError` for a division by zero."""
    changed, results = {traced.chain[j].result: value}, [value]

    def update(leaf: Leaf) -> Leaf:
        return Leaf(str(changed[leaf.value])) if leaf.value in changed else leaf

    for step in traced.chain[j + 1 :]:
        results.append(evaluate_expression(replace_leaves(step.expression, update)))
        changed[step.result] = results[-1]
    return results


def draw_matches(
    index: CandidateIndex, host: Candidate, j: int, corner: Corner, seed: int, per_corner: int
) -> Iterator[Match]:
    """At most `per_corner` random donors of one corner; the draw depends on the host's text, not on other hosts."""
    same_intermediate, same_answer = corner
    answer, missing = host.results[-1], per_corner
    left = list(index.donors(host, j, corner))
    rng = random.Random(f"{seed}:{host.side.question}:{j}:{same_intermediate}:{same_answer}")
    while left and missing:
        at = rng.randrange(len(left))
        left[at], left[-1] = left[-1], left[at]
        donor = left.pop()
        value, donor_answer = donor.results[j], donor.results[-1]
        if donor.cluster == host.cluster or (value == host.results[j], donor_answer == answer) != corner:
            continue
        hybrid = answer if same_intermediate else index.hybrid(host, j, value)
        if hybrid is None or (not same_intermediate and hybrid in (answer, donor_answer)):
            continue
        name = f"{host.ordinal}-{j}-{donor.ordinal}"
        yield Match(host.side, donor.side, host.cluster, name, j, *corner, float(hybrid))
        missing -= 1
