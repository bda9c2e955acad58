"""Agreement of denoising and noising: do the sites that restore an answer also destroy it?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from codi_tracing.analysis.rows import has_unrelated, single_site_rows
from codi_tracing.analysis.statistics.effects import SUMS, by_site, effect, specific
from codi_tracing.analysis.statistics.measures import TRANSFER, measured
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS

DECIMALS = 3  # effects that agree to 0.001 are tied


class DirectionAgreement(NamedTuple):
    """Rank correlation of the two directions' effects over sites (Spearman): a description, without an interval."""

    spearman: float
    sites: int
    clusters: int

    def __str__(self) -> str:
        if np.isnan(self.spearman):
            return f"the ranks of {self.sites} sites in {self.clusters} clusters are not compared between directions"
        return (
            f"denoising and noising rank {self.sites} sites alike by {self.spearman:z.2f} (Spearman; "
            f"{self.clusters} clusters)"
        )


def both_directions(table: pd.DataFrame, metric: str = TRANSFER) -> pd.DataFrame:
    """One row per site written in both directions: each direction's pooled effect with its interval.

    Effects are specific transfer if an unrelated donor was swept (`specific`). ValueError if no site has both.
    """
    rows = single_site_rows(measured(table, metric), metric)
    if rows.empty:
        raise ValueError(f"the table has no rows of a layer or step with metric {metric!r}")
    is_specific = metric == TRANSFER and has_unrelated(rows)
    sites = by_site((specific(rows) if is_specific else effect(rows)).dropna(subset=SUMS))
    sides = [
        sites[sites["direction"] == direction]
        .rename(columns={name: f"{name}_{direction}" for name in ("effect", "low", "high")})
        .drop(columns=["direction", "source", "mean", "median"])
        for direction in ("denoising", "noising")
    ]
    both = sides[0].merge(sides[1].drop(columns=["n", "clusters"]), on=["protocol", "metric", *SITE_KEYS])
    if both.empty:
        raise ValueError("no site was written in both directions; sweep denoising and noising")
    return both.assign(specific=is_specific)


def direction_agreement(sites: pd.DataFrame) -> DirectionAgreement:
    """How alike denoising and noising order the sites of `both_directions`; NaN below 3 sites or 8 clusters."""
    effects = [sites[f"effect_{direction}"].round(DECIMALS) for direction in ("denoising", "noising")]
    clusters = int(sites["clusters"].max())
    varies = (
        len(sites) > 2
        and clusters >= FEWEST_CLUSTERS
        and all(side.notna().all() and side.nunique() > 1 for side in effects)
    )
    rho = float(stats.spearmanr(effects[0], effects[1]).statistic) if varies else np.nan
    return DirectionAgreement(rho, len(sites), clusters)
