"""Clean/corrupted pairs: read from the original experiment's flat list, checked all at once, described. No torch.

A file is a JSON list with two records a pair, one of each variant:

    {"pair_id": 0, "variant": "clean", "question": "Ann had 7 pens. …", "answer": 12, "reasoning_steps": 2}

`reasoning_steps`, `chain` (a list like ["7+5=12"]) and `cluster_id` (what the pair was made from) are optional, and
every further field is kept in `Side.extra`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from patching.store import write_json

VARIANTS = ("clean", "corrupted")
REQUIRED = ("pair_id", "variant", "question", "answer")
KNOWN = (*REQUIRED, "reasoning_steps", "chain", "cluster_id")
NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


class PairsError(ValueError):
    """A file of pairs that cannot be used; `problems` are all of its faults, each a sentence."""

    def __init__(self, problems: Sequence[str], path: str | Path | None = None):
        self.problems = tuple(problems)
        super().__init__((f"{path}: " if path is not None else "") + "; ".join(self.problems))


@dataclass(frozen=True)
class Side:
    """One question of a pair and its key; `chain` are its annotated steps, `extra` the record's further fields."""

    question: str
    answer: float
    reasoning_steps: int | None = None
    chain: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Pair:
    """A contrast: two questions that differ in what the answer depends on. Pairs of one cluster are not independent."""

    pair_id: int | str
    cluster_id: str
    clean: Side
    corrupted: Side
    kind: str | None = None  # how the two questions differ, in a word; charts can split by it


def load_pairs(path: str | Path) -> list[Pair]:
    """Read a file of pairs, in the order in which they first appear; raises `PairsError` with all of its problems."""
    path = Path(path)
    try:
        return pairs_from_records(_read(path))
    except PairsError as error:
        raise PairsError(error.problems, path) from None


def pairs_from_records(records: Any) -> list[Pair]:
    """Pairs from a parsed list of records; raises `PairsError` with all problems."""
    if not isinstance(records, list):
        raise PairsError([f"found {_kind(records)}, wanted a list of records, two for each pair"])
    if not records:
        raise PairsError(["the list is empty, wanted two records for each pair"])
    problems: list[str] = []
    by_pair: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            problems.append(f"record {index}: found {_kind(record)}, wanted an object with {', '.join(REQUIRED)}")
            continue
        problems += [f"{_name(index, record)}: {fault}" for fault in record_faults(record)]
        if _is_id(record.get("pair_id")):
            by_pair[str(record["pair_id"])].append((index, record))
    for pair_id, members in by_pair.items():
        problems += [f"pair {pair_id}: {fault}" for fault in pair_faults(members)]
    if problems:
        raise PairsError(problems)
    return [_pair({record["variant"]: record for _, record in members}) for members in by_pair.values()]


def record_faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with one record, field by field."""
    faults = [f"'{name}' is missing" for name in REQUIRED if name not in record]
    steps, chain = record.get("reasoning_steps"), record.get("chain")
    rules = {
        "pair_id": (_is_id(record.get("pair_id")), "a whole number or a name"),
        "variant": (record.get("variant") in VARIANTS, "'clean' or 'corrupted'"),
        "question": (_is_text(record.get("question")), "text"),
        "answer": (_is_number(record.get("answer")), "a number, without quotes"),
        "reasoning_steps": (steps is None or (_is_count(steps) and steps >= 0), "a whole number or nothing"),
        "chain": (
            chain is None or (isinstance(chain, list) and all(map(_is_text, chain))),
            "a list of texts like '7+5=12'",
        ),
        "cluster_id": (record.get("cluster_id") is None or _is_id(record["cluster_id"]), "a name or a whole number"),
    }
    return faults + [
        f"'{name}' is {_short(record[name])}, wanted {wanted}"
        for name, (fine, wanted) in rules.items()
        if name in record and not fine
    ]


def pair_faults(members: list[tuple[int, dict[str, Any]]]) -> list[str]:
    """What is wrong with the records of one pair taken together."""
    places = {variant: [index for index, r in members if r.get("variant") == variant] for variant in VARIANTS}
    faults = []
    for variant, found in places.items():
        if len(found) > 1:
            where = ", ".join(map(str, found[:-1])) + f" and {found[-1]}"
            faults.append(f"its {variant} side is there {len(found)} times (records {where}), wanted once; drop one")
        # A record whose variant is wrong has been named already; it may well be the missing side.
        if not found and all(r.get("variant") in VARIANTS for _, r in members):
            faults.append(f"its {variant} side is missing; add a record with variant '{variant}'")
    clusters = sorted({str(r["cluster_id"]) for _, r in members if r.get("cluster_id") is not None})
    if len(clusters) > 1:
        faults.append(f"its sides have the cluster_ids {' and '.join(map(repr, clusters))}, wanted one")
    return faults


def split_usable(pairs: Iterable[Pair]) -> tuple[list[Pair], list[tuple[Pair, str]]]:
    """The pairs that are a contrast, and the others, each with its reason."""
    usable, excluded = [], []
    for pair in pairs:
        if pair.clean.answer == pair.corrupted.answer:
            answer = format_number(pair.clean.answer)
            reason = f"both answers are {answer}, so their logit difference is always 0; drop the pair"
            excluded.append((pair, f"pair {pair.pair_id}: {reason}"))
        elif pair.clean.question == pair.corrupted.question:
            reason = "both questions are the same, so there is nothing to exchange; drop the pair"
            excluded.append((pair, f"pair {pair.pair_id}: {reason}"))
        else:
            usable.append(pair)
    return usable, excluded


def write_prepared(pairs: Iterable[Pair], path: Path) -> None:
    """Write a run's `prepared_pairs.json`: one object a pair, both sides in it."""
    write_json(
        path, [{"pair_id": p.pair_id, "clean": _as_json(p.clean), "corrupted": _as_json(p.corrupted)} for p in pairs]
    )


def describe(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What a file holds: counts, what is excluded and why, steps, answers, lengths in words, changed numbers."""
    usable, excluded = split_usable(pairs)
    sides = [side for pair in pairs for side in (pair.clean, pair.corrupted)]
    steps = Counter(side.reasoning_steps for side in sides)
    changed = [{"pair_id": pair.pair_id, **change} for pair in pairs if (change := changed_number(pair))]
    return {
        "pairs": len(pairs),
        "usable": len(usable),
        "equal_answers": [p.pair_id for p in pairs if p.clean.answer == p.corrupted.answer],
        "problems": [reason for _, reason in excluded],
        "clusters": len({pair.cluster_id for pair in pairs}),
        "reasoning_steps": {
            "unknown" if count is None else str(count): steps[count]
            for count in sorted(steps, key=lambda count: (count is None, count))
        },
        "answer_difference": spread([abs(p.clean.answer - p.corrupted.answer) for p in pairs]),
        "question_words": spread([len(side.question.split()) for side in sides]),
        "changed_number": changed,
    }


def changed_number(pair: Pair) -> dict[str, Any] | None:
    """The one numeral that differs and its place among the question's numerals (0 = the first), else `None`."""
    clean, corrupted = (NUMERAL.findall(side.question) for side in (pair.clean, pair.corrupted))
    if len(clean) != len(corrupted):
        return None
    edits = [(place, a, b) for place, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    return dict(zip(("place", "clean", "corrupted"), edits[0], strict=True)) if len(edits) == 1 else None


def spread(values: Sequence[float]) -> dict[str, int | float]:
    """Smallest, median and largest value."""
    return {"min": _plain(min(values)), "median": _plain(median(values)), "max": _plain(max(values))}


def format_number(value: float) -> str:
    """A number as an answer is written: 18, not 18.0."""
    return str(_plain(value))


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _read(path: Path) -> Any:
    if path.is_dir():
        raise PairsError(["is a folder, wanted a JSON file of pairs"])
    if not path.is_file():
        raise PairsError(["no such file; give a JSON list of clean and corrupted records"])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PairsError([f"is not UTF-8 text (byte {error.start}), wanted JSON; save it as UTF-8"]) from None
    if not text.strip():
        raise PairsError(["is empty, wanted a JSON list of clean and corrupted records"])
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PairsError([f"is not valid JSON ({error}); mend it there"]) from None


def _pair(sides: dict[str, dict[str, Any]]) -> Pair:
    clean, corrupted = (sides[variant] for variant in VARIANTS)
    named = [side["cluster_id"] for side in (clean, corrupted) if side.get("cluster_id") is not None]
    return Pair(clean["pair_id"], str(named[0] if named else clean["pair_id"]), _side(clean), _side(corrupted))


def _side(record: dict[str, Any]) -> Side:
    return Side(
        question=record["question"],
        answer=float(record["answer"]),
        reasoning_steps=record.get("reasoning_steps"),
        chain=tuple(record.get("chain") or ()),
        extra={name: value for name, value in record.items() if name not in KNOWN},
    )


def _as_json(side: Side) -> dict[str, Any]:
    written = {
        "question": side.question,
        "answer": _plain(side.answer),
        "reasoning_steps": side.reasoning_steps,
    }
    return {**written, "chain": list(side.chain)} if side.chain else written


def _name(index: int, record: dict[str, Any]) -> str:
    return f"record {index} (pair {record['pair_id']})" if _is_id(record.get("pair_id")) else f"record {index}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # to Python, True is 1


def _is_id(value: Any) -> bool:
    return _is_text(value) or _is_count(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
