"""Iterative patching: the answer and the step after a growing prefix, free and with the fed latent frozen."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.iterative import iterative_chart, iterative_data, iterative_sentence
from codi_tracing.analysis.table import COLUMNS, check_table
from tests.support.tables import as_transfer, without_intervals


def row(pair, end, patched, gap=4.0, source="clean", direction="denoising", **where) -> dict:
    """The logit difference of a corrupted run (0) whose steps 0 to `end` are the clean run's (the gap)."""
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": f"c{pair}", "protocol": "latent_loop", "direction": direction,
        "source": source, "kind": "resid", "step": 0, "step_last": end, "metric": "logit_difference",
        "patched": patched, "clean": gap, "corrupted": 0.0, **where,
    }  # fmt: skip


def following(pair, end, patched, gap=2.0, **where) -> dict:
    """How far the state of the step after the prefix moves towards the clean run's."""
    return row(pair, end, patched, gap, metric="projection", **{"read_step": end + 1} | where)


def table(rows) -> pd.DataFrame:
    return as_transfer(check_table(pd.DataFrame(rows)))


def series(found, *keys) -> dict:
    return found.set_index(list(keys))["effect"].to_dict()


def test_each_prefix_has_its_pooled_effect_on_the_answer_and_on_the_step_that_follows():
    rows = [row(0, 0, 1.0), row(0, 1, 2.0), row(1, 0, 3.0, 12.0), row(1, 1, 10.0, 12.0)]
    rows += [following(0, 0, 0.5), following(1, 0, 1.5)]
    found = iterative_data(table(rows))
    assert series(found, "reads", "end") == {("answer", 0): 0.25, ("answer", 1): 0.75, ("next", 0): 0.5}
    assert set(found["n"]) == {2}


def test_the_frozen_latent_the_unrelated_donor_and_the_directions_are_kept_apart():
    rows = [following(0, end, 1.0) for end in range(2)]
    rows += [following(0, 0, 0.5, freeze="R"), following(0, 0, 0.1, source="unrelated", draw=0)]
    rows += [following(0, 0, 0.3, source="unrelated", draw=1)]
    rows += [following(0, 0, 0.5, source="corrupted", direction="noising")]
    found = series(iterative_data(table(rows)), "direction", "written", "route", "end")
    assert found == pytest.approx({
        ("denoising", "other run", "free", 0): 0.5, ("denoising", "other run", "free", 1): 0.5,
        ("denoising", "other run", "R frozen", 0): 0.25, ("denoising", "unrelated donor", "free", 0): 0.1,
        ("noising", "other run", "free", 0): 0.75,
    })  # fmt: skip


def test_only_the_step_right_after_the_prefix_counts_and_only_prefixes_of_all_layers():
    rows = [row(0, 0, 1.0), row(0, 1, 1.0), following(0, 0, 1.0, read_step=3), row(0, 2, 9.0, step=1)]
    rows += [row(0, 3, 9.0, layer=2, layer_last=2), row(0, 4, 9.0, freeze="K_T"), row(0, 5, 9.0, read_step=6)]
    rows += [row(0, 2, 9.0, source="self")]
    assert series(iterative_data(table(rows)), "reads", "end") == {("answer", 0): 0.25, ("answer", 1): 0.25}


def test_a_table_without_prefixes_says_what_to_run():
    with pytest.raises(ValueError, match=r"for several k, .* run configs/iterative\.toml"):
        iterative_data(table([row(0, 0, 1.0)]))  # the first step alone is no growing prefix


def test_the_figure_sets_the_answer_beside_the_next_step_and_the_table_is_not_changed():
    rows = [
        make(pair, end, 1.0, source=source, freeze=freeze)
        for pair in range(3) for end in range(3) for make in (row, following)
        for source in ("clean", "unrelated") for freeze in (None, "R")
    ]  # fmt: skip
    cells = table(rows)
    before = cells.copy(deep=True)
    spec = iterative_chart(iterative_data(cells)).to_dict()
    assert [panel["title"] for panel in spec["hconcat"]] == [
        "the answer (transfer)", "final state of step k + 1 (projection)"]  # fmt: skip
    assert "n = 3 pairs, 3 clusters (no intervals: 8 are needed); protocol latent_loop" in spec["title"]["subtitle"]
    pd.testing.assert_frame_equal(cells, before)


def test_a_table_with_answers_alone_makes_one_panel():
    spec = iterative_chart(
        iterative_data(table([row(pair, end, 1.0) for pair in range(3) for end in range(3)]))
    ).to_dict()
    assert len(spec["hconcat"]) == 1


def test_the_sentence_gives_the_shortest_and_the_longest_prefix_and_where_half_is_reached():
    rows = [row(pair, end, patched) for pair in range(9) for end, patched in ((0, 0.4), (1, 2.4), (2, 4.0))]
    rows += [row(pair, end, 0.2, source="unrelated", draw=0) for pair in range(9) for end in range(3)]
    rows += [following(pair, 0, 0.5) for pair in range(9)]
    assert without_intervals(iterative_sentence(iterative_data(table(rows)))) == (
        "Of the steps 0 to k, writing them from the partner's run transfers the answer by 0.10 at k = 0 "
        "and 1.00 at k = 2, half of it from k = 1; an unrelated donor's by 0.05 at k = 0 and "
        "0.05 at k = 2; the step after them, which the run computes itself, is "
        "then moved by 0.25 at k = 0 (denoising, n = 9 pairs in 9 clusters; 0: host, 1: partner)."
    )
