"""A verdict per pair: usable, usable with some metrics, or not, with reasons; measured where a model is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from codi_tracing.configs.vocabulary import DEFAULT_METRICS
from codi_tracing.patching.pairs.pair import VARIANTS, Pair, Side, format_number, plain_number
from codi_tracing.patching.pairs.tokenized import Tokens, token_faults, tokenise
from codi_tracing.patching.pairs.validity import NUMERAL, Change, changes, is_one_question, text_faults
from codi_tracing.traces.text import last_number

if TYPE_CHECKING:
    from codi_tracing.traces.model.codi_model import CodiModel

USABLE, SOME_METRICS, NOT_USABLE = VERDICTS = ("usable", "usable with some metrics", "not usable")
NEED_RIGHT_ANSWERS = ("answer_is_clean", "answer_is_corrupted")


@dataclass(frozen=True)
class Verdict:
    """Whether a pair is a contrast, for which metrics, and why not; `notes` change nothing.

    The fields from `tokens` on are known only under a checkpoint; `answered` and `correct` are measured.
    """

    pair_id: int | str
    verdict: str
    metrics: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    changed: tuple[Change, ...]
    tokens: dict[str, int] | None = None
    read_at: int | None = None  # the first answer token that differs, counted from 1
    answered: dict[str, float | None] | None = None
    correct: dict[str, bool] | None = None


def judge(pairs: Sequence[Pair], model: CodiModel | None = None, *, progress: bool = False) -> list[Verdict]:
    """A verdict for each pair, in order; under a model both sides of every pair that it can read are answered."""
    if model is None:
        return [_verdict(pair) for pair in pairs]
    from codi_tracing.traces.evaluate import answers

    tokens = [tokenise(model, pair) for pair in pairs]
    asked = [pair for pair, t in zip(pairs, tokens, strict=True) if t.readable]
    questions = [side.question for pair in asked for side in (pair.clean, pair.corrupted)]
    said = iter(map(last_number, answers(model, questions, progress=progress)))
    return [
        _verdict(pair, t, (next(said), next(said)) if t.readable else None)
        for pair, t in zip(pairs, tokens, strict=True)
    ]


def _verdict(pair: Pair, tokens: Tokens | None = None, said: tuple[float, float] | None = None) -> Verdict:
    faults = [*text_faults(pair), *(token_faults(pair, tokens) if tokens else [])]
    changed = changes(pair.clean.question, pair.corrupted.question)
    read_at = None if tokens is None or tokens.differ is None else tokens.differ - tokens.prefix + 1
    notes = pair_notes(pair, changed, read_at)
    answered = dict(zip(VARIANTS, said, strict=True)) if said else {}
    wrong = [
        f"its {name} question is answered {_said(answered[name])}, wanted {format_number(side.answer)}"
        for name, side in _sides(pair)
        if answered and answered[name] != side.answer
    ]
    correct = {name: answered[name] == side.answer for name, side in _sides(pair)} if said else None
    if correct:
        notes += flag_note(pair, correct)
    return Verdict(
        pair_id=pair.pair_id,
        verdict=NOT_USABLE if faults else SOME_METRICS if wrong else USABLE,
        metrics=() if faults else tuple(m for m in DEFAULT_METRICS if not wrong or m not in NEED_RIGHT_ANSWERS),
        reasons=tuple(faults or wrong),
        notes=(*(wrong if faults else ()), *notes),
        changed=changed,
        tokens=dict(zip(VARIANTS, map(len, tokens.questions), strict=True)) if tokens else None,
        read_at=read_at,
        answered={name: None if isnan(number) else plain_number(number) for name, number in answered.items()}
        if said
        else None,
        correct=correct,
    )


def pair_notes(pair: Pair, changed: Sequence[Change], read_at: int | None) -> list[str]:
    """What is worth knowing of a pair and of its sides, and might surprise."""
    notes = []
    if len(changed) > 1:
        notes.append(f"its questions differ in {len(changed)} places")
    if not changed and not is_one_question(pair):
        notes.append("its questions differ in white space alone")
    if read_at is not None and read_at > 1:
        shared = "first token" if read_at == 2 else f"first {read_at - 1} tokens"
        notes.append(f"its answers share their {shared}, so they are read at answer token {read_at}")
    if sides := [name for name, side in _sides(pair) if has_double_spaces(side)]:
        which = "both questions have" if len(sides) == 2 else f"its {sides[0]} question has"
        notes.append(f"{which} double spaces, which are collapsed")
    for name, side in _sides(pair):
        if is_copied(side):
            notes.append(f"its {name} answer {format_number(side.answer)} stands in its question")
        if not float(side.answer).is_integer():
            notes.append(f"its {name} answer {format_number(side.answer)} is no whole number")
    return notes


def flag_note(pair: Pair, correct: dict[str, bool]) -> list[str]:
    """Where the file claims of the unpatched model what this one does not do."""
    flags = {name: side.extra.get("baseline_correct") for name, side in _sides(pair)}
    odd = [name for name, flag in flags.items() if isinstance(flag, bool) and flag != correct[name]]
    return [f"the file's baseline_correct says otherwise of its {' and '.join(odd)} question"] if odd else []


def is_copied(side: Side) -> bool:
    """Whether the answer stands in the question as a number."""
    return side.answer in {float(numeral.replace(",", "")) for numeral in NUMERAL.findall(side.question)}


def has_double_spaces(side: Side) -> bool:
    return "  " in side.question.strip()


def _sides(pair: Pair) -> Iterable[tuple[str, Side]]:
    return zip(VARIANTS, (pair.clean, pair.corrupted), strict=True)


def _said(number: float) -> str:
    return "without a number" if isnan(number) else format_number(number)
