"""The run folder: held by one process, made, gone on with, refused or replaced; small files whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codi_tracing.analysis.io.atomic import write_json
from codi_tracing.analysis.io.text import short_json

MANIFEST, TABLE, LOCK = "manifest.json", "cells.parquet", ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run folder, made if it is not there, for this process alone; death releases it. ValueError where another
    holds it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, wanted a folder for the run; choose another with --out")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    if not new and not (out / LOCK).exists() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise ValueError(f"{out}: holds files but is not a run folder (no {MANIFEST}); choose another with --out")
    with (out / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "unknown"
            raise ValueError(
                f"{out}: another process (pid {other}) is writing this run; wait for it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def open_run(out: Path, about: dict[str, Any], fresh: bool) -> dict[str, Any] | None:
    """Make `out`, which is locked, ready for the run that `about` describes: `identity`, `identity_of` and `slice`.

    Returns what its manifest says from now on, or `None` where it holds that run, finished. What was cut short stays,
    to be gone on with; another run's folder is replaced only with `fresh`, and a folder that holds no run never:
    ValueError, which says what differs.
    """
    found = _manifest(out)
    if found is not None and fresh:
        write_json(out / MANIFEST, {**found, "finished": False})  # what is emptied by half is not finished
        empty(out)
        found = None
    if found is not None:
        if found.get("identity") != about["identity"] or found.get("slice") != about["slice"]:
            told = differences(found, about)
            raise ValueError(f"{out}: holds another run ({told}); use --fresh to replace it, or --out")
        if found.get("finished") is True and (about["slice"] or (out / TABLE).is_file()):
            return None
        about = {**about, **versions_before(found, about), "created": found.get("created", about["created"])}
    # From the first moment the folder says what it is, so that a run that was cut short can go on.
    write_json(out / MANIFEST, {**about, "finished": False})
    return about


def versions_before(found: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """The package versions under which a run was begun, where they are others now."""
    before = [*found.get("begun_under", []), found.get("versions")]
    others = [old for old in before if isinstance(old, dict) and old != about.get("versions")]
    return {"begun_under": others} if others else {}


def empty(out: Path) -> None:
    """Delete what a run folder holds, but its lock; the manifest last, so that it remains a run folder till then."""
    for path in sorted(out.iterdir(), key=lambda path: path.name == MANIFEST):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a folder, empty where it is damaged; `None` where the folder holds nothing yet."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if left := [path for path in out.iterdir() if path.name not in (LOCK, f"{MANIFEST}.tmp")]:
            raise ValueError(
                f"{out}: holds {left[0].name} but no {MANIFEST}, so it is no run folder; choose another with --out"
            ) from None
        return None
    except (ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def differences(found: dict[str, Any], about: dict[str, Any]) -> str:
    """What sets the run in a folder apart from another, in words."""
    if not isinstance(found.get("identity_of"), dict):
        return f"its {MANIFEST} is damaged or another version's"
    told = [
        f"{what} is {short_json(old, 40)} there, {short_json(new, 40)} now"
        for what, old, new in unlike(found["identity_of"], about["identity_of"])
    ]
    if found.get("slice") != about["slice"]:
        told.append(f"it is {slice_name(found.get('slice'))}, not {slice_name(about['slice'])}")
    return "; ".join(told) or "its identity is another"


def unlike(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of values differ, by dotted name."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from unlike(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield name.removeprefix("config."), old, new


def slice_name(part: Any) -> str:
    return "the whole run" if part is None else f"slice {part}"
