"""Read the records of a pairs file, each with its position: a JSON list, or JSONL. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_LISTED = 20  # faults in one message; `PairsError.problems` has all of them
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


class FileRecord(NamedTuple):
    """A parsed value and its position: `record` 0, 1, … of a list, or `line` 1, 2, … of a file."""

    unit: str
    number: int
    value: Any

    @property
    def position(self) -> str:
        return f"{self.unit} {self.number}"

    @property
    def name(self) -> str:
        """The position, with the pair's id where it has one."""
        return f"{self.position} (pair {self.value['pair_id']})" if is_id(self.value.get("pair_id")) else self.position


def find_pairs_file(path: str | Path) -> Path:
    """The path itself, or that of the shipped file of this name where there is no such file."""
    return Path(path) if Path(path).exists() else SHIPPED_FILES.get(str(path), Path(path))


def parse_records(path: Path, content: bytes) -> tuple[list[FileRecord], list[str]]:
    """A file's records, and one sentence for each line that is not JSON; `PairsError` where there are no records."""
    text = _decode(content)
    if not text.lstrip().startswith("[") and (path.suffix == ".jsonl" or _is_jsonl(text)):
        return _read_lines(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PairsError([f"is not valid JSON ({error}); mend it there"]) from None
    return number_records(value), []


def number_records(value: Any) -> list[FileRecord]:
    """The records of a parsed list."""
    if not isinstance(value, list):
        raise PairsError([f"found {json_type(value)}, expected a list of records, two for each pair"])
    if not value:
        raise PairsError(["the list is empty, expected two records for each pair"])
    return [FileRecord("record", index, item) for index, item in enumerate(value)]


def are_questions(records: Sequence[FileRecord]) -> bool:
    """Whether these are single questions with their answers, as in GSM8K's own files, and not pairs."""
    pair_fields = {"pair_id", "variant", "clean", "corrupted"}
    return all(
        isinstance(r.value, dict) and {"question", "answer"} <= set(r.value) and not pair_fields & set(r.value)
        for r in records
    )


def is_text(value: Any) -> bool:
    """Text that is not blank and can be written again."""
    return isinstance(value, str) and bool(value.strip()) and is_plain(value)


def is_count(value: Any) -> bool:
    """A whole number."""
    return isinstance(value, int) and not isinstance(value, bool)  # to Python, True is 1


def is_id(value: Any) -> bool:
    return is_text(value) or is_count(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # false for NaN


def is_plain(value: Any) -> bool:
    """Whether it can be written again: Python reads NaN and half of a surrogate pair, but JSON knows neither."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def json_type(value: Any) -> str:
    """The JSON type of a value, in words."""
    types = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return types.get(type(value), "a number")


def read_file(path: Path) -> bytes:
    """The bytes of a pairs file; `PairsError` where there is none."""
    if path.is_dir():
        raise PairsError(["is a folder, expected a JSON file of pairs"])
    if not path.is_file():
        shipped = " or ".join(SHIPPED_FILES)
        raise PairsError(
            [f"no such file; give a JSON list of clean and corrupted records, or a shipped file: {shipped}"]
        )
    return path.read_bytes()


def _decode(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise PairsError([f"is not UTF-8 text (byte {error.start}), expected JSON; save it as UTF-8"]) from None
    if not text.strip():
        raise PairsError(["is empty, expected a JSON list of pairs, or one pair a line"])
    return text


def _is_jsonl(text: str) -> bool:
    """Whether the first line is an object; a file of one line must have the fields of a pair."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (bool(rest) or not {"pair_id", "question", "clean"}.isdisjoint(value))


def _read_lines(text: str) -> tuple[list[FileRecord], list[str]]:
    records, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            records.append(FileRecord("line", number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            what = f"{error.msg}, character {error.pos}" if isinstance(error, json.JSONDecodeError) else error
            faults.append(f"line {number}: is not valid JSON ({what}); mend it there")
    return records, faults
