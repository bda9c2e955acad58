"""One pair's effects by layer; every pair's effect at one site."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import BOTH_WAYS, about_measure, about_pooled, metric_noun, site_name, what_where
from codi_tracing.analysis.figures.marks import (
    TRANSFER_TITLE,
    below,
    colour_by_direction,
    dash_by,
    direction_lines,
    direction_points,
    effect_title,
    layer_axis,
    numbers,
    scale_of,
)
from codi_tracing.analysis.figures.steps import DONOR_DASHES
from codi_tracing.analysis.figures.style import BLUE, GREY, WIDTH, dress, heading
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED, from_run, layerwise_rows, main_protocol
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import effect, own_effects, pooled
from codi_tracing.analysis.statistics.measures import TRANSFER, measured
from codi_tracing.analysis.statistics.sites import site_statistics
from codi_tracing.analysis.table import SITE_KEYS

PAIR_COLUMNS = ["panel", "direction", "donor", "layer", "value"]
DRAWN = (-1.0, 2.0)  # a pair whose two runs hardly differ can have an effect of any size
MOST_POINTS = 250  # of a donor; if there are more pairs, similar ones are averaged


def pair_data(table: pd.DataFrame, pair_id: str | None = None) -> pd.DataFrame:
    """One row per pair × panel (`kl`, `transfer`) × direction × donor × layer, of all pairs or of one."""
    rows = from_run(layerwise_rows(main_protocol(table)))
    kl = rows[(rows["metric"] == "kl_from_corrupted") & (rows["direction"] == "denoising")]
    panels = [kl.assign(panel="kl", value=kl["patched"])]
    if rows["metric"].str.startswith("probability").any():
        moved = own_effects(effect(measured(rows, answered=False))).dropna(subset=["effect"])
        panels.append(moved.assign(panel="transfer", value=moved["effect"]))
    values = pd.concat(panels)[["pair_id", "protocol", *PAIR_COLUMNS]]
    if pair_id is None:
        return values
    own = values[values["pair_id"] == str(pair_id)]
    if own.empty:
        raise ValueError(f"pair {pair_id}: the table has no rows of one layer's residual; expected one of its pairs")
    return own


def pair_chart(data: pd.DataFrame, question: str = "") -> alt.HConcatChart:
    """One pair's KL(patched ‖ corrupted) and transfer by layer, of both donors."""
    return _draw(data, _heading(data, question))


def pair_specs(table: pd.DataFrame, questions: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pair's `pair_chart` as Vega-Lite, built once: only the values and the title differ."""
    values = pair_data(table)
    frame: dict[str, Any] = _draw(values, heading("")).to_dict() if len(values) else {}
    for pair_id, own in values.groupby("pair_id", sort=False):
        title = _heading(own, questions.get(str(pair_id), "")).to_dict()
        yield str(pair_id), {**frame, "title": title, "datasets": {**frame["datasets"], "pair": _records(own)}}


def _draw(values: pd.DataFrame, title: alt.TitleParams) -> alt.HConcatChart:
    dash = dash_by("donor", DONOR_DASHES, (OTHER_RUN, UNRELATED))
    axis = layer_axis(values["layer"], most=8)

    def panel(name: str, label: str) -> alt.LayerChart:
        rows = alt.Chart(alt.NamedData("pair")).transform_filter(alt.datum.panel == name)
        base = rows.encode(x=axis, color=colour_by_direction())
        y = alt.Y("value:Q", title=label, axis=alt.Axis(tickCount=4))
        return (direction_lines(base, y, dash) + direction_points(base, y)).properties(width=190, height=170)

    ends = alt.Chart(alt.InlineData([{"y": 0}, {"y": 1}])).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="y:Q")
    both = alt.hconcat(
        panel("kl", "KL(patched || corrupted), nats"),
        ends + panel("transfer", TRANSFER_TITLE),
        datasets={"pair": _records(values)},
    )
    return dress(both, title)


def _heading(own: pd.DataFrame, question: str) -> alt.TitleParams:
    return heading(
        f"Pair {own['pair_id'].iloc[0]}: one layer's residual stream, at all latent steps",
        textwrap.shorten(question, 150, placeholder=" …"),
        BOTH_WAYS,
        f"n = 1 pair, without an interval; protocol {own['protocol'].iloc[0]}",
        width=480,
    )


def _records(values: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(values[PAIR_COLUMNS].to_json(orient="records"))


def pairs_data(
    table: pd.DataFrame,
    site: Mapping[str, Any] | None = None,
    metric: str = TRANSFER,
    direction: str = "denoising",
) -> pd.DataFrame:
    """One row per pair and donor at one site: numerator, denominator (the gap between the pair's runs) and effect.

    A pair whose gap is too small has no effect of its own (NaN). `site` is a row of `critical` or `by_site`, or a
    mapping with some of SITE_KEYS, the others empty; by default the site with the largest effect. Draws of an unrelated
    donor are averaged.
    """
    table = main_protocol(table)
    rows = measured(table, metric)
    rows = rows[rows["direction"] == direction]
    if site is None:
        ranked = site_statistics(table, metric, direction)
        site = {str(key): value for key, value in ranked.sort_values("effect").iloc[-1].items()}
    full = dict.fromkeys(SITE_KEYS) | {key: value for key, value in site.items() if key in SITE_KEYS}
    for key, value in full.items():
        here = rows[key].isna() if value is None or pd.isna(value) else rows[key].eq(value).fillna(False)
        rows = rows[here.astype(bool)]
    rows = effect(from_run(rows)).dropna(subset=["numerator"])
    if not (rows["donor"] == OTHER_RUN).any():
        raise ValueError(f"the table has no effect of the pair's other run at {site_name(full, True)}")
    keys = ["protocol", "direction", "metric", *SITE_KEYS, "donor", "cluster_id", "pair_id"]
    pairs = rows.groupby(keys, dropna=False)[["numerator", "denominator"]].mean().reset_index()
    pairs = own_effects(pairs.assign(effect=pairs["numerator"] / pairs["denominator"].where(pairs["denominator"] != 0)))
    if pairs["effect"].isna().all():
        raise ValueError(f"no pair's two runs differ on {metric_noun(metric)}, so none has an effect")
    return pairs


def pairs_chart(pairs: pd.DataFrame) -> Any:
    """Each pair's two effects, from the smallest to the largest, over the pooled ones (lines).

    A point's size is the gap between the pair's runs, its weight in pooling. Effects beyond the axis are drawn at its
    end.
    """
    whole = pooled(pairs, ["protocol", "direction", "metric", "donor"])
    wide = pairs.pivot_table(index="pair_id", columns="donor", values=["effect", "denominator"])
    order = wide["effect"][OTHER_RUN].sort_values(kind="stable").dropna().index
    each = -(-len(order) // MOST_POINTS)
    rank = pd.Series(np.arange(len(order)) // each, index=order, name="rank")
    points = pairs.merge(rank, left_on="pair_id", right_index=True).assign(gap=lambda rows: rows["denominator"].abs())
    points = points.groupby(["rank", "donor"], as_index=False)[["effect", "gap"]].mean().dropna()
    points = points.assign(shown=points["effect"].clip(*DRAWN))
    drawn = set(points["donor"])
    colours = {donor: colour for donor, colour in ((OTHER_RUN, BLUE), (UNRELATED, GREY)) if donor in drawn}
    colour = alt.Color("donor:N", title="written from", scale=scale_of(colours), legend=below(2, "left"))
    y = alt.Y("shown:Q", title=effect_title(pairs["metric"].iloc[0]), scale=alt.Scale(domain=list(DRAWN)))
    x = alt.X("rank:Q", title="pairs, sorted", axis=alt.Axis(labels=False, ticks=False, grid=False))
    tooltip = ["donor", *numbers("effect"), *numbers("gap", form=".2f")]
    size = alt.Size("gap:Q", title="gap", scale=alt.Scale(range=[8, 70]), legend=None)
    base = alt.Chart(points).encode(x=x, color=colour)
    dots = base.mark_point(filled=True, opacity=0.75).encode(y=y, size=size, tooltip=tooltip)
    line = alt.Chart(whole).encode(color=colour)
    bands = line.mark_rect(opacity=0.15, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    rules = line.mark_rule(strokeWidth=2, clip=True).encode(y="effect:Q")
    site = pairs.iloc[0].to_dict()
    lines = "; ".join(f"{row['donor']} {estimate_of(row)}" for row in whole.to_dict("records"))
    undefined = int(pairs.loc[pairs["donor"] == OTHER_RUN, "effect"].isna().sum())
    left_out = f"; {undefined} pairs whose two runs hardly differ have none" if undefined else ""
    noun = "transfer" if site["metric"] == TRANSFER else "effect"
    averaged = f"; a point is the mean of {each} pairs" if each > 1 else ""
    return dress(
        (bands + rules + dots).properties(width=WIDTH - 50, height=200),
        heading(
            f"Each pair's {noun}: {site_name(site, True)}",
            f"Written: {what_where(site['direction'])}",
            f"{about_measure(site['metric'])}; lines: pooled, with 95% over clusters: {lines}",
            f"Size: gap between the pair's runs{averaged}; beyond the axis: at its end{left_out}",
            about_pooled(whole),
        ),
    )
