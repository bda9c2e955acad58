"""Effects: how far a patch moves a run towards the pair's other run, and how far beyond an unrelated donor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import SERIES, _offer, from_other_run, has_unrelated, known_split
from codi_tracing.analysis.statistics.inference import RESAMPLES, ratio_intervals
from codi_tracing.analysis.table import SITE_KEYS


def effect(table: pd.DataFrame) -> pd.DataFrame:
    """Add effect = (patched − host) / (donor − host): 0 leaves the host as it was, 1 makes it the pair's other run.

    The scale is the pair's two runs whatever the source, so that unrelated donors compare with the true one. NaN where
    the two runs agree; `numerator` and `denominator` stand beside it, for pooling.
    """
    denoising = table["direction"] == "denoising"
    host = table["corrupted"].where(denoising, table["clean"])
    donor = table["clean"].where(denoising, table["corrupted"])
    numerator, denominator = table["patched"] - host, donor - host
    ratio = numerator / denominator.where(denominator != 0)
    return table.assign(numerator=numerator, denominator=denominator, effect=ratio)


def recovery(table: pd.DataFrame) -> pd.DataFrame:
    """Add recovery = (patched − corrupted) / (clean − corrupted): 0 is the corrupted run, 1 the clean one.

    In either direction, so that denoising's is its effect, and noising's 1 − its effect. `numerator` and `denominator`
    stand beside it: `pooled` and `by_site` then give the pooled recovery as their `effect`.
    """
    numerator, denominator = table["patched"] - table["corrupted"], table["clean"] - table["corrupted"]
    ratio = numerator / denominator.where(denominator != 0)
    return table.assign(numerator=numerator, denominator=denominator, recovery=ratio)


def specific(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pair's other run, less what an unrelated donor does at the same place of the same pair.

    Zero means no more than any write there does. Draws are averaged; pairs without an unrelated donor are left out.
    """
    effects = effect(table)
    place = ["pair_id", "protocol", "direction", "metric", *SITE_KEYS]
    drawn = effects[effects["source"] == "unrelated"]
    if drawn.empty:
        raise ValueError(
            "the table has no rows of source 'unrelated', so specific effects are undefined; sweep them too"
        )
    control = drawn.groupby(place, dropna=False, as_index=False)["numerator"].mean()
    paired = effects[from_other_run(effects)].merge(control, on=place, suffixes=("", "_unrelated"))
    numerator = paired["numerator"] - paired["numerator_unrelated"]
    ratio = numerator / paired["denominator"].where(paired["denominator"] != 0)
    return paired.assign(numerator=numerator, effect=ratio).drop(columns="numerator_unrelated")


def specific_or_plain(table: pd.DataFrame) -> pd.DataFrame:
    """Specific effects where an unrelated donor was swept, else plain effects, of the pair's other run."""
    return specific(table) if has_unrelated(table) else effect(table[from_other_run(table)])


def pooled(effects: pd.DataFrame, by: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Pool each group's pairs: effect = Σ numerators / Σ denominators, with the 95 % interval over resampled clusters.

    Beside it `mean` and `median` of the pairs' own effects (never the headline), and how many pairs (`n`) and clusters.
    """
    if missing := [name for name in ("numerator", "denominator", *by) if name not in effects]:
        raise ValueError(f"nothing to pool: column {missing[0]!r} is missing; pass the table through effect() first")
    known = effects.dropna(subset=["numerator", "denominator"])
    if known.empty and len(effects):
        raise ValueError(f"none of {len(effects)} rows has a value in all three runs, so there is nothing to pool")
    sums = ["numerator", "denominator"]
    per_pair = known.groupby([*by, "cluster_id", "pair_id"], dropna=False)[sums].mean().reset_index()
    own = per_pair["numerator"] / per_pair["denominator"].where(per_pair["denominator"] != 0)
    groups = per_pair.assign(own=own).groupby(list(by), dropna=False)
    rows = groups[sums].sum()
    rows = rows.assign(effect=rows["numerator"] / rows["denominator"].where(rows["denominator"] != 0))
    per_cluster = per_pair.assign(group=groups.ngroup()).groupby(["group", "cluster_id"])[sums].sum()
    clusters = per_cluster.groupby(level="group").size().to_numpy()
    ends, intervals = clusters.cumsum(), np.full((len(rows), 2), np.nan)
    for count in np.unique(clusters):  # groups of equally many clusters have their intervals at once
        where = np.flatnonzero(clusters == count)
        at = (ends[where] - count)[:, None] + np.arange(count)
        above, below = (per_cluster[name].to_numpy()[at] for name in sums)
        intervals[where] = np.stack(ratio_intervals(above, below, resamples, seed), axis=1)
    counted = rows.assign(low=intervals[:, 0], high=intervals[:, 1], n=groups.size(), clusters=clusters)
    counted = counted.assign(mean=groups["own"].mean(), median=groups["own"].median())
    columns = [*by, "effect", "low", "high", "n", "clusters", "mean", "median"]
    return counted.reset_index()[columns].astype({name: effects[name].dtype for name in by})


def by_site(
    effects: pd.DataFrame,
    *,
    direction: str | None = None,
    metric: str = "logit_difference",
    source: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """One pooled row per site × layer × step, of one direction or both; `source=None` is the pair's other run.

    `split` names a further column to keep apart, as `kind`, how the pair's questions differ.
    """
    effects = known_split(effects, split)
    chosen = effects[effects["metric"] == metric]
    if direction is not None:
        chosen = chosen[chosen["direction"] == direction]
    chosen = chosen[from_other_run(chosen)] if source is None else chosen[chosen["source"] == source]
    if chosen.empty:
        where = f"direction {direction or 'any'}, source {source or 'the other run'}"
        raise ValueError(f"the table has no rows of metric {metric!r}, {where}; it has {_offer(effects)}")
    return pooled(chosen, [*SERIES, *SITE_KEYS, *([split] if split else [])])


def null_contrast(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Effect of one unrelated donor less that of another, at every place of every pair: 0 on average, by construction.

    Which of draws 0 and 1 is subtracted is drawn once for each cluster, as clusters are what the tests flip. Rows are
    those of draw 0, with `numerator`, `denominator` and `effect` of the contrast. ValueError without two draws.
    """
    rows = effect(table[table["source"] == "unrelated"])
    place = ["pair_id", "protocol", "direction", "metric", *SITE_KEYS]
    first, second = (rows[rows["draw"] == draw] for draw in (0, 1))
    both = first.merge(second[[*place, "numerator"]], on=place, suffixes=("", "_second"))
    if both.empty:
        raise ValueError("the table has no two unrelated donors of the same pair; sweep with draws = 2")
    clusters, numbered = np.unique(both["cluster_id"].to_numpy(str), return_inverse=True)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=len(clusters))
    numerator = signs[numbered] * (both["numerator"] - both["numerator_second"])
    ratio = numerator / both["denominator"].where(both["denominator"] != 0)
    return both.assign(numerator=numerator, effect=ratio).drop(columns="numerator_second")
