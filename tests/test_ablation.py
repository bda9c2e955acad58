"""Ablations: the shares are those of the runs that were right, and the figure says how many."""

import pandas as pd
import pytest

from analysis import ablation_curve, ablations
from analysis.table import COLUMNS


def row(pair, source, direction="noising", key="clean", patched=1.0, right=1.0, **where) -> dict:
    """One answer of a run whose step 2, or another place, was replaced."""
    place = {"step": 2, "step_last": 2, "layer": None, "layer_last": None} | where
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": str(pair), "protocol": "latent_loop", "direction": direction,
        "source": source, "site": "resid", "metric": f"answer_is_{key}", "patched": patched,
        "clean": right if key == "clean" else 0.0, "corrupted": right if key == "corrupted" else 0.0, **place,
    }  # fmt: skip


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({name: "Int64" for name in ("layer", "layer_last", "step", "step_last", "head")})


def test_accuracy_is_the_share_of_right_runs_that_stay_right_over_both_hosts():
    rows = [row(pair, "zero", patched=float(pair < 3)) for pair in range(10)]
    rows += [row(pair, "zero", "denoising", "corrupted", patched=float(pair < 5)) for pair in range(10)]
    rows += [row(pair, "zero", patched=1.0, right=0.0) for pair in range(10, 20)]  # never right: not counted
    rows += [row(pair, "mean", patched=1.0) for pair in range(10)]
    found = ablations(table(rows)).set_index("source")
    assert found.loc["zero", "effect"] == pytest.approx(8 / 20)
    assert found.loc["zero", "low"] < 8 / 20 < found.loc["zero", "high"]
    assert (found.loc["zero", "n"], found.loc["mean", "effect"]) == (10, 1.0)


def test_steps_and_layers_are_told_apart_and_windows_and_other_metrics_left_out():
    layer = {"step": None, "step_last": None, "layer": 1, "layer_last": 1}
    window = {"step_last": 4}
    rows = [row(0, "zero"), row(1, "zero"), row(0, "zero", **layer), row(1, "zero", **layer), row(0, "zero", **window)]
    rows.append(row(0, "zero") | {"metric": "logit_difference"})
    found = ablations(table(rows))
    assert sorted(zip(found["by"], found["place"], found["n"], strict=True)) == [("layer", 1, 2), ("step", 2, 2)]


def test_a_table_without_ablations_says_what_to_sweep():
    with pytest.raises(ValueError, match="sweep sources like zero or mean"):
        ablations(table([row(0, "clean")]))


def test_the_figure_has_a_panel_for_steps_and_one_for_layers_and_says_its_n():
    layer = {"step": None, "step_last": None, "layer": 1, "layer_last": 1}
    rows = [
        row(pair, source, **where) for pair in range(4) for source in ("zero", "unrelated") for where in ({}, layer)
    ]
    spec = ablation_curve(ablations(table(rows))).to_dict()
    assert len(spec["hconcat"]) == 2
    assert "n = 4 pairs, 4 clusters; protocol latent_loop" in spec["title"]["subtitle"]
