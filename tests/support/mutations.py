"""Strategies that damage files: bytes flipped, cut and spliced; parsed values replaced, dropped and added.

Any reader can be fuzzed with them: `mutated_bytes` for a file, `mutated_json` and `mutated_toml` for what parses,
`mutated_safetensors` for tensors, `mutated_folder` for a folder of all of these. `fuzz` runs a reader over a strategy.
"""

from __future__ import annotations

import copy
import json
import os
import re
import resource
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("CODI_FUZZ", "1"))  # CODI_FUZZ=10 tries ten times as many, drawn afresh
RAW = "raw:"  # a text that begins so is spliced into JSON or TOML as it stands
# What parsers and readers trip over.
NASTY_TEXT = (
    "", " ", "\0", "a\0b", "\ud800", "\udc80", "鸭子", "e\u0301", "\u2028", "\r\n", "\x1b[31m", "../../etc",
    "/", "~", "~nobody", "-", "--help", "CON", "nan", "1e999", "null",
    "{}", "{0}", "%s", "0x10", "۳", "²", "1_000", "a" * 300, "a" * 50_000,
)  # fmt: skip
NASTY_RAW = (
    "1e999", "-1e999", "NaN", "nan", "-Infinity", "inf", "1E-400", "-0", "-0.0", "00", "9" * 5_000, "-" + "9" * 4_200,
    "0x" + "f" * 5_000, "[" * 900 + "]" * 900, "[" * 5_000 + "]" * 5_000, "[" * 100_000,
    '{"a":' * 900 + "1" + "}" * 900,
    '{"a":' * 3_000 + "1" + "}" * 3_000, "{a=" * 900 + "1" + "}" * 900, "1979-05-27",
    "1979-05-27T07:32:00Z", "07:32:00", "25:61:61",
    '"""a\nb"""', '"\\ud800"', '"\\u0000"', "'", "1__0", '[1, "a"]', "{a = 1}",
)  # fmt: skip
NASTY_NUMBERS = (
    0, -1, 1, 2, 3, 255, 10**6, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.5, 1e-320,
    1e22, 1e300, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
NASTY_BYTES = (
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"\n\n", b"{", b"}", b"[", b"]",
    b'"', b"'", b",", b"\\u", b"[[", b"=", b"#", b"\x80" * 8, b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f",
    b"\xff" * 7 + b"\x7f", b"null", b"PAR1", b"[" * 3_000, "\u2028".encode(),
)  # fmt: skip

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(),
    st.floats(),
    st.sampled_from(NASTY_NUMBERS),
    st.text(max_size=20),
    st.sampled_from(NASTY_TEXT),
    st.sampled_from([RAW + text for text in NASTY_RAW]),
)
odd_values = st.one_of(
    leaves,
    st.lists(leaves, max_size=4),
    st.dictionaries(st.one_of(st.text(max_size=8), st.sampled_from(NASTY_TEXT)), leaves, max_size=3),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=2), max_leaves=5),
)


def _how_many(most: int) -> st.SearchStrategy[int]:
    """Mostly one change: a file that is almost whole comes furthest."""
    return st.sampled_from([1] * most + list(range(1, most + 1)))


@st.composite
def mutated_bytes(draw, seeds: Sequence[bytes], most: int = 3) -> bytes:
    """One of the files with up to `most` of its bytes or stretches changed."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(_how_many(most))):
        data = _damage(draw, data, seeds)
    return data


def _damage(draw, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """One change."""
    at = draw(st.integers(0, len(data)))
    end = min(len(data), at + draw(st.sampled_from([1, 1, 1, 2, 4, 8, 40, 400])))
    match draw(st.sampled_from(["flip", "flip", "set", "delete", "insert", "truncate", "repeat", "splice", "zero"])):
        case "flip":
            return data[:at] + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[at : at + 1]) + data[at + 1 :]
        case "set":
            new = draw(st.sampled_from(NASTY_BYTES))
            return data[:at] + new + data[at + len(new) :]
        case "delete":
            return data[:at] + data[end:]
        case "insert":
            return data[:at] + draw(st.one_of(st.sampled_from(NASTY_BYTES), st.binary(max_size=8))) + data[at:]
        case "truncate":
            return data[:at]
        case "repeat":
            return data[:end] + data[at:end] * draw(st.integers(1, 3)) + data[end:]
        case "splice":
            other = draw(st.sampled_from(seeds))
            return data[:at] + other[draw(st.integers(0, len(other))) :]
        case _:
            return data[:at] + bytes(end - at) + data[end:]


@st.composite
def mutated_values(draw, seeds: Sequence[Any], most: int = 3) -> Any:
    """One of the parsed values with up to `most` of its parts replaced, dropped, added, emptied or swapped."""
    whole = [copy.deepcopy(draw(st.sampled_from(seeds)))]
    for _ in range(draw(_how_many(most))):
        holders = [holder for holder in _holders(whole) if holder]
        holder = draw(st.sampled_from(holders))
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        action = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "empty", "swap", "rename"]))
        if action == "drop" and holder is not whole:
            del holder[key]
        elif action == "add" and isinstance(holder[key], dict):
            holder[key][draw(st.one_of(st.text(max_size=8), st.sampled_from(NASTY_TEXT)))] = draw(odd_values)
        elif action == "add" and isinstance(holder[key], list):
            holder[key].append(draw(st.one_of(odd_values, st.sampled_from(holder[key] or [None]))))
        elif action == "empty":
            holder[key] = type(holder[key])() if holder[key] is not None else []
        elif action == "swap":
            other = draw(st.sampled_from(holders))
            holder[key] = copy.deepcopy(other[next(iter(other)) if isinstance(other, dict) else 0])
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.one_of(st.sampled_from(NASTY_TEXT), st.text(max_size=8)))] = holder.pop(key)
        else:
            holder[key] = draw(odd_values)
    return whole[0]


def _holders(value: Any) -> Iterator[Any]:
    """Every list and table of a value, itself first."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict | list):
            yield item
            pending += item.values() if isinstance(item, dict) else item


def as_json(value: Any) -> bytes:
    """A value as JSON, whatever it holds; a text `raw:…` becomes what follows, as it stands."""
    text = json.dumps(value, ensure_ascii=False)
    return _spliced(text).encode("utf-8", "surrogatepass")


def as_jsonl(values: Sequence[Any]) -> bytes:
    return b"\n".join(map(as_json, values)) + b"\n"


def _spliced(text: str) -> str:
    return re.sub(rf'"{RAW}((?:[^"\\]|\\.)*)"', lambda found: json.loads(f'"{found[1]}"'), text)


def as_toml(table: Mapping[str, Any]) -> bytes:
    """A table as TOML; what TOML has no word for becomes something that it refuses."""
    rows = [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            rows += [f"[{_key(key)}]", *(f"{_key(name)} = {_toml(inner)}" for name, inner in value.items())]
    return ("\n".join(rows) + "\n").encode("utf-8", "surrogatepass")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(str(key))} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return _spliced(json.dumps(value, ensure_ascii=False))


def mutated_json(seeds: Sequence[Any], most: int = 3) -> st.SearchStrategy[bytes]:
    """JSON files: parsed values changed, or the bytes themselves."""
    return mutated_values(seeds, most).map(as_json) | mutated_bytes([as_json(seed) for seed in seeds], most)


def mutated_jsonl(seeds: Sequence[list[Any]], most: int = 3) -> st.SearchStrategy[bytes]:
    """The same, an item a line."""
    changed = mutated_values(seeds, most).map(lambda value: as_jsonl(value if isinstance(value, list) else [value]))
    return changed | mutated_bytes([as_jsonl(seed) for seed in seeds], most)


def mutated_toml(seeds: Sequence[dict[str, Any]], most: int = 3) -> st.SearchStrategy[bytes]:
    """TOML files, likewise."""
    changed = mutated_values(seeds, most).map(
        lambda value: as_toml(value) if isinstance(value, dict) else as_json(value)
    )
    return changed | mutated_bytes([as_toml(seed) for seed in seeds], most)


@st.composite
def mutated_safetensors(draw, data: bytes) -> bytes:
    """A safetensors file: its header's length or one of its header's values changed, or the bytes themselves."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    match draw(st.sampled_from(["header", "header", "length", "empty shape", "bytes"])):
        case "length":
            lengths = (0, 1, length - 1, length + 1, len(data), 10**8, 2**31, 2**40, 2**63, 2**64 - 1)
            return struct.pack("<Q", draw(st.sampled_from(lengths))) + data[8:]
        case "bytes":
            return draw(mutated_bytes([data, data[: 8 + length]]))
        case "empty shape":  # no bytes, and yet as long as one likes
            name = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
            start, end = header[name]["data_offsets"]
            for tensor in header.values():
                if tensor.get("data_offsets", [0])[0] >= end:
                    tensor["data_offsets"] = [place - (end - start) for place in tensor["data_offsets"]]
            sizes = draw(st.permutations([draw(st.sampled_from([32, 10**6, 10**9, 2**40])), 0]))
            header[name] = {**header[name], "shape": sizes, "data_offsets": [start, start]}
            tensors, changed = tensors[:start] + tensors[end:], as_json(header)
        case _:
            changed = as_json(draw(mutated_values([header])))
    return struct.pack("<Q", len(changed)) + changed + tensors


@st.composite
def mutated_folder(draw, files: Mapping[str, bytes], most: int = 2) -> dict[str, bytes | None]:
    """What to write instead of some of a folder's files; `None` is a file that is missing."""
    changes: dict[str, bytes | None] = {}
    for _ in range(draw(_how_many(most))):
        name = draw(st.sampled_from(sorted(files)))
        action = draw(st.sampled_from([*["change"] * 8, "remove", "empty", "swap"]))
        if action == "remove":
            changes[name] = None
        elif action == "empty":
            changes[name] = b""
        elif action == "swap":
            changes[name] = files[draw(st.sampled_from(sorted(files)))]
        elif name.endswith(".json"):
            changes[name] = draw(mutated_json([json.loads(files[name])]))
        elif name.endswith(".safetensors"):
            changes[name] = draw(mutated_safetensors(files[name]))
        else:
            changes[name] = draw(mutated_bytes([files[name]]))
    return changes


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


@contextmanager
def bounded(seconds: float = 20, megabytes: float = 600) -> Iterator[None]:
    """Fail what takes more processor time, or raises the process's peak of memory by more."""

    def too_long(*_: object) -> None:
        raise Hang(f"took more than {seconds} s of processor time")

    before, old = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # not wall-clock time: other processes may be busy
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"took {grown:.0f} MB of memory"


def fuzz(what: str, strategy: st.SearchStrategy[Any], read: Callable[[Any], str], examples: int) -> Counter[str]:
    """Read so many mutated inputs, and count what `read` says of each; says how many there were."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(item: Any) -> None:
        with bounded():
            seen[read(item)] += 1

    each()
    print(f"{what}: {seen.total()} inputs, " + ", ".join(f"{count} {name}" for name, count in seen.most_common()))
    assert seen.total() >= examples * TIMES, f"only {seen.total()} inputs were tried"
    return seen
