"""A path from outside never makes this process wait, or read more than it was told to."""

import os
import signal
from pathlib import Path

import pytest

from codi_tracing.configs.files import FileRefused, read_file, read_utf8


@pytest.fixture(autouse=True)
def no_waiting():
    """A read that waits fails its test."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def test_a_regular_file_is_read_whole_through_links(tmp_path):
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes("\ufeffé".encode())
    link.symlink_to(path)
    assert read_file(link, most=5) == path.read_bytes()
    assert read_utf8(link) == "é"


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path, found in ((tmp_path / "pipe", "is a pipe"), (tmp_path / "endless", "is a device")):
        with pytest.raises(FileRefused, match=f"{found}, expected a regular file") as said:
            read_file(path)
        assert said.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nothing")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileRefused, match="is larger than 256 MiB, the most that is read here"):
        read_file(tmp_path / "sparse")
    (tmp_path / "full").write_bytes(b"12345")
    assert read_file(tmp_path / "full", most=5) == b"12345"
    with pytest.raises(FileRefused):
        read_file(tmp_path / "full", most=4)


def test_a_file_without_a_size_that_the_system_writes_counts_by_its_bytes():
    with pytest.raises(FileRefused):  # its size is 0 according to the file system
        read_file(Path("/proc/self/environ"), most=1)
