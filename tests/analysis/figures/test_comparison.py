"""Two tables on the same pairs: their difference is paired, and a table does not differ from itself."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_tracing.analysis.figures.comparison import comparison_chart, comparison_data
from codi_tracing.analysis.statistics.inference import ratio_differences
from tests.support.tables import experiment

NUMBERS = ["difference", "low", "high"]


def by_site_of(compared: pd.DataFrame) -> pd.DataFrame:
    return compared.set_index(["direction", "kind", "layer"])


def test_a_run_does_not_differ_from_itself():
    table = experiment(layers=(0.8, 0.3))
    found = comparison_data(table, table)
    assert len(found) == 6
    assert (found[NUMBERS] == 0).all(axis=None)
    assert (found["p_fwer"] == 1).all()


def test_a_known_difference_is_found_at_its_site_only():
    first, second = experiment(layers=(0.8, 0.3, 0.3)), experiment(layers=(0.5, 0.3, 0.3), noise=0.1, seed=0)
    found = by_site_of(comparison_data(first, second)).loc["denoising"]
    assert found.loc[("resid", 0), "difference"] == pytest.approx(0.3, abs=0.02)
    assert found.loc[("resid", 0), "p_fwer"] < 0.01
    assert (found.loc["resid"].loc[[1, 2], "p_fwer"] > 0.05).all()
    assert (found["second"] + found["difference"]).tolist() == pytest.approx(found["first"].tolist())


def test_exchanging_the_runs_changes_the_sign_alone():
    first, second = experiment(layers=(0.8, 0.3)), experiment(layers=(0.5, 0.3), seed=1)
    one, other = (comparison_data(*runs) for runs in ((first, second), (second, first)))
    np.testing.assert_allclose(one["difference"], -other["difference"])
    np.testing.assert_allclose(one["low"], -other["high"], atol=0.02)  # BCa over the same resamples
    np.testing.assert_allclose(one["p_fwer"], other["p_fwer"])


def test_the_interval_of_a_difference_is_scipys_of_paired_clusters_and_shared_variation_cancels():
    rng = np.random.default_rng(2)
    shared = rng.standard_normal(40)
    below = rng.uniform(2, 4, 40)
    a, b = 0.5 * below + shared + 0.1 * rng.standard_normal(40), 0.3 * below + shared + 0.1 * rng.standard_normal(40)
    low, high = ratio_differences(a[None], below[None], b[None], below[None])
    expected = stats.bootstrap(
        (a, b, below), lambda a, b, n, axis: a.sum(axis) / n.sum(axis) - b.sum(axis) / n.sum(axis), paired=True,
        vectorized=True, n_resamples=2000, method="BCa", rng=np.random.default_rng(0), batch=500,
    ).confidence_interval  # fmt: skip
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))
    assert high[0] - low[0] < 0.05  # either alone varies by shared / below: ± 0.1


def test_two_runs_that_differ_by_chance_alone_differ_in_at_most_one_comparison_of_twenty():
    found = 0
    for seed in range(100):
        runs = (experiment(layers=(0.5, 0.2), pairs=30, noise=0.4, seed=s) for s in (seed, 1_000 + seed))
        first, second = (table[table["metric"] == "logit_difference"] for table in runs)
        found += comparison_data(first, second, draws=400, seed=seed)["p_fwer"].min() <= 0.05
    assert found <= stats.binom.ppf(0.9995, 100, 0.05)


def test_only_pairs_and_sites_of_both_runs_count():
    table = experiment(layers=(0.8, 0.3))
    rest = table[~table["pair_id"].isin(["0", "1"]) & (table["layer"] != 1).fillna(True)]
    found = comparison_data(table, rest)
    assert (found["n"] == table["pair_id"].nunique() - 2).all()
    assert set(found["layer"].dropna()) == {0}
    assert (found["difference"] == 0).all()


def test_effects_are_plain_in_both_where_one_run_has_no_unrelated_donor():
    table = experiment(layers=(0.8, 0.3))
    found = comparison_data(table, table[table["source"] != "unrelated"])
    assert not found["specific"].any()
    assert (found["difference"] == 0).all()
    own = by_site_of(comparison_data(table, table)).loc[("denoising", "resid", 0)]
    assert own["specific"]
    assert own["first"] == pytest.approx(found["first"].iloc[0] - 0.3, abs=0.1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table[table["metric"] != "logit_difference"], "second run has no rows of metric 'logit_diff"),
        (lambda table: table.assign(pair_id="x" + table["pair_id"]), "no pair in common"),
        (lambda table: table.assign(clean=table["corrupted"]), "no site has an effect on logit difference in both"),
        (lambda table: table.assign(layer=table["layer"] + 9)[table["kind"] == "resid"], "at no site in common"),
    ],
)
def test_runs_without_common_pairs_or_sites_are_refused(change, sentence):
    table = experiment(layers=(0.8, 0.3))
    with pytest.raises(ValueError, match=sentence):
        comparison_data(table, change(table))


def test_the_chart_has_a_panel_for_each_direction_and_pooled_values_only():
    compared = comparison_data(experiment(layers=(0.8, 0.3)), experiment(layers=(0.5, 0.3), seed=1))
    spec = comparison_chart(compared, ("thought", "bypass")).to_dict()
    assert [panel["title"] for panel in spec["hconcat"]] == ["denoising", "noising"]
    assert sum(map(len, spec["datasets"].values())) <= len(compared) + 4
