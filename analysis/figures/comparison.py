"""Two runs side by side, of two checkpoints or protocols on the same pairs: where their effects differ, and a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.figures.marks import below
from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.io.run_folder import read_manifest, read_prepared
from codi_tracing.analysis.labels import NOUNS, metric_noun, place_name
from codi_tracing.analysis.rows import from_other_run, main_protocol, places_have_unrelated
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.effects import specific as specific_effect
from codi_tracing.analysis.statistics.inference import ratio_differences, step_down
from codi_tracing.analysis.statistics.sites import ALPHA
from codi_tracing.analysis.table import SEGMENTS, SITE_KEYS, read_table

PLACE = ("direction", *SITE_KEYS)
SUMS = ["numerator", "denominator"]
SIDES = ("first", "second")


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str = "logit_difference",
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per direction and place that both runs wrote at: either's pooled effect, and the paired difference.

    Only pairs with an effect at that place in both runs count. `difference` is the first's effect less the second's,
    with its 95 % interval over clusters; `p_fwer` by flipping which run is which in whole clusters, max-|t| step-down
    over all places. Effects are specific where both runs swept an unrelated donor (`specific`), but those of whole
    thoughts, whose effect is the ceiling, are always plain. Clusters are the first run's.
    """
    tables = [main_protocol(table[table["metric"] == metric]) for table in (first, second)]
    for word, table in zip(("first", "second"), tables, strict=True):
        if table.empty:
            raise ValueError(f"the {word} run has no rows of metric {metric!r}; sweep it too, or compare another")
    if not set(tables[0]["pair_id"]) & set(tables[1]["pair_id"]):
        raise ValueError("the two runs have no pair in common; run both on one file of pairs")
    specific = all(map(places_have_unrelated, tables))
    a, b = (_effects(table, specific) for table in tables)
    both = a.merge(b.drop(columns="cluster_id"), on=[*PLACE, "pair_id"], suffixes=("_first", "_second"))
    if both.empty:
        raise ValueError("the two runs wrote at no place in common; sweep the same sites in both")
    by = list(PLACE)
    sides = [pooled(both.rename(columns={f"{name}_{side}": name for name in SUMS}), by, seed=seed) for side in SIDES]
    found = sides[0][[*by, "n", "clusters"]]
    for side, part in zip(SIDES, sides, strict=True):
        found = found.assign(**{side: part["effect"], f"low_{side}": part["low"], f"high_{side}": part["high"]})
    # A place's number is its place among the sorted groups: the order of the pooled rows.
    numbered = both.assign(place=both.groupby(by, dropna=False).ngroup())
    columns = [f"{name}_{side}" for side in SIDES for name in SUMS]
    per_cluster = numbered.groupby(["place", "cluster_id"])[columns].sum()
    intervals = []
    for _, part in per_cluster.groupby(level="place"):
        a_above, a_below, b_above, b_below = (part[name].to_numpy()[None] for name in columns)
        intervals.append(ratio_differences(a_above, a_below, b_above, b_below, seed=seed))
    if not np.isfinite(found["first"] - found["second"]).any():
        raise ValueError(f"no place has an effect on {metric_noun(metric)} in both runs, so there is no difference")
    return found.assign(
        difference=found["first"] - found["second"],
        low=[float(low[0]) for low, _ in intervals],
        high=[float(high[0]) for _, high in intervals],
        p_fwer=_p_if_swapped(per_cluster, draws, seed),
        specific=specific & ~found["kind"].isin(SEGMENTS),
        metric=metric,
        protocol_first=tables[0]["protocol"].iloc[0],
        protocol_second=tables[1]["protocol"].iloc[0],
    )


def run_names(first: Path, second: Path) -> tuple[str, str]:
    """What two run folders are called beside each other: by their checkpoints, else protocols, names or folders."""
    manifests = [read_manifest(run) for run in (first, second)]
    for of in (
        lambda manifest, _: Path(str((manifest.get("model") or {}).get("checkpoint") or "")).name,
        lambda manifest, _: str(manifest.get("protocol") or ""),
        lambda manifest, _: str(manifest.get("name") or ""),
        lambda _, run: run.resolve().name,
        lambda _, run: str(run),
    ):
        names = [of(manifest, run) for manifest, run in zip(manifests, (first, second), strict=True)]
        if all(names) and names[0] != names[1]:
            return names[0], names[1]
    raise ValueError(f"{first}: is compared with itself; name two runs")


def compare_runs(first: Path, second: Path, metric: str = "logit_difference") -> pd.DataFrame:
    """`compare` of two run folders; ValueError where the two call different questions by one name."""
    sides = [{str(pair["pair_id"]): pair for pair in read_prepared(run)} for run in (first, second)]
    for pair_id in sorted(sides[0].keys() & sides[1].keys()):
        for side in ("clean", "corrupted"):
            if sides[0][pair_id][side]["question"] != sides[1][pair_id][side]["question"]:
                raise ValueError(
                    f"pair {pair_id} has another {side} question in {second} than in {first}; "
                    "compare runs on one file of pairs"
                )
    return compare(read_table(first / "cells.parquet"), read_table(second / "cells.parquet"), metric)


def _effects(table: pd.DataFrame, specific: bool) -> pd.DataFrame:
    """Each pair's numerator and denominator at each place: specific but of whole cuts; draws are averaged."""
    segments = table["kind"].isin(SEGMENTS)
    own = effect(table[from_other_run(table)])
    if specific:
        places = specific_effect(table[~segments])
        own = pd.concat([places, own[own["kind"].isin(SEGMENTS)]])
    rows = own.dropna(subset=SUMS)
    return rows.groupby([*PLACE, "pair_id", "cluster_id"], dropna=False)[SUMS].mean().reset_index()


def _p_if_swapped(per_cluster: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """Family-wise p of each place, were it of no matter which run is which.

    Each cluster's difference is in shares of the runs' mean gaps, so that the sum over clusters is the difference.
    """
    gaps = per_cluster.groupby(level="place")[[f"denominator_{side}" for side in SIDES]].transform("mean")
    parts = [per_cluster[f"numerator_{side}"] / gaps[f"denominator_{side}"].replace(0.0, np.nan) for side in SIDES]
    differences = (parts[0] - parts[1]).unstack("place")
    tested = differences.notna().any().to_numpy()
    p = np.full(len(tested), np.nan)
    if tested.any():
        p[tested] = step_down(differences.loc[:, tested].fillna(0.0).to_numpy(float), draws, seed)
    return p


def comparison_chart(compared: pd.DataFrame, names: tuple[str, str] = ("first", "second")) -> Any:
    """Each place's effect in one run against the other, from `compare`, a panel for each direction.

    Equal effects lie on the dashed diagonal; places that differ, family-wise, are filled.
    """
    kinds = compared["kind"].unique()
    order = [kind for kind in NOUNS if kind in kinds]
    rows = compared.assign(
        place=[place_name(row, len(kinds) > 1) for row in compared.to_dict("records")],
        noun=compared["kind"].map(NOUNS),
        differs=np.where(compared["p_fwer"] <= ALPHA, "yes", "no"),
    )
    ends = rows[[f"{name}{side}" for name in ("", "low_", "high_") for side in SIDES]].to_numpy(float)
    if not np.isfinite(ends).any():
        raise ValueError("no place has an effect in both runs, so there is nothing to draw")
    reach = [min(float(np.nanmin(ends)), 0.0), max(float(np.nanmax(ends)), 0.0)]
    scale = alt.Scale(domain=reach, nice=True)
    colours = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A", "#F0E442"]
    by_kind = alt.Scale(domain=[NOUNS[kind] for kind in order], range=colours[: len(order)])
    colour = alt.Color("kind:N", title="written", scale=by_kind, legend=below(3))
    filled = alt.Scale(domain=["yes", "no"], range=[0.9, 0.0])
    differs = alt.FillOpacity("differs:N", scale=filled, legend=None)
    numbers = ("first", "second", "difference", "low", "high", "p_fwer")
    tooltip: list[Any] = ["place:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in numbers), "n:Q"]
    panels = []
    for direction, panel in rows.groupby("direction", sort=True):
        base = alt.Chart(panel).encode(color=colour, tooltip=tooltip)
        x = alt.X("first:Q", title=f"effect in {names[0]}", scale=scale)
        y = alt.Y("second:Q", title=f"effect in {names[1]}", scale=scale)
        fill = alt.Fill("kind:N", scale=by_kind, legend=None)
        points = base.mark_point(size=55, strokeWidth=1.5).encode(x=x, y=y, fill=fill, fillOpacity=differs)
        across = base.mark_rule(opacity=0.3).encode(x="low_first:Q", x2="high_first:Q", y=y)
        along = base.mark_rule(opacity=0.3).encode(x=x, y="low_second:Q", y2="high_second:Q")
        diagonal = alt.Chart(pd.DataFrame({"both": reach})).encode(x="both:Q", y="both:Q")
        equal = diagonal.mark_line(color=GREY, strokeDash=[3, 3], strokeWidth=1)
        panels.append(
            (equal + across + along + points).properties(width=WIDTH - 60, height=WIDTH - 60, title=direction)
        )
    what = "specific effects, of whole cuts plain ones" if compared["specific"].any() else "plain effects"
    protocols = " against ".join(dict.fromkeys(compared[f"protocol_{side}"].iloc[0] for side in SIDES))
    n = f"{compared['n'].min()} to {compared['n'].max()}" if compared["n"].nunique() > 1 else compared["n"].iloc[0]
    return dress(
        alt.hconcat(*panels) if len(panels) > 1 else panels[0],
        heading(
            f"{names[0]} against {names[1]}, a point for each place written",
            f"On {metric_noun(compared['metric'].iloc[0])}, pooled: {what}",
            "Filled: the runs differ there, family-wise 5%; dashed: equal effects; bars: 95% over clusters",
            f"n = {n} pairs that both runs have, {compared['clusters'].max()} clusters; protocol {protocols}",
            width=WIDTH * len(panels),
        ),
    )
