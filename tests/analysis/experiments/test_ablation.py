"""Ablations: accuracy is that of the runs that were right, a flip is any other answer, and the figure says how many."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.ablation import ablation_chart, ablation_data, ablation_sentence, flip_data
from codi_tracing.analysis.table import COLUMNS, check_table


def row(pair, source, direction="noising", key="clean", patched=1.0, right=1.0, **where) -> dict:
    """One answer of a run whose step 2, or another place, was replaced."""
    place = {"step": 2, "step_last": 2, "layer": None, "layer_last": None} | where
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": str(pair), "protocol": "latent_loop", "direction": direction,
        "source": source, "kind": "resid", "metric": f"answer_is_{key}", "patched": patched,
        "clean": right if key == "clean" else 0.0, "corrupted": right if key == "corrupted" else 0.0, **place,
    }  # fmt: skip


def decoded(pair, patched, source="zero", direction="noising", clean=7.0, corrupted=9.0, **where) -> dict:
    """One decoded number of such a run, beside those of the pair's two unpatched runs."""
    numbers = {"metric": "answer", "patched": patched, "clean": clean, "corrupted": corrupted}
    return row(pair, source, direction, **where) | numbers


def table(rows) -> pd.DataFrame:
    return check_table(pd.DataFrame(rows))


def test_accuracy_is_the_share_of_right_runs_that_stay_right_over_both_hosts():
    rows = [row(pair, "zero", patched=float(pair < 3)) for pair in range(10)]
    rows += [row(pair, "zero", "denoising", "corrupted", patched=float(pair < 5)) for pair in range(10)]
    rows += [row(pair, "zero", patched=1.0, right=0.0) for pair in range(10, 20)]  # never right: not counted
    rows += [row(pair, "mean", patched=1.0) for pair in range(10)]
    found = ablation_data(table(rows)).set_index("source")
    assert found.loc["zero", "effect"] == pytest.approx(8 / 20)
    assert found.loc["zero", "low"] < 8 / 20 < found.loc["zero", "high"]
    assert (found.loc["zero", "n"], found.loc["mean", "effect"]) == (10, 1.0)


def test_steps_and_layers_are_kept_apart_and_windows_and_other_metrics_left_out():
    layer = {"step": None, "step_last": None, "layer": 1, "layer_last": 1}
    window = {"step_last": 4}
    rows = [row(0, "zero"), row(1, "zero"), row(0, "zero", **layer), row(1, "zero", **layer), row(0, "zero", **window)]
    rows.append(row(0, "zero") | {"metric": "logit_difference"})
    found = ablation_data(table(rows))
    assert sorted(zip(found["by"], found["place"], found["n"], strict=True)) == [("layer", 1, 2), ("step", 2, 2)]


def test_a_table_without_ablations_says_what_to_sweep():
    with pytest.raises(ValueError, match="sweep sources like zero or mean"):
        ablation_data(table([row(0, "clean")]))


def test_the_figure_has_a_panel_for_steps_and_one_for_layers_and_says_its_n():
    layer = {"step": None, "step_last": None, "layer": 1, "layer_last": 1}
    rows = [
        row(pair, source, **where) for pair in range(4) for source in ("zero", "unrelated") for where in ({}, layer)
    ]
    spec = ablation_chart(ablation_data(table(rows))).to_dict()
    assert len(spec["hconcat"]) == 2
    assert "n = 4 pairs, 4 clusters (no intervals: 8 are needed); protocol latent_loop" in spec["title"]["subtitle"]


def test_several_draws_of_an_unrelated_run_count_as_one_pair():
    rows = [row(pair, "unrelated", draw=draw, patched=float(draw < 1)) for pair in range(4) for draw in range(2)]
    found = ablation_data(table([*rows, row(4, "unrelated", draw=0, patched=1.0)]))
    assert found["effect"].tolist() == pytest.approx([(4 * 0.5 + 1) / 5])
    assert found["n"].tolist() == [5]


def test_a_flip_is_another_answer_than_the_hosts_whether_right_or_wrong():
    same, other, donors = decoded(0, 7.0), decoded(1, 3.0), decoded(2, 9.0)
    assert flip_data(table([same, other, donors, decoded(3, 7.0)]))["effect"].tolist() == [0.5]
    denoised = [decoded(pair, answer, direction="denoising") for pair, answer in enumerate([9.0, 9.0, 7.0])]
    assert flip_data(table(denoised))["effect"].tolist() == pytest.approx([1 / 3])


def test_a_text_without_a_number_is_an_answer_of_its_own():
    none = float("nan")
    rows = [decoded(0, none), decoded(1, 7.0, clean=none), decoded(2, none, clean=none), decoded(3, 7.0)]
    found = flip_data(table(rows))
    assert (found["effect"].tolist(), found["n"].tolist()) == ([0.5], [4])


def test_flips_are_by_replacement_and_draws_are_averaged():
    rows = [decoded(pair, 7.0) for pair in range(2)]
    rows += [
        decoded(pair, answer, "unrelated", draw=draw) for pair in range(2) for draw, answer in enumerate([7.0, 1.0])
    ]
    found = flip_data(table(rows)).set_index("source")
    assert found["effect"].to_dict() == {"zero": 0.0, "unrelated": 0.5}
    assert found["n"].to_dict() == {"zero": 2, "unrelated": 2}


def test_runs_with_knockouts_or_fewer_steps_are_not_counted_as_ablations():
    rows = [decoded(0, 7.0), decoded(1, 7.0), decoded(0, 1.0, knockout="answer-question"), decoded(0, 1.0, n_latents=3)]
    assert flip_data(table(rows))["effect"].tolist() == [0.0]


def test_a_table_without_decoded_answers_says_what_to_sweep():
    with pytest.raises(ValueError, match="run configs/ablation.toml with the metric answer"):
        flip_data(table([row(0, "zero")]))


def test_with_flips_the_figure_has_a_second_row_and_says_which_runs_each_counts():
    layer = {"step": None, "step_last": None, "layer": 1, "layer_last": 1}
    cells = [(pair, where) for pair in range(4) for where in ({}, layer)]
    rows = [row(pair, "zero", right=float(pair < 3), **where) for pair, where in cells]
    whole = table([*rows, *(decoded(pair, 3.0, **where) for pair, where in cells)])
    before = whole.copy(deep=True)
    spec = ablation_chart(ablation_data(whole), flip_data(whole)).to_dict()
    pd.testing.assert_frame_equal(whole, before)
    assert [len(across["hconcat"]) for across in spec["vconcat"]] == [2, 2]
    heading = " ".join(spec["title"]["subtitle"])
    assert "runs that are right unpatched; n = 3 pairs" in heading
    assert "all runs; n = 4 pairs" in heading


def test_the_sentence_names_the_worst_place_of_each_replacement():
    rows = [
        row(pair, "zero", patched=float(pair < 3), step=step, step_last=step) for pair in range(10) for step in (1,)
    ]
    rows += [row(pair, "zero") for pair in range(10)] + [
        row(pair, "mean", patched=float(pair < 9)) for pair in range(10)
    ]
    said = ablation_sentence(ablation_data(table(rows)))
    assert "fewest still give their key with step 1 by zero: 30 % [" in said
    assert "; step 2 by mean: 90 % [" in said
    assert said.endswith("(n = 10 pairs in 10 clusters; each is the least of its row, so a little too small).")
