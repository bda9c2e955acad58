"""Intervals and p-values against SciPy, statsmodels and exhaustive enumeration; their calibration is in theorems/."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from codi_tracing.analysis.statistics.inference import (
    benjamini_hochberg,
    cluster_share_intervals,
    difference_intervals,
    is_defined,
    rank_sets,
    ratio_intervals,
    share_intervals,
    sign_flip_p,
)
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS


def interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The interval of one ratio of sums."""
    low, high = ratio_intervals(above[None], below[None])
    return float(low[0]), float(high[0])


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(3).normal(0.4, 2.0, size=20)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values, np.ones(20)) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_ratio_leaves_out_one_cluster_at_a_time():
    rng = np.random.default_rng(3)
    above, below = rng.normal(2, 3, size=15), rng.uniform(2, 4, size=15)
    left_out = np.array([np.delete(above, i).sum() / np.delete(below, i).sum() for i in range(15)])
    error = np.sqrt(14 / 15 * ((left_out - left_out.mean()) ** 2).sum())
    effective = below.sum() ** 2 / (below**2).sum()
    reach = stats.t.ppf(0.975, effective - 1) * error
    ratio = above.sum() / below.sum()
    assert interval(above, below) == pytest.approx((ratio - reach, ratio + reach))


def test_the_difference_of_two_ratios_is_paired():
    rng = np.random.default_rng(3)
    below, shared = rng.uniform(2, 4, size=(1, 15)), rng.normal(2, 3, size=(1, 15))
    low, high = difference_intervals(shared + 0.3 * below, below, shared + 0.01 * rng.normal(size=(1, 15)), below)
    assert low[0] < 0.3 < high[0] < low[0] + 0.02  # what both share cancels


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -1.0])
def test_an_interval_of_constant_data_has_a_width_and_holds_its_estimate(value):
    low, high = interval(np.full(9, value), np.ones(9))
    assert low <= value <= high
    assert high - low > 0.2


def test_a_share_of_nothing_or_all_has_the_interval_of_so_many_clusters():
    low, high = cluster_share_intervals(np.array([[0.0] * 10, [1.0] * 10]), np.ones((2, 10)))
    assert (low[0], high[1]) == (0, 1)
    assert (high[0], low[1]) == pytest.approx((1 - 0.025 ** (1 / 10), 0.025 ** (1 / 10)))


def test_below_eight_clusters_there_is_no_interval_no_p_and_no_rank():
    for clusters in range(1, FEWEST_CLUSTERS):
        values, ones = np.random.default_rng(0).normal(size=(3, clusters)), np.ones((3, clusters))
        for found in (ratio_intervals(values, ones), cluster_share_intervals(ones / 2, ones), sign_flip_p(values.T),
                      rank_sets(values.T)):  # fmt: skip
            assert np.isnan(found).all()
    assert np.isfinite(ratio_intervals(np.ones((1, 8)), np.ones((1, 8)))).all()


def test_a_shares_interval_is_clopper_pearsons():
    for count, n in ((0, 6), (7, 40), (40, 40)):
        assert np.ravel(share_intervals(count / n, n)) == pytest.approx(proportion_confint(count, n, method="beta"))


def test_copies_of_every_cluster_change_no_share_and_unequal_ones_widen_it():
    sums, sizes = np.array([[1.0, 0, 1, 1, 0, 1, 1, 1]]), np.ones((1, 8))
    copied = cluster_share_intervals(12 * sums, 12 * sizes)
    np.testing.assert_allclose(copied, cluster_share_intervals(sums, sizes))
    unequal = sizes * np.array([8.0, 1, 1, 1, 1, 1, 1, 1])
    low, high = cluster_share_intervals(sums * unequal, unequal)
    assert high - low > copied[1] - copied[0]


def test_a_ratio_whose_denominator_may_be_zero_is_undefined():
    rng = np.random.default_rng(0)
    near, far = rng.normal(0.01, 1.0, size=(1, 20)), rng.normal(1.0, 0.5, size=(1, 20))
    assert not is_defined(near)
    assert is_defined(far)
    assert not is_defined(np.array([[1.0, -0.9, 0.05]]))  # too few clusters for an interval
    assert is_defined(np.array([[0.9]]))


def t(values):  # the studentised mean, over clusters
    return np.abs(stats.ttest_1samp(values, 0, axis=0).statistic)


def test_the_step_down_takes_the_largest_t_over_all_sign_flips():
    rng = np.random.default_rng(4)
    sums = rng.standard_normal((9, 4)) + np.array([1.2, 0.5, 0, 0])
    flips = np.array(list(itertools.product([1, -1], repeat=9)))
    observed = t(sums)
    null = np.array([t(flip[:, None] * sums) for flip in flips])
    order = np.argsort(-observed)
    exact, floor = np.empty(4), 0.0
    for i, site in enumerate(order):
        floor = max(floor, (null[:, order[i:]].max(1) >= observed[site] - 1e-9).mean())
        exact[site] = floor
    family, alone = sign_flip_p(sums)
    np.testing.assert_allclose(family, exact)
    np.testing.assert_allclose(alone, (null >= observed - 1e-9).mean(0))
    np.testing.assert_allclose(sign_flip_p(sums, draws=400)[0], exact, atol=0.05)  # drawn flips


def test_a_single_site_has_the_p_of_a_sign_flip_test():
    sums = np.random.default_rng(5).standard_normal((12, 1)) + 0.4
    scipys = stats.permutation_test((sums[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert np.ravel(sign_flip_p(sums)) == pytest.approx([scipys, scipys])


def test_sites_that_do_not_vary_are_significant_only_if_they_move():
    family, alone = sign_flip_p(np.column_stack([np.zeros(10), np.ones(10)]), scale=1.0)
    assert family.tolist() == alone.tolist() == [1, 2 / 2**10]


def test_a_site_without_variance_does_not_hide_the_others():
    """Its t is bounded, so that a max-t test still sees them: transfer of 1.00 everywhere has no standard error."""
    varying = np.random.default_rng(2).normal(0.5, 0.1, size=(20, 1))
    family, _ = sign_flip_p(np.hstack([np.ones((20, 1)), varying]), scale=1.0)
    assert (family <= 0.05).all()


def test_false_discovery_rates_are_statsmodels_and_nan_stays():
    p = np.array([0.001, 0.04, np.nan, 0.03, 0.8])
    q = benjamini_hochberg(p)
    known = ~np.isnan(p)
    np.testing.assert_allclose(q[known], multipletests(p[known], method="fdr_bh")[1])
    assert np.isnan(q[2])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_rank_sets_part_a_distant_site_and_keep_equal_ones_together():
    noise = np.random.default_rng(0).standard_normal((40, 3))
    best, worst = rank_sets(noise + np.array([0.0, 0.0, -9]))
    assert (best.tolist(), worst.tolist()) == ([1, 1, 3], [2, 2, 3])
    same = np.repeat(noise[:, :1], 4, axis=1)
    assert [ranks.tolist() for ranks in rank_sets(same)] == [[1] * 4, [4] * 4]
    assert np.ravel(rank_sets(noise[:, :1])).tolist() == [1, 1]


def test_differences_are_tested_again_once_the_larger_ones_are_found():
    """Step-down: the critical value of what is left is smaller than that of all differences at once."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((12, 6)) * np.array([0.5, 0.5, 3, 3, 3, 3])
    shifts = np.array([0.0, 0.62, 40, 80, 120, 160])  # the last four are told apart from all by far
    alone = rank_sets((noise + shifts)[:, :2])
    together = rank_sets(noise + shifts)
    assert alone[1].tolist() == [2, 1]
    assert together[1].tolist() == [6, 5, 4, 3, 2, 1]
