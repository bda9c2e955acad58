"""Effects and recovery of single runs; pooling over pairs and clusters; specific effects and the null contrast."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.effects import by_site, effect, pooled, recovery, specific
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
    np.testing.assert_allclose(recovery(table)["recovery"], [0, 1, 1, 0, 0.5, np.nan])
    pd.testing.assert_frame_equal(table, before)


def test_recovery_is_the_effect_when_denoising_and_its_complement_when_noising():
    both = recovery(effect(experiment().query("metric == 'logit_difference'")))
    denoising = both["direction"] == "denoising"
    np.testing.assert_allclose(both.loc[denoising, "recovery"], both.loc[denoising, "effect"])
    np.testing.assert_allclose(both.loc[~denoising, "recovery"], 1 - both.loc[~denoising, "effect"])


def test_pooled_recovery_is_the_pooled_effect_when_denoising_and_its_complement_when_noising():
    table = experiment().query("metric == 'logit_difference' and kind == 'resid'")
    by = ["direction", "source", "layer"]
    moved, recovered = (pooled(of(table), by).set_index(by) for of in (effect, recovery))
    np.testing.assert_allclose(recovered.loc["denoising", "effect"], moved.loc["denoising", "effect"])
    np.testing.assert_allclose(recovered.loc["noising", "effect"], 1 - moved.loc["noising", "effect"])
    np.testing.assert_allclose(recovered.loc["noising", "low"], 1 - moved.loc["noising", "high"], atol=0.01)


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


def test_a_specific_effect_is_the_effect_minus_an_unrelated_donors():
    table = experiment(layers=(0.8, 0.3), unrelated=0.3, noise=0)
    rows = specific(table[table["metric"] == "logit_difference"])
    by_layer = pooled(rows[rows["kind"] == "resid"], ["direction", "layer"])
    np.testing.assert_allclose(by_layer["effect"], [0.5, 0, 0.5, 0], atol=1e-12)


def test_draws_of_an_unrelated_donor_are_averaged():
    table = experiment(noise=0).query("metric == 'logit_difference'")
    drawn = table[table["source"] == "unrelated"]
    again = drawn.assign(draw=1, patched=drawn["patched"] + 1)
    one, two = specific(table), specific(pd.concat([table, again]))
    np.testing.assert_allclose(one["numerator"] - two["numerator"], 0.5)  # the mean of a draw and one a unit above it


def test_a_sweep_without_unrelated_donors_has_no_specific_effect():
    table = experiment()
    with pytest.raises(ValueError, match="no rows of source 'unrelated', so specific effects are undefined"):
        specific(table[table["source"] != "unrelated"])


def test_by_site_keeps_sites_and_sources_apart():
    sites = by_site(effect(experiment(layers=(0.8, 0.2), noise=0)), direction="denoising", metric="logit_difference")
    assert sites["source"].unique().tolist() == ["clean"]
    assert sites[["kind", "layer"]].values.tolist() == [["resid", 0], ["resid", 1], ["thought", pd.NA]]
    np.testing.assert_allclose(sites["effect"], [0.8, 0.2, 0.9])
    own = by_site(effect(experiment()), source="self")
    np.testing.assert_allclose(own["effect"], 0, atol=1e-12)
    with pytest.raises(ValueError, match=r"no rows of metric 'kl'.*it has metric answer_is_clean"):
        by_site(effect(experiment()), metric="kl")
