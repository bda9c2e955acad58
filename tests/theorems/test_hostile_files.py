"""A pipe, an endless device, a folder or a huge file in any file's place costs a sentence, little memory and time."""

import io
import json
import os
import shutil
import signal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codi_tracing.analysis.io.table_file import parse_parquet, read_table
from codi_tracing.configs import files
from codi_tracing.traces.model.checkpoint import CheckpointError
from codi_tracing.traces.model.loading import load_codi
from tests.support.command_line import codi, refused
from tests.support.run_folders import make_run, prepared
from tests.support.tables import experiment

SECONDS = 30


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def huge(path):
    """A file of 1 TiB that takes no room on disk."""
    with path.open("wb") as file:
        file.truncate(2**40)


def circle(path):
    path.symlink_to(path.name)


KINDS = (pipe, endless, folder, huge, circle)


@pytest.fixture(autouse=True)
def bounded():
    """A test that waits, or that takes 4 GiB more than it has, fails."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS * 10)
    yield
    signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 4 * 2**20  # KiB


def replaced(path, make):
    """Put something else in a file's place."""
    path.unlink()
    make(path)


@pytest.mark.parametrize("make", KINDS)
def test_a_checkpoint_is_loaded_or_refused_in_one_sentence(random_checkpoint, tmp_path, make):
    names = [path.relative_to(random_checkpoint) for path in random_checkpoint.rglob("*") if path.is_file()]
    assert len(names) >= 8
    for name in names:
        copy = shutil.copytree(random_checkpoint, tmp_path / str(name).replace("/", "-"))
        replaced(copy / name, make)
        if name.name == "generation_config.json" and make is not huge:  # which nothing here needs
            assert load_codi(copy, device="cpu").n_latents
            continue
        with pytest.raises(CheckpointError) as said:
            load_codi(copy, device="cpu")
        assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "checks.json", "prepared_pairs.json", "cells.parquet"])
def test_a_run_folder_is_read_or_refused_in_one_sentence(tmp_path, make, name):
    run = make_run(tmp_path / "run", experiment(pairs=3), prepared(3))
    replaced(run / name, make)
    assert str(run / name) in refused(codi("report", str(run)))


@pytest.mark.parametrize("make", KINDS)
def test_files_named_on_the_command_line_are_refused_in_one_sentence(tmp_path, random_checkpoint, make):
    path = tmp_path / "given"
    make(path)
    for command in (
        ("run", path), ("plan", path), ("train", path), ("pairs", "check", path), ("score", path),
        ("eval", random_checkpoint, "--data", path), ("pairs", "make", path, "--out", tmp_path / "out.json"),
        ("lens", random_checkpoint, "--data", path, "--out", tmp_path / "lens"),
        ("report", path), ("compare", path, path), ("merge", path, path, "--out", tmp_path / "merged"),
        ("convert", path, "--base", random_checkpoint / "base", "--alpha", "32", "--out", tmp_path / "converted"),
    ):  # fmt: skip
        assert str(path) in refused(codi(*map(str, command))), command


def unread(table):
    """Why a Parquet file of this table is not read."""
    content = io.BytesIO()
    pq.write_table(table, content)
    with pytest.raises(ValueError) as said:  # noqa: PT011
        parse_parquet(content.getvalue())
    return str(said.value)


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("codi_tracing.analysis.io.table_file.LARGEST_TABLE", 2**24)
    many = pa.table({"patched": pa.DictionaryArray.from_arrays(pa.array([0] * 3_000_000, pa.int32()), pa.array([1.0]))})
    long = pa.table({"kind": pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 2**20]))})
    assert "unpacks to 3,000,000 rows" in unread(many)
    assert "a column of text unpacks to more" in unread(long)
    assert "a column of text unpacks to more" in unread(long.cast(pa.schema([("kind", pa.string())])))
    assert "lists or objects" in unread(pa.table({"kind": [[1] * 1000]}))
    pq.write_table(long, tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match="is not a whole Parquet file"):
        read_table(tmp_path / "cells.parquet")
    plain = pd.DataFrame({"a": ["x", None], "b": [1, 2]})
    pd.testing.assert_frame_equal(parse_parquet(plain.to_parquet()), plain)


HANGING = r"((\w|\w\w)+)+!"


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": HANGING},
        {"exclude_modules": HANGING},
        {"layers_to_transform": [0], "layers_pattern": [HANGING]},
        {"rank_pattern": {HANGING: 4}},
        {"alpha_pattern": {HANGING: 4}},
    ],
)
def test_a_pattern_that_would_hang_is_refused_with_its_key(random_checkpoint, tmp_path, monkeypatch, change):
    monkeypatch.setattr("codi_tracing.traces.model.lora_patterns.SECONDS", 2)
    copy = shutil.copytree(random_checkpoint, tmp_path / "copy")
    path = copy / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    key = list(change)[-1]
    with pytest.raises(
        CheckpointError, match=rf"adapter_config.json: matching [a-z_, ]*{key}.* takes more than 2 seconds"
    ):
        load_codi(copy, device="cpu")


def test_a_usual_pattern_is_taken(random_checkpoint, tmp_path):
    copy = shutil.copytree(random_checkpoint, tmp_path / "copy")
    path = copy / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    names = "|".join(config["target_modules"])
    path.write_text(json.dumps(config | {"target_modules": rf"(?:.*?(?:self_attn|mlp|attn).*?(?:{names}).*?)"}))
    assert load_codi(copy, device="cpu").loaded.landed == load_codi(random_checkpoint, device="cpu").loaded.landed


def test_a_config_of_more_than_a_mebibyte_is_refused(random_checkpoint, tmp_path):
    copy = shutil.copytree(random_checkpoint, tmp_path / "copy")
    path = copy / "adapter" / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"target_modules": ["x" * 10] * (files.LARGEST_CONFIG // 10)})
    )
    with pytest.raises(CheckpointError, match="is larger than 1 MiB"):
        load_codi(copy, device="cpu")
