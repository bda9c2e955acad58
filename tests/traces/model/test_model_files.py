"""The files that make a model what it is: each byte of each counts, and no other file does."""

import hashlib
import os
import shutil

import pytest

from codi_tracing.traces.model.checkpoint import CheckpointError
from codi_tracing.traces.model.loading import load_codi, reinitialise
from codi_tracing.traces.model.model_files import fingerprint, model_files

NAMES = {
    "codi.json", "codi.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    "base/config.json", "base/model.safetensors", "base/tokenizer.json", "base/tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


def hashes(folder):
    return fingerprint(model_files(folder, str(folder / "base")))


def test_the_hash_of_every_file_that_loading_reads_is_recorded_and_of_no_other(folder):
    before = hashes(folder)
    assert set(before) == NAMES
    for name in NAMES:
        assert before[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for other in ("optimizer.pt", "base/generation_config.json", "base/optimizer.pt", "adapter/notes.md", "notes.md"):
        (folder / other).write_bytes(b"mine")
    assert hashes(folder) == before


@pytest.mark.parametrize("name", sorted(NAMES))
def test_one_byte_of_any_of_them_changes_the_record_of_that_file_alone(folder, name):
    before, content = hashes(folder), (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    after = hashes(folder)
    assert {key for key in NAMES if after[key] != before[key]} == {name}


def test_a_file_is_never_whole_in_memory(folder, monkeypatch):
    """Of a base of many GB, `read_bytes` would take them all."""
    files = model_files(folder, str(folder / "base"))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"{path} was read at once"))
    assert set(fingerprint(files)) == NAMES


@pytest.mark.parametrize("change", ["another file", "the same size and bytes, written again", "no file"])
def test_a_file_that_changed_after_loading_is_not_recorded_as_the_one_that_was_loaded(folder, change):
    model, path = load_codi(folder, device="cpu"), folder / "base" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if change != "no file":
        path.write_bytes(content + b" " * (change == "another file"))
        os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="model.safetensors: changed after the model was loaded; load it again"):
        model.describe()


def test_a_reference_before_training_is_of_the_same_files_as_the_model(folder):
    model, path = load_codi(folder, device="cpu"), folder / "base" / "model.safetensors"
    assert reinitialise(model).describe()["files"] == model.describe()["files"]
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="its files changed after the model was loaded; run it again"):
        reinitialise(model)


def test_of_a_deployment_the_request_is_recorded_and_no_weights_of_the_base(folder):
    about = load_codi(folder, remote="http://127.0.0.1:1").describe()
    assert set(about["files"]) == NAMES - {"base/model.safetensors"}
    assert about["deployment"] == {"host": "http://127.0.0.1:1", "base": None, "adapter": None}
    assert about["device"] == "a deployment's"
