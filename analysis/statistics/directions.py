"""Agreement of denoising and noising: do the sites that restore an answer also destroy it?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from codi_tracing.analysis.rows import single_site_rows
from codi_tracing.analysis.statistics.effects import SUMS, specific_or_plain
from codi_tracing.analysis.statistics.inference import CONFIDENCE, RESAMPLES, resample_counts
from codi_tracing.analysis.table import SITE_KEYS

DECIMALS = 3  # effects that agree to 0.001 are tied


class DirectionAgreement(NamedTuple):
    """Rank correlation of the two directions' effects over sites (Spearman), its 95 % interval over clusters."""

    spearman: float
    low: float
    high: float
    pearson: float
    sites: int
    clusters: int

    def __str__(self) -> str:
        return (
            f"denoising and noising rank {self.sites} sites alike by {self.spearman:z.2f} [{self.low:z.2f}, "
            f"{self.high:z.2f}] (Spearman; Pearson {self.pearson:z.2f}; {self.clusters} clusters)"
        )


def direction_agreement(table: pd.DataFrame, metric: str = "logit_difference", *, seed: int = 0) -> DirectionAgreement:
    """How similarly denoising and noising order the sites; NaN with fewer than three sites or two clusters.

    Whole clusters are resampled, with both directions. Percentiles: a rank correlation has no smooth jackknife.
    """
    rows = specific_or_plain(rows_of_sites(table, metric)).dropna(subset=SUMS)
    rows = rows.assign(site=rows.groupby(["protocol", "metric", *SITE_KEYS], dropna=False).ngroup())
    sums = rows.pivot_table(index="cluster_id", columns=["direction", "site"], values=SUMS, aggfunc="sum").fillna(0.0)
    of_direction = rows.groupby("direction")["site"].agg(set)
    sites = sorted(set.intersection(*(of_direction.get(name, set()) for name in ("denoising", "noising"))))
    if not sites:
        raise ValueError("no site was written in both directions; sweep denoising and noising")
    unknown = DirectionAgreement(np.nan, np.nan, np.nan, np.nan, len(sites), len(sums))
    if len(sites) < 3 or len(sums) < 2:
        return unknown
    counts = np.vstack([np.ones(len(sums)), resample_counts(len(sums), RESAMPLES, seed)])
    effects = []
    for direction in ("denoising", "noising"):
        above, below = (counts @ sums[name][direction][sites].to_numpy(float) for name in SUMS)
        with np.errstate(all="ignore"):
            effects.append(np.round(above / below, DECIMALS))  # rounding errors must not order equal effects
    if not all(np.isfinite(side[0]).all() for side in effects):
        return unknown
    correlations = _correlations(*(stats.rankdata(side, axis=1) for side in effects))
    tail = (1 - CONFIDENCE) / 2
    known = correlations[1:][np.isfinite(correlations[1:])]
    low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
    pearson = float(_correlations(effects[0][:1], effects[1][:1])[0])
    return DirectionAgreement(float(correlations[0]), float(low), float(high), pearson, len(sites), len(sums))


def rows_of_sites(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of single sites of a metric; ValueError if there are none."""
    rows = single_site_rows(table, metric)
    if rows.empty:
        raise ValueError(f"the table has no rows of a layer or step with metric {metric!r}")
    return rows


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of two arrays; NaN if one of them is constant."""
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    below = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), below, out=np.full(len(a), np.nan), where=below > 0)
