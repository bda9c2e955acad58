"""Read the records of a text file as people have it: a JSON list, JSONL, CSV with a header, iCoT's lines. No torch.

UTF-8, with or without a byte order mark. A record that cannot be read is a fault of its own; the others are kept.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codi_tracing.configs.files import read_file

SEPARATOR = "||"  # of question and solution in iCoT's lines: question||<<16-3=13>> #### 13
DELIMITERS = (",", "\t", ";")


class FileRecord(NamedTuple):
    """A parsed value and its position: `record` 0, 1, … of a list, or `line` 1, 2, … of a file."""

    unit: str
    number: int
    value: Any

    @property
    def position(self) -> str:
        return f"{self.unit} {self.number}"


class _RepeatedKeys(dict[str, Any]):
    """A JSON object that has a key twice, of which Python keeps the last."""


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError, in one phrase, where it is none or an object has a key twice."""
    value = _parse(text)
    if fault := repeated_key(value):
        raise ValueError(fault)
    return value


def repeated_key(value: Any) -> str | None:
    """What is wrong where an object in a parsed value has a key twice."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, _RepeatedKeys):
            return f"an object has the key {next(iter(item))!r:.50} twice; drop one"
        if isinstance(item, dict | list):
            rest += item.values() if isinstance(item, dict) else item
    return None


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.colno}"
        raise ValueError(f"is not valid JSON ({error.msg}, {where})") from None
    except RecursionError:
        raise ValueError("is not valid JSON (nested too deeply)") from None
    except ValueError:  # of thousands of digits
        raise ValueError("is not valid JSON (a number of more digits than can be read)") from None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) == len(members):
        return value
    first = next(name for name, count in Counter(name for name, _ in members).items() if count > 1)
    return _RepeatedKeys({first: value.pop(first), **value})


def json_type(value: Any) -> str:
    """The JSON type of a value, in words."""
    types = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return types.get(type(value), "a number")


def read_text(path: Path, holds: str) -> str:
    """The text of a file that `holds` something; ValueError, in a phrase that follows its name, where it has none."""
    if path.is_dir():
        raise ValueError(f"is a folder, expected a file of {holds}")
    return text_of(read_file(path), holds)


def text_of(content: bytes, holds: str) -> str:
    """The text of a file's bytes, with every kind of line end as a newline."""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start}), expected {holds}; save it as UTF-8") from None
    if not text.strip():
        raise ValueError(f"is empty, expected {holds}")
    return text


def parse_records(text: str, columns: Sequence[Sequence[str]], suffix: str = "") -> tuple[list[FileRecord], list[str]]:
    """The records of a text and, of those that cannot be read, a sentence each; ValueError where there is no record.

    A CSV is read if its header has all of one of these sets of `columns`.
    """
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and "\n" in text.strip()):
        try:
            value = _parse(text)
        except ValueError:
            if start == "[":
                records, faults = _read_lines(text, frozenset("[]"))
                if len(records) <= len(faults) or not isinstance(records[0].value, dict):  # no record in each line
                    raise
                return records, faults
        else:
            return _without_repeated(
                [FileRecord("record", index, item) for index, item in enumerate(value)]
                if isinstance(value, list)
                else [FileRecord("line", 1, value)]
            )
    if start not in ("[", "{") and (table := _read_csv(text, columns, suffix)) is not None:
        return table
    return _read_lines(text)


def _without_repeated(records: Sequence[FileRecord]) -> tuple[list[FileRecord], list[str]]:
    judged = [(record, repeated_key(record.value)) for record in records]
    return [record for record, fault in judged if not fault], [f"{r.position}: {fault}" for r, fault in judged if fault]


def _read_lines(text: str, skipped: frozenset[str] = frozenset()) -> tuple[list[FileRecord], list[str]]:
    """JSONL, also with commas between the records, and iCoT's lines."""
    records: list[FileRecord] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a text
        if SEPARATOR in line and not line.lstrip().startswith(("{", "[", '"')):
            question, _, solution = line.partition(SEPARATOR)
            records.append(FileRecord("line", number, {"question": question, "answer": solution}))
        elif (record := line.strip().removesuffix(",")) and record not in skipped:
            try:
                records.append(FileRecord("line", number, parse_json(record)))
            except ValueError as fault:
                faults.append(f"line {number}: {fault}")
    return records, faults


def _read_csv(text: str, columns: Sequence[Sequence[str]], suffix: str) -> tuple[list[FileRecord], list[str]] | None:
    """The rows of a CSV with a known header; ValueError for a file of that name with another; None for other texts."""
    body = text.lstrip()
    first, above = body.partition("\n")[0], text[: len(text) - len(body)].count("\n")
    try:
        headers: dict[str, list[str]] = {
            mark: [name.strip() for name in next(csv.reader([first], delimiter=mark))] for mark in DELIMITERS
        }
    except csv.Error:
        return None
    known = [mark for mark, names in headers.items() if any(set(fields) <= set(names) for fields in columns)]
    if not known:
        if suffix.lower() not in (".csv", ".tsv"):
            return None
        longest: list[str] = max(headers.values(), key=len)
        found = ", ".join(longest)
        raise ValueError(
            f"has the columns {found!r:.200}, expected {', '.join(columns[0])}, or {', '.join(columns[1])}, …"
        )
    names = headers[known[0]]
    records: list[FileRecord] = []
    faults: list[str] = []
    if len(set(names)) < len(names):
        raise ValueError(f"has the columns {', '.join(names)!r:.200}, expected each once")
    rows = csv.reader(io.StringIO(body), delimiter=known[0], strict=True)
    next(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return records, faults
        except csv.Error as error:
            faults.append(f"line {rows.line_num + above}: is no row of a CSV ({error})")
            continue
        if len(row) > len(names):
            faults.append(f"line {rows.line_num + above}: has {len(row)} cells, expected {len(names)}")
        elif any(map(str.strip, row)):
            value = {name: cell for name, cell in zip(names, row, strict=False) if cell.strip()}
            records.append(FileRecord("line", rows.line_num + above, value))
