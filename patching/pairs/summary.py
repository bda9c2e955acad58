"""What a file of pairs holds, as numbers, ids and a verdict per pair. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from codi_tracing.patching.pairs.pair import Pair, plain_number
from codi_tracing.patching.pairs.validity import changes
from codi_tracing.patching.pairs.verdicts import (
    NEED_RIGHT_ANSWERS,
    NOT_USABLE,
    SOME_METRICS,
    VERDICTS,
    Verdict,
    has_double_spaces,
    is_copied,
    judge,
)

UNNAMED = "unnamed"
VERDICT_WORDS = {SOME_METRICS: f"{SOME_METRICS} (all but {' and '.join(NEED_RIGHT_ANSWERS)})"}


def describe(pairs: Sequence[Pair], verdicts: Sequence[Verdict] | None = None) -> dict[str, Any]:
    """Counts, what is not usable and why, steps, answers, lengths in words, changed numbers; `each` pair's verdict."""
    verdicts = judge(pairs) if verdicts is None else verdicts
    sides = [side for pair in pairs for side in (pair.clean, pair.corrupted)]
    steps = Counter(side.reasoning_steps for side in sides)
    counts = Counter(verdict.verdict for verdict in verdicts)
    return {
        "pairs": len(pairs),
        "usable": len(pairs) - counts[NOT_USABLE],
        "verdicts": {name: counts[name] for name in VERDICTS},
        "equal_answers": [p.pair_id for p in pairs if p.clean.answer == p.corrupted.answer],
        "problems": [f"pair {v.pair_id}: {'; '.join(v.reasons)}" for v in verdicts if v.verdict == NOT_USABLE],
        "clusters": len({pair.cluster_id for pair in pairs}),
        "kinds": dict(Counter(pair.edit or UNNAMED for pair in pairs)),
        "reasoning_steps": {
            "unknown" if count is None else str(count): steps[count]
            for count in sorted(steps, key=lambda count: (count is None, count))
        },
        "answer_difference": spread([abs(p.clean.answer - p.corrupted.answer) for p in pairs]),
        "question_words": spread([len(side.question.split()) for side in sides]),
        "changed_number": [{"pair_id": p.pair_id, **change} for p in pairs if (change := changed_number(p))],
        "copied_answers": [p.pair_id for p in pairs if is_copied(p.clean) or is_copied(p.corrupted)],
        "double_spaces": [p.pair_id for p in pairs if has_double_spaces(p.clean) or has_double_spaces(p.corrupted)],
        **(_under_the_model(verdicts) if any(v.tokens for v in verdicts) else {"same_first_token": None}),
        "each": [asdict(verdict) for verdict in verdicts],
    }


def _under_the_model(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What only a checkpoint can tell: tokens, and what it answers."""
    tokens = [(v.pair_id, v.tokens) for v in verdicts if v.tokens]
    measured = [(v.pair_id, v.correct) for v in verdicts if v.correct]
    return {
        "same_first_token": [v.pair_id for v in verdicts if v.read_at is not None and v.read_at > 1],
        "not_asked": [v.pair_id for v in verdicts if v.correct is None],  # words unknown, or too long
        "unequal_tokens": [name for name, counts in tokens if counts["clean"] != counts["corrupted"]],
        "measured": len(measured),
        "both_correct": sum(all(correct.values()) for _, correct in measured),
        "wrong_clean": [name for name, correct in measured if not correct["clean"]],
        "wrong_corrupted": [name for name, correct in measured if not correct["corrupted"]],
    }


def changed_number(pair: Pair) -> dict[str, Any] | None:
    """The one numeral that differs and its place among the question's numerals (0 = the first), else `None`."""
    found = changes(pair.clean.question, pair.corrupted.question)
    if len(found) != 1 or found[0].place is None:
        return None
    return {"place": found[0].place, "clean": found[0].clean, "corrupted": found[0].corrupted}


def spread(values: Sequence[float]) -> dict[str, int | float]:
    """Smallest, median and largest value."""
    low, middle, high = min(values), median(values), max(values)
    return {"min": plain_number(low), "median": plain_number(middle), "max": plain_number(high)}


def summary_rows(found: dict[str, Any]) -> list[list[str]]:
    """The description of a file of pairs, as rows of name and value."""
    places = [change["place"] for change in found["changed_number"]]
    sizes = [v["changed"][0]["difference"] for v in found["each"] if len(v["changed"]) == 1]
    numbers = [size for size in sizes if size is not None]
    between = "{min} to {max}, median {median}"
    rows = [
        ["pairs", f"{found['pairs']} in {found['clusters']} clusters, {found['usable']} usable"],
        ["verdicts", _counted({VERDICT_WORDS.get(name, name): count for name, count in found["verdicts"].items()})],
        ["kinds", _counted(found["kinds"]) if set(found["kinds"]) != {UNNAMED} else ""],
        ["equal answers", _named(found["equal_answers"])],
        ["reasoning steps", ", ".join(f"{steps} in {n} questions" for steps, n in found["reasoning_steps"].items())],
        ["answer difference", between.format(**found["answer_difference"])],
        ["words in a question", between.format(**found["question_words"])],
        ["one changed number", f"{len(places)} pairs, in {places.count(0)} the question's first numeral"],
        ["changed by", between.format(**spread(numbers)) if numbers else ""],
        ["answer in its question", _named(found["copied_answers"])],
        ["double spaces", _named(found["double_spaces"])],
        *(_model_rows(found) if "measured" in found else [["answered right", "not measured; name a --checkpoint"]]),
    ]
    return [row for row in rows if row[1]]


def _model_rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        ["not asked", _named(found["not_asked"])],
        ["unequal token counts", _named(found["unequal_tokens"])],
        ["same first answer token", _named(found["same_first_token"])],
        ["answered right", f"both sides in {found['both_correct']} of {found['measured']} pairs asked"],
        ["clean side wrong", _named(found["wrong_clean"])],
        ["corrupted side wrong", _named(found["wrong_corrupted"])],
    ]


def verdict_rows(each: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each pair about which there is something to say, the worst first, under their heads."""
    said = [verdict for verdict in each if verdict["reasons"] or verdict["notes"]]
    said.sort(key=lambda verdict: (len(verdict["metrics"]), not verdict["reasons"]))
    rows = []
    for verdict in said:
        why, notes = "; ".join(verdict["reasons"]), "; ".join(verdict["notes"])
        text = f"{why} (note: {notes})" if why and notes else why or notes
        rows.append([str(verdict["pair_id"]), verdict["verdict"], text])
    return [["pair", "verdict", "why, or what to know"], *rows] if rows else []


def _counted(counts: dict[str, int]) -> str:
    """`57 usable, 9 not usable`: what occurs."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _named(ids: Sequence[int | str], most: int = 10) -> str:
    """How many pairs, and which."""
    which = ", ".join(map(str, ids[:most])) + (", …" if len(ids) > most else "")
    return f"{len(ids)} pair{'s' * (len(ids) > 1)}: {which}" if ids else "0 pairs"
