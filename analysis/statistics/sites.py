"""Every site's effect with its interval, rank and p-values; the critical sites."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import SERIES, from_run, has_unrelated, single_site_rows
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, Estimate, ceiling
from codi_tracing.analysis.statistics.effects import SUMS, cluster_sums, effect, pooled, specific_or_plain
from codi_tracing.analysis.statistics.inference import (
    benjamini_hochberg,
    first_shares,
    rank_intervals,
    sign_flips,
    step_down,
)
from codi_tracing.analysis.table import SITE_KEYS

ALPHA = 0.05  # family-wise
SHARE_OF_CEILING = 0.05  # a critical site's lower bound is above this share of the ceiling


def critical(
    table: pd.DataFrame,
    metric: str = "logit_difference",
    direction: str = "denoising",
    *,
    low_ceiling: float = LOW_CEILING,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every site by its specific effect, largest first, with the intervals of effect and rank, and p-values.

    `p` is of the site alone, `p_fwer` family-wise over all sites tested, `q` Benjamini and Hochberg's. `critical`:
    p_fwer ≤ 0.05, a lower bound above 5 % of the ceiling, and a ceiling that is not low. `exploratory`: q ≤ 0.05 and an
    effect above 0. `first`: the share of resamples of clusters in which the site is the largest. The sites are read at
    the answer, without knockouts. Without an unrelated donor there is no null to test against: the effects are plain
    (`specific` is False), all p are NaN, and nothing is critical.
    """
    top = ceiling(table, direction, metric)
    return rank_sites(site_statistics(table, metric, direction, draws=draws, seed=seed), top, low_ceiling)


def rank_sites(sites: pd.DataFrame, top: Estimate, low_ceiling: float = LOW_CEILING) -> pd.DataFrame:
    """Sort `site_statistics` by effect, and mark the critical sites under the ceiling `top`."""
    large = (sites["p_fwer"] <= ALPHA) & (sites["low"] > SHARE_OF_CEILING * top.effect)
    ranked = sites.assign(ceiling=top.effect, critical=large & (top.effect >= low_ceiling))
    ranked = ranked.sort_values("effect", ascending=False, ignore_index=True)
    return ranked.assign(rank=ranked.index + 1)


def site_statistics(
    table: pd.DataFrame,
    metric: str = "logit_difference",
    direction: str = "denoising",
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The sites of `critical` with their effects, ranks and p-values, for any ceiling; in the table's order.

    `moved` is the largest change of the metric by any write there, of any pair and either donor.
    """
    chosen = single_site_rows(table, metric, direction)
    if chosen.empty:
        raise ValueError(f"the table has no rows of a layer or step with metric {metric!r} and direction {direction!r}")
    has_null = has_unrelated(chosen)
    if (rows := specific_or_plain(chosen).dropna(subset=SUMS)).empty:
        raise ValueError(f"no pair has an effect of its other run with metric {metric!r}, direction {direction!r}")
    by = [*SERIES, *SITE_KEYS]
    sites = pooled(rows, by, seed=seed)
    sums = cluster_sums(rows, by).fillna(0.0)
    numerators, denominators = (sums[name].to_numpy(float) for name in SUMS)
    p_fwer, p = (
        test(numerators, draws, seed) if has_null else np.full(len(sites), np.nan) for test in (step_down, sign_flips)
    )
    q = benjamini_hochberg(p)
    rank_low, rank_high = rank_intervals(numerators, denominators, seed)
    written, keys = effect(from_run(chosen)), list(SITE_KEYS)
    moved = written.assign(moved=written["numerator"].abs()).groupby(keys, dropna=False)["moved"].max().reset_index()
    return sites.assign(
        p=p,
        q=q,
        p_fwer=p_fwer,
        specific=has_null,
        exploratory=(q <= ALPHA) & (sites["effect"] > 0),
        first=first_shares(numerators, denominators, seed),
        rank_low=rank_low.astype(int),
        rank_high=rank_high.astype(int),
    ).merge(moved, on=keys, how="left")
