"""Critical sites: family-wise above an unrelated donor, above 5 % of a ceiling that is not low."""

import pytest

from codi_tracing.analysis.statistics.sites import critical
from tests.support.tables import experiment, layers


def test_a_layer_is_critical_if_its_effect_exceeds_an_unrelated_donors():
    ranked = critical(experiment(layers=(0.3, 0.8, 0.3), unrelated=0.3))
    assert ranked["layer"].iloc[0] == 1
    assert ranked["critical"].tolist() == [True, False, False]
    assert ranked["effect"].iloc[0] == pytest.approx(0.5, abs=0.05)
    assert (ranked["rank_low"].iloc[0], ranked["rank_high"].iloc[0]) == (1, 1)
    assert ranked["rank_high"].iloc[1] == 3  # the other two cannot be told apart


def test_no_layer_is_critical_under_a_low_ceiling():
    ranked = critical(experiment(layers=(0.3, 0.8), thought=(0.2, 0.9)))
    assert ranked["p_fwer"].iloc[0] <= 0.05
    assert not ranked["critical"].any()


def test_a_significant_but_tiny_effect_is_not_critical():
    ranked = critical(experiment(layers=(0.31, 0.30), unrelated=0.29, noise=0.001))
    assert (ranked["p_fwer"] <= 0.05).all()
    assert not ranked["critical"].any()


def test_a_sweep_without_its_unrelated_donor_has_no_p_values_and_nothing_critical():
    found = critical(layers({0: 0.8, 1: 0.1}, spread=0.1))
    assert found[["p", "q", "p_fwer"]].isna().all(axis=None)
    assert not found[["critical", "exploratory", "specific"]].any(axis=None)
    assert found["effect"].tolist() == pytest.approx([0.8, 0.1])


def test_critical_sites_are_on_the_exploratory_list_and_first_adds_up():
    found = critical(experiment(layers=(0.9, 0.5, 0.3), unrelated=0.3))
    assert found["critical"].tolist() == [True, True, False]
    assert found["exploratory"].tolist() == [True, True, False]
    assert (found["p"] <= found["p_fwer"] + 1e-3).all()
    assert found["first"].tolist() == pytest.approx([1, 0, 0])
    assert found["specific"].all()
