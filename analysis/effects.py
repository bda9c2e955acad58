"""Effects: how far a patch moves a run towards the pair's other run, and how far beyond an unrelated donor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.inference import RESAMPLES, ratio_intervals
from analysis.table import CUTS, SITE_KEYS

OTHER_RUN = {"denoising": "clean", "noising": "corrupted"}  # denoising writes clean values into the corrupted run
SERIES = ("protocol", "direction", "source", "metric")


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


def from_other_run(table: pd.DataFrame) -> pd.Series:
    """Which rows write values of the pair's other run."""
    return table["source"] == table["direction"].map(OTHER_RUN)


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


def has_unrelated(table: pd.DataFrame) -> bool:
    """Whether the table has unrelated donors, without which an effect has no zero line and no p."""
    return bool((table["source"] == "unrelated").any())


def places_have_unrelated(table: pd.DataFrame) -> bool:
    """The same of layers and steps alone: the whole thought has an unrelated donor in every run."""
    return has_unrelated(table[~table["site"].isin(CUTS)])


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


def known_split(table: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows whose value of `split` is known; ValueError where the table has no such column or no such row."""
    if split is None:
        return table
    if split not in table:
        raise ValueError(f"the table has no column {split!r} to split by; it has {', '.join(map(str, table))}")
    known = table[table[split].notna()]
    if known.empty:
        raise ValueError(f"no pair has a {split}, so there is nothing to split by; make pairs with `codi pairs make`")
    return known


def _offer(table: pd.DataFrame) -> str:
    """What a table holds, for an error's last words."""
    return "; ".join(f"{name} {', '.join(sorted(table[name].unique()))}" for name in ("metric", "direction", "source"))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in which no route is held, no edge cut, no thought stopped, and which are read at the answer."""
    special = ("freeze", "cut", "n_latents", "read_step", "step_set")
    return table[table[list(special)].isna().all(axis=1)]


def main_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a run is about: of the latent loop, where it ran beside a control of another protocol."""
    protocols = table["protocol"].unique()
    if len(protocols) < 2:
        return table
    return table[table["protocol"] == ("latent_loop" if "latent_loop" in protocols else protocols[0])]


def layerwise(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the original experiment's sites: the residual stream of one layer at all latent steps."""
    rows = plain(table)
    one_layer = rows["layer"].notna() & (rows["layer"] == rows["layer_last"]).fillna(False)
    return rows[(rows["site"] == "resid") & one_layer & rows["step"].isna()]
