"""The largest site against every other: differences, a sentence, and unbiased sizes of the largest sites."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import site_name
from codi_tracing.analysis.rows import SERIES, one_of, single_site_rows
from codi_tracing.analysis.statistics.effects import SUMS, cluster_sums, pooled, specific_or_plain
from codi_tracing.analysis.statistics.inference import ratio_intervals, step_down
from codi_tracing.analysis.statistics.sites import ALPHA
from codi_tracing.analysis.table import SITE_KEYS

RANKED_BY = {"site": SITE_KEYS, "layer": ("layer",), "step": ("step",)}


def rank_differences(
    table: pd.DataFrame,
    by: str = "site",
    metric: str = "logit_difference",
    direction: str = "denoising",
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The site with the largest pooled effect against every other: paired difference, interval, family-wise p.

    `by` is "site", "layer" or "step"; a layer's effect is the mean over all rows of the table written in it. Effects
    are specific if an unrelated donor was swept. The leader comes first, with difference 0 and no p. It is chosen from
    the same data, so its lead is tested two-sided, over all the others at once.
    """
    rows, keys = _rows_to_rank(table, by, metric, direction), list(RANKED_BY[by])
    per_pair = rows.groupby([*keys, "cluster_id", "pair_id"], dropna=False)[SUMS].mean().reset_index()
    sums = cluster_sums(per_pair, keys).dropna()  # a paired difference needs both
    above, below = (sums[name].to_numpy(float) for name in SUMS)
    if not len(sums) or not below.sum(0).all():
        raise ValueError(f"no cluster has an effect at every {by}, so their differences are unknown")
    effects = above.sum(0) / below.sum(0)
    order = np.argsort(-effects, kind="stable")
    leader, others = order[0], order[1:]
    # Per cluster, the leader's surplus over each site, in units of the pairs' mean gap.
    scale = below.sum(0) / len(below)
    lead = np.ascontiguousarray(((above[:, [leader]] / scale[leader]) - above / scale).T)
    low, high = ratio_intervals(lead, np.ones_like(lead), seed=seed)
    low[leader] = high[leader] = 0.0
    p = np.full(len(effects), np.nan)
    if len(others):
        p[others] = step_down(lead[others].T, draws, seed)
    sites = per_pair[keys].drop_duplicates(ignore_index=True).astype({key: table[key].dtype for key in keys})
    differences = sites.assign(
        rank=order.argsort() + 1,
        effect=effects,
        difference=effects[leader] - effects,
        low=low,
        high=high,
        p_fwer=p,
        clusters=len(sums),
        metric=metric,
        direction=direction,
        protocol=rows["protocol"].iloc[0],
    )
    return differences.iloc[order].reset_index(drop=True)


def _rows_to_rank(table: pd.DataFrame, by: str, metric: str, direction: str) -> pd.DataFrame:
    """The effects of single sites, or of single layers or steps."""
    if by not in RANKED_BY:
        raise ValueError(f"by is {by!r}, expected one of {', '.join(RANKED_BY)}")
    chosen = single_site_rows(table, metric, direction)
    if by != "site":
        chosen = chosen[one_of(chosen, by)]
    if chosen.empty:
        raise ValueError(f"the table has no single {by} with metric {metric!r} and direction {direction!r} to rank")
    rows = specific_or_plain(chosen).dropna(subset=SUMS)
    if rows.empty:
        raise ValueError(f"no pair has an effect of its other run with metric {metric!r}, direction {direction!r}")
    return rows


def winner(differences: pd.DataFrame) -> str:
    """The largest site of `rank_differences`, named only if it differs from every other, family-wise."""
    if not {"p_fwer", "clusters", "rank"} <= set(differences):
        raise ValueError("these are no differences of a ranking; pass the table through rank_differences() first")
    several = "kind" in differences and differences["kind"].nunique() > 1
    names = [_name(row, several or not index) for index, row in enumerate(differences.to_dict("records"))]
    leader, rest = differences.iloc[0], differences.iloc[1:]
    clusters = f"{leader['clusters']} clusters"
    if rest.empty:
        return f"Only {names[0]} was written, so there is nothing to rank."
    equal = [name for name, p in zip(names[1:], rest["p_fwer"], strict=True) if not p <= ALPHA]
    if not equal:
        return f"{names[0]} is the largest ({leader['effect']:.3g}; every other is smaller, family-wise; {clusters})."
    shown = "; ".join(equal[:5]) + (f"; and {len(equal) - 5} more" if len(equal) > 5 else "")
    return (
        f"No winner: {names[0]} has the largest effect ({leader['effect']:.3g}), but cannot be told apart from "
        f"{shown} (p > {ALPHA:g}, family-wise; {clusters})."
    )


def _name(row: dict, with_kind: bool) -> str:
    if "kind" in row:
        return site_name(row, with_kind)
    key = "layer" if "layer" in row else "step"
    return f"{key} {row[key]}"


def top_sites(
    table: pd.DataFrame, k: int = 5, metric: str = "logit_difference", direction: str = "denoising", *, seed: int = 0
) -> pd.DataFrame:
    """The k largest sites, chosen on one half of the clusters and measured on the other half, both ways.

    Two rows per rank, one for each choosing `half` (0, 1): `chosen_by` is the effect in that half, which is too large
    because it was selected; `effect` with its interval is that of the other half, which is unbiased. Halves are drawn
    by `seed`. Effects are specific if an unrelated donor was swept.
    """
    rows = specific_or_plain(single_site_rows(table, metric, direction))
    clusters = np.sort(rows["cluster_id"].unique().astype(str))
    if len(clusters) < 4:
        raise ValueError(f"two halves need at least 4 clusters, found {len(clusters)}")
    first = np.random.default_rng(seed).permutation(clusters)[: len(clusters) // 2]
    in_first = rows["cluster_id"].isin(first)
    by = [*SERIES, *SITE_KEYS]
    effects = [pooled(part, by, seed=seed) for part in (rows[in_first], rows[~in_first])]
    parts = []
    for half in (0, 1):
        largest = effects[half].sort_values("effect", ascending=False, kind="stable").head(k)
        largest = largest[[*by, "effect"]].rename(columns={"effect": "chosen_by"})
        measured = largest.merge(effects[1 - half], on=by, how="left")
        parts.append(measured.assign(half=half, rank=range(1, len(measured) + 1)))
    return pd.concat(parts, ignore_index=True)
