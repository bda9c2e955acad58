"""A largest site is named only if it differs from every other."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.ranking import rank_differences, top_sites, winner
from codi_tracing.analysis.table import check_table
from tests.support.tables import cell, layers


def test_the_original_experiments_ranking_names_no_winner():
    table = layers({5: 0.00233, 4: 0.00231, 3: 0.00203}, spread=0.0027)
    differences = rank_differences(table, by="layer")
    assert differences["layer"].tolist() == [5, 4, 3]
    assert differences["difference"].tolist() == pytest.approx([0, 0.00002, 0.0003])
    assert (differences["low"][1:] < 0).all()
    assert (differences["high"][1:] > 0).all()
    assert winner(differences).startswith("No winner: layer 5 has the largest effect (0.00233), but cannot be told")


def test_sites_of_one_kind_are_named_by_layer_and_step_alone():
    sentence = winner(rank_differences(noisy_layers(0), "site"))
    assert sentence.startswith("No winner: residual stream, layer ")
    assert sentence.count("residual stream") == 1
    assert "; and 14 more (p > 0.05" in sentence


def test_a_small_lead_in_every_pair_makes_a_winner():
    differences = rank_differences(layers({5: 0.30, 4: 0.28, 3: 0.1}, spread=0.2, shared=0.97), by="layer")
    assert (differences["p_fwer"][1:] < 0.01).all()
    assert winner(differences).startswith("layer 5 is the largest (0.3; every other is smaller")


def test_sites_without_an_effect_have_no_ranking_and_say_so():
    table = layers({0: 0.8, 1: 0.1}, spread=0.1, pairs=3).assign(patched=float("nan"))
    with pytest.raises(ValueError, match="no pair has an effect of its other run"):
        rank_differences(table)
    table = layers({0: 0.8, 1: 0.1}, spread=0.1, pairs=3).assign(clean=0.0)
    with pytest.raises(ValueError, match="no cluster has an effect at every site"):
        rank_differences(table)


def test_an_unknown_grouping_is_refused():
    with pytest.raises(ValueError, match="by is 'token', expected one of site, layer, step"):
        rank_differences(layers({0: 0.8}, spread=0.1), by="token")


def test_the_largest_of_equal_sites_is_too_large_in_the_half_that_chose_it_and_not_in_the_other():
    chosen_by, effects = [], []
    for seed in range(30):
        found = top_sites(layers(dict.fromkeys(range(20), 0.3), spread=0.5, pairs=24, seed=seed), k=1, seed=seed)
        chosen_by += found["chosen_by"].tolist()
        effects += found["effect"].tolist()
    # Each layer's mean over all pairs is 0.3 to the digit, so what one half has too much the other lacks.
    assert np.mean(chosen_by) > 0.4
    assert np.mean(effects) < 0.3
    fresh = [top_sites(noisy_layers(seed), k=1, seed=seed) for seed in range(60)]
    sized = np.concatenate([found["effect"].to_numpy() for found in fresh])
    assert abs(sized.mean() - 0.3) < 4 * sized.std() / np.sqrt(60)
    assert np.mean([found["chosen_by"].mean() for found in fresh]) > 0.4


def noisy_layers(seed: int) -> pd.DataFrame:
    """Twenty layers of mean 0.3, without the exact means of `layers`."""
    rng = np.random.default_rng(1000 + seed)
    rows = [
        cell(pair, "denoising", "clean", "resid", "logit_difference", 0.3 + 0.5 * rng.standard_normal(), 1.0, 0.0,
             layer=layer)
        for pair in range(24) for layer in range(20)
    ]  # fmt: skip
    return check_table(pd.DataFrame(rows))


def test_a_winner_needs_the_differences_of_a_ranking():
    with pytest.raises(ValueError, match="pass the table through rank_differences"):
        winner(pd.DataFrame({"layer": [0], "effect": [1.0]}))
