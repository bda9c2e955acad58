"""One pair: its curve by layer; all pairs behind one pooled effect."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.figures.layers import DASHES
from codi_tracing.analysis.figures.marks import (
    below,
    dashes_below,
    layer_axis,
    scale_of,
    size_of_direction,
    width_of_direction,
)
from codi_tracing.analysis.figures.style import BLUE, DIRECTION_COLOURS, GREY, WIDTH, dress, heading
from codi_tracing.analysis.labels import BOTH_WAYS, about_pooled, metric_noun, place_name, what_where
from codi_tracing.analysis.rows import from_other_run, layerwise, main_protocol
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.sites import site_statistics
from codi_tracing.analysis.table import SITE_KEYS

DONORS = ("other run", "unrelated donor")
COLUMNS = ["panel", "direction", "donor", "layer", "value"]


def pair_chart(table: pd.DataFrame, pair_id: str, question: str = "") -> alt.HConcatChart:
    """One pair's layers: KL(patched ‖ corrupted), and the effect on the logit difference, of both donors."""
    values = pair_layers(table)
    own = values[values["pair_id"] == str(pair_id)]
    if own.empty:
        raise ValueError(f"pair {pair_id}: the table has no rows of one layer's residual; wanted one of its pairs")
    return _draw(own, _heading(pair_id, question, own["protocol"].iloc[0]))


def pair_specs(table: pd.DataFrame, questions: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pair's chart as Vega-Lite. Only the values and the title differ, so the chart itself is built once."""
    values = pair_layers(table)
    frame: dict[str, Any] = _draw(values, heading("")).to_dict() if len(values) else {}
    for pair_id, own in values.groupby("pair_id", sort=False):
        title = _heading(str(pair_id), questions.get(str(pair_id), ""), own["protocol"].iloc[0])
        yield (
            str(pair_id),
            {**frame, "title": title.to_dict(), "datasets": {**frame["datasets"], "pair": _records(own)}},
        )


def pair_layers(table: pd.DataFrame) -> pd.DataFrame:
    """What the charts draw, one row per pair × panel (`kl`, `effect`) × direction × donor × layer."""
    rows = effect(layerwise(main_protocol(table)))
    rows = rows[from_other_run(rows) | (rows["source"] == "unrelated")]
    rows = rows.assign(donor=(rows["source"] == "unrelated").map({False: DONORS[0], True: DONORS[1]}))
    kl = rows[(rows["metric"] == "kl_from_corrupted") & (rows["direction"] == "denoising")]
    moved = rows[(rows["metric"] == "logit_difference") & rows["effect"].notna()]
    panels = [kl.assign(panel="kl", value=kl["patched"]), moved.assign(panel="effect", value=moved["effect"])]
    return pd.concat(panels)[["pair_id", "protocol", *COLUMNS]]


def _draw(values: pd.DataFrame, title: alt.TitleParams) -> alt.HConcatChart:
    dash = alt.StrokeDash(
        "donor:N", title=None, scale=alt.Scale(domain=list(DONORS), range=list(DASHES[:2])), legend=dashes_below()
    )
    colour = alt.Color("direction:N", title=None, scale=scale_of(DIRECTION_COLOURS), legend=below(2))
    axis = layer_axis(values["layer"], most=8)

    def panel(name: str, label: str) -> alt.LayerChart:
        base = alt.Chart(alt.NamedData("pair")).transform_filter(alt.datum.panel == name).encode(x=axis, color=colour)
        y = alt.Y("value:Q", title=label, axis=alt.Axis(tickCount=4))
        lines = base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=width_of_direction())
        points = base.mark_point(filled=True, opacity=1).encode(y=y, size=size_of_direction())
        return (lines + points).properties(width=190, height=170)

    ends = alt.Chart(alt.InlineData([{"y": 0}, {"y": 1}])).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="y:Q")
    both = alt.hconcat(
        panel("kl", "KL(patched || corrupted), nats"),
        ends + panel("effect", "effect (0 host, 1 donor)"),
        datasets={"pair": _records(values)},
    )
    return dress(both, title)


def _heading(pair_id: str, question: str, protocol: str) -> alt.TitleParams:
    return heading(
        f"Pair {pair_id}: one layer's residual stream, at all latent steps",
        textwrap.shorten(question, 150, placeholder=" …"),
        BOTH_WAYS,
        f"Effect on logit difference; n = 1 pair; protocol {protocol}",
        width=480,
    )


def _records(values: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(values[COLUMNS].to_json(orient="records"))


OWN, UNRELATED = "other run", "unrelated donor"
REACH = (-1.0, 2.0)  # what is drawn; a pair whose two runs hardly differ may have an effect of any size
MOST = 250  # points of a donor; of more pairs, like ones are averaged


def site_pairs(
    table: pd.DataFrame,
    site: Mapping[str, Any] | None = None,
    metric: str = "logit_difference",
    direction: str = "denoising",
) -> pd.DataFrame:
    """One row per pair and donor at one site: numerator, denominator (the gap between the pair's runs) and effect.

    `site` is a row of `critical` or `by_site`, or any mapping with keys of SITE_KEYS, those left out empty; None is the
    site with the largest effect. Draws of an unrelated donor are averaged.
    """
    rows = main_protocol(table)
    rows = rows[(rows["metric"] == metric) & (rows["direction"] == direction)]
    if site is None:
        ranked = site_statistics(rows, metric, direction)
        site = {str(key): value for key, value in ranked.sort_values("effect").iloc[-1].items()}
    place = dict.fromkeys(SITE_KEYS) | {key: value for key, value in site.items() if key in SITE_KEYS}
    for key, value in place.items():
        here = rows[key].isna() if value is None or pd.isna(value) else rows[key].eq(value).fillna(False)
        rows = rows[here.astype(bool)]
    rows = effect(rows[from_other_run(rows) | (rows["source"] == "unrelated")]).dropna(subset=["numerator"])
    rows = rows.assign(donor=rows["source"].eq("unrelated").map({True: UNRELATED, False: OWN}))
    if not (rows["donor"] == OWN).any():
        raise ValueError(f"the table has no effect of the pair's other run at {place_name(place, True)}")
    keys = ["protocol", "direction", "metric", *SITE_KEYS, "donor", "cluster_id", "pair_id"]
    found = rows.groupby(keys, dropna=False)[["numerator", "denominator"]].mean().reset_index()
    found = found.assign(effect=found["numerator"] / found["denominator"].where(found["denominator"] != 0))
    if found["effect"].isna().all():
        raise ValueError(f"no pair's two runs differ on {metric_noun(metric)}, so none has an effect")
    return found


def pair_strip(pairs: pd.DataFrame) -> Any:
    """Each pair's two effects, from `site_pairs`, from the smallest to the largest, over the pooled ones (lines).

    A point's size is the gap between the pair's runs, by which pooling weighs it. Effects beyond the axis stand at its
    end.
    """
    whole = pooled(pairs, ["protocol", "direction", "metric", "donor"])
    wide = pairs.pivot_table(index="pair_id", columns="donor", values=["effect", "denominator"])
    order = wide["effect"][OWN].sort_values(kind="stable").dropna().index
    each = -(-len(order) // MOST)
    rank = pd.Series(np.arange(len(order)) // each, index=order, name="rank")
    points = pairs.merge(rank, left_on="pair_id", right_index=True).assign(gap=lambda rows: rows["denominator"].abs())
    points = points.groupby(["rank", "donor"], as_index=False)[["effect", "gap"]].mean().dropna()
    points = points.assign(shown=points["effect"].clip(*REACH))
    donors = [donor for donor in (OWN, UNRELATED) if (points["donor"] == donor).any()]
    colours = scale_of({donor: {OWN: BLUE, UNRELATED: GREY}[donor] for donor in donors})
    colour = alt.Color("donor:N", title="written from", scale=colours, legend=below(2, "left"))
    y = alt.Y("shown:Q", title="effect (0 host, 1 donor)", scale=alt.Scale(domain=list(REACH)))
    x = alt.X("rank:Q", title="pairs, by effect", axis=alt.Axis(labels=False, ticks=False, grid=False))
    tooltip = ["donor", alt.Tooltip("effect:Q", format=".3f"), alt.Tooltip("gap:Q", format=".2f")]
    base = alt.Chart(points).encode(x=x, color=colour)
    dots = base.mark_point(filled=True, opacity=0.75).encode(
        y=y, size=alt.Size("gap:Q", title="gap", scale=alt.Scale(range=[8, 70]), legend=None), tooltip=tooltip
    )
    line = alt.Chart(whole).encode(color=colour)
    bands = line.mark_rect(opacity=0.15).encode(y=alt.Y("low:Q"), y2="high:Q")
    rules = line.mark_rule(strokeWidth=2).encode(y="effect:Q")
    site = pairs.iloc[0].to_dict()
    said = "; ".join(f"{row.donor} {row.effect:z.2f} [{row.low:z.2f}, {row.high:z.2f}]" for row in whole.itertuples())
    averaged = f"; a point is the mean of {each} pairs" if each > 1 else ""
    return dress(
        (bands + rules + dots).properties(width=WIDTH - 50, height=200),
        heading(
            f"Each pair's effect: {place_name(site, True)}",
            f"Written: {what_where(site['direction'])}",
            f"On {metric_noun(site['metric'])}; lines: pooled, with 95% over clusters: {said}",
            f"Size: gap between the pair's runs{averaged}; beyond the axis: at its end",
            about_pooled(whole),
        ),
    )
