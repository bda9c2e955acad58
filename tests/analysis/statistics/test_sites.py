"""Critical sites, the largest site and rank sets: family-wise, above 5 % of a ceiling that is not low."""

import numpy as np
import pytest

from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.statistics.sites import critical, site_statistics
from tests.support.tables import experiment, outcomes


def test_a_layer_is_critical_if_its_transfer_exceeds_an_unrelated_donors():
    ranked = critical(experiment(layers=(0.0, 0.5, 0.0)))
    assert ranked["layer"].iloc[0] == 1
    assert ranked["critical"].tolist() == [True, False, False]
    assert ranked["effect"].iloc[0] == pytest.approx(0.5, abs=0.05)
    assert (ranked["rank_low"].iloc[0], ranked["rank_high"].iloc[0]) == (1, 1)
    assert ranked["rank_high"].iloc[1] == 3  # the other two cannot be told apart


def test_plain_transfer_the_control_and_the_answers_stand_beside_the_specific_transfer():
    table = outcomes({(None, "other"): "p" * 10, (None, "unrelated"): "o" * 10,
                      (0, "other"): "ppphhhhooo", (0, "unrelated"): "phhhhooooo"})  # fmt: skip
    row = site_statistics(table).iloc[0]
    assert row[["plain", "control", "effect"]].tolist() == pytest.approx([0.3, 0.1, 0.2])
    assert row[["partner", "host", "another"]].tolist() == pytest.approx([0.3, 0.4, 0.3])


def test_no_layer_is_critical_under_a_ceiling_whose_lower_bound_is_low():
    ranked = critical(experiment(layers=(0.1, 0.4), thought=(0.45, 0.9)))
    assert ranked["p_fwer"].iloc[0] <= 0.05
    assert not ranked["critical"].any()


def test_a_significant_but_tiny_transfer_is_not_critical():
    table = experiment(layers=(0.02, 0.03), noise=0.001)
    ranked = critical(table)
    assert (ranked["p_fwer"] <= 0.05).all()
    assert not ranked["critical"].any()
    assert "2 above 0, family-wise, but not by 5% of the ceiling; denoising" in Results(table).critical_sentence


def test_a_sweep_without_its_unrelated_donor_has_no_p_values_and_nothing_critical():
    table = experiment(layers=(0.8, 0.1))
    lone = table["source"].eq("unrelated") & table["kind"].eq("resid")
    found = critical(table[~lone])
    assert found[["p", "q", "p_fwer"]].isna().all(axis=None)
    assert not found[["critical", "exploratory", "specific"]].any(axis=None)
    assert found["effect"].tolist() == pytest.approx([0.8, 0.1], abs=0.1)


def test_sites_significantly_below_their_control_are_listed_and_never_critical():
    found = Results(experiment(layers=(0.6, 0.1), control=0.3))
    sites = found.sites()
    assert sites["below"].tolist() == [False, True]
    assert sites["critical"].tolist() == [True, False]
    assert "Significantly less than the control: layer 1." in found.critical_sentence


def test_the_largest_site_is_named_with_its_lead_over_the_next():
    found = Results(experiment(layers=(0.8, 0.4, 0.0)))
    assert found.largest.site["layer"] == 0
    assert found.largest.site["lead"] == pytest.approx(0.4, abs=0.06)
    assert "Layer 0 carries the most: 0.8" in found.largest.sentence
    assert "it exceeds layer 1 by 0." in found.largest.sentence


def test_no_site_is_the_largest_where_others_may_be():
    found = Results(experiment(layers=(0.8, 0.8, 0.1)))
    assert found.largest.site is None
    assert "any of 2 may be it (layer " in found.largest.sentence


def test_no_site_is_the_largest_by_less_than_a_twentieth():
    found = Results(experiment(layers=(0.80, 0.78), noise=0.001))
    assert found.sites()["rank_high"].iloc[0] == 1  # told apart, family-wise
    assert found.largest.site is None
    assert "less than 0.05" in found.largest.sentence


def test_no_site_is_the_largest_under_a_low_ceiling():
    """A thought that carries nothing had a largest layer once: that of the smallest negative effect."""
    found = Results(experiment(layers=(-0.05, -0.2), thought=(0.09, 0.05)))
    assert found.largest.site is None
    assert "the ceiling is low" in found.largest.sentence
    assert found.summary["largest"] is None
    assert found.summary["critical"] == []


def test_with_five_clusters_the_text_says_that_nothing_could_be_significant():
    found = Results(experiment(pairs=5))
    assert not found.sites()["critical"].any()
    assert found.critical_sentence.startswith(
        "Nothing can be called critical: 5 clusters are fewer than the 8 that intervals"
    )
    assert "No site is called the largest: 5 clusters are fewer than the 8" in found.largest.sentence
    assert found.sites()[["low", "high", "p_fwer", "rank_low"]].isna().all(axis=None)


def test_a_site_whose_runs_do_not_differ_has_no_transfer():
    """Denominators that cancel once gave an effect of 10.05 with the interval [12.55, 1698.86]."""
    table = experiment(pairs=30)
    equal = table["metric"].str.startswith("probability")
    wave = np.where(table["pair_id"].astype(int) % 2, 0.3, -0.3)
    clean = table["corrupted"] + wave
    found = site_statistics(table.assign(clean=table["clean"].mask(equal, clean)))
    assert found[["effect", "low", "high"]].isna().all(axis=None)


def test_sites_and_the_ceiling_are_on_the_same_pairs():
    table = experiment(layers=(0.8,), pairs=30)
    wrong = table["pair_id"].astype(int) < 10
    table = table.assign(clean=table["clean"].mask(wrong & table["metric"].eq("answer_is_clean"), 0.0))
    found = Results(table)
    assert set(found.sites()["n"]) == {20}
    assert found.ceiling("denoising").n == 20
    assert found.summary["answered_pairs"] == 20
    assert found.summary["pairs"] == 30


def test_the_file_of_sites_has_disruption_the_controls_answers_and_all_pairs():
    table = outcomes({(None, "other"): "p" * 10, (None, "unrelated"): "o" * 10,
                      (0, "other"): "ppphhhhooo", (0, "unrelated"): "phhhhooooo"},
                     right=[False] * 3 + [True] * 7)  # fmt: skip
    row = Results(table).all_sites().iloc[0]
    assert row["n"] == 7
    assert row[["partner", "host", "another"]].tolist() == pytest.approx([0, 4 / 7, 3 / 7])
    assert row[["disruption", "control_disruption"]].tolist() == pytest.approx([3 / 7, 5 / 7])
    assert row[["control_partner", "control_host"]].tolist() == pytest.approx([0, 2 / 7])
    assert row[["all_pairs_partner", "all_pairs_host", "all_pairs_n"]].tolist() == pytest.approx([0.3, 0.4, 10])
