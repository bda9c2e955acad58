"""Read a file from outside only if it is a regular file of a bearable size, whatever its name promises."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST_CONFIG = 2**20  # bytes of a config: TOML, or an adapter's JSON
LARGEST_TEXT = 2**28  # bytes of any other JSON or text; parsed, it may take 20 times as much memory
LARGEST_TABLE = 2**32  # bytes of a Parquet file
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


class FileRefused(OSError):
    """A path that holds no regular file, or one that is too large to be read."""


def read_file(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a regular file; FileRefused, at once, for a pipe, a device or a file of more than `most` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(handle)
        kind = stat.S_IFMT(about.st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if kind != stat.S_IFREG:
            raise FileRefused(errno.EINVAL, f"is {KINDS.get(kind, 'no file')}, expected a regular file", str(path))
        with open(handle, "rb", closefd=False) as file:
            content = file.read(most + 1) if about.st_size <= most else None
    finally:
        os.close(handle)
    if content is None or len(content) > most:
        limit = f"is larger than {most / 2**20:,.0f} MiB, the most that is read here"
        raise FileRefused(errno.EFBIG, limit, str(path))
    return content


def read_utf8(path: Path, most: int = LARGEST_TEXT) -> str:
    """The same as text in UTF-8, with or without a byte order mark."""
    return read_file(path, most).decode("utf-8-sig")
