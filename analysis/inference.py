"""Uncertainty with the cluster as its unit: bootstrap intervals of ratios, ranks, and family-wise p-values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2_000
CONFIDENCE = 0.95


@lru_cache(maxsize=16)
def resample_counts(clusters: int, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """How often each cluster is drawn in each resample, `[resample, cluster]`; every row sums to `clusters`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(float)


def resampled_ratios(numerators: Array, denominators: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Σ numerators / Σ denominators in each resample of whole clusters; inputs are sums per cluster (first axis)."""
    counts = resample_counts(len(numerators), resamples, seed)
    below = counts @ denominators
    return np.divide(counts @ numerators, below, out=np.full_like(below, np.nan), where=below != 0)


def ratio_interval(
    numerators: Array, denominators: Array, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of Σ numerators / Σ denominators; NaN with fewer than two clusters."""
    ratios = resampled_ratios(numerators, denominators, resamples, seed)
    if len(numerators) < 2 or np.isnan(ratios).all():
        return np.nan, np.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(ratios, (tail, 1 - tail))
    return float(low), float(high)


def share_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of independent cases (Wilson's, which stays within 0 and 1)."""
    interval = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def rank_intervals(numerators: Array, denominators: Array, seed: int = 0) -> tuple[Array, Array]:
    """95 % interval of each site's rank (1 is the largest effect); the inputs are sums `[cluster, site]`."""
    ratios = resampled_ratios(numerators, denominators, seed=seed)
    ranks = (-ratios).argsort(axis=1).argsort(axis=1) + 1.0
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(ranks, tail, axis=0, method="lower"), np.quantile(ranks, 1 - tail, axis=0, method="higher")


def step_down(sums: Array, draws: int = 10_000, seed: int = 0) -> Array:
    """Family-wise p of each site: whole clusters change sign together, max-|t| step-down (Westfall and Young).

    `sums[cluster, site]` are each cluster's sums, symmetric around 0 under the null. Romano and Wolf (2005) give the
    step-down; |sum| / sqrt(clusters × sum of squares) stands for |t|, of which it is an increasing function.
    """
    clusters, sites = sums.shape
    scale = np.sqrt(clusters * (sums**2).sum(0))
    scale[scale == 0] = np.inf  # a site where nothing ever changes is never significant
    observed = np.abs(sums.sum(0)) / scale
    signs = np.random.default_rng(seed).integers(0, 2, size=(draws, clusters)) * 2.0 - 1.0
    flipped = np.abs(signs @ sums) / scale

    order = np.argsort(-observed, kind="stable")
    # The largest statistic among a site and all that rank below it, in every draw.
    maxima = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]
    exceeding = (maxima >= observed[order] - 1e-12).sum(0)
    adjusted = np.empty(sites)
    adjusted[order] = np.maximum.accumulate((1 + exceeding) / (1 + draws))
    return adjusted
