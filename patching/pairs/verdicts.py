"""A verdict per pair: usable, usable with some metrics, or not, with reasons; measured where a model is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from codi_tracing.configs.vocabulary import DEFAULT_METRICS
from codi_tracing.patching.pairs.pair import Pair, Side, format_number, plain_number
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pair
from codi_tracing.patching.pairs.validity import (
    Difference,
    is_same_question,
    numbers_in,
    question_differences,
    text_faults,
)
from codi_tracing.traces.text import last_number

if TYPE_CHECKING:
    from codi_tracing.traces.model.codi_model import CodiModel

USABLE, SOME_METRICS, NOT_USABLE = VERDICTS = ("usable", "usable with some metrics", "not usable")
NEED_RIGHT_ANSWERS = ("answer_is_clean", "answer_is_corrupted")


@dataclass(frozen=True)
class PairVerdict:
    """Whether a pair can be patched, with which metrics, and why not; `notes` change nothing.

    The fields from `tokens` on are known only under a checkpoint; `answered` and `correct` are measured.
    """

    pair_id: int | str
    verdict: str
    metrics: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    changed: tuple[Difference, ...]
    tokens: dict[str, int] | None = None
    read_at: int | None = None  # the first answer token that differs, counted from 1
    answered: dict[str, float | None] | None = None
    correct: dict[str, bool] | None = None


def judge(pairs: Sequence[Pair], model: CodiModel | None = None, *, progress: bool = False) -> list[PairVerdict]:
    """A verdict for each pair, in order; a model answers both sides of every pair that it can read."""
    if model is None:
        return [_verdict(pair) for pair in pairs]
    from codi_tracing.traces.evaluate import answers

    tokenized = [tokenize_pair(model, pair) for pair in pairs]
    questions = [side.question for p in tokenized if p.readable for side in p.pair.sides.values()]
    numbers = map(last_number, answers(model, questions, progress=progress))
    return [
        _verdict(p.pair, p, {variant: next(numbers) for variant in p.pair.sides} if p.readable else None)
        for p in tokenized
    ]


def _verdict(
    pair: Pair, tokenized: TokenizedPair | None = None, answered: dict[str, float] | None = None
) -> PairVerdict:
    faults = tuple(text_faults(pair)) if tokenized is None else tokenized.faults
    changed = question_differences(pair.clean.question, pair.corrupted.question)
    read_at = tokenized.shared + 1 if tokenized and all(tokenized.tails) else None
    notes = pair_notes(pair, changed, read_at)
    wrong: list[str] = []
    correct = None
    if answered:
        correct = {variant: answered[variant] == side.answer for variant, side in pair.sides.items()}
        wrong = [
            f"its {variant} question is answered {_number_text(answered[variant])}, "
            f"expected {format_number(side.answer)}"
            for variant, side in pair.sides.items()
            if not correct[variant]
        ]
        notes += flag_notes(pair, correct)
    return PairVerdict(
        pair_id=pair.pair_id,
        verdict=NOT_USABLE if faults else SOME_METRICS if wrong else USABLE,
        metrics=() if faults else tuple(m for m in DEFAULT_METRICS if not wrong or m not in NEED_RIGHT_ANSWERS),
        reasons=faults or tuple(wrong),
        notes=(*(wrong if faults else ()), *notes),
        changed=changed,
        tokens=tokenized and {"clean": tokenized.tokens, "corrupted": tokenized.corrupted_tokens or 0},
        read_at=read_at,
        answered={k: None if isnan(number) else plain_number(number) for k, number in answered.items()}
        if answered
        else None,
        correct=correct,
    )


def pair_notes(pair: Pair, changed: Sequence[Difference], read_at: int | None) -> list[str]:
    """Properties of a pair that may surprise, without effect on its verdict."""
    notes = []
    if len(changed) > 1:
        notes.append(f"its questions differ in {len(changed)} places")
    if not changed and not is_same_question(pair):
        notes.append("its questions differ in white space alone")
    if read_at is not None and read_at > 1:
        shared = "first token" if read_at == 2 else f"first {read_at - 1} tokens"
        notes.append(f"its answers share their {shared}, so they are read at answer token {read_at}")
    if sides := [variant for variant, side in pair.sides.items() if has_double_spaces(side)]:
        which = "both questions have" if len(sides) == 2 else f"its {sides[0]} question has"
        notes.append(f"{which} double spaces, which are collapsed")
    for variant, side in pair.sides.items():
        if is_copied(side):
            notes.append(f"its {variant} answer {format_number(side.answer)} stands in its question")
        if not float(side.answer).is_integer():
            notes.append(f"its {variant} answer {format_number(side.answer)} is no whole number")
    return notes


def flag_notes(pair: Pair, correct: dict[str, bool]) -> list[str]:
    """Where the file's `baseline_correct` contradicts the measurement."""
    flags = {variant: side.extra.get("baseline_correct") for variant, side in pair.sides.items()}
    wrong = [variant for variant, flag in flags.items() if isinstance(flag, bool) and flag != correct[variant]]
    return [f"the file's baseline_correct says otherwise of its {' and '.join(wrong)} question"] if wrong else []


def is_copied(side: Side) -> bool:
    """Whether the answer stands in the question as a number."""
    return side.answer in numbers_in(side.question)


def has_double_spaces(side: Side) -> bool:
    return "  " in side.question.strip()


def _number_text(number: float) -> str:
    return "without a number" if isnan(number) else format_number(number)
