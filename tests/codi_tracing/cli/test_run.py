"""codi run, merge: options, refusals, interruption, shards, and what a run prints."""

import json
from pathlib import Path

import pytest

from codi_tracing.patching.runs.experiment import InvariantError
from tests.support.command_line import PAIR, refused, small_run


def test_a_missing_config_is_one_sentence(codi):
    assert refused(codi("run", "nope.toml")).startswith("codi: nope.toml: no such file; give a TOML config")


def test_an_unknown_key_is_one_sentence_with_the_nearest_key(codi, config):
    config('name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\nlimt = 3')
    assert "unknown key 'limt', the nearest known key is 'pairs.limit'" in refused(codi("run", "config.toml"))


def test_a_wrong_option_is_named_as_it_was_typed(codi, config):
    line = refused(codi("run", config(), "--limit", "0", "--dtype", "fp16"))
    assert "--limit is 0, expected 1 or more; --dtype is 'fp16', expected 'auto'" in line


def test_bad_pairs_are_one_sentence_when_run(codi, config, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR[:1]))
    assert "pairs.json: pair 0: its corrupted side is missing" in refused(codi("run", config()))


def test_paths_on_the_command_line_are_relative_to_the_current_folder(codi, config, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / config()).rename(tmp_path / "deep" / "config.toml")
    assert refused(codi("run", "deep/config.toml")).startswith("codi: deep/pairs.json: no such file")
    line = refused(codi("run", "deep/config.toml", "--pairs", "mine.json"))
    assert line.startswith("codi: mine.json: no such file")


def test_a_run_prints_the_report_the_corners_the_verdict_and_the_largest_layers(
    codi, config, random_checkpoint, pairs_file
):
    config('name = "a"\ncheckpoint = "model"\npairs = { file = "pairs.json", limit = 4 }\nout = "runs/a"')
    result = codi("run", "config.toml", "--checkpoint", random_checkpoint, "--pairs", pairs_file, "--device", "cpu")
    assert result.exit_code == 0, result.output
    for part in (
        "Report: runs/a/report.html",
        "5 of 5 invariants hold.",
        "question   thought",
        "Undecided, because",  # a random model answers hardly anything
    ):
        assert part in result.stdout
    assert Path("runs/a/report.html").is_file()
    again = codi("report", "runs/a")
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    once_more = codi("run", "config.toml", "--checkpoint", random_checkpoint, "--pairs", pairs_file, "--device", "cpu")
    assert "runs/a holds this run, finished; --fresh runs it again" in once_more.stderr
    refusal = refused(
        codi("run", "config.toml", "--checkpoint", random_checkpoint, "--pairs", pairs_file, "--limit", 3)
    )
    assert "runs/a: holds another run" in refusal


def test_an_invariant_that_fails_is_one_sentence_and_exit_code_1(codi, config, monkeypatch):

    def broken(config, out, **options):
        raise InvariantError("Writing a run's own values changes a logit by 0.3 (allowed 1e-05).")

    monkeypatch.setattr("codi_tracing.patching.runs.experiment.run_experiment", broken)
    result = codi("run", config())
    assert result.exit_code == 1
    assert result.stderr == "codi: Writing a run's own values changes a logit by 0.3 (allowed 1e-05).\n"


def test_shards_are_run_into_folders_of_their_own_and_merged(codi, tmp_path, random_checkpoint, pairs_file):
    config = small_run(tmp_path, random_checkpoint, pairs_file)
    for part in ("1/2", "2/2"):
        done = codi("run", config, "--shard", part)
        assert done.exit_code == 0
        folder = f"runs/small.{part.replace('/', '-of-')}"
        assert done.stdout == f"shard {part} is in {folder}; when all are finished: codi merge RUN… --out DIR\n"
    assert "holds this run, finished" in codi("run", config, "--shard", "2/2").stderr
    line = refused(codi("report", "runs/small.1-of-2"))
    assert line.endswith("is shard 1/2 of a run and has no table; merge the shards: codi merge RUN… --out DIR")
    line = refused(codi("merge", "runs/small.1-of-2", "--out", "runs/all"))
    assert line == "codi: shard 2/2 is missing; run it: codi run CONFIG --shard 2/2"
    merged = codi("merge", "runs/small.1-of-2", "runs/small.2-of-2", "--out", "runs/all")
    assert merged.exit_code == 0, merged.output
    assert "Report: runs/all/report.html" in merged.stdout
    assert codi("run", config, "--out", "runs/alone").exit_code == 0
    alone, joined = (tmp_path / "runs" / name / "cells.parquet" for name in ("alone", "all"))
    assert alone.read_bytes() == joined.read_bytes()


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2", "1/0", "1/1000000"])
def test_an_invalid_shard_is_one_sentence(codi, tmp_path, random_checkpoint, pairs_file, part):
    config = small_run(tmp_path, random_checkpoint, pairs_file)
    line = refused(codi("run", config, f"--shard={part}"))
    assert line == f"codi: --shard is {part!r}, expected i/n with i from 1 to n, e.g. 2/8"


def test_a_run_that_is_interrupted_says_how_far_it_is_and_ends_with_130(
    codi, tmp_path, random_checkpoint, pairs_file, monkeypatch
):
    import os
    import signal

    from codi_tracing.patching.engine import sweep as engine

    config, run_batch, calls = small_run(tmp_path, random_checkpoint, pairs_file), engine.run_batch, []

    def interrupting(*args):
        calls.append(None)
        if len(calls) == 3:  # the first two are the checks'
            os.kill(os.getpid(), signal.SIGINT)
        return run_batch(*args)

    monkeypatch.setattr(engine, "run_batch", interrupting)
    done = codi("run", config)
    assert done.exit_code == 130
    assert done.stderr.endswith(
        "codi: interrupted; 1 of 3 batches of this sweep are saved, the same command goes on from there\n"
    )
    again = codi("run", config)
    assert again.exit_code == 0
    assert len(calls) == 5  # neither the checks nor the saved batch anew


def test_memory_that_runs_out_is_one_sentence(codi, tmp_path, random_checkpoint, pairs_file, monkeypatch):
    import torch

    from codi_tracing.patching.engine import batch

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(batch, "start_cells", full)
    done = codi("run", small_run(tmp_path, random_checkpoint, pairs_file))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("codi: pair ")
    assert "one cell of one pair does not fit into memory" in done.stderr
