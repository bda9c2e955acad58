"""The original experiment's four figures."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.figures.original import (
    critical_layers_chart,
    kl_by_layer_data,
    layer_similarity_chart,
    layer_similarity_data,
    pairs_by_layer_chart,
    pairs_by_layer_data,
)
from codi_tracing.analysis.statistics.ceiling import ceiling
from codi_tracing.analysis.statistics.sites import critical
from tests.support.charts import drawn, words
from tests.support.tables import experiment


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return experiment(layers=(0.2, 0.9, 0.5), pairs=12)


def test_the_kl_curve_is_the_mean_over_pairs_and_its_band_holds_it(table):
    means = kl_by_layer_data(table).set_index("layer")
    cells = table.query("metric == 'kl_from_corrupted' and kind == 'resid' and source == 'clean'")
    np.testing.assert_allclose(means["effect"], cells.groupby("layer")["patched"].mean())
    assert ((means["low"] < means["effect"]) & (means["effect"] < means["high"])).all()


def test_a_large_table_is_drawn_by_means_of_similar_pairs(table):
    many = pd.concat([table.assign(pair_id=table["pair_id"] + f"/{i}") for i in range(400)])
    spec = drawn(pairs_by_layer_chart(pairs_by_layer_data(many)))
    values = next(iter(spec["datasets"].values()))
    assert len(values) <= 5_000
    assert "a row is the mean of 4 pairs" in words(spec)
    cells = many.query("metric == 'kl_from_corrupted' and kind == 'resid' and source == 'clean'")
    assert np.mean([value["kl"] for value in values]) == pytest.approx(cells["patched"].mean(), rel=1e-6)


def test_the_word_critical_needs_a_ceiling_that_is_not_low(table):
    assert "Critical layers" in words(drawn(critical_layers_chart(critical(table), ceiling(table))))
    low = experiment(layers=(0.2, 0.9), thought=(0.1, 0.1))
    said = words(drawn(critical_layers_chart(critical(low), ceiling(low))))
    assert "Specific transfer, the largest first" in said
    assert "none may be called critical" in said


def test_a_low_ceiling_is_below_the_limit_of_the_ranking(table):
    low = critical_layers_chart(critical(table, low_ceiling=0.99), ceiling(table), low_ceiling=0.99)
    assert "the ceiling is low: none may be called critical" in words(drawn(low))
    assert "the ceiling is low" not in words(drawn(critical_layers_chart(critical(table), ceiling(table))))


def test_layers_that_disturb_the_same_pairs_correlate(table):
    spec = drawn(layer_similarity_chart(layer_similarity_data(table)))
    values = pd.DataFrame(next(iter(spec["datasets"].values()))).pivot(index="a", columns="b", values="r")
    np.testing.assert_allclose(np.diag(values), 1)
    np.testing.assert_allclose(values, values.T)
    with pytest.raises(ValueError, match="needs at least 3 pairs, found 2"):
        layer_similarity_data(table[table["pair_id"].isin(["0", "1"])])


def test_a_table_without_kl_is_refused(table):
    with pytest.raises(ValueError, match="no denoising rows of one layer's residual with metric 'kl_from_corrupted'"):
        kl_by_layer_data(table[table["metric"] == "logit_difference"])
