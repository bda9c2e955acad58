"""Early stopping: shares of right runs, equal weights of hosts, and the words of the figure."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.early_stop import early_stop_chart, early_stop_data, early_stop_sentence
from codi_tracing.analysis.table import COLUMNS, check_table


def row(pair, patched=1.0, direction="noising", right=1.0, **where) -> dict:
    """Whether one run gives its own key: the clean run's where corrupted values would be written, and the reverse."""
    key = {"noising": "clean", "denoising": "corrupted"}[direction]
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": f"c{pair}", "protocol": "latent_loop", "direction": direction,
        "source": "self", "kind": "thought", "metric": f"answer_is_{key}", "patched": patched,
        "clean": right if key == "clean" else 0.0, "corrupted": right if key == "corrupted" else 0.0, **where,
    }  # fmt: skip


def resampled(pair, step, patched=1.0, draw=0, **where) -> dict:
    return row(pair, patched, kind="kv", source="unrelated", step=step, step_last=2, draw=draw, **where)


def table(rows) -> pd.DataFrame:
    return check_table(pd.DataFrame(rows))


def test_accuracy_is_the_share_of_right_runs_of_both_hosts_that_keep_their_answer():
    rows = [row(pair, float(pair < 4), n_latents=2) for pair in range(10)]
    # Only half of the other hosts are right unpatched: the runs are 15, and 4 + 5 keep their answer.
    rows += [row(pair, 1.0, "denoising", right=float(pair < 5), n_latents=2) for pair in range(10)]
    found = early_stop_data(table(rows)).iloc[0]
    assert (found["rest"], found["kept"], found["sees_question"], found["n"]) == ("stopped", 2, True, 10)
    assert found["effect"] == pytest.approx(9 / 15)
    assert found["low"] < 9 / 15 < found["high"]


def test_draws_of_a_run_are_averaged_before_runs_are():
    rows = [row(0, n_latents=0), row(1, n_latents=0), row(2, n_latents=0)]
    rows += [resampled(0, 1, patched, draw) for draw, patched in enumerate((1.0, 0.0, 0.0, 0.0))]
    rows += [resampled(1, 1, 1.0), resampled(1, 1, 1.0, direction="denoising")]
    found = early_stop_data(table(rows)).set_index(["rest", "kept"])
    assert found.loc[("resampled", 1), "effect"] == pytest.approx((0.25 + 1 + 1) / 3)


def test_runs_without_sight_of_the_question_are_kept_apart_and_other_knockouts_left_out():
    rows = [row(pair, n_latents=k) for pair in range(2) for k in (0, 1)]
    rows += [row(pair, 0.0, n_latents=0, knockout="answer-question") for pair in range(2)]
    rows += [resampled(pair, 0, 0.0, knockout="answer-question") for pair in range(2)]
    rows += [row(pair, 0.5, n_latents=0, knockout="answer-thought") for pair in range(2)]
    found = early_stop_data(table(rows)).set_index(["rest", "sees_question", "kept"])["effect"]
    assert found.to_dict() == {
        ("stopped", True, 0): 1.0, ("stopped", True, 1): 1.0, ("stopped", False, 0): 0.0,
        ("resampled", False, 0): 0.0}  # fmt: skip


def test_only_resampling_up_to_the_last_step_counts_and_shows_the_number_of_steps_in_training():
    rows = [row(0, n_latents=k) for k in range(6)] + [row(0)]  # the last is the unpatched corner, at no number of steps
    rows += [resampled(0, step) for step in range(3)] + [resampled(0, 1, 0.0) | {"step_last": 1}]
    found = early_stop_data(table(rows))
    assert found["trained"].unique().tolist() == [3]
    kept = found.groupby("rest")["kept"].apply(list).to_dict()
    assert kept == {"resampled": [0, 1, 2], "stopped": [0, 1, 2, 3, 4, 5]}
    assert found["effect"].eq(1).all()


def test_a_table_without_stopped_runs_or_right_ones_says_what_to_run():
    with pytest.raises(ValueError, match=r"no rows of runs stopped early .* run configs/early_stop\.toml"):
        early_stop_data(table([row(0), resampled(0, 1)]))
    with pytest.raises(ValueError, match="on a model that answers correctly"):
        early_stop_data(table([row(0, n_latents=1, right=0.0)]))


def test_the_table_is_not_changed():
    cells = table([row(pair, n_latents=k) for pair in range(2) for k in range(3)])
    before = cells.copy(deep=True)
    early_stop_chart(early_stop_data(cells))
    pd.testing.assert_frame_equal(cells, before)


def test_the_figure_names_off_distribution_runs_and_marks_the_steps_of_training():
    rows = [row(pair, n_latents=k) for pair in range(4) for k in range(6)]
    spec = str(early_stop_chart(early_stop_data(table(rows))).to_dict())
    assert "as trained" not in spec  # no row tells how many steps the model was trained with
    rows += [resampled(pair, k) for pair in range(4) for k in range(3)]
    rows += [row(pair, n_latents=1, knockout="answer-question") for pair in range(4)]
    spec = str(early_stop_chart(early_stop_data(table(rows))).to_dict())
    for words in ("stopped after k steps: off-distribution", "resampled: in distribution", "as trained (k = 3)",
                  "question hidden: off-distribution", "4 clusters (no intervals: 8 are needed)"):  # fmt: skip
        assert words in spec


def test_the_sentence_says_how_many_own_steps_the_answer_needs():
    rows = [row(pair, 1.0, n_latents=0) for pair in range(60)]
    rows += [resampled(pair, step, float(step >= 1)) for pair in range(60) for step in range(3)]
    said = early_stop_sentence(early_stop_data(table(rows)))
    assert "the later ones taken from unrelated runs: 0 % [0, " in said
    assert said.endswith(
        "100 % [94, 100] with 2 (n = 60 pairs in 60 clusters). For 90% of the answers (lower end of the interval) the "
        "first is needed."
    )
    never = early_stop_sentence(
        early_stop_data(table([row(pair, float(pair < 30), n_latents=1) for pair in range(60)]))
    )
    assert "and none after them: 50 %" in never
    assert never.endswith("None of these is enough for 90% of the answers (lower end of the interval).")
    few = early_stop_sentence(early_stop_data(table([row(pair, n_latents=0) for pair in range(5)])))
    assert few.endswith("100 % with 0 (n = 5 pairs in 5 clusters).")  # estimates, and no conclusion
