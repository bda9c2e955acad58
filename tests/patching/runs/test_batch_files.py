"""An interrupted run resumes and ends in the same bytes; a damaged or foreign batch file is never believed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.report.write import write_report
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.batch_store import BatchResult
from codi_tracing.patching.runs import batch_files
from codi_tracing.patching.runs.assemble import finish, merge_shards
from codi_tracing.patching.runs.batch_files import HEADER_KEY, BatchFileError, read_batch, write_hashed
from codi_tracing.patching.runs.experiment import run_experiment
from codi_tracing.patching.runs.run_folder import BATCHES
from tests.support.mutations import fuzz, mutated_bytes
from tests.support.places import ROOT

KILLS = 24
REASON = "the logits of 3 of its 9 runs are not finite in float16"


@pytest.fixture(scope="module")
def config(random_checkpoint, pairs_file):
    return RunConfig(
        name="test", checkpoint=random_checkpoint, pairs={"file": pairs_file, "filter": "usable"}, device="cpu",
        pairs_per_batch=2, metrics=["logit_difference", "answer", "answer_is_clean", "answer_is_corrupted"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The run in one piece."""
    return run_experiment(config, tmp_path_factory.mktemp("whole") / "run", progress=False)


def with_experiment(config, experiment, **changes):
    kept = {"name", "checkpoint", "pairs", "device", "pairs_per_batch"}
    return RunConfig.model_validate({**config.model_dump(include=kept), "experiment": experiment, **changes})


def stop_after(monkeypatch, batches):
    """Let the disk be full after so many batches."""
    write_batch = batch_files.write_batch

    def write(*args):
        write.left -= 1
        if write.left < 0:
            raise OSError(28, "No space left on device")
        return write_batch(*args)

    write.left = batches
    monkeypatch.setattr(batch_files, "write_batch", write)


def in_a_child(config, out, **options):
    """Run in a forked process, so that it can be killed; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run_experiment(config, out, progress=False, **options)
        code = 0
    finally:
        os._exit(code)


def test_a_run_killed_at_any_moment_resumes_and_ends_in_the_same_bytes(config, whole, tmp_path):
    out, rng = tmp_path / "killed", random.Random(0)
    started = time.monotonic()
    assert os.waitpid(in_a_child(config, tmp_path / "timed"), 0)[1] == 0
    duration = time.monotonic() - started
    kills, finished = 0, 0
    while kills < KILLS:
        child = in_a_child(config, out)
        time.sleep(rng.random() * duration * 0.6)
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:  # it finished before
            finished += 1
        else:
            kills += 1
        if (out / "cells.parquet").exists() and json.loads((out / "manifest.json").read_text())["finished"]:
            assert (out / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()
            out = tmp_path / f"killed-{kills}-{finished}"
    run_experiment(config, out, progress=False)
    assert (out / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()
    assert not (out / BATCHES).exists()


@pytest.fixture(scope="module")
def stopped_once(config, tmp_path_factory):
    """A run that stopped after two of its batches."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(OSError, match="No space left"):
            run_experiment(config, folder, progress=False)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of that run, to be resumed or damaged."""
    return shutil.copytree(stopped_once, tmp_path / "run")


def test_a_resumed_run_computes_only_the_missing_batches(config, whole, stopped, monkeypatch):
    assert len(list((stopped / BATCHES).glob("*.parquet"))) == 2
    written, write_batch = [], batch_files.write_batch
    monkeypatch.setattr(batch_files, "write_batch", lambda *args: (written.append(args), write_batch(*args))[1])
    run_experiment(config, stopped, progress=False)
    assert len(written) == 6 - 2
    assert (stopped / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()


def damaged(content: bytes, how: str) -> bytes:
    return {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "one byte": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "header": content.replace(b'"batch": 0', b'"batch": 1', 1),
        "text": b"not a batch\n",
    }[how]


@pytest.mark.parametrize("how", ["truncated", "empty", "one byte", "header", "text"])
def test_a_damaged_batch_is_reported_and_computed_again(config, whole, stopped, how, capsys):
    path = sorted((stopped / BATCHES).glob("*.parquet"))[0]
    content = path.read_bytes()
    assert damaged(content, how) != content
    path.write_bytes(damaged(content, how))
    run_experiment(config, stopped, progress=False)
    assert (stopped / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()
    assert "it is computed again" in capsys.readouterr().err
    assert json.loads((stopped / "manifest.json").read_text())["set_aside"][0].startswith(path.name)


def test_a_damaged_cached_result_is_computed_again(config, whole, stopped, capsys):
    (path,) = (stopped / BATCHES).glob("checks.*.json")
    path.write_bytes(path.read_bytes()[:-3])
    run_experiment(config, stopped, progress=False)
    assert "it is computed again" in capsys.readouterr().err
    assert json.loads((stopped / "checks.json").read_text()) == json.loads((whole / "checks.json").read_text())


def test_a_batch_is_a_parquet_file_that_pandas_reads_with_its_header_in_the_metadata(stopped):
    path = sorted((stopped / BATCHES).glob("*.parquet"))[0]
    header, rows = read_batch(path)
    pd.testing.assert_frame_equal(pd.read_parquet(path), rows)
    about = json.loads(pq.read_schema(path).metadata[HEADER_KEY])
    assert (about["identity"], about["sweep"], about["batch"], about["of"]) == (header.identity, 0, 0, 6)
    assert about["identity"] == json.loads((stopped / "manifest.json").read_text())["identity"]


def test_no_changed_byte_of_a_batch_goes_unnoticed(stopped, tmp_path):
    path = sorted((stopped / BATCHES).glob("*.parquet"))[0]
    content, target = path.read_bytes(), tmp_path / path.name
    assert read_batch(path)[0].batch == 0
    for position in [*range(600), *range(600, len(content), 97), *range(len(content) - 100, len(content))]:
        target.write_bytes(content[:position] + bytes([content[position] ^ 0x20]) + content[position + 1 :])
        with pytest.raises(BatchFileError):
            read_batch(target)


def test_a_mutated_batch_is_whole_or_refused(stopped, tmp_path):
    path = sorted((stopped / BATCHES).glob("*.parquet"))[0]
    content, target = path.read_bytes(), tmp_path / path.name

    def read(mutated: bytes) -> str:
        target.write_bytes(mutated)
        try:
            rows = read_batch(target)[1]
        except BatchFileError:
            return "refused"
        assert mutated == content
        return f"whole, {len(rows)} rows"

    assert fuzz("shards", mutated_bytes([content]), read, 1000)["refused"] > 500


@pytest.mark.parametrize("how", ["another table", "no header", "a header of another version"])
def test_a_parquet_file_that_no_run_of_this_version_wrote_is_refused(stopped, tmp_path, how):
    table = pq.read_table(sorted((stopped / BATCHES).glob("*.parquet"))[0])
    header = json.loads(table.schema.metadata[HEADER_KEY])
    if how == "another table":
        table = table.rename_columns([f"old {name}" for name in table.column_names])
    elif how == "no header":
        table = table.replace_schema_metadata({})
    else:
        table = table.replace_schema_metadata({HEADER_KEY: json.dumps({**header, "place": 0})})
    pq.write_table(table, tmp_path / "batch")
    path = write_hashed(tmp_path, "00-00000", "parquet", (tmp_path / "batch").read_bytes())
    with pytest.raises(BatchFileError, match="of another version|not a batch of this version"):
        read_batch(path)


def test_another_runs_batch_is_not_believed(config, whole, stopped, tmp_path, monkeypatch, capsys):
    other = RunConfig.model_validate({**config.model_dump(), "seed": 1})
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            run_experiment(other, tmp_path / "other", progress=False)
    foreign = sorted((tmp_path / "other" / BATCHES).glob("*.parquet"))[0]
    (stopped / BATCHES / foreign.name).write_bytes(foreign.read_bytes())
    run_experiment(config, stopped, progress=False)
    assert "belongs to another run" in capsys.readouterr().err
    assert (stopped / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()


def test_the_folder_of_an_older_version_is_refused_and_replaced_with_fresh(config, whole, stopped):
    manifest = json.loads((stopped / "manifest.json").read_text())
    del manifest["format"]
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"another version of codi-tracing \(run folder format 1, expected 3\); use --fr"
    ):
        run_experiment(config, stopped, progress=False)
    run_experiment(config, stopped, fresh=True, progress=False)
    assert (stopped / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()


def test_a_folder_of_another_run_is_refused_and_the_difference_named(config, stopped, pairs_file, tmp_path):
    for changes, told in [
        ({"seed": 1}, "seed is 0 there, 1 now"),
        ({"draws": 2, "max_failed": 0.9}, r"draws is 1 there, 2 now\)"),
        ({"pairs": {"file": pairs_file, "limit": 4}}, "pairs.limit is null there, 4 now"),
    ]:
        with pytest.raises(ValueError, match=told):
            run_experiment(RunConfig.model_validate({**config.model_dump(), **changes}), stopped, progress=False)
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(json.loads(Path(pairs_file).read_text())[:8]))
    with pytest.raises(ValueError, match=r"\(the pairs changed since this run began\); use --fresh to replace it"):
        run_experiment(RunConfig.model_validate({**config.model_dump(), "pairs": {"file": fewer}}), stopped)


def test_max_failed_does_not_make_it_another_run(config, stopped, whole):
    run_experiment(config.model_copy(update={"max_failed": 1.0}), stopped, progress=False)
    assert (stopped / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()


def test_a_run_begun_under_other_versions_resumes_only_by_force_and_records_them(config, whole, stopped):
    manifest = json.loads((stopped / "manifest.json").read_text())
    manifest["versions"]["torch"] = "0.4.1"
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"begun under other versions \(torch is 0.4.1 there, .* or use --force"):
        run_experiment(config, stopped, progress=False)
    run_experiment(config, stopped, force=True, progress=False)
    assert (stopped / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()
    (before,) = json.loads((stopped / "manifest.json").read_text())["begun_under"]
    assert before["torch"] == "0.4.1"
    page = write_report(stopped, figures=False).read_text()
    assert "Batches before an interruption ran under torch 0.4.1." in page


def test_a_second_process_on_one_folder_is_refused(config, tmp_path):
    script = "import sys; from pathlib import Path; from codi_tracing.patching.runs.run_folder import locked\n"
    script += "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()\n"
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another process \(pid {holder.pid}\) is writing this folder"):
            run_experiment(config, tmp_path / "run", progress=False)
        holder.kill()
    assert run_experiment(config, tmp_path / "run", progress=False) == tmp_path / "run"


def in_shards(config, tmp_path, count):
    return [
        run_experiment(config, tmp_path / f"{i}-of-{count}", shard=(i, count), progress=False)
        for i in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        ("sweep", {"reinitialised": True, "pairs_per_batch": 3}),
        ("matched", {"matches": 3, "pairs_per_batch": 4}),
        ("original", {}),
        ("early_stop", {}),
    ],
)
def test_merged_shards_are_the_run_in_one_piece(config, tmp_path, experiment, changes):
    if experiment == "matched":  # a model that answers right, or nothing can be matched
        changes = {**changes, "checkpoint": ROOT / "traces/embedded/thought"}
        changes["pairs"] = {"file": ROOT / "patching/data/arithmetic_pairs.json"}
    chosen = with_experiment(config, experiment, **changes)
    alone = run_experiment(chosen, tmp_path / "alone", progress=False)
    parts = in_shards(chosen, tmp_path, 2)
    joined = merge_shards(parts[::-1], tmp_path / "joined")
    assert (joined / "cells.parquet").read_bytes() == (alone / "cells.parquet").read_bytes()
    for name in ("checks.json", "prepared_pairs.json"):
        assert json.loads((joined / name).read_text()) == json.loads((alone / name).read_text())
    mine, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (joined, alone))
    apart = {"created", "seconds"}
    assert {k: v for k, v in mine.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}


def test_missing_repeated_and_foreign_shards_are_refused_and_a_lost_batch_is_computed_again(config, tmp_path, capsys):
    first, second, third = in_shards(config, tmp_path, 3)
    for folders, told in [
        ([first, third], "shard 2/3 is missing; run it: codi run CONFIG --shard 2/3"),
        ([first, second, third, second], "is shard 2/3, as .* is; name each shard once"),
        ([], "no shard was named"),
    ]:
        with pytest.raises(ValueError, match=told):
            merge_shards(folders, tmp_path / "joined")
    other = run_experiment(
        RunConfig.model_validate({**config.model_dump(), "seed": 3}), tmp_path / "other", shard=(2, 3), progress=False
    )
    with pytest.raises(ValueError, match=r"is of another run than .* \(seed is 3 there, 0 now\)"):
        merge_shards([first, other, third], tmp_path / "joined")
    half = run_experiment(config, tmp_path / "half", shard=(2, 2), progress=False)
    with pytest.raises(ValueError, match="is shard 2/2, but .* is one of 3"):
        merge_shards([first, second, third, half], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    lost = sorted((second / BATCHES).glob("*.parquet"))[0]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"2-of-3: its batches/{lost.name} is missing; run shard 2/3 again"):
        merge_shards([first, second, third], tmp_path / "joined")
    kept = {path: path.stat().st_mtime_ns for path in (second / BATCHES).glob("*.parquet")}
    in_shards(config, tmp_path, 3)  # the same commands
    assert f"batches/{lost.name} is missing; it is computed again" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert merge_shards([first, second, third], tmp_path / "joined") == tmp_path / "joined"


def test_a_whole_run_and_an_unfinished_shard_are_not_merged(config, whole, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no shard of a run, expected a folder that codi run --shard wrote"):
        merge_shards([whole], tmp_path / "joined")
    stop_after(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left"):
        run_experiment(config, tmp_path / "shard", shard=(1, 2), progress=False)
    with pytest.raises(ValueError, match="shard 1/2 is not finished; run it again"):
        merge_shards([tmp_path / "shard"], tmp_path / "joined")


def test_the_folder_of_one_shard_is_refused_for_another_and_for_the_whole_run(config, tmp_path):
    run_experiment(config, tmp_path / "shard", shard=(1, 3), progress=False)
    with pytest.raises(ValueError, match=r"it is shard 1/3, not shard 2/3"):
        run_experiment(config, tmp_path / "shard", shard=(2, 3), progress=False)
    with pytest.raises(ValueError, match=r"it is shard 1/3, not the whole run"):
        run_experiment(config, tmp_path / "shard", progress=False)


def test_an_experiment_that_needs_all_pairs_first_is_not_run_in_shards(config, tmp_path):
    with pytest.raises(ValueError, match="it cannot be run in shards"):
        run_experiment(with_experiment(config, "attribution"), tmp_path / "run", shard=(1, 2), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_for_the_batch_and_the_run_resumes(config, whole, tmp_path, monkeypatch, number):
    from codi_tracing.patching.engine import sweep as engine
    from codi_tracing.patching.runs.batch_files import Interrupted

    run_batch, calls = engine.run_batch, []

    def interrupting(*args):
        calls.append(None)
        if len(calls) == 5:  # the first ones are the checks', which save no batches
            os.kill(os.getpid(), number)
        return run_batch(*args)

    monkeypatch.setattr(engine, "run_batch", interrupting)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"\d of 6 batches of this sweep are saved, the same command goes on"):
        run_experiment(config, tmp_path / "run", progress=False)
    assert signal.getsignal(number) is before
    saved = len(list((tmp_path / "run" / BATCHES).glob("*.parquet")))
    assert 0 < saved < 6
    run_experiment(config, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()


def failing(monkeypatch, pairs):
    """Let these pairs fail, as if their logits had overflowed."""
    from codi_tracing.patching.engine import sweep as engine

    run_batch = engine.run_batch

    def run(model, batch, *rest):
        found = run_batch(model, batch, *rest)
        ids = [str(p.pair.pair_id) for p in batch]
        failed = tuple(
            (pair, "the logits of 3 of its 9 runs are not finite in float16") for pair in ids if pair in pairs
        )
        return BatchResult(found.rows[~found.rows["pair_id"].isin(pairs)], failed)

    monkeypatch.setattr(engine, "run_batch", run)


def test_a_failed_pair_is_named_with_its_reason_and_the_others_run(config, whole, tmp_path, monkeypatch):
    failing(monkeypatch, {"3", "4"})
    out = run_experiment(config, tmp_path / "run", progress=False)
    data = json.loads((out / "manifest.json").read_text())["data"]
    assert [entry["pair_id"] for entry in data["failed"]] == ["3", "4"]
    assert data["used"] == 10
    rest = read_table(whole / "cells.parquet").query("pair_id not in ('3', '4')").reset_index(drop=True)
    pd.testing.assert_frame_equal(read_table(out / "cells.parquet"), rest)
    page = write_report(out, figures=False).read_text()
    assert "Failed in the run, and without rows: 2." in page
    assert REASON in page


def test_more_failures_than_allowed_stop_the_run_and_a_higher_limit_resumes_it(config, tmp_path, monkeypatch):
    failing(monkeypatch, {"0", "1", "2"})
    few = config.model_copy(update={"max_failed": 0.2})
    with pytest.raises(
        ValueError, match=r"3 of 12 pairs failed, more than max_failed = 0\.2 allows; the first is pair"
    ):
        run_experiment(few, tmp_path / "run", progress=False)
    out = run_experiment(config, tmp_path / "run", progress=False)
    assert json.loads((out / "manifest.json").read_text())["data"]["used"] == 9


def test_if_every_pair_fails_there_is_no_table(config, tmp_path, monkeypatch):
    failing(monkeypatch, set(map(str, range(12))))
    with pytest.raises(ValueError, match="every pair failed, so there is no table"):
        run_experiment(config.model_copy(update={"max_failed": 1.0}), tmp_path / "run", progress=False)


def test_deterministic_operations_last_only_for_the_run(config, whole, tmp_path):
    chosen = config.model_copy(update={"deterministic": True})
    out = run_experiment(chosen, tmp_path / "run", progress=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert (out / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()
    with pytest.raises(ValueError, match="deterministic is true there, false now"):
        run_experiment(config, out, progress=False)


def test_the_manifest_records_batches_and_sizes(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    (sweep,) = manifest["forwards"]
    assert (sweep["pairs"], sweep["batches"], sweep["pairs_per_batch"]) == (12, 6, 2)
    assert sweep["cells_per_forward"] >= 1
    assert sweep["estimated_gib"] >= 0
    assert manifest["out_of_memory"] == {"halvings": 0}
    assert manifest["merge_lora"]["merged"]
    assert manifest["seeds"] == {"unrelated_donors": 0, "pairs": None}


def test_a_run_with_all_its_batches_needs_no_model_to_be_finished(config, whole, tmp_path, monkeypatch):
    from codi_tracing.patching.runs import experiment

    monkeypatch.setattr(experiment, "finish", lambda out, about: (out / "about.json").write_text(json.dumps(about)))
    run_experiment(config, tmp_path / "run", progress=False)
    finish(tmp_path / "run", json.loads((tmp_path / "run" / "about.json").read_text()))
    assert (tmp_path / "run" / "cells.parquet").read_bytes() == (whole / "cells.parquet").read_bytes()


def in_a_namespace(script: str, *args: str) -> subprocess.CompletedProcess:
    """Run a shell script where it may mount file systems; skip where nobody may."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    env = {**os.environ, "PYTHON": sys.executable}
    command = ["unshare", "-rm", "bash", "-c", script, "bash", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_full_disk_and_a_read_only_folder_are_reported_in_a_sentence_and_the_run_resumes(tmp_path, random_checkpoint):
    config = tmp_path / "run.toml"
    pairs = ROOT / "patching/data/arithmetic_pairs.json"
    text = f'name = "t"\ncheckpoint = "{random_checkpoint}"\npairs_per_batch = 2\nmax_new_tokens = 2\n'
    config.write_text(f'{text}[pairs]\nfile = "{pairs}"\nlimit = 8\n')
    script = """
        mkdir -p "$1/disk" && mount -t tmpfs -o size=100k none "$1/disk" || exit 99
        "$PYTHON" -m codi_tracing run "$2" --out "$1/disk/run"; echo "full: $?"
        find "$1/disk/run/batches" -name '*.parquet' | wc -l
        mount -o remount,ro "$1/disk"
        "$PYTHON" -m codi_tracing run "$2" --out "$1/disk/run"; echo "read-only: $?"
        mount -o remount,rw,size=64m "$1/disk"
        "$PYTHON" -m codi_tracing run "$2" --out "$1/disk/run" > /dev/null; echo "again: $?"
    """
    done = in_a_namespace(script, str(tmp_path), str(config))
    assert done.returncode != 99, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("codi: ")]
    assert "Traceback" not in done.stderr
    assert "full: 2" in done.stdout
    assert "read-only: 2" in done.stdout
    assert "again: 0" in done.stdout
    assert "No space left on device" in told[0]
    assert "Read-only file system" in told[1]
