"""Intervals and p-values against SciPy, statsmodels, exhaustive enumeration and simulated nulls."""

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
    ratio_intervals,
    share_interval,
    sign_flips,
    step_down,
)
from tests.support.places import ROOT

SWEEPS = 200
FEWEST, MOST = stats.binom.ppf([0.0005, 0.9995], SWEEPS, 0.05)  # discoveries in SWEEPS sweeps at 5 %


def skewed(clusters: int, sites: int, seed: int) -> np.ndarray:
    """Sums by cluster and site with heavy tails, alike across sites, symmetric around 0: `[cluster, site]`."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_t(3, size=(clusters, 1))
    return shared + 0.5 * rng.standard_t(3, size=(clusters, sites))


def every_sign(sums: np.ndarray) -> np.ndarray:
    """|sum| of each site under each of the 2^clusters assignments of signs: `[assignment, site]`."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    return np.abs(signs @ sums)


def interval(above: np.ndarray, below: np.ndarray, **options) -> tuple[float, float]:
    """The interval of one ratio of sums."""
    low, high = ratio_intervals(above[None], below[None], **options)
    return float(low[0]), float(high[0])


def test_an_interval_is_scipys_bca_of_the_ratio_of_sums():
    rng = np.random.default_rng(3)
    above, below = rng.gamma(2, size=30), rng.gamma(3, size=30)
    expected = stats.bootstrap(
        (above, below), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True, n_resamples=2000,
        method="BCa", rng=np.random.default_rng(0), batch=500,
    ).confidence_interval  # fmt: skip
    assert interval(above, below) == pytest.approx((expected.low, expected.high))


def test_an_interval_of_constant_data_has_no_width_and_of_one_cluster_is_unknown():
    assert interval(np.full(9, 2.0), np.full(9, 4.0)) == pytest.approx((0.5, 0.5))
    assert np.isnan(interval(np.ones(1), np.ones(1))).all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = 0
    for seed in range(SWEEPS):
        rng = np.random.default_rng(seed)
        below = rng.uniform(2, 6, size=60)
        above = 0.4 * below + rng.standard_normal(60)
        low, high = interval(above, below, resamples=500, seed=seed)
        covered += low <= 0.4 <= high
    assert stats.binom.ppf(0.0005, SWEEPS, 0.93) <= covered <= stats.binom.ppf(0.9995, SWEEPS, 0.97)


def test_a_shares_interval_is_wilsons():
    assert share_interval(7, 40) == pytest.approx(proportion_confint(7, 40, method="wilson"))


def test_random_sign_flips_approach_the_exhaustive_ones():
    sums = skewed(clusters=10, sites=3, seed=1) + 0.6
    exact = (every_sign(sums) >= np.abs(sums.sum(0)) - 1e-9).mean(0)
    np.testing.assert_allclose(sign_flips(sums, draws=40_000), exact, atol=0.01)


def test_the_step_down_takes_the_largest_t_over_all_sign_flips():
    rng = np.random.default_rng(4)
    sums = rng.standard_normal((9, 4)) + np.array([1.2, 0.5, 0, 0])
    flips = np.array(list(itertools.product([1, -1], repeat=9)))

    def t(values):  # the studentised mean, over clusters
        return np.abs(stats.ttest_1samp(values, 0, axis=0).statistic)

    observed = t(sums)
    null = np.array([t(flip[:, None] * sums) for flip in flips])
    order = np.argsort(-observed)
    exact, floor = np.empty(4), 0.0
    for i, site in enumerate(order):
        floor = max(floor, (null[:, order[i:]].max(1) >= observed[site] - 1e-9).mean())
        exact[site] = floor
    np.testing.assert_allclose(step_down(sums, draws=40_000), exact, atol=0.01)


def test_a_single_site_has_the_p_of_a_sign_flip_test():
    sums = np.random.default_rng(5).standard_normal((12, 1)) + 0.4
    scipys = stats.permutation_test((sums[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert step_down(sums, draws=40_000)[0] == pytest.approx(scipys, abs=0.01)


def test_a_site_where_nothing_changes_is_never_significant():
    sums = np.column_stack([np.zeros(10), np.ones(10)])
    np.testing.assert_allclose(step_down(sums, draws=20_000), [1, 2 / 2**10], atol=2e-3)


def test_false_discovery_rates_are_statsmodels_and_nan_stays():
    p = np.array([0.001, 0.04, np.nan, 0.03, 0.8])
    q = benjamini_hochberg(p)
    known = ~np.isnan(p)
    np.testing.assert_allclose(q[known], multipletests(p[known], method="fdr_bh")[1])
    assert np.isnan(q[2])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_equal_sites_share_the_first_rank_and_a_distant_site_never_has_it():
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

    model = load_codi(ROOT / "traces/embedded/thought", device="cpu")
    pairs = load_pairs(ROOT / "patching/data/arithmetic_pairs.json")[:24]
    return sweep(model, pairs, sites=sitewise(model), sources=[unrelated], directions=["denoising"], draws=2)


def test_two_unrelated_donors_of_a_real_model_labelled_at_random_differ_in_one_sweep_of_twenty(two_donors):
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
