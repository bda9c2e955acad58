"""One table is of one model, one file of pairs, one dtype and one device; every version that computed is listed."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_tracing.analysis.report.write import write_report
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.pair import load_hashed_pairs
from codi_tracing.patching.runs import batch_files, experiment
from codi_tracing.patching.runs.assemble import merge_shards
from codi_tracing.patching.runs.experiment import run_experiment
from codi_tracing.patching.runs.identity import differences, identity


@pytest.fixture
def config(random_checkpoint, pairs_file, tmp_path):
    """A run of two batches, over copies of checkpoint and pairs that may be overwritten."""
    checkpoint = shutil.copytree(random_checkpoint, tmp_path / "model")
    pairs = shutil.copy(pairs_file, tmp_path / "pairs.json")
    return RunConfig(
        name="test", checkpoint=checkpoint, pairs={"file": pairs, "limit": 4}, pairs_per_batch=2, device="cpu",
        metrics=["logit_difference"],
    )  # fmt: skip


@pytest.fixture
def stopped(config, tmp_path, monkeypatch):
    """Its folder, where it stopped after the first batch."""
    write_batch = batch_files.write_batch

    def write(folder, header, rows):
        if header.batch:
            raise OSError(28, "No space left on device")
        return write_batch(folder, header, rows)

    with monkeypatch.context() as patch:
        patch.setattr(batch_files, "write_batch", write)
        with pytest.raises(OSError, match="No space left"):
            run_experiment(config, tmp_path / "run", progress=False)
    return tmp_path / "run"


def change(path):
    """Another file of the same form: tensors scaled, a number in the JSON or a blank added."""
    if path.suffix == ".safetensors":
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    else:
        path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model/base/model.safetensors", "the base's model.safetensors"),
        ("model/base/config.json", "the base's config.json"),
        ("model/base/tokenizer.json", "the base's tokenizer.json"),
        ("model/adapter/adapter_model.safetensors", "the adapter's adapter_model.safetensors"),
        ("model/codi.safetensors", "the checkpoint's codi.safetensors"),
        ("model/codi.json", "the checkpoint's codi.json"),
        ("pairs.json", "the pairs"),
    ],
)
def test_a_run_is_not_resumed_over_a_file_that_changed_and_the_sentence_names_it(config, stopped, tmp_path, name, told):
    path = tmp_path / name
    before = path.read_bytes()
    change(path)
    sentence = rf"run: holds another run \({told} changed since this run began\); use --fresh to replace it, or --out"
    with pytest.raises(ValueError, match=sentence):
        run_experiment(config, stopped, progress=False)
    path.write_bytes(before)
    (tmp_path / "model" / "optimizer.pt").write_bytes(b"a trainer's")
    resumed = run_experiment(config, stopped, progress=False)
    alone = run_experiment(config, tmp_path / "alone", progress=False)
    assert (resumed / "cells.parquet").read_bytes() == (alone / "cells.parquet").read_bytes()


def test_another_dtype_is_another_run_and_a_dtype_by_another_name_is_not(config, stopped):
    half = RunConfig.model_validate({**config.model_dump(), "dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r'\(dtype is "float32" there, "bfloat16" now\)'):
        run_experiment(half, stopped, progress=False)
    named = RunConfig.model_validate({**config.model_dump(), "dtype": "float32", "device": "auto"})
    if not torch.cuda.is_available():
        assert (run_experiment(named, stopped, progress=False) / "cells.parquet").is_file()


def test_devices_of_one_type_are_one_run_and_those_of_two_are_not():
    def on(device):
        return identity({"seed": 0, "device": device}, {"files": {}, "dtype": "float32", "device": device}, "p")

    assert on("cuda:0")["identity"] == on("cuda:1")["identity"]
    told = differences({**on("cuda:0"), "shard": None}, {**on("cpu"), "shard": None})
    assert told == 'device is "cuda" there, "cpu" now'


def test_a_deployments_base_is_part_of_the_identity():
    model = {"files": {}, "dtype": "float32", "device": "a deployment's"}
    one, other = (
        identity({}, {**model, "deployment": {"host": "h", "base": base}}, "p") | {"shard": None} for base in "ab"
    )
    assert differences(one, other) == 'deployment.base is "a" there, "b" now'


def test_a_sentence_lists_a_few_differences_and_counts_the_rest():
    one, other = (
        identity({}, {"files": dict.fromkeys("abcdefg", n), "dtype": "", "device": ""}, "p") | {"shard": None}
        for n in "12"
    )
    told = differences(one, other)
    assert told.count("changed since this run began") == 4
    assert told.endswith("; and 3 more")


def test_the_hash_of_pairs_is_of_the_bytes_that_were_read(config, tmp_path, monkeypatch):
    """A file that is replaced while a run reads it must not be recorded by the new file's hash."""
    path = tmp_path / "pairs.json"
    pairs, before = load_hashed_pairs(path)
    load = experiment.load_hashed_pairs

    def replaced(file):
        read = load(file)
        change(path)
        return read

    monkeypatch.setattr(experiment, "load_hashed_pairs", replaced)
    folder = run_experiment(config, tmp_path / "run", progress=False)
    assert load_hashed_pairs(path)[1] != before
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]["sha256"] == manifest["identity_of"]["pairs"] == before
    assert len(pairs) == 12


def shards(config, tmp_path):
    return [run_experiment(config, tmp_path / f"part{i}", shard=(i, 2), progress=False) for i in (1, 2)]


def edited(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return manifest


def test_shards_of_two_models_or_dtypes_are_not_merged(config, tmp_path):
    first = run_experiment(config, tmp_path / "first", shard=(1, 2), progress=False)
    half = RunConfig.model_validate({**config.model_dump(), "dtype": "bfloat16"})
    second = run_experiment(half, tmp_path / "half", shard=(2, 2), progress=False)
    with pytest.raises(ValueError, match=r'is of another run than .* \(dtype is "bfloat16" there, "float32" now\)'):
        merge_shards([first, second], tmp_path / "joined")
    change(tmp_path / "model" / "base" / "model.safetensors")
    second = run_experiment(config, tmp_path / "other", shard=(2, 2), progress=False)
    with pytest.raises(
        ValueError, match=r"is of another run than .* \(the base's model.safetensors changed between them\)"
    ):
        merge_shards([first, second], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_shards_of_two_versions_are_merged_and_the_manifest_and_the_report_list_both(config, tmp_path):
    first, second = shards(config, tmp_path)
    now = json.loads((first / "manifest.json").read_text())["versions"]
    old = {**now, "torch": "0.4.1"}
    edited(second, versions=old)
    joined = merge_shards([first, second], tmp_path / "joined")
    manifest = json.loads((joined / "manifest.json").read_text())
    assert manifest["versions_of_shards"] == {"1/2": [now], "2/2": [old]}
    assert "Batches of shard 2/2 ran under torch 0.4.1." in write_report(joined, figures=False).read_text()


def test_shards_that_used_other_pairs_or_whose_files_were_edited_are_not_merged(config, tmp_path):
    first, second = shards(config, tmp_path)
    manifest = edited(second)
    edited(second, files={**manifest["files"], "prepared_pairs.json": "0" * 64})
    with pytest.raises(ValueError, match="part2: its pairs are others than those of .*part1; run one of the two"):
        merge_shards([first, second], tmp_path / "joined")
    edited(second, files=manifest["files"])
    (first / "checks.json").write_text("[]")
    with pytest.raises(ValueError, match="checks.json: was edited, damaged or swapped"):
        merge_shards([first, second], tmp_path / "joined")


def test_a_base_that_changes_while_a_run_loads_it_stops_the_run(config, tmp_path, monkeypatch):
    load = experiment.load_codi

    def overwritten(*arguments):
        model = load(*arguments)
        path = tmp_path / "model" / "base" / "model.safetensors"
        change(path)
        os.utime(path, ns=(0, 0))
        return model

    monkeypatch.setattr(experiment, "load_codi", overwritten)
    with pytest.raises(ValueError, match="model.safetensors: changed after the model was loaded; load it again"):
        run_experiment(config, tmp_path / "run", progress=False)
