"""The original experiment's files: its schema, filled from its cells and no others."""

import json

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.report.original_files import aggregate_statistics, patching_results, write_original_files
from codi_tracing.analysis.statistics.results import Results
from tests.support.run_folders import prepared
from tests.support.tables import experiment


def original_cells(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Clean into corrupted, one layer's residual: `[pair, layer]`."""
    cells = table.query("kind == 'resid' and direction == 'denoising' and source == 'clean' and metric == @metric")
    return cells.pivot(index="pair_id", columns="layer", values="patched")


def test_each_pair_carries_its_questions_answers_and_layers():
    table = experiment(layers=(0.2, 0.9, 0.5), pairs=4)
    results = patching_results(table, prepared(4))
    assert [pair["pair_id"] for pair in results] == [0, 1, 2, 3]
    first = results[0]
    assert list(first)[:5] == ["pair_id", "clean_question", "corrupted_question", "clean_answer", "corrupted_answer"]
    assert (first["clean_question"], first["corrupted_answer"]) == ("12 eggs?", 13)
    assert [layer["layer"] for layer in first["layer_results"]] == [0, 1, 2]
    for key, metric in [
        ("kl_divergence", "kl_from_corrupted"),
        ("l2_difference", "rms_logit_difference"),
        ("prediction_change_rate", "prediction_change"),
    ]:
        found = [layer[key] for layer in first["layer_results"]]
        np.testing.assert_allclose(found, original_cells(table, metric).loc["0"])


def test_the_aggregate_is_the_mean_and_population_deviation_over_pairs():
    table = experiment(layers=(0.2, 0.9, 0.5, 0.1, 0.7, 0.3), pairs=9)
    kl = original_cells(table, "kl_from_corrupted")
    found = aggregate_statistics(Results(table))
    assert list(found["layer_kl_means"]) == ["0", "1", "2", "3", "4", "5"]
    np.testing.assert_allclose(list(found["layer_kl_means"].values()), kl.mean())
    np.testing.assert_allclose(list(found["layer_kl_stds"].values()), np.std(kl.to_numpy(), axis=0))
    assert [layer["layer"] for layer in found["critical_layers"]] == [1, 4, 2, 5, 0]
    assert found["critical_layers"][0]["kl"] == pytest.approx(kl[1].mean())
    # The original's five largest by KL, and which of them the statistics call critical.
    marked = {layer["layer"]: layer["critical_by_transfer"] for layer in found["critical_layers"]}
    assert marked == {1: True, 4: True, 2: True, 5: True, 0: True}
    low = experiment(layers=(0.2, 0.9), thought=(0.1, 0.1), pairs=9)
    assert not any(layer["critical_by_transfer"] for layer in aggregate_statistics(Results(low))["critical_layers"])


def test_what_is_undefined_or_was_not_measured_is_null(tmp_path):
    table = experiment(pairs=3)
    table = table[table["metric"] != "rms_logit_difference"]
    table.loc[(table["metric"] == "kl_from_corrupted") & (table["layer"] == 1), "patched"] = float("nan")
    write_original_files(tmp_path, Results(table), prepared(3))
    results = json.loads((tmp_path / "patching_results.json").read_text())
    assert results[0]["layer_results"][1]["kl_divergence"] is None
    assert results[0]["layer_results"][0]["l2_difference"] is None
    aggregate = json.loads((tmp_path / "aggregate_statistics.json").read_text())
    assert aggregate["layer_kl_means"]["1"] is None
    assert [layer["layer"] for layer in aggregate["critical_layers"]] == [0]


def test_another_experiments_table_leaves_the_files_empty_but_valid():
    noising = experiment(pairs=3).query("direction == 'noising'")
    assert patching_results(noising, prepared(3)) == []
    assert aggregate_statistics(Results(noising)) == {"layer_kl_means": {}, "layer_kl_stds": {}, "critical_layers": []}


def test_tables_and_pairs_of_different_runs_are_not_mixed():
    with pytest.raises(ValueError, match=r"prepared_pairs.json has no pair 0, which cells.parquet holds"):
        patching_results(experiment(pairs=3), prepared(3, start=1))
