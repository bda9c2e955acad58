"""Two runs, of two checkpoints or protocols, on the same pairs: the sites where their effects differ."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import metric_noun, site_name
from codi_tracing.analysis.figures.marks import below, crosses, diagonal, numbers, row_of, scale_of
from codi_tracing.analysis.figures.style import BLUE, GREEN, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.rows import from_other_run, main_protocol, sites_have_unrelated
from codi_tracing.analysis.statistics.effects import SUMS, effect, pooled
from codi_tracing.analysis.statistics.effects import specific as specific_effect
from codi_tracing.analysis.statistics.inference import ratio_differences, step_down
from codi_tracing.analysis.statistics.sites import ALPHA
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import SEGMENTS, SITE_KINDS

COMPARED = ["direction", *SITE_KEYS]
SIDES = ("first", "second")
KIND_COLOURS = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A", "#F0E442"]


def comparison_data(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str = "logit_difference",
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per direction and site written in both tables: each pooled effect, and the paired difference.

    Only pairs with an effect at that site in both runs count. `difference` is the first's effect minus the second's,
    with its 95 % interval over clusters; `p_fwer` by exchanging the runs in whole clusters, max-|t| step-down over all
    sites. Effects are specific if both runs swept an unrelated donor (`specific`), but those of whole segments, whose
    effect is the ceiling, are always plain. Clusters are the first run's.
    """
    tables = [main_protocol(table[table["metric"] == metric]) for table in (first, second)]
    for word, table in zip(SIDES, tables, strict=True):
        if table.empty:
            raise ValueError(f"the {word} run has no rows of metric {metric!r}; sweep it too, or compare another")
    if not set(tables[0]["pair_id"]) & set(tables[1]["pair_id"]):
        raise ValueError("the two runs have no pair in common; run both on one file of pairs")
    specific = all(map(sites_have_unrelated, tables))
    a, b = (_effects(table, specific) for table in tables)
    both = a.merge(b.drop(columns="cluster_id"), on=[*COMPARED, "pair_id"], suffixes=("_first", "_second"))
    if both.empty:
        raise ValueError("the two runs wrote at no site in common; sweep the same sites in both")
    parts = [pooled(both.rename(columns={f"{name}_{side}": name for name in SUMS}), COMPARED, seed=seed)
             for side in SIDES]  # fmt: skip
    data = parts[0][[*COMPARED, "n", "clusters"]]
    for side, part in zip(SIDES, parts, strict=True):
        data = data.assign(**{side: part["effect"], f"low_{side}": part["low"], f"high_{side}": part["high"]})
    if not np.isfinite(data["first"] - data["second"]).any():
        raise ValueError(f"no site has an effect on {metric_noun(metric)} in both runs, so there is no difference")
    # Sites are numbered in the order of the pooled rows.
    numbered = both.assign(place=both.groupby(COMPARED, dropna=False).ngroup())
    columns = [f"{name}_{side}" for side in SIDES for name in SUMS]
    per_cluster = numbered.groupby(["place", "cluster_id"])[columns].sum()
    intervals = []
    for _, part in per_cluster.groupby(level="place"):
        a_above, a_below, b_above, b_below = (part[name].to_numpy()[None] for name in columns)
        intervals.append(ratio_differences(a_above, a_below, b_above, b_below, seed=seed))
    return data.assign(
        difference=data["first"] - data["second"],
        low=[float(low[0]) for low, _ in intervals],
        high=[float(high[0]) for _, high in intervals],
        p_fwer=_p_of_exchange(per_cluster, draws, seed),
        specific=specific & ~data["kind"].isin(SEGMENTS),
        metric=metric,
        protocol_first=tables[0]["protocol"].iloc[0],
        protocol_second=tables[1]["protocol"].iloc[0],
    )


def _effects(table: pd.DataFrame, specific: bool) -> pd.DataFrame:
    """Each pair's numerator and denominator at each site: specific except of segments; draws are averaged."""
    segments = table["kind"].isin(SEGMENTS)
    own = effect(table[from_other_run(table)])
    if specific:
        own = pd.concat([specific_effect(table[~segments]), own[own["kind"].isin(SEGMENTS)]])
    rows = own.dropna(subset=SUMS)
    return rows.groupby([*COMPARED, "pair_id", "cluster_id"], dropna=False)[SUMS].mean().reset_index()


def _p_of_exchange(per_cluster: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """Family-wise p of each site under the null that the two runs are exchangeable.

    Each cluster's difference is in units of the runs' mean gaps, so that the sum over clusters is the difference.
    """
    gaps = per_cluster.groupby(level="place")[[f"denominator_{side}" for side in SIDES]].transform("mean")
    parts = [per_cluster[f"numerator_{side}"] / gaps[f"denominator_{side}"].replace(0.0, np.nan) for side in SIDES]
    differences = (parts[0] - parts[1]).unstack("place")
    tested = differences.notna().any().to_numpy()
    p = np.full(len(tested), np.nan)
    if tested.any():
        p[tested] = step_down(differences.loc[:, tested].fillna(0.0).to_numpy(float), draws, seed)
    return p


def comparison_chart(data: pd.DataFrame, names: tuple[str, str] = ("first", "second")) -> Any:
    """Each site's effect in one run against the other, a panel for each direction.

    Equal effects lie on the dashed diagonal; sites that differ, family-wise, are filled.
    """
    kinds = set(data["kind"])
    rows = data.assign(
        place=[site_name(row, len(kinds) > 1) for row in data.to_dict("records")],
        noun=data["kind"].map({name: kind.noun for name, kind in SITE_KINDS.items()}),
        differs=np.where(data["p_fwer"] <= ALPHA, "yes", "no"),
    )
    values = rows[[f"{name}{side}" for name in ("", "low_", "high_") for side in SIDES]].to_numpy(float)
    if not np.isfinite(values).any():
        raise ValueError("no site has an effect in both runs, so there is nothing to draw")
    ends = [min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)]
    scale = alt.Scale(domain=ends, nice=True)
    nouns = [kind.noun for name, kind in SITE_KINDS.items() if name in kinds]
    by_kind = scale_of(dict(zip(nouns, KIND_COLOURS, strict=False)))
    colour = alt.Color("noun:N", title="written", scale=by_kind, legend=below(3))
    filled = alt.FillOpacity("differs:N", scale=alt.Scale(domain=["yes", "no"], range=[0.9, 0.0]), legend=None)
    tooltip: list[Any] = ["place:N", *numbers(*SIDES, "difference", "low", "high", "p_fwer"), "n:Q"]
    x = alt.X("first:Q", title=f"effect in {names[0]}", scale=scale)
    y = alt.Y("second:Q", title=f"effect in {names[1]}", scale=scale)
    fill = alt.Fill("noun:N", scale=by_kind, legend=None)
    panels = []
    for direction, panel in rows.groupby("direction", sort=True):
        base = alt.Chart(panel).encode(color=colour, tooltip=tooltip)
        points = base.mark_point(size=55, strokeWidth=1.5).encode(x=x, y=y, fill=fill, fillOpacity=filled)
        chart = alt.layer(diagonal(ends), *crosses(base, x, y, SIDES), points)
        panels.append(chart.properties(width=WIDTH - 60, height=WIDTH - 60, title=direction))
    what = "specific effects, of whole segments plain ones" if data["specific"].any() else "plain effects"
    protocols = " against ".join(dict.fromkeys(data[f"protocol_{side}"].iloc[0] for side in SIDES))
    n = f"{data['n'].min()} to {data['n'].max()}" if data["n"].nunique() > 1 else data["n"].iloc[0]
    return dress(
        row_of(panels),
        heading(
            f"{names[0]} against {names[1]}, a point for each site",
            f"On {metric_noun(data['metric'].iloc[0])}, pooled: {what}",
            "Filled: the runs differ there, family-wise 5%; dashed: equal effects; bars: 95% over clusters",
            f"n = {n} pairs of both runs, {data['clusters'].max()} clusters; protocol {protocols}",
            width=WIDTH * len(panels),
        ),
    )
