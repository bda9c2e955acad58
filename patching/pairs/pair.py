"""Clean/corrupted pairs: read with every field, all faults of a file named at once, written again. No torch.

A file is a JSON list, or JSONL, of pairs, an object each:

    {"pair_id": "12-0", "cluster_id": "12", "edit": "first_operand",
     "clean": {"question": "Ann had 7 pens. …", "answer": 12, "reasoning_steps": 1, "chain": ["7+5=12"]},
     "corrupted": {"question": "Ann had 9 pens. …", "answer": 14, "reasoning_steps": 1, "chain": ["9+5=14"]}}

or of the original experiment's records, two a pair, one of each variant:

    {"pair_id": 0, "variant": "clean", "question": "Ann had 7 pens. …", "answer": 12, "reasoning_steps": 1}

`cluster_id` (what the pair was made from), `edit` (how the questions differ), `reasoning_steps` and `chain` are optional, and every
further field is kept in `Pair.extra` or `Side.extra`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codi_tracing.analysis.io.atomic import write_json
from codi_tracing.patching.pairs.json_records import (
    PairsError,
    Record,
    holds_questions,
    is_count,
    is_id,
    is_number,
    is_plain,
    is_text,
    kind_of,
    listed,
    read_records,
    short,
)

VARIANTS = ("clean", "corrupted")
OF_A_SIDE = ("question", "answer", "reasoning_steps", "chain")
OF_A_PAIR = ("pair_id", "cluster_id", "edit")
REQUIRED = ("pair_id", "variant", "question", "answer")
# What a field may hold, and that in words; the optional ones may also be null.
RULES = {
    "pair_id": (is_id, "a whole number or a name"),
    "variant": (lambda value: value in VARIANTS, "'clean' or 'corrupted'"),
    "question": (is_text, "text"),
    "answer": (is_number, "a number, without quotes"),
    "reasoning_steps": (lambda value: value is None or (is_count(value) and value >= 0), "a whole number or nothing"),
    "chain": (
        lambda value: value is None or (isinstance(value, list) and all(map(is_text, value))),
        "a list of texts like '7+5=12'",
    ),
    "cluster_id": (lambda value: value is None or is_id(value), "a name or a whole number"),
    "edit": (lambda value: value is None or is_text(value), "a name or nothing"),
}


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
    edit: str | None = None  # how the two questions differ, in a word; charts can split by it
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


def load_pairs(path: str | Path) -> list[Pair]:
    """Read a file of pairs, in the order in which they first appear; raises `PairsError` with all of its problems."""
    path = Path(path)
    try:
        return _pairs(*read_records(path))
    except PairsError as error:
        raise PairsError(error.problems, path) from None


def pairs_from_records(records: Any) -> list[Pair]:
    """Pairs from a parsed list of pairs or records; raises `PairsError` with all problems."""
    return _pairs(listed(records), [])


def write_prepared(pairs: Iterable[Pair], path: Path) -> None:
    """Write a run's `prepared_pairs.json`: one object a pair, both sides in it, every field; `load_pairs` reads it."""
    write_json(path, [as_json(pair) for pair in pairs])


def as_json(pair: Pair) -> dict[str, Any]:
    """A pair as its file has it."""
    about = {"pair_id": pair.pair_id, "cluster_id": pair.cluster_id}
    edit = {"edit": pair.edit} if pair.edit is not None else {}
    return {**about, **edit, **pair.extra, "clean": _side_json(pair.clean), "corrupted": _side_json(pair.corrupted)}


def format_number(value: float) -> str:
    """A number as an answer is written: 18, not 18.0."""
    return str(plain_number(value))


def plain_number(value: float) -> int | float:
    """The same number, whole ones as whole numbers."""
    return int(value) if float(value).is_integer() else value


def record_faults(record: Mapping[str, Any]) -> list[str]:
    """What is wrong with one of the original experiment's records, field by field."""
    return field_faults(record, REQUIRED, (*REQUIRED, *OF_A_SIDE, *OF_A_PAIR))


def whole_faults(record: Mapping[str, Any]) -> list[str]:
    """What is wrong with one pair of our own form."""
    if "variant" in record:
        return ["it is a pair and one side of a pair at once ('variant' and 'clean' or 'corrupted'), wanted one form"]
    faults = field_faults(record, ("pair_id",), (*OF_A_PAIR, *VARIANTS))
    for variant in VARIANTS:
        side = record.get(variant)
        if variant not in record:
            faults.append(f"its {variant} side is missing; add an object '{variant}' with question and answer")
        elif not isinstance(side, dict):
            faults.append(f"its {variant} side is {kind_of(side)}, wanted an object with question and answer")
        else:
            faults += [f"{variant} side: {fault}" for fault in field_faults(side, ("question", "answer"), OF_A_SIDE)]
    return faults


def field_faults(record: Mapping[str, Any], required: Sequence[str], known: Sequence[str]) -> list[str]:
    """Fields that are missing, wrong, or no JSON."""
    faults = [f"'{name}' is missing" for name in required if name not in record]
    faults += [
        f"'{name}' is {short(record[name])}, wanted {wanted}"
        for name, (fine, wanted) in RULES.items()
        if name in known and name in record and not fine(record[name])
    ]
    odd = [name for name, value in record.items() if name not in known and not is_plain([name, value])]
    return faults + [f"{short(name)} holds NaN or broken text, which JSON cannot; write null" for name in odd]


def pair_faults(members: Sequence[Record]) -> list[str]:
    """What is wrong with the records of one pair taken together."""
    if any(map(_is_whole, members)):
        again = f"it is there {len(members)} times ({_places(members)}), wanted once; drop one"
        return [again] if len(members) > 1 else []
    values = [member.value for member in members]
    faults = []
    for variant in VARIANTS:
        found = [member for member in members if member.value.get("variant") == variant]
        if len(found) > 1:
            faults.append(f"its {variant} side is there {len(found)} times ({_places(found)}), wanted once; drop one")
        # A record whose variant is wrong has been named already; it may well be the missing side.
        if not found and all(value.get("variant") in VARIANTS for value in values):
            faults.append(f"its {variant} side is missing; add a record with variant '{variant}'")
    for name in ("cluster_id", "edit"):
        given = sorted({str(value[name]) for value in values if value.get(name) is not None})
        if len(given) > 1:
            faults.append(f"its sides have the {name}s {' and '.join(map(repr, given))}, wanted one")
    return faults


def _pairs(records: Sequence[Record], faults: Sequence[str]) -> list[Pair]:
    """The pairs of a file's records, where nothing is wrong with any of them; `faults` are those found before."""
    if records and holds_questions(records):
        raise PairsError(["holds questions, not pairs of questions; make pairs of them with `codi pairs make`"])
    problems = list(faults)
    by_pair: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if not isinstance(record.value, dict):
            wanted = f"an object with {', '.join(REQUIRED)}, or with pair_id, clean and corrupted"
            problems.append(f"{record.place}: found {kind_of(record.value)}, wanted {wanted}")
            continue
        found = whole_faults(record.value) if _is_whole(record) else record_faults(record.value)
        problems += [f"{record.name}: {fault}" for fault in found]
        if is_id(record.value.get("pair_id")):
            by_pair[str(record.value["pair_id"])].append(record)
    for pair_id, members in by_pair.items():
        problems += [f"pair {pair_id}: {fault}" for fault in pair_faults(members)]
    if problems:
        raise PairsError(problems)
    return [_pair(members) for members in by_pair.values()]


def _pair(members: Sequence[Record]) -> Pair:
    if _is_whole(members[0]):
        about = members[0].value
        sides = {variant: about[variant] for variant in VARIANTS}
        extra = {name: value for name, value in about.items() if name not in (*OF_A_PAIR, *VARIANTS)}
        known: tuple[str, ...] = OF_A_SIDE
    else:
        sides = {member.value["variant"]: member.value for member in members}
        given = [(name, side[name]) for side in sides.values() for name in OF_A_PAIR if side.get(name) is not None]
        about, extra, known = dict(given), {}, (*REQUIRED, *OF_A_SIDE, *OF_A_PAIR)
    cluster = about.get("cluster_id")
    return Pair(
        pair_id=members[0].value["pair_id"],
        cluster_id=str(about["pair_id"] if cluster is None else cluster),
        clean=_side(sides["clean"], known),
        corrupted=_side(sides["corrupted"], known),
        edit=about.get("edit"),
        extra=extra,
    )


def _side(record: Mapping[str, Any], known: Sequence[str]) -> Side:
    return Side(
        question=record["question"],
        answer=float(record["answer"]),
        reasoning_steps=record.get("reasoning_steps"),
        chain=tuple(record.get("chain") or ()),
        extra={name: value for name, value in record.items() if name not in known},
    )


def _side_json(side: Side) -> dict[str, Any]:
    written = {"question": side.question, "answer": plain_number(side.answer), "reasoning_steps": side.reasoning_steps}
    return {**written, **({"chain": list(side.chain)} if side.chain else {}), **side.extra}


def _is_whole(record: Record) -> bool:
    """Whether a record is a whole pair, our own form, and not one side of it."""
    return not set(VARIANTS).isdisjoint(record.value)


def _places(members: Sequence[Record]) -> str:
    """`records 0, 2 and 5`."""
    numbers = [str(member.number) for member in members]
    return f"{members[0].word}s {', '.join(numbers[:-1])} and {numbers[-1]}"
