"""Verified pairs from GSM8K: every question through the funnel, seeded choices, records in our own format."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from codi_tracing.patching.pair_making.chains import Step, write_number, write_step
from codi_tracing.patching.pair_making.number_edits import (
    KINDS,
    REASONS,
    Edit,
    Refused,
    Traced,
    changes_of,
    editable,
    new_values,
    roundness,
    trace,
)
from codi_tracing.patching.pair_making.word_edits import word_edits
from codi_tracing.traces.gsm8k import GsmProblem

Fits = Callable[[str, str], bool]
NOTHING, NOT_POSED, NO_FIT = REASONS[4:]


@dataclass
class Funnel:
    """How many questions were read, why how many yielded nothing, and how many pairs of which kind were made."""

    read: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    questions: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> int:
        return self.kinds.total()

    def lines(self) -> list[tuple[str, str]]:
        """The funnel from top to bottom: what is counted, and how often."""
        rows = [("questions read", str(self.read))]
        rows += [(f"- {reason}", str(self.lost[reason])) for reason in REASONS if self.lost[reason]]
        rows += [("questions with a pair", str(self.questions)), ("pairs written", str(self.pairs))]
        return rows + [(f"  {kind}", str(self.kinds[kind])) for kind in KINDS if self.kinds[kind]]


def make_pairs(
    problems: Sequence[GsmProblem],
    *,
    seed: int = 0,
    per_question: int = 1,
    deltas: Sequence[int] = (),
    kinds: Sequence[str] = KINDS,
    fits: Fits | None = None,
) -> tuple[list[dict[str, Any]], Funnel]:
    """Pairs of all problems, at most `per_question` each, and the funnel. A question's choice depends on itself alone.

    `deltas` are the allowed differences of a changed number, any where empty; `fits` says whether two questions have
    equally many tokens. Raises ValueError where nothing can be made.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kind {unknown[0]!r} is unknown; use {', '.join(KINDS)}")
    if 0 in deltas:
        raise ValueError("a delta of 0 changes nothing; give another, or none for any")
    funnel, records = Funnel(read=len(problems)), []
    for problem in problems:
        try:
            traced = trace(problem)
            rng = random.Random(f"{seed}:{problem.line}:{problem.question}")
            edits = choose(traced, per_question, rng, deltas, kinds, fits)
        except Refused as refusal:
            funnel.lost[str(refusal)] += 1
            continue
        for index, edit in enumerate(edits):
            records.append(as_record(problem, traced, edit, index))
            funnel.kinds[edit.kind] += 1
        funnel.questions += 1
    if not records:
        raise ValueError(f"none of {len(problems)} questions yields a pair: {dict(funnel.lost)}")
    return records, funnel


def choose(
    traced: Traced,
    count: int,
    rng: random.Random,
    deltas: Sequence[int] = (),
    kinds: Sequence[str] = KINDS,
    fits: Fits | None = None,
) -> list[Edit]:
    """At most `count` edits: of every place in the question one, then a second of each; near and round values first.

    Raises `Refused` with the reason where there is none.
    """
    unfit = []

    def wanted(edit: Edit) -> bool:
        fitting = fits is None or fits(traced.question, edit.question)
        if not fitting:
            unfit.append(edit)
        return fitting

    places = candidates(traced, rng, deltas, kinds)
    queues = [queue for edits in places if (queue := list(islice(filter(wanted, edits), count)))]
    if not queues:
        raise Refused(NO_FIT if unfit else NOT_POSED if editable(traced) else NOTHING)
    rng.shuffle(queues)
    in_turn = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return in_turn[:count]


def candidates(
    traced: Traced, rng: random.Random, deltas: Sequence[int], kinds: Sequence[str]
) -> Iterator[Iterable[Edit]]:
    """The edits of each place in the question, best values first; they are computed only as they are taken."""
    for numeral, step in editable(traced):
        if KINDS[min(step, 1)] in kinds:
            old = int(numeral.value)
            values = new_values(old, deltas)
            rng.shuffle(values)
            values.sort(key=partial(strangeness, old))
            yield changes_of(traced, numeral, step, values)
    if "operator_word" in kinds:
        for edit in word_edits(traced):
            yield [edit]


def strangeness(old: int, new: int) -> tuple[bool, bool]:
    """How badly a question may bear a number: one halved or grown by more than a half, one that is less round."""
    return not 0.5 <= new / old <= 1.5, roundness(new) < roundness(old)


def as_record(problem: GsmProblem, traced: Traced, edit: Edit, index: int) -> dict[str, Any]:
    """One pair in our own format; spans count characters of the clean question."""
    about = ("place", "start", "end", "clean", "corrupted", "step")
    return {
        "pair_id": f"{problem.line}-{index}",
        "cluster_id": str(problem.line),
        "edit": edit.kind,
        "change": {name: getattr(edit, name) for name in about},
        "clean": side(traced.question, traced.chain),
        "corrupted": side(edit.question, edit.chain),
    }


def side(question: str, chain: Sequence[Step]) -> dict[str, Any]:
    """One side of a pair with its key and annotated chain."""
    answer = chain[-1].result
    number = int(answer) if answer.denominator == 1 else float(write_number(answer))
    return {
        "question": question,
        "answer": number,
        "reasoning_steps": len(chain),
        "chain": [write_step(step) for step in chain],
    }


def equal_tokens(checkpoint: str) -> Fits:
    """Whether two questions have equally many tokens under a checkpoint's tokenizer."""
    from pathlib import Path

    from transformers import AutoTokenizer

    from codi_tracing.traces.model.checkpoint import base_location, read_card
    from codi_tracing.traces.model.loading import refusing

    folder = Path(checkpoint)
    card = read_card(folder)
    base = base_location(folder, card)
    with refusing(f"{folder}: its base", base):
        tokenizer = AutoTokenizer.from_pretrained(base, revision=card.revision or "main", trust_remote_code=False)
    return lambda a, b: len(tokenizer(a)["input_ids"]) == len(tokenizer(b)["input_ids"])
