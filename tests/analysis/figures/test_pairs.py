"""One pair by layer, and every pair at one site."""

import numpy as np
import pytest

from codi_tracing.analysis.figures.pairs import (
    DRAWN,
    MOST_POINTS,
    pair_chart,
    pair_data,
    pair_specs,
    pairs_chart,
    pairs_data,
)
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.statistics.sites import critical
from tests.support.charts import drawn, words
from tests.support.tables import experiment


def test_the_pairs_of_a_site_pool_to_its_effect():
    table = experiment(layers=(0.8, 0.3))
    pairs = pairs_data(table, {"kind": "resid", "layer": 1, "layer_last": 1}, direction="noising")
    own = pairs[pairs["donor"] == OTHER_RUN]
    expected = by_site(effect(measured(table)), direction="noising").query("layer == 1")["effect"].iloc[0]
    assert own["numerator"].sum() / own["denominator"].sum() == pytest.approx(expected)
    assert set(pairs["donor"]) == {OTHER_RUN, UNRELATED}
    assert len(pairs) == 80


def test_the_default_is_the_largest_site_and_a_row_of_the_ranking_names_another():
    table = experiment(layers=(0.3, 0.8))
    ranked = critical(table)
    assert set(pairs_data(table)["layer"]) == {1} == {ranked["layer"].iloc[0]}
    assert set(pairs_data(table, ranked.iloc[1].to_dict())["layer"]) == {0}


def test_effects_beyond_the_axis_are_drawn_at_its_end_with_their_own_number_in_the_tooltip():
    table = experiment(layers=(0.8,))
    first = (table["pair_id"] == "0") & (table["kind"] == "resid")
    table.loc[first, "patched"] = 1e4
    spec = drawn(pairs_chart(pairs_data(table)))
    shown = [value for part in spec["datasets"].values() for value in part if "shown" in value]
    assert max(value["shown"] for value in shown) == DRAWN[1]
    assert max(value["effect"] for value in shown) > 100
    assert "beyond the axis: at its end" in words(spec)


def test_many_pairs_are_drawn_as_means_of_similar_ones():
    pairs = pairs_data(experiment(layers=(0.8,), pairs=1_000))
    spec = drawn(pairs_chart(pairs))
    shown = [
        value
        for part in spec["datasets"].values()
        for value in part
        if value.get("donor") == OTHER_RUN and "gap" in value
    ]
    assert len(shown) == MOST_POINTS
    assert "a point is the mean of 4 pairs" in words(spec)
    own = pairs[pairs["donor"] == OTHER_RUN]
    assert np.mean([value["effect"] for value in shown]) == pytest.approx(own["effect"].mean())


def test_a_site_that_was_not_swept_is_named():
    with pytest.raises(ValueError, match="no effect of the pair's other run at residual stream, layer 7"):
        pairs_data(experiment(), {"kind": "resid", "layer": 7, "layer_last": 7})


def test_a_pairs_chart_is_the_same_alone_and_in_the_series_of_all_pairs():
    table = experiment(layers=(0.2, 0.9, 0.5), pairs=12)
    specs = dict(pair_specs(table, {"3": "How many eggs?"}))
    assert list(specs) == [str(pair) for pair in range(12)]
    alone = drawn(pair_chart(pair_data(table, "3"), "How many eggs?"))
    assert {**specs["3"], "$schema": None} == {**alone, "$schema": None}
    with pytest.raises(ValueError, match="pair 77: the table has no rows"):
        pair_data(table, "77")
