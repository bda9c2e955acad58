"""Verified pairs from GSM8K: edit every question, count the losses, write records in our own format."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from codi_tracing.patching.pair_making.gsm8k_chains import Step, write_number, write_step
from codi_tracing.patching.pair_making.number_edits import (
    EDITS,
    REASONS,
    EditError,
    QuestionEdit,
    TracedQuestion,
    editable_numerals,
    new_values,
    number_edits,
    roundness,
    trace_operands,
)
from codi_tracing.patching.pair_making.word_edits import word_edits
from codi_tracing.traces.gsm8k import GsmProblem

SameLength = Callable[[str, str], bool]  # whether two questions have equally many tokens
NOTHING_EDITABLE, NOT_WELL_POSED, OTHER_LENGTH = REASONS[4:]


@dataclass
class Funnel:
    """Questions read, questions lost for each reason, and pairs made by each edit."""

    read: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    questions: int = 0
    edits: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> int:
        return self.edits.total()

    def lines(self) -> list[tuple[str, str]]:
        """The funnel from top to bottom: names and counts."""
        rows = [("questions read", str(self.read))]
        rows += [(f"- {reason}", str(self.lost[reason])) for reason in REASONS if self.lost[reason]]
        rows += [("questions with a pair", str(self.questions)), ("pairs written", str(self.pairs))]
        return rows + [(f"  {edit}", str(self.edits[edit])) for edit in EDITS if self.edits[edit]]


def pairs_from_gsm8k(
    problems: Sequence[GsmProblem],
    *,
    seed: int = 0,
    per_question: int = 1,
    deltas: Sequence[int] = (),
    edits: Sequence[str] = EDITS,
    same_length: SameLength | None = None,
) -> tuple[list[dict[str, Any]], Funnel]:
    """Pairs of all problems, at most `per_question` each, and the funnel. A question's choice depends on itself alone.

    `deltas` are the allowed differences of a changed number (empty: any); `same_length` excludes edits that change the
    token count. Raises ValueError where no pair can be made.
    """
    if unknown := [edit for edit in edits if edit not in EDITS]:
        raise ValueError(f"edit {unknown[0]!r} is unknown; use {', '.join(EDITS)}")
    if 0 in deltas:
        raise ValueError("a delta of 0 changes nothing; give another, or none for any")
    funnel, records = Funnel(read=len(problems)), []
    for problem in problems:
        try:
            traced = trace_operands(problem)
            rng = random.Random(f"{seed}:{problem.line}:{problem.question}")
            chosen = choose_edits(traced, per_question, rng, deltas, edits, same_length)
        except EditError as error:
            funnel.lost[str(error)] += 1
            continue
        records += [pair_record(problem, traced, edit, index) for index, edit in enumerate(chosen)]
        funnel.edits.update(edit.name for edit in chosen)
        funnel.questions += 1
    if not records:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in funnel.lost.most_common())
        expected = "; pairs are made of solutions with calculations, <<16-3=13>>" if REASONS[0] in funnel.lost else ""
        raise ValueError(f"none of {len(problems)} questions yields a pair: {reasons}{expected}")
    return records, funnel


def choose_edits(
    traced: TracedQuestion,
    count: int,
    rng: random.Random,
    deltas: Sequence[int] = (),
    edits: Sequence[str] = EDITS,
    same_length: SameLength | None = None,
) -> list[QuestionEdit]:
    """At most `count` edits: one of each position in the question, then a second of each; near and round values first.

    Raises `EditError` with the reason where there is none.
    """
    rejected = []

    def fits(edit: QuestionEdit) -> bool:
        if same_length is None or same_length(traced.question, edit.question):
            return True
        rejected.append(edit)
        return False

    positions = edits_by_position(traced, rng, deltas, edits)
    queues = [queue for possible in positions if (queue := list(islice(filter(fits, possible), count)))]
    if not queues:
        raise EditError(OTHER_LENGTH if rejected else NOT_WELL_POSED if editable_numerals(traced) else NOTHING_EDITABLE)
    rng.shuffle(queues)
    in_turn = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return in_turn[:count]


def edits_by_position(
    traced: TracedQuestion, rng: random.Random, deltas: Sequence[int], edits: Sequence[str]
) -> Iterator[Iterable[QuestionEdit]]:
    """The edits of each position in the question, best values first, computed lazily."""
    for numeral, step in editable_numerals(traced):
        if EDITS[min(step, 1)] in edits:
            old = int(numeral.value)
            values = new_values(old, deltas)
            rng.shuffle(values)
            values.sort(key=partial(implausibility, old))
            yield number_edits(traced, numeral, step, values)
    if "operator_word" in edits:
        for edit in word_edits(traced):
            yield [edit]


def implausibility(old: int, new: int) -> tuple[bool, bool]:
    """Sort key of a new number, plausible ones first: changed by more than half; less round than the old one."""
    return not 0.5 <= new / old <= 1.5, roundness(new) < roundness(old)


def pair_record(problem: GsmProblem, traced: TracedQuestion, edit: QuestionEdit, index: int) -> dict[str, Any]:
    """One pair in our own format; spans count characters of the clean question."""
    about = ("numeral", "start", "end", "clean", "corrupted", "step")
    return {
        "pair_id": f"{problem.line}-{index}",
        "cluster_id": str(problem.line),
        "edit": edit.name,
        "change": {name: getattr(edit, name) for name in about},
        "clean": side_record(traced.question, traced.chain),
        "corrupted": side_record(edit.question, edit.chain),
    }


def side_record(question: str, chain: Sequence[Step]) -> dict[str, Any]:
    """One side of a pair with its key and annotated chain."""
    answer = chain[-1].result
    number = int(answer) if answer.denominator == 1 else float(write_number(answer))
    return {
        "question": question,
        "answer": number,
        "reasoning_steps": len(chain),
        "chain": [write_step(step) for step in chain],
    }


def equal_tokens(checkpoint: str) -> SameLength:
    """A function that says whether two questions have equally many tokens under a checkpoint's tokenizer."""
    from codi_tracing.traces.model.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(checkpoint)
    return lambda a, b: len(tokenizer(a)["input_ids"]) == len(tokenizer(b)["input_ids"])
