"""Verified pairs from GSM8K: every question through the funnel, seeded choices, records in our own format."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patching.chains import Step, write_number, write_step
from patching.operators import word_edits
from patching.perturb import KINDS, REASONS, Edit, Refused, Traced, editable, number_edits, trace
from traces.gsm8k import Problem

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
    problems: Sequence[Problem],
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
            edits = possible_edits(traced, deltas, kinds, fits)
        except Refused as refusal:
            funnel.lost[str(refusal)] += 1
            continue
        rng = random.Random(f"{seed}:{problem.line}:{problem.question}")
        for index, edit in enumerate(choose(edits, per_question, rng)):
            records.append(as_record(problem, traced, edit, index))
            funnel.kinds[edit.kind] += 1
        funnel.questions += 1
    if not records:
        raise ValueError(f"none of {len(problems)} questions yields a pair: {dict(funnel.lost)}")
    return records, funnel


def possible_edits(traced: Traced, deltas: Sequence[int], kinds: Sequence[str], fits: Fits | None) -> list[Edit]:
    """Every edit of the wanted kinds; raises `Refused` with the reason where there is none."""
    edits = [edit for edit in (*number_edits(traced, deltas), *word_edits(traced)) if edit.kind in kinds]
    if not edits:
        raise Refused(NOT_POSED if editable(traced) else NOTHING)
    if fits is not None:
        edits = [edit for edit in edits if fits(traced.question, edit.question)]
        if not edits:
            raise Refused(NO_FIT)
    return edits


def choose(edits: Sequence[Edit], count: int, rng: random.Random) -> list[Edit]:
    """At most `count` edits: of every place in the question one, then a second of each; near values first."""
    places = defaultdict(list)
    for edit in edits:
        places[edit.kind, edit.start].append(edit)
    queues = list(places.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
        queue.sort(key=far)
    turns = max(map(len, queues))
    in_turn = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return in_turn[:count]


def far(edit: Edit) -> bool:
    """Whether a number is more than halved or grows by more than a half: a question bears a near value more easily."""
    if edit.kind == "operator_word":
        return False
    old, new = (float(text.replace(",", "")) for text in (edit.clean, edit.corrupted))
    return not 0.5 <= new / old <= 1.5


def as_record(problem: Problem, traced: Traced, edit: Edit, index: int) -> dict[str, Any]:
    """One pair in our own format; spans count characters of the clean question."""
    about = ("place", "start", "end", "clean", "corrupted", "step")
    return {
        "pair_id": f"{problem.line}-{index}",
        "cluster_id": str(problem.line),
        "kind": edit.kind,
        "edit": {name: getattr(edit, name) for name in about},
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

    from traces.checkpoint import base_location, read_card
    from traces.model import refusing

    folder = Path(checkpoint)
    card = read_card(folder)
    base = base_location(folder, card)
    with refusing(f"{folder}: its base", base):
        tokenizer = AutoTokenizer.from_pretrained(base, revision=card.revision or "main")
    return lambda a, b: len(tokenizer(a)["input_ids"]) == len(tokenizer(b)["input_ids"])
