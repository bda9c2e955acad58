"""The run folder: created, resumed, refused or replaced. Only what a run or its report wrote is ever deleted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from codi_tracing.analysis.io.atomic import whole_name, write_json
from codi_tracing.analysis.io.run_folder import CHECKS, FORMAT, MANIFEST, PREPARED, TABLE
from codi_tracing.analysis.io.written_files import REPORT_FOLDERS, written_by_report
from codi_tracing.configs.files import read_utf8
from codi_tracing.patching.runs.identity import differences, other_versions, versions_before
from codi_tracing.patching.runs.lock import LOCK, lock_folder

BATCHES = "batches"
HASHED = re.compile(r"[a-z0-9_-]+\.[0-9a-f]{64}\.(parquet|json)")  # a file of `batches/`
RUN_FILES = (TABLE, CHECKS, PREPARED, "jobs.json", "jobs.tmp")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a run folder, created if missing, for this process; its death releases the lock. ValueError if another
    process has it, or if the folder is not a run's."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder for the run; choose another with --out")
    out.mkdir(parents=True, exist_ok=True)
    own_manifest(out)
    with lock_folder(out):
        yield


def open_run(out: Path, about: dict[str, Any], *, fresh: bool = False, force: bool = False) -> dict[str, Any] | None:
    """Prepare `out`, which is locked, for the run that `about` describes: `identity`, `identity_of` and `shard`.

    Returns the new manifest, or `None` if the folder holds that run, finished and with all its files. An interrupted
    run stays, to be resumed; under other versions of the packages that compute only with `force`. Another run's folder
    is replaced only with `fresh`, and a folder without a run never: ValueError, which says what differs.
    """
    manifest = own_manifest(out)
    if manifest is not None and fresh:
        write_json(out / MANIFEST, {**manifest, "finished": False})  # a half-emptied run is not finished
        empty(out)
        manifest = None
    if manifest is not None:
        check_format(out, manifest)
        if manifest.get("identity") != about["identity"] or manifest.get("shard") != about["shard"]:
            difference = differences(manifest, about)
            raise ValueError(f"{out}: holds another run ({difference}); use --fresh to replace it, or --out")
        if manifest.get("finished") is True:
            if not (lost := lost_files(out, manifest)):
                return None
            print(f"codi: {out}: {lost[0]} is missing; it is computed again", file=sys.stderr)
        if not force and (versions := other_versions(manifest, about)):
            raise ValueError(
                f"{out}: was begun under other versions ({versions}); resume it under those, or use --force to mix "
                "both, which the manifest then lists, or --fresh to start anew"
            )
        created = manifest.get("created", about["created"])
        about = {**about, **versions_before(manifest, about), "created": created}
    # Written before anything else, so that an interrupted run is recognised and resumed.
    write_json(out / MANIFEST, {**about, "finished": False})
    return about


def own_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, empty if it is damaged; `None` if the folder is empty.

    ValueError for any other folder: a run's manifest has an identity, and a damaged one a lock beside it.
    """
    try:
        manifest = json.loads(read_utf8(out / MANIFEST))
    except FileNotFoundError:
        others = (path for path in out.iterdir() if not path.name.startswith(LOCK))
        if left := [path.name for path in others if whole_name(path.name) is None]:
            raise ValueError(
                f"{out}: holds files but is not a run folder ({left[0]}, and no {MANIFEST}); choose another with --out"
            ) from None
        return None
    except (ValueError, RecursionError):
        manifest = None
    identity = manifest.get("identity") if isinstance(manifest, dict) else None
    if isinstance(identity, str) and re.fullmatch("[0-9a-f]{64}", identity):
        return manifest
    if manifest is None and (out / LOCK).exists():
        return {}
    raise ValueError(f"{out}: its {MANIFEST} is not of a run (it has no identity); choose another with --out")


def check_format(out: Path, manifest: dict[str, Any]) -> None:
    """Refuse the folder of an older version; an empty manifest is a damaged one, not an old one."""
    if manifest and manifest.get("format") != FORMAT:
        raise ValueError(
            f"{out}: was written by another version of codi-tracing (run folder format {manifest.get('format', 1)}, "
            f"expected {FORMAT}); use --fresh to replace it, or choose another with --out"
        )


def lost_files(out: Path, manifest: dict[str, Any]) -> list[str]:
    """The files that a finished run or shard wrote and that are no longer there."""
    batches = [f"{BATCHES}/{name}" for name in manifest.get("batches") or ()]
    return [name for name in [*(manifest.get("files") or (TABLE,)), *batches] if not (out / name).is_file()]


def empty(out: Path) -> None:
    """Delete the files that a run and its report write, and folders that are then empty; the manifest stays."""
    written = [out / name for name in RUN_FILES] + written_by_report(out)
    names = {path.name for path in written} | {MANIFEST}
    hidden = (path for folder in {path.parent for path in written} for path in folder.glob(".*"))
    for path in [*written, *(path for path in hidden if whole_name(path.name) in names)]:
        _delete(path)
    empty_batches(out)
    for folder in REPORT_FOLDERS:
        with suppress(OSError):  # absent, or a user's files are in it
            (out / folder).rmdir()


def empty_batches(out: Path, temporary_only: bool = False) -> None:
    """Delete a run's batches, or only what a killed process left of them, and their folder if it is then empty."""
    folder = out / BATCHES
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        temporary = whole_name(path.name)
        if (temporary and HASHED.fullmatch(temporary)) or (HASHED.fullmatch(path.name) and not temporary_only):
            _delete(path)
    with suppress(OSError):
        folder.rmdir()


def _delete(path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink()
