"""The run folder: locked by one process, created, resumed, refused or replaced."""

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
from codi_tracing.analysis.io.run_folder import MANIFEST
from codi_tracing.analysis.io.text import short_json

TABLE, LOCK = "cells.parquet", ".lock"
FORMAT = 2  # of a run folder; those before kept batches in `shards/` and are refused


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a run folder, created if missing, for this process; its death releases the lock. ValueError if another
    process has it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder for the run; choose another with --out")
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
    """Prepare `out`, which is locked, for the run that `about` describes: `identity`, `identity_of` and `shard`.

    Returns the new manifest, or `None` if the folder holds that run, finished. An interrupted run stays, to be resumed;
    another run's folder is replaced only with `fresh`, and a folder without a run never: ValueError, which says what
    differs.
    """
    manifest = _manifest(out)
    if manifest is not None and fresh:
        write_json(out / MANIFEST, {**manifest, "finished": False})  # a half-emptied run is not finished
        empty(out)
        manifest = None
    if manifest is not None:
        check_format(out, manifest)
        if manifest.get("identity") != about["identity"] or manifest.get("shard") != about["shard"]:
            difference = differences(manifest, about)
            raise ValueError(f"{out}: holds another run ({difference}); use --fresh to replace it, or --out")
        if manifest.get("finished") is True and (about["shard"] or (out / TABLE).is_file()):
            return None
        created = manifest.get("created", about["created"])
        about = {**about, **versions_before(manifest, about), "created": created}
    # Written before anything else, so that an interrupted run is recognised and resumed.
    write_json(out / MANIFEST, {**about, "finished": False})
    return about


def check_format(out: Path, manifest: dict[str, Any]) -> None:
    """Refuse the folder of an older version; an empty manifest is a damaged one, not an old one."""
    if manifest and manifest.get("format") != FORMAT:
        raise ValueError(
            f"{out}: was written by another version of codi-tracing (run folder format {manifest.get('format', 1)}, "
            f"expected {FORMAT}); use --fresh to replace it, or choose another with --out"
        )


def versions_before(manifest: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """The package versions under which a run was begun, if they differ from the present ones."""
    before = [*manifest.get("begun_under", []), manifest.get("versions")]
    others = [old for old in before if isinstance(old, dict) and old != about.get("versions")]
    return {"begun_under": others} if others else {}


def empty(out: Path) -> None:
    """Delete everything in a run folder but its lock; the manifest last, so that it stays a run folder until then."""
    for path in sorted(out.iterdir(), key=lambda path: path.name == MANIFEST):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a folder, empty if it is damaged; `None` if the folder is empty."""
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


def differences(manifest: dict[str, Any], about: dict[str, Any]) -> str:
    """How the run in a folder differs from another, in words."""
    if not isinstance(manifest.get("identity_of"), dict):
        return f"its {MANIFEST} is damaged or another version's"
    sentences = [
        f"{key} is {short_json(old, 40)} there, {short_json(new, 40)} now"
        for key, old, new in unlike(manifest["identity_of"], about["identity_of"])
    ]
    if manifest.get("shard") != about["shard"]:
        sentences.append(f"it is {shard_name(manifest.get('shard'))}, not {shard_name(about['shard'])}")
    return "; ".join(sentences) or "its identity is another"


def unlike(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves at which two nested dicts differ, by dotted name."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from unlike(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield name.removeprefix("config."), old, new


def shard_name(shard: Any) -> str:
    return "the whole run" if shard is None else f"shard {shard}"
