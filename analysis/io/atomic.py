"""Write a file completely or not at all: temporary file, fsync, rename."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

STALE = 600  # seconds after which an unfinished file is what a killed process left


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file through a temporary one in the same folder, so that no reader sees half of it.

    The umask decides who may read it. A link is replaced, not followed. ValueError where the path is a folder, a device
    or a pipe. What a killed process left of an earlier attempt is deleted.
    """
    require_replaceable(path)
    temporary, handle = open_temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def require_replaceable(path: Path) -> None:
    """ValueError where a file cannot take the path's place: a folder, a device or a pipe stands there."""
    if path.exists() and not (path.is_file() or path.is_symlink()):
        raise ValueError(f"{path}: is no regular file; choose another")


def open_temporary(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, opened to write; one that a killed process left is deleted."""
    usual = path.with_name(f".{path.name[:100]}.tmp")
    if usual.is_file() and time.time() - usual.lstat().st_mtime > STALE:
        usual.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return usual, os.open(usual, flags, 0o666)
    except FileExistsError:  # another process is writing the same file
        other = usual.with_suffix(f".{os.getpid()}.tmp")
        other.unlink(missing_ok=True)
        return other, os.open(other, flags, 0o666)


def whole_name(temporary: str) -> str | None:
    """The name of the file that a temporary file of `write_whole` would have become; None for other names."""
    match = re.fullmatch(r"\.(.+?)(?:\.\d+)?\.tmp", temporary)
    return match and match[1]


def write_json(path: Path, value: Any, indent: int | None = 2) -> Path:
    """Write strict JSON (NaN is a ValueError) in UTF-8; `indent=None` writes one line."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return write_whole(path, f"{text}\n".encode())
