"""The run folder: created, refused or replaced; its small files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file, so that a reader never sees half of it; a link's target is written."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no regular file; choose another")
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def digest(value: Any) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_run(out: Path, identity: str, fresh: bool) -> bool:
    """Make `out` ready for the run whose hash is `identity`; False where it holds that run, finished: nothing is to do.

    Another run's folder is replaced only with `fresh`, and a folder that holds no run never.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, wanted a folder for the run; choose another with --out")
    if out.is_dir() and any(out.iterdir()):
        found, finished = _identity(out)
        if found is None:
            raise ValueError(f"{out}: holds files but is not a run folder (no {MANIFEST}); choose another with --out")
        if found != identity and not fresh:
            raise ValueError(
                f"{out}: holds another run (its config, model or pairs differ); use --fresh to replace it, or --out"
            )
        if finished and found == identity and not fresh:
            return False
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    # From the first moment the folder says what it is, so that a run that was cut short can be started again.
    write_json(out / MANIFEST, {"identity": identity, "finished": False})
    return True


def _identity(out: Path) -> tuple[str | None, bool]:
    """The hash of the run in a folder (empty where its manifest is damaged, `None` where there is none), and whether
    it is finished."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, False
    except (ValueError, RecursionError):
        return "", False
    if not isinstance(manifest, dict):
        return "", False
    return str(manifest.get("identity", "")), manifest.get("finished") is True
