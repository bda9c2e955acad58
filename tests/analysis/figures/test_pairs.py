"""Every pair behind a pooled effect."""

import numpy as np
import pytest

from codi_tracing.analysis.figures.pairs import MOST, OWN, REACH, UNRELATED, pairs_chart, pairs_data
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.sites import critical
from tests.analysis.figures.test_layers import drawn, words
from tests.analysis.statistics.test_verdict import experiment


def test_the_pairs_of_a_site_pool_to_its_effect():
    table = experiment(layers=(0.8, 0.3))
    pairs = pairs_data(table, {"kind": "resid", "layer": 1, "layer_last": 1}, direction="noising")
    own = pairs[pairs["donor"] == OWN]
    expected = by_site(effect(table), direction="noising").query("layer == 1")["effect"].iloc[0]
    assert own["numerator"].sum() / own["denominator"].sum() == pytest.approx(expected)
    assert set(pairs["donor"]) == {OWN, UNRELATED}
    assert len(pairs) == 80


def test_the_largest_site_is_meant_where_none_is_named_and_a_row_of_the_ranking_names_one():
    table = experiment(layers=(0.3, 0.8))
    ranked = critical(table)
    assert set(pairs_data(table)["layer"]) == {1} == {ranked["layer"].iloc[0]}
    assert set(pairs_data(table, ranked.iloc[1].to_dict())["layer"]) == {0}


def test_effects_beyond_the_axis_stand_at_its_end_with_their_own_number_in_the_tooltip():
    table = experiment(layers=(0.8,))
    first = (table["pair_id"] == "0") & (table["kind"] == "resid")
    table.loc[first, "patched"] = 1e4
    spec = drawn(pairs_chart(pairs_data(table)))
    shown = [value for part in spec["datasets"].values() for value in part if "shown" in value]
    assert max(value["shown"] for value in shown) == REACH[1]
    assert max(value["effect"] for value in shown) > 100
    assert "beyond the axis: at its end" in words(spec)


def test_many_pairs_are_drawn_by_means_of_like_ones():
    pairs = pairs_data(experiment(layers=(0.8,), pairs=1_000))
    spec = drawn(pairs_chart(pairs))
    shown = [
        value for part in spec["datasets"].values() for value in part if value.get("donor") == OWN and "gap" in value
    ]
    assert len(shown) == MOST
    assert "a point is the mean of 4 pairs" in words(spec)
    own = pairs[pairs["donor"] == OWN]
    assert np.mean([value["effect"] for value in shown]) == pytest.approx(own["effect"].mean())


def test_a_site_that_was_not_swept_is_named():
    with pytest.raises(ValueError, match="no effect of the pair's other run at residual stream, layer 7"):
        pairs_data(experiment(), {"kind": "resid", "layer": 7, "layer_last": 7})
