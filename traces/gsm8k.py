"""GSM8K's files: one JSON object a line, `question` and `answer`, whose last line is `#### 18`. No torch.

Other data of that form works too; an answer may also be a bare number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

KEY = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


class GsmProblem(NamedTuple):
    """A question, its worked solution as the file has it, and the number that is its key."""

    line: int  # from 1
    question: str
    solution: str
    answer: float


class DataError(ValueError):
    """A file is not in GSM8K's form; the message names its first faults and counts the rest."""


def read_problems(path: str | Path) -> list[GsmProblem]:
    """Read a JSONL file of questions and answers; raises `DataError` with all faults counted."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a JSONL file of questions and answers")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSONL file in GSM8K's form (question, answer)")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines, which splits at U+2028 too
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); expected a JSONL file") from None
    problems: list[GsmProblem] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                problems.append(problem_of(number, line))
            except DataError as fault:
                faults.append(str(fault))
    if faults:
        more = f"; and {len(faults) - 3} more lines" if len(faults) > 3 else ""
        raise DataError(f"{path}: {'; '.join(faults[:3])}{more}")
    if not problems:
        raise DataError(f"{path}: is empty, expected one JSON object a line, with question and answer")
    return problems


def problem_of(number: int, line: str) -> GsmProblem:
    """The problem of one line; raises `DataError` with its fault."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"line {number} is not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("question"), str) or not record["question"].strip():
        raise DataError(f"line {number} has no 'question' in text")
    if not is_encodable(record):
        raise DataError(f"line {number} holds broken text (half of a surrogate pair)")
    answer = record.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(f"line {number} has no 'answer', expected a solution that ends in '#### 18', or a number")
    key = KEY.fullmatch(str(answer).rpartition("####")[2].strip().lstrip("$"))
    if key is None:
        raise DataError(f"line {number}: its answer does not end in a number after '####'")
    if len(re.sub(r"\D", "", key[0])) > 15:
        raise DataError(
            f"line {number}: its answer {key[0][:12]}… has more than 15 digits, which no number holds exactly"
        )
    return GsmProblem(number, record["question"], str(answer), float(key[0].replace(",", "")))


def is_encodable(value: Any) -> bool:
    """Whether every text in a value is valid Unicode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True
