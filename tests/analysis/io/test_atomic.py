"""Files are written completely or not at all."""

import json

import pytest

from codi_tracing.analysis.io.atomic import write_json, write_whole


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_whole(path, "text is not bytes")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["values.json"]


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    assert write_json(link, [1, "鸭"], indent=None) == link
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == '[1, "鸭"]\n'


@pytest.mark.parametrize("name", [".", "/dev/null"])
def test_a_folder_and_a_device_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no regular file; choose another"):
        write_whole(tmp_path / name, b"bytes")
