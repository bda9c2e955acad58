"""Influence: a step's effect on a later one, beyond an unrelated donor, in total and with the steps between frozen."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.influence import influence_chart, influence_data, influence_sentence
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED
from codi_tracing.analysis.table import COLUMNS, check_table
from tests.support.tables import without_intervals


def row(pair, step, read, patched, gap=2.0, source="clean", **where) -> dict:
    """The place of step `read`'s state between corrupted (0) and clean (the gap) when step `step` is written."""
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": f"c{pair}", "protocol": "latent_loop", "direction": "denoising",
        "source": source, "kind": "resid", "step": step, "step_last": step, "read_step": read,
        "metric": "projection", "patched": patched, "clean": gap, "corrupted": 0.0, **where,
    }  # fmt: skip


def table(rows) -> pd.DataFrame:
    return check_table(pd.DataFrame(rows))


def cells(found) -> dict:
    return {(row.route, row.step, row.read_step): row.effect for row in found.itertuples()}


def test_an_effect_is_the_way_made_over_the_way_between_the_runs_pooled_over_pairs():
    found = influence_data(table([row(0, 0, 2, 1.0, gap=2.0), row(1, 0, 2, 6.0, gap=8.0)]))
    assert cells(found) == pytest.approx({("total", 0, 2): 7 / 10})
    assert found["n"].item() == 2


def test_an_unrelated_donors_effect_stands_beside_the_other_runs_and_is_not_subtracted():
    rows = [row(pair, 0, 2, 1.0) for pair in range(3)]
    rows += [row(pair, 0, 2, 0.2 + 0.2 * draw, source="unrelated", draw=draw) for pair in range(3) for draw in (0, 1)]
    rows += [row(pair, 0, 2, 0.5, freeze="between") for pair in range(3)]
    found = influence_data(table(rows))
    own, control = (found[found["donor"] == donor] for donor in (OTHER_RUN, UNRELATED))
    assert cells(own) == pytest.approx({("total", 0, 2): 0.5, ("direct", 0, 2): 0.25})
    assert cells(control) == pytest.approx({("total", 0, 2): 0.15})


def test_between_neighbours_the_direct_effect_is_the_total_one():
    rows = [row(0, 0, 1, 1.0), row(0, 0, 2, 0.8), row(0, 0, 2, 0.2, freeze="between")]
    assert cells(influence_data(table(rows))) == pytest.approx(
        {("total", 0, 1): 0.5, ("total", 0, 2): 0.4, ("direct", 0, 1): 0.5, ("direct", 0, 2): 0.1}
    )


def test_a_distance_that_vanishes_is_a_whole_effect():
    # The clean run's distance to itself is 0, the corrupted run's is 4.
    rows = [row(0, 0, 1, 1.0, metric="distance_to_clean", clean=0.0, corrupted=4.0)]
    assert cells(influence_data(table(rows), "distance_to_clean")) == {("total", 0, 1): 0.75}


def test_directions_stand_apart_and_windows_other_freezes_and_steps_read_before_are_left_out():
    rows = [row(0, 0, 1, 1.0), row(0, 0, 1, 1.5, source="corrupted", direction="noising")]
    rows += [row(0, 0, 2, 9.0, step_last=1), row(0, 0, 3, 9.0, freeze="R"), row(0, 2, 1, 9.0), row(0, 1, 1, 9.0)]
    rows += [row(0, 0, 4, 9.0, layer=3, layer_last=3)]
    found = influence_data(table(rows))
    assert found.set_index("direction")["effect"].to_dict() == {"denoising": 0.5, "noising": 0.25}


def test_a_table_without_steps_read_later_says_what_to_run():
    with pytest.raises(ValueError, match=r"metric 'kl_to_clean'; run configs/influence\.toml"):
        influence_data(table([row(0, 0, 1, 1.0)]), "kl_to_clean")


def test_the_figure_has_total_beside_direct_for_each_direction_and_the_table_is_not_changed():
    donors = {"denoising": "clean", "noising": "corrupted"}
    rows = [
        row(pair, step, read, 0.3 * read, source=donor, direction=direction, freeze=freeze)
        for pair in range(3) for direction, donor in donors.items() for freeze in (None, "between")
        for read in range(1, 4) for step in range(read)
    ]  # fmt: skip
    made = table(rows)
    before = made.copy(deep=True)
    spec = influence_chart(influence_data(made)).to_dict()
    titles = [[panel["title"] for panel in line["hconcat"]] for line in spec["vconcat"]]
    assert titles == [[f"{direction}, {route}, other run" for route in ("total", "direct")] for direction in donors]
    assert any("n = 3 pairs, 3 clusters (no intervals: 8 are needed)" in line for line in spec["title"]["subtitle"])
    pd.testing.assert_frame_equal(made, before)


def test_the_sentence_names_the_strongest_influence_beside_its_control_and_its_direct_part():
    rows = [row(pair, 0, 2, 1.0) for pair in range(9)] + [row(pair, 0, 1, 0.4) for pair in range(9)]
    rows += [row(pair, 0, 2, 0.2, source="unrelated", draw=0) for pair in range(9)]
    rows += [row(pair, 0, 2, 0.5, freeze="between") for pair in range(9)]
    assert without_intervals(influence_sentence(influence_data(table(rows)))) == (
        "Step 0 moves step 2 most, by 0.50 of the way to the partner's state (denoising, n = 9 pairs in 9 "
        "clusters; the largest of 2, so a little too large); an unrelated run's step moves it by 0.10; "
        "directly, with the steps between frozen, 0.25."
    )
