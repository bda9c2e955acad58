"""Effects: how far a patch moves a run towards the pair's other run; specific transfer; pooling over pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import SERIES, from_other_run, host_value, known_split
from codi_tracing.analysis.statistics.inference import (
    Array,
    cluster_share_intervals,
    is_defined,
    ratio_intervals,
)
from codi_tracing.analysis.table import SITE_KEYS

SUMS = ["numerator", "denominator"]
PAIR_AND_SITE = ["pair_id", "protocol", "direction", "metric", *SITE_KEYS]
CONTROLS = ("unrelated",)
CLOSED_CONTROLS = ("unrelated", "noise")  # where answers are closed, a destroyed one falls at chance
Intervals = Callable[[Array, Array], tuple[Array, Array]]


def effect(table: pd.DataFrame) -> pd.DataFrame:
    """Add effect = (patched − host) / (partner − host): 0 leaves the host unchanged, 1 makes it the pair's other run.

    The scale is the pair's two runs, whatever the source, so that unrelated donors compare with the true one. NaN if
    the two runs agree. Columns `numerator` and `denominator` are for pooling.
    """
    host = host_value(table)
    partner = table["clean"].where(table["direction"] == "denoising", table["corrupted"])
    return _with_ratio(table, table["patched"] - host, partner - host)


def _with_ratio(rows: pd.DataFrame, numerator: pd.Series, denominator: pd.Series) -> pd.DataFrame:
    ratio = numerator / denominator.where(denominator != 0)
    return rows.assign(numerator=numerator, denominator=denominator, effect=ratio)


def specific(rows: pd.DataFrame, controls: Sequence[str] = CONTROLS) -> pd.DataFrame:
    """The transfer of the pair's other run minus that of the control at the same site of the same pair.

    `rows` are those of `measured(table, "transfer")`. Zero means no more than an unrelated run's write. Draws are
    averaged; pairs without a control are left out. With several `controls`, a site's is the one of larger transfer.
    ValueError for other metrics: a destroyed answer moves a logit difference about half-way, which the partner's write
    does not do, so that the difference of the two would measure nothing.
    """
    if other := sorted(set(rows["metric"]) - {"transfer"}):
        raise ValueError(
            f"the effect of an unrelated donor on {other[0]} is not subtracted: a write that destroys the answer moves "
            "it too; use measured(table, 'transfer'), or draw both"
        )
    effects = effect(rows)
    drawn = effects[effects["source"].isin(list(controls))]
    if not (drawn["source"] == "unrelated").any():
        raise ValueError(
            "the table has no rows of source 'unrelated', so specific transfer is undefined; sweep them too"
        )
    control = drawn.groupby([*PAIR_AND_SITE, "source"], dropna=False)["numerator"].mean().reset_index()
    if control["source"].nunique() > 1:
        site = ["protocol", "direction", *SITE_KEYS]
        of_sites = control.groupby([*site, "source"], dropna=False)["numerator"].mean().reset_index()
        largest = of_sites.sort_values("numerator", ascending=False, kind="stable").drop_duplicates(site)
        control = control.merge(largest[[*site, "source"]], on=[*site, "source"])
    control = control.rename(columns={"numerator": "control"}).drop(columns="source")
    paired = effects[from_other_run(effects)].merge(control, on=PAIR_AND_SITE)
    return _with_ratio(paired, paired["numerator"] - paired["control"], paired["denominator"])


def pooled(effects: pd.DataFrame, by: Sequence[str], *, intervals: Intervals = ratio_intervals) -> pd.DataFrame:
    """Pool the pairs of each group: effect = Σ numerators / Σ denominators, with a 95 % interval over clusters.

    NaN where the pooled denominator cannot be told from 0, and no interval with fewer than 8 clusters. Also `mean` and
    `median` of the pairs' own effects (never the headline), and how many pairs (`n`) and clusters.
    """
    if missing := [name for name in (*SUMS, *by) if name not in effects]:
        raise ValueError(f"nothing to pool: column {missing[0]!r} is missing; pass the table through effect() first")
    known = effects.dropna(subset=SUMS)
    if known.empty and len(effects):
        raise ValueError(f"none of {len(effects)} rows has a value in all three runs, so there is nothing to pool")
    per_pair = known.groupby([*by, "cluster_id", "pair_id"], dropna=False)[SUMS].mean().reset_index()
    own = (per_pair["numerator"] / per_pair["denominator"]).where(per_pair["denominator"].abs() >= _least_gap(known))
    groups = per_pair.assign(own=own).groupby(list(by), dropna=False)
    rows = groups[SUMS].sum()
    per_cluster = per_pair.assign(group=groups.ngroup()).groupby(["group", "cluster_id"])[SUMS].sum()
    clusters = per_cluster.groupby(level="group").size().to_numpy()
    ends, values = clusters.cumsum(), np.full((3, len(rows)), np.nan)
    for count in np.unique(clusters):  # groups with equal numbers of clusters are computed together
        where = np.flatnonzero(clusters == count)
        at = (ends[where] - count)[:, None] + np.arange(count)
        above, below = (per_cluster[name].to_numpy(float)[at] for name in SUMS)
        estimate = above.sum(1) / np.where(below.sum(1) == 0, np.nan, below.sum(1))
        values[:, where] = np.where(is_defined(below), np.stack([estimate, *intervals(above, below)]), np.nan)
    counted = rows.assign(effect=values[0], low=values[1], high=values[2], n=groups.size(), clusters=clusters)
    counted = counted.assign(mean=groups["own"].mean(), median=groups["own"].median())
    columns = [*by, "effect", "low", "high", "n", "clusters", "mean", "median"]
    return counted.reset_index()[columns].astype({name: effects[name].dtype for name in by})


def _least_gap(rows: pd.DataFrame) -> float:
    """The smallest |denominator| of a pair that has an effect of its own: 0.1 of two probabilities, else above 0."""
    probabilities = "metric" in rows and rows["metric"].isin(["transfer", "disruption"]).all()
    return 0.1 if probabilities else 1e-300


def oriented(effects: pd.DataFrame) -> pd.DataFrame:
    """The rows with each pair's gap counted as positive, of a model that prefers neither answer.

    The two runs of an untrained model differ by chance, in either sign: their gaps would cancel, and the pooled ratio
    would be undefined.
    """
    sign = np.sign(effects["denominator"])
    return effects.assign(numerator=effects["numerator"] * sign, denominator=effects["denominator"].abs())


def own_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """The rows with `effect` NaN where a single pair has none of its own, its two runs being too alike."""
    return effects.assign(effect=effects["effect"].where(effects["denominator"].abs() >= _least_gap(effects)))


def pooled_shares(rows: pd.DataFrame, values: pd.Series, by: Sequence[str]) -> pd.DataFrame:
    """The mean over pairs of a value of each row from 0 to 1, with a share's interval (Clopper–Pearson)."""
    return pooled(rows.assign(numerator=values, denominator=1.0), by, intervals=cluster_share_intervals)


def pooled_means(rows: pd.DataFrame, values: pd.Series, by: Sequence[str]) -> pd.DataFrame:
    """The mean over pairs of a value of each row, pooled like an effect of denominator 1."""
    return pooled(rows.assign(numerator=values, denominator=1.0), by)


def cluster_sums(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Σ numerators and Σ denominators by cluster (rows) and group (columns, in the order of `pooled`)."""
    numbered = rows.assign(group=rows.groupby(list(by), dropna=False).ngroup())
    return numbered.pivot_table(index="cluster_id", columns="group", values=SUMS, aggfunc="sum")


def by_site(
    effects: pd.DataFrame,
    *,
    direction: str | None = None,
    source: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """One pooled row per site of `effect(measured(table, …))`, of one direction or both; `source=None`: the other run.

    `split` names a further column to keep apart, such as `edit`.
    """
    effects = known_split(effects, split)
    chosen = effects if direction is None else effects[effects["direction"] == direction]
    chosen = chosen[from_other_run(chosen)] if source is None else chosen[chosen["source"] == source]
    if chosen.empty:
        where = f"direction {direction or 'any'}, source {source or 'the other run'}"
        has = "; ".join(f"{name} {', '.join(sorted(effects[name].unique()))}" for name in SERIES[1:])
        raise ValueError(f"the table has no rows of {where}; it has {has}")
    return pooled(chosen, [*SERIES, *SITE_KEYS, *([split] if split else [])])
