"""Shapley values: the closed forms of small games, the sum over all orders, and the whole thought shared out."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.experiments.shapley import (
    index_weights,
    shapley_chart,
    shapley_data,
    shapley_interaction_data,
    shapley_sentence,
)
from codi_tracing.analysis.statistics import effects
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.table import COLUMNS, check_table
from tests.support.tables import as_transfer, without_intervals


def subsets(steps: int) -> list[tuple[int, ...]]:
    """Every set of steps but the empty one."""
    return [chosen for count in range(1, steps + 1) for chosen in combinations(range(steps), count)]


def row(pair, patched, gap=1.0, **where) -> dict:
    """One run with cache entries of the clean run in the corrupted one, whose own logit difference is 0."""
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": f"c{pair}", "protocol": "latent_loop", "direction": "denoising",
        "source": "clean", "kind": "kv", "metric": "logit_difference", "patched": patched, "clean": gap,
        "corrupted": 0.0, **where,
    }  # fmt: skip


def table(value_of, steps, pairs=3, freezes=(None, "K_T")) -> pd.DataFrame:
    """A table where writing a set of steps moves the pair by value_of(pair, set); the whole thought is the full set."""
    rows = []
    for pair in range(pairs):
        for freeze in freezes:
            for chosen in subsets(steps)[:-1]:
                name = "+".join(map(str, chosen))
                rows.append(row(pair, value_of(pair, set(chosen)), step_set=name, freeze=freeze))
        rows.append(row(pair, value_of(pair, set(range(steps))), kind="thought"))
    return as_transfer(check_table(pd.DataFrame(rows)))


def values(value_of, steps, **options) -> list[float]:
    found = shapley_data(table(value_of, steps, **options))
    return list(found[found["game"] == "total"].sort_values("step")["effect"])


def interactions(value_of, steps) -> dict[tuple[int, int], float]:
    found = shapley_interaction_data(table(value_of, steps))
    found = found[found["game"] == "total"]
    return {(row.earlier, row.later): row.effect for row in found.itertuples()}


def test_two_steps_that_are_both_needed_share_the_effect_and_interact_by_plus_one():
    def both(_pair, chosen):
        return float({0, 1} <= chosen)

    assert values(both, 2) == pytest.approx([0.5, 0.5])
    assert interactions(both, 2) == pytest.approx({(0, 1): 1.0})


def test_two_steps_of_which_either_is_enough_share_the_effect_and_interact_by_minus_one():
    def either(_pair, chosen):
        return float(bool({0, 1} & chosen))

    assert values(either, 2) == pytest.approx([0.5, 0.5])
    assert interactions(either, 2) == pytest.approx({(0, 1): -1.0})


def test_steps_that_add_up_have_their_weights_as_values_and_do_not_interact():
    weights = [0.1, 0.5, -0.2, 0.3]
    found = values(lambda _pair, chosen: sum(weights[step] for step in chosen), 4)
    assert found == pytest.approx(weights)
    found = interactions(lambda _pair, chosen: sum(weights[step] for step in chosen), 4)
    assert len(found) == 6
    assert list(found.values()) == pytest.approx([0.0] * 6, abs=1e-12)


def test_a_step_without_effect_has_value_zero_beside_two_that_need_each_other():
    def without_step_two(_pair, chosen):
        return float({0, 1} <= chosen)

    assert values(without_step_two, 3) == pytest.approx([0.5, 0.5, 0.0])
    assert interactions(without_step_two, 3) == pytest.approx({(0, 1): 1.0, (0, 2): 0.0, (1, 2): 0.0})


def test_three_steps_that_are_all_needed_interact_by_half_in_every_pair():
    # Of the sets of others, {} and {third}, both weigh 1/2, and only with the third are the two worth anything.
    found = interactions(lambda _pair, chosen: float(len(chosen) == 3), 3)
    assert found == pytest.approx({(0, 1): 0.5, (0, 2): 0.5, (1, 2): 0.5})


def random_game(steps: int, pairs: int = 4):
    """Numbers drawn anew for every pair and set, and the function that looks them up."""
    draws = np.random.default_rng(0).normal(size=(pairs, 2**steps))
    return lambda pair, chosen: float(draws[pair, sum(1 << step for step in chosen)]) if chosen else 0.0


def test_a_value_is_a_steps_contribution_averaged_over_all_orders():
    value_of = random_game(5)
    added = np.zeros(5)
    orders = list(permutations(range(5)))
    for order in orders:
        for place, step in enumerate(order):
            for pair in range(4):
                added[step] += value_of(pair, {*order[: place + 1]}) - value_of(pair, {*order[:place]})
    assert values(value_of, 5, pairs=4) == pytest.approx(added / len(orders) / 4)


def test_an_interaction_is_the_joint_contribution_averaged_over_the_orders_of_the_two_as_one():
    value_of, joint = random_game(5, pairs=1), 0.0
    orders = list(permutations(["both", 0, 2, 4]))
    for order in orders:
        before = {step for step in order[: order.index("both")] if step != "both"}
        single = value_of(0, before | {1}) + value_of(0, before | {3})
        joint += value_of(0, before | {1, 3}) - single + value_of(0, before)
    found = shapley_interaction_data(table(value_of, 5, pairs=1)).set_index(["game", "earlier", "later"])["effect"]
    assert found["total", 1, 3] == pytest.approx(joint / len(orders))


def test_the_values_of_each_game_sum_to_the_effect_of_the_whole_thought():
    cells = table(random_game(6, pairs=5), 6, pairs=5)
    gaps = cells["pair_id"].astype(int) + 1.5
    cells = cells.assign(clean=cells["clean"].mask(cells["metric"] == "probability_clean", gaps))
    ceiling = effects.by_site(effects.effect(measured(cells).query("kind == 'thought'")))["effect"].item()
    sums = shapley_data(cells).groupby("game")["effect"].sum()
    assert set(sums.index) == {"total", "answer only"}
    assert sums.to_numpy() == pytest.approx(ceiling, abs=1e-9)


def test_pairs_are_pooled_by_their_gaps_and_noising_counts_from_the_clean_run():
    rows = [row(0, 9.0, 10.0, direction="noising", source="corrupted", step_set="0"),
            row(0, 7.0, 10.0, direction="noising", source="corrupted", step_set="1"),
            row(0, 4.0, 10.0, direction="noising", source="corrupted", kind="thought"),
            row(1, 20.0, 30.0, direction="noising", source="corrupted", step_set="0"),
            row(1, 30.0, 30.0, direction="noising", source="corrupted", step_set="1"),
            row(1, 20.0, 30.0, direction="noising", source="corrupted", kind="thought")]  # fmt: skip
    table = as_transfer(check_table(pd.DataFrame(rows)))
    found = shapley_data(table, direction="noising").set_index("step")
    # Pair 0: −1 or −3 alone, −6 together, so −2 and −4. Pair 1: −10 and 0. Out of −40.
    assert list(found["effect"]) == pytest.approx([12 / 40, 4 / 40])
    assert list(found["n"]) == [2, 2]


def test_weights_of_a_single_step_sum_to_nothing_and_those_of_a_set_with_it_to_one():
    weights = index_weights((2,), 6)
    assert weights.sum() == pytest.approx(0)
    assert weights[[chosen for chosen in range(64) if chosen & 4]].sum() == pytest.approx(1)


def test_the_first_missing_set_is_named():
    cells = table(random_game(3), 3)
    lacking = cells[~((cells["step_set"] == "0+2") & (cells["freeze"] == "K_T") & (cells["pair_id"] == "1"))]
    with pytest.raises(ValueError, match=r"lacks the step set 0\+2 in the game 'answer only' of pair 1"):
        shapley_data(lacking)
    with pytest.raises(ValueError, match=r"lacks the step set 1 in the game 'answer only' of pair 0"):
        shapley_interaction_data(cells[(cells["step_set"] != "1").fillna(True)])
    with pytest.raises(ValueError, match="lacks the whole thought"):
        shapley_data(cells[cells["kind"] != "thought"])


def test_a_table_without_sets_of_steps_says_what_to_run():
    with pytest.raises(ValueError, match=r"run configs/shapley\.toml"):
        shapley_data(table(random_game(2), 2), direction="noising")


def test_a_game_that_was_not_swept_is_left_out_and_the_table_is_not_changed():
    cells = table(random_game(3), 3, freezes=("K_T",))
    before = cells.copy(deep=True)
    assert set(shapley_data(cells)["game"]) == {"answer only"}
    pd.testing.assert_frame_equal(cells, before)


def test_the_figure_has_bars_a_matrix_for_each_game_and_its_counts():
    cells = table(random_game(3), 3)
    spec = shapley_chart(shapley_data(cells), shapley_interaction_data(cells)).to_dict()
    bars, matrices = spec["hconcat"]
    assert [panel["title"] for panel in [bars, *matrices["hconcat"]]] == [
        "each step's share", "interaction, total", "interaction, answer only"]  # fmt: skip
    assert "n = 3 pairs, 3 clusters (no intervals: 8 are needed); protocol latent_loop" in spec["title"]["subtitle"]


def test_the_sentence_names_the_step_that_contributes_most_in_each_game():
    def mostly_the_last(_pair, chosen):
        return 0.75 * (2 in chosen) + 0.25 * (0 in chosen)

    said = shapley_sentence(shapley_data(table(mostly_the_last, 3, pairs=9)))
    assert without_intervals(said) == (
        "Most of the whole thought's transfer is contributed by: answer only, step 2 with 0.75 of 1.00; total, step 2 "
        "with 0.75 of 1.00 (denoising, n = 9 pairs in 9 clusters; all steps' values sum to the whole)."
    )
