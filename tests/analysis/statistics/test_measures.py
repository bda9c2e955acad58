"""Transfer, disruption, the three answers, and the pairs that they are read on."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.effects import by_site, effect, pooled
from codi_tracing.analysis.statistics.measures import answered_pairs, given_answers, measured, three_answers
from tests.support.tables import RIGHT, WRONG, experiment, outcomes


def of_thought(table: pd.DataFrame, metric: str, source: str = "clean") -> float:
    rows = measured(table, metric).query("direction == 'denoising' and source == @source and kind == 'thought'")
    return pooled(effect(rows), ["direction"])["effect"].iloc[0]


def test_a_write_that_brings_the_partners_answer_transfers_all_and_disrupts_all():
    table = outcomes({(None, "other"): "p" * 10})
    assert of_thought(table, "transfer") == pytest.approx(1)
    assert of_thought(table, "disruption") == pytest.approx(1)


def test_a_write_that_only_destroys_transfers_nothing_and_disrupts_all():
    table = outcomes({(None, "other"): "o" * 10})
    assert of_thought(table, "transfer") == pytest.approx(0)
    assert of_thought(table, "disruption") == pytest.approx(1)
    rows = measured(table, "probability_clean").query("direction == 'noising'")  # of the host
    np.testing.assert_allclose(effect(rows)["effect"], 1)


def test_transfer_is_the_share_of_partners_answers_where_probabilities_are_certain():
    table = outcomes({(None, "other"): "ppphhhhhoo"})
    assert of_thought(table, "transfer") == pytest.approx(0.3)
    assert of_thought(table, "disruption") == pytest.approx(0.5)
    given = given_answers(table).query("direction == 'denoising'")
    shares = three_answers(given, ["direction"]).iloc[0]
    assert shares[["partner", "host", "another"]].tolist() == pytest.approx([0.3, 0.5, 0.2])
    for answer in ("partner", "host", "another"):
        assert shares[f"low_{answer}"] < shares[answer] < shares[f"high_{answer}"]


def test_headline_pairs_are_those_whose_two_runs_are_right():
    table = outcomes({(None, "other"): "pppppooooo"}, right=[True] * 5 + [False] * 5)
    assert answered_pairs(table).tolist() == ["0", "1", "2", "3", "4"]
    assert of_thought(table, "transfer") == pytest.approx(1)
    assert set(measured(table, answered=False)["pair_id"]) == {str(pair) for pair in range(10)}
    one_wrong = table["metric"].eq("answer_is_corrupted") & table["pair_id"].eq("0")
    assert "0" not in answered_pairs(table.assign(corrupted=table["corrupted"].mask(one_wrong, 0.0)))


def test_pairs_whose_runs_answer_alike_have_no_three_answers():
    table = outcomes({(None, "other"): "p" * 4})
    alike = table["pair_id"].eq("2") & table["metric"].str.startswith("gives_")
    given = given_answers(
        table.assign(clean=table["clean"].mask(alike, 1.0), corrupted=table["corrupted"].mask(alike, 1.0)), False
    )
    assert set(given["pair_id"]) == {"0", "1", "3"}


def test_a_single_pair_of_nearly_equal_probabilities_has_no_transfer_of_its_own_but_is_pooled():
    table = outcomes({(None, "other"): [(RIGHT, WRONG)] * 10})
    close = table["pair_id"].eq("0") & table["metric"].eq("probability_clean")
    table = table.assign(clean=table["clean"].mask(close, WRONG + 0.05))
    row = pooled(effect(measured(table).query("direction == 'denoising'")), ["direction"]).iloc[0]
    assert row["n"] == 10
    assert row["mean"] == pytest.approx(1)  # without pair 0, whose own ratio is 19
    assert row["effect"] == pytest.approx((10 * (RIGHT - WRONG)) / (9 * (RIGHT - WRONG) + 0.05))


def test_transfer_at_a_layer_is_recovered_and_the_graded_view_keeps_its_control():
    table = experiment(layers=(0.8, 0.2), unrelated=0.4, noise=0)
    sites = by_site(effect(measured(table)), direction="denoising")
    np.testing.assert_allclose(sites["effect"], [0.8, 0.2, 0.9])
    np.testing.assert_allclose(by_site(effect(measured(table)), source="unrelated")["effect"], 0, atol=1e-12)
    np.testing.assert_allclose(by_site(effect(measured(table, "logit_difference")), source="unrelated")["effect"], 0.4)


def test_a_metric_that_was_not_swept_is_named():
    table = experiment()
    for metric in ("probability_clean", "answer_is_clean"):
        with pytest.raises(ValueError, match=f"no rows of metric '{metric}'; sweep it too"):
            measured(table[table["metric"] != metric])
