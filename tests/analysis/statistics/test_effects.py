"""Effects of single runs; pooling over pairs and clusters; specific transfer."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.effects import by_site, effect, pooled, pooled_shares, specific
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.table import check_table
from tests.support.tables import cell, experiment


def test_an_effect_is_zero_at_the_host_and_one_at_the_donor_in_both_directions():
    rows = [
        cell(0, "denoising", "clean", "resid", "logit_difference", -2.0, 4.0, -2.0),
        cell(1, "denoising", "clean", "resid", "logit_difference", 4.0, 4.0, -2.0),
        cell(2, "noising", "corrupted", "resid", "logit_difference", 4.0, 4.0, -2.0),
        cell(3, "noising", "corrupted", "resid", "logit_difference", -2.0, 4.0, -2.0),
        cell(4, "denoising", "unrelated", "resid", "logit_difference", 1.0, 4.0, -2.0),
        cell(5, "denoising", "clean", "resid", "logit_difference", 1.0, 3.0, 3.0),
    ]
    table = check_table(pd.DataFrame(rows))
    before = table.copy()
    np.testing.assert_allclose(effect(table)["effect"], [0, 1, 0, 1, 0.5, np.nan])
    pd.testing.assert_frame_equal(table, before)


def test_groups_pooled_together_equal_groups_pooled_alone():
    effects = effect(experiment().query("metric == 'logit_difference'"))
    lost = (
        (effects["kind"] == "resid") & (effects["layer"] == 0) & (effects["cluster_id"] < effects["cluster_id"].max())
    )
    effects.loc[lost, "numerator"] = np.nan  # so that this group has one cluster, the others many
    by = ["direction", "source", "kind", "layer"]
    together = pooled(effects, by)
    alone = [pooled(part, by) for _, part in effects.groupby(by, dropna=False)]
    assert together["clusters"].nunique() > 1
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))


def test_pooling_weighs_a_pair_by_the_gap_between_its_runs():
    rows = [  # effects 0.5 of a gap of 8 and 1.0 of a gap of 2
        cell(0, "denoising", "clean", "resid", "logit_difference", 0.0, 4.0, -4.0),
        cell(1, "denoising", "clean", "resid", "logit_difference", 1.0, 1.0, -1.0),
    ]
    found = pooled(effect(check_table(pd.DataFrame(rows))), ["metric"]).iloc[0]
    assert found["effect"] == pytest.approx((4 + 2) / (8 + 2))
    assert found["mean"] == pytest.approx(0.75)
    assert (found["n"], found["clusters"]) == (2, 2)


def test_pooling_recovers_the_truth_and_the_mean_of_ratios_does_not():
    rng = np.random.default_rng(1)
    gap = rng.uniform(0.02, 8, 4_000)  # some pairs' runs nearly agree
    frame = pd.DataFrame(
        {"pair_id": range(4_000), "numerator": 0.8 * gap + rng.standard_normal(4_000), "denominator": gap}
    )
    found = pooled(frame.assign(cluster_id=frame["pair_id"], all="all"), ["all"]).iloc[0]
    assert abs(found["effect"] - 0.8) < 0.02
    assert found["low"] < 0.8 < found["high"]
    assert abs(found["mean"] - 0.8) > 5 * abs(found["effect"] - 0.8)


def test_rows_without_a_value_are_not_pooled_to_nothing():
    rows = effect(experiment(pairs=3)).assign(numerator=np.nan)
    with pytest.raises(ValueError, match="has a value in all three runs, so there is nothing to pool"):
        pooled(rows, ["direction"])


def test_specific_transfer_is_the_transfer_minus_an_unrelated_donors():
    table = experiment(layers=(0.8, 0.3), control=0.3, noise=0)
    rows = specific(measured(table))
    by_layer = pooled(rows[rows["kind"] == "resid"], ["direction", "layer"])
    np.testing.assert_allclose(by_layer["effect"], [0.5, 0, 0.5, 0], atol=1e-12)


def test_draws_of_an_unrelated_donor_are_averaged():
    table = measured(experiment(noise=0))
    drawn = table[table["source"] == "unrelated"]
    again = drawn.assign(draw=1, patched=drawn["patched"] + 0.1)
    one, two = specific(table), specific(pd.concat([table, again]))
    np.testing.assert_allclose(one["numerator"] - two["numerator"], 0.05)  # the mean of a draw and one 0.1 above it


def test_an_unrelated_donors_effect_on_the_logit_difference_is_never_subtracted():
    """A destroyed answer moves the logit difference half-way, which the partner's write does not do."""
    with pytest.raises(ValueError, match="of an unrelated donor on logit_difference is not subtracted"):
        specific(measured(experiment(), "logit_difference"))


def test_a_sweep_without_unrelated_donors_has_no_specific_transfer():
    table = measured(experiment())
    with pytest.raises(ValueError, match="no rows of source 'unrelated', so specific transfer is undefined"):
        specific(table[table["source"] != "unrelated"])


def test_by_site_keeps_sites_and_sources_apart():
    table = measured(experiment(layers=(0.8, 0.2), noise=0))
    sites = by_site(effect(table), direction="denoising")
    assert sites["source"].unique().tolist() == ["clean"]
    assert sites[["kind", "layer"]].values.tolist() == [["resid", 0], ["resid", 1], ["thought", pd.NA]]
    np.testing.assert_allclose(sites["effect"], [0.8, 0.2, 0.9])
    own = by_site(effect(table), source="self")
    np.testing.assert_allclose(own["effect"], 0, atol=1e-12)
    with pytest.raises(ValueError, match=r"no rows of direction any, source zero; it has direction denoising, noising"):
        by_site(effect(table), source="zero")


def test_a_share_of_all_pairs_has_an_interval():
    rows = pd.DataFrame({"pair_id": range(6), "cluster_id": range(6), "all": "all"})
    assert pooled_shares(rows, pd.Series([1.0] * 6), ["all"])[["low", "high"]].isna().all(axis=None)  # six clusters
    rows = pd.DataFrame({"pair_id": range(9), "cluster_id": range(9), "all": "all"})
    found = pooled_shares(rows, pd.Series([1.0] * 9), ["all"]).iloc[0]
    assert found["low"] == pytest.approx(0.025 ** (1 / 9))
