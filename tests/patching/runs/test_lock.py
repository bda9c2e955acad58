"""One process at a time in a run folder, on file systems with and without `flock`."""

import errno
import fcntl
import os
import platform
import subprocess
import sys

import pytest

from codi_tracing.patching.runs.lock import OWNER, lock_folder
from tests.support.places import ROOT

SCRIPT = """
import errno, fcntl, sys
from pathlib import Path
from codi_tracing.patching.runs.lock import lock_folder
def no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = no_flock
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def no_flock(request, monkeypatch):
    def fail(*_):
        raise OSError(getattr(errno, request.param), "not here")

    monkeypatch.setattr(fcntl, "flock", fail)


def test_where_there_is_no_flock_a_second_process_is_refused_and_a_killed_ones_lock_is_taken_over(tmp_path, no_flock):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = rf"another process \(pid {holder.pid} on {platform.node()}\) is writing this folder, or was killed there"
        with pytest.raises(ValueError, match=told), lock_folder(tmp_path):
            pytest.fail("both have it")
        holder.kill()
        holder.wait()
        with lock_folder(tmp_path):
            assert (tmp_path / OWNER).read_text().split() == [platform.node(), str(os.getpid())]
    assert not (tmp_path / OWNER).exists()


def test_the_lock_of_another_host_is_never_taken_over_and_the_sentence_says_what_to_do(tmp_path, no_flock):
    (tmp_path / OWNER).write_text("node-17 4\n")
    told = r"\(pid 4 on node-17\) .* wait for it, or delete .*\.lock\.owner if it no longer runs"
    with pytest.raises(ValueError, match=told), lock_folder(tmp_path):
        pytest.fail("taken over")
    assert (tmp_path / OWNER).read_text() == "node-17 4\n"


def test_a_lock_that_another_process_took_over_first_is_left_to_it(tmp_path, no_flock, monkeypatch):
    """Two processes see the same dead owner; the slower one must not move the faster one's file away."""
    path = tmp_path / OWNER
    path.write_text(f"{platform.node()} {2**22 + 1}\n")  # above the largest process id
    rename, alive = os.rename, f"{platform.node()} {os.getppid()}\n"

    def faster(source, target):
        if source == path and path.read_text() != alive:
            path.write_text(alive)
        rename(source, target)

    monkeypatch.setattr(os, "rename", faster)
    with pytest.raises(ValueError, match=rf"pid {os.getppid()} on"), lock_folder(tmp_path):
        pytest.fail("both have it")
    assert path.read_text() == alive


def test_any_other_error_of_flock_is_not_taken_for_its_absence(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), lock_folder(tmp_path):
        pytest.fail("held")


def test_a_lock_that_is_not_kept_leaves_no_file_and_is_held_by_one_process_at_a_time(tmp_path, monkeypatch):
    """A process that opened the file before its holder deleted it must not take the deleted file for the lock."""
    flock, opened = fcntl.flock, []

    def slow(file, how):
        if not opened:
            opened.append(file)
            (tmp_path / ".lock").unlink()  # the holder ends between this process's open and its flock
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with lock_folder(tmp_path, keep=False):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(ValueError, match=rf"another process \(pid {os.getpid()}\)"), lock_folder(tmp_path):
            pytest.fail("both have it")
    assert list(tmp_path.iterdir()) == []
