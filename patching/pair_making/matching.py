"""Matched donors: for each intermediate of a question, others that share it or not, and its answer or not. No torch.

The j-th intermediate is the result of a chain's j-th step; the last result is the answer, and no intermediate. A state
that holds the intermediate alone makes the host say the *hybrid*: its own remaining operations on the donor's value.
One that holds the answer makes it say the donor's. Where the intermediates differ, hybrid, host's answer and donor's
answer can be told apart: the hybrid is neither of the others (interchange interventions, Geiger et al. 2022).

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

from codi_tracing.patching.pair_making.chains import ChainError, Leaf, evaluate, leaves, replace_leaves
from codi_tracing.patching.pair_making.number_edits import HARMLESS, Refused, Traced, trace
from codi_tracing.patching.pairs.pair import Side
from codi_tracing.traces.gsm8k import GsmProblem

Corner = tuple[bool, bool]  # same intermediate, same answer
CORNERS: tuple[Corner, ...] = ((True, True), (True, False), (False, True), (False, False))


class Match(NamedTuple):
    """A host and a donor of equal token count and number of steps, and what the host says of the donor's j-th value."""

    host: Side
    donor: Side
    cluster: str  # of the host
    pair_id: str  # the host's place among the questions, j, and the donor's place
    j: int
    same_intermediate: bool
    same_answer: bool
    hybrid: float  # the host's own answer where the intermediate is the same


class Question(NamedTuple):
    """A question whose chain is usable, and its place among those that were given."""

    place: int
    cluster: str
    side: Side
    tokens: int
    traced: Traced
    results: tuple[Fraction, ...]


class Pool:
    """The usable questions, found by token count, number of steps, and value of a step; and the range of values."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.alike: dict[tuple, list[Question]] = defaultdict(list)
        for question in questions:
            kind = (question.tokens, len(question.results))
            self.alike[kind].append(question)
            for step, value in enumerate(question.results):
                self.alike[*kind, step, value].append(question)
        answers = {question.results[-1] for question in questions}
        intermediates = {value for question in questions for value in question.results[:-1]}
        self.spans = [(min(values), max(values)) for values in (intermediates, answers) if values]

    def candidates(self, host: Question, j: int, same_intermediate: bool, same_answer: bool) -> Sequence[Question]:
        """Few questions that hold all of a corner's donors."""
        steps = len(host.results)
        if same_intermediate:
            return self.alike[host.tokens, steps, j, host.results[j]]
        if same_answer:
            return self.alike[host.tokens, steps, steps - 1, host.results[-1]]
        return self.alike[host.tokens, steps]

    def hybrid(self, host: Question, j: int, value: Fraction) -> Fraction | None:
        """The host's remaining operations on another j-th value; `None` where they lead to a number out of place.

        Each result stays whole, or stays a fraction, and lies among the intermediates of all questions, or for the
        last one among their answers.
        """
        try:
            changed = carried(host.traced, j, value)
        except ChainError:
            return None
        spans = [*[self.spans[0]] * (len(changed) - 1), self.spans[-1]]
        for before, after, (low, high) in zip(host.results[j:], changed, spans, strict=True):
            if (before.denominator == 1) != (after.denominator == 1) or not low <= after <= high:
                return None
        return changed[-1]


def find_matches(
    sides: Sequence[tuple[str, Side]], tokens: Sequence[int], seed: int, per_corner: int = 1
) -> list[Match]:
    """For each question, intermediate and corner of the 2×2 at most `per_corner` seeded donors; none where none fits.

    `sides` are clusters and questions, `tokens` the questions' token counts. A donor is of another cluster. A question
    that is given twice counts once.
    """
    pool = Pool(list(usable(sides, tokens)))
    return [
        match
        for host in pool.questions
        for j in range(len(host.results) - 1)
        if traceable(host.traced, j)
        for corner in CORNERS
        for match in donors(pool, host, j, corner, seed, per_corner)
    ]


def coverage(matches: Iterable[Match]) -> dict[tuple[int, bool, bool], int]:
    """How many matches there are, by j, same intermediate and same answer."""
    found = Counter((match.j, match.same_intermediate, match.same_answer) for match in matches)
    steps = range(max((j for j, *_ in found), default=-1) + 1)
    return {(j, *corner): found[j, *corner] for j in steps for corner in CORNERS}


def usable(sides: Sequence[tuple[str, Side]], tokens: Sequence[int]) -> Iterator[Question]:
    """The questions whose chains can be traced, end in the answer, and use each result in a later step."""
    seen = set[str]()
    for place, ((cluster, side), count) in enumerate(zip(sides, tokens, strict=True)):
        solution = "".join(f"<<{step}>>" for step in side.chain)
        try:
            traced = trace(GsmProblem(place, side.question, solution, side.answer))
        except Refused:
            continue
        results = tuple(step.result for step in traced.chain)
        used = [{leaf.value for leaf in leaves(step.expression)} for step in traced.chain]
        feeds = all(any(value in later for later in used[i + 1 :]) for i, value in enumerate(results[:-1]))
        if feeds and side.question not in seen:
            seen.add(side.question)
            yield Question(place, cluster, side, count, traced, results)


def traceable(traced: Traced, j: int) -> bool:
    """Whether all later uses of the j-th result, and of what follows from it, can come from nowhere else."""
    outside = {n.value for n in traced.numerals} | {n.value / 100 for n in traced.numerals if n.percent}
    outside |= (traced.implied | HARMLESS) - {1}
    follows = {j}
    for index, step in enumerate(traced.chain):
        for leaf in leaves(step.expression):
            sources = {k for k in range(index) if traced.chain[k].result == leaf.value}
            if sources & follows:
                if len(sources) > 1 or leaf.value in outside:
                    return False
                follows.add(index)
    return True


def carried(traced: Traced, j: int, value: Fraction) -> list[Fraction]:
    """The results from the j-th on after it has become `value`; raises `ChainError` for a division by zero."""
    changed, results = {traced.chain[j].result: value}, [value]

    def carry(leaf: Leaf) -> Leaf:
        return Leaf(str(changed[leaf.value])) if leaf.value in changed else leaf

    for step in traced.chain[j + 1 :]:
        results.append(evaluate(replace_leaves(step.expression, carry)))
        changed[step.result] = results[-1]
    return results


def donors(pool: Pool, host: Question, j: int, corner: Corner, seed: int, per_corner: int) -> Iterator[Match]:
    """At most `per_corner` random donors of one corner; the draw depends on the host's text, not on other hosts."""
    same_intermediate, same_answer = corner
    answer, wanted = host.results[-1], per_corner
    left = list(pool.candidates(host, j, *corner))
    rng = random.Random(f"{seed}:{host.side.question}:{j}:{same_intermediate}:{same_answer}")
    while left and wanted:
        at = rng.randrange(len(left))
        left[at], left[-1] = left[-1], left[at]
        donor = left.pop()
        value, says = donor.results[j], donor.results[-1]
        if donor.cluster == host.cluster or ((value == host.results[j]), (says == answer)) != corner:
            continue
        hybrid = answer if same_intermediate else pool.hybrid(host, j, value)
        if hybrid is None or (not same_intermediate and hybrid in (answer, says)):
            continue
        name = f"{host.place}-{j}-{donor.place}"
        yield Match(host.side, donor.side, host.cluster, name, j, *corner, float(hybrid))
        wanted -= 1
