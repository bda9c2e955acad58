"""A network namespace that has only `lo`, so that a server which listens on every interface is seen by nobody.

`python -m tests.ndif.namespace COMMAND...` runs a command in one. It is also a process namespace: when the command
ends, however it ends, the kernel ends all that it started.
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys

INSIDE = "--inside"
UNSHARE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 0x1


def is_alone() -> bool:
    """Whether this process sees no network interface but `lo`."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def can_be_made() -> bool:
    """Whether this machine lets us make such a namespace."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def bring_up_loopback() -> None:
    """A new namespace's `lo` is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = b"lo".ljust(16, b"\0")
        answer = fcntl.ioctl(any_socket, GET_FLAGS, name + bytes(16))
        (flags,) = struct.unpack_from("h", answer, 16)
        fcntl.ioctl(any_socket, SET_FLAGS, name + struct.pack("h", flags | UP) + bytes(14))


def run_inside(command: list[str]) -> int:
    """Run a command as this namespace's first process: take in orphans, and return the command's exit code."""
    assert os.getpid() == 1, "not inside a namespace of our own"
    bring_up_loopback()
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    if sys.argv[1:2] == [INSIDE]:
        sys.exit(run_inside(sys.argv[2:]))
    if not can_be_made():
        print("found no right to make a namespace: running without one", file=sys.stderr)
        os.execvp(sys.argv[1], sys.argv[1:])
    os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, "-m", "tests.ndif.namespace", INSIDE, *sys.argv[1:]])
