"""A file of pairs to its records, each with the place where it stands: a JSON list, or JSONL. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MOST_SAID = 20  # faults in one message; `PairsError.problems` has them all
WANTED = "a JSON list of pairs, or one pair a line"


class PairsError(ValueError):
    """A file of pairs that cannot be used; `problems` are all of its faults, each a sentence."""

    def __init__(self, problems: Sequence[str], path: str | Path | None = None):
        self.problems = tuple(map(_without_middle, problems))
        said = [*self.problems[:MOST_SAID]]
        if len(self.problems) > MOST_SAID:
            said.append(f"and {len(self.problems) - MOST_SAID} more problems")
        super().__init__((f"{path}: " if path is not None else "") + "; ".join(said))


def _without_middle(sentence: str) -> str:
    """A sentence without the middle of what it quotes, where that is endless: what to do stands last."""
    return sentence if len(sentence) <= 300 else f"{sentence[:120]} … {sentence[-150:]}"


class Record(NamedTuple):
    """A parsed value and where it stands: `record` 0, 1, … of a list, or `line` 1, 2, … of a file."""

    word: str
    number: int
    value: Any

    @property
    def place(self) -> str:
        return f"{self.word} {self.number}"

    @property
    def name(self) -> str:
        """The place, with the pair's id where it has one."""
        return f"{self.place} (pair {self.value['pair_id']})" if is_id(self.value.get("pair_id")) else self.place


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """A file's records, and its lines that are no JSON, a sentence each; `PairsError` where it holds no records."""
    text = _text(path)
    if not text.lstrip().startswith("[") and (path.suffix == ".jsonl" or _is_jsonl(text)):
        return _lines(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PairsError([f"is not valid JSON ({error}); mend it there"]) from None
    return listed(value), []


def listed(value: Any) -> list[Record]:
    """The records of a parsed list."""
    if not isinstance(value, list):
        raise PairsError([f"found {kind_of(value)}, wanted a list of records, two for each pair"])
    if not value:
        raise PairsError(["the list is empty, wanted two records for each pair"])
    return [Record("record", index, item) for index, item in enumerate(value)]


def holds_questions(records: Sequence[Record]) -> bool:
    """Whether these are lone questions with their answers, as GSM8K's own files are, and no pairs."""
    of_a_pair = {"pair_id", "variant", "clean", "corrupted"}
    return all(
        isinstance(r.value, dict) and {"question", "answer"} <= set(r.value) and not of_a_pair & set(r.value)
        for r in records
    )


def is_text(value: Any) -> bool:
    """Text that says something."""
    return isinstance(value, str) and bool(value.strip()) and is_plain(value)


def is_count(value: Any) -> bool:
    """A whole number."""
    return isinstance(value, int) and not isinstance(value, bool)  # to Python, True is 1


def is_id(value: Any) -> bool:
    return is_text(value) or is_count(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not


def is_plain(value: Any) -> bool:
    """Whether it can be written again: Python reads NaN and half of a surrogate pair, but JSON knows neither."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return (text if len(text) <= 40 else text[:37] + "…").encode(errors="replace").decode()


def _text(path: Path) -> str:
    if path.is_dir():
        raise PairsError(["is a folder, wanted a JSON file of pairs"])
    if not path.is_file():
        raise PairsError(["no such file; give a JSON list of clean and corrupted records"])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PairsError([f"is not UTF-8 text (byte {error.start}), wanted JSON; save it as UTF-8"]) from None
    if not text.strip():
        raise PairsError([f"is empty, wanted {WANTED}"])
    return text


def _is_jsonl(text: str) -> bool:
    """Whether the first line is an object, and not the whole file unless it looks like a pair's."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (bool(rest) or not {"pair_id", "question", "clean"}.isdisjoint(value))


def _lines(text: str) -> tuple[list[Record], list[str]]:
    records, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            records.append(Record("line", number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            what = f"{error.msg}, character {error.pos}" if isinstance(error, json.JSONDecodeError) else error
            faults.append(f"line {number}: is not valid JSON ({what}); mend it there")
    return records, faults
