"""What makes a pair a contrast: a verdict per pair, with its reasons; what a file of pairs holds. No torch.

Two questions are a contrast where they and their answers differ; under a checkpoint's tokenizer they also need equally
many known tokens, and answers that differ in their tokens. Correctness is measured, never read from a file's flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from configs.schema import METRICS
from patching.changes import NUMERAL, Change, changes
from patching.pairs import VARIANTS, Pair, Side, format_number, plain_number
from traces.text import clean_text, last_number

if TYPE_CHECKING:
    from traces.model import CodiModel
    from traces.tokens import Reader

USABLE, SOME_METRICS, NOT_USABLE = VERDICTS = ("usable", "usable with some metrics", "not usable")
NEED_RIGHT_ANSWERS = ("answer_is_clean", "answer_is_corrupted")


class Tokens(NamedTuple):
    """A pair under a tokenizer: both questions, both answers (after the answer prefix, with it, and with EOS)."""

    questions: tuple[list[int], list[int]]
    answers: tuple[list[int], list[int]]
    differ: int | None  # the place of the first token at which the answers differ
    prefix: int  # tokens before the answers' own: the prefix and what the tokenizer puts after it
    unknown: bool  # whether a word of them is unknown
    spare: int  # positions that the model has left after question, thought and answer

    @property
    def readable(self) -> bool:
        """Whether the model can be asked both questions."""
        return not self.unknown and self.spare >= 0


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


def split_usable(pairs: Iterable[Pair]) -> tuple[list[Pair], list[tuple[Pair, str]]]:
    """The pairs that are a contrast, and the others, each with its reason."""
    usable, excluded = [], []
    for pair in pairs:
        if faults := text_faults(pair):
            excluded.append((pair, f"pair {pair.pair_id}: {faults[0]}"))
        else:
            usable.append(pair)
    return usable, excluded


def text_faults(pair: Pair) -> list[str]:
    """Why two sides are no contrast in any model."""
    faults = []
    if pair.clean.answer == pair.corrupted.answer:
        answer = format_number(pair.clean.answer)
        faults.append(f"both answers are {answer}, so their logit difference is always 0; drop the pair")
    if is_one_question(pair):
        faults.append("both questions are the same, so there is nothing to exchange; drop the pair")
    return faults


def is_one_question(pair: Pair) -> bool:
    """Whether a model reads the same text on both sides."""
    return clean_text(pair.clean.question) == clean_text(pair.corrupted.question)


def tokenise(model: Reader, pair: Pair) -> Tokens:
    """Both questions and both answers in the model's tokens."""
    from traces.tokens import answer_ids, positions_needed, question_ids

    eos, unknown = model.tokenizer.eos_token_id, model.tokenizer.unk_token_id
    clean, corrupted = (question_ids(model, side.question) for side in (pair.clean, pair.corrupted))
    a, b = ([*answer_ids(model, f" {format_number(s.answer)}"), eos] for s in (pair.clean, pair.corrupted))
    differ = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    # Llama 3 gives the blank before a number a token of its own, GPT-2 does not.
    prefix = max(_common(a, b, answer_ids(model, text)) for text in ("", " "))
    known = unknown is None or unknown not in (*clean, *corrupted, *a, *b)
    spare = model.n_positions - positions_needed(model, max(map(len, (clean, corrupted))), max(len(a), len(b)))
    return Tokens((clean, corrupted), (a, b), differ, prefix, not known, spare)


def token_faults(pair: Pair, tokens: Tokens) -> list[str]:
    """Why two sides that are a contrast as texts are none under a tokenizer."""
    faults = []
    clean, corrupted = tokens.questions
    if tokens.unknown:
        faults.append("it has words that this checkpoint's tokenizer does not know")
    if tokens.spare < 0:
        faults.append(f"its question, thought and answer are {-tokens.spare} positions longer than the model can read")
    if len(clean) != len(corrupted):
        faults.append(f"its questions have {len(clean)} and {len(corrupted)} tokens, wanted equal counts")
    if tokens.differ is None and not tokens.unknown and pair.clean.answer != pair.corrupted.answer:
        answers = f"{format_number(pair.clean.answer)} and {format_number(pair.corrupted.answer)}"
        faults.append(f"its answers {answers} are the same to this checkpoint's tokenizer")
    if clean == corrupted and not tokens.unknown and not is_one_question(pair):
        faults.append("its questions are the same to this checkpoint's tokenizer")
    return faults


def judge(pairs: Sequence[Pair], model: CodiModel | None = None, *, progress: bool = False) -> list[Verdict]:
    """A verdict for each pair, in order; under a model both sides of every pair that it can read are answered."""
    if model is None:
        return [_verdict(pair) for pair in pairs]
    from traces.evaluate import answers

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
        metrics=() if faults else tuple(m for m in METRICS if not wrong or m not in NEED_RIGHT_ANSWERS),
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


def _common(*sequences: Sequence[int]) -> int:
    """How many tokens all sequences begin with."""
    return next(
        (i for i, ids in enumerate(zip(*sequences, strict=False)) if len(set(ids)) > 1), min(map(len, sequences))
    )


def _said(number: float) -> str:
    return "without a number" if isnan(number) else format_number(number)
