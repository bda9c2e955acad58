"""Clean/corrupted pairs: read with every field, all faults of a file named at once, written again. No torch.

A file is a JSON list, or JSONL, of pairs, one object each:

    {"pair_id": "12-0", "cluster_id": "12", "edit": "first_operand",
     "clean": {"question": "Ann had 7 pens. …", "answer": 12, "reasoning_steps": 1, "chain": ["7+5=12"]},
     "corrupted": {"question": "Ann had 9 pens. …", "answer": 14, "reasoning_steps": 1, "chain": ["9+5=14"]}}

or of the original experiment's records, two for each pair, one of each variant:

    {"pair_id": 0, "variant": "clean", "question": "Ann had 7 pens. …", "answer": 12, "reasoning_steps": 1}

`cluster_id` (what the pair was made from), `edit` (how the questions differ), `reasoning_steps` and `chain` are
optional. Pairs that share a question text are in one cluster, whatever the file says. Every further field is kept in
`Pair.extra` or `Side.extra`. An answer may also be text, as "$1,200"; a CSV holds the second form.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from codi_tracing.analysis.io.atomic import write_json
from codi_tracing.analysis.io.text import short_json
from codi_tracing.patching.pairs.clusters import joined_clusters
from codi_tracing.patching.pairs.json_records import (
    PairsError,
    find_pairs_file,
    is_count,
    is_id,
    is_number,
    is_plain,
    is_text,
    number_records,
    pairs_bytes,
    question_advice,
    read_records,
    record_name,
)
from codi_tracing.traces.records import FileRecord, json_type
from codi_tracing.traces.text import read_number

VARIANTS = ("clean", "corrupted")
SIDE_FIELDS = ("question", "answer", "reasoning_steps", "chain")
ABOUT_FIELDS = ("pair_id", "cluster_id", "edit")
RECORD_FIELDS = ("variant", *ABOUT_FIELDS, *SIDE_FIELDS)
REQUIRED = ("pair_id", "variant", "question", "answer")
# What a field may hold, as a test and in words; the optional ones may also be null.
RULES = {
    "pair_id": (is_id, "a whole number or a name"),
    "variant": (lambda value: value in VARIANTS, "'clean' or 'corrupted'"),
    "question": (is_text, "text"),
    "answer": (is_number, "a number of at most about 16 digits"),
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
    """Two questions that differ in what the answer depends on. Pairs of one cluster are not independent."""

    pair_id: int | str
    cluster_id: str
    clean: Side
    corrupted: Side
    edit: str | None = None  # how the two questions differ, in a word; charts can split by it
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def sides(self) -> dict[str, Side]:
        """Both sides by variant, clean first."""
        return {"clean": self.clean, "corrupted": self.corrupted}


def load_pairs(path: str | Path) -> list[Pair]:
    """Read a pairs file, or a shipped one by name (`arithmetic`), in file order; `PairsError` has all of its faults."""
    return load_hashed_pairs(path)[0]


def load_hashed_pairs(path: str | Path) -> tuple[list[Pair], str]:
    """`load_pairs`, and the SHA-256 of the bytes that these pairs were read from."""
    path = find_pairs_file(path)
    try:
        content = pairs_bytes(path)
        return _parse(*read_records(path, content), path), hashlib.sha256(content).hexdigest()
    except PairsError as error:
        raise PairsError(error.problems, path) from None


def pairs_from_records(records: Any) -> list[Pair]:
    """Pairs from a parsed list of pairs or records; `PairsError` has all faults."""
    return _parse(number_records(records), [])


def in_clusters(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with clusters joined where they share a question: see `joined_clusters`."""
    clusters = joined_clusters([(pair.cluster_id, [side.question for side in pair.sides.values()]) for pair in pairs])
    return [
        pair if pair.cluster_id == cluster else replace(pair, cluster_id=cluster)
        for pair, cluster in zip(pairs, clusters, strict=True)
    ]


def write_pairs(pairs: Iterable[Pair], path: Path) -> None:
    """Write one object for each pair, with every field; `load_pairs` reads it. A run's is `prepared_pairs.json`."""
    write_json(path, [as_json(pair) for pair in pairs])


def as_json(pair: Pair) -> dict[str, Any]:
    """A pair as its file has it."""
    edit = {"edit": pair.edit} if pair.edit is not None else {}
    sides = {
        variant: {
            "question": side.question,
            "answer": plain_number(side.answer),
            "reasoning_steps": side.reasoning_steps,
            **({"chain": list(side.chain)} if side.chain else {}),
            **side.extra,
        }
        for variant, side in pair.sides.items()
    }
    return {"pair_id": pair.pair_id, "cluster_id": pair.cluster_id, **edit, **pair.extra, **sides}


def format_number(value: float) -> str:
    """A number as an answer is written: 18, not 18.0, and 0.000002, never with an exponent."""
    return format(Decimal(repr(float(value) + 0.0)).normalize(), "f")  # + 0.0: no minus before 0


def plain_number(value: float) -> int | float:
    """The same number, as an int where it is whole."""
    return int(format_number(value)) if float(value).is_integer() else value


def _parse(records: Sequence[FileRecord], faults: Sequence[str], path: Path | None = None) -> list[Pair]:
    """The pairs of a file's records; raises `PairsError` with `faults` and all further ones."""
    if advice := question_advice(records, path):
        raise PairsError([advice])
    problems = list(faults)
    by_pair: dict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        if not isinstance(record.value, dict):
            expected = f"an object with {', '.join(REQUIRED)}, or with pair_id, clean and corrupted"
            problems.append(f"{record.position}: found {json_type(record.value)}, expected {expected}")
            continue
        faults = (
            _pair_faults(record.value) if _is_pair(record) else _field_faults(record.value, REQUIRED, RECORD_FIELDS)
        )
        problems += [f"{record_name(record)}: {fault}" for fault in faults]
        if is_id(record.value.get("pair_id")):
            by_pair[str(record.value["pair_id"])].append(record)
    for pair_id, members in by_pair.items():
        problems += [f"pair {pair_id}: {fault}" for fault in _group_faults(members)]
    if problems:
        raise PairsError(problems)
    return in_clusters([_pair(members) for members in by_pair.values()])


def _pair_faults(record: Mapping[str, Any]) -> list[str]:
    """Faults of a pair in our own form."""
    if "variant" in record:
        return ["it is a pair and one side of a pair at once ('variant' and 'clean' or 'corrupted'), expected one form"]
    faults = _field_faults(record, ("pair_id",), (*ABOUT_FIELDS, *VARIANTS))
    for variant in VARIANTS:
        side = record.get(variant)
        if variant not in record:
            faults.append(f"its {variant} side is missing; add an object '{variant}' with question and answer")
        elif not isinstance(side, dict):
            faults.append(f"its {variant} side is {json_type(side)}, expected an object with question and answer")
        else:
            faults += [f"{variant} side: {fault}" for fault in _field_faults(side, ("question", "answer"), SIDE_FIELDS)]
    return faults


def _field_faults(record: Mapping[str, Any], required: Sequence[str], known: Sequence[str]) -> list[str]:
    """Fields that are missing, have a wrong value, or cannot be written as JSON."""
    faults = [f"'{name}' is missing" for name in required if name not in record]
    faults += [
        f"'{name}' is {short_json(record[name], 40)}, expected {expected}"
        for name, (is_valid, expected) in RULES.items()
        if name in known and name in record and not is_valid(record[name])
    ]
    broken = [name for name, value in record.items() if name not in known and not is_plain([name, value])]
    return faults + [
        f"{short_json(name, 40)} holds NaN or broken text, which JSON cannot; write null" for name in broken
    ]


def _group_faults(members: Sequence[FileRecord]) -> list[str]:
    """Faults of the records of one pair taken together."""
    if any(map(_is_pair, members)):
        return [_repeated("it", members)] if len(members) > 1 else []
    values = [member.value for member in members]
    faults = []
    for variant in VARIANTS:
        sides = [member for member in members if member.value.get("variant") == variant]
        if len(sides) > 1:
            faults.append(_repeated(f"its {variant} side", sides))
        # A record whose variant is wrong has been named already; it may be the missing side.
        if not sides and all(value.get("variant") in VARIANTS for value in values):
            faults.append(f"its {variant} side is missing; add a record with variant '{variant}'")
    for name in ("cluster_id", "edit"):
        given = sorted({str(value[name]) for value in values if value.get(name) is not None})
        if len(given) > 1:
            faults.append(f"its sides have the {name}s {' and '.join(map(repr, given))}, expected one")
    return faults


def _repeated(what: str, members: Sequence[FileRecord]) -> str:
    *first, last = (str(member.number) for member in members)
    positions = f"{members[0].unit}s {', '.join(first)} and {last}"
    return f"{what} occurs {len(members)} times ({positions}), expected once; drop one"


def _pair(members: Sequence[FileRecord]) -> Pair:
    extra: dict[str, Any] = {}
    side_fields: tuple[str, ...] = SIDE_FIELDS
    if _is_pair(members[0]):
        about = members[0].value
        sides = about
        extra = {name: value for name, value in about.items() if name not in (*ABOUT_FIELDS, *VARIANTS)}
    else:
        sides, side_fields = {member.value["variant"]: member.value for member in members}, RECORD_FIELDS
        about = {name: side[name] for side in sides.values() for name in ABOUT_FIELDS if side.get(name) is not None}
    pair_id, cluster = members[0].value["pair_id"], about.get("cluster_id")
    clean, corrupted = (
        Side(
            question=side["question"],
            answer=read_number(side["answer"]),
            reasoning_steps=side.get("reasoning_steps"),
            chain=tuple(side.get("chain") or ()),
            extra={name: value for name, value in side.items() if name not in side_fields},
        )
        for side in map(sides.__getitem__, VARIANTS)
    )
    return Pair(pair_id, str(pair_id if cluster is None else cluster), clean, corrupted, about.get("edit"), extra)


def _is_pair(record: FileRecord) -> bool:
    """Whether a record is a whole pair, our own form, and not one side of it."""
    return not set(VARIANTS).isdisjoint(record.value)
