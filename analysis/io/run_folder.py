"""The small files of a run folder: read, and refused in one sentence where a report cannot be made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST, CHECKS, PREPARED = "manifest.json", "checks.json", "prepared_pairs.json"
OF_A_MANIFEST = {  # where it has them; each may also be null
    "name": str, "created": str, "experiment": str, "protocol": str, "finished": bool, "shard": str,
    "config": dict, "model": dict, "data": dict,
}  # fmt: skip
OF_A_CHECK = {"name": str, "grade": str, "sentence": str}
WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def read_manifest(run: Path) -> dict[str, Any]:
    """What was run, on what and when; every value of its form."""
    path = run / MANIFEST
    manifest = _read(path, dict)
    _expect(path, manifest, OF_A_MANIFEST)
    _expect(
        path, manifest.get("data") or {}, {"excluded": list, "failed": list, "without_unrelated_donor": list}, "data."
    )
    low = (manifest.get("config") or {}).get("low_ceiling", 0)
    if isinstance(low, bool) or not isinstance(low, int | float) or not 0 <= low <= 1:
        raise ValueError(f"{path}: 'config.low_ceiling' is {_short(low)}, wanted 0 to 1; run it again to write it")
    for key in ("excluded", "failed"):
        for entry in (manifest.get("data") or {}).get(key) or ():
            if not isinstance(entry, dict) or not {"pair_id", "reason"} <= set(entry):
                wanted = "{pair_id, reason}"
                raise ValueError(
                    f"{path}: 'data.{key}' holds {_short(entry)}, wanted {wanted}; run it again to write it"
                )
    return manifest


def read_checks(run: Path) -> list[dict[str, Any]]:
    """What was checked: each with its name, grade, sentence, and whether it passed (null where that is no question)."""
    path = run / CHECKS
    checks = _read(path, list)
    for check in checks:
        named = isinstance(check, dict) and all(isinstance(check.get(key), kind) for key, kind in OF_A_CHECK.items())
        if not named or not isinstance(check.get("passed", 0), bool | None):
            wanted = "{name, grade, passed, sentence}"
            raise ValueError(f"{path}: an entry is {_short(check)}, wanted {wanted}; run it again to write it")
    return checks


def read_prepared(run: Path) -> list[dict[str, Any]]:
    """The run's pairs, as it wrote them."""
    path = run / PREPARED
    pairs = _read(path, list)
    if not all(map(_is_pair, pairs)):
        wanted = "{pair_id, clean: {question, answer}, corrupted: {question, answer}}"
        raise ValueError(f"{path}: an entry is not of the form {wanted}; run it again")
    return pairs


def _is_pair(entry: Any) -> bool:
    sides = [entry.get(side) for side in ("clean", "corrupted")] if isinstance(entry, dict) else [None]
    return all(isinstance(s, dict) and isinstance(s.get("question"), str) and "answer" in s for s in sides) and (
        isinstance(entry.get("pair_id"), str | int)
    )


def _expect(path: Path, values: Mapping[str, Any], kinds: Mapping[str, type], prefix: str = "") -> None:
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind | None):
            found = _short(values[key])
            raise ValueError(f"{path}: '{prefix}{key}' is {found}, wanted {WORDS[kind]}; run it again to write it")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _read(path: Path, kind: type) -> Any:
    """A JSON file of the run folder, which can be written again: no NaN, no half characters, no bottomless lists."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        depth = _depth(value)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file; wanted the folder of a finished run") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: is not whole JSON; run it again to write it") from None
    if type(value) is not kind:
        found = type(value).__name__
        raise ValueError(f"{path}: holds a JSON {found}, wanted a {kind.__name__}; run it again to write it")
    if depth > 50:
        raise ValueError(f"{path}: is nested {depth} deep, and no run writes that; run it again to write it")
    return value


def _depth(value: Any) -> int:
    """How many lists and objects stand inside each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth
