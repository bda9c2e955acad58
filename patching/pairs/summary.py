"""Summarise a pairs file: numbers, ids and a verdict per pair. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from codi_tracing.patching.pairs.clusters import plain_text
from codi_tracing.patching.pairs.pair import Pair, plain_number
from codi_tracing.patching.pairs.verdicts import (
    NEED_RIGHT_ANSWERS,
    NOT_USABLE,
    SOME_METRICS,
    VERDICTS,
    PairVerdict,
    has_double_spaces,
    is_copied,
    judge,
)

UNNAMED = "unnamed"
VERDICT_LABELS = {SOME_METRICS: f"{SOME_METRICS} (all but {' and '.join(NEED_RIGHT_ANSWERS)})"}


def summarise_pairs(pairs: Sequence[Pair], verdicts: Sequence[PairVerdict] | None = None) -> dict[str, Any]:
    """Counts, unusable pairs with reasons, steps, answers, lengths in words, changed numbers; `each` pair's verdict."""
    verdicts = judge(pairs) if verdicts is None else verdicts
    sides = [side for pair in pairs for side in pair.sides.values()]
    steps = Counter(side.reasoning_steps for side in sides)
    counts = Counter(verdict.verdict for verdict in verdicts)
    return {
        "pairs": len(pairs),
        "usable": len(pairs) - counts[NOT_USABLE],
        "verdicts": {name: counts[name] for name in VERDICTS},
        "equal_answers": [p.pair_id for p in pairs if p.clean.answer == p.corrupted.answer],
        "problems": [f"pair {v.pair_id}: {'; '.join(v.reasons)}" for v in verdicts if v.verdict == NOT_USABLE],
        "clusters": len({pair.cluster_id for pair in pairs}),
        "shared_questions": shared_questions(pairs),
        "edits": dict(Counter(pair.edit or UNNAMED for pair in pairs)),
        "reasoning_steps": {
            "unknown" if count is None else str(count): steps[count]
            for count in sorted(steps, key=lambda count: (count is None, count))
        },
        "answer_difference": spread([abs(p.clean.answer - p.corrupted.answer) for p in pairs]),
        "question_words": spread([len(side.question.split()) for side in sides]),
        "changed_number": [{"pair_id": v.pair_id, **change} for v in verdicts if (change := changed_number(v))],
        "copied_answers": [p.pair_id for p in pairs if any(map(is_copied, p.sides.values()))],
        "double_spaces": [p.pair_id for p in pairs if any(map(has_double_spaces, p.sides.values()))],
        **(_under_the_model(verdicts) if any(v.tokens for v in verdicts) else {"same_first_token": None}),
        "each": [asdict(verdict) for verdict in verdicts],
    }


def _under_the_model(verdicts: Sequence[PairVerdict]) -> dict[str, Any]:
    """What needs a checkpoint: tokens, and its answers."""
    tokens = [(v.pair_id, v.tokens) for v in verdicts if v.tokens]
    measured = [(v.pair_id, v.correct) for v in verdicts if v.correct]
    return {
        "same_first_token": [v.pair_id for v in verdicts if v.read_at is not None and v.read_at > 1],
        "not_asked": [v.pair_id for v in verdicts if v.correct is None],  # unknown words, or too long
        "unequal_tokens": [name for name, counts in tokens if counts["clean"] != counts["corrupted"]],
        "measured": len(measured),
        "both_correct": sum(all(correct.values()) for _, correct in measured),
        "wrong_clean": [name for name, correct in measured if not correct["clean"]],
        "wrong_corrupted": [name for name, correct in measured if not correct["corrupted"]],
    }


def shared_questions(pairs: Sequence[Pair]) -> list[int | str]:
    """The pairs that share a question text with another pair, and are in one cluster with it."""
    texts = Counter(text for pair in pairs for text in {plain_text(side.question) for side in pair.sides.values()})
    return [p.pair_id for p in pairs if any(texts[plain_text(side.question)] > 1 for side in p.sides.values())]


def changed_number(verdict: PairVerdict) -> dict[str, Any] | None:
    """The one numeral that differs and its index among the question's numerals, else `None`."""
    if len(verdict.changed) != 1 or verdict.changed[0].numeral is None:
        return None
    (change,) = verdict.changed
    return {"numeral": change.numeral, "clean": change.clean, "corrupted": change.corrupted}


def spread(values: Sequence[float]) -> dict[str, int | float]:
    """Smallest, median and largest value."""
    return {name: plain_number(f(values)) for name, f in (("min", min), ("median", median), ("max", max))}


def summary_rows(summary: dict[str, Any]) -> list[list[str]]:
    """The summary of a pairs file, as rows of name and value."""
    numerals = [change["numeral"] for change in summary["changed_number"]]
    sizes = [v["changed"][0]["difference"] for v in summary["each"] if len(v["changed"]) == 1]
    numbers = [size for size in sizes if size is not None]
    between = "{min} to {max}, median {median}"
    verdicts = {VERDICT_LABELS.get(name, name): count for name, count in summary["verdicts"].items()}
    rows = [
        ["pairs", f"{summary['pairs']} in {summary['clusters']} clusters, {summary['usable']} usable"],
        [
            "shared questions",
            _ids_text(shared) + ", in one cluster with each other" if (shared := summary["shared_questions"]) else "",
        ],
        ["verdicts", _counts_text(verdicts)],
        ["edits", _counts_text(summary["edits"]) if set(summary["edits"]) != {UNNAMED} else ""],
        ["equal answers", _ids_text(summary["equal_answers"])],
        ["reasoning steps", ", ".join(f"{steps} in {n} questions" for steps, n in summary["reasoning_steps"].items())],
        ["answer difference", between.format(**summary["answer_difference"])],
        ["words in a question", between.format(**summary["question_words"])],
        ["one changed number", f"{len(numerals)} pairs, in {numerals.count(0)} the question's first numeral"],
        ["changed by", between.format(**spread(numbers)) if numbers else ""],
        ["answer in its question", _ids_text(summary["copied_answers"])],
        ["double spaces", _ids_text(summary["double_spaces"])],
    ]
    if "measured" in summary:
        rows += [
            ["not asked", _ids_text(summary["not_asked"])],
            ["unequal token counts", _ids_text(summary["unequal_tokens"])],
            ["same first answer token", _ids_text(summary["same_first_token"])],
            ["answered right", f"both sides in {summary['both_correct']} of {summary['measured']} pairs asked"],
            ["clean side wrong", _ids_text(summary["wrong_clean"])],
            ["corrupted side wrong", _ids_text(summary["wrong_corrupted"])],
        ]
    else:
        rows.append(["answered right", "not measured; name a --checkpoint"])
    return [row for row in rows if row[1]]


def verdict_rows(each: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each pair with reasons or notes, the worst first, under a head; none where there is nothing to say."""
    noted = [verdict for verdict in each if verdict["reasons"] or verdict["notes"]]
    noted.sort(key=lambda verdict: (len(verdict["metrics"]), not verdict["reasons"]))
    rows = []
    for verdict in noted:
        reasons, notes = "; ".join(verdict["reasons"]), "; ".join(verdict["notes"])
        text = f"{reasons} (note: {notes})" if reasons and notes else reasons or notes
        rows.append([str(verdict["pair_id"]), verdict["verdict"], text])
    return [["pair", "verdict", "reasons and notes"], *rows] if rows else []


def _counts_text(counts: dict[str, int]) -> str:
    """`57 usable, 9 not usable`, without zero counts."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _ids_text(ids: Sequence[int | str], most: int = 10) -> str:
    """How many pairs, and which."""
    which = ", ".join(map(str, ids[:most])) + (", …" if len(ids) > most else "")
    return f"{len(ids)} pair{'s' * (len(ids) > 1)}: {which}" if ids else "0 pairs"
