"""Two run folders compared."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from codi_tracing.analysis.figures.comparison import comparison_data
from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.report.compare_runs import compare_runs, run_names
from codi_tracing.cli.main import app
from tests.support.run_folders import make_run, prepared
from tests.support.tables import experiment


@pytest.fixture
def runs(tmp_path):
    """Two run folders of other checkpoints on the same pairs."""
    tables = experiment(layers=(0.8, 0.3), pairs=6), experiment(layers=(0.5, 0.3), pairs=6, seed=1)
    names = ("thought", "bypass")
    return [
        make_run(tmp_path / name, table, prepared(6), model={"checkpoint": f"models/{name}"})
        for name, table in zip(names, tables, strict=True)
    ]


def test_codi_compare_says_where_the_runs_differ_and_writes_what_it_says(runs, tmp_path):
    result = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "thought: " in result.output
    assert "residual stream, layer 0" in result.output
    assert (
        "no difference can be tested (8 clusters are needed) (n = 6 pairs that both have, 6 clusters)" in result.output
    )
    assert "nan" not in result.output
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".parquet", ".png", ".svg", ".html", ".json"}
    written = pd.read_parquet(tmp_path / "out" / "comparison.parquet")
    table = comparison_data(*(read_table(run / "cells.parquet") for run in runs))
    np.testing.assert_allclose(written["difference"], table["difference"])


def test_runs_of_one_name_are_called_by_what_tells_them_apart(runs):
    assert run_names(*runs) == ("thought", "bypass")
    manifest = json.loads((runs[1] / "manifest.json").read_text())
    manifest["model"]["checkpoint"], manifest["protocol"] = "models/thought", "single_pass"
    (runs[1] / "manifest.json").write_text(json.dumps(manifest))
    assert run_names(*runs) == ("latent_loop", "single_pass")
    with pytest.raises(ValueError, match="compared with itself"):
        run_names(runs[0], runs[0])


def test_two_questions_of_one_name_are_not_compared(runs):
    pairs = prepared(6)
    pairs[2]["clean"]["question"] = "How many hens?"
    (runs[1] / "prepared_pairs.json").write_text(json.dumps(pairs))
    with pytest.raises(ValueError, match="another clean question"):
        compare_runs(*runs)
