"""Write a file completely or not at all: temporary file, fsync, rename."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file through a temporary one in the same folder, so that no reader sees half of it.

    A link's target is written. ValueError where the path is a folder, a device or a pipe.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise ValueError(f"{path}: is no regular file; choose another")
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Any, indent: int | None = 2) -> Path:
    """Write strict JSON (NaN is a ValueError) in UTF-8; `indent=None` writes one line."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return write_whole(path, f"{text}\n".encode())
