"""Files are written completely or not at all, and nothing else is touched."""

import json
import os
import stat
import subprocess
import sys

import pytest

from codi_tracing.analysis.io.atomic import STALE, write_json, write_whole


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_whole(path, "text is not bytes")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert names(tmp_path) == ["values.json"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    assert write_json(link, [1, "鸭"], indent=None) == link
    assert not link.is_symlink()
    assert link.read_text(encoding="utf-8") == '[1, "鸭"]\n'
    assert target.read_text() == "old"


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    target = tmp_path / "target.json"
    target.write_text("old")
    (tmp_path / ".a.json.tmp").symlink_to(target)
    write_json(tmp_path / "a.json", [1])
    assert target.read_text() == "old"
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize("name", [".", "/dev/null"])
def test_a_folder_and_a_device_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no regular file; choose another"):
        write_whole(tmp_path / name, b"bytes")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_umask_decides_who_may_read_a_file(tmp_path, mask):
    code = "import os, sys; from pathlib import Path; from codi_tracing.analysis.io.atomic import write_whole\n"
    code += f"os.umask({mask}); write_whole(Path(sys.argv[1]), b'x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_what_a_killed_process_left_is_deleted_and_what_another_process_writes_is_not(tmp_path):
    left = tmp_path / ".a.json.tmp"
    left.write_text("half")
    write_json(tmp_path / "a.json", [1])  # another process may be writing it
    assert names(tmp_path) == [".a.json.tmp", "a.json"]
    os.utime(left, (0, left.stat().st_mtime - STALE - 1))
    write_json(tmp_path / "a.json", [2])
    assert names(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [2]
