"""One process writes a folder at a time: a run, its report, a lens, a training.

The lock is `flock`, which the death of its process releases. A file system without it (Lustre, some NFS) gets a file
that is created exclusively and names host and process: one that a dead process of this host left is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK, OWNER = ".lock", ".lock.owner"
WITHOUT_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def lock_folder(out: Path, keep: bool = True) -> Iterator[None]:
    """Hold the lock of a folder; ValueError if another process has it. Without `keep`, its file is deleted then."""
    path, held = out / LOCK, False
    while not held:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                other = file.read().strip() or "unknown"
                raise ValueError(
                    f"{out}: another process (pid {other}) is writing this folder; wait for it, or choose another --out"
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_FLOCK:
                    raise
                with owner_file(out):
                    yield
                if not keep:
                    path.unlink(missing_ok=True)
                return
            held = _is_same(path, file.fileno())
            if held:
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                try:
                    yield
                finally:
                    if not keep:
                        path.unlink(missing_ok=True)


def _is_same(path: Path, handle: int) -> bool:
    """Whether the path still names the open file: who held it before may have deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def owner_file(out: Path) -> Iterator[None]:
    """Hold the lock by a file that only one process can create."""
    path, mine = out / OWNER, f"{platform.node()} {os.getpid()}\n"
    if path.exists():
        _take_over(out, path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mine)
    except FileExistsError:
        raise _held(out, path) from None
    try:
        yield
    finally:
        if path.is_file() and path.read_text(encoding="utf-8") == mine:
            path.unlink()


def _take_over(out: Path, path: Path) -> None:
    """Remove the owner file of a dead process of this host; ValueError if its process may be alive."""
    if _may_be_alive(path):
        raise _held(out, path)
    aside = path.with_name(f"{OWNER}.{os.getpid()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another process was faster
        raise _held(out, path) from None
    if _may_be_alive(aside):  # it was faster, and this is its own file
        os.rename(aside, path)
        raise _held(out, path)
    aside.unlink()


def _may_be_alive(path: Path) -> bool:
    """Whether the process of an owner file may be alive: of another host, nobody here can know."""
    host, pid = _owner(path)
    if host != platform.node() or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _owner(path: Path) -> tuple[str, str]:
    try:
        host, _, pid = path.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
    except FileNotFoundError:
        return "", ""
    return host, pid


def _held(out: Path, path: Path) -> ValueError:
    host, pid = _owner(path)
    return ValueError(
        f"{out}: another process (pid {pid or 'unknown'} on {host or 'an unknown host'}) is writing this folder, or "
        f"was killed there; wait for it, or delete {path} if it no longer runs"
    )
