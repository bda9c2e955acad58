"""The files of a run folder: each as the run wrote it, or refused in one sentence.

A finished run's manifest holds, under `files`, the SHA-256 of every file that its report reads, so that a table that
was edited, damaged or swapped for another run's is never read as this run's. Runs of earlier versions have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codi_tracing.analysis.io.text import short_json
from codi_tracing.configs.files import LARGEST_TABLE, read_file

TABLE, MANIFEST, CHECKS, PREPARED = "cells.parquet", "manifest.json", "checks.json", "prepared_pairs.json"
FORMAT = 3  # of a run folder: the first with hashes; earlier ones are reported on, but neither resumed nor merged
MANIFEST_TYPES = {  # every key is optional and may be null
    "name": str, "created": str, "experiment": str, "protocol": str, "finished": bool, "shard": str,
    "config": dict, "model": dict, "data": dict, "files": dict, "batches": list,
    "begun_under": list, "versions_of_shards": dict,
}  # fmt: skip
CHECK_TYPES = {"name": str, "grade": str, "sentence": str}
TYPE_NAMES = {str: "text", bool: "true or false", dict: "an object", list: "a list"}
DEEPEST = 50  # levels of lists and objects


def file_hashes(run: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of a run's files by name, for its manifest."""
    return {name: hashlib.sha256(read_file(run / name, LARGEST_TABLE)).hexdigest() for name in names}


def check_content(path: Path, content: bytes, files: Any, again: str = "run it again with --fresh") -> None:
    """Refuse the bytes of a file that are not those of its manifest's `files`; a manifest without hashes allows any."""
    if not isinstance(files, dict):
        return
    if files.get(path.name) != hashlib.sha256(content).hexdigest():
        raise ValueError(
            f"{path}: was edited, damaged or swapped: its SHA-256 is not the manifest's; restore it, or {again}"
        )


def recorded_files(run: Path) -> Any:
    """The hashes of a run's files in its manifest; None where there is no manifest, or one without hashes.

    ValueError if the run is of a version that records them, finished, and has none.
    """
    if not (run / MANIFEST).is_file():
        return None
    manifest = _read(run / MANIFEST, dict)
    if manifest.get("finished") and manifest.get("format") == FORMAT and not manifest.get("files"):
        raise ValueError(f"{run / MANIFEST}: lacks the hashes of the run's files; restore it, or run it again")
    return manifest.get("files")


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
    checks = _read(path, list, recorded_files(run))
    for check in checks:
        named = isinstance(check, dict) and all(isinstance(check.get(key), kind) for key, kind in CHECK_TYPES.items())
        if not named or not isinstance(check.get("passed", 0), bool | None):
            form = "{name, grade, passed, sentence}"
            raise ValueError(f"{path}: an entry is {short_json(check)}, expected {form}; run it again")
    return checks


def read_prepared(run: Path) -> list[dict[str, Any]]:
    """The run's pairs, as it wrote them."""
    path = run / PREPARED
    pairs = _read(path, list, recorded_files(run))
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


def _read(path: Path, kind: type, files: Any = None) -> Any:
    """A JSON file that can be written again: no NaN, no lone surrogates, not nested too deep."""
    try:
        content = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a finished run") from None
    check_content(path, content, files)
    try:
        value = json.loads(content.decode())
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        depth = _depth(value)
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
