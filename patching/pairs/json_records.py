"""Read the records of a pairs file, each with its position: a JSON list, JSONL or CSV. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from codi_tracing.configs.files import read_file
from codi_tracing.traces.gsm8k import QUESTION_COLUMNS, DataError, form_of, problem_of
from codi_tracing.traces.records import FileRecord, json_type, parse_records, text_of
from codi_tracing.traces.text import read_number

MAX_LISTED = 20  # faults in one message; `PairsError.problems` has all of them
CSV_COLUMNS = ("pair_id", "variant", "question", "answer")  # of a CSV
PAIR_FIELDS = frozenset(("pair_id", "variant", "clean", "corrupted"))  # no question has them
SHIPPED_FILES = {"arithmetic": Path(__file__).parents[1] / "data" / "arithmetic_pairs.json"}


class PairsError(ValueError):
    """A pairs file that cannot be used; `problems` are all of its faults, each a sentence."""

    def __init__(self, problems: Sequence[str], path: str | Path | None = None):
        self.problems = tuple(map(_without_middle, problems))
        more = len(self.problems) - MAX_LISTED
        listed = [*self.problems[:MAX_LISTED], *([f"and {more} more problems"] if more > 0 else [])]
        super().__init__((f"{path}: " if path is not None else "") + "; ".join(listed))


def _without_middle(sentence: str) -> str:
    """A sentence without the middle of a long quotation: its end says what to do."""
    return sentence if len(sentence) <= 300 else f"{sentence[:120]} … {sentence[-150:]}"


def record_name(record: FileRecord) -> str:
    """A record's position, with the pair's id where it has one."""
    pair_id = record.value.get("pair_id")
    return f"{record.position} (pair {pair_id})" if is_id(pair_id) else record.position


def find_pairs_file(path: str | Path) -> Path:
    """The path itself, or that of the shipped file of this name where there is no such file."""
    return Path(path) if Path(path).exists() else SHIPPED_FILES.get(str(path), Path(path))


def pairs_bytes(path: Path) -> bytes:
    """The bytes of a pairs file; `PairsError` where there is none."""
    if path.is_dir():
        raise PairsError(["is a folder, expected a file of pairs"])
    if not path.is_file():
        shipped = " or ".join(SHIPPED_FILES)
        raise PairsError(
            [f"no such file; give a JSON list of clean and corrupted records, or a shipped file: {shipped}"]
        )
    return read_file(path)


def read_records(path: Path, content: bytes) -> tuple[list[FileRecord], list[str]]:
    """A file's records, and one sentence for each that cannot be read; `PairsError` where there are no records."""
    try:
        text = text_of(content, "pairs, a JSON list or one pair a line")
        records, faults = parse_records(text, (CSV_COLUMNS, *QUESTION_COLUMNS), path.suffix)
    except ValueError as error:
        raise PairsError([f"{error}; mend it there" if "JSON (" in str(error) else str(error)]) from None
    if len(records) == 1 and records[0].unit == "line" and not _is_pair_or_question(records[0].value):
        number_records(records[0].value)  # refuses a single object that is none
    if not records and not faults:
        number_records([])
    return [record._replace(value=_with_counts(record.value)) for record in records], faults


def _is_pair_or_question(value: Any) -> bool:
    return isinstance(value, dict) and (not PAIR_FIELDS.isdisjoint(value) or form_of(value) is not None)


def _with_counts(value: Any) -> Any:
    """A record with its number of steps, text in a CSV, as a number."""
    steps = value.get("reasoning_steps") if isinstance(value, dict) else None
    if isinstance(steps, str) and re.fullmatch("[0-9]{1,9}", steps):
        return {**value, "reasoning_steps": int(steps)}
    return value


def number_records(value: Any) -> list[FileRecord]:
    """The records of a parsed list."""
    if not isinstance(value, list):
        raise PairsError([f"found {json_type(value)}, expected a list of records, two for each pair"])
    if not value:
        raise PairsError(["the list is empty, expected two records for each pair"])
    return [FileRecord("record", index, item) for index, item in enumerate(value)]


def question_advice(records: Sequence[FileRecord], path: Path | None) -> str | None:
    """What to do where these are single questions with their answers, as in GSM8K's own files; None for pairs."""
    values = [record.value for record in records if isinstance(record.value, dict)]
    if not any(map(form_of, values)) or any(not PAIR_FIELDS.isdisjoint(value) for value in values):
        return None
    what = "holds questions, not pairs of questions"
    if not any(map(_has_chain, records)):
        return f"{what}, and no annotated solutions (<<16-3=13>>) of which pairs could be made; write pairs of them"
    file, out = (path, path.with_name(f"{path.stem}_pairs.json")) if path else ("FILE", "PAIRS")
    return f"{what}; make pairs of them with `codi pairs make {quote(str(file))} --out {quote(str(out))}`"


def _has_chain(record: FileRecord) -> bool:
    try:
        return "<<" in problem_of(record).solution
    except DataError:
        return False


def is_text(value: Any) -> bool:
    """Text that is not blank and can be written again."""
    return isinstance(value, str) and bool(value.strip()) and is_plain(value)


def is_count(value: Any) -> bool:
    """A whole number."""
    return isinstance(value, int) and not isinstance(value, bool)  # to Python, True is 1


def is_id(value: Any) -> bool:
    return is_text(value) or is_count(value)


def is_number(value: Any) -> bool:
    """Whether an answer key can be read."""
    try:
        read_number(value)
    except ValueError:
        return False
    return True


def is_plain(value: Any) -> bool:
    """Whether it can be written again: Python reads NaN and half of a surrogate pair, but JSON knows neither."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True
