"""Effects: how far a patch moves a run towards the pair's other run, and how far beyond an unrelated donor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import SERIES, from_other_run, has_unrelated, host_value, known_split
from codi_tracing.analysis.statistics.inference import RESAMPLES, ratio_intervals
from codi_tracing.analysis.table import SITE_KEYS

SUMS = ["numerator", "denominator"]
PAIR_AND_SITE = ["pair_id", "protocol", "direction", "metric", *SITE_KEYS]


def effect(table: pd.DataFrame) -> pd.DataFrame:
    """Add effect = (patched − host) / (donor − host): 0 leaves the host unchanged, 1 makes it the pair's other run.

    The scale is the pair's two runs, whatever the source, so that unrelated donors compare with the true one. NaN if
    the two runs agree. Columns `numerator` and `denominator` are for pooling.
    """
    host = host_value(table)
    partner = table["clean"].where(table["direction"] == "denoising", table["corrupted"])
    return _with_ratio(table, table["patched"] - host, partner - host)


def recovery(table: pd.DataFrame) -> pd.DataFrame:
    """Add recovery = (patched − corrupted) / (clean − corrupted): 0 is the corrupted run, 1 the clean one.

    In denoising it is the effect, in noising 1 − effect. With its `numerator` and `denominator`, `pooled` and `by_site`
    give the pooled recovery as their `effect`.
    """
    return _with_ratio(table, table["patched"] - table["corrupted"], table["clean"] - table["corrupted"], "recovery")


def _with_ratio(rows: pd.DataFrame, numerator: pd.Series, denominator: pd.Series, name: str = "effect") -> pd.DataFrame:
    ratio = numerator / denominator.where(denominator != 0)
    return rows.assign(numerator=numerator, denominator=denominator, **{name: ratio})


def specific(table: pd.DataFrame) -> pd.DataFrame:
    """The effects of the pair's other run minus those of an unrelated donor at the same site of the same pair.

    Zero means no more than any write there does. Draws are averaged; pairs without an unrelated donor are left out.
    """
    effects = effect(table)
    drawn = effects[effects["source"] == "unrelated"]
    if drawn.empty:
        raise ValueError(
            "the table has no rows of source 'unrelated', so specific effects are undefined; sweep them too"
        )
    control = drawn.groupby(PAIR_AND_SITE, dropna=False, as_index=False)["numerator"].mean()
    paired = effects[from_other_run(effects)].merge(control, on=PAIR_AND_SITE, suffixes=("", "_unrelated"))
    numerator = paired["numerator"] - paired.pop("numerator_unrelated")
    return _with_ratio(paired, numerator, paired["denominator"])


def specific_or_plain(table: pd.DataFrame) -> pd.DataFrame:
    """Effects of the pair's other run: specific ones if an unrelated donor was swept, else plain ones."""
    return specific(table) if has_unrelated(table) else effect(table[from_other_run(table)])


def pooled(effects: pd.DataFrame, by: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Pool the pairs of each group: effect = Σ numerators / Σ denominators, with a 95 % interval over clusters.

    Also `mean` and `median` of the pairs' own effects (never the headline), and how many pairs (`n`) and clusters.
    """
    if missing := [name for name in (*SUMS, *by) if name not in effects]:
        raise ValueError(f"nothing to pool: column {missing[0]!r} is missing; pass the table through effect() first")
    known = effects.dropna(subset=SUMS)
    if known.empty and len(effects):
        raise ValueError(f"none of {len(effects)} rows has a value in all three runs, so there is nothing to pool")
    per_pair = known.groupby([*by, "cluster_id", "pair_id"], dropna=False)[SUMS].mean().reset_index()
    own = per_pair["numerator"] / per_pair["denominator"].where(per_pair["denominator"] != 0)
    groups = per_pair.assign(own=own).groupby(list(by), dropna=False)
    rows = groups[SUMS].sum()
    rows = rows.assign(effect=rows["numerator"] / rows["denominator"].where(rows["denominator"] != 0))
    per_cluster = per_pair.assign(group=groups.ngroup()).groupby(["group", "cluster_id"])[SUMS].sum()
    clusters = per_cluster.groupby(level="group").size().to_numpy()
    ends, intervals = clusters.cumsum(), np.full((len(rows), 2), np.nan)
    for count in np.unique(clusters):  # groups with equal numbers of clusters are resampled together
        where = np.flatnonzero(clusters == count)
        at = (ends[where] - count)[:, None] + np.arange(count)
        above, below = (per_cluster[name].to_numpy()[at] for name in SUMS)
        intervals[where] = np.stack(ratio_intervals(above, below, resamples, seed), axis=1)
    counted = rows.assign(low=intervals[:, 0], high=intervals[:, 1], n=groups.size(), clusters=clusters)
    counted = counted.assign(mean=groups["own"].mean(), median=groups["own"].median())
    columns = [*by, "effect", "low", "high", "n", "clusters", "mean", "median"]
    return counted.reset_index()[columns].astype({name: effects[name].dtype for name in by})


def pooled_shares(rows: pd.DataFrame, values: pd.Series, by: Sequence[str]) -> pd.DataFrame:
    """The mean over pairs of a value of each row, such as 0 or 1, pooled like an effect of denominator 1."""
    return pooled(rows.assign(numerator=values, denominator=1.0), by)


def cluster_sums(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Σ numerators and Σ denominators by cluster (rows) and group (columns, in the order of `pooled`)."""
    numbered = rows.assign(group=rows.groupby(list(by), dropna=False).ngroup())
    return numbered.pivot_table(index="cluster_id", columns="group", values=SUMS, aggfunc="sum")


def by_site(
    effects: pd.DataFrame,
    *,
    direction: str | None = None,
    metric: str = "logit_difference",
    source: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """One pooled row per site, of one direction or both; `source=None` is the pair's other run.

    `split` names a further column to keep apart, such as `edit`.
    """
    effects = known_split(effects, split)
    chosen = effects[effects["metric"] == metric]
    if direction is not None:
        chosen = chosen[chosen["direction"] == direction]
    chosen = chosen[from_other_run(chosen)] if source is None else chosen[chosen["source"] == source]
    if chosen.empty:
        where = f"direction {direction or 'any'}, source {source or 'the other run'}"
        has = "; ".join(f"{name} {', '.join(sorted(effects[name].unique()))}" for name in ("metric", *SERIES[1:3]))
        raise ValueError(f"the table has no rows of metric {metric!r}, {where}; it has {has}")
    return pooled(chosen, [*SERIES, *SITE_KEYS, *([split] if split else [])])


def null_contrast(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Effect of one unrelated donor minus that of another, at every site of every pair: 0 on average by construction.

    The sign is drawn once per cluster, because the tests flip whole clusters. The rows are those of draw 0.
    """
    rows = effect(table[table["source"] == "unrelated"])
    first, second = (rows[rows["draw"] == draw] for draw in (0, 1))
    both = first.merge(second[[*PAIR_AND_SITE, "numerator"]], on=PAIR_AND_SITE, suffixes=("", "_second"))
    if both.empty:
        raise ValueError("the table has no two unrelated donors of the same pair; sweep with draws = 2")
    clusters, numbered = np.unique(both["cluster_id"].to_numpy(str), return_inverse=True)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=len(clusters))
    numerator = (both["numerator"] - both.pop("numerator_second")) * signs[numbered]
    return _with_ratio(both, numerator, both["denominator"])
