"""Two runs, of two checkpoints or protocols, on the same pairs: the sites where their effects differ."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import about_measure, metric_noun, site_name
from codi_tracing.analysis.figures.marks import below, crosses, diagonal, numbers, row_of, scale_of
from codi_tracing.analysis.figures.style import BLUE, GREEN, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.rows import from_other_run, main_protocol, sites_have_unrelated
from codi_tracing.analysis.statistics.effects import SUMS, effect, pooled
from codi_tracing.analysis.statistics.effects import specific as specific_transfer
from codi_tracing.analysis.statistics.inference import ALPHA, difference_intervals, sign_flip_p
from codi_tracing.analysis.statistics.measures import TRANSFER, measured
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS, SITE_KINDS

COMPARED = ["direction", *SITE_KEYS]
SIDES = ("first", "second")
KIND_COLOURS = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A", "#F0E442"]


def comparison_data(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str = TRANSFER,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per direction and site written in both tables: each pooled effect, and the paired difference.

    Transfer is specific (`specific`) if both runs swept an unrelated donor, and of the pairs that both answer. Only
    pairs with an effect at that site in both runs count. `difference` is the first's effect minus the second's, with
    its 95 % interval over clusters; `p_fwer` by exchanging the runs in whole clusters, max-|t| step-down over all
    sites. Clusters are the first run's.
    """
    tables = []
    for word, table in zip(SIDES, (first, second), strict=True):
        try:
            tables.append(measured(main_protocol(table), metric))
        except ValueError as error:
            raise ValueError(f"the {word} run cannot be compared: {error}") from None
    if not set(first["pair_id"]) & set(second["pair_id"]):
        raise ValueError("the two runs have no pair in common; run both on one file of pairs")
    if not set(tables[0]["pair_id"]) & set(tables[1]["pair_id"]):
        raise ValueError("no pair is answered in both runs, so no transfer can be compared")
    specific = metric == TRANSFER and all(map(sites_have_unrelated, tables))
    a, b = (_effects(table, specific) for table in tables)
    both = a.merge(b.drop(columns="cluster_id"), on=[*COMPARED, "pair_id"], suffixes=("_first", "_second"))
    if both.empty:
        raise ValueError("the two runs wrote at no site in common; sweep the same sites in both")
    parts = [pooled(both.rename(columns={f"{name}_{side}": name for name in SUMS}), COMPARED) for side in SIDES]
    data = parts[0][[*COMPARED, "n", "clusters"]]
    for side, part in zip(SIDES, parts, strict=True):
        data = data.assign(**{side: part["effect"], f"low_{side}": part["low"], f"high_{side}": part["high"]})
    if not np.isfinite(data["first"] - data["second"]).any():
        raise ValueError(f"no site has an effect on {metric_noun(metric)} in both runs, so there is no difference")
    # Sites are numbered in the order of the pooled rows.
    numbered = both.assign(place=both.groupby(COMPARED, dropna=False).ngroup())
    columns = [f"{name}_{side}" for side in SIDES for name in SUMS]
    per_cluster = numbered.groupby(["place", "cluster_id"])[columns].sum()
    intervals = [
        difference_intervals(*(part[name].to_numpy(float)[None] for name in columns))
        for _, part in per_cluster.groupby(level="place")
    ]
    return data.assign(
        difference=data["first"] - data["second"],
        low=[float(low[0]) for low, _ in intervals],
        high=[float(high[0]) for _, high in intervals],
        p_fwer=_p_of_exchange(per_cluster, draws, seed),
        specific=specific,
        metric=metric,
        protocol_first=tables[0]["protocol"].iloc[0],
        protocol_second=tables[1]["protocol"].iloc[0],
    )


def _effects(table: pd.DataFrame, is_specific: bool) -> pd.DataFrame:
    """Each pair's numerator and denominator at each site; draws are averaged."""
    rows = specific_transfer(table) if is_specific else effect(table[from_other_run(table)])
    rows = rows.dropna(subset=SUMS)
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
        p[tested], _ = sign_flip_p(differences.loc[:, tested].fillna(0.0).to_numpy(float), 1.0, draws, seed)
    return p


def comparison_chart(data: pd.DataFrame, names: tuple[str, str] = ("first", "second")) -> Any:
    """Each site's effect in one run against the other, a panel for each direction.

    Equal effects lie on the dashed diagonal; sites that differ, family-wise, are filled.
    """
    kinds, noun = set(data["kind"]), metric_noun(data["metric"].iloc[0])
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
    x = alt.X("first:Q", title=f"{noun} in {names[0]}", scale=scale)
    y = alt.Y("second:Q", title=f"{noun} in {names[1]}", scale=scale)
    fill = alt.Fill("noun:N", scale=by_kind, legend=None)
    panels = []
    for direction, panel in rows.groupby("direction", sort=True):
        base = alt.Chart(panel).encode(color=colour, tooltip=tooltip)
        points = base.mark_point(size=55, strokeWidth=1.5).encode(x=x, y=y, fill=fill, fillOpacity=filled)
        chart = alt.layer(diagonal(ends), *crosses(base, x, y, SIDES), points)
        panels.append(chart.properties(width=WIDTH - 60, height=WIDTH - 60, title=direction))
    few = data["clusters"].max() < FEWEST_CLUSTERS
    less = ", less an unrelated donor's" if data["specific"].any() else ""
    protocols = " against ".join(dict.fromkeys(data[f"protocol_{side}"].iloc[0] for side in SIDES))
    n = f"{data['n'].min()} to {data['n'].max()}" if data["n"].nunique() > 1 else data["n"].iloc[0]
    return dress(
        row_of(panels),
        heading(
            f"{names[0]} against {names[1]}, a point for each site",
            f"{about_measure(data['metric'].iloc[0])}{less}; dashed: equal",
            f"Nothing is tested: {FEWEST_CLUSTERS} clusters are needed"
            if few
            else "Filled: the runs differ there, family-wise 5%; bars: 95% over clusters",
            f"n = {n} pairs of both runs, {data['clusters'].max()} clusters; protocol {protocols}",
            width=WIDTH * len(panels),
        ),
    )
