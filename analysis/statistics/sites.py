"""Which site is the largest, where that can be told: the leader against every other, and a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codi_tracing.analysis.labels import place_name
from codi_tracing.analysis.rows import SERIES, from_other_run, has_unrelated, main_protocol
from codi_tracing.analysis.statistics.effects import effect, pooled, specific_or_plain
from codi_tracing.analysis.statistics.inference import (
    benjamini_hochberg,
    first_shares,
    rank_intervals,
    ratio_interval,
    sign_flips,
    step_down,
)
from codi_tracing.analysis.statistics.verdict import LOW_CEILING, Estimate, ceiling
from codi_tracing.analysis.table import SEGMENTS, SITE_KEYS

GROUPS = {"site": SITE_KEYS, "layer": ("layer",), "step": ("step",)}


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

    `by` is "site", "layer" or "step"; a layer's effect is the mean over what was written in it, one row of the table
    each. Effects are specific where an unrelated donor was swept. The leader comes first, with difference 0 and no p.
    The leader is chosen from the same data, so its lead is tested two-sided, over all the others at once.
    """
    if by not in GROUPS:
        raise ValueError(f"by is {by!r}, wanted one of {', '.join(GROUPS)}")
    chosen = main_protocol(table)
    chosen = chosen[chosen[["read_step", "knockout", "n_latents"]].isna().all(axis=1)]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["direction"] == direction) & ~chosen["kind"].isin(SEGMENTS)]
    if by != "site":
        chosen = chosen[chosen[by].notna() & (chosen[by] == chosen[f"{by}_last"])]
    if chosen.empty:
        raise ValueError(f"the table has no single {by} with metric {metric!r} and direction {direction!r} to rank")
    rows = specific_or_plain(chosen).dropna(subset=["numerator", "denominator"])
    if rows.empty:
        raise ValueError(f"no pair has an effect of its other run with metric {metric!r}, direction {direction!r}")
    keys = list(GROUPS[by])
    per_pair = rows.groupby([*keys, "cluster_id", "pair_id"], dropna=False)[["numerator", "denominator"]].mean()
    numbered = per_pair.reset_index()
    places = numbered[keys].drop_duplicates(ignore_index=True)
    numbered = numbered.merge(places.assign(place=range(len(places))), on=keys)
    sums = numbered.pivot_table(index="cluster_id", columns="place", values=["numerator", "denominator"], aggfunc="sum")
    sums = sums.dropna()  # a paired difference needs both
    above, below = (sums[name].to_numpy(float) for name in ("numerator", "denominator"))
    if not len(sums) or not below.sum(0).all():
        raise ValueError(f"no cluster has an effect at every {by}, so their differences are unknown")
    effects = above.sum(0) / below.sum(0)
    order = np.argsort(-effects, kind="stable")
    # Per cluster, what the leader has more than another, in shares of the pairs' own gaps.
    scale = below.sum(0) / len(below)
    lead = (above[:, order[:1]] / scale[order[0]]) - above / scale
    others = order[1:]
    p = np.full(len(effects), np.nan)
    if len(others):
        p[others] = step_down(lead[:, others], draws, seed)
    ones = np.ones(len(lead))
    found = []
    for rank, place in enumerate(order, 1):
        low, high = ratio_interval(lead[:, place], ones, seed=seed) if rank > 1 else (0.0, 0.0)
        found.append(
            {
                **places.iloc[place].to_dict(),
                "rank": rank,
                "effect": effects[place],
                "difference": effects[order[0]] - effects[place],
                "low": low,
                "high": high,
                "p_fwer": p[place],
                "clusters": len(sums),
            }
        )
    differences = pd.DataFrame(found).astype({key: table[key].dtype for key in keys})
    first_row = chosen[list(SERIES)].iloc[0]
    return differences.assign(metric=metric, direction=direction, protocol=first_row["protocol"])


def winner(differences: pd.DataFrame) -> str:
    """Who is largest, from `rank_differences`: named only where it differs from every other, family-wise."""
    if not {"p_fwer", "clusters", "rank"} <= set(differences):
        raise ValueError("these are no differences of a ranking; pass the table through rank_differences() first")
    several = "kind" in differences and differences["kind"].nunique() > 1
    names = [_name(row, several or not place) for place, row in enumerate(differences.to_dict("records"))]
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
        return place_name(row, with_kind)
    key = "layer" if "layer" in row else "step"
    return f"{key} {row[key]}"


def top_sites(
    table: pd.DataFrame,
    k: int = 5,
    metric: str = "logit_difference",
    direction: str = "denoising",
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The k largest sites, chosen on one half of the clusters and sized on the other, both ways round.

    Two rows per rank, one for each `half` (0, 1) that chose: `chosen_by` is the effect in the half that chose, which is
    too large since it was chosen for that, `effect` with its interval the effect in the other half, which is not.
    Halves are drawn by `seed`. Effects are specific where an unrelated donor was swept.
    """
    chosen = main_protocol(table)
    chosen = chosen[chosen[["read_step", "knockout", "n_latents"]].isna().all(axis=1)]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["direction"] == direction) & ~chosen["kind"].isin(SEGMENTS)]
    rows = specific_or_plain(chosen)
    clusters = np.sort(rows["cluster_id"].unique().astype(str))
    if len(clusters) < 4:
        raise ValueError(f"two halves need at least 4 clusters, found {len(clusters)}")
    first = np.random.default_rng(seed).permutation(clusters)[: len(clusters) // 2]
    in_first = rows["cluster_id"].isin(first)
    by = [*SERIES, *SITE_KEYS]
    sized = [pooled(part, by, seed=seed) for part in (rows[in_first], rows[~in_first])]
    parts = []
    for half in (0, 1):
        largest = sized[half].sort_values("effect", ascending=False, kind="stable").head(k)
        largest = largest[[*by, "effect"]].rename(columns={"effect": "chosen_by"})
        found = largest.merge(sized[1 - half], on=by, how="left")
        parts.append(found.assign(half=half, rank=range(1, len(found) + 1)))
    return pd.concat(parts, ignore_index=True)


ALPHA = 0.05  # family-wise
WORTH = 0.05  # a critical site's lower bound is above this part of the ceiling


def critical(
    table: pd.DataFrame,
    metric: str = "logit_difference",
    direction: str = "denoising",
    *,
    low_ceiling: float = LOW_CEILING,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every site by its specific effect, largest first, with its interval, its rank's, and its p-values.

    `p` is of the site alone, `p_fwer` family-wise over all sites tested, `q` Benjamini and Hochberg's. `critical` where
    p_fwer ≤ 0.05, the lower bound is above 5 % of the ceiling, and the ceiling itself is not low; `exploratory` where
    q ≤ 0.05 and the effect is above 0. `first`: how often the site is the largest in resamples of clusters. Sites are
    those whose effect is read at the answer, no edge cut. Without an unrelated donor there is no null to test against:
    effects are then plain ones (`specific` is False), all p are NaN, and nothing is critical.
    """
    top = ceiling(table, direction, metric)
    return rank_sites(site_statistics(table, metric, direction, draws=draws, seed=seed), top, low_ceiling)


def rank_sites(sites: pd.DataFrame, top: Estimate, low_ceiling: float = LOW_CEILING) -> pd.DataFrame:
    """Sort `site_statistics` by effect, and mark the critical sites under the ceiling `top`."""
    large = (sites["p_fwer"] <= ALPHA) & (sites["low"] > WORTH * top.effect)
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
    """The sites of `critical` with their effects, ranks and p-values, whatever the ceiling; in the table's order.

    `moved` is the most that any write there, of any pair and either donor, changed the metric in a run.
    """
    chosen = main_protocol(table)
    chosen = chosen[chosen[["read_step", "knockout", "n_latents"]].isna().all(axis=1)]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["direction"] == direction) & ~chosen["kind"].isin(SEGMENTS)]
    if chosen.empty:
        raise ValueError(f"the table has no rows of a layer or step with metric {metric!r} and direction {direction!r}")
    has_null = has_unrelated(chosen)
    if (rows := specific_or_plain(chosen).dropna(subset=["numerator", "denominator"])).empty:
        raise ValueError(f"no pair has an effect of its other run with metric {metric!r}, direction {direction!r}")
    by = [*SERIES, *SITE_KEYS]
    sites = pooled(rows, by, seed=seed)
    # A site's number is its place among the sorted groups: the order of the pooled rows.
    numbered = rows.assign(place=rows.groupby(by, dropna=False).ngroup())
    sums = numbered.pivot_table(
        index="cluster_id", columns="place", values=["numerator", "denominator"], aggfunc="sum", fill_value=0.0
    )
    numerators, denominators = (sums[name].to_numpy(float) for name in ("numerator", "denominator"))
    p_fwer, p = (
        test(numerators, draws, seed) if has_null else np.full(len(sites), np.nan) for test in (step_down, sign_flips)
    )
    q = benjamini_hochberg(p)
    rank_low, rank_high = rank_intervals(numerators, denominators, seed)
    written = effect(chosen[from_other_run(chosen) | (chosen["source"] == "unrelated")])
    keys = list(SITE_KEYS)
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
