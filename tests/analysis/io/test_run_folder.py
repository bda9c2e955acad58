"""A finished run's files are read as the run wrote them, or refused: no other value is ever read."""

import json
import random
import shutil

import pandas as pd
import pytest

import codi_tracing as ct
from codi_tracing.analysis.report.finished_run import read_run
from codi_tracing.analysis.report.write import write_report
from tests.support.command_line import codi, refused

MUTATIONS = 400
TOLD = "was edited, damaged or swapped: its SHA-256 is not the manifest's; restore it, or run it again with --fresh"


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def readings(run):
    """Every way to read a run folder, by name."""
    return {
        "read_table": lambda: ct.read_table(run / "cells.parquet"),
        "read_run": lambda: read_run(run),
        "write_report": lambda: write_report(run, figures=False),
        "compare_runs": lambda: ct.compare_runs(run, run, "logit_difference"),
    }


def test_none_of_400_mutations_of_a_finished_table_is_read_as_other_values(run):
    path, rng = run / "cells.parquet", random.Random(0)
    content, table = path.read_bytes(), ct.read_table(run / "cells.parquet")
    refusals = 0
    for _ in range(MUTATIONS):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        if changed == content:  # drew the bytes that were there
            pd.testing.assert_frame_equal(ct.read_table(path), table)
            continue
        with pytest.raises(ValueError, match=TOLD):
            ct.read_table(path)
        refusals += 1
    assert refusals > 0.9 * MUTATIONS


def test_a_table_of_another_run_or_with_one_value_changed_is_refused_by_everything_that_reads_runs(run, finished_run):
    table = ct.read_table(run / "cells.parquet")
    for read in readings(run).values():
        assert read() is not None
    edited = table.copy()
    edited.loc[0, "patched"] += 1e-9
    for other in (edited, table.iloc[:-1]):
        ct.write_table(other, run / "cells.parquet")
        for name, read in readings(run).items():
            with pytest.raises(ValueError, match=f"cells.parquet: {TOLD}"):
                pytest.fail(f"{name} read {read()}")
        assert TOLD in refused(codi("report", run))
        assert TOLD in refused(codi("compare", finished_run, run))


@pytest.mark.parametrize("name", ["checks.json", "prepared_pairs.json"])
def test_other_files_that_a_report_reads_are_refused_too_when_edited(run, name):
    path = run / name
    path.write_text(path.read_text().replace("0", "1", 1))
    with pytest.raises(ValueError, match=f"{name}: {TOLD}"):
        write_report(run, figures=False)


def test_a_manifest_without_hashes_is_refused_in_a_run_of_this_version_and_read_in_an_earlier_ones(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert sorted(manifest.pop("files")) == ["cells.parquet", "checks.json", "prepared_pairs.json"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="manifest.json: lacks the hashes of the run's files; restore it"):
        ct.read_table(run / "cells.parquet")
    (run / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    assert len(ct.read_table(run / "cells.parquet")) > 0


def test_a_table_outside_a_run_folder_is_read_whatever_lies_beside_it(run, tmp_path):
    shutil.copy(run / "cells.parquet", tmp_path / "cells.parquet")
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    pd.testing.assert_frame_equal(ct.read_table(tmp_path / "cells.parquet"), ct.read_table(run / "cells.parquet"))
