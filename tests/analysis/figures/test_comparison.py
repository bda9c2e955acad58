"""Two tables on the same pairs: their difference is paired, and a table does not differ from itself."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_tracing.analysis.figures.comparison import comparison_chart, comparison_data
from tests.support.tables import experiment


def by_site_of(compared: pd.DataFrame) -> pd.DataFrame:
    return compared.set_index(["direction", "kind", "layer"])


def test_a_run_does_not_differ_from_itself():
    table = experiment(layers=(0.8, 0.3))
    found = comparison_data(table, table)
    assert len(found) == 6
    assert (found["difference"] == 0).all()
    assert (found["low"] < 0).all()  # that 40 pairs agree is no proof that all do
    assert (found["high"] > 0).all()
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
    np.testing.assert_allclose(one["low"], -other["high"])
    np.testing.assert_allclose(one["p_fwer"], other["p_fwer"])


def test_two_runs_that_differ_by_chance_alone_differ_in_at_most_one_comparison_of_twenty():
    found = 0
    for seed in range(100):
        runs = (experiment(layers=(0.5, 0.2), pairs=30, noise=0.4, seed=s) for s in (seed, 1_000 + seed))
        found += comparison_data(*runs, draws=400, seed=seed)["p_fwer"].min() <= 0.05
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
    assert own["first"] == pytest.approx(found["first"].iloc[0], abs=0.1)  # the control transfers nothing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda table: table[table["metric"] != "probability_clean"],
            "second run cannot be compared: the table has no rows of metric 'probability_clean'",
        ),
        (
            lambda table: table.assign(clean=table["clean"].mask(table["metric"] == "answer_is_clean", 0.0)),
            "no pair is answered in both runs",
        ),
        (lambda table: table.assign(pair_id="x" + table["pair_id"]), "no pair in common"),
        (
            lambda table: table.assign(
                clean=table["clean"].mask(table["metric"].str.startswith("prob"), table["corrupted"])
            ),
            "no site has an effect on transfer in both",
        ),
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
