"""Intervals and p-values against SciPy, statsmodels, exhaustive enumeration, and the null that they are for."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from codi_tracing.analysis.statistics.effects import null_contrast
from codi_tracing.analysis.statistics.inference import (
    benjamini_hochberg,
    first_shares,
    ratio_interval,
    share_interval,
    sign_flips,
    step_down,
)

SWEEPS = 200
FEWEST, MOST = stats.binom.ppf([0.0005, 0.9995], SWEEPS, 0.05)  # discoveries in so many sweeps at 5 %


def skewed(clusters: int, sites: int, seed: int) -> np.ndarray:
    """Sums by cluster and site with heavy tails, alike across sites, symmetric around 0: `[cluster, site]`."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_t(3, size=(clusters, 1))
    return shared + 0.5 * rng.standard_t(3, size=(clusters, sites))


def every_sign(sums: np.ndarray) -> np.ndarray:
    """|sum| of each site under each of the 2^clusters assignments of signs: `[assignment, site]`."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    return np.abs(signs @ sums)


def test_an_interval_is_scipys_bca_of_the_ratio_of_sums():
    rng = np.random.default_rng(3)
    above, below = rng.gamma(2, size=30), rng.gamma(3, size=30)
    expected = stats.bootstrap(
        (above, below), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True, n_resamples=2000,
        method="BCa", rng=np.random.default_rng(0), batch=500,
    ).confidence_interval  # fmt: skip
    assert ratio_interval(above, below) == pytest.approx((expected.low, expected.high))


def test_an_interval_of_constant_data_has_no_width_and_of_one_cluster_is_unknown():
    assert ratio_interval(np.full(9, 2.0), np.full(9, 4.0)) == pytest.approx((0.5, 0.5))
    assert np.isnan(ratio_interval(np.ones(1), np.ones(1))).all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = 0
    for seed in range(SWEEPS):
        rng = np.random.default_rng(seed)
        below = rng.uniform(2, 6, size=60)
        above = 0.4 * below + rng.standard_normal(60)
        low, high = ratio_interval(above, below, resamples=500, seed=seed)
        covered += low <= 0.4 <= high
    assert stats.binom.ppf(0.0005, SWEEPS, 0.93) <= covered <= stats.binom.ppf(0.9995, SWEEPS, 0.97)


def test_a_shares_interval_is_wilsons():
    assert share_interval(7, 40) == pytest.approx(proportion_confint(7, 40, method="wilson"))


def test_flipping_signs_at_random_comes_to_flipping_them_in_every_way():
    sums = skewed(clusters=10, sites=3, seed=1) + 0.6
    exact = (every_sign(sums) >= np.abs(sums.sum(0)) - 1e-9).mean(0)
    np.testing.assert_allclose(sign_flips(sums, draws=40_000), exact, atol=0.01)


def test_the_step_down_is_westfall_and_youngs_over_every_sign():
    sums = skewed(clusters=10, sites=4, seed=2) + np.array([1.0, 0.4, 0.0, 0.0])
    scale = np.sqrt((sums**2).sum(0))
    flipped, observed = every_sign(sums) / scale, np.abs(sums.sum(0)) / scale
    left, expected, so_far = list(np.argsort(-observed)), np.empty(4), 0.0
    while left:
        so_far = max(so_far, (flipped[:, left].max(1) >= observed[left[0]] - 1e-9).mean())
        expected[left.pop(0)] = so_far
    np.testing.assert_allclose(step_down(sums, draws=40_000), expected, atol=0.01)


def test_false_discovery_rates_are_statsmodels_and_what_has_no_p_has_none():
    p = np.array([0.001, 0.04, np.nan, 0.03, 0.8])
    q = benjamini_hochberg(p)
    known = ~np.isnan(p)
    np.testing.assert_allclose(q[known], multipletests(p[known], method="fdr_bh")[1])
    assert np.isnan(q[2])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_who_is_first_is_shared_between_equals_and_certain_where_nothing_is_close():
    rng = np.random.default_rng(0)
    noise, ones = rng.standard_normal((40, 1)), np.ones((40, 3))
    np.testing.assert_allclose(first_shares(np.hstack([noise, noise, noise - 9]), ones), [0.5, 0.5, 0])


@pytest.mark.parametrize("sites", [1, 24])
def test_without_any_effect_one_sweep_in_twenty_has_a_discovery(sites):
    found = sum(step_down(skewed(40, sites, seed), draws=500, seed=seed).min() <= 0.05 for seed in range(SWEEPS))
    assert FEWEST <= found <= MOST


def test_without_any_effect_the_p_of_a_site_is_uniform():
    p = [sign_flips(skewed(40, 1, seed), draws=500, seed=seed)[0] for seed in range(SWEEPS)]
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.fixture(scope="module")
def two_donors():
    """A real sweep: two unrelated donors of each pair, every layer × step, `thought`."""
    from codi_tracing.patching.engine.sweep import sweep
    from codi_tracing.patching.interventions.sites import sitewise
    from codi_tracing.patching.interventions.sources import unrelated
    from codi_tracing.patching.pairs.pair import load_pairs
    from codi_tracing.traces.model.loading import load_codi
    from tests.conftest import ROOT

    model = load_codi(ROOT / "traces/embedded/thought", device="cpu")
    pairs = load_pairs(ROOT / "patching/data/arithmetic_pairs.json")[:24]
    return sweep(model, pairs, sites=sitewise(model), sources=[unrelated], directions=["denoising"], draws=2)


def test_two_unrelated_donors_of_a_real_model_labelled_at_random_are_told_apart_in_one_sweep_of_twenty(two_donors):
    table = two_donors[two_donors["metric"] == "logit_difference"]
    found, p = 0, []
    for seed in range(SWEEPS):
        contrast = null_contrast(table, seed)
        place = contrast.groupby(["kind", "layer", "step"], dropna=False).ngroup()
        wide = contrast.assign(place=place).pivot_table(index="cluster_id", columns="place", values="numerator")
        sums = wide.fillna(0).to_numpy()
        found += step_down(sums, draws=500, seed=SWEEPS + seed).min() <= 0.05
        p.append(sign_flips(sums[:, :1], draws=500, seed=SWEEPS + seed)[0])
    assert FEWEST <= found <= MOST
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_the_null_needs_two_donors(two_donors):
    with pytest.raises(ValueError, match="sweep with draws = 2"):
        null_contrast(two_donors[two_donors["draw"] == 0])
