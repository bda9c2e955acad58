"""The small JSON files of a run folder: read, checked, and refused in one sentence if no report can be made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codi_tracing.analysis.io.text import short_json

MANIFEST, CHECKS, PREPARED = "manifest.json", "checks.json", "prepared_pairs.json"
MANIFEST_TYPES = {  # every key is optional and may be null
    "name": str, "created": str, "experiment": str, "protocol": str, "finished": bool, "shard": str,
    "config": dict, "model": dict, "data": dict,
}  # fmt: skip
CHECK_TYPES = {"name": str, "grade": str, "sentence": str}
TYPE_NAMES = {str: "text", bool: "true or false", dict: "an object", list: "a list"}
DEEPEST = 50  # levels of lists and objects


def read_manifest(run: Path) -> dict[str, Any]:
    """The run's config, model, data and versions, each value of its type."""
    path = run / MANIFEST
    manifest = _read(path, dict)
    _check_types(path, manifest, MANIFEST_TYPES)
    data = manifest.get("data") or {}
    _check_types(path, data, {"excluded": list, "failed": list, "without_unrelated_donor": list}, "data.")
    low = (manifest.get("config") or {}).get("low_ceiling", 0)
    if isinstance(low, bool) or not isinstance(low, int | float) or not 0 <= low <= 1:
        raise ValueError(f"{path}: 'config.low_ceiling' is {short_json(low)}, expected 0 to 1; run it again")
    for key in ("excluded", "failed"):
        for entry in data.get(key) or ():
            if not isinstance(entry, dict) or not {"pair_id", "reason"} <= set(entry):
                form = "{pair_id, reason}"
                raise ValueError(f"{path}: 'data.{key}' holds {short_json(entry)}, expected {form}; run it again")
    return manifest


def read_checks(run: Path) -> list[dict[str, Any]]:
    """The run's checks: name, grade, sentence, and whether each passed (null if it cannot pass or fail)."""
    path = run / CHECKS
    checks = _read(path, list)
    for check in checks:
        named = isinstance(check, dict) and all(isinstance(check.get(key), kind) for key, kind in CHECK_TYPES.items())
        if not named or not isinstance(check.get("passed", 0), bool | None):
            form = "{name, grade, passed, sentence}"
            raise ValueError(f"{path}: an entry is {short_json(check)}, expected {form}; run it again")
    return checks


def read_prepared(run: Path) -> list[dict[str, Any]]:
    """The run's pairs, as it wrote them."""
    path = run / PREPARED
    pairs = _read(path, list)
    if not all(map(_is_pair, pairs)):
        form = "{pair_id, clean: {question, answer}, corrupted: {question, answer}}"
        raise ValueError(f"{path}: an entry is not of the form {form}; run it again")
    return pairs


def _is_pair(entry: Any) -> bool:
    sides = [entry.get(side) for side in ("clean", "corrupted")] if isinstance(entry, dict) else [None]
    return all(isinstance(s, dict) and isinstance(s.get("question"), str) and "answer" in s for s in sides) and (
        isinstance(entry.get("pair_id"), str | int)
    )


def _check_types(path: Path, values: Mapping[str, Any], types: Mapping[str, type], prefix: str = "") -> None:
    for key, kind in types.items():
        if not isinstance(values.get(key), kind | None):
            found, expected = short_json(values[key]), TYPE_NAMES[kind]
            raise ValueError(f"{path}: '{prefix}{key}' is {found}, expected {expected}; run it again")


def _read(path: Path, kind: type) -> Any:
    """A JSON file that can be written again: no NaN, no lone surrogates, not nested too deep."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        depth = _depth(value)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a finished run") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: is not whole JSON; run it again to write it") from None
    if type(value) is not kind:
        found = type(value).__name__
        raise ValueError(f"{path}: holds a JSON {found}, expected a {kind.__name__}; run it again")
    if depth > DEEPEST:
        raise ValueError(f"{path}: is nested {depth} deep, expected at most {DEEPEST}; run it again")
    return value


def _depth(value: Any) -> int:
    """The largest number of lists and objects inside each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth
