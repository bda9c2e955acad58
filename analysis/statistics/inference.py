"""Uncertainty over clusters: intervals of shares and ratios, family-wise p-values, simultaneous rank sets.

Every input is a sum per cluster, the unit of independence. Below `FEWEST_CLUSTERS` no interval, p or rank is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS

Array = NDArray[np.floating[Any]]
CONFIDENCE = 0.95
ALPHA = 0.05  # family-wise
NEAR = 0.05  # a cluster's value this near to 0 or 1 counts as nothing or all
MOSTLY = 0.5  # share of such clusters from which a ratio is treated as a share too
LEAST_ERROR = 1e-3  # of the mean denominator: the smallest standard error of a test, for sites that do not vary
MOST_RANKED = 200  # sites whose ranks are computed: the differences of all pairs of them are tested
AT_ONCE = 4_000_000  # numbers in one array: a bound on memory


def too_few(clusters: int) -> str:
    """Why so few clusters have no interval, p or rank."""
    count = "1 cluster is" if clusters == 1 else f"{clusters} clusters are"
    smallest = f"the smallest possible p is {2 / 2**clusters:.2g}"
    return f"{count} fewer than the {FEWEST_CLUSTERS} that intervals and tests need ({smallest})"


def share_intervals(share: ArrayLike, n: ArrayLike) -> tuple[Array, Array]:
    """95 % Clopper–Pearson interval of shares of `n` independent cases; `n` and `share × n` need not be whole."""
    share, n = np.broadcast_arrays(np.asarray(share, float), np.asarray(n, float))
    tail = (1 - CONFIDENCE) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(share <= 0, 0.0, stats.beta.ppf(tail, share * n, (1 - share) * n + 1))
        high = np.where(share >= 1, 1.0, stats.beta.ppf(1 - tail, share * n + 1, (1 - share) * n))
    known = np.isfinite(share) & (n > 0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def effective_clusters(sizes: Array) -> Array:
    """(Σ size)² / Σ size² over the last axis: how many clusters of equal size weigh the same."""
    squares = (sizes**2).sum(-1)
    return np.divide(np.abs(sizes).sum(-1) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)


def cluster_share_intervals(sums: Array, sizes: Array) -> tuple[Array, Array]:
    """95 % interval of each row's Σ sums / Σ sizes, a share, over its effective number of clusters; `[row, cluster]`.

    NaN with fewer than `FEWEST_CLUSTERS` clusters.
    """
    low, high = share_intervals(ratio_of_sums(sums, sizes), effective_clusters(sizes))
    few = sums.shape[-1] < FEWEST_CLUSTERS
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


def ratio_of_sums(numerators: Array, denominators: Array) -> Array:
    """Σ numerators / Σ denominators over the last axis; NaN where the latter is 0."""
    below = denominators.sum(-1)
    return np.divide(numerators.sum(-1), below, out=np.full_like(below, np.nan), where=below != 0)


def is_defined(denominators: Array) -> NDArray[np.bool_]:
    """Whether each row's pooled denominator can be told from 0, `[row, cluster]`: its 95 % interval excludes 0.

    With too few clusters for an interval: whether it is over half of what it would be if no sign differed.
    """
    clusters = denominators.shape[-1]
    total = np.abs(denominators.sum(-1))
    if clusters < FEWEST_CLUSTERS:
        return np.asarray((total > 0) & (total > np.abs(denominators).sum(-1) / 2))
    spread = denominators.std(-1, ddof=1) * np.sqrt(clusters)
    return np.asarray(total > stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1) * spread)


def ratio_intervals(numerators: Array, denominators: Array) -> tuple[Array, Array]:
    """95 % interval of each row's Σ numerators / Σ denominators, `[row, cluster]`: the jackknife with Student's t.

    Where most clusters are all or nothing, or all are equal, the hull with the interval of a share: a ratio that
    does not vary in the sample is not known exactly. NaN with fewer than `FEWEST_CLUSTERS` clusters.
    """
    return difference_intervals(numerators, denominators, np.zeros_like(numerators), np.ones_like(denominators))


def difference_intervals(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
    """95 % interval of Σa / Σb − Σc / Σd over the same clusters, inputs `[row, cluster]`; as `ratio_intervals`."""
    rows, clusters = a.shape
    if clusters < FEWEST_CLUSTERS:
        return np.full(rows, np.nan), np.full(rows, np.nan)
    value = ratio_of_sums(a, b) - ratio_of_sums(c, d)
    with np.errstate(all="ignore"):
        without = (a.sum(-1, keepdims=True) - a) / (b.sum(-1, keepdims=True) - b)
        without -= (c.sum(-1, keepdims=True) - c) / (d.sum(-1, keepdims=True) - d)
        of_clusters = a / b - c / d
    centred = without - without.mean(-1, keepdims=True)
    error = np.sqrt((clusters - 1) / clusters * (centred**2).sum(-1))
    effective = np.minimum(effective_clusters(b), effective_clusters(d))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(effective - 1, 1)) * error
    low, high = value - reach, value + reach
    of_clusters = np.where(np.isfinite(of_clusters), of_clusters, value[:, None])
    size = np.abs(of_clusters)
    all_or_nothing = ((size <= NEAR) | (np.abs(size - 1) <= NEAR)).mean(-1) >= MOSTLY
    degenerate = all_or_nothing | (np.ptp(of_clusters, -1) <= LEAST_ERROR)
    share_low, share_high = share_intervals(np.minimum(np.abs(value), 1.0), effective)
    # Near 0 an effect may have either sign.
    hull_low = np.where(value > NEAR, share_low, -share_high)
    hull_high = np.where(value < -NEAR, -share_low, share_high)
    low = np.where(degenerate, np.fmin(low, hull_low), low)
    high = np.where(degenerate, np.fmax(high, hull_high), high)
    return low, high


def flips(clusters: int, draws: int, seed: int = 0) -> Array:
    """Signs of whole clusters, `[draw, cluster]`: every one of the 2^clusters where these are at most `draws`.

    Their first row changes nothing, so that a p is never 0.
    """
    if 2**clusters <= draws:
        numbers = np.arange(2**clusters)[:, None] >> np.arange(clusters)
        return 1.0 - 2.0 * (numbers & 1)
    signs = np.random.default_rng(seed).integers(0, 2, size=(draws, clusters)) * 2.0 - 1.0
    signs[0] = 1.0
    return signs


def t_statistics(signs: Array, sums: Array, least: Array | float) -> Array:
    """|t| of each site's mean under each draw of signs, `[draw, site]`; the standard error is at least `least`."""
    clusters = len(sums)
    means = signs @ sums / clusters
    variance = np.maximum((sums**2).mean(0) - means**2, 0.0) / max(clusters - 1, 1)
    return np.abs(means) / np.maximum(np.maximum(np.sqrt(variance), least), 1e-300)


def sign_flip_p(sums: Array, scale: Array | float = 0.0, draws: int = 10_000, seed: int = 0) -> tuple[Array, Array]:
    """Two-sided p of each site, family-wise (max-|t| step-down, Romano and Wolf 2005) and alone; `sums[cluster, site]`.

    Whole clusters change sign together: exact where a cluster's sums are symmetric around 0, as where the two donors
    are exchangeable. `scale` is each site's mean denominator. NaN with fewer than `FEWEST_CLUSTERS` clusters.
    """
    clusters, sites = sums.shape
    if clusters < FEWEST_CLUSTERS:
        return np.full(sites, np.nan), np.full(sites, np.nan)
    signs, least = flips(clusters, draws, seed), LEAST_ERROR * np.abs(scale)
    observed = t_statistics(signs[:1], sums, least)[0]
    order = np.argsort(-observed, kind="stable")
    observed = observed - 1e-9 * np.maximum(observed, 1.0)
    alone, family = np.zeros(sites), np.zeros(sites)
    for part in in_parts(signs, sites):
        t = t_statistics(part, sums, least)
        alone += (t >= observed).sum(0)
        # The largest statistic among a site and all sites ranked below it, in every draw.
        maxima = np.maximum.accumulate(t[:, order[::-1]], axis=1)[:, ::-1]
        family[order] += (maxima >= observed[order]).sum(0)
    family[order] = np.maximum.accumulate(family[order])
    return family / len(signs), alone / len(signs)


def in_parts(signs: Array, columns: int) -> list[Array]:
    """The draws in parts of which each makes at most `AT_ONCE` numbers."""
    return np.array_split(signs, -(-len(signs) * columns // AT_ONCE))


def benjamini_hochberg(p: Array) -> Array:
    """Each p as the smallest false discovery rate at which it is listed (Benjamini and Hochberg 1995). NaN stays."""
    q = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def rank_sets(values: Array, draws: int = 2_000, seed: int = 0) -> tuple[Array, Array]:
    """Simultaneous 95 % sets of the sites' ranks, 1 the largest; `values[cluster, site]` are in units of transfer.

    A site's best rank is 1 + how many sites are larger than it, its worst the number of sites less how many are smaller
    (Mogstad, Romano, Shaikh and Wilhelm 2024). Each difference of two sites is tested by sign flips of whole clusters,
    with step-down over all of them. NaN with fewer than `FEWEST_CLUSTERS` clusters or over `MOST_RANKED` sites.
    """
    clusters, sites = values.shape
    if clusters < FEWEST_CLUSTERS or sites > MOST_RANKED:
        return np.full(sites, np.nan), np.full(sites, np.nan)
    first, second = np.triu_indices(sites, 1)
    if not len(first):
        return np.ones(sites), np.ones(sites)
    differences = values[:, first] - values[:, second]
    signs, least = flips(clusters, draws, seed), LEAST_ERROR
    observed = t_statistics(np.ones((1, clusters)), differences, least)[0]
    open_tests = np.ones(len(first), bool)
    while open_tests.any():  # step-down: what is rejected no longer counts for the critical value
        left = differences[:, open_tests]
        maxima = np.concatenate([t_statistics(part, left, least).max(1) for part in in_parts(signs, left.shape[1])])
        critical = np.quantile(maxima, CONFIDENCE, method="higher")
        rejected = open_tests & (observed > critical)
        if not rejected.any():
            break
        open_tests &= ~rejected
    first_is_larger = differences.mean(0) > 0
    larger, smaller = np.where(first_is_larger, first, second), np.where(first_is_larger, second, first)
    differ = ~open_tests
    best = 1.0 + np.bincount(smaller[differ], minlength=sites)
    worst = sites - np.bincount(larger[differ], minlength=sites).astype(float)
    return best, worst
