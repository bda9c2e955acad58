"""Denoising beside noising: whether a site that brings an answer back is also one whose loss takes it away."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
from scipy import stats

from codi_tracing.analysis.figures.style import BLUE, GREY, WIDTH, dress, heading
from codi_tracing.analysis.labels import NOUNS, about_pooled, metric_noun, place_name
from codi_tracing.analysis.rows import SERIES, has_unrelated, main_protocol
from codi_tracing.analysis.statistics.effects import by_site, specific_or_plain
from codi_tracing.analysis.statistics.inference import CONFIDENCE, RESAMPLES, resample_counts
from codi_tracing.analysis.table import SEGMENTS, SITE_KEYS

TIE = 3  # decimals: effects that agree to 0.001 are tied


class Agreement(NamedTuple):
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


def both_directions(table: pd.DataFrame, metric: str = "logit_difference") -> pd.DataFrame:
    """One row per site that was written in both directions: each direction's pooled effect with its interval.

    Effects are specific where an unrelated donor was swept (`specific`). ValueError where no site was written in both.
    """
    rows = _places(table, metric)
    sites = by_site(_effects(rows), metric=metric)
    sides = [
        sites[sites["direction"] == direction]
        .rename(columns={name: f"{name}_{direction}" for name in ("effect", "low", "high")})
        .drop(columns=["direction", "source", "mean", "median"])
        for direction in ("denoising", "noising")
    ]
    both = sides[0].merge(sides[1].drop(columns=["n", "clusters"]), on=["protocol", "metric", *SITE_KEYS])
    if both.empty:
        raise ValueError("no site was written in both directions; sweep denoising and noising")
    return both.assign(specific=has_unrelated(rows))


def direction_agreement(table: pd.DataFrame, metric: str = "logit_difference", *, seed: int = 0) -> Agreement:
    """How alike denoising and noising order the sites; NaN with fewer than three sites or two clusters.

    Clusters are resampled whole, both directions with them. Percentiles: a rank correlation has no smooth jackknife.
    """
    rows = _effects(_places(table, metric))
    keys = [*[name for name in SERIES if name not in ("direction", "source")], *SITE_KEYS]
    rows = rows.assign(place=rows.groupby(keys, dropna=False).ngroup())
    sums = rows.pivot_table(
        index="cluster_id", columns=["direction", "place"], values=["numerator", "denominator"], aggfunc="sum"
    ).fillna(0.0)
    places = sorted(
        set(rows.loc[rows["direction"] == "denoising", "place"])
        & set(rows.loc[rows["direction"] == "noising", "place"])
    )
    if not places:
        raise ValueError("no site was written in both directions; sweep denoising and noising")
    sides = [
        [sums[name][direction][places].to_numpy(float) for name in ("numerator", "denominator")]
        for direction in ("denoising", "noising")
    ]
    if len(places) < 3 or len(sums) < 2:
        return Agreement(np.nan, np.nan, np.nan, np.nan, len(places), len(sums))
    counts = np.vstack([np.ones(len(sums)), resample_counts(len(sums), RESAMPLES, seed)])
    with np.errstate(all="ignore"):
        # Effects that are the same but for rounding are one rank, not an order of their own.
        effects = [np.round((counts @ above) / (counts @ below), TIE) for above, below in sides]
    if not all(np.isfinite(side[0]).all() for side in effects):
        return Agreement(np.nan, np.nan, np.nan, np.nan, len(places), len(sums))
    ranked = [stats.rankdata(side, axis=1) for side in effects]
    drawn = _correlations(*ranked)
    tail = (1 - CONFIDENCE) / 2
    known = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
    pearson = float(_correlations(effects[0][:1], effects[1][:1])[0])
    return Agreement(float(drawn[0]), float(low), float(high), pearson, len(places), len(sums))


def directions_chart(both: pd.DataFrame) -> Any:
    """Each site's two effects against each other, from `both_directions`; equal ones lie on the dashed diagonal."""
    names = [place_name(row, both["kind"].nunique() > 1) for row in both.to_dict("records")]
    ends = [f"{name}_{side}" for name in ("low", "high", "effect") for side in ("denoising", "noising")]
    values = both[ends].to_numpy(float)
    if not np.isfinite(values).any():
        raise ValueError("no site has an effect in both directions, so there is nothing to draw")
    low, high = min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)
    reach = alt.Scale(domain=[low, high], nice=True)
    tested = bool(both["specific"].all())
    noun = "specific effect" if tested else "effect"
    x = alt.X("effect_denoising:Q", title=f"{noun}, denoising", scale=reach)
    y = alt.Y("effect_noising:Q", title=f"{noun}, noising", scale=reach)
    by_layer = alt.Color("layer:O", title="layer", scale=alt.Scale(scheme="viridis"))
    colour = by_layer if both["layer"].nunique() > 1 else alt.value(BLUE)
    numbers = [f"{name}_{side}" for side in ("denoising", "noising") for name in ("effect", "low", "high")]
    tooltip: list[Any] = ["place:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in numbers), "n:Q", "clusters:Q"]
    base = alt.Chart(both.assign(place=names)).encode(color=colour, tooltip=tooltip)
    points = base.mark_point(filled=True, size=50, opacity=0.9).encode(x=x, y=y)
    across = base.mark_rule(opacity=0.3).encode(x="low_denoising:Q", x2="high_denoising:Q", y=y)
    along = base.mark_rule(opacity=0.3).encode(x=x, y="low_noising:Q", y2="high_noising:Q")
    ends_of_it = alt.Chart(pd.DataFrame({"both": [low, high]})).encode(x="both:Q", y="both:Q")
    equal = ends_of_it.mark_line(color=GREY, strokeDash=[3, 3], strokeWidth=1)
    kinds = " and ".join(NOUNS[kind] for kind in both["kind"].unique())
    return dress(
        (points + across + along + equal).properties(width=WIDTH - 60, height=WIDTH - 60),
        heading(
            "Denoising against noising, a point for each site",
            f"Written: {kinds}; dashed: equal effects; bars: 95% over clusters",
            f"On {metric_noun(both['metric'].iloc[0])}, pooled ("
            + ("0: as an unrelated donor)" if tested else "0 host, 1 donor)"),
            about_pooled(both),
        ),
    )


def _places(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of layers and steps that are read at the answer, no edge cut."""
    rows = main_protocol(table)
    rows = rows[rows[["read_step", "knockout", "n_latents"]].isna().all(axis=1)]
    rows = rows[(rows["metric"] == metric) & ~rows["kind"].isin(SEGMENTS)]
    if rows.empty:
        raise ValueError(f"the table has no rows of a layer or step with metric {metric!r}")
    return rows


def _effects(rows: pd.DataFrame) -> pd.DataFrame:
    """The pairs' effects, specific where an unrelated donor was swept."""
    return specific_or_plain(rows).dropna(subset=["numerator", "denominator"])


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of two arrays; NaN where one of them is constant."""
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    below = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), below, out=np.full(len(a), np.nan), where=below > 0)
