"""Uncertainty over clusters: bootstrap intervals of ratios and ranks, and family-wise p-values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2_000
CONFIDENCE = 0.95
# Resamples per batch, and numbers per batch: a bound on memory.
BATCH, AT_ONCE = 500, 20_000_000


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


def ratio_intervals(
    numerators: Array, denominators: Array, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Array, Array]:
    """95 % interval of each row's Σ numerators / Σ denominators over resampled clusters: SciPy's BCa (Efron 1987).

    The inputs are sums `[row, cluster]`; all rows share the same resamples of clusters. Percentiles if BCa is
    undefined, for example if no resample differs; NaN with fewer than two clusters, or if the denominators of a
    resample sum to 0.
    """
    return _intervals((numerators, denominators), ratio_of_sums, resamples, seed)


def ratio_differences(
    numerators: Array, denominators: Array, others: Array, other_denominators: Array,
    resamples: int = RESAMPLES, seed: int = 0,
) -> tuple[Array, Array]:  # fmt: skip
    """95 % interval of the difference of two ratios of sums over the same clusters, row by row.

    A resample draws a cluster with both its ratios, so that shared variation cancels; else as `ratio_intervals`.
    """
    return _intervals((numerators, denominators, others, other_denominators), _difference_of_ratios, resamples, seed)


def _difference_of_ratios(a: Array, b: Array, c: Array, d: Array, axis: int = -1) -> Array:
    return ratio_of_sums(a, b, axis) - ratio_of_sums(c, d, axis)


def _intervals(
    samples: tuple[Array, ...], statistic: Callable[..., Array], resamples: int, seed: int
) -> tuple[Array, Array]:
    """The interval of a statistic of paired samples, each `[row, cluster]`, row by row."""
    n_rows, n_clusters = samples[0].shape
    low, high = np.full(n_rows, np.nan), np.full(n_rows, np.nan)
    if n_clusters < 2:
        return low, high
    same = np.all([(sample == sample[:, :1]).all(1) for sample in samples], axis=0)
    with np.errstate(all="ignore"):  # every cluster is equal, as in many shares
        low[same] = high[same] = statistic(*(sample[same, :1] for sample in samples))
    low[~np.isfinite(low)] = np.nan
    for method in ("BCa", "percentile"):
        todo = np.flatnonzero(np.isnan(low))
        for rows in np.array_split(todo, -(-len(todo) * n_clusters * BATCH // AT_ONCE) or 1):
            if not len(rows):
                continue
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # undefined intervals are NaN
                interval = stats.bootstrap(
                    [sample[rows] for sample in samples], statistic, axis=-1, paired=True, vectorized=True,
                    n_resamples=resamples, confidence_level=CONFIDENCE, method=method, batch=BATCH,
                    rng=np.random.default_rng(seed),
                ).confidence_interval  # fmt: skip
            bounds = np.stack([interval.low, interval.high])
            known = np.isfinite(bounds).all(0)
            low[rows[known]], high[rows[known]] = bounds[:, known]
    return low, high


def ratio_of_sums(numerators: Array, denominators: Array, axis: int = -1) -> Array:
    """Σ numerators / Σ denominators along an axis."""
    return numerators.sum(axis=axis) / denominators.sum(axis=axis)


def share_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of independent cases (Wilson's, within 0 and 1)."""
    interval = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def rank_intervals(numerators: Array, denominators: Array, seed: int = 0) -> tuple[Array, Array]:
    """95 % interval of each site's rank (1 is the largest effect); the inputs are sums `[cluster, site]`."""
    ratios = resampled_ratios(numerators, denominators, seed=seed)
    ranks = (-ratios).argsort(axis=1).argsort(axis=1) + 1.0
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(ranks, tail, axis=0, method="lower"), np.quantile(ranks, 1 - tail, axis=0, method="higher")


def first_shares(numerators: Array, denominators: Array, seed: int = 0) -> Array:
    """Share of resamples of clusters in which each site has the largest effect; the inputs are sums `[cluster, site]`.

    The shares sum to 1; equal sites share a resample equally. NaN if no site has an effect.
    """
    ratios = resampled_ratios(numerators, denominators, seed=seed)
    ratios = ratios[np.isfinite(ratios).any(axis=1)]
    if not len(ratios):
        return np.full(numerators.shape[1], np.nan)
    first = (ratios == np.nanmax(ratios, axis=1, keepdims=True)).astype(float)
    return (first / first.sum(1, keepdims=True)).mean(0)


def sign_flips(sums: Array, draws: int = 10_000, seed: int = 0) -> Array:
    """Two-sided p of each site alone: whole clusters change sign, |sum| is compared; the inputs are `[cluster, site]`.

    Symmetry around 0 is the null. A site without any change has p = 1.
    """
    signs = np.random.default_rng(seed).integers(0, 2, size=(draws, len(sums))) * 2.0 - 1.0
    observed = np.abs(sums.sum(0))
    slack = 1e-12 * np.abs(sums).sum(0)
    exceeding = (np.abs(signs @ sums) >= observed - slack).sum(0)
    return (1 + exceeding) / (1 + draws)


def benjamini_hochberg(p: Array) -> Array:
    """Each p as the smallest false discovery rate at which it is listed (Benjamini and Hochberg 1995). NaN stays."""
    q = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def step_down(sums: Array, draws: int = 10_000, seed: int = 0) -> Array:
    """Family-wise p of each site: whole clusters change sign together, max-|t| step-down (Westfall and Young).

    `sums[cluster, site]` are each cluster's sums, symmetric around 0 under the null. Romano and Wolf (2005) give the
    step-down; |sum| / sqrt(clusters × sum of squares) is an increasing function of |t|.
    """
    clusters, sites = sums.shape
    scale = np.sqrt(clusters * (sums**2).sum(0))
    scale[scale == 0] = np.inf  # a site without any change is never significant
    observed = np.abs(sums.sum(0)) / scale
    signs = np.random.default_rng(seed).integers(0, 2, size=(draws, clusters)) * 2.0 - 1.0
    flipped = np.abs(signs @ sums) / scale

    order = np.argsort(-observed, kind="stable")
    # The largest statistic among a site and all sites ranked below it, in every draw.
    maxima = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]
    exceeding = (maxima >= observed[order] - 1e-12).sum(0)
    adjusted = np.empty(sites)
    adjusted[order] = np.maximum.accumulate((1 + exceeding) / (1 + draws))
    return adjusted
